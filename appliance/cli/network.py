"""`appliance network`: which hosts outside the box may be reached. Only this command changes it; no page does."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from appliance.cli import proving
from appliance.cli.output import Output, command
from appliance.settings import INSTALLED_HOME, Settings

if TYPE_CHECKING:
    from appliance.network import Host


@click.group()
def network() -> None:
    """Which hosts outside the box may be reached: none by default, which is air-gapped."""


@network.command()
@command
async def status(out: Output) -> int:
    """Say which hosts are allowed, whether the way out runs, and what the settings need that is not allowed."""
    from appliance.network import Policy, needed

    hosts = sorted(Policy(out.settings.network).allowed())
    runs = _answers(out.settings)
    out.say("Only these hosts outside the box may be reached:" if hosts else "Air-gapped: no host outside may be reached.")
    for host in hosts:
        out.say(f"  {host}")
    if hosts:
        out.say("The way out is running." if runs else "The way out is not running: start `appliance egress`.")
    missing = [host for host in needed(out.settings) if host not in hosts]
    for host in missing:
        out.say(f"A setting names {host}, which is not allowed: `appliance network allow {host}`.")
    mode = "allow" if hosts else "air-gapped"
    out.result({"mode": mode, "allowed": hosts, "running": runs, "missing": [str(one) for one in missing]})
    return 0


@network.command()
@click.argument("host", metavar="HOST[:PORT]")
@command
async def allow(out: Output, host: str) -> int:
    """Let the box reach HOST at PORT (443 where none is given), such as ldap.school.example:636.

    A name is allowed as long as it stands for another machine; what runs on this one is allowed by its address.
    """
    from appliance import network as policy

    wanted = policy.host(host)
    changed = await _change(out, "network allow", lambda: [wanted] if policy.Policy(out.settings.network).allow(wanted) else [])
    out.say(f"{wanted} may be reached." if changed else f"{wanted} was allowed already.")
    if out.settings.home == INSTALLED_HOME and not _answers(out.settings):
        out.say("Start the way out: systemctl enable --now appliance-egress")
    out.result({"allowed": str(wanted), "changed": bool(changed)})
    return 0


@network.command()
@click.argument("host", metavar="HOST[:PORT]")
@command
async def deny(out: Output, host: str) -> int:
    """Take HOST back, at PORT or at every port; connections to it that are open end within a second."""
    from appliance import network as policy

    wanted, other = policy.host(host, 1), policy.host(host, 2)
    port = wanted.port if wanted == other else None  # whether a port was given
    gone = await _change(out, "network deny", lambda: policy.Policy(out.settings.network).deny(wanted.name, port))
    left = policy.Policy(out.settings.network).allowed()
    out.say(f"{', '.join(str(one) for one in gone)} may not be reached any more.")
    if not left:
        out.say("The box is air-gapped again.")
    out.result({"denied": [str(one) for one in gone], "mode": "allow" if left else "air-gapped"})
    return 0


network.add_command(proving.prove)
network.add_command(proving.rules)


async def _change(out: Output, verb: str, change: Callable[[], list[Host]]) -> list[Host]:
    """Change the policy, and write down who did it and what."""
    from appliance.app import Appliance

    appliance = Appliance.open(out.settings)
    try:
        changed = change()
        for host in changed:
            facts: dict[str, Any] = {"host": host.name, "port": host.port}
            appliance.audit.note(verb, str(host), facts)
    finally:
        await appliance.close()
    return changed


def _answers(settings: Settings) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(settings.egress_socket))
        except OSError:
            return False
    return True
