"""The models in memory: one handler for each base, the adapters that are worn with it beside it, and what goes when.

Hides loading under load (who asks for what is in memory never waits for another model), the count of who uses what (nothing in
use is closed), and how a model that was tuned on a base shares the base's weights and batch with every other one. It neither
finds nor verifies files: `resolve` does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from appliance.engine.handler import Chunk, Handler, Message, Request
from appliance.errors import ApplianceError, ModelUnavailable, Unsupported

# Beside what serves, this many bases, and on each base this many adapters, may stay loaded without being used: enough for a
# promotion under load, and for going back.
SPARE = 1


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A verified model on disk; `context` in tokens.

    base: the id of the model that an adapter belongs to. digest, adapter_digest: sha256 of the files, empty where unknown.
    """

    id: str
    model: Path
    adapter: Path | None
    context: int
    base: str = ""
    digest: str = ""
    adapter_digest: str = ""


Resolve = Callable[[str], ModelFiles]
MakeHandler = Callable[[ModelFiles], Handler]


@runtime_checkable
class Wears(Protocol):
    """A handler that loads adapters beside its base; requests name the one that shall answer."""

    async def learn(self, name: str, path: Path, digest: str = "") -> None: ...
    async def unlearn(self, name: str) -> None: ...
    async def score(self, messages: Sequence[Message], adapter: str = "") -> list[float]: ...


@runtime_checkable
class Tends(Protocol):
    """A handler that has something to do while nobody asks, and can leave cores to a tuning run."""

    async def rest(self) -> None: ...
    async def share(self, tuning: bool) -> None: ...


@dataclass(slots=True)
class _Base:
    """A handler, how many use it, and how many use each adapter on it; the adapter used last stands last."""

    handler: Handler
    users: int = 0
    adapters: dict[str, int] = field(default_factory=dict)


class Model:
    """A registered model as its callers see it: a handler, and the adapter that it wears for them."""

    def __init__(self, id: str, handler: Handler, adapter: str) -> None:
        self.id = id
        self.handler = handler
        self._adapter = adapter

    async def generate(self, request: Request) -> AsyncGenerator[Chunk, None]:
        async with aclosing(self.handler.generate(replace(request, adapter=self._adapter))) as chunks:
            async for chunk in chunks:
                yield replace(chunk, model=self.id)

    async def count(self, messages: Sequence[Message]) -> int:
        return await self.handler.count(messages)

    async def score(self, messages: Sequence[Message]) -> list[float]:
        if not self._adapter:
            return await self.handler.score(messages)
        assert isinstance(self.handler, Wears)
        return await self.handler.score(messages, self._adapter)

    async def tokenize(self, text: str) -> list[int]:
        work: Callable[[str], Awaitable[list[int]]] | None = getattr(self.handler, "tokenize", None)
        if work is None:
            raise Unsupported(f"The model {self.id} does not show its tokens.", "Ask it to count them.")
        return await work(text)


