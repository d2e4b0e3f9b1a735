"""The Debian packages that a box needs beside Python's, with all that they need themselves, as a small repository of their own.

Hides apt: they are chosen as for a machine that has nothing yet, so that they suffice whatever the target lacks. Who signs them
is Debian (or Ubuntu), and apt checks that; what it fetched is kept, and looked at again by the sha256 that apt names.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from locking import sha256
from said import Fault, megabytes, run, say
from targets import Target, here

# python3 with venv: runs the program. caddy: the encrypted door to the LAN. avahi-daemon: the name appliance.local. openssl and
# ca-certificates: check a bundle's signature. restic: backups. libgomp1: llama.cpp, where torch has not brought its own before.
PACKAGES = ("python3", "python3-venv", "caddy", "avahi-daemon", "iproute2", "openssl", "ca-certificates", "restic", "libgomp1")
LINE = re.compile(r"'[^']*' (?P<file>\S+\.deb) (?P<size>\d+) SHA256:(?P<sha256>[0-9a-f]{64})")
FIELDS = (
    "Package", "Version", "Architecture", "Multi-Arch", "Essential", "Priority", "Section", "Maintainer", "Installed-Size",
    "Pre-Depends", "Depends", "Provides", "Conflicts", "Breaks", "Replaces", "Recommends", "Suggests", "Enhances",
)  # fmt: skip


@dataclass(frozen=True)
class Deb:
    file: str
    size: int
    sha256: str

    def whole(self, path: Path) -> bool:
        return path.is_file() and path.stat().st_size == self.size and sha256(path) == self.sha256


def _apt(status: Path, *more: str) -> list[str]:
    return [
        "apt-get", "install", "--yes", "-qq", "--no-install-recommends", "-o", f"Dir::State::status={status}",
        "-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User=root", "-o", "Acquire::ForceHash=SHA256", *more, *PACKAGES,
    ]  # fmt: skip


def planned(target: Target) -> list[Deb]:
    """Which packages apt would fetch now, nothing fetched. Raises Fault where this machine's archive is not the target's."""
    if here() != target.system:
        plain = target.said.removesuffix(" with CUDA")
        raise Fault(
            f"{plain}'s packages can be fetched on a {plain} only, from its own archive.",
            "Make the bundle on one; or give --without-debian-packages, for a box that has them already.",
        )
    with tempfile.TemporaryDirectory() as empty:
        status = Path(empty) / "status"
        status.touch()
        (Path(empty) / "partial").mkdir()
        # With a cache that is empty: what this machine has fetched for itself would be left out.
        words = _apt(status, "--print-uris", "-o", f"Dir::Cache::archives={empty}")
        said = run(words, "Asking apt for Debian's packages", "apt-get update, then this again.")
    found = [Deb(one["file"], int(one["size"]), one["sha256"]) for one in LINE.finditer(said)]
    if len(found) != len([line for line in said.splitlines() if line.startswith("'")]) or not found:
        raise Fault("apt does not name the sha256 of each package.", "apt-get update, then this again.")
    return sorted(found, key=lambda deb: deb.file)


def missing(wanted: list[Deb], kept: Path) -> list[Deb]:
    return [deb for deb in wanted if not deb.whole(kept / deb.file)]


def collect(wanted: list[Deb], kept: Path) -> None:
    """Have each of them in `kept`; apt goes on in the middle of a file."""
    (kept / "partial").mkdir(parents=True, exist_ok=True)
    lacking = missing(wanted, kept)
    size = sum(deb.size for deb in lacking)
    say(f"Collecting {len(wanted)} Debian packages: {len(wanted) - len(lacking)} are here, {megabytes(size)} to fetch.")
    for deb in lacking:
        (kept / deb.file).unlink(missing_ok=True)
    if lacking:
        with tempfile.TemporaryDirectory() as empty:
            status = Path(empty) / "status"
            status.touch()
            words = _apt(status, "--download-only", "-o", f"Dir::Cache::archives={kept}")
            run(
                words,
                "Fetching Debian's packages",
                "Check the line to the mirror (apt-get update), then run this again: it goes on.",
            )
    lost = missing(wanted, kept)
    if lost:
        raise Fault(f"The mirror gave no whole {lost[0].file}.", "apt-get update, then this again.")


def index(folder: Path) -> str:
    """The list that apt reads on the box: each package's own words, its file, size and sha256."""
    listed = []
    for path in sorted(folder.glob("*.deb")):
        words = run(["dpkg-deb", "--field", path, *FIELDS], "Reading a package", "apt-get install dpkg")
        words += f"Filename: ./{path.name}\nSize: {path.stat().st_size}\nSHA256: {sha256(path)}\n"
        listed.append(words)
    return "\n".join(listed)
