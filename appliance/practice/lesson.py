"""One rehearsed lesson as it is kept: its values, and the rows that hold them.

Turns are a tree (`branches`): each follows its parent, and the path to the lesson's leaf is what is shown. Functions of an open
transaction; whose lesson it is and who may read it is decided by whoever calls.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import sqlalchemy as sa

from appliance import branches
from appliance.errors import BadInput, NotFound
from appliance.practice.exchange import Beat, Exchange, Room
from appliance.practice.scenario import Scenario, read
from appliance.tables import new_id, rehearsal_turns, rehearsals

TIMES = 2  # a lesson may last its scene's minutes so often: reading and thinking take longer than speaking
GONE = ("There is no such turn in this lesson.", "Load the page again.")


@dataclass(frozen=True, slots=True)
class Turn:
    """What the teacher said and what came of it. `room`: after it. `asked`: a model was asked to word the lines.

    others: ids of what was said in the same place before or since, on other branches.
    """

    id: str
    parent: str
    exchange: Exchange
    room: Room
    asked: bool = False
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """One lesson. `scenario`: as it was when it began; `opening`: the room then. Times in UTC seconds since 1970.

    after: the id of the lesson that this one tries again. turns: those that are shown, in order, where it was loaded whole;
    aside: those of other branches that stand in the place of one that is shown, by their ids.
    """

    id: str
    user: str
    scenario: Scenario
    seed: int
    opening: Room
    leaf: str
    after: str
    created: float
    changed: float
    until: float
    finished: float | None
    turns: tuple[Turn, ...] = ()
    aside: Mapping[str, Turn] | None = None

    @property
    def room(self) -> Room:
        return self.turns[-1].room if self.turns else self.opening

    @property
    def exchanges(self) -> tuple[Exchange, ...]:
        return tuple(turn.exchange for turn in self.turns)


def begin(connection: sa.Connection, user: str, scene: Scenario, seed: int, opening: Room, after: str) -> str:
    now, id = time.time(), new_id()
    values = {
        "id": id, "user": user, "scenario": scene.id, "version": scene.version, "seed": seed, "leaf": "", "after": after,
        "facts": {**scene.as_facts(), "room": opening.as_facts()},
        "created": now, "changed": now, "until": now + 60 * TIMES * scene.minutes,
    }  # fmt: skip
    connection.execute(sa.insert(rehearsals).values(**values))
    return id


def copy(connection: sa.Connection, ids: Sequence[str], to: str) -> None:
    """Put the turns of a path into another lesson, where they are shown."""
    parent = ""
    for id in ids:
        row = connection.execute(sa.select(rehearsal_turns).where(rehearsal_turns.c.id == id)).one()
        values = {**row._mapping, "id": new_id(), "rehearsal": to, "parent": parent, "created": time.time()}
        connection.execute(sa.insert(rehearsal_turns).values(**values))
        parent = values["id"]
    show(connection, to, parent)


def show(connection: sa.Connection, id: str, leaf: str) -> None:
    connection.execute(sa.update(rehearsals).where(rehearsals.c.id == id).values(leaf=leaf, changed=time.time()))


def save(connection: sa.Connection, turn: Turn, *, still_open: bool = False) -> None:
    facts = {**turn.exchange.as_facts(), "open": still_open, "asked": turn.asked}
    this = sa.update(rehearsal_turns).where(rehearsal_turns.c.id == turn.id)
    connection.execute(this.values(facts=facts, room=turn.room.as_facts()))


def end_late(connection: sa.Connection, user: str) -> None:
    """Finish what has run past its time, as of then."""
    late = sa.and_(rehearsals.c.user == user, rehearsals.c.finished.is_(None), rehearsals.c.until <= time.time())
    connection.execute(sa.update(rehearsals).where(late).values(finished=rehearsals.c.until))


def of(user: str) -> sa.Select[Any]:
    running = sa.case((rehearsals.c.finished.is_(None), 0), else_=1)
    return sa.select(rehearsals).where(rehearsals.c.user == user).order_by(running, rehearsals.c.changed.desc())


def bones(connection: sa.Connection, id: str) -> list[Any]:
    """The tree without anybody's words. A turn's number is its depth, so the ordinal is the order in which they were stored."""
    columns = (rehearsal_turns.c.id, rehearsal_turns.c.parent)
    this = sa.select(*columns).where(rehearsal_turns.c.rehearsal == id)
    rows = connection.execute(this.order_by(rehearsal_turns.c.created, sa.literal_column("rehearsal_turns.rowid")))
    return [SimpleNamespace(id=row.id, parent=row.parent, ordinal=at, role="teacher") for at, row in enumerate(rows, 1)]


def _rehearsal(row: Any) -> Rehearsal:
    scenario = replace(read(row.facts, row.scenario, where="of this lesson"), version=row.version)
    opening = Room.from_facts(row.facts["room"])
    return Rehearsal(
        row.id, row.user, scenario, row.seed, opening, row.leaf, row.after, row.created, row.changed, row.until, row.finished
    )


def whole(connection: sa.Connection, id: str) -> Rehearsal:
    """A lesson with the turns that are shown."""
    leaf = connection.scalar(sa.select(rehearsals.c.leaf).where(rehearsals.c.id == id)) or ""
    return path(connection, id, bones(connection, id), leaf)


def path(connection: sa.Connection, id: str, tree: Sequence[Any], leaf: str) -> Rehearsal:
    """The lesson up to a turn, "" for before the first."""
    row = connection.execute(sa.select(rehearsals).where(rehearsals.c.id == id)).one()
    shown = [one.id for one in branches.path(tree, leaf)] if leaf else []
    places = branches.versions(tree)
    wanted = {other for one in shown for other in places[one]} | {one.id for one in tree if one.parent == leaf}
    chosen = sa.select(rehearsal_turns).where(rehearsal_turns.c.id.in_(wanted)).order_by(rehearsal_turns.c.created)
    rows = {one.id: as_turn(one) for one in connection.execute(chosen)}
    turns = tuple(replace(rows[one], others=tuple(other for other in places[one] if other != one)) for one in shown)
    aside = {one: turn for one, turn in rows.items() if one not in shown}
    return replace(_rehearsal(row), turns=turns, aside=aside)


def legible(rows: Iterable[Any]) -> list[Rehearsal]:
    """Lessons without their turns. One that this release cannot read stays on disk, and keeps no page from opening."""
    found = []
    for row in rows:
        try:
            found.append(_rehearsal(row))
        except (BadInput, KeyError, TypeError):
            continue
    return found


def as_turn(row: Any) -> Turn:
    return Turn(row.id, row.parent, Exchange.from_facts(row.facts), Room.from_facts(row.room), bool(row.facts.get("asked")))


def heard(rehearsal: Rehearsal, turn: str) -> Sequence[tuple[str, str]]:
    """(who, line) of what was said to the teacher just before a turn that is shown; the scene's opening under ""."""
    before: Sequence[Beat] | None = None
    for one in rehearsal.turns:
        if one.id == turn:
            break
        before = one.exchange.beats
    else:
        raise NotFound(*GONE)
    return [("", rehearsal.scenario.opening)] if not before else [(beat.pupil, beat.said or beat.line) for beat in before]
