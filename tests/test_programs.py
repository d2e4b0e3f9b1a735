"""Optimised programs: which of them serves a question, promotion, rollback, and that a damaged one stops nobody's answer."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from appliance import prompts
from appliance.audit import Audit
from appliance.cli import group
from appliance.engine.handler import Message
from appliance.errors import ApplianceError, BadInput, Forbidden, GateNotPassed, NotFound
from appliance.programs import Programs
from appliance.settings import Settings
from appliance.tables import programs
from tests.web.box import make_box

NAME = "teacher_responder"
PASSED = {"passed": True, "score": 0.7}


@pytest.fixture
async def box(settings: Settings) -> AsyncIterator[Any]:
    box = make_box(settings)
    box.me = box.accounts.local_administrator()
    yield box
    await box.chat.close()
    box.database.close()


def saying(words: str) -> dict[str, Any]:
    return {"format": 1, "module": NAME, "instructions": words}


def promoted(box: Any, words: str, subject: str = "", grade: str = "") -> str:
    made = box.chat.programs.add(box.me, saying(words), subject=subject, grade=grade, report=PASSED)
    return str(box.chat.programs.promote(box.me, made.id).id)


async def told(box: Any, **options: Any) -> str:
    """The first words of what the model is told."""
    async with aclosing(box.chat.complete(box.me, [Message("user", "Why are leaves green?")], **options)) as events:
        assert [event async for event in events][-1].kind == "done"
    return str(box.pool.requests[-1].messages[0].content).partition(" What stands between")[0]


DEFAULT = prompts.load(NAME).instructions.partition(" What stands between")[0]


# --- which one serves -------------------------------------------------------------------------------------------------
async def test_a_promoted_program_serves_the_next_question_and_a_candidate_none(box: Any) -> None:
    assert await told(box) == DEFAULT
    made = box.chat.programs.add(box.me, saying("Answer in rhymes."), report=PASSED, maker="dspy")
    assert (made.state, made.maker, made.report) == ("candidate", "dspy", PASSED)
    assert await told(box) == DEFAULT
    box.chat.programs.promote(box.me, made.id)
    assert await told(box) == "Answer in rhymes."


async def test_another_process_sees_it_at_once(box: Any) -> None:
    elsewhere = Programs(box.database, box.accounts, Audit(box.database))
    assert elsewhere.module(NAME) == prompts.load(NAME)
    promoted(box, "Answer in rhymes.")
    assert elsewhere.module(NAME).instructions.startswith("Answer in rhymes.")
    box.chat.programs.roll_back(box.me, NAME)
    assert elsewhere.module(NAME) == prompts.load(NAME)


async def test_the_nearest_serves(box: Any) -> None:
    for words, subject, grade in (
        ("any", "", ""),
        ("grade", "", "7"),
        ("subject", "History", ""),
        ("both", "history", "Grade 07"),
    ):
        promoted(box, words, subject, grade)
    places = {
        ("", ""): "any",
        ("", "7"): "grade",
        (" HISTORY ", "8"): "subject",
        ("History", "7 B"): "both",
        ("Maths", ""): "any",
    }
    for (subject, grade), words in places.items():
        assert await told(box, subject=subject, grade=grade) == words, (subject, grade)
    assert box.chat.programs.module("student_reaction", "History", "7") == prompts.load("student_reaction")


async def test_demonstrations_stand_before_the_talk_and_go_first_where_there_is_no_room(box: Any) -> None:
    shown = [{"inputs": {"question": f"What is {n} x 4?"}, "outputs": {"answer": "What is 2 x 4? " * 30}} for n in range(4)]
    made = box.chat.programs.add(box.me, saying("Ask back.") | {"demonstrations": shown}, report=PASSED)
    box.chat.programs.promote(box.me, made.id)
    box.pool.context = 4000
    await told(box)
    assert [one.content for one in box.pool.requests[-1].messages[1:9:2]] == [f"What is {n} x 4?" for n in range(4)]
    box.pool.context = 700
    await told(box)
    assert len(box.pool.requests[-1].messages) == 4 and box.pool.requests[-1].messages[1].content == "What is 0 x 4?"


# --- promotion ----------------------------------------------------------------------------------------------------------
async def test_one_serves_a_place_and_the_one_before_can_be_rolled_back_to(box: Any) -> None:
    first, second, third = (promoted(box, words) for words in ("one", "two", "three"))
    states = {one.id: one.state for one in box.chat.programs.list(NAME)}
    assert states == {first: "retired", second: "previous", third: "active"}
    back = box.chat.programs.roll_back(box.me, NAME)
    assert back.id == second and await told(box) == "two"
    assert box.chat.programs.roll_back(box.me, NAME).id == third and await told(box) == "three", "once more undoes it"
    box.chat.programs.promote(box.me, first)
    assert await told(box) == "one" and box.chat.programs.get(third).state == "previous"
    other = promoted(box, "maths", "Mathematics")
    assert box.chat.programs.get(first).state == "active", "another place"
    assert box.chat.programs.roll_back(box.me, NAME, "mathematics") is None, "the file, where nothing served before"
    assert await told(box, subject="Mathematics") == "one" and box.chat.programs.get(other).state == "previous"
    verbs = [(row.verb, row.thing) for row in box.audit.entries()]
    assert verbs.count(("promote program", first)) == 2 and ("rollback program", second) in verbs
    assert {row.facts["before"] for row in box.audit.entries(thing=third) if row.verb == "promote program"} == {second}


async def test_rolling_back_where_nothing_was_promoted_says_so(box: Any) -> None:
    with pytest.raises(NotFound, match="No program was promoted"):
        box.chat.programs.roll_back(box.me, NAME, "history")
    with pytest.raises(NotFound, match="no module"):
        box.chat.programs.roll_back(box.me, "nobody")


async def test_the_gate_is_not_walked_around_without_a_reason(box: Any) -> None:
    for report, words in (({}, "never judged"), ({"passed": False}, "did not pass"), ({"passed": "yes"}, "did not pass")):
        made = box.chat.programs.add(box.me, saying("x"), report=report)
        with pytest.raises(GateNotPassed, match=words) as caught:
            box.chat.programs.promote(box.me, made.id)
        assert "--accept" in caught.value.hint and await told(box) == DEFAULT
    box.chat.programs.promote(box.me, made.id, accept="tried in two classes")
    assert await told(box) == "x"
    assert box.audit.entries(thing=made.id)[-1].facts["accept"] == "tried in two classes"


async def test_only_who_may_change_models_changes_programs(box: Any) -> None:
    made = box.chat.programs.add(box.me, saying("x"), report=PASSED)
    for role in ("pupil", "teacher", "safeguarding"):
        box.people.add(role, role)
        who = box.accounts.named(role)
        for act in (
            lambda who=who: box.chat.programs.add(who, saying("y")),
            lambda who=who: box.chat.programs.promote(who, made.id),
            lambda who=who: box.chat.programs.roll_back(who, NAME),
        ):
            with pytest.raises(Forbidden):
                act()
    box.people.add("head", "administrator")
    assert box.chat.programs.promote(box.accounts.named("head"), made.id).state == "active"
    assert box.audit.entries(thing=made.id)[-1].actor == box.accounts.named("head").id


async def test_what_is_no_program_is_not_kept(box: Any) -> None:
    for wrong in ("{", saying("x") | {"path": "/etc"}, saying(""), {"format": 9, "module": NAME}):
        with pytest.raises(BadInput):
            box.chat.programs.add(box.me, wrong)
    for more in ({"subject": "x" * 121}, {"maker": "a\nb"}, {"report": {"x": float("nan")}}, {"report": {"x": "y" * 70_000}}):
        with pytest.raises(BadInput):
            box.chat.programs.add(box.me, saying("x"), **more)
    assert box.chat.programs.list() == []


# --- damage -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("damage", ["{", "null", '{"format": 2}', '{"format": 1, "module": "student_reaction"}', "[" * 9000])
async def test_a_damaged_program_stops_no_answer_and_is_told_once(box: Any, damage: str) -> None:
    promoted(box, "any")
    broken = promoted(box, "history", "History")
    fresh = Programs(box.database, box.accounts, box.audit)
    with box.database.begin() as connection:
        text = sa.text("UPDATE programs SET facts = :facts, report = '{' WHERE id = :id")
        connection.execute(text, {"facts": damage, "id": broken})
    for _ in range(2):
        box.chat.programs = fresh
        assert await told(box, subject="History") == "any"
        fresh = Programs(box.database, box.accounts, box.audit)  # the process is started again
    assert [row.verb for row in box.audit.entries(thing=broken)].count("program damaged") == int("student" not in damage)
    assert {one.state for one in fresh.list()} == {"active"} and fresh.get(broken).report == {}
    if "student" not in damage:
        with pytest.raises(ApplianceError):
            fresh.promote(box.me, broken, accept="all the same")


async def test_a_program_that_is_gone_is_passed_over(box: Any) -> None:
    id = promoted(box, "any")
    with box.database.begin() as connection:
        connection.execute(sa.delete(programs).where(programs.c.id == id))
    assert await told(box) == DEFAULT
    for act in (box.chat.programs.get, box.chat.programs.export, lambda id: box.chat.programs.promote(box.me, id)):
        with pytest.raises(NotFound):
            act(id)


# --- the command line -------------------------------------------------------------------------------------------------
def test_the_command_line_takes_a_program_there_and_back(settings: Settings, tmp_path: Path) -> None:
    def said(*arguments: str) -> Any:
        result = CliRunner().invoke(
            group, ["--home", str(settings.home), "modules", *arguments, "--json"], standalone_mode=False
        )
        if isinstance(result.exception, ApplianceError):
            raise result.exception
        assert result.exception is None, result.exception
        return json.loads(result.stdout)

    assert said("list") == {"modules": prompts.names(), "programs": []}
    file = tmp_path / "program.json"
    assert said("export", NAME, str(file))["module"] == NAME
    program = json.loads(file.read_text())
    file.write_text(json.dumps(program | {"instructions": "Answer in rhymes."}))
    made = said("import", str(file), "--subject", "History")
    assert (made["state"], made["subject"]) == ("candidate", "history")
    with pytest.raises(GateNotPassed):
        said("promote", made["id"])
    assert said("promote", made["id"], "--accept", "tried it")["state"] == "active"
    assert said("show", NAME, "--subject", "history")["program"]["instructions"].startswith("Answer in rhymes.")
    assert said("show", NAME)["program"] == program and said("show", made["id"])["state"] == "active"
    assert said("rollback", NAME, "--subject", "History") == {"module": NAME, "serves": None}
    for wrong in (("show", "nobody"), ("rollback", "nobody"), ("import", str(tmp_path / "none.json")), ("promote", "nobody")):
        with pytest.raises(NotFound):
            said(*wrong)
    file.write_bytes(b"\xff\x00{")
    with pytest.raises(BadInput):
        said("import", str(file))
    shown = CliRunner().invoke(group, ["--home", str(settings.home), "modules", "list"])
    assert "teacher_responder" in shown.output and made["id"] in shown.output
