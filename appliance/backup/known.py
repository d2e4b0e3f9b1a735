"""What is remembered of the last backups, for pages and commands that must not wait for a disk or a share.

Hides the file, `HOME/backups/known.json`. It may be lost: then less is said, and nothing else changes.
"""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

from appliance.errors import ApplianceError
from appliance.files import write_atomically
from appliance.settings import Settings


def last_known(settings: Settings) -> dict[str, Any]:
    """Of the last backups: `last` {id, at, where, mount, own_disk, bytes}, `proven` {id, at}, `failed` {at, message, hint},
    `kept`: when those were made that are there now; `ahead`: {id: when it was noticed that its date had not come yet}.
    """
    try:
        told = json.loads((settings.backups / "known.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def last_good(settings: Settings) -> str:
    """What to do where the state is damaged, for who has nothing but this machine: which backup, where it is, and how."""
    known = last_known(settings)
    last, proven = known.get("last") or {}, known.get("proven") or {}
    if not last:
        return "Plug in the disk with the backups, then: `appliance backup restore latest --from FOLDER`."
    chosen, told = (proven, "that was last proven, on") if proven else (last, "of")
    day = time.strftime("%d %B %Y", time.localtime(float(chosen["at"])))
    return (
        f"Restore the backup {told} {day}, in {last['where']}: `appliance backup restore {chosen['id']}` (with sudo on a "
        "school's box); `appliance backup list` shows newer ones. What is there now is kept aside."
    )


def remember(settings: Settings, **facts: Any) -> None:
    with contextlib.suppress(ApplianceError):  # a full disk: the backup is what counts
        known = last_known(settings) | facts
        write_atomically(settings.backups / "known.json", json.dumps(known, ensure_ascii=False))
