"""Sections into passages: what is embedded, found and cited.

A passage is some 130 words of one page or under one heading, cut between sentences and never longer than the embedder reads.
A table is cut between rows and each part begins with the row that names the columns; a formula is not cut. Hides what counts
as a sentence, a table and a formula, and what is merged. Does not read files and does not embed.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from appliance.knowledge import tokens
from appliance.knowledge.extract import Section

# In the embedder's tokens. It was trained on 128 and reads tokens.LIMIT.
TARGET = 180  # a passage this long ends with its paragraph
LONGEST = 220  # and one this long with its sentence
SHORTEST = 60  # below this a passage joins its neighbour of the same page or chapter
MOST_HEADING = 64  # of the headings above a passage that are embedded with it
MOST_HEADER = 60  # a table's first row that is longer is no names of columns, and is not repeated
LONGEST_WORD = 100  # letters: the embedder reads nothing in a longer one
BLOCK_LINES = 40  # a formula over several lines is no longer than this

_OPENING = "[\"'\u201c\u2018(\\[]*[^\\W_a-z]"
SENTENCE_END = re.compile(
    f"(?:(?<=[.!?\u2026])|(?<=[.!?\u2026][\"'\u201d\u2019)\\]]))\\s+(?={_OPENING})|(?<=[\u3002\uff01\uff1f])\\s*(?=[^\\s\u201d\u2019\u300d\u300f\uff09])"
)
# "Dr. Smith", "Fig. 3", "e.g. Lima", and "2. Subtract" where the line begins with it, are not two sentences.
ABBREVIATION = re.compile(
    r"(?<![^\W\d_])(?:Dr|Mr|Mrs|Ms|Prof|St|Figs?|Eqs?|Nos?|vs|cf|ca|pp?|vol|ch|sec|e\.g|i\.e|approx|[A-Z])\.$"
)
ENUMERATION = re.compile(r"\(?(?:\d{1,3}|[A-Za-z]|[ivx]{1,4})[.)]")
FORMULA_SPAN = re.compile(r"\$(?=\S)[^$]{1,200}?(?<=\S)\$(?!\d)|\\\(.{1,200}?\\\)|\\\[.{1,200}?\\\]")
RELATION = re.compile(r"[=\u2260\u2248<>\u2264\u2265\u00b1\u00d7\u00f7\u221a\u2211\u222b\u221d\u2192\u21d2^]|\\[a-z]+[{ ]")
# Where something stands by its number says nothing of what it is about.
NUMBERED = re.compile(r"(?:^|, )(?:p\. |lines? |slides? |rows? |records? )\d[\d\u2013-]*.*$")
LATEX_WORD = re.compile(r"\\[A-Za-z]+")
WORD = re.compile(r"[^\W\d_]{3,}")


@dataclass(frozen=True, slots=True)
class Piece:
    """A passage before it has an id. `text`: paragraphs separated by line feeds."""

    text: str
    place: str
    page: int | None


@dataclass(frozen=True, slots=True)
class _Unit:
    """What is not cut: a sentence, a row, a formula. `before` parts it from the one before it: a line feed at a paragraph."""

    text: str
    before: str
    size: int = 0
    header: str = ""  # the row that names this row's columns
    header_size: int = 0


@dataclass(frozen=True, slots=True)
class _Draft:
    """`last`: under which headings its end stands; its place says those of all of it."""

    piece: Piece
    size: int
    last: str


def embedding_text(place: str, text: str) -> str:
    """What the embedder is given for a passage: with the headings above it, where it has any."""
    heading = _heading(place)[0]
    return f"{heading}\n{text}" if heading else text


@functools.lru_cache(maxsize=1024)
def _heading(place: str) -> tuple[str, int]:
    """The headings of a place and their size; of very long ones only the nearest, lest they take the passage's room."""
    place = NUMBERED.sub("", place)
    if place == "beginning":
        return "", 0
    while place:
        size = tokens.count(place)
        if size <= MOST_HEADING:
            return place, size
        place = place.partition(" > ")[2]
    return "", 0


def cut(sections: Iterable[Section]) -> list[Piece]:
    """Passages in reading order. Pages are never mixed; a heading's small sections may share a passage."""
    drafts: list[_Draft] = []
    for section in sections:
        room = tokens.LIMIT - _heading(section.place)[1]
        for text, size in _split(_measured(_units(section.text)), room):
            draft = _Draft(Piece(text, section.place, section.page), size, section.place)
            merged = _merge(drafts[-1], draft) if drafts else None
            if merged is None:
                drafts.append(draft)
            else:
                drafts[-1] = merged
    return [draft.piece for draft in drafts]


# --- small ones ------------------------------------------------------------------------------------------------------
def _merge(before: _Draft, after: _Draft) -> _Draft | None:
    """Both as one passage where they belong together and one of them is too small to stand alone, else None."""
    first, second = before.piece, after.piece
    if first.page != second.page or min(before.size, after.size) >= SHORTEST:
        return None
    place, heads = first.place, ("", "")
    if before.last != second.place and not (first.place.startswith("line ") and second.place.startswith("line ")):
        place = _common(first.place, second.place)
        # Text of the heading above would read as if it stood below the last one.
        if not place or f"{before.last} > ".startswith(f"{second.place} > "):
            return None
        # What the common place no longer says stands in the text.
        heads = (first.place[len(place) + 3 :], second.place[len(place) + 3 :])
    size = before.size + after.size + sum(tokens.counts(heads))
    if size > min(LONGEST, tokens.LIMIT - _heading(place)[1]):
        return None
    lines = (heads[0], first.text, heads[1], second.text)
    return _Draft(Piece("\n".join(line for line in lines if line), place, first.page), size, second.place)


