"""What stands outside the box in tests: a machine that counts who comes, and the box's own way out to it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from appliance.network import Host, Policy
from appliance.settings import Settings


def until(true: Callable[[], object], what: str = "it") -> None:
    """Wait for a condition; fails after a time that no healthy machine needs."""
    ends = time.monotonic() + 30
    while not true():
        assert time.monotonic() < ends, f"{what} did not happen"
        time.sleep(0.02)


class Machine:
    """Listens on a loopback port, counts connections, and sends each byte back in capitals; `mute`: takes all, says nothing."""

    def __init__(self, *, mute: bool = False) -> None:
        self.came: list[bytes] = []
        self.open = 0
        self._mute = mute
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.host = Host("127.0.0.1", self.port)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                line, _ = self._listener.accept()
            except OSError:
                return
            self.came.append(b"")
            threading.Thread(target=self._answer, args=(line, len(self.came) - 1), daemon=True).start()

    def _answer(self, line: socket.socket, number: int) -> None:
        self.open += 1
        with line, contextlib.suppress(OSError):
            while piece := line.recv(4096):
                self.came[number] += piece
                if not self._mute:
                    line.sendall(piece.upper())
        self.open -= 1

    def close(self) -> None:
        self._listener.close()


@contextlib.contextmanager
def machine(*, mute: bool = False) -> Iterator[Machine]:
    made = Machine(mute=mute)
    try:
        yield made
    finally:
        made.close()


def allow(settings: Settings, *hosts: Host) -> None:
    settings.home.mkdir(parents=True, exist_ok=True)
    for one in hosts:
        Policy(settings.network).allow(one)


@contextlib.contextmanager
def way_out(settings: Settings, log: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """`appliance egress` for this home, from when it listens."""
    settings.run.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "appliance", "--home", str(settings.home), "egress"]
    with open(log or os.devnull, "ab") as told:
        process = subprocess.Popen(command, stdout=told, stderr=told)
    try:
        until(lambda: listening(settings) or process.poll() is not None, "the start of egress")
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(30)


def listening(settings: Settings) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(settings.egress_socket)) == 0
