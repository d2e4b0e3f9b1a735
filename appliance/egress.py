"""The one process with a network: forwards streams from its Unix socket to the hosts that the policy allows, and holds nothing.

Hides resolving, limits, and the end of connections to a host that was denied meanwhile. It reads no data that passes, keeps
none, and says no more of it than the host and how many bytes there were.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from appliance import guard, network, tunnel
from appliance.errors import ApplianceError, BadInput, Busy, Forbidden, Unreachable
from appliance.network import Host, Policy

MOST_CONNECTIONS = 64
QUESTION_SECONDS = 10.0
CONNECT_SECONDS = 10.0
IDLE_SECONDS = 300.0
LOOK_SECONDS = 0.5  # how soon a host that was denied is cut off
LOOPBACK = ["127.0.0.1", "::1"]  # what localhost means everywhere (RFC 6761), also where no file says so
_PIECE = 64 * 1024

Resolve = Callable[[str, int], Awaitable[list[str]]]


@dataclass(eq=False, slots=True)
class _Line:
    """One open connection. sent, received: bytes to and from the host. moved: when the last of them passed."""

    host: Host
    task: asyncio.Task[None]
    sent: int = 0
    received: int = 0
    began: float = field(default_factory=time.monotonic)
    moved: float = field(default_factory=time.monotonic)


async def _resolve(name: str, port: int) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(name, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(one[4][0]) for one in found))


class Egress:
    """say: takes a line for the log. resolve: the addresses of a name."""

    def __init__(
        self,
        policy: Policy,
        say: Callable[[str], None],
        *,
        most: int = MOST_CONNECTIONS,
        idle: float = IDLE_SECONDS,
        resolve: Resolve = _resolve,
    ) -> None:
        self._policy, self._say, self._most, self._idle, self._resolve = policy, say, most, idle, resolve
        self._held = 0
        self._lines: set[_Line] = set()

    async def serve(self, listener: socket.socket, turned: Callable[[], None] = lambda: None) -> None:
        """Until nothing is allowed any more, or cancelled. Raises ApplianceError where the policy can no longer be read.

        turned: called each time that the policy was looked at and connections are taken.
        """
        server = await asyncio.start_unix_server(self._handle, sock=listener, limit=_PIECE)
        try:
            while allowed := self._policy.allowed():
                for line in [one for one in self._lines if one.host not in allowed]:
                    line.task.cancel()
                turned()
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            server.close()
            lines = [line.task for line in self._lines]
            for task in lines:
                task.cancel()
            await asyncio.gather(*lines, return_exceptions=True)

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request of a process of the box, from its first byte to the last of the stream."""
        self._held += 1
        try:
            try:
                host, out = await self._admit(reader)
            except ApplianceError as error:
                self._say(f"Refused: {error.message}")
                writer.write(tunnel.answer(error))
                with contextlib.suppress(OSError):
                    await writer.drain()
                return
            task = asyncio.current_task()
            assert task is not None
            line = _Line(host, task)
            self._lines.add(line)
            try:
                writer.write(tunnel.answer())
                await self._forward(line, (reader, writer), out)
            except asyncio.CancelledError:
                self._say(f"{host} was cut off.")
            finally:
                self._lines.discard(line)
                _close(out[1])
                taken = time.monotonic() - line.began
                self._say(f"{host}: {line.sent} bytes out, {line.received} bytes in, {taken:.0f} s")
        finally:
            self._held -= 1
            _close(writer)

    async def _admit(self, reader: asyncio.StreamReader) -> tuple[Host, tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """The host that is asked for, and a connection to it. Raises ApplianceError."""
        if self._held > self._most:
            raise _Full(f"{self._most} connections to the outside are open, and no more may be.", "Try again in a moment.")
        wanted = await _question(reader)
        allowed = self._policy.allowed()
        if wanted not in allowed:
            raise Forbidden(f"{wanted} is not allowed.", f"On the box itself: `appliance network allow {wanted}`.")
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                return wanted, await self._connect(wanted)
        except TimeoutError:
            raise Unreachable(f"{wanted} does not answer.", "Check that it is on and can be reached from here.") from None

    async def _connect(self, wanted: Host) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            addresses = await self._addresses(wanted)
        except OSError as error:
            raise Unreachable(f"The name {wanted.name} is not known ({error.strerror}).", "Check how it is written.") from None
        good = addresses if wanted.explicit else [one for one in addresses if not _this_machine(one, wanted.port)]
        if not good:
            raise Forbidden(
                f"{wanted.name} stands for this box itself, which was not meant.",
                "Check the name; a service of the box itself is allowed by its address.",
            )
        why = ""
        for address in good:
            # The very address that was looked at, so that a name that changes its mind meanwhile changes nothing.
            try:
                with guard.passing(address, wanted.port):
                    return await asyncio.open_connection(address, wanted.port, limit=_PIECE)
            except OSError as error:
                why = error.strerror or str(error)
        raise Unreachable(f"{wanted} does not answer ({why}).", "Check that it is on and can be reached from here.")

    async def _addresses(self, wanted: Host) -> list[str]:
        if wanted.explicit:
            return LOOPBACK if wanted.name == "localhost" else [wanted.name]
        with guard.passing(wanted.name, wanted.port):
            return await self._resolve(wanted.name, wanted.port)

    async def _forward(
        self,
        line: _Line,
        inside: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        outside: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        def sent(count: int) -> None:
            line.sent, line.moved = line.sent + count, time.monotonic()

        def received(count: int) -> None:
            line.received, line.moved = line.received + count, time.monotonic()

        async def until_idle() -> None:
            while (left := line.moved + self._idle - time.monotonic()) > 0:
                await asyncio.sleep(left)

        async def both_ways() -> None:
            await asyncio.gather(_copy(inside[0], outside[1], sent), _copy(outside[0], inside[1], received))

        tasks = {asyncio.create_task(both_ways()), asyncio.create_task(until_idle())}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


class _Full(Busy):
    status = 429


async def _question(reader: asyncio.StreamReader) -> Host:
    """The host of a CONNECT. Raises BadInput."""
    wrong = BadInput("That is not how to ask for a connection.", "Send `CONNECT HOST:PORT HTTP/1.1` and an empty line.")
    try:
        async with asyncio.timeout(QUESTION_SECONDS):
            head = await reader.readuntil(b"\r\n\r\n")
    except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
        raise wrong from None
    words = head.split(b"\r\n", 1)[0].split(b" ")
    if len(head) > tunnel.LARGEST_HEAD or len(words) != 3 or words[0] != b"CONNECT" or not head.isascii():
        raise wrong
    return network.host(words[1].decode())


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: Callable[[int], None]) -> None:
    """All that comes, as fast as the other side takes it, and then its end."""
    with contextlib.suppress(ConnectionError):
        while piece := await reader.read(_PIECE):
            writer.write(piece)
            await writer.drain()
            count(len(piece))
        writer.write_eof()
        return
    writer.close()  # one side broke off: so does the other


def _close(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        writer.close()


def _this_machine(text: str, port: int) -> bool:
    """Whether an address is this machine's own, or one that means no single other machine."""
    address = ipaddress.ip_address(text.partition("%")[0])
    address = getattr(address, "ipv4_mapped", None) or address
    if address.is_loopback or address.is_unspecified or address.is_link_local or address.is_multicast:
        return True
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            with guard.passing(str(address), port):
                probe.connect((str(address), port))  # sends nothing: it asks from which address we would speak to that one
        except OSError:
            return False
        return str(probe.getsockname()[0]).partition("%")[0] == str(address)
