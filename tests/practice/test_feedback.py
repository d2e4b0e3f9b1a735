"""What a teacher is told of a rehearsal: their own words, one thing to try, and no mark."""

from __future__ import annotations

import json
import re
from dataclasses import asdict

from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.practice import feedback
from appliance.practice.exchange import Beat, Exchange
from appliance.practice.feedback import Feedback, assess, compare
from appliance.practice.moves import detect
from appliance.practice.scenario import Criterion, PupilSpec, Scenario

ASKS = Criterion(
    "asks", "Asking for thinking", ("elicit", "press"), ("tell",), 2,
    ("You told more than you asked.", "You asked for a pupil's thinking.", "You asked again and again, and for reasons."),
    "Ask one pupil how they know.",
)  # fmt: skip
CALM = Criterion(
    "calm", "Staying calm", ("acknowledge", "correct_behaviour", "wait"), ("put_down",), 1,
    ("It was sharp at times.", "You stayed calm in part.", "You stayed calm."), "Say what you expect in one short sentence.",
)  # fmt: skip
PUPIL = PupilSpec("Ada", "quiet", "short", 2, 0, 2, 2, {"answers": ("Four.",)})


def scene(*rubric: Criterion) -> Scenario:
    return Scenario(
        "s",
        1,
        "Halves",
        "misconception",
        "primary",
        "mathematics",
        "4",
        10,
        "A room.",
        "It begins.",
        ("Listen.",),
        (PUPIL,),
        rubric,
    )


def turns(*said: str, waited: float | None = None) -> list[Exchange]:
    beat = Beat("Ada", "answers", "It has four sides.")
    return [Exchange(number, one, detect(one, waited=waited), (beat,), waited) for number, one in enumerate(said, 1)]


def test_a_question_that_only_asks_for_a_yes_is_no_evidence_of_asking_for_reasons() -> None:
    reasons = Criterion("why", "Asking for reasons", ("press",), (), 1, ("No.", "Once.", "Often."), "Ask how they know.")
    sure = turns("Are you sure about the eighth?", "Ada, are you certain that it is a square?", "Are you sure?")
    assert assess(scene(reasons), sure).scores[0].turns == 0
    known = assess(scene(reasons), [*sure, *turns("Are you sure about the eighth? How do you know?")]).scores[0]
    assert [quote.text for quote in known.evidence] == ["How do you know?"]


def test_evidence_is_quoted_with_its_turn_and_the_level_follows_from_it() -> None:
    found = assess(scene(ASKS), turns("Good morning. What do you notice, Ada?", "Why do you think so?", "Fine."))
    score = found.scores[0]
    assert [(quote.turn, quote.text) for quote in score.evidence] == [
        (1, "What do you notice, Ada?"),
        (2, "Why do you think so?"),
    ]
    assert score.evidence[0].move == "elicit"
    assert score.level == 2 and score.words == ASKS.levels[2] and not score.against
    assert found.turns == 3 and found.longest_turn == 7 and found.moves["press"] == 1


def test_what_speaks_against_it_is_quoted_and_counted_too() -> None:
    found = assess(scene(ASKS), turns("What do you notice?", "The answer is twelve."))
    score = found.scores[0]
    assert score.level == 0 and [quote.text for quote in score.against] == ["The answer is twelve."]
    assert found.next_step == ASKS.try_this


def test_a_turn_counts_once_however_often_it_asks() -> None:
    assert assess(scene(ASKS), turns("What do you notice? How do you know? Who has another idea?")).scores[0].level == 1


def test_the_next_step_is_that_of_the_weakest_line() -> None:
    both = scene(ASKS, CALM)
    assert assess(both, turns("What do you notice?", "Why do you think so?")).next_step == CALM.try_this
    assert assess(both, turns("Phones away, please.")).next_step == ASKS.try_this
    done = turns("What do you notice?", "Why do you think so?", "Phones away, please.")
    assert assess(both, done).next_step == feedback.GO_ON
    long = [*done, *turns("And so it went on. " * 40)]
    assert assess(both, long).next_step == feedback.LESS_AT_ONCE


def test_a_rehearsal_without_words_gets_calm_words_and_a_step() -> None:
    for exchanges in ([], turns(""), turns("  \n ")):
        found = assess(scene(ASKS, CALM), exchanges)
        assert found.next_step == feedback.NOTHING_SAID and found.turns == 0 and found.longest_turn == 0
        assert [score.level for score in found.scores] == [0, 0] and not found.moves
    assert assess(scene(ASKS), []).talk is None


def test_talk_and_pauses_are_counted() -> None:
    found = assess(scene(CALM), turns("One two three four.", waited=4.5))
    assert found.talk == 0.5 and found.pauses == (4.5,)
    pause = found.scores[0].evidence[0]
    assert (pause.move, pause.text, pause.turn) == ("wait", "", 1)


def test_a_second_attempt_is_set_beside_the_first() -> None:
    first = assess(scene(ASKS, CALM), turns("The answer is twelve.", "Phones away, please."))
    second = assess(scene(ASKS, CALM), turns("What do you notice?", "Are you stupid?"))
    changes = {change.criterion: change for change in compare(first, second)}
    assert (changes["asks"].direction, changes["calm"].direction) == (1, -1)
    assert changes["asks"].before == ASKS.levels[0] and changes["asks"].after == ASKS.levels[1]
    assert [change.direction for change in compare(second, second)] == [0, 0]
    assert compare(first, assess(scene(), [])) == []


def test_ten_turns_are_more_than_eight_although_fewer_are_quoted() -> None:
    first = assess(scene(ASKS), turns(*["What do you notice?"] * 8))
    second = assess(scene(ASKS), turns(*["What do you notice?"] * 10))
    assert len(second.scores[0].evidence) == feedback.QUOTES and compare(first, second)[0].direction == 1


def test_it_can_be_kept_and_read_again() -> None:
    found = assess(scene(ASKS, CALM), turns("What do you notice?", "Are you stupid?", waited=3.2))
    assert Feedback.from_facts(json.loads(json.dumps(found.as_facts()))) == found


@given(st.lists(st.text(max_size=80), max_size=5))
@settings(max_examples=60, deadline=None)
def test_whatever_was_said_each_quote_is_in_its_turn(said: list[str]) -> None:
    exchanges = turns(*said)
    found = assess(scene(ASKS, CALM), exchanges)
    for score in found.scores:
        assert score.level in (0, 1, 2)
        assert all(quote.text in said[quote.turn - 1] for quote in (*score.evidence, *score.against))


def test_no_sentence_gives_a_mark_or_a_percentage_and_all_speak_to_the_teacher() -> None:
    changes = compare(assess(scene(ASKS), []), assess(scene(ASKS), turns("What do you notice?")))
    assert {one.words for one in changes} <= {*feedback.SENTENCES}
    texts = feedback.SENTENCES
    for text in texts:
        assert not re.search(r"%|score|grade|mark|points?\b|rating|fail|poor|bad|\bI\b", text), text
    assert not {"score", "grade", "mark", "percent", "rank"} & set(asdict(assess(scene(ASKS), [])))
