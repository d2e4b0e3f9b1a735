"""A person at a computer in the school: signs in to the pages, sends forms and files, and uses /v1. Hides HTTP and cookies.

Its sockets are at the other end of the wire, so each answer that the pages give it is a packet that is counted as such.
"""

from __future__ import annotations

import http.client
import json
import re
import secrets
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from appliance.errors import ApplianceError
from appliance.proof.wire import BOX, Wire

NAME = "appliance.local"
SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    where: str  # of a redirect
    body: str

    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    def __init__(self, wire: Wire, port: int) -> None:
        self._wire, self._port = wire, port
        self._cookies: dict[str, str] = {}
        self._csrf = ""

    def page(self, path: str) -> str:
        """A page as it is shown. Raises ApplianceError where there is none."""
        reply = self.send("GET", path, headers={"Accept": "text/html"})
        if reply.where:
            return self.page(reply.where.partition("#")[0])
        if reply.status != 200:
            raise ApplianceError(f"{path} was answered with {reply.status}.", "")
        found = re.search(r'name="csrf" value="([^"]+)"', reply.body)
        self._csrf = found[1] if found else self._csrf
        return reply.body

    def form(
        self, path: str, fields: dict[str, str], *, accept: str = "text/html", file: tuple[str, bytes] | None = None
    ) -> Reply:
        """Send a form as the last page would. Raises ApplianceError where it is refused."""
        fields = {"csrf": self._csrf} | fields
        kind, body = "application/x-www-form-urlencoded", urlencode(fields).encode()
        if file is not None:
            kind, body = _parts(fields, *file)
        reply = self.send("POST", path, body, {"Content-Type": kind, "Accept": accept})
        if reply.status >= 400:
            raise ApplianceError(f"{path} refused its form with {reply.status}.", "")
        return reply

    def api(self, path: str, key: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        reply = self.send("GET" if data is None else "POST", path, data, headers)
        if reply.status != 200:
            raise ApplianceError(f"{path} was answered with {reply.status}.", "")
        return reply.json()

    def send(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Reply:
        return self._wire.outside(self._send, method, path, body, headers or {}).result()

    def _send(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Reply:
        line = http.client.HTTPConnection(BOX, self._port, timeout=SECONDS)
        try:
            cookies = "; ".join(f"{name}={value}" for name, value in self._cookies.items())
            line.request(method, path, body, {"Host": NAME, "Cookie": cookies} | headers)
            reply = line.getresponse()
            for cookie in reply.headers.get_all("Set-Cookie") or []:
                name, _, value = cookie.partition(";")[0].partition("=")
                self._cookies[name] = value.strip('"')
            return Reply(reply.status, reply.headers.get("Location", ""), reply.read().decode("utf-8", "replace"))
        finally:
            line.close()


def _parts(fields: dict[str, str], name: str, content: bytes) -> tuple[str, bytes]:
    """A form with a file, as a browser sends it."""
    mark = secrets.token_hex(16)
    head = "".join(
        f'--{mark}\r\nContent-Disposition: form-data; name="{field}"\r\n\r\n{value}\r\n' for field, value in fields.items()
    )
    head += f'--{mark}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n'
    head += "Content-Type: application/octet-stream\r\n\r\n"
    return f"multipart/form-data; boundary={mark}", head.encode() + content + f"\r\n--{mark}--\r\n".encode()
