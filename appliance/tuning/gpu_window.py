"""When tuning may use the school's GPU: by day it answers pupils, in its window it may train.

Hides how the hours of a day wrap round midnight. It does not start or stop anything.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from appliance.errors import Busy


def opens_in(window: str, now: datetime) -> float:
    """Seconds until the window ("20:00-06:00", "" for always) opens; 0 inside it."""
    if not window:
        return 0.0
    start, end = (_minutes(part) for part in window.split("-"))
    minute = now.hour * 60 + now.minute
    inside = start <= minute < end if start < end else minute >= start or minute < end
    return 0.0 if inside else _until(start, now)


def closes_in(window: str, now: datetime) -> float | None:
    """Seconds until the window closes, None where it never does; inside it only."""
    return _until(_minutes(window.split("-")[1]), now) if window else None


def not_now(window: str, now: datetime) -> Busy:
    """Why a run that needs the GPU waits."""
    start = window.split("-")[0]
    return Busy(
        f"This recipe needs the GPU, and tuning may use it from {window.replace('-', ' to ')} only (setting gpu_window).",
        f"It goes on at {start} where a worker runs; else run the same command after {start}.",
        retry_after=opens_in(window, now) + 1,
    )


def _minutes(clock: str) -> int:
    hour, minute = clock.split(":")
    return int(hour) * 60 + int(minute)


def _until(minute: int, now: datetime) -> float:
    then = now.replace(hour=minute // 60, minute=minute % 60, second=0, microsecond=0)
    return ((then if then > now else then + timedelta(days=1)) - now).total_seconds()
