"""Many files at once, as a job: each has its line in a record, and none is read twice however often the job is broken off.

Hides how a job is gone on with: the line of a file is written in the transaction that stores its document, so that one is never
there without the other. Files are added a portion at a time, so that what is added can be found while the rest is still to
come, and others who would change the library get their turn. Knows no queue: it is handed a job's id and what was asked.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from appliance.db import Database
from appliance.errors import ApplianceError, BadInput, TooLarge, UnderWay
from appliance.knowledge.intake import Facts, FileReport, clean_name, shown, walk
from appliance.knowledge.shelves import collection_name, ensure
from appliance.tables import documents, ingest_files

if TYPE_CHECKING:
    from appliance.knowledge.library import Library

LATER, HERE = "ingest", "docs add"  # kinds of job: done by the worker, or by the command that asked, with its own rights
KINDS = (LATER, HERE)
PORTION_FILES = 50
PORTION_BYTES = 50 * 2**20
PAUSE = 0.5  # seconds between two portions, in which others find the library free
PATIENCE = 120.0  # seconds to wait for another who changes the library, between two portions

Tell = Callable[[dict[str, Any]], None]
OnFile = Callable[[FileReport], None]


class Record:
    """What became of each file of one job. Safe to share between threads; it is a `Journal` of `intake`."""

    def __init__(self, database: Database, job: str) -> None:
        self._database = database
        self._job = job

    def reports(self) -> list[FileReport]:
        """By path."""
        return [_report(row) for row in self._rows()]

    def done(self) -> Callable[[Path], bool]:
        """Whether a file was dealt with, and is still what it was then; as the record stands now.

        One that failed for no fault of its own was not: it is tried again by a job that is gone on with.
        """
        settled = [row for row in self._rows() if not row.error or its_own_fault(row.error["code"])]
        then = {row.path: (row.size, row.mtime) for row in settled}

        def known(path: Path) -> bool:
            name = shown(path)
            return name in then and then[name] == (_facts(path) or (None, None))

        return known

    def kept(self, connection: sa.Connection, path: Path, facts: Facts, report: FileReport) -> None:
        self._write(connection, path, facts, report)

    def note(self, path: Path, facts: Facts | None, report: FileReport) -> None:
        with self._database.begin() as connection:
            self._write(connection, path, facts, report)

    def _rows(self) -> Sequence[Any]:
        kind = sa.select(documents.c.kind).where(documents.c.id == ingest_files.c.document).scalar_subquery()
        chosen = sa.select(ingest_files, kind.label("kind")).where(ingest_files.c.job == self._job)
        with self._database.read() as connection:
            return connection.execute(chosen.order_by(ingest_files.c.path)).all()

    def _write(self, connection: sa.Connection, path: Path, facts: Facts | None, report: FileReport) -> None:
        size, mtime = facts or _facts(path) or (None, None)
        error = report.error
        same = (ingest_files.c.job == self._job, ingest_files.c.path == shown(path))
        values = {
            "size": size,
            "mtime": mtime,
            "state": report.status,
            "document": report.document,
            "pages": report.pages,
            "passages": report.passages,
            "seconds": report.seconds,
            "note": report.note,
            "error": error and {"code": error.code, "message": error.message, "hint": error.hint},
        }
        if not connection.execute(sa.update(ingest_files).where(*same).values(values)).rowcount:
            connection.execute(sa.insert(ingest_files).values(job=self._job, path=shown(path), **values))


def its_own_fault(code: str) -> bool:
    """Whether an error of this code is a file's own: it would fail again. Else the disk was full, say, or it was written to."""
    return code in (BadInput.code, TooLarge.code)


def later(
    database: Database, paths: Sequence[Path], collection: str, *, by: str = "", subject: str = "", grade: str = ""
) -> dict[str, Any]:
    """What a job of either kind is asked; the same words give the same job.

    The collection is there from now on, whoever renames it until the job is done. `by`: as in `Library.add`. Raises BadInput,
    and Conflict where a user would add to another's collection.
    """
    name = collection_name(collection)
    with database.begin() as connection:
        id = ensure(connection, name, by)
    return {
        "paths": [str(path.absolute()) for path in paths], "collection": name, "collection_id": id, "by": by,
        "subject": subject, "grade": grade,
    }  # fmt: skip


