"""What was removed is gone: no byte of its file, its passages, its vectors, and of what chats quoted from it, is left.

A word that stands nowhere else is looked for in the raw bytes of every file below HOME, and so are the vectors of its passages.
A chat may have been answered by a model, by quotes alone, or by a starter model below quotes.
The engine's cache keeps nothing but the school's own instructions (`engine.standing`), and no engine runs here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from appliance.accounts import User
from appliance.conversations import Turn
from appliance.db import Database
from appliance.engine.handler import Chunk, Request
from appliance.engine.quotes import INTRODUCTION, Quotes
from appliance.errors import NotFound
from appliance.knowledge.intake import Intake
from appliance.knowledge.library import EVERYTHING, Gone, Library
from appliance.knowledge.quoted import IN_PLACE
from appliance.settings import Settings
from appliance.tables import conversations, gone_documents, passages, turns
from tests.knowledge.helpers import PLANTS, RIVERS, embed, pdf
from tests.web.box import PretendPool, make_box

CANARY = "zqxvkwj"  # no ending that a stemmer would take off
SECRET = f"{PLANTS} Plants make their sugar from sunlight, says the book of the {CANARY}."
QUESTION = f"What does the book say of the {CANARY} and of plants that make sugar from sunlight?"
ANSWERED_BY = pytest.mark.parametrize("by", ["model", "quotes", "starter"])


class Pool(PretendPool):
    """A pretend model, and the real quotes. Nothing is answered while the gate is shut."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()

    def answered_by(self, by: str) -> None:
        self.starter = by == "starter"
        if by == "quotes":
            self.model = None

    async def generate(self, request: Request) -> AsyncGenerator[Chunk, None]:
        async def nothing(_question: str) -> list[Any]:
            return []

        await self.gate.wait()
        quotes = request.model == "quotes" or self.model is None
        async with aclosing(Quotes(nothing).generate(request) if quotes else super().generate(request)) as chunks:
            async for chunk in chunks:
                yield chunk


@pytest.fixture
async def box(settings: Settings) -> AsyncIterator[Any]:
    box = make_box(settings, pool=Pool(), library=lambda database: Library(settings, database, embed, "toy"))
    yield box
    await box.chat.close()
    box.library.close()
    box.database.close()


