"""A whole class at once, three classes at once, and more than the memory holds: everybody waits their turn or is told when.

Nobody who was accepted fails, nobody waits without knowing it, and an hour of it leaves no trace in memory.
"""

from __future__ import annotations

import asyncio
import gc
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from appliance import network
from appliance.engine.handler import Chunk, Message, Request
from appliance.engine.openai_compatible import OpenAICompatible
from appliance.engine.scheduler import LlamaHandler
from appliance.errors import ApplianceError, Busy, TooLarge
from tests.engine.serving import engine_on_a_socket
from tests.engine.steps import PATIENCE, counted_steps, until

pytestmark = [pytest.mark.llama, pytest.mark.slow]

CLASS = 40
QUEUE = 64
SLOTS = 8
ENOUGH = 4 * 32  # answers of thirty-two streams, before anything is said of memory
LESSON = Message("system", "You are the school's teaching assistant. Give a hint, never the answer. " * 3)


def asking(number: int, *, words: int = 10, new: int = 24, group: str = "6A") -> Request:
    talk = [LESSON, Message("user", f"{number}: " + "why is it so " * (words // 4))]
    return Request(talk, max_tokens=new, ignore_eos=True, user=f"pupil-{number}", group=group)


async def collect(handler: LlamaHandler | OpenAICompatible, request: Request) -> list[Chunk]:
    return [chunk async for chunk in handler.generate(request)]


def places(chunks: Sequence[Chunk]) -> list[int]:
    return [chunk.place for chunk in chunks if chunk.place is not None]


def check_waits(answers: Sequence[Sequence[Chunk]], waited: int, classes: int = 1) -> None:
    """So many were told their place before the first word, and it fell. It may only rise for those of another class, who come
    later and go first because theirs had less."""
    told = [places(chunks) for chunks in answers]
    assert sum(bool(one) for one in told) >= waited
    for one, chunks in zip(told, answers, strict=True):
        rises = sum(before <= after for before, after in pairwise(one))
        assert rises <= 2 * (classes - 1) and (not one or one[-1] <= one[0]), f"a place rose: {one}"
        assert all(chunk.wait and chunk.wait > 0 for chunk in chunks if chunk.place is not None)
        first = next(number for number, chunk in enumerate(chunks) if chunk.text)
        assert all(chunk.place is None for chunk in chunks[first:]), "who is being answered waits no more"


async def there(engine: OpenAICompatible, count: int) -> bool:
    facts = (await engine.health()).facts
    return bool(facts["running"] + facts["waiting"] == count)


def check_whole(answers: Sequence[Sequence[Chunk]], new: int = 24) -> None:
    for chunks in answers:
        assert chunks[-1].finish == "length" and chunks[-1].usage and chunks[-1].usage.completion == new


# --- a class at once ------------------------------------------------------------------------------------------------------
async def test_a_class_at_once_is_answered_and_who_waits_knows_it(starter_gguf: Path) -> None:
    async with engine_on_a_socket(starter_gguf, slots=SLOTS) as engine:
        await engine.load("starter")
        with counted_steps() as steps, steps.held():
            crowd = [asyncio.create_task(collect(engine, asking(number))) for number in range(CLASS)]
            await until(lambda: there(engine, CLASS), "the engine has heard all of them")
        answers = await asyncio.gather(*crowd)
        check_whole(answers)
        check_waits(answers, CLASS - SLOTS)
        assert max(place for chunks in answers for place in places(chunks)) <= CLASS - SLOTS


async def test_three_classes_at_once_are_answered_or_refused_before_anything_is_computed(starter_gguf: Path) -> None:
    """Over one client, as the web process does it; all the while it can be asked how the engine is."""
    refused: list[Busy] = []
    answers: list[list[Chunk]] = []

    async def ask(engine: OpenAICompatible, number: int) -> None:
        try:
            answers.append(await collect(engine, asking(number, new=60, group=f"class {number % 3}")))
        except Busy as error:
            refused.append(error)

    async with engine_on_a_socket(starter_gguf, slots=SLOTS) as engine:
        await engine.load("starter")
        with counted_steps() as steps, steps.held():
            crowd = [asyncio.create_task(ask(engine, number)) for number in range(3 * CLASS)]
            await until(lambda: len(refused) == 3 * CLASS - QUEUE - SLOTS, "all who are too many are told so")
            facts = (await engine.health()).facts
            assert facts["running"] + facts["waiting"] == QUEUE + SLOTS
            assert not answers and len(steps) == 0
        await asyncio.gather(*crowd)
    assert len(answers) == QUEUE + SLOTS
    check_whole(answers, 60)
    check_waits(answers, QUEUE, 3)
    for error in refused:
        assert error.retry_after > 0 and error.status == 503 and error.hint


async def test_more_than_a_hundred_hold_a_connection_to_the_engine() -> None:
    """The engine says who is one too many; a client that lets them wait unseen would say nothing to anybody."""
    held, all_there = [0], asyncio.Event()

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        held[0] += 1
        if held[0] == 150:
            all_there.set()
        await all_there.wait()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        writer.close()

    with tempfile.TemporaryDirectory() as folder:  # a socket's path may not be long
        path = Path(folder) / "engine.sock"
        async with await asyncio.start_unix_server(hold, path), network.socket_client(path) as client:
            responses = await asyncio.wait_for(asyncio.gather(*(client.get("/") for _ in range(150))), PATIENCE)
    assert all(response.status_code == 200 for response in responses)


async def test_another_class_that_comes_later_does_not_wait_for_all_of_the_first(starter_gguf: Path) -> None:
    async with engine_on_a_socket(starter_gguf, slots=2) as engine:
        await engine.load("starter")
        ended: list[str] = []

        async def ask(number: int, group: str) -> None:
            assert (await collect(engine, asking(number, group=group)))[-1].finish
            ended.append(group)

        first = [asyncio.create_task(ask(number, "6A")) for number in range(30)]
        while len(ended) < 2:
            await asyncio.sleep(0.005)
        await asyncio.gather(*(ask(100 + number, "7B") for number in range(3)))
        assert len(ended) < 20, f"7B came after {len(ended) - 3} of 6A"
        await asyncio.gather(*first)


# --- more than the memory holds -------------------------------------------------------------------------------------------
async def test_only_who_can_never_fit_is_refused(starter_gguf: Path) -> None:
    """The sum of what all may need is many times the cache; nobody who runs is stopped for another's sake."""
    handler = LlamaHandler(starter_gguf, slots=12, threads=2, cache_mb=5)
    await handler.start()
    cells = (await handler.health()).facts["cells"]
    requests = [asking(number, words=20 + 37 * (number * 7 % 12), new=40 + 30 * (number % 8)) for number in range(30)]
    too_large = [asking(100 + number, words=400, new=900) for number in range(6)]
    needs = [await handler.count(request.messages) + request.max_tokens for request in requests]
    assert max(needs) <= handler.context and sum(needs) > 5 * cells
    mixed = [one for pair in zip(requests[:6], too_large, strict=True) for one in pair] + requests[6:]
    results = await asyncio.gather(*(collect(handler, request) for request in mixed), return_exceptions=True)
    for request, result in zip(mixed, results, strict=True):
        if request in too_large:
            assert isinstance(result, TooLarge) and "900" in result.message and result.hint
        else:
            assert not isinstance(result, BaseException), result
            assert result[-1].usage and result[-1].usage.completion == request.max_tokens
    facts = (await handler.health()).facts
    assert facts["running"] == facts["waiting"] == 0 and facts["cells_used"] <= facts["cells"] == cells
    await handler.close()


# --- for long -------------------------------------------------------------------------------------------------------------
def resident() -> int:
    """Bytes of memory that this process holds."""
    gc.collect()
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("this system does not tell")


async def parked_bytes(handler: LlamaHandler) -> int:
    return int((await handler.health()).facts["parked_bytes"])


@pytest.mark.parametrize("seconds", [20.0, pytest.param(600.0, marks=pytest.mark.long)])
async def test_thirty_two_streams_leave_no_trace_in_memory(starter_gguf: Path, seconds: float) -> None:
    """Conversations of many lengths that go on for some turns, at full load; growth is counted after a third of the time."""
    if not Path("/proc/self/status").exists():
        pytest.skip("this system does not tell how much memory a process holds")
    handler = LlamaHandler(starter_gguf, slots=32, threads=2, cache_mb=40)
    await handler.start()
    ends, whole, faults = time.monotonic() + seconds, [0], list[ApplianceError]()

    async def talk(number: int) -> None:
        messages: list[Message] = []
        turn = 0
        while time.monotonic() < ends or whole[0] < ENOUGH:  # on a busy machine for longer
            turn += 1
            new = 16 + (number * 5 + turn * 11) % 48
            if not messages or await handler.count(messages) > 500:
                messages = [LESSON]
            messages.append(Message("user", f"{number} {turn} " + "why is it so " * (turn % 20)))
            request = Request(messages, max_tokens=new, ignore_eos=True, user=f"pupil-{number}")
            try:
                chunks = await collect(handler, request)
            except ApplianceError as error:
                faults.append(error)
                return
            assert chunks[-1].finish == "length" and chunks[-1].usage and chunks[-1].usage.completion == new
            messages = [*messages, Message("assistant", "".join(chunk.text for chunk in chunks))]
            whole[0] += 1

    talks = [asyncio.create_task(talk(number)) for number in range(32)]
    await asyncio.sleep(seconds / 3)
    await until(lambda: whole[0] >= ENOUGH / 3 or faults, "a third of the answers", seconds + 10 * PATIENCE)
    before, parked = resident(), await parked_bytes(handler)
    await asyncio.gather(*talks)
    # What is parked is memory on purpose, up to its bounds, which are looked at below.
    grown = resident() - before - (await parked_bytes(handler) - parked)
    assert not faults and whole[0] >= ENOUGH
    assert grown < 12_000_000, f"{grown / 1e6:.1f} MB more after {whole[0]} answers"
    facts = (await handler.health()).facts
    assert facts["running"] == facts["waiting"] == 0 and facts["parked_bytes"] < 40_000_000
    await handler.close()
