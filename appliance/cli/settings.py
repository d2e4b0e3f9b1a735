"""`appliance settings` and `appliance status`: what is set, and what is going on."""

from __future__ import annotations

import click

from appliance.cli.models import alarm
from appliance.cli.output import Output, command
from appliance.knowledge.shelves import EVERYTHING
from appliance.settings import Settings


@click.command()
@click.option("--all", "everything", is_flag=True, help="With what each setting does.")
@command
async def settings(out: Output, everything: bool) -> int:
    """Show the settings; change them in /etc/appliance/appliance.toml or with APPLIANCE_<NAME>."""
    values = out.settings.model_dump(mode="json")
    for name, field in Settings.model_fields.items():
        out.say(f"{name} = {values[name]!r}")
        if everything:
            out.say(f"    {field.description}")
    out.result(values)
    return 0


@click.command()
@command
async def status(out: Output) -> int:
    """Say what serves now and whether everything is fine."""
    from appliance.app import Appliance

    appliance = Appliance.open(out.settings)
    serving = await appliance.pool.serving()
    documents = await appliance.library.documents(EVERYTHING)
    waiting = await appliance.library.waiting()
    damaged = appliance.registry.damaged()
    await appliance.close()
    out.say(f"Answers come from: {serving.title}. {serving.detail}")
    out.say(f"Documents: {len(documents)}.")
    if waiting:
        out.say(f"{waiting} passages are found by their words only: run `appliance docs reindex`.")
    if damaged:
        out.say(alarm(damaged))
    out.result({"serving": serving, "documents": len(documents), "waiting": waiting, "damaged": damaged})
    return 0 if serving.ok and not damaged else 1
