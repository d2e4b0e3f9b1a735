"""The library of scenes as people use it: who sees which, versions, approval, the archive, files in and out."""

from __future__ import annotations

import threading
import tomllib
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from appliance.accounts import ADMINISTRATOR, PUPIL, SAFEGUARDING, TEACHER, Accounts, People, User
from appliance.audit import Audit
from appliance.db import Database
from appliance.errors import ApplianceError, BadInput, Conflict, Forbidden, NotFound, NotSignedIn, TooLarge
from appliance.practice import scene_file
from appliance.practice.scenario import Scenario, read, written
from appliance.practice.scenes import Scenes
from appliance.settings import Settings
from appliance.tables.practice import scenarios

WRITTEN = "larger-denominator"


@pytest.fixture
def accounts(database: Database, settings: Settings) -> Accounts:
    return Accounts(database, settings)


@pytest.fixture
def scenes(database: Database, accounts: Accounts) -> Scenes:
    return Scenes(database, accounts, Audit(database))


def person(database: Database, name: str, role: str = TEACHER) -> User:
    made, _ = People(database).add(name, role)
    return User(made.id, made.name, role)


@pytest.fixture
def ann(database: Database) -> User:
    return person(database, "ann")


@pytest.fixture
def ben(database: Database) -> User:
    return person(database, "ben")


@pytest.fixture
def head(database: Database) -> User:
    return person(database, "head", ADMINISTRATOR)


def facts(title: str = "Whispers in the back row", **other: Any) -> dict[str, Any]:
    return {**written()[WRITTEN].as_facts(), "title": title, **other}


def own(scenes: Scenes, user: User, **chosen: Any) -> list[tuple[str, int, str]]:
    found = scenes.list(user, **chosen)
    return [(one.scenario.title, one.scenario.version, one.state) for one in found if one.state != "written"]


# --- who sees what ---------------------------------------------------------------------------------------------------------
def test_pupils_and_strangers_reach_nothing(database: Database, scenes: Scenes, ann: User) -> None:
    pupil = person(database, "pia", PUPIL)
    id = scenes.save(ann, facts()).id
    doors: list[Any] = [
        lambda who: scenes.list(who),
        lambda who: scenes.get(who, WRITTEN),
        lambda who: scenes.find(who, id),
        lambda who: scenes.save(who, facts()),
        lambda who: scenes.approve(who, id),
        lambda who: scenes.archive(who, id),
        lambda who: scenes.export(who, WRITTEN),
        lambda who: scenes.take_in(who, b""),
    ]
    for door in doors:
        with pytest.raises(Forbidden):
            door(pupil)
        with pytest.raises(NotSignedIn):
            door(None)
        with pytest.raises(Forbidden):
            door(replace(ann, scope="chat"))
    assert [one.state for one in scenes.list(ann) if one.scenario.id == id] == ["draft"]


def test_a_draft_is_listed_for_its_maker_and_administrators_and_opened_by_a_colleague_with_its_address(
    database: Database, scenes: Scenes, ann: User, ben: User, head: User
) -> None:
    made = scenes.save(ann, facts())
    assert own(scenes, ann) == own(scenes, head) == [(made.title, 1, "draft")] and own(scenes, ben) == []
    assert scenes.find(ann, made.id).draft and not scenes.find(ann, WRITTEN).draft
    assert scenes.get(ben, made.id) == made
    lead = person(database, "lead", SAFEGUARDING)
    with pytest.raises(NotFound):
        scenes.get(lead, made.id)
    scenes.approve(ben, made.id)
    assert own(scenes, lead) == own(scenes, ben) == [(made.title, 1, "approved")]
    assert scenes.get(lead, made.id).approved_by == "ben"


def test_the_list_is_narrowed_and_what_is_for_every_subject_stays(scenes: Scenes, ann: User) -> None:
    everything = [one.scenario for one in scenes.list(ann)]
    assert {one.id for one in everything} == set(written())
    assert [one.title.casefold() for one in everything] == sorted(one.title.casefold() for one in everything)
    found = [one.scenario for one in scenes.list(ann, category="behaviour", subject="Mathematics")]
    assert {one.subject for one in found} == {"mathematics", ""} and {one.category for one in found} == {"behaviour"}
    assert {one.scenario.phase for one in scenes.list(ann, phase="upper secondary")} == {"upper secondary"}
    assert {one.scenario.grade for one in scenes.list(ann, grade="7")} == {"7"}
    assert not scenes.list(ann, category="weather")


