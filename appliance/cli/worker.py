"""`appliance worker`: the process that does the box's long work, and what each kind of job means."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.output import Output, command

if TYPE_CHECKING:
    from appliance.app import Appliance
    from appliance.jobs import Handler, Job, Tell
    from appliance.tuning.huggingface import OnProgress
    from appliance.tuning.pipeline import TuneResult

NICENESS = 10  # people who ask come first


@click.command()
@click.option("--with-parent", is_flag=True, hidden=True, help="End when the process that started this one does.")
@command
async def worker(out: Output, with_parent: bool) -> int:
    """The worker process: tuning and other long work, one heavy and one light job at a time."""
    from appliance.app import Appliance
    from appliance.jobs import Jobs, work
    from appliance.supervisor import end_with_parent

    appliance = Appliance.open(out.settings)
    if with_parent:
        end_with_parent()
    os.nice(NICENESS)
    working = asyncio.ensure_future(work(Jobs(appliance.database, out.settings), handlers(appliance)))
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, working.cancel)
    try:
        with contextlib.suppress(asyncio.CancelledError):
            await working
    finally:
        await appliance.close()
    return 0


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

    return {"retrain": retrain, "tune huggingface": tune}


def record_of(result: TuneResult) -> dict[str, Any]:
    """What the queue remembers of a run: no words of a conversation, those stay in the run's folder."""
    record = result.to_json()
    return record | {"report": record["report"] | {"samples": []}}


def spoken(tell: Tell) -> OnProgress:
    """The progress of tuning as a job's."""

    def on_progress(stage: str, done: int, total: int, left: float | None, facts: dict[str, Any]) -> None:
        tell({"stage": stage, "done": done, "total": total, "left": left, "facts": facts})

    return on_progress
