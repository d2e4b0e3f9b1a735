"""A real Debian 12, booted in a container of its own: units, reboots, power cuts, and a LAN with one neighbour, this machine.

Hides debootstrap, systemd-nspawn, and how a command is run inside. Everything that leaves the box passes one virtual cable, and
what is not meant for the LAN is counted there.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

TREE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "appliance" / "debian12"
PACKAGES = "systemd,systemd-sysv,dbus,ca-certificates,openssl"
LAN = ipaddress.ip_network("10.77.0.0/24")
HERE, BOX = "10.77.0.1", "10.77.0.2"
GROUPS = Path("/sys/fs/cgroup")
LIMITING = ("cpu", "cpuacct", "memory")  # kinds of control groups, where each has a tree of its own (version 1)


def require() -> None:
    """Skip where this machine cannot boot another one."""
    for tool in ("debootstrap", "systemd-nspawn", "nsenter", "ip"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed: no Debian can be booted here")
    if os.geteuid() != 0:
        pytest.skip("only root can boot a Debian in a container")


def tree() -> Path:
    """A Debian 12 with nothing but itself, made once."""
    if not (TREE / "usr").is_dir():
        part = TREE.with_name("debian12.part")
        shutil.rmtree(part, ignore_errors=True)
        part.parent.mkdir(parents=True, exist_ok=True)
        words = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(part)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"debootstrap could not make a Debian here: {done.stdout[-300:]}")
        part.rename(TREE)
    return TREE


@contextlib.contextmanager
def disk(folder: Path) -> Iterator[Path]:
    """A disk of its own, which keeps what is on it when a box that has it plugged in loses its power."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


