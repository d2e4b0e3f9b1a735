"""The teacher's pages, and what a pupil finds of them: closed, locked, counted; two teachers on one lesson."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest

from appliance.accounts import Accounts
from appliance.knowledge.shelves import Reader
from appliance.web import presence
from tests.web.conftest import BASE, PASSWORD, csrf

Enter = Callable[[str], Awaitable[httpx.AsyncClient]]
QUESTION = "Why are leaves green?"
CLOSED = "The assistant is closed for 7B"


@pytest.fixture
def school(box: Any) -> Any:
    """Ms Brown and Mr Gray teach 7B with Ann and Ben; Ms White teaches 8C; nobody else is there but an administrator."""
    for name, role in (("head", "administrator"), ("brown", "teacher"), ("gray", "teacher"), ("white", "teacher")):
        box.people.add(name, role, password=PASSWORD)
    for name in ("ann", "ben"):
        box.people.add(name, "pupil", password=PASSWORD, full_name=f"{name.title()} Abara")
    box.mine, box.other = box.classes.add("7B"), box.classes.add("8C", lesson="Secret of 8C")
    for name, made in (("brown", box.mine), ("gray", box.mine), ("white", box.other)):
        box.people.join(box.accounts.named(name).id, made.id, teaches=True)
    for name in ("ann", "ben"):
        box.people.join(box.accounts.named(name).id, box.mine.id)
    return box


@pytest.fixture
async def enter(app: Any, school: Any) -> AsyncIterator[Enter]:
    del school
    async with AsyncExitStack() as open_clients:

        async def enter(name: str) -> httpx.AsyncClient:
            transport = httpx.ASGITransport(app, raise_app_exceptions=True)
            client = httpx.AsyncClient(transport=transport, base_url=BASE, headers={"accept": "text/html"})
            await open_clients.enter_async_context(client)
            data = {"name": name, "password": PASSWORD, "csrf": await csrf(client)}
            assert (await client.post("/sign-in", data=data)).status_code == 303
            client.headers["x-csrf-token"] = await csrf(client, "/chat")
            return client

        yield enter


def lesson(one: Any, **changed: Any) -> dict[str, Any]:
    """The lesson's form as it stands, with something typed into it."""
    names = ("name", "lesson", "subject", "grade", "method", "help_level", "version")
    return {name: str(getattr(one, name)) for name in names} | changed


async def test_a_teacher_makes_a_class_and_teaches_it(school: Any, enter: Enter) -> None:
    brown = await enter("brown")
    made = await brown.post("/classes", data={"name": "9 D"})
    assert made.status_code == 303
    page = (await brown.get(made.headers["location"])).text
    assert "9 D" in page and ">brown<" in page
    listed = (await brown.get("/classes")).text
    assert "9 D" in listed and "7B" in listed and "8C" not in listed and "Secret" not in listed
    again = await brown.post("/classes", data={"name": "8c"})
    assert again.status_code == 409 and 'value="8c"' in again.text, "what was typed is kept"
    school.library.shelves.create("Minutes", readers=[Reader("class", "Heads")])
    assert (await brown.post("/classes", data={"name": "heads"})).status_code == 409
    head = await enter("head")
    assert (await head.post("/classes", data={"name": "Heads"})).status_code == 303
    assert "8C" in (await head.get("/classes")).text, "who may change any class sees all"
    noted = [(row.verb, row.actor) for row in school.audit.entries()]
    assert noted == [("create class", school.accounts.named(name).id) for name in ("brown", "head")]


