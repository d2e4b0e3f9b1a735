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

from appliance.errors import Conflict
from appliance.supervisor import check_port

PROGRAM = """
import asyncio, sys
from appliance.supervisor import supervise
child = [sys.executable, "-c", "import os, time; open(%r, 'a').write(f'{os.getpid()}\\\\n'); time.sleep(600)"]
asyncio.run(supervise({"first": child, "second": child}, print))
"""


def pids(file: Path) -> list[int]:
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def wait_for(file: Path, count: int) -> list[int]:
    ends = time.monotonic() + 20
    while len(pids(file)) < count:
        assert time.monotonic() < ends
        time.sleep(0.05)
    return pids(file)


def test_a_killed_process_comes_back_and_all_end_together(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    supervisor = subprocess.Popen([sys.executable, "-c", PROGRAM % str(file)], stdout=subprocess.PIPE, text=True)
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


def test_a_port_in_use_is_said_before_anything_starts() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(Conflict, match=str(port)) as caught:
            check_port("127.0.0.1", port)
        assert "--port" in caught.value.hint
