"""Disks and shares that are not there, hang, are full, or can only be read; clocks that are wrong. Each gets one sentence."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from appliance.backup import Backups, copies, last_known, places
from appliance.backup.copies import last_copy
from appliance.backup.known import remember
from appliance.backup.repository import Damaged, Repository
from appliance.backup.retention import NIGHT, gone_by, kept
from appliance.db import Database
from appliance.errors import ApplianceError, Conflict, NotFound, StorageFull
from appliance.settings import Settings
from tests.backup.school import QUIET, Kept, needs_restic

POLICY = {"last": 3, "daily": 7, "weekly": 4, "monthly": 12}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 3 MB, mounted."""
    folder = tmp_path / "mnt" / "usb"
    folder.mkdir(parents=True)
    words = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder]
    if subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=False)


# --- not there --------------------------------------------------------------------------------------------------------
@pytest.mark.usefixtures("database")
def test_a_disk_that_is_not_mounted_is_refused(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="not there"):
        Backups(settings, tmp_path / "usb").create(QUIET)
    (tmp_path / "usb").mkdir()
    with pytest.raises(Conflict, match="own disk") as caught:
        Backups(settings, tmp_path / "usb").create(QUIET)
    assert "--same-disk" in caught.value.hint and not any((tmp_path / "usb").iterdir())
    assert "own disk" in last_known(settings)["failed"]["message"]


@pytest.mark.optional
def test_a_share_below_another_mount_is_missed_by_where_it_was(settings: Settings, disk: Path) -> None:
    """The folder where it should be mounted is on some other disk than the box's own."""
    settings.home.mkdir()
    nas = disk / "nas"
    nas.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", nas], check=True)
    mount = str(places.mounted_at(nas))
    assert mount == str(nas)
    places.require_other_disk(nas, settings.home, agreed=False, mount=mount)
    subprocess.run(["umount", nas], check=True)
    with pytest.raises(Conflict, match="nothing is mounted there now"):
        places.require_other_disk(nas, settings.home, agreed=False, mount=mount)


@pytest.mark.optional
@needs_restic
@pytest.mark.usefixtures("database")
def test_a_small_disk_that_fills_is_pulled_out_or_can_only_be_read(
    settings: Settings, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backups = Backups(settings, disk)
    first = backups.create(QUIET)
    assert last_known(settings)["last"] | {"own_disk": False, "mount": str(disk)} == last_known(settings)["last"]
    settings.documents.mkdir()
    (settings.documents / "large").write_bytes(os.urandom(4_000_000))
    with pytest.raises(StorageFull, match="disk is full") as caught:
        backups.create(QUIET)
    assert "backup_keep" in caught.value.hint and not (settings.backups / "tree").exists()
    assert backups.verify("latest", QUIET).id == first.id
    (settings.documents / "large").unlink()

    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    with pytest.raises(ApplianceError, match="can only be read") as caught:
        backups.create(QUIET)
    assert "remount,rw" in caught.value.hint
    other = Settings(home=settings.home.with_name("other"))
    assert Backups(other, disk, key=backups.key()).prepare("latest", QUIET).id == first.id, "reading is enough for a restore"
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)

    save = Repository.save

    def pulled(*words: object, **more: object) -> object:
        subprocess.run(["umount", "--lazy", disk], check=True)
        (disk / "appliance-backups" / "data").mkdir(parents=True)  # as restic does where it has to write
        return save(*words, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Repository, "save", pulled)
    with pytest.raises(ApplianceError):
        backups.create(QUIET)
    assert last_known(settings)["failed"] and last_known(settings)["last"]["id"] == first.id
    monkeypatch.undo()
    with pytest.raises(Conflict, match="own disk"):
        backups.create(QUIET)


@pytest.mark.optional
def test_a_full_disk_of_the_box_itself_is_told_and_nothing_is_left(disk: Path, tmp_path: Path) -> None:
    settings = Settings(home=disk / "home")
    database = Database(settings.database)
    database.migrate()
    database.close()
    free = shutil.disk_usage(disk).free
    (disk / "filler").write_bytes(b"x" * (free - 150_000))
    (tmp_path / "other").mkdir()
    with pytest.raises(StorageFull, match="disk is full") as caught:
        Backups(settings, tmp_path / "other", same_disk=True).create(QUIET)
    assert caught.value.hint and not (settings.backups / "tree").exists()
    (disk / "filler").unlink()
    assert Backups(settings, tmp_path / "other", same_disk=True).create(QUIET).id, "and goes on when there is space"


