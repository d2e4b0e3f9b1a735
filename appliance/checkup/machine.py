"""The machine below the box: memory, disk, graphics card, clock."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import sqlalchemy as sa

from appliance import selftest
from appliance.audit import SLACK, clock_went_back
from appliance.checkup.check import Check
from appliance.db import Database
from appliance.settings import Settings
from appliance.tables import audit, jobs, sessions, turns
from appliance.tuning import catalog

LITTLE_MEMORY = 600 * 2**20
# No release is older than this: a clock that says so has lost its battery.
FIRST_YEAR = 2026
NVIDIA, DISPLAY = "0x10de", "0x03"
PCI = Path("/sys/bus/pci/devices")
MEMINFO, NODES = Path("/proc/meminfo"), Path("/sys/devices/system/node")


def memory_bytes(proc: Path = MEMINFO, nodes: Path = NODES) -> tuple[int, int]:
    """Bytes that could be had without swapping, and all; (0, 0) where the system does not tell."""
    facts = _figures([proc])
    if "MemAvailable" in facts:
        return facts["MemAvailable"], facts.get("MemTotal", 0)
    # A service that sees no more of /proc than processes (ProcSubset=pid) finds nearly the same by the memory's nodes.
    facts = _figures(sorted(nodes.glob("node[0-9]*/meminfo")))
    names = ("MemFree", "Active(file)", "Inactive(file)", "SReclaimable")
    return sum(facts.get(name, 0) for name in names), facts.get("MemTotal", 0)


def _figures(files: Iterable[Path]) -> dict[str, int]:
    """Name -> bytes, summed over files of lines such as "MemTotal: 5 kB" or "Node 0 MemTotal: 5 kB"."""
    facts: dict[str, int] = {}
    for file in files:
        with suppress(OSError, ValueError, IndexError):
            for line in file.read_text("ascii").splitlines():
                name, _, rest = line.partition(":")
                name = name.split()[-1]
                facts[name] = facts.get(name, 0) + int(rest.split()[0]) * 1024
    return facts


def memory() -> Check:
    free, whole = memory_bytes()
    if not whole:
        return Check("Memory", True, "It cannot be seen from here.")
    enough = free > LITTLE_MEMORY
    remedy = "" if enough else "Close other programs on this machine, or serve a smaller model."
    return Check("Memory", enough, f"{free / 1e9:.1f} GB of {whole / 1e9:.1f} GB are free.", remedy)


def disk(settings: Settings) -> Check:
    usage = shutil.disk_usage(settings.home)
    enough = usage.free > 2 * settings.disk_reserve_mb * 2**20
    told = f"{usage.free / 1e9:.1f} GB of {usage.total / 1e9:.0f} GB are free."
    remedy = "" if enough else "Make room: old models and runs that nothing needs can go."
    return Check("Disk", enough, told, remedy, "" if enough else "appliance models prune")


def gpu(devices: Path = PCI) -> Check:
    """A box does without; a card that is there and cannot be used is worth a word."""
    here = catalog.Machine.here()
    if here.gpu:
        return Check("GPU", True, f"A graphics card with {here.gpu / 1e9:.0f} GB: {here.card}.")
    if _card(devices):
        return Check("GPU", False, "There is an NVIDIA card, but its driver does not answer; the processor does the work.",
                     "Install the driver, or take no notice where the processor is enough.", "nvidia-smi")  # fmt: skip
    return Check("GPU", True, "None: the processor does the work.")


def _card(devices: Path) -> bool:
    for device in devices.glob("*"):
        with suppress(OSError):
            kind = (device / "class").read_text().strip()
            if (device / "vendor").read_text().strip() == NVIDIA and kind.startswith(DISPLAY):
                return True
    return False


def measured(settings: Settings, now: catalog.Machine | None = None) -> Check:
    """Whether the machine is still the one that was measured."""
    last = selftest.last(settings)
    if last is None:
        return Check("Self-test", True, "Nobody has measured yet what this machine can serve: `appliance selftest` does.")
    told = f"Measured on {time.strftime('%d %B %Y', time.localtime(last.at))}"
    different = selftest.changed(last, now or catalog.Machine.here())
    if different:
        return Check("Self-test", False, f"{told}; since then the machine has {different}.",
                     "Measure again while nobody asks.", "appliance selftest")  # fmt: skip
    return Check("Self-test", True, f"{told}. {last.summary}")


def clock(database: Database, now: float | None = None) -> Check:
    """It cannot know the hour, but it knows that time has not gone back: what is deleted by its age hangs on that."""
    now = time.time() if now is None else now
    told = time.strftime("%d %B %Y, %H:%M", time.localtime(now))
    set_it = ("Set the clock, then start the services again.", 'timedatectl set-time "YYYY-MM-DD HH:MM:SS"')
    if time.gmtime(now).tm_year < FIRST_YEAR:
        return Check("Clock", False, f"It says {told}, which is before this release was made.", *set_it)
    last = last_written(database)
    if last > now + SLACK and not _set_right(database, now):
        seen = time.strftime("%d %B %Y, %H:%M", time.localtime(last))
        return Check("Clock", False, f"It says {told}, but the box has written something on {seen}.", *set_it)
    return Check("Clock", True, f"It says {told}.")


def _set_right(database: Database, now: float) -> bool:
    """Whether a clock ran ahead once, and the box has worked on under one that does not."""
    with database.read() as connection:
        ahead = connection.execute(sa.select(sa.func.max(audit.c.at))).scalar() or 0.0
        return ahead > now + SLACK and not clock_went_back(connection, now)


def last_written(database: Database) -> float:
    """When the newest row was written that says so: UTC seconds, 0 where there is none."""
    columns = (audit.c.at, turns.c.created, sessions.c.created, jobs.c.created)
    with database.read() as connection:
        return max(float(connection.execute(sa.select(sa.func.max(one))).scalar() or 0.0) for one in columns)
