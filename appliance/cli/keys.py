"""`appliance keys`: keys for programs that use /v1."""

from __future__ import annotations

import time

import click

from appliance.cli.output import Output, command


@click.group()
def keys() -> None:
    """Make and revoke keys for /v1."""


@keys.command()
@click.argument("name")
@click.option("--scope", type=click.Choice(["chat", "embed", "admin"]), default="chat", show_default=True)
@command
async def create(out: Output, name: str, scope: str) -> int:
    """Make a key called NAME. It is shown once and kept only as a digest."""
    from appliance.app import Appliance

    appliance = Appliance.open(out.settings)
    user = appliance.accounts.local_administrator()
    id, key = appliance.accounts.create_key(user, name, scope)
    await appliance.close()
    out.say(f"{key}\nKeep it now: it is not shown again. Revoke it with `appliance keys revoke {id}`.")
    out.result({"id": id, "key": key})
    return 0


@keys.command("list")
@command
async def list_keys(out: Output) -> int:
    """List keys; never the keys themselves."""
    from appliance.app import Appliance

    appliance = Appliance.open(out.settings)
    found = appliance.accounts.list_keys(appliance.accounts.local_administrator())
    await appliance.close()
    day = "%Y-%m-%d"
    if found:
        out.table(
            ("id", "name", "scope", "made", "revoked"),
            [
                (k.id, k.name, k.scope, time.strftime(day, time.localtime(k.created)), "yes" if k.revoked else "-")
                for k in found
            ],
        )
    else:
        out.say("There are no keys.")
    out.result({"keys": found})
    return 0


@keys.command()
@click.argument("id")
@command
async def revoke(out: Output, id: str) -> int:
    """End a key at once."""
    from appliance.app import Appliance

    appliance = Appliance.open(out.settings)
    appliance.accounts.revoke_key(appliance.accounts.local_administrator(), id)
    await appliance.close()
    out.say("Revoked.")
    out.result({"revoked": id})
    return 0
