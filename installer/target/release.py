"""Releases: each in a folder of its own with its own virtual environment; which one runs is one symbolic link.

Hides how a release is built offline and recognised as whole, and how the box changes over to another and back. What runs is not
touched while a release is built.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

from changes import Changes, Fault

ROOT = Path("/opt/appliance")
RELEASES = ROOT / "releases"
CURRENT = ROOT / "current"
DATA = Path("/var/lib/appliance")
PROGRAM = Path("/usr/local/bin/appliance")  # the box's command line, as its own user
WEB = Path("/run/appliance/web.sock")
SERVICES = ("appliance-web.service", "appliance-worker.service", "appliance-engine.service")
WHOLE = ".whole"  # in a release's folder, written last: the digest of the bundle that it was made from
PATIENCE = 120  # seconds until a release has to answer
KEPT = 2


def current() -> str:
    """The version that runs; "" on a new box."""
    return Path(os.readlink(CURRENT)).name if CURRENT.is_symlink() else ""


def number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def refuse_older(version: str, before: str) -> None:
    if before and number(version) < number(before):
        raise Fault(
            f"This bundle holds {version}, and {before} is installed: data of a newer release would be read by an older one.",
            "Take a newer bundle; or restore a backup of that time onto a fresh box.", 3,
        )  # fmt: skip


def put(bundle: Path, version: str, changes: Changes) -> None:
    """Build the release's folder, unless it is whole already."""
    folder = RELEASES / version
    digest = hashlib.sha256((bundle / "SHA256SUMS").read_bytes()).hexdigest()
    if (folder / WHOLE).is_file() and (folder / WHOLE).read_text() == digest:
        return
    if version == current():
        raise Fault(
            f"{version} is installed already, from another bundle of the same number.",
            "Make the new bundle with a higher version.",
        )
    _no_start_up_code(bundle / "wheels")
    changes.say(f"Installing the program into {folder} (two minutes or so).")
    changes.remove(folder)  # an attempt that was cut off
    changes.folder(folder)
    python = folder / ".venv" / "bin" / "python"
    changes.run(["python3", "-m", "venv", folder / ".venv"], "Making a virtual environment")
    changes.run(
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps", "--no-cache-dir",
         "--require-hashes", "--only-binary", ":all:", "--find-links", bundle / "wheels", "-r", bundle / "requirements.lock"],
        "Installing the packages", env={"PIP_CONFIG_FILE": os.devnull},
    )  # fmt: skip
    share = folder / ".venv" / "share" / "appliance"
    changes.folder(share)
    if not changes.dry:
        shutil.copytree(bundle / "models", share / "models", dirs_exist_ok=True)
        shutil.copytree(bundle / "converter", share, dirs_exist_ok=True)
        for name in ("README.md", "LICENSE", "VERSION"):
            shutil.copy(bundle / name, folder / name)
        subprocess.run(["chown", "-R", "root:root", folder], check=True)
        subprocess.run(["chmod", "-R", "u+rwX,go+rX,go-w", folder], check=True)
        os.sync()  # or a power cut leaves a whole mark beside half a file
    changes.write(folder / WHOLE, digest)


def _no_start_up_code(wheels: Path) -> None:
    import zipfile

    for path in sorted(wheels.iterdir()):
        bad = [] if path.suffix == ".whl" else [path.name]
        bad = bad or [n for n in zipfile.ZipFile(path).namelist() if n.endswith(".pth") and "distutils-precedence" not in n]
        if bad:
            raise Fault(f"{path.name} is no plain wheel: {bad[0]}.", "Get the bundle again from who made it.", 3)


def switch(version: str, changes: Changes) -> None:
    changes.link(CURRENT, f"releases/{version}")


