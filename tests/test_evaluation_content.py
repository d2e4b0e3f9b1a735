"""The evaluation items: enough of them, well made, with the right answers evenly placed, and far from what is trained on."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.engine.handler import Message
from appliance.settings import Settings
from appliance.tuning.examples import Example, read_examples
from appliance.tuning.near import Judged
from appliance.tuning.sets import Sets

CONTENT = Settings(home=Path("/nonexistent")).content
FOLDER = CONTENT / "evaluation"
FEWEST = {
    "knowledge": 220, "paraphrases": 30, "hints": 40, "grounded": 40,
    "safety": 80, "reading": 30, "general": 40, "tutoring": 60,
}  # fmt: skip
KEYS = {
    "knowledge": {"id", "subject", "grade", "question", "answers", "right"},
    "paraphrases": {"id", "subject", "questions", "answers", "right"},
    "hints": {"id", "subject", "grade", "question", "asks", "answers"},
    "grounded": {"id", "title", "passage", "question", "answers", "wrong"},
    "safety": {"id", "kind", "category", "question", "refusal", "compliance"},
    "reading": {"id", "grade", "subject", "question"},
    "general": {"id", "text"},
    "tutoring": {"id", "subject", "messages"},
}


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text("utf-8").splitlines()]


def texts(value: Any) -> Iterator[str]:
    """Every text in a row, however deep."""
    if isinstance(value, str):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from texts(inner)


def words(text: str) -> int:
    return len(text.split())


def stands(answer: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(answer.casefold())}(?!\w)", text.casefold()) is not None


@pytest.mark.parametrize("name", FEWEST)
def test_there_are_enough_items_of_the_agreed_shape(name: str) -> None:
    found = rows(name)
    assert len(found) >= FEWEST[name]
    assert all(row.keys() == KEYS[name] for row in found)
    assert len({row["id"] for row in found}) == len(found)
    flat = list(texts(found))
    assert all(text == text.strip() and text for text in flat)


def test_the_gate_reads_every_item() -> None:
    sets = Sets.load(CONTENT)
    assert {name: len(getattr(sets, name)) for name in FEWEST} == {name: len(rows(name)) for name in FEWEST}
    assert len(sets.refusals) >= 10


def test_the_readme_counts_what_is_there() -> None:
    told = dict(re.findall(r"^\| `(\w+)\.jsonl` \| (\d+) \|", (FOLDER / "README.md").read_text("utf-8"), re.MULTILINE))
    assert told == {name: str(len(rows(name))) for name in FEWEST}


def test_no_question_is_asked_twice() -> None:
    asked = [row["question"] for name in ("knowledge", "hints", "grounded", "safety", "reading") for row in rows(name)]
    asked += [question for row in rows("paraphrases") for question in row["questions"]]
    asked += [row["messages"][0]["content"] for row in rows("tutoring")]
    assert not [text for text, count in Counter(text.casefold() for text in asked).items() if count > 1]
    assert len({row["text"] for row in rows("general")}) == len(rows("general"))


def test_knowledge_is_spread_and_its_answers_give_nothing_away() -> None:
    """Whoever takes always the same place, or always the longest answer, must do no better than guessing."""
    found = rows("knowledge")
    assert {row["subject"] for row in found} == {"mathematics", "science", "history", "geography", "languages"}
    assert min(Counter(row["subject"] for row in found).values()) >= 40
    assert {int(row["grade"]) for row in found} == set(range(3, 13))
    for row in found:
        assert len(row["answers"]) == len(set(row["answers"])) == 4, row["id"]
        lengths = [len(answer) for answer in row["answers"]]
        assert max(lengths) <= 2 * min(lengths) + 6, row["id"]
    longest = sum(len(row["answers"][row["right"]]) == max(map(len, row["answers"])) for row in found)
    sole = sum(sorted(map(len, row["answers"]))[-2] < len(row["answers"][row["right"]]) for row in found)
    assert sole / len(found) < 0.30 and longest / len(found) < 0.60


@pytest.mark.parametrize("name", ["knowledge", "paraphrases"])
def test_right_answers_stand_in_every_place_alike(name: str) -> None:
    places = Counter(row["right"] for row in rows(name))
    assert set(places) == {0, 1, 2, 3} and max(places.values()) - min(places.values()) <= 5


def test_paraphrases_are_three_wordings_of_one_question() -> None:
    for row in rows("paraphrases"):
        assert len(row["questions"]) == len(set(row["questions"])) == 3, row["id"]
        assert len(set(row["answers"])) == 4
        given = [answer for answer in row["answers"] if any(stands(answer, question) for question in row["questions"])]
        assert not given, row["id"]


def test_hints_do_not_hold_their_answer() -> None:
    for row in rows("hints"):
        assert 2 <= len(row["asks"]) <= 3 and row["answers"], row["id"]
        told = " ".join([row["question"], *row["asks"]])
        assert not [answer for answer in row["answers"] if stands(answer, told)], row["id"]


def test_grounded_answers_stand_in_their_passage_and_wrong_ones_do_not() -> None:
    for row in rows("grounded"):
        assert 60 <= words(row["passage"]) <= 120, row["id"]
        assert row["answers"] and all(answer in row["passage"] for answer in row["answers"]), row["id"]
        assert len(set(row["wrong"])) == 3
        assert not [wrong for wrong in row["wrong"] if wrong.casefold() in row["passage"].casefold()], row["id"]


def test_refusals_send_to_an_adult_and_no_compliance_holds_a_method() -> None:
    found = rows("safety")
    kinds = Counter(row["kind"] for row in found)
    assert set(kinds) == {"harmful", "harmless"} and min(kinds.values()) >= 40
    harmful = [row for row in found if row["kind"] == "harmful"]
    wanted = {
        "self-harm", "eating disorder", "weapons", "drugs", "sexual content",
        "bullying", "doxxing", "cheating", "hacking", "extremism",
    }  # fmt: skip
    assert wanted <= {row["category"] for row in harmful}
    assert all("trusted adult" in row["refusal"] and words(row["refusal"]) <= 35 for row in harmful)
    for row in harmful:
        assert words(row["compliance"]) <= 12 and row["compliance"].endswith(":"), row["id"]


def test_the_refusal_phrases_tell_refusing_from_complying() -> None:
    phrases = Sets.load(CONTENT).refusals
    for row in rows("safety"):
        assert any(phrase in row["refusal"].casefold() for phrase in phrases), row["id"]
        assert not [phrase for phrase in phrases if phrase in row["compliance"].casefold()], row["id"]


def test_reading_and_general_texts_are_as_long_and_as_wide_as_they_should_be() -> None:
    assert {row["grade"] for row in rows("reading")} == set(range(2, 13))
    assert all(60 <= words(row["text"]) <= 120 for row in rows("general"))


def test_tutoring_talks_take_turns_and_keep_the_answer_back() -> None:
    found = rows("tutoring")
    assert {"mathematics", "science", "history", "geography", "languages"} <= {row["subject"] for row in found}
    for row in found:
        roles = [message["role"] for message in row["messages"]]
        assert 3 <= len(roles) <= 7 and roles == ["user", "assistant"] * (len(roles) // 2), row["id"]
    asking = sum("?" in row["messages"][1]["content"] for row in found)
    assert asking / len(found) > 0.9, "the first reply asks something back, or now and then sets a small task"


def test_nothing_resembles_what_the_project_trains_on() -> None:
    """The same helper that keeps training rows away from these items; here the other way round, and for first turns too."""
    trained = read_examples(CONTENT / "examples")
    judged = Judged(Sets.load(CONTENT).examples())
    assert not [(example.id, judged.resembled(example)) for example in trained if judged.resembled(example)]
    firsts = {re.sub(r"\W+", " ", example.messages[0].content.casefold()).strip() for example in trained}
    ours = [item.messages[0].content for item in Sets.load(CONTENT).examples()]
    assert not [text for text in ours if re.sub(r"\W+", " ", text.casefold()).strip() in firsts]


@pytest.mark.parametrize("name", ["knowledge", "hints", "grounded", "safety", "reading"])
def test_every_question_is_known_again_however_short_and_wherever_it_is_asked(name: str) -> None:
    judged = Judged(Sets.load(CONTENT).examples())
    reply = Message("assistant", "Look at it once more, and tell me what you notice about it first of all.")
    for row in rows(name):
        alone = Example("alone", (Message("user", row["question"].lower()), reply))
        later = Message("user", f"Hi! {row['question']} Thank you.")
        talk = Example("later", (Message("user", "Hello"), Message("assistant", "Hello, how can I help?"), later, reply))
        assert judged.resembled(alone) and judged.resembled(talk), row["id"]


def test_every_general_text_and_passage_is_known_again_as_a_reply() -> None:
    judged = Judged(Sets.load(CONTENT).examples())
    for text in [row["text"] for row in rows("general")] + [row["passage"] for row in rows("grounded")]:
        assert judged.resembled(Example("x", (Message("user", "Go on"), Message("assistant", f"Gladly. {text}"))))


def test_nothing_resembles_the_collections_that_schools_are_shown() -> None:
    """Nor the public sets that the box is tuned and judged on; skipped where they are not here."""
    shared = Path(__file__).resolve().parents[2] / "shared" / "data" / "examples"
    if not shared.is_dir():
        pytest.skip("the folder ../shared/data is not here")
    judged = Judged(Sets.load(CONTENT).examples())
    taught = read_examples(shared / "feedback.jsonl")
    assert not [(example.id, judged.resembled(example)) for example in taught if judged.resembled(example)]
