"""Folders that are watched: what stood still is taken, once; what vanished is told; what is none of ours is left alone."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.cli import worker
from appliance.db import Database
from appliance.errors import BadInput, NotFound
from appliance.jobs import Job, Jobs, Tell, work_one
from appliance.knowledge import watching as module
from appliance.knowledge.ingest import Record, ingest
from appliance.knowledge.library import EVERYTHING, Library
from appliance.knowledge.watching import Watch, Watching, asked
from appliance.settings import Settings
from tests.knowledge.helpers import MAGNETS, PLANTS, RIVERS, embed, pdf


@pytest.fixture
def library(settings: Settings, database: Database) -> Iterator[Library]:
    library = Library(settings, database, embed)
    yield library
    library.close()


class School:
    """A folder that is watched, and a worker that looks when it is told to."""

    def __init__(self, folder: Path, library: Library, database: Database, settings: Settings) -> None:
        folder.mkdir()
        self.folder = folder
        self.library = library
        self.database = database
        self.queue = Jobs(database, settings)
        self.watching = Watching(database, settings)
        self.watch = self.watching.add(folder, "Year 7")

    def look(self) -> list[str]:
        """One look; the files that are handed to a job."""
        ready = self.watching.look(self.watch)
        if ready:
            kind, payload = asked(self.watch, ready)
            self.watching.taken(self.watch, self.queue.enqueue(kind, payload, lane="light").id, ready)
        return sorted(str(path.relative_to(self.folder)) for path in ready)

    async def work(self) -> Job:
        async def handler(job: Job, tell: Tell) -> dict[str, Any]:
            return await ingest(self.library, Record(self.database, job.id), job.payload, tell=tell)

        (waiting,) = [job for job in self.queue.list() if job.state == "queued"]
        return await work_one(self.queue, waiting.id, {"ingest": handler})

    async def seen(self) -> dict[str, int]:
        """Two looks with the work of a job after each."""
        for _ in range(2):
            if self.look():
                assert (await self.work()).state == "done"
        self.look()
        return self.now().states

    def now(self) -> Watch:
        return self.watching.one(self.watch.id)

    async def documents(self) -> list[tuple[str, str]]:
        return [(document.collection, document.file) for document in await self.library.documents(EVERYTHING)]


@pytest.fixture
def school(tmp_path: Path, library: Library, database: Database, settings: Settings) -> School:
    return School(tmp_path / "put files here", library, database, settings)


async def test_what_stands_still_for_two_looks_is_added_to_its_collection_and_never_again(school: School) -> None:
    (school.folder / "plants.txt").write_text(PLANTS)
    (school.folder / "week 2").mkdir()
    pdf(school.folder / "week 2" / "rivers.pdf", [RIVERS])
    assert school.look() == [], "seen for the first time"
    assert school.look() == ["plants.txt", "week 2/rivers.pdf"]
    assert school.look() == [], "in the hands of a job"
    job = await school.work()
    assert job.result is not None and job.result["added"] == 2
    assert await school.documents() == [("Year 7", "plants.txt"), ("Year 7", "rivers.pdf")]
    assert [school.look() for _ in range(3)] == [[], [], []]
    assert school.now().states == {"there": 2} and school.now().trouble == ""
    (school.folder / "plants.txt").write_text(MAGNETS)
    assert await school.seen() == {"there": 2}
    assert await school.documents() == [("Year 7", "plants.txt"), ("Year 7", "rivers.pdf")]
    found = await school.library.search("compass needle magnet", within=EVERYTHING)
    assert found.passages[0].file == "plants.txt"


async def test_a_file_that_is_being_written_waits(school: School) -> None:
    path = school.folder / "long.txt"
    for number in range(4):
        with path.open("a") as file:
            file.write(f"{PLANTS} {number}.\n")
        assert school.look() == [], "it grew since the last look"
    os.utime(path, ns=(0, 0))
    assert school.look() == [], "it was touched"
    assert school.look() == ["long.txt"]
    with path.open("a") as file:
        file.write(RIVERS)
    await school.work()
    assert school.look() == [], "it grew after it was taken: it waits again"
    assert school.look() == ["long.txt"]
    await school.work()
    assert await school.documents() == [("Year 7", "long.txt")]


async def test_what_vanishes_is_told_and_stays_in_the_library(school: School, tmp_path: Path) -> None:
    (school.folder / "plants.txt").write_text(PLANTS)
    (school.folder / "never taken.txt").write_text(RIVERS)
    assert school.look() == []
    (school.folder / "never taken.txt").unlink()
    assert await school.seen() == {"there": 1}
    (school.folder / "plants.txt").rename(tmp_path / "plants.txt")
    assert await school.seen() == {"gone": 1}
    assert school.now().gone == ["plants.txt"]
    assert await school.documents() == [("Year 7", "plants.txt")]
    (tmp_path / "plants.txt").rename(school.folder / "plants.txt")
    assert school.look() == [] and school.look() == [], "the very same file is back: it is in the library already"
    assert school.now().states == {"there": 1}


async def test_a_stick_that_is_pulled_out_makes_nothing_vanish(school: School, tmp_path: Path) -> None:
    (school.folder / "plants.txt").write_text(PLANTS)
    assert await school.seen() == {"there": 1}
    school.folder.rename(tmp_path / "elsewhere")
    assert await school.seen() == {"there": 1}
    assert "is not there" in school.now().trouble
    (tmp_path / "elsewhere").rename(school.folder)
    assert await school.seen() == {"there": 1} and school.now().trouble == ""


async def test_hidden_and_unfinished_files_are_left_alone(school: School) -> None:
    names = (
        ".hidden.txt",
        "~$notes.docx",
        ".~lock.notes.odt#",
        "book.pdf.part",
        "a.CRDOWNLOAD",
        "b.tmp",
        "c.txt~",
        "x.download",
    )
    for name in names:
        (school.folder / name).write_text(PLANTS)
    (school.folder / ".git").mkdir()
    (school.folder / ".git" / "notes.txt").write_text(PLANTS)
    assert await school.seen() == {}
    (school.folder / "book.pdf.part").rename(school.folder / "book.txt")
    assert await school.seen() == {"there": 1}


async def test_links_are_not_followed_whenever_they_are_made(school: School, tmp_path: Path) -> None:
    secret = tmp_path / "staff only"
    secret.mkdir()
    (secret / "marks.txt").write_text(MAGNETS)
    (school.folder / "link.txt").symlink_to(secret / "marks.txt")
    (school.folder / "folder").symlink_to(secret)
    assert await school.seen() == {}
    # A folder that becomes a link after it was looked at, and before the job reads it.
    (school.folder / "real").mkdir()
    (school.folder / "real" / "marks.txt").write_text(PLANTS)
    school.look()
    assert school.look() == ["real/marks.txt"]
    shutil.rmtree(school.folder / "real")
    (school.folder / "real").symlink_to(secret)
    await school.work()
    assert await school.seen() == {}
    school.folder.rename(tmp_path / "was")
    school.folder.symlink_to(secret)
    assert await school.seen() == {}
    assert "is a link" in school.now().trouble
    assert await school.documents() == []


async def test_a_file_that_cannot_be_read_is_tried_once_until_it_changes(school: School) -> None:
    (school.folder / "a.pdf").write_bytes(b"%PDF-1.7\n")
    (school.folder / "b.txt").write_text(PLANTS)
    assert await school.seen() == {"failed": 1, "there": 1}
    assert school.look() == [] and school.look() == []
    pdf(school.folder / "a.pdf", [RIVERS])
    assert await school.seen() == {"there": 2}


async def test_what_failed_for_no_fault_of_its_own_is_tried_again_after_a_while(
    school: School, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    (school.folder / "a.txt").write_text(PLANTS)
    full = settings.model_copy(update={"disk_reserve_mb": 10**9})
    room, school.library = school.library, Library(full, school.database, embed)
    assert await school.seen() == {"failed": 1}
    school.library.close()
    school.library = room
    assert school.look() == [], "not every half minute"
    monkeypatch.setattr(module, "AGAIN", 0.0)
    assert await school.seen() == {"there": 1}


async def test_a_cancelled_job_leaves_its_files_alone_and_one_that_failed_does_not(
    school: School, monkeypatch: pytest.MonkeyPatch
) -> None:
    (school.folder / "a.txt").write_text(PLANTS)
    school.look()
    assert school.look() == ["a.txt"]
    school.queue.cancel(school.queue.list()[0].id)
    assert await school.seen() == {"left": 1}
    (school.folder / "b.txt").write_text(RIVERS)
    school.look()
    assert school.look() == ["b.txt"]
    job = school.queue.claim("light", ["ingest"])
    assert job is not None
    school.queue.fail(job.id, NotFound("Something broke.", "Nothing."))
    assert school.look() == [], "not every half minute"
    monkeypatch.setattr(module, "AGAIN", 0.0)
    assert await school.seen() == {"left": 1, "there": 1}


async def test_the_same_folder_is_watched_once_for_a_collection(school: School, settings: Settings, tmp_path: Path) -> None:
    assert school.watching.add(school.folder, "Year 7").id == school.watch.id
    other = school.watching.add(school.folder / ".." / school.folder.name, "Year 8")
    assert {watch.collection for watch in school.watching.all()} == {"Year 7", "Year 8"}
    with pytest.raises(BadInput, match="several collections"):
        school.watching.remove(str(school.folder))
    school.watching.remove(other.id)
    (school.folder / "a.txt").write_text(PLANTS)
    await school.seen()
    school.watching.remove(str(school.folder))
    assert school.watching.all() == [] and school.watching.look(school.watch) == []
    assert await school.documents() == [("Year 7", "a.txt")], "what was added stays"
    with pytest.raises(NotFound, match="is not watched"):
        school.watching.remove(str(school.folder))
    for bad in (tmp_path / "nowhere", settings.home, settings.home / "documents", tmp_path):
        with pytest.raises(BadInput) as caught:
            school.watching.add(bad, "Year 7")
        assert caught.value.hint


async def test_a_renamed_collection_keeps_its_folder_and_a_removed_one_ends_the_watch(school: School) -> None:
    school.library.shelves.rename("Year 7", "Year 8", EVERYTHING)
    (school.folder / "a.txt").write_text(PLANTS)
    school.watch = school.now()
    await school.seen()
    assert await school.documents() == [("Year 8", "a.txt")]
    with school.database.begin() as connection:
        connection.exec_driver_sql("DELETE FROM collections")
    assert school.watching.all() == [] and school.watching.look(school.watch) == []


async def test_a_folder_of_too_many_files_says_so(school: School, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FILES", 3)
    for number in range(5):
        (school.folder / f"{number}.txt").write_text(f"{PLANTS} {number}.")
    assert await school.seen() == {"there": 3}
    assert "more files than are looked at" in school.now().trouble


# --- folders that cannot be looked at -----------------------------------------------------------------------------------
def _leads_to_itself(folder: Path, _patch: pytest.MonkeyPatch) -> None:
    folder.rmdir()
    folder.symlink_to(folder)


def _lies_below_one_that_may_not_be_entered(folder: Path, _patch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:
        pytest.skip("nothing is forbidden to root")
    folder.parent.chmod(0)


def _lies_on_a_disk_that_fails(folder: Path, patch: pytest.MonkeyPatch) -> None:
    def stat(path: Any, **more: Any) -> os.stat_result:
        if str(path) == str(folder):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return real(path, **more)

    real = os.stat
    patch.setattr(os, "stat", stat)


def _fails_in_a_way_that_nobody_thought_of(folder: Path, patch: pytest.MonkeyPatch) -> None:
    def walk(paths: list[Path]) -> Iterator[Path]:
        if folder in paths:
            raise ZeroDivisionError("something")
        return real(paths)

    real = module.walk
    patch.setattr(module, "walk", walk)


@pytest.mark.parametrize(
    "trouble",
    [
        _leads_to_itself,
        _lies_below_one_that_may_not_be_entered,
        _lies_on_a_disk_that_fails,
        _fails_in_a_way_that_nobody_thought_of,
    ],
)
async def test_a_folder_that_cannot_be_looked_at_says_so_and_stops_no_other(
    school: School, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: Callable[[Path, pytest.MonkeyPatch], None]
) -> None:
    bad = tmp_path / "a" / "bad"  # by their folders, it is looked at before the good one
    bad.mkdir(parents=True)
    watch = school.watching.add(bad, "Year 8")
    (school.folder / "plants.txt").write_text(PLANTS)
    appliance: Any = SimpleNamespace(
        database=school.database, settings=Settings(home=tmp_path / "unused").model_copy(update={"watch_seconds": 0.02})
    )
    with monkeypatch.context() as patch:
        trouble(bad, patch)
        task = asyncio.ensure_future(worker.watch(appliance, school.queue))
        until = time.monotonic() + 1800.0
        while school.now().states != {"taken": 1} or not school.watching.one(watch.id).trouble:
            assert not task.done() and time.monotonic() < until
            await asyncio.sleep(0.02)
    bad.parent.chmod(0o700)
    if bad.is_symlink():
        bad.unlink()
        bad.mkdir()
    told = school.watching.one(watch.id).trouble
    assert told.startswith("The folder ") and told.endswith(".") and "Traceback" not in told
    while school.watching.one(watch.id).trouble:
        assert not task.done() and time.monotonic() < until, "it is looked at again, and is well"
        await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_watching_goes_on_though_the_list_of_folders_could_not_be_read_once(
    school: School, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> list[Watch]:
        raise RuntimeError("no such luck")

    appliance: Any = SimpleNamespace(
        database=school.database, settings=Settings(home=tmp_path / "unused").model_copy(update={"watch_seconds": 0.02})
    )
    note = tmp_path / "worker.log"
    monkeypatch.setattr(school.queue, "note", lambda _id, line: note.write_text(line))
    until = time.monotonic() + 1800.0
    with monkeypatch.context() as patch:
        patch.setattr(Watching, "all", broken)
        task = asyncio.ensure_future(worker.watch(appliance, school.queue))
        while not note.is_file():
            assert not task.done() and time.monotonic() < until
            await asyncio.sleep(0.02)
    assert "no such luck" in note.read_text()
    while school.now().looked is None:
        assert not task.done() and time.monotonic() < until
        await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_file_that_cannot_be_looked_at_has_not_vanished(school: School, monkeypatch: pytest.MonkeyPatch) -> None:
    (school.folder / "plants.txt").write_text(PLANTS)
    assert await school.seen() == {"there": 1}

    def lstat(path: Any, **more: Any) -> os.stat_result:
        if str(path).endswith("plants.txt"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return real(path, **more)

    real = os.lstat
    with monkeypatch.context() as patch:
        patch.setattr(os, "lstat", lstat)
        school.look()
    assert school.now().states == {"there": 1} and "cannot be looked at" in school.now().trouble


def test_a_watch_is_ended_by_a_folder_that_leads_to_itself_by_now(school: School) -> None:
    school.folder.rmdir()
    school.folder.symlink_to(school.folder)
    assert school.watching.remove(str(school.folder)).id == school.watch.id
