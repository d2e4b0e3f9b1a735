"""One question against the index: propose, judge, and show each text once.

Schools keep a chapter as PDF and as DOCX, and last year's edition of both: the same words stand in several documents, and would
fill the first five places. Of such copies one stands for all, the one with a page number before others, and names the rest.
Hides how copies are told. Embeds nothing, and is told which collections may be seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import sqlalchemy as sa

from appliance.knowledge.index import Generation, Vector
from appliance.knowledge.ranking import Judge, propose
from appliance.knowledge.words import words
from appliance.tables import documents as documents_table
from appliance.tables import passages as passages_table

SHINGLE = 5  # words in a row that are compared
# A passage of which this share of word sequences stands in another document says nothing new. Of 1,873 passages of school books
# in five formats 91 % stand so in the PDF of their chapter, and 40 % in a single passage of it: each format is cut elsewhere.
COPY = 0.8
PART = 0.3  # the share that a page must hold to stand for a copy


@dataclass(frozen=True, slots=True)
class Copy:
    """Where the text of a passage stands as well."""

    document: str
    file: str
    title: str
    place: str
    page: int | None


@dataclass(frozen=True, slots=True)
class Passage:
    """Something that can be cited. `page` counts from 1. `score`: cosine to the question, 0 to 1; 0 where unknown.

    `also`: other documents of the searched collections that hold the same text; only a search fills it.
    """

    id: int
    document: str
    file: str
    title: str
    place: str
    page: int | None
    text: str
    score: float
    also: tuple[Copy, ...] = ()


@dataclass(frozen=True, slots=True)
class Found:
    """The best passages first. `covered`: they answer the question. `lexical_only`: found by words, for want of the embedder.

    `nearest`: titles of the documents that come closest, where nothing answers.
    """

    covered: bool
    lexical_only: bool
    passages: list[Passage]
    nearest: list[str]


def search(
    generation: Generation,
    rows: Callable[[sa.Select[Any]], list[Any]],
    text: str,
    vector: Vector | None,
    k: int,
    allowed: Sequence[str] | None,
) -> Found:
    """The `k` passages that answer `text` best. `rows` runs a select; `allowed`: collections by id, None is all. Blocking."""
    lexical_only = vector is None or (generation.passages > 0 and not generation.embedded)
    vector = None if lexical_only else vector
    proposed, cosines = propose(generation, text, vector, allowed)

    def fetched(ids: Sequence[int]) -> dict[int, Any]:
        """The index may be older than the database: what was removed is not there, and what is not allowed is never shown."""
        found = {row.id: row for row in rows(passage_rows().where(passages_table.c.id.in_(ids)))}
        return {id: found[id] for id in ids if id in found and (allowed is None or found[id].owner in allowed)}

    seen = fetched(proposed)
    sequences = {passage: _sequences(row.text) for passage, row in seen.items()}
    if beside := _beside(seen, sequences):
        others = {id: row for id, row in fetched(list(beside)).items() if row.document == beside[id]}
        seen |= others
        sequences |= {passage: _sequences(row.text) for passage, row in others.items()}
        cosines |= {} if vector is None else generation.cosines(list(others), vector)
    judge = Judge(generation, text, lexical_only)
    order, answers = judge.order({passage: row.text for passage, row in seen.items()}, cosines)
    stands_for = copies({passage: seen[passage] for passage in order}, sequences)
    first = list(dict.fromkeys(stands_for.get(passage, passage) for passage in order))[:k]
    passages = []
    for passage in first:
        also = [seen[other] for other in order if stands_for.get(other) == passage]
        passages.append(as_passage(seen[passage], cosines.get(passage), also))
    nearest = [] if answers else list(dict.fromkeys(passage.title for passage in passages))
    return Found(answers, lexical_only, passages, nearest)


def copies(rows: Mapping[int, Any], sequences: Mapping[int, set[int]]) -> dict[int, int]:
    """Of the passages, best first, which are copies, and the one that stands for each.

    A copy says nothing that another document does not say, be it in two passages, for formats are cut in different places; the
    better of these then stands for it. Pages of one document are never copies of each other: both are worth a visit.
    """
    holders: dict[int, list[int]] = {}
    stands_for: dict[int, int] = {}
    place = {passage: number for number, passage in enumerate(rows)}
    for passage in sorted(rows, key=lambda passage: rows[passage].page is None):  # equals stay in their order
        mine = sequences[passage]
        parts = {other: count for other, count in _shared(mine, holders).items() if not _one_book(rows, other, passage)}
        best = max(parts, key=parts.__getitem__, default=None)
        if best is not None:
            same = [other for other in parts if _one_book(rows, other, best)]
            if len(mine.intersection(chain.from_iterable(sequences[other] for other in same))) >= COPY * len(mine):
                good = [other for other in same if parts[other] >= PART * len(mine)] or [best]
                stands_for[passage] = min(good, key=place.__getitem__)
                continue
        for sequence in mine:
            holders.setdefault(sequence, []).append(passage)
    return stands_for


def _shared(mine: set[int], holders: Mapping[int, list[int]]) -> Counter[int]:
    """How many of the word sequences each holder has as well."""
    return Counter(chain.from_iterable(holders[sequence] for sequence in mine if sequence in holders))


def _one_book(rows: Mapping[int, Any], one: int, other: int) -> bool:
    return bool(rows[one].document == rows[other].document)


def _beside(rows: Mapping[int, Any], sequences: Mapping[int, set[int]]) -> dict[int, str]:
    """Passages before and after those pages of which a part stands in a passage without a page, with their document.

    The rest of that passage likely stands there. Passages of a document follow each other by their ids.
    """
    holders: dict[int, list[int]] = {}
    for passage, row in rows.items():
        if row.page is not None:
            for sequence in sequences[passage]:
                holders.setdefault(sequence, []).append(passage)
    beside: dict[int, str] = {}
    for passage, row in rows.items():
        if row.page is None:
            for other, count in _shared(sequences[passage], holders).items():
                if PART * len(sequences[passage]) <= count < COPY * len(sequences[passage]):
                    beside |= dict.fromkeys((other - 1, other + 1), rows[other].document)
    return {passage: document for passage, document in beside.items() if passage not in rows}


def _sequences(text: str) -> set[int]:
    """Every SHINGLE words in a row, as a number each."""
    said = words(text)
    if len(said) <= SHINGLE:
        return {hash(said)} if said else set()
    return set(map(hash, zip(*(said[start:] for start in range(SHINGLE)), strict=False)))


def passage_rows() -> sa.Select[Any]:
    """What `as_passage` needs, and `owner`, the id of the collection."""
    return sa.select(
        passages_table.c.id,
        passages_table.c.document,
        documents_table.c.file,
        documents_table.c.title,
        passages_table.c.place,
        passages_table.c.page,
        passages_table.c.text,
        documents_table.c.collection.label("owner"),
    ).join(documents_table, documents_table.c.id == passages_table.c.document)


def as_passage(row: Any, cosine: float | None = None, also: Sequence[Any] = ()) -> Passage:
    score = round(max(0.0, min(1.0, cosine or 0.0)), 4)
    elsewhere = {(one.document, one.place): Copy(one.document, one.file, one.title, one.place, one.page) for one in also}
    return Passage(
        row.id, row.document, row.file, row.title, row.place, row.page, row.text, score, tuple(elsewhere.values())
    )  # fmt: skip
