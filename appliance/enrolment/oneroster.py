"""OneRoster 1.2 (and 1.1) CSV files - users, classes, enrollments, roles where there are any - into the same Roll.

From a zip archive or a folder. Hides how the standard spreads one person over four files, and what a hostile archive may hold:
only those files are opened, none beyond its limit, whatever the archive says of their size. Passwords in them are not read.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from appliance.accounts import PUPIL, TEACHER
from appliance.enrolment.cells import LARGEST, decode, rows
from appliance.enrolment.reading import MOST_PEOPLE, Entry, Fault, Roll, refuse_twice
from appliance.errors import BadInput, TooLarge, from_os_error

FILES = ("users.csv", "classes.csv", "enrollments.csv", "roles.csv")
NEEDED = FILES[:3]
MOST_MEMBERS = 200
MOST_ENROLLMENTS = 200_000
# What somebody is in the register says nothing about rights here: all who are not pupils begin as teachers.
_ROLES = {"student": PUPIL} | dict.fromkeys(
    ("teacher", "aide", "counselor", "principal", "proctor", "administrator", "siteadministrator", "systemadministrator",
     "districtadministrator"),
    TEACHER,
)  # fmt: skip
_KEPT = frozenset(
    ("sourcedid", "status", "enableduser", "username", "identifier", "givenname", "familyname", "role", "usersourcedid",
     "preferredgivenname", "preferredfamilyname", "preferredfirstname", "preferredlastname", "title", "classcode",
     "classsourcedid")
)  # fmt: skip
_NO_ACCOUNT = frozenset({"parent", "guardian", "relative"})
Rows = list[tuple[int, dict[str, str]]]


def is_oneroster(data: bytes) -> bool:
    return data.startswith(b"PK\x03\x04")


def read_oneroster(source: bytes | Path, name: str = "") -> Roll:
    """Raises BadInput (not such files, or damaged ones), TooLarge."""
    files = _folder(source) if isinstance(source, Path) else _archive(source, name)
    name = name or str(source)
    missing = [one for one in NEEDED if one not in files]
    if missing:
        raise BadInput(f"{name} has no {missing[0]}.", "Export users, classes and enrollments as OneRoster CSV.")
    tables = {one: _table(data, f"{name}, {one}") for one, data in files.items()}
    roll = Roll(name)
    titles = _classes(roll, tables["classes.csv"])
    belongs, parts = _enrollments(tables["enrollments.csv"], titles)
    roles = {row.get("usersourcedid", ""): row.get("role", "") for _, row in tables.get("roles.csv", []) if _active(row)}
    left_out: Counter[str] = Counter()
    for line, row in tables["users.csv"]:
        id = row.get("sourcedid", "")
        told = (row.get("role") or roles.get(id) or parts.get(id, "")).casefold()
        if not _active(row) or row.get("enableduser", "true").casefold() == "false":
            left_out["to be deleted or disabled in the register"] += 1
        elif told in _NO_ACCOUNT:
            left_out["parents and guardians"] += 1
        elif told not in _ROLES:
            roll.faults.append(Fault(line, "role", f"There is no role {told[:40]!r}." if told else "Nothing says the role."))
        else:
            _person(roll, line, row, _ROLES[told], belongs.get(id, []))
    if any(one.newcomer != PUPIL for one in roll.entries):
        roll.notes.append("Staff come as teachers; who is already here keeps the role. Change roles by hand.")
    roll.notes += [f"{count} people are left out: {why}." for why, count in left_out.items()]
    refuse_twice(roll)
    return roll


def _person(roll: Roll, line: int, row: Mapping[str, str], role: str, classes: list[str]) -> None:
    given = row.get("preferredgivenname") or row.get("preferredfirstname") or row.get("givenname", "")
    family = row.get("preferredfamilyname") or row.get("preferredlastname") or row.get("familyname", "")
    full = f"{given} {family}".strip()
    name = row.get("username") or row.get("identifier") or full
    if not name:
        roll.faults.append(Fault(line, "username", "There is neither a user name nor a name."))
        return
    external = row.get("sourcedid", "")
    roll.entries.append(Entry(line, name, full, None, tuple(dict.fromkeys(classes)), None, external or None, role))


def _classes(roll: Roll, table: Rows) -> dict[str, str]:
    """The name of each class by its id. Two of one title are told apart by their code."""
    active = [row for _, row in table if _active(row) and row.get("sourcedid")]
    count = Counter(row.get("title", "").casefold() for row in active)
    titles: dict[str, str] = {}
    for row in active:
        title = row.get("title") or row.get("classcode") or row["sourcedid"]
        if count[row.get("title", "").casefold()] > 1:
            title = f"{title} ({row.get('classcode') or row['sourcedid']})"
        if title in roll.classes:
            title = f"{title} ({row['sourcedid']})"
        titles[row["sourcedid"]] = title
        roll.classes[title] = row["sourcedid"]
    return titles


def _enrollments(table: Rows, titles: Mapping[str, str]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Of each user, the classes and the part that they have most of."""
    belongs: dict[str, list[str]] = {}
    parts: dict[str, str] = {}
    for _, row in table:
        user, title = row.get("usersourcedid", ""), titles.get(row.get("classsourcedid", ""))
        if _active(row) and title is not None:
            belongs.setdefault(user, []).append(title)
            parts.setdefault(user, row.get("role", ""))
    return belongs, parts


def _active(row: Mapping[str, str]) -> bool:
    return row.get("status", "").casefold() != "tobedeleted"


def _table(data: bytes, name: str) -> Rows:
    most = MOST_ENROLLMENTS if name.endswith(("enrollments.csv", "roles.csv")) else MOST_PEOPLE
    lines = rows(decode(data, name, names=True)[0], name, most)
    header = [cell.strip().casefold() for cell in lines[0][1]] if lines else []
    if "sourcedid" not in header:
        raise BadInput(f"{name} has no column sourcedId.", "Export it as OneRoster CSV.")
    kept = [(at, column) for at, column in enumerate(header) if column in _KEPT]
    return [(line, {column: cells[at].strip() for at, column in kept if at < len(cells)}) for line, cells in lines[1:]]


def _folder(path: Path) -> dict[str, bytes]:
    found = {}
    try:
        for child in path.iterdir():
            if child.name.casefold() in FILES and child.is_file():
                with child.open("rb") as file:
                    found[child.name.casefold()] = file.read(LARGEST + 1)
    except OSError as error:
        raise from_os_error(error, "reading the OneRoster files") from None
    return found


def _archive(data: bytes, name: str) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            if len(members) > MOST_MEMBERS:
                raise TooLarge(f"{name} holds {len(members)} files.", "Put the OneRoster files alone into the archive.")
            for member in members:
                base = PurePosixPath(member.filename).name.casefold()
                if base not in FILES or member.is_dir():
                    continue
                if base in found:
                    raise BadInput(f"{name} holds {base} twice.", "Put each file into the archive once.")
                with archive.open(member) as file:
                    found[base] = file.read(LARGEST + 1)  # never more, whatever the archive says of its size
                if len(found[base]) > LARGEST:
                    raise TooLarge(f"{name}: {base} is larger than {LARGEST // 1_000_000} MB.", "Export one year at a time.")
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, ValueError, OSError, zlib.error) as error:
        raise BadInput(
            f"{name} is not an archive that can be read: {error}.", "Make the zip file anew, without a password."
        ) from None
    return found
