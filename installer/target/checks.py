"""Can this machine be a school's appliance? Each check says in plain words what it found; nothing is changed.

The figures are what the program needs with its starter model; a larger model says at its import what it needs.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PORTS = (443, 80)
PROC, OS_RELEASE = Path("/proc"), Path("/etc/os-release")
DISK_MB = 3000  # the release 2,200, and room for the data of the first weeks
MEMORY_MB = 2500
ADVISED_MB = 6000
FIRST_DAY = 1_790_000_000  # 21 September 2026: no clock that is right says less
LAST_DAY = FIRST_DAY + 30 * 365 * 86400
DRIVER = 525  # NVIDIA's, for CUDA 12


@dataclass(frozen=True)
class Found:
    """state: "fine", "note" where it works but less well, "stop" where it does not. remedy: the one thing to do."""

    name: str
    state: str
    detail: str
    remedy: str = ""


def all_of_them(opt: Path, ours: Callable[[int], bool]) -> list[Found]:
    """opt: where releases go. ours: whether a port is held by what an earlier run installed."""
    return [_system(), _processor(), _memory(), _disk(opt), _ports(ours), _clock(), _writable(), *_gpu()]


def _system() -> Found:
    facts = dict(line.split("=", 1) for line in OS_RELEASE.read_text().splitlines() if "=" in line)
    name = facts.get("PRETTY_NAME", "").strip('"')
    if facts.get("ID") == "debian" and facts.get("VERSION_ID", "").strip('"') == "12" and platform.machine() == "x86_64":
        return Found("System", "fine", name)
    if platform.machine() != "x86_64":
        return Found("System", "stop", f"{platform.machine()} processors are not in this bundle.", "Use a PC with Debian 12.")
    return Found("System", "note", f"{name or 'unknown'}: tested on Debian 12 only.", "Go on if you know what you do.")


def _processor() -> Found:
    text = (PROC / "cpuinfo").read_text()
    flags = set(re.search(r"^flags\s*:(.*)$", text, re.M)[1].split()) if "flags" in text else set()  # type: ignore[index]
    model = re.search(r"^model name\s*: (.*)$", text, re.M)
    said = f"{model[1] if model else 'unknown'}, {os.cpu_count()} cores"
    if "avx" not in flags:
        return Found("Processor", "stop", f"{said}: it is too old (no AVX).", "Use a PC from 2012 or later.")
    if "avx2" not in flags:
        return Found("Processor", "note", f"{said}: without AVX2 answers come slowly.", "A PC from 2015 or later is quicker.")
    if (os.cpu_count() or 1) < 2:
        return Found("Processor", "note", f"{said}: one core serves one or two people at once.", "Give it more cores.")
    return Found("Processor", "fine", said)


def _memory() -> Found:
    total = int(re.search(r"MemTotal:\s+(\d+)", (PROC / "meminfo").read_text())[1]) // 1024  # type: ignore[index]
    if total < MEMORY_MB:
        return Found("Memory", "stop", f"{total} MB; {MEMORY_MB} are needed.", "Put more memory into the machine.")
    if total < ADVISED_MB:
        said = f"{total} MB: enough for small models, and for tuning the starter only."
        return Found("Memory", "note", said, f"{ADVISED_MB} MB and more let the box serve models that can teach.")
    return Found("Memory", "fine", f"{total} MB")


def _disk(opt: Path) -> Found:
    where = opt if opt.is_dir() else opt.parent
    while not where.is_dir():
        where = where.parent
    free = shutil.disk_usage(where).free // 2**20
    if free < DISK_MB:
        return Found(
            "Disk", "stop", f"{free} MB are free below {where}; {DISK_MB} are needed.", "Free some space, or use a larger disk."
        )
    return Found("Disk", "fine", f"{free} MB free")


def _ports(ours: Callable[[int], bool]) -> Found:
    for port in PORTS:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("0.0.0.0", port))
            except OSError:
                if not ours(port):
                    said = f"Port {port} is taken by another program."
                    return Found("Ports", "stop", said, f"See which with `ss -ltnp sport = :{port}`, and stop it for good.")
    return Found("Ports", "fine", "443 and 80 are free or the appliance's own")


def _clock() -> Found:
    now = time.time()
    if not FIRST_DAY < now < LAST_DAY:
        said = time.strftime("%d %B %Y", time.gmtime(now))
        return Found("Clock", "stop", f"This machine believes it is {said}.", "Set it: timedatectl set-time 'YYYY-MM-DD HH:MM'")
    return Found("Clock", "fine", time.strftime("%d %B %Y, %H:%M", time.localtime(now)))


def _writable() -> Found:
    for folder in (Path("/etc"), Path("/opt"), Path("/var/lib")):
        if not os.access(folder, os.W_OK):
            return Found("Folders", "stop", f"{folder} cannot be written.", f"Make it writable: mount -o remount,rw {folder}")
    return Found("Folders", "fine", "/etc, /opt and /var/lib can be written")


def _gpu() -> list[Found]:
    if not shutil.which("nvidia-smi"):
        return []
    words = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=20)
    if done.returncode:
        return [Found("GPU", "note", "nvidia-smi finds no GPU that works.", "The box serves on its processor meanwhile.")]
    name, driver, memory = (part.strip() for part in done.stdout.splitlines()[0].split(","))
    if int(driver.split(".")[0]) < DRIVER:
        said = f"{name}: its driver {driver} is too old, {DRIVER} is needed."
        return [Found("GPU", "note", said, "The box serves on its processor until the driver is newer.")]
    return [Found("GPU", "fine", f"{name}, {memory}, driver {driver}: this bundle serves on the processor")]
