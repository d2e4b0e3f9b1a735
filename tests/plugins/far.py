"""A model server on another machine, as far as the box can tell: on a loopback port, and as well or unwell as a test wants."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from appliance.network import Host


@dataclass
class Far:
    """`mood`: well; dies (breaks off before an answer); breaks (after two words); mute (never answers); or an HTTP status."""

    models: list[dict[str, Any]] = field(default_factory=lambda: [{"id": "big", "max_model_len": 8192}])
    says: str | Callable[[list[dict[str, str]]], str] = "Leaves are green because of chlorophyll."
    mood: str = "well"
    port: int = 0
    asked: list[dict[str, Any]] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    listed: int = 0
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    gate: asyncio.Event = field(default_factory=asyncio.Event)  # the rest of an answer waits for it

    @property
    def host(self) -> Host:
        return Host("127.0.0.1", self.port)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while head := (await reader.readuntil(b"\r\n\r\n")).decode():
                length = next((int(line[15:]) for line in head.lower().split("\r\n") if line.startswith("content-length:")), 0)
                body = await reader.readexactly(length)
                self.heads.append(head)
                if not await self._answer(head, body, writer):
                    break
        writer.close()
        self.tasks.discard(task)

    async def _answer(self, head: str, body: bytes, writer: asyncio.StreamWriter) -> bool:
        """Whether the line stays open."""
        if self.mood == "mute":
            await asyncio.Event().wait()
        if self.mood.isdigit():
            fault = json.dumps({"error": {"message": "Incorrect key sk-part-of-it", "code": None}}).encode()
            writer.write(f"HTTP/1.1 {self.mood} No\r\nContent-Length: {len(fault)}\r\n\r\n".encode() + fault)
            return True
        if self.mood == "dies":
            self.asked += [json.loads(body)] if body else []
            return False
        if head.startswith("GET "):
            self.listed += 1
            listed = json.dumps({"object": "list", "data": self.models}).encode()
            writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(listed)}\r\n\r\n".encode() + listed)
            return True
        self.asked.append(json.loads(body))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        says = self.says if isinstance(self.says, str) else self.says(self.asked[-1]["messages"])
        words = says.split(" ")
        for number, word in enumerate(words):
            if number == 2 and self.mood == "breaks":
                writer.transport.abort()
                return False
            self._piece(writer, {"choices": [{"delta": {"content": word if number == 0 else f" {word}"}}]})
            await writer.drain()
            if number == 1 and self.mood == "waits":
                await self.gate.wait()
        self._piece(writer, {"choices": [{"delta": {}, "finish_reason": "stop"}]})
        self._piece(writer, {"choices": [], "usage": {"prompt_tokens": 21, "completion_tokens": len(words)}})
        writer.write(b"data: [DONE]\n\n")
        await writer.drain()
        return False

    def _piece(self, writer: asyncio.StreamWriter, about: dict[str, Any]) -> None:
        # A stranger may say anything of itself; none of that is believed.
        told = {"model": "/srv/weights.gguf", "handler": "quotes", "place": 3, **about}
        writer.write(f"data: {json.dumps(told)}\n\n".encode())


@contextlib.asynccontextmanager
async def far(**facts: Any) -> AsyncIterator[Far]:
    made = Far(**facts)
    server = await asyncio.start_server(made._serve, "127.0.0.1", made.port)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        for task in list(made.tasks):
            task.cancel()
        await asyncio.gather(*made.tasks, return_exceptions=True)
