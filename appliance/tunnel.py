"""How a process of the box asks the egress process for a connection: HTTP's CONNECT over a Unix socket.

Hides the dialect and turns refusals into faults. Who may be dialled is the policy's to say, in `network`, and the egress
process asks it again.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from appliance.errors import ApplianceError, BadInput, Busy, Forbidden, Unreachable

LARGEST_HEAD = 4096
_END = b"\r\n\r\n"


def question(host: str) -> bytes:
    return f"CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


def answer(error: ApplianceError | None = None) -> bytes:
    """What the egress process says: yes, or a refusal with its sentence and its next step."""
    if error is None:
        return b"HTTP/1.1 200 Connected" + _END
    body = f"{error.message}\n{error.hint}\n".encode()
    head = f"HTTP/1.1 {error.status} Refused\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"Connection: close" + _END + body


def accepted(head: bytes) -> bool:
    return head.split(b" ")[1:2] == [b"200"]


def refusal(head: bytes, body: bytes) -> ApplianceError:
    """The fault that a refusal stands for."""
    message, _, hint = body.decode("utf-8", "replace").strip().partition("\n")
    kinds: dict[bytes, type[ApplianceError]] = {b"400": BadInput, b"403": Forbidden, b"503": Unreachable, b"429": Busy}
    kind = kinds.get([*head.split(b" "), b""][1], Unreachable)
    return kind(message or "The egress process ended the connection.", hint or "Try again.")


def not_running(path: Path) -> Unreachable:
    return Unreachable("The way out of the box is not running.", f"Start `appliance egress`; nobody listens at {path}.")


def connect(path: Path, host: str, timeout: float) -> socket.socket:
    """A socket that is connected to `host` ("name:port"). Raises Forbidden, Unreachable, Busy."""
    if len(os.fsencode(path)) > 100:
        raise BadInput(
            f"The path of the egress process's socket is too long: {path}.", "Choose a home folder with a shorter path."
        )
    line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        line.settimeout(timeout)
        try:
            line.connect(os.fspath(path))
        except OSError:
            raise not_running(path) from None
        try:
            line.sendall(question(host))
            head = _head(line)
            if not accepted(head):
                raise refusal(head, _rest(line))
        except OSError as error:
            raise Unreachable(f"{host} does not answer ({error}).", "Check that it is on and can be reached.") from None
    except BaseException:
        line.close()
        raise
    return line


def _head(line: socket.socket) -> bytes:
    """Byte by byte: what comes after it belongs to the host, which may speak first."""
    head = b""
    while not head.endswith(_END) and len(head) < LARGEST_HEAD:
        byte = line.recv(1)
        if not byte:
            break
        head += byte
    return head


def _rest(line: socket.socket) -> bytes:
    body = b""
    while len(body) < LARGEST_HEAD and (piece := line.recv(LARGEST_HEAD)):
        body += piece
    return body
