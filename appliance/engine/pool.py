"""Which handler serves what: the promoted model through the engine, quotes where there is none or the engine is down.

`generate` never leaves a person without an answer while the documents can give one: a question for whatever serves falls back
to quoting, and says so through `Chunk.handler`. A model asked for by name does not fall back. Hides the engine's client.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from appliance.engine.handler import Chunk, Handler, Health, Message, Request
from appliance.errors import ApplianceError, ModelUnavailable

QUOTES = "quotes"


@dataclass(frozen=True, slots=True)
class Active:
    """The promoted model, as far as serving needs it."""

    id: str
    title: str
    starter: bool
    context: int


@dataclass(frozen=True, slots=True)
class Serving:
    """Who would answer now. `ok` is False where the promoted model cannot, and quotes stand in.

    handler: the back end, or "quotes". context: tokens that fit the model, 0 where nobody knows.
    """

    handler: str
    model: str
    title: str
    starter: bool
    ok: bool
    detail: str
    context: int = 0


class Engine(Handler, Protocol):
    """What the pool needs of the engine's client beyond a Handler."""

    async def count(self, messages: Sequence[Message], model: str = "default") -> int: ...
    async def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]: ...


class Pool:
    """`active` tells the model for a task, None where none was promoted.

    It is asked for each request, so a promotion needs no restart.
    """

    name = "pool"
    slots = 1

    def __init__(self, engine: Engine, quotes: Handler, active: Callable[[str], Active | None]) -> None:
        self.engine = engine
        self._quotes = quotes
        self._active = active

    @property
    def context(self) -> int:
        """Tokens that fit the model that serves where no task has another; `serving` tells of a task's."""
        active = self._current()
        return active.context if active else self._quotes.context

    async def start(self) -> None:
        """Nothing to load: the engine is a process of its own."""

    async def generate(self, request: Request) -> AsyncGenerator[Chunk, None]:
        """Stream from the right handler. Raises what it raises; ModelUnavailable in mid-answer if the engine died."""
        active = self._current(request.task)
        if request.model == QUOTES or (request.model == "default" and active is None):
            handler: Handler = self._quotes
        else:
            handler = self.engine
        named = request.model not in ("default", QUOTES)
        if request.model == "default" and active:
            request = replace(request, model=active.id)  # one answer is one model, whatever is promoted meanwhile
        said = False
        try:
            async for chunk in _closing(handler.generate(request)):
                said = said or bool(chunk.text)
                yield chunk
            return
        except ModelUnavailable:
            if said or named or handler is self._quotes:
                raise
        async for chunk in _closing(self._quotes.generate(request)):
            yield chunk

    async def count(self, messages: Sequence[Message], task: str = "", model: str = "default") -> int:
        """Tokens in the terms of the model that would answer; `task` and `model` as in a Request.

        Where the engine is down, words: quotes answer then, and words they count.
        """
        active = self._current(task)
        name = model if model != "default" else active.id if active else QUOTES
        if name != QUOTES:
            try:
                return await self.engine.count(messages, name)
            except ModelUnavailable:
                pass
        return await self._quotes.count(messages)

    async def score(self, messages: Sequence[Message]) -> list[float]:
        return await self.engine.score(messages)

    async def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        return await self.engine.embed(texts)

    async def serving(self, task: str = "") -> Serving:
        """Who would answer a question for `task` now."""
        active = self._current(task)
        if active is None:
            detail = "No model has been promoted yet."
            return Serving(QUOTES, QUOTES, "Quotes from the documents", False, True, detail, self._quotes.context)
        health = await self.engine.health()
        if health.ok:
            handler, detail = _back_end(health.facts, active.id)
            return Serving(handler, active.id, active.title, active.starter, True, detail, active.context)
        detail = "The model is not running; answers are quotes from the documents until it is back."
        return Serving(QUOTES, active.id, active.title, active.starter, False, detail, active.context)

    async def health(self) -> Health:
        serving = await self.serving()
        return Health(serving.ok, serving.detail, serving.model)

    async def close(self) -> None:
        await self.engine.close()

    def _current(self, task: str = "") -> Active | None:
        try:
            return self._active(task)
        except (ApplianceError, OSError):
            return None  # the registry cannot tell what serves, or it is damaged: quotes do


def _back_end(facts: Mapping[str, Any], model: str) -> tuple[str, str]:
    """Which back end answers for a model, and a sentence that says so and why; `facts`: what the engine's health tells."""
    for base, about in (facts.get("models") or {}).items():
        if base == model or any(worn.partition("@")[0] == model for worn in about.get("adapters", ())):
            handler = str(about.get("backend", "llama"))
            if handler == "fake":
                return handler, "No model is asked: this is a load test."
            by = "transformers" if handler == "transformers" else "llama.cpp"
            where = "a GPU" if about.get("gpu") else "the processor"
            why = f", because {about['why']}" if about.get("why") else ""
            return handler, f"The promoted model answers, by {by} on {where}{why}."
    return "llama", "The promoted model answers."


async def _closing(stream: AsyncGenerator[Chunk, None]) -> AsyncGenerator[Chunk, None]:
    """Pass chunks on; closing this closes the stream behind it, so that a reader who leaves frees its place at once."""
    try:
        async for chunk in stream:
            yield chunk
    finally:
        await stream.aclose()
