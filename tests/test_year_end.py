"""The year's end: what is planned is what is done, all of it or nothing, and the second time there is nothing to do."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.accounts import People
from appliance.classes import Classes
from appliance.db import Database
from appliance.errors import BadInput, Conflict
from appliance.knowledge.shelves import EVERYTHING, Reader, Shelves
from appliance.year_end import carry_out, plan


@pytest.fixture
def school(database: Database) -> dict[str, str]:
    """6B, 7B, 12A and a chess club, each with a teacher and a pupil, and a book for each."""
    classes, people, shelves = Classes(database), People(database), Shelves(database)
    ids = {}
    for name in ("6B", "7B", "12A", "Chess"):
        made = classes.add(name, year="2026", lesson="Today", subject="science", grade=name[:-1], method="socratic")
        people.join(people.add(f"teacher {name}", "teacher")[0].id, made.id, teaches=True)
        people.join(people.add(f"pupil {name}", "pupil")[0].id, made.id)
        book = shelves.create(f"Book {name}", readers=[Reader("class", name)])
        classes.change(made.id, collections=[book.id], external=f"register {name}")
        ids[name] = made.id
    return ids


def told(database: Database) -> dict[str, Any]:
    classes = Classes(database)
    return {
        one.name: (one.id, one.year, one.archived is None, [who.name for who in classes.members(one.id)])
        for one in classes.list(archived=True)
    }


def readers(database: Database) -> dict[str, list[str]]:
    return {one.name: [reader.name for reader in one.readers] for one in Shelves(database).list(EVERYTHING)}


def test_new_classes_have_the_teachers_and_the_books_and_no_pupils(database: Database, school: dict[str, str]) -> None:
    before = told(database), readers(database)
    planned = plan(database, "2027")
    assert (told(database), readers(database)) == before, "a plan changes nothing"
    assert carry_out(database, "2027") == planned
    after, classes = told(database), Classes(database)
    assert after["7B (2026)"] == (school["7B"], "2026", False, ["teacher 7B", "pupil 7B"])
    id, *rest = after["7B"]
    assert id not in school.values() and rest == ["2027", True, ["teacher 7B"]]
    new = classes.get(id)
    assert (new.lesson, new.subject, new.method, new.external) == ("", "science", "socratic", "")
    assert list(classes.collections(id).values()) == ["Book 7B"] and readers(database) == before[1]
    assert {(one.name, one.act, one.pupils) for one in planned} >= {("7B", "renew", 1), ("Chess", "renew", 1)}
    assert carry_out(database, "2027") == []


def test_classes_move_up_with_their_pupils(database: Database, school: dict[str, str]) -> None:
    planned = carry_out(database, "2027", move_up=True, highest=12)
    assert {one.name: (one.act, one.becomes) for one in planned} == {
        "6B": ("move up", "7B"), "7B": ("move up", "8B"), "12A": ("archive", "12A (2026)"), "Chess": ("keep", "Chess"),
    }  # fmt: skip
    after = told(database)
    assert after["7B"] == (school["6B"], "2027", True, ["teacher 6B", "pupil 6B"])
    assert after["8B"] == (school["7B"], "2027", True, ["teacher 7B", "pupil 7B"])
    assert after["12A (2026)"][2] is False and after["Chess"][1:3] == ("2027", True)
    assert readers(database) == {
        "Book 6B": ["7B"], "Book 7B": ["8B"], "Book 12A": ["12A (2026)"], "Book Chess": ["Chess"],
    }  # fmt: skip
    moved = Classes(database).get(school["7B"])
    assert (moved.grade, moved.lesson, moved.external) == ("8", "", "register 7B")
    assert carry_out(database, "2027", move_up=True, highest=12) == []


@pytest.mark.usefixtures("school")
def test_where_two_would_have_one_name_nothing_is_done(database: Database) -> None:
    Classes(database).add("8 b", year="2027")
    before = told(database), readers(database)
    with pytest.raises(Conflict, match="8B"):
        carry_out(database, "2027", move_up=True)
    with pytest.raises(BadInput, match="is no year"):
        carry_out(database, "next")
    assert (told(database), readers(database)) == before
