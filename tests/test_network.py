"""The policy, and that nothing leaves without it: first allowed and seen, then denied and nothing at the other end."""

from __future__ import annotations

import json
import socket
import stat
import threading
from pathlib import Path

import pytest

from appliance import network
from appliance.errors import ApplianceError, BadInput, Forbidden, NotFound, Unreachable
from appliance.network import Host, Policy
from appliance.settings import Settings
from tests.outside import allow, listening, machine, until, way_out


# --- hosts ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ldap.school.example:636", "ldap.school.example:636"),
        ("LDAP.School.example.", "ldap.school.example:443"),
        ("localhost:389", "localhost:389"),
        ("127.0.0.1:389", "127.0.0.1:389"),
        ("[::1]:389", "[::1]:389"),
        ("2001:DB8::0001", "[2001:db8::1]:443"),
        ("schüle.example", "xn--schle-mva.example:443"),
        ("_ldap.school.example", "_ldap.school.example:443"),
    ],
)
def test_a_host_is_written_in_one_way(text: str, expected: str) -> None:
    assert str(network.host(text)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "https://school.example", "school.example/path", "*.school.example", "*", "a b", "user@school.example",
        "school.example:0", "school.example:65536", "school.example:x", "school.example:", "127.1", "2130706433", "0x7f.0.0.1",
        "0x7f000001", "127.0.0.256", "a..b", "-a.example", "x" * 64 + ".example", "a\nb", "a\r\nHost: b", "[::1", "::1]:389",
    ],
)  # fmt: skip
def test_what_is_no_host_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        network.host(text)


# --- the policy ------------------------------------------------------------------------------------------------------------
def test_nothing_is_allowed_by_default_and_what_is_allowed_is_kept_for_the_owner_alone(settings: Settings) -> None:
    settings.home.mkdir()
    policy = Policy(settings.network)
    assert policy.allowed() == frozenset() and not policy.open() and not settings.network.exists()
    one = Host("ldap.school.example", 636)
    assert policy.allow(one) and not policy.allow(one)
    assert policy.permits(one) and policy.open() and not policy.permits(Host("ldap.school.example", 389))
    assert stat.S_IMODE(settings.network.stat().st_mode) == 0o600
    assert json.loads(settings.network.read_text()) == {"allowed": [{"host": "ldap.school.example", "port": 636}]}
    assert policy.deny("ldap.school.example") == [one] and not policy.open()
    with pytest.raises(NotFound):
        policy.deny("ldap.school.example")


def test_denying_takes_one_port_or_all(settings: Settings) -> None:
    allow(settings, *(Host("a.example", port) for port in (1, 2, 3)), Host("b.example", 1))
    policy = Policy(settings.network)
    assert policy.deny("a.example", 2) == [Host("a.example", 2)]
    assert policy.deny("a.example") == [Host("a.example", 1), Host("a.example", 3)]
    assert policy.allowed() == {Host("b.example", 1)}


