"""Vectors for what the library holds, and which embedder made each of them.

Vectors of two embedders have nothing to say to each other, so every passage keeps the name of the one that made its vector, and
one of another is as good as none: it is found by its words until `renew` has come to it. Hides batches, and that the embedder
may be away, or answer what it likes: no file is left out for that. It is handed a function that embeds, and cuts nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import sqlalchemy as sa

from appliance.db import Database
from appliance.errors import ApplianceError, Busy, ModelUnavailable, where
from appliance.knowledge import content
from appliance.knowledge.chunks import Piece, embedding_text
from appliance.knowledge.index import DIMENSIONS, Vector
from appliance.tables import passages

log = logging.getLogger(__name__)

# Texts to float32 rows of length 1, shape (n, 384). Raises ModelUnavailable while the engine is down.
Embed = Callable[[Sequence[str]], Awaitable[np.ndarray[Any, Any]]]
Progress = Callable[[int, int], None]  # passages done, passages in all
BATCH = 32  # a question waits behind one of these; larger ones compute no faster
AWAY = "Found by its words only, until documents are added again with the engine running."


class Embedding:
    """`name`: the embedder's, without its precision: vectors of one model can be compared however exactly it computed."""

    def __init__(self, database: Database, embed: Embed, name: str) -> None:
        self._database = database
        self._embed = embed
        self.name = name

    async def questions(self, texts: Sequence[str]) -> list[Vector | None]:
        """A vector each, or None for all: one list of answers is not measured with two rulers."""
        vectors: list[Vector | None] = []
        try:
            for start in range(0, len(texts), BATCH):
                vectors.extend(await self._batch(texts[start : start + BATCH]))
        except (ModelUnavailable, Busy):
            return [None] * len(texts)
        return vectors

    async def pieces(self, pieces: Sequence[Piece], on_progress: Progress | None = None) -> list[Vector] | None:
        """A vector for each piece, or None where the embedder is away."""
        tell = on_progress or (lambda _done, _of: None)
        texts = [embedding_text(piece.place, piece.text) for piece in pieces]
        vectors: list[Vector] = []
        for start in range(0, len(texts), BATCH):
            tell(start, len(texts))
            try:
                vectors.extend(await self._batch(texts[start : start + BATCH]))
            except ApplianceError:
                return None
        tell(len(texts), len(texts))
        return vectors

    async def fill(self) -> None:
        """Vectors for what was added while the embedder was away, or as much of it as can be done now."""
        await self._renew(sa.and_(passages.c.embedder == "", passages.c.vector.is_(None)), None)

    async def renew(self, on_progress: Progress | None = None) -> int:
        """Vectors of this embedder for every passage that has none of it; returns how many are still left without.

        Batch by batch, so that a run that is killed keeps what it did.
        """
        return await self._renew(self._others(), on_progress)

    def waiting(self) -> int:
        """How many passages have no vector of this embedder. Blocking."""
        return self._count(self._others())

    def _others(self) -> sa.ColumnElement[bool]:
        """Passages without a vector of this embedder; said so that an index finds them: no table is larger."""
        if not self.name:
            return sa.and_(passages.c.embedder == "", passages.c.vector.is_(None))
        return sa.or_(passages.c.embedder < self.name, passages.c.embedder > self.name)

    async def _renew(self, which: sa.ColumnElement[bool], on_progress: Progress | None) -> int:
        total = await asyncio.to_thread(self._count, which)
        done = last = 0
        while done < total:
            if on_progress is not None:
                on_progress(done, total)
            rows = await asyncio.to_thread(self._next, which, last)
            if not rows:
                break
            try:
                vectors = await self._batch([embedding_text(row.place, row.text) for row in rows])
            except ApplianceError as error:
                log.warning("%d passages are found by their words only: %s", total - done, where(error))
                return total - done
            await asyncio.to_thread(self._store, [row.id for row in rows], vectors)
            done, last = done + len(rows), rows[-1].id
        if on_progress is not None:
            on_progress(done, total)
        return 0

    async def _batch(self, texts: Sequence[str]) -> list[Vector]:
        """Anything else than one finite row of 384 for each text is a fault of the engine. Raises ApplianceErrors only."""
        try:
            matrix = np.ascontiguousarray(await self._embed(texts), dtype=np.float32)
        except ApplianceError:
            raise
        except Exception as error:  # whatever client the function is, and whatever the engine said to it
            log.error("the embedder failed: %s", where(error))
            raise ModelUnavailable("The embedder failed.", "Restart the engine.") from error
        if matrix.shape != (len(texts), DIMENSIONS) or not np.isfinite(matrix).all():
            raise ModelUnavailable("The embedder answered with something that is no embedding.", "Restart the engine.")
        return list(matrix)

    def _count(self, which: sa.ColumnElement[bool]) -> int:
        with self._database.read() as connection:
            return int(connection.scalar(sa.select(sa.func.count()).select_from(passages).where(which)) or 0)

    def _next(self, which: sa.ColumnElement[bool], after: int) -> Sequence[Any]:
        chosen = sa.select(passages.c.id, passages.c.place, passages.c.text).where(which, passages.c.id > after)
        with self._database.read() as connection:
            return connection.execute(chosen.order_by(passages.c.id).limit(BATCH)).all()

    def _store(self, ids: Sequence[int], vectors: Sequence[Vector]) -> None:
        values = {"vector": sa.bindparam("bytes"), "embedder": self.name}
        update = sa.update(passages).where(passages.c.id == sa.bindparam("passage")).values(values)
        rows = [{"passage": id, "bytes": vector.astype("<f4").tobytes()} for id, vector in zip(ids, vectors, strict=True)]
        with self._database.begin() as connection:
            connection.execute(update, rows)
            content.changed(connection)
