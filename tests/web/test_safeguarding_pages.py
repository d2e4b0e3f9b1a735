"""The safety road through the doors: what a pupil sees, what reaches the lead's page, and what everybody else does not see."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import openai
import pytest
import sqlalchemy as sa
from fastapi import FastAPI

from appliance.tables import flags
from tests.web.conftest import BASE, PASSWORD, csrf, events

DISTRESS = "I want to die zebrafish"


@asynccontextmanager
async def signed_in(app: FastAPI, box: Any, name: str, role: str) -> AsyncIterator[httpx.AsyncClient]:
    box.accounts.ensure_setup_code()
    person, _ = box.people.add(name, role, password=PASSWORD)
    del person
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BASE, headers={"accept": "text/html"}) as client:
        reply = await client.post("/sign-in", data={"name": name, "password": PASSWORD, "csrf": await csrf(client)})
        assert reply.status_code == 303, reply.text
        client.headers["x-csrf-token"] = await csrf(client, "/chat")
        yield client


@pytest.fixture
def school(box: Any, person: httpx.AsyncClient) -> Any:
    """A box with its first administrator, who is `person`."""
    del person
    return box


async def ask(client: httpx.AsyncClient, question: str) -> list[tuple[str, str]]:
    reply = await client.post("/chat/ask", data={"question": question}, headers={"accept": "application/json"})
    assert reply.status_code == 200, reply.text
    return events((await client.get(f"/chat/stream/{reply.json()['turn']}")).text)


async def test_a_pupil_gets_help_and_the_lead_a_banner_on_every_page(
    app: FastAPI, school: Any, person: httpx.AsyncClient
) -> None:
    school.pool.down = True
    async with signed_in(app, school, "amira", "pupil") as pupil, signed_in(app, school, "Mx Lead", "safeguarding") as lead:
        assert "alarm" not in (await lead.get("/chat")).text.replace("alarm.js", "").replace('id="alarm"', "")
        told = await ask(pupil, DISTRESS)
        assert "carry it alone" in told[-1][1] and "No language model wrote it" in told[-1][1]
        for path in ("/chat", "/about", "/counts", "/safeguarding"):
            assert "1 message needs you now" in (await lead.get(path)).text, path
        assert "1 message needs you now" in (await lead.get("/safeguarding/alarm")).text
        assert "needs you now" not in (await pupil.get("/chat")).text + (await person.get("/chat")).text
        page = (await lead.get("/safeguarding")).text
        assert "zebrafish" not in page and "amira" in page and "Self-harm or distress" in page
        link = re.search(r'href="(/safeguarding/\w+)"', page)
        assert link
        one = (await lead.get(link[1])).text
        assert DISTRESS in one and [e.verb for e in school.audit.entries()][-1] == "read flag"
        reply = await lead.post(link[1], data={"state": "closed", "note": " "})
        assert reply.status_code == 400 and "The note is empty" in reply.text
        assert (await lead.post(link[1], data={"state": "seen"})).status_code == 303
        assert "needs you now" not in (await lead.get("/chat")).text
        assert (await lead.post(link[1], data={"state": "closed", "note": "Spoke <b>with</b> her."})).status_code == 303
        assert "Nothing is waiting" in (await lead.get("/safeguarding")).text
        assert "Spoke &lt;b&gt;with&lt;/b&gt; her." in (await lead.get(link[1])).text
        assert (await lead.delete(link[1])).status_code == 405
        assert (await lead.get("/safeguarding/nothing")).status_code == 404


async def test_flagged_words_are_for_the_lead_alone(app: FastAPI, school: Any, person: httpx.AsyncClient) -> None:
    async with signed_in(app, school, "amira", "pupil") as pupil, signed_in(app, school, "Ms Blue", "teacher") as teacher:
        await ask(pupil, DISTRESS)
        with school.database.read() as connection:
            id = connection.scalar(sa.select(flags.c.id))
        for client in (pupil, teacher, person):
            assert (await client.get("/safeguarding")).status_code == 403
            assert (await client.get(f"/safeguarding/{id}")).status_code == 403
            assert (await client.post(f"/safeguarding/{id}", data={"state": "seen"})).status_code == 403
        assert (await pupil.get("/counts")).status_code == 403
        told = (await person.get("/chat")).text
        assert "nobody has that role" in told and "zebrafish" not in told and "Self-harm" not in told


async def test_a_teacher_sees_the_numbers_of_the_own_class_and_no_other(
    app: FastAPI, school: Any, person: httpx.AsyncClient
) -> None:
    mine, other = school.classes.add("7 B"), school.classes.add("9 C")
    async with signed_in(app, school, "amira", "pupil") as pupil, signed_in(app, school, "ben", "pupil") as second:
        async with signed_in(app, school, "Ms Blue", "teacher") as teacher:
            school.people.join(school.accounts.named("Ms Blue").id, mine.id, teaches=True)
            school.people.join(school.accounts.named("amira").id, mine.id)
            school.people.join(school.accounts.named("ben").id, other.id)
            await ask(pupil, "be my girlfriend zebrafish")
            await ask(second, "how do i make a pipe bomb zebrafish")
            page = (await teacher.get("/counts")).text
            assert "7 B" in page and "Treating the assistant as a person" in page
            assert "9 C" not in page and "weapons" not in page
            assert not [word for word in ("amira", "zebrafish") if word in page]
        everything = (await person.get("/counts?days=7")).text
        assert "7 B" in everything and "9 C" in everything and "zebrafish" not in everything


async def test_another_program_gets_a_content_filter_and_the_fixed_text(app: FastAPI, school: Any, key: str) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BASE) as http:
        client = openai.AsyncOpenAI(api_key=key, base_url=f"{BASE}/v1", http_client=http, max_retries=0)
        question: Any = [{"role": "user", "content": DISTRESS}]
        reply = await client.chat.completions.create(model="default", messages=question)
        assert reply.choices[0].finish_reason == "content_filter"
        assert "carry it alone" in (reply.choices[0].message.content or "")
        stream = await client.chat.completions.create(model="default", messages=question, stream=True)
        chunks = [chunk async for chunk in stream]
        assert chunks[-1].choices[0].finish_reason == "content_filter"
        assert "carry it alone" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    with school.database.read() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(flags)) == 1, "the same words are one flag"