async def test_a_teacher_sees_who_is_here_and_how_many_asked(
    school: Any, enter: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    brown, ann, white = await enter("brown"), await enter("ann"), await enter("white")
    url = f"/classes/{school.mine.id}"
    await ann.post("/chat/ask", data={"question": "CANARY, before the lesson?"})
    await school.chat.leave(school.accounts.named("ann"))
    assert (await brown.post(f"{url}/open", data={"minutes": "45"})).status_code == 303

    async def told(client: httpx.AsyncClient = brown) -> str:
        part, page = (await client.get(f"{url}/here")).text, (await client.get(url)).text
        assert part.strip() in page and "CANARY" not in page and "<html" not in part, "by the script and by a reload alike"
        return " ".join(part.split())

    first = await told()
    assert "1 of 2 pupils is signed in now." in first and '<li dir="auto">Ann Abara</li>' in first and "Ben" not in first
    assert "0 pupils have asked in this lesson, 0 questions in all." in first
    ben = await enter("ben")
    for question in ("CANARY, why are leaves green?", "CANARY, and in autumn?"):
        await ben.post("/chat/ask", data={"question": question})
        await school.chat.leave(school.accounts.named("ben"))
    both = await told()
    assert "2 of 2 pupils are signed in now." in both and "1 pupil has asked in this lesson, 2 questions in all." in both
    for client in (white, ann):
        reply = await client.get(f"{url}/here")
        assert reply.status_code == 404 and "Abara" not in reply.text
    await ben.post("/sign-out")
    assert "Ben" not in await told(), "who has signed out is gone at once"
    monkeypatch.setattr(presence, "SEEN_SECONDS", -1.0)  # as if two minutes had gone by
    assert "0 of 2 pupils are signed in now." in await told(), "signed in, and not seen for two minutes"
    monkeypatch.undo()
    await brown.post(f"{url}/close")
    assert await told() == "", "there is no lesson"


async def test_one_switch_opens_and_closes(school: Any, enter: Enter) -> None:
    brown, ann, here = await enter("brown"), await enter("ann"), f"/classes/{school.mine.id}"
    assert "Assistant is open" in (await brown.get(here)).text
    await brown.post(f"{here}/close")
    assert "Assistant is closed" in (await brown.get(here)).text
    page = (await ann.get("/chat")).text
    assert f"{CLOSED} at the moment." in page and re.search(r'id="ask"[^>]* hidden', page)
    refused = await ann.post("/chat/ask", data={"question": QUESTION}, headers={"accept": "application/json"})
    assert refused.status_code == 403 and refused.json()["error"]["code"] == "closed"
    plain = await ann.post("/chat/ask", data={"question": QUESTION})
    assert plain.status_code == 403 and CLOSED in plain.text and f">{QUESTION}</textarea>" in plain.text
    assert not re.search(r'id="ask"[^>]* hidden', plain.text), "what was typed stands on the page"
    await brown.post(f"{here}/open", data={"minutes": "45"})
    page = (await brown.get(here)).text
    assert "It closes by itself at" in page and "Open until" in (await brown.get("/classes")).text
    assert (await ann.post("/chat/ask", data={"question": QUESTION})).status_code == 303
    for odd in ("-1", "soon", "9" * 30, "٤٥"):
        assert (await brown.post(f"{here}/open", data={"minutes": odd})).status_code == 303
    assert school.classes.get(school.mine.id).is_open()


async def test_an_exam_ends_what_is_being_written_and_nobody_is_answered_by_v1(school: Any, enter: Enter) -> None:
    brown, ann, here = await enter("brown"), await enter("ann"), f"/classes/{school.mine.id}"
    school.pool.pace = 30.0
    user = school.accounts.named("ann")
    turn = (await school.chat.start(user, QUESTION)).data["turn"]
    assert "1 is being answered" in (await brown.get(here)).text
    await brown.post(f"{here}/exam", data={"on": "1"})
    assert school.chat.conversations.turn(user, turn).state == "stopped"
    assert "has an exam" in (await ann.get("/chat")).text and "Exam: nobody" in (await brown.get(here)).text
    key = _key_of(school.accounts, user)
    body = {"model": "default", "messages": [{"role": "user", "content": QUESTION}]}
    reply = await ann.post("/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"})
    assert reply.status_code == 403 and reply.json()["error"]["code"] == "closed"
    await brown.post(f"{here}/exam", data={"on": ""})
    school.pool.pace = 0.0
    reply = await ann.post("/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"})
    assert reply.status_code == 200


def _key_of(accounts: Accounts, user: Any) -> str:
    """As an administrator may make it for a pupil."""
    from unittest import mock

    with mock.patch.object(accounts, "require"):
        return accounts.create_key(user, "test", "chat")[1]


