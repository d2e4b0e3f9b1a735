"""What was removed is gone: no byte of its text or its vectors is left in any file of the box.

A word that stands nowhere else is looked for in the raw bytes of every file below HOME, and so are the vectors of its passages.
The engine's cache keeps nothing but the school's own instructions (`engine.standing`), and no engine runs here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from appliance.accounts import User
from appliance.db import Database
from appliance.errors import NotFound
from appliance.knowledge.intake import Intake
from appliance.knowledge.library import EVERYTHING, Gone, Library
from appliance.settings import Settings
from appliance.tables import conversations, gone_documents, passages, turns
from tests.knowledge.helpers import PLANTS, RIVERS, embed, pdf
from tests.web.box import make_box

CANARY = "zqxvkwj"  # no ending that a stemmer would take off
SECRET = f"{PLANTS} Only this book knows of the {CANARY}."
QUESTION = f"What does the book say of the {CANARY} and of plants that make sugar from sunlight?"


@pytest.fixture
async def box(settings: Settings) -> AsyncIterator[Any]:
    box = make_box(settings, library=lambda database: Library(settings, database, embed, "toy"))
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


async def test_no_byte_of_a_removed_document_is_left(box: Any, settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "both"  # added together, and therefore in one part of the index
    folder.mkdir()
    pdf(folder / "keep.pdf", [RIVERS, f"{PLANTS} This book stays."])
    (folder / "secret.txt").write_text("\n\n".join([SECRET, RIVERS] * 20))
    keep, id = [str(report.document) for report in await box.library.add([folder])]
    wanted = needles(box.database, id)
    assert len(wanted) > 3
    me: User = box.accounts.local_administrator()
    async with aclosing(box.chat.answer(me, QUESTION)) as events:
        async for _ in events:
            pass
    assert (await box.library.search(QUESTION, within=EVERYTHING)).passages[0].document == id
    box.database.fold_log()
    before = places(settings.home, wanted)
    assert {"appliance.sqlite3", f"documents/{id}"} <= set(before) and any(path.startswith("index/") for path in before)
    with box.database.begin() as connection:  # what the person typed is theirs, and not the document's
        connection.execute(sa.update(turns).where(turns.c.role == "user").values(text="a question"))
        connection.execute(sa.update(conversations).values(title="a chat"))

    assert await box.library.remove(id, EVERYTHING)

    assert places(settings.home, wanted) == []
    with box.database.read() as connection:
        (stored,) = connection.scalars(sa.select(turns.c.passages).where(turns.c.role == "assistant"))
    ours = [one for one in stored if one["document"] == id]
    assert ours and all((one["text"], one["title"], one["file"]) == ("", "secret", "secret.txt") for one in ours)
    assert all(one["text"] for one in stored if one["document"] == keep)
    assert (await box.library.search("Where does a river drop pebbles?", within=EVERYTHING)).passages[0].document == keep


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


async def test_an_answer_under_way_does_not_bring_the_text_back(box: Any, settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text(SECRET)
    id = await added(box.library, tmp_path / "secret.txt")
    wanted = needles(box.database, id)
    me: User = box.accounts.local_administrator()
    box.pool.pace = 0.02
    asked = await box.chat.start(me, "How do plants make sugar from sunlight?")
    async with aclosing(box.chat.follow(me, asked.data["turn"])) as events:
        async for event in events:
            if event.kind == "sources":
                assert [one["document"] for one in event.data["passages"]] == [id]
                await box.library.remove(id, EVERYTHING)
    (turn,) = [turn for turn in box.chat.conversations.load(me, asked.data["conversation"])[1] if turn.role == "assistant"]
    assert turn.state == "done" and [one["text"] for one in turn.passages] == [""]
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
