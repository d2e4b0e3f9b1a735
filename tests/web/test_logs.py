"""What the services log: one JSON object a line where it is asked for, and never a word of anybody's, whatever goes wrong."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from appliance import logs
from tests.web.conftest import BASE, NAME, PASSWORD, csrf

CANARY = "CANARY"


@pytest.fixture(params=["json", "plain"])
def written(request: pytest.FixtureRequest) -> Iterator[tuple[str, io.StringIO]]:
    """The form, and what is logged in it from here on as a service begins it."""
    root, ours, into = logging.getLogger(), logging.getLogger("appliance"), io.StringIO()
    before = root.handlers[:], ours.level, logging.raiseExceptions
    filters = {name: logging.getLogger(name).filters[:] for name in logs.WORDY}
    logs.begin("web", request.param)
    if request.param == "plain":  # what Python does by itself, where pytest does not catch it
        root.handlers[:] = [logging.StreamHandler()]
    (handler,) = root.handlers
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(into)
    yield request.param, into
    root.handlers[:], ours.level, logging.raiseExceptions = before
    for name, kept in filters.items():
        logging.getLogger(name).filters[:] = kept


async def test_no_word_of_anybodys_in_a_log(written: tuple[str, io.StringIO], app: Any, box: Any, key: str) -> None:
    """Through the chat, its faults, faults of the box, forms that cannot be taken, addresses, bodies, and tasks."""
    form, into = written

    def broken(*_: Any, **_more: Any) -> None:
        raise ValueError(f"{CANARY} in a fault")

    whole = logs.Requests(app) if form == "json" else app
    transport = httpx.ASGITransport(whole, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url=BASE, headers={"accept": "text/html"}) as client:
        setup = {"code": box.accounts.ensure_setup_code(), "name": NAME, "password": PASSWORD, "csrf": await csrf(client)}
        await client.post("/setup", data=setup)
        client.headers["x-csrf-token"] = await csrf(client, "/chat")
        asked = await client.post("/chat/ask", data={"question": f"{CANARY}, why are leaves green?"})
        chat = asked.headers["location"].partition("#")[0]
        await box.chat.leave(box.accounts.named(NAME))
        await client.get(f"/chats?q={CANARY}")
        await client.get(f"/{CANARY}/page")
        await client.request(f"{CANARY}", "/chat")
        await client.post(f"{chat}/rename", data={"title": ""})
        await client.post("/chat/ask", content=f"question={CANARY}%ff".encode(), headers={"content-type": "text/plain"})
        speak = {"model": CANARY, "messages": [{"role": CANARY, "content": CANARY}], CANARY: 1}
        await client.post("/v1/chat/completions", json=speak, headers={"authorization": f"Bearer {key}"})
        await client.post("/v1/chat/completions", content=f"{{{CANARY}", headers={"authorization": f"Bearer {key}"})
        box.pool.generate = broken
        await client.post("/chat/ask", data={"question": f"{CANARY}, and why not blue?"})
        await box.chat.leave(box.accounts.named(NAME))
        box.chat.conversations.rename = broken
        assert (await client.post(f"{chat}/rename", data={"title": CANARY})).status_code == 500

    async def fails() -> None:
        raise ValueError(f"{CANARY} in a task")

    task = asyncio.create_task(fails())
    await asyncio.wait({task})
    del task
    gc.collect()
    if form == "json":
        logging.getLogger("somebody.else").error("%s is what was typed", CANARY)
    text = into.getvalue()
    assert "ValueError at" in text and "exception was never retrieved" in text and CANARY not in text
    if form == "json":
        lines = [json.loads(line) for line in text.splitlines()]
        assert all({"time", "level", "process", "message"} <= line.keys() for line in lines)
        told = [line for line in lines if line["message"] == "request"]
        assert {("POST", "/chat/{id}/rename", 500), ("GET", "/chats", 200), ("GET", "", 404)} <= {
            (line["method"], line["route"], line["status"]) for line in told
        }
        assert all(line["ms"] >= 0 and len(line["request"]) == 16 for line in told)
        fault = next(line for line in lines if line["level"] == "error" and "request" in line)
        assert fault["request"] == next(line["request"] for line in told if line["status"] == 500), "what belongs together"
        assert chat.rsplit("/", 1)[1] not in text, "no id of anything"


def test_a_service_writes_lines_of_json_and_nothing_else(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "appliance", "--home", str(tmp_path / "home"), "web", "--port", str(port)]
    environment = {**os.environ, "APPLIANCE_LOG_FORMAT": "json"}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            for _ in range(600):
                try:
                    assert httpx.get(f"http://127.0.0.1:{port}/health?name={CANARY}").status_code == 200
                    break
                except httpx.TransportError:
                    time.sleep(0.05)
            with socket.create_connection(("127.0.0.1", port)) as line:
                line.sendall(f"{CANARY} is no request\r\n\r\n".encode())
                line.recv(100)
        finally:
            process.terminate()
        assert process.stderr is not None
        lines = [json.loads(line) for line in process.stderr.read().splitlines()]
    assert CANARY not in str(lines)
    assert [(line["route"], line["status"]) for line in lines if line["message"] == "request"] == [("/health", 200)]
    assert {line["process"] for line in lines} == {"web"} and "Invalid HTTP request received." in {o["message"] for o in lines}


FATAL = {
    "the port is taken": (["web", "--port", "TAKEN"], {}, "conflict", 1),
    "no such port": (["web", "--port", "0"], {}, "usage", 2),
    "air-gapped": (["egress"], {}, "forbidden", 3),
    "a setting": (["worker"], {"APPLIANCE_SLOTS": "many"}, "bad_input", 1),
    "the path of the socket": (["engine"], {}, "bad_input", 1),
}


@pytest.mark.parametrize("why", FATAL)
def test_what_ends_a_service_at_its_start_is_a_line_of_json_too(tmp_path: Path, why: str) -> None:
    arguments, more, code, status = FATAL[why]
    home = tmp_path / ("long" * 30 if why == "the path of the socket" else "home")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        arguments = [one.replace("TAKEN", str(taken.getsockname()[1])) for one in arguments]
        command = [sys.executable, "-m", "appliance", "--home", str(home), *arguments]
        environment = {**os.environ, "APPLIANCE_LOG_FORMAT": "json", **more}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    (line,) = [json.loads(one) for one in done.stderr.splitlines()]
    assert (line["level"], line["process"], line["code"], line["exit"]) == ("critical", arguments[0], code, status)
    assert done.returncode == status and line["message"].endswith(".") and done.stdout == ""


@pytest.mark.parametrize(
    ("form", "arguments", "status"), [("json", ["models", "show", "nothing"], 1), ("plain", ["egress"], 3)]
)
def test_who_reads_for_themselves_reads_sentences(tmp_path: Path, form: str, arguments: list[str], status: int) -> None:
    """Of a command for people whatever the setting, and of a service where it says so."""
    command = [sys.executable, "-m", "appliance", "--home", str(tmp_path), *arguments]
    environment = {**os.environ, "APPLIANCE_LOG_FORMAT": form}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == status and done.stderr.startswith("Error: ") and "\nTry: " in done.stderr
