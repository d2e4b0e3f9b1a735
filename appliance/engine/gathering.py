"""Many callers, one batch: texts to embed that arrive together are computed together.

A class that asks at once sends thirty single questions to the embedder; one call with thirty texts takes a fraction of thirty
calls. Hides the short window in which texts are gathered (who comes alone waits for none, and while one batch is computed, the
next gathers by itself), and that a text the embedder cannot take fails its own caller alone.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

WINDOW_SECONDS = 0.004
MOST_TEXTS = 256  # in one batch; a caller's own list is never cut

Vectors = npt.NDArray[np.float32]


@dataclass(eq=False, slots=True)
class _Caller:
    texts: Sequence[str]
    future: asyncio.Future[Vectors]


class Gathering:
    """`embed` turns texts into rows, in a thread. One event loop."""

    def __init__(self, embed: Callable[[Sequence[str]], Any], window: float = WINDOW_SECONDS) -> None:
        self._embed = embed
        self._window = window
        self._waiting: list[_Caller] = []
        self._worker: asyncio.Task[None] | None = None
        self._last = -math.inf  # when the last caller came

    async def __call__(self, texts: Sequence[str]) -> Vectors:
        """Rows in the order of `texts`. Raises what `embed` raises for them."""
        loop = asyncio.get_running_loop()
        caller = _Caller(texts, loop.create_future())
        self._waiting.append(caller)
        alone = loop.time() - self._last >= self._window
        self._last = loop.time()
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work(0 if alone else self._window))
        return await caller.future

    async def _work(self, window: float) -> None:
        await asyncio.sleep(window)
        while self._waiting:
            await self._answer(self._next())

    def _next(self) -> list[_Caller]:
        """Who goes into the next batch: callers in the order they came, as far as there is room."""
        batch: list[_Caller] = []
        size = 0
        while self._waiting and (not batch or size + len(self._waiting[0].texts) <= MOST_TEXTS):
            caller = self._waiting.pop(0)
            if not caller.future.done():  # else it left
                batch.append(caller)
                size += len(caller.texts)
        return batch

    async def _compute(self, texts: list[str]) -> Any:
        """In a thread that ends with it.

        A thread that has computed keeps helpers of its own, and while these outnumber the cores OpenMP lets every wait, the
        language model's too, fall asleep at once: its steps then take a tenth longer.
        """
        own = ThreadPoolExecutor(1, "embedder")
        try:
            return await asyncio.get_running_loop().run_in_executor(own, self._embed, texts)
        finally:
            own.shutdown(wait=False)

    async def _answer(self, batch: list[_Caller]) -> None:
        if not batch:
            return
        try:
            rows = await self._compute([text for caller in batch for text in caller.texts])
        except Exception as error:  # noqa: BLE001 - whatever it was, its caller gets it
            if len(batch) > 1:
                for caller in batch:  # one of them is at fault: each alone
                    await self._answer([caller])
            elif not batch[0].future.done():
                batch[0].future.set_exception(error)
            return
        at = 0
        for caller in batch:
            if not caller.future.done():
                caller.future.set_result(rows[at : at + len(caller.texts)])
            at += len(caller.texts)
