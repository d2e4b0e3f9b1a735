"""One's own pages and the ways in: temporary passwords, the second step, a class's code, and what ends within seconds."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any

import httpx
import pyotp
import pytest
import sqlalchemy as sa
from fastapi import FastAPI

from appliance.accounts import PUPIL, SAFEGUARDING, TEACHER
from appliance.tables import users
from tests.web.conftest import BASE, NAME, PASSWORD, csrf

OTHER = "another horse battery"


def browser(app: FastAPI) -> httpx.AsyncClient:
    """A browser of somebody else."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BASE, headers={"accept": "text/html"})


async def sign_in(client: httpx.AsyncClient, name: str, password: str) -> httpx.Response:
    reply = await client.post("/sign-in", data={"csrf": await csrf(client), "name": name, "password": password})
    if reply.status_code == 303 and reply.headers["location"] == "/chat":
        page = (await client.get("/me/password")).text
        client.headers["x-csrf-token"] = re.findall(r'name="csrf" value="([^"]+)"', page)[0]
    return reply


async def token_of(client: httpx.AsyncClient, page: str = "/me") -> None:
    client.headers.pop("x-csrf-token", None)
    client.headers["x-csrf-token"] = await csrf(client, page)


# --- a password that somebody else made ------------------------------------------------------------------------------
PLACES = ("/chat", "/chat/x", "/library", "/keys", "/me", "/me/second-step", "/admin/people", "/chat/stream/x", "/passage/11")


async def test_a_temporary_password_opens_one_page(box: Any, app: FastAPI) -> None:
    _, given = box.people.add("Ann", TEACHER)
    async with browser(app) as ann:
        await sign_in(ann, "Ann", given.lower())
        for path in PLACES:
            reply = await ann.get(path)
            assert (reply.status_code, reply.headers.get("location")) == (303, "/me/password"), path
            assert (await ann.get(path, headers={"accept": "application/json"})).status_code == 403
        for path in ("/chat/ask", "/keys", "/me", "/me/sessions/end"):
            assert (await ann.post(path, data={"question": "x", "name": "x"})).status_code == 403
        page = (await ann.get("/me/password")).text
        assert "Choose your own password" in page and 'href="/library"' not in page and 'id="old"' not in page
        for new, again, said in (("short", "short", "at least 10"), (PASSWORD, OTHER, "not the same"), (given, given, "given")):
            reply = await ann.post("/me/password", data={"new": new, "again": again})
            assert reply.status_code == 400 and said in reply.text
        before = ann.cookies["session"]
        reply = await ann.post("/me/password", data={"new": PASSWORD, "again": PASSWORD})
        assert reply.headers["location"] == "/chat" and ann.cookies["session"] != before
        assert (await ann.get("/chat")).status_code == 200 and box.accounts.session(before) is None
        assert (await ann.get("/me/password")).status_code == 200


async def test_who_has_a_temporary_password_can_leave(box: Any, app: FastAPI) -> None:
    _, given = box.people.add("Ann", PUPIL)
    async with browser(app) as ann:
        await sign_in(ann, "Ann", given)
        assert (await ann.post("/sign-out")).headers["location"] == "/"
        assert (await ann.get("/me/password")).headers["location"] == "/"


# --- one's own page --------------------------------------------------------------------------------------------------
async def test_looks_and_language(person: httpx.AsyncClient) -> None:
    page = (await person.get("/me")).text
    assert 'data-text="' not in page and 'data-spacing="' not in page
    form = {"full_name": "Anna <b>Green</b>", "chosen": "ar", "text": "larger", "spacing": "wide"}
    reply = await person.post("/me", data=form)
    assert reply.status_code == 303
    page = (await person.get("/chat")).text
    assert '<html lang="ar" dir="rtl" data-text="larger" data-spacing="wide">' in page
    page = (await person.get("/me")).text
    assert 'value="Anna &lt;b&gt;Green&lt;/b&gt;"' in page and "<b>Green" not in page
    await person.post("/me", data={**form, "chosen": "", "text": "normal", "spacing": "normal"})
    assert '<html lang="en" dir="ltr">' in (await person.get("/chat")).text


@pytest.mark.parametrize(
    "wrong", [{"chosen": "tlh"}, {"text": "huge"}, {"spacing": "<x>"}, {"full_name": "A\u202enn"}, {"full_name": "x" * 121}]
)
async def test_a_fault_comes_back_filled_in(box: Any, person: httpx.AsyncClient, wrong: dict[str, str]) -> None:
    form = {"full_name": "What I typed", "chosen": "fr", "text": "large", "spacing": "wide", **wrong}
    reply = await person.post("/me", data=form)
    assert reply.status_code == 400 and 'role="alert"' in reply.text
    if "full_name" not in wrong:
        assert 'value="What I typed"' in reply.text
    assert box.people.list()[0].full_name == ""


