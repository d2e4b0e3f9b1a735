"""What a file would change, and changing it: all or nothing, and only as it was shown.

A person is known by the register's number where the file has one, else by the name. Nobody is removed or disabled: who is not
in the file stays as they are. Newcomers have no password until one is made for them, so that two thousand take no longer than
two. Who may do this is for `accounts.can` to say.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from appliance.accounts import ADMINISTRATOR, LOCAL, PUPIL, STAFF, TEACHER
from appliance.accounts.credentials import clean_name, normal
from appliance.accounts.people import NO_PASSWORD, clean_full_name
from appliance.accounts.sessions import end_everything
from appliance.audit import Audit
from appliance.classes import _key as class_key
from appliance.classes import clean as clean_class
from appliance.enrolment.reading import Entry, Fault, Roll
from appliance.errors import BadInput, Conflict
from appliance.tables import classes, folded, memberships, new_id, users

if TYPE_CHECKING:
    from appliance.db import Database

LONGEST_EXTERNAL = 100
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})?")


@dataclass(frozen=True, slots=True)
class Newcomer:
    line: int
    name: str
    full_name: str
    role: str
    language: str
    external: str
    classes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """`columns`: before and after. `joins` and `leaves`: classes by name. `part`: their part in classes from now on."""

    line: int
    id: str
    name: str
    columns: Mapping[str, tuple[str, str]]
    joins: tuple[str, ...]
    leaves: tuple[str, ...]
    part: str


@dataclass(slots=True)
class Plan:
    """What a file would do. `numbers`: classes that are there and get the register's number."""

    added: list[Newcomer] = field(default_factory=list)
    changed: list[Change] = field(default_factory=list)
    new_classes: list[str] = field(default_factory=list)
    numbers: dict[str, str] = field(default_factory=dict)
    unchanged: int = 0
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Changes in all."""
        return len(self.added) + len(self.changed) + len(self.new_classes) + len(self.numbers)

    @property
    def digest(self) -> str:
        """The same for the same changes."""
        told = [[asdict(one) for one in self.added], [asdict(one) for one in self.changed], self.new_classes, self.numbers]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def compare(database: Database, roll: Roll) -> Plan:
    """What reading this file in would change. Changes nothing."""
    with database.read() as connection:
        return _Comparison(connection, roll).plan


def apply(database: Database, roll: Roll, shown: str, *, actor: str = "") -> Plan:
    """Make the changes whose digest was `shown`. Raises BadInput (there are faults), Conflict (it would do others by now)."""
    with database.begin() as connection:
        comparison = _Comparison(connection, roll)
        plan = comparison.plan
        if plan.faults:
            first = plan.faults[0]
            raise BadInput(f"{roll.name}, line {first.line}: {first.message}", "Correct the file; nothing was changed.")
        if plan.digest != shown:
            raise Conflict("People were changed since this was shown.", "Look at what the file would change now, then go on.")
        if plan.count:
            _write(connection, plan, comparison)
    facts = {"added": len(plan.added), "changed": len(plan.changed), "classes": len(plan.new_classes), "plan": plan.digest}
    Audit(database).note("import people", "people", facts, actor=actor)
    return plan


class _Comparison:
    """A file beside what is there; `plan` is the outcome."""

    def __init__(self, connection: sa.Connection, roll: Roll) -> None:
        self.roll = roll
        self.plan = Plan(faults=list(roll.faults), notes=list(roll.notes))
        self.people = {row.id: row for row in connection.execute(sa.select(users).where(users.c.role != LOCAL))}
        self.by_name = {row.folded: row for row in self.people.values()}
        self.by_number = {row.external: row for row in self.people.values() if row.external}
        self.classes: dict[str, Any] = {}  # by key, those that are in use
        self.archived: set[str] = set()
        self.numbered: dict[str, Any] = {}
        for row in connection.execute(sa.select(classes)):
            if row.archived is None:
                self.classes[class_key(row.name)] = row
                self.numbered |= {row.external: row} if row.external else {}
            else:
                self.archived.add(class_key(row.name))
        self.ids = {row.id: row for row in self.classes.values()}
        self.member: dict[str, dict[str, str]] = {}
        for row in connection.execute(sa.select(memberships)):
            if row.class_id in self.ids:
                self.member.setdefault(row.user, {})[row.class_id] = row.role
        self.new: dict[str, str] = {}  # class key -> name, to be made
        self.new_numbers: dict[str, str] = {}
        self.taken: dict[str, int] = {}  # person -> line
        for entry in roll.entries:
            self._take(entry)
        self._names_stay_one_persons()
        self._an_administrator_stays()
        self.plan.new_classes = sorted(self.new.values())
        first = {(fault.line, fault.column): fault for fault in reversed(self.plan.faults)}  # one for each cell is enough
        self.plan.faults = sorted(first.values(), key=lambda fault: (fault.line, fault.column))

    def _fault(self, entry: Entry, column: str, message: str) -> None:
        self.plan.faults.append(Fault(entry.line, column, message))

    def _take(self, entry: Entry) -> None:
        entry = replace(entry, name=normal(entry.name), external=entry.external and entry.external.strip())
        found = self.by_number.get(entry.external or "")
        if found is None:
            found = self.by_name.get(folded(entry.name))
            if found is not None and found.external and entry.external and found.external != entry.external:
                self._fault(entry, "external", f"{entry.name} is somebody with another number here.")
                return
            if found is not None and entry.newcomer and _part(found.role) != _part(entry.newcomer):
                self._fault(entry, "name", f"{entry.name} is a {found.role} here: it cannot be the same person.")
                return
        if found is not None and (before := self.taken.setdefault(found.id, entry.line)) != entry.line:
            self._fault(entry, "name", f"This is the person of line {before}.")
            return
        try:
            columns = self._columns(entry, found)
            wanted = None if entry.classes is None else [self._class(name) for name in entry.classes]
        except BadInput as error:
            self._fault(entry, "", error.message)
            return
        if found is None:
            self._newcomer(entry, columns, wanted or [])
        else:
            self._known(entry, found, columns, wanted)

    def _columns(self, entry: Entry, found: Any) -> dict[str, str]:
        """What the entry says, cleaned; what is there already is not judged again. Raises BadInput."""
        given = {name: getattr(entry, name) for name in ("name", "full_name", "role", "language", "external")}
        columns: dict[str, str] = {}
        for name, value in given.items():
            if value is None:
                continue
            value = normal(value)
            if found is None or value != getattr(found, name):
                value = _cleaned(name, value)
            columns[name] = value
        return columns

    def _class(self, name: str) -> str:
        """The key of a class: one that is there, by the register's number or its name, or one to be made. Raises BadInput."""
        number = self.roll.classes.get(name, "")
        if number in self.numbered:
            return class_key(self.numbered[number].name)
        key = class_key(name)
        if key in self.classes:
            there = self.classes[key]
            if number and not there.external:
                self.plan.numbers[there.id] = number
        elif key in self.archived:
            raise BadInput(f"The class {name[:80]} is archived.", "Give it another name, or bring it back.")
        else:
            self.new.setdefault(key, clean_class(name))
            self.new_numbers.setdefault(key, number)
        return key

    def _called(self, key: str) -> str:
        return self.classes[key].name if key in self.classes else self.new[key]

    def _newcomer(self, entry: Entry, columns: dict[str, str], wanted: list[str]) -> None:
        names = tuple(self._called(key) for key in dict.fromkeys(wanted))
        told = {"full_name": "", "role": entry.newcomer or PUPIL, "language": "", "external": "", **columns}
        self.plan.added.append(Newcomer(line=entry.line, classes=names, **told))

    def _known(self, entry: Entry, found: Any, columns: dict[str, str], wanted: list[str] | None) -> None:
        differ = {name: (getattr(found, name), value) for name, value in columns.items() if getattr(found, name) != value}
        have = {class_key(self.ids[id].name) for id in self.member.get(found.id, {})}
        joins = [] if wanted is None else [key for key in dict.fromkeys(wanted) if key not in have]
        leaves = [] if wanted is None else sorted(have - set(wanted))
        if not (differ or joins or leaves):
            self.plan.unchanged += 1
            return
        into, out_of = (tuple(self._called(key) for key in keys) for keys in (joins, leaves))
        part = _part(columns.get("role", found.role))
        self.plan.changed.append(Change(entry.line, found.id, found.name, differ, into, out_of, part))

    def _names_stay_one_persons(self) -> None:
        """Names are compared as they will be: two people may exchange theirs, and nobody gets another's."""
        after = {id: row.folded for id, row in self.people.items()}
        after |= {one.id: folded(one.columns["name"][1]) for one in self.plan.changed if "name" in one.columns}
        owners = Counter(after.values())
        for one in self.plan.changed:
            if "name" in one.columns and owners[after[one.id]] > 1:
                self.plan.faults.append(Fault(one.line, "name", f"The name {one.columns['name'][1]} is somebody else's."))
        for new in self.plan.added:
            if folded(new.name) in owners:
                self.plan.faults.append(Fault(new.line, "name", f"The name {new.name} is somebody else's."))

    def _an_administrator_stays(self) -> None:
        ends = {one.id: one for one in self.plan.changed if one.columns.get("role", ("", ""))[0] == ADMINISTRATOR}
        before = [id for id, row in self.people.items() if row.role == ADMINISTRATOR and not row.disabled]
        stay = [id for id in before if id not in ends]
        comes = [one for one in self.plan.changed if one.columns.get("role", ("", ""))[1] == ADMINISTRATOR]
        if before and not stay and not [one for one in comes if not self.people[one.id].disabled]:
            for one in ends.values():
                self.plan.faults.append(Fault(one.line, "role", "This is the last administrator."))


