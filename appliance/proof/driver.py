"""The trial itself, inside its own space: the controls first, then the box air-gapped, then without any library's switches.

`appliance network prove` starts it and reads one JSON object a line from it: each step as it ends, and at last the whole. It is
the one process without the guard, since it plays everything outside the box: the counter, the computer in the school, the
internet.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from appliance import tunnel
from appliance.errors import ApplianceError
from appliance.proof import features, space
from appliance.proof.box import Box, offline_variables
from appliance.proof.client import Client
from appliance.proof.packets import Packets
from appliance.proof.wire import INTERNET, Wire

PORT, HTTPS = 8080, 443
CONTROL, SHUT, BARE = "control", "air-gapped", "air-gapped, without the libraries' switches"
# In the order of the first run, so that each finds loaded what it found loaded then, and their waits can be compared.
SOME_LIBRARIES = ("torch", "transformers", "peft", "datasets", "trl", "sentence_transformers", "openai", "litellm", "dspy")
WAIT = 5.0  # seconds: nothing may wait longer for a name server that is dead
UNWALLED = "from huggingface_hub import hf_hub_download; hf_hub_download('school/model', 'config.json')"


@dataclass
class Step:
    """outside: packets to anything but the LAN's client, by where they went; refused: what the guard stopped, by whom."""

    part: str
    name: str
    ok: bool = True
    said: str = ""
    seconds: float = 0.0
    outside: dict[str, int] = field(default_factory=dict)
    answers: int = 0
    link: int = 0
    refused: dict[str, int] = field(default_factory=dict)


class Driver:
    def __init__(self, work: Path, say: Callable[[Any], None]) -> None:
        self._work, self._say = work, say
        self._wire = Wire()
        self.steps: list[Step] = []

    def run(self, *, quick: bool, idle: float) -> None:
        """idle: for how many seconds the box stands idle, and is watched all the same."""
        space.close_ways(self._work)
        self._wire.lay()
        self._packets = Packets(PORT)
        box = Box(self._work / "box")
        self._controls(box)
        trial = features.Trial(box, Client(self._wire, PORT), PORT, quick)
        try:
            for feature in features.JOURNEY:
                if not (quick and feature.long):
                    self._step(SHUT, feature.name, partial(feature.work, trial), box=box)
            self._step(SHUT, "stand idle", partial(_idle, trial, idle), box=box)
        finally:
            box.stop()
        self._without_switches(trial, quick=quick)

    # --- what the counter must see -----------------------------------------------------------------------------------------
    def _controls(self, box: Box) -> None:
        self._step(CONTROL, "a packet that is sent on purpose", _send_one, some=True)
        self._step(CONTROL, "a library with neither wall asks its hub", partial(self._unwalled, box), some=True)
        listening = self._wire.outside(_listen).result()
        self._wire.outside(_answer, listening)
        self._step(CONTROL, "a host that is allowed, through egress", partial(self._allowed, box), some=True)
        self._step(CONTROL, "the same host, denied again", partial(self._denied, box))

    def _unwalled(self, box: Box) -> str:
        """What the walls are for: it looks its hub up at once. Ended as soon as that was seen."""
        environment = {name: value for name, value in box.environment.items() if name != "PYTHONPATH"}
        before = self._packets.seen()
        null = subprocess.DEVNULL
        with subprocess.Popen([sys.executable, "-c", UNWALLED], env=environment, stdout=null, stderr=null) as library:
            ends = time.monotonic() + 60
            while not self._packets.seen().since(before).outside and time.monotonic() < ends and library.poll() is None:
                time.sleep(0.05)
            library.kill()
        return "it looked for huggingface.co"

    def _allowed(self, box: Box) -> str:
        host = f"{INTERNET}:{HTTPS}"
        box.run("network", "allow", host)
        command = [sys.executable, "-m", "appliance", "--home", str(box.home), "egress"]
        null = subprocess.DEVNULL
        self._egress = subprocess.Popen(command, env=box.environment, cwd=box.work, stdout=null, stderr=null)
        path = box.home / "run" / "egress.sock"
        ends = time.monotonic() + 60
        while not path.exists():
            if self._egress.poll() is not None or time.monotonic() > ends:
                raise ApplianceError("`appliance egress` did not start.", "")
            time.sleep(0.05)
        with tunnel.connect(path, host, 10) as line:
            line.sendall(b"hello")
            said = line.recv(5)
        if said != b"HELLO":
            raise ApplianceError("The host that was allowed did not answer.", "")
        _until_closed()
        return f"{INTERNET} answered"

    def _denied(self, box: Box) -> str:
        box.run("network", "deny", INTERNET)
        if self._egress.wait(30) != 3:
            raise ApplianceError("`appliance egress` did not end when its last host was denied.", "")
        try:
            tunnel.connect(box.home / "run" / "egress.sock", f"{INTERNET}:{HTTPS}", 10)
        except ApplianceError:
            return "egress has ended, and nobody answers in its place"
        raise ApplianceError("A host that was denied was reached.", "")

    # --- without the libraries' own switches ---------------------------------------------------------------------------------
    def _without_switches(self, trial: features.Trial, *, quick: bool) -> None:
        """The box with every offline variable taken away: what its libraries then try is stopped by the guard, at once."""
        box = Box(self._work / "bare", home=trial.box.home, bare=True)
        bare = features.Trial(box, Client(self._wire, PORT), PORT)
        before = len(self.steps)
        try:
            if not quick:
                for name, work in (
                    ("start the box", features.start), ("search", features.search), ("ask", features.ask),
                    ("tune a model on this machine", partial(features.tune, name="bare", rows="90")),
                ):  # fmt: skip
                    self._step(BARE, name, partial(work, bare), box=box)
            self._step(BARE, "import and make the libraries", partial(self._libraries, trial.box, box), box=box)
        finally:
            box.stop()
        refused = sum(sum(step.refused.values()) for step in self.steps[before:])
        self._step(BARE, "were there attempts to stop?", partial(_some, refused))

    def _libraries(self, first: Box, bare: Box) -> str:
        waited = {one["library"]: one["waited"] for one in json.loads((first.work / "libraries.json").read_text("utf-8"))}
        done = bare.python([sys.executable, "-m", "appliance.proof.libraries", *SOME_LIBRARIES])
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        slow = [one["library"] for one in lines if one["waited"] > WAIT + 3 * waited.get(one["library"], 0)]
        if done.returncode or len(lines) != len(SOME_LIBRARIES) or slow:
            raise ApplianceError(f"They could not be tried, or waited: {', '.join(slow) or done.stderr[-200:]}", "")
        reaching = [one["library"] for one in lines if one["refused"]]
        return f"stopped, without a wait: {', '.join(reaching) or 'none'}"

    # --- one step --------------------------------------------------------------------------------------------------------
    def _step(self, part: str, name: str, work: Callable[[], str], *, some: bool = False, box: Box | None = None) -> None:
        """Do it between two looks at the counter. some: it must have been seen; else nothing may have been."""
        self._say({"begins": name})
        step = Step(part, name)
        before, attempts = self._packets.seen(), box.attempts() if box else {}
        began = time.monotonic()
        try:
            step.said = work()
        except ApplianceError as error:
            step.ok, step.said = False, error.message
        except (OSError, subprocess.TimeoutExpired, ValueError, LookupError) as error:
            step.ok, step.said = False, f"{type(error).__name__}: {error}"[:300]
        step.seconds = time.monotonic() - began
        seen = self._packets.seen().since(before)
        step.outside, step.answers, step.link = dict(seen.outside), seen.answers, seen.link
        step.refused = dict(box.attempts() - attempts) if box else {}  # type: ignore[operator]
        step.ok = step.ok and bool(seen.outside) == some
        self.steps.append(step)
        self._say({"step": asdict(step)})


