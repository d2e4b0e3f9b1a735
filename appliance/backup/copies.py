"""Copies of the box's state beside the live one, and what was erased: no copy takes over, or stays, with it for good.

A state that comes back has everything on the list of erasures erased once more. States that are kept for an undo are swept of
it, and go after a while; backups cannot be changed, and go by their schedule: `last_copy` says when the last of them is gone.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from appliance.backup.known import last_known, remember
from appliance.backup.retention import NIGHT, gone_by, kept
from appliance.erasing import Again, erase_again
from appliance.erasures import NAME, Erasures
from appliance.errors import ApplianceError, from_os_error
from appliance.settings import Settings

BEFORE = "state-before-"  # in front of when a restore took over: below settings.backups
NIGHTS = 14  # backups, and days, after which the state before a restore is let go of
LEFT_OVER = ("tree", "proof", "undone")  # copies that a process which was killed left


def take_over_list(settings: Settings, repository: Path) -> None:
    """Bring together what is known of erasures: here, beside the backups, in the database as it is. Raises ApplianceError."""
    Erasures(settings).take_over(repository / NAME)
    Erasures(settings).learn_at(settings.database)


def erase_in(settings: Settings, state: Path, *, but: Collection[str] = ()) -> Again:
    """Erase in the state in a folder what is on this home's list; `but`: kinds that may come back. Raises ApplianceError."""
    erased = Erasures(settings).read()
    if not erased:
        return Again()
    try:
        key = settings.database.with_name("people.key")
        if key.is_file() and state.is_dir() and not (state / key.name).exists():
            shutil.copy2(key, state / key.name)  # without it the digests of those who have withdrawn say nothing
    except OSError as error:
        raise from_os_error(error, "erasing from a restored state") from None
    return erase_again(settings.model_copy(update={"home": state}), erased, but=but)


# --- states that are kept -----------------------------------------------------------------------------------------------
def kept_states(settings: Settings) -> list[Path]:
    """What the box was before each restore, the oldest first."""
    return sorted(path for path in settings.backups.glob(f"{BEFORE}*") if path.is_dir())


def sweep(settings: Settings) -> list[Path]:
    """Erase what is on the list from every state that is kept; those in which it could not be done. The lock is held.

    Copies that something left behind go altogether, and copies of the database from before an upgrade: its backup has them.
    """
    for name in LEFT_OVER:
        shutil.rmtree(settings.backups / name, ignore_errors=True)
    for path in settings.backups.glob("before-*.sqlite3*"):
        with contextlib.suppress(OSError):
            path.unlink()
    states = [*kept_states(settings), settings.backups / "restored" / "state"]
    missed = []
    for state in states:
        try:
            erase_in(settings, state)
        except (ApplianceError, sa.exc.SQLAlchemyError):  # damaged, most likely: that is why there was a restore
            missed.append(state)
    return missed


def let_go_of_old_states(settings: Settings) -> None:
    """Count a night for each kept state, and remove those that were kept for so many nights, whatever the clock says."""
    nights: dict[str, int] = last_known(settings).get("nights") or {}
    there = {path.name: path for path in kept_states(settings)}
    nights = {name: nights.get(name, 0) + 1 for name in there}
    for name, count in list(nights.items()):
        if count > NIGHTS and time.time() > _switched(there[name]) + NIGHTS * NIGHT:
            shutil.rmtree(there[name], ignore_errors=True)
            del nights[name]
    remember(settings, nights=nights)


def kept_until(state: Path) -> float:
    """When a kept state is let go of, where a backup is made each night."""
    return _switched(state) + (NIGHTS + 2) * NIGHT


def _switched(state: Path) -> float:
    with contextlib.suppress(ValueError, OverflowError):
        return time.mktime(time.strptime(state.name.removeprefix(BEFORE)[:15], "%Y%m%d-%H%M%S"))
    return os.stat(state).st_mtime


# --- until when ---------------------------------------------------------------------------------------------------------
def last_copy(settings: Settings) -> tuple[int, float | None]:
    """How many backups from before this moment there are, and when the last is gone, by the retention that is set and where
    one is made each night; None: never. (0, 0): there are none.
    """
    known: dict[str, Any] = last_known(settings)
    if not known.get("last"):
        return 0, 0.0
    keep = {str(name): count for name, count in settings.backup_keep.items()}
    times = {float(at) for at in known.get("kept") or ()} or kept({*_nights(settings)}, keep)
    return len(times), gone_by(times, keep, time.time())


def _nights(settings: Settings) -> Iterator[float]:
    """A backup of each night that the schedule reaches back: where nobody wrote down which there are."""
    days = {"last": 1, "daily": 1, "weekly": 7, "monthly": 31, "yearly": 366}
    back = max(count * days[name] for name, count in settings.backup_keep.items())
    return (time.time() - night * NIGHT for night in range(min(back, 15000) + 1))
