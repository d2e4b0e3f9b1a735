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
# systemd's exposure level, 0 (nothing allowed) to 10: the web process has a LAN port, the engine has no network at all.
LIMITS = {
    "appliance-web": 0.8, "appliance-engine": 0.8, "appliance-worker": 1.2, "appliance-retrain": 1.2,
    "appliance-backup": 0.8,
    "appliance-egress": 1.5,
}  # fmt: skip


def test_every_unit_has_a_limit() -> None:
    assert {path.stem for path in UNITS.glob("*.service")} == set(LIMITS)


@pytest.mark.parametrize("name", sorted(LIMITS))
def test_exposure_stays_below_the_limit(name: str) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    words = ["systemd-analyze", "security", "--offline=yes", f"--threshold={LIMITS[name] * 10:.0f}", UNITS / f"{name}.service"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout.splitlines()[-1]


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


def test_backups_are_made_each_night_on_other_disks_and_give_way() -> None:
    unit = (UNITS / "appliance-backup.service").read_text("utf-8")
    assert "PrivateNetwork=yes" in unit and "RestrictAddressFamilies=AF_UNIX\n" in unit and "Nice=10" in unit
    assert "ReadWritePaths=/var/lib/appliance -/mnt -/media -/srv\n" in unit
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
