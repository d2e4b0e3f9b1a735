"""`appliance models`: what this box can serve, and what it serves."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance.cli import connecting, judge
from appliance.cli.output import Output, command, plain, size
from appliance.errors import BadInput, ModelUnavailable, NotFound
from appliance.registry import Registry

if TYPE_CHECKING:
    from appliance.tuned import Tuned
    from appliance.tuning.importing import Format
    from appliance.tuning.quantise import Kind


@click.group()
def models() -> None:
    """List, import, export, verify, promote, roll back and remove models."""


def _record(one: Tuned) -> dict[str, Any]:
    return {
        "id": one.id, "kind": one.kind, "method": one.method, "base": one.base or None,
        "format": {"hosted": "hosted", "program": "json"}.get(one.kind, "gguf"), "bytes": one.bytes,
        "aliases": list(one.aliases), "created": one.created, "data": one.data or None, "rows": one.rows,
        "passed": one.passed, "scores": one.scores, "cost": one.cost,
    }  # fmt: skip


@models.command("list")
@click.option("--fit", is_flag=True, help="Well-known open models, and which of them suit this machine.")
@command
async def list_models(out: Output, fit: bool) -> int:
    """List what can answer - models here and elsewhere, and prompt programs - and which of them serves."""
    if fit:
        return _list_fit(out)
    from appliance.app import Appliance
    from appliance.tuned import listed
    from appliance.tuning.retention import describe

    appliance = Appliance.open(out.settings)
    try:
        found = listed(appliance.registry, appliance.chat.programs, appliance.database)
        used = describe(appliance.registry.list(), out.settings.runs)
        damaged = appliance.registry.damaged()
    finally:
        await appliance.close()
    if found:
        head = ("id", "method", "base", "data", "judged", "cost", "size", "serves as", "made")
        out.table(head, [_line(one) for one in found])
        out.say(f"Models take {size(used['models'])}, tuning runs {size(used['runs'])} (`appliance models prune`).")
    else:
        out.say("There are no models yet. Make one with `appliance demo` or `appliance tune huggingface --examples FILE`.")
    if damaged:
        out.note(alarm(damaged))
    out.result({"models": [_record(one) for one in found], "disk": used, "damaged": damaged})
    return 0


def _line(one: Tuned) -> tuple[str, ...]:
    data = f"{one.rows} rows" if one.rows else one.data[:8]
    serves = ", ".join(f"{alias} of {one.base}" if one.kind == "program" else alias for alias in one.aliases)
    made = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.created))
    told = (one.method, one.base, data, one.score, one.cost, size(one.bytes) if one.bytes else "", serves)
    return (one.id, *(text or "-" for text in told), made)


def alarm(damaged: str) -> str:
    return (
        f"ALARM: the files of {damaged} were damaged, so another model answers in its place. "
        "Check the disk, tune or import it again, and promote what shall serve."
    )


def _list_fit(out: Output) -> int:
    from appliance.tuning.catalog import CLASS_CONVERSATIONS, CLASS_TOKENS, Machine, fit, load

    machine = Machine.here()
    fits = [fit(model, machine) for model in load(out.settings.catalog)]
    gpu = f"a GPU with {size(machine.gpu)}" if machine.gpu else "no GPU"
    out.say(f"This machine: {size(machine.memory)} memory, {machine.cores} cores, {gpu}.")
    out.table(
        ("model", "licence", "file", "serving", "GPU to tune", "serves a class here", "tuned here"),
        [
            (
                one.model.name, one.model.licence, size(one.model.file_bytes), size(one.model.serving_bytes),
                size(one.model.tuning_bytes), one.serve, one.tune,
            )
            for one in fits
        ],
    )  # fmt: skip
    out.say(
        f"File: 4-bit (Q4_K_M). Serving: with {CLASS_CONVERSATIONS} conversations of {CLASS_TOKENS} tokens. Estimates; `slow` "
        "means that it fits and a class would wait."
    )
    out.result({"machine": machine, "models": fits})
    return 0


@models.command()
@click.argument("name")
@command
async def show(out: Output, name: str) -> int:
    """Show a model's card: what it is, what it was made of, how it was judged."""
    from appliance.app import Appliance

    appliance = Appliance.open(out.settings)
    try:
        manifest = appliance.registry.get(name)
        stands_on = appliance.lineage(name)
        out.say(appliance.card(manifest))
        _say_lineage(out, stands_on)
    finally:
        await appliance.close()
    out.result({**plain(manifest), "lineage": stands_on})
    return 0


