"""Backups, with the real restic: whole under load, proven, back on a blank home, refused in words where they cannot be."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from appliance import settings as settings_module
from appliance.app import Appliance
from appliance.backup import Backups, last_known, switch, undo, waiting
from appliance.backup import backups as backups_module
from appliance.backup.backups import tidy
from appliance.backup.contents import rows_of
from appliance.backup.known import remember
from appliance.backup.repository import Damaged, Repository
from appliance.backup.switching import working
from appliance.checkup import Check, saved
from appliance.cli import group
from appliance.db import Database
from appliance.errors import ApplianceError, BadInput, Conflict, NotFound, UnderWay
from appliance.files import sha256_of
from appliance.knowledge.shelves import EVERYTHING
from appliance.registry import Registry
from appliance.settings import Settings
from appliance.tables import sessions
from tests.backup.school import NAME, PASSWORD, QUIET, Kept, files, needs_restic, note, numbers, packs


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
def damage(disk: Path, names: set[str]) -> None:
    for name in names:
        path = disk / "appliance-backups" / name
        path.chmod(0o600)
        with path.open("r+b") as file:
            file.seek(500)
            piece = file.read(50)
            file.seek(500)
            file.write(bytes(byte ^ 255 for byte in piece))


def test_flipped_bytes_are_found_and_the_backup_before_it_is_offered(kept: Kept, own: Path, tmp_path: Path) -> None:
    newest = packs(own) - kept.first_packs
    assert newest, "data that only the second backup has"
    damage(own, newest)
    home = tmp_path / "blank"
    with pytest.raises(Damaged, match=kept.ids[1]) as caught:
        kept.backups(home, own).verify("latest", QUIET)
    assert f"appliance backup restore {kept.ids[0]}" in caught.value.hint
    with pytest.raises(Damaged):
        kept.backups(home, own).prepare("latest", QUIET)
    with pytest.raises(NotFound):
        switch(Settings(home=home))
    assert kept.backups(home, own).prepare(kept.ids[0], QUIET).id == kept.ids[0]


def test_flipped_bytes_in_the_database_and_the_newest_backup(kept: Kept, own: Path, tmp_path: Path) -> None:
    """The pages do not start, and say which backup is good; that one brings the box back, with nothing but its disk."""
    settings = Settings(home=tmp_path / "home")
    shutil.copytree(kept.home, settings.home)
    remember(settings, last={"id": kept.ids[1], "at": time.time(), "where": str(own)}, proven={})
    with settings.database.open("r+b") as file:
        for page in range(3, 40):
            file.seek(page * 4096)
            file.write(os.urandom(64))
    damage(own, packs(own) - kept.first_packs)
    words = ["--home", str(settings.home), "backup", "restore", "ID", "--from", str(own)]
    with pytest.raises(ApplianceError, match=r"is damaged\. Nothing is started") as caught:
        CliRunner().invoke(group, [*words[:2], "web", "--port", "18999"], catch_exceptions=False)
    assert f"appliance backup restore {kept.ids[1]}" in caught.value.hint and str(own) in caught.value.hint
    words[4] = kept.ids[1]
    with pytest.raises(Damaged) as told:
        CliRunner().invoke(group, words, catch_exceptions=False)
    words[4] = kept.ids[0]
    assert f"appliance backup restore {kept.ids[0]}" in told.value.hint
    done = CliRunner().invoke(group, words, catch_exceptions=False)
    assert done.exit_code == 0 and "`appliance backup undo` has it back" in done.output
    assert files(settings.home) == kept.files and len(numbers(settings.home)) >= 40


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


def test_a_restore_that_is_refused_leaves_what_is_there_as_it_was(
    kept: Kept, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is asked for at the box: of a newer release, with a wrong passphrase, on a disk with too little space."""
    settings = Settings(home=tmp_path / "home")
    shutil.copytree(kept.home, settings.home)
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "manifest.json").write_text("{}")
    newer = Repository(own / "appliance-backups", kept.key).save(tmp_path / "tree", "9.1", "9999", 2, QUIET)
    (tmp_path / "paper").write_text(kept.key[:-1] + ("A" if kept.key[-1] != "A" else "B"))
    there = files(settings.home) | {"database": sha256_of(settings.database)}

    def refused(id: str, *more: str) -> str:
        words = ["--home", str(settings.home), "backup", "restore", id, "--from", str(own), *more]
        with pytest.raises(ApplianceError) as caught:
            CliRunner().invoke(group, words, catch_exceptions=False)
        assert files(settings.home) | {"database": sha256_of(settings.database)} == there, "what was there is as it was"
        assert waiting(settings) is None and not list(settings.backups.glob("state-before-*"))
        assert caught.value.message.endswith(".") and caught.value.hint
        return f"{caught.value.message} {caught.value.hint}"

    assert "newer release (9.1)" in refused(newer.id) and "Install that release" in refused(newer.id)
    assert "does not open" in refused(kept.ids[0], "--key-file", str(tmp_path / "paper"))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=backups_module.ROOM))
    assert "Free some space there" in refused(kept.ids[0])


@pytest.mark.usefixtures("database")
def test_without_restic_the_next_step_is_named(settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ApplianceError, match="not installed") as caught:
        Backups(settings).create(QUIET)
    assert "apt-get install restic" in caught.value.hint


def test_two_at_once_are_one(kept: Kept, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home")
    with working(settings), pytest.raises(UnderWay):
        kept.backups(settings.home).verify("latest", QUIET)
    (settings.backups / "restored" / "state").mkdir(parents=True)
    for path in (settings.backups / "restored" / "ready.json", settings.backups / "restored" / "state" / "appliance.sqlite3"):
        path.write_text("{}")
    with working(settings), pytest.raises(UnderWay):
        switch(settings)


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
