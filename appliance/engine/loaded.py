"""The models in memory: one handler for each base, the adapters that are worn with it beside it, and what goes when.

Hides loading under load (who asks for what is in memory never waits for another model), the count of who uses what (nothing in
use is closed), how a model that was tuned on a base shares the base's weights and batch with every other one, and how one back
end takes over from another: beside it, or after a fault. It neither finds nor verifies files (`resolve` does), nor does it
choose a back end (`make` does).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from appliance.engine import sizing
from appliance.engine.handler import Chunk, Handler, Message, Request
from appliance.errors import ApplianceError, ModelUnavailable, Unsupported

# Beside what serves, this many bases, and on each base this many adapters, may stay loaded without being used: enough for a
# promotion under load, and for going back.
SPARE = 1
GPU_IDLE_SECONDS = 60.0  # after which a model on the GPU makes room there for the one that is used now


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A verified model on disk; `context` in tokens.

    base: the id of the model that an adapter belongs to. digest, adapter_digest: sha256 of the files, empty where unknown.
    weights: a folder with the same base as Hugging Face keeps it, None where there is none; tuned: the folder of the peft
    adapter that makes this model of it.
    """

    id: str
    model: Path
    adapter: Path | None
    context: int
    base: str = ""
    digest: str = ""
    adapter_digest: str = ""
    weights: Path | None = None
    tuned: Path | None = None


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


@runtime_checkable
class Steps(Protocol):
    """A handler that computes in steps, and can tell one from the next; None between them, while there is nothing to do."""

    def step(self) -> tuple[int, float] | None: ...


@runtime_checkable
class Chooses(Protocol):
    """A maker of handlers that has a choice of back ends, and may come to another one later."""

    def __call__(self, files: ModelFiles) -> Handler: ...
    def outdated(self, handler: Handler, files: ModelFiles) -> bool: ...
    def refused(self, handler: Handler, files: ModelFiles, reason: str) -> None: ...
    def facts(self, handler: Handler) -> dict[str, Any]: ...


@dataclass(slots=True, eq=False)
class _Base:
    """A handler, how many use it, and how many use each adapter on it; the adapter used last stands last.

    files: what was asked of it last. used: when.
    """

    handler: Handler
    files: ModelFiles
    users: int = 0
    adapters: dict[str, int] = field(default_factory=dict)
    used: float = field(default_factory=time.monotonic)


class _Elsewhere(Exception):
    """This handler cannot load its model, and another back end is to try."""


