"""Makes a bundle: a folder that installs and upgrades a box without any network.

The same commit and the same packages give the same bytes. Nothing is left half made: the folder gets its name last.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import bill
import debs
import signing
import wheels
from said import Fault, run, say

CLONE = Path(__file__).resolve().parents[2]
CACHE = Path.home() / ".cache" / "appliance"
TARGET = "debian12-x86_64"


def main() -> int:
    parser = argparse.ArgumentParser(prog="installer/bundle", description=__doc__)
    parser.add_argument("--from", dest="start", type=Path, default=Path.cwd(), help=argparse.SUPPRESS)
    parser.add_argument("folder", type=Path, help="where the bundle is put, such as a USB stick")
    parser.add_argument(
        "--key", type=Path, default=Path.home() / ".config" / "appliance" / "signing.pem", help="Ed25519 key that signs it"
    )
    parser.add_argument("--without-debian-packages", action="store_true", help="for a target that has them already")
    given = parser.parse_args()
    try:
        made = make(given.start / given.folder, given.start / given.key, with_debs=not given.without_debian_packages)
    except Fault as fault:
        print(f"Error: {fault.message}\nTry: {fault.hint}", file=sys.stderr)
        return 1
    size = sum(path.stat().st_size for path in made.rglob("*") if path.is_file())
    say(f"{made} is ready: {size / 1e6:.0f} MB. On the box: {made.name}/install")
    return 0


def make(where: Path, key: Path, *, with_debs: bool) -> Path:
    """The bundle's folder below `where`. Raises Fault."""
    if sys.version_info[:2] != (3, 11):
        raise Fault("The box runs Python 3.11, and this clone another one.", "Make the bundle on a Debian 12.")
    if run(["git", "status", "--porcelain", "--untracked-files=no"], "Looking at the clone", "Run this in a clone.", cwd=CLONE):
        raise Fault(
            "There are changes here that are not committed, and they would be left out.", "Commit them, or take them back."
        )
    version = _version()
    done = where / f"appliance-{version}-{TARGET}"
    part = where / f".{done.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    wheels.collect(CLONE, part / "wheels", CACHE / "wheels")
    (part / "debs").mkdir() if not with_debs else debs.collect(part / "debs")
    for name in ("systemd", "models"):
        _copy(name, part / name)
    _copy("installer/target", part / "target")
    _copy("installer/install", part / "install")
    for name in ("README.md", "LICENSE"):
        _copy(name, part / name)
    converter = CACHE / f"converter-{wheels.needed()[wheels.COMPILED]}"
    shutil.copytree(converter, part / "converter" / converter.name, ignore=shutil.ignore_patterns("__pycache__"))
    wheels.licences(wheels.needed(), part / "licences")
    (part / "VERSION").write_text(json.dumps({"version": version, "target": TARGET, "format": 1}) + "\n", "utf-8")
    bill.write(part, version)
    say(f"Signed by {signing.seal(part, key)}: whoever installs it the first time compares that.")
    shutil.rmtree(done, ignore_errors=True)
    part.rename(done)
    return done


def _version() -> str:
    text = (CLONE / "appliance" / "__init__.py").read_text("utf-8")
    return text.split('__version__ = "', 1)[1].split('"', 1)[0]


def _copy(name: str, target: Path) -> None:
    """A file, or the files of a folder, as they are committed."""
    listed = run(["git", "ls-files", name], "Listing the files", "Run this in a clone.", cwd=CLONE).splitlines()
    for path in listed:
        to = target / Path(path).relative_to(name) if path != name else target
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(CLONE / path, to)


if __name__ == "__main__":
    sys.exit(main())
