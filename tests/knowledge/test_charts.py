"""The history of the checks, drawn: right values in the right places, and no way for a name to become markup."""

from __future__ import annotations

import time
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.knowledge.charts import HEIGHT, LINES, SHOWN, TOP, by_collection, history_chart, sparkline, text_chart

SVG = "{http://www.w3.org/2000/svg}"


def check(number: int, questions: str = "a", collection: str | None = None, **rates: float | None) -> dict[str, Any]:
    held = dict.fromkeys(LINES) | rates
    return {
        "at": 1e9 + number * 86_400,
        "collection": collection,
        "questions": questions,
        "asked": 50,
        "collections": {},
        **held,
    }


def circles(chart: str, name: str) -> list[tuple[float, float, str]]:
    (group,) = [one for one in ElementTree.fromstring(chart).iter(f"{SVG}g") if one.get("class") == name]
    return [(float(dot.get("cx", "")), float(dot.get("cy", "")), dot[0].text or "") for dot in group.iter(f"{SVG}circle")]


def lines(chart: str, name: str) -> int:
    return sum(
        len(list(one.iter(f"{SVG}line"))) for one in ElementTree.fromstring(chart).iter(f"{SVG}g") if one.get("class") == name
    )


def test_each_check_is_a_point_at_its_height() -> None:
    chart = history_chart([check(0, hit_at_1=0.0), check(1, hit_at_1=0.5), check(2, hit_at_1=1.0)])
    low, middle, high = circles(chart, "hit_at_1")
    assert low[0] < middle[0] < high[0] and high[1] == TOP
    assert middle[1] == pytest.approx((low[1] + high[1]) / 2) and low[1] < HEIGHT
    day = time.strftime("%Y-%m-%d", time.localtime(1e9 + 86_400))
    assert middle[2] == f"{day}: right page first 0.50 of 50 questions"
    assert lines(chart, "hit_at_1") == 2 and 'class="hit_at_5"' not in chart, "what was never measured is not drawn"
    assert "the last: right page first 1.00." in str(ElementTree.fromstring(chart).get("aria-label"))


def test_other_questions_break_the_line_and_a_missing_rate_leaves_a_gap() -> None:
    chart = history_chart(
        [check(0, "a", hit_at_5=0.9), check(1, "b", hit_at_5=0.8), check(2, "b"), check(3, "b", hit_at_5=0.7)]
    )
    assert len(circles(chart, "hit_at_5")) == 3 and lines(chart, "hit_at_5") == 1


def test_only_the_newest_are_drawn_and_one_alone_stands_in_the_middle() -> None:
    assert len(circles(history_chart([check(n, hit_at_1=0.5) for n in range(SHOWN + 9)]), "hit_at_1")) == SHOWN
    ((x, _, _),) = circles(history_chart([check(0, hit_at_1=0.5)]), "hit_at_1")
    assert 300 < x < 400 and history_chart([]) == ""


@given(st.text(max_size=30), st.floats(0, 1), st.integers(0, 2**33))
def test_any_check_is_well_formed_and_runs_nothing(text: str, rate: float, at: int) -> None:
    held = {**check(0, text, text or None, hit_at_1=rate), "at": at, "asked": text}
    try:
        root = ElementTree.fromstring(history_chart([held]))
    except ElementTree.ParseError:
        assert any(ord(letter) < 32 or 0xD800 <= ord(letter) <= 0xDFFF or ord(letter) > 0xFFFD for letter in text)
        return
    assert {one.tag.removeprefix(SVG) for one in root.iter()} <= {"svg", "g", "line", "circle", "text", "title"}


def test_a_line_of_blocks_for_the_terminal() -> None:
    assert sparkline([0.0, 0.5, None, 0.99, 1.0]) == "▁▅·██"
    assert text_chart([check(0, hit_at_1=0.5)]) == []
    drawn = text_chart([check(0, hit_at_1=0.5), check(1, hit_at_1=1.0)])
    assert len(drawn) == len(LINES)
    (first,) = [line for line in drawn if line.startswith("right page first")]
    assert first.endswith("▅█  1.00")


def test_a_collection_has_its_own_checks_and_its_part_of_all() -> None:
    whole = check(0, hit_at_1=0.6) | {"collections": {"maths": {"hit_at_1": 0.9, "hit_at_5": 1.0, "asked": 10}}}
    found = by_collection([whole, check(1, collection="maths", hit_at_1=0.8), check(2, collection="art", hit_at_1=0.1)])
    assert [one["hit_at_1"] for one in found["maths"]] == [0.9, 0.8] and [one["hit_at_1"] for one in found[""]] == [0.6]
    assert (
        found["maths"][0]["refused_unanswerable"] is None
        and found["maths"][0]["asked"] == 10
        and list(found) == ["", "maths", "art"]
    )
