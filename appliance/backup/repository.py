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
from collections.abc import Callable, Iterator, MutableSequence, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from appliance.backup import places
from appliance.backup.locks import left_behind
from appliance.errors import ApplianceError, BadInput, NotFound, StorageFull, UnderWay

HOST = "appliance"  # in every backup: a box that was restored goes on with the backups of the one before it
AHEAD = 3600.0  # seconds by which clocks may differ; a backup of a later date was made while the clock was wrong
CHECKED_SHARE = "5%"  # of all data, read again whenever a backup is proven
Tell = Callable[[dict[str, Any]], None]


class Damaged(ApplianceError):
    """A backup is not what was written."""

    code = "damaged"


class _IndexDamaged(Damaged):
    """Where which piece of data lies can be told no more; it is found again by reading all of them."""


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
        self.unreadable = 0  # backups that `list` found damaged and left out

    @property
    def there(self) -> bool:
        return os.path.exists(self.folder / "config")

    def make(self) -> None:
        """Raises ApplianceError."""
        # What a killed attempt left has no `config`, and holds nothing: restic refuses to begin beside its key.
        if (self.folder / "keys").is_dir():
            if (self.folder / "snapshots").is_dir() and any((self.folder / "snapshots").iterdir()):
                raise Damaged(
                    f"The backups in {self.folder} cannot be opened: the file config is missing.",
                    f"Keep them (mv {self.folder} {self.folder}.damaged), then make a new one: `appliance backup create`.",
                )
            shutil.rmtree(self.folder / "keys")
        self._run(["init"], "beginning the backups")

    def save(self, tree: Path, version: str, schema: str, size: int, tell: Tell, *, after: float = 0.0) -> Snapshot:
        """Keep everything below `tree`. What it is said to be can be read without restoring it. `after`: its date is later."""
        at = float(max(int(time.time()), int(after) + 1))
        made: Snapshot = self._mending(lambda: self._save(tree, Snapshot("", at, version, schema, size), tell))
        return made

    def _save(self, tree: Path, one: Snapshot, tell: Tell) -> Snapshot:
        self.unlock()
        tags = f"version={one.version},schema={one.schema},bytes={one.bytes}"
        id, stamp = "", time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(one.at))
        words = ["backup", "--json", "--host", HOST, "--tag", tags, "--time", stamp, "--ignore-ctime", "--ignore-inode", "."]
        if self.unreadable:
            words.insert(1, "--force")  # looking for the one before it, restic would fall over one that it cannot read
        for line in self._lines(words, "writing the backup", cwd=tree):
            told = _parsed(line)
            if told.get("message_type") == "status":
                done = int(1000 * float(told.get("percent_done", 0)))
                tell({"stage": "writing", "done": min(done, 1000), "total": 1000})
            id = str(told.get("snapshot_id") or id)
        return replace(one, id=id[:8])

    def list(self) -> list[Snapshot]:
        """The oldest first; before them those whose date has not come yet. What is damaged is left out, and counted.

        It takes no lock, so that what a killed process left is not in the way, nor a disk that can only be read. Raises
        NotFound where there is no repository, BadInput where the key does not open it.
        """
        if self.folder.is_dir() and not os.access(self.folder, os.R_OK | os.X_OK):
            raise places.not_allowed(self.folder)
        if not self.there:
            raise NotFound(f"There are no backups in {self.folder}.", "Make one: `appliance backup create`.")
        said: MutableSequence[str] = []
        words = ["snapshots", "--no-lock", "--json", "--host", HOST]
        rows = json.loads("\n".join(self._lines(words, "listing the backups", said=said)) or "[]") or []
        self.unreadable = "".join(said).count("could not load snapshot")
        ends = time.time() + AHEAD
        return sorted((_snapshot(row) for row in rows), key=lambda one: (one.at <= ends, one.at))

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
        lock = []
        if os.access(self.folder, os.W_OK):
            self.unlock()
        else:
            lock = ["--no-lock"]  # a disk that can only be read
        words = ["restore", id, "--target", str(to), *lock]
        self._mending(lambda: self._run(words, f"reading the backup {id}", damaged=id))

    def check(self) -> None:
        """That everything fits together, and that a share of all data is what was written. Raises Damaged."""
        if os.access(self.folder, os.W_OK):
            self.unlock()
            words = ["check", f"--read-data-subset={CHECKED_SHARE}"]
            self._mending(lambda: self._run(words, "checking the backups", damaged="that is checked"))

    def forget(self, ids: Sequence[str]) -> None:
        """Let go of these backups, and of data that no other needs."""
        if ids:
            self.unlock()
            self._run(["forget", "--prune", *ids], "letting go of old backups")

    def _mending(self, work: Callable[[], Any]) -> Any:
        """Do it, and where the index is damaged once more with one that is made anew of the data itself."""
        try:
            return work()
        except _IndexDamaged:
            if not os.access(self.folder, os.W_OK):
                raise
            self._run(["rebuild-index", "--read-all-packs"], "making the index of the backups anew")
            return work()

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

    def _lines(
        self,
        words: Sequence[str],
        what: str,
        *,
        cwd: Path | None = None,
        damaged: str = "",
        said: MutableSequence[str] | None = None,
    ) -> Iterator[str]:
        """What restic prints; `said`: takes what it prints on its other channel, where it ends well."""
        program = shutil.which("restic")
        if program is None:
            raise ApplianceError(
                "restic, the program that writes backups, is not installed on this machine.",
                "Install it: apt-get install restic; on a school's box run its installer again.",
            )
        environment = {
            "PATH": os.environ.get("PATH", os.defpath), "RESTIC_PASSWORD": self._key, "RESTIC_REPOSITORY": str(self.folder),
            "RESTIC_PROGRESS_FPS": "2", "TMPDIR": tempfile.gettempdir(), "LC_ALL": "C.UTF-8", "TZ": "UTC",
        }  # fmt: skip
        with tempfile.TemporaryFile() as other:
            child = subprocess.Popen(
                [program, "--no-cache", *words], cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=other, text=True, errors="surrogateescape",
            )  # fmt: skip
            assert child.stdout is not None
            with places.watched(self.folder.parent, self.folder, child.kill):
                try:
                    yield from (line.rstrip("\n") for line in child.stdout)
                finally:
                    child.stdout.close()
                    failed = child.wait()
                    other.seek(0)
                    told = other.read().decode("utf-8", "replace")
                    if failed:
                        raise self._fault(told, what, damaged)
                    if said is not None:
                        said.append(told)

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
        if "read-only file system" in text:
            return places.read_only(self.folder)
        if "permission denied" in text or "operation not permitted" in text:
            return places.not_allowed(self.folder)
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        fatal = [line for line in lines if line.startswith(("Fatal:", "panic:"))]
        last = [*fatal, *lines[-1:], "it gave no reason"][0]
        if "load <index/" in text:
            return _IndexDamaged(
                f"The index of the backups in {self.folder} is damaged: {last[:200]}.",
                "Copy that folder to another disk, and restore from there: --from FOLDER.",
            )
        if "config or key" in text or "unmarshal" in text:
            return Damaged(
                f"The backups in {self.folder} cannot be opened: {last[:200]}.",
                f"Take them from another disk; or keep these (mv {self.folder} {self.folder}.damaged), and make a new one.",
            )
        if damaged:
            return Damaged(f"The backup {damaged} is damaged: {last[:200]}.", "Take an older one: `appliance backup list`.")
        return ApplianceError(
            f"restic failed while {what}: {last[:200]}.", "Look at that disk, then run the same command again."
        )


def wrong_key(folder: Path) -> BadInput:
    return BadInput(
        f"The key does not open the backups in {folder}.",
        "Take the recovery key of the box that made them: --key-file FILE, or - to type it; `appliance backup key --set -` "
        "makes it this box's own.",
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