async def test_a_pupil_does_not_write_the_own_full_name(box: Any, app: FastAPI) -> None:
    pupil, _ = box.people.add("mia", PUPIL, password=PASSWORD, full_name="Mia Berg")
    async with browser(app) as mia:
        await sign_in(mia, "mia", PASSWORD)
        await mia.post("/me", data={"full_name": "King", "text": "large"})
        page = (await mia.get("/me")).text
        assert "Mia Berg" in page and 'data-text="large"' in page and 'name="full_name"' not in page
        assert (await mia.get("/me/second-step")).status_code == 403
    assert box.people.get(pupil.id).full_name == "Mia Berg"


async def test_changing_the_password(box: Any, app: FastAPI, person: httpx.AsyncClient) -> None:
    _, key = box.accounts.create_key(box.accounts.named(NAME), "Moodle")
    async with browser(app) as elsewhere:
        await sign_in(elsewhere, NAME, PASSWORD)
        before = person.cookies["session"]
        reply = await person.post("/me/password", data={"old": "not this one", "new": OTHER, "again": OTHER})
        assert reply.status_code == 401 and "not right" in reply.text and OTHER not in reply.text
        reply = await person.post("/me/password", data={"old": PASSWORD, "new": OTHER, "again": OTHER})
        assert reply.headers["location"] == "/me?done=password" and person.cookies["session"] != before
        assert (await person.get("/chat")).status_code == 200
        assert (await elsewhere.get("/chat")).headers["location"] == "/"
    assert box.accounts.key(key) is None and box.accounts.session(before) is None
    assert [(row.verb, row.thing == row.actor) for row in box.audit.entries()] == [("change password", True)]


async def test_signing_out_everywhere_else(app: FastAPI, person: httpx.AsyncClient) -> None:
    async with browser(app) as elsewhere:
        elsewhere.headers["user-agent"] = "Mozilla/5.0 (X11; CrOS x86_64) AppleWebKit/537.36 Chrome/120.0 Safari/537.36 <x>"
        await sign_in(elsewhere, NAME, PASSWORD)
        page = (await person.get("/me")).text
        assert page.count("(here)") == 1 and "Chrome, Chromebook" in page
        assert (await person.post("/me/sessions/end")).headers["location"] == "/me?done=ended"
        assert (await elsewhere.get("/chat")).headers["location"] == "/"
    page = (await person.get("/me?done=ended")).text
    assert "signed out everywhere else" in page and "Chromebook" not in page


async def test_signing_in_twice_ends_the_first_session_of_that_browser(box: Any, person: httpx.AsyncClient) -> None:
    planted = person.cookies["session"]
    reply = await person.post("/sign-in", data={"name": NAME, "password": PASSWORD})
    assert reply.status_code == 303 and person.cookies["session"] != planted
    assert box.accounts.session(planted) is None and box.accounts.session(person.cookies["session"])


async def test_a_planted_cookie_is_never_taken_over(box: Any, app: FastAPI) -> None:
    box.people.add("Ann", TEACHER, password=PASSWORD)
    box.people.add("Head", "administrator")
    async with browser(app) as ann:
        ann.cookies.set("session", "planted", domain="localhost.local")
        await sign_in(ann, "Ann", PASSWORD)
    assert box.accounts.session("planted") is None


@pytest.mark.parametrize("way", ["password", "second step", "class code"])
async def test_whoever_signs_in_leaves_a_planted_session_behind(box: Any, app: FastAPI, lesson: Any, way: str) -> None:
    """Eve has put her own session into the victim's browser: what the victim does then is not done in it."""
    eve, _ = box.people.add("Eve", TEACHER, password=PASSWORD)
    planted = box.accounts.begin(eve.id)
    ann, secret = box.accounts.named("Ann"), box.accounts.second_step.new_secret()
    if way == "second step":
        box.accounts.second_step.turn_on(ann.id, secret, pyotp.TOTP(secret).now())
        with box.database.begin() as connection:
            connection.execute(sa.update(users).values(totp_step=users.c.totp_step - 3))
    async with browser(app) as client:
        client.cookies.set("session", planted, domain="localhost.local")
        token = await csrf(client, "/me")
        form = {"csrf": token, "name": "Ann", "password": PASSWORD, "code": box.accounts.class_codes.make(lesson.id)}
        mia = box.accounts.named("mia").id
        reply = await client.post("/class" if way == "class code" else "/sign-in", data={**form, "pupil": mia})
        assert reply.status_code == 303 and box.accounts.session(planted) is None
        if way == "second step":
            assert client.cookies["session"] == planted and (await client.get("/chat")).headers["location"] == "/"
            form = {"csrf": await csrf(client, "/sign-in/code"), "code": pyotp.TOTP(secret).now()}
            assert (await client.post("/sign-in/code", data=form)).status_code == 303
        mine = box.accounts.session(client.cookies["session"])
        assert client.cookies["session"] != planted and mine.csrf != token
        assert mine.user.name == ("mia" if way == "class code" else "Ann")


