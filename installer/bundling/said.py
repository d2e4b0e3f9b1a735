"""How the bundle's maker speaks: lines about what it does, and a fault as one sentence and one next step."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


class Fault(Exception):
    """A sentence, and a next step."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message, self.hint = message, hint


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB" if size >= 1e6 else f"{size / 1e3:,.0f} kB"


def run(
    words: Sequence[str | Path], what: str, hint: str, *, cwd: Path | None = None, env: dict[str, str] | None = None
) -> str:
    """A command's output. Raises Fault with its last words."""
    try:
        done = subprocess.run([str(word) for word in words], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise Fault(f"{what} needs {words[0]}, which this machine lacks.", hint) from None
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise Fault(f"{what} did not work: {' '.join(last)[:400]}", hint)
    return done.stdout


def of_the_system(error: OSError) -> Fault:
    """What the system refused, for people."""
    where = error.filename or "the disk"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Fault(f"The disk is full ({where}).", "Free some space, then run the same command again: it goes on.")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return Fault(
            f"{where} cannot be written: {error.strerror}.", "Give a folder that is yours to write, and not read-only."
        )
    if error.errno == errno.EIO:
        return Fault(f"{where} could not be read or written: the medium fails.", "Use another stick.")
    return Fault(f"The system refused: {error.strerror} ({where}).", "Mend that, then run the same command again: it goes on.")
