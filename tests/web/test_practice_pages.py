"""Practice as plain forms: the lesson, its feedback, mentors and scenes, without a script; and no door for pupils."""

from __future__ import annotations

import gettext
import html
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from appliance.asking import ask_text
from appliance.errors import Forbidden
from appliance.practice import criteria, feedback, portfolio
from appliance.practice.portfolio import NO_RATING
from appliance.practice.scenario import written
from appliance.tables import rehearsals
from appliance.web import show, words
from appliance.web.sentences import sentences
from tests.web.staff import signed_in

SCENE = "/practice/scenes/larger-denominator"
ASKS = "What do you think is more, a third or a fifth? How do you know?"


@pytest.fixture
async def people(app: Any, box: Any) -> AsyncIterator[dict[str, httpx.AsyncClient]]:
    async with AsyncExitStack() as stack:
        roles = {"brown": "teacher", "white": "teacher", "ann": "pupil"}
        yield {name: await stack.enter_async_context(signed_in(app, box, name, role)) for name, role in roles.items()}


@pytest.fixture
def brown(people: dict[str, httpx.AsyncClient]) -> httpx.AsyncClient:
    return people["brown"]


async def begin(client: httpx.AsyncClient, **form: str) -> str:
    reply = await client.post(f"{SCENE}/begin", data=form)
    assert reply.status_code == 303
    return str(reply.headers["location"])


async def leaf(client: httpx.AsyncClient, lesson: str) -> str:
    found = re.search(r'name="shown" value="(\w*)"', (await client.get(lesson)).text)
    assert found
    return found[1]


async def say(client: httpx.AsyncClient, lesson: str, words: str = ASKS, **form: str) -> httpx.Response:
    return await client.post(f"{lesson}/say", data={"words": words, "shown": await leaf(client, lesson), **form})


def plain(page: httpx.Response) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page.text)).split())


# --- a lesson ------------------------------------------------------------------------------------------------------------
async def test_scenes_are_sifted_and_lessons_under_way_come_first(brown: httpx.AsyncClient) -> None:
    page = await brown.get("/practice")
    assert page.text.count('href="/practice/scenes/') >= 24 and "Go on with" not in page.text
    some = await brown.get("/practice", params={"category": "misconception", "phase": "primary"})
    assert 0 < some.text.count('href="/practice/scenes/') < 24 and "behaviour ·" not in some.text
    odd = await brown.get("/practice", params={"category": "<b>", "phase": "x" * 500})
    assert odd.text.count('href="/practice/scenes/') >= 24, "a filter that is unknown hides nothing"
    lesson = await begin(brown)
    page = await brown.get("/practice")
    assert page.text.index(lesson) < page.text.index('href="/practice/scenes/') and "Go on with" in page.text


async def test_a_lesson_from_scene_to_feedback_to_a_second_attempt(brown: httpx.AsyncClient) -> None:
    scene = await brown.get(SCENE)
    assert NO_RATING in plain(scene) and "Who is there" in plain(scene) and "You have 24 minutes" in plain(scene)
    lesson = await begin(brown)
    room = await brown.get(lesson)
    assert "Practice Simulated pupils." in plain(room) and "24 minutes left" in plain(room)
    assert re.search(r"Amara listens\w*, (is|looks) \w+", plain(room)) and not re.search(
        r"(mood|attention): ?-?\d", plain(room)
    )
    reply = await say(brown, lesson, waited="5.0")
    assert reply.status_code == 303 and reply.headers["location"] == f"{lesson}#now"
    room = await brown.get(lesson)
    assert ASKS in plain(room) and room.text.count('class="beat') >= 1
    assert (await say(brown, lesson, "The rule is simple: it is a third.")).status_code == 303
    assert (await brown.post(f"{lesson}/finish")).headers["location"] == f"{lesson}/feedback"
    assert (await brown.get(lesson)).headers["location"] == f"{lesson}/feedback"
    told = await brown.get(f"{lesson}/feedback")
    assert NO_RATING in plain(told) and "One thing to try" in plain(told)
    assert re.search(r"<blockquote[^>]*>What do you think is more", told.text), "their own words, quoted"
    assert "asks what a pupil thinks or knows" in plain(told) and "of all words" in plain(told).lower()
    turns = re.findall(r'name="turn" value="(\w+)"', told.text)
    again = (await brown.post(f"{lesson}/rewind", data={"turn": turns[1]})).headers["location"].removesuffix("#now")
    assert again != lesson and plain(await brown.get(again)).count(ASKS) == 1
    await say(brown, again, "Why do you think so, Amara? What would you draw?")
    await brown.post(f"{again}/finish")
    second = await brown.get(f"{again}/feedback")
    href = re.search(r'href="(/practice/lessons/\w+/compare/\w+)"', second.text)
    assert href and href[1].startswith(f"{lesson}/")
    compared = await brown.get(href[1])
    assert (
        compared.status_code == 200 and "You did more of this than before." in plain(compared) and NO_RATING in plain(compared)
    )
    progress = await brown.get("/practice/progress")
    assert NO_RATING in plain(progress) and "Lines of the rubric, week by week" in plain(progress)
    copy = await brown.get("/practice/export.md")
    assert copy.headers["content-disposition"].startswith("attachment") and "What do you think is more" in copy.text
    assert (await brown.get("/practice/export.json")).json()["rehearsals"][0]["turns"][0]["said"] == ASKS
    assert (await brown.get("/practice/export.pdf")).status_code == 404
    assert (await brown.post(f"{lesson}/delete")).headers["location"] == "/practice?deleted=1"
    assert (await brown.get(f"{lesson}/feedback")).status_code == 404