def test_administrators_at_once_lose_nothing(settings: Settings) -> None:
    settings.home.mkdir()
    workers = [
        threading.Thread(target=Policy(settings.network).allow, args=(Host(f"h{number}.example", 443),)) for number in range(12)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(Policy(settings.network).allowed()) == 12


@pytest.mark.parametrize("damage", [b"{", b"[]", b'{"allowed": 3}', b'{"allowed": [{"host": "a"}]}', b"\xff\xfe", b""])
def test_a_damaged_policy_allows_nothing(settings: Settings, damage: bytes) -> None:
    allow(settings, Host("a.example", 443))
    settings.network.write_bytes(damage)
    policy = Policy(settings.network)
    assert not policy.open()
    for ask in (policy.allowed, lambda: policy.allow(Host("b.example", 1)), lambda: network.dial(settings, "a.example", 443)):
        with pytest.raises(ApplianceError, match="cannot be trusted") as caught:
            ask()
        assert "appliance network allow" in caught.value.hint


def test_a_policy_that_others_may_write_allows_nothing(settings: Settings) -> None:
    allow(settings, Host("a.example", 443))
    settings.network.chmod(0o666)
    with pytest.raises(ApplianceError, match="others"):
        Policy(settings.network).allowed()


# --- dialling ----------------------------------------------------------------------------------------------------------------
def test_first_allowed_and_seen_then_denied_and_nothing_comes(settings: Settings, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with machine() as outside:
        with pytest.raises(Forbidden, match="air-gapped") as caught:
            network.dial(settings, "127.0.0.1", outside.port)
        assert caught.value.exit_code == 3 and f"appliance network allow 127.0.0.1:{outside.port}" in caught.value.hint
        allow(settings, outside.host, Host("127.0.0.1", 1))
        with pytest.raises(Unreachable, match="not running"):
            network.dial(settings, "127.0.0.1", outside.port)
        assert outside.came == []
        with way_out(settings, log):
            with network.dial(settings, "127.0.0.1", outside.port) as line:
                line.sendall(b"hello")
                assert line.recv(100) == b"HELLO"
            until(lambda: not outside.open)
            assert outside.came == [b"hello"], "the control: what is allowed is seen"
            Policy(settings.network).deny("127.0.0.1", outside.port)
            with pytest.raises(Forbidden, match="does not name it"):
                network.dial(settings, "127.0.0.1", outside.port)
            # Round the policy of this process, straight to the socket: the egress process asks it for itself.
            with pytest.raises(Forbidden, match="not allowed"):
                network.tunnel.connect(settings.egress_socket, str(outside.host), 10)
        assert len(outside.came) == 1
    said = log.read_text()
    assert f"{outside.host}: 5 bytes out, 5 bytes in" in said and "hello" not in said.lower()


def test_an_open_connection_ends_when_its_host_is_denied_and_egress_with_the_last_one(settings: Settings) -> None:
    with machine() as first, machine() as second:
        allow(settings, first.host, second.host)
        with way_out(settings) as process:
            one, two = (network.dial(settings, "127.0.0.1", host.port) for host in (first, second))
            with one, two:
                Policy(settings.network).deny("127.0.0.1", first.port)
                assert one.recv(1) == b"", "it was cut off"
                two.sendall(b"still")
                assert two.recv(100) == b"STILL"
                Policy(settings.network).deny("127.0.0.1", second.port)
                assert two.recv(1) == b""
            assert process.wait(30) == 3, "air-gapped: it ends, by policy"
            assert not listening(settings)


def test_a_host_that_is_off_is_said_so(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    allow(settings, Host("127.0.0.1", port), Host("nobody.invalid", 1))
    with way_out(settings):
        with pytest.raises(Unreachable, match="does not answer"):
            network.dial(settings, "127.0.0.1", port)
        with pytest.raises(Unreachable, match="not known"):
            network.dial(settings, "nobody.invalid", 1)


def test_a_home_whose_path_is_too_long_for_a_socket(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / ("x" * 90))
    allow(settings, Host("a.example", 1))
    with pytest.raises(BadInput, match="too long"):
        network.dial(settings, "a.example", 1)


# --- HTTP ------------------------------------------------------------------------------------------------------------------
async def test_the_http_client_reaches_what_is_allowed_and_nothing_else(settings: Settings) -> None:
    with machine() as outside, machine() as other:
        async with network.http_client(settings) as client:
            with pytest.raises(Forbidden, match="air-gapped"):
                await client.get(f"http://127.0.0.1:{outside.port}/")
        allow(settings, outside.host)
        async with network.http_client(settings) as client:
            with pytest.raises(Unreachable, match="not running"):
                await client.get(f"http://127.0.0.1:{outside.port}/")
        assert outside.came == []
        with way_out(settings):
            async with network.http_client(settings) as client:
                # The machine is no web server: it sends our request back in capitals, which is no answer to it.
                with pytest.raises(network_error()):
                    await client.get(f"http://127.0.0.1:{outside.port}/path")
                with pytest.raises(Forbidden, match="does not name it"):
                    await client.get(f"http://127.0.0.1:{other.port}/")
                with pytest.raises(network_error(), match="protocol"):
                    await client.get("file:///etc/passwd")
        assert len(outside.came) == 1 and outside.came[0].startswith(b"GET /path HTTP/1.1\r\n") and other.came == []


def network_error() -> type[Exception]:
    import httpx

    return httpx.TransportError


async def test_a_proxy_variable_changes_nothing(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with machine() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        async with network.http_client(settings) as client:
            with pytest.raises(Forbidden):
                await client.get("http://school.example/")
        assert proxy.came == []
