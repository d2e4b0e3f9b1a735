"""A handler whose answers are known to improve with better demonstrations or better instructions, and a box that asks it."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from appliance.engine.handler import Chunk, Health, Message, Request, Usage
from appliance.engine.pool import Serving
from appliance.network import Host, Policy
from appliance.settings import Settings
from tests.web.box import make_box

GOOD, BAD = "What have you tried so far?", "It is 42."
RULE = "Ask what was tried."
ROWS = [
    {"id": f"r{n}", "messages": [{"role": "user", "content": f"How do I do task {n}?"}, {"role": "assistant", "content": GOOD}]}
    for n in range(30)
]


class Scripted:
    """Gives the answer away, unless a demonstration or the instructions show how it is done. Keeps to a schema."""

    name, slots, context = "scripted", 1, 4096

    def __init__(self, *, rewrites: str = RULE) -> None:
        self.requests: list[Request] = []
        self.rewrites = rewrites

    async def start(self) -> None: ...

    async def generate(self, request: Request) -> AsyncGenerator[Chunk, None]:
        self.requests.append(request)
        said = self.say(request)
        prompt = await self.count(request.messages)
        yield Chunk(said, model=self.name, handler=self.name)
        yield Chunk(finish="stop", usage=Usage(prompt, 0, len(said.split())), model=self.name, handler=self.name)

    def say(self, request: Request) -> str:
        told, shown = request.messages[0].content, [one.content for one in request.messages if one.role == "assistant"]
        if "new instruction" in request.messages[-1].content:  # GEPA asks for one
            return f"```\n{self.rewrites}\n```"
        good = any("tried" in one for one in shown) or RULE in told
        if request.schema is None:
            return GOOD if good else BAD
        level = 2 if any('"level": 2' in one for one in shown) else 0
        return json.dumps({"level": level, "quote": "", "try_this": "Ask why."})

    async def count(self, messages: Sequence[Message]) -> int:
        return sum(len(one.content.split()) for one in messages)

    async def score(self, messages: Sequence[Message]) -> list[float]:
        return [-1.0 for _ in messages]

    async def health(self) -> Health:
        return Health(True, "answers", self.name)

    async def close(self) -> None: ...


class Connected(Scripted):
    """The same behind the chat: a pool of one."""

    async def serving(self, task: str = "") -> Serving:
        del task
        return Serving(self.name, self.name, "Scripted", False, True, "", self.context)

    async def count(self, messages: Sequence[Message], task: str = "", model: str = "default") -> int:
        del task, model
        return await super().count(messages)


def open_line(settings: Settings) -> None:
    """As after `appliance network allow`."""
    settings.home.mkdir(parents=True, exist_ok=True)
    Policy(settings.network).allow(Host("api.school.example", 443))


def close_line(settings: Settings) -> None:
    Policy(settings.network).deny("api.school.example")


def box_of(settings: Settings, handler: Connected) -> Any:
    """The parts that a job needs, round a scripted model: database, chat, table of programs."""
    box: Any = make_box(settings, pool=handler)

    @asynccontextmanager
    async def running_engine() -> AsyncIterator[None]:
        yield

    box.engine, box.running_engine = handler, running_engine
    return box


def children() -> list[int]:
    """Processes of ours that run the optimiser."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            ours = int((place / "stat").read_text().rpartition(")")[2].split()[1]) == os.getpid()
            found += [int(place.name)] if ours and b"dspy_child" in (place / "cmdline").read_bytes() else []
        except OSError:
            continue
    return found


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path
