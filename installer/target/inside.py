"""Run by systemd within the walls of one unit: tries what must not work there, and prints what worked, as a list of sentences.

It reads nobody's data and changes nothing; `probe.py` says what it is to try, and reads its answer.
"""

import base64
import ctypes
import json
import mmap
import os
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

NEW_USERS, NO_RANDOM_ADDRESSES = 0x10000000, 0x0040000  # unshare(2), personality(2)


def fails(what: Callable[[], object]) -> bool:
    try:
        what()
    except OSError:
        return True
    return False


def findings(told: dict[str, Any]) -> Iterator[str]:
    yield from of_the_process(told)
    yield from of_the_files(told)
    yield from of_the_network(told)


def of_the_process(told: dict[str, Any]) -> Iterator[str]:
    with open("/proc/self/status", encoding="ascii") as file:
        status = {name: rest.strip() for name, _, rest in (line.partition(":") for line in file)}
    if status["NoNewPrivs"] != "1":
        yield "it may gain rights"
    if status["Seccomp"] != "2":
        yield "no system call is refused"
    if any(int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")):
        yield "it keeps some of root's rights"
    if os.readlink("/proc/self/ns/user") == told["users"]:
        yield "it shares this machine's users"
    if os.path.exists("/proc/1"):
        yield "it sees other users' processes"
    if told["processes only"] and os.path.exists("/proc/meminfo"):
        yield "it sees the system's figures in /proc"
    system = ctypes.CDLL(None)
    if system.personality(NO_RANDOM_ADDRESSES) != -1:
        yield "it may change how its programs run"
    if told["no new code"] and not fails(lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC).close()):
        yield "it may write code and run it"
    if system.unshare(NEW_USERS) != -1:
        yield "it may make namespaces of its own"


def of_the_files(told: dict[str, Any]) -> Iterator[str]:
    # Not /run: in a container systemd 252 leaves it as it is beside a /proc of the unit's own. There all belongs to root; what
    # listens there is tried below.
    for path in ("/", "/usr", "/etc", "/opt", "/var/log"):
        if not os.statvfs(path).f_flag & os.ST_RDONLY:
            yield f"it may write to {path}"
    if not fails(lambda: os.close(os.open(f"{told['open']}/written", os.O_CREAT | os.O_WRONLY))):
        yield f"it wrote to {told['open']}"
    for path in ("/home", "/root"):
        if os.stat(path).st_mode & 0o777:
            yield f"it can look into {path}"
    if os.path.exists(told["in tmp"]):
        yield "it shares /tmp with others"
    if told["no devices"] and os.path.exists("/dev/console"):
        yield "it sees this machine's devices"
    for path in told["hidden"]:
        if not fails(lambda path=path: os.listdir(path) if os.path.isdir(path) else os.close(os.open(path, os.O_RDONLY))):
            yield f"it can reach {path}"
    own = f"{told['own']}/.probe-{os.getpid()}"  # several services have the same folder, and are tried at once
    try:
        os.close(os.open(own, os.O_CREAT | os.O_WRONLY, 0o600))
    except OSError as error:
        yield f"it cannot write to {told['own']} ({error.strerror})"
        return
    if not fails(lambda: os.chmod(own, 0o4700)):
        yield "it may make programs that run with other rights"
    os.unlink(own)


def of_the_network(told: dict[str, Any]) -> Iterator[str]:
    families = [socket.AF_NETLINK, socket.AF_PACKET]
    if told["no network"]:
        families += [socket.AF_INET, socket.AF_INET6]
        if os.readlink("/proc/self/ns/net") == told["network"]:
            yield "it shares this machine's network"
    for family in families:
        if not fails(
            lambda family=family: socket.socket(
                family, socket.SOCK_RAW if family == socket.AF_NETLINK else socket.SOCK_DGRAM
            ).close()
        ):
            yield f"it may open sockets of the kind {family.name}"
    for host, port, kind in told["addresses"] if told["no network"] else ():
        if not fails(lambda host=host, port=port, kind=kind: reach(host, port, kind)):
            yield f"it reaches {host}"
    for path in told["forwarders"]:
        if not fails(lambda path=path: reach(path)):
            yield f"it reaches {path}"


def reach(host: str, port: int = 0, kind: str = "tcp") -> None:
    """Connect; by udp that only asks the system for a way, and sends nothing. Raises OSError."""
    family = socket.AF_INET if port else socket.AF_UNIX
    with socket.socket(family, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM) as line:
        line.settimeout(3)
        line.connect((host, port) if port else host)


if __name__ == "__main__":
    json.dump(list(findings(json.loads(base64.b64decode(sys.argv[1])))), sys.stdout)
