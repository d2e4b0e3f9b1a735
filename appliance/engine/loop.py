"""The decode loop: one thread owns the model, and every conversation is a sequence in its batches.

Each step computes the next token of every answer and pieces of the prompts that are still to be read, in one call. Hides
what is shared (a prompt's longest prefix that stands in the cache is copied, not computed; who arrives together waits for
the first one to compute what all share), what is kept for the next turn and what goes when room is needed, and how time is
parted where conversations wear different adapters. Whose turn it is when all is full is `admission.py`'s.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from appliance.engine.admission import FairQueue
from appliance.engine.handler import Chunk
from appliance.engine.job import Job
from appliance.engine.llama import BATCH, Llama
from appliance.engine.prefixes import Prefixes, common
from appliance.engine.sampling import chances, sampler
from appliance.engine.scoring import score
from appliance.engine.speculation import Lookup
from appliance.errors import ApplianceError, BadInput, Busy, ModelUnavailable

SHARE_FROM = 16  # tokens: a shorter prefix is computed again sooner than waited for
KEPT = 48  # sequences that may stay in the cache after their answer
STEP_SECONDS = 0.25  # that a step with prompts in it should last, so that the others' words keep coming
FEWEST_PROMPT = 64  # prompt tokens of a step, however slow the machine is
TURN_SECONDS = 0.02  # at least, before another adapter goes: to change it costs half a millisecond and more
GUESSING = 2  # conversations up to which guessing ahead pays
# With n of N conversations wearing a rare adapter, it is given the time of this share of the others at least.
RARE = 0.37


@dataclass(slots=True)
class _Idle:
    """A finished conversation that stays in the cache: `worth` rises with the clock and with every use."""

    worth: float
    uses: int


class Loop:
    """`begin` starts the thread; `submit` and `cancel` may be called from any other."""

    def __init__(self, llama: Llama, *, slots: int, queue: int, model: str, keep: bool = True) -> None:
        self._llama = llama
        self._slots = slots
        self._queue = queue
        self._model = model
        self._keep = keep and llama.divisible
        self._waiting: FairQueue[Job] = FairQueue()
        self._running: list[Job] = []
        self._idle: dict[int, _Idle] = {}
        self._kinds: dict[int, str] = {}  # the adapter that a sequence was computed with
        self._errands: list[tuple[Callable[[], None], Future[None]]] = []
        self._tree = Prefixes()
        self._free = list(range(llama.sequences))
        self._wake = threading.Condition()
        self._closing = False
        self._clock = 0.0
        self._spent: dict[str, float] = {}  # virtual seconds of each adapter
        self._kind, self._took = "", 0.0  # whose turn it is, and its seconds of this turn
        self._prompt_speed = 2000.0  # tokens a second, measured as we go
        self._answer_seconds = 2.0
        self._told = -1  # the queue's version when everybody was last told their place
        self.seconds = {"model": 0.0, "all": 0.0}  # inside llama.cpp, and altogether while there was something to do
        self._thread = threading.Thread(target=self._run, name=f"llama-{model}", daemon=True)

    # --- for the coroutines -------------------------------------------------------------------------------------------
    def begin(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._closing

    def submit(self, job: Job) -> None:
        """Queue a job. Raises Busy where too many wait, ModelUnavailable where the loop has ended."""
        with self._wake:
            if not self.alive:
                raise ModelUnavailable(f"The model {self._model} is not running.", "Ask again in a moment.")
            free = self._slots - len(self._running)
            if len(self._waiting) >= self._queue + free:
                wait = self._wait(len(self._waiting))
                raise Busy(
                    f"{len(self._waiting)} questions are waiting already.",
                    f"Try again in {wait:.0f} seconds.",
                    retry_after=wait,
                )
            cost = len(job.tokens) + job.request.max_tokens
            self._waiting.add(job, group=job.request.group, user=job.request.user, cost=cost)
            self._wake.notify()

    def cancel(self, job: Job) -> None:
        with self._wake:
            job.cancelled = True
            self._waiting.remove(job)
            self._wake.notify()

    def between_steps(self, work: Callable[[], None]) -> Future[None]:
        """Have the thread that owns the model do something when no batch is being computed."""
        future: Future[None] = Future()
        with self._wake:
            if not self.alive:
                raise ModelUnavailable(f"The model {self._model} is not running.", "Ask again in a moment.")
            self._errands.append((work, future))
            self._wake.notify()
        return future

    def unlearn(self, kind: str) -> None:
        """Forget an adapter and all that was computed with it. Only between steps."""
        for sequence in [sequence for sequence in self._idle if self._kinds[sequence] == kind]:
            self._forget(sequence)
        self._llama.unlearn(kind)

    def state_of(self, tokens: list[int], kind: str) -> bytes | None:
        """The cells of a prefix, for `adopt` in a later process; None where they are not in the cache. Only between steps."""
        source, length = self._tree.match(tokens, kind)
        if not self._keep or length < len(tokens) or not self._free:
            return None
        aside = self._free[-1]
        self._llama.copy(source, aside, length)
        try:
            return self._llama.state(aside)
        finally:
            self._llama.forget(aside)

    def adopt(self, tokens: list[int], kind: str, state: bytes) -> bool:
        """Put a prefix back among what is kept; False where there is no room. Raises BadInput for a state that is none of this
        model's. Only between steps."""
        room = self._llama.cells // 2 - self._tree.cells - sum(job.needs for job in self._running)
        full = not self._free or len(self._idle) >= KEPT // 2 or len(tokens) > room
        if not self._keep or full or self._tree.match(tokens, kind)[1] == len(tokens):
            return False
        sequence = self._free[-1]
        if not self._llama.restore(sequence, state) or self._llama.length(sequence) != len(tokens):
            self._llama.forget(sequence)
            raise BadInput("The state of a prefix does not fit this model.", "It is computed again.")
        self._free.pop()
        self._tree.share(sequence, -1, 0, kind)
        self._tree.append(sequence, tokens)
        self._kinds[sequence] = kind
        self._idle[sequence] = _Idle(self._clock + 2, 2)
        return True

    @property
    def idle(self) -> bool:
        return not self._running and not len(self._waiting)

    def facts(self) -> dict[str, Any]:
        return {
            "running": len(self._running),
            "waiting": len(self._waiting),
            "slots": self._slots,
            "cells": self._llama.cells,
            "cells_used": self._tree.cells,
            "kept": len(self._idle),
            "seconds": dict(self.seconds),
        }

    def close(self) -> None:
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def _wait(self, place: int) -> float:
        return max(1.0, self._answer_seconds * place / self._slots)

    # --- the thread ---------------------------------------------------------------------------------------------------
    def _run(self) -> None:
        try:
            while True:
                with self._wake:
                    while not (self._closing or self._running or len(self._waiting) or self._errands):
                        self._wake.wait()
                    if self._closing:
                        break
                    errands, self._errands = self._errands, []
                    started = time.perf_counter()
                    for job in [job for job in self._running if job.cancelled]:
                        self._leave(job)
                    self._admit()
                for work, future in errands:
                    _do(work, future)
                if self._running:
                    self._step()
                self.seconds["all"] += time.perf_counter() - started
        except BaseException as error:  # noqa: BLE001 - whatever it was, nobody may be left waiting for ever
            self._fail(error)
        finally:
            for job in self._running:
                self._free_sampler(job)
            self._fail(ModelUnavailable("The model was unloaded.", "Ask again."))

    def _fail(self, error: BaseException) -> None:
        with self._wake:
            self._closing = True
            jobs = [*self._running, *self._waiting.clear()]
            errands, self._errands = self._errands, []
        known = isinstance(error, ApplianceError)
        fault = error if known else ModelUnavailable(f"The model failed: {error}.", "Ask again.")
        for job in jobs:
            job.send(fault)
        for _, future in errands:
            future.set_exception(fault)

    # --- coming and going ---------------------------------------------------------------------------------------------
    def _admit(self) -> None:
        while len(self._running) < self._slots:
            job = self._waiting.first()
            if job is None or not self._place(job):
                break
            self._waiting.take()
            self._running.append(job)
        if self._waiting.version == self._told:
            return
        self._told = self._waiting.version
        for place, job in enumerate(self._waiting.order(), 1):
            if job.told_place != place:
                job.told_place = place
                job.send(Chunk(place=place, wait=self._wait(place)))

    def _place(self, job: Job) -> bool:
        """Find what it can share, and room for the rest. False where it has to wait for somebody to leave."""
        source, length = self._match(job)
        self._follow(job, length)
        job.done = job.cached = 0
        source, length, room = self._room(job, source, length)
        if not room:
            job.leader = None
            return False
        job.sequence = self._free.pop()
        if job.leader is None:
            self._share(job, source, length)
        return True

    def _room(self, job: Job, source: int, length: int) -> tuple[int, int, bool]:
        """Give up what is kept until everything that is running, and this job, can go on to their ends; what it can still
        share then, and whether there is room."""
        # Nobody who runs is ever stopped for want of room: all that they can still come to need is set aside.
        others = [other for other in self._running if other is not job and (other.sequence in self._tree or other.leader)]
        reserved = sum(other.needs - (other.shared if other.leader else 0) for other in others)
        while True:
            need = job.needs - max(length, job.shared if job.leader else 0)
            if self._tree.cells + reserved + need <= self._llama.cells and (self._free or job.sequence >= 0):
                return source, length, True
            if not self._evict(spare=source):
                if source not in self._idle:
                    return source, length, False
                self._forget(source)  # what it would have shared is all that is left to take away
                source, length = -1, 0

    def _match(self, job: Job) -> tuple[int, int]:
        """(sequence, length) of the longest prefix in the cache; one token is left to compute, for its logits."""
        if not self._keep or job.score_from is not None:
            return -1, 0
        source, length = self._tree.match(job.tokens, job.kind)
        return source, min(length, len(job.tokens) - 1)

    def _follow(self, job: Job, length: int) -> None:
        """Look for somebody who is computing a longer prefix of the same prompt at this moment."""
        job.leader, job.shared = None, 0
        if not self._keep or job.score_from is not None:
            return
        for other in self._running:
            if other.kind != job.kind or other.answering or other.score_from is not None:
                continue
            same = min(common(other.tokens, job.tokens), len(job.tokens) - 1)
            if same >= max(length, job.shared) + SHARE_FROM:
                job.leader, job.shared = other, same

    def _share(self, job: Job, source: int, length: int) -> None:
        if length:
            self._llama.copy(source, job.sequence, length)
        self._tree.share(job.sequence, source, length, job.kind)
        self._kinds[job.sequence] = job.kind
        job.done = job.cached = length
        kept = self._idle.get(source)
        if kept is not None:
            kept.uses += 1
            kept.worth = self._clock + kept.uses
            if length == self._tree.length(source):
                self._forget(source)  # its next turn: the new sequence holds all of it

    def _leave(self, job: Job) -> None:
        """Its answer is finished or nobody wants it any more; what was computed stays in the cache for a while."""
        self._free_sampler(job)
        self._running.remove(job)
        for other in self._running:
            if other.leader is job:
                other.leader = None
        if job.sequence not in self._tree:
            self._free.append(job.sequence)
        elif self._keep and job.score_from is None and self._tree.own(job.sequence) >= SHARE_FROM:
            while len(self._idle) >= KEPT:
                self._evict()
            self._idle[job.sequence] = _Idle(self._clock + 1, 1)
        else:
            self._forget(job.sequence)

    def _evict(self, spare: int = -1) -> bool:
        """Give up what is worth least; False where nothing but `spare` is left."""
        doomed = min((id for id in self._idle if id != spare), key=lambda id: self._idle[id].worth, default=None)
        if doomed is None:
            return False
        self._clock = max(self._clock, self._idle[doomed].worth)
        self._forget(doomed)
        return True

    def _forget(self, sequence: int) -> None:
        self._idle.pop(sequence, None)
        self._llama.forget(sequence)
        self._tree.drop(sequence)
        self._free.append(sequence)

    def _free_sampler(self, job: Job) -> None:
        if job.sampler is not None:
            self._llama.free_sampler(job.sampler)
            job.sampler = None

    # --- one step -----------------------------------------------------------------------------------------------------
    def _step(self) -> None:
        scoring = next((job for job in self._running if job.score_from is not None), None)
        if scoring is not None:
            self._score(scoring)
            return
        for kind in self._turns():
            rows, parts = self._compose([job for job in self._running if job.kind == kind])
            if rows:
                break
        else:
            return
        if kind != self._kind or self._took >= TURN_SECONDS:
            self._kind, self._took = kind, 0.0
        self._llama.wear(kind)
        started = time.perf_counter()
        while not self._llama.decode(rows):
            if not self._evict():  # admission prevents it
                raise ModelUnavailable("llama.cpp found no room in its cache.", "Set `slots` lower.")
        self.seconds["model"] += time.perf_counter() - started
        for job, tokens in parts:
            self._tree.append(job.sequence, tokens)
        for job, _ in parts:
            if job.row >= 0:
                self._take_tokens(job)
        took = time.perf_counter() - started
        self._account(kind, took, sum(len(tokens) for job, tokens in parts if not job.answer))

    def _turns(self) -> list[str]:
        """The adapters in the order in which they go: a turn is finished, then who had the least time for how many wear it."""
        worn = {job.kind for job in self._running}
        if len(worn) > 1:
            now = min((self._spent[kind] for kind in worn if kind in self._spent), default=0.0)
            self._spent |= {kind: max(now, self._spent.get(kind, now)) for kind in worn}
        mine = self._kind if self._took < TURN_SECONDS else None
        return sorted(worn, key=lambda kind: (kind != mine, self._spent.get(kind, 0.0), kind))

    def _account(self, kind: str, took: float, prompt: int) -> None:
        self._took += took
        if prompt >= FEWEST_PROMPT:
            self._prompt_speed += 0.3 * (prompt / took - self._prompt_speed)
        mine = sum(job.kind == kind for job in self._running) or 1
        others = len(self._running) - mine
        if others > 0:
            self._spent[kind] = self._spent.get(kind, 0.0) + took / max(mine, RARE * others)
        else:
            self._spent.clear()

    def _compose(self, jobs: list[Job]) -> tuple[list[tuple[int, int, int, bool]], list[tuple[Job, list[int]]]]:
        """Rows of the next batch, and which tokens of it are whose."""
        rows: list[tuple[int, int, int, bool]] = []
        parts: list[tuple[Job, list[int]]] = []
        answering = [job for job in jobs if job.answering]
        for job in answering:
            job.drafts = self._guess(job) if len(jobs) <= GUESSING else []
            tokens = [job.answer[-1], *job.drafts]
            start = len(job.tokens) + len(job.answer) - 1
            job.row = len(rows)
            rows += [(token, start + place, job.sequence, True) for place, token in enumerate(tokens)]
            parts.append((job, tokens))
        room = BATCH - len(rows)
        if answering:
            room = min(room, max(FEWEST_PROMPT, int(self._prompt_speed * STEP_SECONDS)))
        for job in jobs:
            if job.answering or room <= 0 or not self._ready(job):
                continue
            tokens = job.tokens[job.done : job.done + room]
            complete = job.done + len(tokens) == len(job.tokens)
            job.row = len(rows) + len(tokens) - 1 if complete else -1
            last = len(tokens) - 1
            rows += [(token, job.done + place, job.sequence, complete and place == last) for place, token in enumerate(tokens)]
            job.done += len(tokens)
            room -= len(tokens)
            parts.append((job, tokens))
        return rows, parts

    def _ready(self, job: Job) -> bool:
        """Whether its own part of the prompt can be computed now: the one it follows has computed what both share."""
        if job.sequence in self._tree:
            return True
        leader = job.leader
        if leader is not None and leader.sequence in self._tree and self._tree.length(leader.sequence) >= job.shared:
            self._share(job, leader.sequence, job.shared)
            job.leader = None
            return True
        if leader is not None:
            return False
        # Its leader left before it came so far: take what is there now, or wait for room to compute the rest alone.
        job.shared = 0
        source, length, room = self._room(job, *self._match(job))
        if room:
            self._share(job, source, length)
        return room

    def _guess(self, job: Job) -> list[int]:
        if job.request.schema is not None or not self._llama.divisible:
            return []
        if job.lookup is None:
            job.lookup = Lookup([*job.tokens, *job.answer])
        left = job.request.max_tokens - len(job.answer)
        guessed: list[int] = job.lookup.guess(left - 1)
        return guessed

    def _take_tokens(self, job: Job) -> None:
        """Sample this job's rows in order, as long as each guess was what the model says."""
        if job.sampler is None:
            try:
                job.sampler = sampler(self._llama, job.request)
            except ApplianceError as error:  # a schema that cannot be followed fails its own request and no other
                job.send(error)
                self._leave(job)
                return
        right = 0
        for place in range(len(job.drafts) + 1):
            if not self._say(job, job.row + place):
                return
            if place == len(job.drafts) or job.answer[-1] != job.drafts[place]:
                break
            right += 1
        if job.drafts:
            job.lookup.heard(len(job.drafts), right)
            if right < len(job.drafts):
                keep = len(job.tokens) + len(job.answer) - 1
                self._llama.forget(job.sequence, keep)
                self._tree.cut(job.sequence, keep)
        job.row = -1

    def _say(self, job: Job, row: int) -> bool:
        """Draw one token and send what it lets through; False where the answer ends with it."""
        llama, request = self._llama, job.request
        started = time.perf_counter()
        token = llama.sample(job.sampler, row)
        self.seconds["model"] += time.perf_counter() - started
        if request.logprobs is not None:
            job.chances.append(chances(llama, row, token, request.logprobs))
        job.answer.append(token)
        if job.lookup is not None:
            job.lookup.add(token)
        ended = llama.ends(token) and not request.ignore_eos
        text, finish = job.take(b"" if ended else llama.piece(token), ended=ended)
        if text or finish:
            job.send(job.chunk(text, finish, self._model))
        if finish:
            self._answer_seconds += 0.2 * (time.monotonic() - job.began - self._answer_seconds)
            self._leave(job)
        return finish is None

    def _score(self, job: Job) -> None:
        self._llama.wear(job.kind)
        try:
            job.send(score(self._llama, job))
        except ApplianceError as error:
            job.send(error)
        self._leave(job)


def _do(work: Callable[[], None], future: Future[None]) -> None:
    try:
        work()
    except Exception as error:  # noqa: BLE001 - whoever asked gets it
        future.set_exception(error)
    else:
        future.set_result(None)
