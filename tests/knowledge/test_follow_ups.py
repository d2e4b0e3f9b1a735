"""Short questions that go on from the last one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.knowledge.follow_ups import LOOK_BACK, says_nothing, to_search

MAGNETS = "How does a compass find north?"


@pytest.mark.parametrize(
    "asked",
    [
        "and why?", "Why?", "can you give an example?", "I don't understand", "what do you mean by that?", "Tell me more!",
        "could you explain it in a simpler way please", "ok, and then?", "I\u2019m still confused",
        "what's the next step", "", "?",
    ],
)  # fmt: skip
def test_a_message_about_nothing_is_searched_with_the_last_question(asked: str) -> None:
    assert says_nothing(asked)
    assert to_search(asked, ["What is a river?", MAGNETS]) == f"{MAGNETS} {asked}".strip() + (" " if not asked else "")
    assert to_search(asked) == asked, "there is nothing before it"


@pytest.mark.parametrize(
    "asked",
    [
        "why is copper different?", "and 7 x 8?", "why?? because of gravity", "Give me an example of a noun", "2 + 2",
        "Pourquoi ?", "光合作用は", "tell me about volcanoes",
    ],
)  # fmt: skip
def test_a_message_that_names_a_subject_is_searched_as_it_stands(asked: str) -> None:
    assert not says_nothing(asked)
    assert to_search(asked, [MAGNETS]) == asked


def test_follow_ups_reach_back_over_follow_ups_but_not_for_ever() -> None:
    assert to_search("and then?", [MAGNETS, "why?", "how so?"]) == f"{MAGNETS} and then?"
    assert to_search("and then?", [MAGNETS, *["why?"] * LOOK_BACK]) == "and then?"
    assert to_search("and then?", ["why?"]) == "and then?"


def test_a_long_message_is_never_joined() -> None:
    long = "please can you tell me again what that is and why it is so and how it is and what to do then"
    assert to_search(long, [MAGNETS]) == long


@given(st.text(max_size=80), st.lists(st.text(max_size=80), max_size=4))
def test_what_was_asked_always_stands_in_what_is_searched(asked: str, earlier: list[str]) -> None:
    assert to_search(asked, earlier).endswith(asked.strip()) or to_search(asked, earlier) == asked
