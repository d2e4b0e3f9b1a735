"""Files that people give through a page, on their way to the job that reads them.

Each lies under `HOME/uploads/COLLECTION/NAME`: the folder is the box's own id, the name is cleaned, so that no file finds its
way anywhere else, and a newer one of the same name takes the place of the older one in the library. A file stays here until its
document is in the library: one that could not be read can be tried again. It knows no queue and nobody's rights.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from appliance.errors import StorageFull, TooLarge, from_os_error
from appliance.files import make_folder, sync
from appliance.knowledge.extract import clean_name
from appliance.settings import Settings
from appliance.tables import new_id


@dataclass(frozen=True, slots=True)
class Given:
    """A file as it came: its name is whatever the browser said."""

    name: str
    content: IO[bytes]
    bytes: int


class Uploads:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def keep(self, files: Iterable[Given], collection: str) -> list[Path]:
        """Put files where a job can read them; `collection`: its id. All of them, or none where one is refused.

        Raises TooLarge, StorageFull.
        """
        files = list(files)
        for file in files:
            if file.bytes > self._settings.document_mb * 2**20:
                raise TooLarge(
                    f"{clean_name(file.name)} has {file.bytes // 2**20} MB; a document may have {self._settings.document_mb}.",
                    "Split it, or ask the administrator for the setting `document_mb`.",
                )
        folder = self._settings.uploads / collection
        waiting: list[tuple[Path, Path]] = []
        try:
            make_folder(folder)
            self.require_room(sum(file.bytes for file in files))
            taken: set[str] = set()
            for file in files:
                aside = folder / f".{new_id()}"
                waiting.append((aside, folder / _free(clean_name(file.name), taken)))
                with open(aside, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as out:
                    shutil.copyfileobj(file.content, out, 1 << 20)
                    out.flush()
                    os.fsync(out.fileno())
            for aside, path in waiting:
                os.replace(aside, path)
            sync(folder)
        except BaseException as error:
            for aside, _ in waiting:
                with contextlib.suppress(OSError):
                    aside.unlink()
            if isinstance(error, OSError):
                raise from_os_error(error, "keeping the files that were given") from None
            raise
        return [path for _, path in waiting]

    def require_room(self, size: int) -> None:
        """Raises StorageFull where so many bytes would take what must stay free."""
        above = next(folder for folder in (self._settings.uploads, *self._settings.uploads.parents) if folder.is_dir())
        free = shutil.disk_usage(above).free - size
        if free < self._settings.disk_reserve_mb * 2**20:
            raise StorageFull(
                "There is not enough free space on the box for these files.", "Ask the administrator to make room."
            )

    def forget(self, paths: Iterable[Path]) -> None:
        """The library has these: what lies below our folder is taken away, anything else is left alone."""
        for path in paths:
            if path.is_relative_to(self._settings.uploads):
                with contextlib.suppress(OSError):
                    path.unlink()


def _free(name: str, taken: set[str]) -> str:
    """Two files of one name in one batch: both are kept."""
    stem, dot, suffix = name.rpartition(".")
    number, chosen = 2, name
    while chosen.casefold() in taken:
        chosen = f"{stem} ({number}){dot}{suffix}" if stem else f"{name} ({number})"
        number += 1
    taken.add(chosen.casefold())
    return chosen
