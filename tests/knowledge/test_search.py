"""Copies, languages, and the real embedder on real pages: what a search makes of them, through the Library."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.db import Database
from appliance.knowledge.library import EVERYTHING, Library
from appliance.knowledge.words import fold, query_words, sentences, words
from appliance.settings import CLONE, Settings
from tests.knowledge.helpers import MAGNETS, PLANTS, RIVERS, docx, embed, engine_down, pdf

CONTENT = CLONE / "appliance" / "content" / "retrieval"
QUESTION = "How do green plants make sugar from sunlight?"


@pytest.fixture
def library(settings: Settings, database: Database) -> Iterator[Library]:
    library = Library(settings, database, embed)
    yield library
    library.close()


# --- copies ----------------------------------------------------------------------------------------------------------
async def test_a_text_in_three_formats_is_shown_once_and_on_its_page(library: Library, tmp_path: Path) -> None:
    (tmp_path / "a first.md").write_text(f"# Leaves\n\n{PLANTS}\n")
    pdf(tmp_path / "chapter.pdf", [RIVERS, PLANTS], title="Chapter")
    docx(tmp_path / "z last.docx", [(1, "Leaves"), (0, PLANTS)])
    (tmp_path / "magnets.txt").write_text(MAGNETS)
    await library.add([tmp_path])
    found = await library.search(QUESTION, within=EVERYTHING)
    best = found.passages[0]
    assert (best.file, best.page) == ("chapter.pdf", 2) and found.covered
    assert sorted((copy.file, copy.page) for copy in best.also) == [("a first.md", None), ("z last.docx", None)]
    assert sorted((passage.file, passage.page) for passage in found.passages) == [
        ("chapter.pdf", 1),
        ("chapter.pdf", 2),
        ("magnets.txt", None),
    ]


@pytest.mark.parametrize("judged", [40, 2])  # with two, the other page is not even proposed
async def test_a_text_that_runs_over_two_pages_is_shown_on_the_better_one(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, judged: int
) -> None:
    monkeypatch.setattr("appliance.knowledge.ranking.JUDGED", judged)
    pdf(tmp_path / "book.pdf", [MAGNETS, PLANTS, RIVERS])
    (tmp_path / "book.txt").write_text(f"{PLANTS} {RIVERS}")
    await library.add([tmp_path])
    found = await library.search(QUESTION, within=EVERYTHING)
    best = found.passages[0]
    assert (best.page, [copy.file for copy in best.also]) == (2, ["book.txt"])
    assert "book.txt" not in [passage.file for passage in found.passages]


async def test_copies_leave_room_for_others(library: Library, tmp_path: Path) -> None:
    for number in range(8):
        (tmp_path / f"copy {number}.txt").write_text(f"{PLANTS} Edition {number}.")
    (tmp_path / "other.txt").write_text("Plants need water, which their roots draw from the ground up to the leaves.")
    await library.add([tmp_path])
    found = await library.search(QUESTION, k=2, within=EVERYTHING)
    assert len(found.passages) == 2 and found.passages[1].file == "other.txt"
    assert len(found.passages[0].also) == 7


async def test_a_copy_in_another_collection_is_not_named(library: Library, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text(PLANTS)
    pdf(tmp_path / "staff.pdf", [PLANTS])
    await library.add([tmp_path / "notes.txt"], collection="Year 7")
    await library.add([tmp_path / "staff.pdf"], collection="Staff")
    (seen,) = (await library.search(QUESTION, within=await library.named(["Year 7"], EVERYTHING))).passages
    assert (seen.file, seen.also) == ("notes.txt", ())
    (seen,) = (await library.search(QUESTION, within=EVERYTHING)).passages
    assert (seen.file, [copy.file for copy in seen.also]) == ("staff.pdf", ["notes.txt"])


async def test_pages_of_one_document_are_both_shown(library: Library, tmp_path: Path) -> None:
    pdf(tmp_path / "book.pdf", [PLANTS, RIVERS, PLANTS])
    await library.add([tmp_path])
    assert [passage.page for passage in (await library.search(QUESTION, within=EVERYTHING)).passages[:2]] == [1, 3]


async def test_what_says_more_is_no_copy(library: Library, tmp_path: Path) -> None:
    pdf(tmp_path / "short.pdf", [PLANTS])
    (tmp_path / "long.txt").write_text(f"{PLANTS} {MAGNETS} {RIVERS}")
    await library.add([tmp_path])
    found = await library.search(QUESTION, within=EVERYTHING)
    assert {passage.file: passage.also for passage in found.passages} == {"short.pdf": (), "long.txt": ()}


async def test_a_copy_without_pages_gives_way_to_a_page_that_nobody_proposed(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.knowledge.ranking.JUDGED", 1)
    (tmp_path / "a first.txt").write_text(PLANTS)
    pdf(tmp_path / "chapter.pdf", [RIVERS, PLANTS])
    await library.add([tmp_path])
    (best,) = (await library.search(QUESTION, k=1, within=EVERYTHING)).passages
    assert (best.file, best.page, [copy.file for copy in best.also]) == ("chapter.pdf", 2, ["a first.txt"])


async def test_nothing_from_a_hidden_collection_stands_for_a_copy(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.knowledge.ranking.JUDGED", 1)
    (tmp_path / "notes.txt").write_text(PLANTS)
    pdf(tmp_path / "staff.pdf", [PLANTS])
    await library.add([tmp_path / "notes.txt"], collection="Year 7")
    await library.add([tmp_path / "staff.pdf"], collection="Staff")
    (seen,) = (await library.search(QUESTION, within=await library.named(["Year 7"], EVERYTHING))).passages
    assert (seen.file, seen.also) == ("notes.txt", ())


# --- neighbours ------------------------------------------------------------------------------------------------------
LEAVES = " ".join(f"The leaf number {number} of a green plant makes sugar out of sunlight." for number in range(22))
ROOTS = " ".join(f"The root number {number} of a green plant draws water for the sugar of its leaves." for number in range(22))


async def test_what_was_cut_apart_in_one_place_is_shown_whole(library: Library, tmp_path: Path) -> None:
    (tmp_path / "plants.md").write_text(f"# Leaves\n\n{LEAVES}\n\n# Roots\n\n{ROOTS}\n")
    (report,) = await library.add([tmp_path / "plants.md"])
    assert report.passages >= 4, "else nothing was cut"
    document, parts = await library.document(str(report.document), EVERYTHING)  # type: ignore[misc]
    found = await library.search(QUESTION, within=EVERYTHING)
    places = [passage.place for passage in found.passages]
    assert len(places) == 2 and set(places) == {part.place for part in parts}, "one of each place, and no place twice"
    for passage in found.passages:
        own = [part.text for part in parts if part.place == passage.place]
        assert passage.text == "\n".join(own), "in reading order"
        assert passage.id in [part.id for part in parts if part.place == passage.place]
    assert document.file == "plants.md"


async def test_no_more_than_three_are_joined(library: Library, tmp_path: Path) -> None:
    (tmp_path / "plants.md").write_text(f"# Leaves\n\n{LEAVES} {LEAVES.upper()} {LEAVES} {LEAVES.title()}\n")
    (report,) = await library.add([tmp_path / "plants.md"])
    assert report.passages > 4
    found = await library.search(QUESTION, within=EVERYTHING)
    _, parts = await library.document(str(report.document), EVERYTHING)  # type: ignore[misc]
    longest = max(len(part.text) for part in parts)
    assert len(found.passages) > 1 and all(len(passage.text) <= 3 * longest + 2 for passage in found.passages)


# --- languages -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Photosynthe\u0300se, PHOTOSYNTHÈSE", ["photosynthese", "photosynthese"]),
        ("snake_case and x² + 7", ["snake", "case", "and", "x²", "7"]),
        ("पानी क्या है", ["पानी", "क्या", "है"]),
        ("光合作用は水", ["光合", "合作", "作用", "用は", "は水"]),
        ("CO2和水", ["co2", "和水"]),
        ("木", ["木"]),
        ("น้ำคือ", ["น้", "้ำ", "ำค", "คื", "ือ"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("İstanbul", ["istanbul"]),
        ("", []),
    ],
)
def test_words_of_many_scripts(text: str, expected: list[str]) -> None:
    assert list(words(text)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Water boils. It is hot!\n* * *\nWhy?", [("water", "boils"), ("it", "is", "hot"), (), ("why",)]),
        ("A “leaf” \u2013 v1.2 of it…\n\n  Green", [("a", "leaf", "v1", "2", "of", "it"), ("green",)]),
        ("L'été. Où\0ça?", [("l", "ete"), ("ou", "ca")]),
        ("水沸。热\uff01\nOK", [("水沸",), ("热",), ("ok",)]),
        (" \n ", []),
    ],
)
def test_the_words_of_each_sentence_and_of_each_line(text: str, expected: list[tuple[str, ...]]) -> None:
    assert list(sentences(text)) == expected


@given(st.text(alphabet="aB1 _.\n\t!?\u2026\u3002漢字éΣ\u03c3ς\u0301\u200d\u2019\0\x1c·²½", max_size=40) | st.text())
def test_the_words_of_all_sentences_are_the_words_of_the_text(text: str) -> None:
    assert tuple(word for sentence in sentences(text) for word in sentence) == words(text)


@given(st.text(max_size=60))
def test_folding_twice_changes_nothing_and_words_hold_no_spaces(text: str) -> None:
    assert fold(fold(text)) == fold(text)
    found = words(text)
    assert all(word and not any(letter.isspace() for letter in word) for word in found)
    assert set(query_words(text)) <= set(found)


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("La PHOTOSYNTHÈSE des végétaux produit du glucose à partir de la lumière.", "photosynthese des vegetaux glucose"),
        ("La photosynthese des vegetaux produit du glucose.", "Photosynthe\u0300se des VÉGÉTAUX : glucose ?"),
        ("Ο ποταμός μεταφέρει άμμο και πέτρες από τα βουνά.", "Ποταμός, ΆΜΜΟ, πέτρες, βουνά;"),  # noqa: RUF001
        ("Река несёт песок и камни с гор к морю.", "РЕКА ПЕСОК КАМНИ"),  # noqa: RUF001
        ("強い光。植物。水。", "植物"),
    ],
)
async def test_accents_and_case_hide_nothing(
    settings: Settings, database: Database, tmp_path: Path, text: str, question: str
) -> None:
    library = Library(settings, database, engine_down)
    (tmp_path / "text.txt").write_text(text)
    (tmp_path / "other.txt").write_text(MAGNETS)
    await library.add([tmp_path / "text.txt", tmp_path / "other.txt"])
    found = await library.search(question, within=EVERYTHING)
    assert [passage.file for passage in found.passages] == ["text.txt"] and found.covered
    library.close()


# --- the real embedder -----------------------------------------------------------------------------------------------
@pytest.mark.slow
async def test_a_second_format_of_a_chapter_hides_no_page_of_the_first(
    settings: Settings, database: Database, shared_data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("sentence_transformers")
    from appliance.engine.embedder import Embedder

    embedder = Embedder()

    async def real(texts: Sequence[str]) -> Any:
        return await asyncio.to_thread(embedder.embed, texts)

    library = Library(settings, database, real)
    books = shared_data / "books"
    await library.add([books / "prealgebra-ch04.pdf"])
    lines = (shared_data / "examples" / "retrieval_questions.jsonl").read_text().splitlines()
    lines = [line for line in lines if json.loads(line)["book_file"] == "prealgebra-ch04.pdf"]
    lines += (shared_data / "examples" / "unanswerable.jsonl").read_text().splitlines()
    (tmp_path / "questions.jsonl").write_text("\n".join(lines))
    alone = await library.check(tmp_path / "questions.jsonl", EVERYTHING)
    await library.add([books / "prealgebra-ch04.md"])
    both = await library.check(tmp_path / "questions.jsonl", EVERYTHING)
    assert both["hit_at_5"] >= alone["hit_at_5"] >= 0.5
    assert both["refused_unanswerable"] == alone["refused_unanswerable"] == 1.0
    found = await library.search("What is a mixed number?", within=EVERYTHING)
    assert found.passages[0].file == "prealgebra-ch04.pdf" and found.passages[0].page
    library.close()


@pytest.mark.slow
async def test_our_own_questions_are_answered_and_refused(
    settings: Settings, database: Database, shared_data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("sentence_transformers")
    from appliance.engine.embedder import Embedder

    embedder = Embedder()

    async def real(texts: Sequence[str]) -> Any:
        return await asyncio.to_thread(embedder.embed, texts)

    library = Library(settings, database, real)
    await library.add([shared_data / "books" / f"science10-{name}.pdf" for name in ("magnetism", "mechanical-energy")])
    lines = [line for name in ("answerable", "unanswerable") for line in (CONTENT / f"{name}.jsonl").read_text().splitlines()]
    there = ("science10-magnetism.pdf", "science10-mechanical-energy.pdf")
    lines = [line for line in lines if json.loads(line).get("book_file", there[0]) in there]
    (tmp_path / "questions.jsonl").write_text("\n".join(lines))
    report = await library.check(tmp_path / "questions.jsonl", EVERYTHING)
    assert report["hit_at_5"] >= 0.85 and report["hit_at_1"] >= 0.5, report
    assert report["refused_unanswerable"] >= 0.8 and report["refused_answerable"] <= 0.25, report
    library.close()
