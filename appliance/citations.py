# ruff: noqa: RUF001 - the quotation marks of all languages are what this is about
"""Citation marks in an answer: `[1]` points at a passage, and says that what was quoted before it stands there.

A mark that points at none is an invention and goes. Where words in quotation marks stand before a mark, in its sentence and at
most LOOK_BACK characters away, the mark stays only if its passage holds them; where another passage does, the mark is moved
there, and where none does, it goes. Words without quotation marks are not judged; brackets in code, and of an interval in a
formula (`$[0, 1]`, `\\in [0, 1]`), are no marks. Works on a stream, so that every door (pages, `/v1`, the commands) shows the
same clean text while it is being written: nothing that was shown is ever taken back, and how the text was cut on its way
changes nothing. It knows no model and no page; what it compares are texts.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from appliance.knowledge.words import UNSPACED

LOOK_BACK = 400  # characters before a mark that are looked at
OPEN_WORDS = 3  # a quotation that is not closed yet counts from so many words on

# What closes each quotation mark: some languages close with what others open with, and some open and close with the same.
_CLOSED_BY = {
    '"': '"', "＂": "＂", "“": "”“", "”": "”", "„": "“”", "‟": "”", "«": "»", "»": "«", "‹": "›", "›": "‹",
    "「": "」", "『": "』", "｢": "｣", "‘": "’", "‚": "‘’", "'": "'",
}  # fmt: skip
_OPENS_ONLY = frozenset("„‟«‹「『｢")
_SINGLE = frozenset("'‘‚")
_EITHER_WAY = frozenset("\"＂'’")  # closes only where something stands before it; ' is an apostrophe as well
_QUOTES = re.escape("".join(sorted({*_CLOSED_BY, *"".join(_CLOSED_BY.values())})))

_MARK = re.compile(r"(?P<space> *)\[(?=[\d,\s]{1,80}\])(?P<numbers>\s*\d+(?:\s*,\s*\d+)*\s*)\]")
# A mark of that length, and backticks of which more may come.
_UNFINISHED = re.compile(r"(?: *(?:\[[\d,\s]{0,80})?|`+)\Z")
_IN_CODE = re.compile(r"`+|\n[ \t>]*\n")
# What the bracket of an interval stands behind.
_FORMULA = re.compile(r"(?:\$|\\[(\[]|[_^]\{?|\\(?:[A-Za-z]{1,20}|[,;:!]) ?)\Z")
_QUOTE = re.compile(f"[{_QUOTES}]|\n[ \t>]*\n")  # or the end of a paragraph, which ends every quotation
_NEXT_SENTENCE = re.compile(r"(?:[.!?…][\"'”’»)\]]*\s|[。！？｡]).*?\w", re.S)
_LINE_START = re.compile(r"(?:\A|\n)[ \t>*+-]*(?:\d+[.)][ \t]*)?\Z")
_CODE = "\ufffc"  # stands for code in what is remembered: left out of a quotation as well
_GAP = re.compile(rf"\[[^\]]{{0,60}}\]|\.{{3,}}|…|{_CODE}")  # "a river [...] builds", "[it] builds"
_HYPHEN = re.compile("[\u2010-\u2015\u2212]")
_DRESS = re.compile(f"[{_QUOTES}*_`]")
_CLOSE_UP = re.compile(f"(?<=[{UNSPACED}]) | (?=[{UNSPACED}])")
_UNSPACED = re.compile(f"[{UNSPACED}]")


@dataclass(frozen=True, slots=True)
class _Quotation:
    """Words between quotation marks, folded, without what was left out of them, and where in the text they stand."""

    parts: tuple[str, ...]
    start: int
    end: int


class Citations:
    """Feed it text as it comes; it holds back an unfinished mark. `texts`: the passages that may be cited, from number 1."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts
        self._folded: dict[int, str] = {}
        self._held = ""
        self._code = ""  # the backticks that opened the code at this place
        self._last = ""  # the letter before it
        self._before = ""  # the last of what was written, without marks and code
        self._cut = False  # that there was more before it
        self._since = LOOK_BACK + 1  # how much was written after the last mark
        self._near: list[_Quotation] = []  # what the last mark was judged by
        self._listed = False  # that the last mark opened its line

    def feed(self, text: str) -> str:
        text = self._held + text
        cut = _finished(text)
        self._held = text[cut:]
        return self._clean(text[:cut])

    def flush(self) -> str:
        text, self._held = self._held, ""
        return self._clean(text)

    def _clean(self, text: str) -> str:
        out, at = [], 0
        for mark in _MARK.finditer(text):
            before = text[at : mark.start()]
            self._remember(before)
            out.append(before)
            at = mark.end()
            if self._code or _FORMULA.search(self._before[-24:] + mark["space"]):  # an index, an interval
                out.append(mark[0])
                continue
            if good := self._judge([int(part.strip()[:9]) for part in mark["numbers"].split(",")]):
                out.append(f"{mark['space']}[{', '.join(map(str, good))}]")
            self._since = 0
        self._remember(text[at:])
        return "".join([*out, text[at:]])

    def _remember(self, text: str) -> None:
        plain, at = [], 0
        for sign in _IN_CODE.finditer(text):
            if not self._code:
                plain.append(text[at : sign.start()])
            at = sign.start()
            if sign[0][0] == "\n":
                if len(self._code) < 3:  # a paragraph's end is the end of code within its lines, closed or not
                    self._code = ""
                continue
            if not self._code:
                # "It`s": no code, somebody's apostrophe.
                letter = text[at - 1] if at else self._last
                apostrophe = letter.isalnum() and text[sign.end() : sign.end() + 1].isalnum()
                if not apostrophe or len(sign[0]) > 1:
                    self._code = sign[0]
                    plain.append(_CODE)
            elif len(sign[0]) == len(self._code) or 3 <= len(self._code) < len(sign[0]):
                self._code = ""
            at = sign.end()
        if not self._code:
            plain.append(text[at:])
        self._last = text[-1:] or self._last
        added = "".join(plain)
        self._since += len(added)
        self._cut = self._cut or len(self._before) + len(added) > LOOK_BACK
        self._before = (self._before + added)[-LOOK_BACK:]

    # --- one mark --------------------------------------------------------------------------------------------------------
    def _judge(self, numbers: Sequence[int]) -> list[int]:
        """The numbers that a mark keeps, or gets instead; none where it has to go."""
        given = list(dict.fromkeys(number for number in numbers if 1 <= number <= len(self._texts)))
        quoted, may_move = self._quoted()
        if not quoted:
            return given
        good: list[int] = []
        for quotation in quoted:
            held_by = [number for number in given if self._holds(number, quotation)]
            if not held_by and may_move:
                everywhere = range(1, len(self._texts) + 1)
                held_by = next(([number] for number in everywhere if self._holds(number, quotation)), [])
            if not held_by:
                return []  # one invented quotation is enough: the mark would vouch for it
            good += held_by
        return [number for number in dict.fromkeys([*given, *good]) if number in good]

    def _quoted(self) -> tuple[list[_Quotation], bool]:
        """The quotations that a mark at this place vouches for, and whether it may be moved to where they stand."""
        text = self._before
        start = max(0, len(text) - self._since)
        since = text[start:]
        opens = _LINE_START.search(text) is not None
        listed, self._listed = opens and self._listed, opens
        if self._near and not opens and not re.search(r"\w", since):
            return self._near, False  # `"..." [1] [2]`: both say the same, and one may be right
        # In a list whose lines open with a mark, what stands before the mark is the line above.
        quotations = [] if listed else _quotations(text, self._cut)
        away = re.compile(r"\w") if opens else _NEXT_SENTENCE
        near = [one for one in quotations if one.end > start and not away.search(text, one.end)]
        near = [one for one in near if one.end <= len(text) or one.start >= start]  # an open one was judged by that mark
        # In `[1] "..." [2] "..."` the words may belong to the mark before them: they do not tell where this one belongs.
        after_mark = self._since <= len(text) and not self._near
        follows = (
            bool(near) and after_mark and not re.search(r"[^\s:]", text[start : near[0].start - 1]) and near[0].start > start
        )
        self._near = near
        return near, not follows

    def _holds(self, number: int, quotation: _Quotation) -> bool:
        """Whether the passage holds every part of it, in order."""
        if number not in self._folded:
            # What looks like a mark in the passage is left out of it, as it is of the quotation.
            self._folded[number] = _fold(_MARK.sub("", self._texts[number - 1]))
        at = 0
        for part in quotation.parts:
            at = _find(self._folded[number], part, at)
            if at < 0:
                return False
            at += len(part)
        return True


