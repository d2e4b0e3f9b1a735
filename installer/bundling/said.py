"""How the bundle's maker speaks: lines about what it does, and a fault as one sentence and one next step."""

from __future__ import annotations

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


def run(
    words: Sequence[str | Path], what: str, hint: str, *, cwd: Path | None = None, env: dict[str, str] | None = None
) -> str:
    """A command's output. Raises Fault with its last words."""
    done = subprocess.run([str(word) for word in words], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise Fault(f"{what} did not work: {' '.join(last)[:400]}", hint)
    return done.stdout
