"""A lock that a power cut left in the repository is in nobody's way, and one that somebody holds is left alone."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from appliance.backup.locks import left_behind
from appliance.backup.repository import Repository

KEY = "a key of the test's own"


def lock(number: int, host: str = "", at: float | None = None) -> dict[str, Any]:
    stamp = datetime.fromtimestamp(time.time() if at is None else at, UTC).strftime("%Y-%m-%dT%H:%M:%S.123456789Z")
    return {"time": stamp, "hostname": host or socket.gethostname(), "pid": number, "exclusive": True}


@pytest.fixture
def restic(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A living process of that name."""
    shutil.copy("/bin/sleep", tmp_path / "restic")
    with subprocess.Popen([tmp_path / "restic", "60"]) as process:
        yield process
        process.kill()


def test_who_holds_a_lock_is_known_by_name_not_by_number(restic: subprocess.Popen[bytes]) -> None:
    assert not left_behind(lock(restic.pid))
    assert left_behind(lock(os.getpid())), "that number is another process's now"
    assert left_behind(lock(restic.pid, at=1_000_000_000)), "from before this machine was started"
    assert not left_behind(lock(os.getpid(), host="another")), "nobody here knows"
    restic.send_signal(signal.SIGKILL)
    restic.wait()
    assert left_behind(lock(restic.pid))


def test_what_is_no_lock_is_left_alone() -> None:
    assert not left_behind({}) and not left_behind(lock(os.getpid()) | {"time": "yesterday"})


@pytest.mark.skipif(shutil.which("restic") is None, reason="restic is not installed: apt-get install restic")
def test_a_lock_whose_number_lives_again_does_not_hold_up_the_next_backup(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "backups", KEY)
    repository.make()
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "large").write_bytes(os.urandom(30_000_000))
    repository.save(tree, "1", "0001", 30_000_000, lambda _told: None)
    words = ["restic", "-r", str(repository.folder), "--no-cache", "check", "--read-data"]
    child = subprocess.Popen(words, env=os.environ | {"RESTIC_PASSWORD": KEY}, stdout=subprocess.DEVNULL)
    locks = repository.folder / "locks"
    while not [path for path in locks.iterdir() if "-tmp-" not in path.name] and child.poll() is None:
        time.sleep(0.002)
    child.kill()
    (left,) = locks.iterdir()
    # It is not waited for, so its number still lives, as it may after a power cut.
    subprocess.run(
        ["restic", "-r", str(repository.folder), "--no-cache", "unlock"], env=os.environ | {"RESTIC_PASSWORD": KEY},
        check=True, capture_output=True,
    )  # fmt: skip
    assert left.exists(), "restic itself takes it for alive"
    repository.unlock()
    assert not left.exists()
    repository.check()
    child.wait()
