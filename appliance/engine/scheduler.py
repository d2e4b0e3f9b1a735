"""Many conversations, one batch: the llama.cpp handler.

One thread owns the model and runs a loop: waiting requests take a free sequence, each step computes the next piece of every
prompt and the next token of every answer in one call, and each conversation has its own sampler. New requests join at the
next step; a closed iterator leaves at the next step. Hides threads and sequences behind the Handler protocol.

It does not share prefixes between conversations yet, and it never cuts a prompt: what does not fit is refused with the counts.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import secrets
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from appliance.engine.handler import Chunk, Finish, Health, Message, Request, Usage
from appliance.engine.llama import BATCH, Llama
from appliance.engine.template import ChatTemplate, Piece
from appliance.errors import ApplianceError, BadInput, Busy, ModelUnavailable, TooLarge
from appliance.settings import cores

# A step computes at most this many prompt tokens while others are answering, so that their words keep coming.
PROMPT_STEP = 256
# Rows of logits that scoring asks for at once, in floats: keeps a large vocabulary from taking gigabytes.
SCORE_FLOATS = 8_000_000


@dataclass(eq=False)
class _Job:
    """A request on its way through the loop. `send` hands a Chunk, a result or an exception to the waiting coroutine."""

    tokens: list[int]
    request: Request
    loop: asyncio.AbstractEventLoop
    outbox: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)
    score_from: int | None = None
    cancelled: bool = False
    sequence: int = -1
    done: int = 0  # prompt tokens computed
    sampler: Any = None
    last: int = -1
    row: int = -1  # where this job's logits are in the batch just decoded
    answer: int = 0
    held: str = ""
    decoder: Any = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))
    told_place: int = 0

    @property
    def cells(self) -> int:
        return len(self.tokens) + (0 if self.score_from is not None else self.request.max_tokens)

    def send(self, item: Any) -> None:
        # The loop is gone where its process is stopping; nobody is left to read then.
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.outbox.put_nowait, item)


class LlamaHandler:
    """A GGUF model, with an adapter or without. `context` 0 takes the model's own; `threads` 0 takes every core."""

    name = "llama"

    def __init__(
        self,
        model: Path,
        adapter: Path | None = None,
        *,
        threads: int = 0,
        context: int = 0,
        slots: int = 1,
        queue: int = 64,
        model_id: str = "",
    ) -> None:
        self.model_id = model_id or model.stem
        self.slots = slots
        self.context = context
        self._paths = (model, adapter)
        self._threads = threads or cores()
        self._queue = queue
        self._llama: Llama | None = None
        self._waiting: deque[_Job] = deque()
        self._running: list[_Job] = []
        self._wake = threading.Condition()
        self._reading = threading.Lock()  # held while callers read the vocabulary, so that closing waits for them
        self._thread: threading.Thread | None = None
        self._closing = False
        self._seconds_per_answer = 2.0

    # --- Handler ------------------------------------------------------------------------------------------------------
    async def start(self) -> None:
        if self._thread is None:
            await asyncio.to_thread(self._load)
            self._thread = threading.Thread(target=self._run, name=f"llama-{self.model_id}", daemon=True)
            self._thread.start()

    def _load(self) -> None:
        model, adapter = self._paths
        llama = Llama(model, adapter=adapter, threads=self._threads, context=self.context, sequences=self.slots)
        try:
            if not llama.template:
                raise BadInput(f"The model {self.model_id} has no chat template.", "Choose a model made for conversations.")
            self._template = ChatTemplate(llama.template, **llama.marks())
        except ApplianceError:
            llama.close()
            raise
        self.context = llama.context
        self._llama = llama

    async def generate(self, request: Request) -> AsyncGenerator[Chunk, None]:
        job = self._job(request.messages, request, answer=True)
        if job.cells > self.context:
            raise TooLarge(
                f"The question needs {len(job.tokens)} tokens and the answer up to {request.max_tokens}; "
                f"this model holds {self.context}.",
                "Ask something shorter, or begin a new conversation.",
            )
        self._enqueue(job)
        ends = None if request.deadline is None else time.monotonic() + request.deadline
        try:
            while True:
                left = None if ends is None else max(0.0, ends - time.monotonic())
                item = await asyncio.wait_for(job.outbox.get(), left)
                if isinstance(item, BaseException):
                    raise item
                yield item
                if item.finish:
                    return
        except TimeoutError:
            raise Busy("The answer took longer than its time limit.", "Try again when fewer people are asking.") from None
        finally:
            self._cancel(job)

    async def count(self, messages: Sequence[Message]) -> int:
        return len(self._job(messages, Request(messages), answer=True).tokens)

    async def score(self, messages: Sequence[Message]) -> list[float]:
        if not messages or messages[-1].role != "assistant":
            raise BadInput("Only an assistant's turn can be scored.", "End the conversation with one.")
        job = self._job(messages, Request(messages), answer=False)
        if len(job.tokens) > self.context:
            raise TooLarge(f"The conversation has {len(job.tokens)} tokens; this model holds {self.context}.", "Shorten it.")
        self._enqueue(job)
        try:
            result = await job.outbox.get()
        finally:
            self._cancel(job)
        if isinstance(result, BaseException):
            raise result
        scores: list[float] = result
        return scores

    def tokens(self, messages: Sequence[Message]) -> tuple[list[int], int]:
        """All token ids of a conversation, and where the last message's words start; for checking an export."""
        job = self._job(messages, Request(messages), answer=False)
        return job.tokens, job.score_from or 0

    async def health(self) -> Health:
        ok = self._thread is not None and self._thread.is_alive()
        facts = {"running": len(self._running), "waiting": len(self._waiting), "slots": self.slots, "context": self.context}
        return Health(ok, "answers" if ok else "not loaded", self.model_id, facts)

    async def close(self) -> None:
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
            self._thread = None

    # --- between the coroutines and the loop --------------------------------------------------------------------------
    def _job(self, messages: Sequence[Message], request: Request, *, answer: bool) -> _Job:
        tokens: list[int] = []
        score_from = None
        pieces = self._template.pieces(messages, answer=answer) if self._llama else []
        for piece in pieces or [Piece("", control=True)]:
            if not answer and piece.message == len(messages) - 1:
                score_from = len(tokens)
            with self._reading:
                if self._llama is None:
                    raise ModelUnavailable(f"The model {self.model_id} is not loaded.", "Ask again in a moment.")
                ids = self._llama.tokenize(piece.text, control=piece.control)
            if score_from is not None and piece.message is None:
                ids = ids[:1]  # the end mark belongs to the answer; a line break that a template adds after it does not
            tokens.extend(ids)
        return _Job(tokens, request, asyncio.get_running_loop(), score_from=score_from)

    def _enqueue(self, job: _Job) -> None:
        with self._wake:
            if self._closing or self._thread is None or not self._thread.is_alive():
                raise ModelUnavailable(f"The model {self.model_id} is not running.", "Ask again in a moment.")
            free = self.slots - len(self._running)
            if len(self._waiting) >= self._queue + free:
                wait = self._wait(len(self._waiting))
                raise Busy(
                    f"{len(self._waiting)} questions are waiting already.",
                    f"Try again in {wait:.0f} seconds.",
                    retry_after=wait,
                )
            self._waiting.append(job)
            self._wake.notify()

    def _cancel(self, job: _Job) -> None:
        job.cancelled = True
        with self._wake:
            if job in self._waiting:
                self._waiting.remove(job)
            self._wake.notify()

    def _wait(self, place: int) -> float:
        return max(1.0, self._seconds_per_answer * place / self.slots)

    # --- the loop: everything below runs in its own thread ------------------------------------------------------------
    def _run(self) -> None:
        llama = self._llama
        assert llama is not None
        free = list(range(self.slots))
        try:
            while True:
                with self._wake:
                    while not (self._closing or self._running or self._waiting):
                        self._wake.wait()
                    if self._closing:
                        break
                    self._admit(free)
                for job in [job for job in self._running if job.cancelled]:
                    self._leave(llama, job, free)
                self._step(llama, free)
        except BaseException as error:  # noqa: BLE001 - whatever it was, nobody may be left waiting for ever
            self._fail(error)
        finally:
            for job in self._running:
                if job.sampler is not None:
                    llama.free_sampler(job.sampler)
            self._fail(ModelUnavailable("The model was unloaded.", "Ask again."))
            with self._reading:
                self._llama = None
                llama.close()

    def _admit(self, free: list[int]) -> None:
        while free and self._waiting:
            job = self._waiting.popleft()
            job.sequence = free.pop()
            self._running.append(job)
        for place, job in enumerate(self._waiting, 1):
            if job.told_place != place:
                job.told_place = place
                job.send(Chunk(place=place, wait=self._wait(place)))

    def _leave(self, llama: Llama, job: _Job, free: list[int]) -> None:
        llama.forget(job.sequence)
        if job.sampler is not None:
            llama.free_sampler(job.sampler)
            job.sampler = None
        self._running.remove(job)
        free.append(job.sequence)

    def _step(self, llama: Llama, free: list[int]) -> None:
        """One decode call: a token for each answer under way, and pieces of prompts with the room that is left."""
        scoring = next((job for job in self._running if job.score_from is not None), None)
        if scoring is not None:
            try:
                scoring.send(_score(llama, scoring))
            except ApplianceError as error:
                scoring.send(error)
            self._leave(llama, scoring, free)
            return
        rows: list[tuple[int, int, int, bool]] = []
        answering = [job for job in self._running if job.last >= 0]
        for job in answering:
            job.row = len(rows)
            rows.append((job.last, len(job.tokens) + job.answer - 1, job.sequence, True))
        room = min(BATCH - len(rows), PROMPT_STEP if answering else BATCH)
        for job in self._running:
            if job.last >= 0 or room <= 0:
                continue
            part = job.tokens[job.done : job.done + room]
            complete = job.done + len(part) == len(job.tokens)
            for offset, token in enumerate(part):
                rows.append((token, job.done + offset, job.sequence, complete and offset == len(part) - 1))
            job.done += len(part)
            job.row = len(rows) - 1 if complete else -1
            room -= len(part)
        if not rows:
            return
        if not llama.decode(rows):
            raise ModelUnavailable("llama.cpp found no room in its cache.", "Set `slots` lower.")  # admission prevents it
        for job in list(self._running):
            if job.row >= 0:
                self._take_token(llama, job, free)
                job.row = -1

    def _take_token(self, llama: Llama, job: _Job, free: list[int]) -> None:
        request = job.request
        if job.sampler is None:
            seed = request.seed if request.seed is not None and request.seed >= 0 else secrets.randbits(32)
            job.sampler = llama.sampler(
                temperature=request.temperature, top_k=request.top_k, top_p=request.top_p, min_p=request.min_p,
                repeat_penalty=request.repeat_penalty, seed=seed,
            )  # fmt: skip
        token = llama.sample(job.sampler, job.row)
        job.last = token
        job.answer += 1
        ended = llama.ends(token) and not request.ignore_eos
        text = job.decoder.decode(b"" if ended else llama.piece(token), final=ended)
        text, stopped = _hold(job, text, request.stop, final=ended or job.answer >= request.max_tokens)
        finish: Finish | None = "stop" if ended or stopped else "length" if job.answer >= request.max_tokens else None
        if finish:
            usage = Usage(prompt=len(job.tokens), completion=job.answer)
            job.send(Chunk(text, finish=finish, usage=usage, model=self.model_id, handler=self.name))
            self._leave(llama, job, free)
        elif text:
            job.send(Chunk(text, model=self.model_id, handler=self.name))

    def _fail(self, error: BaseException) -> None:
        with self._wake:
            jobs, self._closing = [*self._running, *self._waiting], True
            self._waiting.clear()
        for job in jobs:
            fault = (
                error if isinstance(error, ApplianceError) else ModelUnavailable(f"The model failed: {error}.", "Ask again.")
            )
            job.send(fault)