# --- the second step -------------------------------------------------------------------------------------------------
async def second_step_on(box: Any, person: httpx.AsyncClient) -> tuple[str, list[str]]:
    page = (await person.get("/me/second-step")).text
    secret = re.findall(r'name="secret" value="([A-Z2-7]{32})"', page)[0]
    assert "<svg " in page and "style=" not in page
    form = {"secret": secret, "code": "000000", "password": PASSWORD}
    reply = await person.post("/me/second-step", data=form)
    assert reply.status_code == 400 and f'value="{secret}"' in reply.text, "the phone has that one already"
    now = pyotp.TOTP(secret).now()
    assert (await person.post("/me/second-step", data={**form, "code": now, "password": "not mine"})).status_code == 401
    reply = await person.post("/me/second-step", data={**form, "code": pyotp.TOTP(secret).now()})
    assert reply.status_code == 200
    with box.database.begin() as connection:
        connection.execute(sa.update(users).values(totp_step=users.c.totp_step - 3))
    return secret, re.findall(r'<li class="code">([\w-]+)</li>', reply.text)


async def test_signing_in_with_the_second_step(box: Any, app: FastAPI, person: httpx.AsyncClient) -> None:
    secret, codes = await second_step_on(box, person)
    assert len(codes) == 10 and codes[0] not in (await person.get("/me/second-step")).text
    async with browser(app) as other:
        assert (await other.get("/sign-in/code")).headers["location"] == "/"
        reply = await sign_in(other, NAME, PASSWORD)
        assert reply.headers["location"] == "/sign-in/code" and "session" not in other.cookies
        for path in ("/chat", "/me", "/me/password", "/library"):
            assert (await other.get(path)).headers["location"] == "/"
        page = await other.get("/sign-in/code")
        assert "six digits" in page.text
        form = {"csrf": await csrf(other, "/sign-in/code"), "code": "000000"}
        reply = await other.post("/sign-in/code", data=form)
        assert reply.status_code == 401 and "not right" in reply.text
        reply = await other.post("/sign-in/code", data={**form, "code": pyotp.TOTP(secret).now()})
        assert reply.headers["location"] == "/chat" and "step" not in other.cookies
        assert (await other.get("/chat")).status_code == 200
    async with browser(app) as paper:
        await sign_in(paper, NAME, PASSWORD)
        form = {"csrf": await csrf(paper, "/sign-in/code"), "code": codes[0]}
        assert (await paper.post("/sign-in/code", data=form)).headers["location"] == "/chat"
    assert "9 recovery codes are left" in (await person.get("/me/second-step")).text


async def test_the_second_step_signs_one_out_everywhere_else(box: Any, app: FastAPI, person: httpx.AsyncClient) -> None:
    async with browser(app) as other:
        await sign_in(other, NAME, PASSWORD)
        page = (await person.get("/me/second-step")).text
        assert "Turning it on signs you out everywhere else." in page
        secret = re.findall(r'name="secret" value="([A-Z2-7]{32})"', page)[0]
        form = {"secret": secret, "code": pyotp.TOTP(secret).now(), "password": "not mine"}
        assert (await person.post("/me/second-step", data=form)).status_code == 401
        assert (await other.get("/me")).status_code == 200, "nothing has happened yet"
        page = (await person.post("/me/second-step", data={**form, "password": PASSWORD})).text
        assert "The second step is on. You are signed out everywhere else." in page
        assert (await other.get("/chat")).headers["location"] == "/" and (await person.get("/chat")).status_code == 200
        other.cookies.set("session", box.accounts.renew(box.accounts.named(NAME).id), domain="localhost.local")
        assert (await other.get("/me")).status_code == 200
        page = (await person.post("/me/second-step/codes", data={"password": PASSWORD})).text
        assert "signed out" not in page and (await other.get("/me")).status_code == 200
        reply = await person.post("/me/second-step/off", data={"password": PASSWORD})
        assert "You are signed out everywhere else." in (await person.get(reply.headers["location"])).text
        assert (await other.get("/chat")).headers["location"] == "/"