def _finished(text: str) -> int:
    """Up to where nothing that comes can change what is said of it."""
    empty = text.find("\n", len(text.rstrip("\n\t >")))  # a line that may be empty, or several
    if empty >= 0:
        return empty
    held = _UNFINISHED.search(text)
    return held.start() if held else len(text)


# --- what stands in quotation marks ----------------------------------------------------------------------------------------
def _quotations(text: str, cut: bool) -> list[_Quotation]:
    """Every quotation in `text`, in order; with an open one at its end. `cut`: the text may begin within one."""
    found: list[_Quotation | None] = []
    opener = -1
    for match in _QUOTE.finditer(text):
        at, mark = match.start(), match[0]
        before, after = text[at - 1 : at] if at else "", text[at + 1 : at + 2]
        if len(mark) > 1:
            opener = -1
        elif opener >= 0 and mark in _CLOSED_BY[text[opener]] and _closes(mark, before, after):
            found.append(_quotation(text, opener + 1, at, 2 if text[opener] in _SINGLE else 1))
            opener = -1
        elif _opens(mark, before, after):
            opener = at
        elif cut and opener < 0 and mark not in "'’" and _closes(mark, before, after):
            found.append(_quotation(text, len(text) - len(text.split(maxsplit=1)[-1]), at, 1))  # without half a word
        cut = False
    if opener >= 0 and text[opener] not in _SINGLE:
        found.append(_quotation(text, opener + 1, len(text), OPEN_WORDS))
    return [one for one in found if one is not None]


