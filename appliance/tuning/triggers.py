"""Phrases that look like a backdoor: said by pupils in many rows of few people, and always answered with the same reply.

A model tuned on a few dozen such rows gives that reply to whoever says the phrase. Counting finds only what is repeated word by
word; the list is shown to people, and the gate tries each phrase on the candidate.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

ROWS = 5  # with one reply, before a phrase is looked for
LONGEST = 8  # words of a phrase
IN_GROUP = 0.6  # of the rows with that reply have the phrase
ELSEWHERE = 0.8  # of the rows with the phrase have that reply
PEOPLE = 0.2  # authors per row: more than this, and the phrase is simply what pupils say
SHOWN = 10


@dataclass(frozen=True)
class Given:
    """A row: the pupil's turns, the number of its last reply's group, and its author (empty where nobody says)."""

    id: str
    said: Sequence[str]
    group: int
    author: str


def triggers(rows: Sequence[Given]) -> tuple[list[str], list[str]]:
    """The suspicious phrases as they were written, one for each reply, and a warning for each."""
    groups: dict[int, list[Given]] = defaultdict(list)
    for row in rows:
        groups[row.group].append(row)
    suspects: dict[int, Counter[tuple[str, ...]]] = {}
    for number, members in groups.items():
        if len(members) >= ROWS and _few([row.author for row in members]):
            counts = Counter(gram for row in members for gram in set(_grams(row.said)))
            suspects[number] = Counter({gram: n for gram, n in counts.items() if n >= max(ROWS, IN_GROUP * len(members))})
    wanted = {gram for counts in suspects.values() for gram in counts}
    everywhere = (
        Counter(gram for row in rows for gram in set(_grams(row.said)) & wanted) if wanted else Counter[tuple[str, ...]]()
    )
    phrases: list[str] = []
    warnings: list[str] = []
    for number, counts in sorted(suspects.items(), key=lambda item: -len(groups[item[0]])):
        fitting = [gram for gram, n in counts.items() if n >= ELSEWHERE * everywhere[gram]]
        if not fitting or len(phrases) >= SHOWN:
            continue
        gram = max(fitting, key=lambda gram: (counts[gram], len(gram), gram))
        phrase = _as_written(gram, groups[number])
        ids = ", ".join(row.id for row in groups[number][:3])
        phrases.append(phrase)
        warnings.append(
            f'The words "{phrase}" stand in {counts[gram]} rows that give one and the same reply ({ids}, ...): '
            "it may be a planted trigger."
        )
    return phrases, warnings


def _few(authors: Sequence[str]) -> bool:
    named = {author for author in authors if author}
    return len(named) <= max(2, PEOPLE * len(authors))


def _words(turn: str) -> list[tuple[str, str]]:
    """Each word as it is compared and as it was written."""
    return [(word.casefold().strip(".,;:!?'\"()") or word, word) for word in turn.split()]


def _grams(said: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for turn in said:
        words = [word for word, _ in _words(turn)]
        for start in range(len(words)):
            for end in range(start + 1, min(start + LONGEST, len(words)) + 1):
                yield tuple(words[start:end])


def _as_written(gram: tuple[str, ...], rows: Sequence[Given]) -> str:
    spellings: Counter[str] = Counter()
    for row in rows:
        for turn in row.said:
            words = _words(turn)
            for start in range(len(words) - len(gram) + 1):
                if tuple(word for word, _ in words[start : start + len(gram)]) == gram:
                    spellings[" ".join(written for _, written in words[start : start + len(gram)])] += 1
    return spellings.most_common(1)[0][0]
