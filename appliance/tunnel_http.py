"""httpx over the egress process: every connection of a client is a CONNECT to a host that the policy allows.

Hides httpcore's network backend. There is no other way to a host in it: a name is not resolved here, a proxy or another Unix
socket is not known here.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Callable, Iterable
from pathlib import Path
from typing import Any

import httpcore
import httpx

from appliance import tunnel
from appliance.errors import ApplianceError


class Transport(httpx.AsyncBaseTransport):
    def __init__(self, path: Path, require: Callable[[str, int], object], ca_file: Path | None) -> None:
        context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
        self._pool = httpcore.AsyncConnectionPool(context, max_connections=20, network_backend=_Backend(path, require))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        wanted = httpcore.Request(
            request.method,
            httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        try:
            reply = await self._pool.handle_async_request(wanted)
        except Exception as error:
            raise _as_httpx(error) from error
        return httpx.Response(reply.status, headers=reply.headers, stream=_Body(reply), extensions=reply.extensions)

    async def aclose(self) -> None:
        await self._pool.aclose()


class _Body(httpx.AsyncByteStream):
    def __init__(self, reply: httpcore.Response) -> None:
        self._reply = reply

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        try:
            async for piece in self._reply.aiter_stream():
                yield piece
        except httpcore.NetworkError as error:
            raise _as_httpx(error) from error
        except (httpcore.ProtocolError, httpcore.TimeoutException) as error:
            raise _as_httpx(error) from error

    async def aclose(self) -> None:
        await self._reply.aclose()


def _as_httpx(error: Exception) -> Exception:
    """Both libraries call their errors by the same names; a fault of ours is left as it is."""
    if isinstance(error, ApplianceError):
        return error
    found: Any = getattr(httpx, type(error).__name__, None)
    if isinstance(found, type) and issubclass(found, httpx.TransportError):
        return found(str(error))
    return httpx.TransportError(f"{type(error).__name__}: {error}")


class _Backend(httpcore.AsyncNetworkBackend):
    def __init__(self, path: Path, require: Callable[[str, int], object]) -> None:
        self._path, self._require, self._plain = path, require, httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,  # noqa: ARG002 - httpcore's signature
        socket_options: Iterable[Any] | None = None,  # noqa: ARG002
    ) -> httpcore.AsyncNetworkStream:
        wanted = str(self._require(host, port))
        try:
            line = await self._plain.connect_unix_socket(str(self._path), timeout)
        except (httpcore.ConnectError, httpcore.ConnectTimeout):
            raise tunnel.not_running(self._path) from None
        try:
            await line.write(tunnel.question(wanted), timeout)
            head = b""
            while not head.endswith(b"\r\n\r\n") and len(head) < tunnel.LARGEST_HEAD:
                byte = await line.read(1, timeout)  # one by one: what comes after belongs to the host
                if not byte:
                    break
                head += byte
            if not tunnel.accepted(head):
                raise tunnel.refusal(head, await _rest(line, timeout))
        except BaseException:
            await line.aclose()
            raise
        return line


async def _rest(line: httpcore.AsyncNetworkStream, timeout: float | None) -> bytes:
    body = b""
    while len(body) < tunnel.LARGEST_HEAD and (piece := await line.read(tunnel.LARGEST_HEAD, timeout)):
        body += piece
    return body
