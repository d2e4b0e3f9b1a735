"""Who has been seen on the pages in the last two minutes: by id, in this process's memory, and forgotten after that.

Nothing of it is written down: where somebody was when is nobody's to read later. Whether they are still signed in is for
`accounts` to say, and who may ask is decided where it is shown.
"""

from __future__ import annotations

import time
from collections.abc import Collection

SEEN_SECONDS = 120.0


class Presence:
    """One for each web process. The clock is one that nobody can set back."""

    def __init__(self) -> None:
        self._seen: dict[str, float] = {}

    def saw(self, user: str) -> None:
        self._seen[user] = time.monotonic()

    def of(self, ids: Collection[str]) -> frozenset[str]:
        """Which of these people were seen in that time."""
        now = time.monotonic()
        for user in [user for user, at in self._seen.items() if now - at > SEEN_SECONDS]:
            del self._seen[user]
        return frozenset(user for user in ids if user in self._seen)
