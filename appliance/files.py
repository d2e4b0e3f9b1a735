"""Files that are whole or not there: atomic replacement, flushing to disk, digests.

Used wherever something must survive a power cut or be compared with what was recorded. It knows bytes and names, not what they
mean.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from appliance.errors import from_os_error


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hex. Raises OSError."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_atomically(path: Path, data: bytes | str) -> None:
    """Replace a file so that a reader, or a power cut, sees the old one or the new one and nothing between.

    Makes the folder where there is none. Raises ApplianceError (StorageFull where the disk is full); then nothing changed.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(aside, "wb") as handle:
            handle.write(data.encode() if isinstance(data, str) else data)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(aside, path)
        sync(path.parent)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise from_os_error(error, f"writing {path.name}") from None


def sync(path: Path) -> None:
    """Make a file, or the renames in a folder, survive a power cut. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Make a folder and every file below it survive a power cut. Raises OSError."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() or path.is_dir():
            sync(path)
    sync(folder)