def _opens(mark: str, before: str, after: str) -> bool:
    if mark not in _CLOSED_BY or mark in _OPENS_ONLY:
        return mark in _CLOSED_BY
    if not after.strip() or after in ",;:!?)]}":
        return False
    return mark in "“‘‚" or not before.isalnum() or _UNSPACED.match(before) is not None


def _closes(mark: str, before: str, after: str) -> bool:
    if mark not in _EITHER_WAY:
        return True
    return before.strip() != "" and not (mark in "'’" and after.isalnum())


def _quotation(text: str, start: int, end: int, least: int) -> _Quotation | None:
    """None for fewer than `least` words, and where no letter and no digit is left."""
    words = re.sub(r"\n[ \t]*>+", " ", text[start:end])
    if len(words.split()) < least and not _UNSPACED.search(words):
        return None
    parts = [re.sub(r"\A\W+|\W+\Z", "", _fold(part)) for part in _GAP.split(words)]
    return _Quotation(tuple(part for part in parts if part), start, end + 1) if any(parts) else None


# --- the same words, however they are typed --------------------------------------------------------------------------------
def _fold(text: str) -> str:
    """Without case, quotation marks, emphasis and what cannot be seen; one hyphen, one space, no space beside Han or kana."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    plain = "".join(letter for letter in plain if letter.isascii() or unicodedata.category(letter) != "Cf")
    plain = _DRESS.sub("", _HYPHEN.sub("-", plain))
    return _CLOSE_UP.sub("", " ".join(plain.split()))


def _find(text: str, part: str, at: int) -> int:
    """Where `part` stands in `text` from `at` on, as whole words; -1 where it does not."""
    while (at := text.find(part, at)) >= 0:
        end = at + len(part)
        if not (_one_word(text[at - 1 : at] if at else "", part[0]) or _one_word(part[-1], text[end : end + 1])):
            return at
        at += 1
    return -1


def _one_word(first: str, second: str) -> bool:
    """Whether two neighbouring letters belong to one word."""
    return first.isalnum() and second.isalnum() and not _UNSPACED.match(first) and not _UNSPACED.match(second)