def _say_lineage(out: Output, stands_on: dict[str, Any]) -> None:
    out.say("## Where it comes from\n")
    while True:
        rows = stands_on["rows"]
        judged = sum(row["part"] == "held_out" for row in rows)
        learned = len(rows) - judged
        gone = sum(row["withdrawn"] for row in rows)
        told = f", learned from {learned} rows, judged by {judged}" if rows else ""
        told += f", {gone} of them withdrawn since" if gone else ""
        out.say(f"- {stands_on['id']} ({stands_on['kind']}{told})" + (f", run {stands_on['run']}" if stands_on["run"] else ""))
        if not stands_on["parents"]:
            return
        stands_on = stands_on["parents"][0]


@models.command("import")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--licence", help="Licence of the model, where its files name none.")
@click.option("--name", help="Its id on this box; left out, one is made from its own name.")
@command
async def import_models(out: Output, path: Path, licence: str | None, name: str | None) -> int:
    """Take in PATH: a GGUF file, or a Hugging Face folder with safetensors. Nothing in it is run."""
    from appliance.tuning.importing import import_model

    out.note(f"Checking and copying {path.name}.")
    registry = Registry(out.settings.models)
    manifest = import_model(registry, path, licence=licence, id=name, starter=out.settings.starter)
    out.say(f"{manifest.id} is here. Serve it with `appliance models promote {manifest.id}`.")
    out.result({"id": manifest.id, "kind": manifest.kind, "sha256": manifest.files["model.gguf"].sha256})
    return 0


@models.command()
@click.argument("name", metavar="ID")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(["gguf", "merged", "adapter"]), help="Left out: what the model is.")
@click.option("--quantise", "kind", type=click.Choice(["Q4_K_M", "Q5_K_M", "Q8_0", "F16"]), help="Fewer bits for each weight.")
@command
async def export(out: Output, name: str, path: Path, form: Format | None, kind: Kind | None) -> int:
    """Copy a model's verified file to PATH, a new file or a folder; merged with its base or smaller where asked."""
    from appliance.engine.inspect import read_gguf
    from appliance.tuning.importing import export_model

    if form == "merged" or kind:
        out.note("Making the file and comparing it with what is served; this can take some minutes.")
    target, digest = await asyncio.to_thread(export_model, Registry(out.settings.models), name, path, form, kind)
    out.say(f"Written to {target} (sha256 {digest}).")
    if kind:
        out.say(f"Most of its weights are {read_gguf(target).quantisation} now.")
    out.result({"id": name, "file": target, "sha256": digest})
    return 0


@models.command()
@click.argument("name", required=False)
@command
async def verify(out: Output, name: str | None) -> int:
    """Compare every file of a model (or of all) with what was registered; a damaged champion is stepped back from."""
    from appliance.app import Appliance

    appliance = Appliance.open(out.settings)
    sound: list[str] = []
    faults: dict[str, str] = {}
    try:
        ids = appliance.registry.ids()
        if name and appliance.registry.id_of(name) not in ids:
            appliance.registry.get(name)  # raises, with the words for it
        for each in [appliance.registry.id_of(name)] if name else ids:
            try:
                appliance.registry.verify(each)
            except (ModelUnavailable, BadInput, NotFound) as error:
                faults[each] = error.message
                out.say(error.message)
            else:
                sound.append(each)
                out.say(f"{each}: every file is as registered.")
        stand_in = appliance.step_back()
        damaged = appliance.registry.damaged()
    finally:
        await appliance.close()
    if stand_in is not None and damaged is not None:
        out.note(alarm(damaged))
        out.say(f"{stand_in.id} serves now.")
    elif faults:
        out.note("Tune or import what is damaged again; `appliance models list` says what serves.")
    out.result({"verified": sound, "damaged": faults, "serves_now": stand_in.id if stand_in else None})
    return 1 if faults else 0


