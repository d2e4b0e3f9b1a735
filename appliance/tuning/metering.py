"""What asking a model takes: answers, tokens, and the bytes that went to it. For models of other machines, which cost both.

A handler around a handler; it changes nothing of what is asked or answered.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from appliance.engine.handler import Chunk, Handler, Health, Message, Request
from appliance.tuning.report import Line


@dataclass(eq=False)
class Metered:
    """prompt, completion: tokens, as far as the server tells them. sent: bytes of the messages."""

    inner: Handler
    answers: int = 0
    prompt: int = 0
    completion: int = 0
    sent: int = 0
    name: str = field(init=False)
    slots: int = field(init=False)
    context: int = field(init=False)

    def __post_init__(self) -> None:
        self.name, self.slots, self.context = self.inner.name, self.inner.slots, self.inner.context

    async def start(self) -> None:
        await self.inner.start()

    async def generate(self, request: Request) -> AsyncGenerator[Chunk, None]:
        self.answers += 1
        self.sent += sum(len(message.content.encode("utf-8", "replace")) for message in request.messages)
        async with aclosing(self.inner.generate(request)) as chunks:
            async for chunk in chunks:
                if chunk.usage is not None:
                    self.prompt += chunk.usage.prompt
                    self.completion += chunk.usage.completion
                yield chunk

    async def count(self, messages: Sequence[Message]) -> int:
        return await self.inner.count(messages)

    async def score(self, messages: Sequence[Message]) -> list[float]:
        return await self.inner.score(messages)

    async def health(self) -> Health:
        return await self.inner.health()

    async def close(self) -> None:
        await self.inner.close()


def lines(meters: Sequence[Metered], far: Sequence[bool]) -> list[Line]:
    """What judging two models took, for the report's first table. far: which of them is on another machine."""
    bytes_out = [f"{meter.sent}" if away else "0" for meter, away in zip(meters, far, strict=True)]
    tokens = [
        f"{meter.answers} answers, {meter.prompt} tokens in, {meter.completion} out" if away else "0"
        for meter, away in zip(meters, far, strict=True)
    ]
    return [
        Line("bytes", "Bytes that left the building", bytes_out[0], bytes_out[1], "The questions of this judging."),
        Line(
            "cost",
            "Asked of another machine to judge",
            tokens[0],
            tokens[1],
            "As its server counts; what it costs, its bill says.",
        ),
    ]
