"""Which backups are kept, and until when one that is there now is: one rule for letting go and for saying so.

Counts days, weeks, months and years in which there are backups, as restic's own `forget` does, and never looks at what time it
is: a clock that runs ten years ahead lets go of no more than any other night. Pure arithmetic; it hides calendars.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from functools import lru_cache

NIGHT = 86400.0
FURTHEST = 40 * 366  # nights that are looked ahead


@lru_cache(maxsize=65536)
def _periods(at: float) -> dict[str, tuple[int, ...]]:
    day = datetime.fromtimestamp(at)
    year, week, _ = day.isocalendar()
    return {
        "daily": (day.year, day.month, day.day), "weekly": (year, week), "monthly": (day.year, day.month),
        "yearly": (day.year,),
    }  # fmt: skip


def kept(times: Collection[float], keep: Mapping[str, int]) -> set[float]:
    """Which of the backups made at these times stay: the last so many, and the newest of so many days, weeks, months, years."""
    newest_first = sorted(times, reverse=True)
    stay = set(newest_first[: keep.get("last", 0)])
    for rule in ("daily", "weekly", "monthly", "yearly"):
        left, before = keep.get(rule, 0), None
        for at in newest_first:
            period = _periods(at)[rule]
            if left and period != before:
                stay.add(at)
                left -= 1
            before = period
    return stay


def gone_by(times: Collection[float], keep: Mapping[str, int], now: float) -> float | None:
    """When the last of these backups is let go of, where one is made each night from now on; None: not in forty years."""
    left, there, at = set(times), set(times), datetime.fromtimestamp(now)
    if not left:
        return now
    for _ in range(FURTHEST):
        at += timedelta(days=1)  # by the calendar: a night stays a night when the clocks change
        there = kept(there | {at.timestamp()}, keep)
        left &= there
        if not left:
            return at.timestamp()
    return None
