"""A handler that needs no model and always says the same: for tests of what stands around a model, and for load tests.

Declared as `fake`; it never serves by itself. The answer is the question's words in upper case, one chunk a word.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

from appliance.engine.handler import Chunk, Finish, Health, Message, Request, Usage
from appliance.errors import BadInput, TooLarge


class Fake:
    """`seconds_per_word` paces the answer like a model of that speed."""

    name = "fake"

    def __init__(self, *, slots: int = 8, context: int = 4096, seconds_per_word: float = 0.0) -> None:
        self.slots = slots
        self.context = context
        self._pace = seconds_per_word

    async def start(self) -> None: ...

    async def generate(self, request: Request) -> AsyncGenerator[Chunk, None]:
        prompt = await self.count(request.messages)
        if prompt + request.max_tokens > self.context:
            raise TooLarge(
                f"The question needs {prompt} tokens, the answer up to {request.max_tokens}; this model holds {self.context}.",
                "Ask something shorter.",
            )
        words = request.messages[-1].content.upper().split()
        cut = words[: request.max_tokens]
        for position, word in enumerate(cut):
            await asyncio.sleep(self._pace)
            yield Chunk(word if position == 0 else f" {word}", model=self.name, handler=self.name)
        finish: Finish = "stop" if len(cut) == len(words) else "length"
        yield Chunk(finish=finish, usage=Usage(prompt, 0, len(cut)), model=self.name, handler=self.name)

    async def count(self, messages: Sequence[Message]) -> int:
        return sum(len(message.content.split()) for message in messages)

    async def score(self, messages: Sequence[Message]) -> list[float]:
        if not messages or messages[-1].role != "assistant":
            raise BadInput("Only an assistant's turn can be scored.", "End the conversation with one.")
        return [-1.0] * (len(messages[-1].content.split()) + 1)

    async def health(self) -> Health:
        return Health(True, "answers", self.name)

    async def close(self) -> None: ...
