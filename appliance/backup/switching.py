"""A restored state takes the place of the one that is there, and back.

Hides how a kill or a power cut in the middle leaves no half state: what is to be moved where is written down first, each move
is one rename on one disk, and whoever opens the box next finishes what is written down (`finish`). It works entry by entry
below the home folder, for that may be a disk of its own, and lie where the appliance's user may write nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from appliance.audit import Audit
from appliance.backup.contents import LEFT_OUT
from appliance.backup.copies import BEFORE, erase_in
from appliance.db import Database
from appliance.erasures import Erasures
from appliance.errors import ApplianceError, Conflict, NotFound, UnderWay, from_os_error
from appliance.files import make_folder, sync, write_atomically
from appliance.settings import Settings

RESTORED = "restored"  # below settings.backups: a state that was proven and waits to take over
READY = "ready.json"  # beside it, written last
RESTORE = "restore"  # the verb of the audit record
DONE = "switched.json"  # where the state before is
WAITS = 10.0  # seconds for another process that is finishing the same


def switch(settings: Settings) -> Path | None:
    """Have the restored state take over; where the state before is now, None where there was none. Raises ApplianceError."""
    waiting = settings.backups / RESTORED
    if not (waiting / READY).is_file() or not (waiting / "state" / settings.database.name).is_file():
        raise NotFound("No backup was made ready to take over.", "Begin with `appliance backup restore latest`.")
    with working(settings):
        require_stopped(settings)
        told = _told(waiting / READY)
        erase_in(settings, waiting / "state", but=told.get("spared", ()))  # it may have waited for days
        _note(waiting / "state" / settings.database.name, told)
        here = _entries(settings.home)
        before = settings.backups / f"{BEFORE}{time.strftime('%Y%m%d-%H%M%S')}"
        _begin(settings, out_to=before.name, source=f"{RESTORED}/state", over=[RESTORED], keep=True)
        return before if here else None


def _told(ready: Path) -> dict[str, Any]:
    """What was written down of a state that waits: a `Restored`."""
    with contextlib.suppress(OSError, ValueError):
        told = json.loads(ready.read_text("utf-8"))
        if isinstance(told, dict):
            return told
    return {}


def _note(database: Path, told: dict[str, Any]) -> None:
    """Have the state that waits say, in its own record, that it was restored: so it takes over with that, or not at all.

    A backup cannot know of its own restore: what says so already was written here, by a process that was killed.
    """
    if "id" not in told:
        return
    opened, thing = Database(database), f"backup {told['id']}"
    try:
        opened.migrate()
        record = Audit(opened)
        if not any(row.verb == RESTORE for row in record.entries(thing=thing)):
            record.note(RESTORE, thing, {"made": told["at"], "version": told["version"]})
        opened.fold_log()
    finally:
        opened.close()


def undo(settings: Settings) -> None:
    """Have the state before the last restore back; what was there meanwhile is deleted. Raises NotFound, ApplianceError."""
    with working(settings):
        try:
            told = json.loads((settings.backups / DONE).read_text("utf-8"))
            before = settings.backups / Path(told["before"]).name
        except (OSError, ValueError, KeyError, TypeError):
            raise NotFound("There is no restore that could be undone.", "See `appliance backup list`.") from None
        if not before.is_dir():
            raise NotFound(f"The state before the restore is gone ({before}).", "See `appliance backup list`.")
        require_stopped(settings)
        try:
            erase_in(settings, before)
        except (ApplianceError, sa.exc.SQLAlchemyError):
            # Damaged, as the state before a restore often is. It lacks what was erased before the restore; since then, nothing.
            if len(Erasures(settings).read()) > int(told.get("erased", 0)):
                raise
        shutil.rmtree(settings.backups / "undone", ignore_errors=True)
        _begin(settings, out_to="undone", source=before.name, over=["undone", before.name], keep=False)


def finish(settings: Settings) -> None:
    """Finish what a process that was killed has begun; nothing where nothing was. Raises ApplianceError."""
    journal = settings.switching
    if not os.path.exists(journal):
        return
    with _alone(settings):
        if os.path.exists(journal):
            try:
                _finish(settings, json.loads(journal.read_text("utf-8")))
            except OSError as error:
                raise from_os_error(error, "putting a restored state in its place") from None


def _finish(settings: Settings, plan: dict[str, Any]) -> None:
    home, aside, source = settings.home, settings.backups / plan["to"], settings.backups / plan["from"]
    aside.mkdir(exist_ok=True, mode=0o700)
    for name in plan["out"]:
        if not os.path.lexists(aside / name) and os.path.lexists(home / name):
            os.rename(home / name, aside / name)
    for folder in (aside, home):
        sync(folder)
    for name in plan["in"]:
        if os.path.lexists(source / name):
            os.rename(source / name, home / name)
    for folder in (source, home):
        if folder.is_dir():
            sync(folder)
    done = settings.backups / DONE
    if plan["keep"]:
        (settings.backups / RESTORED / READY).unlink(missing_ok=True)  # what is left there is no state any more
        if any(aside.iterdir()):
            write_atomically(done, json.dumps({"before": plan["to"], "erased": len(Erasures(settings).read())}))
        else:
            aside.rmdir()  # there was nothing before: a new box
    else:
        done.unlink(missing_ok=True)
    settings.switching.unlink()
    sync(settings.backups)
    for name in plan["over"]:
        shutil.rmtree(settings.backups / name, ignore_errors=True)


def _begin(settings: Settings, *, out_to: str, source: str, over: list[str], keep: bool) -> None:
    """Write down what is moved where, and do it. keep: what goes out stays, and can be had back."""
    comes = _entries(settings.backups / source)
    # A log that a reader of this moment makes belongs to the database that goes: applied to the other it would damage it.
    logs = {settings.database.name + ending for ending in ("-wal", "-shm")} - set(comes)
    goes = sorted({*_entries(settings.home), *logs})
    plan = {"out": goes, "to": out_to, "in": comes, "from": source, "over": over, "keep": keep}
    write_atomically(settings.switching, json.dumps(plan))
    finish(settings)


def _entries(folder: Path) -> list[str]:
    return sorted(set(os.listdir(folder)) - LEFT_OUT) if folder.is_dir() else []


def require_stopped(settings: Settings) -> None:
    """Raises Conflict while another process has this home's database open: it would go on writing to what was moved away."""
    target = str(settings.database)
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):  # another user's, or gone
            if any(os.readlink(handle).startswith(target) for handle in (process / "fd").iterdir()):
                raise Conflict(
                    f"The appliance is running (process {process.name}), and nothing can take the place of what it uses.",
                    "Stop it (Ctrl-C where `appliance serve` runs), then run the same command again.",
                )


@contextlib.contextmanager
def working(settings: Settings) -> Iterator[None]:
    """Hold what one process at a time does on a home: backup, proof, restore, switch, undo, erasing. Raises UnderWay."""
    try:
        for folder in (settings.home, settings.run, settings.backups):
            make_folder(folder)
        handle = open(settings.run / "backup.lock", "a")  # noqa: SIM115 - closed below
    except OSError as error:
        raise from_os_error(error, "preparing a backup") from None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UnderWay("A backup or a restore is under way on this box.", "Try again when it has ended.") from None
        yield


@contextlib.contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    make_folder(settings.run)
    with open(settings.run / "switching.lock", "w") as handle:
        ends = time.monotonic() + WAITS
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > ends:
                    raise ApplianceError("A restored state is being put in its place.", "Try again in a moment.") from None
                time.sleep(0.05)
        yield
