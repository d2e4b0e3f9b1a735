"""A text's words as the search compares them: case, accents and scripts without spaces.

French "Photosynthèse" is "photosynthese", whichever way it was typed; a Hindi word keeps its vowel signs; Chinese, Japanese and
Thai, which put no spaces between words, count by pairs of neighbouring characters. Hides the scripts, the stop words (English)
and the endings (English). Knows no index.
"""

from __future__ import annotations

import functools
import re
import unicodedata

QUERY_WORDS = 32  # of a question that are looked for

# The words that say nothing about a subject. Over 100,000 passages they cost ten times what the rest costs.
STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        """a about after again all also am an and any are as at be because been before being between both but by can could
        did do does doing done down each every few for from further get give given had has have having he her here hers
        him his how i if in into is it its itself just let like many may me might more most much must my no nor not now
        of off on once one only or other our out over own please s same say says she should show so some such t tell
        than that the their them then there these they this those through to too under until up us use used using very
        was we were what when where which while who whom whose why will with would you your explain""",
    )
)

# Scripts that are written without spaces: Thai, Lao, Myanmar, Khmer, kana and the Han characters. Korean has spaces.
UNSPACED = (
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0ecd\u1000-\u103f\u1780-\u17d3\u3041-\u3096\u30a1-\u30fa\u30fc\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003134f"
)
# Python counts the vowel signs of Indian and South-East Asian scripts as no part of a word, though words consist of them.
_MARKS = "".join(chr(code) for code in range(0x0300, 0x1D00) if unicodedata.category(chr(code))[0] == "M")
_WORD = re.compile(rf"[\w{_MARKS}]+")
_RUN = re.compile(f"[{UNSPACED}]+|[^{UNSPACED}]+")
_UNSPACED = re.compile(f"[{UNSPACED}]")
_ACCENTS = re.compile("[\u0300-\u036f]")  # of Latin, Greek and Cyrillic: what the index leaves out, too


def fold(text: str) -> str:
    """Lower case and without accents, composed: what a search takes for the same."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFC", _ACCENTS.sub("", unicodedata.normalize("NFD", text.lower())))


def spaced(text: str) -> str:
    """Folded, and with spaces around each character of a script without spaces, so that each of them can be looked for."""
    folded = fold(text)
    return folded if folded.isascii() else _UNSPACED.sub(r" \g<0> ", folded)


@functools.lru_cache(maxsize=256)  # one search asks twice for the words of each passage
def words(text: str) -> tuple[str, ...]:
    """The words of a text in order, folded; a stretch without spaces becomes its pairs of characters."""
    found: list[str] = []
    for word in _WORD.findall(fold(text).replace("_", " ")):
        if word.isascii() or not _UNSPACED.search(word):
            found.append(word)
            continue
        for run in _RUN.findall(word):
            paired = len(run) > 1 and _UNSPACED.match(run)
            found += [run[at : at + 2] for at in range(len(run) - 1)] if paired else [run]
    return tuple(found)


def query_words(text: str) -> list[str]:
    """The words of a question that are worth looking for: in order, each once; stop words only where there are no others."""
    found = list(dict.fromkeys(words(text)))
    return ([word for word in found if word not in STOP_WORDS] or found)[:QUERY_WORDS]


@functools.lru_cache(maxsize=20_000)
def stem(word: str) -> str:
    """The word without its commonest English endings: enough to see that "fractions" is "fraction"."""
    for ending in ("ations", "ation", "ings", "ing", "ied", "ies", "ed", "es", "ly", "s", "e", "y"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word
