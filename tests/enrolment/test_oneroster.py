"""OneRoster files: 1.2 and 1.1, from an archive and a folder, and hostile ones."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest

from appliance.accounts import ADMINISTRATOR, PUPIL, TEACHER, People
from appliance.classes import Classes
from appliance.db import Database
from appliance.enrolment import Plan, apply, compare, read, read_oneroster
from appliance.errors import BadInput, TooLarge

USERS = """sourcedId,status,dateLastModified,enabledUser,username,givenName,familyName,identifier,password,preferredGivenName
u1,active,2026-08-01,true,mia.berg,Maria,Berg,100,secret-word,Mia
u2,,,true,noah.lee,Noah,Lee,101,,
u3,active,,true,agreen,Anna,Green,102,,
u4,tobedeleted,,true,gone,Gone,Away,103,,
u5,active,,false,off,Off,Line,104,,
u6,active,,true,parent,Pa,Rent,105,,
u7,active,,true,principal,Prin,Cipal,106,,
u8,active,,true,,Only,Named,,,
"""
CLASSES = """sourcedId,status,dateLastModified,title,grades,courseSourcedId,classCode,classType,subjects
c1,active,,Maths,7,x,7M1,scheduled,maths
c2,active,,Maths,8,x,8M1,scheduled,maths
c3,active,,7b,7,x,,homeroom,
c4,tobedeleted,,Old,7,x,,homeroom,
"""
ENROLLMENTS = """sourcedId,status,dateLastModified,classSourcedId,schoolSourcedId,userSourcedId,role,primary
e1,active,,c1,s,u1,student,
e2,active,,c3,s,u1,student,
e3,active,,c2,s,u2,student,
e4,active,,c1,s,u3,teacher,true
e5,active,,c2,s,u3,teacher,true
e6,active,,c4,s,u1,student,
e7,tobedeleted,,c3,s,u2,student,
e8,active,,c3,s,u8,student,
"""
ROLES = """sourcedId,status,dateLastModified,userSourcedId,roleType,role,orgSourcedId
r1,active,,u1,primary,student,s
r2,active,,u2,primary,student,s
r3,active,,u3,primary,teacher,s
r6,active,,u6,primary,guardian,s
r7,active,,u7,primary,siteAdministrator,s
r8,active,,u8,primary,student,s
"""
FILES = {"users.csv": USERS, "classes.csv": CLASSES, "enrollments.csv": ENROLLMENTS, "roles.csv": ROLES}


def archive(files: dict[str, str], inside: str = "") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as made:
        for name, text in files.items():
            made.writestr(inside + name, text)
    return out.getvalue()


def take(database: Database, data: bytes) -> Plan:
    roll = read(data, "roster.zip")
    return apply(database, roll, compare(database, roll).digest)


def test_a_register_comes_in_and_once_more_changes_nothing(database: Database) -> None:
    plan = take(database, archive(FILES, "export 2026/"))
    found = {one.name: one for one in People(database).list()}
    assert {name: (one.full_name, one.role) for name, one in found.items()} == {
        "mia.berg": ("Mia Berg", PUPIL),
        "noah.lee": ("Noah Lee", PUPIL),
        "agreen": ("Anna Green", TEACHER),
        "principal": ("Prin Cipal", TEACHER),
        "Only Named": ("Only Named", PUPIL),
    }
    assert found["mia.berg"].classes == {"7b": "pupil", "Maths (7M1)": "pupil"} and found["mia.berg"].external == "u1"
    assert found["agreen"].classes == {"Maths (7M1)": "teacher", "Maths (8M1)": "teacher"} and all(
        one.waiting for one in found.values()
    )
    assert {one.name: one.external for one in Classes(database).list()} == {
        "7b": "c3",
        "Maths (7M1)": "c1",
        "Maths (8M1)": "c2",
    }
    assert len(plan.notes) == 3 and any("2 people are left out" in note for note in plan.notes)
    again = take(database, archive(FILES))
    assert again.count == 0 and again.unchanged == 5


def test_from_a_folder_and_of_the_older_release(database: Database, tmp_path: Path) -> None:
    users = (
        USERS.replace("enabledUser,", "enabledUser,role,")
        .replace(",true,", ",true,student,")
        .replace(",false,", ",false,student,")
    )
    for name, text in {"Users.csv": users, "classes.csv": CLASSES, "enrollments.csv": ENROLLMENTS}.items():
        (tmp_path / name).write_text(text)
    roll = read_oneroster(tmp_path)
    assert compare(database, roll).faults == [] and {one.newcomer for one in roll.entries} == {PUPIL}


def test_a_moved_and_renamed_pupil_is_the_same_person(database: Database) -> None:
    take(database, archive(FILES))
    moved = {**FILES, "users.csv": USERS.replace("mia.berg,Maria,Berg", "mia.lee,Maria,Lee"),
             "enrollments.csv": ENROLLMENTS.replace("c3,s,u1", "c2,s,u1"),
             "classes.csv": CLASSES.replace("Maths,8", "Mathematics,8")}  # fmt: skip
    plan = take(database, archive(moved))
    changed = next(one for one in plan.changed if one.name == "mia.berg")
    assert dict(changed.columns) == {"name": ("mia.berg", "mia.lee"), "full_name": ("Mia Berg", "Mia Lee")}
    assert (changed.joins, changed.leaves, plan.new_classes) == (("Maths (8M1)",), ("7b",), [])


def test_a_register_gives_and_takes_no_rights(database: Database) -> None:
    people = People(database)
    head, _ = people.add("principal", ADMINISTRATOR)
    people.add("mia.berg", ADMINISTRATOR)
    roll = read(archive(FILES), "roster.zip")
    assert [fault.message for fault in compare(database, roll).faults] == [
        "mia.berg is a administrator here: it cannot be the same person."
    ]
    people.remove(people.list(search="mia")[0].id)
    take(database, archive(FILES))
    assert people.get(head.id).role == ADMINISTRATOR and people.get(head.id).external == "u7"


def test_a_class_that_is_there_gets_its_number(database: Database) -> None:
    Classes(database).add("7 B")
    plan = take(database, archive(FILES))
    assert list(plan.numbers.values()) == ["c3"]
    assert [one.external for one in Classes(database).list() if one.name == "7 B"] == ["c3"]


def test_what_nothing_says_is_a_fault(database: Database) -> None:
    files = {
        **FILES,
        "roles.csv": ROLES.replace("r8,active,,u8,primary,student,s\n", ""),
        "enrollments.csv": ENROLLMENTS.replace("e8,active,,c3,s,u8,student,\n", ""),
    }
    faults = compare(database, read(archive(files), "roster.zip")).faults
    assert [(fault.line, fault.message) for fault in faults] == [(9, "Nothing says the role.")]


@pytest.mark.parametrize("left_out", ["users.csv", "classes.csv", "enrollments.csv"])
def test_a_missing_file_is_named(left_out: str) -> None:
    with pytest.raises(BadInput, match=left_out):
        read(archive({name: text for name, text in FILES.items() if name != left_out}), "roster.zip")


def test_hostile_archives() -> None:
    good = archive(FILES)
    for data in (good[:-40], good[:200], b"PK\x03\x04", good[:60] + b"\xff" * 40 + good[100:]):
        with pytest.raises(BadInput):
            read(data, "roster.zip")
    with pytest.raises(TooLarge):
        read(archive({f"{number}.csv": "" for number in range(300)}), "roster.zip")
    with pytest.raises(TooLarge):
        read(archive({**FILES, "users.csv": "sourcedId\n" + "x" * 25_000_000}), "roster.zip")
    with pytest.raises(TooLarge):
        read(archive({**FILES, "enrollments.csv": "sourcedId\n" + "x\n" * 200_002}), "roster.zip")
    with pytest.raises(BadInput):
        read(archive({**FILES, "a/users.csv": USERS}), "roster.zip")
    assert read(archive({**FILES, "../../users2.csv": "x", "/etc/passwd": "x"}), "roster.zip").entries


def test_a_nested_name_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = {f"../../{name}": text for name, text in FILES.items()}
    assert read(archive(files), "roster.zip").entries and list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="no such file"):
        read_oneroster(tmp_path / "none")
