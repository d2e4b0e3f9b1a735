"""The Python packages of a bundle: what the target's lock names, llama.cpp as this clone compiled it, and the program itself.

Hides pip. What was fetched once is kept and looked at again by its sha256, so that a run which was cut off goes on. No wheel
may bring a `.pth` file: such a file runs code at every start of Python.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

from locking import Wheel, needed, pip, plain, sha256
from said import Fault, megabytes, run, say
from targets import Target

__all__ = ["check", "collect", "compiled", "lock", "missing", "needed", "program", "unpacked"]

PTH = frozenset({"distutils-precedence.pth"})  # setuptools' own, which only redirects distutils
STARTS = re.compile(r"\.pth$|^([^/]+\.data/(pure|plat)lib/)?(site|user)customize(\.|/)")  # what Python runs at every start
GROUP_BYTES, GROUP_FILES = 60_000_000, 12  # fetched in one go: what a cut line costs at most
BACK_ENDS = ("x64", "sse42", "sandybridge", "haswell", "skylakex", "zen4")  # some of those that every CPU finds its own among
NO_LINE = re.compile(
    r"Could not fetch URL|NewConnectionError|Temporary failure in name resolution|Max retries|ProxyError|timed out"
)


# --- from the package index --------------------------------------------------------------------------------------------------
def missing(wanted: list[Wheel], kept: Path) -> list[Wheel]:
    """Those that have to be fetched: the others lie in `kept`, byte for byte as the lock names them."""
    return [wheel for wheel in wanted if not wheel.whole(kept / wheel.file)]


def collect(target: Target, wanted: list[Wheel], kept: Path) -> None:
    """Have every wheel of the lock in `kept`. Raises Fault; a second call goes on where this one stopped."""
    kept.mkdir(parents=True, exist_ok=True)
    for left in kept.glob(".part-*"):  # of a run that was killed
        for path in left.iterdir():
            path.unlink()
        left.rmdir()
    lacking = missing(wanted, kept)
    whole, size = len(wanted) - len(lacking), sum(wheel.size for wheel in lacking)
    say(f"Collecting {len(wanted)} Python packages: {whole} are here, {megabytes(size)} to fetch.")
    done = 0
    for group in _groups(lacking):
        _fetch(target, group, kept)
        whole, done = whole + len(group), done + sum(wheel.size for wheel in group)
        say(f"  {whole} of {len(wanted)} packages, {megabytes(done)} of {megabytes(size)}")


def _groups(wanted: list[Wheel]) -> Iterator[list[Wheel]]:
    group: list[Wheel] = []
    for wheel in wanted:
        if group and (len(group) == GROUP_FILES or sum(one.size for one in group) + wheel.size > GROUP_BYTES):
            yield group
            group = []
        group.append(wheel)
    if group:
        yield group


def _fetch(target: Target, group: list[Wheel], kept: Path) -> None:
    with tempfile.TemporaryDirectory(dir=kept, prefix=".part-") as folder:
        wanted = Path(folder) / "wanted.txt"
        wanted.write_text("".join(f"{wheel.asked}\n" for wheel in group), "utf-8")
        words = [*pip(target), "--no-deps", "--require-hashes", "-d", folder, "-r", wanted]
        done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
        if done.returncode:
            raise _refused(done.stdout + done.stderr, group)
        for path in Path(folder).glob("*.whl"):
            digest = sha256(path)
            for wheel in group:
                if wheel.sha256 == digest:
                    path.replace(kept / wheel.file)
    lost = missing(group, kept)
    if lost:
        raise Fault(f"The package index gave no whole {lost[0].file}.", "Run the same command again.")


def _refused(said: str, group: list[Wheel]) -> Fault:
    again = "Run the same command again: it goes on where it stopped."
    if "DO NOT MATCH THE HASHES" in said:
        found = re.search(r"^\s+([A-Za-z0-9._-]+)==\S+ from ", said, re.M)
        name = found[1] if found else group[0].name
        return Fault(
            f"What the package index gives for {name} is not the file that the lock names.",
            "Do not use it. Find out why: a mirror that was tampered with, or a release that was made anew.",
        )
    if "No space left" in said:
        return Fault("The disk is full.", f"Free some space. {again}")
    if NO_LINE.search(said):
        return Fault("The package index cannot be reached.", f"Check the line and the proxy. {again}")
    found = re.search(r"No matching distribution found for ([^=\s]+==[^\s]+)", said)
    if found and found[1].startswith("torch==") and "+cpu" in found[1]:
        return Fault(
            f"The package index has no {found[1]}.",
            "Name PyTorch's index of CPU builds in PIP_EXTRA_INDEX_URL, or a folder with the wheel in PIP_FIND_LINKS.",
        )
    if found:
        return Fault(f"The package index has no wheel of {found[1]}.", "Check pip's settings (pip config list).")
    last = " ".join(said.strip().splitlines()[-2:])[:300]
    return Fault(f"Fetching the packages did not work: {last}", again)


# --- llama.cpp, compiled by scripts/install ----------------------------------------------------------------------------------
def compiled(clone: Path, cache: Path) -> Path:
    """The wheel that `scripts/install` compiled with its flags, and put into this clone. Raises Fault where there is none."""
    script = (clone / "scripts" / "install").read_text("utf-8")
    version = re.search(r"^LLAMA=(\S+)$", script, re.M)
    flags = re.search(r'^FLAGS="([^"]*)"$', script, re.M)
    if not version or not flags:
        raise Fault("scripts/install does not say how llama.cpp is compiled.", "Take a clone as it was published.")
    # As scripts/install names the folder: other flags or other kernels are another folder.
    ours = [*sorted((clone / "scripts" / "kernels").glob("*.h")), clone / "scripts" / "kernels" / "hooks.patch"]
    kernels = hashlib.sha256(b"".join(path.read_bytes() for path in ours)).hexdigest()[:16]
    name = hashlib.sha256(f"{version[1]} {flags[1]} x86_64 {kernels}\n".encode()).hexdigest()[:16]
    found = sorted((cache / "wheels" / name).glob(f"llama_cpp_python-{version[1]}-py3-none-*.whl"))
    if not found:
        raise Fault(
            f"llama-cpp-python {version[1]} is not compiled yet, or not kept any more.",
            f"Remove .venv and run ./scripts/install: it compiles it once, and fills {cache / 'wheels'}.",
        )
    return found[0]


def runs_on(wheel: Path, target: Target) -> None:
    """Raise Fault for a compiled wheel that only some processors can run, or that needs newer libraries than the target's."""
    with zipfile.ZipFile(wheel) as packed:
        names = packed.namelist()
        lost = [one for one in BACK_ENDS if not any(name.endswith(f"/libggml-cpu-{one}.so") for name in names)]
        if lost:
            raise Fault(
                f"The compiled {wheel.name} is for this machine's processor only: its back end {lost[0]} is missing.",
                "Remove it and .venv, and run ./scripts/install.",
            )
        for name in names:
            if ".so" in Path(name).name:
                data = packed.read(name)
                for library, most in ((rb"GLIBC_2\.", target.glibc), (rb"GLIBCXX_3\.4\.", target.glibcxx)):
                    newest = max((int(one) for one in re.findall(library + rb"(\d+)", data)), default=0)
                    if newest > most:
                        raise Fault(
                            f"llama.cpp was compiled on a newer system than {target.said}: it would not load there.",
                            f"Make the bundle on a {target.said}.",
                        )


