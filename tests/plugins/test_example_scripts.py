"""One example for each way to tune and to serve: each says what it does, and in a sentence what keeps it from doing it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.plugins.openai_server import file_of, rows

EXAMPLES = Path(__file__).resolve().parents[2] / "scripts" / "examples"
WAYS = ("tune-huggingface", "tune-openai", "tune-dspy", "connect-servers", "retrain")


def run(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    first = (EXAMPLES / name).read_text("utf-8").partition("\n")[0]
    command = [sys.executable] if "python" in first else ["/bin/bash"]
    return subprocess.run(
        [*command, str(EXAMPLES / name), *words], capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, "PYTHONPATH": str(EXAMPLES.parents[1])},
    )  # fmt: skip


def test_there_is_one_for_each_way() -> None:
    assert {path.name for path in EXAMPLES.iterdir() if path.is_file()} == set(WAYS)


@pytest.mark.parametrize("name", WAYS)
def test_each_says_what_it_does_and_how_it_is_called(name: str) -> None:
    told = run(name, "--help")
    assert told.returncode == 0 and not told.stderr, told.stderr
    about, _, usage = told.stdout.partition("usage: ")
    assert len(about) > 60 and usage.startswith(f"scripts/examples/{name} ")
    wrong = run(name)
    assert wrong.returncode != 0 and wrong.stderr.strip() and "Traceback" not in wrong.stderr


def test_while_air_gapped_the_search_for_better_words_says_so_and_makes_nothing(tmp_path: Path) -> None:
    told = run("tune-dspy", str(tmp_path / "box"))
    lines = told.stderr.strip().splitlines()
    assert told.returncode == 1 and len(lines) == 1, told.stderr
    assert lines[0].startswith("DSPy optimisation is off while the box is air-gapped.") and "network allow" in lines[0]
    assert not (tmp_path / "box" / "model.gguf").exists()


def test_what_would_be_sent_is_shown_before_a_host_is_allowed(tmp_path: Path) -> None:
    """Nine rows are too few: the example ends at its first step, and no host was allowed."""
    told = run("tune-openai", str(tmp_path / "box"), str(file_of(tmp_path / "rows.jsonl", rows(9))), "Thandi Mokoena")
    lines = told.stderr.strip().splitlines()[-2:]
    assert told.returncode == 1 and lines[0].startswith("Error: 9 examples can be sent") and lines[1].startswith("Try: ")
    assert not (tmp_path / "box" / "network.json").exists()


def test_a_district_s_server_that_may_not_be_is_refused_in_a_sentence(tmp_path: Path) -> None:
    told = run("connect-servers", str(tmp_path / "box"), "ftp://llm.district.example:21/v1")
    assert told.returncode != 0 and "Error: " in told.stderr and "Try: " in told.stderr and "Traceback" not in told.stderr
    with socket.socket(socket.AF_UNIX) as probe:  # the way out has ended with it
        assert probe.connect_ex(str(tmp_path / "box" / "run" / "egress.sock")) != 0
