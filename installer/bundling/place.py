"""A whole bundle onto the stick: file by file, so that a run which was cut off goes on, and read back before it gets its name.

Sticks are often FAT, which knows no owners, links or modes: nothing here needs them.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from locking import sha256
from said import Fault, megabytes, say
from signing import LIST, SIGNATURE

STEP = 100_000_000  # bytes between two lines


def free(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def room(where: Path, size: int, already: int, what: str) -> None:
    """Raise Fault where `size` bytes, less those that are there, do not fit. A stick's own tables take a little."""
    lacking = int(max(0, size - already) * 1.01) + 5_000_000 - free(where)
    if lacking > 0:
        raise Fault(
            f"{what} needs {megabytes(size - already)} below {where}, and {megabytes(free(where))} are free.",
            f"Free {megabytes(lacking)}, or use a larger disk.",
        )


def put(made: Path, done: Path) -> None:
    """Copy the bundle `made` to `done`. Raises Fault where the medium does not give back what was written."""
    if done.is_dir() and (done / LIST).is_file() and (done / LIST).read_bytes() == (made / LIST).read_bytes():
        say(f"{done.name} is there already; looking at its files again.")
        if not _differing(done, _listed(made)):
            return
    part = done.with_name(f".{done.name}.part")
    part.mkdir(exist_ok=True)
    listed = _listed(made)
    _clear(part, set(listed))
    size = sum((made / name).stat().st_size for name in listed)
    already = sum(path.stat().st_size for path in part.rglob("*") if path.is_file())
    room(part, size, already, "The bundle")
    say(f"Copying {len(listed)} files, {megabytes(size)}, to {done.parent}." + (" Going on." if already else ""))
    passed = told = 0
    for name, digest in listed.items():
        _copy(made / name, part / name, digest)
        passed += (made / name).stat().st_size
        if passed - told >= STEP:
            told = passed
            say(f"  {megabytes(passed)} of {megabytes(size)}")
    say("Reading it back.")
    bad = _differing(part, listed)
    if bad:
        raise Fault(f"{bad[0]} is not on {done.parent} as it was written: the medium fails.", "Use another stick.")
    _folders(made, part)
    old = done.with_name(f".{done.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if done.exists():
        done.rename(old)
    part.rename(done)
    os.sync()
    if not (done / LIST).is_file():
        raise Fault(f"{done.parent} lost the bundle as it got its name: the medium fails.", "Use another stick.")
    shutil.rmtree(old, ignore_errors=True)


def _listed(made: Path) -> dict[str, str]:
    """Every file of the bundle and its sha256; the list and its signature last."""
    found = {}
    for line in (made / LIST).read_text("utf-8").splitlines():
        digest, _, name = line.partition("  ")
        found[name] = digest
    return found | {name: sha256(made / name) for name in (LIST, SIGNATURE)}


def _clear(part: Path, names: set[str]) -> None:
    """Take away what an earlier bundle, half copied, had and this one has not."""
    for path in sorted(part.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            with suppress(OSError):
                path.rmdir()  # only where it is empty
        elif path.is_symlink() or path.relative_to(part).as_posix() not in names:
            path.unlink()


def _copy(source: Path, target: Path, digest: str) -> None:
    if target.is_file() and target.stat().st_size == source.stat().st_size and sha256(target) == digest:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    with open(source, "rb") as data, open(target, "wb") as out:
        shutil.copyfileobj(data, out, 2**20)
        out.flush()
        os.fsync(out.fileno())
        os.posix_fadvise(out.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # or reading back would ask the memory, not the stick
    like(source, target)


def like(source: Path, target: Path) -> None:
    """Mode and time, where the medium knows them."""
    facts = source.stat()
    with suppress(OSError):
        target.chmod(facts.st_mode & 0o777)
    with suppress(OSError):
        os.utime(target, ns=(facts.st_mtime_ns, facts.st_mtime_ns))


def _folders(made: Path, part: Path) -> None:
    for folder in [made, *(path for path in made.rglob("*") if path.is_dir())]:
        if (part / folder.relative_to(made)).is_dir():
            like(folder, part / folder.relative_to(made))


def _differing(folder: Path, listed: dict[str, str]) -> list[str]:
    bad = [name for name, digest in listed.items() if not (folder / name).is_file() or sha256(folder / name) != digest]
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()}
    return bad + sorted(there - set(listed))
