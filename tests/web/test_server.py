"""A real server process: killed without warning, reloaded in mid-answer, left by its readers."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import httpx
import pytest

from tests.web.conftest import NAME, PASSWORD, events

BOX = Path(__file__).parent / "box.py"
QUESTION = "Why are leaves green?"


@contextmanager
def serving(home: Path, *arguments: str, log: Path | None = None) -> Iterator[tuple[str, str, subprocess.Popen[str]]]:
    """(address, setup code, process) of a box; killed at the end if it still lives. log: where its stderr goes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(BOX), str(home), str(port), *arguments]
    errors = log.open("wb") if log else None
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process, errors or nullcontext():
        try:
            assert process.stdout
            code, address = process.stdout.readline().strip(), f"http://127.0.0.1:{port}"
            for _ in range(200):
                try:
                    httpx.get(f"{address}/health")
                    break
                except httpx.TransportError:
                    time.sleep(0.05)
            yield address, code, process
        finally:
            process.kill()


def token(client: httpx.Client, page: str = "/") -> str:
    found = re.search(r'name="csrf" value="([^"]+)"', client.get(page, headers={"accept": "text/html"}).text)
    assert found
    return found[1]


def enter(client: httpx.Client, code: str) -> None:
    form = {"csrf": token(client), "name": NAME, "password": PASSWORD}
    reply = client.post("/setup" if code else "/sign-in", data={**form, "code": code})
    assert reply.status_code == 303, reply.text
    client.headers["x-csrf-token"] = token(client, "/chat")


@pytest.mark.parametrize("rounds", [4, pytest.param(200, marks=pytest.mark.long)])
def test_kill_9_while_answering_loses_no_acknowledged_question(tmp_path: Path, rounds: int) -> None:
    asked: list[tuple[str, str]] = []
    for round in range(rounds):
        with serving(tmp_path / "home", "0.02") as (address, code, process), httpx.Client(base_url=address) as client:
            enter(client, code)
            for url, question in asked[-8:]:
                page = client.get(url, headers={"accept": "text/html"}).text
                assert question in page and 'data-state="streaming"' not in page, "an answer nobody writes must not look alive"
            for number in range(4):
                question = f"Why are leaves green? Round {round}, question {number}."
                reply = client.post("/chat/ask", data={"question": question, "conversation": ""})
                if reply.status_code == 503:
                    break
                asked.append((reply.json()["url"], question))
                time.sleep(0.013 * (round % 16))
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert len(asked) >= 3 * rounds
    with serving(tmp_path / "home") as (address, code, _), httpx.Client(base_url=address) as client:
        enter(client, code)
        for url, question in asked:
            assert question in client.get(url, headers={"accept": "text/html"}).text
    from appliance.db import Database

    database = Database(tmp_path / "home" / "appliance.sqlite3")
    database.check()
    database.close()


def test_a_reload_finds_its_answer_again(tmp_path: Path) -> None:
    with serving(tmp_path / "home", "0.05") as (address, code, process), httpx.Client(base_url=address) as client:
        enter(client, code)
        asked = client.post("/chat/ask", data={"question": QUESTION}).json()
        stream = f"/chat/stream/{asked['turn']}"
        with client.stream("GET", stream) as reply:
            first = next(reply.iter_text())
        assert "event: turn" in first
        page = client.get(asked["url"], headers={"accept": "text/html"}).text
        assert 'data-state="streaming"' in page, "it runs on while nobody reads"
        seen = events(client.get(stream).text)
        assert [kind for kind, _ in seen].count("text") == 2 and seen[-1][0] == "done"
        process.terminate()
        assert process.wait(10) in (0, -signal.SIGTERM)


def test_stopping_the_server_keeps_what_was_written(tmp_path: Path) -> None:
    with serving(tmp_path / "home", "0.2") as (address, code, process), httpx.Client(base_url=address) as client:
        enter(client, code)
        asked = client.post("/chat/ask", data={"question": QUESTION}).json()
        time.sleep(0.8)
        process.terminate()
        assert process.wait(10) in (0, -signal.SIGTERM)
    with serving(tmp_path / "home") as (address, code, process), httpx.Client(base_url=address) as client:
        enter(client, code)
        page = client.get(asked["url"], headers={"accept": "text/html"}).text
        assert "Leaves look" in page and "The box was switched off while it wrote this answer." in page and "Ask again" in page
