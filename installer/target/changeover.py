#!/usr/bin/python3
"""Changes a box over to another release, and back where that does not answer. Run by systemd: appliance-changeover.service.

What is to become what is written down first (PLAN). So nothing stops it half-way: when the installer is killed it goes on,
when it is killed itself systemd starts it again, and after a power cut it goes on at the next boot, until the box answers with
one of the two releases. What a release is on the machine - a link, and its units - is put in place while no service runs.
"""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path("/opt/appliance")
RELEASES, CURRENT = ROOT / "releases", ROOT / "current"
PLAN = ROOT / "changing.json"  # {"before", "to"}, and "failed" and "why" once the new release did not answer
OUTCOME = (
    ROOT / "changed.json"
)  # the plan, with "runs", "answers", "seconds" (that the pages waited) and "at"; the doctor reads it
UNITS = Path("/etc/systemd/system")
WEB = Path("/run/appliance/web.sock")
SERVICES = ("appliance-web.service", "appliance-worker.service", "appliance-engine.service")
WAY_OUT = "appliance-egress.service"  # runs where the school wants it
# They run the release that goes as well. What the first two were doing is taken up by the worker, and the next night.
BESIDE = ("appliance-retrain.service", "appliance-backup.service", WAY_OUT)
PATIENCE = 120.0  # seconds until a release has to answer
RESTARTS = 3  # of one service: after so many it will not come up, and nobody has to wait any longer
LOOK = 0.2


def main() -> int:
    if not PLAN.is_file():
        return 0
    plan = json.loads(PLAN.read_text("utf-8"))
    began = time.monotonic()
    if not plan.get("failed"):
        put_in_place(plan["to"])
        why = silent()
        if not why:
            return end(plan, plan["to"], True, began)
        plan |= {"failed": True, "why": why}
        write(PLAN, json.dumps(plan))  # a power cut from here on goes on going back
    put_in_place(plan["before"])
    return end(plan, plan["before"], answers(), began)


def put_in_place(version: str) -> None:
    """Stop what runs, have the link and the units be this release's, start them; only what is not so yet."""
    if not in_place(version):
        systemctl("stop", *BESIDE, *SERVICES)
        for path in units(version):
            write(UNITS / path.name, path.read_text("utf-8"))
        link(version)
    systemctl("daemon-reload")
    systemctl("reset-failed", *SERVICES)
    systemctl("start", "--no-block", *SERVICES)
    if systemctl("is-enabled", "--quiet", WAY_OUT) == 0:
        systemctl("start", "--no-block", WAY_OUT)


def in_place(version: str) -> bool:
    if current() != version:
        return False
    there = ((UNITS / path.name, path) for path in units(version))
    return all(path.is_file() and path.read_bytes() == own.read_bytes() for path, own in there)


def current() -> str:
    """The version that runs; "" on a new box."""
    return Path(os.readlink(CURRENT)).name if CURRENT.is_symlink() else ""


def units(version: str) -> list[Path]:
    """None where a release brought none of its own: then those that are there stay."""
    folder = RELEASES / version / "systemd"
    return sorted(path for path in folder.glob("*") if path.suffix in (".service", ".socket", ".timer"))


def link(version: str) -> None:
    """In one step, and on the disk."""
    part = CURRENT.with_name(".current.part")
    part.unlink(missing_ok=True)
    part.symlink_to(f"releases/{version}")
    part.replace(CURRENT)
    sync(ROOT)


def end(plan: dict, runs: str, answered: bool, began: float) -> int:
    told = plan | {"runs": runs, "answers": answered, "seconds": round(time.monotonic() - began), "at": time.time()}
    write(OUTCOME, json.dumps(told))
    PLAN.unlink(missing_ok=True)
    sync(ROOT)
    return 0


def answers() -> bool:
    """Whether the pages come through the web process's socket, within PATIENCE seconds and before a service gives up."""
    return not silent()


def silent() -> str:
    """Why they do not come; "" as soon as they do."""
    ends = time.monotonic() + PATIENCE
    while time.monotonic() < ends:
        if asked("/ready"):
            return ""
        ended = hopeless()
        if ended:
            return f"{ended} ended again and again"
        time.sleep(LOOK)
    return f"the pages did not come within {PATIENCE:.0f} seconds"


def asked(path: str) -> bool:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
            line.settimeout(3)  # systemd takes the call while the web process is not there: it is not to be waited for long
            line.connect(str(WEB))
            line.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            return line.recv(64).split(b" ")[1:2] == [b"200"]
    except OSError:
        return False


def hopeless() -> str:
    """The service that ended again and again, or was given up by systemd; "" where none was."""
    words = ["systemctl", "show", "--property=Id,ActiveState,NRestarts", *SERVICES]
    said = subprocess.run(words, capture_output=True, text=True, check=False).stdout
    for block in said.split("\n\n"):
        facts = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        restarts = facts.get("NRestarts", "")
        if facts.get("ActiveState") == "failed" or (restarts.isdigit() and int(restarts) >= RESTARTS):
            return facts.get("Id", "a service").removesuffix(".service")
    return ""


def systemctl(*words: str) -> int:
    return subprocess.run(["systemctl", *words], check=False).returncode


def write(path: Path, text: str) -> None:
    """Whole or not at all, also after a power cut."""
    part = path.with_name(f".{path.name}.part")
    with open(part, "w", encoding="utf-8") as handle:
        os.fchmod(handle.fileno(), 0o644)
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    part.replace(path)
    sync(path.parent)


def sync(folder: Path) -> None:
    """Make the renames in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


if __name__ == "__main__":
    sys.exit(main())