class Model:
    """A registered model as its callers see it: a handler, and the adapter that it wears for them.

    again: the same model once more, for whoever was told nothing yet when its handler failed for good.
    """

    def __init__(
        self, id: str, handler: Handler, adapter: str, again: Callable[[], AbstractAsyncContextManager[Model]] | None = None
    ) -> None:
        self.id = id
        self.handler = handler
        self._adapter = adapter
        self._again = again

    async def generate(self, request: Request) -> AsyncGenerator[Chunk, None]:
        said = False
        try:
            async with aclosing(self.handler.generate(replace(request, adapter=self._adapter))) as chunks:
                async for chunk in chunks:
                    said = said or bool(chunk.text)
                    yield replace(chunk, model=self.id)
            return
        except ModelUnavailable:
            if said or self._again is None or (await self.handler.health()).ok:
                raise
        async with self._again() as other, aclosing(other.generate(request)) as chunks:
            async for chunk in chunks:
                yield chunk

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
    """The handlers in memory. A handler in use is never closed; one whose loop died is loaded again.

    beside: what else of this process computes in steps, and has to go on (`advances`).
    """

    def __init__(self, resolve: Resolve, make: MakeHandler, beside: Sequence[Steps] = ()) -> None:
        self._resolve = resolve
        self._make = make
        self._choice = make if isinstance(make, Chooses) else None
        self._bases: dict[str, _Base] = {}  # used last stands last
        self._leaving: list[_Base] = []  # another back end took over; they answer who they are answering
        self._loading: dict[str, asyncio.Lock] = {}
        self._ended = False
        self._beside = tuple(beside)
        self._steps: dict[int, tuple[int, float]] = {}  # at the last look
        self.newest = ""  # the id of the model that was used last

    @asynccontextmanager
    async def use(self, name: str, *, again: bool = True) -> AsyncIterator[Model]:
        """The model for an id or alias, loaded if need be. Raises NotFound or ModelUnavailable.

        again: a question whose handler fails before it has said a word is put once more, to whatever takes its place.
        """
        if self._ended:
            raise ModelUnavailable("The engine is stopping.", "Ask again in a moment.")
        files = await asyncio.to_thread(self._resolve, name)
        adapter = ""
        # A lock for each base: who asks the one in memory does not wait while another is loaded.
        async with self._lock(files):
            key, base = await self._base(files)  # counted as used from here on, so that nobody closes it
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
            base.files, base.used = files, time.monotonic()
            self._bases.pop(key, None)
            self._bases[key] = base
        self.newest = files.id
        try:
            yield Model(files.id, base.handler, adapter, partial(self.use, name, again=False) if again else None)
        finally:
            base.users -= 1
            if adapter:
                base.adapters[adapter] -= 1
            await self._unload_spares()

    def _lock(self, files: ModelFiles) -> asyncio.Lock:
        return self._loading.setdefault(_keys(files)[0], asyncio.Lock())

    async def _base(self, files: ModelFiles) -> tuple[str, _Base]:
        """What serves these files, in memory or new, and its key; counted as used."""
        shared, own = _keys(files)
        for key in dict.fromkeys((own, shared)):
            base = await self._living(key)
            if base is not None and (key == own or isinstance(base.handler, Wears)):
                return key, base
            if base is not None:
                base.users -= 1
        key, handler = await self._new(files)
        try:
            await self._start(handler, files)
        except _Elsewhere:
            return await self._base(files)
        self._bases[key] = _Base(handler, files, users=1)
        return key, self._bases[key]

    async def _new(self, files: ModelFiles) -> tuple[str, Handler]:
        """A handler for these files, not started, and the key that it belongs under."""
        shared, own = _keys(files)
        # In a thread: whoever chooses may have to look at a GPU.
        handler = await asyncio.to_thread(self._make, files)
        if files.adapter is not None and isinstance(handler, Wears):
            plain = replace(files, id=files.base or files.id, adapter=None, adapter_digest="", tuned=None)
            base = await asyncio.to_thread(self._make, plain)
            if isinstance(base, Wears):
                return shared, base
        # Other back ends take an adapter only when they are made: one handler for each.
        return own, handler

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

    async def _start(self, handler: Handler, files: ModelFiles) -> None:
        try:
            await self._try(handler, files)
        except ModelUnavailable:
            # There may be room for it where what nobody uses is.
            on_gpu = self._choice is not None and bool(self._choice.facts(handler).get("gpu"))
            idle = [key for key, base in self._bases.items() if not base.users]
            if not idle or not (on_gpu or await asyncio.to_thread(_could_fit, files)):
                raise
            if not await self._close([key for key in idle if key in self._bases and not self._bases[key].users]):
                raise  # somebody asked for them in the meantime
            await self._try(handler, files)

    async def _try(self, handler: Handler, files: ModelFiles) -> None:
        """Start it. Raises what went wrong, _Elsewhere where another back end is chosen because of it."""
        starting = asyncio.ensure_future(handler.start())
        try:
            await asyncio.shield(starting)
        except asyncio.CancelledError:
            # A thread cannot be stopped: who left waits for it, or what it loads would stay in memory without a name.
            await asyncio.gather(starting, return_exceptions=True)
            await handler.close()
            raise
        except ApplianceError as error:
            if self._choice is None:
                raise
            self._choice.refused(handler, files, error.message)
            if await asyncio.to_thread(self._choice.outdated, handler, files):
                raise _Elsewhere from None
            raise

    # --- from one back end to another -------------------------------------------------------------------------------------
    async def _follow(self, choice: Chooses) -> None:
        """Have the back end take over that should serve now. It is loaded beside the other, which ends what it is saying."""
        for key, base in list(self._bases.items()):
            own = _keys(base.files)[1]
            if key != own and own in self._bases:
                continue  # what was asked of it last has a handler of its own by now
            outdated = await asyncio.to_thread(choice.outdated, base.handler, base.files)
            if outdated and not self._unused(key, base):
                await self._replace(key, base)
            elif self._unused(key, base) and choice.facts(base.handler).get("gpu"):
                await self._retire(key, base)

    def _unused(self, key: str, base: _Base) -> bool:
        newest = next(reversed(self._bases), key)
        return key != newest and not base.users and time.monotonic() - base.used > GPU_IDLE_SECONDS

    async def _replace(self, key: str, base: _Base) -> None:
        files = base.files
        target, handler = await self._new(files)
        start = target == key or target not in self._bases
        if start:
            try:
                await self._try(handler, files)
            except (ApplianceError, _Elsewhere):
                return  # what serves goes on; whoever chooses knows better now
        async with self._lock(files):
            there = self._bases.get(target)
            if there is not None and there is not base:
                await handler.close()  # there already, or somebody's question was quicker
            elif start:
                self._bases[target] = _Base(handler, files, used=base.used)
            else:
                return
            if target != key and isinstance(base.handler, Wears):
                return  # others may wear other adapters on it, and it can take over at once
            await self._retire(key, base)

    async def _retire(self, key: str, base: _Base) -> None:
        """Hand it no more questions; close it when it has answered those that it has."""
        if self._bases.get(key) is base:
            del self._bases[key]
        self._leaving.append(base)
        await self._close_left()

    async def _close_left(self) -> None:
        gone = [base for base in self._leaving if not base.users]
        self._leaving = [base for base in self._leaving if base.users]
        for base in gone:
            await base.handler.close()

    # --- what goes --------------------------------------------------------------------------------------------------------
    async def _unload_spares(self) -> None:
        await self._close_left()
        idle = [key for key, base in self._bases.items() if not base.users]
        await self._close(idle[: max(0, len(self._bases) - SPARE - 1)])
        for key, base in list(self._bases.items()):
            unused = [name for name, users in base.adapters.items() if not users]
            for name in unused[: max(0, len(base.adapters) - SPARE - 1)]:
                await self._unlearn(key, base, name)

    async def _unlearn(self, key: str, base: _Base, name: str) -> None:
        async with self._loading.setdefault(key, asyncio.Lock()):  # adapters are worn on what stands under its lock's key
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
        if self._choice is not None:
            await self._follow(self._choice)

    def advances(self) -> bool:
        """Whether nothing is in the middle of the very step that it was in when this was asked last.

        A long step is not told from one that hangs: who asks has to know how long one may last.
        """
        work = [*(base.handler for base in (*self._bases.values(), *self._leaving)), *self._beside]
        at = {id(one): one.step() for one in work if isinstance(one, Steps)}
        before, self._steps = self._steps, {key: step for key, step in at.items() if step is not None}
        return not any(before.get(key) == step for key, step in self._steps.items())

    def ids(self) -> list[str]:
        """Bases and adapters in memory, sorted."""
        names = {key.partition("\n")[0] for key in self._bases}
        return sorted(names | {name.partition("@")[0] for base in self._bases.values() for name in base.adapters})

    async def facts(self) -> dict[str, dict[str, Any]]:
        """For each base: what its handler says of itself, which back end it is, and why that one."""
        found: dict[str, dict[str, Any]] = {}
        for key, base in list(self._bases.items()):
            chosen = self._choice.facts(base.handler) if self._choice is not None else {}
            about = (await base.handler.health()).facts
            found[key.partition("\n")[0]] = {"backend": base.handler.name} | chosen | about
        return found

    async def close(self) -> None:
        self._ended = True
        await self._close(list(self._bases))
        for base in self._leaving:
            await base.handler.close()


def _could_fit(files: ModelFiles) -> bool:
    """Whether the files are sound and, with all that this process holds given back, there would be memory for them."""
    here = sizing.Machine.here()
    try:
        for adapter in [files.adapter] if files.adapter else []:
            sizing.inspected(adapter, "adapter")
        sizing.plan(files.model, replace(here, memory=here.memory + _resident()), context=files.context)
    except ModelUnavailable:
        return False
    return True


def _resident() -> int:
    """Bytes of memory that this process holds; where the system does not tell, more than any has."""
    with suppress(OSError, ValueError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 2**62


def _keys(files: ModelFiles) -> tuple[str, str]:
    """Where the handler stands that a model shares with all that were tuned on its base, and where one of its own would."""
    base = files.base if files.adapter and files.base else files.id
    shared = f"{base}\n{files.model}\n{files.digest}\n"
    return shared, f"{files.id}\n{files.model}\n{files.digest}\n{files.adapter_digest}" if files.adapter else shared
