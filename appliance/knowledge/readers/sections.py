"""What every reader makes: sections of text with a place, and the limits that all of them keep.

Hides how headings become a path, how wrapped lines become paragraphs, and how numbers are said as ranges. Knows no format.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from appliance.errors import BadInput, TooLarge

USABLE = "Save it as PDF, DOCX, PPTX, XLSX, EPUB, ODT, HTML, Markdown or plain text, and add that."
AGAIN = "Copy or download it again."

Section = tuple[str, str, int | None, str]  # text, place, page, heading
Block = tuple[int, str]  # heading level (0: text) and text


@dataclass(slots=True)
class Read:
    """One document: `sections` are (text, place, page, heading); paragraphs of a text stand on lines of their own.

    `pictures`: the numbers of pages that have no text but what they show.
    """

    kind: str
    title: str
    pages: int | None
    sections: list[Section]
    notes: list[str] = field(default_factory=list)
    pictures: list[int] = field(default_factory=list)


class Budget:
    """How much text one document may still give. What is written is counted, not what stood in the file."""

    def __init__(self, name: str, characters: int) -> None:
        self.name = name
        self.characters = characters
        self._left = characters

    def spend(self, text: str) -> str:
        self._left -= len(text)
        if self._left < 0:
            raise too_long(self.name, self.characters)
        return text


def too_long(name: str, characters: int) -> TooLarge:
    return TooLarge(f"{name} holds more than {characters:,} characters of text.", "Split it into parts, and add those.")


def without_text(name: str) -> BadInput:
    return BadInput(f"{name} contains no text.", "Check that the right file was added.")


def plain(text: str) -> str:
    """Without control characters and halves of characters: neither a page nor a database can hold them."""
    return re.sub(r"[\0-\x09\x0b-\x1f\x7f\ud800-\udfff\ufeff]", " ", text)


def has_text(lines: Iterable[str]) -> bool:
    return sum(letter.isalnum() for line in lines for letter in line) >= 3


def require_text(name: str, sections: list[Section]) -> list[Section]:
    if not any(has_text([section[0]]) for section in sections):
        raise without_text(name)
    return sections


def by_heading(kind: str, title: str, blocks: Iterable[Block], name: str, characters: int) -> Read:
    """Sections between headings; the place is the path of headings, "ch. 3 > Roots"."""
    sections: list[Section] = []
    path: list[tuple[int, str]] = []
    text: list[str] = []
    first_heading = ""
    budget = Budget(name, characters)

    def close() -> None:
        if text:
            place = " > ".join(heading for _, heading in path) or "beginning"
            sections.append(("\n".join(text), place, None, path[-1][1] if path else ""))
            text.clear()

    for level, raw in blocks:
        line = budget.spend(" ".join(raw.split()))
        if level and line:
            close()
            first_heading = first_heading or line
            path = [step for step in path if step[0] < level] + [(level, line[:200])]
        elif line:
            text.append(line)
    close()
    require_text(name, sections)
    return Read(kind, title or first_heading, None, _without_title(sections, title or first_heading))


def _without_title(sections: list[Section], title: str) -> list[Section]:
    """A place says where in the document: its title, which is shown beside it, is left out."""
    prefix = f"{title} > "
    return [
        (text, place[len(prefix) :] if place.startswith(prefix) else "beginning" if place == title else place, page, heading)
        for text, place, page, heading in sections
    ]


def paragraphs(lines: list[str]) -> str:
    """Lines as they were wrapped on paper, joined into paragraphs; each paragraph is one line of the result."""
    stripped = [line.strip() for line in lines]
    lengths = sorted(len(line) for line in stripped if line)
    full = 0.75 * lengths[int(len(lengths) * 0.9)] if lengths else 0
    result: list[str] = []
    wrapped = False
    for line in stripped:
        if line and result and (wrapped or (line[0].islower() and not result[-1].endswith((".", "!", "?", ":")))):
            result[-1] += f" {line}"
        elif line:
            result.append(line)
        wrapped = bool(line) and len(line) >= full
    return "\n".join(result)


def ranges(numbers: list[int], word: str = "Page") -> str:
    """'Page 3 has', 'Pages 3-5, 9 have'."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    shown = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans[:8])
    more = " and more" if len(spans) > 8 else ""
    return f"{word} {shown} has" if len(numbers) == 1 else f"{word}s {shown}{more} have"


def own_title(title: str) -> str:
    """The title a person gave, or '': what programs put there on their own says nothing about the document."""
    title = " ".join(title.split())
    named = r"untitled|microsoft word - |(document|presentation|power ?point presentation)\s?\d*$"
    file = r".*\.(docx?|pptx?|odt|pdf|tex|dvi)$"
    return "" if re.match(f"{named}|{file}", title, re.I) else title