class Box:
    """One machine; only one runs at a time. `stick`: a folder of this machine that is plugged in as /mnt/stick, for reading;
    `usb`: as /mnt/usb.
    """

    def __init__(
        self, root: Path, stick: Path, usb: Path | None = None, *, name: str = "appliancebox", address: str = BOX
    ) -> None:
        self.root, self.stick, self.usb, self.name, self.address = root, stick, usb, name, address
        self._groups = [group / f"appliancebox-{root.name}" for group in _own_groups()]
        self._process: subprocess.Popen[bytes] | None = None
        subprocess.run(["cp", "-a", "--reflink=auto", str(tree()), str(root)], check=True)
        (root / "mnt" / "stick").mkdir(parents=True)
        for fact, own in (("machine-id", uuid.uuid4().hex), ("hostname", name)):  # the tree has some
            (root / "etc" / fact).write_text(f"{own}\n")
        (root / "etc" / "hosts").write_text("127.0.0.1\tlocalhost\n::1\tlocalhost\n")  # as Debian's own installer does

    def boot(self, *, cut_power_when: Callable[[], bool] | None = None) -> None:
        """Until it is up, or loses its power once more."""
        words = [
            "systemd-nspawn", "-q", "-D", self.root, "-b", f"--machine={self.name}", "--register=no", "--keep-unit",
            "--private-network", "--network-veth", f"--bind-ro={self.stick}:/mnt/stick",
        ]  # fmt: skip
        words += [f"--bind={self.usb}:/mnt/usb"] if self.usb else []
        words = ["sh", "-c", 'for group in $GROUPS; do echo $$ >"$group/cgroup.procs"; done; exec "$@"', "sh", *words]
        for group in self._groups:
            group.mkdir(exist_ok=True)
        about = os.environ | {"GROUPS": " ".join(map(str, self._groups))}
        with open(self.root.with_suffix(".log"), "ab") as log:
            pipes = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            self._process = subprocess.Popen([str(word) for word in words], env=about, **pipes)
        ends = time.monotonic() + 120
        while self.run("systemctl is-system-running 2>/dev/null", check=False).strip() not in ("running", "degraded"):
            assert time.monotonic() < ends, f"the box does not come up: {self.root.with_suffix('.log').read_text()[-500:]}"
            if cut_power_when is not None and cut_power_when():
                self.cut_power()
                return
            time.sleep(0.1 if cut_power_when else 0.3)
        assert cut_power_when is None, "the box came up before its power was cut"
        cable = next(name for name in os.listdir("/sys/class/net") if name.startswith(f"ve-{self.name}"[:7]))
        for line in (f"addr replace {HERE}/24 dev {cable}", f"link set {cable} up"):
            subprocess.run(["ip", *line.split()], check=True)
        for line in (f"addr replace {self.address}/24 dev host0", "link set host0 up", f"route replace default via {HERE}"):
            subprocess.run(["nsenter", "-t", self._leader(), "-n", "ip", *line.split()], check=True)  # the box may have no `ip`
        self.cable = cable

    def run(self, command: str, *, check: bool = True, seconds: float = 900) -> str:
        """What a shell command says inside, both its outputs."""
        leader = self._leader()
        if not leader:
            return ""
        words = [*_inside(leader), f"cd /; {command}"]
        pipe = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        done = subprocess.run(words, **pipe, text=True, timeout=seconds, check=False)
        assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout[-3000:]}"
        return done.stdout

    def start(self, command: str) -> subprocess.Popen[str]:
        """A command that is not waited for."""
        words = [*_inside(self._leader()), f"cd /; {command}"]
        quiet = subprocess.DEVNULL
        return subprocess.Popen(words, stdin=quiet, stdout=quiet, stderr=quiet, text=True)

    def code(self, command: str) -> tuple[int, str]:
        """The exit code of a command, and what it said."""
        said = self.run(f'{{ {command} ; }} 2>&1; echo "code=$?"', check=False)
        text, _, code = said.rpartition("code=")
        return int(code), text

    def _leader(self) -> str:
        if self._process is None or self._process.poll() is not None:
            return ""
        found = subprocess.run(["pgrep", "-P", str(self._process.pid)], capture_output=True, text=True, check=False).stdout
        return found.split()[0] if found.split() else ""

    def cut_power(self) -> None:
        """All of its processes at once, with no time for anything."""
        if self._process is None:
            return
        leader = self._leader()
        if leader:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(leader), signal.SIGKILL)  # process 1 of the box: the kernel ends all others with it
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(20)
        self._process.kill()
        self._process.wait()
        self._process = None
        self._leave_no_groups()

    def power_off(self) -> None:
        """As by the power button: the units are stopped in order."""
        assert self._process is not None
        os.kill(int(self._leader()), signal.SIGRTMIN + 4)
        self._process.wait(120)
        self._process = None
        self._leave_no_groups()

    def enforce_limits(self) -> None:
        """From now on its units have the weights and limits for processors and memory that they ask for. Skips where a box in
        a container cannot be given that: this machine's control groups of version 1 are lent to it, read-only at first, and
        those of version 2 have to be handed down to it with the controllers `cpu` and `memory`.
        """
        if not self._groups and not {"cpu", "memory"} <= set(self.run(f"cat {GROUPS}/cgroup.controllers", check=False).split()):
            pytest.skip("no controllers for processors and memory are handed down to a container here")
        lent = [f"mount -o remount,rw,bind {GROUPS}/{group.relative_to(GROUPS).parts[0]}" for group in self._groups]
        self.run("; ".join([*lent, "systemctl daemon-reexec"]))

    def group(self, unit: str, kind: str) -> str:
        """Where a service's control group is, inside: kind `cpu` or `memory`."""
        return f"{GROUPS / (kind if self._groups else '')}/system.slice/{unit}.service"

    def _leave_no_groups(self) -> None:
        for group in self._groups:
            for folder in (*sorted(group.rglob("*/"), reverse=True), group):
                with contextlib.suppress(OSError):
                    folder.rmdir()

    def cut_power_when(self, true: Callable[[], bool], command: str, *, seconds: float = 300) -> None:
        """Start a command, and cut the power as soon as something is so; it must not have ended before."""
        work, ends = self.start(command), time.monotonic() + seconds
        while not true():
            assert work.poll() is None, f"{command} ended before the power was cut"
            assert time.monotonic() < ends, f"{command} never came to where the power is cut"
            time.sleep(0.02)
        self.cut_power()
        work.wait(30)

    def reboot(self) -> None:
        self.power_off()
        self.boot()


def _own_groups() -> list[Path]:
    """This process's control groups of the kinds that limit, where each kind has a tree of its own; else none."""
    found = (line.split(":", 2) for line in Path("/proc/self/cgroup").read_text("ascii").splitlines())
    return [GROUPS / kinds / path.lstrip("/") for _number, kinds, path in found if set(kinds.split(",")) & set(LIMITING)]


def _inside(leader: str) -> list[str]:
    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return ["nsenter", "-t", leader, "-a", "env", "-i", path, "HOME=/root", "sh", "-c"]


@contextlib.contextmanager
def leaving(cable: str) -> Iterator[list[str]]:
    """Addresses beyond the LAN to which the box sent something meanwhile, a packet each."""
    found: list[str] = []
    ended = threading.Event()
    line = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0003))
    line.bind((cable, 0))
    line.settimeout(0.2)

    def listen() -> None:
        while not ended.is_set():
            try:
                data, about = line.recvfrom(2048)
            except TimeoutError:
                continue
            except OSError:
                return  # the box lost its power, and the cable is gone
            if about[2] == socket.PACKET_OUTGOING:
                continue  # from this machine to the box
            if about[1] == 0x0800:
                to: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.IPv4Address(data[16:20])
            elif about[1] == 0x86DD:
                to = ipaddress.IPv6Address(data[24:40])
            else:
                continue
            if not (to.is_multicast or to.is_link_local or (to.version == 4 and to in LAN)):
                found.append(str(to))

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        yield found
        time.sleep(0.5)
    finally:
        ended.set()
        thread.join()
        line.close()
