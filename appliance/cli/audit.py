"""`appliance audit`: the record of who did what to this box."""

from __future__ import annotations

import json
import time

import click

from appliance.cli.output import Output, command


@click.group()
def audit() -> None:
    """Show the record of who did what, and check that nobody changed it."""


@audit.command()
@click.option("-n", "newest", type=click.IntRange(min=1), default=30, show_default=True, help="How many of the newest rows.")
@command
async def show(out: Output, newest: int) -> int:
    """Show the newest rows, oldest first."""
    from appliance.app import Appliance

    appliance = Appliance.open(out.settings)
    try:
        entries = appliance.audit.entries(newest=newest)
    finally:
        await appliance.close()
    rows = [
        (entry.number, time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry.at)), entry.actor, entry.verb, entry.thing,
         json.dumps(entry.facts, ensure_ascii=False) if entry.facts else "")
        for entry in entries
    ]  # fmt: skip
    if rows:
        out.table(("no.", "when", "who", "did", "to", "facts"), rows)
    else:
        out.say("Nothing has been recorded yet.")
    out.result({"entries": entries})
    return 0


@audit.command()
@command
async def verify(out: Output) -> int:
    """Walk the whole record; a row that was changed or taken out is named."""
    from appliance.app import Appliance

    appliance = Appliance.open(out.settings)
    try:
        count = appliance.audit.verify()
    finally:
        await appliance.close()
    out.say(f"{count} rows, all as they were written.")
    out.result({"rows": count})
    return 0
