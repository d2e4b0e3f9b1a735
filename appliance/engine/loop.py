"""The decode loop: one thread owns the model, and every conversation is a sequence in its batches.

Each step computes the next token of every answer and pieces of the prompts that are still to be read, in one call. Hides how a
class that arrives together computes what it shares once (the others wait for the first), how prompts are cut so that nobody's
words stop, and how time is parted where conversations wear different adapters. What is kept and shared is `cache.py`'s; whose
turn it is when all is full is `admission.py`'s.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from appliance.engine.admission import FairQueue
from appliance.engine.cache import SHARE_FROM, Cache
from appliance.engine.handler import Chunk
from appliance.engine.job import Job, Post
from appliance.engine.llama import BATCH, Llama
from appliance.engine.prefixes import common
from appliance.engine.sampling import chances, check_json, sampler
from appliance.engine.scoring import score
from appliance.engine.speculation import Lookup
from appliance.errors import ApplianceError, Busy, ModelUnavailable

STEP_SECONDS = 0.25  # that a step with prompts in it should last, so that the others' words keep coming
ALONE_SECONDS = 1.0  # that a step of prompts alone should last: who comes or leaves meanwhile waits for its end
FEWEST_PROMPT = 64  # prompt tokens of a step, however slow the machine is
TURN_SECONDS = 0.02  # at least, before another adapter goes: to change it costs half a millisecond and more
GUESSING = 2  # conversations up to which guessing ahead pays
# With n of N conversations wearing a rare adapter, it is given the time of this share of the others at least.
RARE = 0.4


class Loop:
    """`begin` starts the thread; `submit` and `cancel` may be called from any other."""

    def __init__(
        self, llama: Llama, *, slots: int, queue: int, model: str, keep: bool = True, parking: int = 0, reading: float = 500.0
    ) -> None:
        """parking: bytes for what is kept outside the cache. reading: prompt tokens a second, as a first guess."""
        self._llama = llama
        self.cache = Cache(llama, keep=keep, parking=parking)
        self._slots = slots
        self._queue = queue
        self._model = model
        self._waiting: FairQueue[Job] = FairQueue()
        self._running: list[Job] = []
        self._post = Post(model)
        self._errands: list[tuple[Callable[[], None], Future[None]]] = []
        self._wake = threading.Condition()
        self._closing = False
        self._spent: dict[str, float] = {}  # virtual seconds of each adapter
        self._kind, self._took = "", 0.0  # whose turn it is, and its seconds of this turn
        self._prompt_speed = reading  # tokens a second, measured as we go
        self._answer_seconds = 2.0
        self._told = -1  # the queue's version when everybody was last told their place
        self._guessed = self._right = 0  # tokens guessed ahead, and those of them that the model said
        self._busy = 0.0  # seconds while there was something to do
        self._crowded = False  # finished conversations may hold places that a class wants
        self._steps, self._inside = 0, False  # turns of the loop so far, and whether one is being taken now
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
        self.cache.unlearn(kind)
        self._llama.unlearn(kind)

    def step(self) -> tuple[int, float] | None:
        """What is being computed at this moment, by a number that never comes again; None while there is nothing to compute."""
        return (self._steps, self._llama.seconds) if self._inside else None

    @property
    def idle(self) -> bool:
        return not self._running and not len(self._waiting)

    def facts(self) -> dict[str, Any]:
        return {
            "running": len(self._running),
            "waiting": len(self._waiting),
            "slots": self._slots,
            "guessed": self._guessed,
            "guessed_right": self._right,
            **self.cache.facts(),
            "seconds": {"model": self._llama.seconds, "all": self._busy},
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
                    self._inside = False
                    while not self._wanted() and not self._crowded:
                        self._wake.wait()
                    self._steps, self._inside = self._steps + 1, True
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
                    self._crowded = True
                elif self._crowded:
                    self._crowded = self.cache.spread(self._slots // 2)
                    continue  # nobody waits for that
                self._busy += time.perf_counter() - started
        except BaseException as error:  # noqa: BLE001 - whatever it was, nobody may be left waiting for ever
            self._fail(error)
        finally:
            self._inside = False
            for job in self._running:
                self._free_sampler(job)
            self._fail(ModelUnavailable("The model was unloaded.", "Ask again."))

    def _wanted(self) -> bool:
        return bool(self._closing or self._running or len(self._waiting) or self._errands)

    def _fail(self, error: BaseException) -> None:
        self._post.deliver()
        with self._wake:
            self._closing = True
            jobs = [*self._running, *self._waiting.clear()]
            errands, self._errands = self._errands, []
        known = isinstance(error, ApplianceError)
        fault = error if known else ModelUnavailable(f"The model failed: {error}.", "Ask again.")
        for job in jobs:
            job.send(fault)
        for _, future in errands:
            if future.set_running_or_notify_cancel():
                future.set_exception(fault)

    # --- coming and going ---------------------------------------------------------------------------------------------
    def _admit(self) -> None:
        # Conversations are copied here: the lock, which the coroutines want as well, is held for the queue only.
        while len(self._running) < self._slots:
            with self._wake:
                job = self._waiting.first()
            if job is None or not self._place(job):
                break
            with self._wake:
                claimed = self._waiting.claim(job)
            if not claimed:  # it gave up meanwhile
                self.cache.leave(job)
                continue
            job.began = time.monotonic()
            self._running.append(job)
        with self._wake:
            if self._waiting.version == self._told:
                return
            self._told = self._waiting.version
            for place, job in enumerate(self._waiting.order(), 1):
                if job.told_place != place:
                    job.told_place = place
                    job.send(Chunk(place=place, wait=self._wait(place)))

    def _place(self, job: Job) -> bool:
        """Find what it can share, and room for the rest. False where it has to wait for somebody to leave."""
        source, length = self.cache.match(job)
        self._follow(job, length)
        job.done = job.cached = 0
        if not self.cache.take(job, self._running, source, length, share=job.leader is None):
            job.leader = None
            return False
        return True

    def _follow(self, job: Job, length: int) -> None:
        """Look for somebody who is computing a longer prefix of the same prompt at this moment."""
        job.leader, job.shared = None, 0
        if not self.cache.keep or job.score_from is not None:
            return
        for other in self._running:
            if other.kind != job.kind or other.answering or other.score_from is not None:
                continue
            if other.sequence not in self.cache and other.leader is None:
                continue  # it waits for room itself
            same = min(common(other.tokens, job.tokens), len(job.tokens) - 1)
            if same >= max(length, job.shared) + SHARE_FROM:
                job.leader, job.shared = other, same

    def _leave(self, job: Job) -> None:
        """Its answer is finished or nobody wants it any more; what was computed is kept for a while."""
        self._free_sampler(job)
        self._running.remove(job)
        self.cache.leave(job)
        followers = [other for other in self._running if other.leader is job]
        for other in followers:  # the first of them goes on where it stopped, and leads the others
            first = followers[0]
            shared = 0 if other is first else min(other.shared, common(first.tokens, other.tokens))
            other.leader, other.shared = (first, shared) if shared >= SHARE_FROM else (None, 0)

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
        self.cache.tidy(self._running)
        for kind in self._turns():
            jobs = [job for job in self._running if job.kind == kind]
            rows, parts = self._compose(jobs)
            if rows:
                break
        else:
            self._post.deliver()
            with self._wake:  # all of them wait for room
                self._wake.wait(0.01)
            return
        if kind != self._kind or self._took >= TURN_SECONDS:
            self._kind, self._took = kind, 0.0
        self._llama.wear(kind)
        prompt = sum(len(tokens) for job, tokens in parts if not job.answer)
        if prompt:
            self._post.deliver()  # this step will take longer than what was said may wait
        started = time.perf_counter()
        while not self._llama.decode(rows):
            if not self.cache.evict():  # admission prevents it
                raise ModelUnavailable("llama.cpp found no room in its cache.", "Set `slots` lower.")
        for job, tokens in parts:
            self.cache.append(job.sequence, tokens)
        for job, _ in parts:
            if job.row >= 0:
                self._take_tokens(job)
        self._post.deliver(now=not self._running)
        self._account(kind, time.perf_counter() - started, prompt)

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
            self._prompt_speed += 0.5 * (prompt / took - self._prompt_speed)
        mine = sum(job.kind == kind for job in self._running) or 1
        others = len(self._running) - mine
        if others > 0:
            self._spent[kind] = self._spent.get(kind, 0.0) + took / max(mine, RARE * others)
        else:
            self._spent.clear()

    def _compose(self, jobs: list[Job]) -> tuple[list[tuple[int, int, int, bool]], list[tuple[Job, list[int]]]]:
        """Rows of the next batch, and which tokens of it are whose."""
        parts: list[tuple[Job, list[int]]] = []
        for job in jobs:
            if job.answering:
                job.drafts = self._guess(job) if len(jobs) <= GUESSING else []
                parts.append((job, [job.answer[-1], *job.drafts]))
        most = BATCH - sum(len(tokens) for _, tokens in parts)
        seconds = STEP_SECONDS if parts else ALONE_SECONDS
        room = min(most, max(FEWEST_PROMPT, int(self._prompt_speed * seconds)))
        more = room // 2  # where that ends a prompt: scraps take nearly as long as whole pieces
        for job in jobs:
            if job.answering or room <= 0 or not self._ready(job):
                continue
            left = len(job.tokens) - job.done
            size = left if left <= min(room + more, most) else room
            if size < min(left, FEWEST_PROMPT):
                continue
            parts.append((job, job.tokens[job.done : job.done + size]))
            room, most = room - size, most - size
        # Neighbours in rising order are computed together: right for answers, one token each. Prompts of many lengths would be
        # cut where the shortest ends, and again, so they go in falling order: each for itself.
        parts.sort(key=lambda part: (not part[0].answering, part[0].sequence if part[0].answering else -part[0].sequence))
        rows: list[tuple[int, int, int, bool]] = []
        for job, tokens in parts:
            rows += _rows(job, tokens, len(rows))
        return rows, parts

    def _ready(self, job: Job) -> bool:
        """Whether its own part of the prompt can be computed now: the one it follows has computed what both share."""
        if job.sequence in self.cache:
            return True
        leader = job.leader
        if leader is not None and leader.sequence in self.cache and self.cache.length(leader.sequence) >= job.shared:
            self.cache.begin(job, leader.sequence, job.shared)
            job.leader = None
            return True
        if leader is not None:
            return False
        # Its leader left before it came so far: take what is there now, or wait for room to compute the rest alone.
        job.shared = 0
        return self.cache.take(job, self._running, *self.cache.match(job), share=True)

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
                self._give_up(job, error)
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
            self._guessed, self._right = self._guessed + len(job.drafts), self._right + right
            if right < len(job.drafts):
                keep = len(job.tokens) + len(job.answer) - 1
                self.cache.cut(job.sequence, keep)
        job.row = -1

    def _say(self, job: Job, row: int) -> bool:
        """Draw one token and send what it lets through; False where the answer ends with it."""
        llama, request = self._llama, job.request
        try:
            token = llama.sample(job.sampler, row)
            ended = llama.ends(token) and not request.ignore_eos
            if ended and request.schema is not None:
                check_json(b"".join(llama.piece(one) for one in job.answer))
        except ApplianceError as error:  # its grammar has come to an end that is none
            self._give_up(job, error)
            return False
        if request.logprobs is not None:
            job.chances.append(chances(llama, row, token, request.logprobs))
        job.answer.append(token)
        if job.lookup is not None:
            job.lookup.add(token)
        text, finish = job.take(b"" if ended else llama.piece(token), ended=ended)
        if text or finish:
            self._post.add(job, text, finish)
        if finish:
            self._answer_seconds += 0.2 * (time.monotonic() - job.began - self._answer_seconds)
            self._leave(job)
        return finish is None

    def _give_up(self, job: Job, error: ApplianceError) -> None:
        """End this answer, and no other, with an error; what was said comes before it."""
        self._post.deliver()
        job.send(error)
        self._leave(job)

    def _score(self, job: Job) -> None:
        self._post.deliver()
        self._llama.wear(job.kind)
        try:
            job.send(score(self._llama, job))
        except ApplianceError as error:
            job.send(error)
        self._leave(job)


def _rows(job: Job, tokens: list[int], first: int) -> list[tuple[int, int, int, bool]]:
    """A job's rows of a batch, from row `first` on; notes where its logits will be, and how far its prompt has come."""
    if job.answering:
        start = len(job.tokens) + len(job.answer) - 1
        job.row = first
        return [(token, start + place, job.sequence, True) for place, token in enumerate(tokens)]
    start, last = job.done, len(tokens) - 1
    job.done += len(tokens)
    complete = job.done == len(job.tokens)
    job.row = first + last if complete else -1
    return [(token, start + place, job.sequence, complete and place == last) for place, token in enumerate(tokens)]


def _do(work: Callable[[], None], future: Future[None]) -> None:
    if not future.set_running_or_notify_cancel():
        return  # whoever asked has left
    try:
        work()
    except Exception as error:  # noqa: BLE001 - whoever asked gets it
        future.set_exception(error)
    else:
        future.set_result(None)
