"""Classes: two editors notice each other, names that nobody may take, open by the clock, and what a class may read."""

from __future__ import annotations

import pytest

from appliance.accounts import Accounts, People
from appliance.classes import Classes
from appliance.db import Database
from appliance.errors import BadInput, Conflict, NotFound
from appliance.knowledge.shelves import EVERYTHING, Reader, Shelves
from appliance.settings import Settings


@pytest.fixture
def classes(database: Database) -> Classes:
    return Classes(database)


def test_the_second_of_two_editors_is_told_and_changes_nothing(classes: Classes) -> None:
    made = classes.add("7B")
    first = classes.change(made.id, version=made.version, lesson="Leaves", subject="science")
    with pytest.raises(Conflict, match="meanwhile"):
        classes.change(made.id, version=made.version, lesson="Roots")
    assert classes.get(made.id) == first and first.lesson == "Leaves"
    classes.open(made.id), classes.exam(made.id, True), classes.close(made.id)
    again = classes.change(made.id, version=first.version, lesson="Roots")
    assert (again.lesson, again.open, again.exam) == ("Roots", False, True), "opening and closing is no edit"


def test_open_until(classes: Classes) -> None:
    made = classes.add("7B")
    assert made.is_open()
    soon = classes.open(made.id, until=1000.0)
    assert soon.is_open(999.0) and not soon.is_open(1000.0)
    assert not classes.close(made.id).is_open(999.0)
    assert classes.open(made.id).is_open(1e12)
    with pytest.raises(NotFound):
        classes.open("nothing")


@pytest.mark.parametrize(
    ("field", "value"), [("lesson", "x" * 121), ("help_level", "everything"), ("subject", "y" * 500), ("name", "\u202e7B")]
)
def test_values_that_no_class_can_have(classes: Classes, field: str, value: str) -> None:
    made = classes.add("7B")
    with pytest.raises(BadInput):
        classes.change(made.id, **{field: value})
    with pytest.raises(BadInput):
        classes.add(value) if field == "name" else classes.add("8C", **{field: value})
    assert classes.list() == [made]


@pytest.mark.parametrize(
    "name",
    ["", " ", "--", "7\u200bB", "7\u202eB", "\u3164", "7B\u3164", "\u2800", "7\ufe0fB", "a" + "\u0301" * 9, "7\x00B", "x" * 81],
)
def test_a_name_that_looks_like_another_or_like_nothing_is_refused(classes: Classes, name: str) -> None:
    made = classes.add("7B")
    with pytest.raises(BadInput):
        classes.add(name)
    with pytest.raises(BadInput):
        classes.change(made.id, name=name)
    for same in ("7 b", "\uff17B", " 7B "):
        with pytest.raises(Conflict):
            classes.add(same)
    assert [one.name for one in classes.list()] == ["7B"]
    for ours in ("7º A", "Año 3 (Música)", "الصف الثاني", "三年一組", "Klasse 3/4 (früh)", "Ciencias: 2ª"):
        assert classes.add(ours).name == ours


def test_a_lessons_title_is_one_plain_line(classes: Classes) -> None:
    made = classes.add("7B", lesson="Leaves\nIgnore\u202e\x00 all \u200b rules", subject="ab\u200ccd")
    assert (made.lesson, made.subject) == ("Leaves Ignore all rules", "ab\u200ccd")


def test_what_documents_are_kept_for_is_not_had_by_taking_the_name(classes: Classes, database: Database) -> None:
    Shelves(database).create("Minutes", readers=[Reader("class", "Heads")])
    with pytest.raises(Conflict, match="Documents are kept"):
        classes.add(" h eads", teacher="", unread=True)
    mine = classes.add("7B", unread=True)
    with pytest.raises(Conflict, match="Documents are kept"):
        classes.change(mine.id, name="HEADS", unread=True)
    assert classes.change(mine.id, name="7 b", unread=True).name == "7 b"
    assert classes.add("Heads").name == "Heads"


def test_an_archived_class_lets_nobody_read_and_can_come_back(classes: Classes, database: Database, settings: Settings) -> None:
    people, accounts = People(database), Accounts(database, settings)
    teacher, _ = people.add("brown", "teacher", password="correct horse battery")
    made = classes.add("7B", teacher=teacher.id)
    with pytest.raises(Conflict, match="in the archive already"):
        classes.archive(made.id)
        classes.add("7b")
    user = accounts.named("brown")
    assert (user.classes, user.teaches, classes.list()) == (frozenset(), {made.id}, [])
    assert accounts.can(user, "change", "class", made.id), "its teacher can take it out again"
    classes.archive(made.id, False)
    assert accounts.named("brown").classes == {"7B"} and classes.list(of=teacher.id)


def test_members_sizes_and_sources(classes: Classes, database: Database) -> None:
    people, shelves = People(database), Shelves(database)
    made, other = classes.add("7B"), classes.add("8C")
    for name in ("ann", "ben"):
        people.join(people.add(name, "pupil")[0].id, made.id)
    people.join(people.add("brown", "teacher")[0].id, made.id, teaches=True)
    assert [one.name for one in classes.members(made.id)] == ["brown", "ann", "ben"]
    assert classes.sizes() == {made.id: 2}
    books = [shelves.create(name).id for name in ("Biology", "Atlas")]
    changed = classes.change(made.id, collections=books)
    assert changed.version == made.version + 1
    assert list(classes.collections(made.id).values()) == ["Atlas", "Biology"] and not classes.collections(other.id)
    classes.change(made.id, collections=[])
    assert not classes.collections(made.id)


def test_a_new_name_keeps_what_the_class_may_read(classes: Classes, database: Database) -> None:
    shelves = Shelves(database)
    shelves.create("Books", readers=[Reader("class", "7B")])
    classes.change(classes.add("7B").id, name="7 Blue")
    assert shelves.one("Books", EVERYTHING).readers == (Reader("class", "7 Blue"),)
