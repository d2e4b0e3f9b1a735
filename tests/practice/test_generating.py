"""A scene from a wish: what a model may write, what is filled in, and three tries before it is given up."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import pytest

from appliance import prompts
from appliance.accounts import PUPIL, TEACHER, Accounts, People, User
from appliance.asking import ask_text
from appliance.audit import Audit
from appliance.db import Database
from appliance.engine import schemas
from appliance.errors import BadInput, Forbidden, ModelUnavailable, TooLarge
from appliance.forms import Field
from appliance.practice.criteria import CRITERIA, USUAL
from appliance.practice.exchange import MOVES
from appliance.practice.generating import SCHEMA, TEMPERS, NoScene, Wish, facts_of, generate, phase_of
from appliance.practice.scenario import CATEGORIES, SITUATIONS, read
from appliance.practice.scenes import Scenes
from appliance.settings import Settings
from tests.test_asking import Answers
from tests.web.box import make_box

WISH = Wish("science", "8", "They believe that cold flows into a cup.", "24 pupils, lively, two learn the language")
LINES = {name: f"I say {name.replace('_', ' ')}." for name in SITUATIONS}


def one(name: str, **other: Any) -> dict[str, Any]:
    plain = {"name": name, "who": "pupil", "about": "Likes cups.", "voice": "Brief.", "temper": "calm", "lines": LINES}
    return plain | {"belief": "", "words": []} | other


def answer(**other: Any) -> str:
    believer = one("Rui", temper="proud", belief="Cold flows from the ice into the drink.", words=["cold", "heat", "ice"])
    return json.dumps({
        "title": "The cold comes in", "category": "misconception", "setting": "A grade 8 with cups of tea and ice.",
        "opening": "Rui holds the cup: the cold goes in.", "objectives": ["Ask first"], "pupils": [believer, one("Ada")],
        "twist": "My fridge makes cold, though.", "rubric": ["asks-first", "asks-why", "checks"], **other,
    })  # fmt: skip


class Asked:
    """Answers that are given one after the other, and what was asked for them."""

    def __init__(self, answers: Sequence[str]) -> None:
        self.waiting = [*answers]
        self.inputs: list[Mapping[str, str]] = []

    async def __call__(self, inputs: Mapping[str, str], schema: Mapping[str, Any]) -> str:
        assert schema is SCHEMA
        self.inputs.append(inputs)
        return self.waiting.pop(0)


@pytest.fixture
def scenes(database: Database, settings: Settings) -> Scenes:
    return Scenes(database, Accounts(database, settings), Audit(database))


@pytest.fixture
def ann(database: Database) -> User:
    made, _ = People(database).add("ann", TEACHER)
    return User(made.id, made.name, TEACHER)


# --- what a model is held to -----------------------------------------------------------------------------------------------
def test_the_engine_keeps_every_word_of_the_schema() -> None:
    schemas.check(json.loads(json.dumps(SCHEMA)))


@pytest.mark.llama
def test_the_schema_becomes_a_grammar() -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    from appliance.engine.sampling import grammar

    assert "root ::=" in grammar(json.loads(json.dumps(SCHEMA)))


def test_the_criteria_to_choose_from_can_be_scored_and_fit_every_category() -> None:
    assert set(USUAL) == set(CATEGORIES)
    for ids in USUAL.values():
        assert len(set(ids)) == 3 and set(ids) <= set(CRITERIA)
    for id, line in CRITERIA.items():
        assert set(line["moves"]) <= set(MOVES) and set(line["moves"]) - {"wait"} and line["enough"] <= 4, id
        assert not set(line["moves"]) & set(line["against"]) and len(set(line["levels"])) == 3, id


# --- what comes out --------------------------------------------------------------------------------------------------------
async def test_a_wish_becomes_a_draft_of_its_maker(scenes: Scenes, ann: User) -> None:
    asked = Asked([answer()])
    made = await generate(ann, WISH, scenes, asked)
    assert asked.inputs == [{**asdict(WISH), "fault": ""}]
    found = scenes.find(ann, made.id)
    assert found.draft and found.generated and found.author == ann.id and made.approved_by == ""
    assert (made.subject, made.grade, made.phase, made.category) == ("science", "8", "lower secondary", "misconception")
    rui, ada = made.pupils
    assert rui.misconception and rui.misconception.strength == 3 and rui.misconception.about == ("cold", "heat", "ice")
    assert ada.misconception is None and "holds" not in ada.lines and set(rui.lines) == set(SITUATIONS)
    assert (ada.knowledge, ada.mood, ada.energy, ada.attention) == TEMPERS["calm"]
    assert [(event.pupil, event.at, event.line) for event in made.events] == [("Ada", 4, "My fridge makes cold, though.")]
    assert [line.id for line in made.rubric] == ["asks-first", "asks-why", "checks"]
    changed = scenes.save(ann, {**made.as_facts(), "title": "By hand now"}, made.id)
    assert scenes.find(ann, changed.id).generated, "what a model wrote first stays known"


@pytest.mark.parametrize(
    ("grade", "phase"),
    [("3", "primary"), ("Year 5", "primary"), ("6", "lower secondary"), ("9b", "lower secondary"), ("10", "upper secondary"),
     ("13", "upper secondary"), ("", "lower secondary"), ("beginners", "lower secondary")],
)  # fmt: skip
def test_the_phase_is_that_of_the_grade(grade: str, phase: str) -> None:
    assert phase_of(grade) == phase


def test_the_rest_is_filled_in_where_a_model_leaves_it_thin() -> None:
    text = answer(
        category="parents",
        rubric=["builds-on", "builds-on"],
        pupils=[one("A", who="parent", belief="Homework is harmful"), one("B")],
    )
    made = read(facts_of(text, Wish("", "2", "x")), "x")
    assert [line.id for line in made.rubric] == ["builds-on", "names-feelings", "asks-first"]
    assert made.pupils[0].misconception is not None
    assert made.pupils[0].misconception.about == ("Homework", "harmful") and made.pupils[0].misconception.strength == 2
    assert "acknowledge" in made.pupils[0].misconception.yields_to and "tell" not in made.pupils[0].misconception.yields_to


async def test_a_scene_is_written_and_marked_in_the_language_wished_for(scenes: Scenes, ann: User) -> None:
    asked = Asked([answer(title="Le froid entre")])
    made = await generate(ann, replace(WISH, language="fr"), scenes, asked)
    assert asked.inputs[0]["language"] == "fr" and scenes.find(ann, made.id).scenario.language == "fr"
    with pytest.raises(BadInput, match="language"):
        await generate(ann, replace(WISH, language="not a tag"), scenes, asked)


# --- what goes wrong -------------------------------------------------------------------------------------------------------
BROKEN = [
    "",
    "I am sorry, I cannot help with that.",
    answer()[:200],
    "[]",
    "null",
    "[" * 100_000,
    answer(pupils=[]),
    answer(pupils="Rui and Ada"),
    answer(pupils=[one("Rui")]),
    answer(pupils=[one("Rui"), one("rui")]),
    answer(pupils=[one("Rui"), one("Ada", lines="nothing")]),
    answer(pupils=[one("Rui"), one("Ada", lines={"answers": 3})]),
    answer(pupils=[one(3), one("Ada", temper=["calm"], belief=7, words=5)]),  # type: ignore[arg-type]
    answer(pupils=[one("Rui"), one("Ada", who="headmaster")]),
    answer(title=None),
    answer(title="x" * 500),
    answer(category="weather"),
    answer(category=["misconception"]),
    answer(objectives="one"),
    answer(twist={"said": "x"}),
    answer(setting="\ud800"),
    "{" + " " * 40_000 + "}",
]


@pytest.mark.parametrize("text", BROKEN, ids=[str(number) for number in range(len(BROKEN))])
async def test_a_broken_answer_is_tried_again_and_told_what_was_wrong(scenes: Scenes, ann: User, text: str) -> None:
    asked = Asked([text, text, answer()])
    made = await generate(ann, WISH, scenes, asked)
    assert made.title == "The cold comes in" and len(scenes.list(ann, category="misconception", subject="science")) >= 1
    assert [bool(inputs["fault"]) for inputs in asked.inputs] == [False, True, True]


async def test_after_three_tries_it_is_given_up_and_what_was_typed_is_still_there(
    database: Database, scenes: Scenes, ann: User
) -> None:
    asked = Asked(["{", "{}", answer(minutes=3, rubric=7, title="")])
    with pytest.raises(NoScene, match="3 tries") as caught:
        await generate(ann, WISH, scenes, asked)
    assert caught.value.wish == WISH and caught.value.hint and not asked.waiting
    assert all(one.state == "written" for one in scenes.list(ann)) and Audit(database).entries() == []
    back = pickle.loads(pickle.dumps(caught.value))
    assert (back.message, back.hint) == (caught.value.message, caught.value.hint)


async def test_a_model_that_is_not_there_says_so_at_once(scenes: Scenes, ann: User) -> None:
    async def ask(*_asked: Any) -> str:
        raise ModelUnavailable("No model.", "Install one.")

    with pytest.raises(ModelUnavailable):
        await generate(ann, WISH, scenes, ask)


async def test_who_may_not_or_says_nothing_or_too_much_asks_no_model(database: Database, scenes: Scenes, ann: User) -> None:
    asked = Asked([])
    made, _ = People(database).add("pia", PUPIL)
    with pytest.raises(Forbidden):
        await generate(User(made.id, made.name, PUPIL), WISH, scenes, asked)
    with pytest.raises(BadInput, match="rehearsed"):
        await generate(ann, Wish("science", "8", " \x00 "), scenes, asked)
    for wish in (Wish("", "", "x" * 601), Wish("x" * 61, "", "x"), Wish("", "", "x", "x" * 801), Wish("", "x" * 21, "x")):
        with pytest.raises(TooLarge):
            await generate(ann, wish, scenes, asked)
    assert asked.inputs == []


# --- with the module that asks ---------------------------------------------------------------------------------------------
def test_what_the_module_promises_is_what_is_read_here() -> None:
    module = prompts.load("scenario_generator")
    assert {one.name for one in module.inputs} == {*asdict(WISH), "fault"}
    promised = {one.name: one for one in module.outputs}
    assert set(promised) == set(SCHEMA["properties"])
    assert set(promised["rubric"].choices) == set(CRITERIA) and promised["category"].choices == CATEGORIES
    fields = {one.name: one for one in promised["pupils"].fields}
    assert set(fields) == set(SCHEMA["properties"]["pupils"]["items"]["properties"])
    assert set(fields["temper"].choices) == set(TEMPERS) and {one.name for one in fields["lines"].fields} == set(SITUATIONS)
    assert module.demonstrations
    for shown in module.demonstrations:
        made = read(facts_of(json.dumps(shown.outputs), Wish("", str(shown.inputs.get("grade", "")), "x")), "x")
        assert len(made.pupils) >= 2 and len(made.rubric) >= 3 and any(one.misconception for one in made.pupils)


def test_the_module_and_the_schema_agree_about_every_length_and_choice() -> None:
    """So that what a small model is told is what it is held to, and what it is held to is what a scene can hold."""
    counted = 0

    def agree(fields: Sequence[Field], schema: Mapping[str, Any], of: str) -> None:
        nonlocal counted
        assert [one.name for one in fields] == [*schema["properties"]] == schema["required"], of
        for one in fields:
            found, where = schema["properties"][one.name], f"{of}.{one.name}"
            if found.get("type") == "array":
                assert one.type.startswith("list") and one.items == found["maxItems"], where
                found = found["items"]
            if found.get("type") == "object":
                agree(one.fields, found, where)
            elif "enum" in found:
                assert list(one.choices) == found["enum"], where
            else:
                assert one.letters == found["maxLength"], where
            counted += 1

    agree(prompts.load("scenario_generator").outputs, SCHEMA, "scene")
    assert counted > 20
    for ids in USUAL.values():
        assert set(ids) <= set(CRITERIA)


async def test_the_road_to_the_model_leads_through_the_guard(settings: Settings) -> None:
    box = make_box(settings, pool=Answers("Sure! Here is a scene:", answer()))
    try:
        me = box.accounts.local_administrator()

        async def ask(inputs: Mapping[str, str], schema: Mapping[str, Any]) -> str:
            return await ask_text(box.chat, me, "scenario_generator", inputs, schema=dict(schema))

        made = await generate(me, WISH, Scenes(box.database, box.accounts, Audit(box.database)), ask)
        first, second = box.pool.requests
        assert made.title == "The cold comes in" and first.schema == second.schema == SCHEMA
        assert WISH.challenge in first.messages[-1].content and "no whole JSON" in second.messages[-1].content
    finally:
        await box.chat.close()
        box.database.close()
