"""No process of the box reaches out by itself: an audit hook refuses it before a byte is sent or a name is looked up.

Hides what of Python's sockets is watched, and how a refused attempt is counted and told. It sees what Python code does, in
whatever library; what native code does is for the wall outside: the units, and the rules of `appliance network rules`. Who may
listen is none of its business: it stops what goes out, and that includes this machine's own loopback, where a resolver or a
proxy would carry it on. Exceptions are made by `egress`, for the very host that it was asked for and the policy allows, and by
the doctor (`checkup.border`), who looks whether the doors of this machine are open, at the loopback address itself.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import ipaddress
import json
import logging
import os
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

from appliance.errors import Forbidden

# Where a process appends a line for each refused attempt; `appliance network prove` counts them there.
LOG = "APPLIANCE_GUARD_LOG"
MOST_TOLD = 100  # different attempts of one process that are written down; all are refused and counted
LOOPBACK = "127.0.0.1"
_LOCAL = {socket.AF_UNIX, socket.AF_NETLINK}
# Unix sockets behind which somebody else looks up names, or does other things with a network.
_FORWARDERS = ("/run/systemd/resolve", "/run/dbus", "/run/nscd", "/run/avahi-daemon")
_OWN = ("appliance.guard", "appliance.network", "importlib", "contextlib")


class Refused(Forbidden, PermissionError):
    """A library tried to reach a host by itself. Also an OSError, as of a machine without a network: libraries expect these."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.errno, self.strerror = errno.EACCES, message


@dataclass(frozen=True, slots=True)
class Attempt:
    """`target`: the host or address; `by`: the module that asked for it, "" where that is not known. Nothing that was sent."""

    target: str
    by: str


attempts: Counter[Attempt] = Counter()
_lock = threading.Lock()
_passing: Counter[tuple[str, int]] = Counter()
_names: set[str] = set()
_tell: Callable[[Attempt], None] | None = None
_installed = False
_log = logging.getLogger("appliance.network")


def install() -> None:
    """From here on, this process and what it forks reach nothing but Unix sockets of this machine. Cannot be undone.

    Called first thing by every door and every child, beside `network.stay_offline`.
    """
    global _installed
    if not _installed:
        _installed = True
        sys.addaudithook(_watch)
        for name in ("bind", "connect", "connect_ex", "sendto", "sendmsg"):
            setattr(socket.socket, name, _by_address(name))


def tell(say: Callable[[Attempt], None] | None) -> None:
    """Who is told of an attempt the first time, on a thread of its own: the audit record, where there is one."""
    global _tell
    _tell = say


def listen_at(host: str) -> None:
    """The name of this machine under which the pages are served may be looked up."""
    _names.add(host)


@contextlib.contextmanager
def passing(host: str, port: int) -> Iterator[None]:
    """For as long as this lasts, this process may look up or reach that host at that port. For `egress` and the doctor."""
    _passing[host, port] += 1
    try:
        yield
    finally:
        _passing[host, port] -= 1


@contextlib.contextmanager
def own_door(port: int) -> Iterator[None]:
    """For as long as this lasts, this process may reach 127.0.0.1 at that port, and no other address. For the doctor alone."""
    with passing(LOOPBACK, port):
        yield


def _by_address(name: str) -> Callable[..., Any]:
    """A method of sockets that takes no host by its name: Python would look it up before the audit hook hears of it."""
    method = getattr(socket.socket, name)

    @functools.wraps(method)
    def call(self: socket.socket, *given: Any) -> Any:
        address = given[-1] if given else None
        if isinstance(address, tuple) and len(address) > 1 and self.family in (socket.AF_INET, socket.AF_INET6):
            _looking_up(address)
        return method(self, *given)

    return call


def _watch(event: str, given: tuple[Any, ...]) -> None:
    check = _CHECKS.get(event)
    if check is not None:
        check(given)


