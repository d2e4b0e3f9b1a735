"""Is this bundle one for this machine, and sound in itself? Asked before anything is changed.

Its signature and sums were checked by then (`../install`). This is about what a signer may have done wrong, or have been made
to sign: a wheel that its lock does not name, a source package, code that runs at every start of Python, a bundle of another
system, or one that was forgotten in a drawer for years.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from changes import Fault

FORMAT = 1
LINE = re.compile(r"([a-z0-9-]+)==\S+ --hash=sha256:([0-9a-f]{64})")
AGAIN = "Get the bundle again from who made it; nothing was changed on this machine."
PTH = "distutils-precedence.pth"  # setuptools' own, which only redirects distutils
STARTS = re.compile(r"\.pth$|^([^/]+\.data/(pure|plat)lib/)?(site|user)customize(\.|/)")  # what Python runs at every start
YEARS = 3  # after which a bundle's packages have holes that everybody knows


def refuse_unfit(
    bundle: Path, facts: dict[str, Any], os_release: Path, place: Path, say: Callable[[str], None], *, old: bool = False
) -> None:
    """Raise Fault for a bundle that is no good here; say in one sentence what nobody has tested. old: take an expired one."""
    if facts.get("format") != FORMAT:
        raise Fault(f"This bundle is of format {facts.get('format')}, which this installer does not know.", AGAIN, 3)
    _system(facts, os_release)
    _age(facts, old)
    _room(facts, place)
    _wheelhouse(bundle)
    if not facts.get("tested", True):
        say(f"  note Bundle: made for {facts['system_name']}, which nobody has tested: try it on a machine that may fail.")


def _system(facts: dict[str, Any], os_release: Path) -> None:
    if "system" not in facts:
        return
    here = dict(line.split("=", 1) for line in os_release.read_text("utf-8").splitlines() if "=" in line)
    wanted = tuple(facts["system"])
    found = (here.get("ID", "").strip('"'), here.get("VERSION_ID", "").strip('"'))
    others = {("debian", "12"), ("ubuntu", "24.04")} - {wanted}
    if found in others:  # any other system is the checks' business, which note it and go on
        name = here.get("PRETTY_NAME", "").strip('"')
        raise Fault(
            f"This bundle is for {facts['system_name']}, and this machine is {name}.", "Get the bundle for this system.", 3
        )


def _age(facts: dict[str, Any], old: bool) -> None:
    if "made" not in facts:
        return
    made = time.mktime(time.strptime(str(facts["made"]), "%Y-%m-%d"))
    if time.time() < made - 2 * 86400:
        said = time.strftime("%d %B %Y")
        hint = "Set the clock: timedatectl set-time 'YYYY-MM-DD HH:MM'"
        raise Fault(f"This machine believes it is {said}, and the bundle is of {facts['made']}.", hint)
    if time.time() > made + YEARS * 365 * 86400 and not old:
        hint = "Get a newer one; or, where there is none, give --old."
        raise Fault(f"This bundle is of {facts['made']}: after {YEARS} years it has expired.", hint, 3)


def _room(facts: dict[str, Any], place: Path) -> None:
    """`place`: the folder of the release, which is there where an earlier run has got that far."""
    if place.is_dir():
        return
    where = next(folder for folder in place.parents if folder.is_dir())
    free, needed = shutil.disk_usage(where).free // 10**6, int(facts.get("needs_mb", 0))
    if free < needed:
        raise Fault(
            f"{free} MB are free below {where}, and this bundle needs {needed}.", "Free some space, or use a larger disk."
        )


def _wheelhouse(bundle: Path) -> None:
    """Every wheel stands in the lock by its sha256, and every line of the lock is a wheel that is here."""
    locked: dict[str, str] = {}
    for number, line in enumerate((bundle / "requirements.lock").read_text("utf-8").splitlines(), 1):
        found = LINE.fullmatch(line)
        if not found:
            raise Fault(f"Line {number} of the bundle's lock names no package with its sha256: {line[:60]!r}.", AGAIN, 3)
        locked[found[1]] = found[2]
    for path in sorted((bundle / "wheels").iterdir()):
        if path.is_symlink() or path.suffix != ".whl" or not zipfile.is_zipfile(path):
            raise Fault(f"{path.name} is no wheel.", AGAIN, 3)
        name = re.sub(r"[-_.]+", "-", path.name.split("-")[0]).lower()
        with open(path, "rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
        if locked.pop(name, "") != digest:
            raise Fault(f"{path.name} is not the wheel that the bundle's lock names.", AGAIN, 3)
        bad = [one for one in zipfile.ZipFile(path).namelist() if STARTS.search(one) and Path(one).name != PTH]
        if bad:
            raise Fault(f"{path.name} carries {bad[0]}, which would run at every start of Python.", AGAIN, 3)
    if locked:
        raise Fault(f"The bundle lacks the wheel of {min(locked)}.", AGAIN, 3)
