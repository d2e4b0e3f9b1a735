"""Where the proof takes place: a network and mounts of its own, as root or as a user whom the kernel lets have them.

Hides how such a space is entered, and how the ways are closed by which a name could be looked up outside it: Unix sockets reach
across networks, so those of resolvers and of the system's bus are covered, and the machine's own resolv.conf with them.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from pathlib import Path

from appliance.errors import ApplianceError, Unsupported
from appliance.proof.wire import NAMES

FORWARDERS = ("/run/systemd/resolve", "/run/dbus", "/run/nscd", "/run/avahi-daemon")
RESOLVER = Path("/etc/resolv.conf")
_BIND = 4096
_NET_ADMIN = 12  # the number of this right (capabilities(7))


def words() -> list[str]:
    """The words before a command that has a space of its own. Raises Unsupported where this machine allows none."""
    unshare, why = shutil.which("unshare"), "the command unshare is missing"
    # With processes of its own where that is allowed: then nothing of the trial outlives it, however it ends.
    for more in (
        ["--pid", "--mount-proc"],
        ["--user", "--map-root-user", "--pid", "--mount-proc"],
        [],
        ["--user", "--map-root-user"],
    ):
        if unshare:
            command = [unshare, *more, "--net", "--mount", "--kill-child", "--fork"]
            done = subprocess.run([*command, "cat", "/proc/self/status"], capture_output=True, text=True, check=False)
            if done.returncode == 0 and _may_lay_wires(done.stdout):
                return command
            if done.returncode == 0:
                why = "in a network of one's own nothing may be set up"  # as root in a container, whose rights are fewer
            else:
                why = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit code {done.returncode}"
    raise Unsupported(
        f"This machine lets nobody have a network of their own, so nothing can be proved here ({why}).",
        "Run it as root, outside a container, or let users have one: `sysctl -w kernel.unprivileged_userns_clone=1`.",
    )


def _may_lay_wires(status: str) -> bool:
    """status: of a process there, as the kernel tells it."""
    rights = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.M)
    return rights is not None and bool(int(rights[1], 16) >> _NET_ADMIN & 1)


def close_ways(work: Path) -> None:
    """In the space: names are asked of the wire's name server, which never answers, and of nobody else."""
    told = work / "resolv.conf"
    told.write_text(f"nameserver {NAMES}\n", "ascii")
    real = Path(os.path.realpath(RESOLVER))
    for path in FORWARDERS:
        if os.path.isdir(path):
            empty = work / "nothing" / path.strip("/").replace("/", "-")
            empty.mkdir(parents=True)
            if real.is_relative_to(os.path.realpath(path)):
                shutil.copy(told, empty / real.name)
            _cover(empty, Path(path))
    if real.is_file() and real.read_bytes() != told.read_bytes():
        _cover(told, real)


def _cover(source: Path, target: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(os.fsencode(source), os.fsencode(target), None, _BIND, None) != 0:
        why = os.strerror(ctypes.get_errno())
        raise ApplianceError(f"{target} cannot be covered for the proof ({why}).", "Run it as root, outside a container.")
