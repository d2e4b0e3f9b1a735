"""The split is stable, the parts never meet, and the card says what was done."""

from __future__ import annotations

import json
import random
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.engine.handler import Message
from appliance.errors import BadInput
from appliance.settings import PACKAGE
from appliance.tuning.dataset import Dataset, Example, build, load, part_key, read_examples
from appliance.tuning.near import Judged
from appliance.tuning.sets import Choice, Reading, Sets, Text

SHARED = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
word = st.sampled_from(["river", "poem", "angle", "magnet", "castle", "verb", "seed", "sum", "light", "frog", "map", "tense"])


def example(question: str, reply: str = "Look again. What changes?", system: str = "", id: str = "") -> Example:
    messages = (Message("user", question), Message("assistant", reply))
    if system:
        messages = (Message("system", system), *messages)
    return Example(id or question, messages)


def ids(part: list[Example]) -> set[str]:
    return {item.id for item in part}


questions = st.lists(st.lists(word, min_size=3, max_size=9).map(" ".join), min_size=30, max_size=60, unique=True)


def built(items: list[Example], folder: Path, limit: int | None = None) -> Dataset:
    try:
        return build(items, folder, limit=limit)
    except BadInput:
        return Dataset(folder, [], [], {})


@SHARED
@given(questions, st.integers(5, 30), st.randoms())
def test_no_item_changes_its_part(tmp_path: Path, asked: list[str], limit: int, random: object) -> None:
    """Not with the limit, not with the order, not with the tutor's words."""
    items = [example(question) for question in asked]
    whole = built(items, tmp_path / "whole")
    part = built(items, tmp_path / "part", limit)
    random.shuffle(items)  # type: ignore[attr-defined]
    shuffled = built(items, tmp_path / "shuffled")
    corrected = built([example(q, f"Another reply to {q}.", id=q) for q in asked], tmp_path / "corrected")
    assert part.held_out == [] or ids(part.held_out) <= ids(whole.held_out)
    assert not ids(part.train) & ids(whole.held_out)
    assert (ids(shuffled.train), ids(shuffled.held_out)) == (ids(whole.train), ids(whole.held_out))
    assert ids(corrected.held_out) == ids(whole.held_out)
    assert not ids(corrected.train) & ids(whole.held_out)


@SHARED
@given(questions)
def test_the_parts_never_share_a_question(tmp_path: Path, asked: list[str]) -> None:
    items = [example(question, f"Reply {n}?") for n, question in enumerate(asked)]
    items += [example(question.upper() + "!", f"Reply {n} again?") for n, question in enumerate(asked)]
    data = built(items, tmp_path)
    assert not {part_key(item) for item in data.train} & {part_key(item) for item in data.held_out}


def test_a_larger_limit_adds_and_takes_nothing_away(tmp_path: Path) -> None:
    items = read_examples(PACKAGE / "content" / "examples")
    small, large = build(items, tmp_path / "a", limit=100), build(items, tmp_path / "b", limit=200)
    assert ids(small.held_out) <= ids(large.held_out)
    dropped = small.card["dropped"]
    assert len(small.train) + len(small.held_out) + dropped["near_held_out"] + dropped["near_duplicates"] == 100


def test_150_examples_give_about_twenty_to_judge_by(tmp_path: Path) -> None:
    data = build(read_examples(PACKAGE / "content" / "examples"), tmp_path, limit=150)
    assert len(data.held_out) >= 18
    assert len(data.train) >= 100


def test_duplicates_are_counted_and_dropped(tmp_path: Path) -> None:
    items = [example(f"question {n} about the river {n * 3}", f"reply {n}") for n in range(40)]
    data = build([*items, *items[:10], replace(items[0], id="again")], tmp_path)
    assert data.card["dropped"]["duplicates"] == 11
    assert data.card["examples"] <= 40


