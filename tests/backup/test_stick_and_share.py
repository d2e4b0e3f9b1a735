"""Backups on a stick as people buy it, and on a Windows share: neither knows owners, modes or links as a disk of Linux does.

A real exFAT, which takes capitals for small letters, made and mounted by Debian's own tools, fetched once where they are not
installed; a real Samba, where it is installed, mounted through smbnetfs.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.backup import Backups, switch
from appliance.errors import StorageFull
from appliance.settings import Settings
from tests.backup.school import QUIET, Kept, files

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "appliance" / "exfat"
PACKAGES = ("exfat-fuse", "exfatprogs", "libfuse3-3")


def tool(name: str) -> tuple[str, dict[str, str]]:
    """Where one of them is, and the environment that it needs. Skips where it cannot be had."""
    if found := shutil.which(name):
        return found, dict(os.environ)
    if not any(CACHE.glob(f"*/**/{name}")):
        CACHE.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", *PACKAGES], cwd=CACHE, capture_output=True, check=False)
        for package in CACHE.glob("*.deb"):
            subprocess.run(["dpkg", "-x", package, CACHE / "root"], check=True)
    unpacked = next(CACHE.glob(f"root/**/{name}"), None)
    if unpacked is None:
        pytest.skip("Debian's tools for exFAT cannot be had here")
    return str(unpacked), os.environ | {"LD_LIBRARY_PATH": f"{CACHE}/root/lib/x86_64-linux-gnu"}


@pytest.fixture
def stick(tmp_path: Path) -> Iterator[Path]:
    """One of 32 MB."""
    if os.geteuid() != 0 or not Path("/dev/fuse").exists():
        pytest.skip("only root can mount a stick")
    image, folder = tmp_path / "stick.img", tmp_path / "usb"
    folder.mkdir()
    with open(image, "wb") as file:
        file.truncate(32 << 20)
    make, about = tool("mkfs.exfat")
    subprocess.run([make, image], env=about, check=True, capture_output=True)
    mount, about = tool("mount.exfat-fuse")
    found = subprocess.run(["losetup", "--find", "--show", image], capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip("there is no device here that a stick could be")
    device = found.stdout.strip()
    try:
        subprocess.run([mount, device, folder], env=about, check=True, capture_output=True)
        yield folder
    finally:
        subprocess.run(["umount", folder], check=False)
        subprocess.run(["losetup", "--detach", device], check=False)


STATE = ("private dir", "lock directory", "state directory", "cache directory", "pid directory", "ncalrpc dir")
SAMBA = """[global]
server role = standalone server
map to guest = Bad User
guest account = root
interfaces = lo
bind interfaces only = yes
disable netbios = yes
load printers = no
log file = {0}/log
[backup]
path = {0}/share
read only = no
guest ok = yes
"""


def answers() -> bool:
    """Whether a server of shares listens on this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", 445)) == 0


@pytest.fixture
def share() -> Iterator[Path]:
    """One of a server on this machine, which the client finds only at the usual port."""
    if os.geteuid() != 0 or not Path("/dev/fuse").exists() or not shutil.which("smbd") or not shutil.which("smbnetfs"):
        pytest.skip("Samba, smbnetfs or the rights to mount a share are not here")
    if answers():
        pytest.skip("this machine has shares of its own")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for name in ("share", "state", "mount", "home/.smb"):
            (folder / name).mkdir(parents=True)
        places = "".join(f"{name} = {folder}/state\n" for name in STATE)
        (folder / "smb.conf").write_text(SAMBA.format(folder).replace("[backup]", places + "[backup]"))
        shutil.copy(folder / "smb.conf", folder / "home" / ".smb")
        for name in ("smbnetfs.conf", "smbnetfs.auth", "smbnetfs.host"):
            (folder / "home" / ".smb" / name).touch(mode=0o600)
        command = ["smbd", "--foreground", "-s", folder / "smb.conf"]  # a group of processes of its own
        server = subprocess.Popen(command)
        client = subprocess.Popen(["smbnetfs", "-f", folder / "mount"], env=os.environ | {"HOME": f"{folder}/home"})
        try:
            found, ends = folder / "mount" / "127.0.0.1" / "backup", time.monotonic() + 60
            while not (answers() and found.exists()):
                assert time.monotonic() < ends, "the share does not come up"
                time.sleep(0.1)
            yield found
        finally:
            subprocess.run(["umount", folder / "mount"], check=False)
            for process in (client, server):
                process.terminate()
                process.wait(20)


@pytest.mark.optional
@pytest.mark.slow
def test_backups_on_a_windows_share_are_made_proven_and_restored(kept: Kept, share: Path, tmp_path: Path) -> None:
    go_round(kept, share, tmp_path)


@pytest.mark.optional
@pytest.mark.slow
def test_backups_on_a_stick_are_made_proven_let_go_of_and_restored(kept: Kept, stick: Path, tmp_path: Path) -> None:
    (stick / "Of Somebody").write_text("x")
    assert (stick / "OF SOMEBODY").exists()
    with pytest.raises(OSError):
        (stick / "link").symlink_to("Of Somebody")
    backups, newest = go_round(kept, stick, tmp_path)
    (Settings(home=tmp_path / "home").documents / "more").write_bytes(os.urandom(32 << 20))
    with pytest.raises(StorageFull, match="disk is full"):
        backups.create(QUIET)
    assert [one.id for one in backups.list()] == [newest]


def go_round(kept: Kept, place: Path, tmp_path: Path) -> tuple[Backups, str]:
    """Two backups, of which one is let go of; the other is proven and becomes another box. The backups, and the one's id."""
    settings = Settings(home=tmp_path / "home", backup_keep={"last": 1})
    shutil.copytree(kept.home, settings.home, ignore=shutil.ignore_patterns("backups"))
    before = files(settings.home)
    backups = Backups(settings, place)  # it is another disk: nobody has to agree to anything
    newest = [backups.create(QUIET).id for _ in range(2)][-1]
    assert [one.id for one in backups.list()] == [newest]
    assert not any((place / "appliance-backups" / "locks").iterdir())
    blank = Settings(home=tmp_path / "blank")
    other = Backups(blank, place, key=backups.key())
    other.prepare("latest", QUIET)  # which proves it
    switch(blank)
    assert files(blank.home) == before
    return backups, newest