def _hold(job: _Job, text: str, stops: Sequence[str], *, final: bool) -> tuple[str, bool]:
    """Text that may be shown now: a tail that could become a stop string is held back. True where one was met."""
    job.held += text
    for stop in stops:
        at = job.held.find(stop)
        if stop and at >= 0:
            shown, job.held = job.held[:at], ""
            return shown, True
    keep = 0
    if not final:
        for stop in stops:
            for size in range(min(len(stop) - 1, len(job.held)), keep, -1):
                if job.held.endswith(stop[:size]):
                    keep = size
                    break
    cut = len(job.held) - keep
    shown, job.held = job.held[:cut], job.held[cut:]
    return shown, False


def _score(llama: Llama, job: _Job) -> list[float]:
    """Log-probability of each token from `score_from` on, computed alone in its sequence."""
    assert job.score_from is not None
    rows_at_once = max(1, min(BATCH, SCORE_FLOATS // llama.vocabulary))
    scores: list[float] = []
    position = 0
    while position < len(job.tokens) - 1:
        # Rows before the answer need no logits, so they go in large pieces.
        wants = position >= job.score_from - 1
        end = position + rows_at_once if wants else min(position + BATCH, job.score_from - 1)
        part = job.tokens[position : min(end, len(job.tokens) - 1)]
        if not llama.decode([(token, position + i, job.sequence, wants) for i, token in enumerate(part)]):
            raise ModelUnavailable("llama.cpp found no room in its cache for scoring.", "Score a shorter conversation.")
        if wants:
            for i in range(len(part)):
                logits = llama.logits(i).astype(np.float64)
                top = logits.max()
                scores.append(float(logits[job.tokens[position + i + 1]] - top - np.log(np.exp(logits - top).sum())))
        position += len(part)
    return scores
