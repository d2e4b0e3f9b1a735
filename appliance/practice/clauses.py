"""A teacher's words cut into sentences, each with its place in the text and its words in one spelling.

Hides punctuation, quotation marks, capitals and accents. It knows no move: `moves` and `listening` read what it gives.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass, field
from functools import lru_cache

from appliance.safety.spelling import fold

LONGEST = 600  # characters of a sentence; what has no full stop for longer is cut at a space
QUOTED = "§"  # stands for words in quotation marks: somebody else's, or words that are talked about
_END = re.compile(r"[.!?…。！？؟।]+[\"”’»)\]]*(?=\s|$)|[。！？؟]+|\n+")  # noqa: RUF001 - the marks of several alphabets
_TITLE = re.compile(r"(?:^|[\s(])(?:mr|mrs|ms|dr|prof|st|e\.g|i\.e|vs|no|p|pp)\.$", re.I)
_LETTERS = r"[^\W_](?:[^\W_]|[\u0300-\u036f\u064b-\u065f\u0670])*"  # with accents and vowel marks that are typed apart
_WORD = re.compile(rf"{_LETTERS}(?:['’´`ʼ]{_LETTERS})*")  # noqa: RUF001 - apostrophes as they are typed
_BREAK = re.compile(r"[,;:،؛()–—]|\s-+\s|-{2,}")  # noqa: RUF001 - dashes as they are typed
_QUOTES = re.compile('"[^"\n]{1,400}"|“[^”\n]{1,400}”|«[^»\n]{1,400}»|„[^“”\n]{1,400}[“”]')
# Words before which a sentence has not really begun: "okay so what do you think" opens at "what".
_FILLERS_WORDS = (
    "ok okay alright right well so now and but yes yeah yep no oh ah hm hmm mm um uh great good fine lovely thanks "
    "please then because or also listen class everyone everybody guys folks just let me see just first next"
)
FILLERS = frozenset(_FILLERS_WORDS.split())


@dataclass(frozen=True, slots=True)
class Clause:
    """One sentence. `plain`: " so what do you think ": its words in lower case, what is quoted as one "§".

    opens: where in `plain` a part begins: at the start, after a comma, after words such as "okay". ends: where one ends.
    """

    start: int
    end: int
    asks: bool
    words: tuple[str, ...]
    plain: str
    opens: tuple[int, ...]
    ends: frozenset[int] = field(repr=False)


def clauses(text: str) -> list[Clause]:
    """Every sentence of a text that holds a word."""
    quoted = [(found.start(), found.end()) for found in _QUOTES.finditer(text)]
    if not _WORD.search(_QUOTES.sub(" ", text)):
        quoted = []  # all of it stands in quotation marks: it is the teacher's own speech
    found = []
    for start, end in _spans(text, quoted):
        clause = _clause(text, start, end, quoted)
        if clause is not None:
            found.append(clause)
    return found


def words(text: str) -> list[str]:
    """The words of a text in one spelling."""
    return [word for found in _WORD.finditer(text) if (word := _fold(found.group()))]


@lru_cache(maxsize=20_000)
def _fold(word: str) -> str:
    return fold(word[:60])


def _spans(text: str, quoted: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Where sentences stand, without the blanks around them. A full stop within quotation marks ends nothing outside them."""
    starts = [start for start, _ in quoted]
    found, start = [], 0
    for mark in _END.finditer(text):
        at = bisect_left(starts, mark.start()) - 1
        inside = at >= 0 and mark.start() < quoted[at][1] and mark.end() < quoted[at][1]
        if inside or (mark.group() == "." and _TITLE.search(text, max(start, mark.start() - 6), mark.end())):
            continue
        found.append((start, mark.end()))
        start = mark.end()
    found.append((start, len(text)))
    return [trimmed for start, end in found for piece in _pieces(text, start, end) if (trimmed := _trimmed(text, *piece))]


def _pieces(text: str, start: int, end: int) -> list[tuple[int, int]]:
    found = []
    while end - start > LONGEST:
        cut = text.rfind(" ", start + LONGEST // 2, start + LONGEST)
        cut = cut if cut > 0 else start + LONGEST
        found.append((start, cut))
        start = cut
    return [*found, (start, end)]


def _trimmed(text: str, start: int, end: int) -> tuple[int, int] | None:
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return (start, end) if start < end else None


def _clause(text: str, start: int, end: int, quoted: list[tuple[int, int]]) -> Clause | None:
    spoken: list[str] = []
    every: list[str] = []
    breaks = {0}  # numbers of the words at which a part begins
    last, masked = start, -1
    for found in _WORD.finditer(text, start, end):
        if _BREAK.search(text, last, found.start()):
            breaks.add(len(spoken))
        last = found.end()
        word = _fold(found.group())
        if not word:  # signs that are letters to one rule of Unicode and nothing to another
            continue
        every.append(word)
        within = next((number for number, (one, other) in enumerate(quoted) if one < found.start() < other), -1)
        if within < 0:
            spoken.append(word)
        elif within != masked:
            spoken.append(QUOTED)
        masked = within
    if not every:
        return None
    places, at = [], 0
    for word in spoken:
        places.append(at)
        at += len(word) + 1
    parts = {places[number] for number in breaks if number < len(places)}
    opens, ends = set(parts), (parts | {at}) - {0}
    for number, word in enumerate(spoken[:-1]):
        if places[number] in opens and word in FILLERS:
            opens.add(places[number + 1])
    marks = text[start:end].rstrip('"”’»)] ')  # noqa: RUF001 - quotation marks as they are typed
    asks = marks.endswith(("?", "؟", "？", "?!", "?…", "?."))  # noqa: RUF001 - the marks of several alphabets
    return Clause(start, end, asks, tuple(every), f" {' '.join(spoken)} ", tuple(sorted(opens)), frozenset(ends))
