"""The restore that root runs on an installed box: killed at any of its steps, the services come back by themselves.

The installer's own script on folders of this test, its processes real; the appliance's own commands and `systemctl` are a few
lines of shell that move a state, stop and start it. What the commands do for real, and when, is tried in `test_kills`; the
whole of it is played on a booted Debian in `tests/machine`.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import pytest

from tests.backup.school import ROOT
from tests.test_changeover import killed_at

SERVICES = "appliance-web.service appliance-worker.service appliance-engine.service"
# An unlink of `ready.json`, and of `switched.json`, is what the commands do for real where they have done their work.
APPLIANCE = """#!/bin/sh
echo "appliance $*" >>{box}/said
cd {box} || exit 1
case "$1" in
  restore) cat >key; echo new >waiting; echo '{{}}' >ready.json ;;
  switch)
    [ -e ready.json ] || {{ echo 'Error: No backup was made ready to take over.'; exit 4; }}
    [ ! -e refuses ] || {{ echo 'Error: The appliance is running.'; exit 5; }}
    cp state before; cp waiting state; echo '{{}}' >switched.json; rm ready.json
    echo 'The backup is restored.' ;;
  undo)
    [ -e switched.json ] || exit 4
    cp before state; rm switched.json ;;
esac
"""
SYSTEMCTL = """#!/bin/sh
echo "systemctl $*" >>{box}/said
cd {box} || exit 1
case "$*" in
  start*appliance-restoring*) : >wanted ;;
  start*) cp state running ;;
  stop*) [ ! -e stays ] || exit 1; rm -f running ;;
esac
"""


class Box:
    """`state`: what the box holds; `running`: what was started with. Restored, it becomes `new`."""

    def __init__(self, folder: Path, restore: Any) -> None:
        self.folder, self.restore = folder, restore
        (folder / "bin").mkdir()
        for name, text in (("appliance", APPLIANCE), ("systemctl", SYSTEMCTL)):
            (folder / "bin" / name).write_text(text.format(box=folder))
            (folder / "bin" / name).chmod(0o755)
        self.again()

    def again(self) -> None:
        for path in self.folder.glob("*"):
            if path.is_file():
                path.unlink()
        (self.folder / "state").write_text("old\n")
        (self.folder / "running").write_text("old\n")

    def serves(self) -> str:
        running = self.folder / "running"
        return running.read_text().strip() if running.is_file() else ""

    def said(self) -> list[str]:
        return (self.folder / "said").read_text().splitlines()

    def asked_for(self, **facts: str) -> None:
        """A backup was made ready, and the plan written down."""
        (self.folder / "waiting").write_text("new\n")
        (self.folder / "ready.json").write_text("{}")
        self.restore.PLAN.write_text(json.dumps({"step": "asked", "boot": "this boot"} | facts))


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Box:
    loader = SourceFileLoader("restore", str(ROOT / "installer" / "target" / "restore"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    spec = spec_from_loader("restore", loader)
    assert spec is not None
    restore = module_from_spec(spec)
    loader.exec_module(restore)
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot" / "id").write_text("this boot")
    for name, value in {
        "PROGRAM": (str(tmp_path / "bin" / "appliance"),), "PLAN": tmp_path / "plan.json", "OUTCOME": tmp_path / "outcome.json",
        "READY": tmp_path / "ready.json", "DONE": tmp_path / "switched.json", "BOOT": tmp_path / "boot" / "id", "LOOK": 0.01,
        "PATIENCE": 20,
    }.items():  # fmt: skip
        monkeypatch.setattr(restore, name, value)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    made = Box(tmp_path, restore)
    monkeypatch.setattr(restore, "answers", lambda: (tmp_path / "running").is_file() and not (tmp_path / "dead").is_file())
    return made


@pytest.mark.parametrize("well", [True, False], ids=["answers", "does not answer"])
def test_killed_at_any_step_it_goes_on_until_the_services_run_again(box: Box, well: bool) -> None:
    expected = "new" if well else "old"
    for step in itertools.count():
        box.again()
        if not well:
            (box.folder / "dead").touch()
        box.asked_for()
        killed = killed_at(step, functools.partial(box.restore.main, ["--carry-out"]))
        if killed and box.restore.PLAN.exists():
            assert box.restore.main(["--carry-out"]) == 0, "systemd runs it again"
        outcome = json.loads(box.restore.OUTCOME.read_text())
        assert box.serves() == expected == (box.folder / "state").read_text().strip(), f"killed at step {step}"
        assert outcome["code"] == (0 if well else 1) and not box.restore.PLAN.exists()
        assert ("what was there before is back" in outcome["told"]) is not well
        if not killed:
            break
    assert step > 8, "it was killed at no step"


@pytest.fixture
def systemd(box: Box) -> Iterator[None]:
    """Runs the change's unit when it is started, whatever becomes of who started it."""
    ended = threading.Event()

    def runs() -> None:
        while not ended.wait(0.005):
            with contextlib.suppress(FileNotFoundError):
                (box.folder / "wanted").unlink()
                box.restore.main(["--carry-out"])

    thread = threading.Thread(target=runs)
    thread.start()
    yield
    ended.set()
    thread.join()


