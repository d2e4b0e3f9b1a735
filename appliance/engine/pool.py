"""Which handler serves what: the promoted model, here through the engine or elsewhere through its plugin, else quotes.

`generate` never leaves a person without an answer while the documents can give one. A question for whatever serves goes to the
promoted model; where that one is on another machine and may not be asked, or fails before its first word, to the local model
that stands in for it; and last to quoting. `Chunk.handler` and `model` say who answered. A model asked for by name does not
fall back. Hides the engine's client.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from appliance.engine.handler import Chunk, Handler, Health, Message, Request
from appliance.errors import ApplianceError, Busy, Forbidden, ModelUnavailable, TooLarge, Unsupported, where

log = logging.getLogger(__name__)

QUOTES = "quotes"
# Another model's tokens, counted in a local one's terms, may be more than that by so much.
SPARE = 1.2
LOOK_SECONDS = 5.0  # for which another machine's health is believed


@dataclass(frozen=True, slots=True)
class Active:
    """The promoted model, as far as serving needs it.

    hosted: what its plugin needs to reach it, for one on another machine. local: then the model here that stands in for it.
    """

    id: str
    title: str
    starter: bool
    context: int
    hosted: Mapping[str, Any] | None = None
    local: Active | None = None


@dataclass(frozen=True, slots=True)
class Serving:
    """Who would answer now. `ok` is False where the promoted model cannot, and quotes or a local model stand in.

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


Outside = Callable[[Mapping[str, Any]], AbstractAsyncContextManager[Handler]]


