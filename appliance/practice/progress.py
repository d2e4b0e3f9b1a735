"""What changed over the weeks in which somebody practised: moves counted and rubric levels reached, by week and by standard.

Counts of one's own words in rehearsals with simulated pupils, for oneself. Nothing here compares people. Pure functions.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import TYPE_CHECKING

from appliance.practice.exchange import MOVES

if TYPE_CHECKING:
    from appliance.practice.feedback import Feedback
    from appliance.practice.lesson import Rehearsal

WEEKS = 12


@dataclass(frozen=True, slots=True)
class Week:
    """One week from Monday on. moves: how often each was made; levels: how often a rubric's line was at 0, 1 and 2."""

    start: date
    lessons: int = 0
    turns: int = 0
    moves: Mapping[str, int] = field(default_factory=dict)
    levels: tuple[int, int, int] = (0, 0, 0)

    def each(self, move: str) -> float:
        """How often a move was made in ten turns, so that weeks of different length can be laid beside each other."""
        return round(10 * self.moves.get(move, 0) / self.turns, 1) if self.turns else 0.0


@dataclass(frozen=True, slots=True)
class Reached:
    """Of one curriculum standard: lessons in scenes about it, and how often a rubric's line was at 0, 1 and 2 in them."""

    lessons: int
    levels: tuple[int, int, int]


def by_standard(assessed: Sequence[tuple[Rehearsal, Feedback]], tagged: Mapping[str, frozenset[str]]) -> Mapping[str, Reached]:
    """By its code. tagged: the codes of each scene by its id, beside those that a lesson's scene had when it was played."""
    found: dict[str, list[Feedback]] = {}
    for lesson, told in assessed:
        for code in {*lesson.scenario.standards} | tagged.get(lesson.scenario.id, frozenset()):
            found.setdefault(code, []).append(told)
    return {code: Reached(len(of), _levels(of)) for code, of in found.items()}


def weeks(assessed: Sequence[tuple[Rehearsal, Feedback]]) -> list[Week]:
    """The last WEEKS weeks in which something was rehearsed, the oldest first."""
    found: dict[date, list[tuple[Rehearsal, Feedback]]] = {}
    for one in assessed:
        found.setdefault(_monday(one[0].finished or one[0].changed), []).append(one)
    return [_week(start, found[start]) for start in sorted(found)[-WEEKS:]]


def moves_made(found: Sequence[Week]) -> list[str]:
    """The moves that were made in any of these weeks, in the order in which pages list them."""
    return [move for move in MOVES if any(week.moves.get(move) for week in found)]


def _week(start: date, lessons: Sequence[tuple[Rehearsal, Feedback]]) -> Week:
    moves: Counter[str] = Counter()
    for _, told in lessons:
        moves.update(told.moves)
    turns = sum(len(lesson.turns) for lesson, _ in lessons)
    return Week(start, len(lessons), turns, dict(moves), _levels([told for _, told in lessons]))


def _levels(told: Sequence[Feedback]) -> tuple[int, int, int]:
    counted = Counter(score.level for one in told for score in one.scores)
    return counted[0], counted[1], counted[2]


def _monday(seconds: float) -> date:
    day = date(*time.localtime(seconds)[:3])
    return day - timedelta(days=day.weekday())
