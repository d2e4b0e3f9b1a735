"""A text's words as the search compares them: case, accents and scripts without spaces.

French "Photosynthèse" is "photosynthese", whichever way it was typed; a Hindi word keeps its vowel signs; Chinese, Japanese and
Thai, which put no spaces between words, count by pairs of neighbouring characters. Hides the scripts, where sentences end, the
stop words (English) and the endings (English). Knows no index.
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

# Most texts of a school need no more than ASCII to be taken apart, but for quotation marks, dashes, bullets, arrows and signs.
_SIGNS = re.compile(
    "[\u00a0-\u00a9\u00ab-\u00b1\u00b4\u00b6-\u00b8\u00bb\u00bf\u00d7\u00f7\u2002-\u206f\u2190-\u22ff\u25a0-\u25ff]"
)
_END = "\0"  # of a sentence, while several are taken apart at once
_ASCII = {code: chr(code).lower() if chr(code).isalnum() or chr(code) == _END else " " for code in range(128)}
_SENTENCE = re.compile(r"\s(?:(?<=[.!?\u2026]\s)\s*|(?<=\n))")
_ANY_SENTENCE = re.compile(r"(?<=[.!?\u2026])\s+|(?<=[\u3002\uff01\uff1f])|\n")


def fold(text: str) -> str:
    """Lower case and without accents, composed: what a search takes for the same."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFC", _ACCENTS.sub("", unicodedata.normalize("NFD", text.lower())))


def spaced(text: str) -> str:
    """Folded, and with spaces around each character of a script without spaces, so that each of them can be looked for."""
    folded = fold(text)
    return folded if folded.isascii() else _UNSPACED.sub(r" \g<0> ", folded)


def words(text: str) -> tuple[str, ...]:
    """The words of a text in order, folded; a stretch without spaces becomes its pairs of characters."""
    plain = _plain(text)
    if plain is not None:
        return tuple(plain.replace(_END, " ").split())
    found: list[str] = []
    for word in _WORD.findall(fold(text).replace("_", " ")):
        if word.isascii() or not _UNSPACED.search(word):
            found.append(word)
            continue
        for run in _RUN.findall(word):
            paired = len(run) > 1 and _UNSPACED.match(run)
            found += [run[at : at + 2] for at in range(len(run) - 1)] if paired else [run]
    return tuple(found)


@functools.lru_cache(maxsize=512)  # one search asks twice for those of each passage
def sentences(text: str) -> tuple[tuple[str, ...], ...]:
    """The words of each sentence, and of each line; all together they are the words of the text."""
    ends = _ANY_SENTENCE if any(sign in text for sign in "\u3002\uff01\uff1f") else _SENTENCE
    parts = [part for part in ends.split(text) if part and not part.isspace()]
    plain = _plain(_END.join(parts))
    if plain is None or plain.count(_END) != len(parts) - 1:
        return tuple(map(words, parts))
    return tuple(tuple(part.split()) for part in plain.split(_END))


def _plain(text: str) -> str | None:
    """Folded, with spaces for all that belongs to no word; None where that takes more than ASCII."""
    plain = text if text.isascii() else _SIGNS.sub(" ", text)
    return plain.translate(_ASCII) if plain.isascii() else None


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