# --- it hangs ---------------------------------------------------------------------------------------------------------
def test_a_share_that_hangs_is_given_up_before_anything_is_begun(
    kept: Kept, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe that nobody writes to holds up whoever opens it, as a share does whose server is gone."""
    monkeypatch.setattr(places, "ANSWERS_IN", 0.3)
    config = own / "appliance-backups" / "config"
    config.rename(config.with_name("config.there"))
    os.mkfifo(config)
    backups = kept.backups(tmp_path / "home", own)
    for work in (lambda: backups.create(QUIET), lambda: backups.prepare("latest", QUIET), backups.list):
        with pytest.raises(places.Silent, match="does not answer") as caught:
            work()
        assert "umount -l" in caught.value.hint


def test_a_share_that_hangs_in_the_middle_is_given_up(
    kept: Kept, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """restic, played by a script, waits for its data for ever; the look at the share meets a pipe in place of its config."""
    monkeypatch.setattr(places, "ANSWERS_IN", 0.3)
    monkeypatch.setattr(places, "LOOKS_EVERY", 0.5)
    real, config = shutil.which("restic"), own / "appliance-backups" / "config"
    (tmp_path / "restic").write_text(
        f'#!/bin/sh\n[ "$2" = restore ] || exec {real} "$@"\nmv {config} {config}.there\nmkfifo {config}\nexec sleep 300\n'
    )
    (tmp_path / "restic").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(places.Silent, match="does not answer"):
        kept.backups(tmp_path / "home", own).prepare("latest", QUIET)


# --- what may not be written ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("number", "words", "hint"),
    [
        (28, "is full", "backup_keep"), (122, "is full", "backup_keep"), (30, "only be read", "remount,rw"),
        (13, "may not write", "chown"), (1, "may not write", "uid=appliance"), (5, "cannot be written", "anew"),
        (116, "cannot be written", "anew"),
    ],
)  # fmt: skip
def test_what_a_share_refuses_is_said(number: int, words: str, hint: str, tmp_path: Path) -> None:
    """ENOSPC, EDQUOT, EROFS, EACCES (squashed), EPERM, EIO, ESTALE."""
    error = places.refused(tmp_path, OSError(number, os.strerror(number)))
    assert words in error.message and hint in error.hint


@pytest.mark.optional
def test_another_owner_is_named(tmp_path: Path) -> None:
    """Of a folder that root made by hand, tried as another user."""
    if os.getuid() != 0:
        pytest.skip("only root can try as another user")
    folder = tmp_path / "share"
    folder.mkdir(mode=0o755)
    for path in (folder, *folder.parents):
        if path != Path("/tmp"):
            path.chmod(path.stat().st_mode | 0o055)
        if path == tmp_path.parents[1]:
            break
    child = os.fork()
    if child == 0:
        os.setuid(65534)
        try:
            places.require_writable(folder)
        except ApplianceError as error:
            os._exit(7 if "may not write" in error.message else 8)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


# --- damage -----------------------------------------------------------------------------------------------------------
def flip(path: Path) -> None:
    path.chmod(0o600)
    content = bytearray(path.read_bytes())
    for place in range(30, 60):
        content[place] ^= 255
    path.write_bytes(content)


def test_a_damaged_index_is_made_anew_of_the_data(kept: Kept, own: Path, tmp_path: Path) -> None:
    for path in (own / "appliance-backups" / "index").iterdir():
        flip(path)
    assert kept.backups(tmp_path / "home", own).prepare("latest", QUIET).id == kept.ids[1]


def test_a_damaged_record_of_a_backup_is_told_and_the_others_are_there(kept: Kept, own: Path, tmp_path: Path) -> None:
    root = own / "appliance-backups"
    flip(next(path for path in (root / "snapshots").iterdir() if path.name.startswith(kept.ids[1])))
    repository = Repository(root, kept.key)
    assert [one.id for one in repository.list()] == kept.ids[:1] and repository.unreadable == 1
    settings = Settings(home=tmp_path / "home")
    database = Database(settings.database)
    database.migrate()
    database.close()
    with pytest.raises(Damaged, match=r"1 of the backups .* cannot be read; the new one can"):
        kept.backups(settings.home, own).create(QUIET)
    assert len(repository.list()) == 2
    flip(root / "config")
    with pytest.raises(Damaged, match="cannot be opened") as caught:
        repository.list()
    assert "mv " in caught.value.hint
    (root / "config").unlink()
    with pytest.raises(Damaged, match="config is missing"):
        repository.make()
    assert any((root / "keys").iterdir()), "with its key gone nothing could ever be read again"


# --- clocks and what is kept ------------------------------------------------------------------------------------------
def nights(last: datetime, count: int) -> list[float]:
    return [last.timestamp() - NIGHT * night for night in range(count)]


def test_the_schedule_keeps_days_weeks_and_months() -> None:
    now = datetime(2026, 11, 29, 0, 30)
    days = [datetime.fromtimestamp(at).strftime("%Y-%m-%d") for at in sorted(kept(nights(now, 500), POLICY), reverse=True)]
    assert days[:7] == [f"2026-11-{day}" for day in range(29, 22, -1)]
    assert days[7:10] == ["2026-11-22", "2026-11-15", "2026-11-08"] or days[7:9] == ["2026-11-22", "2026-11-15"]
    assert days[-1] == "2025-12-31" and len(days) <= 3 + 7 + 4 + 12


def test_a_clock_ten_years_ahead_lets_go_of_no_more_than_any_night() -> None:
    there = kept(nights(datetime(2026, 11, 29, 0, 30), 500), POLICY)
    for day in (datetime(2026, 11, 30, 0, 30), datetime(2036, 11, 30, 0, 30), datetime(2100, 1, 1)):
        assert len(there - kept(there | {day.timestamp()}, POLICY)) <= 3, "of its day, week and month"


@pytest.mark.parametrize(
    ("policy", "latest"),
    [
        ({"last": 3}, "2026-12-02"), ({"daily": 7}, "2026-12-06"), ({"weekly": 4}, "2026-12-28"),
        ({"monthly": 12}, "2027-11-30"), (POLICY, "2027-11-30"), ({"yearly": 2}, "2028-01-01"),
    ],
)  # fmt: skip
def test_when_the_last_copy_is_gone_is_counted_out(policy: dict[str, int], latest: str) -> None:
    now = datetime(2026, 11, 29, 12, 0)
    until = gone_by(nights(datetime(2026, 11, 29, 0, 30), 900), policy, now.timestamp())
    assert until is not None and datetime.fromtimestamp(until).strftime("%Y-%m-%d") <= latest
    before = kept(nights(datetime(2026, 11, 29, 0, 30), 900), policy)
    made, there = now.timestamp(), set(before)
    while made + NIGHT < until:  # carried out night by night, there is one left until then
        made += NIGHT
        there = kept(there | {made}, policy)
        assert before & there
    assert not before & kept(there | {until}, policy)


def test_the_state_before_a_restore_goes_after_two_weeks_of_nights_by_clock_and_by_count(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = time.time
    state = settings.backups / time.strftime("state-before-%Y%m%d-%H%M%S")
    state.mkdir(parents=True)
    for _ in range(20):
        copies.let_go_of_old_states(settings)
    assert state.is_dir(), "twenty backups of one day are no two weeks"
    young = settings.backups / time.strftime("state-before-%Y%m%d-%H%M%S", time.localtime(true() + 60))
    young.mkdir()
    monkeypatch.setattr(time, "time", lambda: true() + 3650 * NIGHT)
    copies.let_go_of_old_states(settings)
    assert young.is_dir() and not state.exists(), "nor does a clock ten years ahead make two weeks of one night"
    assert copies.kept_until(young) < true() + 17 * NIGHT


def test_who_asks_is_told_until_when_by_what_is_there(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert last_copy(settings) == (0, 0.0)
    settings.backups.mkdir(parents=True)
    remember(settings, last={"id": "1", "at": time.time()})
    true = time.time()
    for days in range(0, 366, 30):  # how many of the days, weeks and months end on the same night depends on the date
        monkeypatch.setattr(time, "time", lambda days=days: true + days * NIGHT)
        count, until = last_copy(settings)
        assert 19 <= count <= 21 and until is not None and 300 < (until - time.time()) / NIGHT < 340
    monkeypatch.undo()
    remember(settings, kept=[time.time() - NIGHT, time.time()])
    short = settings.model_copy(update={"backup_keep": {"last": 2}})
    assert last_copy(short)[0] == 2 and (last_copy(short)[1] or 0) < time.time() + 3 * NIGHT


def test_a_clock_that_was_wrong_is_set_right_and_backups_go_on(
    kept: Kept, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(home=tmp_path / "home", backup_keep={"last": 2})
    shutil.copytree(kept.home, settings.home)
    backups, true = Backups(settings, own, same_disk=True), time.time
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: 86400.0)
        with pytest.raises(Conflict, match=r"believes it is 0[12] January 1970") as caught:
            backups.create(QUIET)
        assert "timedatectl" in caught.value.hint and len(backups.list()) == 2
        patch.setattr(time, "time", lambda: true() + 3650 * NIGHT)
        ahead = backups.create(QUIET).id
    assert [one.id for one in backups.list()] == [ahead, kept.ids[1]], "what bears a date to come counts as the oldest"
    with pytest.raises(Conflict, match="believes") as caught:
        backups.create(QUIET)
    assert "--clock-is-right" in caught.value.hint
    second = backups.create(QUIET, clock_is_right=True).id
    third = backups.create(QUIET).id
    assert [one.id for one in backups.list()] == [second, third], "and goes in its turn"
