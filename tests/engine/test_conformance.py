"""One suite over every handler, so that each can stand in for any other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.engine.fake import Fake
from appliance.engine.handler import Chunk, Handler, Message, Request
from appliance.engine.quotes import Quotes
from appliance.engine.scheduler import LlamaHandler
from appliance.errors import ApplianceError, BadInput, TooLarge, Unsupported
from tests.engine.serving import engine_on_a_socket

QUESTION = [Message("system", "You are the school's teaching assistant."), Message("user", "Why are leaves green?")]


@dataclass(frozen=True)
class Passage:
    document: str = "d1"
    title: str = "Photosynthesis"
    place: str = "p. 1"
    text: str = "Chlorophyll reflects green light, which is why leaves look green. Roots take in water."


async def _search(_text: str) -> list[Passage]:
    return [Passage()]


@asynccontextmanager
async def fake(_gguf: Callable[[], Path]) -> AsyncIterator[Handler]:
    yield Fake()


@asynccontextmanager
async def quotes(_gguf: Callable[[], Path]) -> AsyncIterator[Handler]:
    yield Quotes(_search)


@asynccontextmanager
async def llama(gguf: Callable[[], Path]) -> AsyncIterator[Handler]:
    yield LlamaHandler(gguf(), slots=4, threads=2)


@asynccontextmanager
async def openai_compatible(gguf: Callable[[], Path]) -> AsyncIterator[Handler]:
    async with engine_on_a_socket(gguf()) as client:
        yield client


Make = Callable[[Callable[[], Path]], AbstractAsyncContextManager[Handler]]
MAKERS = [fake, quotes, pytest.param(llama, marks=pytest.mark.llama), pytest.param(openai_compatible, marks=pytest.mark.llama)]


@pytest.fixture(params=MAKERS, ids=["fake", "quotes", "llama", "openai_compatible"])
async def handler(request: pytest.FixtureRequest) -> AsyncIterator[Handler]:
    make: Make = request.param
    async with make(lambda: request.getfixturevalue("starter_gguf")) as made:
        await made.start()
        yield made
        await made.close()


async def collect(handler: Handler, request: Request) -> list[Chunk]:
    return [chunk async for chunk in handler.generate(request)]


async def test_it_is_a_handler(handler: Handler) -> None:
    assert isinstance(handler, Handler)
    assert handler.name and handler.slots >= 1
    health = await handler.health()
    assert health.ok and health.detail


async def test_an_answer_ends_once_and_says_who_gave_it(handler: Handler) -> None:
    chunks = await collect(handler, Request(QUESTION, question="Why are leaves green?", passages=[Passage()], max_tokens=40))
    assert [chunk.finish is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    last = chunks[-1]
    assert last.finish in ("stop", "length")
    assert last.usage and last.usage.prompt > 0 and last.usage.completion >= 0
    assert last.handler
    assert all(chunk.usage is None for chunk in chunks[:-1])


async def test_greedy_repeats_exactly(handler: Handler) -> None:
    request = Request(QUESTION, question="Why are leaves green?", max_tokens=24)
    first, second = await collect(handler, request), await collect(handler, request)
    assert "".join(c.text for c in first) == "".join(c.text for c in second)


async def test_a_seed_repeats_and_another_does_not(handler: Handler) -> None:
    def request(seed: int) -> Request:
        return Request(QUESTION, max_tokens=40, temperature=1.5, top_p=1.0, min_p=0.0, top_k=0, seed=seed, ignore_eos=True)

    texts = ["".join(c.text for c in await collect(handler, request(seed))) for seed in (7, 7, 8)]
    assert texts[0] == texts[1]
    if handler.name == "llama":
        assert texts[0] != texts[2]


async def test_leaving_early_is_harmless(handler: Handler) -> None:
    for _ in range(5):
        stream = handler.generate(Request(QUESTION, question="Why are leaves green?", max_tokens=60))
        await anext(stream)
        await stream.aclose()
    assert (await collect(handler, Request(QUESTION, question="Why are leaves green?", max_tokens=8)))[-1].finish


async def test_many_at_once_all_get_their_own_end(handler: Handler) -> None:
    requests = [Request([Message("user", f"What is {n}?")], question=f"What is {n}?", max_tokens=10) for n in range(12)]
    answers = await asyncio.gather(*(collect(handler, request) for request in requests))
    assert all(chunks[-1].finish for chunks in answers)


async def test_emoji_and_right_to_left_come_back_whole(handler: Handler) -> None:
    message = [Message("user", "🍎🍏 مرحبا \u202e שלום 👩‍🏫")]
    chunks = await collect(handler, Request(message, question=message[0].content, max_tokens=20))
    assert all("\ufffd" not in chunk.text or handler.name == "llama" for chunk in chunks)


async def test_count_grows_with_the_words(handler: Handler) -> None:
    short = await handler.count([Message("user", "one two three")])
    long = await handler.count([Message("user", "one two three " * 20)])
    assert 0 < short < long


async def test_score_is_one_log_probability_a_token_or_unsupported(handler: Handler) -> None:
    conversation = [*QUESTION, Message("assistant", "Because of chlorophyll.")]
    try:
        scores = await handler.score(conversation)
    except Unsupported as error:
        assert error.hint
        return
    assert len(scores) >= 3
    assert all(score <= 0 for score in scores)
    with pytest.raises(BadInput):
        await handler.score(QUESTION)


async def test_a_prompt_that_cannot_fit_is_refused_with_the_counts(handler: Handler) -> None:
    if handler.name == "quotes":
        return  # it reads no prompt, so none is too long
    with pytest.raises(TooLarge, match=r"\d+") as caught:
        await collect(handler, Request([Message("user", "word " * 9000)], max_tokens=10))
    assert caught.value.hint


async def test_only_our_own_exceptions_cross_the_border(handler: Handler) -> None:
    for messages in ([Message("user", "\x00\ud800".encode("utf-8", "replace").decode())], [Message("user", "")]):
        try:
            await collect(handler, Request(messages, max_tokens=4))
        except ApplianceError as error:
            assert error.message
