"""The network policy as rules for nftables: a wall that stands outside every process of the box, native code included.

Hides nftables' language. The box's processes run as one user; the way out has a group of its own, by which the kernel tells it
from the others. Where a host is allowed by its address, the rule holds address and port; a name may stand for other addresses
tomorrow, so its rule holds the port alone, and which name it is stays for `egress` to look at. It loads nothing itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from appliance.errors import BadInput
from appliance.network import Host, address_of

USER, GROUP = "appliance", "appliance-egress"
_REFUSE = "counter name refused reject with icmpx type admin-prohibited"


def rules(hosts: Iterable[Host], *, user: str = USER, group: str = GROUP, resolver: Path = Path("/etc/resolv.conf")) -> str:
    """A file for `nft -f`. It replaces what an earlier one of these said, and touches no other table. Raises BadInput."""
    for name in (user, group):
        if not re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}|[0-9]{1,10}", name):
            raise BadInput(f"{name!r} is no name of a user or a group.", "Give one as it stands in /etc/passwd, or a number.")
    hosts = sorted(hosts)
    allowed = [f"    {to} counter name forwarded accept{about}" for host in hosts for to, about in _ways(host)]
    if any(not host.explicit for host in hosts):
        for server in _name_servers(resolver):
            family = "ip6" if ":" in server else "ip"
            allowed.append(f"    {family} daddr {server} meta l4proto {{ tcp, udp }} th dport 53 counter name forwarded accept")
    return "\n".join(
        [
            "# Made by `appliance network rules` from the network policy. Load it: nft -f THIS-FILE; see what it stopped:",
            "# nft list counters table inet appliance. Make and load it anew after `appliance network allow` or `deny`.",
            "table inet appliance",
            "delete table inet appliance",
            "table inet appliance {",
            "  counter refused {}",
            "  counter forwarded {}",
            "  chain egress {",
            *allowed,
            "  }",
            "  chain box {",
            "    # Answers to whoever opened the pages.",
            "    ct state established,related accept",
            f"    meta skgid {_quoted(group)} jump egress",
            f"    {_REFUSE}",
            "  }",
            "  chain out {",
            "    type filter hook output priority filter; policy accept;",
            f"    meta skuid {_quoted(user)} jump box",
            "  }",
            "}",
            "",
        ]
    )


def _ways(host: Host) -> list[tuple[str, str]]:
    """What a packet to this host looks like, and a remark on it."""
    if host.name == "localhost":
        return [(f"ip daddr 127.0.0.1 tcp dport {host.port}", ""), (f"ip6 daddr ::1 tcp dport {host.port}", "")]
    if address_of(host.name):
        return [(f"{'ip6' if ':' in host.name else 'ip'} daddr {host.name} tcp dport {host.port}", "")]
    return [(f"tcp dport {host.port}", f' comment "{host.name[:120]}"')]


def _quoted(name: str) -> str:
    return name if name.isdigit() else f'"{name}"'


def _name_servers(resolver: Path) -> list[str]:
    try:
        lines = [line.split() for line in resolver.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError):
        return []
    found = [line[1].partition("%")[0] for line in lines if len(line) > 1 and line[0] == "nameserver"]
    return [address for address in dict.fromkeys(found) if address_of(address)]
