"""`appliance retrain`: from reviewed classroom feedback to a promoted model, or an honest refusal."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.jobs import see_through
from appliance.cli.output import Output, command
from appliance.cli.tune import outcome, progress, recipe_called, show
from appliance.errors import UnderWay

if TYPE_CHECKING:
    from appliance.jobs import Job, Jobs


@click.command()
@click.option("--plan", "only_plan", is_flag=True, help="Only say which rows would be used, and why the others are not.")
@click.option("--no-promote", is_flag=True, help="Judge it, keep it, but do not serve it.")
@click.option("--recipe", "recipe_name", default=None, metavar="NAME|FILE", help="A built-in recipe, or every knob as TOML.")
@click.option("--base", default=None, help="Base model's id; what serves now where left out.")
@click.option("--yes", is_flag=True, help="Do not ask where the plan has warnings.")
@command
async def retrain(out: Output, only_plan: bool, no_promote: bool, recipe_name: str | None, base: str | None, yes: bool) -> int:
    """Tune on everything that was reviewed, judge the result against what serves, promote it if it is better.

    The same rows are the same run: after a power cut the same command goes on where it was. Exit codes: 0 promoted (or there
    is nothing new), 4 not promoted, 75 another run is under way.
    """
    from appliance.app import Appliance
    from appliance.audit import unix_name
    from appliance.cli.worker import handlers
    from appliance.jobs import Jobs
    from appliance.tuning.retrain import School, plan, select

    recipe = recipe_called(recipe_name)
    payload = {"recipe": recipe.to_json() if recipe_name else None, "base": base, "promote": not no_promote}
    appliance = Appliance.open(out.settings)
    try:
        school = School(out.settings, appliance.registry, appliance.database)
        chosen = await asyncio.to_thread(plan if only_plan else select, school)
        for line in chosen.lines(every=only_plan):
            out.say(line) if only_plan else out.note(line)
        if only_plan:
            out.result(chosen.to_json())
            return 0
        if chosen.warnings and not yes and sys.stdin.isatty() and not click.confirm("Go on all the same?", err=True):
            return 1
        queue = Jobs(appliance.database, out.settings)
        _refuse_a_second(queue, payload)
        job = queue.enqueue("retrain", payload, owner=unix_name())
        out.note(f"This is job {job.id}.")
        job = await see_through(out, queue, job, handlers(appliance), progress(out))
        result = outcome(job)
    finally:
        await appliance.close()
    if result.fresh:
        show(out, result)
    else:
        out.say(_nothing_new(result))
    out.result(result.to_json())
    return 0 if result.promoted or no_promote or not result.fresh else 4


def _refuse_a_second(queue: Jobs, payload: dict[str, Any]) -> None:
    """Raise UnderWay where another heavy job is being done; a retraining like this one is followed instead."""
    running: list[Job] = [job for job in queue.list() if job.state == "running" and job.lane == "heavy"]
    if not queue.busy("heavy") or not running or (running[0].kind == "retrain" and running[0].payload == payload):
        return
    raise UnderWay(
        f"Another run is under way on this box ({running[0].kind}, job {running[0].id}).",
        f"Wait until it has ended, or cancel it with `appliance jobs cancel {running[0].id}`; then run this command again.",
    )


def _nothing_new(result: Any) -> str:
    verdict = "was promoted" if result.report.passed else "was refused"
    now = "It serves now." if result.promoted else f"What serves is another model; see {result.folder} for the report."
    return f"No row has changed since the last run: {result.id} {verdict} then, so there is nothing to do. {now}" + (
        "" if result.promoted or not result.report.passed else f" `appliance models promote {result.id}` serves it again."
    )