class Loaded:
    """The handlers in memory. A handler in use is never closed; one whose loop died is loaded again."""

    def __init__(self, resolve: Resolve, make: MakeHandler) -> None:
        self._resolve = resolve
        self._make = make
        self._bases: dict[str, _Base] = {}  # used last stands last
        self._loading: dict[str, asyncio.Lock] = {}
        self.newest = ""  # the id of the model that was used last

    @asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[Model]:
        """The model for an id or alias, loaded if need be. Raises NotFound or ModelUnavailable."""
        files = await asyncio.to_thread(self._resolve, name)
        key = f"{files.base if files.adapter and files.base else files.id}\n{files.model}\n{files.digest}"
        adapter = ""
        # A lock for each base: who asks the one in memory does not wait while another is loaded.
        async with self._loading.setdefault(key, asyncio.Lock()):
            key, base = await self._base(key, files)  # counted as used from here on, so that nobody closes it
            try:
                if files.adapter is not None and isinstance(base.handler, Wears):
                    # Tuned again under the same id, it is another adapter.
                    adapter = f"{files.id}@{files.adapter_digest[:12]}" if files.adapter_digest else files.id
                    if adapter not in base.adapters:
                        await base.handler.learn(adapter, files.adapter, files.adapter_digest)
                    base.adapters[adapter] = base.adapters.pop(adapter, 0) + 1
            except BaseException:
                base.users -= 1
                raise
            self._bases.pop(key, None)
            self._bases[key] = base
        self.newest = files.id
        try:
            yield Model(files.id, base.handler, adapter)
        finally:
            base.users -= 1
            if adapter:
                base.adapters[adapter] -= 1
            await self._unload_spares()

    async def _base(self, key: str, files: ModelFiles) -> tuple[str, _Base]:
        """The base in memory for these files, or a new one, and its key; counted as used."""
        base = await self._living(key)
        if base is None:
            handler = self._make(replace(files, id=files.base or files.id, adapter=None) if files.adapter else files)
            if files.adapter is None or isinstance(handler, Wears):
                return key, await self._begin(key, handler)
        elif files.adapter is None or isinstance(base.handler, Wears):
            return key, base
        else:
            base.users -= 1
        # This back end takes an adapter only when it is made: one handler for each.
        own = f"{files.id}\n{files.model}\n{files.digest}"
        base = await self._living(own)
        return own, base or await self._begin(own, self._make(files))

    async def _living(self, key: str) -> _Base | None:
        base = self._bases.get(key)
        if base is None:
            return None
        base.users += 1
        if (await base.handler.health()).ok:
            return base
        del self._bases[key]  # its loop died: a new one has to be made
        await base.handler.close()
        return None

    async def _begin(self, key: str, handler: Handler) -> _Base:
        await self._start(handler)
        self._bases[key] = _Base(handler, users=1)
        return self._bases[key]

    async def _start(self, handler: Handler) -> None:
        try:
            await handler.start()
        except ModelUnavailable:
            # There may be room for it where what nobody uses is.
            if not await self._close([key for key, base in self._bases.items() if not base.users]):
                raise
            await handler.start()

    async def _unload_spares(self) -> None:
        idle = [key for key, base in self._bases.items() if not base.users]
        await self._close(idle[: max(0, len(self._bases) - SPARE - 1)])
        for key, base in list(self._bases.items()):
            unused = [name for name, users in base.adapters.items() if not users]
            for name in unused[: max(0, len(base.adapters) - SPARE - 1)]:
                await self._unlearn(key, base, name)

    async def _unlearn(self, key: str, base: _Base, name: str) -> None:
        async with self._loading.setdefault(key, asyncio.Lock()):
            if base.adapters.get(name) != 0:
                return  # somebody came for it, or it is gone already
            del base.adapters[name]
            assert isinstance(base.handler, Wears)
            try:
                await base.handler.unlearn(name)
            except ApplianceError:
                return  # the handler has ended, and its adapters with it

    async def _close(self, keys: Sequence[str]) -> bool:
        doomed = [self._bases.pop(key) for key in keys]
        for base in doomed:
            await base.handler.close()
        return bool(doomed)

    async def tend(self, *, tuning: bool) -> None:
        """To be called every few seconds; `tuning`: whether a tuning run computes on this machine."""
        for base in list(self._bases.values()):
            if isinstance(base.handler, Tends):
                await base.handler.share(tuning)
                await base.handler.rest()

    def ids(self) -> list[str]:
        """Bases and adapters in memory, sorted."""
        names = {key.partition("\n")[0] for key in self._bases}
        return sorted(names | {name.partition("@")[0] for base in self._bases.values() for name in base.adapters})

    async def facts(self) -> dict[str, dict[str, Any]]:
        """For each base: what its handler says of itself."""
        return {key.partition("\n")[0]: (await base.handler.health()).facts for key, base in list(self._bases.items())}

    async def close(self) -> None:
        await self._close(list(self._bases))
