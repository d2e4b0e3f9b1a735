"""What a service and systemd have to say to each other: it can answer, it lives, it ends; and not to come back too often.

Hides sd_notify(3), so that nothing needs a library for it, and the file in which starts are counted. A process that systemd did
not start says nothing and counts nothing. That systemd is told of life only while the work itself goes on is for whoever calls
`beat`: from within that work, never from a thread beside it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import socket
import sys
import time
from pathlib import Path

HEALTHY_SECONDS = 60.0  # a service that lived this long after it could answer is not coming back again and again
LONGEST_DELAY = 60.0
_TAKEN = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class Unit:
    """This process as a unit of systemd. `every`: seconds between two signs of life, a quarter of what systemd waits; 0 where
    it does not wait for any.

    folder: where starts are counted.
    """

    def __init__(self, name: str, folder: Path) -> None:
        # Taken out: what this process starts does not speak for it.
        address, period, process = (os.environ.pop(key, "") for key in _TAKEN)
        self._address = "\0" + address[1:] if address.startswith("@") else address
        watched = period.isdigit() and process in ("", str(os.getpid()))
        self.every = int(period) / 1e6 / 4 if watched else 0.0
        self._mark = folder / f"{name}.starts"
        self._ready = 0.0  # when it first said that it can answer
        self._proved = False
        self._next = 0.0
        self._status = ""
        if self.every:
            # One that hangs is ended by SIGABRT: the journal then says where it hung, and no word of anybody's.
            with contextlib.suppress(OSError, ValueError, AttributeError):
                faulthandler.enable()

    @property
    def watched(self) -> bool:
        """Whether there is somebody to tell."""
        return bool(self._address)

    # --- its life -----------------------------------------------------------------------------------------------------
    def beat(self, status: str = "") -> None:
        """The work goes on. The first time it also means that the service can answer. status: for `systemctl status`."""
        if not self._address:
            return
        now, said = time.monotonic(), []
        if not self._ready:
            self._ready = now
            said.append("READY=1")
        if status and status != self._status:
            self._status = status
            said.append(f"STATUS={_line(status)}")
        if self.every and now >= self._next:
            self._next = now + self.every
            said.append("WATCHDOG=1")
        if said:
            self._send(said)
        if not self._proved and now - self._ready > HEALTHY_SECONDS:
            self._proved = True
            self._forget()

    def say(self, status: str) -> None:
        """A sentence for `systemctl status`, before it can answer."""
        self._status = status
        self._send([f"STATUS={_line(status)}"])

    def end(self, status: str = "It ends.") -> None:
        """It was told to end, or has nothing to do: no failure, so the next start waits for nothing."""
        self._send(["STOPPING=1", f"STATUS={_line(status)}"])
        self._forget()

    # --- its starts ---------------------------------------------------------------------------------------------------
    def delay(self) -> float:
        """Count this start; the seconds that it should wait, more each time that the one before ended without being told to.

        systemd itself learned that with version 254 (RestartSteps=), Debian 12 has 252. Another release begins anew.
        """
        if not self._address:
            return 0.0
        before = self._starts()
        with contextlib.suppress(OSError):
            self._mark.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._mark.write_text(json.dumps({"release": sys.prefix, "starts": before + 1}), "utf-8")
        # The first comes back at once: most faults are over by then.
        return min(LONGEST_DELAY, 2.0 ** min(before, 10)) if before > 1 else 0.0

    def _starts(self) -> int:
        try:
            told = json.loads(self._mark.read_text("utf-8"))
            return int(told["starts"]) if told["release"] == sys.prefix else 0
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    def _forget(self) -> None:
        if self._address:
            with contextlib.suppress(OSError):
                self._mark.unlink(missing_ok=True)

    def _send(self, said: list[str]) -> None:
        """Never waits, and whether anybody heard it is nothing to this process."""
        if not self._address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
            line.setblocking(False)
            line.sendto("\n".join(said).encode(), self._address)


def _line(text: str) -> str:
    return " ".join(text.split())[:300]
