"""Sections into passages: what is embedded, found and cited.

A passage is 130 to 160 words of one page or under one heading, cut between sentences. Hides how length is estimated (the
embedder's own tokenizer lives in another process) and what is merged. Does not read files and does not embed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from appliance.knowledge.extract import Section

# all-MiniLM-L6-v2 was trained on 128 tokens and cuts off after 256: the estimate below must keep well under that.
TARGET = 180
LONGEST = 220
SHORTEST = 60  # below this a passage joins its neighbour of the same page or chapter
SENTENCE_END = re.compile("(?:(?<=[.!?\u2026])|(?<=[.!?\u2026][\"'\u201d\u2019)\\]]))\\s+(?=[\"'\u201c\u2018(\\[]*[^\\W_a-z])")


@dataclass(frozen=True, slots=True)
class Piece:
    """A passage before it has an id. `text`: paragraphs separated by line feeds."""

    text: str
    place: str
    page: int | None


def embedding_text(place: str, text: str) -> str:
    """What the embedder is given for a passage: with the headings above it, where it has any."""
    heading = "" if place.startswith(("p. ", "line ")) or place == "beginning" else place
    return f"{heading}\n{text}" if heading else text


def tokens(text: str) -> int:
    """About how many tokens the embedder makes of `text`: long words are split, digits and signs count alone."""
    return sum(1 + (len(word) - 1) // 7 for word in re.findall(r"[^\W\d_]+|\d{1,2}|[^\w\s]|_", text))


def cut(sections: Iterable[Section]) -> list[Piece]:
    """Passages in reading order. Pages are never mixed; a heading's small sections may share a passage."""
    pieces: list[Piece] = []
    for section in sections:
        for text in _split(section.text):
            piece = Piece(text, section.place, section.page)
            merged = _merge(pieces[-1], piece, section.heading) if pieces else None
            if merged is None:
                pieces.append(piece)
            else:
                pieces[-1] = merged
    return pieces


def _merge(before: Piece, piece: Piece, heading: str) -> Piece | None:
    """Both as one passage where they belong together and one of them is too small to stand alone, else None."""
    if before.page != piece.page or min(tokens(before.text), tokens(piece.text)) >= SHORTEST:
        return None
    place, text = before.place, piece.text
    if piece.page is None and before.place != piece.place and not before.place.startswith("line "):
        place = _common(before.place, piece.place)
        if not place:
            return None
        text = f"{heading}\n{piece.text}"
    joined = f"{before.text}\n{text}"
    return Piece(joined, place, piece.page) if tokens(joined) <= LONGEST else None


def _common(first: str, second: str) -> str:
    shared: list[str] = []
    for one, other in zip(first.split(" > "), second.split(" > "), strict=False):
        if one != other:
            break
        shared.append(one)
    return " > ".join(shared)


def _split(text: str) -> Iterator[str]:
    """Stretches of at most LONGEST tokens, about TARGET where the text allows."""
    held: list[str] = []
    size = 0
    for unit, new_line in _units(text):
        length = tokens(unit)
        if held and (size + length > LONGEST or (size >= TARGET and new_line)):
            yield "".join(held).strip()
            held, size = [], 0
        held.append(f"\n{unit}" if new_line and held else f" {unit}" if held else unit)
        size += length
    if held:
        yield "".join(held).strip()


def _units(text: str) -> Iterator[tuple[str, bool]]:
    """Sentences, and whether each opens a paragraph; what is too long for a passage is cut between words."""
    for paragraph in text.split("\n"):
        first = True
        for sentence in SENTENCE_END.split(paragraph):
            for part in _bounded(sentence.strip()):
                yield part, first
                first = False


def _bounded(sentence: str) -> Sequence[str]:
    if not sentence:
        return ()
    if tokens(sentence) <= LONGEST:
        return (sentence,)
    parts: list[str] = []
    held: list[str] = []
    size = 0
    for word in sentence.split():
        # A "word" of thousands of letters is no language; it is cut so that one passage stays one passage.
        for piece in [word[start : start + 400] for start in range(0, len(word), 400)]:
            length = tokens(piece)
            if held and size + length > TARGET:
                parts.append(" ".join(held))
                held, size = [], 0
            held.append(piece)
            size += length
    parts.append(" ".join(held))
    return parts