async def test_what_was_typed_comes_back_through_every_fault(box: Any, brown: httpx.AsyncClient) -> None:
    lesson = await begin(brown)
    first = await leaf(brown, lesson)
    await say(brown, lesson)
    late = await brown.post(f"{lesson}/say", data={"words": "From <b>the other tab", "shown": first})
    assert late.status_code == 409 and "From &lt;b&gt;the other tab</textarea>" in late.text and "another tab" in plain(late)
    newest = re.search(r'name="shown" value="(\w*)"', late.text)
    assert newest and newest[1] == await leaf(brown, lesson), "sent once more it is said"
    empty = await say(brown, lesson, "  ")
    assert empty.status_code == 400 and "Nothing was said." in plain(empty)
    long = await say(brown, lesson, "word " * 2000)
    assert long.status_code == 413 and "word word</textarea>" in long.text.replace(" </textarea>", "</textarea>")
    with box.database.begin() as connection:
        connection.execute(sa.update(rehearsals).values(until=time.time() - 1))
    over = await brown.post(f"{lesson}/say", data={"words": "Too late now", "shown": newest[1]})
    assert over.status_code == 409 and "The time of this lesson is over." in plain(over)
    assert "Too late now</textarea>" in over.text and ASKS in plain(over), "with the feedback, and nothing is lost"


async def test_going_back_in_a_lesson_shows_the_other_tries(brown: httpx.AsyncClient) -> None:
    lesson = await begin(brown)
    await say(brown, lesson, "Listen, I tell you.")
    turn = await leaf(brown, lesson)
    await brown.post(f"{lesson}/rewind", data={"turn": turn})
    room = await brown.get(lesson)
    assert "You went back: 1 other try" in plain(room) and "Listen, I tell you." in plain(room)
    await say(brown, lesson)
    assert "1 other try" in plain(await brown.get(lesson))
    await brown.post(f"{lesson}/show", data={"turn": turn})
    assert await leaf(brown, lesson) == turn
    assert (await brown.post(f"{lesson}/rewind", data={"turn": "nothing"})).status_code == 404


async def test_the_page_says_where_the_lines_come_from(box: Any, brown: httpx.AsyncClient) -> None:
    lesson = await begin(brown)
    await say(brown, lesson)
    assert "Written lines: the model gave none in time that fit." in plain(await brown.get(lesson)), "it answers no JSON"
    box.pool.model = None
    other = await begin(brown)
    await say(brown, other)
    assert "no model words them now" in plain(await brown.get(other))


class Marked(gettext.NullTranslations):
    """Every sentence that is looked up comes back between marks."""

    def gettext(self, message: str) -> str:
        return f"«{message}»"

    def ngettext(self, msgid1: str, msgid2: str, n: int) -> str:
        return f"«{msgid1 if n == 1 else msgid2}»"


@pytest.fixture
def marked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(words, "catalogue", lambda _language: Marked())
    show._templates.cache_clear()
    yield
    show._templates.cache_clear()


