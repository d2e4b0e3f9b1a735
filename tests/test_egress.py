"""The egress process: what it forwards, what it refuses, and where its limits are."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from appliance.egress import Egress
from appliance.network import Host, Policy
from appliance.settings import Settings
from tests.outside import allow, machine


@contextlib.asynccontextmanager
async def egress(settings: Settings, **limits: Any) -> AsyncIterator[list[str]]:
    """One in this process; what it says."""
    settings.run.mkdir(parents=True, exist_ok=True)
    said: list[str] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(settings.egress_socket))
        listener.listen()
        task = asyncio.create_task(Egress(Policy(settings.network), said.append, **limits).serve(listener))
        try:
            yield said
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def ask(settings: Settings, raw: bytes) -> tuple[bytes, asyncio.StreamReader, asyncio.StreamWriter]:
    """The status of its answer, and the line."""
    reader, writer = await asyncio.open_unix_connection(settings.egress_socket)
    writer.write(raw)
    status = (await reader.readuntil(b"\r\n")).split(b" ")[1]
    return status, reader, writer


def connect(host: object) -> bytes:
    return f"CONNECT {host} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


async def test_much_in_both_directions_arrives_whole_and_the_end_is_passed_on(settings: Settings) -> None:
    with machine() as outside:
        allow(settings, outside.host)
        async with egress(settings) as said:
            _, reader, writer = await ask(settings, connect(outside.host))
            await reader.readuntil(b"\r\n")
            body = b"abcdefgh" * 200_000

            async def send() -> None:
                writer.write(body)
                await writer.drain()
                writer.write_eof()

            sending = asyncio.create_task(send())
            assert await reader.read() == body.upper()
            await sending
            writer.close()
        assert said[-1].startswith(f"{outside.host}: {len(body)} bytes out, {len(body)} bytes in")


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1\r\n\r\n", b"CONNECT\r\n\r\n", b"CONNECT https://a.example HTTP/1.1\r\n\r\n", b"\x16\x03\x01\r\n\r\n",
        b"CONNECT a.example:1 HTTP/1.1 x\r\n\r\n", b"CONNECT \xff:1 HTTP/1.1\r\n\r\n", b"CONNECT " + b"x" * 70_000,
        b"CONNECT a.example:1 HTTP/1.1\r\nx: " + b"y" * 5000 + b"\r\n\r\n",
    ],
)  # fmt: skip
async def test_what_is_no_question_is_refused_with_a_sentence(settings: Settings, raw: bytes) -> None:
    allow(settings, Host("a.example", 1))
    async with egress(settings):
        status, reader, writer = await ask(settings, raw)
        with contextlib.suppress(ConnectionError):
            assert b"\n" in (await reader.read()).strip()
        assert status == b"400"
        writer.close()


async def test_a_host_that_is_not_allowed_is_not_even_resolved(settings: Settings) -> None:
    asked: list[str] = []

    async def resolve(name: str, _port: int) -> list[str]:
        asked.append(name)
        return []

    allow(settings, Host("a.example", 1))
    async with egress(settings, resolve=resolve):
        for host in ("b.example:1", "a.example:2", "127.0.0.1:1"):
            status, reader, writer = await ask(settings, connect(host))
            assert status == b"403" and b"appliance network allow" in await reader.read()
            writer.close()
    assert asked == []


@pytest.mark.parametrize(
    "trick", ["127.0.0.1", "127.9.9.9", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1", "169.254.169.254", "own"]
)
async def test_a_name_that_stands_for_this_box_is_refused_and_its_address_is_not(settings: Settings, trick: str) -> None:
    """`own`: the address of this machine on its network, where it has one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(("192.0.2.1", 9))
        trick = probe.getsockname()[0] if trick == "own" else trick
    if trick == "own":
        pytest.skip("this machine has no network")

    async def resolve(_name: str, _port: int) -> list[str]:
        return [trick]

    with machine() as outside:
        name = Host("school.example", outside.port)
        allow(settings, name, outside.host, Host("localhost", outside.port))
        async with egress(settings, resolve=resolve):
            status, reader, writer = await ask(settings, connect(name))
            assert status == b"403" and b"this box itself" in await reader.read()
            writer.close()
            assert outside.came == []
            status, _, writer = await ask(settings, connect(outside.host))
            assert status == b"200", "allowed by its address, it was meant"
            writer.close()


async def test_a_name_that_stands_for_two_machines_reaches_the_one_that_is_not_this_box(settings: Settings) -> None:
    async def resolve(_name: str, _port: int) -> list[str]:
        return ["127.0.0.1", "192.0.2.1"]

    allow(settings, Host("school.example", 9))
    async with egress(settings, resolve=resolve):
        reader, writer = await asyncio.open_unix_connection(settings.egress_socket)
        writer.write(connect("school.example:9"))
        # 192.0.2.1 is nobody's: whatever comes of it, it is not a refusal, and nothing of 127.0.0.1.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2):
                assert (await reader.readuntil(b"\r\n")).split(b" ")[1] == b"503"
        writer.close()


async def test_no_more_connections_than_there_may_be(settings: Settings) -> None:
    with machine() as outside:
        allow(settings, outside.host)
        async with egress(settings, most=2):
            lines = [await ask(settings, connect(outside.host)) for _ in range(3)]
            assert [status for status, _, _ in lines] == [b"200", b"200", b"429"]
            for _, _, writer in lines:
                writer.close()
            await lines[0][1].read()
            status = b"429"
            while status == b"429":  # until the closed ones are gone
                status, _, writer = await ask(settings, connect(outside.host))
                writer.close()
            assert status == b"200"


async def test_a_connection_on_which_nothing_moves_is_ended(settings: Settings) -> None:
    with machine(mute=True) as outside:
        allow(settings, outside.host)
        async with egress(settings, idle=0.3):
            _, reader, writer = await ask(settings, connect(outside.host))
            await reader.readuntil(b"\r\n")
            assert await reader.read() == b""
            writer.close()


async def test_a_host_that_breaks_off_breaks_the_line_inside(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host = Host("127.0.0.1", listener.getsockname()[1])
        allow(settings, host)
        async with egress(settings):
            _, reader, writer = await ask(settings, connect(host))
            await reader.readuntil(b"\r\n")
            line, _ = listener.accept()
            line.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"
            )  # a reset, as of a machine that lost power
            line.close()
            assert await reader.read() == b""
            writer.close()
