"""Shelves: collections with an owner and readers, and the filter by which a search sees some of them and not the others.

A search takes a `Filter`, never a person: who may see what is decided in `accounts`, and arrives here as ids of collections.
`EVERYTHING` is for the box's own command line and for measuring, where nobody has to be kept from anything; it has a name so
that no door can pass it by leaving something out. A collection that may not be seen is one that is not there, in the same
words. Work is blocking; async callers use a thread.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import sqlalchemy as sa

from appliance.db import Database
from appliance.errors import BadInput, Conflict, NotFound
from appliance.knowledge import content
from appliance.tables import collection_readers, collections, documents, new_id

KINDS = ("everyone", "role", "class", "user")


@dataclass(frozen=True, slots=True)
class Filter:
    """Only these collections, by id; none of them: nothing is found. Subjects and grades: None is no restriction."""

    collections: frozenset[str]
    subjects: frozenset[str] | None = None
    grades: frozenset[str] | None = None


class Everything(Enum):
    """Every document, whoever asks."""

    EVERYTHING = "everything"


EVERYTHING = Everything.EVERYTHING
Within = Filter | Everything


def seen(chosen: sa.Select[Any], within: Within) -> sa.Select[Any]:
    """Of the rows of a select that has `documents` in it, those that may be seen."""
    if isinstance(within, Everything):
        return chosen
    chosen = chosen.where(documents.c.collection.in_(sorted(within.collections)))
    if within.subjects is not None:
        chosen = chosen.where(documents.c.subject.in_(sorted(within.subjects)))
    if within.grades is not None:
        chosen = chosen.where(documents.c.grade.in_(sorted(within.grades)))
    return chosen


def missing(thing: str) -> NotFound:
    """The one sentence for what is not there and for what may not be seen."""
    return NotFound(f"There is no such {thing} here.", "It may have been taken out; search again, or look in the library.")


@dataclass(frozen=True, slots=True)
class Gone:
    """A document that was here. `at`: UTC seconds since 1970; `why`: removed or replaced.

    `successor`: the id of the document that took its place, "" where there is none or the asker may not see it.
    """

    title: str
    file: str
    at: float
    why: str
    successor: str = ""


@dataclass(frozen=True, slots=True)
class Reader:
    """Who may read a collection: `kind` everyone (then without a name), role, class or user (then the user's id)."""

    kind: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class Collection:
    """`owner`: a user's id, "" where it is the school's. `created`: UTC seconds since 1970."""

    id: str
    name: str
    owner: str
    subject: str
    grade: str
    documents: int
    readers: tuple[Reader, ...]
    created: float


class Shelves:
    """Collections: made, named, described, and opened to readers. Safe to share between threads."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def list(self, within: Within) -> list[Collection]:
        """By name."""
        with self._database.read() as connection:
            rows = connection.execute(_narrowed(sa.select(collections), within).order_by(collections.c.name)).all()
            counted = sa.select(documents.c.collection, sa.func.count().label("documents")).group_by(documents.c.collection)
            held = {row.collection: row.documents for row in connection.execute(counted)}
            readers: dict[str, list[Reader]] = {}
            ordered = sa.select(collection_readers).order_by(collection_readers.c.kind, collection_readers.c.name)
            for row in connection.execute(ordered):
                readers.setdefault(row.collection, []).append(Reader(row.kind, row.name))
        return [
            Collection(
                row.id, row.name, row.owner, row.subject, row.grade, held.get(row.id, 0), tuple(readers.get(row.id, ())),
                row.created,
            )
            for row in rows
        ]  # fmt: skip

    def one(self, name: str, within: Within) -> Collection:
        """Raises NotFound."""
        for collection in self.list(self.named([name], within)):
            return collection
        raise _unknown([name])

    def named(self, names: Sequence[str] | None, within: Within) -> Within:
        """`within`, narrowed to the named collections; None narrows nothing. Raises NotFound where none of them can be seen."""
        if names is None:
            return within
        with self._database.read() as connection:
            chosen = _narrowed(sa.select(collections.c.id).where(collections.c.name.in_(names)), within)
            ids = frozenset(connection.scalars(chosen))
        if names and not ids:
            raise _unknown(names)
        return Filter(ids) if isinstance(within, Everything) else replace(within, collections=ids)

    def create(
        self, name: str, *, owner: str = "", subject: str = "", grade: str = "", readers: Sequence[Reader] = ()
    ) -> Collection:
        """A new collection. Only its owner and its readers see it. Raises BadInput, Conflict."""
        name = collection_name(name)
        subject, grade = _described(subject), _described(grade)
        listed = [_checked(reader) for reader in readers]
        with self._database.begin() as connection:
            _free(connection, name)
            id = _insert(connection, name, owner, listed, subject, grade)
        return self.list(Filter(frozenset({id})))[0]

    def rename(self, name: str, new: str, within: Within) -> None:
        """Links and ids stay as they are. Raises NotFound, BadInput, Conflict."""
        id, new = self.one(name, within).id, collection_name(new)
        with self._database.begin() as connection:
            _free(connection, new, besides=id)
            connection.execute(sa.update(collections).where(collections.c.id == id).values(name=new))

    def describe(self, name: str, within: Within, *, subject: str | None = None, grade: str | None = None) -> None:
        """Set subject and grade, of the collection and of its documents that have no other; None leaves one as it is.

        The caller sees to the index. Raises NotFound, BadInput.
        """
        found = self.one(name, within)
        with self._database.begin() as connection:
            for column, old, given in (("subject", found.subject, subject), ("grade", found.grade, grade)):
                if given is None:
                    continue
                new = {column: _described(given)}
                connection.execute(sa.update(collections).where(collections.c.id == found.id).values(new))
                same = sa.and_(documents.c.collection == found.id, documents.c[column].in_(("", old)))
                connection.execute(sa.update(documents).where(same).values(new))
            content.changed(connection)

    def discard(self, name: str, within: Within) -> None:
        """Take an empty collection away, with what is known of documents that stood in it. Raises NotFound, Conflict."""
        found = self.one(name, within)
        with self._database.begin() as connection:
            held = sa.select(sa.func.count()).select_from(documents).where(documents.c.collection == found.id)
            if count := connection.scalar(held):
                raise Conflict(f"The collection {name} holds {count} documents.", "Move or remove them first.")
            connection.execute(sa.delete(collections).where(collections.c.id == found.id))

    def open_to(self, name: str, reader: Reader, within: Within) -> None:
        """Let a reader in; one who is in already stays. Raises NotFound, BadInput."""
        id, reader = self.one(name, within).id, _checked(reader)
        with self._database.begin() as connection:
            _shut(connection, id, reader)
            connection.execute(sa.insert(collection_readers).values(collection=id, kind=reader.kind, name=reader.name))

    def close_to(self, name: str, reader: Reader, within: Within) -> None:
        """Let a reader in no longer. Raises NotFound where the collection, or such a reader of it, is not there."""
        id = self.one(name, within).id
        with self._database.begin() as connection:
            if not _shut(connection, id, reader):
                raise NotFound(f"The collection {name} is not open to that reader.", "See `appliance docs collections`.")

    def meant(self, name: str, by: str = "", id: str = "") -> str:
        """The id of the collection to add to: the one of this id, whatever it is called today; without an id, as `ensure`.

        A new one of the old name would not do: it may be open to others. Raises NotFound where the one of this id is gone,
        Conflict where the user `by` would add to another's.
        """
        with self._database.begin() as connection:
            if not id:
                return ensure(connection, name, by)
            row = connection.execute(sa.select(collections.c.owner).where(collections.c.id == id)).first()
        if row is None:
            raise NotFound(f"The collection {name} is gone.", "Choose another collection, and add the files again.")
        if by and row.owner != by:
            raise _taken(name)
        return id

    def move(self, document: str, name: str, within: Within) -> None:
        """Put a document into the named collection; its passages keep their ids. The caller sees to the index.

        Subject and grade that it had of its old collection become those of the new one. Raises NotFound, Conflict.
        """
        to = self.one(name, within)
        with self._database.begin() as connection:
            row = require_document(connection, document, within)
            if row.collection == to.id:
                return
            twin = sa.select(documents.c.file).where(documents.c.collection == to.id, documents.c.sha256 == row.sha256)
            if (file := connection.scalar(twin)) is not None:
                raise Conflict(f"{to.name} has the same content already, as {file}.", "Remove one of the two.")
            old = connection.execute(sa.select(collections).where(collections.c.id == row.collection)).one()
            told = {"subject": (old.subject, to.subject), "grade": (old.grade, to.grade)}
            values = {column: new for column, (was, new) in told.items() if row._mapping[column] in ("", was)}
            connection.execute(sa.update(documents).where(documents.c.id == document).values(collection=to.id, **values))
            both = collections.c.id.in_([to.id, old.id])
            connection.execute(sa.update(collections).where(both).values(moved=time.time()))
            content.changed(connection)


def require_document(connection: sa.Connection, id: str, within: Within) -> Any:
    """The row of a document that may be seen. Raises NotFound."""
    row = connection.execute(seen(sa.select(documents).where(documents.c.id == id), within)).first()
    if row is None:
        raise missing("document")
    return row


def ensure(connection: sa.Connection, name: str, by: str = "") -> str:
    """The id of the collection of that name; a new one is made where there is none.

    `by`: the user who adds to it and owns it when it is new; "" is the command line, whose new collections everyone may read.
    Raises Conflict where a user would add to another's.
    """
    row = connection.execute(sa.select(collections.c.id, collections.c.owner).where(collections.c.name == name)).first()
    if row is None:
        return _insert(connection, name, by, [] if by else [Reader("everyone")])
    if by and row.owner != by:
        raise _taken(name)
    return str(row.id)


def collection_name(name: str) -> str:
    """A collection's name, trimmed. Raises BadInput."""
    name = " ".join(name.split())
    if not name or len(name) > 80 or not name.isprintable():
        raise BadInput(f"{name[:80]!r} cannot be the name of a collection.", "Use 1 to 80 letters, digits or signs.")
    return name


def _insert(
    connection: sa.Connection, name: str, owner: str, readers: Sequence[Reader], subject: str = "", grade: str = ""
) -> str:
    id = new_id()
    values = {"id": id, "name": name, "created": time.time(), "owner": owner, "subject": subject, "grade": grade}
    connection.execute(sa.insert(collections).values(values))
    for reader in dict.fromkeys(readers):
        connection.execute(sa.insert(collection_readers).values(collection=id, kind=reader.kind, name=reader.name))
    return id


def _narrowed(chosen: sa.Select[Any], within: Within) -> sa.Select[Any]:
    return chosen if isinstance(within, Everything) else chosen.where(collections.c.id.in_(sorted(within.collections)))


def _free(connection: sa.Connection, name: str, besides: str = "") -> None:
    taken = connection.scalar(sa.select(collections.c.id).where(collections.c.name == name, collections.c.id != besides))
    if taken is not None:
        raise _taken(name)


def _shut(connection: sa.Connection, id: str, reader: Reader) -> bool:
    same = (collection_readers.c.kind == reader.kind, collection_readers.c.name == reader.name)
    return bool(connection.execute(sa.delete(collection_readers).where(collection_readers.c.collection == id, *same)).rowcount)


def _checked(reader: Reader) -> Reader:
    if reader.kind not in KINDS:
        raise BadInput(f"{reader.kind[:40]!r} is no kind of reader.", f"Take one of: {', '.join(KINDS)}.")
    if reader.kind == "everyone":
        return Reader("everyone")
    return Reader(reader.kind, collection_name(reader.name))


def _described(text: str) -> str:
    text = " ".join(text.split())
    if len(text) > 80 or not (text.isprintable() or not text):
        raise BadInput(f"{text[:80]!r} cannot be a subject or a grade.", "Use up to 80 letters, digits or signs.")
    return text


def _taken(name: str) -> Conflict:
    return Conflict(f"The name {name} is taken.", "Take another name for the collection.")


def _unknown(names: Sequence[str]) -> NotFound:
    return NotFound(f"There is no collection named {', '.join(names)}.", "See `appliance docs collections`.")
