"""The Python packages of a bundle: exactly those that the program needs, as wheels, locked by their hashes.

Hides which packages those are (what this clone's virtual environment has for the program without its extras, at the pinned
versions) and where each comes from: pip's index, the wheel of llama-cpp-python that `scripts/install` compiled, and the
program itself, built from what is committed. No wheel may bring a `.pth` file: such a file runs code at every start of Python.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

from packaging.requirements import Requirement
from said import Fault, run, say

PROGRAM = "school-appliance"
COMPILED = "llama-cpp-python"
PTH = frozenset({"distutils-precedence.pth"})  # setuptools' own, which only redirects distutils


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def needed() -> dict[str, str]:
    """Name to version of everything that the program needs here, without itself and its extras."""
    found: dict[str, str] = {}
    waiting: list[tuple[str, frozenset[str]]] = [(PROGRAM, frozenset())]
    seen = set(waiting)
    while waiting:
        name, extras = waiting.pop()
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            raise Fault(f"The package {name} is not installed in .venv.", "Run ./scripts/install, then this again.") from None
        if name != PROGRAM:
            found[name] = distribution.version
        for text in distribution.requires or ():
            wanted = Requirement(text)
            if wanted.marker is None or any(wanted.marker.evaluate({"extra": extra}) for extra in extras or {""}):
                one = (plain(wanted.name), frozenset(wanted.extras))
                if one not in seen:
                    seen.add(one)
                    waiting.append(one)
    return dict(sorted(found.items()))


def collect(clone: Path, folder: Path, kept: Path) -> None:
    """Fill `folder` with the wheels and write `requirements.lock` beside it. kept: where compiled wheels are kept."""
    folder.mkdir()
    wanted = needed()
    say(f"Collecting {len(wanted)} Python packages.")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    from_index = [f"{name}=={version}" for name, version in wanted.items() if name != COMPILED]
    hint = "Check the line to the package index, then run the same command again."
    run([*pip, "wheel", "-q", "--no-deps", "-w", folder, *from_index], "Fetching the packages", hint)
    compiled = sorted(kept.glob(f"*/llama_cpp_python-{wanted[COMPILED]}-*.whl"))
    if not compiled:
        raise Fault(
            "The compiled wheel of llama-cpp-python is not kept any more.",
            f"Remove .venv and run ./scripts/install: it fills {kept}.",
        )
    (folder / compiled[0].name).write_bytes(compiled[0].read_bytes())
    _program(clone, folder)
    check(folder)
    lock(folder, folder.parent / "requirements.lock")


def _program(clone: Path, folder: Path) -> None:
    """The program's own wheel, of what is committed: what somebody tries out in the clone goes to no school."""
    say("Building the program.")
    with tempfile.TemporaryDirectory() as where:
        packed = subprocess.run(["git", "archive", "HEAD"], cwd=clone, capture_output=True, check=True).stdout
        with tarfile.open(fileobj=BytesIO(packed)) as tar:
            tar.extractall(where, filter="data")
        when = run(["git", "log", "-1", "--format=%ct"], "Reading the history", "Run this in a clone.", cwd=clone).strip()
        environment = os.environ | {"SOURCE_DATE_EPOCH": when}
        words = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, where]
        run(words, "Building the program", "Run the tests of the clone first.", env=environment)
    (made,) = folder.glob("school_appliance-*.whl")
    names = set(zipfile.ZipFile(made).namelist())
    listed = run(["git", "ls-files", "appliance"], "Listing the files", "Run this in a clone.", cwd=clone).splitlines()
    lost = [name for name in listed if name not in names]
    if lost:
        raise Fault(
            f"The program's wheel lacks {len(lost)} files, such as {lost[0]}.", "Name them in pyproject.toml's package-data."
        )


def check(folder: Path) -> None:
    """Raise Fault for what is no wheel, or a wheel that would run code at every start of Python."""
    for path in sorted(folder.iterdir()):
        if path.suffix != ".whl":
            raise Fault(f"{path.name} is no wheel.", "Only wheels are installed on a box: pin a version that has one.")
        bad = [name for name in zipfile.ZipFile(path).namelist() if name.endswith(".pth") and Path(name).name not in PTH]
        if bad:
            raise Fault(f"{path.name} carries {bad[0]}, which would run at every start of Python.", "Do not use that package.")


def lock(folder: Path, out: Path) -> None:
    """One line a wheel: its name, its version and its sha256, as `pip install --require-hashes` takes it."""
    lines = []
    for path in sorted(folder.glob("*.whl")):
        name, version = path.name.split("-")[:2]
        lines.append(f"{plain(name)}=={version} --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n")
    out.write_text("".join(sorted(lines)), "utf-8")


def licences(names: Iterable[str], folder: Path) -> None:
    """The licence texts that each package brings."""
    for name in names:
        for file in importlib.metadata.distribution(name).files or ():
            inside = str(file)
            if ".dist-info/" in inside and re.search(r"(?i)licen[cs]e|copying|notice|authors", inside):
                source = Path(str(file.locate()))
                if source.is_file():
                    target = folder / plain(name) / Path(inside.split(".dist-info/", 1)[1]).name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(source.read_bytes())
