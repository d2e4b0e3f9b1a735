"""Whether one text resembles another: word shingles, MinHash to find candidates, the exact Jaccard similarity to decide.

Hides the sketches and their index. Used to keep copies of held-out items out of training, to drop near-duplicates, and to count
how often almost the same reply was given. It knows nothing of parts, caps or reasons.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

from appliance.engine.handler import Message
from appliance.tuning.formats import Example

SHINGLE = 3  # words
NEAR = 0.6  # Jaccard similarity of shingle sets from which a conversation stands too near to an item it is judged by
# Two conversations teach the same only where nearly everything is the same: a second reply to one question is another lesson.
SAME_TALK = 0.8
SAME_REPLY = 0.6
PERMUTATIONS = 64
FIRST_TURN_WORDS = 8  # a first question shorter than this is too common to tell copies by ("Can you help me?")
REMEMBERED = 32  # texts whose shingles and sketch are kept: one row is compared with several collections in a row
# What an item says of itself in `extra`: its first turn is a question that means something however short it is ("question"),
# or it is prose that may stand in any turn ("text").
GUARD = "guard"

Shingles = frozenset[str]


def plain(text: str) -> str:
    """Case, accents' spelling, punctuation and spacing do not make a different question; signs in a sum do."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.findall(r"\w+|[^\w\s.,;:!?'\"]", folded)) or folded.strip()


@functools.lru_cache(maxsize=REMEMBERED)
def shingles(text: str) -> Shingles:
    words = plain(text).split()
    return frozenset(" ".join(words[at : at + SHINGLE]) for at in range(max(1, len(words) - SHINGLE + 1)))


def similarity(one: Shingles, other: Shingles) -> float:
    """Jaccard: what both have of what either has."""
    return len(one & other) / len(one | other)


@functools.lru_cache(maxsize=REMEMBERED)
def _sketch(text: Shingles) -> Any:
    from datasketch import MinHash

    minhash = MinHash(num_perm=PERMUTATIONS, seed=1)
    minhash.update_batch([shingle.encode() for shingle in text])
    return minhash


class Texts:
    """Texts, numbered as they come, asked which of them a new one resembles."""

    def __init__(self, threshold: float) -> None:
        from datasketch import MinHashLSH

        self._threshold = threshold
        # Bands of 4 rows find pairs well below the threshold too; the exact similarity then decides.
        self._index = MinHashLSH(num_perm=PERMUTATIONS, params=(PERMUTATIONS // 4, 4))
        self._stored: list[Shingles] = []

    def add(self, text: Shingles) -> int:
        """The text's number: 0, 1, 2, ..."""
        self._index.insert(len(self._stored), _sketch(text), check_duplication=False)
        self._stored.append(text)
        return len(self._stored) - 1

    def like(self, text: Shingles) -> list[int]:
        """The numbers, rising, of all texts at least as similar as the threshold."""
        if not self._stored:
            return []
        candidates = self._index.query(_sketch(text))
        return sorted(number for number in candidates if similarity(text, self._stored[number]) >= self._threshold)


class Judged:
    """Items that something is judged by: an example that resembles one must not be learnt from.

    Compared are the whole talk; the item's first question, where it is long enough to mean something, with every turn of the
    example's pupil; and, of items that say so (GUARD), a short question word by word, and prose with every turn.
    """

    def __init__(self, items: Sequence[Example]) -> None:
        self._talks, self._asked, self._prose = _Named(), _Named(), _Named()
        self._questions: dict[str, str] = {}
        self._sentences = 0  # in the longest question
        for item in items:
            first, guard = _turns(item)[0].content, item.extra.get(GUARD)
            if guard == "text":
                self._prose.add(item.messages[-1].content, item.id)
                continue
            self._talks.add(_talk(item), item.id)
            if len(first.split()) >= FIRST_TURN_WORDS:
                self._asked.add(first, item.id)
            if guard == "question":
                self._questions.setdefault(plain(first), item.id)
                self._sentences = max(self._sentences, len(_sentences(first)))

    def resembled(self, example: Example) -> str | None:
        """The id of an item that the example resembles, or None."""
        turns = _turns(example)
        long = [turn for turn in turns if len(turn.content.split()) >= FIRST_TURN_WORDS]
        return (
            self._asked_word_by_word([turn.content for turn in turns if turn.role == "user"])
            or self._talks.like(_talk(example))
            or next((id for turn in long if turn.role == "user" and (id := self._asked.like(turn.content))), None)
            or next((id for turn in long if (id := self._prose.like(turn.content))), None)
        )

    def _asked_word_by_word(self, said: Sequence[str]) -> str | None:
        """Also where a greeting or a request stands before or after the question."""
        return next(
            (
                self._questions[words]
                for text in said
                for words in (plain(text), *_runs(_sentences(text), self._sentences))
                if words in self._questions
            ),
            None,
        )


class _Named:
    """Texts, and whose they are."""

    def __init__(self) -> None:
        self._texts = Texts(NEAR)
        self._ids: list[str] = []

    def add(self, text: str, id: str) -> None:
        self._texts.add(shingles(text))
        self._ids.append(id)

    def like(self, text: str) -> str | None:
        found = self._texts.like(shingles(text)) if self._ids else []
        return self._ids[found[0]] if found else None


def _turns(example: Example) -> list[Message]:
    return [message for message in example.messages if message.role != "system"]


def _talk(example: Example) -> str:
    return "\n".join(message.content for message in _turns(example))


def _sentences(text: str) -> list[str]:
    """In plain words."""
    return [plain(sentence) for sentence in re.split(r"(?<=[.!?:])\s+|\n+", text) if sentence.strip()]


def _runs(sentences: list[str], most: int) -> Iterator[str]:
    """Every run of at most `most` sentences that follow each other."""
    for start in range(len(sentences)):
        for end in range(start + 1, min(start + most, len(sentences)) + 1):
            yield " ".join(sentences[start:end])


class Taken:
    """Examples that were taken, so that none is taken again that nearly repeats one: the talk and its last reply the same."""

    def __init__(self) -> None:
        self._talks = Texts(SAME_TALK)
        self._replies: list[Shingles] = []
        self._ids: list[str] = []

    def copied(self, example: Example) -> str | None:
        """The id of the taken example that this one nearly repeats; None where there is none, and then this one is taken."""
        talk = shingles(_talk(example))
        reply = shingles(example.messages[-1].content)
        for number in self._talks.like(talk):
            if similarity(reply, self._replies[number]) >= SAME_REPLY:
                return self._ids[number]
        self._talks.add(talk)
        self._replies.append(reply)
        self._ids.append(example.id)
        return None
