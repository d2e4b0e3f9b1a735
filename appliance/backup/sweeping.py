"""Right after something was erased: it leaves every other copy on the box as well, and is said until when a backup has it.

What is said where nobody waits for it - the nightly backup sweeps too - is not here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from appliance.backup.backups import Backups
from appliance.backup.copies import kept_until, last_copy, sweep
from appliance.backup.switching import working
from appliance.db import Database
from appliance.erasures import Erasures
from appliance.errors import UnderWay
from appliance.settings import Settings


@dataclass(frozen=True, slots=True)
class Swept:
    """damaged: kept states in which nothing could be erased, and when each goes. backups: how many from before there are.

    until: when the last copy is gone, None: never. swept: False where a backup is under way, and the next one does it.
    """

    damaged: dict[Path, float]
    backups: int
    until: float | None
    swept: bool = True


def sweep_now(settings: Settings, database: Database) -> Swept:
    """Write down what was erased, here and beside the backups, and erase it from states that are kept.

    Raises ApplianceError.
    """
    try:
        with working(settings):
            return sweep_alone(settings, database)
    except UnderWay:
        return Swept({}, *last_copy(settings), swept=False)


def sweep_alone(settings: Settings, database: Database) -> Swept:
    """As `sweep_now`, for whoever holds the lock (`working`)."""
    Erasures(settings).learn(database)
    Backups(settings).publish_erased()
    damaged = {state: kept_until(state) for state in sweep(settings)}
    count, until = last_copy(settings)
    return Swept(damaged, count, None if until is None else max(until, *damaged.values(), 0.0))
