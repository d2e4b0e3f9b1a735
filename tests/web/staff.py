"""People who are signed in, for tests of pages that not everybody may see."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from tests.web.conftest import BASE, csrf

PASSWORD = "correct horse battery"


@asynccontextmanager
async def signed_in(app: Any, box: Any, name: str, role: str) -> AsyncIterator[httpx.AsyncClient]:
    """A new person of that role, signed in; `x-csrf-token` is set, as a page's script does."""
    box.people.add(name, role, password=PASSWORD)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url=BASE, headers={"accept": "text/html"}) as client:
        form = {"name": name, "password": PASSWORD, "csrf": await csrf(client)}
        assert (await client.post("/sign-in", data=form)).status_code == 303
        client.headers["x-csrf-token"] = await csrf(client, "/chat")
        yield client