def _common(first: str, second: str) -> str:
    shared: list[str] = []
    for one, other in zip(first.split(" > "), second.split(" > "), strict=False):
        if one != other:
            break
        shared.append(one)
    return " > ".join(shared)


# --- a section into passages -----------------------------------------------------------------------------------------
def _split(units: Iterable[_Unit], room: int) -> Iterator[tuple[str, int]]:
    """Stretches and their sizes: about TARGET where the text allows, at most LONGEST unless one unit alone is more."""
    longest = min(LONGEST, room)
    stretches: list[list[_Unit]] = []
    size = 0
    for unit in (part for whole in units for part in _bounded(whole, room)):
        if not stretches or size + unit.size > longest or (size >= TARGET and unit.before == "\n"):
            stretches.append([])
            size = unit.header_size
        stretches[-1].append(unit)
        size += unit.size
    # What a section ends with is no passage of a few words, if the one before it has room.
    if len(stretches) > 1 and _size(stretches[-1]) < SHORTEST and _size(stretches[-2]) + _size(stretches[-1]) <= room:
        tail = stretches.pop()
        stretches[-1] += tail
    for stretch in stretches:
        header = stretch[0].header if _size(stretch) <= room else ""
        text = "".join([stretch[0].text, *(unit.before + unit.text for unit in stretch[1:])])
        yield (f"{header}\n{text}" if header else text), _size(stretch)


def _size(stretch: list[_Unit]) -> int:
    return stretch[0].header_size + sum(unit.size for unit in stretch)


def _bounded(unit: _Unit, room: int) -> Iterator[_Unit]:
    """The unit, or where the embedder could not read it in one go, parts of it cut between words."""
    if unit.size <= room:
        yield unit
        return
    # A "word" of thousands of letters is no language; it is cut so that one passage stays one passage.
    words = [word[at : at + LONGEST_WORD] for word in unit.text.split() for at in range(0, len(word), LONGEST_WORD)]
    held: list[str] = []
    size, before = 0, unit.before
    for word, length in zip(words, tokens.counts(words), strict=True):
        if held and size + length > min(TARGET, room):
            yield _Unit(" ".join(held), before, size)
            held, size, before = [], 0, " "
        held.append(word)
        size += length
    yield _Unit(" ".join(held), before, size)


def _measured(units: Iterable[_Unit]) -> Iterator[_Unit]:
    units = list(units)
    sizes = tokens.counts([unit.text for unit in units])
    header, header_size = "", 0
    for unit, size in zip(units, sizes, strict=True):
        if unit.header != header:
            header, header_size = unit.header, tokens.count(unit.header) if unit.header else 0
        # Names of columns that take the room of the rows are left where they stand.
        fits = header_size <= MOST_HEADER and header_size + size <= LONGEST
        yield replace(unit, size=size, header=header if fits else "", header_size=header_size if fits else 0)


# --- what is not cut -------------------------------------------------------------------------------------------------
def _units(text: str) -> Iterator[_Unit]:
    """Rows, formulas and sentences, in order."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    at = 0
    while at < len(lines):
        rows = _rows(lines, at)
        block = 1 if rows else _formula_lines(lines, at)
        if rows >= 3:
            # The names of the columns stay with the first row, and come again where the table goes on.
            yield _Unit(f"{lines[at]}\n{lines[at + 1]}", "\n")
            yield from (_Unit(row, "\n", header=lines[at]) for row in lines[at + 2 : at + rows])
        elif rows:
            yield from (_Unit(row, "\n") for row in lines[at : at + rows])
        elif block:
            yield _Unit("\n".join(lines[at : at + block]), "\n")
        else:
            yield from _sentences(lines[at])
        at += rows or block or 1


def _rows(lines: list[str], at: int) -> int:
    """How many rows of a table begin here: lines with cells between upright strokes. None where there is but one."""
    end = at
    while end < len(lines) and (" | " in lines[end] or re.fullmatch(r"\|.*\|", lines[end])):
        end += 1
    return end - at if end - at >= 2 else 0


def _formula_lines(lines: list[str], at: int) -> int:
    """How many lines of formula begin here; 0 where this line is none."""
    for opening, closing in (("$$", "$$"), ("\\[", "\\]"), ("\\begin{", "\\end{")):
        if lines[at].startswith(opening):
            if closing in lines[at][len(opening) :]:
                return 0 if lines[at].rpartition(closing)[2].strip(" .,;") and closing != "\\end{" else 1
            ends = (end for end in range(at + 1, min(at + BLOCK_LINES, len(lines))) if closing in lines[end])
            return next(ends, at) - at + 1
    line = lines[at]
    if len(line) > tokens.LIMIT * tokens.LETTERS or not RELATION.search(line):
        return 0
    return 1 if len(WORD.findall(LATEX_WORD.sub(" ", line))) <= 3 else 0


def _sentences(paragraph: str) -> Iterator[_Unit]:
    spans = [match.span() for match in FORMULA_SPAN.finditer(paragraph)] if "$" in paragraph or "\\" in paragraph else []
    start, span, before = 0, 0, "\n"
    for end in SENTENCE_END.finditer(paragraph):
        while span < len(spans) and spans[span][1] <= end.start():
            span += 1
        if span < len(spans) and spans[span][0] < end.start():
            continue
        if ABBREVIATION.search(paragraph[max(start, end.start() - 12) : end.start()]) or (
            end.start() - start < 8 and ENUMERATION.fullmatch(paragraph[start : end.start()])
        ):
            continue
        yield _Unit(paragraph[start : end.start()], before)
        start, before = end.end(), " " if end.group() else ""
    yield _Unit(paragraph[start:], before)
