"""Why an answer ended is stored as a code and facts, and told in the language of whoever reads it, then or later."""

from __future__ import annotations

import html
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from babel.messages.catalog import Catalog
from babel.messages.pofile import write_po

from appliance import errors
from appliance.engine.handler import Chunk, Request
from appliance.errors import ApplianceError, Busy, StorageFull
from appliance.web import faults, show, words
from appliance.web.sentences import sentences
from tests.web.conftest import events
from tests.web.test_pages import QUESTION, ask


@pytest.fixture(autouse=True)
def spanish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A catalogue that has every sentence, each with a mark before it."""
    catalogue = Catalog(locale="es", charset="utf-8")
    for singular, plural in sentences():
        forms = (f"ES {singular}", *[f"ES {plural}"] * (catalogue.num_plurals - 1))
        catalogue.add((singular, plural) if plural else singular, forms if plural else f"ES {singular}")
    with (tmp_path / "es.po").open("wb") as target:
        write_po(target, catalogue)
    monkeypatch.setattr(words, "LOCALE", tmp_path)
    for cached in (words.catalogue, show._templates):
        cached.cache_clear()
    yield
    for cached in (words.catalogue, show._templates):
        cached.cache_clear()


def raising(error: ApplianceError) -> Any:
    async def generate(_request: Request) -> AsyncGenerator[Chunk, None]:
        yield Chunk("Leaves", model="green-1", handler="llama")
        raise error

    return generate


ENDS = [
    (Busy("6 questions are waiting.", "Try again in 7 seconds.", 7.2), "busy", {"seconds": 7}, "ES Ask again in 7 seconds."),
    (ApplianceError("It broke.", "Mend it."), "failed", {}, "ES The answer stopped because of a fault in the box."),
    (StorageFull("The disk is full.", "Free some."), "storage_full", {}, "ES The box&#39;s disk is full."),
]


@pytest.mark.parametrize(("error", "code", "about", "told"), ENDS, ids=[code for _, code, _, _ in ENDS])
async def test_a_fault_is_told_in_the_readers_language(
    person: httpx.AsyncClient, box: Any, error: ApplianceError, code: str, about: dict[str, int], told: str
) -> None:
    box.pool.generate = raising(error)
    asked = await ask(person, QUESTION)
    spanish, english = {"accept-language": "es"}, {"accept-language": "en"}
    stream = await person.get(f"/chat/stream/{asked['turn']}", headers=spanish)
    ended = dict(events(stream.text))["done"]
    assert html.unescape(told) in html.unescape(ended) and error.message not in ended and error.hint not in ended
    page = (await person.get(asked["url"], headers=spanish)).text
    assert told in page and error.message not in page and "Leaves" in page
    page = (await person.get(asked["url"], headers=english)).text
    assert error.message in page and error.hint in page, "whoever raised it knows most"
    facts = box.chat.conversations.turn(box.accounts.named("Ms Green"), asked["turn"]).facts
    assert (facts["code"], facts["about"]) == (code, about)


async def test_a_long_chat_says_so_in_the_readers_language(person: httpx.AsyncClient, box: Any) -> None:
    box.pool.answer, question = "leaf " * 150, "Why are leaves green? " + "and why " * 50
    person.headers["accept-language"] = "es"
    asked = await ask(person, question)
    for pace in (0, 0, 0, 0.01):  # the last one is followed while it is being written
        box.pool.pace, box.pool.answer = pace, "leaf " * (20 if pace else 150)
        asked = await ask(person, question, conversation=asked["url"].rsplit("/", 1)[1])
    assert "ES This chat has grown long" in dict(asked["events"])["notice"]
    assert "ES This chat has grown long" in (await person.get(asked["url"])).text


def test_every_kind_of_fault_has_words() -> None:
    kinds = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, ApplianceError)]
    nothing = faults.told({}, "es")
    assert nothing[0] == "ES The box stopped while it wrote this answer."
    for code in ({kind.code for kind in kinds} - {"gate_not_passed"}) | {"switched_off", "not_saved", "not_saved_disk_full"}:
        message, hint = faults.told({"code": code, "error": "Said in English.", "hint": "So."}, "es")
        assert message.startswith("ES ") and hint.startswith("ES ") and message != nothing[0], code
    older = faults.told({"error": "Stored by an older release.", "hint": ""}, "es")
    assert older == nothing and faults.told({"error": "x", "hint": "y"}, "en") == ("x", "y")


async def test_what_many_people_meet_is_told_in_their_language(person: httpx.AsyncClient) -> None:
    spanish = {"accept-language": "es"}
    token = person.headers.pop("x-csrf-token")
    old = await person.post("/chat/ask", data={"question": QUESTION}, headers=spanish)
    assert "ES This form is too old" in old.text and "ES Send it again" in old.text and "Load the page again" not in old.text
    gone = await person.get("/chat/nothing", headers=spanish)
    assert "ES There is no such chat here." in gone.text and "ES It may have been deleted." in gone.text
    await person.post("/sign-out", data={"csrf": token})
    ended = await person.post("/chat/ask", data={"question": QUESTION}, headers=spanish)
    assert "ES You are not signed in" in ended.text and "ES Sign in, in a new tab" in ended.text
