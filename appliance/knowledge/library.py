"""The school's documents: put in, found again, taken out.

`Library` is the only door to this folder. It hides storage (text and vectors in the database, the files as they came in
`settings.documents`), the index, the locks, and how words and meaning are weighed against each other. It does not embed: it
is handed a function for that, and works by words alone, and says so, while that function cannot. It does not decide who may
see which collection.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa

from appliance.db import Database
from appliance.errors import ApplianceError, Busy, ModelUnavailable, NotFound, UnderWay
from appliance.files import sha256_of
from appliance.knowledge import intake, measure
from appliance.knowledge.chunks import embedding_text
from appliance.knowledge.history import History
from appliance.knowledge.index import DIMENSIONS, Index, Vector, locked
from appliance.knowledge.search import Copy, Found, Passage, as_passage, passage_rows, search
from appliance.settings import Settings
from appliance.tables import collections as collections_table
from appliance.tables import documents as documents_table
from appliance.tables import passages as passages_table

__all__ = ["Copy", "Document", "FileReport", "Found", "Library", "Passage"]

# Texts to float32 rows of length 1, shape (n, 384). Raises ModelUnavailable while the engine is down.
Embed = Callable[[Sequence[str]], Awaitable[np.ndarray[Any, Any]]]
EMBED_BATCH = 32
LONGEST_QUESTION = 4_000  # characters; the embedder reads about the first thousand
WAIT_FOR_INDEX = 120.0  # seconds that a reader may hold the index while it repairs it


@dataclass(frozen=True, slots=True)
class Document:
    """One document as a list shows it. `passages` is how many it was cut into; `added` is in seconds since 1970."""

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


@dataclass(frozen=True, slots=True)
class FileReport:
    """What became of one file: `status` is added, unchanged or failed; only a failed one has an error."""

    file: str
    status: str
    document: str | None = None
    pages: int | None = None
    passages: int = 0
    seconds: float = 0.0
    note: str = ""
    error: ApplianceError | None = None


class Library:
    """Collections of documents. Safe to share between tasks; several processes may have one each."""

    def __init__(self, settings: Settings, database: Database, embed: Embed) -> None:
        self._settings = settings
        self._database = database
        self._embed = embed
        self._index = Index(settings.index, settings.run / "index.lock", database)
        self._history = History(settings.checks, settings.run / "checks.lock")

    def close(self) -> None:
        self._index.close()

    # --- in and out --------------------------------------------------------------------------------------------------
    async def add(
        self,
        paths: Sequence[Path],
        collection: str = "school",
        on_file: Callable[[FileReport], None] | None = None,
        on_progress: Callable[[str, int, int], None] | None = None,
    ) -> list[FileReport]:
        """Add files, and folders with all that is below them; one report a file, in the order they were read.

        on_progress(file, passages done, passages in all). What was added before is not read twice. A file of the same name with
        other content takes the place of the old one once it is complete. A bad file is reported and stops nothing. Raises
        Conflict while another process adds or removes, BadInput for an impossible collection.
        """
        collection = intake.collection_name(collection)
        reports: list[FileReport] = []
        async with self._writing():
            run = intake.Intake(self._settings, self._database, collection)
            await asyncio.to_thread(run.tidy)
            await self._embed_waiting()
            for path in await asyncio.to_thread(lambda: list(intake.walk(paths))):
                report = await self._add_one(run, path, on_progress)
                reports.append(report)
                if on_file is not None:
                    on_file(report)
            await asyncio.to_thread(self._index.rebuild)
        return reports

    async def remove(self, document_id: str) -> None:
        """Take a document out, with its file, passages and vectors. Raises NotFound, Conflict."""
        async with self._writing():
            await asyncio.to_thread(self._remove, document_id)

    def _remove(self, document_id: str) -> None:
        with self._database.begin() as connection:
            gone = connection.execute(sa.delete(documents_table).where(documents_table.c.id == document_id))
        if not gone.rowcount:
            raise _no_document(document_id)
        intake.stored(self._settings, document_id).unlink(missing_ok=True)
        self._index.rebuild()

    @contextlib.asynccontextmanager
    async def _writing(self) -> AsyncIterator[None]:
        """One writer at a time on this machine; readers go on with the old index meanwhile."""
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(self._settings.run / "documents.lock"))
            except Busy:
                raise UnderWay(
                    "Documents are being added or removed by another run.", "Wait until it has finished, then run this again."
                ) from None
            until = time.monotonic() + WAIT_FOR_INDEX
            while True:
                try:
                    stack.enter_context(locked(self._settings.run / "index.lock"))
                    break
                except Busy:
                    if time.monotonic() > until:
                        raise
                    await asyncio.sleep(0.05)
            yield

    async def _add_one(self, run: intake.Intake, path: Path, on_progress: Callable[[str, int, int], None] | None) -> FileReport:
        began = time.monotonic()
        name = intake.clean_name(path.name)
        try:
            with contextlib.ExitStack() as stack:
                taken = await asyncio.to_thread(lambda: stack.enter_context(run.take(path, name)))
                if taken.known is not None:
                    seconds = time.monotonic() - began
                    return FileReport(name, "unchanged", taken.known, taken.pages, taken.passages, seconds, taken.note)
                vectors, note = await self._vectors_of(taken, on_progress)
                document = await asyncio.to_thread(run.keep, taken, vectors)
                taken.note = " ".join(part for part in (taken.note, note) if part)
        except ApplianceError as error:
            return FileReport(name, "failed", seconds=time.monotonic() - began, error=error)
        seconds = time.monotonic() - began
        return FileReport(name, "added", document, taken.pages, len(taken.pieces), seconds, taken.note)

    async def _vectors_of(
        self, taken: intake.Taken, on_progress: Callable[[str, int, int], None] | None
    ) -> tuple[list[Vector] | None, str]:
        """A vector for each piece, or None and a note where the embedder is away."""
        texts = [embedding_text(piece.place, piece.text) for piece in taken.pieces]
        vectors: list[Vector] = []
        for start in range(0, len(texts), EMBED_BATCH):
            if on_progress is not None:
                on_progress(taken.name, start, len(texts))
            try:
                vectors.extend(
                    _checked(await self._embed(texts[start : start + EMBED_BATCH]), len(texts[start : start + EMBED_BATCH]))
                )
            except ModelUnavailable:
                return None, "Found by its words only, until documents are added again with the engine running."
        if on_progress is not None:
            on_progress(taken.name, len(texts), len(texts))
        return vectors, ""

    async def _embed_waiting(self) -> None:
        """Vectors for what was added while the embedder was away; batch by batch, so that a killed run keeps what it did."""
        chosen = (
            sa.select(passages_table.c.id, passages_table.c.place, passages_table.c.text)
            .where(passages_table.c.vector.is_(None))
            .order_by(passages_table.c.id)
        )
        rows = await asyncio.to_thread(self._rows, chosen)
        for start in range(0, len(rows), EMBED_BATCH):
            batch = rows[start : start + EMBED_BATCH]
            try:
                texts = [embedding_text(row.place, row.text) for row in batch]
                vectors = _checked(await self._embed(texts), len(batch))
            except ModelUnavailable:
                return
            await asyncio.to_thread(self._store_vectors, [row.id for row in batch], vectors)

    def _store_vectors(self, ids: Sequence[int], vectors: Sequence[Vector]) -> None:
        update = (
            sa.update(passages_table).where(passages_table.c.id == sa.bindparam("passage")).values(vector=sa.bindparam("bytes"))
        )
        rows = [
            {"passage": passage, "bytes": vector.astype("<f4").tobytes()} for passage, vector in zip(ids, vectors, strict=True)
        ]
        with self._database.begin() as connection:
            connection.execute(update, rows)

    def _rows(self, chosen: sa.Select[Any]) -> list[Any]:
        with self._database.read() as connection:
            return list(connection.execute(chosen))

    # --- searching ---------------------------------------------------------------------------------------------------
    async def search(self, text: str, *, k: int = 5, collections: Sequence[str] | None = None) -> Found:
        """The `k` passages that answer `text` best, of the named collections (None: all; none: nothing).

        Raises NotFound where collections are named and none of them exists.
        """
        return (await self.search_many([text], k=k, collections=collections))[0]

    async def search_many(self, texts: Sequence[str], *, k: int = 5, collections: Sequence[str] | None = None) -> list[Found]:
        """`search` for several questions, embedded together; answers in their order."""
        texts = [text[:LONGEST_QUESTION] for text in texts]
        vectors: list[Vector | None] = []
        try:
            for start in range(0, len(texts), EMBED_BATCH):
                batch = texts[start : start + EMBED_BATCH]
                vectors.extend(_checked(await self._embed(batch), len(batch)))
        except (ModelUnavailable, Busy):
            vectors = [None] * len(texts)  # all of them by words: one list of answers is not measured with two rulers
        return await asyncio.to_thread(self._search_all, texts, vectors, k, collections)

    def _search_all(
        self, texts: Sequence[str], vectors: Sequence[Vector | None], k: int, collections: Sequence[str] | None
    ) -> list[Found]:
        allowed = self._collection_ids(collections)
        generation = self._index.fresh()
        return [search(generation, self._rows, text, vector, k, allowed) for text, vector in zip(texts, vectors, strict=True)]

    def _collection_ids(self, names: Sequence[str] | None) -> list[str] | None:
        if names is None:
            return None
        rows = self._rows(sa.select(collections_table.c.id).where(collections_table.c.name.in_(names)))
        if names and not rows:
            raise NotFound(f"There is no collection named {', '.join(names)}.", "See `appliance docs list`.")
        return [row.id for row in rows]

    # --- looking up --------------------------------------------------------------------------------------------------
    async def documents(self, collection: str | None = None) -> list[Document]:
        """What is there, by collection and file. Raises NotFound for a collection that is not there."""
        return await asyncio.to_thread(self._documents, collection)

    def _documents(self, collection: str | None) -> list[Document]:
        chosen = _documents().order_by(collections_table.c.name, documents_table.c.file, documents_table.c.added)
        if collection is not None:
            chosen = chosen.where(documents_table.c.collection.in_(self._collection_ids([collection]) or []))
        return [_document(row) for row in self._rows(chosen)]

    async def document(self, document_id: str) -> tuple[Document, list[Passage]]:
        """One document and its passages in reading order. Raises NotFound."""
        rows = await asyncio.to_thread(self._rows, _documents().where(documents_table.c.id == document_id))
        if not rows:
            raise _no_document(document_id)
        chosen = passage_rows().where(passages_table.c.document == document_id).order_by(passages_table.c.ordinal)
        return _document(rows[0]), [as_passage(row) for row in await asyncio.to_thread(self._rows, chosen)]

    async def passage(self, passage_id: int) -> Passage:
        """One passage by its id, which is never given to another. Raises NotFound."""
        rows = await asyncio.to_thread(self._rows, passage_rows().where(passages_table.c.id == passage_id))
        if not rows:
            raise NotFound("This passage is no longer there: its document was removed or replaced.", "Search again.")
        return as_passage(rows[0])

    async def check(self, path: Path, collection: str | None = None) -> dict[str, Any]:
        """Measure the search on a file of questions, and keep the figures: see `measure`.

        `kept` is why they could not be kept, "" where they were. Raises BadInput, NotFound.
        """
        there = await self.documents(collection)
        shelves = {document.file: document.collection for document in there}
        only = collection and [collection]
        report = await measure.check(path, lambda texts: self.search_many(texts, k=5, collections=only or None), shelves)
        report["kept"] = ""
        try:
            asked = await asyncio.to_thread(sha256_of, path)
            passages = sum(document.passages for document in there)
            await asyncio.to_thread(self._history.add, report, collection=collection, questions=asked, passages=passages)
        except (ApplianceError, OSError) as error:
            report["kept"] = str(error)
        return report

    async def checks(self, collection: str | None = None) -> list[dict[str, Any]]:
        """What earlier checks found, the oldest first; of one collection where it is named."""
        return await asyncio.to_thread(self._history.entries, collection)


def _documents() -> sa.Select[Any]:
    counted = sa.select(sa.func.count()).where(passages_table.c.document == documents_table.c.id).scalar_subquery()
    return sa.select(documents_table, collections_table.c.name.label("owner"), counted.label("passages")).join(
        collections_table, collections_table.c.id == documents_table.c.collection
    )


def _document(row: Any) -> Document:
    return Document(row.id, row.owner, row.title, row.file, row.kind, row.bytes, row.pages, row.passages, row.note, row.added)


def _no_document(document_id: str) -> NotFound:
    return NotFound(f"There is no document {document_id}.", "See `appliance docs list`.")


def _checked(vectors: np.ndarray[Any, Any], count: int) -> list[Vector]:
    """The embedder's rows as this folder keeps them; anything else than `count` finite rows of 384 is a fault of the engine."""
    matrix = np.ascontiguousarray(vectors, dtype=np.float32)
    if matrix.shape != (count, DIMENSIONS) or not np.isfinite(matrix).all():
        raise ModelUnavailable("The embedder answered with something that is no embedding.", "Restart the engine.")
    return list(matrix)
