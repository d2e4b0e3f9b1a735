"""`appliance tune openai`: fine-tuning by OpenAI, where the school has chosen to have a line to it.

Hides how the command becomes a durable job and what a person is shown before anything leaves. The verbs that every method has
are `tune`'s; the work is `appliance.plugins.openai`'s, of which nothing is imported before the policy allows its host.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.output import Output, command

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from appliance.app import Appliance
    from appliance.plugins.openai import OpenAIFineTuner, Prepared
    from appliance.tuning.store import ExampleStore

KINDS = ("tune openai",)
VERBS = ("start", "status", "list", "cancel", "delete", "evaluate", "promote", "models")


@click.command(short_help="A model at OpenAI; off while air-gapped.")
@click.argument("verb", metavar="[VERB]", type=click.Choice(VERBS), default="start")
@click.argument("id", metavar="[ID]", required=False)
@click.option("--examples", type=click.Path(path_type=Path), help="JSONL or TOML file, or a folder of them.")
@click.option("--model", default="gpt-4.1-mini", show_default=True, help="Base model, as the list of prices names it.")
@click.option("--method", type=click.Choice(["supervised", "preference"]), default="supervised", show_default=True)
@click.option("--validation", type=click.Path(path_type=Path), default=None, help="File of rows that the service measures by.")
@click.option("--suffix", default="", help="A word in the new model's name there.")
@click.option("--epochs", type=click.IntRange(1, 50), default=None, help="Passes over the rows; left out, the service decides.")
@click.option("--batch", type=click.IntRange(1, 256), default=None, help="Rows in a batch.")
@click.option("--rate", type=click.FloatRange(0, 10, min_open=True), default=None, help="Multiplier of the learning rate.")
@click.option("--beta", type=click.FloatRange(0, 2, min_open=True), default=None, help="Of preference: nearness to the base.")
@click.option("--seed", type=click.IntRange(min=0), default=None, help="Given to the service as it is.")
@click.option("--dry-run", is_flag=True, help="Prepare the files and tell the cost; send nothing, ask nobody.")
@click.option("--with-model", is_flag=True, help="Of delete: also the model that was made of the files.")
@click.option("--confirm", default="", metavar="NAME", help="Who answers for what leaves the building: first and last name.")
@command
async def openai(out: Output, verb: str, id: str | None, **options: Any) -> int:
    """Fine-tuning by OpenAI; off while the box is air-gapped, and nothing is sent before somebody answers for it by name.

    VERB is start (may be left out), status, list and cancel (of a job's ID), delete (what a run sent, at OpenAI), evaluate and
    promote (of a model's ID), models (that the account may use).
    """
    from appliance.cli.tune import METHODS, perform
    from appliance.plugins import require

    if not (verb == "start" and options["dry_run"]):  # to look at what would be sent needs no line
        require(out.settings, "openai")
    if verb == "delete" and id is None:
        raise click.UsageError("Name it: delete RUN (see `appliance tune openai list`).")
    if verb in ("status", "list", "cancel", "delete", "models"):
        return await _ask(out, verb, id, with_model=options["with_model"])
    return await perform(out, METHODS["openai"], verb, id, options)


async def start(out: Output, options: dict[str, Any]) -> int:
    """Prepare, show, have it confirmed, then see the job through."""
    from appliance.app import Appliance
    from appliance.plugins.openai import OpenAIFineTuner

    if options["examples"] is None:
        raise click.UsageError("Give the examples: --examples FILE.")
    appliance = Appliance.open(out.settings)
    try:
        tuner = OpenAIFineTuner(out.settings, appliance.database)
        names = ("model", "method", "validation", "suffix", "epochs", "batch", "rate", "beta", "seed")
        prepared = tuner.prepare_data(options["examples"], **{name: options[name] for name in names})
        out.say(prepared.leaving.read_text("utf-8").rstrip())
        out.say(f"The files, to be read: {prepared.folder}")
        if options["dry_run"]:
            out.say("Nothing was sent.")
            out.result(prepared.to_json() | {"folder": prepared.folder, "sent": False})
            return 0
        return await _send(out, appliance, tuner, prepared, options["confirm"])
    finally:
        await appliance.close()


async def _send(out: Output, appliance: Appliance, tuner: OpenAIFineTuner, prepared: Prepared, confirm: str) -> int:
    from appliance.audit import unix_name
    from appliance.cli.jobs import see_through
    from appliance.cli.tune import progress
    from appliance.cli.worker import handlers
    from appliance.jobs import Jobs
    from appliance.plugins import openai_line, require_way_out
    from appliance.plugins.openai_work import LANE

    openai_line.key(out.settings)
    tuner.confirm(prepared, confirm)
    require_way_out(out.settings)  # or the job would knock at a shut door for a while
    queue = Jobs(appliance.database, out.settings)
    job = queue.enqueue(KINDS[0], {"run": prepared.id}, lane=LANE, owner=unix_name())
    job = await see_through(out, queue, job, handlers(appliance), progress(out))
    result = job.result or {}
    if job.state == "cancelled" or not result:
        out.say(f"The job {job.id} was cancelled; the same command begins anew, and its files need not be sent again.")
        out.result({"id": None, "promoted": False, "report": None, "reasons": ["It was cancelled."], "job": job.id})
        return 1
    out.say(
        f"{result['id']}: {result['model']} is in the registry; it cost about {result['cost']:.2f} {result['currency']}, "
        f"by prices as of {prepared.dated}: its bill says what it did."
    )
    for reason in result["reasons"]:
        out.say(reason)
    out.result(result)
    return 0


async def _ask(out: Output, verb: str, id: str | None, *, with_model: bool) -> int:
    from appliance.app import Appliance
    from appliance.plugins.openai import OpenAIFineTuner

    appliance = Appliance.open(out.settings)
    try:
        tuner = OpenAIFineTuner(out.settings, appliance.database)
        asking: dict[str, Callable[[Output, Appliance, OpenAIFineTuner, str | None], Awaitable[int]]] = {
            "status": _status, "list": _list, "cancel": _cancel, "delete": partial(_delete, models=with_model),
            "models": _models,
        }  # fmt: skip
        return await asking[verb](out, appliance, tuner, id)
    finally:
        await appliance.close()


def _run(appliance: Appliance, tuner: OpenAIFineTuner, id: str | None) -> str:
    """The run that a job of the box, a run or a job of the service means; the newest where nothing was named."""
    from appliance.errors import NotFound
    from appliance.jobs import Jobs

    if id is None:
        found = tuner.kept.all()
        if not found:
            raise NotFound("No run was started yet.", "Start one: `appliance tune openai --examples FILE`.")
        return found[0].run
    here = [job for job in Jobs(appliance.database, appliance.settings).list(kinds=KINDS) if job.id == id]
    return here[0].payload["run"] if here else tuner.kept.get(id).run


async def _status(out: Output, appliance: Appliance, tuner: OpenAIFineTuner, id: str | None) -> int:
    said: list[str] = []
    status = await tuner.check_status(_run(appliance, tuner, id), lambda event: said.append(event.message))
    out.say(f"{status.run}: {status.status}" + (f", step {status.step} of {status.steps}" if status.steps else ""))
    out.say(f"base {status.model}, job {status.job or 'not made yet'}, confirmed by {status.confirmed_by}")
    for line in said:
        out.say(f"  {line}")
    if status.tuned:
        out.say(f"The model: {status.tuned}")
    if status.trouble:
        out.say(status.trouble)
    out.result(status)
    return 0


async def _list(out: Output, appliance: Appliance, tuner: OpenAIFineTuner, _id: str | None) -> int:
    from appliance.cli.jobs import record, show_list
    from appliance.jobs import Jobs

    queue = Jobs(appliance.database, appliance.settings)
    here, there = queue.list(kinds=KINDS), await tuner.list_jobs()
    show_list(out, queue, here)
    out.say()
    if there:
        rows = [(one["id"], one["status"], one["model"], one["tuned"], _when(one["created"])) for one in there]
        out.table(("job at OpenAI", "status", "base", "model", "made"), rows)
    else:
        out.say("The account at OpenAI has no jobs.")
    out.result({"runs": tuner.kept.all(), "jobs": [record(queue, job) for job in here], "there": there})
    return 0


async def _cancel(out: Output, appliance: Appliance, tuner: OpenAIFineTuner, id: str | None) -> int:
    """At the service first, because that costs; then here."""
    from appliance.errors import Conflict
    from appliance.jobs import Jobs

    run = _run(appliance, tuner, id)
    status = await tuner.cancel(run)
    queue = Jobs(appliance.database, appliance.settings)
    for job in queue.list(kinds=KINDS):
        if not job.ended and job.payload["run"] == run:
            try:
                queue.cancel(job.id)
            except Conflict:
                continue  # it ended just then
    out.say(f"{run}: {status.status} at OpenAI. Files that were sent lie there for 30 days from when they were sent.")
    out.say(f"`appliance tune openai delete {run}` deletes them now.")
    out.result(status)
    return 0


async def _delete(out: Output, appliance: Appliance, tuner: OpenAIFineTuner, id: str | None, *, models: bool = False) -> int:
    run = _run(appliance, tuner, id)
    gone = await tuner.delete(run, models=models)
    out.say(f"Deleted at OpenAI: {', '.join(gone)}." if gone else "Nothing of it lies at OpenAI any more.")
    status = tuner.kept.get(run)
    if status.tuned:
        out.say(f"The model {status.tuned} was made of it and stays there: the same with --with-model deletes it.")
    if models:
        out.say("`appliance models remove ID` takes its name off this box as well.")
    out.result({"run": run, "deleted": gone, "left": status.tuned})
    return 0


def say_what_was_sent(out: Output, store: ExampleStore) -> list[str]:
    """Of rows that were withdrawn: which runs had sent them to OpenAI, and how they are deleted there; the runs."""
    from appliance.plugins.openai_jobs import Kept

    found = [one for one in Kept(out.settings).all() if one.lies_there and store.withdrawn_from(one.digest)]
    for one in found:
        out.say(
            f"{one.run} sent them to OpenAI, where they lie until 30 days after that. Delete them there now: "
            f"`appliance tune openai delete {one.run}`"
            + (f"; with --with-model also what was made of them, {one.tuned}." if one.tuned else ".")
        )
    return [one.run for one in found]


async def _models(out: Output, _appliance: Appliance, tuner: OpenAIFineTuner, _id: str | None) -> int:
    found = await tuner.list_models()
    for name in found:
        out.say(name)
    out.result({"models": found})
    return 0


def _when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
