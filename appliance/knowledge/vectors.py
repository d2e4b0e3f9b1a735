"""Meaning of one segment: which rows have the nearest vectors.

Three kinds of FAISS index, chosen by size. Hides FAISS, the kinds, and how many proposals a kind has to make so that the exact
ones are among them: whoever asks computes the score of these again. Rows count from 0; knows no passages and no collections.

flat      below FLAT_BELOW: the vectors themselves, in memory; exact
scan      a byte a number, all of them looked at, memory-mapped
clusters  from CLUSTERS_FROM: the same bytes in lists of near ones (IVF), of which the nearest are looked at, memory-mapped

A mapped file that somebody else cuts short where it lies (a backup restored over it, say) would end this process with SIGBUS at
the next look into it. Nothing of ours writes into a finished file, replacing or removing one leaves what is mapped alone, and
every search first asks whether the file is as it was when it was opened: only cutting it during a search is left.
"""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

DIMENSIONS = 384
FLAT_BELOW = 50_000
CLUSTERS_FROM = 200_000
PROBES = 64  # lists that are looked at in a whole segment; a filter makes it more
NARROW = 20_000  # rows: where a filter leaves no more, all of them are looked at
SAMPLE = 40  # vectors for each list that the lists are learnt from
Vector = np.ndarray[Any, np.dtype[np.float32]]
Range = tuple[int, int]


def kind(rows: int) -> str:
    return "flat" if rows < FLAT_BELOW else "scan" if rows < CLUSTERS_FROM else "clusters"


def build(matrix: Vector) -> Any:
    """An index of rows of length 1 (n, 384); rows without a vector are zero and must never be asked for."""
    import faiss

    rows = len(matrix)
    quantizer, inner = faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
    index: Any
    match kind(rows):
        case "flat":
            index = faiss.IndexFlatIP(DIMENSIONS)
        case "scan":
            index = faiss.IndexScalarQuantizer(DIMENSIONS, quantizer, inner)
            index.train(matrix)
        case _:
            lists = round(2 * math.sqrt(rows))
            index = faiss.IndexIVFScalarQuantizer(faiss.IndexFlatIP(DIMENSIONS), DIMENSIONS, lists, quantizer, inner)
            chosen = np.random.default_rng(0).choice(rows, min(rows, SAMPLE * lists), replace=False)
            index.train(np.ascontiguousarray(matrix[np.sort(chosen)]))
    index.add(matrix)
    return index


class Changed(Exception):
    """Somebody wrote into the file since it was verified. Never leaves this folder: the segment is read, or built, anew."""


class Vectors:
    """The vectors of one segment, for searching from any thread. `mapped`: the open file that they are read from, else None."""

    def __init__(self, index: Any, mapped: int | None = None) -> None:
        import faiss

        self._faiss: Any = faiss
        self._mapped = mapped
        if mapped is not None:
            weakref.finalize(self, os.close, mapped)
            self._as_opened = _written(mapped)
        self._index: Any = index
        self._lists = int(getattr(self._index, "nlist", 0))
        self.rows = int(index.ntotal)
        self.exact = isinstance(self._index, faiss.IndexFlat)

    def nearest(self, vector: Vector, k: int, ranges: Sequence[Range]) -> list[tuple[int, float]]:
        """The `k` nearest rows within the ranges (sorted, apart), best first, with their cosines, near enough to choose by.

        `vector`: float32 (384,), length 1. Raises Changed.
        """
        if self._mapped is not None and _written(self._mapped) != self._as_opened:
            raise Changed
        scope = sum(stop - start for start, stop in ranges)
        if not scope:
            return []
        selector = self._selector(ranges) if scope < self.rows else None
        if self._lists:
            probes = self._lists if scope <= NARROW else min(self._lists, math.ceil(PROBES * self.rows / scope))
            parameters = self._faiss.SearchParametersIVF(sel=selector, nprobe=probes)
        else:
            parameters = self._faiss.SearchParameters(sel=selector)
        self._faiss.omp_set_num_threads(1)  # of this thread: one question gains nothing from more, and others ask, too
        scores, found = self._index.search(vector.reshape(1, -1), min(k, scope), params=parameters)
        return [(int(row), float(score)) for row, score in zip(found[0], scores[0], strict=True) if 0 <= row < self.rows]

    def _selector(self, ranges: Sequence[Range]) -> Any:
        # Before the best are taken, not after: another class's better passages must not push this class's out.
        if len(ranges) == 1:
            return self._faiss.IDSelectorRange(*ranges[0])
        wanted = np.zeros(self.rows, dtype=bool)
        for start, stop in ranges:
            wanted[start:stop] = True
        return self._faiss.IDSelectorBitmap(np.packbits(wanted, bitorder="little"))


def data(index: Any) -> bytes:
    import faiss

    return bytes(faiss.serialize_index(index).tobytes())


def write(index: Any, path: Path) -> None:
    """Raises OSError."""
    import faiss

    try:
        faiss.write_index(index, str(path))
    except RuntimeError as error:
        raise OSError(str(error)) from error


def open_file(path: Path, memory: bool) -> Vectors:
    """A finished file that was found to be whole. Mapped ones are read page by page as they are needed. Raises RuntimeError."""
    import faiss

    if memory:
        return Vectors(faiss.deserialize_index(np.frombuffer(path.read_bytes(), dtype=np.uint8)))
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        lists = os.read(descriptor, 2) == b"Iw"  # FAISS maps lists in another way than plain codes, and refuses the wrong one
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP if lists else faiss.IO_FLAG_MMAP_IFC)
        if lists:  # reading ahead goes on after a search, when nobody looks whether the file is still what it was
            inside: Any = index
            faiss.downcast_InvertedLists(inside.invlists).prefetch_nthread = 0  # type: ignore[attr-defined]
    except BaseException:
        os.close(descriptor)
        raise
    return Vectors(index, descriptor)


def _written(descriptor: int) -> tuple[int, int]:
    facts = os.fstat(descriptor)
    return facts.st_size, facts.st_mtime_ns
