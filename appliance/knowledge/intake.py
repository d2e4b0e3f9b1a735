"""One file on its way into the library: copied, checked, read, cut, and stored in one transaction.

Hides how a run that was killed leaves nothing half done: the copy goes to a name that only a finished document has, the rows
are committed at once, and whatever a dead run left lying is swept up by the next one. The caller holds the writer's lock. Does
not embed and does not touch the index.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import stat
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import sqlalchemy as sa

from appliance.db import Database
from appliance.errors import ApplianceError, BadInput, Conflict, NotFound, StorageFull, TooLarge, from_os_error
from appliance.files import sync
from appliance.knowledge.chunks import Piece, cut
from appliance.knowledge.extract import clean_name, extract
from appliance.knowledge.index import Vector
from appliance.knowledge.removal import REPLACED, take_out
from appliance.knowledge.shelves import ensure
from appliance.settings import Settings
from appliance.tables import collections, documents, new_id, passages

__all__ = ["FileReport", "Intake", "Journal", "Origin", "Taken", "clean_name", "shown", "stored", "walk"]
INCOMING = ".incoming-"

Facts = tuple[int, float]  # bytes, and when it was last written to, in seconds since 1970


@dataclass(frozen=True, slots=True)
class FileReport:
    """What became of one file: `status` is added, unchanged or failed; only a failed one has an error.

    `path`: where it lay, as text. `kind`: one of `readers.KINDS`, where it was read.
    """

    file: str
    status: str
    document: str | None = None
    pages: int | None = None
    passages: int = 0
    seconds: float = 0.0
    note: str = ""
    error: ApplianceError | None = None
    path: str = ""
    kind: str = ""


class Journal(Protocol):
    """Who keeps what became of each file, so that a run that was broken off can be gone on with."""

    def documents(self) -> set[str]:
        """The documents that files of this run are already."""

    def kept(self, connection: sa.Connection, path: Path, facts: Facts, report: FileReport) -> None:
        """A file became a document; in the transaction that stores it."""

    def note(self, path: Path, facts: Facts | None, report: FileReport) -> None:
        """A file is done with, one way or the other. `facts`: of what was read; None where nothing was."""


@dataclass(slots=True)
class Taken:
    """A file that was read. `known` is the id of the document that already has this content; then there are no pieces."""

    name: str
    digest: str
    bytes: int
    known: str | None = None
    incoming: Path = Path()
    kind: str = ""
    title: str = ""
    pages: int | None = None
    note: str = ""
    passages: int = 0
    pieces: list[Piece] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where files go and who adds them (a user's id, "" at the command line); `embedder` makes their vectors.

    `subject` and `grade`: "" is the collection's.
    """

    collection: str
    by: str = ""
    subject: str = ""
    grade: str = ""
    embedder: str = ""


def stored(settings: Settings, document: str) -> Path:
    """Where the file of a document lies. The id was made here, never by a visitor: see `tables.new_id`."""
    if not re.fullmatch(r"[0-9a-z]{16}", document):
        raise NotFound("There is no such document.", "See `appliance docs list`.")
    return settings.documents / document


