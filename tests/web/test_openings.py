"""What stands before an answer's own words is stored as a code, and told in the language of whoever reads it, then or later."""

from __future__ import annotations

import html
import json
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from appliance.engine.quotes import INTRODUCTION
from appliance.tables import turns
from tests.web.conftest import BASE, events
from tests.web.test_faults import spanish
from tests.web.test_pages import ask

__all__ = ["spanish"]

UNCOVERED = "What is the capital of Peru?"
SPANISH, ENGLISH = {"accept-language": "es"}, {"accept-language": "en"}
NOT_COVERED = "The school's documents do not cover this."
NEAREST = "Nearest in the library: The water cycle."


def serve(box: Any, how: str) -> None:
    box.pool.starter, box.pool.model = how == "starter", None if how == "quotes" else "green-1"


@pytest.mark.parametrize(
    ("how", "before", "said"),
    [
        ("model", "{0}{1} {0}{2} {0}What follows does not come from them.", "Leaves look"),
        ("starter", "{0}{1} {0}{2}", "Leaves look"),
        ("quotes", "{0}{1} {0}{2}", ""),
    ],
)
async def test_that_nothing_covers_it_is_told_in_the_readers_language(
    person: httpx.AsyncClient, box: Any, how: str, before: str, said: str
) -> None:
    serve(box, how)
    english, spanish = (before.format(mark, NOT_COVERED, NEAREST) for mark in ("", "ES "))
    asked = await ask(person, UNCOVERED)
    stream = events((await person.get(f"/chat/stream/{asked['turn']}?after=0", headers=SPANISH)).text)
    page = html.unescape((await person.get(asked["url"], headers=SPANISH)).text)
    assert spanish in page and NOT_COVERED not in page.replace(f"ES {NOT_COVERED}", "") and page.count("ES Nearest") == 1
    assert spanish in html.unescape(dict(stream)["done"])
    page = html.unescape((await person.get(asked["url"], headers=ENGLISH)).text)
    assert english in page and page.count("Nearest in the library") == 1 and said in page
    assert ("The starter model's own words" in page) == (how == "starter") and "Useful?" in page
    copy = (await person.get(f"{asked['url']}/export.md", headers=SPANISH)).text
    assert "ES The school's documents do not cover this\\." in copy
    data = (await person.get(f"{asked['url']}/export.json", headers=ENGLISH)).json()["turns"][1]
    assert data["opening"] == english and data["text"].startswith(said) and NOT_COVERED not in data["text"]
    stored = box.chat.conversations.turn(box.accounts.named("Ms Green"), asked["turn"])
    assert NOT_COVERED not in stored.text + stored.facts["lead"] and stored.facts["opening"].startswith("not_covered")


async def test_it_is_told_while_the_answer_is_written(person: httpx.AsyncClient, box: Any) -> None:
    box.pool.pace = 0.02
    person.headers["accept-language"] = "es"
    told = [(kind, json.loads(data)) for kind, data in (await ask(person, UNCOVERED))["events"]]
    kinds = [kind for kind, _ in told]
    assert kinds.index("opening") < kinds.index("text")
    assert dict(told)["opening"]["message"].startswith(f"ES {NOT_COVERED} ES {NEAREST}")


async def test_quotations_are_introduced_in_the_readers_language(person: httpx.AsyncClient, box: Any) -> None:
    from appliance.engine.quotes import Quotes

    async def nothing(_text: str) -> Any:
        return ()

    box.pool.generate, box.pool.model = Quotes(nothing).generate, None
    asked = await ask(person, "Why do leaves look green to us?")
    page = html.unescape((await person.get(asked["url"], headers=SPANISH)).text)
    assert f'<p class="preface">ES {INTRODUCTION}</p>' in page and "<blockquote>" in page
    assert page.count(INTRODUCTION) == 1


async def test_an_answer_of_an_older_release_is_shown_as_it_stands(person: httpx.AsyncClient, box: Any) -> None:
    asked = await ask(person, UNCOVERED)
    old = f"{NOT_COVERED} {NEAREST} What follows does not come from them.\n\nLima."
    facts = {"lead": "", "starter": False, "finish": "stop", "nearest": ["The water cycle"]}
    with box.database.begin() as connection:
        connection.execute(sa.update(turns).where(turns.c.id == asked["turn"]).values(text=old, facts=facts))
    for language in (SPANISH, ENGLISH):
        page = html.unescape((await person.get(asked["url"], headers=language)).text)
        assert page.count(f"{NOT_COVERED} {NEAREST}") == 1 == page.count("Nearest in the library") and "Lima." in page
    assert "Lima" in (await person.get(f"{asked['url']}/export.md")).text


@pytest.mark.parametrize(("language", "mark"), [("", ""), ("es", "ES ")])
@pytest.mark.parametrize("how", ["model", "starter", "quotes"])
async def test_a_program_gets_it_in_the_language_of_its_keys_owner(
    visitor: httpx.AsyncClient, box: Any, how: str, language: str, mark: str
) -> None:
    serve(box, how)
    box.people.add("Ms Azul", "teacher", password="correct horse battery", language=language)
    _, key = box.accounts.create_key(box.accounts.named("Ms Azul"), "test", "chat")
    body = {"model": "default", "messages": [{"role": "user", "content": UNCOVERED}]}
    headers = {"authorization": f"Bearer {key}"}
    whole = (await visitor.post(f"{BASE}/v1/chat/completions", json=body, headers=headers)).json()
    content = whole["choices"][0]["message"]["content"]
    assert content.startswith(f"{mark}{NOT_COVERED} {mark}{NEAREST}")
    assert (f"**{mark}The starter model's own words" in content) == (how == "starter")
    streamed = await visitor.post(f"{BASE}/v1/chat/completions", json=body | {"stream": True}, headers=headers)
    chunks = [json.loads(line[6:]) for line in streamed.text.splitlines() if line.startswith("data: {")]
    assert "".join(one["choices"][0]["delta"].get("content", "") for one in chunks) == content, "streamed or whole, it is one"


async def test_the_safeguarding_lead_reads_it_around_a_message(box: Any) -> None:
    serve(box, "quotes")
    for name, role in (("ann", "pupil"), ("lead", "safeguarding")):
        box.people.add(name, role, password="correct horse battery")
    ann = box.accounts.named("ann")
    (asked,) = [one.data async for one in box.chat.answer(ann, UNCOVERED) if one.kind == "turn"]
    async for _ in box.chat.answer(ann, "I want to kill myself", conversation=asked["conversation"]):
        pass
    (flag,) = box.safeguarding.list()
    _, around = box.safeguarding.read(box.accounts.named("lead"), flag.id)
    assert [line.text for line in around][:2] == [UNCOVERED, f"{NOT_COVERED} {NEAREST}"]
