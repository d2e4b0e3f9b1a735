"""A talk as a tree: each turn follows another one, and the path from a first question to a last answer is what is shown.

An edited question stands beside the one it was made of, a second answer beside the first; what is not on the path that is shown
is still in the tree. Pure functions of ids; it reads no database.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol, TypeVar


class Node(Protocol):
    """`parent`: the id of the turn before it, "" for a first one. `ordinal`: goes up with every turn of the talk."""

    @property
    def id(self) -> str: ...
    @property
    def parent(self) -> str: ...
    @property
    def ordinal(self) -> int: ...
    @property
    def role(self) -> str: ...


Turn = TypeVar("Turn", bound=Node)


def path(turns: Sequence[Turn], leaf: str = "") -> list[Turn]:
    """The turns from a first question to `leaf`; to the newest turn where that is unknown or ""."""
    known = {turn.id: turn for turn in turns}
    at = known.get(leaf) or max(turns, key=lambda turn: turn.ordinal, default=None)
    found: list[Turn] = []
    while at is not None:
        found.append(at)
        at = _before(known, at)
    return found[::-1]


def newest_below(turns: Sequence[Turn], id: str) -> str:
    """The id of the newest turn that follows `id`, however far; `id` itself where nothing does."""
    below, last = {id}, id
    for turn in sorted(turns, key=lambda turn: turn.ordinal):
        if turn.parent in below:
            below.add(turn.id)
            last = turn.id
    return last


def versions(turns: Sequence[Turn]) -> dict[str, tuple[str, ...]]:
    """For each turn the ids of all that stand in the same place, itself among them, oldest first."""
    known = {turn.id: turn for turn in turns}
    places: dict[tuple[str, str], list[str]] = defaultdict(list)
    for turn in sorted(turns, key=lambda turn: turn.ordinal):
        places[_place(known, turn)].append(turn.id)
    return {turn.id: tuple(places[_place(known, turn)]) for turn in turns}


def _place(known: dict[str, Turn], turn: Turn) -> tuple[str, str]:
    before = _before(known, turn)
    return (before.id if before is not None else "", turn.role)


def _before(known: dict[str, Turn], turn: Turn) -> Turn | None:
    """The turn that this one follows. A later one cannot be: with a damaged row the path still ends."""
    before = known.get(turn.parent)
    return before if before is not None and before.ordinal < turn.ordinal else None