def _reaching(given: tuple[Any, ...]) -> None:
    """connect, sendto and sendmsg: a socket, and an address where it has none yet."""
    address = given[1]
    if address is None:
        return  # an open connection, which was asked about as it was made
    family = given[0].family
    if family == socket.AF_UNIX:
        path = os.fsdecode(address) if isinstance(address, (str, bytes)) else ""
        # One that begins with a zero byte is no file's; no forwarder is known to listen at such.
        if not path.startswith("\0") and (path := os.path.realpath(path)).startswith(_FORWARDERS):
            _refuse(path)
        return
    if family in _LOCAL:
        return
    if isinstance(address, tuple) and len(address) > 1 and family in (socket.AF_INET, socket.AF_INET6):
        if _passing[_text(address[0]), address[1]] > 0:
            return
        _refuse(f"{_text(address[0])}:{address[1]}")
    _refuse(f"a socket of the kind {getattr(family, 'name', family)}")


def _looking_up(given: tuple[Any, ...]) -> None:
    host = _text(given[0])
    port = given[1] if len(given) > 1 else 0
    if not host or _is_address(host) or host in _names or (isinstance(port, int) and _passing[host, port] > 0):
        return
    _refuse(f"the address of {host}")


def _looking_back(given: tuple[Any, ...]) -> None:
    """The name that belongs to an address: that is asked of others as well."""
    host = given[0][0] if isinstance(given[0], tuple) and given[0] else given[0]
    _refuse(f"the name of {_text(host)}")


_CHECKS: dict[str, Callable[[tuple[Any, ...]], None]] = {
    "socket.connect": _reaching,
    "socket.sendto": _reaching,
    "socket.sendmsg": _reaching,
    "socket.getaddrinfo": _looking_up,
    "socket.gethostbyname": _looking_up,
    "socket.gethostbyaddr": _looking_back,
    "socket.getnameinfo": _looking_back,
}


def _refuse(target: str) -> None:
    target = "".join(sign for sign in target[:300] if sign.isprintable())
    attempt = Attempt(target, _asker())
    with _lock:
        attempts[attempt] += 1
        first, known = attempts[attempt] == 1, len(attempts)
    _append(attempt)
    if first and known <= MOST_TOLD:
        _log.warning("%s tried to reach %s, and was refused.", attempt.by or "A library", target)
        say = _tell
        if say is not None:
            # Not here: whoever asks may hold the database, or a lock that the record needs.
            with contextlib.suppress(RuntimeError):  # the interpreter is ending
                threading.Thread(target=_safely, args=(say, attempt), name="refused").start()
    raise Refused(
        f"No process of the box reaches out by itself, and {attempt.by or 'a library'} tried to reach {target}.",
        "What must go out goes through `appliance egress`, to hosts of `appliance network allow`.",
    )


def _safely(say: Callable[[Attempt], None], attempt: Attempt) -> None:
    try:
        say(attempt)
    except Exception:  # noqa: BLE001 - it was refused and logged; a record that cannot be written now changes nothing of that
        _log.warning("That could not be written into the record.")


def _append(attempt: Attempt) -> None:
    path = os.environ.get(LOG)
    if path:
        with contextlib.suppress(OSError):
            line = json.dumps({"target": attempt.target, "by": attempt.by, "process": _process()}) + "\n"
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                os.write(handle, line.encode())
            finally:
                os.close(handle)


def _process() -> str:
    words = getattr(sys, "orig_argv", sys.argv)
    return " ".join(os.path.basename(word) for word in words[1:8])


def _asker() -> str:
    """The module nearest to the socket that is not Python's own."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        root = name.partition(".")[0]
        if name and not name.startswith(_OWN) and (root == "__main__" or root not in sys.stdlib_module_names):
            return name
        frame = frame.f_back
    return ""


def _text(host: object) -> str:
    if isinstance(host, (bytes, bytearray)):
        return bytes(host).decode("ascii", "replace")
    return "" if host is None else str(host)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
