"""Who waits is told how long, hears that the engine lives, and when to come again; classes wait for each other fairly."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from appliance import network
from appliance.accounts import PUPIL, TEACHER, User
from appliance.engine import beating, loop, transformers_gpu
from appliance.engine.handler import Chunk, Message, Request
from appliance.engine.loaded import ModelFiles
from appliance.engine.openai_compatible import OpenAICompatible
from appliance.engine.pool import Active, Pool
from appliance.engine.quotes import Quotes
from appliance.engine.scheduler import LlamaHandler
from appliance.engine.transformers_gpu import TransformersHandler
from appliance.errors import NotFound
from appliance.settings import Settings
from tests.engine.serving import engine_on_a_socket, transformers_served
from tests.engine.steps import Steps, counted_steps, until
from tests.web.box import make_box

QUESTION = [Message("user", "What is a fraction?")]


@pytest.fixture
def steps() -> Iterator[Steps]:
    with counted_steps() as counted:
        yield counted


async def collect(handler: Any, request: Request) -> list[Chunk]:
    return [chunk async for chunk in handler.generate(request)]


def asking(**options: Any) -> Request:
    return Request(QUESTION, **{"max_tokens": 16, "ignore_eos": True} | options)


async def running(engine: OpenAICompatible) -> tuple[int, int]:
    facts = (await engine.health()).facts
    return facts["running"], facts["waiting"]


# --- how long -------------------------------------------------------------------------------------------------------------
def waits_of(answers: list[list[Chunk]]) -> list[float]:
    """What everybody who waited was told last: when they were the next."""
    told = [[(chunk.place, chunk.wait) for chunk in chunks if chunk.place is not None] for chunks in answers]
    return [float(one[-1][1] or 0) for one in told if one and one[-1][0] == 1]


@pytest.mark.llama
async def test_the_expected_wait_is_the_time_that_answers_take_not_what_others_waited(
    starter_gguf: Path, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock that counts the model's steps, an answer of forty tokens takes forty seconds."""
    monkeypatch.setattr(loop, "GUESSING", 0)  # one token, one step
    monkeypatch.setattr(
        loop, "time", SimpleNamespace(monotonic=lambda: float(len(steps)), perf_counter=lambda: float(len(steps)))
    )
    handler = LlamaHandler(starter_gguf, slots=1, threads=2, keep=True)
    await handler.start()
    answers = await asyncio.gather(*(collect(handler, asking(max_tokens=40)) for _ in range(24)))
    await handler.close()
    waits = waits_of(answers)
    assert len(waits) >= 20 and all(30 < wait < 60 for wait in waits[-5:]), waits