@pytest.mark.usefixtures("systemd")
@pytest.mark.parametrize("well", [True, False], ids=["answers", "does not answer"])
def test_the_services_stop_for_the_change_only_and_a_dead_state_is_undone(
    box: Box, well: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    (box.folder / "paper").write_text("THE-KEY")
    if not well:
        (box.folder / "dead").touch()
    code = box.restore.main(["latest", "--key-file", str(box.folder / "paper")])
    start = [f"systemctl reset-failed {SERVICES}", f"systemctl start --no-block {SERVICES}"]
    done = [
        "appliance restore latest --key-file - --prepare-only",
        "systemctl start --no-block appliance-restoring.service",
        f"systemctl stop appliance-retrain.service appliance-backup.service {SERVICES}",
        "appliance switch",
        *start,
    ]
    assert box.said() == [*done, *(start if well else [f"systemctl stop {SERVICES}", "appliance undo", *start])]
    assert code == (0 if well else 1) and (box.folder / "key").read_text() == "THE-KEY"
    said = capfd.readouterr()
    assert ("answers with what was restored" in said.out and "The backup is restored." in said.out) is well
    assert ("what was there before is back" in said.err and "Try: journalctl" in said.err) is not well
    assert box.restore.OUTCOME.stat().st_mode & 0o777 == 0o600


@pytest.mark.usefixtures("systemd")
@pytest.mark.parametrize(("what", "told"), [("refuses", "The appliance is running."), ("stays", "could not be stopped")])
def test_a_change_that_is_refused_leaves_what_was_there_serving(
    box: Box, what: str, told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (box.folder / what).touch()
    code = box.restore.main(["latest"])
    assert code == (5 if what == "refuses" else 1) and told in capfd.readouterr().err
    assert box.serves() == "old" and not box.restore.PLAN.exists()


def test_a_backup_that_is_refused_stops_no_service(box: Box, capfd: pytest.CaptureFixture[str]) -> None:
    """Of a newer release, with a wrong passphrase, on a full disk: each ends what makes it ready."""
    (box.folder / "bin" / "appliance").write_text("#!/bin/sh\necho 'Error: This key does not open it.' >&2\nexit 2\n")
    assert box.restore.main(["latest", "--from", "/mnt/usb"]) == 2
    assert "does not open" in capfd.readouterr().err
    assert box.serves() == "old" and not box.restore.PLAN.exists() and not (box.folder / "said").exists()


def test_what_was_asked_for_before_the_power_went_is_not_begun_a_day_later(box: Box) -> None:
    box.asked_for(boot="an earlier boot")
    assert box.restore.main(["--carry-out"]) == 0
    assert box.serves() == "old" and not box.restore.PLAN.exists() and "appliance switch" not in box.said()
    assert "before anything was changed" in json.loads(box.restore.OUTCOME.read_text())["told"]
    assert box.restore.main(["--carry-out"]) == 0, "without a plan nothing is done"


def test_a_full_disk_where_the_plan_lies_does_not_leave_the_services_stopped(box: Box) -> None:
    box.asked_for()
    for name in ("plan", "outcome"):
        (box.folder / f".{name}.json.part").mkdir()  # it can be written no more
    assert box.restore.main(["--carry-out"]) == 0
    assert box.serves() == "new" and not box.restore.PLAN.exists()


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
@pytest.mark.parametrize("name", ["restoring", "changeover"])
def test_systemd_takes_the_units_and_starts_them_again_after_a_kill(tmp_path: Path, name: str) -> None:
    text = (ROOT / "installer" / "target" / f"{name}.service").read_text("utf-8")
    unit = tmp_path / f"appliance-{name}.service"
    unit.write_text(text)
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not [line for line in done.stderr.splitlines() if unit.name in line], done.stderr
    for line in ("Restart=on-failure", "StartLimitIntervalSec=0", "TimeoutStartSec=infinity", "WantedBy=multi-user.target"):
        assert line in text.splitlines()
