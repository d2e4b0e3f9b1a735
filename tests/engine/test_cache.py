"""What is kept of conversations: as bytes, in cells of their own or in a pool, and moved. Answers are the same as without."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.engine import cache
from appliance.engine.handler import Chunk, Message, Request
from appliance.engine.llama import Llama
from appliance.engine.parking import Parking
from appliance.engine.prefixes import common
from appliance.engine.scheduler import LlamaHandler
from tests.engine.adapters import write_adapter
from tests.engine.test_crosstalk import CHANCES, apart, beyond_rounding

# --- as bytes -------------------------------------------------------------------------------------------------------------
TOKENS = st.lists(st.integers(0, 2), max_size=10)
KINDS = st.sampled_from(["", "one"])


def state(number: int, size: int = 4) -> Any:
    return np.full(size, number, np.uint8)


@given(puts=st.lists(st.tuples(TOKENS, KINDS), max_size=12), asked=TOKENS, kind=KINDS, gone=st.booleans())
@settings(max_examples=200, deadline=None)
def test_the_longest_beginning_under_the_same_adapter_is_found(
    puts: list[tuple[list[int], str]], asked: list[int], kind: str, gone: bool
) -> None:
    parking = Parking(10_000)
    for number, (tokens, worn) in enumerate(puts):
        assert parking.put(tokens, worn, state(number)) == bool(tokens)
    if gone:
        parking.forget("one")
    there = [(number, tokens) for number, (tokens, worn) in enumerate(puts) if worn == kind and not (gone and worn == "one")]
    key, length = parking.match(asked, kind)
    assert length == max((common(tokens, asked) for _, tokens in there), default=0)
    assert (key == -1) == (length == 0)
    if length:
        number = int(parking.get(key)[0])
        assert puts[number][1] == kind and common(puts[number][0], asked) == length
        assert parking.length(key) == len(puts[number][0])
        before = parking.used
        parking.drop(key)
        assert parking.used == before - 4
        assert parking.match(asked, kind)[1] == max((common(tokens, asked) for n, tokens in there if n != number), default=0)


@given(puts=st.lists(st.tuples(TOKENS, KINDS, st.integers(1, 120), st.integers(1, 3)), max_size=30))
@settings(max_examples=200, deadline=None)
def test_the_room_is_never_exceeded_and_what_came_last_is_there(puts: list[tuple[list[int], str, int, int]]) -> None:
    parking = Parking(100)
    for number, (tokens, kind, size, uses) in enumerate(puts):
        taken = parking.put(tokens, kind, state(number, size), uses)
        assert taken == (bool(tokens) and size <= 100)
        assert 0 <= parking.used <= 100 and (len(parking) > 0) == (parking.used > 0)
        assert not taken or parking.match(tokens, kind)[1] == len(tokens)
    for kind in ("", "one"):
        parking.forget(kind)
    assert parking.used == len(parking) == 0


def test_what_is_used_stays_longer() -> None:
    parking = Parking(100)
    for number in range(10):
        parking.put([number, 1, 2], "", state(number, 10))
    for _ in range(3):
        parking.get(parking.match([4, 1, 2], "")[0])
    for number in range(10, 22):
        parking.put([number, 1, 2], "", state(number, 10))
    assert parking.match([4, 1, 2], "")[1] == 3 and parking.match([5, 1, 2], "")[1] == 0
    for number in range(22, 80):
        parking.put([number, 1, 2], "", state(number, 10))
    assert parking.match([4, 1, 2], "")[1] == 0, "what was used once upon a time goes too"


def test_what_another_state_begins_with_too_goes_before_what_only_one_holds() -> None:
    """To have it again costs the few tokens in which they differ."""
    parking = Parking(30)
    parking.put([9, 9, 9, 9, 9, 9], "", state(0, 10))  # the oldest
    lesson = [1, 1, 1, 1, 1]
    for number in (2, 3):
        parking.put([*lesson, number], "", state(number, 10))
    parking.put([7, 7, 7, 7, 7, 7], "", state(4, 10))
    assert parking.match([9] * 6, "")[1] == parking.match([7] * 6, "")[1] == 6
    assert parking.match([*lesson, 2], "")[1] == 5, "one of the two went, and the other still has what they share"


@pytest.mark.llama
def test_states_that_come_and_go_leave_no_holes_in_memory(starter_gguf: Path) -> None:
    """In many sizes, as conversations have them: memory holds what is parked and no more."""
    if not Path("/proc/self/statm").exists():
        pytest.skip("this system does not tell how much memory a process holds")

    def over() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") - parking.used

    llama, draw = Llama(starter_gguf, threads=1, context=1024, sequences=2), random.Random(1)
    parking = Parking(60_000_000, llama.reuse)
    try:
        for start in range(0, 1000, 500):
            assert llama.decode([(9, place, 0, False) for place in range(start, start + 500)])
        whole, least, most = llama.state(0), 0.0, 0.0
        for number in range(1200):
            llama.forget(0)
            assert llama.restore(0, whole)
            llama.forget(0, draw.randint(100, 1000))
            parking.put([number, 1, 2], "", llama.state(0))
            if number == 100:
                least = over()
            most = max(most, over()) if number > 100 else 0.0
        assert parking.used > 50_000_000
        assert most - least < 4_000_000, f"{(most - least) / 1e6:.1f} MB more than what is parked"
    finally:
        llama.close()


# --- with the model -------------------------------------------------------------------------------------------------------
MEGABYTES = {"apart": 40, "pool": 10}
Serve = Callable[..., AbstractAsyncContextManager[LlamaHandler]]


@pytest.fixture
def serve(starter_gguf: Path, tmp_path: Path) -> Serve:
    path = write_adapter(tmp_path / "one.gguf", 1)

    @asynccontextmanager
    async def serving(kind: str, **options: Any) -> AsyncIterator[LlamaHandler]:
        sizes = {"slots": 3, "threads": 2, "context": 1024, "cache_mb": MEGABYTES[kind]} | options
        handler = LlamaHandler(starter_gguf, **sizes)
        await handler.start()
        assert handler._llama is not None and handler._llama.apart == (kind == "apart"), "this test has to be told another size"
        await handler.learn("one", path)
        try:
            yield handler
        finally:
            await handler.close()

    return serving


@pytest.fixture
async def lone(starter_gguf: Path, tmp_path: Path) -> AsyncIterator[LlamaHandler]:
    """One at a time, and nothing is kept."""
    handler = LlamaHandler(starter_gguf, threads=2, context=1024)
    await handler.start()
    await handler.learn("one", write_adapter(tmp_path / "lone.gguf", 1))
    yield handler
    await handler.close()


async def collect(handler: LlamaHandler, messages: list[Message], **options: Any) -> list[Chunk]:
    request = Request(messages, **{"max_tokens": 12, "logprobs": CHANCES, "ignore_eos": True, **options})
    return [chunk async for chunk in handler.generate(request)]


def asking(name: str, words: int = 30) -> list[Message]:
    return [Message("user", f"{name}: " + " ".join(f"{name} {number}" for number in range(words)))]


def answered(messages: list[Message], chunks: list[Chunk]) -> list[Message]:
    """The next question of a conversation."""
    return [*messages, Message("assistant", "".join(chunk.text for chunk in chunks)), Message("user", "Why?")]


def cached(chunks: list[Chunk]) -> int:
    assert chunks[-1].usage is not None
    return chunks[-1].usage.cached


async def differs(lone: LlamaHandler, messages: list[Message], chunks: list[Chunk], **options: Any) -> str:
    """How it differs from the same computed alone, "" where only by rounding."""
    chances = [one for chunk in chunks for one in chunk.chances]
    assert len(chances) == options.get("max_tokens", 12)
    expected = await collect(lone, messages, **options)
    assert cached(expected) == 0
    return beyond_rounding(apart([one for chunk in expected for one in chunk.chances], chances))


async def parked(handler: LlamaHandler, at_least: int = 1) -> None:
    """Have others ask until what was kept stands outside the cache."""
    for number in range(20):
        if (await handler.health()).facts["parked_bytes"] >= at_least:
            return
        await collect(handler, asking(f"other {number}"))
    raise AssertionError("nothing was parked")


@pytest.mark.llama
@pytest.mark.parametrize("kind", ["apart", "pool"])
@pytest.mark.parametrize("adapter", ["", "one"])
async def test_who_comes_back_after_being_parked_is_answered_as_if_alone(
    serve: Serve, lone: LlamaHandler, monkeypatch: pytest.MonkeyPatch, kind: str, adapter: str
) -> None:
    monkeypatch.setattr(cache, "POOLED", 0)
    async with serve(kind) as handler:
        messages = asking("heron")
        first = await collect(handler, messages, adapter=adapter)
        assert cached(first) == 0 and not await differs(lone, messages, first, adapter=adapter)
        await parked(handler)
        turn = answered(messages, first)
        whole = await lone.count(messages)
        second = await collect(handler, turn, adapter=adapter)
        assert cached(second) > whole, "what was parked is not computed again"
        assert not await differs(lone, turn, second, adapter=adapter)
        await parked(handler, 1)
        branch = answered(messages, [Chunk(text="Something else was said here, of many words.")])
        third = await collect(handler, branch, adapter=adapter)
        assert whole * 0.8 < cached(third) <= whole + 2, "only as far as both are the same"
        assert not await differs(lone, branch, third, adapter=adapter)
        foreign = await collect(handler, turn, adapter="one" if adapter == "" else "")
        assert cached(foreign) < 10, "what an adapter computed is its own"


@pytest.mark.llama
async def test_finished_talks_make_room_for_a_class_while_nobody_asks(serve: Serve) -> None:
    async with serve("apart", slots=6, cache_mb=70) as handler:
        assert handler._llama is not None
        names = [f"heron {number}" for number in range(handler._llama.sequences)]
        answers = [await collect(handler, asking(name)) for name in names]
        for _ in range(500):  # each has a place of its own, and nobody asks for one
            if (await handler.health()).facts["parked_bytes"]:
                break
            await asyncio.sleep(0.01)
        facts = (await handler.health()).facts
        assert facts["parked_bytes"] and facts["kept"] == len(names), "put aside, and not forgotten"
        for name, chunks in zip(names, answers, strict=True):
            assert cached(await collect(handler, answered(asking(name), chunks))) > 60


@pytest.mark.llama
@pytest.mark.parametrize("adapter", ["", "one"])
async def test_who_is_moved_in_mid_answer_hears_nothing_of_it(
    serve: Serve, lone: LlamaHandler, monkeypatch: pytest.MonkeyPatch, adapter: str
) -> None:
    """Those in the middle end first, and wear another adapter the second time: the others move together."""
    moved: list[tuple[int, int]] = []
    real = cache.Cache._move

    def move(self: cache.Cache, job: Any, target: int) -> None:
        moved.append((job.sequence, target))
        real(self, job, target)

    monkeypatch.setattr(cache.Cache, "_move", move)
    async with serve("apart", slots=6, cache_mb=70) as handler:
        lengths = [60, 4, 60, 8, 60, 60]
        names = ["ant", "bee", "cat", "dog", "eel", "fox"]
        worn = [adapter if length == 60 else ("one" if adapter == "" else "") for length in lengths]
        answers = await asyncio.gather(
            *(
                collect(handler, asking(name), max_tokens=length, adapter=kind)
                for name, length, kind in zip(names, lengths, worn, strict=True)
            )
        )
        assert len(moved) >= 2
        for name, length, kind, chunks in zip(names, lengths, worn, answers, strict=True):
            assert not await differs(lone, asking(name), chunks, max_tokens=length, adapter=kind), name
        turns = [answered(asking(name), chunks) for name, chunks in zip(names, answers, strict=True)]
        seconds = await asyncio.gather(*(collect(handler, turn, adapter=kind) for turn, kind in zip(turns, worn, strict=True)))
        for turn, kind, chunks in zip(turns, worn, seconds, strict=True):
            assert cached(chunks) > 60 and not await differs(lone, turn, chunks, adapter=kind)
        facts = (await handler.health()).facts
        assert facts["running"] == 0 and facts["kept"] >= 6


@pytest.mark.llama
@pytest.mark.parametrize("kind", ["apart", "pool"])
async def test_an_adapter_that_goes_takes_all_with_it_that_it_computed(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(cache, "POOLED", 0)
    async with serve(kind) as handler:
        for number in range(6):
            await collect(handler, asking(f"heron {number}"), adapter="one")
        facts = (await handler.health()).facts
        assert facts["kept"] >= 4 and facts["parked_bytes"] > 0
        await handler.unlearn("one")
        facts = (await handler.health()).facts
        assert facts["kept"] == facts["parked_bytes"] == facts["cells_used"] == 0


@pytest.mark.llama
async def test_what_is_parked_and_has_no_room_to_come_back_is_computed_again(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody shares only the beginning of a long conversation; all of it would have to come back for that."""
    monkeypatch.setattr(cache, "POOLED", 0)
    refused: list[int] = []
    real = Llama.restore

    def restore(self: Llama, sequence: int, state: Any) -> bool:
        done = real(self, sequence, state)
        refused.extend([] if done else [sequence])
        return done

    monkeypatch.setattr(Llama, "restore", restore)
    async with serve("pool", slots=8, cache_mb=10) as handler:

        async def sized(name: str, tokens: int) -> str:
            words = name
            while await handler.count([Message("user", words)]) < tokens:
                words += f" {name}"
            return words

        lesson = Message("system", "Today's lesson is about fractions and how they are added. " * 4)
        await collect(handler, [lesson, Message("user", await sized("heron", 550))], max_tokens=2)
        facts = (await handler.health()).facts
        assert facts["parked_bytes"] and facts["cells_used"] == 0 and facts["cells"] == 2304
        words = [Message("user", await sized(name, 600)) for name in ("egret", "crane", "stork")]
        others = [asyncio.create_task(collect(handler, [one], max_tokens=120, logprobs=None)) for one in words]
        while (await handler.health()).facts["cells_used"] < 1800:
            assert not any(other.done() for other in others)
            await asyncio.sleep(0.005)
        short = await collect(handler, [lesson, Message("user", "Why?")], max_tokens=4)
        assert short[-1].finish and cached(short) == 0, "it is answered all the same"
        for chunks in await asyncio.gather(*others):
            assert chunks[-1].finish == "length", "and nobody fails"
    assert refused, "this test has to leave less room"


