"""Files that are whole or not there: atomic replacement, flushing to disk, digests, secrets that the box made for itself.

Used wherever something must survive a power cut or be compared with what was recorded. It knows bytes and names, not what they
mean.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from pathlib import Path

from appliance.errors import ApplianceError, from_os_error

SECRET_BYTES = 32


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hex. Raises OSError."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_atomically(path: Path, data: bytes | str, *, private: bool = True) -> None:
    """Replace a file so that a reader, or a power cut, sees the old one or the new one and nothing between.

    Makes the folders that are missing. private: for the owner alone, as everything in the appliance's folder; else a file that
    somebody asked for, with the modes that their session gives. Raises ApplianceError (StorageFull where the disk is full);
    then nothing changed.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        make_folder(path.parent, private=private)
        with open(aside, "wb", opener=lambda name, flags: os.open(name, flags, 0o600 if private else 0o666)) as handle:
            if private:
                os.fchmod(handle.fileno(), 0o600)  # a killed process may have left the file with another mode
            handle.write(data.encode() if isinstance(data, str) else data)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(aside, path)
        sync(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise from_os_error(error, f"writing {path.name}") from None


def kept_secret(path: Path) -> bytes:
    """A random secret: kept in `path`, made where there is none; where it cannot be kept, one for this process.

    Two processes that make it at one moment may differ until they start again.
    """
    with contextlib.suppress(OSError):
        found = path.read_bytes()
        if len(found) == SECRET_BYTES:
            return found
    made = secrets.token_bytes(SECRET_BYTES)
    with contextlib.suppress(ApplianceError):
        write_atomically(path, made)
    return made


def make_folder(path: Path, *, private: bool = True) -> None:
    """Make a folder and those above it; of the new ones, each for the owner alone where it is private. Raises OSError."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(mode=0o700 if private else 0o777, exist_ok=True)
    path.mkdir(exist_ok=True)  # raises where something else bears the name


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
