"""The model's steps, counted and held still: what took one step took one on every machine, however long that was."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from appliance.engine.llama import Llama

PATIENCE = 120.0  # seconds that anything may take on the busiest machine; only what never comes takes them

Row = tuple[int, int, int, bool]  # token, position, sequence, wants logits


class Steps:
    """`log` has the rows of every step that began. Within `held` none begins but those that are allowed."""

    def __init__(self) -> None:
        self.log: list[list[Row]] = []
        self.standing = False  # whether a step is about to begin and may not
        self._allowed: int | None = None
        self._turn = threading.Condition()

    def __len__(self) -> int:
        return len(self.log)

    @contextmanager
    def held(self) -> Iterator[None]:
        """A test that fails within must not leave the model's thread standing: whoever closes it waits for it."""
        self.allow(0)
        try:
            yield
        finally:
            self.allow(None)

    def allow(self, more: int | None) -> None:
        """So many steps from now on, None for all."""
        with self._turn:
            self._allowed = more
            self._turn.notify_all()

    def enter(self, rows: Sequence[Row]) -> None:
        with self._turn:
            self.standing = self._allowed == 0
            self._turn.wait_for(lambda: self._allowed is None or self._allowed > 0)
            self.standing = False
            if self._allowed is not None:
                self._allowed -= 1
            self.log.append(list(rows))


@contextmanager
def counted_steps(pause: float = 0.0) -> Iterator[Steps]:
    """pause: seconds before each step, where a test needs a model that is no quicker on a quick machine."""
    made, real = Steps(), Llama.decode

    def decode(self: Llama, rows: Sequence[Row]) -> bool:
        made.enter(rows)
        time.sleep(pause)
        return real(self, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Llama, "decode", decode)
        yield made


async def until(holds: Callable[[], Any | Awaitable[Any]], what: str, patience: float = PATIENCE) -> None:
    """Wait for a condition; an AssertionError that says `what` did not come to be."""
    ends = time.monotonic() + patience
    while True:
        found = holds()
        if await found if inspect.isawaitable(found) else found:
            return
        assert time.monotonic() < ends, f"it never came to be: {what}"
        await asyncio.sleep(0.005)
