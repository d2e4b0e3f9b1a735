"""How old the last backup is, where it lies, and whether one was proven of late."""

from __future__ import annotations

import time
from typing import Any

from appliance.backup import last_known
from appliance.checkup.check import Check
from appliance.settings import Settings

OLD_BACKUP = 2 * 86400.0  # seconds; one is made each night
OLD_PROOF = 15 * 86400.0  # one is proven each week


def backups(settings: Settings) -> Check:
    known = last_known(settings)
    last, failed, proven = (known.get(name) or {} for name in ("last", "failed", "proven"))
    if failed:
        return Check("Backups", False, f"{_since(last)} The last attempt failed: {failed['message']}", str(failed["hint"]))
    if not last or time.time() - last["at"] > OLD_BACKUP:
        return Check("Backups", False, _since(last), "Make one now; on a school's box the timer makes one each night.",
                     "appliance backup create")  # fmt: skip
    told = f"{_since(last)} {last['bytes'] / 1e9:.1f} GB, in {last['where']}."
    if last["own_disk"] and not settings.backup_same_disk:
        return Check("Backups", False, f"{told} That is the box's own disk: they do not outlive it.",
                     "Set backup_to to a folder on another disk or a share.")  # fmt: skip
    if time.time() - proven.get("at", 0) > OLD_PROOF:
        return Check("Backups", False, f"{told} None was proven of late.", "Prove it.", "appliance backup verify latest")
    return Check("Backups", True, f"{told} Proven on {_day(proven['at'])}.")


def _since(last: dict[str, Any]) -> str:
    return f"The last one is of {_day(last['at'])}." if last else "There is no backup."


def _day(at: float) -> str:
    return time.strftime("%d %B %Y, %H:%M", time.localtime(at))