async def test_the_lesson_is_set_and_the_pupil_sees_its_title(school: Any, enter: Enter) -> None:
    brown, ann, here = await enter("brown"), await enter("ann"), f"/classes/{school.mine.id}"
    atlas = school.library.shelves.create("Atlas", readers=[Reader("everyone")]).id
    staff = school.library.shelves.create("Marks", readers=[Reader("role", "teacher")]).id
    hidden = school.library.shelves.create("Head's own", readers=[Reader("role", "administrator")]).id
    page = (await brown.get(here)).text
    assert "Atlas" in page and "Head" not in page and page.count("Not open to this class") == 1
    typed = lesson(school.mine, lesson="<b>Leaves</b>", help_level="full", method="socratic", strict="1", grade="7")
    reply = await brown.post(here, data={**typed, "collections": [atlas, staff, hidden]})
    assert reply.status_code == 303 and "Saved." in (await brown.get(reply.headers["location"])).text
    now = school.classes.get(school.mine.id)
    assert (now.lesson, now.help_level, now.method, now.strict) == ("<b>Leaves</b>", "full", "socratic", True)
    assert set(school.classes.collections(now.id)) == {atlas, staff}, "what this teacher may not see is not to be chosen"
    assert "&lt;b&gt;Leaves&lt;/b&gt;" in (await ann.get("/chat")).text
    many = {**lesson(now), "collections": [f"{number:016d}" for number in range(300)]}
    assert (await brown.post(here, data=many)).status_code == 303, "as many boxes as there may be"


async def test_the_second_of_two_teachers_sees_both(school: Any, enter: Enter) -> None:
    brown, gray, here = await enter("brown"), await enter("gray"), f"/classes/{school.mine.id}"
    seen = school.classes.get(school.mine.id)
    await brown.post(f"{here}/close")
    first = lesson(seen, lesson="Leaves", help_level="examples", subject="Biology")
    assert (await brown.post(here, data=first)).status_code == 303, "opening and closing is no edit"
    reply = await gray.post(here, data=lesson(seen, lesson="Roots", grade="7"))
    assert reply.status_code == 409 and "Somebody else has changed this class" in reply.text
    assert 'value="Roots"' in reply.text and 'name="grade" value="7"' in reply.text, "what was typed is kept"
    for theirs in ("Leaves", "Worked examples", "Biology"):
        assert f'<b dir="auto">{theirs}</b>' in reply.text
    assert school.classes.get(seen.id).lesson == "Leaves"
    version = re.search(r'name="version" value="(\d+)"', reply.text)
    assert version
    again = await gray.post(here, data=lesson(seen, lesson="Roots", version=version[1]))
    assert again.status_code == 303 and school.classes.get(seen.id).lesson == "Roots"


@pytest.mark.parametrize(
    ("field", "value", "status"),
    [
        ("lesson", "x" * 121, 400),
        ("name", " ", 400),
        ("name", "8c", 409),
        ("method", "dancing", 400),
        ("help_level", "all", 400),
        ("version", "", 409),
        ("version", "9" * 40, 409),
    ],
)
async def test_a_faulty_lesson_comes_back_filled_in(school: Any, enter: Enter, field: str, value: str, status: int) -> None:
    brown, before = await enter("brown"), school.classes.get(school.mine.id)
    reply = await brown.post(f"/classes/{before.id}", data={**lesson(before, grade="7 or 8"), field: value})
    assert reply.status_code == status and 'role="alert"' in reply.text and 'value="7 or 8"' in reply.text
    assert school.classes.get(before.id) == before


async def test_people_come_and_go(school: Any, enter: Enter) -> None:
    brown, here = await enter("brown"), f"/classes/{school.mine.id}"
    school.people.add("carl", "pupil")
    reply = await brown.post(f"{here}/people", data={"people": "Carl\nnobody\nwhite\n", "part": "pupil"})
    assert reply.status_code == 404 and ">nobody\nwhite</textarea>" in reply.text, "what could not be used comes back"

    def told(part: str) -> list[str]:
        return [one.name for one in school.classes.members(school.mine.id) if one.part == part]

    assert told("pupil") == ["ann", "ben", "carl"]
    reply = await brown.post(f"{here}/people", data={"people": "ann", "part": "teacher"})
    assert reply.status_code == 404 and told("teacher") == ["brown", "gray"], "a pupil teaches nobody"
    assert (await brown.post(f"{here}/people", data={"people": "white", "part": "teacher"})).status_code == 303
    for name in ("carl", "white", "gray"):
        gone = school.accounts.named(name).id
        assert (await brown.post(f"{here}/people/{gone}/remove")).status_code == 303
    assert (told("pupil"), told("teacher")) == (["ann", "ben"], ["brown"])
    me = school.accounts.named("brown").id
    last = await brown.post(f"{here}/people/{me}/remove")
    assert last.status_code == 409 and "last teacher" in last.text and told("teacher") == ["brown"]
    assert (await brown.post(f"{here}/people/{gone}/remove")).status_code == 404


