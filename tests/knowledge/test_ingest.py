"""Many files as one job: a line for each, gone on with after any death of the process, and never a torn copy."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from appliance.db import Database
from appliance.errors import Conflict, NotFound, UnderWay
from appliance.jobs import Job, Jobs
from appliance.knowledge import ingest as bulk
from appliance.knowledge.intake import FileReport
from appliance.knowledge.library import EVERYTHING, Library
from appliance.knowledge.shelves import Reader
from appliance.settings import CLONE, Settings
from tests.knowledge.broken_off import run
from tests.knowledge.helpers import MAGNETS, PLANTS, RIVERS, embed, pdf, pptx, shape

ATTEMPTS = 20_000  # at changing the library while another does, a hundredth of a second apart


@pytest.fixture
def library(settings: Settings, database: Database) -> Iterator[Library]:
    library = Library(settings, database, embed)
    yield library
    library.close()


def _files(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


def _asked(settings: Settings, database: Database, *paths: Path) -> Job:
    asked = bulk.later(database, paths, "school")
    return Jobs(database, settings).enqueue(bulk.LATER, asked, lane="light")


async def _ingest(library: Library, database: Database, job: Job, **more: Any) -> dict[str, Any]:
    return await bulk.ingest(library, bulk.Record(database, job.id), job.payload, tell=more.pop("tell", lambda _: None), **more)


async def test_each_file_has_its_line_and_bad_ones_stop_nothing(
    library: Library, settings: Settings, database: Database, tmp_path: Path
) -> None:
    folder = _files(tmp_path / "in", plants=PLANTS, empty="", twin=PLANTS)
    pdf(folder / "locked.pdf", [MAGNETS], password="chalk")
    pptx(folder / "slides.pptx", [shape(RIVERS), shape(MAGNETS)])
    (folder / "~$slides.pptx").write_bytes(b"a lock")
    (folder / "book.pdf.crdownload").write_bytes(b"half a book")
    job = _asked(settings, database, folder, tmp_path / "gone.pdf")
    told: list[dict[str, Any]] = []
    heard: list[FileReport] = []
    counts = await _ingest(library, database, job, tell=told.append, on_file=heard.append)
    assert counts == {"collection": "school", "files": 6, "passages": 4, "added": 2, "unchanged": 1, "failed": 3}
    reports = {report.file: report for report in bulk.Record(database, job.id).reports()}
    assert {name: report.status for name, report in reports.items()} == {
        "plants.txt": "added", "twin.txt": "unchanged", "slides.pptx": "added",
        "empty.txt": "failed", "locked.pdf": "failed", "gone.pdf": "failed",
    }  # fmt: skip
    assert (reports["slides.pptx"].pages, reports["slides.pptx"].kind, reports["slides.pptx"].passages) == (2, "pptx", 2)
    assert "plants.txt" in reports["twin.txt"].note
    for name in ("empty.txt", "locked.pdf", "gone.pdf"):
        error = reports[name].error
        assert error is not None and name in error.message and error.hint and error.code in ("bad_input", "not_found")
    assert sorted(report.path for report in heard) == sorted(report.path for report in reports.values())
    assert (told[0]["done"], told[-1]["done"], told[-1]["total"]) == (0, 6, 6)
    assert told[-1]["left"] == 0 and any(one["facts"].get("of") for one in told)


async def test_killed_at_one_step_or_another_the_job_goes_on_and_reads_nothing_twice(tmp_path: Path) -> None:
    folder = _files(tmp_path / "in", a=PLANTS, b=RIVERS, c=MAGNETS)
    seed = Settings(home=tmp_path / "seed")
    database = Database(seed.database)
    database.migrate()
    job = _asked(seed, database, folder)
    database.close()
    homes = [Path(shutil.copytree(seed.home, tmp_path / f"home-{number}")) for number in range(20)]
    command = [sys.executable, "-m", "tests.knowledge.broken_off", job.id, *map(str, homes)]
    told = subprocess.run(command, cwd=CLONE, capture_output=True, text=True, check=True).stdout.split()
    assert "failed" not in told and told[-1] == "finished", "enough homes to see every step"
    killed = told.count("killed")
    assert killed >= 5
    for home in homes[: killed + 1]:
        settings = Settings(home=home)
        ended = await run(settings, job.id)
        assert ended.state == "done"
        database = Database(settings.database)
        reports = bulk.Record(database, job.id).reports()
        assert [(report.file, report.status) for report in reports] == [(f"{name}.txt", "added") for name in "abc"]
        library = Library(settings, database, embed)
        documents = {document.file: document.id for document in await library.documents(EVERYTHING)}
        assert documents == {report.file: report.document for report in reports}
        assert {path.name for path in settings.documents.iterdir()} == set(documents.values())
        found = await library.search("Where does a river drop pebbles and build a delta?", within=EVERYTHING)
        assert found.passages[0].file == "b.txt"
        read = Counter((home / "read").read_text().split())
        assert set(read) == {"a.txt", "b.txt", "c.txt"} and read.total() <= 4, "only the one at hand is read again"
        library.close()
        database.close()


async def test_what_changed_since_the_job_was_broken_off_takes_the_place_of_what_was_added(
    library: Library, settings: Settings, database: Database, tmp_path: Path
) -> None:
    folder = _files(tmp_path / "in", a=PLANTS, b=RIVERS)
    job = _asked(settings, database, folder)

    class PowerCut(Exception):
        pass

    def cut(report: FileReport) -> None:
        if report.file == "a.txt":
            raise PowerCut

    with pytest.raises(PowerCut):
        await _ingest(library, database, job, on_file=cut)
    assert [document.file for document in await library.documents(EVERYTHING)] == ["a.txt"]
    (folder / "a.txt").write_text(MAGNETS)
    assert (await _ingest(library, database, job))["added"] == 2
    assert [document.file for document in await library.documents(EVERYTHING)] == ["a.txt", "b.txt"]
    assert "compass" in (await library.search("compass needle magnet", within=EVERYTHING)).passages[0].text


async def test_files_of_one_name_are_kept_though_the_job_was_broken_off_between_them(
    library: Library, settings: Settings, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "PORTION_FILES", 1)
    for name, text in (("year 7", PLANTS), ("year 8", RIVERS), ("year 9", MAGNETS)):
        _files(tmp_path / "in" / name, notes=text)
    await _ingest(library, database, _asked(settings, database, tmp_path / "in"))
    assert [document.file for document in await library.documents(EVERYTHING)] == ["notes.txt"] * 3


async def test_what_is_added_is_found_before_the_rest_and_others_get_their_turn(
    library: Library, settings: Settings, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = (await library.add([_files(tmp_path / "old", old=MAGNETS)]))[0].document
    monkeypatch.setattr(bulk, "PORTION_FILES", 2)
    folder = _files(tmp_path / "in", a=RIVERS, **{f"n{number}": f"{PLANTS} {number}." for number in range(12)})
    other = Library(settings, database, embed)
    done: list[str] = []

    async def remove() -> None:
        for _ in range(ATTEMPTS):
            with suppress(UnderWay):
                await other.remove(str(old), EVERYTHING)
                found = await other.search("Where does a river build a delta?", within=EVERYTHING)
                assert found.passages[0].file == "a.txt"
                done.append("removed")
                return
            await asyncio.sleep(0.01)
        raise AssertionError("the library was never free")

    removing: list[asyncio.Task[None]] = []
    add = library.add

    async def after_it(*arguments: Any, **more: Any) -> list[FileReport]:
        await asyncio.gather(*removing)  # between two portions, however slow the machine is, it has the time that it needs
        return await add(*arguments, **more)

    monkeypatch.setattr(library, "add", after_it)

    def on_file(report: FileReport) -> None:
        if report.file == "a.txt":
            removing.append(asyncio.create_task(remove()))
        done.append(report.file)

    await _ingest(library, database, _asked(settings, database, folder), on_file=on_file)
    await asyncio.gather(*removing)
    other.close()
    assert done.index("removed") == 2, "after its portion, while the others were still to come"
    assert len(await library.documents(EVERYTHING)) == 13


async def test_another_run_is_named_at_once(library: Library, settings: Settings, database: Database, tmp_path: Path) -> None:
    job = _asked(settings, database, _files(tmp_path / "in", a=PLANTS))
    async with library._writing():
        with pytest.raises(UnderWay, match="another run"):
            await _ingest(Library(settings, database, embed), database, job)
    assert bulk.Record(database, job.id).reports() == []


async def test_files_go_to_the_collection_that_was_meant_or_nowhere(
    library: Library, settings: Settings, database: Database, tmp_path: Path
) -> None:
    """Between asking and doing, its name may become another's, and that one may be open to everyone."""
    one = bulk.later(database, [_files(tmp_path / "in", a=PLANTS)], "Staff")
    library.shelves.rename("Staff", "Teachers", EVERYTHING)
    await library.add([_files(tmp_path / "other", b=RIVERS)], collection="Staff")
    jobs = Jobs(database, settings)
    assert (await _ingest(library, database, jobs.enqueue(bulk.LATER, one, lane="light")))["added"] == 1
    assert {(d.collection, d.file) for d in await library.documents(EVERYTHING)} == {("Teachers", "a.txt"), ("Staff", "b.txt")}
    with database.begin() as connection:
        connection.exec_driver_sql("DELETE FROM collections WHERE name = 'Teachers'")
    with pytest.raises(NotFound, match="Staff is gone"):
        await _ingest(library, database, jobs.enqueue(bulk.LATER, one | {"paths": [str(tmp_path)]}, lane="light"))


