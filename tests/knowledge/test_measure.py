"""The retrieval test a school can run: rates, where they may lie, each collection's own, and what earlier checks found."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.db import Database
from appliance.knowledge import history
from appliance.knowledge.history import History
from appliance.knowledge.index import locked
from appliance.knowledge.library import EVERYTHING, Library
from appliance.knowledge.measure import interval
from appliance.settings import Settings
from tests.knowledge.helpers import MAGNETS, PLANTS, RIVERS, embed, pdf

APPLIANCE = str(Path(sys.executable).parent / "appliance")


@pytest.fixture
def library(settings: Settings, database: Database) -> Iterator[Library]:
    library = Library(settings, database, embed)
    yield library
    library.close()


def asked(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


PLANT_ROW = {"question": "How do green plants make sugar from sunlight?", "book_file": "plants.pdf", "page": 1}
RIVER_ROW = {"question": "Where does the river build a delta of sand?", "book_file": "rivers.txt"}
NOWHERE = {"question": "Who wrote Romeo and Juliet?", "answer_in_books": False}


async def _two_collections(library: Library, tmp_path: Path) -> None:
    pdf(tmp_path / "plants.pdf", [PLANTS])
    (tmp_path / "rivers.txt").write_text(RIVERS)
    (tmp_path / "magnets.txt").write_text(MAGNETS)
    await library.add([tmp_path / "plants.pdf"], collection="biology")
    await library.add([tmp_path / "rivers.txt", tmp_path / "magnets.txt"], collection="geography")


# --- rates -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("hits", "of", "expected"),
    [(0, 0, None), (9, 10, (0.5958, 0.9821)), (10, 10, (0.7225, 1.0)), (0, 10, (0.0, 0.2775)), (36, 40, (0.7695, 0.9604))],
)
def test_intervals_are_wilsons(hits: int, of: int, expected: tuple[float, float] | None) -> None:
    found = interval(hits, of)
    assert found == (None if expected is None else pytest.approx(expected, abs=2e-4))


async def test_each_collection_has_its_own_figures(library: Library, tmp_path: Path) -> None:
    await _two_collections(library, tmp_path)
    wrong_page = {**PLANT_ROW, "page": 9}
    lost = {"question": "What is a mitre joint?", "book_file": "woodwork.pdf"}
    report = await library.check(asked(tmp_path / "q.jsonl", PLANT_ROW, wrong_page, RIVER_ROW, NOWHERE, lost), EVERYTHING)
    biology, geography = report["collections"]["biology"], report["collections"]["geography"]
    assert (biology["hit_at_1"], biology["hit_at_5"], biology["asked"]) == (0.5, 0.5, 2)
    assert (geography["hit_at_1"], geography["refused_answerable"], geography["asked"]) == (1.0, 0.0, 1)
    assert report["hit_at_1"] == 0.5 and report["refused_answerable"] == 0.25, "what is in no collection counts for the whole"
    assert report["intervals"]["refused_unanswerable"] == interval(1, 1) and not report["lexical_only"]


async def test_a_question_without_an_answer_counts_for_the_collection_that_it_names(library: Library, tmp_path: Path) -> None:
    await _two_collections(library, tmp_path)
    hers = {**NOWHERE, "collection": "biology"}
    answered = {"question": "How does a compass needle turn to the north pole?", "collection": "biology"}
    unknown = {**NOWHERE, "collection": "woodwork"}
    odd = {**NOWHERE, "collection": ["biology"]}
    moved = {**RIVER_ROW, "collection": "biology"}
    rows = [PLANT_ROW, hers, answered, unknown, odd, NOWHERE, moved, RIVER_ROW]
    report = await library.check(asked(tmp_path / "q.jsonl", *rows), EVERYTHING)
    assert set(report["collections"]) == {"biology", "geography"}
    biology, geography = report["collections"]["biology"], report["collections"]["geography"]
    assert (biology["refused_unanswerable"], biology["refused_answerable"], biology["asked"]) == (0.5, 0.0, 4)
    assert (geography["refused_unanswerable"], geography["asked"]) == (None, 1)
    assert report["refused_unanswerable"] == 0.8


async def test_a_page_that_another_copy_stands_for_is_a_hit(library: Library, tmp_path: Path) -> None:
    pdf(tmp_path / "plants.pdf", [PLANTS])
    (tmp_path / "plants.txt").write_text(PLANTS)
    await library.add([tmp_path / "plants.pdf", tmp_path / "plants.txt"])
    report = await library.check(
        asked(tmp_path / "q.jsonl", {**PLANT_ROW, "book_file": "plants.txt", "page": None}), EVERYTHING
    )
    assert report["hit_at_1"] == 1.0


async def test_a_further_place_that_answers_is_a_hit_too(library: Library, tmp_path: Path) -> None:
    await _two_collections(library, tmp_path)
    elsewhere = {**PLANT_ROW, "book_file": "lost.pdf", "also_in": [{"book_file": "plants.pdf", "page": 1}]}
    wrong = {**PLANT_ROW, "book_file": "lost.pdf", "also_in": [{"book_file": "plants.pdf", "page": 2}, "plants.pdf"]}
    report = await library.check(asked(tmp_path / "q.jsonl", elsewhere, wrong), EVERYTHING)
    assert [one["rank"] for one in report["questions"]] == [1, None]


# --- history ---------------------------------------------------------------------------------------------------------
async def test_checks_are_kept_and_hold_no_question(library: Library, settings: Settings, tmp_path: Path) -> None:
    await _two_collections(library, tmp_path)
    path = asked(tmp_path / "q.jsonl", PLANT_ROW, RIVER_ROW, NOWHERE)
    first = await library.check(path, EVERYTHING)
    await library.check(path, EVERYTHING, "geography")
    assert first["kept"] == ""
    whole, part = await library.checks()
    assert (whole["hit_at_1"], whole["asked"], whole["passages"], whole["collection"]) == (1.0, 3, 3, None)
    assert whole["collections"]["biology"]["hit_at_1"] == 1.0
    assert (part["hit_at_1"], part["passages"], part["questions"]) == (0.5, 2, whole["questions"])
    assert await library.checks("geography") == [part] and await library.checks("biology") == []
    kept = settings.checks.read_text()
    assert "sunlight" not in kept and "Romeo" not in kept
    assert settings.checks.stat().st_mode & 0o077 == 0


async def test_a_damaged_line_hides_no_other_and_is_no_reason_to_fail(
    library: Library, settings: Settings, tmp_path: Path
) -> None:
    await _two_collections(library, tmp_path)
    path = asked(tmp_path / "q.jsonl", PLANT_ROW)
    await library.check(path, EVERYTHING)
    with settings.checks.open("ab") as file:
        file.write(b'{"at": 1}\n[]\n\xff\xfe{\n' + b"[" * 100_000 + b"\n")
    await library.check(path, EVERYTHING)
    assert [one["hit_at_1"] for one in await library.checks()] == [1.0, 1.0]


async def test_figures_that_cannot_be_kept_are_told_all_the_same(library: Library, settings: Settings, tmp_path: Path) -> None:
    await _two_collections(library, tmp_path)
    with locked(settings.run / "checks.lock"):
        report = await library.check(asked(tmp_path / "q.jsonl", PLANT_ROW), EVERYTHING)
    assert report["hit_at_1"] == 1.0 and "Another process" in report["kept"]
    assert await library.checks() == []


def test_the_oldest_checks_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "KEPT", 3)
    rates = dict.fromkeys(("hit_at_1", "hit_at_5", "refused_unanswerable", "refused_answerable"))
    report = {**rates, "questions": [], "collections": {}, "lexical_only": False}
    kept = History(tmp_path / "checks.jsonl", tmp_path / "lock")
    for number in range(5):
        kept.add(report, collection=None, questions="", passages=number)
    assert [one["passages"] for one in kept.entries()] == [2, 3, 4]


def test_the_command_shows_the_history(settings: Settings, database: Database) -> None:
    del database  # it has been migrated
    home = ["--home", str(settings.home)]
    done = subprocess.run([APPLIANCE, *home, "docs", "check", "--history"], capture_output=True, text=True, check=True)
    assert "No check has been made yet" in done.stdout
    rates = {"hit_at_1": 0.8, "hit_at_5": 0.95, "refused_unanswerable": 1.0, "refused_answerable": None}
    report = {**rates, "questions": [1, 2], "collections": {}, "lexical_only": True}
    History(settings.checks, settings.run / "checks.lock").add(report, collection=None, questions="abcdef0123", passages=7)
    done = subprocess.run([APPLIANCE, *home, "docs", "check", "--history"], capture_output=True, text=True, check=True)
    head, row = done.stdout.splitlines()
    assert head.split()[:2] == ["when", "collection"] and " ".join(row.split()[2:]) == (
        "all 2 abcdef01 0.80 0.95 1.00 - by words"
    )
    shown = json.loads(
        subprocess.run([APPLIANCE, *home, "docs", "check", "--history", "--json"], capture_output=True, check=True).stdout
    )
    assert [one["hit_at_1"] for one in shown["checks"]] == [0.8]
    both = subprocess.run([APPLIANCE, *home, "docs", "check"], capture_output=True, text=True, check=False)
    assert both.returncode == 2 and "--history" in both.stderr


def test_the_command_draws_the_history_and_says_what_calibrating_takes(settings: Settings, database: Database) -> None:
    del database  # it has been migrated
    held = History(settings.checks, settings.run / "checks.lock")
    for rate in (0.5, 1.0):
        rates = {"hit_at_1": rate, "hit_at_5": 1.0, "refused_unanswerable": None, "refused_answerable": 0.0}
        report: dict[str, Any] = {**rates, "questions": [1], "collections": {}, "lexical_only": False}
        held.add(report, collection="maths", questions="abc", passages=7)
    home = ["--home", str(settings.home)]
    done = subprocess.run([APPLIANCE, *home, "docs", "check", "--history"], capture_output=True, text=True, check=True)
    assert "\nmaths\n" in done.stdout and "▅█  1.00" in done.stdout
    settings.home.joinpath("q.jsonl").write_text(json.dumps(PLANT_ROW))
    wrong = [APPLIANCE, *home, "docs", "check", str(settings.home / "q.jsonl"), "--calibrate"]
    done = subprocess.run(wrong, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "--collection" in done.stderr