def _cleaned(column: str, value: str) -> str:
    """Raises BadInput."""
    if column == "name":
        return clean_name(value)
    if column == "full_name":
        return clean_full_name(value)
    if column == "language" and value and not _LANGUAGE.fullmatch(value):
        raise BadInput(f"There is no language {value[:20]!r}: write a code such as en, es, fr or ar.")
    if column == "external" and (len(value) > LONGEST_EXTERNAL or not value.isprintable()):
        raise BadInput(f"The number is longer than {LONGEST_EXTERNAL} characters, or cannot be printed.")
    return value


def _part(role: str) -> str:
    return TEACHER if role in STAFF else "pupil"


def _write(connection: sa.Connection, plan: Plan, comparison: _Comparison) -> None:
    now = time.time()
    ids = {key: row.id for key, row in comparison.classes.items()}
    for name in plan.new_classes:
        key = class_key(name)
        ids[key] = new_id()
        row = {"id": ids[key], "name": name, "created": now, "external": comparison.new_numbers.get(key, "")}
        connection.execute(sa.insert(classes).values(**row))
    for id, number in plan.numbers.items():
        connection.execute(sa.update(classes).where(classes.c.id == id).values(external=number))
    _write_newcomers(connection, plan, ids, now)
    renamed = [one for one in plan.changed if "name" in one.columns]
    for one in renamed:  # out of each other's way first: two may exchange their names
        connection.execute(sa.update(users).where(users.c.id == one.id).values(name=f"(renamed) {one.id}"))
    for one in plan.changed:
        columns = {name: after for name, (_, after) in one.columns.items()}
        if "name" in columns:
            columns["folded"] = folded(columns["name"])
        this = memberships.c.user == one.id
        if columns:
            connection.execute(sa.update(users).where(users.c.id == one.id).values(**columns))
        if "role" in columns:
            end_everything(connection, one.id)
            connection.execute(sa.update(memberships).where(this).values(role=one.part))
        left = [ids[class_key(name)] for name in one.leaves]
        connection.execute(sa.delete(memberships).where(this, memberships.c.class_id.in_(left)))
        joined = [{"user": one.id, "class_id": ids[class_key(name)], "role": one.part} for name in one.joins]
        if joined:
            connection.execute(sa.insert(memberships), joined)


def _write_newcomers(connection: sa.Connection, plan: Plan, ids: Mapping[str, str], now: float) -> None:
    rows, joined = [], []
    for one in plan.added:
        id = new_id()
        rows.append(
            {"id": id, "name": one.name, "folded": folded(one.name), "role": one.role, "full_name": one.full_name,
             "language": one.language, "external": one.external, "password_hash": NO_PASSWORD, "created": now,
             "preferences": {}}
        )  # fmt: skip
        joined += [{"user": id, "class_id": ids[class_key(name)], "role": _part(one.role)} for name in one.classes]
    if rows:
        connection.execute(sa.insert(users), rows)
    if joined:
        connection.execute(sa.insert(memberships), joined)
