# ruff: noqa: RUF001 - quotation marks and letters of all languages are what this is about
"""How people write to get past a rule, or because they are nine years old: one spelling for all of it.

`Spelling.plain` turns a text into lower-case words with single spaces and a "." where a sentence ends: without accents, letters
that cannot be seen, digits that stand for letters ("su1cide"), letters set apart ("k i l l"), words run together and slips in
the words that matter most. It changes a word only into one that a rule uses, so that H2O and WW2 stay what they are. It knows
no rule and decides nothing.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Iterable
from functools import lru_cache

LONGEST_WORD = 60  # what is longer is no word: it is not taken apart
SHORTEST_GLUED = 8

_STOPS = ".!?…;:。！？؟؛"
_EDGES = re.compile(r"\A[\W_]+|[\W_]+\Z")
_PARTS = re.compile(r"[^\W_]+")
_APOSTROPHES = dict.fromkeys(map(ord, "'’‘`´ʼ"))
_LEET = str.maketrans("01345789@$!|€+", "oieastbgasiiet")
_LEET_L = str.maketrans("01345789@$!|€+", "oleastbgasllet")
# Arabic: one form of each letter, however it was typed.
_ARABIC = str.maketrans({"ة": "ه", "ى": "ي", "ـ": None, "ٱ": "ا", "ک": "ك", "ی": "ي"})
_ARABIC_PREFIXES = ("وال", "بال", "فال", "لل", "ال", "و", "ف", "ب", "ل")
# Letters of other alphabets that look like ours: only in a word that has ours as well.
_LOOKS_LIKE = str.maketrans("аеорсхуікмнтвзɑοιѕјԁ", "aeopcxyikmhtb3aoisjd")
# Short words that may be a part of words run together: of others every long word could be made.
_SHORT = frozenset(("i", "a", "to", "my", "me", "be", "it", "do", "so", "no", "in", "up", "of", "im", "je", "ya", "te"))
_TWO = re.compile(r"(?<=[a-z]) 2 (?=[a-z])")  # "want 2 die"
_LONG_RUN = re.compile(r"(.)\1{2,}")


class Spelling:
    """`vocabulary`: every word that a rule uses. `misspelt`: those that are recognised with a slip. `correct`: words that look
    like one of these with a slip, and are right as they stand. `starred`: those recognised with a letter starred out.

    telling: whether some words together are what a rule looks for.
    """

    def __init__(
        self,
        vocabulary: Collection[str],
        misspelt: Collection[str] = (),
        correct: Iterable[str] = (),
        starred: Iterable[str] = (),
        telling: Callable[[str], bool] = lambda _plain: True,
    ) -> None:
        self._telling = telling
        self._words = frozenset(vocabulary) | frozenset(misspelt)
        self._longest = max(map(len, self._words), default=0)
        self._correct = frozenset(correct)
        self._slips: dict[str, str] = {}
        for word in sorted(misspelt):
            for slip in _deletions(word, 2 if len(word) >= 9 else 1):
                self._slips.setdefault(slip, word)
        self._starred = sorted(starred)
        self.word = lru_cache(maxsize=20_000)(self._word)

    def plain(self, text: str) -> str:
        """ " i want to die . ": a blank before and behind each word."""
        words: list[str] = []
        letters: list[str] = []  # a run of single letters
        for chunk in fold(text).split():
            edge = chunk.rstrip("\"'”’)]*_»")
            found = self._chunk(chunk)
            for word in found:
                if len(word) == 1 and word.isalpha():
                    letters.append(word)
                    continue
                words += self._run(letters)
                letters = []
                words += word.split(" ")
            if edge and edge[-1] in _STOPS and not (letters and len(edge) == 2):  # "k. i. l. l." is one word
                words += self._run(letters)
                letters = []
                words.append(".")
        words += self._run(letters)
        return _TWO.sub(" to ", f" {' '.join(words)} ")

    def _chunk(self, chunk: str) -> list[str]:
        core = _EDGES.sub("", chunk)
        if core.isalnum():
            if len(core) + 1 < len(chunk) or chunk[0] in "@$!":  # "@ss", "a$$" at an edge
                whole = self._disguised(chunk.strip("\"'.,:;?()[]"))
                if whole:
                    return [whole]
            return [self.word(core)]
        if not core:
            return []
        whole = self._disguised(core)
        return [whole] if whole else [self.word(part) for part in _PARTS.findall(core)]

    def _disguised(self, chunk: str) -> str:
        """A word with signs inside it, where a rule has that word: "s.u.i.c.i.d.e", "k!ll", "su*cide"."""
        if len(chunk) > LONGEST_WORD:
            return ""
        stars = chunk.count("*") + chunk.count("#")
        for table in (_LEET, _LEET_L):
            word = "".join(_PARTS.findall(chunk.translate(table)))
            if not stars and len(word) > 2 and word in self._words:
                return word
        if len(chunk) > 3 and 0 < stars <= 2:
            pattern = re.compile(re.sub(r"\\[*#]", ".", re.escape(chunk)))
            return next((word for word in self._starred if pattern.fullmatch(word)), "")
        return ""

    def _run(self, letters: list[str]) -> list[str]:
        if len(letters) < 3:
            return letters
        joined = "".join(letters)
        return self._split(joined, shortest=1) or letters

    def _word(self, word: str) -> str:
        """One word without signs in it; it may become several."""
        if word in self._words or word in self._correct or word.isdigit() or len(word) > LONGEST_WORD:
            return word
        if not word.isalpha():
            for table in (_LEET, _LEET_L):
                plain = word.translate(table)
                if plain.isalpha() and plain in self._words:
                    return plain
                if plain.isalpha() and (glued := self._glued(plain)):
                    return glued
            return word
        if not word.isascii():
            mixed = word.translate(_LOOKS_LIKE)
            if mixed != word and (mixed in self._words):
                return mixed
            for prefix in _ARABIC_PREFIXES:
                if word.startswith(prefix) and word[len(prefix) :] in self._words:
                    return word[len(prefix) :]
        for short in (r"\1\1", r"\1"):
            shorter = _LONG_RUN.sub(short, word)
            if shorter != word and shorter in self._words:
                return shorter
        return self._slip(word) or self._glued(word) or word

    def _glued(self, word: str) -> str:
        """Words run together, where a rule speaks of them: nearly every long word could be taken apart into some."""
        words = " ".join(self._split(word))
        return words if words and self._telling(f" {words} ") else ""

    def _slip(self, word: str) -> str:
        if len(word) < 5:
            return ""
        for slip in _deletions(word, 2 if len(word) >= 9 else 1):
            meant = self._slips.get(slip)
            if meant is not None and meant[0] == word[0] and _near(word, meant):
                return meant
        return ""

    def _split(self, word: str, shortest: int = SHORTEST_GLUED) -> list[str]:
        """Words of the rules that make up `word` from end to end, the fewest; none where it is anything else."""
        if not shortest <= len(word) <= LONGEST_WORD:
            return []
        best: list[list[str] | None] = [[]] + [None] * len(word)
        for end in range(1, len(word) + 1):
            for start in range(max(0, end - self._longest), end):
                before, piece = best[start], word[start:end]
                if before is None or piece not in self._words or (len(piece) < 3 and piece not in _SHORT):
                    continue
                if best[end] is None or len(before) + 1 < len(best[end] or []):
                    best[end] = [*before, piece]
        found = best[-1] or []
        return found if any(len(piece) > 2 for piece in found) else []


def fold(text: str) -> str:
    """Lower case, one form of each letter, no accents, no apostrophes, nothing that cannot be seen."""
    if not text.isascii():
        text = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", text).casefold())
        text = "".join(letter for letter in text if letter.isascii() or unicodedata.category(letter) not in ("Mn", "Cf"))
        text = text.translate(_ARABIC)
    return text.lower().translate(_APOSTROPHES)


def _deletions(word: str, most: int) -> set[str]:
    """The word with up to so many letters left out: two words whose sets meet are that near to each other."""
    found = {word}
    layer = {word}
    for _ in range(most):
        layer = {one[:at] + one[at + 1 :] for one in layer for at in range(len(one))}
        found |= layer
    return found


def _near(one: str, other: str) -> bool:
    """At most one slip in words under nine letters, two in longer ones; two letters that changed places are one slip."""
    most = 2 if len(other) >= 9 else 1
    if abs(len(one) - len(other)) > most:
        return False
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        older, before, row = before, row, [i]
        for j, wanted in enumerate(other, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != wanted))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == wanted:
                cost = min(cost, older[j - 2] + 1)
            row.append(cost)
    return row[-1] <= most
