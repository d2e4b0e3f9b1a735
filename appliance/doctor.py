"""Is the box well? Each check says in plain words what it found and, where something is wrong, the one thing to do about it.

It looks and changes nothing. What it knows of the parts is what they say of themselves.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from appliance.backup import last_known
from appliance.engine.pool import QUOTES
from appliance.errors import ApplianceError

if TYPE_CHECKING:
    from appliance.accounts import People
    from appliance.db import Database
    from appliance.engine.pool import Pool
    from appliance.jobs import Jobs
    from appliance.settings import Settings

LITTLE_MEMORY = 600 * 2**20
OLD_BACKUP = 2 * 86400.0  # seconds; one is made each night
OLD_PROOF = 15 * 86400.0  # one is proven each week


@dataclass(frozen=True, slots=True)
class Check:
    """`remedy`: what to do, "" where all is well; `command`: to type at the box, where that is the remedy."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""
    command: str = ""


async def checks(settings: Settings, database: Database, pool: Pool, jobs: Jobs, people: People) -> Sequence[Check]:
    """In the order in which a person would ask."""
    serving = await pool.serving()
    remedy = ("Quotes from the documents answer meanwhile. Start the engine again.", "appliance serve")
    if serving.handler != QUOTES:  # a model of another machine serves, and the one here stands in for it
        remedy = ("See which hosts may be reached, and whether the way out is running.", "appliance network status")
    answers = Check("Answers", serving.ok, serving.detail, *(("", "") if serving.ok else remedy))
    looks: list[Callable[[], Check]] = [
        partial(_database, database), partial(_disk, settings), _memory, partial(_worker, jobs), partial(_queue, jobs),
        partial(_lead, people), partial(_backups, settings),
    ]  # fmt: skip
    return [answers, *await asyncio.gather(*map(asyncio.to_thread, looks))]


def _database(database: Database) -> Check:
    try:
        database.check()
    except ApplianceError as error:
        return Check("Database", False, error.message, error.hint)
    return Check("Database", True, f"Whole, {database.path.stat().st_size / 1e6:.1f} MB.")


def _disk(settings: Settings) -> Check:
    usage = shutil.disk_usage(settings.home)
    enough = usage.free > 2 * settings.disk_reserve_mb * 2**20
    told = f"{usage.free / 1e9:.1f} GB of {usage.total / 1e9:.0f} GB are free."
    remedy = "" if enough else "Make room: old models and runs that nothing needs can go."
    return Check("Disk", enough, told, remedy, "" if enough else "appliance models prune")


def _memory() -> Check:
    facts = {}
    with open("/proc/meminfo", encoding="ascii") as lines:
        for line in lines:
            name, _, rest = line.partition(":")
            facts[name] = int(rest.split()[0]) * 1024
    free, whole = facts.get("MemAvailable", 0), facts.get("MemTotal", 0)
    enough = free > LITTLE_MEMORY
    remedy = "" if enough else "Close other programs on this machine, or serve a smaller model."
    return Check("Memory", enough, f"{free / 1e9:.1f} GB of {whole / 1e9:.1f} GB are free.", remedy)


def _worker(jobs: Jobs) -> Check:
    ok = jobs.works()
    told = "Ready for long work." if ok else "The worker is not running: documents wait to be read, and nothing is tuned."
    return Check("Worker", ok, told, "" if ok else "Start it.", "" if ok else "appliance worker")


def _queue(jobs: Jobs) -> Check:
    found = jobs.list()
    failed = [job for job in found[:10] if job.state == "failed"]
    waiting = sum(not job.ended for job in found)
    told = f"{waiting} under way or waiting." if waiting else "Nothing is waiting."
    if failed:
        why = failed[0].error["message"] if failed[0].error else ""
        return Check("Jobs", False, f"{told} The last failure: {why}", "Look at the job, then start it again.")
    return Check("Jobs", True, told)


def _lead(people: People) -> Check:
    leads = [one for one in people.list(role="safeguarding") if not one.disabled]
    remedy = "" if leads else "Give a member of staff the role of safeguarding lead: nobody would read an alert."
    told = f"Alerts are read by {len(leads)}." if leads else "Nobody reads alerts."
    return Check("Safeguarding", bool(leads), told, remedy)


def _backups(settings: Settings) -> Check:
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
