"""`appliance quotas`: how many questions a role, a class or a person may ask in an hour, a day, a week."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.output import Output, command
from appliance.errors import BadInput, NotFound

if TYPE_CHECKING:
    from collections.abc import Iterator

    from appliance.app import Appliance
    from appliance.quotas import Quota

WINDOW = click.Choice(["hour", "day", "week"])


@contextmanager
def _open(out: Output) -> Iterator[Appliance]:
    from appliance.app import Appliance

    appliance = Appliance.open(out.settings)
    try:
        yield appliance
    finally:
        appliance.library.close()
        appliance.database.close()


@click.group()
def quotas() -> None:
    """How many questions may be asked: role:pupil, class:7B or user:NAME, in an hour, a day, a week."""


@quotas.command("list")
@command
async def list_quotas(out: Output) -> int:
    """List the quotas. The nearest counts: a person's before their class's, that before their role's."""
    with _open(out) as box:
        listed = [_told(one) for one in box.chat.quotas.list()]
    if listed:
        out.table(("for", "window", "questions"), [(one["for"], one["window"], one["most"]) for one in listed])
    else:
        out.say("There are no quotas: everybody may ask as much as they like.")
    out.result({"quotas": listed})
    return 0


@quotas.command("set")
@click.argument("who", metavar="KIND:NAME")
@click.argument("window", type=WINDOW)
@click.argument("most", type=int, metavar="QUESTIONS")
@command
async def set_quota(out: Output, who: str, window: str, most: int) -> int:
    """Let KIND:NAME (role:pupil, class:7B, user:NAME) ask so many QUESTIONS in a window."""
    with _open(out) as box:
        kind, name = _whom(box, who)
        made = box.chat.quotas.set(kind, name, window, most)
        box.audit.note("set quota", f"{kind}:{name}", {"window": window, "most": most})
    out.say(f"{made.kind}:{made.shown} may ask {made.most} questions in a {made.window}.")
    out.result(_told(made))
    return 0


@quotas.command()
@click.argument("who", metavar="KIND:NAME")
@click.argument("window", type=WINDOW)
@command
async def remove(out: Output, who: str, window: str) -> int:
    """Take a quota away."""
    with _open(out) as box:
        kind, name = _whom(box, who)
        box.chat.quotas.remove(kind, name, window)
        box.audit.note("remove quota", f"{kind}:{name}", {"window": window})
    out.say("Removed.")
    out.result({"removed": {"for": who, "window": window}})
    return 0


def _whom(box: Appliance, who: str) -> tuple[str, str]:
    kind, _, name = who.partition(":")
    if kind == "class":
        found = box.classes.named(name)
        if found is None:
            raise NotFound(f"There is no class {name[:80]!r}.", "`appliance classes list` shows them all.")
        return kind, found.id
    if kind == "user":
        return kind, box.accounts.named(name).id
    if kind != "role":
        raise BadInput(f"{who[:80]!r} is nobody.", "Write role:pupil, class:NAME or user:NAME.")
    return kind, name


def _told(one: Quota) -> dict[str, Any]:
    return {"for": f"{one.kind}:{one.shown}", "kind": one.kind, "name": one.shown, "window": one.window, "most": one.most}
