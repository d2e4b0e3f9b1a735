"""Clients that send by drops or never read: each is sent away in time, and everybody else is answered meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from appliance.engine.handler import Message, Request
from appliance.engine.openai_compatible import OpenAICompatible
from appliance.web.patience import Patience, protocol
from tests.engine.steps import counted_steps
from tests.web.test_server import enter

ROOT = Path(__file__).resolve().parents[2]
SHORT = {"head": 0.6, "body": 1.5, "read": 1.5, "speed": 1000.0}
HEAD = b"GET /health HTTP/1.1\r\nhost: localhost\r\nx-name: "
FORM = (
    b"POST /sign-in HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/x-www-form-urlencoded\r\n"
    b"content-length: 5000\r\n\r\nname="
)
PROGRAM = """
import asyncio, json, socket, sys
from pathlib import Path
import uvicorn
from appliance import network, running
from appliance.engine.handler import Chunk
from appliance.settings import Settings
from appliance.web.patience import Patience, protocol
from appliance.web.server import create_app
from tests.web.box import make_box

network.stay_offline()
running.GRACE = 1.0
box = make_box(Settings(home=Path(sys.argv[1])), pace=0.05)

async def endless(request):
    box.pool.open += 1
    try:
        while True:
            await asyncio.sleep(0.01 if "slowly" in sys.argv else 0)
            yield Chunk("word " * 200, model="green-1", handler="llama")
    finally:
        box.pool.open -= 1

if "endless" in sys.argv[4:]:
    box.pool.generate = endless
app = create_app(box)
app.add_api_route("/open", lambda: {"open": box.pool.open})
code = box.accounts.ensure_setup_code()
key = box.accounts.create_key(box.accounts.local_administrator(), "test", "chat")[1]
print(json.dumps([code, key]), flush=True)
patient = protocol(Patience(**json.loads(sys.argv[3])))
config = uvicorn.Config(app, http=patient, ws="none", log_level="warning", access_log=False)
with socket.socket() as listener:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)  # or the system takes megabytes before we notice
    listener.bind(("127.0.0.1", int(sys.argv[2])))
    uvicorn.Server(config).run(sockets=[listener])
"""


class Box:
    """A web process with a pretend model and little patience; "endless", "slowly": its model never stops, nor hurries."""

    def __init__(self, home: Path, *words: str, **patience: float) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-c", PROGRAM, str(home), str(self.port), json.dumps(SHORT | patience), *words]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        assert self.process.stdout
        self.code, self.key = json.loads(self.process.stdout.readline())
        until(lambda: health(self.url) is not None, 20)

    def stream(self) -> bytes:
        """A request for a streamed answer, as it goes over the wire."""
        body = json.dumps({"model": "default", "messages": [{"role": "user", "content": "Why?"}], "stream": True}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {self.key}\r\n"
        return f"{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body

    def open(self) -> int:
        return int(httpx.get(f"{self.url}/open", timeout=5.0).json()["open"])

    def memory(self) -> int:
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def stop(self) -> str:
        """End it; what it wrote to its log."""
        self.process.terminate()
        return self.process.communicate(timeout=20)[1]


@contextmanager
def serving(home: Path, *words: str, **patience: float) -> Iterator[Box]:
    box = Box(home, *words, **patience)
    try:
        yield box
    finally:
        box.process.kill()
        box.process.communicate()


def health(url: str) -> float | None:
    """Seconds that /health took; None where it does not answer."""
    began = time.monotonic()
    try:
        return time.monotonic() - began if httpx.get(f"{url}/health", timeout=10.0).status_code == 200 else None
    except httpx.TransportError:
        return None


def allow_many_files() -> None:
    """Here and in the processes that this one starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 4096:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))


def until(true: Callable[[], bool], seconds: float) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, "it did not come about in time"
        time.sleep(0.05)


Connect = Callable[[], Any]


