"""One question against the index: propose, judge, and show each text once, whole.

Schools keep a chapter as PDF and as DOCX, and last year's edition of both: the same words stand in several documents, and would
fill the first five places. Of such copies one stands for all, the one with a page number before others, and names the rest.
What was cut apart on one page, or under one heading, is put together again where both parts were found. Embeds nothing, and
knows no people: the rows it is given access to are those that may be seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import sqlalchemy as sa

from appliance.knowledge.copies import Sequences, beside, copies
from appliance.knowledge.index import DIMENSIONS, Reader, Vector
from appliance.knowledge.ranking import Judge, Verdict, propose
from appliance.knowledge.reranking import Rerank
from appliance.knowledge.shelves import Within
from appliance.tables import collections as collections_table
from appliance.tables import documents as documents_table
from appliance.tables import passages as passages_table

TWINS = 8  # passages nearest to one without a page, among which a copy with a page is looked for
JOINED = 3  # passages of one place that are shown as one: no more than some 400 words
RERANKED = 20  # passages that a cross-encoder reads

Rows = Callable[[sa.Select[Any]], list[Any]]


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

    A search puts `text` together of up to JOINED passages that follow each other in one place; `id` is the best of them.
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

    `nearest`: titles of the documents that come closest, where nothing answers. `best`: the evidence that was reached;
    `threshold`: what was needed in the collection that came closest to it; both are 0 where nothing comes near at all. Words
    alone are measured with another ruler.
    """

    covered: bool
    lexical_only: bool
    passages: list[Passage]
    nearest: list[str]
    threshold: float = 0.0
    best: float = 0.0


def search(
    generation: Reader,
    rows: Rows,
    text: str,
    vector: Vector | None,
    k: int,
    within: Within,
    rerank: Rerank | None = None,
) -> Found:
    """The `k` passages that answer `text` best. `rows` runs a select and gives what may be seen. Blocking."""
    lexical_only = vector is None or (generation.passages > 0 and not generation.embedded)
    looked = _Looked(generation, rows, None if lexical_only else vector)
    proposed, cosines = propose(generation, text, looked.vector, within)
    looked.add(proposed, cosines)
    looked.add_neighbours(beside(looked.rows, looked.sequences))
    judge = Judge(generation, text, lexical_only)
    verdict = looked.judged(judge)
    stands_for = looked.copies(verdict.order)
    if looked.add_twins(verdict.order, stands_for, k, within):
        verdict = looked.judged(judge)
        stands_for = looked.copies(verdict.order)
    order = list(dict.fromkeys(stands_for.get(passage, passage) for passage in verdict.order))
    if rerank is not None:
        order = _reranked(rerank, text, order, looked.rows)
    best, threshold = _nearest_to_covering(verdict, looked.rows, lexical_only)
    passages = [looked.shown(group, verdict.order, stands_for) for group in _joined(order, looked.rows, k)]
    covered = bool(verdict.reached) and best >= threshold
    nearest = [] if covered else list(dict.fromkeys(passage.title for passage in passages))
    return Found(covered, lexical_only, passages, nearest, round(threshold, 4), round(best, 4))