async def _serve(out: Output, name: str | None, accept: str = "") -> int:
    from appliance.app import Appliance

    appliance = Appliance.open(out.settings)
    try:
        if name and (program := connecting.program(appliance, name)) is not None:
            made = appliance.chat.programs.promote(appliance.accounts.local_administrator(), program.id, accept=accept)
            out.say(f"{made.id} serves {made.module} now. `appliance modules rollback {made.module}` undoes it.")
            out.result({"id": made.id, "promoted": True, "module": made.module})
            return 0
        manifest = await (appliance.promote(name, accept=accept) if name else appliance.rollback())
    finally:
        await appliance.close()
    out.say(f"{manifest.id} serves now.")
    if manifest.hosted is not None:
        out.say(connecting.who_is_sent_there(appliance))
    out.result({"id": manifest.id, "promoted": True})
    return 0


@models.command()
@click.argument("name")
@click.option("--accept", default="", metavar="REASON", help="Serve it although the gate refused it; the record keeps why.")
@command
async def promote(out: Output, name: str, accept: str) -> int:
    """Serve NAME, a model or a prompt program, from now on, once it has answered; no restart is needed."""
    return await _serve(out, name, accept)


@models.command()
@command
async def rollback(out: Output) -> int:
    """Go back to the model that served before."""
    return await _serve(out, None)


@models.command()
@click.argument("task")
@click.argument("name", metavar="ID", required=False)
@click.option("--champion", is_flag=True, help="Take the choice back: what serves in general answers for this task as well.")
@click.option("--accept", default="", metavar="REASON", help="Choose it although the gate refused it; the record keeps why.")
@command
async def choose(out: Output, task: str, name: str | None, champion: bool, accept: str) -> int:
    """Have the model ID answer for TASK: `teacher_responder`, or for one subject `teacher_responder/history`."""
    if (name is None) != champion:
        raise click.UsageError("Give a model's id, or --champion.")
    from appliance.app import Appliance

    appliance = Appliance.open(out.settings)
    try:
        chosen = appliance.choose(task, name, accept=accept)
    finally:
        await appliance.close()
    out.say(f"{chosen.id} answers for {task}." if chosen else f"What serves in general answers for {task}.")
    out.result({"task": task, "id": chosen.id if chosen else None})
    return 0


@models.command()
@click.argument("name")
@command
async def remove(out: Output, name: str) -> int:
    """Delete a model that nothing needs."""
    from appliance.app import Appliance

    appliance = Appliance.open(out.settings)
    try:
        appliance.registry.remove(name)
        appliance.audit.note("remove model", name)
    finally:
        await appliance.close()
    out.say("Removed.")
    out.result({"removed": name})
    return 0


@models.command()
@click.option("--keep", type=click.IntRange(min=0), default=5, show_default=True, help="Newest candidates and runs that stay.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@command
async def prune(out: Output, keep: int, dry_run: bool) -> int:
    """Free the disk of old candidates and runs that nothing needs; their reports stay."""
    from appliance.app import Appliance
    from appliance.tuning import retention

    appliance = Appliance.open(out.settings)
    try:
        doomed = retention.plan(appliance.registry, out.settings.runs, keep)
        if not dry_run and (doomed.models or doomed.runs):
            retention.prune(appliance.registry, doomed, out.settings.run / "tune.lock")
            appliance.audit.note("prune", "models", {"models": doomed.models, "runs": [path.name for path in doomed.runs]})
    finally:
        await appliance.close()
    for name in doomed.models:
        out.say(f"model {name}")
    for path in doomed.runs:
        out.say(f"run   {path.name} (its report stays)")
    verb = "would come" if dry_run else "came"
    out.say(f"{len(doomed.models)} models and {len(doomed.runs)} runs: {size(doomed.bytes)} {verb} free.")
    out.result({"models": doomed.models, "runs": doomed.runs, "bytes": doomed.bytes, "removed": not dry_run})
    return 0


models.add_command(connecting.connect)
models.add_command(connecting.list_plugins)
models.add_command(judge.evaluate)
models.add_command(judge.compare)
