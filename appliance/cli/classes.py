"""`appliance classes`: how each class is answered, once pupils belong to classes."""

from __future__ import annotations

import click

from appliance.cli.output import Output, command

NOBODY_YET = "This takes effect for pupils as soon as they belong to a class; nobody does yet."


@click.group()
def classes() -> None:
    """Say how each class is answered, once pupils belong to classes: nobody does yet."""


@classes.command()
@click.argument("name", metavar="CLASS")
@click.argument("setting", type=click.Choice(["on", "off"]))
@command
async def strict(out: Output, name: str, setting: str) -> int:
    """Answer CLASS from documents only (on), or say so and let the model answer what they do not cover (off).

    This takes effect for pupils as soon as they belong to a class; nobody does yet.
    """
    from appliance.app import Appliance
    from appliance.classes import Classes

    appliance = Appliance.open(out.settings)
    try:
        rule = Classes(appliance.database).set_strict(name, setting == "on")
        appliance.audit.note("class strict", rule.name, {"on": rule.strict})
    finally:
        await appliance.close()
    said = f"{rule.name} is to be answered from documents only." if rule.strict else f"{rule.name} is no longer strict."
    out.say(f"{said} {NOBODY_YET}")
    out.result(rule)
    return 0


@classes.command("list")
@command
async def list_classes(out: Output) -> int:
    """List the classes that have a rule of their own."""
    from appliance.app import Appliance
    from appliance.classes import Classes

    appliance = Appliance.open(out.settings)
    try:
        rules = Classes(appliance.database).rules()
    finally:
        await appliance.close()
    if rules:
        out.table(("class", "answered from"), [(one.name, "documents only" if one.strict else "anything") for one in rules])
        out.note(NOBODY_YET)
    else:
        out.say("No class has a rule of its own: where the documents do not cover a question, answers say so and go on.")
    out.result({"classes": rules})
    return 0
