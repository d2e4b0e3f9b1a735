"""Which passages answer a question best, and whether any of them does.

Words (BM25) and meaning (cosine) each propose passages of those that may be seen; reciprocal rank fusion (Cormack et al.,
SIGIR 2009) takes the best of both; those are put in order by their evidence, and the same evidence decides whether the
question is covered at all. Hides the weights and the usual threshold. Fetches no text and embeds nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from appliance.knowledge.index import Reader, Vector
from appliance.knowledge.shelves import Within
from appliance.knowledge.words import query_words, sentences, stem

POOL = 60  # passages that each of the two may propose
FUSION = 60.0  # the constant of reciprocal rank fusion: how little the very first places count for
JUDGED = 40  # fused passages whose text is looked at

# Evidence = cosine + shares of the question's telling words, each weighing as much as it is rare (idf): of those that stand in
# two sentences of the passage one after the other, and of those that stand anywhere in it or in its neighbours of the same
# place. Words spread over a page say less than words side by side; an explanation over two passages loses nothing.
# All chosen on the development questions of content/retrieval alone; `scripts/bench knowledge` prints what each is worth.
NEAR_WEIGHT = 0.25
PLACE_WEIGHT = 0.25
ASKING = 0.1  # what a list of check questions loses: it holds all the words and no answer
ENUMERATED = 0.1  # what a passage of numbered lines alone loses, in proportion: exercises, and the list of their answers
UNKNOWN = 0.28  # what a question loses for words that stand in no document: the more of its telling words they are, the more
# Where both mistakes are as likely, by a logistic fit on the same questions (`calibration`); a school can fit its own.
COVERED = 0.56
FLOOR = 0.3  # cosine below which shared words are a coincidence ("the heart of the matter")
COVERED_BY_WORDS = 0.6  # the share alone, while there is no embedder
BEST = 5  # passages whose words are looked at then

_NUMBERED = re.compile(r"\s*(?:\(?[a-z0-9]{1,4}[.)]|\d+\b)")


def propose(generation: Reader, question: str, vector: Vector | None, within: Within) -> tuple[list[int], dict[int, float]]:
    """Passage ids, the likeliest first, and their cosines where known."""
    # A word that stands nowhere is no rare word: beside it the index would take all others for too common to look for.
    asked = [word for word in query_words(question) if generation.frequency(word)]
    by_words = generation.matching(asked, POOL, within)
    by_meaning = [] if vector is None else generation.nearest(vector, POOL, within)
    points: dict[int, float] = {}
    for order in (by_words, by_meaning):
        for place, (passage, _) in enumerate(order, 1):
            points[passage] = points.get(passage, 0.0) + 1 / (FUSION + place)
    ids = sorted(points, key=lambda passage: (-points[passage], passage))[:JUDGED]
    if vector is None:
        return ids, {}
    known = dict(by_meaning)  # the others were found by their words alone
    return ids, {id: known[id] for id in ids if id in known} | generation.cosines([id for id in ids if id not in known], vector)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The passages, best first; `reached`: the evidence of those that may decide; `needed`: what covers a question usually."""

    order: list[int]
    reached: dict[int, float]
    needed: float


@dataclass(frozen=True, slots=True)
class _Read:
    """What a text holds of the question's telling words, sentence by sentence and as a whole, and what it loses as a drill."""

    sentences: tuple[frozenset[str], ...]
    whole: frozenset[str]
    drill: float


class _Telling(dict[str, str]):
    """The stem of each word that has one of a question's; "" for all others, which are most."""

    def __init__(self, stems: Collection[str]) -> None:
        super().__init__()
        self._stems = stems

    def __missing__(self, word: str) -> str:
        found = self[word] = one if (one := stem(word)) in self._stems else ""
        return found


class Judge:
    """Weighs passages against one question."""

    def __init__(self, generation: Reader, question: str, by_words: bool) -> None:
        total = generation.passages
        self._weights: dict[str, float] = {}
        unknown: set[str] = set()
        for word in query_words(question):
            count = generation.frequency(word)
            self._weights[stem(word)] = max(math.log(1 + total / (1 + count)), self._weights.get(stem(word), 0.0))
            if not count:
                unknown.add(stem(word))
        self._whole = sum(self._weights.values()) or 1.0
        self._unknown = sum(self._weights[word] for word in unknown) / self._whole
        self._telling = _Telling(self._weights)
        self._texts: dict[str, _Read] = {}  # the same question may be judged twice, over more texts the second time
        self._shares: dict[frozenset[str], float] = {}
        self._by_words = by_words

    def order(
        self, texts: Mapping[int, str], cosines: Mapping[int, float], beside: Mapping[int, Sequence[int]] | None = None
    ) -> Verdict:
        """Equals stay in their order. `beside`: the neighbours of a passage in its place, where they are among the texts."""
        read = {passage: self._read(text) for passage, text in texts.items()}
        if self._by_words:
            # BM25 has weighed the words already, and how often they stand there; the share only says whether it is enough.
            shares = {passage: self._share(read[passage].whole) for passage in list(texts)[:BEST]}
            return Verdict(list(texts), shares, COVERED_BY_WORDS)
        evidence: dict[int, float] = {}
        reached: dict[int, float] = {}
        for passage, text in read.items():
            around = text.whole.union(*(read[other].whole for other in (beside or {}).get(passage, ())))
            evidence[passage] = (
                cosines.get(passage, 0.0)
                + NEAR_WEIGHT * self._closest(text.sentences)
                + PLACE_WEIGHT * self._share(around)
                - text.drill
            )
            if passage not in cosines:
                # A passage without a vector (added while the engine was down) must not be hidden for that.
                reached[passage] = COVERED + self._share(text.whole) - COVERED_BY_WORDS
            elif cosines[passage] >= FLOOR:
                reached[passage] = evidence[passage] - UNKNOWN * self._unknown
        return Verdict(sorted(texts, key=lambda passage: -evidence[passage]), reached, COVERED)

    def _read(self, text: str) -> _Read:
        known = self._texts.get(text)
        if known is None:
            of = self._telling.__getitem__
            held = tuple(frozenset(filter(None, map(of, sentence))) for sentence in sentences(text))
            known = self._texts[text] = _Read(held, frozenset[str]().union(*held), _drill(text))
        return known

    def _share(self, held: frozenset[str]) -> float:
        """How much of the question's telling words they are, 0 to 1."""
        known = self._shares.get(held)
        if known is None:
            known = self._shares[held] = sum(self._weights[word] for word in held) / self._whole
        return known

    def _closest(self, sentences: Sequence[frozenset[str]]) -> float:
        """The most of them that two sentences in a row hold."""
        pairs = {one | other for one, other in pairwise(sentences)} or set(sentences)
        return max(map(self._share, pairs), default=0.0)


def _drill(text: str) -> float:
    """What a passage loses for being a list of questions or of exercises."""
    lines = [line for line in text.split("\n") if line.strip()]
    asks = 2 * sum(line.rstrip().endswith("?") for line in lines) >= len(lines) + 1
    return ASKING * asks + ENUMERATED * sum(bool(_NUMBERED.match(line)) for line in lines) / max(1, len(lines))
