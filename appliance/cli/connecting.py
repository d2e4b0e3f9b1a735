"""`appliance models connect` and `plugins`: models of other machines, and what this box may reach them with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.output import Output, command
from appliance.errors import ApplianceError, NotFound

if TYPE_CHECKING:
    from appliance.app import Appliance
    from appliance.programs import Program


@click.command()
@click.argument("name")
@click.option("--url", "urls", multiple=True, required=True, help="The server's address; once for each server that has it.")
@click.option("--model", default="", help="What it is called there; left out where there is only one.")
@click.option("--key-file", type=click.Path(path_type=Path), help="File with the key for it, for the appliance's user alone.")
@click.option("--ca-file", type=click.Path(path_type=Path), help="File with the authority of its certificate.")
@click.option("--context", type=click.IntRange(min=0), default=0, help="Tokens that it holds, where it does not tell.")
@click.option("--capacity", type=click.IntRange(1, 1000), default=4, show_default=True, help="Answers at once, of each server.")
@click.option("--price", type=click.FloatRange(0), nargs=2, default=None, metavar="IN OUT", help="Of a million tokens, if any.")
@click.option("--currency", default="", help="Of the price, such as EUR.")
@command
async def connect(
    out: Output, name: str, urls: tuple[str, ...], model: str, key_file: Path | None, ca_file: Path | None, context: int,
    capacity: int, price: tuple[float, float] | None, currency: str,
) -> int:  # fmt: skip
    """Make the model of another machine known here as NAME: any server that speaks OpenAI's dialect.

    Each address is asked whether it has it, and has to be allowed first: `appliance network allow HOST:PORT`. It serves nobody
    before it is promoted. The same NAME again changes its addresses.
    """
    from appliance import plugins
    from appliance.app import Appliance
    from appliance.plugins import remote
    from appliance.registry import check_id

    check_id(name)
    if bool(currency) != (price is not None):
        raise click.UsageError("A price needs its money, and money a price: --price IN OUT --currency EUR.")
    appliance = Appliance.open(out.settings)
    try:
        plugins.require(out.settings, remote.NAME)
        found = await remote.connect(
            out.settings, name, urls, model=model, key_file=key_file, context=context, ca_file=ca_file, capacity=capacity,
            price=price, currency=currency,
        )  # fmt: skip
        made = appliance.registry.add_hosted(found)
        hosted: dict[str, Any] = made.hosted or {}
        servers = [str(one["url"]) for one in hosted["servers"]]
        appliance.audit.note("connect model", made.id, {"model": hosted["model"], "servers": servers})
    finally:
        await appliance.close()
    out.say(f"{made.id} is {hosted['model']}, on {len(servers)} servers, with {made.context} tokens of context.")
    out.say(f"Judge it with `appliance models evaluate {made.id}`; then `appliance models promote {made.id}` has it serve.")
    out.say(who_is_sent_there(appliance))
    out.result({"id": made.id, "model": hosted["model"], "servers": servers, "context": made.context})
    return 0


def who_is_sent_there(appliance: Appliance) -> str:
    """Whose words a promoted model of another machine gets."""
    if appliance.settings.hosted_for == "everyone":
        return "Everybody's questions, and the passages found for them, go there while it serves (hosted_for = everyone)."
    told = "Staff's questions, and the passages found for them, go there while it serves. Pupils' stay in the building"
    here = appliance.registry.aliases().get("fallback")
    return f"{told}: {here} answers them." if here else f"{told}."


@click.command("plugins")
@command
async def list_plugins(out: Output) -> int:
    """List the plugins, and what each still needs."""
    from appliance.plugins import states

    found = states(out.settings)
    if found:
        out.table(("plugin", "what it is", "state"), [(one.name, one.title, "ready" if one.ready else "off") for one in found])
    for one in found:
        if not one.ready:
            out.say(f"{one.name}: {one.message}")
            out.say(f"  {one.hint}")
    if not found:
        out.say("There are no plugins.")
    out.result({"plugins": found})
    return 0


def program(appliance: Appliance, name: str) -> Program | None:
    """The prompt program with this id; None where a model has it, or nothing."""
    try:
        appliance.registry.get(name)
    except ApplianceError:
        try:
            return appliance.chat.programs.get(name)
        except NotFound:
            return None
    return None


async def judge_program(out: Output, appliance: Appliance, found: Program) -> int:
    """Judge a program again by what made it. Raises Unsupported where nothing here can."""
    from appliance import plugins
    from appliance.errors import Unsupported

    maker = plugins.installed().get(found.maker)
    if maker is None or maker.judge is None:
        raise Unsupported(
            f"The program {found.id} comes from {found.maker or 'a file'}, and nothing here can judge it.",
            f"Try it; then, knowing that, `appliance models promote {found.id} --accept REASON`.",
        )
    report = await maker.judge(appliance, found.id, lambda done, total: out.progress(f"{done} of {total} questions"))
    passed = report.get("passed") is True
    out.say(f"{found.id} for {found.module}: {'passed' if passed else 'refused'}.")
    for reason in report.get("reasons", ()):
        out.say(str(reason))
    out.result({"id": found.id, "report": dict(report)})
    return 0 if passed else 4


def compare_programs(out: Output, appliance: Appliance, ids: tuple[str, str]) -> int:
    """What is known of two things side by side, where one of them is a prompt program: its words are not another model's."""
    from appliance.errors import NotFound
    from appliance.tuned import listed

    known = {one.id: one for one in listed(appliance.registry, appliance.chat.programs, appliance.database)}
    missing = [id for id in ids if id not in known]
    if missing:
        raise NotFound(f"There is nothing called {missing[0][:60]!r}.", "See `appliance models list`.")
    rows = [known[id] for id in ids]
    facts = [("method", "method"), ("made from", "base"), ("data", "data"), ("judged", "score"), ("cost", "cost")]
    out.table(("", *ids), [(title, *(str(getattr(one, name) or "-") for one in rows)) for title, name in facts])
    out.say("Each was judged beside what it was made from: `appliance models evaluate ID` does it again.")
    out.result({"compared": rows})
    return 0
