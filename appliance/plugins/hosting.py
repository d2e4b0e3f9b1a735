"""Handlers of models on other machines, made by their plugins when first asked for, and made anew where the policy changed.

Hides how long one lives: it is closed once nobody uses it, after the policy, or what is known of the model, became another.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from appliance import plugins
from appliance.errors import ApplianceError, Unsupported
from appliance.network import Host, Policy

if TYPE_CHECKING:
    from appliance.engine.handler import Handler
    from appliance.settings import Settings


@dataclass(eq=False, slots=True)
class _Made:
    handler: Handler
    allowed: frozenset[Host]
    uses: int = 0
    retired: bool = False


class Hosting:
    """Built once for each process; call `close` at the end, or use it as a context."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._made: dict[str, _Made] = {}
        self._making = asyncio.Lock()

    async def __aenter__(self) -> Hosting:
        return self

    async def __aexit__(self, *_fault: object) -> None:
        await self.close()

    @contextlib.asynccontextmanager
    async def use(self, hosted: Mapping[str, Any]) -> AsyncIterator[Handler]:
        """The handler for a hosted model's facts, while this lasts.

        Raises NotFound and Unsupported where its plugin or a package is missing, Forbidden where the policy is closed.
        """
        async with self._making:
            made = await self._current(hosted)
            made.uses += 1
        try:
            yield made.handler
        finally:
            made.uses -= 1
            await self._close_unused(made)

    async def close(self) -> None:
        for key in list(self._made):
            await self._retire(key)

    async def _current(self, hosted: Mapping[str, Any]) -> _Made:
        key = json.dumps(hosted, sort_keys=True)
        try:
            plugin = await asyncio.to_thread(plugins.require, self._settings, str(hosted.get("plugin")))
            allowed = await asyncio.to_thread(Policy(self._settings.network).allowed)
        except ApplianceError:
            await self._retire(key)
            raise
        if key in self._made and self._made[key].allowed == allowed:
            return self._made[key]
        await self._retire(key)
        if plugin.handler is None:
            raise Unsupported(f"{plugin.title} serves no models.", "Serve another model: `appliance models promote ID`.")
        handler = await asyncio.to_thread(plugin.handler, self._settings, hosted)
        with contextlib.suppress(ApplianceError):  # it says so itself when it is asked, and comes to by itself
            await handler.start()
        self._made[key] = _Made(handler, allowed)
        return self._made[key]

    async def _retire(self, key: str) -> None:
        made = self._made.pop(key, None)
        if made is not None:
            made.retired = True
            await self._close_unused(made)

    async def _close_unused(self, made: _Made) -> None:
        if made.retired and not made.uses:
            await made.handler.close()
