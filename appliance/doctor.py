"""Is the box well? Each check says in plain words what it found and, where something is wrong, the one thing to do about it.

It looks and changes nothing. What it knows of the parts is what they say of themselves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from appliance.checkup import Check, border, kept, machine, saved
from appliance.checkup.upgraded import upgrade
from appliance.checkup.walls import walls
from appliance.engine.pool import QUOTES
from appliance.errors import ApplianceError

if TYPE_CHECKING:
    from appliance.accounts import People
    from appliance.audit import Audit
    from appliance.db import Database
    from appliance.engine.openai_compatible import OpenAICompatible
    from appliance.engine.pool import Pool
    from appliance.jobs import Jobs
    from appliance.registry import Registry
    from appliance.settings import Settings

__all__ = ["Check", "checks", "thorough"]

Look = Callable[[], Check | None]


# What `checks` looks at, in its order.
NAMES = (
    "Answers", "Database", "Migrations", "Disk", "Memory", "GPU", "Clock", "Air gap", "Model files", "Worker", "Jobs",
    "Safeguarding", "Backups", "Upgrade", "Certificates",
)  # fmt: skip


async def checks(
    settings: Settings, database: Database, pool: Pool, jobs: Jobs, people: People, registry: Registry
) -> Sequence[Check]:
    """What a page can ask for at any time, in the order in which a person would ask."""
    looks: dict[str, Look] = {
        "Database": partial(kept.database, database),
        "Migrations": partial(kept.migrations, database),
        "Disk": partial(machine.disk, settings),
        "Memory": machine.memory,
        "GPU": machine.gpu,
        "Clock": partial(machine.clock, database),
        "Air gap": partial(border.air_gap, settings),
        "Model files": partial(kept.models, registry, thorough=False),
        "Worker": partial(_worker, jobs),
        "Jobs": partial(_queue, jobs),
        "Safeguarding": partial(_lead, people),
        "Backups": partial(saved.backups, settings),
        "Upgrade": upgrade,
        "Certificates": partial(border.put_in, settings),
    }
    return [*await _told("Answers", _answers(pool)), *await _all(looks)]


async def thorough(
    settings: Settings, database: Database, pool: Pool, jobs: Jobs, people: People, registry: Registry,
    engine: OpenAICompatible, audit: Audit,
) -> Sequence[Check]:  # fmt: skip
    """All of these, and what takes seconds or can only be seen from the command line: every byte of the models, the whole
    record, the engine, the pages from outside and their certificates.
    """
    more: dict[str, Look] = {
        "Model files": partial(kept.models, registry, thorough=True),
        "Audit record": partial(kept.record, audit),
        "Self-test": partial(machine.measured, settings),
        "Pages": partial(border.pages, settings),
        "Certificates": partial(border.certificates, settings),
        "Walls": walls,
    }
    quick = await checks(settings, database, pool, jobs, people, registry)
    slow = [*await _told("Engine", _engine(engine)), *await _all(more)]
    names = {one.name for one in slow}
    return [one for one in quick if one.name not in names] + slow


async def _all(looks: dict[str, Look]) -> list[Check]:
    """One that cannot even look says so; the others go on."""
    found = await asyncio.gather(*(_told(name, asyncio.to_thread(look)) for name, look in looks.items()))
    return [one for some in found for one in some]


async def _told(name: str, look: Awaitable[Check | None]) -> list[Check]:
    """What one look came to; nothing where there is nothing to look at."""
    try:
        check = await look
    except ApplianceError as error:
        check = Check(name, False, error.message, error.hint)
    except OSError as error:
        check = Check(name, False, f"It cannot be looked at: {error.strerror}.", "Check who owns the appliance's folder.")
    return [check] if check is not None else []


async def _answers(pool: Pool) -> Check:
    serving = await pool.serving()
    remedy = ("Quotes from the documents answer meanwhile. Start the engine again.", "appliance serve")
    if serving.handler != QUOTES:  # a model of another machine serves, and the one here stands in for it
        remedy = ("See which hosts may be reached, and whether the way out is running.", "appliance network status")
    return Check("Answers", serving.ok, serving.detail, *(("", "") if serving.ok else remedy))


async def _engine(engine: OpenAICompatible) -> Check:
    health = await engine.health()
    if not health.ok:
        return Check("Engine", False, "The engine is not running: nothing is computed, and quotes answer.",
                     "Start the services.", "appliance serve")  # fmt: skip
    running, waiting = (int(health.facts.get(name, 0)) for name in ("running", "waiting"))
    return Check("Engine", True, f"It runs. {running} are being answered, {waiting} wait.")


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
