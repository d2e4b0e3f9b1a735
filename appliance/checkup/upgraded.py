"""Was the last upgrade undone, and why? The installer's change-over writes down how it ended; this reads it."""

from __future__ import annotations

import json
import time
from pathlib import Path

from appliance.checkup.check import Check

OUTCOME = Path("/opt/appliance/changed.json")  # written anew by each upgrade, so that a good one ends what is said here
LATELY = 30 * 86400.0  # seconds for which somebody is asked to do something about it
LOG = "journalctl -u appliance-changeover -u appliance-web -u appliance-engine"


def upgrade(outcome: Path | None = None, now: float | None = None) -> Check | None:
    """None where there was none, or the last one was good."""
    outcome = outcome or OUTCOME
    try:
        told = json.loads(outcome.read_text("utf-8"))
        before, to, runs = (str(told[name]) for name in ("before", "to", "runs"))
        at = float(told.get("at") or outcome.stat().st_mtime)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if runs == to:
        return None
    why = str(told.get("why") or "the pages did not come")
    said = (
        f"The upgrade from {before} to {to} was undone on {_day(at)}: {why}. {runs} runs, and nothing was lost. "
        "This is said until an upgrade succeeds."
    )
    if (time.time() if now is None else now) > at + LATELY:
        return Check("Upgrade", True, said)
    return Check(
        "Upgrade", False, said, "Show what the log says of that hour to who made the bundle, and ask for a better one.", LOG
    )


def _day(at: float) -> str:
    return time.strftime("%d %B %Y, %H:%M", time.localtime(at))
