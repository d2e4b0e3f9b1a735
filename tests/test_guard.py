"""The wall inside a process: whatever library tries to reach out is refused, counted, and named, in children as well."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from appliance import guard, network
from appliance.audit import Audit
from appliance.errors import Forbidden
from appliance.settings import Settings
from tests.outside import allow, machine, until, way_out
from tests.test_layout import PACKAGE, parsed

# Each says what it did: refused, or something else.
TRIES = """
import asyncio, json, os, socket, sys
from appliance import guard
guard.install()
guard.install()
said = {}
def tried(name, work):
    try:
        work()
    except guard.Refused as error:
        said[name] = ["refused", error.message, error.hint, error.errno, isinstance(error, OSError)]
    except Exception as error:
        said[name] = [type(error).__name__, str(error)]
    else:
        said[name] = ["done"]
def udp(): return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
def tcp(): return socket.socket(socket.AF_INET, socket.SOCK_STREAM)
listener = socket.create_server(("127.0.0.1", 0))
port = listener.getsockname()[1]
tried("connect", lambda: tcp().connect(("192.0.2.1", 9)))
tried("connect_ex", lambda: tcp().connect_ex(("192.0.2.1", 9)))
tried("a name", lambda: tcp().connect(("hub.example", 443)))
tried("a name's port", lambda: udp().sendto(b"secret words", 0, ("hub.example", 53)))
tried("loopback", lambda: tcp().connect(("127.0.0.1", port)))
tried("six", lambda: socket.socket(socket.AF_INET6).connect(("::1", port)))
tried("sendto", lambda: udp().sendto(b"secret words", ("192.0.2.1", 53)))
tried("sendmsg", lambda: udp().sendmsg([b"secret words"], [], 0, ("192.0.2.1", 53)))
tried("probe", lambda: udp().connect(("192.0.2.1", 9)))
tried("getaddrinfo", lambda: socket.getaddrinfo("hub.example", 443))
tried("bytes", lambda: socket.getaddrinfo(b"hub.example", "https"))
tried("localhost", lambda: socket.getaddrinfo("localhost", 80))
tried("gethostbyname", lambda: socket.gethostbyname("hub.example"))
tried("gethostbyname_ex", lambda: socket.gethostbyname_ex("hub.example"))
tried("gethostbyaddr", lambda: socket.gethostbyaddr("192.0.2.1"))
tried("getnameinfo", lambda: socket.getnameinfo(("192.0.2.1", 80), 0))
tried("create_connection", lambda: socket.create_connection(("192.0.2.1", 9), 1))
tried("asyncio", lambda: asyncio.run(asyncio.open_connection("192.0.2.1", 9)))
tried("a resolver's socket", lambda: socket.socket(socket.AF_UNIX).connect("/run/systemd/resolve/io.systemd.Resolve"))
tried("the bus", lambda: socket.socket(socket.AF_UNIX).connect("/var/run/dbus/system_bus_socket"))
tried("packets", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).send(b"x"))
# What a box does need:
tried("listening on a name", lambda: tcp().bind(("hub.example", 0)))
tried("listening", lambda: socket.create_server(("0.0.0.0", 0)).close())
tried("an address is no name", lambda: socket.getaddrinfo("192.0.2.1", 80))
tried("anywhere", lambda: socket.getaddrinfo(None, 80))
one, two = socket.socketpair()
tried("a pair", lambda: one.sendmsg([b"x"]))
tried("unix", lambda: socket.socket(socket.AF_UNIX).connect("/nowhere"))
guard.listen_at("localhost")
tried("its own name", lambda: socket.getaddrinfo("localhost", 80))
with guard.passing("127.0.0.1", port):
    tried("egress", lambda: tcp().connect(("127.0.0.1", port)))
    tried("egress elsewhere", lambda: tcp().connect(("127.0.0.1", port - 1)))
tried("egress afterwards", lambda: tcp().connect(("127.0.0.1", port)))
if os.fork() == 0:
    tried("a forked child", lambda: tcp().connect(("192.0.2.1", 9)))
    os._exit(0 if said["a forked child"][0] == "refused" else 1)
