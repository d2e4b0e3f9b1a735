"""The rules for nftables: what they say, and what the kernel makes of them for real processes with real users."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from appliance import firewall, network
from appliance.errors import BadInput
from tests.cli.test_commands import run
from tests.test_proof import ENVIRONMENT

HOSTS = ["198.51.100.7:443", "[2001:db8::7]:636", "ldap.school.example:389", "localhost:8443"]


@pytest.fixture
def resolver(tmp_path: Path) -> Path:
    path = tmp_path / "resolv.conf"
    path.write_text("# a comment\nsearch school.example\nnameserver 192.0.2.53\nnameserver fe80::1%eth0\nnameserver ; drop\n")
    return path


def test_an_address_is_held_with_its_port_and_a_name_by_its_port_alone(resolver: Path) -> None:
    text = firewall.rules([network.host(one) for one in HOSTS], resolver=resolver)
    for line in (
        "ip daddr 198.51.100.7 tcp dport 443 counter name forwarded accept",
        "ip6 daddr 2001:db8::7 tcp dport 636 counter name forwarded accept",
        'tcp dport 389 counter name forwarded accept comment "ldap.school.example"',
        "ip daddr 127.0.0.1 tcp dport 8443 counter name forwarded accept",
        "ip6 daddr ::1 tcp dport 8443 counter name forwarded accept",
        "ip daddr 192.0.2.53 meta l4proto { tcp, udp } th dport 53 counter name forwarded accept",
        "ip6 daddr fe80::1 meta l4proto { tcp, udp } th dport 53 counter name forwarded accept",
        'meta skuid "appliance" jump box', 'meta skgid "appliance-egress" jump egress',
    ):  # fmt: skip
        assert f"    {line}" in text.splitlines(), line
    assert "; drop" not in text


def test_air_gapped_nobody_gets_out_and_no_name_is_asked_for(tmp_path: Path) -> None:
    text = run(tmp_path, "network", "rules").stdout
    assert "accept" not in text.partition("chain egress {")[2].partition("}")[0]
    assert "53" not in firewall.rules([network.host("198.51.100.7:443")]).partition("chain egress {")[2].partition("}")[0]


@pytest.mark.parametrize("name", ["", "a b", 'x" accept', "-x", "x" * 40])
def test_a_user_that_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(BadInput, match="no name"):
        firewall.rules([], user=name)


# --- in the kernel -----------------------------------------------------------------------------------------------------------
# Users and groups by number, in a network of its own: who reaches what, and how soon those who do not are told.
KERNEL = """
import encodings.idna, json, os, socket, subprocess, sys, time  # all of it while this is root
from appliance.proof.wire import _Netlink
with _Netlink() as own:
    own.up("lo")
    own.address("lo", "198.51.100.7", 32)
nft, rules = sys.argv[1], sys.argv[2]
subprocess.run([nft, "-c", "-f", rules], check=True)
subprocess.run([nft, "-f", rules], check=True)
subprocess.run([nft, "-f", rules], check=True)
BOX, WAY_OUT, OTHER = (12345, 12345), (12345, 23456), (54321, 54321)
def as_user(who, work, *given):
    ours, theirs = os.pipe()
    if os.fork() == 0:
        os.setgroups([])
        os.setgid(who[1])
        os.setuid(who[0])
        began = time.monotonic()
        try:
            said = work(*given)
        except Exception as error:
            said = type(error).__name__
        os.write(theirs, json.dumps([said, time.monotonic() - began]).encode())
        os._exit(0)
    os.wait()
    return json.loads(os.read(ours, 4096))
def connect(host, port):
    socket.create_connection((host, port), 3).close()
    return "through"
def datagram(host, port):
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", (host, port))
    return "through"
for port in (443, 444, 389):
    globals()[f"at{port}"] = socket.create_server(("198.51.100.7", port))
here = socket.create_server(("127.0.0.1", 443))
found = {}
for name, who in (("box", BOX), ("way out", WAY_OUT), ("others", OTHER)):
    for port in (443, 444, 389):
        found[f"{name} {port}"] = as_user(who, connect, "198.51.100.7", port)
    found[f"{name} here"] = as_user(who, connect, "127.0.0.1", 443)
    found[f"{name} name server"] = as_user(who, datagram, "127.0.0.53", 53)
# The pages: whoever listens as the box answers those who come.
if os.fork() == 0:
    os.setgid(12345); os.setuid(12345)
    listening = socket.create_server(("127.0.0.1", 8081))
    line, _ = listening.accept()
    line.sendall(b"a page")
    os._exit(0)
for _ in range(100):
    try:
        line = socket.create_connection(("127.0.0.1", 8081), 3)
        break
    except ConnectionRefusedError:
        time.sleep(0.05)
found["pages"] = [line.recv(6).decode(), 0]
counters = json.loads(subprocess.run([nft, "-j", "list", "counters"], check=True, capture_output=True).stdout)
found["counters"] = {one["counter"]["name"]: one["counter"]["packets"] for one in counters["nftables"] if "counter" in one}
print(json.dumps(found))
"""


@pytest.mark.optional
def test_only_the_way_out_gets_out_and_only_to_what_is_allowed(tmp_path: Path) -> None:
    nft = shutil.which("nft")
    if nft is None or os.getuid() != 0:
        pytest.skip("nftables is not installed, or this is not root")
    rules = tmp_path / "rules.nft"
    hosts = [network.host("198.51.100.7:443"), network.host("ldap.school.example:389")]
    rules.write_text(firewall.rules(hosts, user="12345", group="23456"))
    command = ["unshare", "--net", sys.executable, "-c", KERNEL, nft, str(rules)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False)
    if "Operation not permitted" in done.stderr:
        pytest.skip("no network of one's own here")
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    through = {name for name, said in found.items() if name != "counters" and said[0] == "through"}
    assert through == {
        "way out 443", "way out 389", "others 443", "others 444", "others 389", "others here", "others name server",
    }  # fmt: skip
    assert all(said[1] < 2 for name, said in found.items() if name != "counters"), "who is refused is told at once"
    assert found["pages"][0] == "a page"
    assert found["counters"]["refused"] >= 8 and found["counters"]["forwarded"] >= 2
