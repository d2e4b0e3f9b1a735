"""How long a connection is waited for: for a request's head, for its body, and for what was sent to be read.

uvicorn ends a connection that stays silent between two requests, and no other: who sends one letter a minute, only connects, or
never reads keeps a connection for ever. Hides each connection's clock, and who has to go where there are too many: whoever
still owes a whole request, the longest first, never an answer under way. Only a client's own time counts: while the box thinks,
or its loop was held up, no clock runs. It knows nobody's rights and remembers no address.
"""

from __future__ import annotations

import resource
import struct
from asyncio import AbstractEventLoop, TimerHandle, Transport
from dataclasses import dataclass
from socket import SO_LINGER, SOL_SOCKET
from typing import Any, ClassVar, Literal

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

# A proxy of this box, or the person at its own keyboard: many people may stand behind one of these addresses.
OWN = ("127.0.0.1", "::1", "::ffff:127.0.0.1")
LATE = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
FULL = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 5\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
MOST = 1024

# What a client has to do next; "" where it is our turn.
Debt = Literal["head", "body", "read", "quiet", ""]


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds for a request's head, for its body, and for taking what was sent; each `speed` bytes of these two buy one more.

    most: connections at once, half of them from one address; 0 is half of the files that this process may open, at most 1,024.
    """

    head: float = 10.0
    body: float = 30.0
    read: float = 30.0
    speed: float = 4096.0
    most: int = 0

    @property
    def connections(self) -> int:
        return self.most or min(MOST, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)

    @property
    def tick(self) -> float:
        """Seconds between two looks at a connection."""
        return min(1.0, self.head / 10, self.body / 10, self.read / 10)


def backlog() -> int:
    """Connections that may wait until they are accepted.

    asyncio accepts all of them at one go, each a file of ours, before the first can be sent away: a quarter of the files that
    this process may open. One that finds no place here is dropped without a word, and a client that only listens never learns.
    """
    return min(MOST, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)


def protocol(patience: Patience | None = None) -> type[H11Protocol]:
    """What `uvicorn.Config(http=...)` takes."""

    class Patient(_Patient): ...

    Patient.patience = patience or Patience()
    return Patient


class _Patient(H11Protocol):
    patience: ClassVar[Patience]

    def __init__(self, config: Any, server_state: Any, app_state: dict[str, Any], _loop: AbstractEventLoop | None = None):
        super().__init__(config, server_state, app_state, _loop)
        self._debt: Debt = "head"
        self._of: object = None  # the request that the debt is about
        self._waited = 0.0  # seconds in which it was the client's turn,
        self._moved = 0  # and bytes that came or went in them
        self._unread = 0
        self._leaving = False
        self._made = self._looked = self.loop.time()
        self._timer: TimerHandle | None = None

    # --- the transport's calls ----------------------------------------------------------------------------------------
    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._made = self._looked = self.loop.time()
        self._timer = self.loop.call_later(self.patience.tick, self._look)
        self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._moved += len(data)
        super().data_received(data)

    # --- whose turn it is ---------------------------------------------------------------------------------------------
    def debt(self) -> Debt:
        """What this client has to do next."""
        if self.flow.write_paused or self.transport.is_closing():
            return "read"
        if self.conn.their_state is h11.SEND_BODY:
            return "body"
        if self.conn.their_state is not h11.IDLE:
            return ""
        return "quiet" if self.cycle is not None and not self.conn.trailing_data[0] else "head"

    def _look(self) -> None:
        """Count the time since the last look, if it was the client's, and end a debt that is too old."""
        now, before = self.loop.time(), self._looked
        self._looked = now
        self._timer = self.loop.call_later(self.patience.tick, self._look)
        debt, unread = self.debt(), self.transport.get_write_buffer_size()
        if debt == "read":
            self._moved += max(0, self._unread - unread)
        self._unread = unread
        if (debt, self.cycle) != (self._debt, self._of):
            self._debt, self._of, self._waited, self._moved = debt, self.cycle, 0.0, 0
            return
        if debt == "" or (debt == "body" and self._ours()):
            return
        # A longer step means that our own loop was held up: what was sent meanwhile has not been looked at yet.
        self._waited += min(now - before, 2 * self.patience.tick)
        if self._waited >= self._limit(debt):
            self._end(debt)

    def _ours(self) -> bool:
        """Whether the body does not come because nobody here takes it."""
        return self.flow.read_paused or self.conn.they_are_waiting_for_100_continue

    def _limit(self, debt: Debt) -> float:
        patience = self.patience
        if debt == "head":
            return patience.head
        if debt == "quiet":  # uvicorn's own clock stops at the first byte after an answer, also where no request follows
            return float(self.timeout_keep_alive) + patience.head
        return (patience.body if debt == "body" else patience.read) + self._moved / patience.speed

    def _end(self, debt: Debt) -> None:
        if debt == "read" or (debt == "body" and self.cycle.response_started):
            self._leave()
            return
        if debt == "body" or self.conn.trailing_data[0]:
            self.transport.write(LATE)
        self.transport.close()  # watched on: a client that does not read this either is ended after `read`

    # --- too many -----------------------------------------------------------------------------------------------------
    def _make_room(self) -> None:
        most = self.patience.connections
        here = [one for one in self.connections if isinstance(one, _Patient) and not one._leaving]
        address = self.client[0] if self.client else ""
        if len(here) > most // 2 and address and address not in OWN:
            same = [one for one in here if one.client and one.client[0] == address]
            if len(same) > most // 2:
                self._give_way(same)
                return
        if len(here) > most:
            self._give_way(here)

    def _give_way(self, among: list[_Patient]) -> None:
        """End the connection that has owed a request for longest; where none does, this new one."""
        owing = [one for one in among if one is not self and one.debt() in ("head", "body", "quiet")]
        if owing:
            max(owing, key=lambda one: (one._waited, -one._made))._leave()
            return
        self._leaving = True
        self.transport.write(FULL)
        self.transport.close()

    def _leave(self) -> None:
        self._leaving = True
        # Without this the system would go on offering what lies in its own buffers, for minutes.
        self.transport.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()
