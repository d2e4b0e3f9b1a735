"""What a page shows while the database is held by somebody, or its disk is full, in the middle of an answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import httpx
import pytest

from appliance import answering
from appliance.engine.handler import Chunk, Request
from tests.test_answering import full, locked, pragmas, until
from tests.web.conftest import events
from tests.web.test_pages import QUESTION

__all__ = ["pragmas"]

SCRIPT = {"accept": "application/json"}


@pytest.fixture
def gate(box: Any) -> asyncio.Event:
    """The model writes a sentence, and the rest once this is set."""
    box.pool.answer, make, gate = "Leaves are green. Then " + "word " * 3000 + "end", box.pool.generate, asyncio.Event()

    async def waits(request: Request) -> AsyncGenerator[Chunk, None]:
        async with aclosing(make(request)) as chunks:
            number = 0
            async for chunk in chunks:
                yield chunk
                number += 1
                if number > 6:
                    await gate.wait()

    box.pool.generate = waits
    return gate


@pytest.mark.parametrize(("trouble", "status", "words"), [(locked, 409, "has held"), (full, 507, "disk is full")])
async def test_a_page_shows_all_that_was_written_says_what_happened_and_gets_over_it(
    person: httpx.AsyncClient,
    box: Any,
    gate: asyncio.Event,
    pragmas: list[str],
    monkeypatch: pytest.MonkeyPatch,
    trouble: Any,
    status: int,
    words: str,
) -> None:
    monkeypatch.setattr(answering, "TRY_AGAIN", 0.05)
    monkeypatch.setattr(answering, "SAVE_EVERY", 0.0)
    asked = (await person.post("/chat/ask", data={"question": QUESTION}, headers=SCRIPT)).json()
    me = box.accounts.named("Ms Green")
    await until(lambda: box.chat.conversations.turn(me, asked["turn"]).text)
    with trouble(box.database, pragmas):
        gate.set()
        told = events((await person.get(f"/chat/stream/{asked['turn']}")).text)
        shown = "".join(json.loads(data)["delta"] for kind, data in told if kind == "text")
        assert shown.startswith("Leaves are green.") and shown.endswith(" end"), "no word waits for the disk"
        ended = json.loads(dict(told)["done"])["html"]
        for page in (ended, (await person.get(asked["url"])).text):  # also after a reload
            assert "could not be saved" in page and words in page and "The box keeps trying" in page
            assert " end</p>" in page
        typed = {"question": "And <then>?", "conversation": asked["url"].rsplit("/", 1)[1]}
        refused = await person.post("/chat/ask", data=typed)
        assert refused.status_code == status and words in refused.text and "And &lt;then&gt;?</textarea>" in refused.text
    await until(lambda: box.chat.conversations.turn(me, asked["turn"]).state == "done")
    page = (await person.get(asked["url"])).text
    assert "could not be saved" not in page and " end</p>" in page
    assert (await person.post("/chat/ask", data=typed)).status_code == 303
