"""Several processes at one library: who searches meets no half of an index and builds none, and two who add add once."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from appliance.db import Database
from appliance.jobs import Jobs
from appliance.knowledge import index, segments, vectors
from appliance.knowledge import ingest as bulk
from appliance.knowledge.library import EVERYTHING, Library
from appliance.settings import CLONE, Settings
from tests.knowledge.helpers import embed

QUESTION = "Where does a river build a delta?"
HEAVY = {"torch", "transformers", "sentence_transformers", "llama_cpp", "tokenizers", "pypdfium2", "lxml"}
WORDS = ["amber", "basalt", "cobalt", "dolomite", "emerald", "feldspar", "garnet", "hematite", "jasper", "kyanite", "limonite"]
BUFFERED = 5_000  # lines that may wait in the pipe: searches from before a change


def _said(pipe: IO[str]) -> Any:
    line = pipe.readline()
    assert line, "the reader died"
    return json.loads(line)


@contextmanager
def _reader(settings: Settings, kind: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.knowledge.reader", str(settings.home), QUESTION, kind]
    with subprocess.Popen(command, cwd=CLONE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def _write(folder: Path, number: int) -> Path:
    """Documents that share three words with the question, and no more than that with each other."""
    path = folder / f"{number:02}.txt"
    own = " ".join(f"{word}{number}" for word in WORDS)
    path.write_text(f"The river delta number {number}: {own}.")
    return path


@pytest.mark.parametrize("kind", ["flat", "scan"])
async def test_a_process_that_searches_meets_every_state_whole_and_builds_none(
    settings: Settings, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Of the kind that is read in place every document is a segment of its own, and what is gone is purged in its own step."""
    if kind != "flat":
        monkeypatch.setattr(index, "GROWTH", 0)
        monkeypatch.setattr(index, "QUICK", 0)
        monkeypatch.setattr(vectors, "FLAT_BELOW", 1)
        monkeypatch.setattr(segments, "IN_MEMORY", 0)
    library = Library(settings, database, embed)
    await library.add([_write(tmp_path, 0)])
    states = [{"00.txt"}]
    with _reader(settings, kind) as process:
        assert process.stdin is not None and process.stdout is not None
        seen: list[Any] = [_said(process.stdout)]
        for number in range(1, 25):
            if number % 3:
                await library.add([_write(tmp_path, number)])
                states.append(states[-1] | {f"{number:02}.txt"})
            else:
                gone = min(states[-1])
                (document,) = [one.id for one in await library.documents(EVERYTHING) if one.file == gone]
                await library.remove(document, EVERYTHING)
                states.append(states[-1] - {gone})
            for count in itertools.count():  # until it has seen that, however slow the machine
                seen.append(_said(process.stdout))
                if not isinstance(seen[-1], list) or set(seen[-1]) == states[-1]:
                    break
                assert count < BUFFERED, f"it never sees {states[-1]}"
        process.stdin.close()
        seen += [json.loads(line) for line in process.stdout]
        assert process.wait() == 0
    told = seen.pop()
    at = 0
    for found in seen:
        assert isinstance(found, list) and len(set(found)) == len(found), found
        assert set(found) in states[at:], "a state that was there, and none from before it"
        at = states.index(set(found), at)
    assert told["built"] == 0, "what whoever adds has built is only opened"
    assert "faiss" in told["modules"] and not HEAVY & set(told["modules"])
    library.close()


async def test_processes_that_add_the_same_folder_at_once_add_each_document_once(
    settings: Settings, database: Database, tmp_path: Path
) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    names = {_write(folder, number).name for number in range(11)}
    (folder / "empty.txt").touch()
    jobs = Jobs(database, settings)
    running = []
    for number in range(2):
        asked = bulk.later(database, [folder], "school") | {"number": number}
        job = jobs.enqueue(bulk.LATER, asked, lane="light")
        command = [sys.executable, "-m", "tests.knowledge.racing", str(settings.home), job.id, str(folder)]
        running.append(subprocess.Popen(command, cwd=CLONE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    for process in running:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in running:
        assert process.stdin is not None
        process.stdin.close()
    told = []
    for process in running:
        with process:
            assert process.stdout is not None
            told.append(json.loads(process.stdout.read()))
        assert process.returncode == 0
    for reports in told:
        assert set(reports) == names | {"empty.txt"} and reports.pop("empty.txt") == "failed"
    assert all({one[name] for one in told} <= {"added", "unchanged"} for name in names)
    assert all([one[name] for one in told].count("added") == 1 for name in names), "each by one of them"
    library = Library(settings, database, embed)
    assert sorted(document.file for document in await library.documents(EVERYTHING)) == sorted(names)
    found = await library.search(QUESTION, k=40, within=EVERYTHING)
    assert sorted(passage.file for passage in found.passages) == sorted(names)
    library.close()
    listed = json.loads((settings.index / "current").read_text())["segments"]
    assert {path.name for path in settings.index.iterdir()} == {"current", *listed}
    assert len(list(settings.documents.iterdir())) == len(names)
