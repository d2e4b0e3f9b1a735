"""`appliance tune dspy`: better instructions and demonstrations for a prompt module. The verbs of every method are `tune`'s."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.output import Output

if TYPE_CHECKING:
    from appliance.jobs import Job
    from appliance.plugins.dspy_job import Order

METHODS = ("bootstrap", "random", "mipro", "gepa")
METRICS = ("exact", "f1", "rubric", "readability", "hints")


async def start(out: Output, options: dict[str, Any]) -> int:
    """Optimise here and now, recorded as a job; the exit code: 4 where it is not to serve by its verdict."""
    from appliance import plugins
    from appliance.app import Appliance

    plugins.require(out.settings, "dspy")  # before anything is opened: one sentence, and nothing of DSPy imported
    from appliance.plugins import dspy_job
    from appliance.plugins.dspy import BUDGET

    examples = options["examples"]
    order = dspy_job.Order(
        module=options["module"] or "teacher_responder", examples=str(examples.absolute()) if examples else "",
        method=options["method"], metric=tuple(options["metric"]), subject=options["subject"], grade=options["grade"],
        seed=options["seed"], budget=options["budget"] or BUDGET, model=options["model"] or "",
        promote=not options["no_promote"],
    )  # fmt: skip
    appliance = Appliance.open(out.settings)
    try:
        dspy_job.check(appliance, order)
        _confirm(appliance, order, options["yes"])
        result = await _run(out, appliance, order)
    finally:
        await appliance.close()
    show(out, result)
    out.result(result)
    return 0 if result["promoted"] or not order.promote else 4


def _confirm(appliance: Any, order: Order, yes: bool) -> None:
    """Ask before words leave the building."""
    manifest = appliance.registry.get(order.model) if order.model else None
    if manifest is None or not manifest.hosted or yes:
        return
    click.echo(f"{manifest.id} is a model of another machine: the examples go there, with personal data taken out.", err=True)
    click.confirm("Send them?", abort=True, err=True)


async def _run(out: Output, appliance: Any, order: Order) -> dict[str, Any]:
    from appliance.audit import unix_name
    from appliance.cli.tune import progress
    from appliance.cli.worker import handlers
    from appliance.errors import UnderWay
    from appliance.jobs import Jobs, work_one
    from appliance.plugins.dspy_job import KIND

    queue = Jobs(appliance.database, appliance.settings)
    job = queue.enqueue(KIND, dataclasses.asdict(order) | {"metric": list(order.metric)}, owner=unix_name())
    try:
        job = await work_one(queue, job.id, handlers(appliance), also=progress(out))
    except UnderWay:
        if queue.get(job.id).state == "queued":  # nobody asked for it to be done later
            queue.cancel(job.id)
        raise
    return outcome(job)


def outcome(job: Job) -> dict[str, Any]:
    """What a job that has ended made. Raises what stopped it, UnderWay where it has not ended."""
    from appliance.errors import BadInput, UnderWay

    fault = job.fault()
    if fault is not None:
        raise fault
    if job.state == "cancelled":
        raise BadInput(f"The job {job.id} was cancelled; what serves is untouched.", "Run the same command again to go on.")
    if job.result is None:
        raise UnderWay(f"The job {job.id} is under way.", f"See `appliance jobs show {job.id}`.")
    return job.result


async def evaluate(out: Output, appliance: Any, _method: Any, id: str, *, examples: Path | None) -> int:
    """Judge a program again: on a file's rows, else on those that its run held out."""
    from appliance.plugins import dspy_job

    def tell(_stage: str, done: int, total: int, _left: float | None, _facts: dict[str, Any]) -> None:
        out.progress(f"{done} of {total}")

    report = await dspy_job.judge(appliance, id, examples, tell)
    show_report(out, report)
    out.result({"id": id, "report": report})
    return 0 if report["passed"] else 4


async def promote(out: Output, appliance: Any, _method: Any, id: str) -> int:
    done = appliance.chat.programs.promote(appliance.accounts.local_administrator(), id)
    out.say(f"{done.id} serves {done.module} now. `appliance modules rollback {done.module}` undoes it.")
    out.result({"id": done.id, "promoted": True})
    return 0


# --- what a person reads -----------------------------------------------------------------------------------------------
def show(out: Output, result: dict[str, Any]) -> None:
    report = result["report"]
    show_report(out, report)
    out.say(
        f"{report['method']}: {report['calls']} calls ({report['asked']} asked now), {report['prompt'] + report['completion']} "
        f"tokens, {report['tried']} programs tried, {report['seconds']:.0f} s"
        + (", cut short by the budget." if report["spent"] else ".")
    )
    serves = "serves now" if result["promoted"] else "is kept as a candidate and was not promoted"
    out.say(f"{result['id']} for {result['module']} {serves}: `appliance modules show {result['id']}`.")


def show_report(out: Output, report: dict[str, Any]) -> None:
    out.say()
    change = report["difference"]
    out.table(
        ("held out", f"{' + '.join(report['metric'])} before", "after", "95 % interval of the change"),
        [
            (
                f"{report['n']} examples",
                f"{report['before']['value']:.3f}",
                f"{report['after']['value']:.3f}",
                f"{change['low']:+.3f} to {change['high']:+.3f}",
            )
        ],
    )
    for reason in report["reasons"]:
        out.say(reason)
