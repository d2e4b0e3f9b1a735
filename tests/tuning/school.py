"""A box for tests of the pipeline: a tiny base that serves, reviewed rows in the store, and the real command run on it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from appliance.app import Appliance
from appliance.settings import PACKAGE, Settings
from appliance.tuning.examples import read_examples
from appliance.tuning.gguf import install_base
from appliance.tuning.retrain import School
from appliance.tuning.store import ExampleStore

CLONE = Path(__file__).parents[2]
RECIPE = {"rank": 4, "alpha": 8.0, "rate": 5e-3, "epochs": 4.0, "batch": 4, "length": 256, "checkpoint_every": 3}
# The command as it is, with other content: without the gate's many questions a run takes seconds, and a model of random
# weights, which these tests tune, has nothing to lose in them but luck.
DRIVER = """
import sys
from pathlib import Path
from appliance.settings import PACKAGE, Settings
Settings.content = property(lambda self: Path(sys.argv[1]))
from appliance.cli import main
main(sys.argv[2:])
"""


def open_box(home: Path, base: Path, rows: list[dict[str, Any]]) -> Path:
    """A home where `base` serves and `rows` are reviewed; the starter is in its registry as well."""
    appliance = Appliance.open(Settings(home=home))
    try:
        appliance.ensure_starter()
        appliance.registry.promote(install_base(appliance.registry, base).id)
        add_rows(appliance, rows)
    finally:
        asyncio.run(appliance.close())
    (home / "content").mkdir()
    (home / "recipe.toml").write_text("\n".join(f"{name} = {value}" for name, value in RECIPE.items()), "utf-8")
    return home


def add_rows(appliance: Appliance, rows: list[dict[str, Any]]) -> None:
    file = appliance.settings.home / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    store = ExampleStore(appliance.database)
    store.import_rows(file, licence="CC BY 4.0", author="T. Test", trust_review=True, reviewer="test")


def reviewed(count: int) -> list[dict[str, Any]]:
    """The shortest of the sample conversations, approved, by a dozen authors."""
    samples = sorted(read_examples(PACKAGE / "content" / "examples"), key=lambda example: len(str(example.messages)))
    made = []
    for number, example in enumerate(samples[:count]):
        row = example.row() | {"reviewed": "approved", "author": f"Author {number % 12}"}
        made.append(row)
    return made


def school(appliance: Appliance) -> School:
    return School(appliance.settings, appliance.registry, appliance.database)


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"APPLIANCE_DISK_RESERVE_MB": "0", "APPLIANCE_THREADS": "1", "PYTHONFAULTHANDLER": "1", **more}


def command(home: Path, *words: str) -> list[str]:
    return [sys.executable, "-c", DRIVER, str(home / "content"), "--home", str(home), *words]


def retrain(home: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """The command to its end."""
    line = command(home, "retrain", "--recipe", str(home / "recipe.toml"), "--json", *words)
    return subprocess.run(line, capture_output=True, text=True, cwd=CLONE, env=environment(**more), check=False)


def until(home: Path, said: str, act: Callable[[subprocess.Popen[str]], None], *words: str, **more: str) -> tuple[int, str]:
    """The command, and what is done to it as soon as it has said something; its exit code and all that it said."""
    line = command(home, "retrain", "--recipe", str(home / "recipe.toml"), *words)
    process = subprocess.Popen(
        line, stderr=subprocess.PIPE, text=True, cwd=CLONE, env=environment(**more), preexec_fn=_hear_ctrl_c
    )
    guard = threading.Timer(300, process.kill)
    guard.start()
    lines = []
    try:
        assert process.stderr is not None
        acted = False
        for text in process.stderr:
            lines.append(text)
            if said in text and not acted:
                acted = True
                act(process)
        process.wait()
        process.stderr.close()
    finally:
        guard.cancel()
    assert acted, "".join(lines)
    return process.returncode, "".join(lines)


def _hear_ctrl_c() -> None:
    """Tests that run in the background are deaf to it, and so would be what they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def kill(process: subprocess.Popen[str]) -> None:
    os.kill(process.pid, signal.SIGKILL)


def processes_of(home: Path) -> list[str]:
    """What still runs for this home, this process aside."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if str(home).encode() in words:
                found.append(words.replace(b"\0", b" ").decode())
    return found


def gone(home: Path, seconds: float = 20.0) -> bool:
    ends = time.monotonic() + seconds
    while processes_of(home):
        if time.monotonic() > ends:
            return False
        time.sleep(0.05)
    return True


def copy(home: Path, target: Path) -> Path:
    shutil.copytree(home, target)
    return target
