"""What counts as evidence, when it is enough, and what a school can fit: on a toy index, and on fitted numbers."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.db import Database
from appliance.errors import BadInput, ModelUnavailable
from appliance.knowledge import calibration, ranking
from appliance.knowledge.calibration import LEAST, fit, held_out
from appliance.knowledge.index import Vector
from appliance.knowledge.library import EVERYTHING, Library
from appliance.knowledge.ranking import COVERED, COVERED_BY_WORDS, FLOOR, Judge, propose
from appliance.knowledge.shelves import Within
from appliance.settings import CLONE, Settings
from tests.knowledge.helpers import MAGNETS, PLANTS, RIVERS, embed, engine_down, pdf

CONTENT = CLONE / "appliance" / "content" / "retrieval"
VECTOR = np.zeros(384, dtype=np.float32)


class Toy:
    """An index of a thousand passages that is told what it finds."""

    passages = 1_000
    embedded = 1_000

    def __init__(self, words: Sequence[int] = (), meaning: Sequence[int] = (), unknown: Sequence[str] = ()) -> None:
        self._words = words
        self._meaning = meaning
        self._unknown = unknown

    def nearest(self, vector: Vector, k: int, within: Within) -> list[tuple[int, float]]:  # noqa: ARG002
        return [(passage, 0.5) for passage in self._meaning[:k]]

    def matching(self, words: Sequence[str], k: int, within: Within) -> list[tuple[int, float]]:  # noqa: ARG002
        return [(passage, 0.5) for passage in self._words[:k]]

    def frequency(self, word: str) -> int:
        return 0 if word in self._unknown else 10

    def cosines(self, ids: Sequence[int], vector: Vector) -> dict[int, float]:  # noqa: ARG002
        return dict.fromkeys(ids, 0.5)


def test_what_both_propose_comes_before_what_one_proposes_first() -> None:
    ids, cosines = propose(Toy([1, 2, 3], [4, 3, 5]), "magnets", VECTOR, EVERYTHING)
    assert ids[0] == 3 and set(ids) == {1, 2, 3, 4, 5} == cosines.keys()
    assert propose(Toy([1, 2], [4]), "magnets", None, EVERYTHING) == ([1, 2], {})


def test_words_side_by_side_say_more_than_words_far_apart() -> None:
    apart = (
        "A magnet is iron. " + "It lies on the table. " * 4 + "The needle of a clock turns. " + "So it goes on. " * 4 + "North."
    )
    together = "A needle turns north near a magnet. " + "It lies on the table and is iron. " * 8
    verdict = Judge(Toy(), "magnet needle north", False).order({1: apart, 2: together}, {1: 0.5, 2: 0.5})
    assert verdict.order == [2, 1]


def test_an_explanation_over_two_passages_of_a_page_loses_little() -> None:
    texts = {1: "The needle turns.", 2: "It points north because of a magnet.", 3: "The needle turns."}
    judge = Judge(Toy(), "magnet needle north", False)
    alone = judge.order(texts, dict.fromkeys(texts, 0.5)).reached
    beside = judge.order(texts, dict.fromkeys(texts, 0.5), {1: [2], 2: [1]}).reached
    assert beside[1] > alone[1] and beside[2] > alone[2] and beside[3] == alone[3]


def test_exercises_come_after_the_explanation() -> None:
    drill = "1. a magnet\n2. a needle\n3. magnetic north"
    asks = "What is a magnet?\nWhat is a needle?\nWhere is north?"
    text = "A magnet. A needle. North."
    verdict = Judge(Toy(), "magnet needle north", False).order({1: drill, 2: asks, 3: text}, {1: 0.5, 2: 0.5, 3: 0.5})
    assert verdict.order[0] == 3


def test_a_word_that_stands_nowhere_makes_an_answer_less_likely() -> None:
    text = {1: "A magnet turns a needle north."}
    known = Judge(Toy(), "magnet needle klystron", False).order(text, {1: 0.6})
    unknown = Judge(Toy(unknown=["klystron"]), "magnet needle klystron", False).order(text, {1: 0.6})
    assert unknown.reached[1] < known.reached[1] - 0.1


def test_words_without_meaning_decide_nothing_and_a_passage_without_vector_is_not_hidden() -> None:
    judge = Judge(Toy(), "magnet needle", False)
    coincidence = judge.order({1: "magnet needle"}, {1: FLOOR - 0.01})
    assert coincidence.reached == {} and coincidence.order == [1]
    assert judge.order({1: "magnet needle"}, {}).reached[1] >= COVERED
    assert judge.order({1: "table"}, {}).reached[1] < COVERED


def test_by_words_alone_the_order_is_that_of_the_index_and_the_ruler_another() -> None:
    verdict = Judge(Toy(), "magnet needle", True).order({2: "table", 1: "a magnet and its needle"}, {})
    assert verdict.order == [2, 1] and verdict.needed == COVERED_BY_WORDS and verdict.reached == {2: 0.0, 1: 1.0}


@given(st.text(max_size=60), st.dictionaries(st.integers(0, 9), st.text(max_size=80), max_size=5), st.booleans())
def test_any_text_is_weighed(question: str, texts: dict[int, str], by_words: bool) -> None:
    cosines = {} if by_words else dict.fromkeys(texts, 0.5)
    verdict = Judge(Toy(), question, by_words).order(texts, cosines, {0: [1], 1: [0]} if {0, 1} <= texts.keys() else None)
    assert sorted(verdict.order) == sorted(texts) and verdict.reached.keys() <= texts.keys()
    top = 1.0 if by_words else 0.5 + ranking.NEAR_WEIGHT + ranking.PLACE_WEIGHT
    assert all(-1 < reached <= top + 1e-9 for reached in verdict.reached.values())


# --- the committed questions -----------------------------------------------------------------------------------------
def _rows(name: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (CONTENT / f"{name}.jsonl").read_text("utf-8").splitlines()]


def test_the_development_questions_are_many_and_none_is_a_test_question(shared_data: Path) -> None:
    answerable, unanswerable = _rows("answerable"), _rows("unanswerable")
    assert len(answerable) >= 150 and len(unanswerable) >= 100
    assert len({str(row["book_file"])[:7] for row in answerable}) >= 2, "two subjects"
    asked = [_folded(row["question"]) for row in [*answerable, *unanswerable]]
    assert len(asked) == len(set(asked))
    given = shared_data / "examples"
    for name in ("retrieval_questions", "unanswerable"):
        lines = (given / f"{name}.jsonl").read_text("utf-8").splitlines()
        assert not {_folded(json.loads(line)["question"]) for line in lines} & set(asked)


def _folded(text: object) -> str:
    return re.sub(r"\W+", "", str(text)).lower()


# --- a collection's own threshold ------------------------------------------------------------------------------------
def test_the_threshold_lies_between_the_two_sorts_and_in_the_middle_of_equals() -> None:
    best = [0.8, 0.85, 0.9, 0.95] * 10 + [0.2, 0.25, 0.3, 0.35] * 5
    known = [True] * 40 + [False] * 20
    assert 0.35 < fit(best, known) < 0.8
    assert fit([0.6, 0.8] * 20 + [0.2, 0.4] * 20, [True] * 40 + [False] * 40) == pytest.approx(0.5, abs=0.01)
    assert fit([0.5] * 40, [True, False] * 20) == pytest.approx(0.5)
    assert held_out(best, known) == [False] * 40 + [True] * 20


def test_what_is_held_out_is_judged_without_it() -> None:
    draw = random.Random(4)
    best = [draw.gauss(0.7, 0.1) for _ in range(300)] + [draw.gauss(0.5, 0.1) for _ in range(300)]
    known = [True] * 300 + [False] * 300
    refused = held_out(best, known)
    assert 0.08 < sum(refused[:300]) / 300 < 0.25 and 0.75 < sum(refused[300:]) / 300 < 0.92
    odd = held_out([*best, 99.0], [*known, False])
    assert odd[-1] is False, "a question does not move the threshold that judges it"


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    files = {"plants.pdf": PLANTS, "rivers.pdf": RIVERS, "magnets.pdf": MAGNETS}
    rows: list[dict[str, object]] = []
    for name, text in files.items():
        pdf(tmp_path / name, [text])
        subject = text.split(". ")
        rows += [{"question": f"{part} ({number})", "book_file": name} for part in subject for number in range(4)]
    rows += [{"question": f"Who was king number {number} of Ruritania?", "answer_in_books": False} for number in range(LEAST)]
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


async def test_a_collection_gets_a_threshold_of_its_own(
    settings: Settings, database: Database, tmp_path: Path, questions: Path
) -> None:
    library = Library(settings, database, embed)
    await library.add(sorted(tmp_path.glob("*.pdf")), collection="science")
    await library.add([tmp_path / "plants.pdf"], collection="other")
    before = await library.search("How do plants make sugar?", within=EVERYTHING)
    assert before.covered == (before.best >= before.threshold) and before.threshold == COVERED
    report = await library.calibrate(questions, EVERYTHING, "science")
    assert (report["answerable"], report["unanswerable"]) == (24, LEAST)
    assert report["refused_unanswerable"] == 1.0 and report["intervals"]["refused_answerable"][0] == 0.0
    science = await library.named(["science"], EVERYTHING)
    found = await library.search("How do plants make sugar?", within=science)
    assert found.threshold == report["threshold"] and found.best == before.best
    other = await library.named(["other"], EVERYTHING)
    assert (await library.search("How do plants make sugar?", within=other)).threshold == COVERED
    calibration.keep(database, "science", 0.99)
    strict = await library.search("How do plants make sugar?", within=science)
    assert not strict.covered and strict.nearest
    assert (await library.search("How do plants make sugar?", within=EVERYTHING)).covered, "another collection answers it"
    calibration.keep(database, "science", None)
    assert (await library.search("How do plants make sugar?", within=science)).threshold == COVERED
    library.close()


async def test_too_few_questions_or_no_embedder_fit_nothing(
    settings: Settings, database: Database, tmp_path: Path, questions: Path
) -> None:
    library = Library(settings, database, embed)
    await library.add(sorted(tmp_path.glob("*.pdf")), collection="science")
    await library.add([tmp_path / "plants.pdf"], collection="plants")
    with pytest.raises(BadInput, match="8 questions that this collection answers and 20"):
        await library.calibrate(questions, EVERYTHING, "plants")
    library.close()
    library = Library(settings, database, engine_down)
    with pytest.raises(ModelUnavailable, match="by words alone"):
        await library.calibrate(questions, EVERYTHING, "science")
    assert (await library.search("Where does the river slow down?", within=EVERYTHING)).threshold == COVERED_BY_WORDS
    library.close()


async def test_questions_that_tell_nothing_apart_fit_nothing(
    settings: Settings, database: Database, tmp_path: Path, questions: Path
) -> None:
    library = Library(settings, database, embed)
    await library.add(sorted(tmp_path.glob("*.pdf")), collection="science")
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    swapped = [
        {"question": row["question"], "answer_in_books": False}
        if "book_file" in row
        else {"question": row["question"], "book_file": "plants.pdf"}
        for row in rows
    ]
    questions.write_text("\n".join(map(json.dumps, swapped)))
    with pytest.raises(BadInput, match="as much in it"):
        await library.calibrate(questions, EVERYTHING, "science")
    library.close()