def test_near_copies_of_held_out_items_are_not_trained_on(tmp_path: Path) -> None:
    story = "A train leaves the old station at {} and reaches the far town after three slow hours. How fast did it go, roughly?"
    filler = [example(f"item {n} tell me about thing {n * 13}", f"Think about {n} first.") for n in range(60)]
    stories = [example(story.format(hour), f"Begin with the distance, pupil {hour}.", id=f"story-{hour}") for hour in range(24)]
    data = build([*filler, *stories], tmp_path)
    held = {item.id for item in data.held_out if item.id.startswith("story")}
    assert held, "with 24 stories some are held out"
    assert not any(item.id.startswith("story") for item in data.train)
    assert data.card["dropped"]["near_held_out"] >= 24 - len(held)


def test_near_copies_within_training_are_trained_on_once(tmp_path: Path) -> None:
    filler = [example(f"item {n} tell me about thing {n * 13}", f"Think about {n} first.") for n in range(60)]
    ask = "Tell me please"
    reply = (
        "You could look at the tall grey tower beside the old mill, count its windows floor by floor, and write each number "
    )
    reply += (
        "into a table with one row for every floor, so that you see at once on which of them there are more than on the last"
    )
    copies = [example(f"{ask}{' now' * n}", f"{reply}{' again' * n}.", id=f"copy-{n}") for n in range(3)]
    other = example(ask, "Why do you want to know that? Say first what you see from where you stand.", id="other")
    data = build([*filler, *copies, other], tmp_path / "a")
    held = ids(data.held_out)
    assert not held & {"copy-0", "copy-1", "copy-2", "other"}, "else the test says nothing"
    assert len(ids(data.train) & {"copy-0", "copy-1", "copy-2"}) == 1 and "other" in ids(data.train)
    assert data.card["dropped"]["near_duplicates"] == 2
    again = build([*copies[::-1], other, *filler], tmp_path / "b")
    assert again.digest == data.digest, "the same one is kept, whatever the order"


def test_what_is_near_an_evaluation_item_is_not_trained_on(tmp_path: Path) -> None:
    items = [example(f"item {n} tell me about thing {n * 13}", f"Think about {n} first.") for n in range(60)]
    plain = build(items, tmp_path / "a")
    judged = plain.train[:3]
    data = build(items, tmp_path / "b", evaluation=judged)
    assert ids(data.train) <= ids(plain.train) - ids(judged)
    assert data.held_out == plain.held_out and data.card["dropped"]["near_evaluation"] >= 3


SHORT = Sets(
    knowledge=(Choice("k1", "science", "5", "What is photosynthesis?", ("a", "b", "c", "d"), 0),),
    reading=(Reading("r1", 5, "science", "Why is the sky blue?"),),
    general=(
        Text("g1", "The harbour was quiet in the early morning, and only two of the boats had gone out before the rain."),
    ),
)


def taught(id: str, *said: str) -> Example:
    """A talk of the given turns, the pupil's first; the last is the tutor's."""
    return Example(id, tuple(Message("assistant" if at % 2 else "user", text) for at, text in enumerate(said)))


@pytest.mark.parametrize(
    "copy",
    [
        taught("copy", "what is photosynthesis", "Which part of a leaf is green, and what does it need to make its food?"),
        taught("copy", "Good morning!", "Hello, what is it today?", "What is photosynthesis?", "What does a leaf need?"),
        taught("copy", "Hi there. Why is the sky blue? Thanks!", "What do you know about light that goes through the air?"),
        taught("copy", "Go on, please.", f"{SHORT.general[0].text} Shall I go on?"),
    ],
    ids=["the question alone", "in a later turn", "between greetings", "prose as a reply"],
)
def test_a_copy_of_a_short_question_is_not_trained_on(copy: Example, tmp_path: Path) -> None:
    items = [example(f"item {n} tell me about thing {n * 13}", f"Think about {n} first.") for n in range(60)]
    without = build([*items, copy], tmp_path / "a")
    assert copy in without.train, "else the test says nothing"
    data = build([*items, copy], tmp_path / "b", evaluation=SHORT.examples())
    assert copy not in data.train and data.card["dropped"]["near_evaluation"] == 1
    assert data.held_out == without.held_out


