"""The school's curriculum standards: a list from a spreadsheet, what is tagged with them, and how much there is for each.

The file is a CSV with the columns code, subject, grade and text, in any order, encoding and separator that a spreadsheet saves.
It is taken whole or not at all: each fault is told with its line. What is not in a newer file stays, since other things may be
tagged with it, unless it is to be replaced. Classes, examples and scenes can be tagged; a scene's own list of codes counts as
well. Hides the tables and CSV. Work is blocking; async callers use a thread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import sqlalchemy as sa

from appliance.accounts.policy import LOCAL
from appliance.enrolment.cells import decode, rows, write
from appliance.enrolment.reading import Fault
from appliance.errors import BadInput, NotFound
from appliance.practice.scenario import written
from appliance.tables import classes, examples
from appliance.tables.practice import rehearsals, scenarios, standard_tags, standards

if TYPE_CHECKING:
    from appliance.accounts import Accounts, User
    from appliance.audit import Audit
    from appliance.db import Database

MOST = 10_000
COLUMNS = ("code", "subject", "grade", "text")
LONGEST: Mapping[str, int] = {"code": 60, "subject": 120, "grade": 120, "text": 2_000}
KINDS = ("class", "example", "scenario")
_ALSO = {
    "id": "code", "standard": "code", "number": "code", "description": "text", "statement": "text", "title": "text",
    "level": "grade", "year": "grade", "area": "subject",
}  # fmt: skip
HINT = "Give a first line such as code,subject,grade,text."


@dataclass(frozen=True, slots=True)
class Standard:
    code: str
    text: str
    subject: str = ""
    grade: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a file holds and what it changes; with a fault nothing is changed. `gone`: codes that are not in the file."""

    found: Sequence[Standard]
    new: Sequence[str] = ()
    changed: Sequence[str] = ()
    gone: Sequence[str] = ()
    faults: Sequence[Fault] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Count:
    """How much there is for a standard. `rehearsals`: begun in one of its scenes."""

    standard: Standard
    classes: int = 0
    examples: int = 0
    scenarios: int = 0
    rehearsals: int = 0


