"""One segment of the index: some documents' vectors and words, written once and never changed.

    vectors.faiss  lexical.sqlite3  rows.npy (the passage of each row)  documents.json (what each document was, and its rows)

Rows are sorted by collection, subject, grade, document, and place in the document, so that a filter is a few stretches of rows.
Hides how a segment is built from the database and that small ones are kept in memory while large ones stay on disk. Does not
decide which documents belong together, nor whether its files are the ones that were written: `index` does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import sqlalchemy as sa

from appliance.knowledge import lexical, vectors
from appliance.knowledge.shelves import Filter
from appliance.knowledge.vectors import DIMENSIONS, Range
from appliance.tables import documents as documents_table
from appliance.tables import passages

FILES = ("vectors.faiss", "lexical.sqlite3", "rows.npy", "documents.json")
IN_MEMORY = 50_000  # rows; larger segments are read from disk as they are needed
ROWS = np.dtype([("passage", "<i8"), ("vector", "?")])


class Described(NamedTuple):
    """A document as an index has to hold it. `mark` changes with anything in it that an index follows."""

    collection: str
    subject: str
    grade: str
    document: str
    passages: int
    mark: str


class Held(NamedTuple):
    """A document that a segment holds, in the rows from `start` to before `stop`."""

    described: Described
    start: int
    stop: int


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Open for reading from any thread. `dead`: documents in it that are no longer to be found, or are newer elsewhere."""

    name: str
    held: tuple[Held, ...]
    rows: np.ndarray[Any, Any]
    vectors: vectors.Vectors
    lexical: lexical.Lexical
    digests: dict[str, str]
    dead: frozenset[str] = frozenset()

    @property
    def live(self) -> list[Described]:
        return [one.described for one in self.held if one.described.document not in self.dead]

    def ranges(self, within: Filter | None) -> list[Range]:
        """The rows that may be found, as stretches: sorted, apart."""
        found: list[Range] = []
        for one in self.held:
            if one.start < one.stop and one.described.document not in self.dead and _fits(one.described, within):
                begun = found.pop()[0] if found and found[-1][1] == one.start else one.start
                found.append((begun, one.stop))
        return found

    def embedded(self, ranges: Sequence[Range]) -> list[Range]:
        """Of these stretches, the rows that have a vector."""
        found: list[Range] = []
        for start, stop in ranges:
            there = self.rows["vector"][start:stop]
            if there.all():
                found.append((start, stop))
                continue
            edges = np.flatnonzero(np.diff(np.concatenate(([0], there.view(np.int8), [0])))) + start
            found += [(int(first), int(last)) for first, last in edges.reshape(-1, 2)]
        return found

    def passages(self, scored: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
        """Rows with a score, as passages with it."""
        ids = self.rows["passage"]
        return [(int(ids[row]), score) for row, score in scored]


def _fits(one: Described, within: Filter | None) -> bool:
    if within is None:
        return True
    return (
        one.collection in within.collections
        and (within.subjects is None or one.subject in within.subjects)
        and (within.grades is None or one.grade in within.grades)
    )


# --- building --------------------------------------------------------------------------------------------------------------
def build(connection: sa.Connection, chosen: Sequence[Described], embedder: str, folder: Path | None) -> Segment:
    """Read these documents from the database, into files in `folder`, or with None into memory. Raises OSError.

    Every file is written, none is synced. Vectors of another embedder than this one are left out.
    """
    ordered = sorted(chosen)
    total = sum(one.passages for one in ordered)
    matrix = np.zeros((total, DIMENSIONS), dtype=np.float32)
    rows = np.zeros(total, dtype=ROWS)
    held: list[Held] = []

    def texts() -> Iterator[tuple[str, str]]:
        row = 0
        for one in ordered:
            start = row
            for id, text, heading, blob in _passages(connection, one.document, embedder):
                rows[row] = (id, len(blob) == DIMENSIONS * 4)
                if rows[row]["vector"]:
                    matrix[row] = np.frombuffer(blob, dtype="<f4")
                row += 1
                yield text, heading
            held.append(Held(one, start, row))

    words = lexical.write(None if folder is None else folder / "lexical.sqlite3", texts())
    index = vectors.build(matrix)
    if folder is None:
        return Segment("", tuple(held), rows, vectors.Vectors(index), lexical.Lexical(words, total), {})
    words.close()
    vectors.write(index, folder / "vectors.faiss")
    np.save(folder / "rows.npy", rows, allow_pickle=False)
    (folder / "documents.json").write_text(json.dumps([[*one.described, one.start, one.stop] for one in held]))
    return open_files(folder, "", {})


def _passages(connection: sa.Connection, document: str, embedder: str) -> Iterator[tuple[int, str, str, bytes]]:
    chosen = (
        sa.select(
            passages.c.id, passages.c.text, passages.c.place, passages.c.vector, passages.c.embedder, documents_table.c.title
        )
        .join(documents_table, documents_table.c.id == passages.c.document)
        .where(passages.c.document == document)
        .order_by(passages.c.id)
    )
    for row in connection.execute(chosen):
        yield row.id, row.text, f"{row.title} {row.place}", (row.vector if row.embedder == embedder else None) or b""


# --- reading ---------------------------------------------------------------------------------------------------------------
def open_files(folder: Path, name: str, digests: dict[str, str], dead: frozenset[str] = frozenset()) -> Segment:
    """Open files that were found to be whole. Raises OSError, ValueError, RuntimeError, or the driver's errors."""
    held = []
    for collection, subject, grade, document, count, mark, start, stop in json.loads((folder / "documents.json").read_bytes()):
        held.append(Held(Described(collection, subject, grade, document, count, mark), start, stop))
    rows = np.load(folder / "rows.npy", allow_pickle=False)
    small = len(rows) < IN_MEMORY
    return Segment(
        name,
        tuple(held),
        rows,
        vectors.open_file(folder / "vectors.faiss", small),
        lexical.open_file(folder / "lexical.sqlite3", len(rows), small),
        digests,
        dead,
    )
