"""How the box fared over the last weeks, in numbers: waits, the queue, memory, disk; and how much was asked.

Hides the table of hours and how hours become days. It holds no word and nobody's name or id: sums of the whole box only.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

import sqlalchemy as sa

from appliance.db import Database
from appliance.tables import figures, usage

HOUR = 3600
KEPT_DAYS = 70
NAMES = ("first_words", "answer", "waiting", "memory", "disk")  # seconds, seconds, people, and two shares of 1


@dataclass(frozen=True, slots=True)
class Day:
    """What was seen on one day, by this machine's clock. mean, most: None where nothing was."""

    day: date
    count: int
    mean: float | None
    most: float | None


class Figures:
    """The figures of one database. Blocking."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, seen: Mapping[str, Sequence[float]], now: float | None = None) -> None:
        """Put what was seen into this hour's rows, and forget what lies before the newest KEPT_DAYS on which something was.

        Names are of NAMES.
        """
        hour = int((time.time() if now is None else now) // HOUR)
        with self._database.begin() as connection:
            for name in NAMES:
                values = seen.get(name, ())
                if not values:
                    continue
                this = sa.and_(figures.c.name == name, figures.c.hour == hour)
                row = connection.execute(sa.select(figures).where(this)).first()
                count, total, most = len(values), sum(values), max(values)
                if row is None:
                    row_of = {"name": name, "hour": hour, "number": count, "total": total, "most": most}
                    connection.execute(figures.insert().values(**row_of))
                    continue
                more = {"number": row.number + count, "total": row.total + total, "most": max(row.most, most)}
                connection.execute(figures.update().where(this).values(**more))
            # By the days that were, not by the clock's: one that runs ahead for an hour must not empty the charts.
            day = figures.c.hour // 24
            oldest = sa.select(day.label("day")).distinct().order_by(day.desc()).offset(KEPT_DAYS).limit(1)
            gone = connection.scalar(oldest)
            if gone is not None:
                connection.execute(figures.delete().where(day <= gone))

    def days(self, name: str, days: int, now: float | None = None) -> Sequence[Day]:
        """One of NAMES on each of the last days, the oldest first."""
        wanted = _last(days, now)
        found: dict[date, tuple[int, float, float]] = {}
        with self._database.read() as connection:
            query = sa.select(figures).where(figures.c.name == name, figures.c.hour >= _since(wanted))
            for row in connection.execute(query):
                count, total, most = found.get(day := date.fromtimestamp(row.hour * HOUR), (0, 0.0, row.most))
                found[day] = (count + row.number, total + row.total, max(most, row.most))
        told = []
        for day in wanted:
            count, total, top = found.get(day, (0, 0.0, 0.0))
            told.append(Day(day, count, total / count if count else None, top if count else None))
        return told

    def questions(self, days: int, now: float | None = None) -> Sequence[Day]:
        """How much was asked of the whole box on each of the last days; 0 before what is kept."""
        wanted = _last(days, now)
        asked = dict.fromkeys(wanted, 0)
        summed = sa.select(usage.c.hour, sa.func.sum(usage.c.questions).label("asked")).group_by(usage.c.hour)
        with self._database.read() as connection:
            for row in connection.execute(summed.where(usage.c.hour >= _since(wanted))):
                day = date.fromtimestamp(row.hour * HOUR)
                if day in asked:
                    asked[day] += row.asked
        return [Day(day, count, float(count), float(count)) for day, count in asked.items()]


def _last(days: int, now: float | None) -> Sequence[date]:
    today = date.fromtimestamp(time.time() if now is None else now)
    return [today - timedelta(days=days - 1 - number) for number in range(days)]


def _since(wanted: Sequence[date]) -> int:
    """The hour with which the first of these days begins, at the earliest."""
    return int(time.mktime(wanted[0].timetuple()) // HOUR)