@dataclass(slots=True)
class _File:
    standards: list[Standard] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Standards:
    def __init__(self, database: Database, accounts: Accounts, audit: Audit) -> None:
        self._database = database
        self._accounts = accounts
        self._audit = audit

    def take(self, user: User, data: bytes, name: str, *, dry_run: bool = False, replace: bool = False) -> Outcome:
        """Take a file's standards in, or with `dry_run` or a fault only say what it would change.

        replace: what is not in the file goes, with its tags. Raises Forbidden; BadInput and TooLarge for what is no such file.
        """
        self._accounts.require(user, "change", "standard")
        file = read_csv(data, name)
        with self._database.begin() as connection:
            before = {one.code: one for one in _all(connection)}
            codes = {one.code for one in file.standards}
            changed = [one.code for one in file.standards if one.code in before and one != before[one.code]]
            new = [one.code for one in file.standards if one.code not in before]
            gone = [code for code in before if code not in codes]
            if not dry_run and not file.faults:
                self._store(connection, file.standards, gone, replace)
        if not dry_run and not file.faults:
            facts = {"new": len(new), "changed": len(changed), "removed": len(gone) if replace else 0}
            self._audit.note("import standards", "standards", facts, actor="" if user.role == LOCAL else user.id)
        return Outcome(file.standards, new, changed, gone, file.faults, file.notes)

    @staticmethod
    def _store(connection: sa.Connection, found: Sequence[Standard], gone: Sequence[str], replace: bool) -> None:
        kept = {row.id for row in connection.execute(sa.select(standards.c.id))}
        last = len(found)
        for place, one in enumerate(found):
            values = {"subject": one.subject, "grade": one.grade, "text": one.text, "place": place}
            if one.code in kept:
                connection.execute(sa.update(standards).where(standards.c.id == one.code).values(**values))
            else:
                connection.execute(sa.insert(standards).values(id=one.code, **values))
        for place, code in enumerate(gone):
            here = standards.c.id == code
            away = sa.delete(standards).where(here) if replace else sa.update(standards).where(here).values(place=last + place)
            connection.execute(away)

    def list(self, user: User, *, subject: str = "", grade: str = "") -> Sequence[Standard]:
        """In the order of their file. Raises Forbidden."""
        self._accounts.require(user, "read", "standard")
        with self._database.read() as connection:
            found = _all(connection)
        return [one for one in found if _same(subject, one.subject) and _same(grade, one.grade)]

    def export(self, user: User) -> str:
        """The list as a CSV that `take` reads back without a change. Raises Forbidden."""
        found = self.list(user)
        return write([COLUMNS, *((one.code, one.subject, one.grade, one.text) for one in found)])

    # --- tags -------------------------------------------------------------------------------------------------------------
    def tag(self, user: User, code: str, kind: str, thing: str) -> None:
        """Say that a class, an example or a scene is about a standard; once more changes nothing.

        `thing`: its id. Raises Forbidden where the user may not change that thing, NotFound, BadInput.
        """
        self._require(user, kind, thing)
        row = {"standard": code, "kind": kind, "thing": thing}
        with self._database.begin() as connection:
            if connection.scalar(sa.select(standards.c.id).where(standards.c.id == code)) is None:
                hint = "`appliance standards list` shows them all."
                raise NotFound(f"There is no standard {code[:60]!r}.", hint)
            if not _there(connection, kind, thing):
                raise NotFound(f"There is no such {kind} here.", "It may have been removed.")
            if connection.execute(_tags(row)).first() is None:
                connection.execute(sa.insert(standard_tags).values(**row))

    def untag(self, user: User, code: str, kind: str, thing: str) -> None:
        """Take it back; where there is none nothing changes. Raises as `tag` does."""
        self._require(user, kind, thing)
        this = [column == value for column, value in zip(standard_tags.c, (code, kind, thing), strict=True)]
        with self._database.begin() as connection:
            connection.execute(sa.delete(standard_tags).where(*this))

    def tags(self, user: User, kind: str, thing: str) -> Sequence[str]:
        """The codes that a thing is tagged with. Raises Forbidden."""
        self._accounts.require(user, "read", "standard")
        here = sa.and_(standard_tags.c.kind == kind, standard_tags.c.thing == thing)
        chosen = sa.select(standard_tags.c.standard).join(standards, standards.c.id == standard_tags.c.standard).where(here)
        with self._database.read() as connection:
            return list(connection.scalars(chosen.order_by(standards.c.place)))

    def known(self, user: User, codes: Iterable[str]) -> Sequence[Standard]:
        """These, in the order of the list; behind them those that are not in it, by their codes alone. Raises Forbidden."""
        wanted = set(codes)
        found = [one for one in self.list(user) if one.code in wanted]
        return found + [Standard(code, "") for code in sorted(wanted - {one.code for one in found})]

    def of_scenes(self, user: User) -> Mapping[str, frozenset[str]]:
        """The codes of each scene: those that stand in it, and those it is tagged with. Raises Forbidden."""
        self._accounts.require(user, "read", "standard")
        with self._database.read() as connection:
            tagged = _scene_tags(connection)
        found: dict[str, set[str]] = {}
        for code, _, scene in tagged:
            found.setdefault(scene, set()).add(code)
        return {scene: frozenset(codes) for scene, codes in found.items()}

    def among(self, user: User, ids: Iterable[str]) -> Mapping[str, int]:
        """How many of these examples are about each standard, in the order of the list. Raises Forbidden."""
        self._accounts.require(user, "read", "standard")
        wanted = set(ids)
        chosen = sa.select(standard_tags).join(standards, standards.c.id == standard_tags.c.standard)
        with self._database.read() as connection:
            rows = connection.execute(chosen.where(standard_tags.c.kind == "example").order_by(standards.c.place)).all()
        return Counter(row.standard for row in rows if row.thing in wanted)

    def counts(self, user: User) -> Sequence[Count]:
        """What there is for each standard, also for those with nothing. Raises Forbidden."""
        self._accounts.require(user, "read", "standard")
        with self._database.read() as connection:
            found = _all(connection)
            tagged = {(row.standard, row.kind, row.thing) for row in connection.execute(sa.select(standard_tags))}
            tagged |= _scene_tags(connection)
            begun = Counter(connection.scalars(sa.select(rehearsals.c.scenario)))
        kinds = Counter((code, kind) for code, kind, _ in tagged)
        practised: Counter[str] = Counter()
        for code, kind, thing in tagged:
            practised[code] += begun[thing] if kind == "scenario" else 0
        return [
            Count(
                one, kinds[one.code, "class"], kinds[one.code, "example"], kinds[one.code, "scenario"], practised[one.code]
            )
            for one in found
        ]  # fmt: skip

    def _require(self, user: User, kind: str, thing: str) -> None:
        if kind == "class":
            self._accounts.require(user, "change", "class", owner=thing)
        elif kind == "example":
            self._accounts.require(user, "review", "example")
        elif kind == "scenario":
            self._accounts.require(user, "practise", "lesson")
        else:
            raise BadInput(f"{kind[:40]!r} cannot be tagged.", f"Take one of {', '.join(KINDS)}.")


