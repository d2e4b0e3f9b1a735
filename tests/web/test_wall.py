"""What a browser never sends, over a real connection: bent addresses, lying lengths, endless bodies. And no GET changes."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI

from appliance.tables import metadata
from tests.web.test_server import enter, serving

QUESTION = "Why are leaves green?"


@dataclass
class Wall:
    """A served box, and the cookie and the token of somebody who is signed in to it."""

    port: int
    pid: int
    cookie: str
    token: str

    def say(self, *pieces: bytes, wait: float = 20.0) -> bytes:
        """Send these bytes as they are; all that comes back until the other side ends it or falls silent."""
        heard = b""
        with socket.create_connection(("127.0.0.1", self.port), timeout=wait) as made:
            try:
                for piece in pieces:
                    made.sendall(piece)
            except OSError:
                pass  # refused before all of it was sent
            try:
                while data := made.recv(65536):
                    heard += data
                    if b"content-length: " in heard and complete(heard):
                        break
            except OSError:
                pass
        return heard

    def memory(self) -> int:
        """The most that the process ever held, in bytes."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+)", status)
        assert found
        return 1024 * int(found[1])

    def worked(self) -> float:
        """Seconds of the processor that the process has used: how busy the machine is does not count."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def alive(self) -> bool:
        return httpx.get(f"http://127.0.0.1:{self.port}/health").json() == {"status": "ok"}


def complete(heard: bytes) -> bool:
    head, gap, body = heard.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    return bool(gap and length and len(body) >= int(length[1]))


def status(heard: bytes) -> int:
    """Of the only answer; 0 where the connection was ended without one."""
    assert heard.count(b"HTTP/1.1 ") <= 1, heard[:400]
    return int(heard.split()[1]) if heard else 0


@pytest.fixture(scope="module")
def wall(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wall]:
    with (
        serving(tmp_path_factory.mktemp("wall") / "home") as (address, code, process),
        httpx.Client(base_url=address) as client,
    ):
        enter(client, code)
        cookie = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
        yield Wall(int(address.rpartition(":")[2]), process.pid, cookie, client.headers["x-csrf-token"])
        assert process.poll() is None


# --- addresses -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", ["/chat", "/keys", "/library", "/chat/stream/x", "/document/plants/file", "/v1/models"])
@pytest.mark.parametrize(
    "line",
    [
        "GET http://localhost{path} HTTP/1.1",
        "GET http://evil.example{path} HTTP/1.1",
        "GET //evil.example{path} HTTP/1.1",
        "GET /static/..{path} HTTP/1.1",
        "GET /%2e%2e{path} HTTP/1.1",
        "GET {path}%00 HTTP/1.1",
        "GET {path}/ HTTP/1.1",
        "GET {path};x HTTP/1.1",
        "GET /health?x={path} HTTP/1.1",
    ],
)
def test_a_bent_address_opens_no_door(wall: Wall, line: str, path: str) -> None:
    """Without a session: whatever the address is taken for, nothing that needs one is shown."""
    request = line.format(path=path)
    heard = wall.say(f"{request}\r\nHost: localhost\r\nAccept: application/json\r\nConnection: close\r\n\r\n".encode())
    expected = {200} if "/health" in line else {400, 401, 404}
    assert status(heard) in expected and b"Photosynthesis" not in heard, heard[:300]


@pytest.mark.parametrize(
    "host",
    [
        "x/?",
        "x#",
        "x/..",
        "localhost/?",
        "localhost#",
        "localhost,evil.example",
        "localhost:99999999",
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "2130706433",
        "0x7f.1",
        "[::ffff:7f00:1]",
    ],
)
def test_a_bent_host_opens_no_door(wall: Wall, host: str) -> None:
    """Also with a session: a name that was rebound to our address brings the cookie of that name, or none."""
    for path in ("/chat", "/keys", "/document/plants/file", "/static/app.css"):
        lines = [f"GET {path} HTTP/1.1", f"Host: {host}", f"Cookie: {wall.cookie}", "Connection: close", "", ""]
        heard = wall.say("\r\n".join(lines).encode())
        assert status(heard) == 400 and b"Ms Green" not in heard, (path, heard[:200])


def test_without_a_host_there_is_no_answer(wall: Wall) -> None:
    for version in ("1.0", "1.1"):
        assert status(wall.say(f"GET /health HTTP/{version}\r\nConnection: close\r\n\r\n".encode())) == 400


def test_only_a_token_of_ours_makes_a_form_of_ours(wall: Wall) -> None:
    """The cookie comes along with whatever a browser is tricked into sending; Origin and token do not."""
    for headers in (["Origin: http://evil.example"], ["Origin: null"], ["Sec-Fetch-Site: cross-site"], [], ["X-CSRF-Token: x"]):
        lines = ["POST /sign-out HTTP/1.1", f"Host: localhost:{wall.port}", f"Cookie: {wall.cookie}", *headers]
        lines += ["Content-Type: text/plain", "Content-Length: 3", "Connection: close", "", "a=b"]
        assert status(wall.say("\r\n".join(lines).encode())) == 403
    heard = wall.say(f"GET /chat HTTP/1.1\r\nHost: localhost\r\nCookie: {wall.cookie}\r\nConnection: close\r\n\r\n".encode())
    assert status(heard) == 200 and b"access-control" not in heard.lower()
    ask = "OPTIONS /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\n"
    heard = wall.say(f"{ask}Access-Control-Request-Method: POST\r\nConnection: close\r\n\r\n".encode())
    assert b"access-control-allow" not in heard.lower() and status(heard) in (400, 403, 404, 405)


# --- lengths and bodies ----------------------------------------------------------------------------------------------
def head(wall: Wall, *headers: str, path: str = "/chat/ask") -> bytes:
    lines = [f"POST {path} HTTP/1.1", f"Host: localhost:{wall.port}", f"Cookie: {wall.cookie}", f"X-CSRF-Token: {wall.token}"]
    return "\r\n".join([*lines, "Accept: application/json", "Connection: close", *headers, "", ""]).encode()


FORM = "Content-Type: application/x-www-form-urlencoded"
PARTS = "Content-Type: multipart/form-data; boundary=b"


@pytest.mark.parametrize(
    "lengths",
    [
        ["Content-Length: -1"],
        ["Content-Length: -9223372036854775808"],
        ["Content-Length: +3"],
        ["Content-Length: 0x3"],
        ["Content-Length: 3, 4"],
        ["Content-Length: 3", "Content-Length: 40"],
        ["Content-Length: 3", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: chunked, chunked"],
        ["Transfer-Encoding: xchunked"],
        ["Transfer-Encoding : chunked"],
        ["Content-Length: 99999999999999999999"],
        ["Content-Length: 3", "X-Odd: a\nb: c\x00"],
        ["Content-Length : 3"],
    ],
)
def test_a_lying_length_is_refused_and_nothing_behind_it_is_read_as_a_request(wall: Wall, lengths: list[str]) -> None:
    smuggled = b"a=b" + b"GET /chat HTTP/1.1\r\nHost: localhost\r\nCookie: " + wall.cookie.encode() + b"\r\n\r\n"
    heard = wall.say(head(wall, FORM, *lengths), smuggled)
    assert status(heard) in (0, 400, 403, 413, 415, 501) and b"New chat" not in heard, heard[:300]
    assert wall.alive()


@pytest.mark.parametrize(
    "kind",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=" + "b" * 70_000,
        'multipart/form-data; boundary="b',
        "multipart/form-data;" + ";" * 60_000,
        "application/x-www-form-urlencoded;" + " a=b;" * 9000,
        "\x7f/;;;",
        "a" * 60_000,
        "multipart/mixed; boundary=b",
        "application/json",
        "text/html; charset=\x80utf-8",
        "multipart/form-data; boundary*0=b; boundary*1=b; filename*=UTF-8''" + "%41" * 9000,
    ],
    ids=range(12),
)
def test_a_hostile_content_type_costs_nothing(wall: Wall, kind: str) -> None:
    began = wall.worked()
    heard = wall.say(head(wall, f"Content-Type: {kind}", "Content-Length: 3"), b"--b")
    assert status(heard) in (400, 403, 413, 431) and wall.worked() - began < 1
    assert wall.alive()


def test_ten_thousand_parts_and_fields_are_refused(wall: Wall) -> None:
    part = b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\ny\r\n'
    for kind, body in (
        (PARTS, part * 10_000 + b"--b--"),
        (FORM, b"x=y&" * 100_000),
        (FORM, b"&" * 900_000),
        (PARTS, b"--b\r\n" * 100_000),
    ):
        heard = wall.say(head(wall, kind, f"Content-Length: {len(body)}"), body)
        assert status(heard) in (400, 403), heard[:200]
    long = b'--b\r\nContent-Disposition: form-data; name="x"\r\n' + b"X-Long: y\r\n" * 50_000 + b"\r\ny\r\n--b--"
    assert status(wall.say(head(wall, PARTS, f"Content-Length: {len(long)}"), long)) in (400, 403)


def test_a_field_of_a_hundred_megabytes_is_refused_unread(wall: Wall) -> None:
    """With a length, and in pieces of which nobody knows how many come."""
    before = wall.memory()
    opening = b'--b\r\nContent-Disposition: form-data; name="question"\r\n\r\n'
    size = 100 * 2**20
    heard = wall.say(head(wall, PARTS, f"Content-Length: {size}"), opening, *[b"x" * 2**20] * 100)
    assert status(heard) in (0, 413)
    pieces = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (opening, *[b"x" * 2**20] * 100)]
    heard = wall.say(head(wall, PARTS, "Transfer-Encoding: chunked"), *pieces, b"0\r\n\r\n")
    assert status(heard) in (0, 400, 413)
    assert wall.memory() - before < 50 * 2**20 and wall.alive()


@pytest.mark.parametrize(
    "body", [b"[" * 100_000, b'{"a":' * 100_000, b"1" * 900_000, b'"' + b"\\u0000" * 99_999 + b'"', b'{"n":1e999999}']
)
def test_a_bomb_of_json_is_refused(wall: Wall, body: bytes) -> None:
    began = wall.worked()
    for path in ("/v1/chat/completions", "/v1/embeddings", "/chat/ask"):
        heard = wall.say(head(wall, "Content-Type: application/json", f"Content-Length: {len(body)}", path=path), body)
        assert status(heard) in (400, 401, 403, 415), heard[:200]
    assert wall.alive() and wall.worked() - began < 2


def test_a_thousand_ranges_cost_nothing(wall: Wall) -> None:
    ranges = "bytes=" + ",".join(f"{number}-{number + 1}" for number in range(0, 20_000, 3))
    began = wall.worked()
    lines = ["GET /static/app.css HTTP/1.1", "Host: localhost", f"Range: {ranges}", "Connection: close", "", ""]
    assert status(wall.say("\r\n".join(lines).encode())) in (200, 206, 400, 416)
    assert wall.worked() - began < 1 and wall.alive()


# --- no GET changes --------------------------------------------------------------------------------------------------
def contents(box: Any) -> dict[str, list[Any]]:
    """Every row of every table but the audit's, which also tells who looked at what."""
    with box.database.read() as connection:
        return {
            name: [tuple(row) for row in connection.execute(sa.select(table))]
            for name, table in metadata.tables.items()
            if not name.startswith("audit")
        }


async def test_no_get_changes_a_row(app: FastAPI, box: Any, person: httpx.AsyncClient) -> None:
    asked = (await person.post("/chat/ask", data={"question": QUESTION}, headers={"accept": "application/json"})).json()
    await person.get(f"/chat/stream/{asked['turn']}")
    await person.post("/keys", data={"name": "Moodle", "scope": "chat"})
    chat = asked["url"].rpartition("/")[2]
    before = contents(box)
    assert sum(map(len, before.values())) > 5
    walked = 0
    for route, does in app.openapi()["paths"].items():
        for id in (chat, asked["turn"], "plants", "12", "x") if "get" in does else ():
            for accept in ("text/html", "application/json"):
                path = re.sub(r"\{\w+\}", id, route)
                reply = await person.get(path, headers={"accept": accept}, params={"confirm": "yes", "_method": "delete"})
                assert reply.status_code < 500, path
                walked += 1
    assert walked > 100 and contents(box) == before
