"""Prompt lookup: guesses how an answer goes on from what stands in the prompt already.

An answer that quotes its passages repeats them word for word, so the tokens after the last place where the same few tokens
stood are a good guess (Saxena 2023, "prompt lookup decoding"). A wrong guess costs a little time and nothing else: the model
checks each guessed token, and the answer is the one it would have given. Hides the index, and how far guessing is worth it.
"""

from __future__ import annotations

from collections.abc import Sequence

RUN = 3  # tokens that must agree before a guess is made
MOST = 10  # tokens guessed at once
PAUSE = 12  # tokens without a guess after two that were wrong


class Lookup:
    """Guesses for one conversation. Give it every token in order; `guess` looks back from the newest."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens: list[int] = []
        self._ends: dict[tuple[int, ...], int] = {}
        self._size = 4
        self._wrong = 0
        self._pause = 0
        for token in tokens:
            self.add(token)

    def add(self, token: int) -> None:
        self._tokens.append(token)
        self._pause = max(0, self._pause - 1)
        # One token late, so that a run never finds itself.
        if len(self._tokens) > RUN:
            self._ends[tuple(self._tokens[-RUN - 1 : -1])] = len(self._tokens) - 1

    def guess(self, most: int) -> list[int]:
        """Up to `most` tokens that may follow; empty where nothing tells."""
        if self._pause or most < 1 or len(self._tokens) < RUN:
            return []
        start = self._ends.get(tuple(self._tokens[-RUN:]))
        return [] if start is None else self._tokens[start : start + min(most, self._size, MOST)]

    def heard(self, guessed: int, right: int) -> None:
        """Of `guessed` tokens the first `right` were what the model said: guess further next time, or less far."""
        if right == guessed:
            self._size, self._wrong = min(MOST, self._size + 3), 0
        elif right:
            self._size, self._wrong = max(2, right + 1), 0
        else:
            self._size, self._wrong = 2, self._wrong + 1
            if self._wrong >= 2:
                self._pause, self._wrong = PAUSE, 0
