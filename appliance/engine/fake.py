"""A handler that needs no model and always says the same: for tests of what stands around a model, and for load tests.

Declared as `fake` (the setting `backend`); it never serves by itself. The answer is the question's words in upper case, one
chunk a word; "now" is said as the time of day in seconds, so that a load test can tell how long each word was on its way.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Sequence

from appliance.engine.handler import Chunk, Finish, Health, Message, Request, Usage
from appliance.errors import BadInput, Busy, TooLarge, Unsupported

SLOTS = 256
CONTEXT = 16_384
SECONDS_PER_WORD = 0.05


class Fake:
    """`seconds_per_word` paces the answer like a model of that speed."""

    name = "fake"

    def __init__(self, *, slots: int = 8, context: int = 4096, seconds_per_word: float = 0.0) -> None:
        self.slots = slots
        self.context = context
        self._pace = seconds_per_word

    async def start(self) -> None: ...

    async def generate(self, request: Request) -> AsyncGenerator[Chunk, None]:
        if request.schema is not None:
            raise Unsupported("The fake cannot keep to a schema.", "Ask a language model.")
        prompt = await self.count(request.messages)
        if prompt + request.max_tokens > self.context:
            raise TooLarge(
                f"The question needs {prompt} tokens, the answer up to {request.max_tokens}; this model holds {self.context}.",
                "Ask something shorter.",
            )
        ends = None if request.deadline is None else time.monotonic() + request.deadline
        words = request.messages[-1].content.upper().split()
        cut = words[: request.max_tokens]
        finish: Finish = "stop" if len(cut) == len(words) else "length"
        said = " ".join(cut)
        met = [at for at in (said.find(stop) for stop in request.stop if stop) if at >= 0]
        if met:
            said, finish = said[: min(met)], "stop"
        for part in re.findall(r" ?[^ ]+| ", said):
            await asyncio.sleep(self._pace)
            if ends is not None and time.monotonic() >= ends:
                raise Busy("The answer took longer than its time limit.", "Try again when fewer people are asking.")
            yield Chunk(part.replace("NOW", f"{time.time():.4f}"), model=self.name, handler=self.name)
        yield Chunk(finish=finish, usage=Usage(prompt, 0, len(said.split())), model=self.name, handler=self.name)

    async def count(self, messages: Sequence[Message]) -> int:
        if not messages:
            raise BadInput("There is no message to answer.", "Write a question.")
        return sum(len(message.content.split()) for message in messages)

    async def score(self, messages: Sequence[Message]) -> list[float]:
        if not messages or messages[-1].role != "assistant":
            raise BadInput("Only an assistant's turn can be scored.", "End the conversation with one.")
        return [-1.0] * (len(messages[-1].content.split()) + 1)

    async def health(self) -> Health:
        return Health(True, "answers", self.name)

    async def close(self) -> None: ...
