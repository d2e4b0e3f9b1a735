"""An upgrade that is killed at each of its steps: the old release answers or the new one, and the same command goes on.

The installer's own code on folders of this test, its sockets and processes real; `systemctl` is a few lines of shell that load
units, start and stop what answers. The whole of it is played on a booted Debian in `tests/machine`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import itertools
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.checkup import upgraded
from tests.test_installer import ROOT, loaded

OLD, NEW = "1.0", "1.1"
# What systemd does, as far as a change-over sees it: it keeps the units that it has read, and runs what they and the link say.
SYSTEMCTL = """#!/bin/sh
cd {state} || exit 1
case "$*" in
  daemon-reload) cat units/appliance-web.service >loaded ;;
  stop*) rm -f running ;;
  start*appliance-changeover*) : >wanted ;;
  start*appliance-web*)
    [ -e running ] && exit 0
    printf '%s %s\\n' "$(readlink opt/current)" "$(cat loaded)" >>history
    tail -n 1 history >running ;;
  show*)
    if [ -e running ] && [ ! -e "opt/$(cut -d' ' -f1 running)/broken" ]; then n=0; else n=3; fi
    printf 'Id=appliance-web.service\\nNRestarts=%s\\n\\nId=appliance-engine.service\\nNRestarts=0\\n' $n ;;
  is-enabled*) exit 1 ;;
