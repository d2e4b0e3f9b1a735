"""A job that adds files, asked for again: what came meanwhile, what failed for no fault of its own, what became a link."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.db import Database
from appliance.jobs import Job, Jobs, Tell, work_one
from appliance.knowledge import ingest as bulk
from appliance.knowledge.intake import FileReport
from appliance.knowledge.library import EVERYTHING, Library
from appliance.settings import Settings
from tests.knowledge.helpers import MAGNETS, PLANTS, RIVERS, embed


@pytest.fixture
def library(settings: Settings, database: Database) -> Iterator[Library]:
    library = Library(settings, database, embed)
    yield library
    library.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.txt").write_text(PLANTS)
    return folder


async def _files(library: Library) -> list[str]:
    return [document.file for document in await library.documents(EVERYTHING)]


@pytest.mark.parametrize("kind", [bulk.LATER, bulk.HERE])
async def test_what_is_put_there_after_the_running_job_looked_is_added_by_the_next(
    library: Library, settings: Settings, database: Database, folder: Path, kind: str
) -> None:
    queue = Jobs(database, settings)
    asked = bulk.later(database, [folder], "school")
    more: list[Job] = []

    def again(_report: FileReport) -> None:
        (folder / "b.txt").write_text(RIVERS)
        more.extend(queue.enqueue(kind, asked, lane="light", anew=True) for _ in range(2))

    async def handler(job: Job, tell: Tell) -> dict[str, Any]:
        on_file = (lambda _report: None) if more else again
        return await bulk.ingest(library, bulk.Record(database, job.id), job.payload, tell=tell, on_file=on_file)

    first = queue.enqueue(kind, asked, lane="light", anew=True)
    assert (await work_one(queue, first.id, {kind: handler})).state == "done"
    assert await _files(library) == ["a.txt"]
    assert more[0].id != first.id and more[1].id == more[0].id, "what waits has not looked yet: one is enough"
    ended = await work_one(queue, more[0].id, {kind: handler})
    assert ended.result is not None and (ended.result["added"], ended.result["unchanged"]) == (1, 1)
    assert await _files(library) == ["a.txt", "b.txt"]


def test_a_job_that_was_broken_off_is_gone_on_with_and_other_work_is_joined_as_ever(
    settings: Settings, database: Database
) -> None:
    queue = Jobs(database, settings)
    job = queue.enqueue(bulk.LATER, {"paths": []}, lane="light", anew=True)
    tuning = queue.enqueue("retrain", {}, lane="heavy")
    with queue.hold("light"), queue.hold("heavy"):
        assert queue.claim("light", [bulk.LATER]) and queue.claim("heavy", ["retrain"])
        assert queue.enqueue("retrain", {}, lane="heavy").id == tuning.id
    assert queue.broken_off(queue.get(job.id))
    assert queue.enqueue(bulk.LATER, {"paths": []}, lane="light", anew=True).id == job.id


async def test_what_failed_for_no_fault_of_its_own_is_tried_again_by_a_job_that_is_gone_on_with(
    library: Library, settings: Settings, database: Database, folder: Path
) -> None:
    (folder / "b.txt").touch()  # empty, which is its own fault
    (folder / "c.txt").write_text(RIVERS)
    job = Jobs(database, settings).enqueue(bulk.LATER, bulk.later(database, [folder], "school"), lane="light")
    record = bulk.Record(database, job.id)

    class PowerCut(Exception):
        pass

    def cut(report: FileReport) -> None:
        if report.file == "b.txt":
            raise PowerCut

    full = Library(settings.model_copy(update={"disk_reserve_mb": 10**9}), database, embed)
    with pytest.raises(PowerCut):
        await bulk.ingest(full, record, job.payload, tell=lambda _: None, on_file=cut)
    full.close()
    codes = {report.file: report.error and report.error.code for report in record.reports()}
    assert codes == {"a.txt": "storage_full", "b.txt": "storage_full"}
    with pytest.raises(PowerCut):  # there is room again
        await bulk.ingest(library, record, job.payload, tell=lambda _: None, on_file=cut)
    told: list[dict[str, Any]] = []
    heard: list[str] = []
    counts = await bulk.ingest(library, record, job.payload, tell=told.append, on_file=lambda report: heard.append(report.file))
    assert (counts["added"], counts["failed"], counts["files"]) == (2, 1, 3)
    assert heard == ["c.txt"], "what was added, and what is at fault itself, is not read again"
    assert [(one["done"], one["total"]) for one in (told[0], told[-1])] == [(2, 3), (3, 3)]
    assert await _files(library) == ["a.txt", "c.txt"]


async def test_files_tried_again_are_counted_once(
    library: Library, settings: Settings, database: Database, folder: Path
) -> None:
    job = Jobs(database, settings).enqueue(bulk.LATER, bulk.later(database, [folder], "school"), lane="light")
    record = bulk.Record(database, job.id)
    full = Library(settings.model_copy(update={"disk_reserve_mb": 10**9}), database, embed)
    await bulk.ingest(full, record, job.payload, tell=lambda _: None)
    full.close()
    told: list[dict[str, Any]] = []
    await bulk.ingest(library, record, job.payload, tell=told.append)
    assert [(one["done"], one["total"]) for one in (told[0], told[-1])] == [(0, 1), (1, 1)]


async def test_a_folder_that_becomes_a_link_while_the_job_runs_leads_to_nothing(
    library: Library, settings: Settings, database: Database, folder: Path, tmp_path: Path
) -> None:
    """Whoever may write to the watched folder would have the appliance read what it may read, and they may not."""
    (folder / "z").mkdir()
    (folder / "z" / "exam.txt").write_text(RIVERS)
    staff = tmp_path / "staff only"
    staff.mkdir()
    (staff / "exam.txt").write_text(MAGNETS)
    paths = [folder / "a.txt", folder / "z" / "exam.txt"]
    asked = bulk.later(database, paths, "school") | {"inside": str(folder.resolve())}
    job = Jobs(database, settings).enqueue(bulk.LATER, asked, lane="light")

    def swap(report: FileReport) -> None:
        if report.file == "a.txt":
            (folder / "z").rename(folder / "y")
            (folder / "z").symlink_to(staff)

    record = bulk.Record(database, job.id)
    counts = await bulk.ingest(library, record, job.payload, tell=lambda _: None, on_file=swap)
    assert (counts["added"], counts["failed"]) == (1, 1)
    assert await _files(library) == ["a.txt"]
    (refused,) = [report.error for report in record.reports() if report.error]
    assert refused.message == "exam.txt lies outside the watched folder by now." and refused.hint
    (folder / "z").unlink()
    (folder / "y").rename(folder / "z")
    await bulk.ingest(library, bulk.Record(database, job.id), job.payload, tell=lambda _: None)
    assert await _files(library) == ["a.txt", "exam.txt"]