@pytest.mark.slow
async def test_the_expected_wait_of_transformers_likewise(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that counts tokens of all four places: an answer of twelve takes 48, and every 12 one of them ends."""
    said = [0]
    real = TransformersHandler.put

    def put(self: TransformersHandler, output: Any) -> None:
        said[0] += 1
        real(self, output)

    monkeypatch.setattr(TransformersHandler, "put", put)
    clock = SimpleNamespace(monotonic=lambda: float(said[0]))
    with transformers_served() as handler:
        monkeypatch.setattr(transformers_gpu, "time", clock)
        answers = await asyncio.gather(*(collect(handler, asking(max_tokens=12)) for _ in range(40)))
    waits = waits_of(answers)
    assert len(waits) >= 30 and all(6 < wait < 24 for wait in waits[-5:]), waits


# --- a sign of life -------------------------------------------------------------------------------------------------------
async def said(client: httpx.AsyncClient, body: dict[str, Any], heard: list[str]) -> None:
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200
        async for line in response.aiter_lines():
            heard.append(line)


@pytest.mark.llama
async def test_a_stream_says_that_it_lives_while_there_is_nothing_to_tell(
    starter_gguf: Path, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One reads a prompt for long, one stands in the same place for long; both hear, and come to their answers."""
    monkeypatch.setattr(beating, "BEAT_SECONDS", 0.05)
    body = {"messages": [{"role": "user", "content": "What is it?"}], "max_tokens": 8, "ignore_eos": True, "stream": True}
    async with engine_on_a_socket(starter_gguf, slots=1) as engine, engine._connect() as client:
        await engine.load("starter")
        first, second = list[str](), list[str]()
        with steps.held():
            reading = asyncio.create_task(said(client, body, first))
            await until(partial(_beats, first, 3), "signs of life from a prompt that is being read")
            assert not any(line.startswith("data: ") for line in first)
            waiting = asyncio.create_task(said(client, body, second))
            await until(lambda: _waiting(engine, 1), "one who waits")
            steps.allow(1)  # places are told between two steps
            await until(lambda: _places(second) == [1], "the place of who waits")
            own = asyncio.create_task(collect(engine, asking()))
            silent = len(second)
            await until(lambda: _beats(second[silent:], 3), "signs of life from the queue")
            assert _places(second) == [1]
        await asyncio.gather(reading, waiting)
        for heard in (first, second):
            assert heard[-2:] == ["data: [DONE]", ""] and any('"finish_reason": "length"' in line for line in heard)
        assert (await own)[-1].finish == "length", "our own client passes over the signs"


def _places(heard: list[str]) -> list[int]:
    return [json.loads(line[6:])["place"] for line in heard if line.startswith("data: {") and '"place"' in line]


def _beats(heard: list[str], least: int) -> bool:
    return sum(line.startswith(":") for line in heard) >= least


@pytest.mark.llama
async def test_who_leaves_a_silent_stream_leaves_nothing_behind(
    starter_gguf: Path, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beating, "BEAT_SECONDS", 0.02)
    body = {"messages": [{"role": "user", "content": "What is it?"}], "max_tokens": 900, "ignore_eos": True, "stream": True}
    async with engine_on_a_socket(starter_gguf, slots=1) as engine, engine._connect() as client:
        await engine.load("starter")
        crowd = []
        with steps.held():
            for beats in (0, 0, 1, 2):
                heard: list[str] = []
                crowd.append(asyncio.create_task(said(client, body, heard)))
                await until(partial(_beats, heard, beats), "a sign of life")
            for task in crowd:
                task.cancel()
            await asyncio.gather(*crowd, return_exceptions=True)
            for _ in range(20):  # noticed at the next step or the one after it, long before 900 tokens are written
                if await _nobody(engine):
                    break
                steps.allow(1)
                await asyncio.sleep(0.2)
            await until(lambda: _nobody(engine), "nobody runs, nobody waits")


async def _nobody(engine: OpenAICompatible) -> bool:
    return await running(engine) == (0, 0)


@pytest.mark.llama
async def test_a_refusal_that_takes_long_is_still_a_refusal(starter_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that loads for longer than a sign of life takes: the status is sent by then, the fault comes as an event."""
    monkeypatch.setattr(beating, "BEAT_SECONDS", 0.02)

    def resolve(name: str) -> ModelFiles:
        if name == "default":
            return ModelFiles("starter", starter_gguf, None, 1024)
        import time

        time.sleep(0.3)
        raise NotFound(f"There is no model called {name!r}.", "See `appliance models list`.")

    async with engine_on_a_socket(starter_gguf, resolve=resolve) as engine:
        with pytest.raises(NotFound, match="no model called"):
            await collect(engine, asking(model="missing"))


def test_a_client_waits_for_several_signs_of_life() -> None:
    client = network.socket_client(Path("engine.sock"))
    assert client.timeout.read and client.timeout.read >= 5 * beating.BEAT_SECONDS


# --- when to come again ---------------------------------------------------------------------------------------------------
@pytest.mark.llama
async def test_one_too_many_is_told_when_to_come_again_in_the_header_too(starter_gguf: Path, steps: Steps) -> None:
    """By the engine, and by the web's `/v1` before it."""
    async with engine_on_a_socket(starter_gguf, slots=1) as engine, engine._connect() as client:
        await engine.load("starter")
        with steps.held():
            crowd = [asyncio.create_task(collect(engine, asking(user=f"p{number}"))) for number in range(65)]
            await until(lambda: _full(engine), "a full queue")
            body = {"messages": [{"role": "user", "content": "What is it?"}]}
            for stream in (False, True):
                reply = await client.post("/v1/chat/completions", json=body | {"stream": stream})
                assert reply.status_code == 503
                assert int(reply.headers["retry-after"]) >= reply.json()["error"]["retry_after"] > 0
        assert all(chunks[-1].finish for chunks in await asyncio.gather(*crowd))


async def _full(engine: OpenAICompatible) -> bool:
    return (await running(engine))[1] == 64


# --- between classes ------------------------------------------------------------------------------------------------------
class Asked:
    """A web process before an engine with one place, and in which order its people came to their answers."""

    def __init__(self, box: Any) -> None:
        self.ended: list[str] = []
        self.waiting = 0
        self._box = box

    async def ask(self, name: str, role: str, *classes: str) -> None:
        made, _ = self._box.people.add(name, role, source="ldap")  # without a password, which would take its time to hash
        user = User(made.id, name, role, classes=frozenset(classes))
        async for event in self._box.chat.complete(user, [Message("user", f"What is {name}?")], collections=[], max_tokens=8):
            self.waiting += event.kind == "queue" and event.data["place"] == 1
        self.ended.append(name)


@pytest.fixture
async def asked(settings: Settings, starter_gguf: Path) -> AsyncIterator[tuple[Asked, OpenAICompatible]]:
    async def nothing(_text: str) -> list[Any]:
        return []

    async with engine_on_a_socket(starter_gguf, slots=1) as engine:
        await engine.load("starter")
        box = make_box(settings, pool=Pool(engine, Quotes(nothing), lambda _task: Active("starter", "Starter", False, 1024)))
        yield Asked(box), engine
        box.database.close()


@pytest.mark.llama
async def test_a_class_does_not_wait_for_all_of_another_and_a_teacher_for_neither(
    asked: tuple[Asked, OpenAICompatible], steps: Steps
) -> None:
    people, engine = asked

    async def waits(number: int) -> None:
        await until(lambda: _waiting(engine, number), f"{number} who wait")

    with steps.held():
        first = [asyncio.create_task(people.ask(f"a{number}", PUPIL, "6a", "choir")) for number in range(12)]
        await waits(11)
        second = [asyncio.create_task(people.ask(f"b{number}", PUPIL, "7b")) for number in range(3)]
        await waits(14)
        teacher = asyncio.create_task(people.ask("teacher", TEACHER, "6a"))
        await waits(15)
    await asyncio.gather(*first, *second, teacher)
    order = people.ended
    assert order.index("teacher") <= 4, order
    last_of_second = max(order.index(f"b{number}") for number in range(3))
    assert last_of_second <= 9, f"7b stood behind all of 6a: {order}"


async def _waiting(engine: OpenAICompatible, number: int) -> bool:
    return (await running(engine))[1] == number