def upgrade(before: str, version: str, changes: Changes, *, backed_up: bool = True) -> None:
    """Change over to a release that is in place, and back where it does not answer. Raises Fault after going back.

    backed_up: a backup is made first, and proven by restoring it aside; where that cannot be, nothing is changed.
    """
    kept = DATA / "backups" / f"before-{version}.sqlite3"
    if backed_up:
        changes.say("Making a backup, and proving that it can be restored.")
        words = [PROGRAM, "backup", "create", "--prove-after", "0"]
        hint = "Nothing was changed. Mend that (`appliance doctor`), or upgrade with --without-backup."
        changes.run(words, "The backup before the upgrade", hint, secret=True)  # the first one ever prints its key
    changes.say(f"Changing over from {before} to {version}.")
    _copy_database(kept, changes)
    _try_migration(version, kept, changes)
    began = time.monotonic()
    changes.run(["systemctl", "stop", *SERVICES], "Stopping the services")
    switch(version, changes)
    changes.run(["systemctl", "start", "--no-block", *SERVICES], "Starting the services")
    if changes.dry:
        return
    if answers():
        changes.say(f"{version} answers. The pages waited {time.monotonic() - began:.0f} s.")
        _forget(version, before, changes)
        return
    changes.say(f"{version} does not answer: going back to {before}.")
    changes.run(["systemctl", "stop", *SERVICES], "Stopping the services")
    switch(before, changes)
    subprocess.run(["systemctl", "reset-failed", *SERVICES], check=False)
    changes.run(["systemctl", "start", "--no-block", *SERVICES], "Starting the services")
    again = "It answers." if answers() else "It does not answer either: journalctl -u appliance-web -n 50."
    raise Fault(f"The upgrade to {version} was undone; {before} runs. {again}", "Tell who made the bundle; nothing was lost.")


def _copy_database(to: Path, changes: Changes) -> None:
    """As it stands now, through SQLite's own online backup."""
    source = DATA / "appliance.sqlite3"
    if not source.is_file():
        return
    changes.folder(to.parent, 0o700, "appliance")
    script = (
        "import sys\nfrom pysqlite3 import dbapi2 as s\n"
        "a = s.connect(sys.argv[1]); b = s.connect(sys.argv[2]); a.backup(b)\n"
        "b.execute('pragma journal_mode=delete'); b.close()\n"
    )
    python = CURRENT / ".venv" / "bin" / "python"
    changes.remove(to)
    changes.run(["runuser", "-u", "appliance", "--", python, "-c", script, source, to], "Copying the database")


def _try_migration(version: str, copy: Path, changes: Changes) -> None:
    """The new release opens a copy of the data before it sees the data itself."""
    if changes.dry or not copy.is_file():
        return
    trial = DATA / "run" / "trial"
    shutil.rmtree(trial, ignore_errors=True)
    changes.folder(trial, 0o700, "appliance")
    shutil.copy(copy, trial / "appliance.sqlite3")
    shutil.chown(trial / "appliance.sqlite3", "appliance", "appliance")
    program = RELEASES / version / ".venv" / "bin" / "appliance"
    try:
        words = ["runuser", "-u", "appliance", "--", program, "--home", trial, "audit", "verify"]
        changes.run(words, f"Opening a copy of the data with {version}", "Nothing was changed; tell who made the bundle.")
    finally:
        shutil.rmtree(trial, ignore_errors=True)


def answers() -> bool:
    """Whether the pages come through the web process's socket, within PATIENCE seconds."""
    ends = time.monotonic() + PATIENCE
    while time.monotonic() < ends:
        if _asked("/ready"):
            return True
        time.sleep(0.5)
    return False


def _asked(path: str) -> bool:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
            line.settimeout(10)
            line.connect(str(WEB))
            line.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            return line.recv(64).split(b" ")[1:2] == [b"200"]
    except OSError:
        return False


def _forget(version: str, before: str, changes: Changes) -> None:
    """Remove the oldest releases; the one before stays, to go back to."""
    others = sorted((path.name for path in RELEASES.iterdir()), key=number)
    for name in others:
        if name not in (version, before) and len(others) > KEPT:
            changes.remove(RELEASES / name)


def facts(bundle: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((bundle / "VERSION").read_text("utf-8"))
    return found
