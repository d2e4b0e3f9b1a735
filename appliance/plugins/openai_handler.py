"""Answers by a model at OpenAI, as a handler like any other.

Hides retries with back-off (never once a word was said), the time limit, the month's budget, and the local model that answers
while the line is down, the policy is closed or the account is refused; `Chunk.handler` says who it was. What is sent is the
conversation and nothing of who asks. The dialect is `engine.openai_compatible`'s.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial

import httpx

from appliance.engine.handler import Chunk, Handler, Health, Message, Request, Usage
from appliance.engine.openai_compatible import OpenAICompatible
from appliance.errors import ApplianceError, BadInput, Busy, Forbidden, ModelUnavailable, Unreachable, Unsupported
from appliance.plugins import openai_line as line
from appliance.plugins.openai_money import Budget, prices, tokens, tokens_of
from appliance.settings import Settings

TRIES = 3
FIRST_WAIT = 0.5  # seconds, doubled each time
SLOTS = 8
_DOWN = (Unreachable, ModelUnavailable, Forbidden, Busy)  # a local model can stand in
_AGAIN = (Unreachable, ModelUnavailable, Busy)  # another try can help


@dataclass(slots=True)
class _Heard:
    """What came of one answer. began: whether the service was at work on it, so that it may cost."""

    text: str = ""
    began: bool = False
    usage: Usage | None = None


class OpenAIHandler:
    """`model`: as the service calls it, "ft:..." or a base. fallback: who answers while this one cannot."""

    name = "openai"
    slots = SLOTS

    def __init__(
        self, settings: Settings, model: str, *, fallback: Handler | None = None, first_wait: float = FIRST_WAIT
    ) -> None:
        self.model, self._fallback, self._wait = model, fallback, first_wait
        listed = prices(settings)
        self._price = listed.of(model)
        self.context = self._price.context
        self._seconds = settings.openai_seconds
        self._budget = Budget(settings, listed)
        self._client = OpenAICompatible(
            partial(line.answers_client, settings), name=self.name, own=False, context=self.context
        )  # fmt: skip

    async def start(self) -> None:
        """Raises what keeps it from answering, where nobody stands in."""
        if self._fallback is not None:
            await self._fallback.start()
            return
        await self._reach()

    async def generate(self, request: Request) -> AsyncGenerator[Chunk, None]:
        """As every handler; UsedUp where the month's money is. After a first word nothing is asked again."""
        if not request.messages:
            raise BadInput("There is no message to answer.", "Write a question.")
        prompt = tokens_of(request.messages)
        most = self._price.answer(Usage(prompt, 0, request.max_tokens))
        month = await asyncio.to_thread(self._budget.take, most)
        heard, failure = _Heard(), None
        began = time.monotonic()
        ends = began + min(request.deadline or self._seconds, self._seconds)
        try:
            async with aclosing(self._tries(replace(request, model=self.model), ends, heard)) as chunks:
                async for chunk in chunks:
                    yield chunk
        except _DOWN as error:
            late = request.deadline is not None and time.monotonic() >= began + request.deadline
            if heard.text or self._fallback is None or late:
                raise
            failure = error
        finally:
            cost = self._price.answer(heard.usage or Usage(prompt, 0, tokens(heard.text))) if heard.began else 0.0
            await asyncio.shield(asyncio.to_thread(self._budget.settle, month, most, cost))
        if failure is not None and self._fallback is not None:
            async with aclosing(self._fallback.generate(request)) as chunks:
                async for chunk in chunks:
                    yield chunk

    async def _tries(self, request: Request, ends: float, heard: _Heard) -> AsyncGenerator[Chunk, None]:
        """One answer; before its first word another try after a while, as long as there is time."""
        for attempt in range(TRIES):
            try:
                async with aclosing(self._once(request, ends, heard)) as chunks:
                    async for chunk in chunks:
                        yield chunk
                return
            except _AGAIN as error:
                wait = self._wait * 2**attempt
                wait = max(wait, error.retry_after) if isinstance(error, Busy) else wait
                over = time.monotonic() + wait >= ends
                if heard.text or isinstance(error, line.Refused) or attempt == TRIES - 1 or over:
                    raise
                await asyncio.sleep(wait)

    async def _once(self, request: Request, ends: float, heard: _Heard) -> AsyncGenerator[Chunk, None]:
        stream = self._client.generate(replace(request, deadline=max(ends - time.monotonic(), 0.001)))
        async with aclosing(stream):
            while True:
                try:
                    async with asyncio.timeout(max(ends - time.monotonic(), 0.001)):
                        chunk = await anext(stream)
                except StopAsyncIteration:
                    return
                except TimeoutError:
                    heard.began = True
                    raise Busy("OpenAI's answer took longer than its time limit.", "Try again in a moment.") from None
                except ModelUnavailable as error:
                    raise _in_words(error, heard) from None
                except (Unreachable, Busy) as error:
                    if time.monotonic() >= ends:
                        raise Busy("OpenAI's answer took longer than its time limit.", error.hint) from None
                    raise
                heard.began, heard.text, heard.usage = True, heard.text + chunk.text, chunk.usage
                yield chunk

    async def count(self, messages: Sequence[Message]) -> int:
        """A careful estimate: the service's own tokenizer is not on the box."""
        if not messages:
            raise BadInput("There is no message to count.", "Write a question.")
        return tokens_of(messages)

    async def score(self, messages: Sequence[Message]) -> list[float]:  # noqa: ARG002 - the interface's
        raise Unsupported("OpenAI does not tell how likely a given text is.", "Use a local model.")

    async def health(self) -> Health:
        """Asks the service for its models, which costs nothing."""
        try:
            await self._reach()
        except ApplianceError as error:
            return Health(False, f"{error.message} {error.hint}", self.model)
        return Health(True, f"{self.model} at OpenAI; answers leave the building.", self.model)

    async def close(self) -> None:
        await self._client.close()
        if self._fallback is not None:
            await self._fallback.close()

    async def _reach(self) -> None:
        try:
            await self._client.models()
        except ModelUnavailable as error:
            raise _in_words(error, _Heard()) from None
        except (ValueError, KeyError, TypeError):
            raise ModelUnavailable("OpenAI sent something that is no answer.", "Try again in a moment.") from None


def _in_words(error: ModelUnavailable, heard: _Heard) -> ApplianceError:
    """The shared client speaks of a server that restarts by itself, which this one does not."""
    if isinstance(error.__cause__, httpx.TimeoutException):
        return line.too_slow()
    if isinstance(error.__cause__, httpx.HTTPError) or "in the middle" in error.message:
        heard.began = heard.began or bool(heard.text)
        return line.broken()
    return error
