"""What each metric makes of an answer: figures that a person can count."""

from __future__ import annotations

from typing import Any

import pytest

from appliance import prompts
from appliance.errors import BadInput
from appliance.plugins import dspy_metrics
from appliance.plugins.dspy_rows import Row

TUTOR, ASSESSOR = prompts.load("teacher_responder"), prompts.load("assessment")


def row(answer: str, question: str = "What is 17 x 6?", **more: Any) -> Row:
    return Row("r", {"question": question}, {"answer": answer}, **more)


def value(metric: str, wanted: Row, said: str) -> float:
    return round(dspy_metrics.score([metric], TUTOR, wanted, {"answer": said}).value, 3)


@pytest.mark.parametrize(
    ("metric", "wanted", "said", "expected"),
    [
        ("exact", "The whole.", "the  WHOLE", 1.0),
        ("exact", "The whole.", "The part.", 0.0),
        ("f1", "one two three four", "two four", 0.667),
        ("f1", "one two", "three", 0.0),
        ("f1", "one two", "", 0.0),
        ("f1", "the the the", "the", 0.5),
    ],
)
def test_beside_the_examples_own_answer(metric: str, wanted: str, said: str, expected: float) -> None:
    assert value(metric, row(wanted), said) == expected


def test_rubric_counts_the_moves_of_the_examples_answer() -> None:
    wanted = row("What do you think? Why do you think so?")
    asks = value("rubric", wanted, "What do you think happens? Why do you think so?")
    tells = dspy_metrics.score(["rubric"], TUTOR, wanted, {"answer": "The answer is 102."})
    assert asks == 1.0 and tells.value == 0.0 and "asks what a pupil thinks or knows" in tells.told


def test_rubric_of_an_assessment_is_its_level_and_an_honest_quote() -> None:
    wanted = Row("r", {"criterion": "Asks why", "talk": "Teacher: What makes you say that?"}, {"level": 2, "try_this": "x"})

    def of(level: Any, quote: str) -> float:
        told = {"level": level, "quote": quote, "try_this": "x"}
        return round(dspy_metrics.score(["rubric"], ASSESSOR, wanted, told).value, 2)

    assert of(2, "What makes you say that?") == 1.0 and of(2, "") == 1.0
    assert of(2, "Why is that so?") == 0.8 and of(1, "") == 0.6 and of(0, "") == 0.2 and of(None, "made up") == 0.0


def test_readability_asks_for_the_grade_and_forgives_what_is_simpler() -> None:
    easy = "You can do it. Look at the sum. What is ten times six?"
    hard = (
        "Multiplicative decomposition facilitates computational simplification of arithmetically complicated expressions, "
        "notwithstanding considerable representational overhead."
    )
    wanted = row(easy, grade="4")
    assert value("readability", wanted, easy) == 1.0 and value("readability", wanted, hard) == 0.0
    assert value("readability", wanted, "No.") == 0.0, "too short to be measured"
    assert dspy_metrics.checked(["readability"], TUTOR, [wanted]) == ("readability",)
    with pytest.raises(BadInput, match="needs the grade of every example"):
        dspy_metrics.checked(["readability"], TUTOR, [row(easy)])
    with pytest.raises(BadInput, match="does not answer pupils in prose"):
        dspy_metrics.checked(["hints"], ASSESSOR, [])


def test_hints_first_and_never_the_answer() -> None:
    wanted = row("What is 10 x 6?", final=("102",))
    assert value("hints", wanted, "What do you think 10 x 6 is?") == 1.0
    assert value("hints", wanted, "It is 102. What do you think?") == 0.0
    assert value("hints", wanted, "") == 0.0
    assert value("hints", wanted, "Sums can be long.") == 0.5
    given = row("Right.", question="Is 17 x 6 = 102?", final=("102",))
    assert value("hints", given, "You say 102: how did you get there?") > 0, "the pupil has said it already"


def test_several_count_as_their_mean_and_each_module_has_a_usual_one() -> None:
    both = dspy_metrics.score(["exact", "f1"], TUTOR, row("one two three four"), {"answer": "two four"})
    assert round(both.value, 3) == round((0 + 2 / 3) / 2, 3)
    assert dspy_metrics.checked((), ASSESSOR, []) == ("rubric",) and dspy_metrics.checked((), TUTOR, []) == ("f1",)
    assert dspy_metrics.checked(["f1", "f1"], TUTOR, []) == ("f1",)
