"""Counts what leaves the box's end of the wire, by what it is and where it wants to go.

Hides the headers of packets. What it saw is compared with the kernel's own counter of the same wire, so that a packet that was
missed is noticed. It looks at addresses and ports, and at nothing that is said.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from appliance.errors import ApplianceError
from appliance.proof.wire import LAN, LAN6, WIRE

_ALL, _ARP, _IPV4, _IPV6 = 3, 0x0806, 0x0800, 0x86DD
_OUTGOING = 4
_HOUSEKEEPING = {133, 134, 135, 136, 137, 143}  # IPv6: who has this address, and which groups one listens to
_SCHOOL = {ipaddress.ip_address(LAN), ipaddress.ip_address(LAN6)}
PROTOCOLS = {1: "ICMP", 6: "TCP", 17: "UDP", 58: "ICMPv6"}


@dataclass(frozen=True)
class Seen:
    """outside: packets to anything but the LAN's client, by protocol, address and port; answers: of the pages to that client;
    link: the kernel's own, which ask who has an address on the wire."""

    outside: Counter[str] = field(default_factory=Counter)
    answers: int = 0
    link: int = 0

    @property
    def total(self) -> int:
        return self.outside.total() + self.answers + self.link

    def since(self, before: Seen) -> Seen:
        return Seen(self.outside - before.outside, self.answers - before.answers, self.link - before.link)


class Packets:
    """port: of the pages. Packets that come from there to the client in the school are their answers."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._outside: Counter[str] = Counter()
        self._answers = self._link = 0
        self._lock = threading.Lock()
        try:
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ALL))
        except OSError as error:
            raise ApplianceError(f"Packets cannot be counted here ({error.strerror}).", "Run it as root.") from None
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**24)
        self._socket.bind((WIRE, _ALL))
        self._begun = self._quiet()
        threading.Thread(target=self._read, daemon=True).start()

    def _quiet(self) -> int:
        """The kernel's count at a moment in which nothing is on its way: what the wire carried before is left out."""
        self._socket.setblocking(False)
        while True:
            begun = _sent()
            with contextlib.suppress(BlockingIOError):
                while True:
                    self._socket.recv(256)
            time.sleep(0.02)  # a packet is shown to us a moment before it is counted
            if _sent() == begun:
                self._socket.setblocking(True)
                return begun

    def seen(self) -> Seen:
        """All until now. Raises ApplianceError where the kernel counted others than we saw."""
        ends = time.monotonic() + 5
        while True:
            with self._lock:
                seen = Seen(Counter(self._outside), self._answers, self._link)
            sent = _sent() - self._begun
            if seen.total == sent:
                return seen
            if time.monotonic() > ends:
                raise ApplianceError(f"The kernel sent {sent} packets, and {seen.total} were seen.", "Run the proof again.")
            time.sleep(0.01)

    def _read(self) -> None:
        while True:
            packet, (_, protocol, kind, *_rest) = self._socket.recvfrom(256)
            if kind == _OUTGOING:
                with self._lock:
                    self._count(protocol, packet)

    def _count(self, protocol: int, packet: bytes) -> None:
        if protocol == _ARP and len(packet) >= 28:
            target = ipaddress.ip_address(packet[24:28])
            if target in _SCHOOL:
                self._link += 1
            else:
                self._outside[f"ARP {target}"] += 1
        elif protocol == _IPV4 and len(packet) >= 20:
            body = packet[(packet[0] & 15) * 4 :]
            self._count_ip(packet[9], ipaddress.ip_address(packet[16:20]), body)
        elif protocol == _IPV6 and len(packet) >= 40:
            kind, body = packet[6], packet[40:]
            if kind == 0 and len(body) >= 8:  # options, hop by hop
                kind, body = body[0], body[8 + 8 * body[1] :]
            self._count_ip(kind, ipaddress.ip_address(packet[24:40]), body)
        else:
            self._outside[f"protocol {protocol:#06x}"] += 1

    def _count_ip(self, kind: int, to: ipaddress.IPv4Address | ipaddress.IPv6Address, body: bytes) -> None:
        if kind == 58 and body[:1] and body[0] in _HOUSEKEEPING:
            self._link += 1
            return
        ports = struct.unpack_from("!HH", body) if kind in (6, 17) and len(body) >= 4 else (0, 0)
        if to in _SCHOOL and kind == 6 and ports[0] == self._port:
            self._answers += 1
            return
        where = f"[{to}]" if to.version == 6 else str(to)
        self._outside[f"{PROTOCOLS.get(kind, f'protocol {kind}')} {where}" + (f":{ports[1]}" if ports[1] else "")] += 1


def _sent() -> int:
    """Packets that the kernel sent on the wire, as it counts them itself."""
    for line in Path("/proc/thread-self/net/dev").read_text("ascii").splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == WIRE:
            return int(numbers.split()[9])
    raise ApplianceError("The wire is gone.", "Run the proof again.")
