"""`kill -9` and the power cut: whatever was under way, the home is the old one or the new one, and backups go on."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.audit import Audit
from appliance.backup import Backups, finish, switch, undo, waiting
from appliance.db import Database
from appliance.errors import NotFound
from appliance.settings import Settings
from tests.backup.school import QUIET, Kept, files


def killed_at(number: int, work: Callable[[], object]) -> bool:
    """Whether a process that does `work` was killed just before its rename of that number."""
    child = os.fork()
    if child == 0:
        count, rename, replace = 0, os.rename, os.replace

        def counted(real: Callable[..., None]) -> Callable[..., None]:
            def one(*words: Any) -> None:
                nonlocal count
                count += 1
                if count == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                real(*words)

            return one

        os.rename, os.replace = counted(rename), counted(replace)
        try:
            work()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def state(home: Path) -> dict[str, str]:
    return {name.name: name.read_text() for name in home.iterdir() if name.is_file() and name.name != "backup.key"}


def test_a_kill_in_the_middle_of_the_change_leaves_the_old_state_or_the_new_one(tmp_path: Path) -> None:
    old = {"appliance.sqlite3": "old", "appliance.sqlite3-wal": "old log", "network.json": "old", "gone": "old"}
    new = {"appliance.sqlite3": "new", "network.json": "new", "came": "new"}
    kills = 0
    for number in range(1, 30):
        settings = Settings(home=tmp_path / str(number))
        waiting = settings.backups / "restored" / "state"
        waiting.mkdir(parents=True)
        for folder, content in ((settings.home, old), (waiting, new)):
            for name, text in content.items():
                (folder / name).write_text(text)
        (settings.backups / "restored" / "ready.json").write_text("{}")
        killed = killed_at(number, lambda settings=settings: switch(settings))  # type: ignore[misc]
        finish(settings)  # what every command does first
        assert state(settings.home) in ((old, new) if killed else (new,))
        # By these two files the restore on a box sees whether it took over, and whether it was undone.
        assert (settings.backups / "restored" / "ready.json").exists() is (state(settings.home) == old)
        if state(settings.home) == old:
            switch(settings)
        assert state(settings.home) == new
        undone = killed_at(number, lambda settings=settings: undo(settings))  # type: ignore[misc]
        finish(settings)
        assert state(settings.home) in ((old, new) if undone else (old,))
        assert (settings.backups / "switched.json").exists() is (state(settings.home) == new)
        kills += killed + undone
        if not killed and not undone:
            break
    assert kills > 15, "each step was tried"


def test_a_kill_while_a_backup_is_made_ready_changes_nothing(kept: Kept, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home")
    settings.home.mkdir()
    (settings.home / "network.json").write_text("old")
    assert killed_at(1, lambda: kept.backups(settings.home).prepare("latest", QUIET))
    assert (settings.backups / "restored" / "home" / "appliance.sqlite3").is_file(), "it was proven, and not ready"
    with pytest.raises(NotFound):
        switch(settings)
    assert state(settings.home) == {"network.json": "old"}


def test_a_restore_is_in_the_record_once_wherever_it_was_killed(kept: Kept, tmp_path: Path) -> None:
    """Also between what is written down and the change, and right behind the change, where nobody comes back to it."""
    ready = Settings(home=tmp_path / "ready")
    ready.home.mkdir()
    (ready.home / "network.json").write_text("old")
    kept.backups(ready.home).prepare("latest", QUIET)
    moved = 0
    for number in range(1, 40):
        settings = Settings(home=tmp_path / str(number))
        shutil.copytree(ready.home, settings.home)
        killed = killed_at(number, lambda settings=settings: switch(settings))  # type: ignore[misc]
        finish(settings)
        if waiting(settings) is not None:
            switch(settings)
        else:
            moved += killed
        database = Database(settings.database)
        record = Audit(database)
        (note,) = [row for row in record.entries() if row.verb == "restore"]
        assert note.thing == f"backup {kept.ids[-1]}" and set(note.facts) == {"made", "version"} and record.verify()
        database.close()
        shutil.rmtree(settings.home)
        if not killed:
            break
    assert moved > 5 and number < 39, "it was killed at each step"


def killed_after(seconds: float, work: Callable[[], object]) -> bool:
    """Whether a process that does `work`, and all that it started, was killed so long after it began."""
    ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: what is left of them comes to us, and no dead one stays about
    child = os.fork()
    if child == 0:
        os.setsid()
        try:
            work()
        finally:
            os._exit(0)
    ends = time.monotonic() + seconds
    while time.monotonic() < ends and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.002)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-child, 0)
    ctypes.CDLL(None).prctl(36, 0)
    return killed


@pytest.mark.parametrize("rounds", [pytest.param(1, id="short"), pytest.param(12, id="long", marks=pytest.mark.long)])
def test_kills_at_any_moment_leave_earlier_backups_and_the_next_one_works(
    rounds: int, kept: Kept, own: Path, tmp_path: Path
) -> None:
    """Seeded moments within what a backup (which lets go of one each time), a proof and a restore take."""
    settings = Settings(home=tmp_path / "home", backup_keep={"last": 2})
    shutil.copytree(kept.home, settings.home)
    (settings.documents / "large").write_bytes(os.urandom(20_000_000))
    backups = Backups(settings, own, same_disk=True)
    before, moments, kills = files(settings.home), random.Random(9), 0
    began = time.monotonic()
    newest = backups.create(QUIET).id
    whole = time.monotonic() - began
    works: list[Callable[[], object]] = [
        lambda: backups.create(QUIET),
        lambda: backups.create(QUIET),
        lambda: backups.create(QUIET),
        lambda: backups.verify("latest", QUIET),
        lambda: backups.prepare("latest", QUIET),
    ]
    for work in works * rounds:
        kills += killed_after(moments.uniform(0.02, 0.8) * whole, work)
        finish(settings)
        there = [one.id for one in backups.list()]
        assert newest in there, "the last one that was told to be made is there"
        newest = there[-1]
        assert files(settings.home) == before
    assert kills >= 3 * rounds
    made = backups.create(QUIET)
    assert not (settings.backups / "tree").exists() and len(backups.list()) == 2
    assert backups.verify(made.id, QUIET).files > 3 and not any((own / "appliance-backups" / "locks").iterdir())
