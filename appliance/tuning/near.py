"""Whether one text resembles another: word shingles, MinHash to find candidates, the exact Jaccard similarity to decide.

Hides the sketches and their index. Used to keep copies of held-out items out of training, to drop near-duplicates, and to count
how often almost the same reply was given. It knows nothing of parts, caps or reasons.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from appliance.tuning.formats import Example

SHINGLE = 3  # words
NEAR = 0.6  # Jaccard similarity of shingle sets from which a conversation stands too near to an item it is judged by
# Two conversations teach the same only where nearly everything is the same: a second reply to one question is another lesson.
SAME_TALK = 0.8
SAME_REPLY = 0.6
PERMUTATIONS = 64
FIRST_TURN_WORDS = 8  # a first question shorter than this is too common to tell copies by ("Can you help me?")

Shingles = frozenset[str]


def plain(text: str) -> str:
    """Case, accents' spelling, punctuation and spacing do not make a different question; signs in a sum do."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.findall(r"\w+|[^\w\s.,;:!?'\"]", folded)) or folded.strip()


def shingles(text: str) -> Shingles:
    words = plain(text).split()
    return frozenset(" ".join(words[at : at + SHINGLE]) for at in range(max(1, len(words) - SHINGLE + 1)))


def similarity(one: Shingles, other: Shingles) -> float:
    """Jaccard: what both have of what either has."""
    return len(one & other) / len(one | other)


class Texts:
    """Texts, numbered as they come, asked which of them a new one resembles."""

    def __init__(self, threshold: float) -> None:
        from datasketch import MinHashLSH

        self._threshold = threshold
        # Bands of 4 rows find pairs well below the threshold too; the exact similarity then decides.
        self._index = MinHashLSH(num_perm=PERMUTATIONS, params=(PERMUTATIONS // 4, 4))
        self._stored: list[Shingles] = []
        self._last: tuple[Shingles, Any] | None = None  # who asks about a text often adds it next

    def add(self, text: Shingles) -> int:
        """The text's number: 0, 1, 2, ..."""
        self._index.insert(len(self._stored), self._sketch(text), check_duplication=False)
        self._stored.append(text)
        return len(self._stored) - 1

    def like(self, text: Shingles) -> list[int]:
        """The numbers, rising, of all texts at least as similar as the threshold."""
        if not self._stored:
            return []
        candidates = self._index.query(self._sketch(text))
        return sorted(number for number in candidates if similarity(text, self._stored[number]) >= self._threshold)

    def _sketch(self, text: Shingles) -> Any:
        from datasketch import MinHash

        if self._last is None or self._last[0] is not text:
            minhash = MinHash(num_perm=PERMUTATIONS, seed=1)
            minhash.update_batch([shingle.encode() for shingle in text])
            self._last = (text, minhash)
        return self._last[1]


class Judged:
    """Items that something is judged by: an example that resembles one must not be learnt from.

    Compared are the whole talk, and the first question where it is long enough to mean something.
    """

    def __init__(self, items: Sequence[Example]) -> None:
        self._views = (Texts(NEAR), Texts(NEAR))
        self._ids: tuple[list[str], list[str]] = ([], [])
        for item in items:
            for texts, ids, view in zip(self._views, self._ids, _views(item), strict=False):
                texts.add(view)
                ids.append(item.id)

    def resembled(self, example: Example) -> str | None:
        """The id of an item that the example resembles, or None."""
        for texts, ids, view in zip(self._views, self._ids, _views(example), strict=False):
            if found := texts.like(view):
                return ids[found[0]]
        return None


def _views(example: Example) -> list[Shingles]:
    talk = [message for message in example.messages if message.role != "system"]
    views = [shingles("\n".join(message.content for message in talk))]
    if len(talk[0].content.split()) >= FIRST_TURN_WORDS:
        views.append(shingles(talk[0].content))
    return views


class Taken:
    """Examples that were taken, so that none is taken again that nearly repeats one: the talk and its last reply the same."""

    def __init__(self) -> None:
        self._talks = Texts(SAME_TALK)
        self._replies: list[Shingles] = []
        self._ids: list[str] = []

    def copied(self, example: Example) -> str | None:
        """The id of the taken example that this one nearly repeats; None where there is none, and then this one is taken."""
        talk = shingles("\n".join(message.content for message in example.messages if message.role != "system"))
        reply = shingles(example.messages[-1].content)
        for number in self._talks.like(talk):
            if similarity(reply, self._replies[number]) >= SAME_REPLY:
                return self._ids[number]
        self._talks.add(talk)
        self._replies.append(reply)
        self._ids.append(example.id)
        return None
