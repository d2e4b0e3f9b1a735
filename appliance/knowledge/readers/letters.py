"""Which of the old code pages for Latin letters a text is written in, by how often languages use their letters.

A byte such as 0xF5 is õ in Western Europe and ő in Hungary, and both read well to a program that knows no language. Counted are
only bytes above ASCII; where the evidence is thin nothing is said. It knows nothing of other scripts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Set
from functools import cache

WESTERN = "cp1252"
# For each language, of a hundred of its letters beyond ASCII, how many are which (small letters; about, from running text).
_CENTRAL = {
    "Czech": "í22 á16 ě11 é10 ř8 č7 ž7 ý7 š6 ů4 ú1 ť1 ď1 ň1 ó1",
    "Slovak": "á20 č10 í10 ý9 ž9 é8 š8 ú8 ľ4 ť4 ô2 ď2 ň2 ó1 ä1 ŕ1 ĺ1",
    "Polish": "ł28 ę17 ą15 ó13 ż10 ś8 ć5 ń3 ź1",
    "Hungarian": "é33 á33 ö10 ó10 ő9 ü5 í5 ú2 ű2",
    "Croatian, Slovene": "č30 š28 ž20 ć15 đ7",
    "Romanian": "ă40 ş20 ţ17 î14 â6",
}
_TURKISH = {"Turkish": "ı34 ü13 ş12 ç9 ğ9 ö7 İ2 â1 î1"}  # noqa: RUF001
_WEST = {
    "French": "é55 à14 è11 ê6 ç4 â2 ô2 û2 î2 ù1 ë1 ï1 œ1",
    "German": "ü35 ä30 ö17 ß17",
    "Spanish": "ó28 í25 á20 é15 ñ9 ú5 ü1",
    "Portuguese": "ã23 ç15 é14 á12 í12 ê10 ó8 õ4 à4 ú4 â3 ô2",
    "Italian": "à30 è25 ù12 ò12 é10 ì10",
    "Swedish, Finnish": "ä50 ö25 å22 é1",
    "Danish, Norwegian": "å40 ø32 æ25 é1",
    "Icelandic": "ð30 á15 í13 þ10 ó8 ö8 æ7 é6 ú5 ý2",
    "Catalan": "à24 é20 è15 ó15 ò10 í8 ç5 ú4 ï2 ü1",
    "Estonian": "ä45 õ28 ü20 ö6",
    "Dutch": "é40 ë40 ï10 ö5 è2 ü1 ó1",
}
_PAGES = {WESTERN: _WEST, "cp1250": _CENTRAL, "iso8859-2": _CENTRAL, "cp1254": _TURKISH}
_RARE = 0.001  # of a letter that a language does not have: a name, a word of another
_SIGN = 0.01  # of what is no letter
_MARK = 0.06  # of the signs that running text has
_MARKS = frozenset("«»‹›“”„‘’‚–—…•·°§¿¡€£\u00a0")  # noqa: RUF001
_FEWEST = 2  # bytes that the two pages read differently
_SURE, _CLEARLY = 3.0, 0.7  # how much likelier in all, and for each such byte (natural logarithms)


def code_page(data: bytes, letters: Set[int] = frozenset()) -> str:
    """cp1250, iso8859-2 or cp1254 where one of them is clearly likelier than Western Europe's, else "".

    letters: bytes that have to be letters where they stand, although Western Europe reads a sign.
    """
    counted = {byte: count for byte, count in Counter(data).items() if byte > 0x7F}
    # A sign proves nothing by itself: what is ł in Polish is the 3 of cm³.
    telling = {byte: count for byte, count in counted.items() if byte in letters or _telling(_read(WESTERN, byte))}
    likelier = []
    for page in _PAGES:
        gain = _likelihood(page, telling) - _likelihood(WESTERN, telling)
        differ = sum(count for byte, count in telling.items() if _read(page, byte) != _read(WESTERN, byte))
        if differ >= _FEWEST and gain > max(_SURE, _CLEARLY * differ):
            likelier.append((_likelihood(page, counted), page))
    return max(likelier)[1] if likelier and max(likelier)[0] > _likelihood(WESTERN, counted) else ""


def _likelihood(page: str, counted: dict[int, int]) -> float:
    """Of these bytes in the language of the page that fits them best."""
    read = [(_read(page, byte), count) for byte, count in counted.items()]
    return max(sum(count * math.log(_share(language, letter)) for letter, count in read) for language in _PAGES[page].values())


def _share(language: str, letter: str) -> float:
    if not letter.isalpha():
        # What no text holds: a byte without a meaning here, a control sign.
        if letter in _MARKS:
            return _MARK
        return _SIGN if letter.isprintable() and letter != "\ufffd" else _RARE / 100
    return _shares(language).get(letter, _RARE)


@cache
def _shares(language: str) -> dict[str, float]:
    return {one[0]: int(one[1:]) / 100 for one in language.split()}


def _telling(letter: str) -> bool:
    """Of what Western Europe reads: a letter of words, or nothing that it knows."""
    return (letter.isalpha() and letter not in "µªº") or letter == "\ufffd"


def _read(page: str, byte: int) -> str:
    letter = bytes([byte]).decode(page, "replace")
    return letter if letter == "İ" else letter.lower()
