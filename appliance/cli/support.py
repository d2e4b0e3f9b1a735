"""`appliance support-bundle`: what a helper needs to see, in one file, without personal data."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from appliance.cli.doctor import examine
from appliance.cli.output import Output, command, size
from appliance.errors import Conflict


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@command
async def support_bundle(out: Output, file: Path) -> int:
    """Write versions, settings, checks, figures and logs to FILE, a .tar.gz, without personal data. Nothing is sent."""
    from appliance.db import Database
    from appliance.support import contents, pack

    if file.exists():
        raise Conflict(f"{file} is there already.", "Choose another name.")
    found = await examine(out.settings)
    database = Database(out.settings.database)
    try:
        parts = await asyncio.to_thread(contents, out.settings, database, found)
    finally:
        database.close()
    taken = await asyncio.to_thread(pack, parts, file)
    out.say(f"Written: {file}, {size(taken)}. Names, texts and secrets are left out; look through it before you pass it on:")
    out.say(f"  tar --list --file {file}")
    out.result({"file": str(file), "bytes": taken, "parts": sorted(parts)})
    return 0
