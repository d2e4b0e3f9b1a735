"""Whether the process that left a lock in a repository is gone.

restic asks only whether a process of that number lives. After a power cut the numbers are given out anew, and a backup would
wait half an hour for a lock whose owner is long gone.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

PROC = Path("/proc")


def left_behind(lock: Mapping[str, Any]) -> bool:
    """lock: as restic prints it. False for another machine's, of which nothing can be known here."""
    try:
        if lock["hostname"] != socket.gethostname():
            return False
        at, number = _moment(str(lock["time"])), int(lock["pid"])
    except (KeyError, ValueError):
        return False
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return at < booted - 1 or not _restic_runs_as(number)


def _restic_runs_as(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    try:
        name, _, rest = (PROC / str(number) / "stat").read_text("utf-8", "replace").partition(") ")
    except OSError:
        return True  # it lives, and is hidden from this process
    return name.partition("(")[2] == "restic" and not rest.startswith("Z")


def _moment(stamp: str) -> float:
    """restic tells nanoseconds, Python reads six digits."""
    whole, _, rest = stamp.partition(".")
    return datetime.fromisoformat(whole + (rest.lstrip("0123456789") or "").replace("Z", "+00:00")).timestamp()
