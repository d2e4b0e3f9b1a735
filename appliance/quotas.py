"""How much may be asked: questions in an hour, a day, a week, for a role, a class or a person; and what was asked.

The nearest rule counts: a person's own before their class's, that before their role's, for each window by itself. A window is
the clock's: this hour, today, this week from Monday, in whole hours of the box's time. Only what was asked within it counts, so
that a clock which was set back (all that was asked then lies ahead of it) locks nobody out. Nor does the clock decide what is
forgotten: the newest days on which somebody asked are kept, however many years a wrong clock puts between them. Numbers only,
no words. Who may set a quota is for `accounts` to say. Work is blocking; async callers use a thread.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from appliance.accounts import LOCAL, ROLES
from appliance.errors import BadInput, NotFound, UsedUp
from appliance.tables import classes, quotas, usage, users

if TYPE_CHECKING:
    from appliance.accounts import User
    from appliance.db import Database

WINDOWS = ("hour", "day", "week")
KINDS = ("user", "class", "role")  # the nearest first
MOST = 100_000
KEPT_DAYS = 400  # days on which somebody asked: a school year and more
HOUR = 3600


@dataclass(frozen=True, slots=True)
class Quota:
    """`name`: a role, or the id of a class or a person; `shown`: what people call it. `most`: questions in the window."""

    kind: str
    name: str
    window: str
    most: int
    shown: str = ""


@dataclass(frozen=True, slots=True)
class Left:
    """`left` of `most` questions until `again` (UTC seconds), when the next window begins."""

    window: str
    left: int
    most: int
    again: float

    @property
    def low(self) -> bool:
        """Whether it is time to say so: a quarter or less is left."""
        return self.left * 4 <= max(self.most, 4)


class Quotas:
    def __init__(self, database: Database) -> None:
        self._database = database

    # --- the rules ---------------------------------------------------------------------------------------------------------
    def list(self) -> Sequence[Quota]:
        """By kind and name."""
        chosen = (
            sa.select(quotas, sa.func.coalesce(users.c.name, classes.c.name, quotas.c.name).label("shown"))
            .outerjoin(users, sa.and_(quotas.c.kind == "user", users.c.id == quotas.c.name))
            .outerjoin(classes, sa.and_(quotas.c.kind == "class", classes.c.id == quotas.c.name))
        )
        with self._database.read() as connection:
            found = [Quota(row.kind, row.name, row.window, row.most, row.shown) for row in connection.execute(chosen)]
        return sorted(found, key=lambda one: (KINDS.index(one.kind), one.shown, WINDOWS.index(one.window)))

    def set(self, kind: str, name: str, window: str, most: int) -> Quota:
        """In place of the one that was. `name` as in Quota. Raises BadInput, NotFound."""
        if kind not in KINDS or window not in WINDOWS:
            raise BadInput("That is no quota.", f"It is for one of {', '.join(KINDS)} and for an {', '.join(WINDOWS)}.")
        if not 0 <= most <= MOST:
            raise BadInput(f"A quota is a number of questions up to {MOST}.", "Remove the quota where there is to be none.")
        with self._database.begin() as connection:
            known: bool = name in ROLES
            if kind != "role":
                table = users if kind == "user" else classes
                known = connection.execute(sa.select(table.c.id).where(table.c.id == name)).first() is not None
            if not known:
                raise NotFound(f"There is no {kind} {name[:64]!r} here.", "Check the spelling.")
            connection.execute(sa.delete(quotas).where(_this(kind, name, window)))
            connection.execute(sa.insert(quotas).values(kind=kind, name=name, window=window, most=most))
        return next(one for one in self.list() if (one.kind, one.name, one.window) == (kind, name, window))

    def remove(self, kind: str, name: str, window: str) -> None:
        """Raises NotFound."""
        with self._database.begin() as connection:
            if not connection.execute(sa.delete(quotas).where(_this(kind, name, window))).rowcount:
                raise NotFound("There is no such quota.", "`appliance quotas list` shows them all.")

    # --- a question --------------------------------------------------------------------------------------------------------
    def take(self, user: User, class_id: str = "") -> None:
        """Count a question that this person asks in a class, or raise UsedUp. The box's own command line is not counted."""
        if user.role == LOCAL:
            return
        now = time.time()
        with self._database.begin() as connection:
            left = _left(connection, user, class_id, now)
            if left is not None and left.left <= 0:
                raise _used_up(left, now)
            _add(connection, user, class_id, now, questions=1)

    def spent(self, user: User, class_id: str, tokens: int) -> None:
        """Count what an answer took of the model."""
        if user.role != LOCAL and tokens:
            with self._database.begin() as connection:
                _add(connection, user, class_id, time.time(), tokens=tokens)

    def left(self, user: User, class_id: str = "") -> Left | None:
        """What this person may still ask, by the window in which that is least; None where nothing limits it."""
        if user.role == LOCAL:
            return None
        with self._database.read() as connection:
            return _left(connection, user, class_id, time.time())

    # --- what was asked ----------------------------------------------------------------------------------------------------
    def per_day(self, class_id: str, days: int) -> Sequence[tuple[date, int]]:
        """Questions asked in a class on each of the last `days`, the oldest first."""
        today = date.fromtimestamp(time.time())
        counted = dict.fromkeys((today - timedelta(days=days - 1 - number) for number in range(days)), 0)
        since = _midnight(min(counted)) // HOUR
        chosen = sa.select(usage.c.hour, sa.func.sum(usage.c.questions).label("asked")).group_by(usage.c.hour)
        with self._database.read() as connection:
            for row in connection.execute(chosen.where(usage.c.class_id == class_id, usage.c.hour >= since)):
                day = date.fromtimestamp(row.hour * HOUR)
                if day in counted:
                    counted[day] += row.asked
        return list(counted.items())

    def here(self, ids: Collection[str]) -> Mapping[str, int]:
        """How many pupils of each of these classes (by id) have asked in this hour."""
        chosen = sa.select(usage.c.class_id, sa.func.count(usage.c.user.distinct())).group_by(usage.c.class_id)
        now = int(time.time() // HOUR)
        with self._database.read() as connection:
            rows = connection.execute(chosen.where(usage.c.class_id.in_(sorted(ids)), usage.c.hour == now))
            return {row[0]: row[1] for row in rows}

    def forget_old(self) -> int:
        """Take away what lies before the newest KEPT_DAYS on which somebody asked; how many rows that were."""
        day = usage.c.hour // 24
        oldest = sa.select(day.label("day")).distinct().order_by(day.desc()).offset(KEPT_DAYS - 1).limit(1)
        with self._database.begin() as connection:
            kept = connection.scalar(oldest)
            return 0 if kept is None else connection.execute(sa.delete(usage).where(day < kept)).rowcount


def _left(connection: sa.Connection, user: User, class_id: str, now: float) -> Left | None:
    """By the nearest rule of each window, the window in which least is left."""
    mine = sa.or_(
        sa.and_(quotas.c.kind == "user", quotas.c.name == user.id),
        sa.and_(quotas.c.kind == "class", quotas.c.name == class_id),
        sa.and_(quotas.c.kind == "role", quotas.c.name == user.role),
    )
    nearest: dict[str, Any] = {}
    for row in sorted(connection.execute(sa.select(quotas).where(mine)), key=lambda row: KINDS.index(row.kind)):
        nearest.setdefault(row.window, row)
    found = []
    for window, rule in nearest.items():
        first, after = _span(window, now)
        asked = sa.select(sa.func.sum(usage.c.questions)).where(
            usage.c.user == user.id, usage.c.hour >= first, usage.c.hour < after
        )
        if rule.kind == "class":
            asked = asked.where(usage.c.class_id == class_id)
        found.append(Left(window, max(0, rule.most - (connection.scalar(asked) or 0)), rule.most, float(after * HOUR)))
    return min(found, key=lambda one: (one.left, -one.again), default=None)


def _add(connection: sa.Connection, user: User, class_id: str, now: float, questions: int = 0, tokens: int = 0) -> None:
    key = {"user": user.id, "hour": int(now // HOUR), "class_id": class_id}
    more = {"questions": usage.c.questions + questions, "tokens": usage.c.tokens + tokens}
    this = sa.and_(*(usage.c[name] == value for name, value in key.items()))
    if not connection.execute(sa.update(usage).where(this).values(**more)).rowcount:
        connection.execute(sa.insert(usage).values(**key, questions=questions, tokens=tokens))


def _span(window: str, now: float) -> tuple[int, int]:
    """The first hour of the window and the first after it, in hours since 1970."""
    if window == "hour":
        return int(now // HOUR), int(now // HOUR) + 1
    today = date.fromtimestamp(now)
    first = today if window == "day" else today - timedelta(days=today.weekday())
    return _midnight(first) // HOUR, _midnight(first + timedelta(days=1 if window == "day" else 7)) // HOUR


def _midnight(day: date) -> int:
    return int(datetime(day.year, day.month, day.day).timestamp())  # of the box's own time


def _used_up(left: Left, now: float) -> UsedUp:
    asked = "No questions can be asked" if not left.most else f"All {left.most} questions have been asked"
    when = {"hour": "this hour", "day": "today", "week": "this week"}[left.window]
    clock = time.strftime("%H:%M", time.localtime(left.again))
    again = {"hour": f"at {clock}", "day": "tomorrow", "week": "next Monday"}[left.window]
    return UsedUp(f"{asked} {when}.", f"Ask again {again}; what you wrote is kept.", max(1.0, left.again - now))


def _this(kind: str, name: str, window: str) -> sa.ColumnElement[bool]:
    return sa.and_(quotas.c.kind == kind, quotas.c.name == name, quotas.c.window == window)
