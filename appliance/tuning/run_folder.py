"""The folder of one tuning run: written so that a power cut at any moment leaves either the old or the new, never half.

Hides the marker that says a step is finished, the lock that keeps a second run out, and
the check for free space. Knows nothing of what the steps do.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from appliance.errors import BadInput, StorageFull, UnderWay, from_os_error
from appliance.files import write_atomically
from appliance.tuning.report import finite

MEGABYTE = 1_000_000


def write_json(path: Path, value: Any) -> None:
    """A figure that is no finite number is written as null: JSON knows no other."""
    write_atomically(path, json.dumps(finite(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The JSON document at `path`, or None where there is none that can be read."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None


class RunFolder:
    """A run's folder and its markers: `done/<step>.json`, written last, says that the step's files are complete."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise from_os_error(error, "making the run's folder") from None

    def finished(self, step: str) -> dict[str, Any] | None:
        """What the step noted when it finished, or None where it did not."""
        marker = read_json(self.path / "done" / f"{step}.json")
        return marker if isinstance(marker, dict) else None

    def finish(self, step: str, facts: dict[str, Any]) -> dict[str, Any]:
        """Mark a step as finished; everything it wrote must be on disk before."""
        write_json(self.path / "done" / f"{step}.json", facts)
        return facts

    def forget(self, step: str) -> None:
        """Have the step done again."""
        (self.path / "done" / f"{step}.json").unlink(missing_ok=True)

    def named(self, id: str) -> RunFolder:
        """Where the verdict on the model `id` is kept: here for the first name of this run, else in a folder of its own.

        The same training under a second name is judged against what serves then, and must not overwrite the first verdict.
        Raises BadInput for a name that would lead out of the run.
        """
        if id.startswith(".") or Path(id).name != id:
            raise BadInput(f"{id!r} cannot be the name of a model.", "Use small letters, digits, dots and dashes.")
        first = read_json(self.path / "name.json")
        if not isinstance(first, dict) or "id" not in first:
            first = {"id": id}
            write_json(self.path / "name.json", first)
        return self if first["id"] == id else RunFolder(self.path / "named" / id)


@contextlib.contextmanager
def only_run(lock: Path) -> Iterator[None]:
    """Hold the machine's only tuning run. Raises Conflict where another process holds it; ends with the process."""
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        handle = lock.open("a+")
    except OSError as error:
        raise from_os_error(error, "locking the tuning run") from None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            handle.seek(0)
            owner = handle.read().strip()
            raise UnderWay(
                f"A tuning run is already under way{f' (process {owner})' if owner else ''}.",
                "Wait until it has finished, or cancel it, then run the same command again.",
            ) from None
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield


def tuning_lock_held(lock: Path) -> None:
    """Raise UnderWay where a tuning run is under way."""
    with only_run(lock):
        pass


def need_space(folder: Path, needed_mb: int, reserve_mb: int) -> None:
    """Raise StorageFull where `needed_mb` would eat into the space that tuning leaves alone."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        free = shutil.disk_usage(folder).free // MEGABYTE
    except OSError as error:
        raise from_os_error(error, "preparing the tuning run") from None
    if free < needed_mb + reserve_mb:
        raise StorageFull(
            f"Tuning needs {needed_mb + reserve_mb} MB free in {folder} and there are {free} MB; nothing was started.",
            "Free some space, then run the same command again.",
        )
