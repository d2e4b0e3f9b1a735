"""A web process in memory, and a person who is signed in to it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from appliance.settings import Settings
from appliance.web.server import create_app
from tests.web.box import make_box

NAME, PASSWORD = "Ms Green", "correct horse battery"
BASE = "http://localhost:8080"


@pytest.fixture
async def box(settings: Settings) -> AsyncIterator[Any]:
    box = make_box(settings)
    yield box
    await box.chat.close()
    box.database.close()


@pytest.fixture
def app(box: Any) -> FastAPI:
    return create_app(box)


@pytest.fixture
async def visitor(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=True)
    async with httpx.AsyncClient(transport=transport, base_url=BASE, headers={"accept": "text/html"}) as client:
        yield client


@pytest.fixture
async def person(box: Any, visitor: httpx.AsyncClient) -> httpx.AsyncClient:
    """Signed in through the setup form; `x-csrf-token` is set, as the page's script does."""
    code = box.accounts.ensure_setup_code()
    form = {"code": code, "name": NAME, "password": PASSWORD, "csrf": await csrf(visitor)}
    reply = await visitor.post("/setup", data=form)
    assert reply.status_code == 303, reply.text
    visitor.headers["x-csrf-token"] = await csrf(visitor, "/chat")
    return visitor


@pytest.fixture
def key(box: Any) -> str:
    return str(box.accounts.create_key(box.accounts.local_administrator(), "test", "chat")[1])


async def csrf(client: httpx.AsyncClient, page: str = "/") -> str:
    found = re.search(r'name="csrf" value="([^"]+)"', (await client.get(page)).text)
    assert found
    return found[1]


def events(text: str) -> list[tuple[str, str]]:
    """(kind, data) of each server-sent event."""
    return re.findall(r"event: (\w+)\ndata: (.*)\n\n", text)