@pytest.mark.llama
async def test_who_leaves_while_an_adapter_is_loaded_ends_nobodys_answer(serve: Serve, tmp_path: Path) -> None:
    async with serve("apart", slots=2) as handler:
        answer = asyncio.create_task(
            collect(handler, [Message("user", "Tell me about rivers.")], max_tokens=300, logprobs=None)
        )
        while not (await handler.health()).facts["running"]:
            await asyncio.sleep(0.001)
        for number in range(20):
            learning = asyncio.create_task(handler.learn(f"late-{number}", write_adapter(tmp_path / "late.gguf", seed=3)))
            await asyncio.sleep(0.002)
            learning.cancel()
            await asyncio.gather(learning, return_exceptions=True)
        assert (await answer)[-1].finish == "length"
        assert (await handler.health()).ok


@pytest.mark.llama
async def test_a_leader_who_leaves_hands_the_lesson_on(serve: Serve) -> None:
    """The others do not each compute what he had still to compute for all of them."""
    lesson = Message("system", "Rivers carry sand and stones to the sea, and lay them down where they slow. " * 30)
    async with serve("apart", slots=6) as handler:
        talks = [asyncio.create_task(collect(handler, [lesson, Message("user", f"{n}?")], max_tokens=2)) for n in range(6)]
        while not (await handler.health()).facts["cells_used"]:
            await asyncio.sleep(0.0005)
        talks[0].cancel()
        rest = await asyncio.gather(*talks[1:])
        length = rest[0][-1].usage.prompt
        computed = sum(chunks[-1].usage.prompt - cached(chunks) for chunks in rest)
        assert computed < 2 * length, f"{computed} of {5 * length} tokens were computed"
