"""The end of a school year: this year's classes make room for next year's, in one transaction or not at all.

`plan` says what would become of each class, `carry_out` does it; done twice, the second time finds nothing to do. Either each
class is archived under a name with its year, and a new one of the old name takes over its teachers, its lesson's settings and
what it may read, without pupils; or it moves up with its pupils, "7B" to "8B", and the highest are archived. Work is blocking.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from appliance.errors import BadInput, Conflict
from appliance.tables import class_collections, classes, collection_readers, memberships, new_id

if TYPE_CHECKING:
    from appliance.db import Database

HIGHEST = 13
_NUMBER = re.compile(r"\d{1,2}(?!\d)")
_TAKEN_OVER = ("subject", "grade", "method", "strict", "help_level")


@dataclass(frozen=True, slots=True)
class Step:
    """What becomes of a class. `act`: renew (archived as `becomes`, and a new one of its name), move up, keep, archive."""

    id: str
    name: str
    act: str
    becomes: str
    pupils: int
    teachers: int


def plan(database: Database, year: str, *, move_up: bool = False, highest: int = HIGHEST) -> Sequence[Step]:
    """What would become of each class that is not of this `year` already (four digits). Raises BadInput, Conflict."""
    with database.read() as connection:
        return _plan(connection, year, move_up, highest)


def carry_out(database: Database, year: str, *, move_up: bool = False, highest: int = HIGHEST) -> Sequence[Step]:
    """Do it, and say what was done. Raises BadInput, Conflict; then nothing has changed."""
    with database.begin() as connection:
        steps = _plan(connection, year, move_up, highest)
        _rename(connection, steps)
        for step in steps:
            this = sa.update(classes).where(classes.c.id == step.id)
            if step.act in ("renew", "archive"):
                connection.execute(this.values(archived=time.time(), code="", code_until=None, version=classes.c.version + 1))
            else:
                grade = _up(connection.scalar(sa.select(classes.c.grade).where(classes.c.id == step.id)) or "")
                values = {"grade": grade} if step.act == "move up" else {}
                connection.execute(this.values(year=year, lesson="", version=classes.c.version + 1, **values))
            if step.act == "renew":
                _renew(connection, step, year)
    return steps


def _plan(connection: sa.Connection, year: str, move_up: bool, highest: int) -> list[Step]:
    if not re.fullmatch(r"[0-9]{4}", year):
        raise BadInput(f"{year[:20]!r} is no year.", "Give the new school year in four digits, as 2027.")
    counts: dict[tuple[str, str], int] = {}
    for row in connection.execute(sa.select(memberships.c.class_id, memberships.c.role)):
        counts[row.class_id, row.role] = counts.get((row.class_id, row.role), 0) + 1
    rows = connection.execute(sa.select(classes).order_by(classes.c.name)).all()
    steps = []
    for row in rows:
        if row.archived is not None or row.year == year:
            continue
        old = f"{row.name} ({row.year or int(year) - 1})"
        number = _NUMBER.search(row.name)
        if not move_up:
            act, becomes = "renew", old
        elif number is None:
            act, becomes = "keep", row.name
        else:
            act, becomes = ("move up", _up(row.name)) if int(number[0]) < highest else ("archive", old)
        steps.append(Step(row.id, row.name, act, becomes, counts.get((row.id, "pupil"), 0), counts.get((row.id, "teacher"), 0)))
    moved = {step.id for step in steps}
    names = [row.name for row in rows if row.id not in moved] + [step.becomes for step in steps]
    keys = [_key(name) for name in names]
    twice = sorted({name for name in names if keys.count(_key(name)) > 1})
    if twice:
        raise Conflict(f"Two classes would be called {', '.join(twice[:5])}.", "Rename or archive one of them first.")
    return steps


def _rename(connection: sa.Connection, steps: Sequence[Step]) -> None:
    """By way of names that nobody has, since one class's new name is another's old one.

    What a class may read follows it when it moves up. Of a renewed one it stays with the name, which the new class takes.
    """
    for step in steps:
        connection.execute(sa.update(classes).where(classes.c.id == step.id).values(name=f"\x00{step.id}"))
    readers = connection.execute(sa.select(collection_readers).where(collection_readers.c.kind == "class")).all()
    follows = {step.name: step.becomes for step in steps if step.act in ("move up", "archive")}
    moved = [row for row in readers if row.name in follows]
    for row in moved:
        this = (collection_readers.c.collection == row.collection) & (collection_readers.c.name == row.name)
        connection.execute(sa.delete(collection_readers).where(this, collection_readers.c.kind == "class"))
    kept = {(row.collection, row.name) for row in readers if row not in moved}
    wanted = {(row.collection, follows[row.name]) for row in moved} - kept
    for collection, name in sorted(wanted):
        connection.execute(sa.insert(collection_readers).values(collection=collection, kind="class", name=name))
    for step in steps:
        connection.execute(sa.update(classes).where(classes.c.id == step.id).values(name=step.becomes))


def _renew(connection: sa.Connection, step: Step, year: str) -> None:
    """Next year's class of the old name: its teachers and sources, no pupils, nothing that the register knows it by."""
    old = connection.execute(sa.select(classes).where(classes.c.id == step.id)).one()._mapping
    id = new_id()
    row: dict[str, Any] = {name: old[name] for name in _TAKEN_OVER}
    connection.execute(sa.insert(classes).values(id=id, name=step.name, year=year, created=time.time(), **row))
    for table, more in ((memberships, [memberships.c.role == "teacher"]), (class_collections, [])):
        rows = connection.execute(sa.select(table).where(table.c.class_id == step.id, *more)).mappings().all()
        if rows:
            connection.execute(sa.insert(table), [{**one, "class_id": id} for one in rows])


def _up(text: str) -> str:
    """The first number is one more: "7B" is "8B", "Year 09" is "Year 10"."""
    return _NUMBER.sub(lambda found: str(int(found[0]) + 1).zfill(len(found[0])), text, count=1)


def _key(name: str) -> str:
    return "".join(name.casefold().split())