def places(home: Path, needles: list[bytes]) -> list[str]:
    """The files below HOME that hold one of these, in capitals or not."""
    found = []
    for path in sorted(home.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            if any(needle in data or needle in data.lower() for needle in needles):
                found.append(path.relative_to(home).as_posix())
    return found


def needles(database: Database, document: str) -> list[bytes]:
    """The canary in the encodings a file may have, and every part of its vectors that is long enough to be told."""
    told = [CANARY.encode(code) for code in ("utf-8", "utf-16-le", "utf-16-be")]
    with database.read() as connection:
        vectors = connection.scalars(sa.select(passages.c.vector).where(passages.c.document == document))
        told += [vector[at : at + 32] for vector in vectors if vector is not None for at in range(0, len(vector), 32)]
    return told


async def added(library: Library, path: Path) -> str:
    (report,) = await library.add([path])
    assert report.error is None
    return str(report.document)


async def told(box: Any, question: str) -> str:
    """Ask, and wait for the answer; the chat's id."""
    me: User = box.accounts.local_administrator()
    asked = await box.chat.start(me, question)
    async with aclosing(box.chat.follow(me, asked.data["turn"])) as events:
        async for _ in events:
            pass
    return str(asked.data["conversation"])


def answer(box: Any, chat: str) -> Turn:
    (found,) = [turn for turn in box.chat.conversations.load(box.accounts.local_administrator(), chat)[1] if turn.passages]
    assert isinstance(found, Turn)
    return found


def quoted(turn: Turn) -> str:
    return turn.facts["lead"] or turn.text


@ANSWERED_BY
async def test_no_byte_of_a_removed_document_is_left(box: Any, settings: Settings, tmp_path: Path, by: str) -> None:
    folder = tmp_path / "both"  # added together, and therefore in one part of the index
    folder.mkdir()
    pdf(folder / "keep.pdf", [RIVERS, f"{PLANTS} This book stays."])
    (folder / "secret.txt").write_text("\n\n".join([SECRET, RIVERS] * 20))
    keep, id = [str(report.document) for report in await box.library.add([folder])]
    wanted = needles(box.database, id)
    assert len(wanted) > 3
    box.pool.answered_by(by)
    chat = await told(box, QUESTION)
    assert (CANARY in quoted(answer(box, chat))) == (by != "model")
    assert (await box.library.search(QUESTION, within=EVERYTHING)).passages[0].document == id
    box.database.fold_log()
    before = places(settings.home, wanted)
    assert {"appliance.sqlite3", f"documents/{id}"} <= set(before) and any(path.startswith("index/") for path in before)
    with box.database.begin() as connection:  # what the person typed is theirs, and not the document's
        connection.execute(sa.update(turns).where(turns.c.role == "user").values(text="a question"))
        connection.execute(sa.update(conversations).values(title="a chat"))

    assert await box.library.remove(id, EVERYTHING)

    assert places(settings.home, wanted) == []
    turn = answer(box, chat)
    ours = [one for one in turn.passages if one["document"] == id]
    assert ours and all((one["text"], one["title"], one["file"]) == ("", "secret", "secret.txt") for one in ours)
    assert all(one["text"] for one in turn.passages if one["document"] == keep)
    assert (IN_PLACE in quoted(turn)) == (by != "model")
    assert bool(turn.text) and ("chlorophyll" in turn.text) == (by != "quotes"), "a model's own words stay"
    assert (await box.library.search("Where does a river drop pebbles?", within=EVERYTHING)).passages[0].document == keep


@pytest.mark.parametrize("by", ["quotes", "starter"])
async def test_what_was_quoted_from_other_documents_stays(box: Any, tmp_path: Path, by: str) -> None:
    tree, house = "The oldest tree of the school is an oak.", "The oldest house of the school is a chapel."
    ids = {}
    for name, text in (("tree", tree), ("house", house)):
        (tmp_path / f"{name}.txt").write_text(text)
        ids[name] = await added(box.library, tmp_path / f"{name}.txt")
    box.pool.answered_by(by)
    chat = await told(box, "What is the oldest tree and what is the oldest house of the school?")
    numbers = {one["document"]: number for number, one in enumerate(answer(box, chat).passages, 1)}
    assert f'> "{tree}" [{numbers[ids["tree"]]}]' in quoted(answer(box, chat)) and house in quoted(answer(box, chat))
    await box.library.remove(ids["house"], EVERYTHING)
    parts = [f'> "{tree}" [{numbers[ids["tree"]]}]', IN_PLACE]
    assert sorted(quoted(answer(box, chat)).split("\n\n")) == sorted(parts)
    await box.library.remove(ids["tree"], EVERYTHING)
    assert quoted(answer(box, chat)) == IN_PLACE and answer(box, chat).opening(str) == INTRODUCTION


async def test_a_models_own_words_stay_and_a_block_that_it_quotes_goes(box: Any, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text(SECRET)
    id = await added(box.library, tmp_path / "secret.txt")
    own = "The book of the zqxvkwj says that plants make sugar [1].\n\n\n1. Light.\n2. Water."
    box.pool.answer = f"{own}\n\n> {PLANTS} [1]\n\n> Nobody wrote this."
    chat = await told(box, "How do plants make sugar from sunlight?")
    await box.library.remove(id, EVERYTHING)
    assert answer(box, chat).text.split("\n\n") == [
        *own.replace("\n\n\n", "\n\n").split("\n\n"),
        IN_PLACE,
        "> Nobody wrote this.",
    ]


async def test_no_byte_of_a_replaced_document_is_left(box: Any, settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(SECRET)
    old = await added(box.library, path)
    wanted = needles(box.database, old)
    path.write_text(RIVERS)
    new = await added(box.library, path)
    assert places(settings.home, wanted) == []
    gone = await box.library.document(old, EVERYTHING)
    assert isinstance(gone, Gone) and gone.successor == new


@ANSWERED_BY
@pytest.mark.parametrize("discarded", [False, True])
async def test_an_answer_under_way_does_not_bring_the_text_back(
    box: Any, settings: Settings, tmp_path: Path, by: str, discarded: bool
) -> None:
    (tmp_path / "secret.txt").write_text(SECRET)
    id = await added(box.library, tmp_path / "secret.txt")
    wanted = needles(box.database, id)
    me: User = box.accounts.local_administrator()
    box.pool.answered_by(by)
    box.pool.gate.clear()
    asked = await box.chat.start(me, "How do plants make sugar from sunlight?")
    async with aclosing(box.chat.follow(me, asked.data["turn"])) as events:
        async for event in events:
            if event.kind == "sources":
                assert [one["document"] for one in event.data["passages"]] == [id]
                await box.library.remove(id, EVERYTHING)
                if discarded:  # and with the collection what was known of the document
                    box.library.shelves.discard("school", EVERYTHING)
                box.pool.gate.set()
            if event.kind == "done":
                assert (CANARY in (event.data["lead"] or event.data["text"])) == (by != "model"), "it was under way"
    turn = answer(box, asked.data["conversation"])
    assert turn.state == "done" and [one["text"] for one in turn.passages] == [""]
    assert (IN_PLACE in quoted(turn)) == (by != "model")
    box.database.fold_log()
    assert places(settings.home, wanted) == []


async def test_the_log_that_somebody_reads_is_told_and_emptied_the_next_time(
    box: Any, settings: Settings, tmp_path: Path
) -> None:
    for name, text in (("secret.txt", SECRET), ("other.txt", RIVERS)):
        (tmp_path / name).write_text(text)
    id, other = [await added(box.library, tmp_path / name) for name in ("secret.txt", "other.txt")]
    wanted = needles(box.database, id)
    reader = Database(settings.database)
    with reader.read() as connection:
        connection.execute(sa.select(passages.c.id)).all()
        assert await box.library.remove(id, EVERYTHING) is False
    reader.close()
    assert await box.library.remove(other, EVERYTHING) is True
    assert places(settings.home, wanted) == []


async def test_the_next_removal_finishes_one_that_was_killed(
    box: Any, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret.txt").write_text(SECRET)
    id = await added(box.library, tmp_path / "secret.txt")
    wanted = needles(box.database, id)

    class Killed(BaseException):
        pass

    def killed(*_arguments: Any) -> None:
        raise Killed

    monkeypatch.setattr(Intake, "tidy", killed)
    monkeypatch.setattr(box.library._index, "rebuild", killed)
    with pytest.raises(Killed):
        await box.library.remove(id, EVERYTHING)
    monkeypatch.undo()
    assert places(settings.home, wanted)
    with pytest.raises(NotFound):
        await box.library.remove(id, EVERYTHING)
    assert places(settings.home, wanted) == []


async def test_the_trace_of_a_document_holds_nothing_of_its_text(box: Any, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text(SECRET)
    id = await added(box.library, tmp_path / "secret.txt")
    await box.library.remove(id, EVERYTHING, by="ann")
    with box.database.read() as connection:
        (row,) = connection.execute(sa.select(gone_documents)).all()
    assert (row.id, row.title, row.file, row.why, row.by, row.version) == (id, "secret", "secret.txt", "removed", "ann", 1)
    assert CANARY not in repr(row) and row.first_passage == row.last_passage
