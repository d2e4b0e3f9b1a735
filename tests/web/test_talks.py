"""The chat's pages over HTTP, as plain forms: branches, feedback, one's own chats, copies, and nothing that was typed lost."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI

from appliance import teaching
from appliance.errors import Conflict
from appliance.tables import conversations
from appliance.tuning.store import ExampleStore
from appliance.web.export import file_name, markdown
from tests.test_reading import EASY, HARD
from tests.web.conftest import BASE, csrf, events
from tests.web.test_pages import HOSTILE, QUESTION, ask

SCRIPT = {"accept": "application/json"}


async def page_of(person: httpx.AsyncClient, url: str) -> str:
    reply = await person.get(url)
    assert reply.status_code == 200, reply.text
    return reply.text


async def finished(person: httpx.AsyncClient, reply: httpx.Response) -> str:
    """The page that a form led to, once its answer is there."""
    assert reply.status_code == 303, reply.text
    url = reply.headers["location"].partition("#")[0]
    turn = re.findall(r'class="turn answer" id="(\w+)"', (await person.get(url)).text)[-1]
    await person.get(f"/chat/stream/{turn}")
    return await page_of(person, url)


def shown(page: str) -> list[str]:
    return re.findall(r'<p class="said" dir="auto">(.*?)</p>', page, re.S)


@pytest.fixture
async def pupil(box: Any, app: FastAPI, person: httpx.AsyncClient) -> AsyncIterator[httpx.AsyncClient]:
    """A pupil who is signed in, beside `person`, who is an administrator."""
    del person
    box.people.add("Ann", "pupil", password="correct horse battery")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BASE, headers={"accept": "text/html"}) as client:
        form = {"csrf": await csrf(client), "name": "Ann", "password": "correct horse battery"}
        assert (await client.post("/sign-in", data=form)).status_code == 303
        client.headers["x-csrf-token"] = await csrf(client, "/chat")
        yield client


# --- branches --------------------------------------------------------------------------------------------------------
async def test_an_answer_is_said_more_simply_through_the_ordinary_road(pupil: httpx.AsyncClient, box: Any) -> None:
    lesson = box.classes.add("4C", grade="4")
    box.people.join(box.accounts.named("Ann").id, lesson.id, teaches=False)
    box.pool.answer = HARD
    data = await ask(pupil, QUESTION)
    page = await page_of(pupil, data["url"])
    assert re.search(r'name="simpler" value="1"><button class="">Say it more simply', page), "too hard: it stands out"
    box.pool.answer = EASY
    page = await finished(pupil, await pupil.post(f"/chat/again/{data['turn']}", data={"simpler": "1"}))
    assert "Answer 2 of 2" in page and "throws green light back" in page
    assert re.search(r'name="simpler" value="1"><button class="link">Say it more simply', page)
    first, second = [one.messages for one in box.pool.requests]
    assert second[-1].content == f"{first[-1].content}\n{teaching.plainer()}" and "short sentences" in teaching.plainer()
    assert second[:-1] == first[:-1] and box.pool.requests[1].temperature > 0
    turn = re.findall(r'class="turn answer" id="(\w+)"', page)[-1]
    assert box.chat.conversations.turn(box.accounts.named("Ann"), turn).facts["reading"]["inside"]
    await finished(pupil, await pupil.post(f"/chat/again/{turn}"))
    assert teaching.plainer() not in box.pool.requests[-1].messages[-1].content, "another answer is only another one"


async def test_what_no_model_wrote_cannot_be_said_more_simply(person: httpx.AsyncClient, box: Any) -> None:
    box.pool.model = None
    assert "Say it more simply" not in await page_of(person, (await ask(person, QUESTION))["url"])
    box.pool.model, box.pool.starter = "green-1", True
    assert "Say it more simply" not in await page_of(person, (await ask(person, QUESTION))["url"])


async def test_branches_by_plain_forms(person: httpx.AsyncClient, box: Any) -> None:
    data = await ask(person, QUESTION)
    url, first = data["url"], data["turn"]
    box.pool.answer = "Another answer"
    page = await finished(person, await person.post(f"/chat/again/{first}"))
    assert "Another answer" in page and "Answer 2 of 2" in page and "Leaves look" not in page
    forward = re.search(r'action="(/chat/\w+/show)".*?value="(\w+)" aria-label="Previous answer"', page, re.S)
    assert forward and forward[2] == first
    reply = await person.post(forward[1], data={"turn": first})
    assert reply.headers["location"] == f"{url}#{first}"
    page = await page_of(person, url)
    assert "Leaves look" in page and "Answer 1 of 2" in page and f'name="shown" value="{first}"' in page
    question = re.findall(r'name="edits" value="(\w+)"', page)[0]
    form = {"conversation": url.split("/")[-1], "edits": question, "question": "Why are apples red?"}
    page = await finished(person, await person.post("/chat/ask", data=form))
    assert shown(page) == ["Why are apples red?"] and "Question 2 of 2" in page
    assert shown(await page_of(person, f"{url}?at={first}")) == [QUESTION], "a link to any turn shows its branch"


async def test_a_refused_edit_comes_back_with_what_was_typed(person: httpx.AsyncClient) -> None:
    data = await ask(person, QUESTION)
    form = {"conversation": data["url"].split("/")[-1], "edits": data["question"], "question": "é" * 20_001}
    reply = await person.post("/chat/ask", data=form)
    assert reply.status_code == 413 and reply.text.count("20001 characters") == 1
    opened = re.search(r'<details class="edit" open>.*?20001 characters.*?<textarea[^>]*>(é+)</textarea>', reply.text, re.S)
    assert opened and len(opened[1]) == 20_001
    assert re.search(r'<textarea id="question"[^>]*></textarea>', reply.text)


async def test_a_message_of_a_megabyte_is_refused_and_kept(person: httpx.AsyncClient) -> None:
    typed = "leaf " * 200_000
    reply = await person.post("/chat/ask", data={"question": typed})
    assert reply.status_code == 413 and "20000 can be sent at once" in reply.text and typed in reply.text
    assert "maxlength" not in re.search(r'<textarea id="question"[^>]*>', reply.text)[0], "a browser would cut it silently"  # type: ignore[index]
    reply = await person.post("/chat/ask", data={"question": typed}, headers=SCRIPT)
    assert reply.status_code == 413 and reply.json()["error"]["hint"] == "Ask in parts."


async def test_while_one_answer_is_written_another_is_refused_with_the_page(person: httpx.AsyncClient, box: Any) -> None:
    data = await ask(person, QUESTION)
    box.pool.pace = 0.5
    await person.post("/chat/ask", data={"question": "And now?", "conversation": data["url"].split("/")[-1]}, headers=SCRIPT)
    reply = await person.post(f"/chat/again/{data['turn']}")
    assert reply.status_code == 409 and "is not finished" in reply.text and "And now?" in reply.text


async def test_the_script_gets_what_another_tab_asked_meanwhile(person: httpx.AsyncClient) -> None:
    data = await ask(person, QUESTION)
    chat = data["url"].split("/")[-1]
    await ask(person, "Asked in another tab", chat)
    form = {"question": "Asked here", "conversation": chat, "shown": data["turn"]}
    reply = (await person.post("/chat/ask", data=form, headers=SCRIPT)).json()
    assert shown(reply["html"]) == ["Asked in another tab", "Asked here"]


@pytest.mark.parametrize(
    ("path", "form"),
    [
        ("again/{turn}", {}),
        ("{chat}/show", {"turn": "{turn}"}),
        ("rate/{turn}", {"rating": "up"}),
        ("{chat}/move", {"folder": "x"}),
        ("{chat}/restore", {}),
        ("ask", {"question": "x", "conversation": "{chat}", "edits": "{question}"}),
    ],
)
async def test_another_persons_talk_is_not_there(
    person: httpx.AsyncClient, pupil: httpx.AsyncClient, path: str, form: dict[str, str]
) -> None:
    data = await ask(person, "A secret of mine")
    ids = {"turn": data["turn"], "chat": data["url"].split("/")[-1], "question": data["question"]}
    filled = {key: value.format(**ids) for key, value in form.items()}
    reply = await pupil.post(f"/chat/{path.format(**ids)}", data=filled)
    assert reply.status_code == 404 and "secret" not in reply.text
    for ending in ("md", "json"):
        assert (await pupil.get(f"/chat/{ids['chat']}/export.{ending}")).status_code == 404
    assert "secret" not in (await pupil.get("/chats?q=secret")).text.replace('value="secret"', "")
    assert shown(await page_of(person, data["url"])) == ["A secret of mine"]
    assert (await person.post(f"/chat/{path.format(**ids)}", data=filled, headers={"x-csrf-token": ""})).status_code == 403


# --- feedback --------------------------------------------------------------------------------------------------------
async def test_feedback_is_shown_again(person: httpx.AsyncClient, box: Any) -> None:
    data = await ask(person, QUESTION)
    rate = f"/chat/rate/{data['turn']}"
    reply = await person.post(rate, data={"rating": "down"})
    assert reply.headers["location"].startswith(f"{data['url']}?at={data['turn']}#rate-")
    form = {
        "rated": "down",
        "reason": "wrong",
        "words": "<b>no</b>",
        "better": "Which\r\nlight?",
        "consent": "yes",
        "save": "yes",
    }
    assert (await person.post(rate, data=form)).status_code == 303
    page = await page_of(person, data["url"])
    assert '<button name="rating" value="" aria-pressed="true">No</button>' in page
    assert 'value="wrong" checked' in page and 'value="&lt;b&gt;no&lt;/b&gt;"' in page and ">Which\nlight?</textarea>" in page
    assert 'name="consent" value="yes" checked' in page
    (row,) = ExampleStore(box.database).pending()
    assert row.correction == "Which\nlight?" and row.rating == "down"
    form.pop("consent")
    assert (await person.post(rate, data=form)).status_code == 303
    assert ExampleStore(box.database).withdrawn() == {row.id}


async def test_refused_feedback_comes_back_filled_in(person: httpx.AsyncClient) -> None:
    data = await ask(person, QUESTION)
    form = {"words": "w" * 501, "better": "A better one", "reason": "off", "consent": "yes"}
    reply = await person.post(f"/chat/rate/{data['turn']}", data=form)
    assert reply.status_code == 413 and reply.text.count("501 characters") == 1 and "w" * 501 in reply.text
    assert ">A better one</textarea>" in reply.text and 'value="off" checked' in reply.text
    assert 'name="consent" value="yes" checked' in reply.text
    part = await person.post(f"/chat/rate/{data['turn']}", data={"rating": "down"}, headers=SCRIPT)
    assert part.json()["html"].lstrip().startswith('<form class="feedback"') and "Saved." in part.json()["html"]


async def test_a_pupil_rates_and_nothing_more(pupil: httpx.AsyncClient, box: Any) -> None:
    data = await ask(pupil, QUESTION)
    page = await page_of(pupil, data["url"])
    assert "Useful?" in page and "better answer" not in page and "training" not in page
    rate = f"/chat/rate/{data['turn']}"
    assert (await pupil.post(rate, data={"rating": "up", "consent": "yes"})).status_code == 403
    assert (await pupil.post(rate, data={"rating": "up"})).status_code == 303
    assert ExampleStore(box.database).list(withdrawn=True) == []


# --- one's own chats -------------------------------------------------------------------------------------------------
async def test_chats_stand_under_folders_and_days(person: httpx.AsyncClient, box: Any) -> None:
    ages = {
        "Of today": 0.0,
        "Of yesterday": 86400.0,
        "Of last week": 3 * 86400.0,
        "Of long ago": 40 * 86400.0,
        "In a folder": 0.0,
    }
    midday = time.mktime((*time.localtime()[:3], 12, 0, 0, 0, 0, -1))
    for title, age in ages.items():
        url = (await ask(person, title))["url"]
        with box.database.begin() as connection:
            mine = sa.update(conversations).where(conversations.c.title == title)
            connection.execute(mine.values(updated=midday - age))
    reply = await person.post(f"{url}/move", data={"folder": "  <Year>\n7 "})
    assert reply.status_code == 303
    page = await page_of(person, url)
    side = page.partition('class="chats side"')[2].partition("</nav>")[0]
    order = [side.index(text) for text in ("&lt;Year&gt; 7", "In a folder", "Today", "Of today", "Yesterday", "Of yesterday",
        "Last week", "Of last week", "Earlier", "Of long ago")]  # fmt: skip
    assert order == sorted(order)
    link = re.search(r'href="(/chats\?folder=[^"]+)"', side)
    assert link
    found = (await page_of(person, link[1].replace("&amp;", "&"))).partition("<main")[2]
    assert "In a folder" in found and "Of today" not in found
    assert '<option value="&lt;Year&gt; 7">' in page
    await person.post(f"{url}/move", data={"folder": ""})
    assert "&lt;Year&gt;" not in await page_of(person, "/chats")


async def test_all_chats_are_listed_however_many(person: httpx.AsyncClient, box: Any) -> None:
    user = box.accounts.session(person.cookies["session"]).user
    for number in range(130):
        box.chat.conversations.add_question(user, f"Chat number {number}.", None)
    page, seen = await page_of(person, "/chats"), set()
    while True:
        seen |= set(re.findall(r"Chat number \d+\.", page.partition("<main")[2]))
        more = re.search(r'<a href="(/chats\?before=[^"]+)">Earlier chats', page)
        if not more:
            break
        page = await page_of(person, more[1])
    assert len(seen) == 130
    for odd in ("nan", "x", "-1e999", "1" * 40):
        await page_of(person, f"/chats?before={odd}")


async def test_words_are_found_in_titles_and_texts_and_lead_to_their_branch(person: httpx.AsyncClient) -> None:
    data = await ask(person, "Über die Blätter: leaves")
    chat = data["url"].split("/")[-1]
    form = {"conversation": chat, "edits": data["question"], "question": "Something else"}
    await finished(person, await person.post("/chat/ask", data=form))
    page = await page_of(person, "/chats?q=blatter+GREEN")
    assert "1 chat found." in page and "<mark>" in page
    link = re.search(r'href="(/chat/\w+\?at=\w+)#', page)
    assert link and shown(await page_of(person, link[1])) == ["Über die Blätter: leaves"]
    nothing = await page_of(person, "/chats?q=%25")
    assert "0 chats found." in nothing and "Only your own chats are searched." in nothing
    hostile = await page_of(person, "/chats?q=%3Cscript%3Ealert(1)%3C/script%3E")
    assert "<script>alert" not in hostile


async def test_undo_of_a_deletion(person: httpx.AsyncClient) -> None:
    data = await ask(person, QUESTION)
    away = (await person.post(f"{data['url']}/delete")).headers["location"]
    page = await page_of(person, away)
    assert f"“{QUESTION}” is deleted." in page and QUESTION not in await page_of(person, "/chats")
    undo = re.search(r'action="(/chat/\w+/restore)"', page)
    assert undo and (await person.post(undo[1])).headers["location"] == data["url"]
    assert shown(await page_of(person, data["url"])) == [QUESTION]
    assert "is deleted" not in await page_of(person, away), "there is nothing left to undo"
    assert (await person.post(undo[1])).status_code == 404


# --- copies ----------------------------------------------------------------------------------------------------------
async def test_a_copy_as_markdown_and_as_json(person: httpx.AsyncClient) -> None:
    data = await ask(person, "# Why *are* leaves <i>green</i>?\n=1+1")
    await finished(person, await person.post(f"/chat/again/{data['turn']}"))
    await person.post(f"/chat/rate/{data['turn']}", data={"rating": "up"})
    reply = await person.get(f"{data['url']}/export.md")
    assert reply.headers["content-type"] == "text/markdown; charset=utf-8"
    assert reply.headers["content-disposition"].startswith('attachment; filename="Why are leaves i green')
    assert "> \\# Why \\*are\\* leaves \\<i\\>green\\</i\\>?  \n> \\=1\\+1" in reply.text
    assert "1. Photosynthesis, Why leaves are green" in reply.text and reply.text.count("Leaves look **green**") == 1
    reply = await person.get(f"{data['url']}/export.json")
    whole = reply.json()
    assert [turn["role"] for turn in whole["turns"]] == ["user", "assistant", "assistant"]
    assert whole["turns"][1]["parent"] == whole["turns"][0]["id"] == whole["turns"][2]["parent"]
    assert whole["turns"][1]["feedback"]["rating"] == "up" and "attachment" in reply.headers["content-disposition"]
    assert (await person.get(f"{data['url']}/export.exe")).status_code == 404


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("Leaves: why?", "Leaves why.md"),
        ("../../etc/passwd", "etc passwd.md"),
        ("  .hidden", "hidden.md"),
        ("=1+1|calc", "1 1 calc.md"),
        ("con", "chat con.md"),
        ("\u202egnp.exe", "gnp.exe.md"),
        ("***", "chat.md"),
        ("Été", "Été.md"),
        ("x" * 200, "x" * 80 + ".md"),
    ],
)
def test_file_names_are_safe(title: str, name: str) -> None:
    assert file_name(f"{title}.md") == name


@pytest.mark.parametrize("text", HOSTILE)
def test_a_copy_does_nothing_where_it_is_opened(text: str) -> None:
    """Read by another program that allows all of Markdown, it holds no HTML, picture, or link."""
    from markdown_it import MarkdownIt

    from appliance.conversations import Conversation, Turn

    turns = [Turn("q", "c", "user", text, "done"), Turn("a", "c", "assistant", text, "done", "green-1")]
    copied = markdown(Conversation("c", text, 1.0, 1.0), turns, str)
    tokens = [inner for token in MarkdownIt("commonmark").parse(copied) for inner in (token, *(token.children or ()))]
    assert not {token.type for token in tokens} & {"html_block", "html_inline", "image", "link_open"}, copied


async def test_pages_of_the_chat_have_no_inline_script_and_no_foreign_link(person: httpx.AsyncClient) -> None:
    data = await ask(person, QUESTION)
    await finished(person, await person.post(f"/chat/again/{data['turn']}"))
    for path in (data["url"], "/chats", "/chats?q=leaves"):
        text = await page_of(person, path)
        assert not re.search(r"<style|style=|<script(?![^>]+src=\"/static/)|\son\w+=|javascript:", text), path
        assert all(link.startswith(("/", "#", "data:,")) for link in re.findall(r'(?:href|src|action)="([^"]*)"', text))


async def test_the_stream_says_where_an_answer_stands_in_the_readers_language(person: httpx.AsyncClient, box: Any) -> None:
    box.pool.pace = 0.03
    data = await ask(person, QUESTION)
    told = {kind: json.loads(words) for kind, words in data["events"] if kind in ("queue", "sources")}
    assert told["queue"] == {"place": 2, "wait": 1.0, "words": "You are number 2 in line. About 1 second."}
    assert told["sources"] == {"covered": True, "words": "Found 2 passages. Writing."}


async def test_words_cost_no_look_at_the_database(person: httpx.AsyncClient, box: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many words an answer has, it is read and rendered once."""
    reads = {"turn": 0}
    turn = box.chat.conversations.turn

    def counted(*arguments: Any) -> Any:
        reads["turn"] += 1
        return turn(*arguments)

    monkeypatch.setattr(box.chat.conversations, "turn", counted)
    make, counts = box.pool.generate, []
    for words in (5, 500):
        gate, reads["turn"], box.pool.answer = asyncio.Event(), 0, "A word. " * words

        async def waits(request: Any, gate: asyncio.Event = gate) -> AsyncIterator[Any]:
            await gate.wait()
            async with aclosing(make(request)) as chunks:
                async for chunk in chunks:
                    yield chunk

        box.pool.generate = waits
        asked = (await person.post("/chat/ask", data={"question": QUESTION}, headers=SCRIPT)).json()
        reading = asyncio.create_task(person.get(f"/chat/stream/{asked['turn']}"))
        while not reads["turn"]:
            await asyncio.sleep(0.01)
        gate.set()
        assert [kind for kind, _ in events((await reading).text)].count("text") >= words
        counts.append(reads["turn"])
    assert counts[0] == counts[1]


async def test_a_full_database_shows_the_page_again(
    person: httpx.AsyncClient, box: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = await ask(person, QUESTION)

    def held(*_: Any) -> None:
        raise Conflict("Another process has held the database for too long.", "Try again in a moment.")

    monkeypatch.setattr(box.chat.conversations, "add_answer", held)
    reply = await person.post(f"/chat/again/{data['turn']}")
    assert reply.status_code == 409 and "for too long" in reply.text and QUESTION in reply.text
