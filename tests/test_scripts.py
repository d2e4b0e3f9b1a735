"""The scripts a stranger types: what is missing is said in one sentence, before anything is done."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
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
    for name in [*TOOLS, "python3", "cc", "c++"]:
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
