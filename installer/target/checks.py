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
SYSTEMD = Path("/run/systemd/system")  # is there while systemd runs the machine
DATA = Path("/var/lib")
WRITTEN = (Path("/etc"), Path("/opt"), Path("/usr/local"), Path("/var/lib"))
DISK_MB = 3000  # the release 2,200, and room for the data of the first weeks
DATA_MB = 800  # of these, where data has a disk of its own
MEMORY_MB = 2500
ADVISED_MB = 6000
FIRST_DAY = 1_790_000_000  # 21 September 2026: no clock that is right says less
LAST_DAY = FIRST_DAY + 30 * 365 * 86400
DRIVER = 525  # NVIDIA's, for CUDA 12
GPU_SECONDS = 20.0  # a driver that hangs is one that does not work


@dataclass(frozen=True)
class Found:
    """state: "fine", "note" where it works but less well, "stop" where it does not. remedy: the one thing to do."""

    name: str
    state: str
    detail: str
    remedy: str = ""


def all_of_them(opt: Path, ours: Callable[[int], bool], *, cuda: bool = False) -> list[Found]:
    """opt: where releases go. ours: whether the proxy of an earlier run holds a port. cuda: whether the bundle is for a GPU."""
    return [_system(), _processor(), _memory(), _disk(opt), _ports(ours), _clock(), _writable(), *_gpu(cuda)]


def _system() -> Found:
    facts = dict(line.split("=", 1) for line in OS_RELEASE.read_text().splitlines() if "=" in line)
    name = facts.get("PRETTY_NAME", "").strip('"')
    if not SYSTEMD.is_dir():
        said = f"{name or 'This machine'} is not run by systemd, which starts the appliance's services."
        return Found("System", "stop", said, "Use a PC with Debian 12 of its own, no container and no chroot.")
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
    where = opt
    while not where.is_dir():
        where = where.parent
    least = 0
    for folder, needed in ((DATA, DATA_MB), (where, DISK_MB)):
        least = shutil.disk_usage(folder).free // 2**20
        if least < needed:
            said = f"{least} MB are free below {folder}; {needed} are needed."
            return Found("Disk", "stop", said, "Free some space, or use a larger disk.")
    return Found("Disk", "fine", f"{least} MB free")


def _ports(ours: Callable[[int], bool]) -> Found:
    for port in PORTS:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("0.0.0.0", port))
            except OSError:
                if not ours(port):
                    return Found("Ports", "stop", *_taken(port))
    return Found("Ports", "fine", "443 and 80 are free or the appliance's own")


def _taken(port: int) -> tuple[str, str]:
    said = ""
    if shutil.which("ss"):
        words = ["ss", "-Hltnp", "sport", "=", f":{port}"]
        said = subprocess.run(words, capture_output=True, text=True, check=False).stdout
    holder = re.search(r'users:\(\("([^"]+)"', said)
    if holder:
        return (
            f"Port {port} is taken by {holder[1]}.",
            f"Stop it for good (systemctl disable --now ...): port {port} is the box's.",
        )
    return f"Port {port} is taken by another program.", f"See which with `ss -ltnp sport = :{port}`, and stop it for good."


def _clock() -> Found:
    now = time.time()
    if not FIRST_DAY < now < LAST_DAY:
        said = time.strftime("%d %B %Y", time.gmtime(now))
        return Found("Clock", "stop", f"This machine believes it is {said}.", "Set it: timedatectl set-time 'YYYY-MM-DD HH:MM'")
    zone = time.strftime("%Z", time.localtime(now))
    told = time.strftime("%d %B %Y, %H:%M", time.localtime(now))
    return Found("Clock", "fine", f"{told} {zone}; `timedatectl set-timezone` where that is another hour than the school's")


def _writable() -> Found:
    for folder in WRITTEN:
        if not os.access(folder, os.W_OK):
            disk = folder
            while not disk.is_mount():
                disk = disk.parent
            return Found("Folders", "stop", f"{folder} cannot be written.", f"Make it writable: mount -o remount,rw {disk}")
    return Found("Folders", "fine", f"{', '.join(map(str, WRITTEN))} can be written")


def _gpu(cuda: bool) -> list[Found]:
    """What a bundle with CUDA's libraries can serve on; one without them serves on the processor, whatever is there."""
    if not shutil.which("nvidia-smi"):
        said = "This bundle is for an NVIDIA GPU, and its driver is not installed."
        return [Found("GPU", "note", said, "The box serves on its processor until it is.")] if cuda else []
    words = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        said = subprocess.run(words, capture_output=True, text=True, check=True, timeout=GPU_SECONDS).stdout
        name, driver, memory = (part.strip() for part in said.splitlines()[0].split(","))
        number = int(driver.split(".")[0])
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        if not cuda:
            return [Found("GPU", "fine", "nvidia-smi finds no GPU that works: this bundle serves on the processor")]
        return [Found("GPU", "note", "nvidia-smi finds no GPU that works.", "The box serves on its processor meanwhile.")]
    if not cuda:
        return [Found("GPU", "fine", f"{name}, {memory}: this bundle serves on the processor; one made with --cuda on the GPU")]
    if number < DRIVER:
        said = f"{name}: its driver {driver} is too old, {DRIVER} is needed."
        return [Found("GPU", "note", said, "The box serves on its processor until the driver is newer.")]
    return [Found("GPU", "fine", f"{name}, {memory}, driver {driver}: this bundle serves on it")]
