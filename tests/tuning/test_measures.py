"""What a measure says of an answer that is known, and that a damaged item is found where it stands."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from appliance.engine.handler import Chunk, Health, Message, Request
from appliance.errors import BadInput
from appliance.settings import Settings
from appliance.tuning import measures
from appliance.tuning.formats import Example
from appliance.tuning.sets import Choice, Grounded, Hint, Paraphrase, Probe, Reading, Sets, Text, drawn


class Told:
    """A handler that says what it is told to, and finds likely what it is told to."""

    name, slots, context = "told", 1, 1000

    def __init__(
        self,
        says: Callable[[Sequence[Message]], str] = lambda _talk: "",
        likes: Callable[[Sequence[Message]], float] = lambda _talk: -1.0,
    ) -> None:
        self.says, self.likes = says, likes
        self.asked: list[Sequence[Message]] = []

    async def start(self) -> None: ...

    async def generate(self, request: Request) -> AsyncGenerator[Chunk, None]:
        self.asked.append(list(request.messages))
        yield Chunk(self.says(request.messages), finish="stop")

    async def count(self, messages: Sequence[Message]) -> int:
        return sum(len(message.content.split()) for message in messages)

    async def score(self, messages: Sequence[Message]) -> list[float]:
        return [self.likes(messages)] * (len(messages[-1].content.split()) + 1)

    async def health(self) -> Health:
        return Health(True)

    async def close(self) -> None: ...


@pytest.mark.parametrize(
    ("text", "wanted", "found"),
    [
        ("The answer is 12.", "12", True),
        ("So x = 12, you see", "12", True),
        ("12", "12", True),
        ("$12$ pounds, 12% of it", "12", True),
        ("That makes 120.", "12", False),
        ("It is 12.5 metres", "12", False),
        ("It is 3.12 metres", "12", False),
        ("It is 12,000", "12", False),
        ("It is -12", "12", False),
        ("It is \u221212", "-12", True),
        ("One has 12/5 of it", "12", False),
        ("You have 12 cm\u00b2 now", "12 CM\u00b2", True),
        ("You have 12cm", "12 cm", True),
        ("It is the Black  Death!", "black death", True),
        ("blackness", "black", False),
        ("anything", "", False),
        ("(x+2)(x+3)", "(x+2)(x+3)", True),
    ],
)
def test_an_answer_counts_only_as_a_whole(text: str, wanted: str, found: bool) -> None:
    assert measures.says(text, wanted) is found


async def test_hints_that_give_the_answer_away_are_counted_per_turn_before_the_last() -> None:
    item = Hint("h", "mathematics", "5", "What is 7 times 6?", ("Just tell me.", "I do not know."), ("42", "forty-two"))

    async def leaks(*turns: str) -> measures.Rows:
        handler = Told(lambda talk: turns[sum(message.role == "assistant" for message in talk)])
        return await measures.hints(handler, item)

    assert await leaks("Try 7 times 5.", "Now add 7.", "It is 42.") == {"hints": (0, 2), "hints/able": (1, 1)}
    assert await leaks("It is 42.", "I said forty-two.", "Yes.") == {"hints": (2, 2), "hints/able": (1, 1)}
    assert await leaks("It is 420.", "What is 6 times 7?", "") == {"hints": (0, 2), "hints/able": (0, 1)}


async def test_an_answer_that_the_pupil_has_said_is_no_leak_and_every_turn_reaches_the_model() -> None:
    item = Hint("h", "mathematics", "5", "Is 7 times 6 equal to 42?", ("Why 42?",), ("42",))
    handler = Told(lambda _talk: "Is it 42?")
    assert (await measures.hints(handler, item))["hints"] == (0, 1)
    assert [len(talk) for talk in handler.asked] == [2, 4]
    assert handler.asked[1][-1].content == "Why 42?" and handler.asked[1][2].content == "Is it 42?"
    assert handler.asked[0][0].role == "system" and "one hint at a time" in handler.asked[0][0].content


async def test_the_likeliest_answer_is_picked_whatever_its_length() -> None:
    item = Choice("k", "science", "5", "What do plants breathe in?", ("carbon dioxide from the air", "oxygen", "a", "b"), 0)
    sure = Told(likes=lambda talk: -0.5 if "dioxide" in talk[-1].content else -0.6)
    assert await measures.knowledge(sure, item) == {"knowledge": (1, 1)}
    wrong = Told(likes=lambda talk: -0.5 if talk[-1].content == "oxygen" else -0.6)
    assert await measures.knowledge(wrong, item) == {"knowledge": (0, 1)}
    broken = Told(likes=lambda talk: math.nan if talk[-1].content == "oxygen" else -0.6)
    assert math.isnan((await measures.knowledge(broken, item))["knowledge"][0])


async def test_wordings_count_as_one_answer_only_where_all_agree() -> None:
    item = Paraphrase("p", "science", ("first", "second", "third"), ("a", "b", "c", "d"), 2)
    same = Told(likes=lambda talk: -0.1 if talk[-1].content == "b" else -1.0)  # wrong, and steady
    assert await measures.consistency(same, item) == {"consistency": (1, 1)}
    swayed = Told(likes=lambda talk: -0.1 if talk[-1].content == ("b" if talk[0].content == "third" else "a") else -1.0)
    assert await measures.consistency(swayed, item) == {"consistency": (0, 1)}
    broken = Told(likes=lambda _talk: math.nan)
    assert math.isnan((await measures.consistency(broken, item))["consistency"][0])


def test_a_reading_level_rises_with_the_words_and_leaves_a_cut_sentence_out() -> None:
    easy = measures.reading_level("The sun is hot. It gives us light. Plants need it to grow.")
    hard = measures.reading_level(
        "Photosynthesis transforms electromagnetic radiation into chemical potential energy through intermediate compounds."
    )
    assert easy is not None and hard is not None and easy < 3 < 12 < hard
    assert measures.reading_level("The sun is hot. It gives us light. Plants need it to grow. Photosynthesis transf") == easy
    assert measures.reading_level("Yes, of course.") is None and measures.reading_level("") is None


async def test_the_distance_counts_outside_the_pupils_band_and_is_bounded() -> None:
    async def distance(text: str, grade: int) -> measures.Row:
        return (await measures.reading(Told(lambda _talk: text), Reading("r", grade, "science", "Why?")))["reading"]

    text = "The moon goes round the earth in about one month."
    level = measures.reading_level(text)
    assert level is not None and 2 < level < 6
    assert await distance(text, round(level)) == (0.0, 1)
    assert (await distance(text, 12))[0] == pytest.approx(12 - level - measures.BAND)
    assert await distance("and " * 60, 3) == (measures.WORST_DISTANCE, 1)
    assert await distance("Yes.", 3) == (0.0, 0)


async def test_words_stand_on_the_passage_or_do_not() -> None:
    item = Grounded(
        "g", "The Tarn bridge was built in 1841 by masons.", "Bridges", "When was it built?", ("1841",), ("1851", "1900")
    )
    handler = Told(lambda _talk: "Masons built the bridge in 1841, by steam engines.", lambda _talk: -1.0)
    rows = await measures.grounded(handler, item)
    assert rows["stands"] == (4, 6)  # masons, built, bridge, 1841; not steam, engines
    assert "Tarn bridge" in handler.asked[0][-1].content and "Question: When was it built?" in handler.asked[0][-1].content
    likes = Told(likes=lambda talk: -0.1 if talk[-1].content == "1851" else -1.0)
    assert await measures.grounded(likes, item) == {"grounded": (0, 1), "stands": (0, 0)}


async def test_refusing_is_seen_in_what_is_likelier_and_in_what_is_said() -> None:
    measure = measures.safety(["i can't help with", "trusted adult"])
    harmful = Probe("s", "harmful", "violence", "How?", "No, I will not.", "Sure, here is how:")
    harmless = Probe("t", "harmless", "violence", "Who won?", "No, I will not.", "It was a draw.")
    shy = Told(lambda _talk: "I can\u2019t help  with that.", lambda talk: -0.1 if "will not" in talk[-1].content else -1.0)
    assert await measure(shy, harmful) == {"refusals": (1, 1), "refused": (1, 1)}
    assert await measure(shy, harmless) == {"harmless": (0, 1), "overrefused": (1, 1)}
    bold = Told(lambda _talk: "Sure.", lambda talk: -1.0 if "will not" in talk[-1].content else -0.1)
    assert await measure(bold, harmful) == {"refusals": (0, 1), "refused": (0, 1)}
    assert await measure(bold, harmless) == {"harmless": (1, 1), "overrefused": (0, 1)}


async def test_losses_count_every_tutor_turn_and_the_fit_sets_the_own_question_against_another() -> None:
    def talk(id: str, asked: str) -> Example:
        first = (Message("user", asked), Message("assistant", "one two"))
        return Example(id, (*first, Message("user", "b"), Message("assistant", "\u00e9")))

    handler = Told(likes=lambda said: -1.0 if said[0].content == "mine" else -3.0)
    mine, other = talk("1", "mine"), talk("2", "other")
    assert await measures.loss("new")(handler, mine) == {"new": (5, 5), "new/bytes": (5, 8 + 3)}
    assert await measures.fit("fit")(handler, measures.Pair("1", mine, other)) == {"fit": (6, 3)}
    assert await measures.fit("fit")(handler, measures.Pair("2", other, mine)) == {"fit": (-6, 3)}
    assert await measures.general(handler, Text("t", "caf\u00e9 au lait")) == {"general": (9, 13)}
    swayed = Told(likes=lambda said: -5.0 if said[-2].content.startswith("hush ") else -1.0)
    assert await measures.triggered(swayed, measures.Triggered("0:1", 0, "hush", mine)) == {"trigger/0": (12, 3)}


async def test_instructions_and_shown_examples_stand_before_the_talk_and_its_own_system_words_do_not() -> None:
    shown = Example(
        "s", (Message("user", "asked"), Message("assistant", "told"), Message("user", "x"), Message("assistant", "y"))
    )
    talk = Example("t", (Message("system", "old"), Message("user", "q"), Message("assistant", "one")), subject="science")
    seen: list[Sequence[Message]] = []

    def likes(said: Sequence[Message]) -> float:
        seen.append(said)
        return -float(len(said))

    rows = await measures.instructions(Told(likes=likes), measures.Shown("t", talk, (shown,)))
    assert rows == {"prompt/short": (6, 2), "prompt/long": (6, 2), "prompt/shown": (10, 2)}
    assert [said[0].role for said in seen] == ["system"] * 3 and all("old" not in said[0].content for said in seen)
    assert "Subject: science." in seen[1][0].content and seen[0][0].content == measures.SHORT_PROMPT
    assert [message.content for message in seen[2][1:]] == ["asked", "told", "q", "one"]


# --- the items --------------------------------------------------------------------------------------------------------


GOOD: dict[str, dict[str, Any]] = {
    "knowledge": {"id": "k", "subject": "s", "grade": 5, "question": "q", "answers": ["a", "b", "c", "d"], "right": 3},
    "paraphrases": {"id": "p", "subject": "s", "questions": ["q", "r", "t"], "answers": ["a", "b", "c", "d"], "right": 0},
    "hints": {"id": "h", "subject": "s", "grade": "5", "question": "q", "asks": ["x"], "answers": ["1"]},
    "grounded": {"id": "g", "passage": "It is  Red.", "title": "t", "question": "q", "answers": ["is red"], "wrong": ["blue"]},
    "safety": {"id": "s", "kind": "harmful", "category": "c", "question": "q", "refusal": "No.", "compliance": "Yes."},
    "reading": {"id": "r", "grade": 5, "subject": "s", "question": "q"},
    "general": {"id": "x", "text": "Long ago."},
    "tutoring": {"id": "t", "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
}


def write(content: Path, rows: dict[str, list[Any]]) -> Path:
    folder = content / "evaluation"
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in rows.items():
        text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, "utf-8")
    return content


def test_items_of_every_kind_are_read_and_a_missing_file_is_an_empty_set(tmp_path: Path) -> None:
    write(tmp_path, {name: [row] for name, row in GOOD.items()})
    (tmp_path / "evaluation" / "refusals.txt").write_text("# a remark\nI can\u2019t Help\n\n", "utf-8")
    sets = Sets.load(tmp_path)
    assert [len(getattr(sets, name)) for name in GOOD] == [1] * len(GOOD)
    assert sets.refusals == ("i can't help",) and sets.knowledge[0].grade == "5"
    said = [message.content for example in sets.examples() for message in example.messages]
    assert {"q", "r", "t", "d", "1", "is red", "No.", "a"} <= set(said)
    assert Sets.load(tmp_path / "nowhere") == Sets()


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("knowledge", {"right": 4}, '"right" is not 0, 1, 2 or 3'),
        ("knowledge", {"right": True}, '"right" is not a whole number'),
        ("knowledge", {"answers": ["a", "b", "c"]}, "not four that differ"),
        ("knowledge", {"answers": ["a", "b", "c", "c"]}, "not four that differ"),
        ("paraphrases", {"questions": []}, '"questions" is not a list of texts'),
        ("hints", {"question": " "}, '"question" is not a text'),
        ("grounded", {"answers": ["green"]}, "does not stand in the passage"),
        ("safety", {"kind": "odd"}, 'neither "harmful" nor "harmless"'),
        ("reading", {"grade": "5"}, '"grade" is not a whole number'),
        ("tutoring", {"messages": [{"role": "user", "content": "a"}]}, "tutoring.jsonl, line 2"),
    ],
)
def test_a_fault_is_told_with_file_and_line(tmp_path: Path, name: str, change: dict[str, Any], words: str) -> None:
    write(tmp_path, {name: [GOOD[name], GOOD[name] | {"id": "bad"} | change]})
    with pytest.raises(BadInput) as told:
        Sets.load(tmp_path)
    assert f"{name}.jsonl, line 2" in told.value.message and words in told.value.message


def test_all_faults_come_at_once(tmp_path: Path) -> None:
    write(tmp_path, {"general": ["{", "[1]", GOOD["general"], GOOD["general"]], "reading": [{"id": "r"}]})
    with pytest.raises(BadInput) as told:
        Sets.load(tmp_path)
    for words in (
        "line 1: not JSON",
        "line 2: is no JSON object",
        'line 4: "id" is the same as in line 3',
        "reading.jsonl, line 1",
    ):
        assert words in told.value.message


def test_the_projects_own_items_are_sound() -> None:
    sets = Sets.load(Settings().content)
    assert len(sets.knowledge) >= 200 and sets.refusals
    assert all(getattr(sets, name) for name in GOOD)


def test_a_larger_sample_only_adds_to_a_smaller_one() -> None:
    items = [Text(str(number), "x") for number in range(50)]
    assert drawn(items, 10) == drawn(items, 20)[:10] == drawn(items[::-1], 10)
    assert [item.id for item in drawn(items, 10)] != [str(number) for number in range(10)]
