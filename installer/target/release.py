"""Releases: each in a folder of its own with its own virtual environment; which one runs is one symbolic link.

Hides how a release is built offline and recognised as whole, and what comes before the box changes over to it, which is
`changeover.py`'s. What runs is not touched while a release is built and tried.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import changeover
from changes import Changes, Fault

ROOT, RELEASES = changeover.ROOT, changeover.RELEASES
current, answers = changeover.current, changeover.answers
DATA = Path("/var/lib/appliance")
PROGRAM = Path("/usr/local/bin/appliance")  # the box's command line, as its own user
SCRIPT = Path("/usr/local/sbin/appliance-changeover")
UNIT = "appliance-changeover.service"
WHOLE = ".whole"  # in a release's folder, written last: the digest of the bundle that it was made from
KEPT = 2


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
        shutil.copytree(bundle / "systemd", folder / "systemd")  # put in place when it takes over, and had back with it
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
    """On a new box, where nothing runs yet."""
    changes.link(changeover.CURRENT, f"releases/{version}")


def settle(changes: Changes) -> None:
    """Wait for a change-over that an earlier run of the installer has begun."""
    if changes.dry or not changeover.PLAN.is_file():
        return
    changes.say("An upgrade was broken off: what it has begun is brought to its end first.")
    outcome = _changed_over(changes)
    changes.say(
        f"{outcome['runs']} runs." if outcome["answers"] else f"{outcome['runs']} does not answer: journalctl -u appliance-web."
    )


def upgrade(before: str, version: str, changes: Changes, *, backed_up: bool = True) -> None:
    """Change over to a release that is in place, and back where it does not answer. Raises Fault after going back.

    backed_up: a backup is made first, and proven by restoring it aside; where that cannot be, nothing is changed.
    """
    if backed_up:
        changes.say("Making a backup, and proving that it can be restored.")
        words = [PROGRAM, "backup", "create", "--prove-after", "0"]
        hint = "Nothing was changed. Mend that (`appliance doctor`), or upgrade with --without-backup."
        changes.run(words, "The backup before the upgrade", hint, secret=True)  # the first one ever prints its key
    _try(version, changes)
    changes.say(f"Changing over from {before} to {version}.")
    _prepare_changeover(changes)
    if changes.dry:
        print(f"  would change over: {changeover.CURRENT} and {changeover.UNITS} from {before} to {version}")
        return
    changeover.OUTCOME.unlink(missing_ok=True)
    changes.write(changeover.PLAN, json.dumps({"before": before, "to": version}))
    outcome = _changed_over(changes)
    if outcome["runs"] == version:
        changes.say(f"{version} answers. The pages waited {outcome['seconds']} s.")
        _forget(version, before, changes)
        return
    _clear(version, changes)
    why = outcome.get("why", "the pages did not come")
    again = "It answers." if outcome["answers"] else "It does not answer either: journalctl -u appliance-web -n 50."
    raise Fault(
        f"{version} does not answer: {why}. The upgrade was undone; {before} runs. {again}",
        "Tell who made the bundle what the log says: journalctl -u appliance-changeover -u appliance-web. Nothing was lost.",
    )


def clear_undone(version: str, changes: Changes) -> None:
    """Remove a release that did not answer, where the power cut that undid it left it; not the one that is installed now."""
    if changes.dry or not changeover.OUTCOME.is_file():
        return
    outcome = json.loads(changeover.OUTCOME.read_text("utf-8"))
    if outcome["to"] not in (outcome["runs"], version, current()):
        _clear(outcome["to"], changes)


def _clear(version: str, changes: Changes) -> None:
    """Its mark first: what is left where this is broken off is no whole release."""
    if (RELEASES / version).is_dir():
        changes.say(f"Removing what was installed of {version}.")
        changes.remove(RELEASES / version / WHOLE)
        changes.remove(RELEASES / version)


def _prepare_changeover(changes: Changes) -> None:
    here = Path(__file__).parent
    changed = changes.write(SCRIPT, (here / "changeover.py").read_text("utf-8"), 0o755)
    if changes.write(changeover.UNITS / UNIT, (here / "changeover.service").read_text("utf-8")) or changed:
        changes.run(["systemctl", "daemon-reload"], "Reading the units")
    changes.run(["systemctl", "enable", UNIT], "Having the change-over go on after a power cut")


def _changed_over(changes: Changes) -> dict[str, Any]:
    """Have the plan carried out by systemd, which nothing that happens to the installer stops; how it ended."""
    changes.run(["systemctl", "start", "--no-block", UNIT], "Starting the change-over", f"journalctl -u {UNIT} -n 30")
    ends = time.monotonic() + 3 * changeover.PATIENCE
    while changeover.PLAN.is_file():
        if time.monotonic() > ends:
            raise Fault(
                "The change-over does not come to its end.", f"journalctl -u {UNIT} -n 30; then run the same command again."
            )
        time.sleep(changeover.LOOK)
    outcome: dict[str, Any] = json.loads(changeover.OUTCOME.read_text("utf-8"))
    return outcome


def _try(version: str, changes: Changes) -> None:
    """The new release opens a copy of the data before it sees the data itself; then the one that runs opens what it made."""
    if changes.dry or not (DATA / "appliance.sqlite3").is_file():
        return
    trial, hint = DATA / "run" / "trial", "Nothing was changed; tell who made the bundle."
    user = ["runuser", "-u", "appliance", "--"]
    script = (  # as it stands now, through SQLite's own online backup
        "import sys\nfrom pysqlite3 import dbapi2 as s\n"
        "a = s.connect(sys.argv[1]); b = s.connect(sys.argv[2]); a.backup(b)\n"
        "b.execute('pragma journal_mode=delete'); b.close()\n"
    )
    copy = [
        changeover.CURRENT / ".venv" / "bin" / "python",
        "-c",
        script,
        DATA / "appliance.sqlite3",
        trial / "appliance.sqlite3",
    ]
    changes.remove(trial)  # of an attempt that was cut off
    changes.folder(trial, 0o700, "appliance")
    try:
        changes.run([*user, *copy], "Copying the database")
        for place, what in ((RELEASES / version, f"Opening a copy of the data with {version}"),
                            (changeover.CURRENT, f"Opening what {version} made of it with the release that runs")):  # fmt: skip
            words = [*user, place / ".venv" / "bin" / "appliance", "--home", trial, "audit", "verify"]
            changes.run(words, what, hint)
    finally:
        changes.remove(trial)


def _forget(version: str, before: str, changes: Changes) -> None:
    """Remove the oldest releases; the one before stays, to go back to."""
    others = sorted((path.name for path in RELEASES.iterdir()), key=number)
    for name in others:
        if name not in (version, before) and len(others) > KEPT:
            changes.remove(RELEASES / name)


def facts(bundle: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((bundle / "VERSION").read_text("utf-8"))
    return found