def shown(path: Path) -> str:
    """A path as text, whatever bytes it is made of."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def walk(paths: Iterable[Path]) -> Iterator[Path]:
    """Files named, and files below folders named, sorted; what is hidden, unfinished or a link below a folder is left out.

    A path that does not exist is yielded as well: whoever reads it reports that.
    """
    for path in paths:
        if path.is_dir():
            yield from _below(path)
        else:
            yield path


def _below(path: Path) -> Iterator[Path]:
    refused: list[OSError] = []
    for folder, folders, files in os.walk(path, onerror=refused.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            file = Path(folder) / name
            if not _passing(name) and not file.is_symlink():
                yield file
    for error in refused:  # folders that may not be read: reported like files that may not
        yield Path(error.filename)


def _passing(name: str) -> bool:
    """Whether a program made the file for itself, or is still writing it: hidden, a lock, a download under way."""
    return name.startswith((".", "~$", "~")) or name.lower().endswith(
        ("~", ".part", ".partial", ".crdownload", ".download", ".opdownload", ".tmp", ".temp", ".swp")
    )


class Intake:
    """One run of adding to one collection. `stopped`: once it is set, a reading that takes long is given up."""

    def __init__(self, settings: Settings, database: Database, origin: Origin, journal: Journal | None = None) -> None:
        self.stopped = threading.Event()
        self._settings = settings
        self._database = database
        self._origin = origin
        self._journal = journal
        # Documents that files of this very run are.
        self._seen: set[str] = set() if journal is None else journal.documents()
        self.replaced = 0  # documents whose place others took
        self._source = Path()  # the file at hand, and what it was when it was opened
        self._facts: Facts | None = None

    def tidy(self) -> None:
        """Remove what a run that died left behind: copies that no document owns."""
        folder = self._settings.documents
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with self._database.read() as connection:
                owned = set(connection.scalars(sa.select(documents.c.id)))
            for path in folder.iterdir():
                if path.name.startswith(INCOMING) or (path.name not in owned and re.fullmatch(r"[0-9a-z]{16}", path.name)):
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise from_os_error(error, "preparing the folder for documents") from error

    @contextlib.contextmanager
    def take(self, path: Path, name: str) -> Iterator[Taken]:
        """Copy, check, read and cut the file. Raises ApplianceErrors that name it. The copy is gone afterwards unless kept."""
        incoming = self._settings.documents / f"{INCOMING}{new_id()}"
        self._source, self._facts = path, None
        try:
            try:
                taken = self._copy(path, name, incoming)
            except OSError as error:
                raise _named(from_os_error(error, f"copying {name}"), name) from error
            self._recognise(taken)
            if taken.known is None:
                read = extract(incoming, name, self._settings, self.stopped)
                taken.pieces = cut(read.sections)
                if not taken.pieces:
                    raise BadInput(f"{name} contains no text.", "Check that the right file was added.")
                taken.kind, taken.pages, taken.note = read.kind, read.pages, read.note
                taken.title = read.title or " ".join(re.sub(r"[_\s]+", " ", Path(name).stem).split()) or name
            yield taken
        finally:
            with contextlib.suppress(OSError):
                incoming.unlink(missing_ok=True)

    def _copy(self, path: Path, name: str, incoming: Path) -> Taken:
        """The bytes that are hashed, read and kept are the same bytes, whatever happens to the original meanwhile."""
        if path.is_symlink():
            raise BadInput(f"{name} is a link, not a file.", "Add the file that it points to.")
        digest = hashlib.sha256()
        # O_NONBLOCK: opening a pipe must not wait for ever for somebody to write into it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as source:
            facts = os.fstat(source.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise BadInput(f"{name} is not an ordinary file.", "Add a document.")
            self._facts = facts.st_size, facts.st_mtime
            self._check_size(name, facts.st_size)
            size = 0
            with os.fdopen(os.open(incoming, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as copy:
                while block := source.read(2**20):
                    size += len(block)
                    self._check_size(name, size)
                    digest.update(block)
                    copy.write(block)
                copy.flush()
                os.fsync(copy.fileno())
            if size != facts.st_size or _changed(path, facts):
                raise Conflict(f"{name} changed while it was copied.", "Add it again when nothing writes to it any more.")
        if not size:
            raise BadInput(f"{name} is empty.", "Check that it was saved and copied in full.")
        return Taken(name, digest.hexdigest(), size, incoming=incoming)

    def _check_size(self, name: str, size: int) -> None:
        if size > self._settings.document_mb * 2**20:
            raise TooLarge(f"{name} is larger than {self._settings.document_mb} MB.", "Split it into parts, and add those.")
        free = shutil.disk_usage(self._settings.documents).free
        # Text, vectors and index take about as much again as the file.
        if free < self._settings.disk_reserve_mb * 2**20 + 2 * size:
            raise StorageFull(f"The disk is full: there is no room for {name}.", "Free some space, then run this again.")

    def _recognise(self, taken: Taken) -> None:
        """Is this content in the collection already?"""
        counted = sa.select(sa.func.count()).where(passages.c.document == documents.c.id).scalar_subquery()
        chosen = (
            sa.select(documents.c.id, documents.c.file, documents.c.kind, documents.c.pages, counted.label("passages"))
            .join(collections, collections.c.id == documents.c.collection)
            .where(collections.c.name == self._origin.collection, documents.c.sha256 == taken.digest)
        )
        with self._database.read() as connection:
            row = connection.execute(chosen).first()
        if row is not None:
            self._seen.add(row.id)
            taken.known, taken.kind, taken.pages, taken.passages = row.id, row.kind, row.pages, row.passages
            taken.note = "" if row.file == taken.name else f"The same content is there as {row.file}."

    def keep(self, taken: Taken, vectors: Sequence[Vector] | None) -> str:
        """Store it for good, in the place of an older one of the same name; returns its id. `vectors`: one a piece, or None."""
        document = new_id()
        final = stored(self._settings, document)
        try:
            os.replace(taken.incoming, final)
            sync(final.parent)
        except OSError as error:
            raise _named(from_os_error(error, f"storing {taken.name}"), taken.name) from error
        try:
            replaced = self._commit(taken, vectors, document)
        except BaseException as error:
            final.unlink(missing_ok=True)
            if isinstance(error, ApplianceError):
                raise _named(error, taken.name) from error
            raise
        self._seen.add(document)
        self.replaced += len(replaced)
        for old in replaced:
            with contextlib.suppress(OSError):
                stored(self._settings, old).unlink(missing_ok=True)
        return document

    def _commit(self, taken: Taken, vectors: Sequence[Vector] | None, document: str) -> list[str]:
        with self._database.begin() as connection:
            origin = self._origin
            owner = ensure(connection, origin.collection, origin.by)
            shelf = connection.execute(
                sa.select(collections.c.subject, collections.c.grade).where(collections.c.id == owner)
            ).one()
            same_name = sa.select(documents.c.id).where(documents.c.collection == owner, documents.c.file == taken.name)
            older = [old for old in connection.scalars(same_name) if old not in self._seen]
            if len(older) > 1:
                # Files of one name from several folders: which of them this one replaces, nobody can tell.
                taken.note = f"{taken.note} {len(older)} older documents of this name were kept.".strip()
                older = []
            values = {
                "id": document,
                "collection": owner,
                "title": taken.title,
                "file": taken.name,
                "kind": taken.kind,
                "sha256": taken.digest,
                "bytes": taken.bytes,
                "pages": taken.pages,
                "note": taken.note,
                "added": time.time(),
                "owner": origin.by,
                "subject": origin.subject or shelf.subject,
                "grade": origin.grade or shelf.grade,
                "version": 1 + (connection.scalar(sa.select(documents.c.version).where(documents.c.id.in_(older))) or 0),
                "passages": len(taken.pieces),
            }
            connection.execute(sa.insert(documents).values(values))
            rows = [
                {
                    "document": document,
                    "ordinal": ordinal,
                    "place": piece.place,
                    "page": piece.page,
                    "text": piece.text,
                    "vector": None if vectors is None else vectors[ordinal].astype("<f4").tobytes(),
                    "embedder": "" if vectors is None else origin.embedder,
                }
                for ordinal, piece in enumerate(taken.pieces)
            ]
            connection.execute(sa.insert(passages), rows)
            take_out(connection, older, why=REPLACED, by=origin.by, successor=document)
            self._write_down(connection, taken, document)
        return older

    def _write_down(self, connection: sa.Connection, taken: Taken, document: str) -> None:
        """Killed after this, the run knows that the file is done: both are in one transaction."""
        if self._journal is not None and self._facts is not None:
            report = FileReport(taken.name, "added", document, taken.pages, len(taken.pieces), note=taken.note, kind=taken.kind)
            self._journal.kept(connection, self._source, self._facts, report)

    def note(self, report: FileReport) -> None:
        """Have it written down what became of the file that was taken last."""
        if self._journal is not None:
            self._journal.note(self._source, self._facts, report)


def _changed(path: Path, then: os.stat_result) -> bool:
    """Whether the file was written to since, or another one, or none, has its name by now."""
    try:
        now = os.lstat(path)
    except OSError:
        return True
    names = ("st_dev", "st_ino", "st_size", "st_mtime_ns")
    return any(getattr(now, name) != getattr(then, name) for name in names)


def _named(error: ApplianceError, name: str) -> ApplianceError:
    """The same fault with the file's name in it."""
    if name in error.message:
        return error
    return type(error)(f"{name} was not added. {error.message}", error.hint)
