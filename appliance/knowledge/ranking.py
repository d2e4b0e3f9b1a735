"""Which passages answer a question best, and whether any of them does.

Words (BM25) and meaning (cosine) each propose passages of the allowed collections; reciprocal rank fusion (Cormack et al.,
SIGIR 2009) takes the best of both; those are put in order by their evidence, and the same evidence decides whether the
question is covered at all. Hides the weights and thresholds. Fetches no text and embeds nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from appliance.knowledge.index import Generation, Vector
from appliance.knowledge.words import as_written, query_words, stem, words

POOL = 60  # passages that each of the two may propose
FUSION = 60.0  # the constant of reciprocal rank fusion: how little the very first places count for
JUDGED = 40  # fused passages whose text is looked at

# Evidence = cosine + SHARE_WEIGHT x share, where share is how much of the question's telling words the passage holds: each word
# weighs as much as it is rare (idf). Chosen on 1,210 pages of school books: of 80 questions that they answer 77 reach COVERED,
# of 53 that they do not answer 50 stay below it. In order of evidence 32 of 40 known pages came first (28 to 32 for weights
# from 0.4 to 0.6), by fusion alone 26.
SHARE_WEIGHT = 0.5
COVERED = 0.72
FLOOR = 0.3  # cosine below which shared words are a coincidence ("the heart of the matter")
COVERED_BY_WORDS = 0.6  # the share alone, while there is no embedder: 67 of the 80, and 45 of the 53
ASKING = 0.1  # what a list of check questions loses: it holds all the words and no answer
BEST = 5  # passages whose words are looked at then


def propose(
    generation: Generation, question: str, vector: Vector | None, collections: Sequence[str] | None
) -> tuple[list[int], dict[int, float]]:
    """Passage ids, the likeliest first, and their cosines where known. Collections by id; None: all."""
    # A word that stands nowhere is no rare word: beside it the index would take all others for too common to look for.
    asked = [word for word in [*query_words(question), *as_written(question)] if generation.frequency(word)]
    by_words = generation.matching(asked, POOL, collections)
    by_meaning = [] if vector is None else generation.nearest(vector, POOL, collections)
    points: dict[int, float] = {}
    for order in (by_words, by_meaning):
        for place, passage in enumerate(order, 1):
            points[passage] = points.get(passage, 0.0) + 1 / (FUSION + place)
    ids = sorted(points, key=lambda passage: (-points[passage], passage))[:JUDGED]
    return ids, {} if vector is None else generation.cosines(ids, vector)


class Judge:
    """Weighs passages against one question."""

    def __init__(self, generation: Generation, question: str, by_words: bool) -> None:
        total = generation.passages
        self._weights: dict[str, float] = {}
        for word in query_words(question):
            weight = math.log(1 + total / (1 + generation.frequency(word)))
            self._weights[stem(word)] = max(weight, self._weights.get(stem(word), 0.0))
        self._whole = sum(self._weights.values()) or 1.0
        self._by_words = by_words

    def share(self, text: str) -> float:
        """How much of the question's telling words `text` holds, 0 to 1."""
        held = {stem(word) for word in words(text)}
        return sum(weight for word, weight in self._weights.items() if word in held) / self._whole

    def order(self, texts: Mapping[int, str], cosines: Mapping[int, float]) -> tuple[list[int], bool]:
        """The passages by evidence, best first (equals stay in their order), and whether they cover the question."""
        shares = {passage: self.share(text) for passage, text in texts.items()}
        if self._by_words:
            # BM25 has weighed the words already, and how often they stand there; the share only says whether it is enough.
            return list(texts), any(shares[passage] >= COVERED_BY_WORDS for passage in list(texts)[:BEST])
        evidence = {
            passage: cosines.get(passage, 0.0) + SHARE_WEIGHT * share - ASKING * _asks(texts[passage])
            for passage, share in shares.items()
        }
        # A passage without a vector (added while the engine was down) must not be hidden for that.
        alone = any(shares[passage] >= COVERED_BY_WORDS for passage in texts if passage not in cosines)
        best = max(
            (evidence[passage] for passage, cosine in cosines.items() if passage in evidence and cosine >= FLOOR), default=0.0
        )
        return sorted(texts, key=lambda passage: -evidence[passage]), best >= COVERED or alone


def _asks(text: str) -> bool:
    lines = [line for line in text.split("\n") if line.strip()]
    return 2 * sum(line.rstrip().endswith("?") for line in lines) >= len(lines) + 1