class _Looked:
    """The passages that are looked at for one question: their rows, the sequences of their words, and their cosines."""

    def __init__(self, generation: Reader, rows: Rows, vector: Vector | None) -> None:
        self._generation = generation
        self._run = rows
        self.vector = vector
        self.rows: dict[int, Any] = {}
        self.sequences = Sequences()
        self.cosines: dict[int, float] = {}

    def add(self, ids: Iterable[int], cosines: Mapping[int, float] | None = None) -> None:
        """The index may be older than the database: what was removed, or may not be seen, is not there."""
        new = [id for id in ids if id not in self.rows]
        if not new:
            return
        found = {row.id: row for row in self._run(passage_rows().where(passages_table.c.id.in_(new)))}
        self.rows |= {id: found[id] for id in new if id in found}
        for id, row in found.items():
            self.sequences.add(id, row.text)
        if cosines is None and self.vector is not None:
            cosines = self._generation.cosines(list(found), self.vector)
        self.cosines |= cosines or {}

    def add_neighbours(self, wanted: Mapping[int, str]) -> None:
        """Passages by id, each only where it is in the document that it was looked for in."""
        known = set(self.rows)
        self.add(wanted)
        for id in [id for id in self.rows if id not in known and self.rows[id].document != wanted[id]]:
            del self.rows[id]

    def add_twins(self, order: Sequence[int], stands_for: Mapping[int, int], k: int, within: Within) -> bool:
        """Whether there was more to look at for the first of the `k` best that has no page.

        Another format's copy of it, with a page, may lie below all that was proposed: it is near in meaning to its twin.
        """
        shown = list(dict.fromkeys(stands_for.get(passage, passage) for passage in order))[:k]
        alone = next((passage for passage in shown if self.rows[passage].page is None), None)
        if alone is None or self.vector is None or alone not in self.cosines:
            return False  # without a cosine, its vector is none or another embedder's, which has nothing to say here
        (blob,) = [row.vector for row in self._run(_vector_of(alone))] or [None]
        if blob is None or len(blob) != DIMENSIONS * 4:
            return False
        near = self._generation.nearest(np.frombuffer(blob, dtype="<f4"), TWINS, within)
        known = set(self.rows)
        self.add(passage for passage, _ in near)
        twins = [passage for passage, _ in near if passage in self.rows and self.rows[passage].page is not None]
        document = self.rows[alone].document
        self.add_neighbours(
            {
                passage + step: self.rows[passage].document
                for passage in twins
                if self.rows[passage].document != document
                for step in (-1, 1)
                if passage + step not in known
            }
        )
        return self.rows.keys() != known

    def judged(self, judge: Judge) -> Verdict:
        near = {id: [other for other in (id - 1, id + 1) if _one_place(self.rows, id, other)] for id in self.rows}
        return judge.order({id: row.text for id, row in self.rows.items()}, self.cosines, near)

    def copies(self, order: Sequence[int]) -> dict[int, int]:
        return copies({passage: self.rows[passage] for passage in order}, self.sequences)

    def shown(self, group: Sequence[int], order: Sequence[int], stands_for: Mapping[int, int]) -> Passage:
        """The passages of a group as one, under the id of the first."""
        also = [self.rows[other] for other in order if stands_for.get(other) in group]
        shown = as_passage(self.rows[group[0]], self.cosines.get(group[0]), also)
        return shown if len(group) == 1 else replace(shown, text="\n".join(self.rows[one].text for one in sorted(group)))


def _joined(order: Sequence[int], rows: Mapping[int, Any], k: int) -> list[list[int]]:
    """The `k` best places: what follows each other in one place is one, the best of it first."""
    groups: list[list[int]] = []
    for passage in order:
        touching = (
            group for group in groups
            if len(group) < JOINED and any(abs(one - passage) == 1 and _one_place(rows, one, passage) for one in group)
        )  # fmt: skip
        if group := next(touching, None):
            group.append(passage)
        elif len(groups) < k:
            groups.append([passage])
        else:
            break
    return groups


def _nearest_to_covering(verdict: Verdict, rows: Mapping[int, Any], lexical_only: bool) -> tuple[float, float]:
    """The evidence that comes nearest to what its collection needs, or exceeds it most; and what that is."""
    needed = {
        passage: verdict.needed if lexical_only or rows[passage].threshold is None else float(rows[passage].threshold)
        for passage in verdict.reached
    }
    best = max(verdict.reached, key=lambda passage: verdict.reached[passage] - needed[passage], default=None)
    return (0.0, 0.0) if best is None else (verdict.reached[best], needed[best])


def _reranked(rerank: Rerank, text: str, order: list[int], rows: Mapping[int, Any]) -> list[int]:
    first = order[:RERANKED]
    scores = rerank(text, [rows[passage].text for passage in first])
    if scores is None or len(scores) != len(first):
        return order
    by_score = dict(zip(first, scores, strict=True))
    return [*sorted(first, key=lambda passage: -by_score[passage]), *order[RERANKED:]]


def _one_place(rows: Mapping[int, Any], one: int, other: int) -> bool:
    """Whether both were cut from one page, or from under one heading."""
    if one not in rows or other not in rows:
        return False
    here, there = rows[one], rows[other]
    return bool((here.document, here.place, here.page) == (there.document, there.place, there.page))


def passage_rows() -> sa.Select[Any]:
    """What `as_passage` needs, and `threshold`, what an answer needs in the collection: None is the usual."""
    return (
        sa.select(
            passages_table.c.id,
            passages_table.c.document,
            documents_table.c.file,
            documents_table.c.title,
            passages_table.c.place,
            passages_table.c.page,
            passages_table.c.text,
            collections_table.c.threshold,
        )
        .join_from(passages_table, documents_table, documents_table.c.id == passages_table.c.document)
        .join(collections_table, collections_table.c.id == documents_table.c.collection)
    )


def _vector_of(passage: int) -> sa.Select[Any]:
    chosen = sa.select(passages_table.c.vector).join(documents_table, documents_table.c.id == passages_table.c.document)
    return chosen.where(passages_table.c.id == passage)


def as_passage(row: Any, cosine: float | None = None, also: Sequence[Any] = ()) -> Passage:
    score = round(max(0.0, min(1.0, cosine or 0.0)), 4)
    elsewhere = {(one.document, one.place): Copy(one.document, one.file, one.title, one.place, one.page) for one in also}
    return Passage(
        row.id, row.document, row.file, row.title, row.place, row.page, row.text, score, tuple(elsewhere.values())
    )  # fmt: skip
