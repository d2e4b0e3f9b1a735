"""A network of two machines in one process: the box, and everything that is not the box, with a wire between them.

Hides the kernel's network namespaces and the messages (rtnetlink) that lay the wire, so that no tool but `unshare` is needed.
The box has an address, a default route and a name server, so whatever wants to leave does leave - into the other end, where
nothing is forwarded. The process must own the network that it runs in: see `appliance.proof.space`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from appliance.errors import ApplianceError

Result = TypeVar("Result")

WIRE, FAR = "wire", "far"  # the box's end, and the other one
BOX, LAN = "10.77.0.1", "10.77.0.2"  # the box, and a person's computer in the school
BOX6, LAN6 = "fd77::1", "fd77::2"
INTERNET, INTERNET6 = "198.51.100.7", "2001:db8::7"  # addresses for documentation: nobody has them
NAMES = "198.51.100.53"  # the name server, which never answers
CLONE_NEWNET = 0x40000000
_CREATE = 1 | 4 | 0x200 | 0x400  # a request, to be acknowledged, that makes something new
_LINK, _ADDRESS, _ROUTE = 16, 20, 24
_UP = 1


class Wire:
    """Both ends. Work for the other end is run by `outside`, on threads that live there."""

    def __init__(self) -> None:
        self._far = -1
        self._pool = ThreadPoolExecutor(4, "outside", self._go_outside)

    def lay(self) -> None:
        """Make the other end and the wire. Raises ApplianceError where this machine does not allow it."""
        made: Future[int] = Future()
        threading.Thread(target=_new_network, args=(made,), daemon=True).start()
        self._far = made.result()
        try:
            with _Netlink() as box:
                box.up("lo")
                box.pair(WIRE, FAR, self._far)
                _quiet(WIRE)
                box.address(WIRE, BOX, 24)
                box.address(WIRE, BOX6, 64)
                box.up(WIRE)
                self.outside(_prepare).result()
                for gateway in (LAN, LAN6):
                    box.default_route(WIRE, gateway)
            for home in (LAN, LAN6):
                self._meet(home)
        except OSError as error:
            raise ApplianceError(
                f"This machine's kernel lays no wire for the proof ({error.strerror}).", "Load its module: `modprobe veth`."
            ) from None

    def outside(self, work: Callable[..., Result], *given: Any) -> Future[Result]:
        """Run something on a thread whose sockets are the other machine's."""
        return self._pool.submit(work, *given)

    def _meet(self, home: str) -> None:
        """Wait until the two ends know each other, as neighbours do after a while: nothing later waits for that."""
        family = _packed(home)[0]
        there = self.outside(_door, family, home).result()
        with there, socket.socket(family, socket.SOCK_DGRAM) as here:
            ends = time.monotonic() + 10
            there.settimeout(0.2)
            while time.monotonic() < ends:
                here.sendto(b"hello", there.getsockname()[:2])
                with contextlib.suppress(TimeoutError):
                    there.recv(5)
                    return
        raise ApplianceError(f"Nothing comes through the wire to {home}.", "Run the proof again.")

    def _go_outside(self) -> None:
        if _libc().setns(self._far, CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")


def _door(family: int, home: str) -> socket.socket:
    there = socket.socket(family, socket.SOCK_DGRAM)
    there.bind((home, 0))
    return there


def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def _new_network(made: Future[int]) -> None:
    """On a thread of its own: it moves into a new network, which lives as long as its handle is open."""
    if _libc().unshare(CLONE_NEWNET) != 0:
        why = os.strerror(ctypes.get_errno())
        made.set_exception(ApplianceError(f"This machine allows no second network ({why}).", "Run it as root."))
        return
    made.set_result(os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY | os.O_CLOEXEC))


def _prepare() -> None:
    """The other end: a computer in the school, and a host beyond it; neither forwards anything."""
    with _Netlink() as far:
        far.up("lo")
        _quiet(FAR)
        for address, length in ((LAN, 24), (LAN6, 64), (INTERNET, 32), (INTERNET6, 128)):
            far.address(FAR, address, length)
        far.up(FAR)


def _quiet(name: str) -> None:
    """The kernel's own greetings to neighbours and routers, off where it lets us; else they are counted by their kind."""
    folder = Path("/proc/sys/net/ipv6/conf") / name
    for setting, value in (("accept_dad", "0"), ("router_solicitations", "0"), ("accept_ra", "0"), ("addr_gen_mode", "1")):
        with contextlib.suppress(OSError):
            (folder / setting).write_text(value, "ascii")


class _Netlink:
    """What `ip link`, `ip address` and `ip route` say to the kernel, for the network of the thread that made this."""

    def __enter__(self) -> _Netlink:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._socket.bind((0, 0))
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def pair(self, name: str, peer: str, network: int) -> None:
        """Two ends of a wire; the peer's is in the network with that handle."""
        other = _link(0, 0) + _part(3, peer.encode() + b"\0") + _part(28, struct.pack("=I", network))
        kind = _part(1, b"veth\0") + _part(2, _part(1, other))
        self._ask(_LINK, _CREATE, _link(0, 0) + _part(3, name.encode() + b"\0") + _part(18, kind))

    def up(self, name: str) -> None:
        self._ask(_LINK, 1 | 4, _link(socket.if_nametoindex(name), _UP))

    def address(self, name: str, address: str, length: int) -> None:
        family, packed = _packed(address)
        no_check = 2 if family == socket.AF_INET6 else 0  # of whether somebody else has it
        head = struct.pack("=BBBBi", family, length, no_check, 0, socket.if_nametoindex(name))
        self._ask(_ADDRESS, _CREATE, head + _part(2, packed) + _part(1, packed))

    def default_route(self, name: str, gateway: str) -> None:
        family, packed = _packed(gateway)
        main, fixed, unicast = 254, 4, 1
        head = struct.pack("=BBBBBBBBI", family, 0, 0, 0, main, fixed, 0, unicast, 0)
        self._ask(_ROUTE, _CREATE, head + _part(5, packed) + _part(4, struct.pack("=i", socket.if_nametoindex(name))))

    def _ask(self, kind: int, flags: int, body: bytes) -> None:
        self._socket.sendall(struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body)
        answer = self._socket.recv(65536)
        failed = -struct.unpack_from("=i", answer, 16)[0]
        if failed:
            raise OSError(failed, os.strerror(failed))


def _link(index: int, flags: int) -> bytes:
    return struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, flags, flags)


def _part(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def _packed(address: str) -> tuple[int, bytes]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return family, socket.inet_pton(family, address)