async def dropped(
    connect: Connect, first: bytes, drop: bytes = b"", *, every: float = 0.1, most: float = 10
) -> tuple[float, bytes]:
    """Send `first`, then `drop` again and again: seconds until the other side ended it, and what it said."""
    began, said = time.monotonic(), b""
    try:
        reader, writer = await connect()
    except ConnectionError:  # it was gone before we knew that it was there
        return time.monotonic() - began, said

    async def feed() -> None:
        writer.write(first)
        while drop:
            await asyncio.sleep(every)
            writer.write(drop)

    feeding = asyncio.create_task(feed())
    try:
        async with asyncio.timeout(most):
            with suppress(ConnectionError):
                while data := await reader.read(65536):
                    said += data
        return time.monotonic() - began, said
    finally:
        feeding.cancel()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


def to(port: int, source: str = "127.0.0.1") -> Connect:
    return partial(asyncio.open_connection, "127.0.0.1", port, local_addr=(source, 0))


async def crowd(connect: Connect, url: str, kinds: Sequence[tuple[bytes, bytes]], **how: float) -> list[asyncio.Task[Any]]:
    """A client of each kind. A hundred at a time: one that finds the queue of the listening socket full is never heard of."""
    tasks: list[asyncio.Task[Any]] = []
    for kind in kinds:
        tasks.append(asyncio.create_task(dropped(connect, *kind, **how)))
        if len(tasks) % 100 == 0:
            await asyncio.to_thread(health, url)  # stands behind them in that queue
    return tasks


