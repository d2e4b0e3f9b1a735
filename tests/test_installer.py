"""The installer's own judgement, without a machine to install on: what it refuses, what it notes, and what it goes on with.

The whole of it is played on a booted Debian in `tests/machine`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import zipfile
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from appliance import selftest
from appliance.checkup import Check
from appliance.settings import Settings
from tests.test_selftest import DESK

ROOT = Path(__file__).resolve().parents[1]
CPU = "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu sse4_2 avx avx2\n"
DEBIAN = 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\nVERSION_ID="12"\n'
NO_BACKUP = Check("Backups", False, "There is no backup.", "Make one.")
Usage = namedtuple("Usage", "total used free")


def loaded(folder: str, *names: str) -> list[Any]:
    """Modules of the installer, which stand alone and know each other by their bare names."""
    sys.path.insert(0, str(ROOT / "installer" / folder))
    try:
        return [__import__(name) for name in names]
    finally:
        sys.path.pop(0)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The checks, on a machine that is fine; a test spoils one thing of it."""
    (checks,) = loaded("target", "checks")
    proc = tmp_path / "proc"
    proc.mkdir()
    (proc / "cpuinfo").write_text(CPU)
    (proc / "meminfo").write_text("MemTotal:       16000000 kB\n")
    (tmp_path / "os-release").write_text(DEBIAN)
    (tmp_path / "bin").mkdir()
    monkeypatch.setattr(checks, "SYSTEMD", tmp_path)
    monkeypatch.setattr(checks, "PROC", proc)
    monkeypatch.setattr(checks, "OS_RELEASE", tmp_path / "os-release")
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda _path: Usage(10**12, 0, 10**11))
    monkeypatch.setattr(checks.os, "access", lambda *_: True)
    monkeypatch.setattr(checks.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(checks.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(checks.time, "time", lambda: checks.FIRST_DAY + 86400.0)
    monkeypatch.setattr(checks, "_ports", lambda _ours: checks.Found("Ports", "fine", ""))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    yield checks


def found(checks: Any, *, cuda: bool = False) -> dict[str, tuple[str, str, str]]:
    said = checks.all_of_them(Path("/opt/appliance/releases"), lambda _port: False, cuda=cuda)
    assert all(one.remedy for one in said if one.state != "fine"), "whatever is not fine has a next step"
    return {one.name: (one.state, one.detail, one.remedy) for one in said}


def test_a_fit_machine_is_fine(machine: Any) -> None:
    said = found(machine)
    assert {state for state, _detail, _remedy in said.values()} == {"fine"}, said
    assert list(said) == ["System", "Processor", "Memory", "Disk", "Ports", "Clock", "Folders"]


def test_two_gigabytes_of_disk_are_too_few(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _path: Usage(10**11, 0, 2 * 2**30))
    state, detail, _remedy = found(machine)["Disk"]
    assert state == "stop" and "2048 MB are free" in detail and str(machine.DISK_MB) in detail


def test_a_small_disk_of_its_own_for_data_is_noticed(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    free = {"/var/lib": 500 * 2**20}
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: Usage(10**11, 0, free.get(str(path), 10**11)))
    state, detail, _remedy = found(machine)["Disk"]
    assert state == "stop" and "500 MB are free below /var/lib" in detail and "800 are needed" in detail


def test_a_machine_that_systemd_does_not_run(machine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "SYSTEMD", tmp_path / "none")
    state, detail, _remedy = found(machine)["System"]
    assert state == "stop" and "not run by systemd" in detail


@pytest.mark.parametrize(("kilobytes", "state"), [(2_000_000, "stop"), (4_000_000, "note"), (8_000_000, "fine")])
def test_memory_decides_what_can_be_served(machine: Any, kilobytes: int, state: str) -> None:
    (machine.PROC / "meminfo").write_text(f"MemTotal:       {kilobytes} kB\n")
    assert found(machine)["Memory"][0] == state


@pytest.mark.parametrize(("flags", "state"), [("fpu sse4_2", "stop"), ("fpu sse4_2 avx", "note")])
def test_an_ancient_processor(machine: Any, flags: str, state: str) -> None:
    (machine.PROC / "cpuinfo").write_text(CPU.replace("fpu sse4_2 avx avx2", flags))
    assert found(machine)["Processor"][0] == state


def test_another_processor_or_system(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.OS_RELEASE.write_text('PRETTY_NAME="Ubuntu 24.04"\nID=ubuntu\nVERSION_ID="24.04"\n')
    assert found(machine)["System"][0] == "note"
    monkeypatch.setattr(machine.platform, "machine", lambda: "aarch64")
    assert found(machine)["System"][0] == "stop"


@pytest.mark.parametrize("now", [0.0, 4_000_000_000.0])
def test_a_clock_that_cannot_be_right(machine: Any, monkeypatch: pytest.MonkeyPatch, now: float) -> None:
    monkeypatch.setattr(machine.time, "time", lambda: now)
    state, detail, remedy = found(machine)["Clock"]
    assert state == "stop" and "timedatectl" in remedy and ("1970" in detail or "2096" in detail)


def test_a_read_only_etc(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.os, "access", lambda path, _mode: str(path) != "/etc")
    state, detail, remedy = found(machine)["Folders"]
    assert state == "stop" and "/etc" in detail and "mount -o remount,rw /" in remedy


def nvidia(folder: Path, script: str) -> None:
    tool = folder / "bin" / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)


@pytest.mark.parametrize(
    ("driver", "state", "words"), [("470.57", "note", "470.57 is too old"), ("550.90", "fine", "serves on it")]
)
def test_a_bundle_with_cuda_serves_on_a_gpu_whose_driver_is_new_enough(
    machine: Any, tmp_path: Path, driver: str, state: str, words: str
) -> None:
    nvidia(tmp_path, f"echo 'NVIDIA T4, {driver}, 15360 MiB'")
    said = found(machine, cuda=True)["GPU"]
    assert said[0] == state and words in said[1] and "serves on the processor" not in said[1]
    state, detail, _remedy = found(machine)["GPU"]
    assert state == "fine" and detail.startswith("NVIDIA T4") and "this bundle serves on the processor" in detail


def test_a_bundle_with_cuda_on_a_machine_without_a_driver_says_so(machine: Any) -> None:
    state, detail, remedy = found(machine, cuda=True)["GPU"]
    assert state == "note" and "driver is not installed" in detail and "processor" in remedy


@pytest.mark.parametrize("script", ["echo No devices were found", "echo 'T4, [N/A], 1 MiB'", "exit 9", "exec /bin/sleep 60"])
def test_a_driver_that_talks_nonsense_or_hangs(
    machine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    monkeypatch.setattr(machine, "GPU_SECONDS", 0.2 if "sleep" in script else 20.0)
    nvidia(tmp_path, script)
    state, detail, remedy = found(machine, cuda=True)["GPU"]
    assert state == "note" and "no GPU that works" in detail and "processor" in remedy
    assert found(machine)["GPU"][0] == "fine", "nothing that a bundle for the processor needs"


def test_a_port_that_somebody_else_has(monkeypatch: pytest.MonkeyPatch) -> None:
    (checks,) = loaded("target", "checks")
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(checks, "PORTS", (port,))
        state = checks._ports(lambda _port: False)
        assert state.state == "stop" and str(port) in state.detail and str(port) in state.remedy
        assert not shutil.which("ss") or os.geteuid() or " by another program" not in state.detail, "who has it is named"
        assert checks._ports(lambda _port: True).state == "fine", "the proxy of an earlier run is the box's own"


# --- a disk that is full, a stick that runs nothing, a person who is not root ----------------------------------------------
@contextlib.contextmanager
def disk(path: Path, options: str) -> Iterator[Path]:
    """A real file system of its own."""
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a small disk")
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


@pytest.mark.optional
def test_a_disk_that_fills_in_the_middle_is_said_and_leaves_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, main = loaded("target", "changes", "main")
    monkeypatch.setattr(changes, "LOG", tmp_path / "log")
    work = changes.Changes(dry=False)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "large").write_bytes(os.urandom(2**20))
    with disk(tmp_path / "small", "size=512k") as small:
        work.write(small / "settings", "old")
        with pytest.raises(changes.Fault, match="cannot be written: No space left"):
            work.write(small / "settings", "x" * 2**20)
        assert [path.name for path in small.iterdir()] == ["settings"] and (small / "settings").read_text() == "old"
        with pytest.raises(changes.Fault, match="Installing the packages did not work: the disk is full") as full:
            work.run(["cp", tmp_path / "models" / "large", small / "large"], "Installing the packages", "Read the log.")
        assert "Free some space" in full.value.hint and "goes on" in full.value.hint
        (small / "large").unlink()

        def fill(_given: Any, _changes: Any) -> None:
            shutil.copytree(tmp_path / "models", small / "models")

        monkeypatch.setattr(main, "install", fill)
        monkeypatch.setattr(sys, "argv", ["install", str(tmp_path), str(tmp_path)])
        assert main.main() == 1
        told = capsys.readouterr().out
        assert "No space left on device" in told and "Free some space" in told and "None" not in told


@pytest.mark.optional
def test_a_stick_from_which_nothing_may_be_run_installs_through_bash(tmp_path: Path) -> None:
    (signing,) = loaded("bundling", "signing")
    with disk(tmp_path / "stick", "size=1m,noexec") as stick:
        (stick / "target").mkdir()
        shutil.copy(ROOT / "installer" / "install", stick / "install")
        (stick / "target" / "main.py").write_text("raise SystemExit('it went on')\n")
        (stick / "VERSION").write_text("{}")
        signing.seal(stick, tmp_path / "key.pem")
        with pytest.raises(PermissionError):
            subprocess.run([stick / "install"], capture_output=True, check=False)
        done = subprocess.run(
            ["bash", stick / "install", "--key", stick / "signing.pub"], capture_output=True, text=True, check=False
        )
    assert "it went on" in done.stderr, done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_who_is_not_root_is_told_how() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        script = shutil.copy(ROOT / "installer" / "install", folder)
        words = ["bash", script, "--dry-run"]
        done = subprocess.run(words, user=65534, capture_output=True, text=True, check=False, env={"PATH": os.environ["PATH"]})
    assert done.returncode == 1 and "Only root" in done.stderr and "sudo" in done.stderr and "--dry-run" in done.stderr


def test_another_name_than_the_box_has_is_refused_until_its_settings_have_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proxy and the LAN would know the new name, and the pages would answer under the old one alone."""
    machine, changes, certificate = loaded("target", "machine", "changes", "certificate")
    place = certificate.Place(etc=tmp_path)
    monkeypatch.setattr(certificate, "Place", lambda: place)
    monkeypatch.setattr(machine, "SETTINGS", tmp_path / "appliance.toml")
    machine.refuse_another("roof")  # a new box
    machine.SETTINGS.write_text('allowed_hosts = ["localhost", "appliance.local"]\n')
    machine.refuse_another(machine.known_name())
    with pytest.raises(changes.Fault) as why:
        machine.refuse_another("roof")
    assert why.value.message == "This box is called appliance.local." and "roof.local" in why.value.hint
    machine.SETTINGS.write_text('allowed_hosts = ["localhost", "roof.local"]\n')
    machine.refuse_another("roof")


@pytest.mark.parametrize("text", ["as it was brought", "# Written by the school appliance's installer.", "somebody's site"])
def test_the_proxy_that_its_package_has_started_does_not_stop_an_installation_that_was_broken_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    (machine,) = loaded("target", "machine")
    monkeypatch.setattr(machine, "CADDYFILE", tmp_path / "Caddyfile")
    machine.CADDYFILE.write_text(text)
    mark = hashlib.md5(b"as it was brought", usedforsecurity=False).hexdigest()
    for name, does in (("dpkg-query", f"echo ' {machine.CADDYFILE} {mark}'"), ("systemctl", f"test -e {tmp_path}/runs")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert not machine.port_is_ours(80), "another program has it"
    (tmp_path / "runs").touch()
    assert machine.port_is_ours(80) is (text != "somebody's site")


# --- after it was put in -----------------------------------------------------------------------------------------------------
def test_a_new_box_is_measured_once_and_what_waits_for_somebody_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the program itself answers is tried in `test_selftest` and `test_checkup`, and on a box in `tests/machine`."""
    machine, changes = loaded("target", "machine", "changes")
    home, program = tmp_path / "home", tmp_path / "appliance"
    home.mkdir()
    result = selftest.judge(Settings(home=home), "starter", DESK)
    said = {"selftest": asdict(result), "doctor": {"checks": [asdict(Check("Disk", True, "Fine.")), asdict(NO_BACKUP)]}}
    for name, document in said.items():
        (tmp_path / name).write_text(json.dumps(document))
    program.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/asked\ncat "{tmp_path}/$1"\n')
    program.chmod(0o755)
    monkeypatch.setattr(machine, "PROGRAM", program)
    monkeypatch.setattr(machine, "DATA", home)
    monkeypatch.setattr(changes, "LOG", tmp_path / "log")
    work = changes.Changes(dry=False)
    machine.measure(60, work)  # it has been measured
    (home / "selftest.json").unlink()
    machine.measure(0, work)  # nobody wants it
    machine.measure(60, changes.Changes(dry=True))
    machine.doctor(changes.Changes(dry=True))
    assert not (tmp_path / "asked").exists()
    capsys.readouterr()
    machine.measure(60, work)
    machine.doctor(work)
    assert (tmp_path / "asked").read_text() == "selftest --seconds 60 --json\ndoctor --json\n"
    said_aloud = capsys.readouterr().out.splitlines()
    assert said_aloud == ["Measuring for 60 seconds what this machine can serve.", result.summary,
                          "  to do  Backups: There is no backup. Make one."]  # fmt: skip
    program.write_text("#!/bin/sh\nexit 1\n")
    machine.measure(60, work)
    machine.doctor(work)
    told = capsys.readouterr().out
    assert "sudo appliance selftest" in told and "sudo appliance doctor" in told, "a box all the same"


# --- bundles ---------------------------------------------------------------------------------------------------------------
def wheel(folder: Path, name: str, **files: str) -> Path:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as packed:
        for inside, text in files.items():
            packed.writestr(inside.replace("__", "/").replace("_DOT_", "."), text)
    path = folder / name
    path.write_bytes(data.getvalue())
    return path


def test_a_wheel_that_runs_code_at_every_start_is_refused_by_maker_and_box(tmp_path: Path) -> None:
    wheels, said = loaded("bundling", "wheels", "said")
    release, changes = loaded("target", "release", "changes")
    wheel(tmp_path, "good-1.0-py3-none-any.whl", good__main_DOT_py="")
    wheels.check(tmp_path)
    release._no_start_up_code(tmp_path)
    wheel(tmp_path, "evil-1.0-py3-none-any.whl", evil_DOT_pth="import os")
    with pytest.raises(said.Fault, match=r"evil-1\.0.*evil\.pth"):
        wheels.check(tmp_path)
    with pytest.raises(changes.Fault, match=r"evil\.pth"):
        release._no_start_up_code(tmp_path)
    (tmp_path / "evil-1.0-py3-none-any.whl").unlink()
    (tmp_path / "source-1.0.tar.gz").write_bytes(b"")
    with pytest.raises(said.Fault, match="no wheel"):
        wheels.check(tmp_path)
    with pytest.raises(changes.Fault, match="no plain wheel"):
        release._no_start_up_code(tmp_path)


def test_each_wheel_is_locked_by_its_hash_and_pip_refuses_another(tmp_path: Path) -> None:
    (wheels,) = loaded("bundling", "wheels")
    folder = tmp_path / "wheels"
    folder.mkdir()
    meta = {"one-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: one\nVersion: 1.0\n",
            "one-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            "one-1.0.dist-info/RECORD": ""}  # fmt: skip
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as packed:
        for inside, text in meta.items():
            packed.writestr(inside, text)
    (folder / "one-1.0-py3-none-any.whl").write_bytes(data.getvalue())
    wheels.lock(folder, tmp_path / "requirements.lock")
    words = [
        sys.executable, "-m", "pip", "install", "-q", "--dry-run", "--no-index", "--no-deps", "--require-hashes",
        "--find-links", str(folder), "-r", str(tmp_path / "requirements.lock"),
    ]  # fmt: skip
    environment = os.environ | {"PIP_CONFIG_FILE": os.devnull}
    assert subprocess.run(words, env=environment, capture_output=True, check=False).returncode == 0
    with zipfile.ZipFile(folder / "one-1.0-py3-none-any.whl", "a") as packed:
        packed.writestr("more.py", "")
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "HASH" in done.stderr.upper()


def test_the_program_needs_what_the_project_names_and_nothing_of_its_extras() -> None:
    (wheels,) = loaded("bundling", "wheels")
    names = wheels.needed()
    assert {"torch", "fastapi", "llama-cpp-python", "pysqlite3"} <= set(names)
    assert not {"pytest", "playwright", "dspy", "openai", "school-appliance"} & set(names)


@pytest.mark.skipif(os.geteuid() != 0, reason="the installer looks at nothing unless it is root")
def test_what_is_no_bundle_is_refused_before_anything_is_looked_at(tmp_path: Path) -> None:
    (signing,) = loaded("bundling", "signing")
    bundle = tmp_path / "bundle"
    (bundle / "target").mkdir(parents=True)
    shutil.copy(ROOT / "installer" / "install", bundle / "install")
    (bundle / "target" / "main.py").write_text("raise SystemExit('it went on')\n")

    def tried(*options: str) -> tuple[int, str]:
        done = subprocess.run([bundle / "install", *options], capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    code, said = tried()
    assert code == 1 and "no whole bundle" in said and "Try:" in said
    (bundle / "VERSION").write_text("{}")
    print_of_key = signing.seal(bundle, tmp_path / "key.pem")
    known = Path("/etc/appliance/signing.pub").is_file()
    code, said = tried("--key", str(bundle / "signing.pub")) if known else tried()
    assert "it went on" in said, said
    assert known or f"Signed by {print_of_key}." in said
    (bundle / "VERSION").write_text("{} ")
    code, said = tried("--key", str(bundle / "signing.pub"))
    assert code == 1 and "damaged" in said and "VERSION" in said and "it went on" not in said
    other = tmp_path / "other"
    other.mkdir()
    signing.seal(other, tmp_path / "other.pem")
    code, said = tried("--key", str(other / "signing.pub"))
    assert code == 3 and "signature" in said
