"""The walls around the services, tried from inside on a booted Debian; and that the installer stops where one is missing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.machine import booted
from tests.machine.booted import Box

pytestmark = [pytest.mark.machine, pytest.mark.optional, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
# The system's Python, as the bundle's Debian packages bring it: this machine's own, which is the same Debian.
PYTHON = ("usr/bin/python3.11", "usr/lib/python3.11")
LIBRARIES = ("libexpat.so.1", "libffi.so.8", "libz.so.1")
TRY = """
import sys
import probe
from changes import Changes, Fault
try:
    probe.walls(Changes(dry=False))
except Fault as fault:
    sys.exit(f"{fault.message} {fault.hint}")
"""


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """A machine with the units and the user, and nothing installed."""
    booted.require()
    folder = tmp_path_factory.mktemp("walls")
    (folder / "stick").mkdir()
    box = Box(folder / "box", folder / "stick")
    for path in PYTHON:
        (box.root / path).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copy2 if Path("/", path).is_file() else shutil.copytree
        copy(Path("/", path), box.root / path)
    (box.root / "usr/bin/python3").symlink_to("python3.11")
    for name in LIBRARIES:
        shutil.copy2(Path("/usr/lib/x86_64-linux-gnu", name), box.root / "usr/lib/x86_64-linux-gnu" / name)
    for path in (ROOT / "systemd").iterdir():
        shutil.copy(path, box.root / "etc/systemd/system")
    shutil.copytree(ROOT / "installer/target", box.root / "root/target")
    (box.root / "root/target/try.py").write_text(TRY)
    box.boot()
    home = "/var/lib/appliance"
    box.run(f"useradd --system --user-group --home-dir {home} --no-create-home appliance; groupadd --system appliance-egress")
    box.run(f"install -d -o appliance -g appliance -m 700 {home}; install -o appliance /dev/null {home}/backup.key")
    yield box
    box.cut_power()


def test_on_a_machine_that_enforces_them_all_walls_hold(box: Box) -> None:
    code, said = box.code("python3 /root/target/try.py")
    assert code == 0, said
    left = box.run("ls -A /run /tmp /var/cache /run/systemd/system /var/lib/appliance /var/lib/appliance/run", check=False)
    assert "probe" not in left
    assert "appliance-probe" not in box.run("systemctl list-units --all --no-pager")


@pytest.mark.parametrize(
    ("unit", "line", "told"),
    [
        ("web", "PrivateNetwork=no", "it shares this machine's network"),
        ("engine", "RestrictAddressFamilies=AF_INET", "it may open sockets of the kind AF_INET"),
        ("worker", "ProtectSystem=no", "it may write to /"),
        ("retrain", "InaccessiblePaths=", "it reaches /run/dbus/system_bus_socket"),
        ("backup", "PrivateUsers=no", "it shares this machine's users"),
        ("egress", "InaccessiblePaths=", "it can reach /var/lib/appliance/backup.key"),
    ],
)
def test_a_wall_that_somebody_took_away_stops_the_installation(box: Box, unit: str, line: str, told: str) -> None:
    change = f"/etc/systemd/system/appliance-{unit}.service.d"
    box.run(f"mkdir -p {change} && printf '[Service]\\n{line}\\n' > {change}/own.conf && systemctl daemon-reload")
    code, said = box.code("python3 /root/target/try.py")
    box.run(f"rm -r {change} && systemctl daemon-reload")
    assert code == 1 and f"The walls around appliance-{unit} do not hold on this machine" in said and told in said, said
    assert f"systemctl revert appliance-{unit}.service" in said
