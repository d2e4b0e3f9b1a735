"""`appliance worker`: the process that does the box's long work, and what each kind of job means."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import click

from appliance import logs, notify
from appliance.cli.output import Output, command

if TYPE_CHECKING:
    from appliance.app import Appliance
    from appliance.jobs import Handler, Job, Jobs, Tell
    from appliance.knowledge.intake import FileReport
    from appliance.knowledge.watching import Watch, Watching
    from appliance.tuning.huggingface import OnProgress
    from appliance.tuning.pipeline import TuneResult

NICENESS = 10  # people who ask come first


@click.command()
@click.option("--with-parent", is_flag=True, hidden=True, help="End when the process that started this one does.")
@command
async def worker(out: Output, with_parent: bool) -> int:
    """The worker process: tuning and other long work, one heavy and one light job at a time; and folders that are watched."""
    from appliance.app import Appliance
    from appliance.cli.serve import told_to_stop_before
    from appliance.jobs import LANES, Jobs, work
    from appliance.supervisor import end_with_parent

    unit = notify.Unit("worker", out.settings.run)
    if await told_to_stop_before(unit):
        return 0
    appliance = Appliance.open(out.settings)
    if with_parent:
        end_with_parent()
    logs.begin("worker", out.settings.log_format)
    os.nice(NICENESS)
    queue = Jobs(appliance.database, out.settings)
    working = asyncio.ensure_future(work(queue, handlers(appliance), turned=living(unit, LANES)))
    watching = asyncio.ensure_future(watch(appliance, queue))
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, working.cancel)
    try:
        with contextlib.suppress(asyncio.CancelledError):
            await working
        unit.end()
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await appliance.close()
    return 0


def living(unit: notify.Unit, lanes: Collection[str]) -> Callable[[str], None]:
    """Tells systemd that the queue is worked: whenever the loops of all lanes have come round once more."""
    missing = set(lanes)

    def turned(lane: str) -> None:
        missing.discard(lane)
        if not missing:
            missing.update(lanes)
            unit.beat("It works the queue.")

    return turned


async def watch(appliance: Appliance, queue: Jobs) -> None:
    """Look at the folders that are watched, again and again, and have what is ready in them added."""
    from appliance.knowledge.watching import Watching

    watching = Watching(appliance.database, appliance.settings)

    def look() -> None:
        for one in watching.all():
            try:
                look_at(watching, one, queue)
            except Exception as error:  # noqa: BLE001 - whatever is wrong with one folder, the others are looked at
                trouble = in_words(error)
                if trouble != one.trouble:  # else it is in the record already, and would be there twice a minute
                    queue.note("worker", f"looking at {one.folder}: {type(error).__name__}: {error}")
                with contextlib.suppress(Exception):  # the database itself, perhaps: there is a next look
                    watching.troubled(one, trouble)

    while True:
        try:
            await asyncio.to_thread(look)
        except Exception as error:  # noqa: BLE001 - a database that is locked, say: there is a next look, or nobody would know
            queue.note("worker", f"looking at watched folders: {type(error).__name__}: {error}")
        await asyncio.sleep(appliance.settings.watch_seconds)


def look_at(watching: Watching, one: Watch, queue: Jobs) -> None:
    """Look at one folder, and have what is ready in it added."""
    from appliance.knowledge.watching import asked

    ready = watching.look(one)
    if ready:
        kind, payload = asked(one, ready)
        job = queue.enqueue(kind, payload, lane="light", owner=one.by or "a watched folder", anew=True)
        watching.taken(one, job.id, ready)


def in_words(error: Exception) -> str:
    """Why a folder could not be looked at, as `docs watches` says it."""
    from appliance.errors import ApplianceError

    if isinstance(error, ApplianceError):
        return f"{error.message} {error.hint}".strip()
    what = (isinstance(error, OSError) and error.strerror) or type(error).__name__
    return f"The folder could not be looked at: {what}. It is looked at again in a while."


def handlers(appliance: Appliance) -> dict[str, Handler]:
    """Kind of job -> what does it. Each goes on from where a killed process left it."""

    async def retrain(job: Job, tell: Tell) -> dict[str, Any]:
        from appliance.tuning.recipe import Recipe
        from appliance.tuning.retrain import School
        from appliance.tuning.retrain import retrain as pipeline

        await asyncio.to_thread(appliance.ensure_starter)
        asked = job.payload
        result = await pipeline(
            School(appliance.settings, appliance.registry, appliance.database),
            base=asked["base"],
            recipe=Recipe(**asked["recipe"]) if asked["recipe"] else None,
            promote=asked["promote"],
            on_progress=spoken(tell),
            promote_with=appliance.promote,
        )
        return record_of(result)

    async def tune(job: Job, tell: Tell) -> dict[str, Any]:
        from pathlib import Path

        from appliance.tuning.pipeline import tune as pipeline
        from appliance.tuning.recipe import Recipe
        from appliance.tuning.screening import Screen

        await asyncio.to_thread(appliance.ensure_starter)
        asked = job.payload
        result = await pipeline(
            appliance.settings,
            appliance.registry,
            examples=Path(asked["examples"]),
            base=asked["base"],
            recipe=Recipe(**asked["recipe"]),
            name=asked["name"],
            limit=asked["limit"],
            promote=asked["promote"],
            on_progress=spoken(tell),
            promote_with=appliance.promote,
            screen=Screen(appliance.database),
        )
        return record_of(result)

    async def optimise(job: Job, tell: Tell) -> dict[str, Any]:
        from appliance.plugins import dspy_job

        return await dspy_job.work(appliance, dspy_job.Order.of(job.payload), spoken(tell))

    async def ingest(job: Job, tell: Tell) -> dict[str, Any]:
        from pathlib import Path

        from appliance.cli.adding import line
        from appliance.errors import Busy, UnderWay
        from appliance.jobs import Jobs
        from appliance.knowledge import ingest as bulk
        from appliance.knowledge.uploads import Uploads

        queue = Jobs(appliance.database, appliance.settings)
        record = bulk.Record(appliance.database, job.id)

        def on_file(report: FileReport) -> None:
            queue.note(job.id, line(report))

        async with appliance.running_engine(lambda text: queue.note(job.id, text), required=False):
            try:
                result = await bulk.ingest(appliance.library, record, job.payload, tell=tell, on_file=on_file)
            except UnderWay as error:
                raise Busy(error.message, error.hint) from None
        # At the end, not file by file: a job that is broken off looks for its files again.
        kept = [Path(report.path) for report in record.reports() if not report.error]
        await asyncio.to_thread(Uploads(appliance.settings).forget, kept)
        return result

    async def tune_openai(job: Job, tell: Tell) -> dict[str, Any]:
        from functools import partial

        from appliance.jobs import Jobs
        from appliance.plugins.openai_work import Box, see_through

        queue = Jobs(appliance.database, appliance.settings)
        note, stop = partial(queue.note, job.id), partial(queue.asked_to_stop, job.id)
        box = Box(appliance.settings, appliance.database, appliance.registry, note, stop)
        return await see_through(box, job.payload["run"], tell)

    return {"retrain": retrain, "tune huggingface": tune, "tune openai": tune_openai, "tune dspy": optimise, "ingest": ingest}


def record_of(result: TuneResult) -> dict[str, Any]:
    """What the queue remembers of a run: no words of a conversation, those stay in the run's folder."""
    record = result.to_json()
    return record | {"report": record["report"] | {"samples": []}}


def spoken(tell: Tell) -> OnProgress:
    """The progress of tuning as a job's."""

    def on_progress(stage: str, done: int, total: int, left: float | None, facts: dict[str, Any]) -> None:
        tell({"stage": stage, "done": done, "total": total, "left": left, "facts": facts})

    return on_progress
