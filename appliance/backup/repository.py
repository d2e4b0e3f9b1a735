"""Where backups are kept: a restic repository in a folder - encrypted, each piece of data stored once, old backups let go.

Hides restic: its words, its faults, its locks. Only folders are ever given to it, so it opens no connection. The key goes to it
in its environment: neither on a command line, which others on the machine may read, nor to a file.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from appliance.backup.locks import left_behind
from appliance.errors import ApplianceError, BadInput, NotFound, StorageFull, UnderWay

HOST = "appliance"  # in every backup: a box that was restored goes on with the backups of the one before it
CHECKED_SHARE = "5%"  # of all data, read again whenever a backup is proven
Tell = Callable[[dict[str, Any]], None]


class Damaged(ApplianceError):
    """A backup is not what was written."""

    code = "damaged"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One backup. `at`: UTC seconds; `version`, `schema`: of the release that made it; `bytes`: as they were on the box."""

    id: str
    at: float
    version: str
    schema: str
    bytes: int


class Repository:
    """The backups in `folder`, opened by `key`. Blocking."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder
        self._key = key

    @property
    def there(self) -> bool:
        return os.path.exists(self.folder / "config")

    def make(self) -> None:
        """Raises ApplianceError."""
        # What a killed attempt left has no `config`, and holds nothing: restic refuses to begin beside its key.
        if (self.folder / "keys").is_dir():
            shutil.rmtree(self.folder / "keys")
        self._run(["init"], "beginning the backups")

    def save(self, tree: Path, version: str, schema: str, size: int, tell: Tell) -> Snapshot:
        """Keep everything below `tree`. What it is said to be can be read without restoring it."""
        self.unlock()
        tags = f"version={version},schema={schema},bytes={size}"
        words = ["backup", "--json", "--host", HOST, "--tag", tags, "--ignore-ctime", "--ignore-inode", "."]
        id, at = "", time.time()
        for line in self._lines(words, "writing the backup", cwd=tree):
            told = _parsed(line)
            if told.get("message_type") == "status":
                done = int(1000 * float(told.get("percent_done", 0)))
                tell({"stage": "writing", "done": min(done, 1000), "total": 1000})
            id = str(told.get("snapshot_id") or id)
        return Snapshot(id[:8], at, version, schema, size)

    def list(self) -> list[Snapshot]:
        """The oldest first. Raises NotFound where there is no repository, BadInput where the key does not open it."""
        if self.folder.is_dir() and not os.access(self.folder, os.R_OK | os.X_OK):
            raise self._not_allowed("listing the backups")
        if not self.there:
            raise NotFound(f"There are no backups in {self.folder}.", "Make one: `appliance backup create`.")
        rows = json.loads(self._run(["snapshots", "--json", "--host", HOST], "listing the backups") or "[]") or []
        return sorted((_snapshot(row) for row in rows), key=lambda one: one.at)

    def find(self, id: str) -> Snapshot:
        """By its id, the beginning of it, or `latest`. Raises NotFound."""
        found = self.list()
        chosen = found[-1:] if id == "latest" else [one for one in found if id and one.id.startswith(id[:8])]
        if len(chosen) != 1:
            raise NotFound(f"There is no backup {id!r} in {self.folder}.", "See `appliance backup list`.")
        return chosen[0]

    def before(self, id: str) -> Snapshot | None:
        """The next older backup, for whoever finds one damaged."""
        ids = self.list()
        place = [one.id for one in ids].index(id)
        return ids[place - 1] if place else None

    def restore(self, id: str, to: Path) -> None:
        """Everything of a backup into an empty folder. Raises Damaged, StorageFull."""
        self._run(["restore", id, "--target", str(to)], f"reading the backup {id}", damaged=id)

    def check(self) -> None:
        """That everything fits together, and that a share of all data is what was written. Raises Damaged."""
        self.unlock()
        self._run(["check", f"--read-data-subset={CHECKED_SHARE}"], "checking the backups", damaged="that is checked")

    def forget(self, keep: Mapping[str, int]) -> None:
        """Let go of old backups, and of data that no backup needs any more."""
        counts = [word for name, count in keep.items() if count for word in (f"--keep-{name}", str(count))]
        if counts:
            self._run(["forget", "--prune", "--host", HOST, "--group-by", "host", *counts], "letting go of old backups")

    def unlock(self) -> None:
        """Take away the locks of processes that are gone."""
        locks = self.folder / "locks"
        if not locks.is_dir() or not any(locks.iterdir()):
            return
        self._run(["unlock"], "opening the backups")
        for path in list(locks.iterdir()):
            with contextlib.suppress(ApplianceError, ValueError):  # let go of at this moment
                if left_behind(json.loads(self._run(["cat", "lock", path.name, "--no-lock"], "opening the backups"))):
                    path.unlink(missing_ok=True)

    # --- restic ---------------------------------------------------------------------------------------------------------
    def _run(self, words: Sequence[str], what: str, *, damaged: str = "") -> str:
        return "\n".join(self._lines(words, what, damaged=damaged))

    def _lines(self, words: Sequence[str], what: str, *, cwd: Path | None = None, damaged: str = "") -> Iterator[str]:
        program = shutil.which("restic")
        if program is None:
            raise ApplianceError(
                "restic, the program that writes backups, is not installed on this machine.",
                "Install it: apt-get install restic; on a school's box run its installer again.",
            )
        environment = {
            "PATH": os.environ.get("PATH", os.defpath), "RESTIC_PASSWORD": self._key, "RESTIC_REPOSITORY": str(self.folder),
            "RESTIC_PROGRESS_FPS": "2", "TMPDIR": tempfile.gettempdir(), "LC_ALL": "C.UTF-8",
        }  # fmt: skip
        with tempfile.TemporaryFile() as said:
            child = subprocess.Popen(
                [program, "--no-cache", *words], cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=said, text=True, errors="surrogateescape",
            )  # fmt: skip
            assert child.stdout is not None
            try:
                yield from (line.rstrip("\n") for line in child.stdout)
            finally:
                child.stdout.close()
                if child.wait():
                    said.seek(0)
                    raise self._fault(said.read().decode("utf-8", "replace"), what, damaged)

    def _fault(self, said: str, what: str, damaged: str) -> ApplianceError:
        text = said.lower()
        if "wrong password" in text:
            return wrong_key(self.folder)
        if "no space left" in text or "quota exceeded" in text:
            return StorageFull(
                f"The disk is full: {what} stopped ({self.folder}). Earlier backups are as they were.",
                "Free some space there, or keep fewer backups (the setting backup_keep).",
            )
        if "already locked" in text:
            return UnderWay(f"Another process works on the backups in {self.folder}.", "Try again when it has ended.")
        if "permission denied" in text or "read-only file system" in text:
            return self._not_allowed(what)
        last = next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "it gave no reason")
        if damaged:
            return Damaged(f"The backup {damaged} is damaged: {last[:200]}.", "Take an older one: `appliance backup list`.")
        return ApplianceError(
            f"restic failed while {what}: {last[:200]}.", "Look at that disk, then run the same command again."
        )

    def _not_allowed(self, what: str) -> ApplianceError:
        return ApplianceError(
            f"Not allowed by the file system while {what} ({self.folder}).",
            f"Give the folder to whom the appliance runs as: sudo chown -R appliance {self.folder}",
        )


def wrong_key(folder: Path) -> BadInput:
    return BadInput(
        f"The key does not open the backups in {folder}.",
        "Take the recovery key of the box that made them: --key-file FILE, or - to type it.",
    )


def _parsed(line: str) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        told = json.loads(line)
        if isinstance(told, dict):
            return told
    return {}


def _snapshot(row: dict[str, Any]) -> Snapshot:
    # restic tells nanoseconds, Python reads six digits.
    stamp = str(row["time"])
    whole, _, rest = stamp.partition(".")
    zone = rest.lstrip("0123456789") or "+00:00"
    at = datetime.fromisoformat(whole + zone.replace("Z", "+00:00")) if rest else datetime.fromisoformat(stamp)
    tags = dict(tag.partition("=")[::2] for tag in row.get("tags") or [])
    size = tags.get("bytes", "")
    return Snapshot(
        str(row["short_id"]),
        at.timestamp(),
        tags.get("version", ""),
        tags.get("schema", ""),
        int(size) if size.isdigit() else 0,
    )
