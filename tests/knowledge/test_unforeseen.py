"""What nobody foresaw: a reader, a cutter or an embedder that fails in a way of its own costs one file, or only the vectors."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from appliance.db import Database
from appliance.errors import BadInput, Busy
from appliance.knowledge import intake
from appliance.knowledge.embedding import AWAY
from appliance.knowledge.library import EVERYTHING, Library
from appliance.settings import Settings
from tests.knowledge.helpers import MAGNETS, PLANTS, RIVERS, embed, engine_down

SECRET = "Thandeka's mark is 23"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    for name, text in {"a.txt": PLANTS, "b.txt": MAGNETS, "c.txt": RIVERS}.items():
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("fault", [RuntimeError, KeyError, RecursionError, MemoryError, AssertionError, ZeroDivisionError])
@pytest.mark.parametrize("step", ["extract", "cut", "sync"])
async def test_whatever_one_file_does_the_others_are_added(
    settings: Settings, database: Database, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    step: str, fault: type[Exception],
) -> None:  # fmt: skip
    calls = []

    def second_fails(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise fault(SECRET)
        return real(*arguments)

    real = getattr(intake, step)
    monkeypatch.setattr(intake, step, second_fails)
    library = Library(settings, database, embed)
    reports = await library.add([folder])
    assert [(one.file, one.status) for one in reports] == [("a.txt", "added"), ("b.txt", "failed"), ("c.txt", "added")]
    error = reports[1].error
    assert error is not None and "b.txt was not added" in error.message and error.hint
    assert fault.__name__ in caplog.text and __file__ in caplog.text, "where it was stands in the log"
    assert SECRET not in caplog.text + error.message + error.hint
    assert [document.file for document in await library.documents(EVERYTHING)] == ["a.txt", "c.txt"]
    assert len(list(settings.documents.iterdir())) == 2, "nothing of it is left"
    monkeypatch.undo()
    assert [one.status for one in await library.add([folder])] == ["unchanged", "added", "unchanged"]
    library.close()


async def nonsense(_texts: Sequence[str]) -> np.ndarray[Any, Any]:
    return np.zeros((1, 3), dtype=np.float32)


async def words(texts: Sequence[str]) -> Any:
    return list(texts)


async def ragged(texts: Sequence[str]) -> Any:
    return [[0.0] * (384 - number) for number in range(len(texts) + 1)]


async def raises(_texts: Sequence[str]) -> Any:
    raise ConnectionResetError(SECRET)


async def busy(_texts: Sequence[str]) -> Any:
    raise Busy("The queue is full.")


async def refuses(_texts: Sequence[str]) -> Any:
    raise BadInput("The text is too long.")


@pytest.mark.parametrize("engine", [nonsense, words, ragged, raises, busy, refuses])
async def test_whatever_the_embedder_does_files_are_added_by_their_words(
    settings: Settings, database: Database, folder: Path, caplog: pytest.LogCaptureFixture,
    engine: Callable[[Sequence[str]], Awaitable[Any]],
) -> None:  # fmt: skip
    """Also where passages wait for their vectors already: they go on waiting."""
    (folder / "c.txt").rename(folder.parent / "c.txt")
    away = Library(settings, database, engine_down)
    await away.add([folder])
    away.close()
    (folder.parent / "c.txt").rename(folder / "c.txt")
    library = Library(settings, database, engine)
    reports = await library.add([folder])
    assert [one.status for one in reports] == ["unchanged", "unchanged", "added"]
    assert reports[2].note == AWAY
    assert await library.waiting() == 3
    assert [one.levelno for one in caplog.records if "words only" in one.getMessage()] == [logging.WARNING]
    assert SECRET not in caplog.text
    library.close()
    library = Library(settings, database, embed)
    found = await library.search("Where does a river build a delta?", within=EVERYTHING)
    assert found.lexical_only and found.passages[0].file == "c.txt"
    await library.add([folder])
    assert await library.waiting() == 0, "and have them once the embedder is itself again"
    library.close()
