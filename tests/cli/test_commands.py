"""The command line: exit codes, one sentence and one next step, one JSON document on stdout."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

APPLIANCE = str(Path(sys.executable).parent / "appliance")


def run(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([APPLIANCE, "--home", str(home), *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["models", "show", "nothing"], 1),
        (["models", "rollback"], 1),
        (["docs", "remove", "nothing"], 1),
        (["keys", "revoke", "nothing"], 1),
        (["tune", "huggingface", "--examples", "/nothing.jsonl"], 1),
        (["examples", "validate", "/nothing.jsonl"], 1),
        (["tune", "huggingface"], 2),
        (["docs", "search"], 2),
        (["nonsense"], 2),
    ],
)
def test_every_failure_has_a_code_a_sentence_and_a_next_step(tmp_path: Path, arguments: list[str], code: int) -> None:
    done = run(tmp_path, *arguments)
    assert done.returncode == code, done.stderr
    assert done.stdout == "" and "Traceback" not in done.stderr
    if code == 1:
        assert done.stderr.count("Error: ") == 1 and done.stderr.count("Try: ") == 1


@pytest.mark.parametrize("arguments", [["models", "list"], ["docs", "list"], ["keys", "list"], ["settings"], ["status"]])
def test_json_is_one_document_and_nothing_else(tmp_path: Path, arguments: list[str]) -> None:
    done = run(tmp_path, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    assert isinstance(json.loads(done.stdout), dict)


def test_home_may_stand_before_or_after_the_command(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert run(one, "status").returncode == 0 and (one / "appliance.sqlite3").exists()
    assert run(one, "status", "--home", str(two)).returncode == 0 and (two / "appliance.sqlite3").exists()


def test_all_faults_of_an_examples_file_are_named_with_their_lines(tmp_path: Path) -> None:
    good = json.dumps({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]})
    rows = [good] * 9
    rows[2] = json.dumps({"messages": [{"content": "q"}, {"role": "assistant", "content": "a"}]})
    rows[4] = json.dumps({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": " "}]})
    rows[6] = '{"messages": ['
    file = tmp_path / "bad.jsonl"
    file.write_bytes("\n".join(rows[:8]).encode() + b"\n\xff\xfe" + rows[8].encode())
    done = run(tmp_path / "home", "examples", "validate", str(file))
    assert done.returncode == 1
    for line in (3, 5, 7, 9):
        assert f"line {line}" in done.stderr, done.stderr
    assert "Try: " in done.stderr


def test_files_that_cannot_be_read_are_each_named_and_the_others_added(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "good.md").write_text("# Rivers\n\nA river is a stream of fresh water that flows to the sea.\n")
    (folder / "empty.txt").write_bytes(b"")
    (folder / "cut.pdf").write_bytes(b"%PDF-1.7\n1 0 obj\n<<")
    done = run(tmp_path / "home", "docs", "add", str(folder), "--json")
    assert done.returncode == 1, "some files failed"
    files = {Path(file["file"]).name: file for file in json.loads(done.stdout)["files"]}
    assert files["good.md"]["status"] == "added"
    for name in ("empty.txt", "cut.pdf"):
        assert files[name]["status"] == "failed" and files[name]["error"] and files[name]["hint"]
    found = json.loads(run(tmp_path / "home", "docs", "search", "what is a river", "--json").stdout)
    assert found["covered"] and found["passages"][0]["file"] == "good.md"
    many = tmp_path / "questions.jsonl"
    many.write_text('{"question": "what is a river"}\n{"question": "zzz"}\n')
    lines = run(tmp_path / "home", "docs", "search", "--from", str(many), "--json").stdout.splitlines()
    assert [json.loads(line)["covered"] for line in lines] == [True, False]


@pytest.mark.parametrize("line", [b'{"question": "\xff"}', b"[" * 100_000, b'{"question": "\\ud800"}', b"{}"])
def test_questions_that_are_no_questions_name_the_line(tmp_path: Path, line: bytes) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_bytes(b'{"question": "fine"}\n' + line)
    done = run(tmp_path / "home", "docs", "search", "--from", str(file))
    assert done.returncode == 1 and "line 2" in done.stderr and "Try: " in done.stderr


def test_a_second_run_says_busy_with_its_own_code(tmp_path: Path) -> None:
    import fcntl

    examples = tmp_path / "e.jsonl"
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    examples.write_text(json.dumps(row))
    home = tmp_path / "home"
    (home / "run").mkdir(parents=True)
    with open(home / "run" / "tune.lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = run(home, "tune", "huggingface", "--examples", str(examples))
    assert done.returncode == 75, done.stderr
    assert "Error: " in done.stderr and "Try: " in done.stderr


def test_searching_goes_on_by_words_where_the_engine_cannot_start(tmp_path: Path) -> None:
    home, lesson = tmp_path / "home", tmp_path / "rivers.md"
    lesson.write_text("# Rivers\n\nA river is a stream of fresh water that flows to the sea.\n")
    (home / "run" / "engine.sock").mkdir(parents=True)  # nothing can listen there
    added = run(home, "docs", "add", str(lesson), "--json")
    assert added.returncode == 0 and "The engine did not start" in added.stderr
    found = json.loads(run(home, "docs", "search", "stream of fresh water", "--json").stdout)
    assert found["lexical_only"] and found["passages"][0]["file"] == "rivers.md"
    answer = json.loads(run(home, "ask", "What is a river?", "--json").stdout)
    assert answer["handler"] == "quotes" and "stream of fresh water" in answer["answer"]


def test_a_home_whose_path_is_too_long_for_a_socket(tmp_path: Path) -> None:
    done = run(tmp_path / ("x" * 90), "engine")
    assert done.returncode == 1 and "too long" in done.stderr
