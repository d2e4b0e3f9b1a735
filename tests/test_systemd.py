"""The units: what each process may never do, checked by systemd itself where it is there."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from appliance.cli import group

UNITS = Path(__file__).resolve().parents[1] / "systemd"
# systemd's exposure level, 0 (nothing allowed) to 10: neither the web process nor the engine has any network.
LIMITS = {
    "appliance-web": 0.5, "appliance-engine": 0.5, "appliance-worker": 0.8, "appliance-retrain": 0.8,
    "appliance-egress": 1.3, "appliance-backup": 0.5,
}  # fmt: skip

COMMON = {
    "UMask=0077", "ProtectSystem=strict", "ProtectHome=yes", "PrivateTmp=yes", "PrivateUsers=yes", "ProtectProc=invisible",
    "ProtectClock=yes", "ProtectHostname=yes", "ProtectKernelTunables=yes", "ProtectKernelModules=yes", "ProtectKernelLogs=yes",
    "ProtectControlGroups=yes", "RestrictNamespaces=yes", "RestrictRealtime=yes", "RestrictSUIDSGID=yes", "LockPersonality=yes",
    "NoNewPrivileges=yes", "CapabilityBoundingSet=", "AmbientCapabilities=", "KeyringMode=private", "RemoveIPC=yes",
    "SystemCallArchitectures=native", "SystemCallFilter=@system-service", "SystemCallErrorNumber=EPERM",
}  # fmt: skip
NO_RESOLVER = "InaccessiblePaths=-/run/dbus -/run/systemd/resolve"
NO_NETWORK = {"PrivateNetwork=yes", "RestrictAddressFamilies=AF_UNIX", "IPAddressDeny=any", NO_RESOLVER}
DEVICES = {
    "DevicePolicy=closed", "DeviceAllow=char-nvidia rw", "DeviceAllow=char-nvidia-frontend rw",
    "DeviceAllow=char-nvidia-uvm rw",
}  # fmt: skip
STRICT = {"PrivateDevices=yes", "SystemCallFilter=~@privileged @resources"}
LONG = {"SystemCallFilter=~@privileged", "ReadWritePaths=/var/lib/appliance"} | DEVICES | NO_NETWORK
INTERNET = {"RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6", "MemoryDenyWriteExecute=yes", "ProcSubset=pid"}
# Of each unit, every line that takes something away: a line that is lost or weakened is found, whatever systemd's sum says.
SANDBOX = {
    "appliance-web": COMMON | STRICT | NO_NETWORK | {
        "ReadWritePaths=/var/lib/appliance", "MemoryDenyWriteExecute=yes", "ProcSubset=pid",
    },
    "appliance-engine": COMMON | STRICT | NO_NETWORK | {"ReadWritePaths=/var/lib/appliance"},
    "appliance-worker": COMMON | LONG,
    "appliance-retrain": COMMON | LONG,
    "appliance-backup": COMMON | STRICT | NO_NETWORK | {
        "ReadWritePaths=/var/lib/appliance -/mnt -/media -/srv", "MemoryDenyWriteExecute=yes", "ProcSubset=pid",
    },
    "appliance-egress": COMMON | STRICT | INTERNET | {
        "Group=appliance-egress", "ReadWritePaths=/var/lib/appliance/run",
        "InaccessiblePaths=-/var/lib/appliance/appliance.sqlite3 -/var/lib/appliance/documents -/var/lib/appliance/index",
        "InaccessiblePaths=-/var/lib/appliance/models -/var/lib/appliance/runs -/var/lib/appliance/jobs",
        "InaccessiblePaths=-/var/lib/appliance/backups -/var/lib/appliance/backup.key -/run/dbus",
    },
}  # fmt: skip
TAKES_AWAY = re.compile(
    r"(Protect|Private|Restrict|SystemCall|IPAddress|Inaccessible|Capability|Ambient|NoNew|Lock|Keyring|RemoveIPC|Device|Memory"
    r"Deny|ReadWrite|ProcSubset|UMask)\w*=.*|Group=appliance-egress"
)


def drift(name: str, text: str) -> set[str]:
    """The lines of a unit's sandbox that are missing, or that nobody expects."""
    return {line for line in text.splitlines() if TAKES_AWAY.fullmatch(line)} ^ SANDBOX[name]