async def test_turning_the_second_step_off(box: Any, person: httpx.AsyncClient) -> None:
    await second_step_on(box, person)
    for path in ("/me/second-step/off", "/me/second-step/codes"):
        assert (await person.post(path, data={"password": "not mine"})).status_code == 401
    page = (await person.post("/me/second-step/codes", data={"password": PASSWORD})).text
    assert page.count('<li class="code">') == 10
    assert (await person.post("/me/second-step/off", data={"password": PASSWORD})).headers["location"] == "/me?done=off"
    assert not box.people.list()[0].totp
    assert [row.verb for row in box.audit.entries()] == ["second step on", "second step codes", "second step off"]


# --- a class's code --------------------------------------------------------------------------------------------------
@pytest.fixture
def lesson(box: Any) -> Any:
    made = box.classes.add("2b <i>")
    teacher, _ = box.people.add("Ann", TEACHER, password=PASSWORD)
    box.people.join(teacher.id, made.id, teaches=True)
    for name in ("mia", "noah"):
        box.people.join(box.people.add(name, PUPIL, full_name=f"{name.title()} <b>")[0].id, made.id)
    box.people.add("Head", "administrator", password=PASSWORD)
    return made


async def test_a_pupil_comes_in_by_the_class(box: Any, app: FastAPI, lesson: Any) -> None:
    async with browser(app) as ann, browser(app) as mia:
        assert "/class" not in (await mia.get("/")).text
        await sign_in(ann, "Ann", PASSWORD)
        page = (await ann.post(f"/classes/{lesson.id}/code", data={"hours": "1"})).text
        code = re.findall(r'class="board"[^>]*>([\w-]+)<', page)[0]
        assert 'href="/class"' in (await mia.get("/")).text
        form = {"csrf": await csrf(mia, "/class"), "code": "XXX-XXX"}
        reply = await mia.post("/class", data=form)
        assert reply.status_code == 401 and 'value="XXX-XXX"' in reply.text
        page = (await mia.post("/class", data={**form, "code": code})).text
        picks = dict(re.findall(r'value="(\w{16})"><span dir="auto">(\w+) &lt;b&gt;<', page))
        assert sorted(picks.values()) == ["Mia", "Noah"] and "<i>" not in page and code not in str(mia.cookies)
        id = next(id for id, name in picks.items() if name == "Mia")
        reply = await mia.post("/class", data={**form, "code": code, "pupil": id})
        assert reply.headers["location"] == "/chat"
        page = (await mia.get("/chat")).text
        assert page and "mia" in page
        for path in ("/me/password", "/me/second-step", "/keys", "/admin/people"):
            assert (await mia.get(path)).status_code == 403, path
        assert "Change your password" not in (await mia.get("/me")).text
        assert (await ann.post(f"/classes/{lesson.id}/code/end")).status_code == 303
        assert (await mia.get("/chat")).headers["location"] == "/"
    assert [(row.verb, row.thing) for row in box.audit.entries()] == [
        ("class code", lesson.id), ("sign in by class code", id), ("class code ended", lesson.id),
    ]  # fmt: skip


async def test_a_code_is_renewed_and_the_older_one_opens_nothing(box: Any, app: FastAPI, lesson: Any) -> None:
    async with browser(app) as ann, browser(app) as mia:
        await sign_in(ann, "Ann", PASSWORD)
        codes = []
        for hours in ("1", "2"):
            page = (await ann.post(f"/classes/{lesson.id}/code", data={"hours": hours})).text
            codes += re.findall(r'class="board"[^>]*>([\w-]+)<', page)
        form = {"csrf": await csrf(mia, "/class")}
        assert len(set(codes)) == 2
        for code, status in zip(codes, (401, 200), strict=True):
            assert (await mia.post("/class", data={**form, "code": code})).status_code == status
        answers = [(await mia.post("/class", data={**form, "code": f"guess{number}"})).status_code for number in range(61)]
        assert answers.count(401) == 59 and answers[-1] == 503, "with the one above, sixty are free"
        assert len([row for row in box.audit.entries() if row.verb == "class code"]) == 2


