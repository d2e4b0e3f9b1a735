"""Where backups lie: whether that disk or share is there, answers, is not the box's own, and may be written to.

Hides that a share whose server is gone lets no call come back: whatever touches it first is asked of another process, which is
left behind when it hangs. It also tells a folder where a share should be mounted, and is not, from the share.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.errors import ApplianceError, Conflict, NotFound, StorageFull

ANSWERS_IN = 30.0  # seconds until a disk or share has to answer; one that sleeps spins up meanwhile
LOOKS_EVERY = 60.0  # seconds between two looks while something long is read or written there
# Asks the server itself (statfs is not answered from a cache), then reads a byte of what is there.
_LOOK = """
import os, sys
os.statvfs(sys.argv[1])
if os.path.lexists(sys.argv[2]):
    with open(sys.argv[2], "rb") as file:
        file.read(1)
"""


class Silent(ApplianceError):
    """A disk or share does not answer."""

    code = "silent"


def require_answer(folder: Path, repository: Path, patience: float | None = None) -> None:
    """Raises NotFound where the folder is not there, Silent where it does not answer in time."""
    words = [sys.executable, "-I", "-S", "-c", _LOOK, str(folder), str(repository / "config")]
    child = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        _, said = child.communicate(timeout=ANSWERS_IN if patience is None else patience)
    except subprocess.TimeoutExpired:
        child.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(1)  # and no longer: what hangs in the kernel ends when the share does
        if child.stderr is not None:
            child.stderr.close()
        raise Silent(
            f"The folder for backups, {folder}, does not answer: its disk or share hangs.",
            f"Look at that disk or server, then mount it anew: umount -l {folder} && mount {folder}.",
        ) from None
    if child.returncode == 0:
        return
    if b"FileNotFoundError" in said or b"NotADirectoryError" in said:
        raise NotFound(
            f"The folder for backups is not there: {folder}.", "Plug in the disk, or mount the share, then try again."
        )
    if b"PermissionError" in said:
        return  # who may not read finds out more in a moment
    raise ApplianceError(
        f"The folder for backups, {folder}, cannot be read: {said.decode('utf-8', 'replace').strip().splitlines()[-1][:200]}.",
        "Plug the disk in again, or mount the share anew, then try again.",
    )


@contextmanager
def watched(folder: Path, repository: Path, stop: Callable[[], object]) -> Iterator[None]:
    """While this lasts, look again and again whether the place answers; where it does not, `stop` and raise Silent."""
    done, fault = threading.Event(), []

    def look() -> None:
        while not done.wait(LOOKS_EVERY):
            try:
                require_answer(folder, repository)
            except ApplianceError as error:
                if not done.is_set():
                    fault.append(error)
                    stop()
                return

    thread = threading.Thread(target=look, name="backup place", daemon=True)
    thread.start()
    try:
        yield
    except BaseException:
        if fault:
            raise fault[0] from None
        raise
    finally:
        done.set()
    if fault:
        raise fault[0]


def mounted_at(folder: Path) -> Path:
    """The mount that a folder is on. Raises OSError."""
    device = folder.stat().st_dev
    while folder.parent != folder and folder.parent.stat().st_dev == device:
        folder = folder.parent
    return folder


def require_other_disk(folder: Path, home: Path, *, agreed: bool, mount: str = "") -> None:
    """Raises Conflict where nothing is mounted at the folder, unless that was agreed; `mount`: where it was last time."""
    own = {home.stat().st_dev, os.stat("/").st_dev}
    if folder.stat().st_dev in own and not agreed:
        raise Conflict(
            f"The folder for backups, {folder}, is on the box's own disk: no other disk or share is mounted there.",
            "Mount it, then try again; or agree to that with --same-disk (the setting backup_same_disk).",
        )
    here = mounted_at(folder)
    if mount and Path(mount) != here and here in Path(mount).parents:
        raise Conflict(
            f"The backups were on what is mounted at {mount}, and nothing is mounted there now.", f"Mount it: mount {mount}."
        )


def require_writable(folder: Path) -> None:
    """Write a little there, read it back, and take it away. Raises ApplianceError with what is in the way."""
    trial = folder / f".trial-{secrets.token_hex(6)}"
    word = secrets.token_bytes(16)
    try:
        try:
            with open(trial, "xb") as file:
                file.write(word)
                file.flush()
                os.fsync(file.fileno())
            if trial.read_bytes() != word:
                raise OSError(errno.EIO, "what was written is not what is read")
        finally:
            with contextlib.suppress(FileNotFoundError):
                trial.unlink()
    except OSError as error:
        raise refused(folder, error) from None


def refused(folder: Path, error: OSError) -> ApplianceError:
    """What a file system said, as a sentence and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull(
            f"The disk for backups is full ({folder}). Earlier backups are as they were.",
            "Free some space there, or keep fewer backups (the setting backup_keep).",
        )
    if error.errno == errno.EROFS:
        return read_only(folder)
    if error.errno in (errno.EACCES, errno.EPERM):
        return not_allowed(folder)
    return ApplianceError(
        f"The folder for backups, {folder}, cannot be written: {error.strerror}.",
        "Plug the disk in again, or mount the share anew, then try again.",
    )


def read_only(folder: Path) -> ApplianceError:
    return ApplianceError(
        f"The folder for backups, {folder}, can only be read: its disk or share is mounted so, or went bad.",
        "Mount it for writing: mount -o remount,rw; or take another disk.",
    )


def not_allowed(folder: Path) -> ApplianceError:
    return ApplianceError(
        f"The appliance's user may not write to the folder for backups, {folder}.",
        f"Give it to that user: sudo chown -R appliance: {folder}; a Windows share, and a stick in FAT or exFAT, mounted "
        "with -o uid=appliance,gid=appliance.",
    )