said["forked"] = os.waitstatus_to_exitcode(os.wait()[1])
said["counted"] = sum(guard.attempts.values())
print(json.dumps(said))
"""


def child(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Some Python in a process of its own: a guard cannot be taken off again, and tests need their own network."""
    return subprocess.run(
        [sys.executable, "-c", program], env=os.environ | environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture(scope="module")
def tries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    log = tmp_path_factory.mktemp("guard") / "attempts"
    done = child(TRIES, **{guard.LOG: str(log)})
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said | {"log": log.read_text(), "stderr": done.stderr}


@pytest.mark.parametrize(
    "way",
    [
        "connect", "connect_ex", "a name", "a name's port", "loopback", "six", "sendto", "sendmsg", "probe", "getaddrinfo",
        "bytes", "localhost", "gethostbyname", "gethostbyname_ex", "gethostbyaddr", "getnameinfo", "create_connection",
        "asyncio", "a resolver's socket", "the bus", "listening on a name", "egress elsewhere", "egress afterwards",
    ],
)  # fmt: skip
def test_every_way_out_is_refused(tries: dict[str, Any], way: str) -> None:
    assert tries[way][0] == "refused", tries[way]
    _, message, hint, number, is_os_error = tries[way]
    assert "reaches out by itself" in message and "appliance network allow" in hint
    assert number == 13 and is_os_error, "a library takes it for a machine without a network"


@pytest.mark.parametrize("way", ["listening", "an address is no name", "anywhere", "a pair", "its own name", "egress"])
def test_what_the_box_needs_is_not(tries: dict[str, Any], way: str) -> None:
    unknown = way == "its own name" and tries[way][0] == "gaierror"  # asked of the system, and a bare one knows no name at all
    assert unknown or tries[way] == ["done"]
    assert tries["unix"][0] == "FileNotFoundError", "asked of the system, which has no such socket"


def test_attempts_are_counted_told_once_and_hold_no_data(tries: dict[str, Any]) -> None:
    assert tries["forked"] == 0
    logged = [json.loads(line) for line in tries["log"].splitlines()]
    assert tries["counted"] == 23 and len(logged) == 24, "and the forked child's"
    assert {line["by"] for line in logged} == {"__main__"}
    told = tries["stderr"].splitlines()
    assert "__main__ tried to reach 192.0.2.1:9, and was refused." in told
    assert len(told) == len(set(told)) < 24, "once for each target"
    assert "secret" not in tries["log"] + tries["stderr"]


def test_a_refusal_is_the_policys_with_its_exit_code() -> None:
    error = guard.Refused("what", "next")
    assert isinstance(error, Forbidden) and isinstance(error, OSError) and error.exit_code == 3
    assert (error.message, error.hint) == ("what", "next")


LIBRARY = """
import asyncio, sys
from pathlib import Path
from appliance import guard, network
network.stay_offline()
guard.install()
from appliance.app import Appliance
from appliance.settings import Settings
import httpx
async def main():
    appliance = Appliance.open(Settings(home=Path(sys.argv[1])))
    with appliance.database.begin():  # whoever asks may hold the database
        for _ in range(3):
            try:
                httpx.get("http://hub.example/pupil?name=Thandi", trust_env=False)
            except httpx.ConnectError:  # as on a machine without a network
                pass
    await appliance.close()
asyncio.run(main())
"""


def test_the_record_says_which_library_wanted_to_go_where_and_nothing_else(settings: Settings) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIBRARY, str(settings.home)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    from appliance.db import Database

    database = Database(settings.database)
    try:
        rows = [(row.verb, row.thing, row.facts) for row in Audit(database).entries()]
        assert Audit(database).verify() == 1
    finally:
        database.close()
    ((verb, thing, facts),) = rows
    assert verb == "network refused" and thing == "the address of hub.example" and list(facts) == ["by"]
    assert re.match(r"httpcore|anyio", facts["by"]), facts
    assert "Thandi" not in done.stderr + json.dumps(rows)


def test_every_door_and_every_child_has_the_guard() -> None:
    """Each module that is run as a process of its own: its first lines shut it."""
    mains = [path for path in PACKAGE.rglob("*.py") if '__name__ == "__main__"' in path.read_text("utf-8")]
    without = [
        path.relative_to(PACKAGE).as_posix()
        for path in mains
        if "guard.install()" not in path.read_text("utf-8") and "no_network()" not in path.read_text("utf-8")
    ]
    assert len(mains) >= 6
    # `__main__` calls the command line, which has it; the proof's own driver stands in for the world outside.
    assert sorted(without) == ["__main__.py", "proof/driver.py"]
    assert "guard.install()" in (PACKAGE / "cli" / "__init__.py").read_text("utf-8")


def test_only_egress_and_the_doctor_let_anything_pass() -> None:
    callers = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Attribute) and node.attr == "passing":
                callers.add(path.name)
    assert callers == {"egress.py", "border.py"}


def test_the_command_line_has_it_and_egress_forwards_all_the_same(settings: Settings, tmp_path: Path) -> None:
    """In `appliance egress` itself, under its guard: what is allowed by name and by address gets out."""
    log = tmp_path / "attempts"
    with machine() as outside, pytest.MonkeyPatch.context() as patch:
        patch.setenv(guard.LOG, str(log))
        named = network.Host("localhost", outside.port)
        allow(settings, outside.host, named)
        with way_out(settings):
            for name in ("127.0.0.1", "localhost"):
                with network.dial(settings, name, outside.port) as line:
                    line.sendall(b"hello")
                    assert line.recv(5) == b"HELLO"
        until(lambda: not outside.open)
        assert outside.came == [b"hello"] * 2 and not log.exists()


COST = """
import sys, time
def spent():
    best = 1.0
    for _ in range(9):
        began = time.perf_counter()
        for _ in range(20_000):
            sys.audit("appliance.nothing", 1)
        best = min(best, time.perf_counter() - began)
    return best / 20_000
from appliance import guard
before = spent()
guard.install()
print(before, spent())
"""


def test_the_guard_costs_less_than_a_microsecond_an_event() -> None:
    before, after = map(float, child(COST).stdout.split())
    assert before < after < before + 1e-6, (before, after)
