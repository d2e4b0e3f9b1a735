"""EPUB and ODT: books and documents that are web pages or OpenDocument XML inside a ZIP.

Hides the package of an EPUB (container, spine, protected books) and the vocabulary of OpenDocument. Scripts, fonts, pictures
and addresses inside them are never opened.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from appliance.errors import BadInput, TooLarge
from appliance.knowledge.readers.archive import SAVE_AGAIN, Archive, attribute, inside, local, locked
from appliance.knowledge.readers.maths import linear
from appliance.knowledge.readers.sections import Block, Read, by_heading, own_title
from appliance.knowledge.readers.text import decode, of_html

CHAPTERS = 5_000


# --- EPUB ------------------------------------------------------------------------------------------------------------
def read_epub(path: Path, name: str, characters: int) -> Read:
    with Archive(path, name) as archive:
        container = archive.xml("META-INF/container.xml")
        package = next((attribute(entry, "full-path") for entry in container.iter("{*}rootfile")), "")
        if package not in archive.parts:
            raise BadInput(f"{name} is damaged: the book inside it cannot be found.", SAVE_AGAIN)
        title, chapters = _spine(archive, package)
        there = [part for part in chapters if part in archive.parts]
        if not there:
            raise BadInput(f"{name} is damaged: it has no chapters.", SAVE_AGAIN)
        if _protected(archive) & set(there):
            raise BadInput(f"{name} is a protected book (DRM), which cannot be read.", "Add a copy without protection.")
        found = by_heading("epub", own_title(title), _chapters(archive, there, characters), name, characters)
    missing = len(chapters) - len(there)
    if missing:
        found.notes.append(f"{missing} part{'s' if missing > 1 else ''} of the book cannot be found in the file.")
    return found


def _spine(archive: Archive, package: str) -> tuple[str, list[str]]:
    """The title, and the parts of the chapters in reading order."""
    root = archive.xml(package)
    folder = str(PurePosixPath(package).parent)
    items = {attribute(item, "id"): item for item in root.iter("{*}item")}
    order = [items[attribute(entry, "idref")] for entry in root.iter("{*}itemref") if attribute(entry, "idref") in items]
    pages = [item for item in order if "html" in attribute(item, "media-type", "html") or not attribute(item, "media-type")]
    if len(pages) > CHAPTERS:
        raise TooLarge(f"{archive.name} has {len(pages):,} parts: more than {CHAPTERS:,}.", "Split it, and add the parts.")
    title = next((str(entry.text or "") for entry in root.iter("{*}title")), "")
    return title, [inside(folder, attribute(item, "href")) for item in pages]


def _protected(archive: Archive) -> set[str]:
    """Parts that are encrypted. Fonts often are, in books that anybody may read."""
    if "META-INF/encryption.xml" not in archive.parts:
        return set()
    return {inside("", attribute(entry, "URI")) for entry in archive.xml("META-INF/encryption.xml").iter("{*}CipherReference")}


def _chapters(archive: Archive, parts: list[str], characters: int) -> Iterator[Block]:
    for part in parts:
        title, blocks = of_html(decode(archive.part(part), archive.name, characters))
        held = list(blocks)
        if title and not any(level and text.strip() for level, text in held):
            yield 1, title  # a chapter without a heading has at least a name
        yield from held


# --- ODT -------------------------------------------------------------------------------------------------------------
NOT_SHOWN = frozenset(
    re.findall(
        r"[\w-]+",
        "tracked-changes annotation annotation-end forms sequence-decls variable-decls user-field-decls table-of-content "
        "alphabetical-index illustration-index table-index object-index note-citation ruby-text title desc",
    )
)


def read_odt(path: Path, name: str, characters: int) -> Read:
    with Archive(path, name) as archive:
        if _is_locked(archive):
            raise locked(name)
        body = next(archive.xml("content.xml").iter("{urn:oasis:names:tc:opendocument:xmlns:office:1.0}text"), None)
        if body is None:
            raise BadInput(f"{name} is damaged: it is no readable ODT.", SAVE_AGAIN)
        return by_heading("odt", own_title(_odt_title(archive)), _odt_blocks(archive, body), name, characters)


def _is_locked(archive: Archive) -> bool:
    part = "META-INF/manifest.xml"
    return part in archive.parts and next(archive.xml(part).iter("{*}encryption-data"), None) is not None


def _odt_title(archive: Archive) -> str:
    if "meta.xml" not in archive.parts:
        return ""
    try:
        return next((str(entry.text or "") for entry in archive.xml("meta.xml").iter("{*}title")), "")
    except BadInput:  # properties that cannot be read are no reason to lose the text
        return ""


def _odt_blocks(archive: Archive, parent: Any) -> Iterator[Block]:
    for element in parent:
        name = local(element)
        if name == "h":
            level = attribute(element, "outline-level", "1")
            yield (int(level) if level in tuple("123456789") else 9), _inline(archive, element)
        elif name == "p":
            yield 0, _inline(archive, element)
        elif name == "table-row":
            # A row or cell may say that it is repeated a million times: it is read once.
            cells = [" ".join(_inline(archive, cell).split()) for cell in element if local(cell) == "table-cell"]
            yield 0, " | ".join(text for text in cells if text)
        elif name and name not in NOT_SHOWN:
            yield from _odt_blocks(archive, element)


def _inline(archive: Archive, element: Any) -> str:
    parts: list[str] = [str(element.text or "")]
    for child in element:
        name = local(child)
        if name in ("s", "tab", "line-break"):
            parts.append(" ")
        elif name == "object":
            parts.append(f" {_object(archive, attribute(child, 'href'))} ")
        elif name == "note":
            parts.append(f" ({_inline(archive, child).strip()})")
        elif name and name not in NOT_SHOWN:
            parts.append(_inline(archive, child))
            parts.append(" " if name in ("p", "h", "list-item", "table-cell", "text-box") else "")
        parts.append(str(child.tail or ""))
    return "".join(parts)


def _object(archive: Archive, reference: str) -> str:
    """A formula is a document of its own inside the archive. Other objects (charts) have no text worth reading."""
    part = inside("", f"{reference}/content.xml")
    if part not in archive.parts:
        return ""
    root = archive.xml(part)
    return linear(root) if local(root) == "math" else ""