# --- versions --------------------------------------------------------------------------------------------------------------
def test_a_change_is_a_draft_while_the_approved_one_goes_on(scenes: Scenes, ann: User, ben: User) -> None:
    first = scenes.save(ann, facts())
    scenes.approve(ben, first.id)
    second = scenes.save(ann, {**first.as_facts(), "minutes": 20}, first.id)
    assert (second.version, second.minutes, second.approved_by) == (2, 20, "")
    assert own(scenes, ann) == [(first.title, 1, "approved"), (first.title, 2, "draft")]
    assert own(scenes, ben) == [(first.title, 1, "approved")]
    assert scenes.get(ann, first.id).minutes == first.minutes, "what is rehearsed is what was approved"
    scenes.approve(ben, first.id, version=2)
    assert own(scenes, ann) == [(first.title, 2, "approved")] and scenes.get(ann, first.id).minutes == 20
    assert scenes.get(ann, first.id, 1) == replace(first, approved_by="ben"), "a rehearsal may name it"
    for version in (0, 3):
        with pytest.raises(NotFound):
            scenes.get(ann, first.id, version)


def test_two_editors_notice_each_other(database: Database, scenes: Scenes, ann: User, head: User) -> None:
    made = scenes.save(ann, facts())
    scenes.save(head, facts("Changed by the head"), made.id, version=1)
    with pytest.raises(Conflict, match="meanwhile"):
        scenes.save(ann, facts("Changed by ann"), made.id, version=1)
    assert scenes.get(ann, made.id).title == "Changed by the head" and scenes.find(head, made.id).author == ann.id
    wins: list[int] = []

    def edit(number: int) -> None:
        try:
            scenes.save(ann, facts(f"By thread {number}"), made.id, version=2)
            wins.append(number)
        except Conflict:
            pass

    threads = [threading.Thread(target=edit, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 1 and scenes.get(ann, made.id).title == f"By thread {wins[0]}"
    with database.read() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(scenarios)) == 3


def test_only_ones_own_scenes_are_changed(scenes: Scenes, ann: User, ben: User) -> None:
    made = scenes.save(ann, facts())
    for change in (lambda: scenes.save(ben, facts(), made.id), lambda: scenes.archive(ben, made.id)):
        with pytest.raises(Forbidden, match="maker"):
            change()
    for change in (lambda: scenes.save(ann, facts(), WRITTEN), lambda: scenes.archive(ann, WRITTEN)):
        with pytest.raises(Forbidden, match="stays as it is"):
            change()
    for change in (lambda: scenes.save(ann, facts(), "nothing"), lambda: scenes.archive(ann, "nothing")):
        with pytest.raises(NotFound):
            change()
    with pytest.raises(NotFound, match="another release"):
        scenes.get(ann, WRITTEN, 99)


def test_nothing_of_a_faulty_scene_is_kept_and_every_fault_is_told(scenes: Scenes, ann: User) -> None:
    with pytest.raises(BadInput) as caught:
        scenes.save(ann, facts("A title", minutes=0, rubric=[]))
    assert "'A title'" in caught.value.message and "minutes" in caught.value.message and "rubric" in caught.value.message
    with pytest.raises(TooLarge):
        scenes.save(ann, facts(objectives=["x" * 399] * 200))
    for impossible in ({"title": "\ud800"}, {"title": {1, 2}}):
        with pytest.raises(BadInput):
            scenes.save(ann, facts(**impossible))
    assert own(scenes, ann) == []


def test_a_scene_that_this_release_cannot_read_spoils_no_list(database: Database, scenes: Scenes, ann: User) -> None:
    made = scenes.save(ann, facts())
    with database.begin() as connection:
        connection.execute(sa.update(scenarios).values(facts={"title": "from another time"}))
    assert own(scenes, ann) == [] and len(scenes.list(ann)) == len(written())
    with pytest.raises(BadInput, match="cannot be used"):
        scenes.get(ann, made.id)


# --- approval and archive --------------------------------------------------------------------------------------------------
def test_a_teacher_has_a_scene_approved_by_somebody_else(
    database: Database, scenes: Scenes, ann: User, ben: User, head: User
) -> None:
    made = scenes.save(ann, {**facts(), "approved_by": "ann herself"})
    assert made.approved_by == ""
    with pytest.raises(Forbidden, match="somebody else"):
        scenes.approve(ann, made.id)
    with pytest.raises(Forbidden):
        scenes.approve(person(database, "lead", SAFEGUARDING), made.id)
    scenes.save(ann, facts(), made.id, version=1)
    with pytest.raises(Conflict, match="changed after"):
        scenes.approve(ben, made.id, version=1)
    assert scenes.approve(ben, made.id, version=2).approved_by == "ben"
    for again in (made.id, WRITTEN):
        with pytest.raises(Conflict, match="approved"):
            scenes.approve(head, again)
    with pytest.raises(NotFound):
        scenes.approve(head, "nothing")
    alone = scenes.save(head, facts("Of the head"))
    assert scenes.approve(head, alone.id).approved_by == "head", "a school may have nobody else"


def test_what_is_archived_is_out_of_the_way_and_can_still_be_read(scenes: Scenes, ann: User, ben: User) -> None:
    made = scenes.save(ann, facts())
    scenes.approve(ben, made.id)
    scenes.save(ann, facts(), made.id, version=1)
    scenes.archive(ann, made.id)
    assert own(scenes, ann) == [] and own(scenes, ann, archived=True) == [(made.title, 2, "archived")]
    assert own(scenes, ben, archived=True) == []
    assert scenes.get(ben, made.id, 1).title == made.title, "a rehearsal may name it"
    with pytest.raises(NotFound):
        scenes.get(ben, made.id)
    for change in (
        lambda: scenes.save(ann, facts(), made.id, version=2),
        lambda: scenes.approve(ben, made.id),
        lambda: scenes.archive(ann, made.id),
    ):
        with pytest.raises(Conflict, match="archive"):
            change()
    scenes.archive(ann, made.id, on=False)
    assert own(scenes, ann) == [(made.title, 1, "approved"), (made.title, 2, "draft")]


def test_the_record_says_who_did_what_and_no_word_of_it(
    database: Database, scenes: Scenes, accounts: Accounts, ann: User, ben: User
) -> None:
    made = scenes.save(ann, facts("Quorn cries at the back"))
    scenes.save(ann, facts("Quorn"), made.id, version=1)
    scenes.approve(ben, made.id)
    scenes.archive(ann, made.id)
    scenes.archive(accounts.local_administrator(), made.id, on=False)
    entries = Audit(database).entries(thing=made.id)
    assert [(one.verb, one.actor) for one in entries[:-1]] == [
        ("create scenario", ann.id), ("change scenario", ann.id), ("approve scenario", ben.id), ("archive scenario", ann.id),
    ]  # fmt: skip
    assert entries[-1].verb == "restore scenario" and entries[-1].actor not in ("", ann.id)
    assert "Quorn" not in str(entries) and entries[1].facts == {"version": 2, "generated": False}


# --- files -----------------------------------------------------------------------------------------------------------------
def plain(scenario: Scenario) -> Scenario:
    return replace(scenario, id="", version=1, approved_by="")


@pytest.mark.parametrize("id", sorted(written()))
def test_every_scene_comes_back_from_its_file_as_it_was(id: str) -> None:
    scene = written()[id]
    assert read(scene_file.read(scene_file.write(scene).encode(), "x"), id) == scene


def test_an_exported_scene_is_imported_as_a_draft_with_the_same_words(scenes: Scenes, ann: User, ben: User) -> None:
    odd = 'Tabs\tand "quotes", \\ backslashes\nlines # and é, 数, \U0001f600'
    made = scenes.save(ann, facts("Odd", setting=odd, events=[{"pupil": "Joon", "when": "mood", "below": -1, "line": odd}]))
    scenes.approve(ben, made.id)
    text = scenes.export(ben, made.id)
    assert tomllib.loads(text)["setting"] == odd
    again = scenes.take_in(ben, text.encode())
    assert again.id != made.id and plain(again) == plain(made) and scenes.find(ben, again.id).draft
    windows = scenes.take_in(ben, b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert plain(windows) == plain(made)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"title = ", "no scene in TOML"),
        (b"\xff\xfe\x00", "UTF-8"),
        (b"title = 'Only this'", "pupils is missing"),
        (b"x = " + b"[" * 5000, "TOML"),
        (b"# " + b"x" * scene_file.LARGEST, "bytes"),
        (b"", "title is missing"),
    ],
)
def test_a_file_that_is_no_scene_gets_a_sentence_and_a_next_step(scenes: Scenes, ann: User, data: bytes, said: str) -> None:
    with pytest.raises(ApplianceError, match=said) as caught:
        scenes.take_in(ann, data, "my.toml")
    assert "my.toml" in caught.value.message and caught.value.hint
    assert own(scenes, ann) == []


def test_a_date_or_a_foreign_part_in_a_file_does_no_harm(scenes: Scenes, ann: User) -> None:
    text = scenes.export(ann, WRITTEN)
    with pytest.raises(BadInput):
        scenes.take_in(ann, b"when = 2027-01-01\n" + text.encode())
    made = scenes.take_in(ann, b"maker = 'somebody'\nid = '../../x'\n" + text.encode())
    assert "/" not in made.id and "maker" not in scenes.export(ann, made.id)
