"""The Debian packages that a box needs beside Python's, with all that they need themselves, as a small repository of their own.

Hides apt: they are chosen as for a machine that has nothing yet, so that they suffice whatever the target lacks.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from said import Fault, run, say

# python3 with venv: runs the program. caddy: the encrypted door to the LAN. avahi-daemon: the name appliance.local. openssl and
# ca-certificates: check a bundle's signature. restic: backups. libgomp1: llama.cpp computes with it.
PACKAGES = ("python3", "python3-venv", "caddy", "avahi-daemon", "iproute2", "openssl", "ca-certificates", "restic", "libgomp1")
RELEASE = "12"


def collect(folder: Path) -> None:
    facts = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    if facts.get("ID") != "debian" or facts.get("VERSION_ID", "").strip('"') != RELEASE:
        raise Fault(
            f"Debian {RELEASE}'s packages can be fetched on a Debian {RELEASE} only.",
            "Use one, or give --without-debian-packages.",
        )
    folder.mkdir()
    say("Collecting Debian packages.")
    with tempfile.TemporaryDirectory() as empty:
        status = Path(empty) / "status"
        status.touch()
        (folder / "partial").mkdir()
        words = [
            "apt-get", "install", "--download-only", "--yes", "-qq", "--no-install-recommends",
            "-o", f"Dir::State::status={status}", "-o", f"Dir::Cache::archives={folder}", "-o", "Debug::NoLocking=1",
            "-o", "APT::Sandbox::User=root", *PACKAGES,
        ]  # fmt: skip
        run(words, "Fetching Debian's packages", "Check the line to Debian's mirror (apt-get update), then run this again.")
    for name in ("partial", "lock"):
        path = folder / name
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
    listed = run(
        ["dpkg-scanpackages", "--multiversion", "."], "Listing Debian's packages", "apt-get install dpkg-dev", cwd=folder
    )
    (folder / "Packages").write_text(listed, "utf-8")
