"""`appliance classes`: the school's classes and how each is answered."""

from __future__ import annotations

import click

from appliance.cli.output import Output, command


@click.group()
def classes() -> None:
    """The school's classes and how each is answered."""


@classes.command()
@click.argument("name", metavar="CLASS")
@click.argument("setting", type=click.Choice(["on", "off"]))
@command
async def strict(out: Output, name: str, setting: str) -> int:
    """Answer CLASS from documents only (on), or say so and let the model answer what they do not cover (off)."""
    from appliance.app import Appliance
    from appliance.classes import Classes

    appliance = Appliance.open(out.settings)
    try:
        rule = Classes(appliance.database).set_strict(name, setting == "on")
        appliance.audit.note("class strict", rule.name, {"on": rule.strict})
    finally:
        await appliance.close()
    said = f"{rule.name} is to be answered from documents only." if rule.strict else f"{rule.name} is no longer strict."
    out.say(said)
    out.result({"name": rule.name, "strict": rule.strict})
    return 0


@classes.command("list")
@command
async def list_classes(out: Output) -> int:
    """List the classes."""
    from appliance.app import Appliance
    from appliance.classes import Classes

    appliance = Appliance.open(out.settings)
    try:
        listed = Classes(appliance.database).list()
    finally:
        await appliance.close()
    if listed:
        out.table(("class", "answered from"), [(one.name, "documents only" if one.strict else "anything") for one in listed])
    else:
        out.say("There are no classes yet.")
    out.result({"classes": [{"id": one.id, "name": one.name, "strict": one.strict} for one in listed]})
    return 0
