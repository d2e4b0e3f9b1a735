"""A scene's facts: what is wrong with them is told in one message, and what is right comes back as it was."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.errors import BadInput
from appliance.practice.exchange import MOVES
from appliance.practice.scenario import MOST, MOST_FAULTS, NEVER_CONVINCE, SITUATIONS, Scenario, read

Facts = dict[str, Any]


def facts() -> Facts:
    """A whole scene, new each time."""
    lines = {name: [f"{name}, once.", f"{name}, twice."] for name in SITUATIONS}
    believes = {"belief": "More pieces, more cake.", "strength": 3, "yields_to": ["elicit", "press"], "about": ["piece", "1/3"]}
    scales = {"knowledge": 2, "mood": 0, "energy": 3, "attention": 3}
    return {
        "version": 1, "title": "A third of a cake", "category": "misconception", "phase": "primary", "subject": "mathematics",
        "grade": "4", "minutes": 10, "setting": "Year 4 cuts cakes.", "opening": "Which is more?", "objectives": ["Listen"],
        "pupils": [
            {"name": "Mia", "about": "Quick.", "voice": "Short.", **scales, "lines": lines, "misconception": believes},
            {"name": "Mr Okoro", "about": "Calm.", "voice": "Slow.", **scales, "lines": lines, "who": "parent"},
        ],
        "events": [
            {"pupil": "Mia", "at": 2, "line": "Can I eat it?", "change": {"energy": 1}},
            {"pupil": "Mr Okoro", "when": "mood", "below": -1, "line": "I shall go now."},
        ],
        "rubric": [
            {"id": "asks", "name": "Asks", "moves": ["elicit", "wait"], "against": ["tell"], "enough": 2,
             "levels": ["Not yet.", "Once.", "Well."], "try_this": "Ask why."},
        ],
    }  # fmt: skip


def faults(found: Any) -> str:
    with pytest.raises(BadInput) as caught:
        read(found, "cake", where="cake.toml")
    assert caught.value.hint and caught.value.message.startswith("The scenario cake.toml cannot be used: ")
    return caught.value.message


def test_a_scene_comes_back_as_it_was() -> None:
    scene = read(facts(), "cake")
    assert (scene.id, scene.pupils[1].who, scene.approved_by) == ("cake", "parent", "")
    assert scene.events[1].when == "mood" and scene.events[1].below == -1 and scene.events[0].change == {"energy": 1}
    assert read(scene.as_facts(), "cake") == scene
    stored = json.loads(json.dumps(scene.as_facts()))
    assert read(stored, "cake") == scene and read(stored, "cake").as_facts() == scene.as_facts()


def _without_pupils(one: Facts) -> None:
    one["pupils"] = []


def _stranger(one: Facts) -> None:
    one["events"][0]["pupil"] = "Nobody"


def _twins(one: Facts) -> None:
    one["pupils"][1]["name"] = "MIA"


def _two_levels(one: Facts) -> None:
    one["rubric"][0]["levels"].pop()


def _for_and_against(one: Facts) -> None:
    one["rubric"][0]["against"] = ["tell", "wait"]


def _no_moves(one: Facts) -> None:
    one["rubric"][0]["moves"] = []


def _never_enough(one: Facts) -> None:
    one["rubric"][0]["enough"] = 0


def _unknown_move(one: Facts) -> None:
    one["rubric"][0]["moves"] = ["shout"]


def _same_ids(one: Facts) -> None:
    one["rubric"].append(one["rubric"][0])


def _yields_to_telling(one: Facts) -> None:
    one["pupils"][0]["misconception"]["yields_to"] = ["press", "tell"]


def _too_strong(one: Facts) -> None:
    one["pupils"][0]["misconception"]["strength"] = 7


def _about_a_mark(one: Facts) -> None:
    one["pupils"][0]["misconception"]["about"] = ["piece", "?"]


def _belief_is_text(one: Facts) -> None:
    one["pupils"][0]["misconception"] = "More is more."


def _no_lines(one: Facts) -> None:
    one["pupils"][0]["lines"] = {**one["pupils"][0]["lines"], "wavers": []}


def _odd_situation(one: Facts) -> None:
    one["pupils"][0]["lines"] = {**one["pupils"][0]["lines"], "sings": ["La."]}


def _true_is_no_number(one: Facts) -> None:
    one["pupils"][0]["energy"] = True


def _below_its_scale(one: Facts) -> None:
    one["events"][1].update(when="energy", below=-1)


def _when_and_at(one: Facts) -> None:
    one["events"][0]["when"] = "mood"


def _too_great_a_change(one: Facts) -> None:
    one["events"][0]["change"] = {"energy": 10**30}


def _half_a_character(one: Facts) -> None:
    one["title"] = "Cake \ud83c"


def _name_of_two_lines(one: Facts) -> None:
    one["pupils"][1]["name"] = "Mr\nOkoro"


def _too_many(one: Facts) -> None:
    one["events"] = [one["events"][0]] * (MOST + 1)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_without_pupils, "pupils is missing"),
        (_stranger, "event 1 is about 'Nobody', who is not among the pupils"),
        (_twins, "two of the pupils have one name"),
        (_two_levels, "levels of rubric line 1 has to have three sentences: it cannot be scored"),
        (_for_and_against, "wait stands for and against of rubric line 1: it cannot be scored"),
        (_no_moves, "moves of rubric line 1 is missing"),
        (_never_enough, "enough of rubric line 1 has to be a whole number from 1 to 20"),
        (_unknown_move, "moves of rubric line 1 has an unknown move, 'shout'"),
        (_same_ids, "two lines of the rubric have one id"),
        (_yields_to_telling, "no belief yields to 'tell': it cannot stand in yields_to of the misconception of pupil 1"),
        (_too_strong, "strength of the misconception of pupil 1 has to be a whole number from 1 to 6"),
        (_about_a_mark, "about of the misconception of pupil 1 has a word without letters"),
        (_belief_is_text, "misconception of pupil 1 has to be a table"),
        (_no_lines, "wavers of pupil 1 is missing"),
        (_odd_situation, "lines of pupil 1 has an unknown situation, 'sings'"),
        (_true_is_no_number, "energy of pupil 1 has to be a whole number from 0 to 4"),
        (_below_its_scale, "below of event 2 has to be a whole number from 0 to 4"),
        (_when_and_at, "event 1 needs either `at` or `when`"),
        (_too_great_a_change, "change of event 1 may have whole numbers from -4 to 4"),
        (_half_a_character, "title has characters that cannot be shown"),
        (_name_of_two_lines, "name of pupil 2 has to be one line"),
        (_too_many, f"events has more than {MOST} entries"),
    ],
)
def test_a_fault_is_named_with_its_place(spoil: Callable[[Facts], None], told: str) -> None:
    found = facts()
    spoil(found)
    assert told in faults(found)


def test_all_faults_are_told_at_once() -> None:
    found = facts()
    spoilt = (_stranger, _two_levels, _too_strong, _true_is_no_number, _odd_situation)
    for spoil in spoilt:
        spoil(found)
    del found["title"], found["version"]
    told = faults(found)
    for part in ("title is missing", "version has", "Nobody", "levels of", "strength of", "energy of", "sings"):
        assert part in told, part
    assert told.count("; ") == 6


def test_very_many_or_very_long_faults_stay_readable() -> None:
    found = facts()
    found["rubric"] = [{"moves": ["x" * 400] * MOST}] * MOST
    told = faults(found)
    assert told.endswith("and more.") and told.count("; ") == MOST_FAULTS and len(told) < 5_000


@pytest.mark.parametrize("found", [[], None, "a scene", 3, True, {}, {"pupils": {}}, {"rubric": [1]}, {"events": "none"}])
def test_what_is_no_scene_at_all_is_refused(found: Any) -> None:
    assert faults(found)


def test_to_be_told_judged_flattered_or_shamed_convinces_nobody() -> None:
    assert set(NEVER_CONVINCE) < set(MOVES)
    for move in MOVES:
        found = facts()
        found["pupils"][0]["misconception"]["yields_to"] = [move]
        if move in NEVER_CONVINCE:
            assert move in faults(found)
        else:
            assert read(found, "cake").pupils[0].misconception is not None


# --- anything at all ---------------------------------------------------------------------------------------------------------
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=12)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4), max_leaves=12
)
names = st.sampled_from(
    ["version", "title", "pupils", "events", "rubric", "lines", "misconception", "name", "at", "when", "change", "levels"]
)
shaped = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=5), max_leaves=20
)


def scenario_or_refused(found: Any) -> None:
    try:
        scene = read(found, "any")
    except BadInput as error:
        assert error.message and error.hint and error.message.encode("utf-8")
    else:
        assert isinstance(scene, Scenario) and read(json.loads(json.dumps(scene.as_facts())), "any") == scene


@settings(deadline=None)
@given(anything | shaped)
def test_any_facts_give_a_scene_or_a_refusal(found: Any) -> None:
    scenario_or_refused(found)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, one in inner for place in places(one, (*path, key)))]


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_a_scene_with_anything_in_one_place_gives_a_scene_or_a_refusal(data: st.DataObject) -> None:
    found = copy.deepcopy(facts())
    *way, last = data.draw(st.sampled_from(places(facts())[1:]))
    holder: Any = found
    for key in way:
        holder = holder[key]
    holder[last] = data.draw(anything)
    scenario_or_refused(found)
