"""`appliance tune`: make the model better at the school's own way of tutoring, on this machine."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import click

from appliance.cli.output import Output, command, seconds

STAGES = {
    "read": "Reading the examples",
    "dataset": "Making the dataset",
    "load": "Loading the base model",
    "train": "Tuning",
    "export": "Exporting to GGUF",
    "parity": "Comparing the export with the trained model",
    "evaluate": "Judging on held-out examples",
    "register": "Registering",
    "promote": "Promoting",
}


@click.group()
def tune() -> None:
    """Tune a model on tutoring examples, on this machine."""


@tune.command()
@click.argument("action", type=click.Choice(["start", "list"]), default="start")
@click.option("--examples", type=click.Path(path_type=Path), help="JSONL or TOML file, or a folder of them.")
@click.option("--base", default=None, help="Base model's id; the starter where left out.")
@click.option("--method", type=click.Choice(["auto", "lora", "qlora"]), default=None)
@click.option("--name", default=None, help="The new model's id.")
@click.option("--recipe", "recipe_file", type=click.Path(path_type=Path), help="Every knob of a run, as TOML.")
@click.option("--limit", type=click.IntRange(min=1), default=None, help="Use this many of the examples.")
@click.option("--resume", is_flag=True, help="Continue a killed run (it happens by itself where the data is the same).")
@click.option("--no-promote", is_flag=True, help="Judge it, keep it, but do not serve it.")
@command
async def huggingface(
    out: Output,
    action: str,
    examples: Path | None,
    base: str | None,
    method: Literal["auto", "lora", "qlora"] | None,
    name: str | None,
    recipe_file: Path | None,
    limit: int | None,
    resume: bool,  # noqa: ARG001 - a run of the same data and recipe always resumes; the word is there for who looks for it
    no_promote: bool,
) -> int:
    """LoRA or QLoRA with transformers, peft and trl; judged, exported, and promoted if it is better."""
    if action == "list":
        return _list(out)
    if examples is None:
        raise click.UsageError("Give the examples: --examples FILE.")
    from appliance.app import Appliance
    from appliance.tuning.recipe import Recipe

    recipe = Recipe.load(recipe_file) if recipe_file else Recipe()
    if method:
        recipe = dataclasses.replace(recipe, method=method)
    appliance = Appliance.open(out.settings)
    try:
        result = await run(
            out, appliance, examples=examples, base=base, recipe=recipe, name=name, limit=limit, promote=not no_promote
        )
    finally:
        await appliance.close()
    out.result(result.to_json())
    return 0 if result.promoted or no_promote else 4


async def run(out: Output, appliance: Any, *, promote: bool, **options: Any) -> Any:
    """The whole pipeline with progress and a table at its end. Returns tuning.retrain.TuneResult."""
    from appliance.tuning.retrain import tune as pipeline

    appliance.ensure_starter()
    said: set[str] = set()

    def on_progress(stage: str, done: int, total: int, left: float | None, facts: dict[str, Any]) -> None:
        if stage not in said:
            said.add(stage)
            out.note(f"{STAGES.get(stage, stage)}.")
        text = f"{done} of {total}" if total else ""
        if left is not None:
            text += f", about {seconds(left)} left"
        if "loss" in facts:
            text += f", loss {facts['loss']:.3f}"
        if text:
            out.progress(text)

    result = await pipeline(
        appliance.settings,
        appliance.registry,
        promote=promote,
        on_progress=on_progress,
        promote_with=appliance.promote,
        **options,
    )
    show(out, result)
    return result


def show(out: Output, result: Any) -> None:
    """The report as a person reads it."""
    report = result.report
    out.say()
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
    out.say("Steps: " + ", ".join(f"{step} {seconds(value)}" for step, value in result.seconds_by_step.items()))
    if not report.passed:
        for reason in result.reasons:
            out.say(reason)
    out.say(f"The run's folder: {result.folder}")
    out.say(f"{result.id} {'serves now' if result.promoted else 'is kept and was not promoted'}.")


def _list(out: Output) -> int:
    import json

    runs = []
    for path in sorted(out.settings.runs.glob("*/result.json")):
        runs.append(json.loads(path.read_text("utf-8")))
    for one in runs:
        out.say(f"{one['id']}: {'promoted' if one['promoted'] else 'not promoted'}")
    if not runs:
        out.say("No run has finished yet.")
    out.result({"runs": runs})
    return 0