# --- the program -------------------------------------------------------------------------------------------------------------
def program(clone: Path, folder: Path, when: int) -> None:
    """The program's own wheel, of what is committed: what somebody tries out in the clone goes to no school.

    Stored and not compressed, with the commit's time: another machine's zlib, clock or umask gives the same bytes.
    """
    say("Building the program.")
    with tempfile.TemporaryDirectory() as where:
        words = ["git", "-c", "tar.umask=0022", "archive", "HEAD"]
        packed = subprocess.run(words, cwd=clone, capture_output=True, check=True).stdout
        with tarfile.open(fileobj=BytesIO(packed)) as tar:
            tar.extraction_filter = getattr(tarfile, "data_filter", None)  # which Debian 12's Python does not have
            tar.extractall(where)
        environment = os.environ | {"SOURCE_DATE_EPOCH": str(when)}
        build = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "wheel", "-q", "--no-deps"]
        build += ["--no-build-isolation", "--no-index", "--config-settings=--build-option=--compression=stored"]
        run([*build, "-w", folder, where], "Building the program", "Run the tests of the clone first.", env=environment)
    (made,) = folder.glob("school_appliance-*.whl")
    names = set(zipfile.ZipFile(made).namelist())
    listed = run(["git", "ls-files", "appliance"], "Listing the files", "Run this in a clone.", cwd=clone).splitlines()
    lost = [name for name in listed if name not in names]
    if lost:
        raise Fault(
            f"The program's wheel lacks {len(lost)} files, such as {lost[0]}.", "Name them in pyproject.toml's package-data."
        )


# --- all of them -------------------------------------------------------------------------------------------------------------
def check(folder: Path) -> None:
    """Raise Fault for what is no wheel, or a wheel that would run code at every start of Python."""
    for path in sorted(folder.iterdir()):
        if path.suffix != ".whl" or path.is_symlink() or not zipfile.is_zipfile(path):
            raise Fault(f"{path.name} is no wheel.", "Only wheels are installed on a box: pin a version that has one.")
        bad = [name for name in zipfile.ZipFile(path).namelist() if STARTS.search(name) and Path(name).name not in PTH]
        if bad:
            raise Fault(f"{path.name} carries {bad[0]}, which would run at every start of Python.", "Do not use that package.")


def unpacked(folder: Path) -> int:
    """Bytes that they take on a box's disk."""
    return sum(one.file_size for path in folder.glob("*.whl") for one in zipfile.ZipFile(path).infolist())


def lock(folder: Path, out: Path) -> None:
    """One line a wheel: its name, its version and its sha256, as `pip install --require-hashes` takes it."""
    lines = []
    for path in sorted(folder.glob("*.whl")):
        name, version = path.name.split("-")[:2]
        lines.append(f"{plain(name)}=={version} --hash=sha256:{sha256(path)}\n")
    out.write_text("".join(sorted(lines)), "utf-8")
