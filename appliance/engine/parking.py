"""Finished conversations outside the model's cache: their cells as bytes in main memory, until their next question comes.

A cell that stays in the cache costs every step of everybody else, and a place of its own; bytes cost room and nothing else, and
come back in some milliseconds where computing them again takes seconds. Hides which one goes when room is needed: GreedyDual,
by recency, use, and what it would cost to have it again for the room that it takes. Knows nothing of llama.cpp: the loop takes
states out and puts them back.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from appliance.engine.prefixes import Prefixes

State = npt.NDArray[np.uint8]


@dataclass(slots=True)
class _Entry:
    """`since`: what the clock said when it was used last."""

    state: State
    kind: Hashable
    since: float
    uses: int


class Parking:
    """States of conversations, found by their tokens. `most`: bytes of all together; `gone` is handed what is dropped. Keys are
    never given twice."""

    def __init__(self, most: int, gone: Callable[[State], None] = lambda _state: None) -> None:
        self.most = most
        self._gone = gone
        self._tree = Prefixes()
        self._entries: dict[int, _Entry] = {}
        self._next = 0
        self._clock = 0.0
        self.used = 0  # bytes

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, tokens: Sequence[int], kind: Hashable, state: State, uses: int = 1) -> bool:
        """Keep a state; False where it is larger than all the room there is."""
        if state.nbytes > self.most or not tokens:
            return False
        while self.used + state.nbytes > self.most:
            doomed = min(self._entries, key=self._worth)
            self._clock = max(self._clock, self._worth(doomed))
            self.drop(doomed)
        key = self._next
        self._next += 1
        self._entries[key] = _Entry(state, kind, self._clock, uses)
        source, length = self._tree.match(list(tokens), kind)
        self._tree.share(key, source, length, kind)
        self._tree.append(key, tokens[length:])
        self.used += state.nbytes
        return True

    def _worth(self, key: int) -> float:
        """What begins as another state does is had again from there: only the rest of its tokens would have to be computed."""
        entry = self._entries[key]
        return entry.since + entry.uses * self._tree.own(key) / self._tree.length(key)

    def match(self, tokens: list[int], kind: Hashable) -> tuple[int, int]:
        """(key, length) of the longest prefix of `tokens` that a state begins with; (-1, 0) where there is none."""
        return self._tree.match(tokens, kind)

    def get(self, key: int) -> State:
        """A state, which has been used once more by this."""
        entry = self._entries[key]
        entry.uses += 1
        entry.since = self._clock
        return entry.state

    def length(self, key: int) -> int:
        """Tokens that a state holds."""
        return self._tree.length(key)

    def drop(self, key: int) -> None:
        state = self._entries.pop(key).state
        self.used -= state.nbytes
        self._tree.drop(key)
        self._gone(state)

    def forget(self, kind: Hashable) -> None:
        """An adapter is gone, and all that was computed with it."""
        for key in [key for key, entry in self._entries.items() if entry.kind == kind]:
            self.drop(key)
