"""The school's documents: put in, found again, taken out.

`Library` is the only door to this folder. It hides storage (text and vectors in the database, the files as they came in
`settings.documents`), the index, the locks, and how words and meaning are weighed against each other. It does not embed: it
is handed a function for that, and works by words alone, and says so, while that function cannot. It does not decide who may
see which collection: whoever asks brings a filter along, and nothing else is found, listed or opened.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

from appliance.db import Database
from appliance.erasures import Erasures
from appliance.errors import ApplianceError, Busy, UnderWay, where
from appliance.files import sha256_of
from appliance.knowledge import calibration, intake, measure, reranking
from appliance.knowledge.catalogue import Catalogue, Document
from appliance.knowledge.embedding import AWAY, Embed, Embedding, Progress
from appliance.knowledge.history import History
from appliance.knowledge.index import Index, Vector, locked
from appliance.knowledge.intake import FileReport, Journal
from appliance.knowledge.removal import REMOVED, take_out
from appliance.knowledge.search import Copy, Found, Passage, search
from appliance.knowledge.shelves import (
    EVERYTHING,
    Filter,
    Gone,
    Shelves,
    Within,
    collection_name,
    require_document,
    seen,
)
from appliance.settings import Settings

__all__ = ["EVERYTHING", "Copy", "Document", "FileReport", "Filter", "Found", "Gone", "Library", "Passage", "Within"]

log = logging.getLogger(__name__)

Result = TypeVar("Result")
LONGEST_QUESTION = 4_000  # characters; the embedder reads about the first thousand
WAIT_FOR_INDEX = 120.0  # seconds that a reader may hold the index while it repairs it


class Library:
    """Collections of documents. Safe to share between tasks; several processes may have one each.

    Whoever looks something up says within what: a `Filter` for a person, EVERYTHING for the box's own command line. `shelves`
    makes collections and opens them to readers; it blocks, as a database does.
    """

    def __init__(
        self, settings: Settings, database: Database, embed: Embed, embedder: str = "", rerank: reranking.Scores | None = None
    ) -> None:
        """`embedder`: the name of what embeds; vectors that another one made are not used. `rerank`: a cross-encoder."""
        self._settings = settings
        self._database = database
        self._embedding = Embedding(database, embed, embedder)
        self._rerank = rerank
        self._catalogue = Catalogue(database)
        self._index = Index(settings.index, settings.run / "index.lock", database, embedder)
        self._history = History(settings.checks, settings.run / "checks.lock")
        self.shelves = Shelves(database)

    def close(self) -> None:
        self._index.close()

    # --- in and out --------------------------------------------------------------------------------------------------
    async def add(
        self,
        paths: Sequence[Path],
        collection: str = "school",
        on_file: Callable[[FileReport], None] | None = None,
        on_progress: Callable[[str, int, int], None] | None = None,
        *,
        collection_id: str = "",
        by: str = "",
        subject: str = "",
        grade: str = "",
        inside: str = "",
        journal: Journal | None = None,
    ) -> list[FileReport]:
        """Add files, and folders with all that is below them; one report a file, in the order they were read.

        on_progress(file, passages done, passages in all). What was added before is not read twice. A file with other content
        than before takes the place of the old one once it is complete; of one of its name from elsewhere it does not. A bad
        file is reported and stops nothing. The collection is the one of `collection_id`, else of that name, made where there is
        none; it may be renamed meanwhile, and where it is taken away, its files are reported as failed. `by`: the user who
        adds, to a collection of their own; "" is the command line. `subject` and `grade`: else the collection's.
        `inside`: a real path; a file that turns out to lie elsewhere, through a link, is refused.
        `journal`: who keeps what became of each file.
        Raises Conflict while another process adds or removes, and for another's collection; BadInput for an impossible one;
        NotFound where there is none of that id.
        """
        collection = collection_name(collection)
        reports: list[FileReport] = []
        async with self._writing():
            shelf = await asyncio.to_thread(self.shelves.meant, collection, by, collection_id)
            origin = intake.Origin(shelf, collection, by, subject, grade, self._embedding.name)
            run = await asyncio.to_thread(intake.Intake, self._settings, self._database, origin, journal, inside)
            await asyncio.to_thread(run.tidy)
            await self._embedding.fill()
            try:
                for path in await asyncio.to_thread(lambda: list(intake.walk(paths))):
                    report = await self._add_one(run, path, on_progress)
                    await asyncio.to_thread(run.note, report)
                    reports.append(report)
                    if on_file is not None:
                        on_file(report)
            finally:
                run.stopped.set()  # cancelled: its thread is not to read on for nobody
            await _to_its_end(self._index.rebuild)
            if run.replaced:
                await asyncio.to_thread(self._database.fold_log)
        return reports

    async def remove(self, document: str, within: Within, by: str = "") -> bool:
        """Take a document out, with file, passages and vectors; its links say so from then on. Raises NotFound, Conflict.

        Its passages and quotes in chats go as well, sentences that a model wrote do not: see `removal`. Whether nothing else of
        it is left on the disk but its name: False while others read the database, whose log then keeps old pages until it is
        folded in after the next removal. What a removal that was killed left is taken away by the next one.
        `by`: a user's id, "" at the command line.
        """
        async with self._writing():
            return await _to_its_end(partial(self._remove, document, within, by))

    def _remove(self, document: str, within: Within, by: str) -> bool:
        try:
            with self._database.begin() as connection:
                require_document(connection, document, within)
                take_out(connection, [document], why=REMOVED, by=by)
                Erasures(self._settings).note("document", [document])
        finally:
            try:
                intake.Intake(self._settings, self._database, intake.Origin("", "")).tidy()
            finally:
                self._index.rebuild()
                erased = self._database.fold_log()
        return erased

    async def move(self, document: str, collection: str, within: Within) -> None:
        """Put a document on another shelf; its links go on working. Raises NotFound, Conflict."""
        async with self._writing():
            await asyncio.to_thread(self.shelves.move, document, collection, within)
            await _to_its_end(self._index.rebuild)

    async def describe(self, collection: str, within: Within, *, subject: str | None = None, grade: str | None = None) -> None:
        """Say which subject and grade a collection is for: see `Shelves.describe`. Raises NotFound, BadInput, Conflict."""
        async with self._writing():
            await asyncio.to_thread(partial(self.shelves.describe, collection, within, subject=subject, grade=grade))
            await _to_its_end(self._index.rebuild)

    async def reindex(self, on_progress: Progress | None = None) -> int:
        """After another embedder came: give every passage a vector of this one; returns how many are left without.

        on_progress(passages done, passages in all). Searches go on meanwhile, by words where there is no vector yet. A run that
        was killed goes on where it was. Raises Conflict.
        """
        async with self._writing():
            left = await self._embedding.renew(on_progress)
            await _to_its_end(self._index.rebuild)
        return left

    async def waiting(self) -> int:
        """How many passages are found by their words only, until `reindex` has come to them."""
        return await asyncio.to_thread(self._embedding.waiting)

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
                if taken.known is None:
                    tell = None if on_progress is None else partial(on_progress, name)
                    vectors = await self._embedding.pieces(taken.pieces, tell)
                    document = await _to_its_end(partial(run.keep, taken, vectors))
                    taken.note = " ".join(part for part in (taken.note, "" if vectors is not None else AWAY) if part)
                    taken.passages = len(taken.pieces)
                else:
                    await _to_its_end(partial(run.recognised, taken))
        except ApplianceError as error:
            return FileReport(name, "failed", seconds=time.monotonic() - began, error=error, path=intake.shown(path))
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one file, the others are still to come
            log.error("a file was not added: %s", where(error))
            fault = ApplianceError(
                f"{name} was not added: a fault in the appliance ({type(error).__name__}).",
                "Add it again; if it stays, add it in another format and tell whoever looks after the appliance.",
            )
            return FileReport(name, "failed", seconds=time.monotonic() - began, error=fault, path=intake.shown(path))
        status = "added" if taken.known is None else "unchanged"
        return FileReport(
            name, status, taken.known or document, taken.pages, taken.passages, time.monotonic() - began, taken.note,
            path=intake.shown(path), kind=taken.kind,
        )  # fmt: skip

    # --- searching ---------------------------------------------------------------------------------------------------
    async def search(self, text: str, *, k: int = 5, within: Within) -> Found:
        """The `k` passages that answer `text` best, of those that may be seen."""
        return (await self.search_many([text], k=k, within=within))[0]

    async def search_many(self, texts: Sequence[str], *, k: int = 5, within: Within) -> list[Found]:
        """`search` for several questions, embedded together; answers in their order."""
        texts = [text[:LONGEST_QUESTION] for text in texts]
        vectors = await self._embedding.questions(texts)
        rerank = None if self._rerank is None else reranking.from_thread(self._rerank)
        return await asyncio.to_thread(self._search_all, texts, vectors, k, within, rerank)

    def _search_all(
        self, texts: Sequence[str], vectors: Sequence[Vector | None], k: int, within: Within, rerank: reranking.Rerank | None
    ) -> list[Found]:
        def rows(chosen: sa.Select[Any]) -> list[Any]:
            """Whatever the index says: nothing comes out of the database that may not be seen."""
            with self._database.read() as connection:
                return list(connection.execute(seen(chosen, within)))

        for _ in range(2):
            generation = self._index.fresh()
            asked = zip(texts, vectors, strict=True)
            found = [search(generation, rows, text, vector, k, within, rerank) for text, vector in asked]
            if generation.whole:
                break  # else a file that is read in place was damaged meanwhile: asked again, of one that is built anew
        return found

    # --- looking up --------------------------------------------------------------------------------------------------
    async def named(self, names: Sequence[str] | None, within: Within) -> Within:
        """`within`, narrowed to the collections of these names; None narrows nothing.

        Raises NotFound where none of them can be seen, in the same words whether they are there or not.
        """
        return await asyncio.to_thread(self.shelves.named, names, within)

    async def documents(self, within: Within) -> list[Document]:
        """What is there, by collection and file."""
        return await asyncio.to_thread(self._catalogue.documents, within)

    async def document(self, document: str, within: Within) -> tuple[Document, list[Passage]] | Gone:
        """One document and its passages in reading order, or what became of it. Raises NotFound."""
        return await asyncio.to_thread(self._catalogue.document, document, within)

    async def original(self, document: str, within: Within) -> tuple[Document, Path] | Gone:
        """One document and where the file lies that it came as, or what became of it. Raises NotFound."""
        found = await asyncio.to_thread(self._catalogue.entry, document, within)
        return found if isinstance(found, Gone) else (found, intake.stored(self._settings, document))

    async def passage(self, passage: int, within: Within) -> Passage | Gone:
        """One passage by its id, which is never given to another, or what became of its document. Raises NotFound."""
        return await asyncio.to_thread(self._catalogue.passage, passage, within)

    async def check(self, path: Path, within: Within, collection: str | None = None) -> dict[str, Any]:
        """Measure the search on a file of questions, and keep the figures under the collection's name: see `measure`.

        `kept` is why they could not be kept, "" where they were. Raises BadInput, NotFound.
        """
        within = await self.named(collection and [collection], within)
        there = await self.documents(within)
        shelves = {document.file: document.collection for document in there}
        report = await measure.check(path, lambda texts: self.search_many(texts, k=5, within=within), shelves)
        report["kept"] = ""
        try:
            asked = await asyncio.to_thread(sha256_of, path)
            passages = sum(document.passages for document in there)
            await asyncio.to_thread(self._history.add, report, collection=collection, questions=asked, passages=passages)
        except (ApplianceError, OSError) as error:
            report["kept"] = str(error)
        return report

    async def calibrate(self, path: Path, within: Within, collection: str) -> dict[str, Any]:
        """Fit what an answer needs in this collection to a file of questions, and keep it: see `calibration`."""
        within = await self.named([collection], within)
        files = {document.file for document in await self.documents(within)}
        report = await calibration.calibrate(path, lambda texts: self.search_many(texts, within=within), files)
        await asyncio.to_thread(calibration.keep, self._database, collection, report["threshold"])
        return report

    async def checks(self, collection: str | None = None) -> list[dict[str, Any]]:
        """What earlier checks found, the oldest first; of one collection where it is named."""
        return await asyncio.to_thread(self._history.entries, collection)


async def _to_its_end(work: Callable[[], Result]) -> Result:
    """Do it in a thread, and wait for it even when cancelled: the lock must outlast what it guards."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise
