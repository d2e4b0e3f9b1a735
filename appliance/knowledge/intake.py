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
from typing import Any, Protocol

import sqlalchemy as sa

from appliance.db import Database
from appliance.errors import ApplianceError, BadInput, Conflict, NotFound, StorageFull, TooLarge, from_os_error
from appliance.files import sync
from appliance.knowledge import sources
from appliance.knowledge.chunks import Piece, cut
from appliance.knowledge.extract import clean_name, extract
from appliance.knowledge.index import Vector
from appliance.knowledge.removal import REPLACED, take_out
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
    source: str = ""  # its real path, as text
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

    `collection`: its id, since its name may become another's while files are added, and that one may be open to others; `name`:
    what whoever asked calls it. `subject` and `grade`: "" is the collection's.
    """

    collection: str
    name: str
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
        if os.path.isdir(path):  # which never raises, as Path.is_dir does where a folder above may not be entered
            yield from _below(path)
        else:
            yield path


def _below(path: Path) -> Iterator[Path]:
    refused: list[OSError] = []
    for folder, folders, files in os.walk(path, onerror=refused.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            file = Path(folder) / name
            if not _passing(name) and not os.path.islink(file):
                yield file
    for error in refused:  # folders that may not be read: reported like files that may not
        yield Path(error.filename)


def _passing(name: str) -> bool:
    """Whether a program made the file for itself, or is still writing it: hidden, a lock, a download under way."""
    return name.startswith((".", "~$", "~")) or name.lower().endswith(
        ("~", ".part", ".partial", ".crdownload", ".download", ".opdownload", ".tmp", ".temp", ".swp")
    )


class Intake:
    """One run of adding to one collection. `stopped`: once it is set, a reading that takes long is given up.

    `inside`: a real path; files that lie elsewhere when they are opened are refused. "" is anywhere.
    """

    def __init__(
        self, settings: Settings, database: Database, origin: Origin, journal: Journal | None = None, inside: str = ""
    ) -> None:
        self.stopped = threading.Event()
        self._settings = settings
        self._database = database
        self._origin = origin
        self._journal = journal
        self._inside = inside
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
                taken.source = shown(Path(os.path.realpath(path)))
            except OSError as error:
                raise _named(from_os_error(error, f"copying {name}"), name) from error
            except ValueError:
                raise BadInput(f"{name} has a path that no file can have.", "Check how the path was written.") from None
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
            # What was opened, not what the path leads to now: a folder on the way may have become a link in between.
            if self._inside and not Path(os.readlink(f"/proc/self/fd/{source.fileno()}")).is_relative_to(self._inside):
                raise BadInput(f"{name} lies outside the watched folder by now.", "Put the file itself there, not a link.")
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
        chosen = sa.select(documents.c.id, documents.c.file, documents.c.kind, documents.c.pages, counted.label("passages"))
        same = (documents.c.collection == self._origin.collection, documents.c.sha256 == taken.digest)
        with self._database.read() as connection:
            self._shelf(connection, taken)
            row = connection.execute(chosen.where(*same)).first()
        if row is not None:
            taken.known, taken.kind, taken.pages, taken.passages = row.id, row.kind, row.pages, row.passages
            taken.note = "" if row.file == taken.name else f"The same content is there as {row.file}."

    def _shelf(self, connection: sa.Connection, taken: Taken) -> Any:
        """The row of the collection, whatever it is called by now. Raises NotFound."""
        row = connection.execute(sa.select(collections).where(collections.c.id == self._origin.collection)).first()
        if row is None:
            raise NotFound(
                f"{taken.name} was not added: the collection {self._origin.name} is gone.",
                "Choose another collection, and add the file again.",
            )
        return row

    def recognised(self, taken: Taken) -> None:
        """Have it kept that the file is a document that is there; what it was before goes, unless another file is that."""
        known = str(taken.known)
        with self._database.read() as connection:
            if sources.known_at(connection, self._origin.collection, taken.source) == [known]:
                return
        with self._database.begin() as connection:
            at_path = sources.known_at(connection, self._origin.collection, taken.source)
            older = sources.becomes(connection, taken.source, known, [id for id in at_path if id != known])
            if older:
                take_out(connection, older, why=REPLACED, by=self._origin.by, successor=known)
                taken.note = f"{taken.note} What this file was before was taken out.".strip()
        self._forget(older)

    def _forget(self, replaced: Sequence[str]) -> None:
        self.replaced += len(replaced)
        for old in replaced:
            with contextlib.suppress(OSError):
                stored(self._settings, old).unlink(missing_ok=True)

    def keep(self, taken: Taken, vectors: Sequence[Vector] | None) -> str:
        """Store it for good, in the place of what the file was before; returns its id. `vectors`: one a piece, or None."""
        document = new_id()
        final = stored(self._settings, document)
        try:
            try:
                os.replace(taken.incoming, final)
                sync(final.parent)
            except OSError as error:
                raise from_os_error(error, f"storing {taken.name}") from error
            replaced = self._commit(taken, vectors, document)
        except BaseException as error:
            with contextlib.suppress(OSError):
                final.unlink(missing_ok=True)
            if isinstance(error, ApplianceError):
                raise _named(error, taken.name) from error
            raise
        self._forget(replaced)
        return document

    def _commit(self, taken: Taken, vectors: Sequence[Vector] | None, document: str) -> list[str]:
        newest = sa.func.max(documents.c.version)
        with self._database.begin() as connection:
            origin = self._origin
            shelf = self._shelf(connection, taken)
            before, others = self._before(connection, taken)
            values = {
                "id": document,
                "collection": shelf.id,
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
                "version": 1 + (connection.scalar(sa.select(newest).where(documents.c.id.in_(before))) or 0),
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
            older = sources.becomes(connection, taken.source, document, before)
            take_out(connection, older, why=REPLACED, by=origin.by, successor=document)
            taken.note = f"{taken.note} {others}".strip()  # of this run, not of the document: its readers never see it
            self._write_down(connection, taken, document)
        return older

    def _before(self, connection: sa.Connection, taken: Taken) -> tuple[list[str], str]:
        """The documents that the file was until now, and what is to be said of others that bear its name.

        Where nothing is known of its path, the only one of its name of which nobody knows where it lay.
        """
        at_path = sources.known_at(connection, self._origin.collection, taken.source)
        if at_path:
            return at_path, ""
        namesakes = sources.namesakes(connection, self._origin.collection, taken.name)
        placeless = [id for id, placed in namesakes.items() if not placed]
        before = placeless if len(placeless) == 1 else []
        count = len(namesakes) - len(before)
        if count == 1:
            return before, "Another document of this name is kept; remove it if this one is to take its place."
        return before, f"{count} other documents of this name are kept; remove those that are out of date." if count else ""

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
