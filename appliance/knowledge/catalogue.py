"""What the library holds, and what it held: documents, their passages, and the traces of those that are gone.

Every look goes through a filter. What may not be seen, what never was, and what lies in a collection that may not be seen all
get the same words: nobody can find out by asking for an id whether it is there. Reads only; work is blocking.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from appliance.db import Database
from appliance.knowledge.search import Passage, as_passage, passage_rows
from appliance.knowledge.shelves import Everything, Gone, Within, missing, seen
from appliance.tables import collections, documents, gone_documents, passages

LARGEST_ID = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Document:
    """One document as a list shows it. `passages` is how many it was cut into; `added` is in seconds since 1970.

    `version` counts from 1, up with every new content of the file that took the place of the one before.
    """

    id: str
    collection: str
    title: str
    file: str
    kind: str
    bytes: int
    pages: int | None
    passages: int
    note: str
    added: float
    subject: str = ""
    grade: str = ""
    version: int = 1


class Catalogue:
    """Safe to share between threads."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def documents(self, within: Within) -> list[Document]:
        """By collection and file."""
        chosen = _documents().order_by(collections.c.name, documents.c.file, documents.c.added)
        return [_document(row) for row in self._rows(seen(chosen, within))]

    def entry(self, id: str, within: Within) -> Document | Gone:
        """One document as a list shows it, or what became of it. Raises NotFound."""
        rows = self._rows(seen(_documents().where(documents.c.id == id), within))
        return _document(rows[0]) if rows else self._gone(gone_documents.c.id == id, within, "document")

    def document(self, id: str, within: Within) -> tuple[Document, list[Passage]] | Gone:
        """One document and its passages in reading order, or what became of it. Raises NotFound."""
        found = self.entry(id, within)
        if isinstance(found, Gone):
            return found
        held = passage_rows().where(passages.c.document == id).order_by(passages.c.ordinal)
        return found, [as_passage(row) for row in self._rows(held)]

    def passage(self, id: int, within: Within) -> Passage | Gone:
        """One passage by its id, which is never given to another, or what became of its document. Raises NotFound."""
        if not 0 < id <= LARGEST_ID:
            raise missing("passage")
        rows = self._rows(seen(passage_rows().where(passages.c.id == id), within))
        if rows:
            return as_passage(rows[0])
        held = sa.and_(gone_documents.c.first_passage <= id, gone_documents.c.last_passage >= id)
        return self._gone(held, within, "passage")

    def _gone(self, which: sa.ColumnElement[bool], within: Within, asked: str) -> Gone:
        chosen = sa.select(gone_documents).where(which)
        if not isinstance(within, Everything):
            chosen = chosen.where(gone_documents.c.collection.in_(sorted(within.collections)))
        rows = self._rows(chosen)
        if not rows:
            raise missing(asked)
        row = rows[0]
        return Gone(row.title, row.file, row.at, row.why, self._successor(row.successor, within))

    def _successor(self, id: str, within: Within) -> str:
        """What stands in the place of a document today: its successor may have been replaced as well."""
        tried: set[str] = set()
        while id and id not in tried:
            tried.add(id)
            if self._rows(seen(sa.select(documents.c.id).where(documents.c.id == id), within)):
                return id
            id = next((row.successor for row in self._rows(sa.select(gone_documents).where(gone_documents.c.id == id))), "")
        return ""

    def _rows(self, chosen: sa.Select[Any]) -> Sequence[Any]:
        with self._database.read() as connection:
            return connection.execute(chosen).all()


def _documents() -> sa.Select[Any]:
    counted = sa.select(sa.func.count()).where(passages.c.document == documents.c.id).scalar_subquery()
    columns = [column for column in documents.c if column.name not in ("passages", "collection")]
    return sa.select(
        *columns, collections.c.name.label("shelf"), sa.func.coalesce(documents.c.passages, counted).label("pieces")
    ).join(collections, collections.c.id == documents.c.collection)  # fmt: skip


def _document(row: Any) -> Document:
    return Document(
        row.id, row.shelf, row.title, row.file, row.kind, row.bytes, row.pages, row.pieces, row.note, row.added,
        row.subject, row.grade, row.version,
    )  # fmt: skip
