"""Who may not see a collection learns nothing of it: not its text, its titles, its ids, nor that it is there.

One home with a collection for every kind of reader, good and bad, each with words of its own; every user asks every verb of the
library, every page and /v1 for all of them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from appliance.accounts import Session, User
from appliance.app import Appliance
from appliance.engine.handler import Message, Request
from appliance.engine.quotes import NOT_COVERED
from appliance.errors import ApplianceError, Forbidden, NotFound
from appliance.knowledge.library import Filter, Gone, Library
from appliance.knowledge.shelves import EVERYTHING, Reader
from appliance.settings import Settings
from appliance.tables import collection_readers, collections, metadata, users
from appliance.web import library as library_pages
from appliance.web import pages
from appliance.web.server import create_app
from tests.knowledge.helpers import PLANTS, embed, engine_down
from tests.web.box import make_box

# Name of a collection -> who is let in. "owned" belongs to Ann; the last five are what no door would write.
READERS: dict[str, list[tuple[str, str]]] = {
    "everyone": [("everyone", "")],
    "teachers": [("role", "teacher")],
    "pupils": [("role", "pupil")],
    "class": [("class", "7B")],
    "for ann": [("user", "ann")],
    "owned": [],
    "shut": [],
    "unknown": [("planet", "teacher"), ("Everyone", ""), ("*", "*")],
    "misnamed": [("everyone", "teacher")],
    "roleless": [("role", ""), ("role", "planet")],
    "classless": [("class", "")],
    "nameless": [("user", "")],
}
USERS: dict[str, User | None] = {
    "nobody": None,
    "head": User("head", "Head", "administrator"),
    "ann": User("ann", "Ann", "teacher", classes=frozenset({"7B"})),
    "ben": User("ben", "Ben", "teacher"),
    "cem": User("cem", "Cem", "pupil", classes=frozenset({"7B", ""})),
    "dan": User("dan", "Dan", "pupil", classes=frozenset({"7b", "7B "})),
    "planet": User("planet", "Stranger", "planet", classes=frozenset({"7B"})),
    "empty": User("", "Empty", "pupil"),
    "ann's key": User("ann", "Ann", "teacher", "chat", frozenset({"7B"})),
    "ann's key that embeds": User("ann", "Ann", "teacher", "embed", frozenset({"7B"})),
    "a key made at the box": User("local", "(command line)", "local", "chat"),
    "the box": User("local", "(command line)", "local"),
}
SEES: dict[str, set[str]] = {
    "nobody": set(),
    "head": {"everyone"},
    "ann": {"everyone", "teachers", "class", "for ann", "owned"},
    "ben": {"everyone", "teachers"},
    "cem": {"everyone", "pupils", "class"},
    "dan": {"everyone", "pupils"},
    "planet": set(),
    "empty": {"everyone", "pupils"},
    "ann's key": {"everyone", "teachers", "class", "for ann", "owned"},
    "ann's key that embeds": set(),
    "a key made at the box": {"everyone"},
    "the box": set(READERS),
}
EVERY_USER = pytest.mark.parametrize("name", list(USERS))


def canary(collection: str) -> str:
    return f"zq{''.join(chr(ord('a') + (ord(letter) * 7) % 26) for letter in collection)}zq"


@dataclass
class Held:
    """What a collection holds: a document with one passage, and one that was removed."""

    collection: str
    document: str
    passage: int
    gone_document: str
    gone_passage: int

    @property
    def secrets(self) -> list[str]:
        return [canary(self.collection), self.collection + " book", self.document, self.gone_document]


@dataclass
class School:
    box: Any
    held: dict[str, Held]

    def within(self, name: str) -> Filter:
        return Filter(self.box.accounts.visible(USERS[name], "collection"))

    def hidden(self, name: str) -> list[Held]:
        return [held for collection, held in self.held.items() if collection not in SEES[name]]

    def clean(self, name: str, told: str) -> None:
        """Nothing of what the user may not see stands in what they were told."""
        for held in self.hidden(name):
            for secret in held.secrets:
                assert secret not in told, (name, held.collection)


@pytest.fixture(scope="module")
def school(tmp_path_factory: pytest.TempPathFactory) -> Iterator[School]:
    folder = tmp_path_factory.mktemp("school")
    box = make_box(Settings(home=folder / "home"), library=lambda database: Library(box_settings(folder), database, embed))
    held = asyncio.run(_filled(box, folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(box.accounts, "session", lambda token: Session(USERS[token], "token") if USERS.get(token) else None)
        patch.setattr(box.accounts, "key", lambda token: USERS.get(token))
        yield School(box, held)
    box.library.close()
    box.database.close()


def box_settings(folder: Path) -> Settings:
    return Settings(home=folder / "home")


async def _filled(box: Any, folder: Path) -> dict[str, Held]:
    found = {}
    for collection, readers in READERS.items():
        for name in ("book", "gone"):
            text = f"# {collection} {name}\n\nGreen plants make sugar from sunlight, says {canary(collection)} in the {name}.\n"
            (folder / f"{collection} {name}.md").write_text(text)
        paths = [folder / f"{collection} {name}.md" for name in ("book", "gone")]
        reports = await box.library.add(paths, collection)
        ids = [str(report.document) for report in reports]
        passages = [(await box.library.document(id, EVERYTHING))[1][0].id for id in ids]
        await box.library.remove(ids[1], EVERYTHING)
        with box.database.begin() as connection:
            id = connection.scalar(sa.select(collections.c.id).where(collections.c.name == collection))
            owner = "ann" if collection == "owned" else ""
            connection.execute(sa.update(collections).where(collections.c.id == id).values(owner=owner))
            connection.execute(sa.delete(collection_readers).where(collection_readers.c.collection == id))
            for kind, reader in readers:
                connection.execute(sa.insert(collection_readers).values(collection=id, kind=kind, name=reader))
        found[collection] = Held(collection, ids[0], passages[0], ids[1], passages[1])
    with box.database.begin() as connection:
        for user in {user.id: user for user in USERS.values() if user}.values():
            connection.execute(
                sa.insert(users).values(id=user.id, name=user.name, role=user.role, password_hash="!", created=0)
            )
    return found


async def refused(call: Any) -> str:
    with pytest.raises(NotFound) as caught:
        result = call()
        if asyncio.iscoroutine(result):
            await result
    return f"{caught.value.message} {caught.value.hint}"


def _dump(school: School) -> dict[str, list[Any]]:
    tables = [table for table in metadata.sorted_tables if table.name not in ("turns", "conversations", "sessions")]
    with school.box.database.read() as connection:
        return {table.name: [tuple(row) for row in connection.execute(sa.select(table))] for table in tables}


# --- who sees what ---------------------------------------------------------------------------------------------------
@EVERY_USER
def test_a_collection_is_seen_by_its_owner_and_its_readers_and_by_nobody_else(school: School, name: str) -> None:
    seen = school.box.library.shelves.list(school.within(name))
    assert {collection.name for collection in seen} == SEES[name]


def test_what_nobody_decided_about_is_seen_by_nobody(school: School) -> None:
    for kind in ("documents", "", "Collection", "chat"):
        with pytest.raises(Forbidden):
            school.box.accounts.visible(USERS["the box"], kind)


# --- every verb of the library ---------------------------------------------------------------------------------------
@EVERY_USER
async def test_a_search_finds_nothing_of_what_may_not_be_seen(school: School, name: str) -> None:
    library, within = school.box.library, school.within(name)
    asked = [canary(collection) for collection in READERS]
    asked += ["How do green plants make sugar from sunlight?", *(f"{collection} book" for collection in READERS)]
    for text, found in zip(asked, await library.search_many(asked, k=50, within=within), strict=True):
        school.clean(name, repr(found))
        assert {one.file for one in found.passages} <= {f"{collection} book.md" for collection in SEES[name]}, text
    everything = (await library.search("green plants make sugar from sunlight", k=50, within=within)).passages
    assert len({copy.file for one in everything for copy in (one, *one.also)}) == len(SEES[name]), (
        "all that may be seen is found"
    )


@EVERY_USER
async def test_what_may_not_be_seen_and_what_never_was_get_the_same_words(school: School, name: str, tmp_path: Path) -> None:
    library, within = school.box.library, school.within(name)
    school.clean(name, repr(await library.documents(within)) + repr(library.shelves.list(within)))
    no_document, no_passage = "0" * 16, 10**6
    nothing = {
        "document": await refused(lambda: library.document(no_document, within)),
        "passage": await refused(lambda: library.passage(no_passage, within)),
        "named": await refused(lambda: library.named(["never"], within)),
        "remove": await refused(lambda: library.remove(no_document, within)),
        "move": await refused(lambda: library.move(no_document, "everyone", within)),
    }
    for held in school.hidden(name):
        for document in (held.document, held.gone_document):
            assert await refused(lambda: library.document(document, within)) == nothing["document"]  # noqa: B023
            assert await refused(lambda: library.original(document, within)) == nothing["document"]  # noqa: B023
            assert await refused(lambda: library.remove(document, within)) == nothing["remove"]  # noqa: B023
            assert await refused(lambda: library.move(document, "everyone", within)) == nothing["move"]  # noqa: B023
        for passage in (held.passage, held.gone_passage):
            assert await refused(lambda: library.passage(passage, within)) == nothing["passage"]  # noqa: B023
        told = await refused(lambda: library.named([held.collection], within))  # noqa: B023
        assert told.replace(f"named {held.collection}.", "named never.") == nothing["named"]
        questions = tmp_path / "questions.jsonl"
        questions.write_text(json.dumps({"question": canary(held.collection), "book_file": f"{held.collection} book.md"}))
        report = await library.check(questions, within)
        assert report["questions"][0]["rank"] is None and report["collections"] == {}


@EVERY_USER
async def test_what_may_be_seen_is_there_and_says_what_became_of_it(school: School, name: str) -> None:
    library, within = school.box.library, school.within(name)
    for collection in SEES[name]:
        held = school.held[collection]
        document, passages = await library.document(held.document, within)
        assert (document.collection, passages[0].id) == (collection, held.passage)
        assert canary(collection) in (await library.passage(held.passage, within)).text
        for gone in (await library.passage(held.gone_passage, within), await library.document(held.gone_document, within)):
            assert isinstance(gone, Gone) and (gone.file, gone.why, gone.successor) == (f"{collection} gone.md", "removed", "")


@EVERY_USER
async def test_nobody_changes_what_they_may_not_see(school: School, name: str) -> None:
    shelves, within, before = school.box.library.shelves, school.within(name), _dump(school)
    for held in school.hidden(name):
        for call in (
            lambda name: shelves.one(name, within),
            lambda name: shelves.rename(name, "mine", within),
            lambda name: shelves.describe(name, within, subject="mine"),
            lambda name: shelves.discard(name, within),
            lambda name: shelves.open_to(name, Reader("everyone"), within),
            lambda name: shelves.close_to(name, Reader("everyone"), within),
        ):
            told = await refused(lambda: call(held.collection))  # noqa: B023
            assert told.replace(f"named {held.collection}.", "named never.") == await refused(lambda: call("never"))  # noqa: B023
        for seen in SEES[name]:
            await refused(lambda: shelves.move(school.held[seen].document, held.collection, within))  # noqa: B023
    assert _dump(school) == before


async def test_a_user_adds_to_no_collection_but_their_own(school: School, tmp_path: Path) -> None:
    (tmp_path / "everyone book.md").write_text("# Mine\n\nThis text would take the place of another's.\n")
    before = _dump(school)
    for collection in READERS:
        for user in ("ann", "ben"):
            if (collection, user) != ("owned", "ann"):
                with pytest.raises(ApplianceError, match="is taken"):
                    await school.box.library.add([tmp_path / "everyone book.md"], collection, by=user)
    assert _dump(school) == before


# --- pages and /v1 ---------------------------------------------------------------------------------------------------
def _client(school: School, name: str) -> httpx.AsyncClient:
    headers = {"accept": "text/html", "x-csrf-token": "token", "cookie": f"session={name}", "authorization": f"Bearer {name}"}
    transport = httpx.ASGITransport(create_app(school.box))
    return httpx.AsyncClient(transport=transport, base_url="http://localhost:8080", headers=headers)


def routes() -> list[str]:
    """Every address of a document or a passage that there is, today or later."""
    paths = [str(getattr(route, "path", "")) for router in (pages.router, library_pages.router) for route in router.routes]
    found = [path for path in paths if "{id}" in path and path.split("/")[1] in ("document", "passage")]
    assert len(found) >= 3
    return found


@EVERY_USER
async def test_no_page_tells_of_what_may_not_be_seen(school: School, name: str) -> None:
    async with _client(school, name) as client:
        for path in ("/library", "/chat"):
            school.clean(name, (await client.get(path)).text)
        for held in school.hidden(name):
            for path in routes():
                for id in (held.document, held.gone_document) if "document" in path else (held.passage, held.gone_passage):
                    unknown = await client.get(path.format(id="0" * 16 if "document" in path else 1_000_000))
                    reply = await client.get(path.format(id=id))
                    assert (reply.status_code, reply.text) == (unknown.status_code, unknown.text), path
        for collection in SEES[name] if not USERS[name] or not USERS[name].scope else ():
            assert canary(collection) in (await client.get(f"/passage/{school.held[collection].passage}")).text


@EVERY_USER
async def test_no_answer_is_made_of_what_may_not_be_seen(school: School, name: str) -> None:
    async with _client(school, name) as client:

        async def asked(question: str, **more: Any) -> httpx.Response:
            body = {"model": "default", "messages": [{"role": "user", "content": question}], **more}
            return await client.post("/v1/chat/completions", json=body)

        school.box.pool.requests.clear()
        told = await asked("How do green plants make sugar from sunlight?")
        school.clean(name, told.text)
        unknown = await asked("How do green plants make sugar?", collections=["never"])
        for held in school.hidden(name):
            reply = await asked("How do green plants make sugar?", collections=[held.collection])
            assert reply.status_code == unknown.status_code
            assert (
                reply.json()["error"]["message"].replace(f"named {held.collection}.", "named never.")
                == unknown.json()["error"]["message"]
            )
        seen = sorted(SEES[name])
        reply = await asked("How do green plants make sugar from sunlight?", collections=[*READERS, "never"])
        school.clean(name, reply.text)
        assert (reply.status_code == 200) == bool(seen)
        for request in school.box.pool.requests:  # what the model was given
            school.clean(name, repr(request))


async def test_quotes_find_nothing_by_themselves(settings: Settings, tmp_path: Path) -> None:
    """A handler does not know who asks: what it may quote comes with the request."""
    (tmp_path / "plants.txt").write_text(PLANTS)
    box = Appliance.open(settings)
    box.library.close()
    box.library = Library(settings, box.database, engine_down)
    await box.library.add([tmp_path / "plants.txt"])
    question = "How do green plants make sugar from sunlight?"
    assert (await box.library.search(question, within=EVERYTHING)).covered
    request = Request([Message("user", question)], "quotes", 200, 0.0, question=question)
    assert "".join([chunk.text async for chunk in box.quotes.generate(request)]) == NOT_COVERED
    await box.close()


@hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    name=st.sampled_from(sorted(USERS)),
    names=st.lists(st.sampled_from([*READERS, "never", "*", "", "everyone' OR '1'='1"]), max_size=5),
)
def test_no_list_of_names_reaches_further_than_its_asker(school: School, name: str, names: list[str]) -> None:
    try:
        within = school.box.library.shelves.named(names, school.within(name))
    except NotFound:
        assert not set(names) & SEES[name]
        return
    assert {collection.name for collection in school.box.library.shelves.list(within)} == set(names) & SEES[name]


@pytest.mark.parametrize("by", ["quotes", "starter", "model"])
async def test_an_old_chat_shows_the_text_of_a_document_only_while_it_may_be_seen(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    box = make_box(settings, library=lambda database: Library(settings, database, embed))
    head = User("head", "Head", "administrator")
    monkeypatch.setattr(box.accounts, "session", lambda _token: Session(head, "token"))
    with box.database.begin() as connection:
        connection.execute(sa.insert(users).values(id="head", name="Head", role=head.role, password_hash="!", created=0))
    (tmp_path / "The plants.txt").write_text(f"{PLANTS} So says {canary('plants')}.")
    (report,) = await box.library.add([tmp_path / "The plants.txt"])
    box.library.shelves.create("Staff")
    box.pool.model, box.pool.starter = None if by == "quotes" else "green-1", by == "starter"
    box.pool.answer = "Plants make sugar [1]."
    async with aclosing(box.chat.answer(head, "How do plants make sugar?")) as events:
        (ids,) = [event.data async for event in events if event.kind == "turn"]
    async with _client(School(box, {}), "head") as client:

        async def page() -> str:
            return (await client.get(f"/chat/{ids['conversation']}")).text

        assert canary("plants") in await page()
        await box.library.move(report.document, "Staff", EVERYTHING)
        hidden = await page()
        stored = await client.get(f"/chat/stream/{ids['turn']}")
        assert canary("plants") not in hidden + stored.text
        assert "The plants" in hidden and "How do plants make sugar?" in hidden
        assert ("Plants make sugar" in hidden) == (by != "quotes"), "a model's own words stay"
        box.pool.model, box.pool.starter = "green-1", False
        async with aclosing(box.chat.answer(head, "Tell me more.", conversation=ids["conversation"])) as events:
            async for _ in events:
                pass
        assert canary("plants") not in repr(box.pool.requests[-1]), "nor does the model read it there"
        await box.library.move(report.document, "school", EVERYTHING)
        assert canary("plants") in await page()
    await box.chat.close()
    box.library.close()
    box.database.close()
