"""What tries the walls around the services: it finds that there are none here, and it takes all lines of a unit with it."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.checkup.walls import walls
from tests.test_systemd import SANDBOX, UNITS

TARGET = Path(__file__).resolve().parents[1] / "installer" / "target"


@pytest.fixture(scope="module")
def probe() -> Any:
    """The installer's file, which runs without the program."""
    sys.path.insert(0, str(TARGET))
    try:
        found = importlib.util.spec_from_file_location("probe", TARGET / "probe.py")
        assert found is not None and found.loader is not None
        module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(TARGET))


def tried(told: dict[str, Any]) -> list[str]:
    """What the probe says where systemd has put no walls around it."""
    words = base64.b64encode(json.dumps(told).encode()).decode()
    script = (TARGET / "inside.py").read_text("utf-8")
    done = subprocess.run([sys.executable, "-I", "-", words], input=script, capture_output=True, text=True, check=True)
    found: list[str] = json.loads(done.stdout)
    return found


def test_without_walls_every_one_is_missed(probe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "own"
    own.mkdir()
    hidden = own / "backup.key"
    hidden.touch()
    for name in ("PLACE", "OPEN"):
        monkeypatch.setattr(probe, name, tmp_path / name)
    with probe._place() as about:
        told = probe.UNITS["appliance-web"] | about | {"own": str(own), "hidden": [str(hidden)], "forwarders": []}
        found = tried(told)
    for one in (
        "it may gain rights", "it shares this machine's users", "it sees other users' processes",
        "it sees the system's figures in /proc", "it may change how its programs run", "it may write code and run it",
        "it shares /tmp with others", "it may make programs that run with other rights", "it shares this machine's network",
        "it may open sockets of the kind AF_NETLINK", "it may open sockets of the kind AF_INET", "it reaches 127.0.0.1",
        f"it can reach {hidden}", f"it wrote to {probe.OPEN}",
    ):  # fmt: skip
        assert one in found, found
    assert not probe.OPEN.exists() and not probe.PLACE.exists() and list(own.iterdir()) == [hidden]


@pytest.mark.parametrize("name", sorted(SANDBOX))
def test_it_stands_behind_all_that_a_unit_and_its_changes_ask_for(probe: Any, name: str) -> None:
    unit = (UNITS / f"{name}.service").read_text("utf-8")
    changed = (
        f"# /etc/systemd/system/x.service\n{unit}\n# /etc/systemd/system/x.service.d/own.conf\n[Service]\nPrivateNetwork=no\n"
    )
    lines = probe.in_its_place(changed, probe.UNITS[name], Path("/run/answer")).splitlines()
    assert set(lines) >= SANDBOX[name] | {"User=appliance", "PrivateNetwork=no", "Type=oneshot"}
    assert [line for line in lines if line.startswith(("Exec", "Restart", "Watchdog", "WantedBy", "Requires"))] == [
        line for line in lines if line.startswith("ExecStart=/usr/bin/python3 -I - ")
    ]
    assert probe.UNITS[name]["no network"] is (name != "appliance-egress")
    assert probe.UNITS[name]["no new code"] is ("MemoryDenyWriteExecute=yes" in SANDBOX[name])
    assert probe.UNITS[name]["processes only"] is ("ProcSubset=pid" in SANDBOX[name])
    assert probe.UNITS[name]["no devices"] is ("PrivateDevices=yes" in SANDBOX[name])
    assert set(probe.UNITS) == set(SANDBOX)


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """A systemd that says of one service which process it is."""

    def says(pid: int) -> None:
        tool = tmp_path / "systemctl"
        tool.write_text(f"#!/bin/sh\ncase $* in *engine*) echo {pid} ;; *) echo 0 ;; esac\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    return says


def test_the_doctor_finds_a_service_that_lost_its_walls(running: Callable[[int], None]) -> None:
    running(0)
    assert walls() is None, "nothing runs as a unit here"
    for words, told in (
        (["sleep", "60"], "has this machine's network"),
        (["unshare", "-n", "sleep", "60"], "any system call|root's rights"),  # a container filters calls for everybody
    ):
        with subprocess.Popen(words) as process:
            running(process.pid)
            try:
                while Path(f"/proc/{process.pid}/comm").read_text().strip() != "sleep":
                    assert process.poll() is None or pytest.skip("no namespace can be made here")
                found = walls()
            finally:
                process.kill()
        assert (
            found is not None
            and not found.ok
            and re.search(told, found.detail)
            and found.command == "systemctl cat appliance-engine"
        )