async def ingest(
    library: Library, record: Record, asked: Mapping[str, Any], *, tell: Tell, on_file: OnFile = lambda _report: None
) -> dict[str, Any]:
    """Add what was asked for: {paths, collection, collection_id, by, subject, grade, inside}; the counts of the whole job.

    inside: a folder; a path that leads out of it by now, through a link, is left alone. One that does so later is refused.

    A file that cannot be added has its sentence in the record and stops nothing. Raises UnderWay while another process adds or
    removes, NotFound where the collection is gone that was there when it was asked for.
    """
    known = await asyncio.to_thread(record.done)
    paths = [Path(path) for path in asked["paths"]]
    inside = asked.get("inside", "")
    todo = await asyncio.to_thread(lambda: [path for path in walk(paths) if _within(path, inside) and not known(path)])
    again = set(map(shown, todo))  # of these, some may have a line already
    before = sum(report.path not in again for report in await asyncio.to_thread(record.reports))
    progress = _Progress(tell, before, sum(map(_size, todo)), before + len(todo))

    def done(report: FileReport) -> None:
        progress.done(report)
        on_file(report)

    wait = 0.0
    for portion in [*_portions(todo)] or [[]]:
        if wait:
            await asyncio.sleep(PAUSE)
        until = time.monotonic() + wait
        while not await _added(library, record, portion, asked, done, progress.within, last=time.monotonic() >= until):
            await asyncio.sleep(0.5)
        wait = PATIENCE
    found = await asyncio.to_thread(record.reports)
    states = Counter(report.status for report in found)
    return {
        "collection": asked["collection"], "files": len(found), "passages": sum(report.passages for report in found),
        **{state: states[state] for state in ("added", "unchanged", "failed")},
    }  # fmt: skip


async def _added(
    library: Library, record: Record, portion: Sequence[Path], asked: Mapping[str, Any], on_file: OnFile,
    on_progress: Callable[[str, int, int], None], *, last: bool,
) -> bool:  # fmt: skip
    """Whether a portion was added; not while another process changes the library, which is raised at the `last` try."""
    origin = {name: asked.get(name, "") for name in ("collection_id", "by", "subject", "grade", "inside")}
    try:
        await library.add(portion, asked["collection"], on_file, on_progress, journal=record, **origin)
    except UnderWay:
        if last:
            raise
        return False
    return True


class _Progress:
    """How far a job is, in files, with the time that is left at the pace of the bytes so far."""

    def __init__(self, tell: Tell, before: int, size: int, total: int) -> None:
        self._tell = tell
        self._done, self._total = before, total
        self._left = size
        self._read = 0
        self._began = time.monotonic()
        self._say({})

    def within(self, file: str, done: int, total: int) -> None:
        self._say({"file": file, "passages": done, "of": total})

    def done(self, report: FileReport) -> None:
        size = _size(Path(report.path))
        self._read, self._left = self._read + size, max(0, self._left - size)
        self._done += 1
        self._say({"file": report.file, "status": report.status})

    def _say(self, facts: dict[str, Any]) -> None:
        spent = time.monotonic() - self._began
        left = spent / self._read * self._left if self._read else None
        self._tell({"stage": "adding", "done": self._done, "total": self._total, "left": left, "facts": facts})


def _portions(paths: Sequence[Path]) -> Iterator[list[Path]]:
    portion: list[Path] = []
    held = 0
    for path in paths:
        size = _size(path)
        if portion and (len(portion) >= PORTION_FILES or held + size > PORTION_BYTES):
            yield portion
            portion, held = [], 0
        portion.append(path)
        held += size
    if portion:
        yield portion


def _within(path: Path, folder: str) -> bool:
    return not folder or Path(os.path.realpath(path)).is_relative_to(folder)


def _facts(path: Path) -> Facts | None:
    try:
        there = os.lstat(path)
    except (OSError, ValueError):
        return None
    return there.st_size, there.st_mtime


def _size(path: Path) -> int:
    return (_facts(path) or (0, 0.0))[0]


def _report(row: Any) -> FileReport:
    error = None
    if row.error:
        error = ApplianceError(row.error["message"], row.error["hint"])
        error.code = row.error["code"]
    return FileReport(
        clean_name(row.path), row.state, row.document, row.pages, row.passages, row.seconds, row.note, error, row.path,
        row.kind or "",
    )  # fmt: skip
