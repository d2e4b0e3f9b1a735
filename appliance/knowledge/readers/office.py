"""DOCX and PPTX: the text a person sees, in the order in which they see it.

Hides both vocabularies: styles that are headings, text inside text, tracked changes, fields, slide masters. Formulas become one
line of text. Macros, embedded files, pictures and everything a document points to outside itself are never opened.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from appliance.errors import BadInput, TooLarge
from appliance.knowledge.readers.archive import SAVE_AGAIN, Archive, attribute, local
from appliance.knowledge.readers.maths import linear
from appliance.knowledge.readers.sections import Block, Budget, Read, Section, by_heading, own_title, ranges, require_text

SLIDES = 5_000
# What is not the text: properties, text that a tracked change took out, instructions of fields, a second drawing of the first.
NOT_SHOWN = frozenset(
    re.findall(r"\w+", "pPr rPr tblPr tcPr trPr sectPr del moveFrom delText instrText Fallback numPr footnotePr rubyPr rt")
)
WHITE = frozenset(["tab", "br", "cr", "ptab"])


# --- DOCX ------------------------------------------------------------------------------------------------------------
def read_docx(path: Path, name: str, characters: int) -> Read:
    with Archive(path, name) as archive:
        main = archive.main("word/document.xml")
        related = archive.related(main)
        root = archive.xml(main)
        body = next((child for child in root if local(child) == "body"), None)
        if body is None:
            raise BadInput(f"{name} is damaged: it is no readable DOCX.", SAVE_AGAIN)
        styles = _styles(archive, related)
        notes = _notes_below(archive, related, "footnotes") | _notes_below(archive, related, "endnotes")
        return by_heading("docx", own_title(archive.core_title()), _docx_blocks(body, styles, notes), name, characters)


def _styles(archive: Archive, related: dict[str, tuple[str, str]]) -> dict[str, int]:
    """Level of heading of each style that is one; a style may be one because the style it is based on is."""
    part = next((part for kind, part in related.values() if kind == "styles" and part in archive.parts), "")
    if not part:
        return {}
    levels: dict[str, int] = {}
    based: dict[str, str] = {}
    for style in archive.xml(part):
        if local(style) != "style":
            continue
        known = attribute(style, "styleId")
        for child in style.iter():
            if local(child) == "name":
                levels[known] = _named_level(attribute(child, "val"))
            elif local(child) == "basedOn":
                based[known] = attribute(child, "val")
            elif local(child) == "outlineLvl" and not levels.get(known):
                levels[known] = _outline(attribute(child, "val"))
    for style in list(based):
        parent, steps = based[style], 0
        while not levels.get(style) and parent and steps < 10:
            levels[style] = levels.get(parent, 0)
            parent, steps = based.get(parent, ""), steps + 1
    return levels


def _named_level(name: str) -> int:
    level = re.match(r"heading ([1-9])", name.lower())
    return int(level.group(1)) if level else int(name.lower() == "title")


def _outline(value: str) -> int:
    return int(value) + 1 if re.fullmatch(r"[0-8]", value) else 0


def _notes_below(archive: Archive, related: dict[str, tuple[str, str]], sort: str) -> dict[tuple[str, str], str]:
    """Footnotes or endnotes by their number, without the two that only draw a line."""
    part = next((part for kind, part in related.values() if kind == sort and part in archive.parts), "")
    found = {}
    for note in archive.xml(part) if part else ():
        if local(note) in ("footnote", "endnote") and not attribute(note, "type"):
            found[(local(note), attribute(note, "id"))] = " ".join(_inline(note).split())
    return found


def _docx_blocks(parent: Any, styles: dict[str, int], notes: dict[tuple[str, str], str]) -> Iterator[Block]:
    for element in parent:
        name = local(element)
        if name == "p":
            yield _docx_level(element, styles), _inline(element)
            for mark in element.iter("{*}footnoteReference", "{*}endnoteReference"):
                text = notes.get((local(mark).removesuffix("Reference"), attribute(mark, "id")))
                if text:
                    yield 0, f"Note: {text}"
        elif name == "tbl":
            for row in _rows(element):
                yield 0, " | ".join(text for text in row if text)
        elif name not in NOT_SHOWN and name:  # content controls, accepted insertions, custom XML
            yield from _docx_blocks(element, styles, notes)


def _docx_level(paragraph: Any, styles: dict[str, int]) -> int:
    properties = next((child for child in paragraph if local(child) == "pPr"), None)
    for child in properties if properties is not None else ():
        if local(child) == "outlineLvl":
            return _outline(attribute(child, "val"))
        if local(child) == "pStyle" and styles.get(attribute(child, "val")):
            return styles[attribute(child, "val")]
    return 0


def _rows(table: Any) -> Iterator[list[str]]:
    """The cells of each row, also of rows inside content controls."""
    for element in table:
        if local(element) == "tr":
            yield [" ".join(_inline(cell).split()) for cell in _cells(element)]
        elif local(element) not in NOT_SHOWN:
            yield from _rows(element)


def _cells(row: Any) -> Iterator[Any]:
    for element in row:
        if local(element) == "tc":
            yield element
        elif local(element) not in NOT_SHOWN:
            yield from _cells(element)


def _inline(element: Any) -> str:
    """All the text below an element of a DOCX or a slide, in reading order."""
    parts: list[str] = []
    _collect(element, parts)
    return "".join(parts)


def _collect(element: Any, parts: list[str]) -> None:
    for child in element:
        name = local(child)
        if name == "t":
            parts.append(str(child.text or ""))
        elif name in WHITE:
            parts.append(" ")
        elif name == "noBreakHyphen":
            parts.append("-")
        elif name in ("oMath", "oMathPara"):
            parts.append(f" {linear(child)} ")
        elif name and name not in NOT_SHOWN:
            _collect(child, parts)
            if name in ("p", "tc", "tr", "txbxContent"):
                parts.append(" ")


# --- PPTX ------------------------------------------------------------------------------------------------------------
def read_pptx(path: Path, name: str, characters: int) -> Read:
    """One section a slide; the number is the one that the program shows, hidden slides counted."""
    budget = Budget(name, characters)
    sections: list[Section] = []
    silent: list[int] = []
    hidden: list[int] = []
    first_title = ""
    with Archive(path, name) as archive:
        slides = _slides(archive)
        for number, part in enumerate(slides, 1):
            root = archive.xml(part)
            if root.get("show") in ("0", "false"):
                hidden.append(number)
                continue
            title, lines = _slide(archive, part, root)
            first_title = first_title or title
            text = budget.spend("\n".join(line for line in [title, *lines] if line))
            if text:
                sections.append((text, f"slide {number}", number, title[:200]))
            else:
                silent.append(number)
        title = own_title(archive.core_title()) or first_title
    if not sections and silent:
        raise BadInput(
            f"{name} contains only slides without text.",
            "If they are pictures of text, run them through text recognition (OCR).",
        )
    notes = [f"{ranges(silent, 'Slide')} no text."] if silent else []
    notes += [f"{ranges(hidden, 'Slide')} been hidden in the presentation: not read."] if hidden else []
    return Read("pptx", title, len(slides), require_text(name, sections), notes)


def _slides(archive: Archive) -> list[str]:
    """The parts of the slides in the order in which they are shown, which is not the order of their names."""
    main = archive.main("ppt/presentation.xml")
    related = archive.related(main)
    listed = [
        related.get(_relation(entry), ("", ""))[1]
        for group in archive.xml(main)
        if local(group) == "sldIdLst"
        for entry in group
        if local(entry) == "sldId"
    ]
    if len(listed) > SLIDES:
        raise TooLarge(f"{archive.name} has {len(listed):,} slides: more than {SLIDES:,}.", "Split it, and add the parts.")
    if not listed or not all(part in archive.parts for part in listed):
        raise BadInput(f"{archive.name} is damaged: its slides cannot be found.", SAVE_AGAIN)
    return listed


def _relation(entry: Any) -> str:
    """The id of a relation; the element has an id of its own, without a namespace."""
    return next((str(value) for key, value in entry.attrib.items() if key.startswith("{") and key.endswith("}id")), "")


def _slide(archive: Archive, part: str, root: Any) -> tuple[str, list[str]]:
    title, lines = "", []
    for place, text in _shapes(root):
        if place in ("title", "ctrTitle") and not title:
            title = text
        elif place not in ("sldNum", "dt", "ftr", "hdr"):
            lines.append(text)
    for kind, target in archive.related(part).values():
        if kind == "notesSlide" and target in archive.parts:
            spoken = [text for place, text in _shapes(archive.xml(target)) if place == "body"]
            lines += [f"Notes: {' '.join(spoken)}"] if spoken else []
    return title, lines


def _shapes(element: Any) -> Iterator[tuple[str, str]]:
    """What each line of a slide is (title, body, number, or '') and its text."""
    for child in element:
        name = local(child)
        if name == "sp":
            mark = next(child.iter("{*}ph"), None)
            place = "" if mark is None else str(mark.get("type") or "body")
            lines = [" ".join(_inline(line).split()) for line in _lines(child)]
            if place in ("title", "ctrTitle"):
                lines = [" ".join(lines).strip()]
            yield from ((place, line) for line in lines if line)
        elif name == "tbl":
            for row in _rows(child):
                if any(row):
                    yield "", " | ".join(text for text in row if text)
        elif name not in NOT_SHOWN and name:  # groups, frames, alternative content
            yield from _shapes(child)


def _lines(shape: Any) -> Iterator[Any]:
    for body in shape:
        if local(body) == "txBody":
            yield from (line for line in body if local(line) == "p")