def unread(port: int, request: bytes) -> socket.socket:
    """A connection whose client asks and never reads."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.connect(("127.0.0.1", port))
    made.sendall(request)
    return made


def is_open(made: socket.socket) -> bool:
    """Whether the other side still holds the connection, told without reading."""
    info = made.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
    return info[0] == 1  # TCP_ESTABLISHED


# --- what comes by drops --------------------------------------------------------------------------------------------------
async def test_each_kind_of_slow_client_is_sent_away_in_its_time(tmp_path: Path) -> None:
    with serving(tmp_path / "home") as box:
        connect = to(box.port)
        asked = HEAD + b"x\r\n\r\n"
        unauthorised = FORM.replace(b"/sign-in", b"/v1/chat/completions")
        kinds = {
            "only connects": (b"", b"", SHORT["head"], b""),
            "head by drops": (HEAD, b"b", SHORT["head"], b"HTTP/1.1 408 "),
            "second head by drops": (asked + HEAD, b"b", SHORT["head"], b"HTTP/1.1 200 "),
            "one letter": (b"G", b"", SHORT["head"], b"HTTP/1.1 408 "),
            "body by drops": (FORM, b"b", SHORT["body"], b"HTTP/1.1 408 "),
            "no body": (FORM, b"", SHORT["body"], b"HTTP/1.1 408 "),
            "body that nobody reads": (unauthorised, b"b", SHORT["body"], b"HTTP/1.1 401 "),
        }
        ends = await asyncio.gather(*(dropped(connect, first, drop) for first, drop, _, _ in kinds.values()))
        for (name, (_, _, limit, reply)), (seconds, said) in zip(kinds.items(), ends, strict=True):
            assert limit * 0.9 <= seconds < limit + 6, (name, seconds)  # a busy machine may come to it later, never earlier
            assert said.startswith(reply) and bool(said) == bool(reply), (name, said[:80])
        assert ends[2][1].count(b"HTTP/1.1 ") == 2 and b" 408 " in ends[2][1], "the first request was answered"
        assert health(box.url)
        log = box.stop()
    assert "Traceback" not in log and "ClientDisconnect" not in log, log


async def test_a_rest_of_a_body_after_the_answer_does_not_hold_a_connection_for_ever(tmp_path: Path) -> None:
    """uvicorn stops its own clock at the first byte after an answer, and sets it only with the next one."""
    with serving(tmp_path / "home") as box:
        body = b"b" * 4000
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 8000\r\n\r\n"
        reader, writer = await to(box.port)()
        writer.write(head + body)
        assert b" 401 " in await reader.readline()
        writer.write(body)
        began = time.monotonic()
        async with asyncio.timeout(5 + 4):  # uvicorn's five seconds between two requests, and ours beside them
            while await reader.read(65536):
                pass
        assert time.monotonic() - began > 4
        writer.close()


async def test_whoever_is_slow_but_comes_on_is_answered(tmp_path: Path) -> None:
    with serving(tmp_path / "home") as box:
        reader, writer = await to(box.port)()
        head = HEAD + b"x\r\n\r\n"
        for start in range(0, len(head), 8):  # a head in pieces, in time
            writer.write(head[start : start + 8])
            await asyncio.sleep(0.04)
        assert b" 200 " in await reader.readline()
        writer.close()
        reader, writer = await to(box.port)()
        writer.write(FORM)
        for _ in range(25):  # a body that takes longer than `body`, at twice the `speed` that buys more time
            await asyncio.sleep(0.1)
            writer.write(b"b" * 200)
        line = await reader.readline()
        assert b" 408 " not in line and line.startswith(b"HTTP/1.1 "), line
        writer.close()
        began, text = time.monotonic(), ""
        question = {"model": "default", "messages": [{"role": "user", "content": "Why are leaves green?"}], "stream": True}
        async with httpx.AsyncClient(base_url=box.url, headers={"authorization": f"Bearer {box.key}"}) as client:
            for _ in range(2):  # an answer that takes long to think of, read as it comes
                async with client.stream("POST", "/v1/chat/completions", json=question) as reply:
                    text += "".join([piece async for piece in reply.aiter_text()])
        assert text.count("data: [DONE]") == 2 and time.monotonic() - began > SHORT["head"]


async def test_a_thousand_slow_clients_and_everybody_else_is_answered(tmp_path: Path) -> None:
    allow_many_files()
    with serving(tmp_path / "home", head=3, body=5, read=5) as box:
        connect = to(box.port)
        kinds = [(b"", b""), (HEAD, b"b"), (FORM, b"b")]
        tasks = await crowd(connect, box.url, [kinds[n % 3] for n in range(1000)], every=0.5, most=120)
        took: list[float | None] = []
        while not all(task.done() for task in tasks):
            took.append(await asyncio.to_thread(health, box.url))
            await asyncio.sleep(0.1)
        assert min(task.result()[0] for task in tasks) >= 3, "nobody goes before their time, and all of them go"
        assert len(took) > 15 and None not in took, took


# --- what is not read -----------------------------------------------------------------------------------------------------
def test_streams_that_nobody_reads_fill_no_memory_and_end(tmp_path: Path) -> None:
    with serving(tmp_path / "home", "endless", read=3) as box:
        before = box.memory()
        silent = [unread(box.port, box.stream()) for _ in range(20)]
        with unread(box.port, box.stream()) as reader:
            until(lambda: box.open() == 21, 30)
            began, grown, left = time.monotonic(), [], 21
            # This one reads: slowly, but it reads. Longer than it may not read, and until the others' places are free.
            while time.monotonic() - began < 6 or left > 1:
                assert reader.recv(1 << 16), "who reads is not sent away"
                grown.append(box.memory() - before)
                left = box.open()
                assert time.monotonic() - began < 60, f"{left} still hold a place"
                time.sleep(0.1)
            assert left == 1, "the places of those who did not read are free"
        assert not any(is_open(made) for made in silent)
        assert max(grown) < 60_000_000, f"{max(grown) / 1e6:.0f} MB for 20 streams that nobody reads"
        until(lambda: box.open() == 0, 30)
        for made in silent:
            made.close()


def test_a_page_that_does_not_read_holds_no_answer_for_ever(tmp_path: Path) -> None:
    with serving(tmp_path / "home", "endless", "slowly") as box, httpx.Client(base_url=box.url, timeout=60.0) as client:
        enter(client, box.code)
        turn = client.post("/chat/ask", data={"question": "Why are leaves green?"}).json()
        cookies = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
        request = f"GET /chat/stream/{turn['turn']} HTTP/1.1\r\nhost: localhost\r\ncookie: {cookies}\r\n\r\n"
        with unread(box.port, request.encode()) as silent:
            until(lambda: box.open() == 1, 30)
            until(lambda: box.open() == 0, 90)
            assert not is_open(silent)
        page = client.get(turn["url"], headers={"accept": "text/html"}).text
        assert 'data-state="stopped"' in page and "word word" in page, "what was written is kept"


# --- too many -------------------------------------------------------------------------------------------------------------
async def test_one_address_cannot_take_all_places_and_whoever_asks_finds_one(tmp_path: Path) -> None:
    with serving(tmp_path / "home", most=20, head=4, body=4) as box:
        outside = [asyncio.create_task(dropped(to(box.port, "127.0.0.2"), b"", most=20)) for _ in range(15)]
        await asyncio.sleep(1)
        assert sum(not task.done() for task in outside) == 10, "half of the places for one address"
        inside = [asyncio.create_task(dropped(to(box.port), HEAD, b"b", most=20)) for _ in range(30)]
        await asyncio.sleep(1)
        for _ in range(5):
            took = await asyncio.to_thread(health, box.url)
            assert took is not None and took < 1, "whoever asks finds a place: who only waits makes room"
        assert sum(not task.done() for task in [*outside, *inside]) <= 20
        await asyncio.gather(*outside, *inside)


async def test_an_answer_under_way_never_makes_room(tmp_path: Path) -> None:
    with serving(tmp_path / "home", "endless", "slowly", most=4) as box:
        streams = []
        for _ in range(4):
            reader, writer = await to(box.port)()
            writer.write(box.stream())
            assert b" 200 " in await reader.readline()
            streams.append((reader, writer))
        reading = [asyncio.create_task(_read(reader)) for reader, _ in streams]
        seconds, said = await dropped(to(box.port), b"")
        assert said.startswith(b"HTTP/1.1 503 ") and b"retry-after" in said and seconds < 1
        assert not any(task.done() for task in reading)
        streams[0][1].close()
        await asyncio.wait(reading, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.to_thread(until, lambda: health(box.url) is not None, 5)  # a place is free again
        for task in reading:
            task.cancel()
        for _, writer in streams:
            writer.close()


async def _read(reader: asyncio.StreamReader) -> None:
    with suppress(ConnectionError):
        while await reader.read(1 << 16):
            pass


# --- the engine's socket --------------------------------------------------------------------------------------------------
@asynccontextmanager
async def engine(gguf: Path, context: int = 1024, **patience: float) -> AsyncIterator[tuple[OpenAICompatible, Path]]:
    """The engine on a socket, with little patience and a model that is never quick: nobody gives up what is over at once."""
    from appliance import network
    from appliance.engine.loaded import ModelFiles
    from appliance.engine.scheduler import LlamaHandler
    from appliance.engine.service import create_engine
    from tests.engine.serving import NoEmbedder

    app = create_engine(
        lambda _name: ModelFiles("starter", gguf, None, context),
        lambda files: LlamaHandler(files.model, threads=2, slots=2, context=files.context, model_id=files.id),
        NoEmbedder(),
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "engine.sock"
        patient = protocol(Patience(**SHORT | patience))
        server = uvicorn.Server(uvicorn.Config(app, uds=str(path), log_level="error", loop="asyncio", http=patient, ws="none"))
        with counted_steps(pause=0.005):
            task = asyncio.create_task(server.serve())
            client = OpenAICompatible(partial(network.socket_client, path), context=context)
            await come(client, lambda _facts: True)
            await client.load("starter")
            try:
                yield client, path
            finally:
                await client.close()
                server.should_exit = True
                await task


async def come(client: OpenAICompatible, holds: Callable[[dict[str, Any]], bool], seconds: float = 120) -> None:
    """Wait until the engine answers and says so of itself."""
    ends = time.monotonic() + seconds
    while not ((health := await client.health()).ok and holds(health.facts)):
        assert time.monotonic() < ends, "it did not come about in time"
        await asyncio.sleep(0.02)


async def said(client: OpenAICompatible, request: Request) -> bool:
    """Whether an answer came to its end."""
    return bool([chunk async for chunk in client.generate(request)][-1].finish)


@pytest.mark.llama
async def test_the_engine_sends_slow_clients_away_and_a_stream_that_nobody_reads_holds_no_place(starter_gguf: Path) -> None:
    async with engine(starter_gguf) as (client, path):
        connect = partial(asyncio.open_unix_connection, str(path))
        body = {
            "messages": [{"role": "user", "content": "Why?"}], "max_tokens": 900, "ignore_eos": True, "stream": True,
            "logprobs": True, "top_logprobs": 20,
        }  # fmt: skip
        sent = json.dumps(body).encode()
        ask = b"POST /v1/chat/completions HTTP/1.1\r\nhost: engine\r\ncontent-type: application/json\r\n"
        ask += b"content-length: %d\r\n\r\n"
        silent = []
        for _ in range(2):  # as many as there are places
            reader, writer = await asyncio.open_unix_connection(str(path), limit=1024)
            writer.write(ask % len(sent) + sent)
            silent.append((reader, writer))
        await come(client, lambda facts: facts["running"] == 2)
        slow = [(b"", b""), (HEAD, b"b"), (ask % 5000, b" ")]
        tasks = [asyncio.create_task(dropped(connect, *slow[number % 3], most=60)) for number in range(150)]
        answer = asyncio.create_task(said(client, Request([Message("user", "Why?")], max_tokens=8)))
        took = []
        while not all(task.done() for task in tasks):
            began = time.monotonic()
            assert (await client.health()).ok
            took.append(time.monotonic() - began)
            await asyncio.sleep(0.05)
        assert max(took) < 10 and len(took) > 5
        assert await asyncio.wait_for(answer, 120), "who asks is answered as soon as a place is free"
        for task in tasks:
            task.result()  # gone within `most`
        await come(client, lambda facts: facts["running"] == 0)
        await asyncio.sleep(SHORT["read"] + 2)  # the model may have finished long before the readers are given up
        texts = []
        for reader, writer in silent:
            texts.append(b"")
            with suppress(ConnectionError):
                while piece := await reader.read(1 << 16):
                    texts[-1] += piece
            writer.close()
        for text in texts:  # what was sent before it was given up is there; the end is not
            assert b"data: " in text and b"[DONE]" not in text


@pytest.mark.llama
async def test_it_is_its_reader_who_ends_an_answer_that_has_no_end(starter_gguf: Path) -> None:
    """Thirty thousand tokens: whoever is gone before so many steps were made, did not come to the end of the answer."""
    endless = 30_000
    with counted_steps() as steps:
        async with engine(starter_gguf, context=32_768) as (client, path):
            body = {
                "messages": [{"role": "user", "content": "Why?"}], "max_tokens": endless, "ignore_eos": True, "stream": True,
                "logprobs": True, "top_logprobs": 20, "temperature": 1.0,
            }  # fmt: skip
            sent = json.dumps(body).encode()
            head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: engine\r\ncontent-type: application/json\r\n"
            _, writer = await asyncio.open_unix_connection(str(path), limit=1024)
            writer.write(head + b"content-length: %d\r\n\r\n" % len(sent) + sent)
            await come(client, lambda facts: facts["running"] == 1)
            before = len(steps)
            await come(client, lambda facts: facts["running"] == 0, 600)
            assert len(steps) - before < endless // 12, "at most eleven tokens come of one step"
            assert 'engine_requests_total{outcome="left"} 1' in await client.metrics()
            writer.close()


# --- the real process, in its own time ------------------------------------------------------------------------------------
@pytest.mark.slow
async def test_the_real_web_process_drops_heads_after_10_and_bodies_after_30_seconds(tmp_path: Path) -> None:
    allow_many_files()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-m", "appliance", "--home", str(tmp_path / "h"), "web", "--with-parent", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    url = f"http://127.0.0.1:{port}"
    try:
        until(lambda: health(url) is not None, 60)
        connect = to(port)
        kinds: Sequence[tuple[bytes, bytes]] = [(b"", b"")] * 900 + [(HEAD, b"b")] * 50 + [(FORM, b"b")] * 50
        tasks = await crowd(connect, url, kinds, every=2, most=300)
        took: list[float | None] = []
        while not all(task.done() for task in tasks):
            took.append(await asyncio.to_thread(health, url))
            await asyncio.sleep(0.25)
        ends = [task.result()[0] for task in tasks]
        # Never before their time; and after it as soon as a busy machine comes to it: only the clients' own time counts.
        assert None not in took, "the box answered all the while"
        assert min(ends[:950]) > 9 and min(ends[950:]) > 29, (min(ends[:950]), min(ends[950:]))
        assert statistics.median(ends[:950]) < statistics.median(ends[950:])
    finally:
        process.terminate()
        log = process.communicate(timeout=20)[1]
    assert not re.search("Traceback|Error", log), log
