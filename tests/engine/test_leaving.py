"""People who leave: in the middle of an answer, while their prompt is read, while they wait. Nothing of theirs stays behind.

At the engine's own `/v1`, at the web process's `/v1` and at its pages, over real sockets. The machine is made slow, and the
model never ends by itself, so that what is not stopped would run on for many seconds and be seen.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from starlette.middleware.base import BaseHTTPMiddleware

from appliance import running
from appliance.engine.handler import Message, Request
from appliance.engine.openai_compatible import OpenAICompatible
from appliance.engine.pool import Active, Pool
from appliance.engine.quotes import Quotes
from appliance.engine.service import create_engine
from appliance.settings import Settings
from appliance.web.server import create_app
from tests.engine.serving import NoEmbedder, engine_on_a_socket
from tests.web.box import make_box
from tests.web.conftest import BASE, NAME, PASSWORD, csrf

SOON = 120  # steps of the model within which nothing of somebody who left may run or wait; an answer takes 200 and more
PATIENCE = 120.0  # seconds, on the busiest machine
STEPS = [0]  # of the model, since the tests began
SLOTS = 4
STAYS = "A fraction is a part of a whole: the number below says into how many parts it was cut."


@pytest.fixture
def slow_machine(starter_gguf: Path) -> Iterator[None]:
    """Twenty milliseconds for each step of the model and one for each token in it; and no answer ends by itself."""
    from appliance.engine.llama import _library

    llama_cpp = _library()  # set up first: it looks at the functions that are replaced here
    real = llama_cpp.llama_decode

    def decode(context: Any, batch: Any) -> Any:
        time.sleep(0.02 + 0.001 * batch.n_tokens)
        STEPS[0] += 1
        return real(context, batch)

    assert starter_gguf.exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llama_cpp, "llama_decode", decode)
        patch.setattr(llama_cpp.appliance_short, "llama_vocab_is_eog", lambda *_: False)
        yield


async def full(engine: OpenAICompatible) -> tuple[int, int]:
    """(running, waiting)"""
    facts = (await engine.health()).facts
    return facts["running"], facts["waiting"]


async def until(engine: OpenAICompatible, running: int, waiting: int = 0) -> None:
    """Wait for no more than so many, which has to come within SOON steps."""
    began, ends = STEPS[0], time.monotonic() + PATIENCE
    while True:
        now = await full(engine)
        if now[0] <= running and now[1] <= waiting:
            return
        assert STEPS[0] - began < SOON and time.monotonic() < ends, f"{now[0]} run and {now[1]} wait for people who left"
        await asyncio.sleep(0.02)


async def filled(engine: OpenAICompatible, running: int, waiting: int = 0) -> None:
    """Wait for at least so many."""
    ends = time.monotonic() + PATIENCE
    while (now := await full(engine))[0] < running or now[1] < waiting:
        assert time.monotonic() < ends, f"only {now} came"
        await asyncio.sleep(0.01)


# --- the engine's door ----------------------------------------------------------------------------------------------------
class Leaver:
    """Somebody with a connection of their own, who hangs up: after words, after being told a place, or after a moment."""

    def __init__(self, engine: OpenAICompatible, tally: Counter[str]) -> None:
        self._engine = engine
        self._tally = tally
        self.heard = asyncio.Event()
        self._go = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def ask(self, number: int, words: int, *, stream: bool = True) -> Leaver:
        body = {
            "messages": [{"role": "user", "content": f"{number} " + "word " * words}],
            "max_tokens": 400, "ignore_eos": True, "stream": stream, "user": f"pupil-{number % 7}",
        }  # fmt: skip
        self._task = asyncio.create_task(self._listen(body))
        return self

    async def _listen(self, body: dict[str, Any]) -> None:
        seen = "reading"
        async with self._engine._connect() as client:
            try:
                async with client.stream("POST", "/v1/chat/completions", json=body) as response:
                    async for line in response.aiter_lines():
                        if line.startswith("data: {"):
                            event = json.loads(line[6:])
                            seen = "waiting" if "place" in event else "answer"
                            self.heard.set()
                    raise AssertionError("the answer ended before its reader left")
            finally:
                self._tally[seen] += 1

    async def leave(self) -> None:
        assert self._task is not None
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task


async def one_who_stays(engine: OpenAICompatible, ended: asyncio.Event, whole: list[str]) -> None:
    """Answers without a break, held to the same words, so that rounding cannot change them."""
    request = Request([Message("user", "What is it?")], max_tokens=200, schema={"enum": [STAYS]}, user="stays")
    while not ended.is_set():
        chunks = [chunk async for chunk in engine.generate(request)]
        assert "".join(chunk.text for chunk in chunks) == json.dumps(STAYS), "somebody else's leaving cut this answer"
        assert chunks[-1].usage and chunks[-1].finish
        whole.append(STAYS)


def held() -> tuple[int, int]:
    """(threads, open files) of this process."""
    gc.collect()
    return threading.active_count(), len(os.listdir("/proc/self/fd"))


@pytest.mark.llama
@pytest.mark.slow
@pytest.mark.usefixtures("slow_machine")
async def test_two_hundred_leave_and_nothing_of_them_stays(starter_gguf: Path) -> None:
    """More leave than the cache has sequences (5 here), so that each one lost would be missed."""
    tally: Counter[str] = Counter()
    async with engine_on_a_socket(starter_gguf, slots=SLOTS) as engine:
        alone = [chunk async for chunk in engine.generate(Request([Message("user", "Hello")], max_tokens=12, logprobs=5))]
        ended, whole, before = asyncio.Event(), list[str](), (0, 0)
        stays = asyncio.create_task(one_who_stays(engine, ended, whole))
        for round in range(200):
            if round >= 20 and len(whole) >= 2:
                break
            people = [Leaver(engine, tally) for _ in range(10)]
            for number, one in enumerate(people[:3]):
                one.ask(round * 10 + number, 5)
            await asyncio.gather(*(one.heard.wait() for one in people[:3]))
            for number, one in enumerate(people[3:7], 3):
                one.ask(round * 10 + number, 30 * number)
            await asyncio.gather(*(one.heard.wait() for one in people[3:7]))
            for one in (*people[3:7], *people[:3]):
                await one.leave()
            for number, one in enumerate(people[7:], 7):
                one.ask(round * 10 + number, 350, stream=bool((round + number) % 2))
            await filled(engine, 3)
            await asyncio.sleep(0.01 * (round % 5))
            await asyncio.gather(*(one.leave() for one in people[7:]))
            await until(engine, 1)
            assert not stays.done()
            if round == 3:
                before = held()
        after = held()
        ended.set()
        await stays
        assert len(whole) >= 2, "somebody was answered all the while"
        await until(engine, 0)
        assert tally["answer"] >= 50 and tally["waiting"] >= 50 and tally["reading"] >= 40, tally
        assert after[0] <= before[0] + 1 and after[1] <= before[1] + 4, f"threads and files grew from {before} to {after}"
        facts = (await engine.health()).facts["models"]["starter"]
        assert 0 < facts["cells_used"] <= facts["cells"] and facts["parked_bytes"] <= 64 * 1024 * 3072
        people = [Leaver(engine, tally).ask(number, 5) for number in range(SLOTS)]
        await asyncio.wait_for(asyncio.gather(*(one.heard.wait() for one in people)), PATIENCE)
        assert (await full(engine))[0] == SLOTS, "every place is there still"
        for one in people:
            await one.leave()
        await until(engine, 0)
        again = [chunk async for chunk in engine.generate(Request([Message("user", "Hello")], max_tokens=12, logprobs=5))]
        first = [next(one for chunk in chunks for one in chunk.chances) for chunks in (alone, again)]
        assert abs(first[0].logprob - first[1].logprob) < 0.15 and first[0].text == first[1].text


# --- the web process's doors ----------------------------------------------------------------------------------------------
@asynccontextmanager
async def web_on_a_socket(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/web.sock"  # a socket's path may not be long
        server = uvicorn.Server(uvicorn.Config(app, uds=path, log_level="error", loop="asyncio"))
        server.install_signal_handlers = lambda: None  # type: ignore[attr-defined,unused-ignore]
        task = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.02)
        transport = httpx.AsyncHTTPTransport(uds=path)
        try:
            async with httpx.AsyncClient(transport=transport, base_url=BASE, timeout=30.0, trust_env=False) as client:
                yield client
        finally:
            server.should_exit = True
            await task


@asynccontextmanager
async def school(gguf: Path, settings: Settings) -> AsyncIterator[tuple[OpenAICompatible, httpx.AsyncClient, Any]]:
    """(the engine, a client of the web process, its parts): a question's whole road, with two places at its end."""

    async def nothing(_text: str) -> list[Any]:
        return []

    async with engine_on_a_socket(gguf, slots=2) as engine:
        await engine.load("starter")
        pool = Pool(engine, Quotes(nothing), lambda _task: Active("starter", "Starter", False, 1024))
        box = make_box(settings, pool=pool)
        try:
            async with web_on_a_socket(create_app(box)) as client:
                yield engine, client, box
        finally:
            box.database.close()