esac
"""

# What `python3 -m venv FOLDER` makes: a python whose pip installs nothing, and a program that opens a home with a database.
PYTHON = """#!/bin/sh
mkdir -p "$3/bin"
printf '#!/bin/sh\\n[ "$2" = pip ] || exec {python} "$@"\\n' >"$3/bin/python"
printf '#!/bin/sh\\n[ -f "$2/appliance.sqlite3" ]\\n' >"$3/bin/appliance"
chmod +x "$3/bin/python" "$3/bin/appliance"
"""


class Machine:
    """Folders instead of a box. `history`: which release was started with which release's units, each time."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root, self.units = folder, folder / "opt", folder / "units"
        for path in (self.root / "releases", self.units, folder / "bin", folder / "data"):
            path.mkdir(parents=True)
        (folder / "bin" / "systemctl").write_text(SYSTEMCTL.format(state=folder))
        (folder / "bin" / "systemctl").chmod(0o755)
        self.release(OLD)
        (self.root / "current").symlink_to(f"releases/{OLD}")
        self.boot()

    def release(self, version: str, *, broken: bool = False) -> None:
        units = self.root / "releases" / version / "systemd"
        units.mkdir(parents=True)
        (units / "appliance-web.service").write_text(f"units of {version}")
        if broken:
            (units.parent / "broken").touch()
        if version == OLD:
            (self.units / "appliance-web.service").write_text(f"units of {version}")

    def back_to_old(self) -> None:
        """As before the upgrade."""
        for path in [*self.root.glob("*.json"), *self.root.glob(".*.part"), *self.units.iterdir(), self.folder / "history"]:
            path.unlink(missing_ok=True)
        (self.root / "current").unlink()
        (self.root / "current").symlink_to(f"releases/{OLD}")
        shutil.copy(self.root / "releases" / OLD / "systemd" / "appliance-web.service", self.units)
        self.cut_power()
        self.boot()

    def systemctl(self, *words: str) -> None:
        subprocess.run([self.folder / "bin" / "systemctl", *words], check=True)

    def cut_power(self) -> None:
        (self.folder / "running").unlink(missing_ok=True)
        (self.folder / "loaded").unlink(missing_ok=True)

    def boot(self) -> None:
        self.systemctl("daemon-reload")
        self.systemctl("start", "appliance-web.service")

    def history(self) -> list[str]:
        return (self.folder / "history").read_text().splitlines()

    def answers(self) -> str:
        """The release that answers; "" where none does, or one with the other's units."""
        with contextlib.suppress(OSError):
            link, _, units = (self.folder / "running").read_text().strip().partition(" ")
            whole = units == f"units of {Path(link).name}"
            return Path(link).name if whole and not (self.root / link / "broken").exists() else ""
        return ""

    def serve(self, ended: threading.Event) -> None:
        """The socket that systemd holds: a call is answered by what runs."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
            door.bind(str(self.folder / "web.sock"))
            door.listen()
            door.settimeout(0.1)
            while not ended.is_set():
                with contextlib.suppress(OSError):
                    line = door.accept()[0]
                    with line:
                        if self.answers() and line.recv(1000).startswith(b"GET /ready "):
                            line.sendall(b"HTTP/1.1 200 OK\r\n\r\n")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    changeover, release, changes = loaded("target", "changeover", "release", "changes")
    made = Machine(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    for name, value in {
        "ROOT": made.root, "RELEASES": made.root / "releases", "CURRENT": made.root / "current", "UNITS": made.units,
        "PLAN": made.root / "changing.json", "OUTCOME": made.root / "changed.json", "WEB": tmp_path / "web.sock",
        "LOOK": 0.01, "PATIENCE": 20.0,
    }.items():  # fmt: skip
        monkeypatch.setattr(changeover, name, value)
    for name, value in {
        "ROOT": made.root, "RELEASES": made.root / "releases", "DATA": tmp_path / "data", "SCRIPT": tmp_path / "changeover",
    }.items():  # fmt: skip
        monkeypatch.setattr(release, name, value)
    monkeypatch.setattr(changes, "LOG", tmp_path / "log")
    ended = threading.Event()
    thread = threading.Thread(target=made.serve, args=(ended,))
    thread.start()
    yield made
    ended.set()
    thread.join()


def killed_at(step: int, do: Callable[[], object]) -> bool:
    """Do it in a process of its own, which is killed right before its effect of that number; false where it has fewer."""
    child = os.fork()
    if child == 0:
        count = itertools.count()
        for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "symlink_to"), (Path, "unlink"), (Path, "mkdir"),
                            (shutil, "copytree"), (shutil, "rmtree"), (subprocess, "run")):  # fmt: skip
            setattr(owner, name, _dying(getattr(owner, name), count, step))
        try:
            do()
            os._exit(0)
        except BaseException:  # noqa: BLE001 - whatever it is, this process is not pytest
            traceback.print_exc()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0, f"it failed at step {step}"
    return os.WIFSIGNALED(status)


def _dying(effect: Callable[..., Any], count: Iterator[int], step: int) -> Callable[..., Any]:
    def do(*given: Any, **more: Any) -> Any:
        if next(count) == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return effect(*given, **more)

    return do


# --- the change itself -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("broken", [False, True], ids=["good", "broken"])
@pytest.mark.parametrize("power", [False, True], ids=["killed", "power cut"])
def test_a_change_that_is_killed_at_any_step_ends_with_one_whole_release(machine: Machine, broken: bool, power: bool) -> None:
    (changeover,) = loaded("target", "changeover")
    machine.release(NEW, broken=broken)
    expected = OLD if broken else NEW
    for step in itertools.count():
        machine.back_to_old()
        changeover.PLAN.write_text(json.dumps({"before": OLD, "to": NEW}))
        killed = killed_at(step, changeover.main)
        if power:
            machine.cut_power()
            machine.boot()
        if killed:
            assert changeover.main() == 0, "systemd runs it again, at once or at boot"
        assert machine.answers() == expected == changeover.current(), f"killed at step {step}"
        assert not changeover.PLAN.exists() and json.loads(changeover.OUTCOME.read_text())["runs"] == expected
        if not power:
            assert all(_one_release(line) for line in machine.history()), f"half a release ran, killed at step {step}"
        if not killed:
            break
    assert step > 12, "it was killed at no step"


def _one_release(line: str) -> bool:
    link, _, units = line.partition(" ")
    return units == f"units of {Path(link).name}"


def test_a_release_that_keeps_ending_is_given_up_long_before_its_time_is_over(machine: Machine) -> None:
    (changeover,) = loaded("target", "changeover")
    machine.release(NEW, broken=True)
    changeover.PLAN.write_text(json.dumps({"before": OLD, "to": NEW}))
    began = time.monotonic()
    changeover.main()
    assert time.monotonic() - began < changeover.PATIENCE / 2
    assert json.loads(changeover.OUTCOME.read_text())["answers"] is True and machine.answers() == OLD
    told = upgraded.upgrade(changeover.OUTCOME)
    assert told and not told.ok and told.remedy and "journalctl" in told.command
    assert told.detail.startswith(f"The upgrade from {OLD} to {NEW} was undone on {time.strftime('%d %B %Y')}")
    assert f": appliance-web ended again and again. {OLD} runs" in told.detail
    later = upgraded.upgrade(changeover.OUTCOME, time.time() + 31 * 86400)
    assert later and later.ok and "was undone" in later.detail, "it is said until an upgrade succeeds"


def test_a_release_that_brought_no_units_of_its_own_is_gone_back_to_all_the_same(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    (changeover,) = loaded("target", "changeover")
    monkeypatch.setattr(changeover, "PATIENCE", 0.5)  # it starts with the other's units, which this machine does not answer by
    machine.release(NEW, broken=True)
    shutil.rmtree(machine.root / "releases" / OLD / "systemd")
    changeover.PLAN.write_text(json.dumps({"before": OLD, "to": NEW}))
    changeover.main()
    assert changeover.current() == OLD and json.loads(changeover.OUTCOME.read_text())["runs"] == OLD


def test_without_a_plan_nothing_is_changed(machine: Machine) -> None:
    (changeover,) = loaded("target", "changeover")
    assert changeover.main() == 0 and len(machine.history()) == 1 and not changeover.OUTCOME.exists()
    assert upgraded.upgrade(changeover.OUTCOME) is None


# --- the installer ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def install(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """The installer's own order of steps, with what needs a whole machine left out: packages, users, proxy."""
    release, box, changes = loaded("target", "release", "machine", "changes")
    spec = importlib.util.spec_from_file_location("the_installer", ROOT / "installer" / "target" / "main.py")
    assert spec and spec.loader
    main = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "path", [*sys.path])
    spec.loader.exec_module(main)
    for name in (
        "debian_packages", "user_and_folders", "settings", "keep_key", "units", "proxy", "trust_page", "start", "measure",
        "doctor", "tell",
    ):  # fmt: skip
        monkeypatch.setattr(box, name, lambda *_given: None)
    monkeypatch.setattr(main, "_look", lambda *_given, **_named: None)
    monkeypatch.setattr(main.probe, "walls", lambda *_given: None)
    monkeypatch.setattr(main.bundled, "refuse_unfit", lambda *_given, **_named: None)
    monkeypatch.setattr(shutil, "chown", lambda *_given: None)
    tools = machine.folder / "bin"
    (tools / "python3").write_text(PYTHON.format(python=sys.executable))
    (tools / "runuser").write_text('#!/bin/sh\nshift 3\nexec "$@"\n')
    for name in ("chown", "appliance"):
        (tools / name).write_text("#!/bin/sh\n")
    for path in tools.iterdir():
        path.chmod(0o755)
    subprocess.run([tools / "python3", "-m", "venv", machine.root / "releases" / OLD / ".venv"], check=True)
    sqlite3.connect(machine.folder / "data" / "appliance.sqlite3").close()
    monkeypatch.setattr(release, "PROGRAM", tools / "appliance")
    bundle = machine.folder / "bundle"
    for name in ("wheels", "models", "converter", "systemd"):
        (bundle / name).mkdir(parents=True)
    (bundle / "systemd" / "appliance-web.service").write_text(f"units of {NEW}")
    (bundle / "VERSION").write_text(json.dumps({"version": NEW}))
    for name in ("README.md", "LICENSE", "SHA256SUMS"):
        (bundle / name).touch()
    given = argparse.Namespace(
        bundle=bundle, signed_by=bundle, dry_run=False, key=None, name="box", without_backup=False, old=False, yes=True,
        certificate=None, selftest=0.0,
    )  # fmt: skip
    return lambda: main.install(given, changes.Changes(dry=False))