def read_csv(data: bytes, name: str) -> _File:
    """Raises BadInput (no CSV, no column of codes or texts), TooLarge; what is wrong with a line is a fault of the file."""
    text, note = decode(data, name)
    lines = rows(text, name, MOST)
    file = _File()
    if note:
        file.notes.append(note)
    header = [_column(cell) for cell in lines[0][1]] if lines else []
    for needed in ("code", "text"):
        if header.count(needed) != 1:
            many = "no column" if needed not in header else "more than one column"
            raise BadInput(f"{name}, line 1: there is {many} called {needed}.", HINT)
    unknown = [cell[:40] for cell, column in zip(lines[0][1], header, strict=True) if column not in COLUMNS and cell]
    if unknown:
        file.notes.append(f"These columns are left out: {', '.join(unknown[:10])}.")
    seen: dict[str, int] = {}
    for line, cells in lines[1:]:
        value = dict.fromkeys(COLUMNS, "") | {name: " ".join(cell.split()) for name, cell in zip(header, cells, strict=False)}
        faults = [Fault(line, column, told) for column in COLUMNS if (told := _fault(column, value[column]))]
        if len(cells) > len(header) and any(cell.strip() for cell in cells[len(header) :]):
            faults.append(Fault(line, "", f"It has {len(cells)} cells; the first line has {len(header)}."))
        if value["code"] and (before := seen.setdefault(value["code"].casefold(), line)) != line:
            faults.append(Fault(line, "code", f"The code {value['code'][:60]} stands in line {before} too."))
        file.faults += faults
        file.standards.append(Standard(value["code"], value["text"], value["subject"], value["grade"]))
    if not file.standards:
        file.faults.append(Fault(1, "", "There is no standard below the first line."))
    return file


def _fault(column: str, value: str) -> str:
    if column in ("code", "text") and not value:
        return f"The {column} is empty."
    if len(value) > LONGEST[column]:
        return f"The {column} has {len(value)} characters; {LONGEST[column]} fit."
    return "" if all(one.isprintable() or one in "\u200c\u200d" for one in value) else f"The {column} holds what is no text."


def _column(cell: str) -> str:
    plain = "_".join(cell.strip().casefold().split())
    return _ALSO.get(plain, plain)


def _same(wanted: str, value: str) -> bool:
    return not wanted or " ".join(wanted.casefold().split()) == " ".join(value.casefold().split())


def _all(connection: sa.Connection) -> list[Standard]:
    found = connection.execute(sa.select(standards).order_by(standards.c.place, standards.c.id))
    return [Standard(row.id, row.text, row.subject, row.grade) for row in found]


def _tags(row: Mapping[str, str]) -> sa.Select[tuple[str]]:
    return sa.select(standard_tags.c.standard).where(*(standard_tags.c[name] == value for name, value in row.items()))


def _scene_tags(connection: sa.Connection) -> set[tuple[str, str, str]]:
    """(code, "scenario", id) of every scene's own codes and of its tags."""
    rows = connection.execute(sa.select(standard_tags).where(standard_tags.c.kind == "scenario"))
    found = {(row.standard, row.kind, row.thing) for row in rows}
    own = [(row.id, row.facts.get("standards", ())) for row in connection.execute(_newest_scenes())]
    named = [(id, one.standards) for id, one in written().items()] + own
    return found | {(code, "scenario", id) for id, codes in named for code in codes}


def _newest_scenes() -> sa.Select[tuple[str, dict[str, object]]]:
    """The school's own scenes, of each the newest version that is not in the archive."""
    newest = sa.select(scenarios.c.id, sa.func.max(scenarios.c.version).label("version")).where(scenarios.c.state != "archived")
    last = newest.group_by(scenarios.c.id).subquery()
    here = sa.and_(scenarios.c.id == last.c.id, scenarios.c.version == last.c.version)
    return sa.select(scenarios.c.id, scenarios.c.facts).join(last, here)


def _there(connection: sa.Connection, kind: str, thing: str) -> bool:
    table = {"class": classes, "example": examples, "scenario": scenarios}[kind]
    found = connection.scalar(sa.select(table.c.id).where(table.c.id == thing).limit(1)) is not None
    return found or (kind == "scenario" and thing in written())
