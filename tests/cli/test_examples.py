"""`appliance examples`: what its commands write, print and draw, and what a person meets who reviews or withdraws."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from appliance.cli import examples as module
from appliance.cli import group
from appliance.db import Database
from appliance.redact import Roster
from appliance.registry import Registry
from appliance.settings import Settings
from appliance.tuning.dataset import Dataset
from appliance.tuning.formats import FORMATS, Example
from appliance.tuning.run_folder import only_run
from appliance.tuning.store import ExampleStore


def row(number: int, **fields: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": f"question {number}"}, {"role": "assistant", "content": "Look at the picture again."}]
    return {"messages": turns * (1 + number % 2), "subject": "science", "grade": str(number % 3), **fields}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row(number)) + "\n" for number in range(9)))
    return path


def run(tmp_path: Path, *arguments: object, typed: str = "") -> Result:
    return CliRunner().invoke(group, ["--home", str(tmp_path / "home"), "examples", *map(str, arguments)], input=typed)


def feedback(tmp_path: Path, count: int = 4, **fields: Any) -> Path:
    """A file of classroom rows fb0, fb1, ... whose pupil and tutor say something of their own."""
    rows = []
    for number in range(count):
        said = [f"Is {number} a prime, says Thabo Mokwenela?", f"What does {number} divide by?"]
        turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), said, strict=True)]
        given = {"id": f"fb{number}", "rating": "up", "consent": True, "user_role": "pupil", "class": "6A"}
        rows.append({"messages": turns, **given, **fields})
    path = tmp_path / "feedback.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


def stored(tmp_path: Path) -> ExampleStore:
    database = Database(Settings(home=tmp_path / "home").database)
    database.migrate()
    return ExampleStore(database)


def states(tmp_path: Path) -> dict[str, str]:
    return {one.id: one.reviewed for one in stored(tmp_path).list()}


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


# --- the store ----------------------------------------------------------------------------------------------------------------


def test_import_says_what_became_of_the_rows(tmp_path: Path) -> None:
    file = feedback(tmp_path)
    done = run(tmp_path, "import", file)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [
        "feedback.jsonl: 4 added.",
        "4 rows wait for review: `appliance examples review`.",
    ]
    again = run(tmp_path, "import", file, "--json")
    assert json.loads(again.stdout) == {
        "added": 0, "updated": 0, "unchanged": 4, "withdrawn": 0, "review": {"pending": 4, "approved": 0, "rejected": 0},
        "emptied": [],
    }  # fmt: skip
    counts = json.loads(run(tmp_path, "stats", "--json").stdout)
    assert counts["examples"] == 4 and counts["review"] == {"pending": 4} and counts["licence"] == {"not stated": 4}
    shown = run(tmp_path, "stats").stdout
    assert "4 examples in the store" in shown and "review\n  pending" in shown
    assert run(tmp_path, "stats", "--svg", tmp_path / "store.svg").exit_code == 0


def test_an_empty_store_can_be_counted(tmp_path: Path) -> None:
    done = run(tmp_path, "stats", "--svg", tmp_path / "none.svg")
    assert done.exit_code == 0 and done.stdout.startswith("0 examples in the store"), done.output


def test_licence_author_and_trust_are_taken_from_the_command(tmp_path: Path) -> None:
    file = feedback(tmp_path, 2, reviewed="approved", consent=None)
    assert "2 rows state neither consent nor a licence" in run(tmp_path, "import", file).stderr
    done = run(tmp_path, "import", file, "--licence", "CC0", "--author", "Class 6A", "--trust-review")
    assert done.exit_code == 0, done.output
    assert done.stderr == ""
    assert {(one.licence, one.author, one.reviewed) for one in stored(tmp_path).list()} == {("CC0", "Class 6A", "approved")}


def test_a_roster_is_replaced_and_its_names_are_shown_as_taken_out(tmp_path: Path) -> None:
    run(tmp_path, "import", feedback(tmp_path, 1))
    without = run(tmp_path, "review", typed="q\n")
    assert "No roster" in without.stderr and "used as" not in without.stdout
    pupils = tmp_path / "roster.csv"
    pupils.write_text("pupil_id,first_name,last_name,class\nP1,Thabo,Mokwenela,6A\n")
    done = run(tmp_path, "roster", pupils, "--json")
    assert done.exit_code == 0 and json.loads(done.stdout) == {"pupils": 1}, done.output
    shown = run(tmp_path, "review", typed="q\n")
    assert "Taken out before training: 1 x name" in shown.stdout and "used as: Is 0 a prime, says [name]?" in shown.stdout


def test_a_roster_that_comes_with_an_import_is_taken_over_with_it_or_not_at_all(tmp_path: Path) -> None:
    def roster(id: str) -> Path:
        path = tmp_path / f"{id}.csv"
        path.write_text(f"pupil_id,first_name,last_name,class\n{id},Thabo,Mokwenela,6A\n")
        return path

    def known() -> list[str]:
        stored(tmp_path)
        return [pupil.id for pupil in Roster(Database(Settings(home=tmp_path / "home").database)).pupils()]

    done = run(tmp_path, "import", feedback(tmp_path, 2), "--roster", roster("P1"))
    assert done.exit_code == 0 and "1 pupils' names will be taken out" in done.stdout and known() == ["P1"], done.output
    other = feedback(tmp_path, 3, correction="Another reply.")  # the same ids for other rows
    refused = run(tmp_path, "import", other, "--roster", roster("P2"))
    assert refused.exit_code != 0 and "names will be taken out" not in refused.stdout and known() == ["P1"]
    assert run(tmp_path, "import", tmp_path / "nowhere.jsonl", "--roster", roster("P2")).exit_code != 0
    assert known() == ["P1"] and len(states(tmp_path)) == 2


def test_a_review_goes_row_by_row_and_on_where_it_stopped(tmp_path: Path) -> None:
    run(tmp_path, "import", feedback(tmp_path, 5))
    done = run(tmp_path, "review", typed="a\nx\nr\nc\nWhat is a prime?\nSay it in your words.\n.\nq\n")
    assert done.exit_code == 0, done.output
    assert "fb0  (1 of 5)  class 6A, pupil, rated up, consent given, feedback.jsonl, line 1" in done.stdout
    assert done.stdout.splitlines()[-1] == "1 approved, 1 rejected, 1 corrected; 2 still wait."
    assert states(tmp_path) == {"fb0": "approved", "fb1": "rejected", "fb2": "approved", "fb3": "pending", "fb4": "pending"}
    assert stored(tmp_path).get("fb2").correction == "What is a prime?\nSay it in your words."
    later = run(tmp_path, "review", "--json", typed="s\na\n")
    assert "fb3  (1 of 2)" in later.stderr
    assert json.loads(later.stdout) == {"approved": ["fb4"], "rejected": [], "corrected": [], "skipped": ["fb3"], "pending": 1}


def test_nothing_typed_is_lost_when_the_line_is_cut(tmp_path: Path) -> None:
    run(tmp_path, "import", feedback(tmp_path, 2))
    cut = run(tmp_path, "review", typed="a\nc\nFirst line.\nSecond line.\n")  # then the terminal is gone
    assert cut.exit_code == 0 and "1 approved; 1 still wait." in cut.stdout, cut.output
    again = run(tmp_path, "review", typed="c\nThird line.\n.\n")
    assert "> First line.\n> Second line.\n" in again.stdout
    assert stored(tmp_path).get("fb1").correction == "First line.\nSecond line.\nThird line."


def test_a_correction_can_be_thrown_away(tmp_path: Path) -> None:
    run(tmp_path, "import", feedback(tmp_path, 1))
    done = run(tmp_path, "review", typed="c\nNo.\n-\nr\n")
    assert done.exit_code == 0, done.output
    assert (stored(tmp_path).get("fb0").correction, states(tmp_path)) == (None, {"fb0": "rejected"})


def test_rows_are_decided_by_name(tmp_path: Path) -> None:
    run(tmp_path, "import", feedback(tmp_path, 6))
    listed = json.loads(run(tmp_path, "review", "--list", "--json").stdout)["pending"]
    assert [one["id"] for one in listed] == [f"fb{n}" for n in range(6)] and listed[0]["messages"][0]["role"] == "user"
    assert run(tmp_path, "review", "--list").stdout.splitlines()[1].split()[:4] == ["fb0", "-", "6A", "up"]
    done = run(tmp_path, "review", "--approve", "fb0", "fb1", "--json")
    assert json.loads(done.stdout) == {"approved": ["fb0", "fb1"], "pending": 4}
    assert run(tmp_path, "review", "--reject", "fb2").stdout == "1 rejected; 3 still wait.\n"
    assert run(tmp_path, "review", "--correct", "fb3", "--text", "Look closer.").exit_code == 0
    assert run(tmp_path, "review", "--approve", "--all").stdout == "2 approved; 0 still wait.\n"
    assert run(tmp_path, "review", "--list").stdout == "Nothing waits for review.\n"
    assert states(tmp_path)["fb2"] == "rejected" and stored(tmp_path).get("fb3").correction == "Look closer."


@pytest.mark.parametrize(
    "arguments",
    [["--approve"], ["--all"], ["--correct", "a"], ["--text", "x"], ["--correct", "a", "b", "--text", "x"],
     ["--approve", "a", "--all"], ["--list", "a"]],
)  # fmt: skip
def test_options_that_make_no_sense_are_wrong_usage(tmp_path: Path, arguments: list[str]) -> None:
    assert run(tmp_path, "review", *arguments).exit_code == 2


def test_what_a_pupil_typed_cannot_move_the_cursor(tmp_path: Path) -> None:
    path = tmp_path / "evil.jsonl"
    turns = [{"role": "user", "content": "\x1b[2Jhello\r\x07"}, {"role": "assistant", "content": "Hi \x9b31m"}]
    path.write_text(json.dumps({"id": "e\x1b1", "messages": turns, "subject": "\x1b]0;x\x07"}))
    assert run(tmp_path, "import", path).exit_code == 0
    for done in (run(tmp_path, "review", typed="q\n"), run(tmp_path, "review", "--list")):
        assert done.exit_code == 0 and not {"\x1b", "\x07", "\x9b", "\r"} & set(done.output), done.output


# --- withdrawing --------------------------------------------------------------------------------------------------------------


def trained(tmp_path: Path) -> Path:
    """A run and a serving model made of the rows of Mo, who is asked for below."""
    home, store = tmp_path / "home", stored(tmp_path)
    rows = [Example(one.id, one.messages, author=store.people.author(one.author)) for one in store.list()]
    store.record("d1", Dataset(tmp_path, rows, [], {}))
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "model.gguf").write_text("weights")
    registry = Registry(home / "models")
    registry.add(tmp_path / "made", id="tuned-1", kind="base", title="T", licence="MIT", context=64, dataset="d1")
    registry.promote("tuned-1")
    data = home / "runs" / "0123" / "data"
    data.mkdir(parents=True)
    (data / "train.jsonl").write_text("".join(json.dumps(row.row()) + "\n" for row in rows))
    for name in ("job.json", "result.json", "report.json"):
        (data.parent / name).write_text("{}")
    return data


def test_withdrawing_says_what_goes_and_which_model_had_it(tmp_path: Path) -> None:
    run(tmp_path, "import", feedback(tmp_path, 3, author="Mo"))
    data = trained(tmp_path)
    refused = run(tmp_path, "withdraw", "mo", typed="n\n")
    assert refused.exit_code != 0 and len(states(tmp_path)) == 3 and data.exists(), "nothing happens without a yes"
    done = run(tmp_path, "withdraw", "mo", "--yes")
    assert done.exit_code == 0, done.output
    assert "3 rows are this person's own" in done.stdout and "3 rows are erased" in done.stdout
    assert done.stdout.splitlines()[-2].split() == ["tuned-1", "3", "champion"]
    assert "`appliance retrain` makes a model without them" in done.stdout
    assert states(tmp_path) == {}
    assert sorted(path.name for path in data.parent.iterdir()) == ["report.json", "result.json"]
    again = json.loads(run(tmp_path, "withdraw", "Mo", "--yes", "--json").stdout)
    assert again == {
        "rows": [], "mentions": 0, "runs": [], "waiting": False, "sent": [],
        "models": [{"id": "tuned-1", "aliases": ["champion"], "rows": 3, "through": ""}], "backups": 0, "backups_until": 0.0,
    }  # fmt: skip
    assert run(tmp_path, "import", tmp_path / "feedback.jsonl").stdout == "feedback.jsonl: 3 withdrawn before.\n"


def test_while_a_run_is_under_way_the_rows_go_and_the_rest_is_asked_for_again(tmp_path: Path) -> None:
    run(tmp_path, "import", feedback(tmp_path, 2, author="Mo"))
    data = trained(tmp_path)
    with only_run(tmp_path / "home" / "run" / "tune.lock"):
        done = run(tmp_path, "withdraw", "Mo", "--yes", "--json")
    assert json.loads(done.stdout)["waiting"] and "run the same command again" in done.stderr
    assert states(tmp_path) == {} and data.exists()
    assert not json.loads(run(tmp_path, "withdraw", "Mo", "--yes", "--json").stdout)["waiting"] and not data.exists()


def test_rows_that_name_a_person_go_where_that_is_asked_for(tmp_path: Path) -> None:
    run(tmp_path, "import", feedback(tmp_path, 2))
    kept = run(tmp_path, "withdraw", "thabo mokwenela", "--yes")
    assert "No row stands under this name." in kept.stdout
    assert "2 rows of others hold the full name" in kept.stdout and len(states(tmp_path)) == 2
    assert "No model on this box learned from them." in kept.stdout
    assert run(tmp_path, "withdraw", "Thabo Mokwenela", "--mentions", "--yes").exit_code == 0
    assert states(tmp_path) == {}
    assert "Nobody of that name is known here." in run(tmp_path, "withdraw", "Nobody", "--yes").stderr


def test_withdrawing_erases_what_was_asked_in_comparisons(tmp_path: Path) -> None:
    """By the words: rows that were judged have another id in the store than in the file that a comparison asked."""
    run(tmp_path, "import", feedback(tmp_path, 2, author="Mo"))
    folder = Settings(home=tmp_path / "home").comparisons
    folder.mkdir(parents=True)
    rows = [
        {"key": str(n), "id": f"x{n}", "models": "m", "question": text, "answers": ["a", "b"]}
        for n, text in enumerate(("Is 1 a prime, says Thabo Mokwenela?", "What is a verb?"))
    ]
    (folder / "a+b.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    assert run(tmp_path, "withdraw", "Mo", "--yes").exit_code == 0
    assert [json.loads(line)["key"] for line in (folder / "a+b.jsonl").read_text().splitlines()] == ["1"]


def test_an_import_that_says_whose_a_row_is_erases_it_where_it_was_used(tmp_path: Path) -> None:
    run(tmp_path, "import", feedback(tmp_path, 2, author=""))
    data = trained(tmp_path)
    run(tmp_path, "withdraw", "Mo", "--yes")
    assert data.exists() and len(states(tmp_path)) == 2
    done = run(tmp_path, "import", feedback(tmp_path, 2, author="Mo"))
    assert done.exit_code == 0 and "2 rows that were here are of somebody who has withdrawn" in done.stderr, done.output
    assert states(tmp_path) == {} and not data.exists()


def test_who_withdraws_is_told_where_the_log_still_holds_the_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Database, "fold_log", partialmethod(Database.fold_log, patience=0.05))
    run(tmp_path, "import", feedback(tmp_path, 2, author="Mo"))
    database = Database(Settings(home=tmp_path / "home").database)
    with database.read() as reader:
        reader.exec_driver_sql("SELECT count(*) FROM examples").scalar()
        held = run(tmp_path, "withdraw", "Mo", "--yes", "--json")
    assert json.loads(held.stdout)["waiting"] and "log still holds" in held.stderr
    again = run(tmp_path, "withdraw", "Mo", "--yes")
    raw = b"".join(path.read_bytes() for path in database.path.parent.glob(database.path.name + "*"))
    database.close()
    assert "log still holds" not in again.stderr and b"Mokwenela" not in raw