async def test_a_name_that_is_taken_needs_the_teacher(box: Any, app: FastAPI, lesson: Any) -> None:
    code = box.accounts.class_codes.make(lesson.id)
    id = next(one.id for one in box.people.list() if one.name == "mia")
    async with browser(app) as ann, browser(app) as first, browser(app) as mia:
        await sign_in(ann, "Ann", PASSWORD)
        assert "In by the code" not in (await ann.get(f"/classes/{lesson.id}")).text
        form = {"csrf": await csrf(first, "/class"), "code": code, "pupil": id}
        assert (await first.post("/class", data=form)).headers["location"] == "/chat"
        form = {"csrf": await csrf(mia, "/class"), "code": code, "pupil": id}
        reply = await mia.post("/class", data=form)
        assert reply.status_code == 409 and "tell your teacher" in reply.text and "session" not in mia.cookies
        page = (await ann.get(f"/classes/{lesson.id}")).text
        assert "somebody else wanted to sign in as Mia &lt;b&gt;" in page
        free = re.findall(r'action="(/classes/\w+/code/\w+/free)"', page)
        assert free == [f"/classes/{lesson.id}/code/{id}/free"]
        assert (await ann.post(free[0])).headers["location"] == f"/classes/{lesson.id}#class-code"
        assert (await first.get("/chat")).headers["location"] == "/", "whoever had it is out"
        assert "somebody else wanted" not in (await ann.get(f"/classes/{lesson.id}")).text
        assert (await mia.post("/class", data=form)).headers["location"] == "/chat"
        form = {"csrf": await csrf(mia, "/me"), "code": code, "pupil": id}
        assert (await mia.post("/class", data=form)).headers["location"] == "/chat", "once more in the same browser"
    assert "class name freed" in [row.verb for row in box.audit.entries()]


async def test_only_who_teaches_a_class_makes_its_code(box: Any, app: FastAPI, lesson: Any) -> None:
    box.people.add("Ben", TEACHER, password=PASSWORD)
    box.people.add("Sam", SAFEGUARDING, password=PASSWORD)
    for name, status in (("Ben", 404), ("Sam", 404), ("Head", 200)):
        async with browser(app) as other:
            await sign_in(other, name, PASSWORD)
            assert (await other.post(f"/classes/{lesson.id}/code", data={"hours": "1"})).status_code == status, name
            assert (await other.post("/classes/nothing/code")).status_code == 404
            for hours in ("0", "99", "x", "-1", "1e9", "٣"):
                reply = await other.post(f"/classes/{lesson.id}/code", data={"hours": hours})
                assert reply.status_code == (400 if status == 200 else 404)


# --- what ends within seconds ----------------------------------------------------------------------------------------
ENDINGS = {
    "disabled": lambda box, id: box.people.change(id, disabled=True),
    "removed": lambda box, id: box.people.remove(id),
    "password": lambda box, id: box.people.reset_password(id),
    "role": lambda box, id: box.people.change(id, role=PUPIL),
}


@pytest.mark.parametrize("ending", ENDINGS)
async def test_cookie_key_and_streams_end_within_five_seconds(box: Any, app: FastAPI, ending: str) -> None:
    ann, _ = box.people.add("Ann", TEACHER, password=PASSWORD)
    box.people.add("Head", "administrator")
    box.pool.answer, box.pool.pace = "word " * 3000, 0.05
    _, key = box.accounts.create_key(box.accounts.named("Ann"), "Moodle")
    asked = {"model": "default", "stream": True, "messages": [{"role": "user", "content": "Why are leaves green?"}]}
    async with browser(app) as client, browser(app) as program:
        await sign_in(client, "Ann", PASSWORD)
        reply = await client.post("/chat/ask", data={"question": "Why?"}, headers={"accept": "application/json"})
        page = asyncio.create_task(client.get(f"/chat/stream/{reply.json()['turn']}"))
        v1 = asyncio.create_task(program.post("/v1/chat/completions", json=asked, headers={"authorization": f"Bearer {key}"}))
        while box.pool.open < 2:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(ENDINGS[ending], box, ann.id)
        started = time.monotonic()
        streams = await asyncio.gather(page, v1)
        while box.pool.open:
            await asyncio.sleep(0.01)
        assert time.monotonic() - started < 5, "case 3 of the faults"
        assert "event: done" not in streams[0].text and "[DONE]" not in streams[1].text
        assert (await client.get("/chat")).headers["location"] == "/"
        models = await program.get("/v1/models", headers={"authorization": f"Bearer {key}", "accept": "*/*"})
        assert models.status_code == 401


async def test_a_stream_of_somebody_who_stays_goes_on(box: Any, person: httpx.AsyncClient) -> None:
    box.pool.answer, box.pool.pace = "word " * 60, 0.05
    reply = await person.post("/chat/ask", data={"question": "Why?"}, headers={"accept": "application/json"})
    stream = await person.get(f"/chat/stream/{reply.json()['turn']}")
    assert "event: done" in stream.text
