"""Do the services that run now stand behind their units' walls? The system itself is asked, not the units.

The installer tries the walls from inside before it starts anything; this finds a unit that was changed since. It can be told
only from outside of them, so from the box's command line.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from appliance.checkup.check import Check

SERVICES = ("appliance-web", "appliance-engine", "appliance-worker")
_RIGHTS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


def walls() -> Check | None:
    """None where no service of this box is a unit of systemd."""
    if shutil.which("systemctl") is None:
        return None
    looked = 0
    for unit in SERVICES:
        words = ["systemctl", "show", "-P", "MainPID", f"{unit}.service"]
        said = subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()
        if not said.isdigit() or said == "0":
            continue  # whether it runs is told elsewhere
        looked += 1
        missing = _missing(Path("/proc", said))
        if missing:
            return Check("Walls", False, f"{unit} is not walled in: it {missing}.",
                         "See what was changed in its unit, take that back, and start it again.",
                         f"systemctl cat {unit}")  # fmt: skip
    return (
        Check("Walls", True, "The services stand behind their walls: no network, and no rights beyond their own.")
        if looked
        else None
    )


def _missing(process: Path) -> str:
    """What a process may do that none of the services may; "" where there is nothing."""
    lines = (process / "status").read_text("ascii", "replace").splitlines()
    status = {name: rest.strip() for name, _, rest in (line.partition(":") for line in lines)}
    # Not by ns/net: with PrivateUsers= that is shown to root alone, and this command is not root.
    devices = {line.partition(":")[0].strip() for line in (process / "net" / "dev").read_text("ascii").splitlines()[2:]}
    if devices - {"lo"}:
        return "has this machine's network"
    if status.get("Seccomp") != "2":
        return "may make any system call"
    if status.get("NoNewPrivs") != "1" or any(int(status.get(name, "1"), 16) for name in _RIGHTS):
        return "may have or gain root's rights"
    return ""