def two_long(engine: OpenAICompatible) -> list[asyncio.Task[list[Any]]]:
    """Both places are taken."""

    async def answer() -> list[Any]:
        request = Request([Message("user", "Hello")], max_tokens=900, ignore_eos=True)
        async with aclosing(engine.generate(request)) as chunks:
            return [chunk async for chunk in chunks]

    return [asyncio.create_task(answer()) for _ in range(2)]


async def gone(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.llama
@pytest.mark.slow
@pytest.mark.usefixtures("slow_machine")
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_programs_that_leave_the_web_process_free_the_engine(
    starter_gguf: Path, settings: Settings, stream: bool
) -> None:
    async with school(starter_gguf, settings) as (engine, client, box):
        key = box.accounts.create_key(box.accounts.local_administrator(), "test", "chat")[1]
        headers = {"authorization": f"Bearer {key}"}

        def asking(words: int) -> asyncio.Task[Any]:
            messages = [{"role": "user", "content": "word " * words}]
            body = {"model": "default", "messages": messages, "max_tokens": 200, "stream": stream, "collections": []}
            return asyncio.create_task(client.post("/v1/chat/completions", json=body, headers=headers))

        for round in range(4):
            task = asking(5)
            await filled(engine, 1)
            await asyncio.sleep(0.3)  # some words of the answer
            await gone([task])
            await until(engine, 0)
            task = asking(300)
            await filled(engine, 1)
            await asyncio.sleep(0.02 * round)  # the prompt is still being read
            await gone([task])
            await until(engine, 0)
            others = two_long(engine)
            await filled(engine, 2)
            task = asking(5)
            await filled(engine, 2, 1)
            await gone([task])
            await until(engine, 2)
            assert not any(other.done() for other in others), "who waited and left has cut somebody's answer"
            await gone(others)
            await until(engine, 0)


async def page(client: httpx.AsyncClient, box: Any) -> Callable[[], Awaitable[str]]:
    """Somebody signs in; what asks a question and tells its turn."""
    form = {"code": box.accounts.ensure_setup_code(), "name": NAME, "password": PASSWORD, "csrf": await csrf(client)}
    assert (await client.post("/setup", data=form)).status_code == 303
    client.headers["x-csrf-token"] = await csrf(client, "/chat")

    async def ask() -> str:
        reply = await client.post("/chat/ask", data={"question": "What is it?"}, headers={"accept": "application/json"})
        assert reply.status_code == 200, reply.text
        return str(reply.json()["turn"])

    return ask


@pytest.mark.llama
@pytest.mark.slow
@pytest.mark.usefixtures("slow_machine")
@pytest.mark.parametrize("read", [False, True], ids=["unread", "read"])
async def test_stop_and_sign_out_free_the_engine_at_once(starter_gguf: Path, settings: Settings, read: bool) -> None:
    async with school(starter_gguf, settings) as (engine, client, box):
        ask = await page(client, box)
        for way in ("stop", "sign-out"):
            turn = await ask()
            await filled(engine, 1)
            reader = asyncio.create_task(client.get(f"/chat/stream/{turn}")) if read else None
            await asyncio.sleep(0.2)  # some words
            address = f"/chat/stop/{turn}" if way == "stop" else "/sign-out"
            assert (await client.post(address, headers={"accept": "application/json"})).status_code in (204, 303)
            await until(engine, 0)
            if reader is not None:
                assert "event: done" in (await reader).text, "the page is told"
        assert running.GRACE == 20.0, "and nobody waited for those who might come back"


@pytest.mark.llama
@pytest.mark.slow
@pytest.mark.usefixtures("slow_machine")
async def test_a_page_that_is_left_frees_the_engine_after_its_time(
    starter_gguf: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "GRACE", 1.0)
    async with school(starter_gguf, settings) as (engine, client, box):
        ask = await page(client, box)
        for read in (0, 1, 8):
            turn = await ask()
            if read:
                async with client.stream("GET", f"/chat/stream/{turn}") as response:
                    seen = 0
                    async for line in response.aiter_lines():
                        seen += line.startswith("event: text")
                        if seen >= read:
                            break
            await until(engine, 0)  # a second for coming back, and then at once
        others = two_long(engine)
        await filled(engine, 2)
        await ask()
        await filled(engine, 2, 1)
        await until(engine, 2)
        assert not any(other.done() for other in others)
        await gone(others)
        await until(engine, 0)


def test_nothing_that_breaks_off_streams_stands_between(settings: Settings) -> None:
    """Starlette's BaseHTTPMiddleware does not tell a stream that its reader left."""

    def resolve(_name: str) -> Any:
        raise AssertionError("no model in this test")

    box = make_box(settings)
    for app in (create_engine(resolve, resolve, NoEmbedder()), create_app(box)):
        assert app.user_middleware
        for one in app.user_middleware:
            assert isinstance(one.cls, type) and not issubclass(one.cls, BaseHTTPMiddleware), one
    box.database.close()
