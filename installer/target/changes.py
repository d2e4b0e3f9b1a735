"""Every change that the installer makes to a machine goes through here: said, written to the log, or only said in a dry run.

Hides the log, atomic writing, and what a command said when it failed. Secrets are not handed to it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

LOG = Path("/var/log/appliance-install.log")
FULL = "Free some space (`df -h`), then run the same command again: it goes on where it stopped."


class Fault(Exception):
    """A sentence, a next step, and the exit code."""

    def __init__(self, message: str, hint: str, code: int = 1) -> None:
        super().__init__(message)
        self.message, self.hint, self.code = message, hint, code


class Changes:
    def __init__(self, *, dry: bool) -> None:
        self.dry = dry

    def say(self, text: str) -> None:
        print(text, flush=True)
        self._log(text)

    def run(
        self,
        words: Sequence[str | Path],
        what: str,
        hint: str = "",
        *,
        env: dict[str, str] | None = None,
        secret: bool = False,
    ) -> str:
        """Run a command that changes something. secret: what it says stands in no log. Raises Fault."""
        line = [str(word) for word in words]
        if self.dry:
            print(f"  would run: {' '.join(line)}")
            return ""
        self._log("$ " + " ".join(line))
        done = subprocess.run(line, capture_output=True, text=True, check=False, env=env and os.environ | env)
        if not secret:
            self._log(done.stdout + done.stderr)
        if done.returncode:
            last = (done.stderr or done.stdout).strip().splitlines()[-2:]
            if "No space left on device" in done.stdout + done.stderr:
                raise Fault(f"{what} did not work: the disk is full.", FULL)
            raise Fault(f"{what} did not work: {' '.join(last)[:300]}", hint or f"Read {LOG}, then run the same command again.")
        return done.stdout

    def write(self, path: Path, text: str, mode: int = 0o644) -> bool:
        """A file with exactly this text; whether that was a change."""
        if path.is_file() and path.read_text("utf-8", "replace") == text:
            return False
        if self.dry:
            print(f"  would write: {path}")
            return True
        self._log(f"writing {path}")
        self.folder(path.parent)
        part = path.with_name(f".{path.name}.part")
        try:
            with open(part, "w", encoding="utf-8") as handle:
                os.fchmod(handle.fileno(), mode)
                handle.write(text)
                handle.flush()
                os.fsync(handle.fileno())
            part.replace(path)
            _sync(path.parent)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise Fault(
                f"{path} cannot be written: {error.strerror}.", "Check that the disk is not read-only and has room."
            ) from None
        return True

    def folder(self, path: Path, mode: int = 0o755, owner: str = "") -> None:
        if self.dry:
            if not path.is_dir():
                print(f"  would make: {path}")
            return
        try:
            if not path.is_dir():
                path.mkdir(parents=True)
                os.chmod(path, mode)
            if owner:
                shutil.chown(path, owner, owner)
                os.chmod(path, mode)
        except OSError as error:
            raise Fault(
                f"{path} cannot be made: {error.strerror}.", "Check that the disk is not read-only and has room."
            ) from None

    def link(self, path: Path, target: str) -> None:
        """A symbolic link, replaced in one step."""
        if path.is_symlink() and os.readlink(path) == target:
            return
        if self.dry:
            print(f"  would link: {path} -> {target}")
            return
        part = path.with_name(f".{path.name}.part")
        part.unlink(missing_ok=True)
        part.symlink_to(target)
        part.replace(path)
        _sync(path.parent)
        self._log(f"{path} -> {target}")

    def remove(self, path: Path) -> None:
        if not path.exists() and not path.is_symlink():
            return
        if self.dry:
            print(f"  would remove: {path}")
            return
        self._log(f"removing {path}")
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()

    def _log(self, text: str) -> None:
        if self.dry or not text.strip():
            return
        try:
            with open(os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a", encoding="utf-8") as handle:
                handle.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text.rstrip()}\n")
        except OSError:
            print(f"(the log {LOG} cannot be written)", file=sys.stderr)


def _sync(folder: Path) -> None:
    """Make the renames in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
