"""Rehearsed lessons on a real database: nothing said is lost, nobody else reads, and time, tabs and restarts do no harm."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from appliance.accounts import Accounts, People, User
from appliance.audit import Audit
from appliance.db import Database
from appliance.errors import BadInput, Conflict, Forbidden, NotFound, TooLarge
from appliance.practice import portfolio, progress
from appliance.practice.lesson import Rehearsal
from appliance.practice.mentors import SOURCE, Mentors
from appliance.practice.rehearsals import LONGEST_TURN, Rehearsals
from appliance.practice.scenes import Scenes
from appliance.settings import Settings
from appliance.tables import audit, examples, mentor_notes, rehearsal_turns, rehearsals
from appliance.tuning.giving import Giving

SCENE = "larger-denominator"
ASKS = "What do you think is more, a third or a fifth? How do you know?"
TELLS = "A third is more. That is the rule."


class School:
    def __init__(self, database: Database, settings: Settings) -> None:
        self.database = database
        self.audit = Audit(database)
        self.accounts = Accounts(database, settings, audit=self.audit)
        self.people = People(database)
        giving = Giving(database)
        self.mentors = Mentors(database, self.accounts, self.audit, giving.keep, giving.take_back)
        self.scenes = Scenes(database, self.accounts, self.audit)
        self.kept = self.another()

    def another(self) -> Rehearsals:
        """The part anew, as after a restart."""
        return Rehearsals(self.database, self.accounts, self.scenes, self.mentors)

    def user(self, name: str, role: str = "teacher") -> User:
        self.people.add(name, role, password="correct horse battery")
        return self.accounts.named(name)

    def rows(self, table: sa.Table) -> list[Any]:
        with self.database.read() as connection:
            return list(connection.execute(sa.select(table)))

    def set(self, id: str, **columns: Any) -> None:
        with self.database.begin() as connection:
            connection.execute(sa.update(rehearsals).where(rehearsals.c.id == id).values(**columns))


@pytest.fixture
def school(database: Database, settings: Settings) -> School:
    return School(database, settings)


@pytest.fixture
def brown(school: School) -> User:
    return school.user("brown")


def said(found: Rehearsal) -> list[str]:
    return [turn.exchange.said for turn in found.turns]


async def rehearsed(school: School, user: User, *words: str) -> str:
    """The id of a finished lesson in which this was said."""
    id = school.kept.begin(user, SCENE, seed=7)
    for one in words:
        await school.kept.say(user, id, one)
    school.kept.finish(user, id)
    return id


# --- a lesson ------------------------------------------------------------------------------------------------------------
async def test_pupils_answer_what_is_said_and_the_same_seed_gives_the_same_lesson(school: School, brown: User) -> None:
    lessons = []
    for _ in range(2):
        id = school.kept.begin(brown, SCENE, seed=7)
        await school.kept.say(brown, id, ASKS, shown="", waited=4.0)
        lessons.append(await school.kept.say(brown, id, "Tell me more about that."))
    one, two = lessons
    assert said(one) == [ASKS, "Tell me more about that."]
    assert all(turn.exchange.beats and turn.exchange.moves for turn in one.turns[:1])
    assert [turn.exchange.beats for turn in one.turns] == [turn.exchange.beats for turn in two.turns]
    assert one.room == two.room and one.room.turn == 2
    assert one.turns[0].exchange.waited == 4.0 and one.turns[1].exchange.waited is None
    assert all(beat.said for turn in one.turns for beat in turn.exchange.beats)
    assert one.until - one.created == 2 * 60 * one.scenario.minutes


@pytest.mark.parametrize(
    ("words", "fault"), [("  \n\x00 ", BadInput), ("x" * (LONGEST_TURN + 1), TooLarge), ("\ud800", BadInput)]
)
async def test_nothing_and_too_much_are_refused_and_change_nothing(
    school: School, brown: User, words: str, fault: type[Exception]
) -> None:
    id = school.kept.begin(brown, SCENE)
    with pytest.raises(fault):
        await school.kept.say(brown, id, words)
    assert school.kept.load(brown, id).turns == ()


@pytest.mark.parametrize("waited", [-1.0, 1e9, float("nan")])
async def test_a_silence_that_cannot_be_is_not_known(school: School, brown: User, waited: float) -> None:
    id = school.kept.begin(brown, SCENE)
    found = await school.kept.say(brown, id, ASKS, waited=waited)
    assert found.turns[0].exchange.waited is None


async def test_of_two_tabs_the_second_is_told_and_nothing_is_said_twice(school: School, brown: User) -> None:
    id = school.kept.begin(brown, SCENE)
    first = await school.kept.say(brown, id, ASKS, shown="")
    with pytest.raises(Conflict, match="another tab"):
        await school.kept.say(brown, id, TELLS, shown="")
    assert said(school.kept.load(brown, id)) == [ASKS]
    results = await asyncio.gather(
        *(school.kept.say(brown, id, words, shown=first.leaf) for words in ("One?", "Two?")), return_exceptions=True
    )
    assert sorted(type(one).__name__ for one in results) == ["Conflict", "Rehearsal"]
    assert len(school.kept.load(brown, id).turns) == 2


async def test_words_are_on_disk_before_pupils_answer_and_a_restart_goes_on_at_the_same_turn(
    school: School, brown: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = school.kept.begin(brown, SCENE, seed=3)
    expected = await school.kept.say(brown, whole, ASKS)

    def dies(_turn: str) -> Any:
        raise KeyboardInterrupt

    id = school.kept.begin(brown, SCENE, seed=3)
    monkeypatch.setattr(school.kept, "_let_answer", dies)
    with pytest.raises(KeyboardInterrupt):
        await school.kept.say(brown, id, ASKS)
    (row,) = [one for one in school.rows(rehearsal_turns) if one.rehearsal == id]
    assert row.facts["said"] == ASKS and row.facts["open"] and not row.facts["beats"]
    found = school.another().load(brown, id)
    assert found.turns[0].exchange == expected.turns[0].exchange and found.room == expected.room
    again = await school.another().say(brown, id, TELLS, shown=found.leaf)
    assert said(again) == [ASKS, TELLS]


async def test_a_lesson_ends_by_itself_and_what_was_said_stays(school: School, brown: User) -> None:
    id = school.kept.begin(brown, SCENE)
    await school.kept.say(brown, id, ASKS)
    school.set(id, until=time.time() - 5)
    with pytest.raises(Conflict, match="time of this lesson is over"):
        await school.kept.say(brown, id, TELLS)
    found = school.kept.load(brown, id)
    assert found.finished == found.until and said(found) == [ASKS]
    assert school.kept.list(brown)[0].finished


async def test_going_back_keeps_what_was_said_as_another_branch(school: School, brown: User) -> None:
    id = school.kept.begin(brown, SCENE, seed=7)
    await school.kept.say(brown, id, ASKS)
    two = await school.kept.say(brown, id, TELLS)
    assert school.kept.rewind(brown, id, two.turns[1].id) == id
    back = school.kept.load(brown, id)
    assert said(back) == [ASKS] and back.room == two.turns[0].room
    assert [turn.exchange.said for turn in (back.aside or {}).values()] == [TELLS], "it is still to be seen"
    three = await school.kept.say(brown, id, "Draw both. What do you see?", shown=back.leaf)
    assert three.turns[1].others == (two.turns[1].id,)
    school.kept.show(brown, id, two.turns[1].id)
    assert said(school.kept.load(brown, id)) == [ASKS, TELLS]
    school.kept.rewind(brown, id, two.turns[0].id)
    assert said(school.kept.load(brown, id)) == []
    with pytest.raises(NotFound):
        school.kept.rewind(brown, id, "nothing")


async def test_a_finished_lesson_stays_and_going_back_in_it_begins_another_attempt(school: School, brown: User) -> None:
    id = await rehearsed(school, brown, TELLS, TELLS)
    turn = school.kept.load(brown, id).turns[1]
    again = school.kept.rewind(brown, id, turn.id)
    assert again != id
    new = school.kept.load(brown, again)
    assert said(new) == [TELLS] and new.after == id and new.finished is None and new.seed == 7
    assert new.turns[0].room == school.kept.load(brown, id).turns[0].room
    await school.kept.say(brown, again, ASKS)
    with pytest.raises(Conflict, match="not finished"):
        school.kept.feedback(brown, again)
    school.kept.finish(brown, again)
    assert said(school.kept.load(brown, id)) == [TELLS, TELLS]
    assert [one.id for one in school.kept.attempts(brown, again)] == [id, again]
    _, told = school.kept.feedback(brown, again)
    assert ASKS[:20] in " ".join(quote.text for score in told.scores for quote in score.evidence)
    one, two, changes = school.kept.compare(brown, id, again)
    assert (one.id, two.id) == (id, again) and any(change.direction > 0 for change in changes)
    with pytest.raises(Conflict, match="finished"):
        school.kept.show(brown, id, turn.id)
    with pytest.raises(Conflict, match="finished"):
        await school.kept.say(brown, id, ASKS)


async def test_a_lesson_in_which_nothing_was_said_has_feedback_and_counts_for_nothing(school: School, brown: User) -> None:
    id = await rehearsed(school, brown)
    _, told = school.kept.feedback(brown, id)
    assert told.next_step and not told.moves
    assert school.kept.assessed(brown) == []


async def test_different_scenes_are_not_compared(school: School, brown: User) -> None:
    one = await rehearsed(school, brown, ASKS)
    other = school.kept.begin(brown, "current-used-up")
    school.kept.finish(brown, other)
    with pytest.raises(BadInput):
        school.kept.compare(brown, one, other)


async def test_a_deleted_lesson_leaves_no_word_on_disk(school: School, brown: User) -> None:
    id = school.kept.begin(brown, SCENE)
    await school.kept.say(brown, id, "CANARY, what do you think?")
    school.kept.delete(brown, id)
    assert not school.rows(rehearsals) and not school.rows(rehearsal_turns)
    assert b"CANARY" not in school.database.path.read_bytes()


def test_a_lesson_of_another_release_that_cannot_be_read_closes_no_page(school: School, brown: User) -> None:
    id, good = school.kept.begin(brown, SCENE), school.kept.begin(brown, SCENE)
    school.set(id, facts={"title": "of long ago"})
    assert [one.id for one in school.kept.list(brown)] == [good]
    assert len(school.rows(rehearsals)) == 2


# --- who reads -------------------------------------------------------------------------------------------------------------
async def test_nobody_reads_anothers_lesson_not_even_who_runs_the_box(school: School, brown: User) -> None:
    id = await rehearsed(school, brown, ASKS)
    turn = school.kept.load(brown, id).turns[0].id
    for other in (school.user("white"), school.user("head", "administrator"), school.accounts.local_administrator()):
        acts: list[Callable[[], Any]] = [
            lambda who=other: school.kept.load(who, id), lambda who=other: school.kept.feedback(who, id),
            lambda who=other: school.kept.attempts(who, id), lambda who=other: school.kept.rewind(who, id, turn),
            lambda who=other: school.kept.show(who, id, turn), lambda who=other: school.kept.finish(who, id),
            lambda who=other: school.kept.delete(who, id), lambda who=other: school.kept.note(who, turn, "Well", ""),
            lambda who=other: school.kept.shared(who, brown.id), lambda who=other: school.kept.assessed(who, brown.id),
            lambda who=other: school.kept.begin(who, SCENE, after=id),
        ]  # fmt: skip
        for act in acts:
            with pytest.raises(NotFound):
                act()
        with pytest.raises(NotFound):
            await school.kept.say(other, id, "x")
        assert school.kept.list(other) == []
    assert not [one for one in school.rows(audit) if "rehears" in one.verb], "how much somebody practises is in no record"


async def test_pupils_and_keys_practise_nothing(school: School, brown: User) -> None:
    id = await rehearsed(school, brown, ASKS)
    ann = school.user("ann", "pupil")
    for act in (lambda: school.kept.list(ann), lambda: school.kept.begin(ann, SCENE), lambda: school.kept.load(ann, id)):
        with pytest.raises(Forbidden):
            act()
    with pytest.raises(Forbidden):
        school.mentors.give(ann, "brown")
    for scope in ("chat", "embed", "admin"):
        with pytest.raises((Forbidden, NotFound)):
            school.kept.load(replace(brown, scope=scope), id)


async def test_a_mentor_reads_finished_lessons_while_they_are_let(school: School, brown: User) -> None:
    id, running = await rehearsed(school, brown, ASKS), school.kept.begin(brown, SCENE)
    white = school.user("white")
    school.mentors.give(brown, "White")
    school.mentors.give(brown, "white")
    assert [one.name for one in school.mentors.of(brown)] == ["white"]
    assert [one.name for one in school.mentors.by(white)] == ["brown"]
    found, _ = school.kept.feedback(white, id)
    assert said(found) == [ASKS] and [one.id for one in school.kept.shared(white, brown.id)] == [id]
    assert len(school.kept.assessed(white, brown.id)) == 1
    with pytest.raises(NotFound):
        school.kept.load(white, running)
    for act in (school.kept.finish, school.kept.delete):
        with pytest.raises(NotFound):
            act(white, id)
    with pytest.raises(NotFound):
        school.mentors.end(school.user("head", "administrator"), brown.id, white.id)
    school.mentors.end(white, brown.id, white.id)
    with pytest.raises(NotFound):
        school.kept.load(white, id)
    assert not school.mentors.of(brown) and not school.mentors.by(white)
    noted = [(one.verb, one.actor) for one in school.rows(audit)]
    assert noted == [("give mentor", brown.id), ("read rehearsal", white.id), ("end mentor", white.id)]


@pytest.mark.parametrize(("name", "fault"), [("", BadInput), ("nobody", NotFound), ("ann", NotFound), ("brown", BadInput)])
def test_only_a_colleague_becomes_a_mentor(school: School, brown: User, name: str, fault: type[Exception]) -> None:
    school.user("ann", "pupil")
    with pytest.raises(fault):
        school.mentors.give(brown, name)
    assert not school.mentors.of(brown)


# --- what mentors write ------------------------------------------------------------------------------------------------------
async def test_a_better_reply_becomes_an_example_without_the_teachers_words(school: School, brown: User) -> None:
    id = await rehearsed(school, brown, "CANARY, who knows it?", TELLS)
    white = school.user("white")
    school.mentors.give(brown, "white")
    first, second = school.kept.load(brown, id).turns
    school.kept.note(white, second.id, "You told them.", "What would Mia draw?", train=True)
    (row,) = school.rows(examples)
    heard = [line for _, line in row.messages]
    assert heard[-1] == "What would Mia draw?" and (row.reviewed, row.consent, row.author) == ("pending", True, "white")
    assert all((beat.said or beat.line) in heard[0] for beat in first.exchange.beats)
    assert "CANARY" not in json.dumps(row.messages) and row.source == SOURCE
    (note,) = school.kept.notes(brown, school.kept.load(brown, id))[second.id]
    assert (note.name, note.text, note.example) == ("white", "You told them.", row.id)
    school.kept.note(white, second.id, "You told them.", "And how would Mia draw it?", train=True)
    (row,) = school.rows(examples)
    assert row.messages[-1][1] == "And how would Mia draw it?" and len(school.rows(mentor_notes)) == 1
    school.kept.note(white, second.id, "You told them.", "And how would Mia draw it?")
    (row,) = school.rows(examples)
    assert row.withdrawn and not row.messages, "without the tick its text is gone"
    school.kept.note(white, second.id, "", "")
    assert not school.rows(mentor_notes)


async def test_notes_of_two_mentors_are_for_who_was_meant_and_go_with_the_lesson(school: School, brown: User) -> None:
    id = await rehearsed(school, brown, ASKS)
    turn = school.kept.load(brown, id).turns[0].id
    for name in ("white", "black"):
        school.user(name)
        school.mentors.give(brown, name)
        school.kept.note(school.accounts.named(name), turn, f"from {name}", "Say more?", train=True)
    found = school.kept.load(brown, id)
    assert [one.text for one in school.kept.notes(brown, found)[turn]] == ["from white", "from black"]
    assert [one.text for one in school.kept.notes(school.accounts.named("black"), found)[turn]] == ["from black"]
    with pytest.raises(BadInput):
        school.kept.note(school.accounts.named("black"), turn, "x", "", train=True)
    with pytest.raises(TooLarge):
        school.kept.note(school.accounts.named("black"), turn, "x" * 3000, "")
    school.kept.delete(brown, id)
    assert not school.rows(mentor_notes) and all(one.withdrawn and not one.messages for one in school.rows(examples))


# --- progress, and a copy to keep ----------------------------------------------------------------------------------------
async def test_progress_counts_weeks_and_a_copy_says_what_it_is_not(school: School, brown: User) -> None:
    for weeks_ago, words in ((2, TELLS), (2, TELLS), (0, ASKS)):
        id = await rehearsed(school, brown, words)
        school.set(id, finished=time.time() - weeks_ago * 7 * 86400)
    assessed = school.kept.assessed(brown)
    first, last = progress.weeks(assessed)
    assert (first.lessons, first.turns, last.lessons) == (2, 2, 1) and (last.start - first.start).days == 14
    assert first.moves.get("tell") == 2 and first.each("tell") == 10.0 and not last.moves.get("tell")
    assert sum(last.levels) == len(assessed[0][0].scenario.rubric) and last.levels[0] < sum(last.levels)
    assert "tell" in progress.moves_made([first, last])
    text, data = portfolio.markdown(assessed), json.loads(portfolio.as_json(assessed))
    assert portfolio.NO_RATING.replace(".", "\\.") in text and portfolio.NO_RATING in data["about"]
    assert len(data["rehearsals"]) == 3 and any(turn["said"] == ASKS for one in data["rehearsals"] for turn in one["turns"])
    assert "more, a third or a fifth?" in text


async def test_what_was_typed_is_no_markup_in_a_copy(school: School, brown: User) -> None:
    await rehearsed(school, brown, "<img src=x> [a](javascript:b)\n# What do you think?")
    text = portfolio.markdown(school.kept.assessed(brown))
    assert "> \\<img src\\=x\\> \\[a\\]\\(javascript:b\\)\n> \\# What do you think?" in text
