"""The loop on real classroom rows and the starter: promoted on merit, refused on merit, and walked back to its rows."""

from __future__ import annotations

import json
import random
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

APPLIANCE = str(Path(sys.executable).parent / "appliance")


def run(home: Path, *arguments: str, codes: tuple[int, ...] = (0,)) -> dict[str, Any]:
    command = [APPLIANCE, "--home", str(home), *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in codes, done.stderr[-2000:]
    document: dict[str, Any] = json.loads(done.stdout)
    return document | {"code": done.returncode}


def take_in(home: Path, feedback: Path, shared_data: Path) -> None:
    roster = shared_data / "examples" / "roster.csv"
    taken = run(
        home, "examples", "import", str(feedback), "--licence", "CC BY 4.0", "--author", "the classes", "--trust-review",
        "--roster", str(roster),
    )  # fmt: skip
    assert taken["added"] == 400


@pytest.fixture(scope="module")
def school(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> tuple[Path, dict[str, Any]]:
    home = tmp_path_factory.mktemp("school") / "home"
    take_in(home, shared_data / "examples" / "feedback.jsonl", shared_data)
    return home, run(home, "retrain", codes=(0, 4))


@pytest.mark.llama
@pytest.mark.slow
def test_a_week_of_feedback_makes_a_model_that_is_promoted_on_merit(school: tuple[Path, dict[str, Any]]) -> None:
    home, result = school
    assert result["promoted"], result["reasons"]
    report = result["report"]
    assert report["difference"]["high"] < 0 and not report["regressions"]
    assert report["sets"]["standing"]["verdict"] != "lost" and report["sets"]["matched"]["after"]["low"] > 0
    page = (Path(result["folder"]) / "report.html").read_text("utf-8")
    assert "<script" not in page and page.index("Without and with tuning") < page.index("</table>")
    # The same rows again: nothing is trained, and it takes a moment.
    assert run(home, "retrain")["fresh"] is False


@pytest.mark.llama
@pytest.mark.slow
def test_no_name_of_the_roster_reached_the_training_data(school: tuple[Path, dict[str, Any]], shared_data: Path) -> None:
    _, result = school
    data = Path(result["folder"]) / "data"
    text = "".join((data / name).read_text("utf-8") for name in ("train.jsonl", "held_out.jsonl"))
    pupils = (shared_data / "examples" / "roster.csv").read_text("utf-8").split("\n")[1:]
    names = [line.split(",")[1:3] for line in pupils if line]
    assert len(names) == 40
    assert not [name for name in names if " ".join(name) in text or name[1] in text]
    assert "@" not in text and "[name]" in text
    card = json.loads((data / "card.json").read_text("utf-8"))
    assert card["redactions"]["name"] > 0 and card["redactions"]["email"] > 0


@pytest.mark.llama
@pytest.mark.slow
def test_from_an_answer_back_to_the_rows(school: tuple[Path, dict[str, Any]]) -> None:
    home, result = school
    answer = run(home, "ask", "How do I add one half and one quarter?")
    assert answer["model"] == result["id"]
    shown = run(home, "models", "show", answer["model"])
    lineage = shown["lineage"]
    assert lineage["dataset"] == shown["dataset"] and lineage["run"] == result["folder"]
    parts = {row["part"] for row in lineage["rows"]}
    assert parts == {"train", "held_out"} and all(row["id"].startswith("fb-") for row in lineage["rows"])
    assert lineage["parents"][0]["kind"] == "base"
    with sqlite3.connect(home / "appliance.sqlite3") as database:
        marks = ",".join("?" * len(lineage["rows"]))
        ids = [row["id"] for row in lineage["rows"]]
        found = database.execute(f"select count(*) from examples where reviewed = 'approved' and id in ({marks})", ids)
        assert found.fetchone()[0] == len(ids)
    assert "retrain" in {entry["verb"] for entry in run(home, "audit", "show")["entries"] if entry["thing"] == result["id"]}


@pytest.mark.llama
@pytest.mark.slow
def test_answers_that_belong_to_other_questions_are_refused_on_merit(tmp_path: Path, shared_data: Path) -> None:
    lines = (shared_data / "examples" / "feedback.jsonl").read_text("utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line]
    replies = [row["correction"] or row["messages"][-1]["content"] for row in rows]
    random.Random(3).shuffle(replies)
    for row, reply in zip(rows, replies, strict=True):
        row["messages"][-1]["content"] = reply
        row |= {"correction": None, "rating": "up"}
    file = tmp_path / "shuffled.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    take_in(tmp_path / "home", file, shared_data)
    result = run(tmp_path / "home", "retrain", codes=(4,))
    assert not result["promoted"] and result["report"]["sets"]["matched"]["verdict"] == "lost", result["reasons"]
    listed = run(tmp_path / "home", "models", "list")["models"]
    assert [model["aliases"] for model in listed if model["id"] == result["id"]] == [[]], "kept, and not served"


@pytest.mark.llama
@pytest.mark.long
@pytest.mark.parametrize("recipe", ["corrections-dpo", "thumbs-kto"])
def test_corrections_and_thumbs_are_learned_from(school: tuple[Path, dict[str, Any]], recipe: str) -> None:
    home, _ = school
    result = run(home, "retrain", "--recipe", recipe, "--no-promote")
    assert result["report"]["n"] > 20 and result["fresh"]
    assert run(home, "models", "show", result["id"])["kind"] == "adapter"
