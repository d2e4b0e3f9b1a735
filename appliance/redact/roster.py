"""The school's pupils: read from a CSV file, kept in the database, handed out as names to take out of text.

Only used for that: nothing here shows a pupil to anybody.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from appliance.audit import Audit
from appliance.db import Database
from appliance.errors import BadInput, TooLarge, from_os_error
from appliance.redact.names import Name
from appliance.tables import roster

ROSTER_BYTES = 10_000_000
FAULTS_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Pupil:
    """A row of the roster."""

    id: str
    first: str
    last: str
    class_name: str = ""


COLUMNS = {
    "id": ("pupil_id", "pupil", "id", "student_id", "learner_id", "sourcedid", "number"),
    "first": ("first_name", "first", "firstname", "given_name", "givenname", "forename"),
    "last": ("last_name", "last", "lastname", "surname", "family_name", "familyname"),
    "class": ("class", "class_name", "form", "grade", "group"),
}


def read_roster(path: Path) -> list[Pupil]:
    """A CSV file of pupils with a header, columns in any order, split by commas, semicolons or tabs.

    Raises BadInput that names every faulty line.
    """
    lines = _rows(path)
    header = [name.strip().casefold().replace(" ", "_").replace("-", "_") for name in (lines[0][1] if lines else [])]
    places = {field: next((header.index(name) for name in names if name in header), -1) for field, names in COLUMNS.items()}
    missing = [COLUMNS[field][0] for field in ("id", "first", "last") if places[field] < 0]
    if missing:
        raise BadInput(
            f"{path.name}, line 1: there is no column {' or '.join(missing)}.",
            "Give a first line such as pupil_id,first_name,last_name,class.",
        )
    pupils, faults, seen = [], [], dict[str, int]()
    for line, cells in lines[1:]:
        problem, pupil = _pupil(cells, header, places)
        if not problem and pupil.id in seen:
            problem = f"the pupil_id {pupil.id} stands in line {seen[pupil.id]} too."
        seen.setdefault(pupil.id, line)
        pupils.append(pupil)
        faults += [f"{path.name}, line {line}: {problem}"] if problem else []
    if faults:
        more = [f"... and {len(faults) - FAULTS_SHOWN} more."] if len(faults) > FAULTS_SHOWN else []
        shown = "\n  ".join(faults[:FAULTS_SHOWN] + more)
        sentence = faults[0] if len(faults) == 1 else f"{len(faults)} faults in the roster:\n  {shown}"
        raise BadInput(sentence, "Correct the file, then give it again; nothing was changed.")
    if not pupils:
        raise BadInput(f"{path.name} holds no pupils.", "Give a line for each pupil below the first one.")
    return pupils


def _pupil(cells: list[str], header: list[str], places: dict[str, int]) -> tuple[str, Pupil]:
    """What is wrong with a row, if anything, and what it says."""
    values = {field: cells[place].strip() if 0 <= place < len(cells) else "" for field, place in places.items()}
    pupil = Pupil(values["id"], values["first"], values["last"], values["class"])
    if len(cells) > len(header):
        return f"it has {len(cells)} cells where the first line has {len(header)}.", pupil
    for field in ("id", "first", "last"):
        if not values[field]:
            return f"{COLUMNS[field][0]} is empty.", pupil
    for field in ("first", "last"):
        if not any(letter.isalpha() for letter in values[field]) or len(values[field]) > 100:
            return f"{COLUMNS[field][0]} is no name.", pupil
    if not all(value.isprintable() for value in values.values()):
        return "it holds a sign that cannot be printed.", pupil
    return "", pupil


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """Lines with something in them, with their numbers."""
    try:
        if path.stat().st_size > ROSTER_BYTES:
            raise TooLarge(f"{path.name} is larger than {ROSTER_BYTES // 1_000_000} MB.", "Give a file with one line a pupil.")
        data = path.read_bytes()
    except OSError as error:
        raise from_os_error(error, "reading the roster") from None
    wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))  # as a spreadsheet saves "Unicode text"
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise BadInput(f"{path.name}, line {line}: the letters are not UTF-8.", 'Save it as "CSV UTF-8".') from None
    first = text.partition("\n")[0]
    split = max(",;\t", key=first.count)
    reader = csv.reader(text.splitlines(keepends=True), delimiter=split, strict=True)
    try:
        return [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except csv.Error as error:
        raise BadInput(f"{path.name}, line {reader.line_num}: {error}.", "Correct the quotation marks in this line.") from None


def exchange(connection: sa.Connection, pupils: Sequence[Pupil]) -> None:
    """Exchange the whole roster within a transaction of the caller's, who also records it."""
    rows = [
        {"pupil": pupil.id, "first_name": pupil.first, "last_name": pupil.last, "class_name": pupil.class_name}
        for pupil in pupils
    ]
    connection.execute(roster.delete())
    if rows:
        connection.execute(roster.insert(), rows)


class Roster:
    """The pupils of this school, in its database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def replace(self, pupils: Sequence[Pupil], *, actor: str = "") -> None:
        """Exchange the whole roster, in one step; the record says how many there were, not who."""
        with self._database.begin() as connection:
            exchange(connection, pupils)
        Audit(self._database).note("replace", "roster", {"pupils": len(pupils)}, actor=actor)

    def pupils(self) -> list[Pupil]:
        with self._database.read() as connection:
            rows = connection.execute(sa.select(roster).order_by(roster.c.pupil)).all()
        return [Pupil(row.pupil, row.first_name, row.last_name, row.class_name) for row in rows]

    def names(self) -> list[Name]:
        """What a Redactor wants."""
        return [Name(pupil.first, pupil.last, pupil.id) for pupil in self.pupils()]
