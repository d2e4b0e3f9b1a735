"""`appliance network prove` and `rules`: that nothing leaves, shown by a counter; and the wall outside the box's processes."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from appliance.cli.output import Output, command, seconds
from appliance.errors import ApplianceError


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path, dir_okay=False))
@click.option("--quick", is_flag=True, help="Without the training: a minute instead of ten.")
@click.option(
    "--idle", type=click.FloatRange(0, 7 * 86400), default=None, metavar="SECONDS",
    help="How long it also stands idle and is watched, such as 86400 for a day; 60 where left out, 2 with --quick.",
)  # fmt: skip
@command
async def prove(out: Output, file: Path | None, quick: bool, idle: float | None) -> int:
    """Do everything that the box can do, in a network of its own, and count what leaves.

    Prints one page: first what was sent on purpose and seen, then the box air-gapped, feature by feature. It uses a home of its
    own, which is thrown away; this box and what it keeps are not touched. FILE keeps the page as Markdown.
    """
    from appliance.proof import page, space

    words = await asyncio.to_thread(space.words)
    work = Path(tempfile.mkdtemp(prefix="proof-"))
    try:
        order = {"work": str(work), "quick": quick, "idle": idle if idle is not None else 2.0 if quick else 60.0}
        steps, variables = await _trial(out, words, work, order)
    finally:
        await asyncio.to_thread(shutil.rmtree, work, True)
    proof = page.Proof(steps, variables, time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), quick)
    out.say(proof.text())
    if file is not None:
        from appliance.files import write_atomically

        write_atomically(file, proof.text(), private=False)
        out.say(f"The page: {file}")
    out.result(proof.document())
    return 0 if proof.passed else 1


async def _trial(out: Output, words: list[str], work: Path, order: dict[str, Any]) -> tuple[list[Any], list[str]]:
    """The steps of the trial, and which variables there were to take away."""
    from appliance.settings import CLONE

    environment = os.environ | {"PYTHONPATH": str(CLONE)}
    with (work / "driver.log").open("wb") as log:
        child = await asyncio.create_subprocess_exec(
            *words, sys.executable, "-m", "appliance.proof.driver", json.dumps(order),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=log, env=environment, limit=2**22,
        )  # fmt: skip
    try:
        assert child.stdout is not None
        async for line in child.stdout:
            told = json.loads(line)
            if "begins" in told:
                out.progress(told["begins"])
            elif "step" in told:
                _show(out, told["step"])
            elif "error" in told:
                raise ApplianceError(*told["error"])
            elif "steps" in told:
                return told["steps"], told["variables"]
        said = (work / "driver.log").read_text("utf-8", "replace").strip().splitlines()
        raise ApplianceError(f"The proof ended early: {said[-1] if said else 'it said nothing'}", "Run it again.")
    finally:
        if child.returncode is None and child.stdout is not None and not child.stdout.at_eof():
            child.terminate()
        await child.wait()


def _show(out: Output, step: dict[str, Any]) -> None:
    count = sum(step["outside"].values())
    mark = "ok" if step["ok"] else "FAILED"
    out.note(
        f"  {mark:6} {count:3} packets  {step['name']} ({seconds(step['seconds'])}){'' if step['ok'] else ': ' + step['said']}"
    )


@click.command()
@click.option("--user", default=None, help="Whose processes the box's are; appliance where left out. A name or a number.")
@click.option("--group", default=None, help="The group of the way out; appliance-egress where left out. A name or a number.")
@command
async def rules(out: Output, user: str | None, group: str | None) -> int:
    """Print the policy as rules for nftables, which hold whatever a process of the box does. Load them: nft -f FILE.

    Only the way out may then open a connection, to the hosts and ports that are allowed now; all else of the box is refused and
    counted. Print and load them anew after every change of the policy.
    """
    from appliance import firewall
    from appliance.network import Policy

    hosts = sorted(Policy(out.settings.network).allowed())
    text = firewall.rules(hosts, user=user or firewall.USER, group=group or firewall.GROUP)
    out.say(text.rstrip())
    out.result({"rules": text, "allowed": [str(host) for host in hosts]})
    return 0
