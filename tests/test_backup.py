"""Backups, with the real restic: whole under load, proven, back on a blank home, and never half there after a kill."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from appliance import settings as settings_module
from appliance.accounts import People
from appliance.app import Appliance
from appliance.backup import Backups, finish, last_known, switch, undo
from appliance.backup.backups import tidy
from appliance.backup.contents import rows_of
from appliance.backup.repository import Damaged, Repository
from appliance.checkup import Check, saved
from appliance.db import Database
from appliance.errors import ApplianceError, BadInput, Conflict, NotFound, StorageFull, UnderWay
from appliance.files import sha256_of
from appliance.knowledge.shelves import EVERYTHING
from appliance.registry import Registry
from appliance.settings import Settings
from appliance.tables import collections, sessions
from tests.test_registry import add

needs_restic = pytest.mark.skipif(shutil.which("restic") is None, reason="restic is not installed: apt-get install restic")
ROOT = Path(__file__).resolve().parents[1]
NAME, PASSWORD = "Ms Green", "correct horse battery"
LEAVES = "Leaves are green because chlorophyll takes in red and blue light. A leaf makes sugar from light, water and air."
QUIET: Callable[[dict[str, Any]], None] = lambda _told: None  # noqa: E731


def note(database: Database, number: int) -> None:
    """Two rows that belong together, in one transaction."""
    with database.begin() as connection:
        for side in "ab":
            id = f"pair-{number:08}{side}"
            connection.execute(sa.insert(collections).values(id=id, name=id, created=0))


def numbers(home: Path) -> list[str]:
    database = Database(home / "appliance.sqlite3")
    with database.read() as connection:
        found = list(
            connection.execute(sa.select(collections.c.id).where(collections.c.id.startswith("pair-")).order_by("id")).scalars()
        )
    database.close()
    return found


def files(home: Path) -> dict[str, str]:
    """The digest of every file that a backup has to hold."""
    kept = ("documents", "models", "index", "fence.secret", "network.json", "jobs")
    paths = (path for path in home.rglob("*") if path.is_file() and not path.name.startswith("."))
    names = {path.relative_to(home): path for path in paths}
    return {str(name): sha256_of(path) for name, path in names.items() if name.parts[0] in kept}


def packs(folder: Path) -> set[str]:
    """The files that hold what was backed up."""
    root = folder / "appliance-backups"
    return {str(path.relative_to(root)) for path in (root / "data").rglob("*") if path.is_file()}


@dataclass
class Kept:
    """A home with two backups, and what was known of it when each was made."""

    home: Path
    folder: Path
    key: str
    ids: list[str]
    first_packs: set[str]
    files: dict[str, str]
    cookie: str
    api_key: str

    def backups(self, home: Path, folder: Path | None = None, key: str | None = None) -> Backups:
        return Backups(Settings(home=home), folder or self.folder, same_disk=True, key=key or self.key)


@pytest.fixture(scope="module")
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


# --- there and back ---------------------------------------------------------------------------------------------------
async def test_a_backup_under_load_comes_back_on_a_blank_home(kept: Kept, tmp_path: Path) -> None:
    home = tmp_path / "blank"
    waiting = kept.backups(home, key=kept.key.lower().replace("-", " ")).prepare(kept.ids[0], QUIET)
    assert not (home / "appliance.sqlite3").exists(), "nothing takes over before it is told to"
    assert switch(Settings(home=home)) is None and waiting.id == kept.ids[0]
    found = numbers(home)
    assert len(found) >= 40 and len(found) % 2 == 0, "two rows of one transaction are both there or both not"
    assert found == [f"pair-{number:08}{side}" for number in range(len(found) // 2) for side in "ab"], (
        "up to one moment, without a gap"
    )
    assert len(numbers(kept.home)) > len(found), "the thread wrote on while the backup was made"
    assert files(home) == kept.files
    assert not (home / "runs").exists() and not (home / "run" / "engine.log").exists()
    assert (home / "backup.key").read_text().strip() == kept.key

    box = Appliance.open(Settings(home=home))
    try:
        assert box.accounts.session(kept.cookie) is None, "a cookie from before is worth nothing"
        _token, person = box.accounts.sign_in(NAME, PASSWORD, "test")
        assert box.accounts.key(kept.api_key) is not None
        found_there = await box.library.search("Why are leaves green?", within=EVERYTHING)
        assert found_there.passages and "chlorophyll" in found_there.passages[0].text
        assert "chlorophyll" in (await box.chat.ask(person, "Why are leaves green?", model="quotes"))["answer"]
        assert Registry(home / "models").verify("base").id == "base" and box.audit.verify() >= 1
    finally:
        await box.close()


def test_a_proof_counts_every_file_and_row(kept: Kept) -> None:
    backups = kept.backups(kept.home)
    proof = backups.verify("latest", QUIET)
    database = Database(kept.home / "appliance.sqlite3")
    with database.read() as connection:
        signed_in = connection.scalar(sa.select(sa.func.count()).select_from(sessions)) or 0
    assert signed_in > 0, "what is left out is there"
    assert (proof.id, proof.rows) == (kept.ids[1], sum(rows_of(database).values()) - signed_in)
    assert proof.audit_rows == rows_of(database)["audit"]
    database.close()
    assert not (kept.home / "backups" / "proof").exists()
    assert last_known(Settings(home=kept.home))["proven"]["id"] == kept.ids[1]


def test_the_restored_state_can_be_undone_and_the_box_has_to_be_stopped(kept: Kept, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home")
    database = Database(settings.database)
    database.migrate()
    note(database, 77)
    database.close()
    (settings.home / "network.json").write_text("{}")
    kept.backups(settings.home).prepare("latest", QUIET)
    script = "import sys; file = open(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    words = [sys.executable, "-c", script, str(settings.database)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdin is not None and other.stdout.readline()
        with pytest.raises(Conflict, match="is running") as caught:
            switch(settings)
        other.stdin.close()
    assert caught.value.hint and numbers(settings.home) == ["pair-00000077a", "pair-00000077b"]
    before = switch(settings)
    assert before is not None and (before / "network.json").is_file() and len(numbers(settings.home)) > 40
    assert not (settings.home / "network.json").exists()
    with pytest.raises(NotFound):
        switch(settings)
    undo(settings)
    assert numbers(settings.home) == ["pair-00000077a", "pair-00000077b"] and (settings.home / "network.json").is_file()
    assert not before.exists()
    with pytest.raises(NotFound):
        undo(settings)


# --- what is damaged, lost or wrong -----------------------------------------------------------------------------------
def test_flipped_bytes_are_found_and_the_backup_before_it_is_offered(kept: Kept, own: Path, tmp_path: Path) -> None:
    newest = packs(own) - kept.first_packs
    assert newest, "data that only the second backup has"
    for name in newest:
        path = own / "appliance-backups" / name
        path.chmod(0o600)
        with path.open("r+b") as file:
            file.seek(500)
            piece = file.read(50)
            file.seek(500)
            file.write(bytes(byte ^ 255 for byte in piece))
    home = tmp_path / "blank"
    with pytest.raises(Damaged, match=kept.ids[1]) as caught:
        kept.backups(home, own).verify("latest", QUIET)
    assert f"appliance backup restore {kept.ids[0]}" in caught.value.hint
    with pytest.raises(Damaged):
        kept.backups(home, own).prepare("latest", QUIET)
    with pytest.raises(NotFound):
        switch(Settings(home=home))
    assert kept.backups(home, own).prepare(kept.ids[0], QUIET).id == kept.ids[0]


def test_a_file_that_was_exchanged_on_the_way_is_found(kept: Kept, own: Path, tmp_path: Path) -> None:
    """What restic holds is not what was written down: its own check cannot find that."""
    tree = tmp_path / "tree"
    repository = Repository(own / "appliance-backups", kept.key)
    repository.restore(kept.ids[1], tree)
    victim = next(path for path in (tree / "home" / "documents").rglob("*") if path.is_file())
    victim.write_text("Leaves are blue.")
    schema = repository.find(kept.ids[1]).schema
    made = repository.save(tree, "0", schema, 1, QUIET)
    with pytest.raises(Damaged, match="is not what was written"):
        kept.backups(tmp_path / "blank", own).verify(made.id, QUIET)


def test_a_backup_of_a_newer_release_is_refused(kept: Kept, own: Path, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "manifest.json").write_text("{}")
    Repository(own / "appliance-backups", kept.key).save(tmp_path / "tree", "9.1", "9999", 2, QUIET)
    with pytest.raises(Conflict, match=r"newer release \(9\.1\)") as caught:
        kept.backups(tmp_path / "blank", own).prepare("latest", QUIET)
    assert "Install that release" in caught.value.hint and not (tmp_path / "blank" / "appliance.sqlite3").exists()


def test_a_wrong_key_is_a_sentence_and_a_mistyped_one_too(kept: Kept, tmp_path: Path) -> None:
    other = tidy(kept.key[:-1] + ("A" if kept.key[-1] != "A" else "B"))
    with pytest.raises(BadInput, match="does not open") as caught:
        kept.backups(tmp_path / "blank", key=other).prepare("latest", QUIET)
    assert "--key-file" in caught.value.hint
    with pytest.raises(BadInput, match="8 groups of 5"):
        kept.backups(tmp_path / "blank", key=kept.key[:-1])
    with pytest.raises(NotFound, match="no key"):
        Backups(Settings(home=tmp_path / "blank"), kept.folder).list()


@pytest.mark.usefixtures("database")
def test_a_disk_that_is_not_mounted_is_refused(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="not there"):
        Backups(settings, tmp_path / "usb").create(QUIET)
    (tmp_path / "usb").mkdir()
    with pytest.raises(Conflict, match="own disk") as caught:
        Backups(settings, tmp_path / "usb").create(QUIET)
    assert "--same-disk" in caught.value.hint and not any((tmp_path / "usb").iterdir())
    assert "own disk" in last_known(settings)["failed"]["message"]


@needs_restic
@pytest.mark.usefixtures("database")
def test_a_full_backup_disk_leaves_earlier_backups_whole(settings: Settings, tmp_path: Path) -> None:
    disk = tmp_path / "usb"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a small disk")
    try:
        backups = Backups(settings, disk)
        first = backups.create(QUIET)
        settings.documents.mkdir()
        (settings.documents / "large").write_bytes(os.urandom(4_000_000))
        with pytest.raises(StorageFull, match="disk is full") as caught:
            backups.create(QUIET)
        assert "backup_keep" in caught.value.hint and not (settings.backups / "tree").exists()
        assert backups.verify("latest", QUIET).id == first.id
        assert last_known(settings)["last"]["own_disk"] is False
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.usefixtures("database")
def test_without_restic_the_next_step_is_named(settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ApplianceError, match="not installed") as caught:
        Backups(settings).create(QUIET)
    assert "apt-get install restic" in caught.value.hint


def test_a_clock_that_went_back_lets_go_of_nothing(kept: Kept, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 86400.0)
    with pytest.raises(Conflict, match=r"believes it is 0[12] January 1970"):
        kept.backups(kept.home, own).create(QUIET)


def test_two_at_once_are_one(kept: Kept, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home")
    with kept.backups(settings.home)._alone(), pytest.raises(UnderWay):
        kept.backups(settings.home).verify("latest", QUIET)


# --- kill -9 ----------------------------------------------------------------------------------------------------------
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
        if state(settings.home) == old:
            switch(settings)
        assert state(settings.home) == new
        undone = killed_at(number, lambda settings=settings: undo(settings))  # type: ignore[misc]
        finish(settings)
        assert state(settings.home) in ((old, new) if undone else (old,))
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


def test_a_killed_backup_leaves_earlier_ones_and_the_next_one_works(kept: Kept, own: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(kept.home, home)
    (home / "documents" / "large").write_bytes(os.urandom(120_000_000))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: what is left of them comes to us, and no dead one stays about
    words = [sys.executable, "-m", "appliance", "--home", str(home), "backup", "create", "--to", str(own), "--same-disk"]
    before = packs(own)
    child = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    while packs(own) == before and child.poll() is None:
        time.sleep(0.005)
    assert child.poll() is None, child.communicate()[0]
    os.killpg(child.pid, signal.SIGKILL)
    child.communicate()
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-child.pid, 0)
    ctypes.CDLL(None).prctl(36, 0)
    backups = kept.backups(home, own)
    assert [one.id for one in backups.list()] == kept.ids
    made = backups.create(QUIET)
    assert not (home / "backups" / "tree").exists()
    assert backups.verify(made.id, QUIET).files > 3


# --- what is around it ------------------------------------------------------------------------------------------------
@needs_restic
def test_the_key_is_for_the_owner_alone_and_old_backups_are_let_go_of(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, secret = tmp_path / "appliance.toml", tmp_path / "ldap.password"
    file.write_text('school = "Hill School"\n')
    secret.write_text("secret")
    monkeypatch.setattr(settings_module, "CONFIG_FILE", file)
    monkeypatch.setattr("appliance.backup.contents.CONFIG_FILE", file)
    settings = Settings(home=database.path.parent, backup_keep={"last": 1}, ldap_bind_password_file=secret)
    backups = Backups(settings)
    first = backups.create(QUIET)
    assert backups.made_key and stat.S_IMODE(settings.backup_key.stat().st_mode) == 0o600
    assert backups.key().encode() not in b"".join(path.read_bytes() for path in settings.backups.rglob("*") if path.is_file())
    again = Backups(settings)
    second = again.create(QUIET)
    assert not again.made_key and [one.id for one in again.list()] == [second.id] != [first.id]
    assert (second.version, second.bytes > 100_000) == (first.version, True)
    other = Settings(home=tmp_path / "other")
    waiting = Backups(other, settings.backups, key=backups.key()).prepare("latest", QUIET)
    assert waiting.settings == {"appliance.toml": str(file), "ldap.password": str(secret)}
    assert (other.backups / f"settings-of-{second.id}" / "ldap.password").read_text() == "secret"


@pytest.mark.usefixtures("database")
def test_a_lost_key_is_not_replaced_by_a_new_one(own: Path, settings: Settings) -> None:
    with pytest.raises(NotFound, match="no key"):
        Backups(settings, own, same_disk=True).create(QUIET)
    assert not settings.backup_key.exists()


def test_the_health_page_says_how_old_the_last_one_is(settings: Settings) -> None:
    settings.backups.mkdir(parents=True)

    def check(**known: Any) -> Check:
        (settings.backups / "known.json").write_text(json.dumps(known))
        return saved.backups(settings)

    now = time.time()
    last = {"id": "1", "at": now, "where": "/mnt/usb", "own_disk": False, "bytes": 2e9}
    assert not saved.backups(settings).ok and "no backup" in saved.backups(settings).detail
    fine = check(last=last, proven={"id": "1", "at": now})
    assert fine.ok and "2.0 GB, in /mnt/usb" in fine.detail and not fine.remedy
    assert check(last=last | {"at": now - 3 * 86400}, proven={"id": "1", "at": now}).command == "appliance backup create"
    assert check(last=last).command == "appliance backup verify latest"
    assert "backup_to" in check(last=last | {"own_disk": True}, proven={"id": "1", "at": now}).remedy
    failed = check(last=last, failed={"at": now, "message": "The disk is full.", "hint": "Free some space."})
    assert not failed.ok and "The disk is full." in failed.detail and failed.remedy == "Free some space."


@pytest.mark.parametrize("well", [True, False])
def test_on_a_box_the_services_stop_for_the_change_only_and_a_dead_state_is_undone(
    well: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The command that root runs on an installed box; systemd and the appliance's user are played by a script here."""
    loader = SourceFileLoader("restore", str(ROOT / "installer" / "target" / "restore"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    spec = spec_from_loader("restore", loader)
    assert spec is not None
    restore = module_from_spec(spec)
    loader.exec_module(restore)
    for name in ("runuser", "systemctl"):
        script = f'#!/bin/sh\necho "{name} $*" >> {tmp_path}/said\ncase "$*" in *prepare-only) cat > {tmp_path}/key ;; esac\n'
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "paper").write_text("THE-KEY")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(restore, "answers", lambda: well)
    code = restore.main(["latest", "--key-file", str(tmp_path / "paper")])
    said = [line.removeprefix("runuser -u appliance -- /opt/appliance/current/.venv/bin/")
            for line in (tmp_path / "said").read_text().splitlines()]  # fmt: skip
    services = "appliance-web.service appliance-worker.service appliance-engine.service"
    done = [
        "appliance backup restore latest --key-file - --prepare-only",
        f"systemctl stop appliance-retrain.service appliance-backup.service {services}",
        "appliance backup switch",
        f"systemctl start --no-block {services}",
    ]
    back = [f"systemctl stop {services}", "appliance backup undo", f"systemctl reset-failed {services}", done[-1]]
    assert said == (done if well else [*done, *back]) and code == (0 if well else 1)
    assert (tmp_path / "key").read_text() == "THE-KEY"
    assert ("what was there before is back" in capfd.readouterr().err) is not well
