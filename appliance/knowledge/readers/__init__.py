"""Documents to sections of text, each with a place a teacher can find again.

Hides what each format calls a page, a heading, a row. Runs only inside the reader's child process (`extract_child`), because
hostile bytes are parsed here: nothing in this folder limits memory or time, and nothing in it touches the network. Type goes by
content; the name decides only between sorts of plain text. Whatever cannot be read raises BadInput with a sentence about it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from appliance.errors import BadInput
from appliance.knowledge.readers.archive import Archive
from appliance.knowledge.readers.pdf import PAGES
from appliance.knowledge.readers.sections import USABLE, Read, plain
from appliance.knowledge.readers.text import HEAD, utf16_without_mark

__all__ = ["KINDS", "Read", "kind_of", "read"]

KINDS = {
    "pdf": "PDF",
    "docx": "DOCX",
    "pptx": "PPTX",
    "xlsx": "XLSX",
    "epub": "EPUB",
    "odt": "ODT",
    "html": "HTML",
    "markdown": "Markdown",
    "csv": "a table as text",
    "json": "JSON",
    "text": "text",
}
EXTENSIONS = {
    **{f".{kind}": kind for kind in ("pdf", "docx", "pptx", "xlsx", "epub", "odt", "html", "markdown", "csv", "json", "text")},
    **{".docm": "docx", ".dotx": "docx", ".pptm": "pptx", ".ppsx": "pptx", ".potx": "pptx", ".xlsm": "xlsx", ".ott": "odt"},
    **{".htm": "html", ".xhtml": "html", ".md": "markdown", ".txt": "text"},
    **{".tsv": "csv", ".tab": "csv", ".psv": "csv", ".jsonl": "json", ".ndjson": "json"},
}
PLAIN = frozenset({"markdown", "text", "csv", "json"})  # nothing in the content tells these apart for certain
MIMETYPES = {
    "application/epub+zip": "epub",
    "application/vnd.oasis.opendocument.text": "odt",
    "application/vnd.oasis.opendocument.text-template": "odt",
}
OTHER_OPEN = ("spreadsheet", "presentation", "graphics", "formula", "chart")
STARTS = (("word/", "docx"), ("ppt/", "pptx"), ("xl/", "xlsx"), ("META-INF/container.xml", "epub"), ("content.xml", "odt"))


def read(path: Path, name: str, characters: int, pages: int = PAGES) -> Read:
    """Read any supported document of at most `characters` characters and, of a PDF, so many `pages`.

    Raises BadInput or TooLarge naming the file.
    """
    kind = kind_of(path, name)
    try:
        found = _reader(kind, pages)(path, name, characters)
    except RecursionError:
        raise BadInput(f"{name} cannot be read: its parts lie too deep inside one another.", USABLE) from None
    found.title = plain(" ".join(found.title.split()))[:300]
    found.sections = [(plain(text), plain(place)[:300], page, plain(heading)) for text, place, page, heading in found.sections]
    found.notes = [plain(note) for note in found.notes]
    expected = EXTENSIONS.get(Path(name).suffix.lower())
    if expected is not None and expected != kind and not {expected, kind} <= PLAIN:
        found.notes.insert(
            0, f"The name says {KINDS[expected]}, but the content is {KINDS[kind]}: it was read as {KINDS[kind]}."
        )
    return found


def _reader(kind: str, pages: int) -> Callable[[Path, str, int], Read]:
    """Only what this document needs is loaded: the child lives for one document."""
    from appliance.knowledge.readers import books, office, pdf, tables, text

    every: dict[str, Callable[[Path, str, int], Read]] = {
        "pdf": partial(pdf.read, pages=pages),
        "docx": office.read_docx,
        "pptx": office.read_pptx,
        "xlsx": tables.read_xlsx,
        "epub": books.read_epub,
        "odt": books.read_odt,
        "html": text.read_html,
        "markdown": text.read_markdown,
        "csv": tables.read_csv,
        "json": tables.read_json,
        "text": text.read_text,
    }
    return every[kind]


def kind_of(path: Path, name: str) -> str:
    """One of KINDS, by the file's first bytes. Raises BadInput for anything else."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    if not head:
        raise BadInput(f"{name} is empty.", "Check that it was saved and copied in full.")
    if b"%PDF-" in head[:1024]:
        return "pdf"
    if head.startswith(b"PK"):
        return _kind_of_zip(path, name)
    if head.startswith(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"):
        raise _old_office(path, name)
    if head.startswith((b"{\\rtf", b"%!PS")):
        raise BadInput(f"{name} is of a type that cannot be read (RTF or PostScript).", USABLE)
    if _is_binary(head):
        raise BadInput(f"{name} is not a document: its content is none of the types that can be read, and no text.", USABLE)
    expected = EXTENSIONS.get(Path(name).suffix.lower(), "text")
    if _looks_like_html(head) and expected not in ("csv", "json"):
        return "html"
    return expected if expected in PLAIN else "text"


def _is_binary(head: bytes) -> bool:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or utf16_without_mark(head):
        return False
    controls = sum(byte < 32 and byte not in b"\t\n\r\f\x1b" for byte in head)
    return b"\0" in head or controls > len(head) // 20


def _looks_like_html(head: bytes) -> bool:
    text = head.replace(b"\0", b"").decode("latin-1").lstrip("\ufeff\xff\xfe\xef\xbb\xbf \t\r\n").lower()
    if re.match(r"(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<(!doctype html|html|head|body)\b", text, re.S):
        return True
    return bool(re.match(r"<(h[1-6]|p|div|table|ul|ol|section|article|meta|title)\b[^>]*>", text))


def _kind_of_zip(path: Path, name: str) -> str:
    """What an archive is, by what it says of itself or by its parts. An archive of documents is never unpacked."""
    with Archive(path, name) as archive:
        said = archive.part("mimetype", HEAD).decode("ascii", "replace").strip() if "mimetype" in archive.parts else ""
        if said in MIMETYPES:
            return MIMETYPES[said]
        other = next((what for what in OTHER_OPEN if said.startswith(f"application/vnd.oasis.opendocument.{what}")), "")
        if other:
            raise BadInput(f"{name} is an OpenDocument {other}, which cannot be read.", "Save it as PDF, PPTX or XLSX.")
        kind = next((kind for start, kind in STARTS if any(part.startswith(start) for part in archive.parts)), "")
        if kind == "xlsx" and "xl/workbook.bin" in archive.parts:
            raise BadInput(f"{name} is a binary spreadsheet (XLSB), which cannot be read.", "Save it as XLSX.")
    if not kind:
        raise BadInput(f"{name} is a ZIP archive, which is not unpacked.", "Unpack it, and add the files in it.")
    return kind


def _old_office(path: Path, name: str) -> BadInput:
    with path.open("rb") as file:
        start = file.read(2**20)
    if "EncryptedPackage".encode("utf-16-le") in start:
        return BadInput(
            f"{name} is locked with a password.", "Remove the password where it was made, save it, and add that copy."
        )
    return BadInput(
        f"{name} is in the old Office format (before 2007), which cannot be read.", "Save it as DOCX, PPTX, XLSX or PDF."
    )