@pytest.mark.parametrize("name", sorted(LIMITS))
def test_no_line_of_a_sandbox_may_be_lost_or_weakened(name: str) -> None:
    text = (UNITS / f"{name}.service").read_text("utf-8")
    assert not drift(name, text)
    assert len(SANDBOX[name]) >= 29
    for line in SANDBOX[name]:
        assert drift(name, text.replace(f"{line}\n", "")) == {line}
        assert drift(name, text.replace(f"{line}\n", f"{line.partition('=')[0]}=no\n")), line


def test_every_unit_has_a_limit() -> None:
    assert {path.stem for path in UNITS.glob("*.service")} == set(LIMITS)


@pytest.mark.parametrize("name", sorted(LIMITS))
def test_exposure_stays_below_the_limit(name: str) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    words = ["systemd-analyze", "security", "--offline=yes", f"--threshold={LIMITS[name] * 10:.0f}", UNITS / f"{name}.service"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout.splitlines()[-1]


@pytest.mark.parametrize("line", ["PrivateNetwork=yes", "RestrictAddressFamilies=AF_UNIX", "PrivateUsers=yes"])
def test_a_unit_without_one_of_its_walls_is_above_the_limit(tmp_path: Path, line: str) -> None:
    """The limit is close enough to what the unit has that systemd itself notices a wall that is gone."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    text = (UNITS / "appliance-engine.service").read_text("utf-8")
    (tmp_path / "appliance-engine.service").write_text(text.replace(f"{line}\n", ""))
    limit = f"--threshold={LIMITS['appliance-engine'] * 10:.0f}"
    words = ["systemd-analyze", "security", "--offline=yes", limit, tmp_path / "appliance-engine.service"]
    assert subprocess.run(words, capture_output=True, check=False).returncode == 1


@pytest.mark.parametrize("name", sorted(LIMITS))
def test_the_unit_starts_a_command_that_exists_and_can_enter_its_own_folders(name: str) -> None:
    text = (UNITS / f"{name}.service").read_text("utf-8")
    words = shlex.split(re.search(r"^ExecStart=(.+)$", text, re.M)[1])  # type: ignore[index]
    assert words[0].endswith("/appliance") and words[1:3] == ["--home", "/var/lib/appliance"]
    assert group.get_command(click.Context(group), words[3]) is not None
    assert "UMask=0077" in text and "NoNewPrivileges=yes" in text and "ProtectSystem=strict" in text


def test_long_work_has_no_network_and_gives_way() -> None:
    for name in ("worker", "retrain"):
        unit = (UNITS / f"appliance-{name}.service").read_text("utf-8")
        assert "PrivateNetwork=yes" in unit and "RestrictAddressFamilies=AF_UNIX\n" in unit
        assert "Nice=10" in unit and "OMP_WAIT_POLICY=passive" in unit and re.search(r"^OOMScoreAdjust=[1-9]", unit, re.M)
    assert "SuccessExitStatus=4 75" in (UNITS / "appliance-retrain.service").read_text("utf-8")
    assert "Persistent=true" in (UNITS / "appliance-retrain.timer").read_text("utf-8")


def test_the_key_for_openai_is_given_to_who_asks_and_a_box_without_one_starts() -> None:
    """Named without a path it is looked for in /etc/credstore, and may be missing; with an absolute path it may not."""
    for name in LIMITS:
        lines = re.findall(r"^LoadCredential=(.+)$", (UNITS / f"{name}.service").read_text("utf-8"), re.M)
        assert lines == (["openai-key"] if name in ("appliance-web", "appliance-worker") else []), name


def test_backups_are_made_each_night_on_other_disks_and_give_way() -> None:
    unit = (UNITS / "appliance-backup.service").read_text("utf-8")
    assert "Nice=10" in unit
    assert "--prove-after 7" in unit, "a backup that nobody restored is a hope"
    assert "Persistent=true" in (UNITS / "appliance-backup.timer").read_text("utf-8")


def test_neither_the_engine_nor_the_web_process_has_a_network() -> None:
    engine, web = ((UNITS / f"appliance-{name}.service").read_text("utf-8") for name in ("engine", "web"))
    for unit in (engine, web):
        assert "PrivateNetwork=yes" in unit and "RestrictAddressFamilies=AF_UNIX\n" in unit and "IPAddressDeny=any" in unit
    assert "MemoryDenyWriteExecute=yes" in web and "Requires=appliance-web.socket" in web
    assert "LimitNOFILE=8192" in web, "everybody who reads an answer holds two sockets"


def test_the_way_out_sees_nothing_of_the_box_and_stays_ended_while_nothing_is_allowed() -> None:
    unit = (UNITS / "appliance-egress.service").read_text("utf-8")
    hidden = " ".join(re.findall(r"^InaccessiblePaths=(.+)$", unit, re.M))
    for name in ("appliance.sqlite3", "documents", "index", "models", "runs", "jobs", "backups", "backup.key"):
        assert f"-/var/lib/appliance/{name}" in hidden.split()
    assert "ReadWritePaths=/var/lib/appliance/run\n" in unit
    assert "SuccessExitStatus=3" in unit and "Restart=on-failure" in unit, "exit code 3 is the policy's: no crash loop"
    for name in ("web", "engine", "worker", "retrain", "backup"):
        assert "appliance-egress" not in (UNITS / f"appliance-{name}.service").read_text("utf-8"), "only a person starts it"


# --- how they live together ------------------------------------------------------------------------------------------------
LIVING = {"web": 120, "engine": 300, "worker": 300, "egress": 120}  # seconds without a sign of life
MEMORY = re.compile(r"^MemoryMax=(\d+)([MG%])$", re.M)


def setting(name: str, key: str, text: str = "") -> str:
    found = re.findall(rf"^{key}=(.*)$", text or (UNITS / f"appliance-{name}.service").read_text("utf-8"), re.M)
    return str(found[-1]) if found else ""


@pytest.mark.parametrize("name", sorted(LIVING))
def test_one_that_hangs_or_falls_is_started_again_for_as_long_as_it_takes(name: str) -> None:
    assert setting(name, "Type") == "notify" and setting(name, "Restart") == ("on-failure" if name == "egress" else "always")
    number, unit = re.fullmatch(r"(\d+)(min|s)", setting(name, "WatchdogSec")).groups()  # type: ignore[union-attr]
    assert int(number) * {"min": 60, "s": 1}[unit] == LIVING[name]
    assert setting(name, "TimeoutStartSec") == "15min", "or an update of a large database is killed half-way, again and again"
    assert setting(name, "StartLimitIntervalSec") == "0", "a unit that is given up stays dead until somebody knows what to type"
    assert setting(name, "LimitCORE") == "0", "what people wrote would lie on the disk"


def test_systemd_knows_every_word_of_them() -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    units = sorted(UNITS.iterdir())
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)
    # The program is not installed where tests run: that is all it may miss.
    assert [line for line in done.stderr.splitlines() if "appliance" in line and "is not executable" not in line] == []


@pytest.mark.parametrize("gigabytes", [4, 16])
def test_memory_is_left_to_serving_whatever_else_runs(gigabytes: int) -> None:
    """Long work and a backup at their limits, beside the pages, the way out, the starter with its embedder, and the system."""

    def most(name: str) -> float:
        number, unit = MEMORY.search((UNITS / f"appliance-{name}.service").read_text("utf-8")).groups()  # type: ignore[union-attr]
        return int(number) * {"M": 0.001, "G": 1.0, "%": gigabytes / 100}[unit]

    starter, system, pages_at_rest = 0.7, 0.3, 0.3
    assert most("worker") == most("retrain"), "the retraining is done by the worker: one of them works, the other waits"
    assert most("worker") + starter + system + most("web") + most("egress") <= gigabytes * 1.1
    assert most("worker") + most("backup") + system + pages_at_rest <= gigabytes, "both at their worst in one night"
    assert most("engine") >= gigabytes - most("worker"), "a model may take what nobody else has"
    for name in LIMITS:
        # `tuning.memory` plans with MemoryMax: a run that is allowed by it and slowed down by another limit would never end.
        assert setting(name.removeprefix("appliance-"), "MemoryHigh") == ""


def test_people_who_ask_come_first_for_processor_disk_and_memory() -> None:
    for key in ("CPUWeight", "IOWeight"):
        serving = min(int(setting(name, key)) for name in ("web", "engine"))
        assert serving >= 10 * max(int(setting(name, key)) for name in ("worker", "retrain", "backup")), key
    order = [int(setting(name, "OOMScoreAdjust")) for name in ("web", "egress", "engine", "worker", "retrain", "backup")]
    assert order == sorted(order) and order[2] < order[3], "where memory runs out, who serves goes last"


@pytest.mark.parametrize("name", ["web", "engine", "worker", "retrain", "backup"])
def test_a_child_that_takes_too_much_memory_ends_alone(name: str) -> None:
    """Else systemd stops the unit with it: a training run that is too large would end the worker, a bad file the pages."""
    assert setting(name, "OOMPolicy") == "continue"