def _send_one() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
        line.sendto(b"on purpose", (INTERNET, 9))
    return "UDP"


def _listen() -> socket.socket:
    return socket.create_server((INTERNET, HTTPS))


def _answer(listening: socket.socket) -> None:
    line, _ = listening.accept()
    with line:
        line.sendall(line.recv(100).upper())
        line.recv(1)
    listening.close()


def _until_closed() -> None:
    """Until no line to the internet is open any more: its last packets belong to the step that opened it."""
    there = socket.inet_aton(INTERNET)[::-1].hex().upper()
    ends = time.monotonic() + 30
    while time.monotonic() < ends:
        lines = [line.split() for line in Path("/proc/thread-self/net/tcp").read_text("ascii").splitlines()[1:]]
        if not any(line[2].startswith(there) and line[3] != "06" for line in lines):  # 06: closed, and only remembered
            return
        time.sleep(0.02)


def _idle(trial: features.Trial, seconds: float) -> str:
    time.sleep(seconds)
    if trial.client.send("GET", "/health").status != 200:
        raise ApplianceError("The box did not stay up while it stood idle.", "")
    return f"{seconds:.0f} s, and it serves"


def _some(refused: int) -> str:
    if not refused:
        raise ApplianceError("No library tried anything, so this part proves nothing.", "")
    return f"{refused}, and none of them became a packet"


def main() -> int:
    order = json.loads(sys.argv[1])
    voice, sys.stdout = os.fdopen(os.dup(1), "w"), sys.stderr

    def say(what: Any) -> None:
        voice.write(json.dumps(what) + "\n")
        voice.flush()

    driver = Driver(Path(order["work"]), say)
    try:
        driver.run(quick=order["quick"], idle=order["idle"])
    except ApplianceError as error:
        say({"error": [error.message, error.hint]})
        return 1
    say({"steps": [asdict(step) for step in driver.steps], "variables": offline_variables()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
