"""The engine is killed while sixteen pages stream: each is told, what was written is kept, and the next question works."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from appliance.accounts import ADMINISTRATOR, Accounts
from appliance.db import Database
from appliance.registry import Registry
from appliance.settings import Settings
from appliance.tables import new_id, turns, users
from tests.web.conftest import PASSWORD
from tests.web.test_server import token

pytestmark = [pytest.mark.llama, pytest.mark.slow]

PEOPLE, PAGES = 4, 4  # a person may have four answers under way
SLOTS = 8
QUESTION = "What is a fraction?"


def without_end(gguf: bytes) -> bytes:
    """A model that knows no end: its answers are as long as they may be, so that there is a middle to kill them in."""
    key = b"tokenizer.ggml.eos_token_id"
    at = gguf.index(key) + len(key) + 4  # behind the key stands its type, then the token's number
    gguf = gguf[:at] + (1).to_bytes(4, "little") + gguf[at + 4 :]
    # The token has another text now, of the same length; the template goes on naming the old one, which nothing writes.
    template = gguf.index(b"tokenizer.chat_template")
    length = int.from_bytes(gguf[template + 27 : template + 35], "little")
    after = template + 35 + length
    return b"".join(
        [gguf[:template].replace(b"<|end|>", b"<|on!|>"), gguf[template:after], gguf[after:].replace(b"<|end|>", b"<|on!|>")]
    )


def prepare(home: Path, gguf: Path) -> Settings:
    """A home with four people, and the starter's weights as a model that writes long answers and has no quotes before it."""
    settings = Settings(home=home)
    for folder in (settings.home, settings.run, settings.models):
        folder.mkdir(parents=True, exist_ok=True)
    with closing(Database(settings.database)) as database:
        database.migrate()
        accounts = Accounts(database, settings)
        accounts.create_first_administrator(str(accounts.ensure_setup_code()), "Person 0", PASSWORD)
        with database.begin() as connection:
            hashed = connection.execute(sa.select(users.c.password_hash)).scalar_one()
            for number in range(1, PEOPLE):
                row = {"id": new_id(), "name": f"Person {number}", "role": ADMINISTRATOR, "password_hash": hashed}
                connection.execute(sa.insert(users).values(**row, created=time.time()))
    incoming = settings.models / ".incoming"
    incoming.mkdir()
    (incoming / "model.gguf").write_bytes(without_end(gguf.read_bytes()))
    registry = Registry(settings.models)
    registry.add(incoming, id="class", kind="base", title="Class", licence="Apache-2.0", context=1024)
    registry.promote("class")
    return settings


@dataclass
class Served:
    """`appliance serve`, with what it says."""

    settings: Settings
    url: str
    process: subprocess.Popen[str]

    def pid(self, name: str) -> int | None:
        """The process id of one of its children."""
        for entry in Path("/proc").iterdir():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
            except OSError:
                continue
            if name.encode() in words and str(self.settings.home).encode() in words and b"serve" not in words:
                return int(entry.name)
        return None

    def answers(self) -> bool:
        """Whether the model is there: the engine runs and has it in memory."""
        try:
            return bool(httpx.get(f"{self.url}/ready", timeout=10.0).json().get("handler") == "llama")
        except (httpx.TransportError, ValueError):
            return False


def until(true: Callable[[], bool], seconds: float) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, "it did not come about in time"
        time.sleep(0.1)


