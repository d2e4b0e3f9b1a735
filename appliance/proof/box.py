"""The box on trial: its commands and its processes, as they are on any machine, in a home that is thrown away.

Hides how they are started and watched. Nothing of them is changed but what a person could set: a home, an environment. What
is done inside their processes - a try to get out, a switch that is taken away - is done by `inside`, which Python loads first.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from appliance import guard, network
from appliance.errors import ApplianceError
from appliance.settings import PACKAGE

START_SECONDS = 180.0
OTHERS = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "TOKENIZERS_PARALLELISM"}  # of network.OFFLINE: speed, and no way out
INSIDE = Path(__file__).with_name("inside.py")


class Box:
    """work: a folder for this trial, with the box's home in it where none is given. bare: offline variables are taken away."""

    def __init__(self, work: Path, *, home: Path | None = None, bare: bool = False) -> None:
        self.work, self.home = work, home or work / "home"
        self.log = work / "attempts.jsonl"
        self._served: subprocess.Popen[str] | None = None
        self.said = ""
        loaded = work / "loaded"
        loaded.mkdir(parents=True, exist_ok=True)
        (loaded / "sitecustomize.py").write_text(INSIDE.read_text("utf-8"), "utf-8")
        kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "TMPDIR", "LD_LIBRARY_PATH")}
        self.environment = kept | {
            "HOME": str(work / "person"),
            "PYTHONPATH": os.pathsep.join([str(loaded), str(PACKAGE.parent)]),
            "PYTHONUNBUFFERED": "1",
            "PROOF_FOLDER": str(work),
            "PROOF_BARE": "1" if bare else "",
            guard.LOG: str(self.log),
            "APPLIANCE_GATE_SECONDS": "60",
        }
        (work / "person").mkdir(exist_ok=True)

    def run(self, *words: str, codes: tuple[int, ...] = (0,), seconds: float = 1800) -> Any:
        """A command with --json; its document. Raises ApplianceError where it ends in another way than that."""
        done = self.try_out(*words, "--json", seconds=seconds)
        if done.returncode not in codes:
            raise ApplianceError(f"`appliance {' '.join(words[:2])}` ended with {done.returncode}: {_last(done.stderr)}", "")
        return json.loads(done.stdout) if done.stdout.strip() else None

    def try_out(self, *words: str, seconds: float = 1800) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "appliance", "--home", str(self.home), *words]
        return self.python(command, seconds)

    def python(self, command: list[str], seconds: float = 600) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, env=self.environment, cwd=self.work, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=seconds, check=False,
        )  # fmt: skip

    def serve(self, port: int) -> str:
        """`appliance serve` on every address; the one-time code it printed, once everybody answers."""
        command = [
            sys.executable,
            "-m",
            "appliance",
            "--home",
            str(self.home),
            "serve",
            "--host",
            "0.0.0.0",
            "--port",
            str(port),
        ]
        output = self.work / "serve.log"
        with output.open("w") as log:
            self._served = subprocess.Popen(command, env=self.environment, cwd=self.work, stdout=log, stderr=log, text=True)
        ends = time.monotonic() + START_SECONDS
        while "Ctrl-C" not in self.said or not (self.home / "run" / "engine.sock").exists():
            if self._served.poll() is not None or time.monotonic() > ends:
                raise ApplianceError(f"`appliance serve` did not start: {_last(self.said)}", "")
            time.sleep(0.1)
            self.said = output.read_text("utf-8")
        found = re.search(r"administrator: (\S+)", self.said)
        return found[1] if found else ""

    def stop(self) -> None:
        if self._served is not None and self._served.poll() is None:
            self._served.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._served.wait(60)
            if self._served.poll() is None:
                self._served.kill()
        self._served = None

    def attempts(self) -> Counter[str]:
        """What the guard refused so far, in any process: by whom, and to where."""
        if not self.log.exists():
            return Counter()
        lines = [json.loads(line) for line in self.log.read_text("utf-8").splitlines()]
        return Counter(f"{line['by'] or 'a library'} to {line['target']}" for line in lines)

    def from_inside(self, processes: tuple[str, ...], targets: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """What became of tries to get out, made by these processes themselves while they serve."""
        (self.work / "try.json").write_text(json.dumps(targets), "utf-8")
        os.rename(self.work / "try.json", self.work / "try.now")
        answers = {name: self.work / f"tried-{name}.json" for name in processes}
        ends = time.monotonic() + 60
        while not all(path.exists() for path in answers.values()):
            if time.monotonic() > ends:
                raise ApplianceError("A process did not try what it was told to try.", "")
            time.sleep(0.05)
        return {name: json.loads(path.read_text("utf-8")) for name, path in answers.items()}


def offline_variables() -> list[str]:
    return sorted(set(network.OFFLINE) - OTHERS)


def _last(said: str) -> str:
    lines = [line for line in said.strip().splitlines() if line.strip()]
    return " ".join(lines[-2:])[-300:] if lines else "it said nothing"
