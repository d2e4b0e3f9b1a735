"""Are the walls around the units real? A unit asks for them; a container, or a kernel without one, leaves it out silently.

So before anything starts, `inside.py` is run in the place of each service, with all the lines that systemd knows for that unit,
also those that somebody added on this machine. What each must not be able to do stands here, and not in the units: a line
that is gone is found as well.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from changes import Changes, Fault
from release import DATA

TRANSIENT = Path("/run/systemd/system")
PLACE = Path("/run/appliance-probe")
OPEN = Path("/var/cache/appliance-probe")
# Behind these somebody else looks up names, or does other things with a network.
FORWARDERS = (
    "/run/dbus/system_bus_socket",
    "/run/systemd/resolve/io.systemd.Resolve",
    "/run/systemd/resolve/io.systemd.Resolve.Monitor",
)
KEPT_FROM_THE_WAY_OUT = ("appliance.sqlite3", "documents", "index", "models", "runs", "jobs", "backups", "backup.key")
# What is no wall but says what the service does and how it is kept running; the rest of a unit's lines is taken as it is.
NO_WALL = ("Exec", "Type=", "Restart", "Watchdog", "Notify", "Timeout", "SuccessExitStatus=", "Standard", "LoadCredential")


def _closed(*, processes_only: bool = False, no_new_code: bool = False, no_devices: bool = True) -> dict[str, Any]:
    """A service without any network."""
    return {
        "no network": True, "processes only": processes_only, "no new code": no_new_code, "no devices": no_devices,
        "own": str(DATA), "hidden": [], "forwarders": list(FORWARDERS),
    }  # fmt: skip


UNITS: dict[str, dict[str, Any]] = {
    "appliance-web": _closed(processes_only=True, no_new_code=True),
    "appliance-engine": _closed(),
    "appliance-worker": _closed(no_devices=False),
    "appliance-retrain": _closed(no_devices=False),
    "appliance-backup": _closed(processes_only=True, no_new_code=True),
    "appliance-egress": _closed(processes_only=True, no_new_code=True) | {
        "no network": False, "own": str(DATA / "run"), "forwarders": [FORWARDERS[0]],
        "hidden": [str(DATA / name) for name in KEPT_FROM_THE_WAY_OUT],
    },
}  # fmt: skip


def walls(changes: Changes, units: Path | None = None) -> None:
    """Raises Fault where a service could do what it must not. `units`: those of a release that is not in place yet."""
    if changes.dry:
        return
    changes.say("Trying the walls around each service from inside.")
    changes.folder(DATA / "run", 0o700, "appliance")
    for unit, found in look(UNITS, units).items():
        if found:
            raise Fault(f"The walls around {unit} do not hold on this machine: {'; '.join(found[:3])}.", _remedy(unit))


def _remedy(unit: str) -> str:
    if _systemctl("show", "-P", "DropInPaths", f"{unit}.service").strip():
        return f"Somebody changed this unit: `systemctl revert {unit}.service`, then run the same command again."
    return "Containers and old kernels leave such walls out: use a machine, or a whole virtual one, with Debian 12."


def look(units: dict[str, dict[str, Any]], folder: Path | None = None) -> dict[str, list[str]]:
    """What each service could do that it must not. Raises Fault."""
    names = {unit: f"appliance-probe-{unit.removeprefix('appliance-')}.service" for unit in units}
    with _place() as about:
        try:
            for unit, name in names.items():
                told = units[unit] | about
                told |= {key: [path for path in told[key] if os.path.exists(path)] for key in ("hidden", "forwarders")}
                told["no devices"] = told["no devices"] and os.path.exists("/dev/console")
                TRANSIENT.mkdir(parents=True, exist_ok=True)
                (TRANSIENT / name).write_text(in_its_place(_lines(f"{unit}.service", folder), told, PLACE / name), "utf-8")
            _systemctl("daemon-reload")
            _systemctl("start", *names.values())
            return {unit: _answer(unit, name) for unit, name in names.items()}
        finally:
            _systemctl("reset-failed", *names.values())
            for name in names.values():
                (TRANSIENT / name).unlink(missing_ok=True)
            _systemctl("daemon-reload")


def _lines(unit: str, folder: Path | None) -> str:
    """Of this unit, with what was added to it on this machine."""
    if folder is None:
        return _systemctl("cat", unit)
    added = _systemctl("show", "-P", "DropInPaths", unit).split()
    return "\n".join(path.read_text("utf-8") for path in (folder / unit, *map(Path, added)))


def in_its_place(unit: str, told: dict[str, Any], answer: Path) -> str:
    """A unit with all the walls of another (its text, and what was added to it), and the probe as its program."""
    lines, section = [], ""
    for line in unit.splitlines():
        section = line if line.startswith("[") else section
        if section == "[Service]" and line and not line.startswith(("[", "#", *NO_WALL)):
            lines.append(line)
    program = base64.b64encode(Path(__file__).with_name("inside.py").read_bytes()).decode()
    words = base64.b64encode(json.dumps(told).encode()).decode()
    lines += [
        "Type=oneshot", "TimeoutStartSec=60", f"ExecStart=/usr/bin/python3 -I - {words}",
        "StandardInput=data", f"StandardInputData={program}", f"StandardOutput=file:{answer}", "StandardError=journal",
    ]  # fmt: skip
    return "\n".join(["[Unit]", "Description=School appliance: the walls of a unit are tried", "[Service]", *lines, ""])


def _answer(unit: str, name: str) -> list[str]:
    try:
        found: list[str] = json.loads((PLACE / name).read_text("utf-8"))
    except (OSError, ValueError):
        code = _systemctl("show", "-P", "ExecMainStatus", name).strip()
        raise Fault(
            f"This machine cannot wall in {unit}: systemd could not start it so (status {code}).",
            f"journalctl -u {name} -n 20; in a container, use a machine or a whole virtual one with Debian 12.",
        ) from None
    return found


@contextlib.contextmanager
def _place() -> Iterator[dict[str, Any]]:
    """What would be open to any process of this machine that has no walls: a folder, a file in /tmp, a port."""
    for folder, mode in ((PLACE, 0o755), (OPEN, 0o1777)):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        os.chmod(folder, mode)
    seen = Path("/tmp") / f"appliance-probe-{secrets.token_hex(8)}"
    seen.touch(mode=0o644)
    try:
        with socket.create_server(("127.0.0.1", 0)) as door:
            port = door.getsockname()[1]
            with socket.create_connection(("127.0.0.1", port), 3):
                pass  # it can be reached from here
            yield {
                "open": str(OPEN), "in tmp": str(seen), "network": os.readlink("/proc/self/ns/net"),
                "users": os.readlink("/proc/self/ns/user"),
                "addresses": [["127.0.0.1", port, "tcp"], ["127.0.0.53", 53, "udp"], ["192.0.2.1", 443, "udp"], *_lan()],
            }  # fmt: skip
    finally:
        seen.unlink(missing_ok=True)
        for folder in (PLACE, OPEN):
            shutil.rmtree(folder, ignore_errors=True)


def _lan() -> list[list[Any]]:
    """The address under which the LAN reaches this machine, where there is one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line, contextlib.suppress(OSError):
        line.connect(("192.0.2.1", 443))  # sends nothing
        return [[line.getsockname()[0], 443, "tcp"]]
    return []


def _systemctl(*words: str) -> str:
    line: Sequence[str] = ["systemctl", *words]
    return subprocess.run(line, capture_output=True, text=True, check=False).stdout
