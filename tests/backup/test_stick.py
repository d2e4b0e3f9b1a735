"""Backups on a stick as people buy it: exFAT, which knows no owners, modes or links, and takes capitals for small letters.

A real one, made and mounted by Debian's own tools, which are fetched once where they are not installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
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


@pytest.mark.optional
@pytest.mark.slow
def test_backups_on_a_stick_are_made_proven_let_go_of_and_restored(kept: Kept, stick: Path, tmp_path: Path) -> None:
    (stick / "Of Somebody").write_text("x")
    assert (stick / "OF SOMEBODY").exists()
    with pytest.raises(OSError):
        (stick / "link").symlink_to("Of Somebody")
    settings = Settings(home=tmp_path / "home", backup_keep={"last": 1})
    shutil.copytree(kept.home, settings.home, ignore=shutil.ignore_patterns("backups"))
    before = files(settings.home)
    backups = Backups(settings, stick)  # it is another disk: nobody has to agree to anything
    newest = [backups.create(QUIET).id for _ in range(2)][-1]
    assert [one.id for one in backups.list()] == [newest]
    assert not any((stick / "appliance-backups" / "locks").iterdir())
    blank = Settings(home=tmp_path / "blank")
    other = Backups(blank, stick, key=backups.key())
    other.prepare("latest", QUIET)  # which proves it
    switch(blank)
    assert files(blank.home) == before
    (settings.documents / "more").write_bytes(os.urandom(32 << 20))
    with pytest.raises(StorageFull, match="disk is full"):
        backups.create(QUIET)
    assert [one.id for one in backups.list()] == [newest]