async def test_another_teachers_class_is_not_there(school: Any, enter: Enter) -> None:
    white, ann = await enter("white"), await enter("ann")
    for client in (white, ann):
        assert (await client.get(f"/classes/{school.mine.id}")).status_code == 404
        assert (await client.post(f"/classes/{school.mine.id}/close")).status_code == 404
    assert (await ann.get("/classes")).status_code == 403 and "/classes" not in (await ann.get("/chat")).text
    assert school.classes.get(school.mine.id).is_open()
    box = school
    box.people.join(box.accounts.named("ann").id, box.mine.id, teaches=True)
    assert (await ann.get(f"/classes/{box.mine.id}")).status_code == 404, "whoever is a pupil teaches nobody"


async def test_archive_and_undo(school: Any, enter: Enter) -> None:
    brown, here = await enter("brown"), f"/classes/{school.mine.id}"
    await brown.post(f"{here}/archive")
    assert f'href="{here}"' not in (await brown.get("/classes")).text
    assert f'href="{here}"' in (await brown.get("/classes/archive")).text
    assert "Undo" in (await brown.get(here)).text
    await brown.post(f"{here}/archive", data={"undo": "1"})
    assert f'href="{here}"' in (await brown.get("/classes")).text
    verbs = [row.verb for row in school.audit.entries(thing=school.mine.id)]
    assert verbs == ["archive class", "restore class"]


async def test_own_use_is_numbers_without_words(school: Any, enter: Enter) -> None:
    brown, ann, here = await enter("brown"), await enter("ann"), f"/classes/{school.mine.id}"
    assert "Nobody of this class has asked" in (await brown.get(here)).text
    for question in ("Why are leaves green?", "A secret question about xyzzy"):
        await ann.post("/chat/ask", data={"question": question})
    page = (await brown.get(here)).text
    assert "2 questions in the last 14 days." in page and "1 pupil asked this hour" in page and "<svg" in page
    assert "xyzzy" not in page and "leaves green" not in page


async def test_what_is_left_is_told_before_it_bites(school: Any, enter: Enter) -> None:
    ann = await enter("ann")
    school.chat.quotas.set("role", "pupil", "hour", 3)
    assert "left this hour" not in (await ann.get("/chat")).text

    async def ask() -> httpx.Response:
        return await ann.post("/chat/ask", data={"question": QUESTION}, headers={"accept": "application/json"})

    assert (await ask()).json()["left"].strip() == ""
    assert "1 question left this hour." in (await ask()).json()["left"]
    assert "1 question left this hour." in (await ann.get("/chat")).text
    assert "0 questions left this hour." in (await ask()).json()["left"]
    used = await ask()
    assert used.status_code == 429 and 0 < int(used.headers["retry-after"]) <= 3600
    assert "All 3 questions have been asked this hour." in used.json()["error"]["message"]
    school.chat.quotas.remove("role", "pupil", "hour")
    assert (await ask()).status_code == 200


async def test_a_pupil_of_two_open_classes_says_for_which_it_is(school: Any, enter: Enter) -> None:
    ann = await enter("ann")
    user = school.accounts.named("ann")
    school.people.join(user.id, school.other.id)
    page = (await ann.get("/chat")).text
    assert page.count("<option") == 2 and "8C: Secret of 8C" in page
    data = {"question": QUESTION, "class_id": school.other.id}
    begun = (await ann.post("/chat/ask", data=data, headers={"accept": "application/json"})).json()
    await ann.get(f"/chat/stream/{begun['turn']}")
    page = (await ann.get(begun["url"])).text
    assert "<option" not in page and '<b dir="auto">Secret of 8C</b>' in page
    assert "Today's lesson: Secret of 8C." in school.pool.requests[0].messages[0].content
