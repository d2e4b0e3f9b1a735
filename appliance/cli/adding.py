"""How files come into the library from the command line: added here and now as a job of this command, or left to the worker.

Hides the job: killed and given again, the same command goes on where it was. Says what became of each file in one line, and for
one that failed what to do next; the worker and `jobs show` use the same words.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.cli.output import Output, seconds
from appliance.errors import ApplianceError, UnderWay
from appliance.jobs import Jobs, held, work_one
from appliance.knowledge import ingest as bulk

if TYPE_CHECKING:
    from appliance.app import Appliance
    from appliance.db import Database
    from appliance.jobs import Job, Tell
    from appliance.knowledge.intake import FileReport


async def add_all(
    out: Output, appliance: Appliance, paths: Sequence[Path], collection: str, *, subject: str = "", grade: str = ""
) -> list[FileReport]:
    """Add files and folders with a line for each; reports come back whether or not files failed, by path.

    Raises UnderWay while another process adds or removes.
    """
    from appliance.audit import unix_name

    async def here(job: Job, tell: Tell) -> dict[str, Any]:
        record = bulk.Record(appliance.database, job.id)
        return await bulk.ingest(appliance.library, record, job.payload, tell=tell, on_file=partial(say, out))

    queue = Jobs(appliance.database, appliance.settings)
    asked = bulk.later(appliance.database, paths, collection, subject=subject, grade=grade)
    job = queue.enqueue(bulk.HERE, asked, lane="light", owner=unix_name(), anew=True)
    if job.attempts:
        out.note(f"Going on with what was broken off: {len(bulk.Record(appliance.database, job.id).reports())} files are done.")
    try:
        job = await work_one(queue, job.id, {bulk.HERE: here}, also=partial(_progress, out))
    except UnderWay as error:
        if queue.get(job.id).state == "queued" and not job.attempts:  # nobody asked for it to be done later
            queue.cancel(job.id)
        raise UnderWay(error.message, "Wait until it has ended, or leave it to the worker with --later.") from None
    except asyncio.CancelledError:
        out.note("What was added is there; the same command goes on with the rest.")
        raise
    fault = job.fault()
    if fault is not None:
        raise fault
    if job.state == "cancelled":
        raise ApplianceError(f"The job {job.id} was cancelled. What was added is there.", "Add the rest again.")
    return bulk.Record(appliance.database, job.id).reports()


def leave(
    out: Output, appliance: Appliance, paths: Sequence[Path], collection: str, *, subject: str = "", grade: str = ""
) -> Job:
    """Have the worker add files and folders, now or when it runs again."""
    from appliance.audit import unix_name

    queue = Jobs(appliance.database, appliance.settings)
    asked = bulk.later(appliance.database, paths, collection, subject=subject, grade=grade)
    job = queue.enqueue(bulk.LATER, asked, lane="light", owner=unix_name(), anew=True)
    out.say(f"Left to the worker as the job {job.id}: `appliance jobs show {job.id}` says how far it is.")
    warn_without_worker(out, queue)
    return job


def warn_without_worker(out: Output, queue: Jobs) -> None:
    if not held(queue.worker()):
        out.note("No worker runs now: `appliance serve` or `appliance worker` starts one.")


def reports(database: Database, job: Job) -> list[FileReport] | None:
    """What became of each file so far, by path; None where the job adds no documents."""
    return bulk.Record(database, job.id).reports() if job.kind in bulk.KINDS else None


def say(out: Output, report: FileReport) -> None:
    """What became of a file, in a line, and below it what a person should know."""
    if report.error:
        out.note(f"  {report.file}: {report.error.message}\n    Try: {report.error.hint}")
        return
    out.say(f"  {line(report)}")
    if report.note and report.status == "added":
        out.note(f"    {report.note}")


def line(report: FileReport) -> str:
    """All of it in one line, as the record of a job keeps it."""
    if report.error:
        return f"{report.file}: {report.error.message} {report.error.hint}"
    if report.status == "unchanged":
        return f"{report.file}: there already"
    parts = "slides" if report.kind == "pptx" else "pages"
    pages = f"{report.pages} {parts if report.pages != 1 else parts[:-1]}, " if report.pages else ""
    return f"{report.file}: {pages}{report.passages} passages, {seconds(report.seconds)}"


def record(report: FileReport) -> dict[str, Any]:
    """A report as JSON documents show it."""
    names = ("file", "path", "status", "document", "pages", "passages", "seconds", "note")
    shown = {name: getattr(report, name) for name in names}
    return shown | ({"error": report.error.message, "hint": report.error.hint} if report.error else {})


def summary(reports: Sequence[FileReport], collection: str) -> str:
    failed = sum(report.error is not None for report in reports)
    return f"{len(reports) - failed} of {len(reports)} files are in the collection {collection!r}."


def _progress(out: Output, told: dict[str, Any]) -> None:
    facts = told["facts"]
    if facts.get("of"):
        files = f", file {told['done'] + 1} of {told['total']}" if told["total"] > 1 else ""
        out.progress(f"{facts['file']}: {facts['passages']} of {facts['of']}{files}")
