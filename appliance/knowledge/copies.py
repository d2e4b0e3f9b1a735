"""Which of the passages that were found are copies of each other, and which of them stands for the rest.

Schools keep a chapter as PDF and as DOCX, and last year's edition of both. Texts are compared by the sequences of their words;
only what stands in two of them is looked at closely, because most of what is found is no copy of anything. Hides how a text is
taken apart. Fetches nothing: rows are handed in, with what `search.passage_rows` selects.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping
from itertools import chain
from typing import Any

from appliance.knowledge.words import sentences

SHINGLE = 5  # words in a row that are compared
# A passage of which this share of word sequences stands in another document says nothing new. Of 1,873 passages of school books
# in five formats 91 % stand so in the PDF of their chapter, and 40 % in a single passage of it: each format is cut elsewhere.
COPY = 0.8
PART = 0.3  # the share that a page must hold to stand for a copy


class Sequences:
    """Of each passage every SHINGLE words in a row, as a number each."""

    def __init__(self) -> None:
        self._own: dict[int, frozenset[int]] = {}
        self._known: set[int] = set()
        self._twice: set[int] = set()  # and what else was in two passages: too many do no harm

    def add(self, passage: int, text: str) -> None:
        own = self._own[passage] = _sequences(text)
        self._twice |= self._known & own
        self._known |= own

    def count(self, passage: int) -> int:
        return len(self._own[passage])

    def shared(self, passage: int) -> frozenset[int]:
        """Those that may stand in another passage as well: all others stand in none."""
        return self._own[passage] & self._twice


def copies(rows: Mapping[int, Any], sequences: Sequences) -> dict[int, int]:
    """Of the passages, best first, which are copies, and the one that stands for each.

    A copy says nothing that another document does not say, be it in two passages, for formats are cut in different places; the
    better of these then stands for it. Pages of one document are never copies of each other: both are worth a visit.
    """
    holders: dict[int, list[int]] = {}
    stands_for: dict[int, int] = {}
    place = {passage: number for number, passage in enumerate(rows)}
    shared = {passage: sequences.shared(passage) for passage in rows}
    for passage in sorted(rows, key=lambda passage: rows[passage].page is None):  # equals stay in their order
        mine, of = shared[passage], sequences.count(passage)
        parts = {other: count for other, count in _held(mine, holders).items() if not _one_book(rows, other, passage)}
        best = max(parts, key=parts.__getitem__, default=None)
        if best is not None:
            same = [other for other in parts if _one_book(rows, other, best)]
            if len(mine.intersection(chain.from_iterable(shared[other] for other in same))) >= COPY * of:
                good = [other for other in same if parts[other] >= PART * of] or [best]
                stands_for[passage] = min(good, key=place.__getitem__)
                continue
        for sequence in mine:
            holders.setdefault(sequence, []).append(passage)
    return stands_for


def beside(rows: Mapping[int, Any], sequences: Sequences) -> dict[int, str]:
    """Passages before and after those pages of which a part stands in a passage without a page, with their document.

    The rest of that passage likely stands there. Passages of a document follow each other by their ids.
    """
    holders: dict[int, list[int]] = {}
    for passage, row in rows.items():
        if row.page is not None:
            for sequence in sequences.shared(passage):
                holders.setdefault(sequence, []).append(passage)
    found: dict[int, str] = {}
    for passage, row in rows.items():
        if row.page is None:
            of = sequences.count(passage)
            for other, count in _held(sequences.shared(passage), holders).items():
                if PART * of <= count < COPY * of:
                    found |= dict.fromkeys((other - 1, other + 1), rows[other].document)
    return {passage: document for passage, document in found.items() if passage not in rows}


def _held(mine: frozenset[int], holders: Mapping[int, list[int]]) -> Counter[int]:
    """How many of the word sequences each holder has as well."""
    return Counter(chain.from_iterable(holders[sequence] for sequence in mine if sequence in holders))


def _one_book(rows: Mapping[int, Any], one: int, other: int) -> bool:
    return bool(rows[one].document == rows[other].document)


@functools.lru_cache(maxsize=512)  # a class asks about one chapter, and finds the same passages again and again
def _sequences(text: str) -> frozenset[int]:
    said = tuple(chain.from_iterable(sentences(text)))
    if len(said) <= SHINGLE:
        return frozenset({hash(said)} if said else ())
    return frozenset(map(hash, zip(*(said[start:] for start in range(SHINGLE)), strict=False)))
