"""`appliance doctor`: every check in plain words, with what to do. It changes nothing, whether the services run or not."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import click

from appliance.cli.output import Output, command
from appliance.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Sequence

    from appliance.checkup import Check
    from appliance.settings import Settings


@click.command()
@command
async def doctor(out: Output) -> int:
    """Look at everything that could be wrong, and say what to do about it. Exit code 1 where something is."""
    found = await examine(out.settings)
    for one in found:
        out.say(f"{'fine     ' if one.ok else 'NEEDS YOU'}  {one.name}: {one.detail}")
        if one.remedy:
            out.say(f"           -> {one.remedy}" + (f" `{one.command}`" if one.command else ""))
    amiss = sum(not one.ok for one in found)
    out.say(f"{amiss} of {len(found)} checks need you." if amiss else f"Everything is fine: {len(found)} checks.")
    out.result({"ok": not amiss, "checks": [dataclasses.asdict(one) for one in found]})
    return 1 if amiss else 0


async def examine(settings: Settings) -> Sequence[Check]:
    """All checks of a home. Raises NotFound where nothing has been set up there: looking must not set it up."""
    from appliance import doctor as checks
    from appliance.app import Appliance

    if not settings.database.is_file():
        raise NotFound(
            f"There is no appliance in {settings.home} yet.",
            "Start it once with `appliance serve`, or name its --home.",
        )
    appliance = Appliance(settings)
    try:
        return await checks.thorough(
            settings, appliance.database, appliance.pool, appliance.jobs, appliance.people, appliance.registry,
            appliance.engine, appliance.audit,
        )  # fmt: skip
    finally:
        await appliance.close()