@pytest.mark.usefixtures("systemd")
def test_an_upgrade_that_is_killed_at_any_step_leaves_an_answering_box_and_the_same_command_ends_it(
    machine: Machine, install: Callable[[], None]
) -> None:
    changeover, release = loaded("target", "changeover", "release")
    for step in itertools.count():
        machine.back_to_old()
        shutil.rmtree(machine.root / "releases" / NEW, ignore_errors=True)
        killed = killed_at(step, install)
        _until(lambda: machine.answers() in (OLD, NEW), f"nothing answers, killed at step {step}")
        if killed:
            install()
        assert machine.answers() == NEW == changeover.current() and not changeover.PLAN.exists(), f"killed at step {step}"
        assert all(_one_release(line) for line in machine.history()), f"killed at step {step}"
        assert (machine.root / "releases" / NEW / release.WHOLE).is_file()
        assert not (release.DATA / "run" / "trial").exists(), "a copy of the school's data is left behind"
        if not killed:
            break
    assert step > 25, "it was killed at no step"


def test_a_release_after_which_the_old_one_could_not_open_the_data_is_refused_before_anything_changes(
    machine: Machine, install: Callable[[], None]
) -> None:
    changeover, changes = loaded("target", "changeover", "changes")
    (machine.root / "current" / ".venv" / "bin" / "appliance").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(changes.Fault, match=f"what {NEW} made of it") as caught:
        install()
    assert "Nothing was changed" in caught.value.hint
    assert changeover.current() == OLD and len(machine.history()) == 1 and not changeover.PLAN.exists()


