"""One home with two backups for all tests of this folder: making them takes seconds."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest

from appliance.accounts import People
from appliance.app import Appliance
from appliance.backup import Backups
from appliance.registry import Registry
from appliance.settings import Settings
from tests.backup.school import LEAVES, NAME, PASSWORD, QUIET, Kept, files, note, packs
from tests.test_registry import add


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    """The first backup is made while a thread writes as fast as it can."""
    if shutil.which("restic") is None:
        pytest.skip("restic is not installed: apt-get install restic")
    import asyncio

    root = tmp_path_factory.mktemp("school")
    settings = Settings(home=root / "home")
    box = Appliance.open(settings)
    People(box.database).add(NAME, "administrator", password=PASSWORD)
    cookie, person = box.accounts.sign_in(NAME, PASSWORD, "test")
    _id, api_key = box.accounts.create_key(person, "backup", "chat")
    (root / "leaves.txt").write_text(LEAVES)
    asyncio.run(box.library.add([root / "leaves.txt"]))
    add(Registry(settings.models), "base")
    (settings.jobs).mkdir()
    (settings.jobs / "one.log").write_text("begun\n")
    (settings.runs / "r1" / "checkpoints").mkdir(parents=True)
    (settings.runs / "r1" / "checkpoints" / "large").write_text("not kept")
    (settings.run / "engine.log").write_text("not kept")
    box.audit.note("test", "begun")
    stop, written = threading.Event(), threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            note(box.database, number)
            number += 1
            if number > 20:
                written.set()

    writer = threading.Thread(target=write)
    writer.start()
    backups = Backups(settings, root, same_disk=True)
    try:
        written.wait()
        first = backups.create(QUIET)
    finally:
        stop.set()
        writer.join()
    there, first_packs = files(settings.home), packs(root)
    add(Registry(settings.models), "second", words=os.urandom(300_000))
    second = backups.create(QUIET)
    asyncio.run(box.close())
    return Kept(settings.home, root, backups.key(), [first.id, second.id], first_packs, there, cookie, api_key)


@pytest.fixture
def own(kept: Kept, tmp_path: Path) -> Path:
    """The folder with the backups, to be damaged."""
    shutil.copytree(kept.folder / "appliance-backups", tmp_path / "disk" / "appliance-backups")
    return tmp_path / "disk"