@pytest.mark.parametrize("kind", bulk.KINDS)
@pytest.mark.parametrize("portion", [1, 50])
async def test_what_a_collection_is_called_meanwhile_opens_none_of_its_files_to_others(
    library: Library, settings: Settings, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    portion: int, kind: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(bulk, "PORTION_FILES", portion)
    library.shelves.create("staff", readers=[Reader("role", "teacher")])
    folder = _files(tmp_path / "in", a=PLANTS, b=RIVERS, c=MAGNETS)
    job = Jobs(database, settings).enqueue(kind, bulk.later(database, [folder], "staff"), lane="light")

    def rename(report: FileReport) -> None:
        if report.file == "a.txt":
            library.shelves.rename("staff", "staff 2026", EVERYTHING)

    assert (await _ingest(library, database, job, on_file=rename))["added"] == 3
    (held,) = library.shelves.list(EVERYTHING)
    assert (held.name, held.documents, held.readers) == ("staff 2026", 3, (Reader("role", "teacher"),))


async def test_a_collection_that_is_taken_away_meanwhile_does_not_come_back(
    settings: Settings, database: Database, tmp_path: Path
) -> None:
    folder = _files(tmp_path / "in", a=PLANTS, b=RIVERS)

    async def slow(texts: Sequence[str]) -> Any:
        if library.shelves.list(EVERYTHING):
            library.shelves.discard("staff", EVERYTHING)
        return await embed(texts)

    library = Library(settings, database, slow)
    library.shelves.create("staff", readers=[Reader("role", "teacher")])
    reports = await library.add([folder], "staff")
    assert [report.error and report.error.message for report in reports] == [
        f"{name}.txt was not added: the collection staff is gone." for name in "ab"
    ]
    assert library.shelves.list(EVERYTHING) == [] and not list(settings.documents.iterdir())
    with database.read() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM passages").scalar() == 0
    library.close()


async def test_names_that_are_no_text_have_their_line_too(
    library: Library, settings: Settings, database: Database, tmp_path: Path
) -> None:
    folder = _files(tmp_path / "in")
    (folder / os.fsdecode(b"caf\xe9.txt")).write_text(PLANTS)
    job = _asked(settings, database, folder)
    await _ingest(library, database, job)
    await _ingest(library, database, job)
    (report,) = bulk.Record(database, job.id).reports()
    assert report.status == "added" and report.path.endswith("caf\\xe9.txt")


# --- a file that changes while it is copied ------------------------------------------------------------------------------
def _appended(path: Path) -> None:
    with path.open("a") as file:
        file.write("more")


def _rewritten(path: Path) -> None:
    then = path.stat()
    path.write_text("x" * then.st_size)
    os.utime(path, ns=(then.st_atime_ns, then.st_mtime_ns + 1))  # however coarse the clock of the file system is


def _replaced(path: Path) -> None:
    facts = path.stat()
    other = path.with_name("other.new")
    other.write_text("x" * facts.st_size)
    os.utime(other, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    other.replace(path)


def _cut(path: Path) -> None:
    os.truncate(path, 10)


@pytest.mark.parametrize("change", [_appended, _rewritten, _replaced, _cut, Path.unlink])
async def test_a_file_that_changes_while_it_is_copied_is_not_added_and_says_so(
    library: Library, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    path = tmp_path / "lesson.txt"
    path.write_text(PLANTS * 30_000)  # some blocks of a megabyte

    class Slow:
        """A digest that is given the first block, while somebody works on the file."""

        def __init__(self) -> None:
            self._real = real()
            self._first = True

        def update(self, block: bytes) -> None:
            if self._first:
                self._first = False
                change(path)
            self._real.update(block)

        def hexdigest(self) -> str:
            return self._real.hexdigest()

    real = hashlib.sha256
    with monkeypatch.context() as patch:
        patch.setattr("appliance.knowledge.intake.hashlib.sha256", Slow)
        (report,) = await library.add([path])
    assert isinstance(report.error, Conflict)
    assert report.error.message == "lesson.txt changed while it was copied." and "Add it again" in report.error.hint
    assert not list(settings.documents.iterdir()) and not await library.documents(EVERYTHING)
    path.write_text(RIVERS)
    assert (await library.add([path]))[0].status == "added"