def test_a_long_held_out_question_is_not_trained_on_in_a_later_turn() -> None:
    asked = "How many whole apples are left in the old basket after the third of the four hungry children has eaten?"
    items = [example(f"item {n} tell me about thing {n * 13}", f"Think about {n} first.") for n in range(60)]
    later = taught("later", "Hello tutor", "Hello, what is it today?", asked, "How many were there at first?")
    kept = Judged([example(asked)])
    assert kept.resembled(later) and not any(kept.resembled(item) for item in items)


def test_a_stock_first_sentence_of_a_held_out_talk_keeps_nothing_from_training() -> None:
    held = taught("held", "Can you help me?", "With what?", "With the sum of these.", "What have you tried with this sum?")
    other = taught("other", "Can you help me?", "What is it about?", "About the river in my book.", "Where does it begin?")
    assert Judged([held]).resembled(other) is None


@pytest.mark.slow
def test_five_thousand_rows_take_seconds(tmp_path: Path) -> None:
    base = read_examples(PACKAGE / "content" / "examples")
    vocabulary = sorted({part for item in base for message in item.messages for part in message.content.split()})
    draw = random.Random(1)

    def varied(text: str) -> str:
        return " ".join(draw.choice(vocabulary) if draw.random() < 0.25 else part for part in text.split())

    rows = [
        Example(f"r{n}", tuple(Message(one.role, varied(one.content)) for one in base[n % len(base)].messages))
        for n in range(5000)
    ]
    started = time.process_time()
    data = build(rows, tmp_path, evaluation=Sets.load(PACKAGE / "content").examples())
    assert time.process_time() - started < 20
    assert len(data.train) > 4000


def test_the_card_names_the_rows_and_what_was_said_of_them(tmp_path: Path) -> None:
    items = [
        replace(example(f"item {n} about thing {n * 13}", f"Reply {n}.", id=f"r{n}"), author=f"a{n % 4}") for n in range(40)
    ]
    facts = {"redactions": {"name": 3}, "digest": "forged"}
    data = build(items, tmp_path / "a", facts=facts)
    assert data.card["rows"] == {"train": [one.id for one in data.train], "held_out": [one.id for one in data.held_out]}
    assert (data.card["redactions"], data.card["authors"]) == ({"name": 3}, 4)
    assert load(tmp_path / "a") == data
    assert build(items, tmp_path / "b").digest == data.digest, "what is said of the rows is not the rows"


def test_a_stock_first_sentence_does_not_put_everything_into_one_part(tmp_path: Path) -> None:
    items = [
        example("I am ready for the next exercise.", f"Say {n} in Italian, please.", f"Exercise {n}: word {n * 7}", id=str(n))
        for n in range(100)
    ]
    data = build(items, tmp_path)
    assert 5 <= len(data.held_out) <= 30


def test_the_folder_is_complete_and_reads_back(tmp_path: Path) -> None:
    data = build(read_examples(PACKAGE / "content" / "examples"), tmp_path, limit=60)
    assert load(tmp_path) == data
    card = json.loads((tmp_path / "card.json").read_text("utf-8"))
    assert card["licence"] == {"CC BY 4.0": card["examples"]}
    assert sum(card["subject"].values()) == card["train"] + card["held_out"]
    again = build(read_examples(PACKAGE / "content" / "examples"), tmp_path / "again", limit=60)
    assert again.digest == data.digest
    (tmp_path / "train.jsonl").write_text("{}", "utf-8")
    with pytest.raises(BadInput, match="damaged"):
        load(tmp_path)


def test_nothing_to_train_on_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="none is left to train on"):
        build([], tmp_path)
    with pytest.raises(BadInput, match="limit"):
        build([example("a b c")], tmp_path, limit=0)
