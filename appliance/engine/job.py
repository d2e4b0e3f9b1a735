"""A request on its way through the loop: what it still has to compute, and what of its answer may be shown.

Hides how bytes become characters (never half of one), how a tail that could become a stop string is held back, and how a result
crosses from the loop's thread to the coroutine that waits.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from appliance.engine.handler import Chunk, Finish, Request, TokenChance, Usage

PACE = 0.05  # seconds between two hand-overs of words


@dataclass(eq=False, slots=True)
class Job:
    """`send` hands a Chunk, a result or an exception to the waiting coroutine. `kind` names the adapter, "" for none."""

    tokens: list[int]
    request: Request
    loop: asyncio.AbstractEventLoop
    kind: str = ""
    score_from: int | None = None
    common: int = 0  # tokens before the first word that a person or a model said: the school's own
    outbox: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)
    cancelled: bool = False
    sequence: int = -1
    done: int = 0  # prompt tokens in the cache
    cached: int = 0  # of these, those that were not computed for this request
    leader: Job | None = None  # computes a prefix that this one waits for,
    shared: int = 0  # of so many tokens
    sampler: Any = None
    row: int = -1  # where this job's logits begin in the batch just decoded
    drafts: list[int] = field(default_factory=list)
    answer: list[int] = field(default_factory=list)
    chances: list[TokenChance] = field(default_factory=list)
    held: str = ""
    decoder: Any = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))
    told_place: int = 0
    heard: bool = False  # whether anything of its answer was handed over
    began: float = 0.0  # when it came out of the queue
    lookup: Any = None

    @property
    def answering(self) -> bool:
        """The prompt is computed; every step brings a token."""
        return bool(self.answer)

    @property
    def needs(self) -> int:
        """Cells that it can still come to need, beyond those it has."""
        if self.score_from is not None:
            return len(self.tokens) - self.done
        return len(self.tokens) - self.done + self.request.max_tokens - max(0, len(self.answer) - 1)

    def send(self, item: Any) -> None:
        # The loop is gone where its process is stopping; nobody is left to read then.
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.outbox.put_nowait, item)

    def take(self, piece: bytes, *, ended: bool) -> tuple[str, Finish | None]:
        """The text that the newest token of the answer lets through, and why the answer ends here, if it does."""
        full = len(self.answer) >= self.request.max_tokens
        text, stopped = self._hold(self.decoder.decode(piece, final=ended or full), final=ended or full)
        return text, "stop" if ended or stopped else "length" if full else None

    def chunk(self, text: str, finish: Finish | None, model: str) -> Chunk:
        chances, self.chances = tuple(self.chances), []
        usage = Usage(prompt=len(self.tokens), cached=self.cached, completion=len(self.answer)) if finish else None
        return Chunk(text, finish=finish, usage=usage, model=model, handler="llama", chances=chances)

    def _hold(self, text: str, *, final: bool) -> tuple[str, bool]:
        """Text that may be shown now: a tail that could become a stop string is held back. True where one was met."""
        self.held += text
        stops: Sequence[str] = self.request.stop
        met = [at for at in (self.held.find(stop) for stop in stops if stop) if at >= 0]
        if met:
            shown, self.held = self.held[: min(met)], ""
            return shown, True
        keep = 0
        if not final:
            for stop in stops:
                for size in range(min(len(stop) - 1, len(self.held)), keep, -1):
                    if self.held.endswith(stop[:size]):
                        keep = size
                        break
        cut = len(self.held) - keep
        shown, self.held = self.held[:cut], self.held[cut:]
        return shown, False


class Post:
    """What the steps have to say, handed over in one go: at most once in PACE, but an answer's first words at once.

    Each hand-over wakes the coroutines' thread. It then takes the interpreter's lock and a core from the step that is being
    computed, and nobody sees more who reads more than twenty times a second.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._texts: dict[Job, list[str]] = {}
        self._ends: dict[Job, Finish] = {}
        self._urgent = False
        self._last = 0.0

    def add(self, job: Job, text: str, finish: Finish | None) -> None:
        self._texts.setdefault(job, []).append(text)
        if finish:
            self._ends[job] = finish
        if not job.heard:
            job.heard = self._urgent = True

    def deliver(self, *, now: bool = True) -> None:
        """Hand everything over; not `now`: only where something is urgent, or the last time is long enough ago."""
        if not self._texts or not (now or self._urgent or time.monotonic() - self._last >= PACE):
            return
        posts: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Queue[Any], Chunk]]] = {}
        for job, texts in self._texts.items():
            chunk = job.chunk("".join(texts), self._ends.get(job), self._model)
            posts.setdefault(job.loop, []).append((job.outbox, chunk))
        self._texts, self._ends, self._urgent, self._last = {}, {}, False, time.monotonic()
        for loop, posted in posts.items():
            with contextlib.suppress(RuntimeError):  # as in `send`
                loop.call_soon_threadsafe(_put, posted)


def _put(posted: list[tuple[asyncio.Queue[Any], Chunk]]) -> None:
    for outbox, item in posted:
        outbox.put_nowait(item)
