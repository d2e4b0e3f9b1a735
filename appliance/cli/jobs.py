"""`appliance jobs`: the box's long work - what runs, what waits, what became of it - and how a command sees a job through."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.output import Output, command, seconds
from appliance.errors import UnderWay
from appliance.jobs import Job, Jobs, held, work_one

if TYPE_CHECKING:
    from collections.abc import Mapping

    from appliance.db import Database
    from appliance.jobs import Handler

LOOK = 0.5  # seconds between two looks at a job that another process does


@click.group()
def jobs() -> None:
    """List, show and cancel the box's long work."""


def state(queue: Jobs, job: Job) -> str:
    """What a person calls it."""
    if queue.broken_off(job):
        return "broken off"
    if job.state == "running" and job.cancel:
        return "stopping"
    return "waiting" if job.state == "queued" and job.error else job.state


def doing(progress: dict[str, Any]) -> str:
    """How far a job is, in one line."""
    if not progress.get("stage"):
        return ""
    text = str(progress["stage"])
    if progress.get("total"):
        text += f" {progress['done']} of {progress['total']}"
    if progress.get("left") is not None:
        text += f", about {seconds(progress['left'])} left"
    if "loss" in progress.get("facts", {}):
        text += f", loss {progress['facts']['loss']:.3f}"
    return text


def record(queue: Jobs, job: Job) -> dict[str, Any]:
    return {
        "id": job.id, "kind": job.kind, "state": state(queue, job), "progress": job.progress, "attempts": job.attempts,
        "owner": job.owner, "error": job.error, "result": job.result, "created": job.created, "started": job.started,
        "finished": job.finished, "log": queue.log(job.id),
    }  # fmt: skip


@jobs.command("list")
@command
async def list_jobs(out: Output) -> int:
    """List the newest jobs, newest first."""
    with _queue(out) as queue:
        found = queue.list()
        show_list(out, queue, found)
        out.result({"jobs": [record(queue, job) for job in found]})
    return 0


def show_list(out: Output, queue: Jobs, found: list[Job]) -> None:
    if not found:
        out.say("There are no jobs.")
        return
    out.table(
        ("id", "kind", "state", "how far", "asked for"),
        [(job.id, job.kind, state(queue, job), "" if job.ended else doing(job.progress), _when(job.created)) for job in found],
    )


@jobs.command()
@click.argument("id")
@command
async def show(out: Output, id: str) -> int:
    """Show everything known of one job; of one that adds documents, what became of each file."""
    from appliance.cli import adding

    with _database(out) as database:
        queue = Jobs(database, out.settings)
        job = queue.get(id)
        files = adding.reports(database, job)
        show_one(out, queue, job, {"files": [adding.record(report) for report in files]} if files is not None else {})
        for report in files or []:
            adding.say(out, report)
    return 0


def show_one(out: Output, queue: Jobs, job: Job, more: dict[str, Any] | None = None) -> None:
    """Say what is known of a job; `more` goes into the JSON document beside it."""
    out.say(f"{job.id}  {job.kind}: {state(queue, job)}")
    out.say(f"asked for {_when(job.created)} by {job.owner or 'nobody named'}; attempts: {job.attempts}")
    if not job.ended and doing(job.progress):
        out.say(doing(job.progress))
    if job.error:
        out.say(f"{job.error['message']} {job.error['hint']}")
    if job.result and "id" in job.result:
        out.say(f"{job.result['id']}: {'promoted' if job.result.get('promoted') else 'not promoted'}")
    out.result(record(queue, job) | (more or {}))


@jobs.command()
@click.argument("id")
@command
async def cancel(out: Output, id: str) -> int:
    """Stop a job within seconds; what it has finished is kept, and what serves is untouched."""
    with _queue(out) as queue:
        await stop(out, queue, id)
    return 0


async def stop(out: Output, queue: Jobs, id: str) -> None:
    """Cancel a job and wait until it has stopped."""
    job = await asyncio.to_thread(queue.cancel, id)
    ends = time.monotonic() + 30
    while not job.ended and time.monotonic() < ends:
        await asyncio.sleep(LOOK)
        job = queue.get(id)
        if queue.broken_off(job):  # its process died just then
            with suppress(UnderWay), queue.hold(job.lane):
                queue.cancelled(id)
    out.say(f"{id}: {state(queue, job)}. What it has finished is kept: the same command would go on from there.")
    out.result(record(queue, job))


@jobs.command()
@click.argument("id")
@command
async def log(out: Output, id: str) -> int:
    """Print what a job noted while it ran."""
    with _queue(out) as queue:
        path = queue.log(id)
        text = path.read_text("utf-8", "replace") if path.is_file() else ""
        out.say(text.rstrip() or "This job has noted nothing yet.")
        out.result({"id": id, "log": path, "lines": text.splitlines()})
    return 0


@contextmanager
def _queue(out: Output) -> Iterator[Jobs]:
    """The queue of this home while a command needs it."""
    with _database(out) as database:
        yield Jobs(database, out.settings)


@contextmanager
def _database(out: Output) -> Iterator[Database]:
    from appliance.db import Database

    database = Database(out.settings.database)
    database.migrate()
    try:
        yield database
    finally:
        database.close()


def _when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))


async def see_through(
    out: Output, queue: Jobs, job: Job, handlers: Mapping[str, Handler], tell: Callable[[dict[str, Any]], None]
) -> Job:
    """Follow a job that another process does, or do it here where none does; how it ended. Raises what stopped it.

    Ctrl-C leaves a job that another process does; one that is done here goes back into the queue and can be gone on with.
    """
    try:
        while not job.ended:
            if held(queue.worker()) or queue.busy(job.lane):
                tell(job.progress)
                await asyncio.sleep(LOOK)
                job = queue.get(job.id)
            else:
                with suppress(UnderWay):  # another command was quicker
                    job = await work_one(queue, job.id, handlers, also=tell)
            if job.state == "queued" and job.error:
                break  # not the time for it yet
    except asyncio.CancelledError:
        out.note(f"The job {job.id} is not lost: `appliance jobs show {job.id}` says how far it is, the same command goes on")
        out.note(f"with it, `appliance jobs cancel {job.id}` ends it.")
        raise
    fault = job.fault()
    if fault is not None:
        raise fault
    return job
