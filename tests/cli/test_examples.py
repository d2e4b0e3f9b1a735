"""`appliance examples convert` and `stats`: what they write, print and draw."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from appliance.cli import examples as module
from appliance.cli import group
from appliance.tuning.formats import FORMATS


def row(number: int, **fields: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": f"question {number}"}, {"role": "assistant", "content": "Look at the picture again."}]
    return {"messages": turns * (1 + number % 2), "subject": "science", "grade": str(number % 3), **fields}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row(number)) + "\n" for number in range(9)))
    return path


def run(tmp_path: Path, *arguments: object) -> Result:
    return CliRunner().invoke(group, ["--home", str(tmp_path / "home"), "examples", *map(str, arguments)])


def test_the_formats_on_offer_are_those_that_exist() -> None:
    assert sorted(module.FORMATS) == sorted(FORMATS)


def test_convert_writes_the_file_and_says_so(tmp_path: Path, file: Path) -> None:
    target = tmp_path / "new" / "alpaca.json"
    done = run(tmp_path, "convert", file, target, "--to", "alpaca", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"examples": 9, "format": "alpaca", "file": str(target)}
    assert len(json.loads(target.read_text())) == 9
    assert run(tmp_path, "convert", file, target, "--to", "csv").exit_code == 2


def test_stats_are_one_document(tmp_path: Path, file: Path) -> None:
    done = run(tmp_path, "stats", file, "--json")
    assert done.exit_code == 0, done.output
    counts = json.loads(done.stdout)
    assert counts["examples"] == 9 and counts["svg"] is None
    assert counts["subject"] == {"science": 9} and counts["grade"] == {"0": 3, "1": 3, "2": 3}
    assert counts["source"] == counts["licence"] == {"not stated": 9}
    assert (counts["turns"]["least"], counts["turns"]["most"], counts["words"]["most"]) == (2, 4, 14)
    assert [part["examples"] for part in counts["turns"]["classes"]] == [5, 4, 0, 0, 0, 0]
    assert sum(part["examples"] for part in counts["words"]["classes"]) == 9


def test_the_table_is_aligned_and_every_row_has_its_bar(tmp_path: Path, file: Path) -> None:
    done = run(tmp_path, "stats", file)
    assert done.exit_code == 0, done.output
    lines = [line for line in done.stdout.splitlines() if line.endswith("#")]
    grades = done.stdout.split("grade\n")[1].split("\n\n")[0].splitlines()
    assert (
        len(lines) == 9 and len(grades) == 3
    )  # a subject, three grades, no source, no licence, one class of words, two of turns
    assert len({line.index("#") for line in grades}) == 1 and len({line.index("%") for line in grades}) == 1


def test_the_picture_is_well_formed_whatever_the_file_holds(tmp_path: Path) -> None:
    file, svg = tmp_path / "rows.jsonl", tmp_path / "plots" / "rows.svg"
    names = ["<script>alert(1)</script>", "a\x00\x1b[31mb", "&", "x" * 500, *map(str, range(30))]
    file.write_text("".join(json.dumps(row(number, source=name)) + "\n" for number, name in enumerate(names)))
    done = run(tmp_path, "stats", file, "--svg", svg)
    assert done.exit_code == 0, done.output
    assert "\x1b" not in done.stdout and "(23 others)" in done.stdout
    root = ElementTree.fromstring(svg.read_text("utf-8"))
    tags = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert tags == {"svg", "title", "rect", "text"}
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert "<script>alert(1)</script>" in texts and "science" in texts


def test_a_refusal_is_one_sentence_and_one_next_step_and_writes_nothing(tmp_path: Path, file: Path) -> None:
    file.write_text(json.dumps({"messages": [*row(1)["messages"][:1], *row(2)["messages"]]}))
    command = [str(Path(sys.executable).parent / "appliance"), "--home", str(tmp_path / "home"), "examples"]
    for arguments in (
        ["convert", str(file), str(tmp_path / "x.json"), "--to", "dspy"],
        ["stats", str(file), "--svg", str(file)],
    ):
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 1 and done.stdout == "" and "Traceback" not in done.stderr
        assert done.stderr.count("Error: ") == 1 and done.stderr.count("Try: ") == 1
    assert not (tmp_path / "x.json").exists() and json.loads(file.read_text())