class Pool:
    """`active` tells the model for a task, None where none was promoted.

    It is asked for each request, so a promotion needs no restart. named: the model of an id or alias, None where the engine is
    to say what it is. outside: the handler for what a model's `hosted` says, for as long as it is used; raises ApplianceError.
    """

    name = "pool"
    slots = 1

    def __init__(
        self,
        engine: Engine,
        quotes: Handler,
        active: Callable[[str], Active | None],
        named: Callable[[str], Active | None] = lambda _name: None,
        outside: Outside | None = None,
    ) -> None:
        self.engine = engine
        self._quotes = quotes
        self._active = active
        self._named = named
        self._outside = outside
        self._looked: dict[str, tuple[float, Health]] = {}

    @property
    def context(self) -> int:
        """Tokens that fit the model that serves where no task has another; `serving` tells of a task's."""
        active = self._current()
        return active.context if active else self._quotes.context

    async def start(self) -> None:
        """Nothing to load: the engine is a process of its own."""

    async def generate(self, request: Request) -> AsyncGenerator[Chunk, None]:
        """Stream from the right handler. Raises what it raises; ModelUnavailable in mid-answer if the engine died."""
        roads = self._roads(request)
        for number, (stream, passes_on) in enumerate(roads):
            said = False
            try:
                async for chunk in _closing(stream):
                    said = said or bool(chunk.text)
                    yield chunk
                return
            except ApplianceError as error:
                if said or number == len(roads) - 1 or not passes_on(error):
                    raise

    def _roads(self, request: Request) -> list[tuple[AsyncGenerator[Chunk, None], Callable[[ApplianceError], bool]]]:
        """Who is asked, in turn, each with the faults after which the next one is."""
        if request.model == QUOTES:
            return [(self._quotes.generate(request), _never)]
        if request.model != "default":
            named = self._by_name(request.model)
            far = named is not None and named.hosted is not None
            return [(self._elsewhere(request, named) if far and named else self.engine.generate(request), _never)]
        active, roads = self._current(request.task), []
        if active is not None and active.hosted is not None:
            if not request.inside:
                # Time that is used up is not given again.
                passes_on = _never_late if request.deadline is not None else _always
                roads.append((self._elsewhere(request, active), passes_on))
            active = active.local
            if roads and active is not None and active.starter:
                active = None  # its answers are led by quotes, and who asked was promised another's
            stands_in = True
        else:
            stands_in = False
        if active is not None:  # one answer is one model, whatever is promoted meanwhile
            # What was fitted to a larger model than the one that stands in may be too long for that; quotes are not.
            roads.append((self.engine.generate(replace(request, model=active.id)), _smaller if stands_in else _down))
        return [*roads, (self._quotes.generate(request), _never)]

    async def _elsewhere(self, request: Request, active: Active) -> AsyncGenerator[Chunk, None]:
        """From a model of another machine. Whatever its plugin raises is an ApplianceError here."""
        if request.inside:
            raise Forbidden(
                f"{active.id} is outside this building, and what pupils write stays inside.", "Ask what serves: `default`."
            )
        try:
            async with self._use(active) as handler:
                # Who asks, and for what else, is told to nobody outside.
                bare = replace(request, model=active.id, user="", group="", adapter="", task="", question="", passages=())
                async for chunk in _closing(handler.generate(bare)):
                    yield replace(chunk, model=active.id, handler=chunk.handler or handler.name)
        except ApplianceError:
            raise
        except Exception as error:  # noqa: BLE001 - a stranger's plugin may raise anything
            log.error("the plugin of a hosted model failed: %s", where(error))
            raise ModelUnavailable(f"The plugin of {active.id} failed.", "Serve another model until it is mended.") from None

    def _use(self, active: Active) -> AbstractAsyncContextManager[Handler]:
        if self._outside is None or active.hosted is None:
            raise Unsupported(f"{active.id} is on another machine, which nothing here can reach.", "Serve a local model.")
        return self._outside(active.hosted)

    async def count(self, messages: Sequence[Message], task: str = "", model: str = "default", inside: bool = True) -> int:
        """Tokens in the terms of the model that would answer; `task`, `model` and `inside` as in a Request.

        Where another machine's model does not count, what the local one counts and a fifth more. Where the engine is down,
        words: quotes answer then, and words they count.
        """
        active = self._by_name(model) if model not in ("default", QUOTES) else self._current(task)
        name = model if model != "default" else active.id if active else QUOTES
        spare = 1.0
        if active is not None and active.hosted is not None and name != QUOTES:
            if not inside:
                try:
                    async with self._use(active) as handler:
                        return await handler.count(messages)
                except ApplianceError:
                    spare = SPARE
            name = active.local.id if active.local else QUOTES
        if name != QUOTES:
            try:
                return math.ceil(spare * await self.engine.count(messages, name))
            except ModelUnavailable:
                pass
        return await self._quotes.count(messages)

    async def score(self, messages: Sequence[Message]) -> list[float]:
        return await self.engine.score(messages)

    async def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        return await self.engine.embed(texts)

    async def serving(self, task: str = "", inside: bool = False) -> Serving:
        """Who would answer a question for `task` now; `inside`: one that must stay in the building."""
        active, why = self._current(task), ""
        if active is not None and active.hosted is not None:
            if not inside:
                found, why = await self._serving_outside(active)
                if found is not None:
                    return found
            active = active.local
        if active is None:
            detail = f"{why} Quotes from the documents answer." if why else "No model has been promoted yet."
            return Serving(QUOTES, QUOTES, "Quotes from the documents", False, not why, detail, self._quotes.context)
        health = await self.engine.health()
        if health.ok:
            handler, detail = _back_end(health.facts, active.id)
            detail = f"{why} {active.title}, in this building, answers until that is mended." if why else detail
            return Serving(handler, active.id, active.title, active.starter, not why, detail, active.context)
        detail = "The model is not running; answers are quotes from the documents until it is back."
        detail = f"{why} {detail}".strip()
        return Serving(QUOTES, active.id, active.title, active.starter, False, detail, active.context)

    async def _serving_outside(self, active: Active) -> tuple[Serving | None, str]:
        """A model of another machine as it serves now, or why it does not."""
        try:
            async with self._use(active) as handler:
                at, health = self._looked.get(active.id, (-math.inf, Health(False)))
                if time.monotonic() - at > LOOK_SECONDS:  # it may be asked over a slow line, and each question asks
                    health = await handler.health()
                    self._looked[active.id] = (time.monotonic(), health)
            if health.ok:
                detail = "The promoted model answers, on another machine outside this building."
                return Serving(handler.name, active.id, active.title, False, True, detail, active.context), ""
            return None, health.detail or f"{active.title} does not answer."
        except ApplianceError as error:
            return None, error.message
        except Exception as error:  # noqa: BLE001 - a stranger's plugin may raise anything, and no page fails for it
            log.error("the plugin of a hosted model failed: %s", where(error))
            return None, f"The plugin of {active.id} failed."

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

    def _by_name(self, name: str) -> Active | None:
        try:
            return self._named(name)
        except (ApplianceError, OSError):
            return None  # the engine says what is wrong with it


def _never(_error: ApplianceError) -> bool:
    return False


def _always(_error: ApplianceError) -> bool:
    return True


def _never_late(error: ApplianceError) -> bool:
    return not isinstance(error, Busy)


def _down(error: ApplianceError) -> bool:
    return isinstance(error, ModelUnavailable)


def _smaller(error: ApplianceError) -> bool:
    return isinstance(error, (ModelUnavailable, TooLarge))


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