@pytest.mark.usefixtures("marked")
async def test_what_is_told_of_a_lesson_is_said_in_the_readers_language(brown: httpx.AsyncClient) -> None:
    lesson = await begin(brown)
    await brown.post(f"{lesson}/finish")
    assert f"«{feedback.NOTHING_SAID}»" in plain(await brown.get(f"{lesson}/feedback"))
    again = await begin(brown)
    await say(brown, again, "The rule is simple: it is a third. " * 6)
    wrong = await say(brown, again, " ")
    assert "«Nothing was said.» «Write what you would say to the class.»" in plain(wrong)
    await brown.post(f"{again}/finish")
    told = plain(await brown.get(f"{again}/feedback"))
    rubric = written()["larger-denominator"].rubric
    assert all(f"«{one.name}»" in told and f"«{one.levels[0]}»" in told for one in rubric)
    assert any(f"«{one.try_this}»" in told for one in rubric)
    compared = plain(await brown.get(f"{lesson}/compare/{again.rpartition('/')[2]}"))
    assert f"«{feedback.AS_BEFORE}»" in compared and f"«{rubric[0].levels[0]}»" in compared
    copy = (await brown.get("/practice/export.md")).text
    assert "«Teaching practice»" in copy and f"«{rubric[0].name}»".split()[0] in copy


def test_whatever_practice_says_by_itself_is_there_to_be_translated() -> None:
    found = {one for one, _ in sentences()}
    assert {*feedback.SENTENCES, *criteria.SENTENCES, *portfolio.SENTENCES} <= found and len(criteria.SENTENCES) == 45
    assert {"Nothing was said.", "This lesson went on in another tab.", "The time of this lesson is over."} <= found
    assert {"This lesson is finished.", "There is no such turn in this lesson.", "You cannot be your own mentor."} <= found


# --- mentors -----------------------------------------------------------------------------------------------------------------
async def test_a_mentor_reads_writes_and_is_seen(box: Any, people: dict[str, httpx.AsyncClient]) -> None:
    brown, white = people["brown"], people["white"]
    lesson = await begin(brown)
    await say(brown, lesson)
    turn = await leaf(brown, lesson)
    await brown.post(f"{lesson}/finish")
    assert (await white.get(f"{lesson}/feedback")).status_code == 404
    wrong = await brown.post("/practice/mentors", data={"name": "ann"})
    assert wrong.status_code == 404 and 'value="ann"' in wrong.text
    assert (await brown.post("/practice/mentors", data={"name": "white"})).status_code == 303
    me = box.accounts.named("brown").id
    assert f'href="/practice/shared/{me}"' in (await white.get("/practice/mentors")).text
    assert "Lessons of brown" in plain(await white.get(f"/practice/shared/{me}"))
    read = await white.get(f"{lesson}/feedback")
    assert ASKS in plain(read) and "Try again from here" not in read.text and "Delete" not in read.text
    kept = await white.post(f"/practice/notes/{turn}", data={"note": "Good <start>", "better": "", "train": "1"})
    assert kept.status_code == 400 and "Good &lt;start&gt;</textarea>" in kept.text
    form = {"note": "Good <start>", "better": "And why?", "train": "1"}
    assert (await white.post(f"/practice/notes/{turn}", data=form)).status_code == 303
    seen = await brown.get(f"{lesson}/feedback")
    assert "white writes Good <start> Could be said: And why?" in plain(seen) and "waits for review" in plain(seen)
    review = await white.get("/review")
    assert "And why?" in plain(review) and ASKS not in plain(review)
    ends = {"owner": me, "mentor": box.accounts.named("white").id}
    assert (await brown.post("/practice/mentors/end", data=ends)).status_code == 303
    assert (await white.get(f"{lesson}/feedback")).status_code == 404