@pytest.fixture
def served(tmp_path: Path, starter_gguf: Path) -> Iterator[Served]:
    settings = prepare(tmp_path / "h", starter_gguf)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-m", "appliance", "--home", str(settings.home), "serve", "--port", str(port)]
    given = {"APPLIANCE_SLOTS": str(SLOTS), "APPLIANCE_ANSWER_TOKENS": "500", "APPLIANCE_THREADS": "1"}
    with open(tmp_path / "said", "w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, text=True, env=os.environ | given)
        made = Served(settings, f"http://127.0.0.1:{port}", process)
        try:
            until(made.answers, 120)
            yield made
        finally:
            process.terminate()
            process.wait(30)


@dataclass
class Page:
    """One page's question, and what its stream said."""

    turn: str
    kinds: list[str] = field(default_factory=list)
    text: str = ""
    html: str = ""

    @property
    def state(self) -> str:
        return self.html.partition('data-state="')[2].partition('"')[0]

    async def read(self, client: httpx.AsyncClient) -> None:
        kind = ""
        async with client.stream("GET", f"/chat/stream/{self.turn}") as reply:
            async for line in reply.aiter_lines():
                if line.startswith("event: "):
                    kind = line[7:]
                    self.kinds.append(kind)
                elif line.startswith("data: "):
                    data = json.loads(line[6:])
                    self.text += data.get("delta", "")
                    self.html = data.get("html", self.html) if kind == "done" else self.html


def signed_in(url: str, number: int) -> httpx.AsyncClient:
    """A browser of one of the people."""
    with httpx.Client(base_url=url) as client:
        form = {"csrf": token(client), "name": f"Person {number}", "password": PASSWORD}
        assert client.post("/sign-in", data=form).status_code == 303
        headers = {"x-csrf-token": token(client, "/chat")}
        return httpx.AsyncClient(base_url=url, cookies=client.cookies, headers=headers, timeout=120.0)


async def ask(client: httpx.AsyncClient, question: str) -> Page:
    reply = await client.post("/chat/ask", data={"question": question})
    assert reply.status_code == 200, reply.text
    return Page(reply.json()["turn"])


def stored(settings: Settings, page: Page) -> sa.Row[tuple[object, ...]]:
    with closing(Database(settings.database)) as database, database.read() as connection:
        return connection.execute(sa.select(turns).where(turns.c.id == page.turn)).one()


async def test_kill_9_under_sixteen_streams(served: Served) -> None:
    people = [await asyncio.to_thread(signed_in, served.url, number) for number in range(PEOPLE)]
    first = served.pid("engine")
    assert first
    pages = [await ask(client, f"{QUESTION} Number {number}.") for number in range(PAGES) for client in people]
    reading = [asyncio.create_task(page.read(people[number % PEOPLE])) for number, page in enumerate(pages)]
    async with asyncio.timeout(60):
        # A sentence is shown once it was judged, and a short answer is then soon at its end.
        while sum(bool(page.text) and not page.html for page in pages) < 3:
            assert not all(page.html for page in pages), "all of them were answered already"
            await asyncio.sleep(0.005)
    os.kill(first, signal.SIGKILL)
    half = {page.turn: page.text for page in pages if not page.html}
    killed = time.monotonic()
    async with asyncio.timeout(30):
        await asyncio.gather(*reading)
    assert time.monotonic() - killed < 15, "nobody is left before a page that has stopped"
    assert sum(bool(text) for text in half.values()) >= 3, "this test needs answers that are half written"
    for page in pages:
        row = stored(served.settings, page)
        assert row.state == page.state in ("done", "failed") and page.kinds[-1] == "done", page
        if page.state == "failed":
            assert "just stopped" in page.html and "ask again" in page.html and 'role="alert"' in page.html
            assert page.text.strip() and row.text == page.text.strip(), "what was shown is kept, to the last word"
        elif row.handler == "quotes":
            assert "No language model wrote this" in page.html and row.text == page.text.strip(), "no word of the model in it"
        else:
            assert row.facts["completion"] > 0, "no half answer is called done: this one came to its own end"
    assert sum(page.state == "failed" for page in pages) >= 3

    await asyncio.to_thread(until, lambda: served.pid("engine") not in (None, first) and served.answers(), 90)
    again = await ask(people[0], QUESTION)
    await again.read(people[0])
    row = stored(served.settings, again)
    assert again.state == "done" and row.handler == "llama" and row.model == "class" and len(row.text) > 20
    page = (
        await people[0].get(f"/chat/{stored(served.settings, pages[0]).conversation}", headers={"accept": "text/html"})
    ).text
    assert "Number 0" in page, "the first chat is still there"
    for client in people:
        await client.aclose()


async def _killed_in_its_middle(client: httpx.AsyncClient, served: Served, body: dict[str, Any]) -> list[str]:
    """The lines of an answer whose engine is killed at its first words."""
    lines: list[str] = []
    engine = served.pid("engine")
    async with client.stream("POST", "/v1/chat/completions", json=body) as reply:
        async for line in reply.aiter_lines():
            lines += [line] if line else []
            if engine and re.search('"content": "[^"]', line):
                os.kill(engine, signal.SIGKILL)
                engine = None
    return lines


async def test_a_program_that_streams_is_told_too(served: Served) -> None:
    with closing(Database(served.settings.database)) as database:
        accounts = Accounts(database, served.settings)
        key = accounts.create_key(accounts.local_administrator(), "test", "chat")[1]
    body: dict[str, Any] = {"model": "default", "stream": True, "collections": []}
    async with httpx.AsyncClient(base_url=served.url, headers={"authorization": f"Bearer {key}"}, timeout=60.0) as client:
        for number in range(8):  # until an answer was longer than the killing took
            body["messages"] = [{"role": "user", "content": f"{QUESTION} Number {number}."}]
            lines = await _killed_in_its_middle(client, served, body)
            if "error" in lines[-1]:
                break
            await asyncio.to_thread(until, served.answers, 90)
        last = json.loads(lines[-1].removeprefix("data: "))
        assert last["error"]["code"] == "model_unavailable" and last["error"]["type"] == "server_error", last
        assert not any("[DONE]" in line or '"finish_reason": "' in line for line in lines), "half an answer does not end well"
        await asyncio.to_thread(until, served.answers, 90)
        reply = await client.post("/v1/chat/completions", json=body | {"stream": False})
        assert reply.status_code == 200 and reply.json()["handler"] == "llama"
