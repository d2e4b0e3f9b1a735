"""The scripts a stranger types: what is missing is said in one sentence, before anything is done."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ["bash", "env", "sed", "awk", "df", "cat", "sha256sum", "cut", "dirname", "uname", "ls", "tail", "grep", "touch", "rm"]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What scripts/install reads, and nothing that was installed."""
    folder = tmp_path / "clone"
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    return folder


def machine(tmp_path: Path, *, without: tuple[str, ...] = (), **programs: str) -> dict[str, str]:
    """An environment whose PATH holds the plain tools, less some, and stand-ins for `programs`."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in [*TOOLS, "python3", "cc", "c++", "patch"]:
        found = shutil.which(name)
        if found and name not in without and name not in programs:
            (tools / name).symlink_to(Path(found).resolve() if name != "python3" else found)
    for name, script in programs.items():
        (tools / name).write_text(f"#!/bin/bash\n{script}\n")
        (tools / name).chmod(0o755)
    return {"PATH": str(tools), "HOME": str(tmp_path), "PYENV_VERSION": os.environ.get("PYENV_VERSION", "")}


def install(clone: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/bash", "scripts/install"], cwd=clone, env=environment, capture_output=True, text=True, check=False, timeout=60
    )


def one_sentence_and_one_step(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 1, done.stderr
    lines = done.stderr.strip().splitlines()
    assert lines[-2].startswith("Error: ") and lines[-1].startswith("Try: "), done.stderr
    assert all(word in done.stderr for word in words), done.stderr


def test_no_compiler(clone: Path, tmp_path: Path) -> None:
    done = install(clone, machine(tmp_path, without=("cc", "c++"), python3="exit 0"))
    one_sentence_and_one_step(done, "compiler", "apt install build-essential")
    assert not (clone / ".venv").exists()


def test_an_old_python(clone: Path, tmp_path: Path) -> None:
    done = install(clone, machine(tmp_path, python3='[ "$1" = --version ] && echo "Python 3.9.2" && exit 0; exit 1'))
    one_sentence_and_one_step(done, "Python 3.9.2", "apt install python3")


def test_a_full_disk(clone: Path, tmp_path: Path) -> None:
    df = "echo 'Filesystem 1M Used Available Use% Mounted'; echo '/dev/x 9999 9000 999 90% /'"
    done = install(clone, machine(tmp_path, python3="exit 0", df=df))
    one_sentence_and_one_step(done, "999 MB")
    assert not (clone / ".venv").exists()


def test_a_second_run_takes_a_moment(tmp_path: Path) -> None:
    """In this clone, where the tests run and everything is installed."""
    if not list((ROOT / ".venv").glob("installed-*")):
        pytest.skip("this clone was not installed by scripts/install")
    done = subprocess.run([ROOT / "scripts" / "install"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=20)
    assert done.returncode == 0 and done.stderr == ""


def test_quickstart_says_at_once_that_the_port_is_taken_or_an_option_wrong() -> None:
    script = ROOT / "scripts" / "quickstart"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = subprocess.run([script, "--port", port], capture_output=True, text=True, check=False, timeout=20)
    one_sentence_and_one_step(done, f"Port {port}", "--port")
    for words in (["--home"], ["--nonsense"]):
        done = subprocess.run([script, *words], capture_output=True, text=True, check=False, timeout=20)
        assert done.returncode == 2 and "Try: " in done.stderr


@pytest.mark.llama
@pytest.mark.slow
def test_the_example_in_python_tunes_exports_and_answers(tmp_path: Path) -> None:
    rows = (json.loads(line) for line in _examples(tmp_path).read_text("utf-8").split("\n") if line)
    few = tmp_path / "few.jsonl"
    few.write_text("".join(json.dumps(row) + "\n" for row, _ in zip(rows, range(60), strict=False)), "utf-8")
    script = str(ROOT / "scripts" / "examples" / "tune-huggingface")
    command = [sys.executable, script, str(tmp_path / "box"), str(few)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    told = done.stdout.strip().split("\n")
    assert "conversations to tune on" in told[0] and "loss" in told[1] and len(told[-1]) > 3
    assert (tmp_path / "box" / "served" / "adapter.gguf").is_file()


@pytest.mark.llama
@pytest.mark.slow
def test_the_example_of_the_whole_loop_ends_in_a_verdict(tmp_path: Path) -> None:
    script = str(ROOT / "scripts" / "examples" / "retrain")
    done = subprocess.run([script, str(tmp_path / "box")], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 4), done.stderr[-2000:]
    assert ("serves now" in done.stdout) == (done.returncode == 0)
    for said in ("used", "without tuning", "with tuning", "retrain"):
        assert said in done.stdout, said


def _examples(folder: Path) -> Path:
    out = folder / "all.jsonl"
    source = str(ROOT / "appliance" / "content" / "examples")
    command = [str(Path(sys.executable).parent / "appliance"), "--home", str(folder / "home")]
    subprocess.run([*command, "examples", "convert", source, str(out), "--to", "huggingface"], check=True, capture_output=True)
    return out


EXAMPLES = sorted(path for path in (ROOT / "scripts" / "examples").iterdir() if path.is_file())


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_says_at_its_top_what_it_shows_and_how_to_call_it(path: Path) -> None:
    lines = path.read_text("utf-8").splitlines()
    assert any(f"usage: scripts/examples/{path.name}" in line for line in lines[1:8]) and len(lines[1]) > 40
    assert os.access(path, os.X_OK)
    if "python" in lines[0]:
        compile(path.read_text("utf-8"), path.name, "exec")
    else:
        done = subprocess.run(["/bin/bash", "-n", str(path)], capture_output=True, text=True, check=False, timeout=20)
        assert done.returncode == 0, done.stderr


def test_the_example_of_servers_says_how_to_call_it() -> None:
    script = str(ROOT / "scripts" / "examples" / "connect-servers")
    told = subprocess.run([script, "--help"], capture_output=True, text=True, check=False, timeout=20)
    assert told.returncode == 0 and "usage: scripts/examples/connect-servers HOME URL" in told.stdout
    wrong = subprocess.run([script], capture_output=True, text=True, check=False, timeout=20)
    assert wrong.returncode == 2 and "usage:" in wrong.stderr
