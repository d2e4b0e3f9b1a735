"""`appliance tune`: make the model better at the school's own way of tutoring.

Hides how a run is started as a job and followed. Every method answers to the same verbs; what a method needs to start is in
METHODS.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from appliance.cli import tune_dspy, tune_openai
from appliance.cli.output import Output, command, seconds
from appliance.errors import BadInput, NotFound, UnderWay

if TYPE_CHECKING:
    from appliance.jobs import Job
    from appliance.tuning.pipeline import TuneResult
    from appliance.tuning.report import Report

STAGES = {
    "read": "Reading the examples",
    "select": "Choosing the rows",
    "dataset": "Making the dataset",
    "load": "Loading the base model",
    "train": "Tuning",
    "export": "Exporting to GGUF",
    "parity": "Comparing the export with the trained model",
    "optimise": "Searching for better words and demonstrations",
    "evaluate": "Judging on held-out examples",
    "register": "Registering",
    "promote": "Promoting",
}
VERBS = ("start", "status", "list", "cancel", "evaluate", "promote")


@click.group()
def tune() -> None:
    """Tune a model on tutoring examples: on this machine, or elsewhere where the school chooses it."""


# --- one method: transformers on this machine --------------------------------------------------------------------------


@tune.command()
@click.argument("verb", type=click.Choice(VERBS), default="start")
@click.argument("id", required=False)
@click.option("--examples", type=click.Path(path_type=Path), help="JSONL or TOML file, or a folder of them.")
@click.option("--base", default=None, help="Base model's id; that of what serves where left out.")
@click.option("--method", type=click.Choice(["auto", "lora", "qlora", "lora8"]), default=None)
@click.option("--name", default=None, help="The new model's id.")
@click.option("--recipe", "recipe_name", default=None, metavar="NAME|FILE", help="A built-in recipe, or every knob as TOML.")
@click.option("--limit", type=click.IntRange(min=1), default=None, help="Use this many of the examples.")
@click.option("--resume", is_flag=True, help="Continue a killed run (it happens by itself where the data is the same).")
@click.option("--no-promote", is_flag=True, help="Judge it, keep it, but do not serve it.")
@command
async def huggingface(out: Output, verb: str, id: str | None, **options: Any) -> int:
    """LoRA or QLoRA with transformers, peft and trl; judged, exported, and promoted if it is better.

    VERB is start (may be left out), status, list, cancel (of a job's ID, or of what runs), evaluate and promote (of a model's
    ID).
    """
    return await perform(out, METHODS["huggingface"], verb, id, options)


async def _start_huggingface(out: Output, options: dict[str, Any]) -> int:
    from appliance.app import Appliance
    from appliance.registry import check_id

    if options["examples"] is None:
        raise click.UsageError("Give the examples: --examples FILE.")
    if options["name"] is not None:
        check_id(options["name"])
    recipe = recipe_called(options["recipe_name"], options["method"])
    promote = not options["no_promote"]
    appliance = Appliance.open(out.settings)
    try:
        chosen = {key: options[key] for key in ("examples", "base", "name", "limit")}
        result = await run(out, appliance, recipe=recipe, promote=promote, **chosen)
    finally:
        await appliance.close()
    out.result(result.to_json())
    return 0 if result.promoted or not promote else 4


def recipe_called(name: str | None, method: Literal["auto", "lora", "qlora", "lora8"] | None = None) -> Any:
    """A recipe by its file or its built-in name; the defaults where neither is given."""
    from appliance.tuning import recipe as recipes

    recipe = recipes.Recipe() if name is None else recipes.find(name)
    return dataclasses.replace(recipe, method=method) if method else recipe


async def run(
    out: Output,
    appliance: Any,
    *,
    examples: Path,
    promote: bool,
    base: str | None = None,
    recipe: Any = None,
    name: str | None = None,
    limit: int | None = None,
) -> TuneResult:
    """The whole pipeline on a file of examples, here and now, recorded as a job; with progress and a table at its end."""
    from appliance.audit import unix_name
    from appliance.cli.worker import handlers
    from appliance.jobs import Jobs, work_one
    from appliance.tuning.recipe import Recipe

    queue = Jobs(appliance.database, appliance.settings)
    payload = {
        "examples": str(examples.absolute()), "base": base, "recipe": (recipe or Recipe()).to_json(), "name": name,
        "limit": limit, "promote": promote,
    }  # fmt: skip
    job = queue.enqueue("tune huggingface", payload, owner=unix_name())
    try:
        job = await work_one(queue, job.id, handlers(appliance), also=progress(out))
    except UnderWay:
        if queue.get(job.id).state == "queued":  # nobody asked for it to be done later
            queue.cancel(job.id)
        raise
    result = outcome(job)
    show(out, result)
    return result


def outcome(job: Job) -> TuneResult:
    """What a job that has ended made, with samples from its run. Raises what stopped it, UnderWay where it has not ended."""
    fault = job.fault()
    if fault is not None:
        raise fault
    if job.state == "cancelled":
        raise BadInput(f"The job {job.id} was cancelled; what serves is untouched.", "Run the same command again to go on.")
    if job.result is None:
        raise UnderWay(f"The job {job.id} is under way.", f"See `appliance jobs show {job.id}`.")
    from appliance.tuning.pipeline import TuneResult
    from appliance.tuning.report import Report
    from appliance.tuning.run_folder import read_json

    result = TuneResult.from_json(job.result)
    for path in (result.folder / "report.json", result.folder / "named" / result.id / "report.json"):
        kept = read_json(path)
        if isinstance(kept, dict) and kept.get("candidate") == result.id:
            return dataclasses.replace(result, report=Report.from_json(kept))
    return result


# --- another: DSPy, for the prompt modules --------------------------------------------------------------------------------


@tune.command()
@click.argument("verb", type=click.Choice(VERBS), default="start")
@click.argument("name", metavar="MODULE|ID", required=False)
@click.option(
    "--examples", type=click.Path(path_type=Path), help="JSONL or TOML file, or a folder; else what was reviewed here."
)
@click.option("--method", type=click.Choice(tune_dspy.METHODS), default="bootstrap", show_default=True)
@click.option("--metric", type=click.Choice(tune_dspy.METRICS), multiple=True, help="Several count as their mean.")
@click.option("--subject", default="", help="The program is for this subject only.")
@click.option("--grade", default="", help="The program is for this grade only.")
@click.option("--seed", type=click.IntRange(min=0), default=0)
@click.option("--budget", type=click.IntRange(min=1), default=None, help="Calls to the model at most, judging included.")
@click.option("--model", default=None, metavar="ID", help="Ask this model; that which serves where left out.")
@click.option("--no-promote", is_flag=True, help="Judge it, keep it, but do not serve it.")
@click.option("--yes", is_flag=True, help="Do not ask before examples go to a model of another machine.")
@command
async def dspy(out: Output, verb: str, name: str | None, **options: Any) -> int:
    """Optimise a prompt module with DSPy; judged on held-out examples, and promoted if it is surely better.

    VERB is start (may not be left out before a MODULE), status, list, cancel (of a job's ID, or of what runs), evaluate and
    promote (of a program's ID).
    """
    method = dataclasses.replace(METHODS["dspy"], evaluate=partial(tune_dspy.evaluate, examples=options["examples"]))
    starting = verb == "start"
    return await perform(out, method, verb, None if starting else name, options | {"module": name if starting else None})


# --- the verbs of every method -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Method:
    """`kinds`: of the jobs that are this method's; `start` takes the method's own options.

    maker: as its results say it. things: what lists what it makes. evaluate, promote: where it makes no models.
    """

    kinds: tuple[str, ...]
    start: Callable[[Output, dict[str, Any]], Awaitable[int]]
    maker: str = ""
    things: str = "models list"
    evaluate: Callable[[Output, Any, Any, str], Awaitable[int]] | None = None
    promote: Callable[[Output, Any, Any, str], Awaitable[int]] | None = None


METHODS = {
    "huggingface": Method(("tune huggingface", "retrain"), _start_huggingface),
    "dspy": Method(("tune dspy",), tune_dspy.start, maker="dspy", things="modules list", promote=tune_dspy.promote),
    "openai": Method(tune_openai.KINDS, tune_openai.start),
}
tune.add_command(tune_openai.openai)


async def perform(out: Output, method: Method, verb: str, id: str | None, options: dict[str, Any]) -> int:
    """One verb of one method; the exit code."""
    if verb == "start":
        if id is not None:
            raise click.UsageError(f"start takes no id, and {id!r} was given.")
        return await method.start(out, options)
    from appliance.app import Appliance

    if verb in ("evaluate", "promote") and id is None:
        raise click.UsageError(f"Name it: {verb} ID (see `appliance {method.things}`).")
    appliance = Appliance.open(out.settings)
    try:
        own = {"evaluate": method.evaluate or _evaluate, "promote": method.promote or _promote}
        return await ({"status": _status, "list": _list, "cancel": _cancel} | own)[verb](out, appliance, method, id or "")
    finally:
        await appliance.close()


def _queue(appliance: Any) -> Any:
    from appliance.jobs import Jobs

    return Jobs(appliance.database, appliance.settings)


async def _status(out: Output, appliance: Any, method: Method, id: str) -> int:
    from appliance.cli.jobs import show_one

    queue = _queue(appliance)
    found = [queue.get(id)] if id else queue.list(kinds=method.kinds, newest=1)
    if not found:
        raise NotFound("No run was started yet.", f"Start one: `appliance {method.kinds[0]} start --examples FILE`.")
    show_one(out, queue, found[0])
    return 0


async def _list(out: Output, appliance: Any, method: Method, _id: str) -> int:
    from appliance.cli.jobs import record, show_list
    from appliance.tuning.run_folder import read_json

    queue = _queue(appliance)
    found = queue.list(kinds=method.kinds)
    results = [*out.settings.runs.glob("*/result.json"), *out.settings.runs.glob("*/named/*/result.json")]
    read = (read_json(path) for path in sorted(results))
    runs = [run for run in read if isinstance(run, dict) and run.get("maker", "") == method.maker]
    show_list(out, queue, found)
    for one in runs:
        out.say(f"{one['id']}: {'promoted' if one['promoted'] else 'not promoted'}")
    if not runs:
        out.say("No run has finished yet.")
    out.result({"runs": runs, "jobs": [record(queue, job) for job in found]})
    return 0


async def _cancel(out: Output, appliance: Any, method: Method, id: str) -> int:
    from appliance.cli.jobs import stop

    queue = _queue(appliance)
    under_way = [job for job in queue.list(kinds=method.kinds) if not job.ended]
    if not id and len(under_way) != 1:
        raise NotFound(f"{len(under_way)} runs are under way.", "Name one of `appliance jobs list`: cancel ID.")
    await stop(out, queue, id or under_way[0].id)
    return 0


async def _evaluate(out: Output, appliance: Any, _method: Method, id: str) -> int:
    from appliance.tuning.judging import judge

    with _queue(appliance).hold("heavy"):
        judged = await judge(
            appliance.settings,
            id,
            outside=appliance.hosting.use,
            on_item=lambda done, total: out.progress(f"{done} of {total}"),
        )
    show_report(out, judged.report)
    out.say(f"The report: {judged.html}")
    out.result({"id": id, "report": judged.report.to_json(), "page": judged.html})
    return 0 if judged.report.passed else 4


async def _promote(out: Output, appliance: Any, _method: Method, id: str) -> int:
    manifest = await appliance.promote(id)
    out.say(f"{manifest.id} serves now.")
    out.result({"id": manifest.id, "promoted": True})
    return 0


# --- what a person reads -----------------------------------------------------------------------------------------------


def progress(out: Output) -> Callable[[dict[str, Any]], None]:
    """Says each stage once, and how far it is."""
    said: set[str] = set()

    def tell(now: dict[str, Any]) -> None:
        stage = now.get("stage")
        if not stage:
            return
        if stage not in said:
            said.add(stage)
            out.note(f"{STAGES.get(stage, stage)}.")
        if now["total"] <= 1:
            return  # a step without parts: its name says all
        text = f"{now['done']} of {now['total']}"
        if now["left"] is not None:
            text += f", about {seconds(now['left'])} left"
        if "loss" in now["facts"]:
            text += f", loss {now['facts']['loss']:.3f}"
        out.progress(text)

    return tell


def show(out: Output, result: TuneResult) -> None:
    """What a run made, as a person reads it."""
    show_report(out, result.report)
    for reason in result.reasons if result.report.passed and not result.promoted else ():
        out.say(reason)
    out.say("Steps: " + ", ".join(f"{step} {seconds(value)}" for step, value in result.seconds_by_step.items()))
    out.say(f"The run's folder, with report.html: {result.folder}")
    out.say(f"{result.id} {'serves now' if result.promoted else 'is kept and was not promoted'}.")


def show_report(out: Output, report: Report) -> None:
    """What the gate found."""
    out.say()
    if report.unmeasured:
        _show_answers(out, report)
        return
    change = report.difference
    out.table(
        ("held out", "loss before", "loss after", "95 % interval of the change"),
        [
            (
                f"{report.n} examples, {report.tokens} tokens",
                f"{report.before.value:.3f}",
                f"{report.after.value:.3f}",
                f"{change.low:+.3f} to {change.high:+.3f}",
            )
        ],
    )
    percent = 100 * (1 - report.after.value / report.before.value)
    moved = f"fell by {percent:.1f} %" if percent >= 0 else f"rose by {-percent:.1f} %"
    out.say(f"Loss per token {moved}, measured on the exported file in llama.cpp.")
    if report.table:
        out.say()
        out.table(("", "without tuning", "with tuning"), [(line.title, line.without, line.tuned) for line in report.table])
        out.say()
    if not report.passed:
        for reason in report.reasons:
            out.say(reason)


def _show_answers(out: Output, report: Report) -> None:
    """What the gate found where one of the two models tells no likelihoods."""
    from appliance.tuning.verdicts import shown

    rows = [
        (one.title, shown(one.before.value, one.unit), shown(one.after.value, one.unit), one.verdict)
        for one in report.sets.values()
    ]
    out.table(("asked", report.baseline, report.candidate, "verdict"), rows)
    for line in report.table:
        if line.name in ("bytes", "cost"):
            out.say(f"{line.title}: {report.baseline} {line.without}; {report.candidate} {line.tuned}. {line.note}")
    for reason in report.reasons:
        out.say(reason)
