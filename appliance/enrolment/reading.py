"""A CSV file of people, as a spreadsheet saves it, into entries with the lines that they stand in.

Columns in any order: name, full_name, role, classes (separated by semicolons), language, external. A column that is not there
changes nothing. It judges what cannot be read; whether a value can be taken is for `plan`, which knows what is there.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from appliance.accounts import ADMINISTRATOR, PUPIL, SAFEGUARDING, TEACHER
from appliance.enrolment.cells import decode, rows, split_list
from appliance.errors import BadInput
from appliance.tables import folded

MOST_PEOPLE = 20_000
COLUMNS = ("name", "full_name", "role", "classes", "language", "external")
_ALSO = {
    "username": "name", "user_name": "name", "login": "name", "user": "name",
    "fullname": "full_name", "display_name": "full_name", "displayname": "full_name",
    "class": "classes", "groups": "classes", "lang": "language",
    "external_id": "external", "id": "external", "number": "external", "sourcedid": "external",
}  # fmt: skip
ROLE_WORDS = {
    "pupil": PUPIL, "student": PUPIL, "learner": PUPIL, "teacher": TEACHER, "staff": TEACHER,
    "safeguarding": SAFEGUARDING, "safeguarding lead": SAFEGUARDING, "dsl": SAFEGUARDING,
    "administrator": ADMINISTRATOR, "admin": ADMINISTRATOR,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Entry:
    """A person as a file has them. None: the file does not say, so nothing is changed.

    newcomer: the role of somebody who is new, in a file whose roles say nothing about rights here.
    """

    line: int
    name: str
    full_name: str | None = None
    role: str | None = None
    classes: tuple[str, ...] | None = None
    language: str | None = None
    external: str | None = None
    newcomer: str | None = None


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong in a line, one sentence."""

    line: int
    column: str
    message: str


@dataclass(slots=True)
class Roll:
    """What a file holds. `notes`: what its reader should know, a sentence each. `classes`: register's numbers by name."""

    name: str
    entries: list[Entry] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    classes: dict[str, str] = field(default_factory=dict)


def read_csv(data: bytes, name: str) -> Roll:
    """Raises BadInput (no CSV, no column of names), TooLarge; what is wrong with a line is one of the Roll's faults."""
    text, note = decode(data, name, names=True)
    lines = rows(text, name, MOST_PEOPLE)
    roll = Roll(name)
    if note:
        roll.notes.append(note)
    header = [_column(cell) for cell in lines[0][1]] if lines else []
    if "name" not in header:
        raise BadInput(
            f"{name}, line 1: there is no column called name.",
            "Give a first line such as name,full_name,role,classes,language,external.",
        )
    twice = sorted({one for one in header if one in COLUMNS and header.count(one) > 1})
    if twice:
        raise BadInput(f"{name}, line 1: the column {twice[0]} is there twice.", "Take one of them out.")
    unknown = [cell for cell, column in zip(lines[0][1], header, strict=True) if column not in COLUMNS and cell]
    if unknown:
        roll.notes.append(f"These columns are left out: {', '.join(one[:40] for one in unknown[:10])}.")
    for line, cells in lines[1:]:
        _take(roll, line, cells, header)
    refuse_twice(roll)
    return roll


def _column(cell: str) -> str:
    plain = "_".join(cell.strip().casefold().replace("-", " ").split())
    return _ALSO.get(plain, plain)


def _take(roll: Roll, line: int, cells: list[str], header: list[str]) -> None:
    if len(cells) > len(header) and any(cell.strip() for cell in cells[len(header) :]):
        roll.faults.append(Fault(line, "", f"It has {len(cells)} cells; the first line has {len(header)}."))
        return
    value = {column: cells[at] for at, column in enumerate(header) if column in COLUMNS and at < len(cells)}
    if not value.get("name", "").strip():
        roll.faults.append(Fault(line, "name", "The name is empty."))
        return
    role = value.get("role")
    if role is not None and role.strip().casefold() not in ROLE_WORDS:
        said = f"There is no role {role.strip()[:40]!r}." if role.strip() else "The role is empty."
        roll.faults.append(Fault(line, "role", f"{said} Write pupil, teacher, safeguarding or administrator."))
        role = None
    classes = value.get("classes")
    roll.entries.append(
        Entry(
            line, value["name"], value.get("full_name"), ROLE_WORDS[role.strip().casefold()] if role is not None else None,
            tuple(split_list(classes)) if classes is not None else None, value.get("language"), value.get("external"),
        )
    )  # fmt: skip


def refuse_twice(roll: Roll) -> None:
    """A fault for each line whose name or number stands in an earlier one too."""
    seen: dict[tuple[str, str], int] = {}
    for entry in roll.entries:
        for column, value in (("name", folded(entry.name)), ("external", (entry.external or "").strip())):
            if value and (before := seen.setdefault((column, value), entry.line)) != entry.line:
                what = "name" if column == "name" else "number"
                shown = entry.name if column == "name" else value
                roll.faults.append(Fault(entry.line, column, f"The {what} {shown[:64]} stands in line {before} too."))