# --- scenes of one's own ---------------------------------------------------------------------------------------------
async def test_a_scene_is_written_corrected_approved_and_put_away(people: dict[str, httpx.AsyncClient]) -> None:
    brown, white = people["brown"], people["white"]
    given = await brown.get("/practice/write", params={"like": "larger-denominator"})
    found = re.search(r'<textarea id="scene"[^>]*>\n(.*?)</textarea>', given.text, re.S)
    assert found
    text = html.unescape(found[1]).replace("One eighth must be more", "Mine: <eighths>")
    broken = await brown.post("/practice/write", data={"scene": text.replace("minutes = 12", "minutes = 900")})
    assert broken.status_code == 400 and "minutes" in plain(broken) and "Mine: &lt;eighths&gt;" in broken.text
    assert (await brown.post("/practice/write", data={"scene": "title = ["})).status_code == 400
    address = (await brown.post("/practice/write", data={"scene": text})).headers["location"].partition("?")[0]
    assert "Mine: <eighths> Draft" in plain(await brown.get("/practice"))
    assert "Mine: <eighths>" not in plain(await white.get("/practice"))
    assert (await brown.post(f"{address}/begin", data={"version": "1"})).status_code == 303, "its maker rehearses a draft"
    again = await brown.post(f"{address}/edit", data={"scene": text, "seen": "1"})
    assert again.headers["location"] == f"{address}?version=2&saved=draft"
    late = await brown.post(f"{address}/edit", data={"scene": text, "seen": "1"})
    assert late.status_code == 409 and "Mine: &lt;eighths&gt;" in late.text
    assert (await brown.post(f"{address}/approve", data={"version": "2"})).status_code == 403
    assert (await white.post(f"{address}/approve", data={"version": "1"})).status_code == 409
    assert (await white.post(f"{address}/approve", data={"version": "2"})).status_code == 303
    assert "Approved by white." in plain(await brown.get(address)) and "Mine: <eighths>" in plain(await white.get("/practice"))
    file = await white.get(f"{address}/file")
    assert file.headers["content-type"].startswith("application/toml") and "Mine: <eighths>" in file.text
    assert (await white.post(f"{address}/archive", data={"version": "2"})).status_code == 403
    put = (await brown.post(f"{address}/archive", data={"version": "2"})).headers["location"]
    assert "In the archive" in plain(await brown.get(put)) and "Begin" not in plain(await brown.get(put))
    await brown.post(f"{address}/archive", data={"version": "2", "undo": "1"})
    assert (await brown.get(address)).status_code == 200


async def test_a_scene_that_no_model_writes_leaves_the_wish_in_the_form(box: Any, brown: httpx.AsyncClient) -> None:
    wish = {"challenge": "Nobody <answers>.", "subject": "history", "grade": "9", "class_profile": "Quiet ones"}
    reply = await brown.post("/practice/generate", data=wish)
    assert reply.status_code == 503 and "Nobody &lt;answers&gt;.</textarea>" in reply.text and 'value="history"' in reply.text
    assert len(box.pool.requests) == 3, "it was tried three times"
    reply = await brown.post("/practice/generate", data=wish | {"language": "ar"})
    assert " selected>العربية</option>" in reply.text and " selected>English</option>" not in reply.text
    told = "\n".join(one.content for one in box.pool.requests[-1].messages)
    assert "العربية" in told, "the model is told the language by its name"
    refused = await brown.post("/practice/generate", data=wish | {"language": "<tag>"})
    assert refused.status_code == 400 and "Nobody &lt;answers&gt;.</textarea>" in refused.text
    box.pool.model = None
    assert "so none can be written for you" in plain(await brown.get("/practice/write"))


# --- no door for pupils ----------------------------------------------------------------------------------------------
async def test_no_pupil_gets_in_by_any_door(box: Any, people: dict[str, httpx.AsyncClient]) -> None:
    ann, brown = people["ann"], people["brown"]
    lesson = await begin(brown)
    for path in ("/practice", SCENE, "/practice/progress", "/practice/mentors", "/practice/write", lesson):
        assert (await ann.get(path)).status_code in (403, 404), path
    assert (await ann.post(f"{SCENE}/begin")).status_code == 403
    assert 'href="/practice"' not in (await ann.get("/chat")).text and 'href="/practice"' in (await brown.get("/chat")).text
    user = box.accounts.named("ann")
    inputs = {"name": "Mia", "state": "tired", "intent": "yawns", "challenge": "x"}
    for module in ("student_reaction", "scenario_generator"):
        with pytest.raises(Forbidden):
            await ask_text(box.chat, user, module, inputs)
    form = {"question": "Why are leaves green?", "module": "student_reaction"}
    assert (await ann.post("/chat/ask", data=form)).status_code in (200, 303)
    async for _ in box.chat.follow(user, box.chat.conversations.load(user, box.chat.conversations.list(user)[0].id)[1][-1].id):
        pass
    assert {one.task for one in box.pool.requests} == {"teacher_responder"}, "a field that a page does not have does nothing"


async def test_a_key_cannot_name_a_module(box: Any, visitor: httpx.AsyncClient, key: str) -> None:
    body = {"model": "default", "messages": [{"role": "user", "content": "Yawn."}], "module": "student_reaction"}
    reply = await visitor.post("/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"})
    assert reply.status_code == 400 and not box.pool.requests