@pytest.mark.usefixtures("systemd")
def test_a_release_that_was_undone_leaves_no_folder_and_is_told_until_an_upgrade_succeeds(
    machine: Machine, install: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    changeover, release, changes = loaded("target", "changeover", "release", "changes")
    put, whole = release.put, machine.root / "releases" / NEW / release.WHOLE

    def broken(*given: Any) -> None:
        put(*given)
        (whole.parent / "broken").touch()

    with monkeypatch.context() as other:
        other.setattr(release, "put", broken)
        with pytest.raises(changes.Fault, match=f"{NEW} does not answer: appliance-web ended again.*; {OLD} runs. It answers"):
            install()
    assert machine.answers() == OLD and not whole.parent.exists()
    check = upgraded.upgrade(changeover.OUTCOME)
    assert check and not check.ok
    work = changes.Changes(dry=False)
    machine.release(NEW)  # as a power cut leaves it
    release.clear_undone(NEW, work)
    assert whole.parent.exists(), "the same bundle again goes on with what is there"
    release.clear_undone("1.2", work)
    assert not whole.parent.exists() and machine.answers() == OLD
    install()
    assert machine.answers() == NEW and upgraded.upgrade(changeover.OUTCOME) is None
    release.clear_undone("1.2", work)
    assert whole.is_file()


@pytest.fixture
def systemd(machine: Machine) -> Iterator[None]:
    (changeover,) = loaded("target", "changeover")
    ended = threading.Event()
    thread = threading.Thread(target=_systemd, args=(machine, changeover, ended))
    thread.start()
    yield
    ended.set()
    thread.join()


def _systemd(machine: Machine, changeover: Any, ended: threading.Event) -> None:
    """Runs the change-over's unit when the installer starts it, whatever becomes of the installer."""
    while not ended.wait(0.005):
        with contextlib.suppress(FileNotFoundError):
            (machine.folder / "wanted").unlink()
            changeover.main()


def _until(true: Callable[[], bool], otherwise: str) -> None:
    ends = time.monotonic() + 10
    while not true():
        assert time.monotonic() < ends, otherwise
        time.sleep(0.01)
