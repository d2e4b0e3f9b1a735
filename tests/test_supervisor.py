"""The supervisor: what dies is started again, and everything ends together."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from appliance.errors import BadInput, Conflict
from appliance.supervisor import check_port

CHILD = """
import os, sys, time
from appliance.supervisor import end_with_parent
end_with_parent()
open(sys.argv[1], "a").write(f"{os.getpid()}\\n")
time.sleep(600)
"""
PROGRAM = f"""
import asyncio, sys
from appliance.supervisor import supervise
child = [sys.executable, "-c", {CHILD!r}, sys.argv[1]]
asyncio.run(supervise({{"first": child, "second": child}}, print))
"""


def pids(file: Path) -> list[int]:
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_for(file: Path, count: int) -> list[int]:
    ends = time.monotonic() + 20
    while len(pids(file)) < count:
        assert time.monotonic() < ends
        time.sleep(0.05)
    return pids(file)


def test_a_killed_process_comes_back_and_all_end_together(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    supervisor = subprocess.Popen([sys.executable, "-c", PROGRAM, str(file)], stdout=subprocess.PIPE, text=True)
    try:
        first = wait_for(file, 2)
        os.kill(first[0], signal.SIGKILL)
        after = wait_for(file, 3)
        assert len(set(after)) == 3
    finally:
        supervisor.terminate()
        said, _ = supervisor.communicate(timeout=20)
    assert "SIGKILL" in said and supervisor.returncode == 0
    for pid in pids(file):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_no_process_outlives_its_supervisor(tmp_path: Path, number: signal.Signals) -> None:
    file = tmp_path / "pids"
    supervisor = subprocess.Popen([sys.executable, "-c", PROGRAM, str(file)], stdout=subprocess.DEVNULL)
    children = wait_for(file, 2)
    supervisor.send_signal(number)
    supervisor.wait(20)
    ends = time.monotonic() + 5
    while any(alive(pid) for pid in children):
        assert time.monotonic() < ends, "a child lives on"
        time.sleep(0.05)


def test_a_process_that_is_wanted_only_at_times_runs_only_then(tmp_path: Path) -> None:
    file, flag = tmp_path / "pids", tmp_path / "wanted"
    program = PROGRAM.replace("print))", "print, {'second': __import__('pathlib').Path(sys.argv[2]).exists}))")
    supervisor = subprocess.Popen([sys.executable, "-c", program, str(file), str(flag)], stdout=subprocess.PIPE, text=True)
    try:
        first = wait_for(file, 1)
        flag.touch()
        second = wait_for(file, 2)[1]
        flag.unlink()
        os.kill(second, signal.SIGTERM)
        os.kill(first[0], signal.SIGKILL)
        assert alive(wait_for(file, 3)[2]), "the other one came back, this one is not wanted"
        flag.touch()
        wait_for(file, 4)
    finally:
        supervisor.terminate()
        said = supervisor.communicate(timeout=30)[0]
    assert "The first process ended" in said and "The second process ended" not in said


def test_an_address_that_is_not_this_machines() -> None:
    with pytest.raises(BadInput, match=r"203\.0\.113\.9"):
        check_port("203.0.113.9", 8080)


def test_a_port_in_use_is_said_before_anything_starts() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(Conflict, match=str(port)) as caught:
            check_port("127.0.0.1", port)
        assert "--port" in caught.value.hint
