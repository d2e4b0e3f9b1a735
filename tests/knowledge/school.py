"""A library's tables filled without a library, and an index over them: what the tests of the index share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import sqlalchemy as sa

from appliance.db import Database
from appliance.knowledge import content
from appliance.knowledge.index import Generation, Index
from appliance.settings import Settings
from appliance.tables import collections, documents, passages


def units(rows: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Vectors around a few centres, as those of texts are."""
    numbers = np.random.default_rng(seed)
    centres = np.random.default_rng(42).standard_normal((30, 384), dtype=np.float32)
    made = centres[numbers.integers(0, 30, rows)] + numbers.standard_normal((rows, 384), dtype=np.float32)
    return np.asarray(made / np.linalg.norm(made, axis=1, keepdims=True), dtype=np.float32)


class School:
    """Tables that are filled directly, and an index over them."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self.settings = settings
        self.database = database
        self.index = Index(settings.index, settings.run / "index.lock", database)
        self.vectors: dict[int, np.ndarray[Any, Any]] = {}
        self._seed = 0

    def add(
        self, document: str, texts: Sequence[str], collection: str = "one", subject: str = "", grade: str = "", bare: int = 0
    ) -> list[int]:
        """A document with a passage a text; the last `bare` of them have no vector. Returns their ids."""
        self._seed += 1
        made = units(len(texts), self._seed)
        with self.database.begin() as connection:
            if not connection.scalar(sa.select(collections.c.id).where(collections.c.id == collection)):
                connection.execute(sa.insert(collections).values(id=collection, name=collection, created=0.0))
            told = {"title": document, "file": document, "kind": "text", "sha256": document, "bytes": 1, "added": 0.0}
            connection.execute(
                sa.insert(documents).values(id=document, collection=collection, subject=subject, grade=grade, **told)
            )
            ids = []
            for at, text in enumerate(texts):
                blob = None if at >= len(texts) - bare else made[at].tobytes()
                row = {"document": document, "ordinal": at, "place": "", "text": text, "vector": blob}
                key = connection.execute(sa.insert(passages).values(**row)).inserted_primary_key
                assert key is not None
                ids.append(int(key[0]))
                if blob is not None:
                    self.vectors[ids[-1]] = made[at]
            content.changed(connection)
        return ids

    def remove(self, document: str) -> None:
        with self.database.begin() as connection:
            gone = connection.scalars(sa.select(passages.c.id).where(passages.c.document == document)).all()
            connection.execute(sa.delete(documents).where(documents.c.id == document))
            content.changed(connection)
        for id in gone:
            self.vectors.pop(id, None)

    def change(self, document: str, **values: Any) -> None:
        with self.database.begin() as connection:
            connection.execute(sa.update(documents).where(documents.c.id == document).values(**values))
            content.changed(connection)

    def fresh(self) -> Generation:
        return self.index.fresh()

    def rebuilt(self, folder: str) -> Generation:
        """What an index says that was built at once."""
        other = Index(self.settings.home / folder, self.settings.run / folder, self.database)
        other.rebuild()
        return other.fresh()

    def exact(self, vector: Any, k: int, ids: Sequence[int]) -> list[int]:
        scored = sorted((id for id in ids if id in self.vectors), key=lambda id: -float(self.vectors[id] @ vector))
        return scored[:k]

    def bytes_of(self, what: bytes) -> list[str]:
        """Files of the index in which these bytes stand."""
        return [path.name for path in self.settings.index.rglob("*") if path.is_file() and what in path.read_bytes()]


def held_vectors(school: School) -> list[tuple[bytes, Any]]:
    """Every vector in the files of the index: its bytes there, and what these stand for."""
    import faiss

    found: list[tuple[bytes, Any]] = []
    for path in school.settings.index.glob("seg-*/vectors.faiss"):
        made = faiss.read_index(str(path))
        codes: dict[int, bytes] = {}
        if hasattr(made, "invlists"):
            made.make_direct_map()
            for number in range(made.nlist):
                size = made.invlists.list_size(number)
                if size:
                    ids = faiss.rev_swig_ptr(made.invlists.get_ids(number), size)
                    bytes_ = faiss.rev_swig_ptr(made.invlists.get_codes(number), size * made.code_size)
                    codes |= dict(zip(ids.tolist(), map(bytes, bytes_.reshape(size, -1)), strict=True))
        else:
            every = faiss.vector_to_array(made.codes).reshape(made.ntotal, -1)
            codes = {row: bytes(every[row]) for row in range(made.ntotal)}
        found += [(codes[row], made.reconstruct(row)) for row in range(made.ntotal)]
    return found
