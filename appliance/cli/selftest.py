"""`appliance selftest`: measure this machine, and say which model it can serve to how many pupils."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from appliance.cli.output import Output, command
from appliance.errors import ApplianceError

if TYPE_CHECKING:
    from appliance.app import Appliance


@click.command()
@click.option("--seconds", default=60.0, type=click.FloatRange(1, 600), help="How long to measure; longer is steadier.")
@command
async def selftest(out: Output, seconds: float) -> int:
    """Measure how fast a model reads and writes here, and work out which models this machine can serve to how many pupils.

    The result is kept, with its date, for the health page. It is best measured while nobody asks.
    """
    from appliance import selftest as test
    from appliance.app import Appliance
    from appliance.selftest.measure import SEVERAL

    appliance = Appliance.open(out.settings)
    try:
        name, file = await asyncio.to_thread(_model, appliance)
        if (await appliance.engine.health()).ok:
            out.note("The engine is running: whoever asks meanwhile makes the figures lower than they are.")
        result = await asyncio.to_thread(test.run, out.settings, name, file, seconds, out.progress)
    finally:
        await appliance.close()
    found = result.measured
    out.say(f"{name} on {found.cores} cores: reads {result.reading:.0f} tokens a second, writes {result.writing:.0f} for one.")
    if result.by != name:
        out.say(f"It is too small to conclude from. A made-up model of {found.parameters / 1e6:.0f} million weights:")
        out.say(f"It reads {found.reading:.0f} tokens a second, writes {found.writing:.1f} for one pupil and "
                f"{found.together:.1f} for each of {SEVERAL}; so {name} should write {result.foretold:.0f}.")  # fmt: skip
    out.say(f"Memory is read at {found.memory_speed / 1e9:.1f} GB a second.")
    out.table(
        ("model", "weights", "context", "pupils at once", "tokens/s each", "first words"),
        [
            (one.name, one.quantisation, one.context, one.pupils, f"{one.pace:.1f}", f"{one.first_words:.1f} s")
            if one.pupils
            else (one.name, one.quantisation, "-", one.why, "-", f"{one.first_words:.1f} s")
            for one in result.models
        ],
    )
    out.say(result.summary)
    out.result(result)
    return 0


def _model(appliance: Appliance) -> tuple[str, Path]:
    """The name and file of the model that serves here, its base where it is tuned; else of the starter."""
    with contextlib.suppress(ApplianceError):
        serving = appliance.registry.champion()
        if serving is not None and serving.kind != "hosted":
            base = appliance.registry.verify(serving.origin)
            if "model.gguf" in base.files:
                return base.id, appliance.registry.folder(base.id) / "model.gguf"
    starter = appliance.ensure_starter()
    return starter.id, appliance.registry.folder(starter.id) / "model.gguf"
