"""Documents to sections of text, each with a place a teacher can find again.

Hides what each format calls a page, a heading, a paragraph. Runs only inside the reader's child process (`extract_child`),
because the libraries below parse hostile bytes: nothing here limits memory or time, and nothing here touches the network.
Type goes by content, never by the file's name; whatever cannot be read raises BadInput with a sentence about that file.
"""

from __future__ import annotations

import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance.errors import BadInput, TooLarge

KINDS = {"pdf": "PDF", "docx": "DOCX", "html": "HTML", "markdown": "Markdown", "text": "text"}
EXTENSIONS = {
    ".pdf": "pdf",
    ".docx": "docx",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".md": "markdown",
    ".markdown": "markdown",
    ".txt": "text",
    ".text": "text",
}
HEAD = 4096  # bytes that decide what a file is
ZIP_ENTRIES = 5_000
ZIP_BYTES = 300 * 2**20  # unpacked
ZIP_RATIO = 100  # unpacked to packed; counted once more than ZIP_RATIO_FROM bytes come out
ZIP_RATIO_FROM = 20 * 2**20
USABLE = "Save it as PDF, DOCX, HTML, Markdown or plain text, and add that."


@dataclass(slots=True)
class Read:
    """One document: `sections` are (text, place, page, heading); paragraphs of a text stand on lines of their own."""

    kind: str
    title: str
    pages: int | None
    sections: list[tuple[str, str, int | None, str]]
    notes: list[str] = field(default_factory=list)


def read(path: Path, name: str, characters: int) -> Read:
    """Read any supported document of at most `characters` characters. Raises BadInput or TooLarge naming the file."""
    kind = kind_of(path, name)
    found = _READERS[kind](path, name, characters)
    found.title = _plain(" ".join(found.title.split()))[:300]
    found.sections = [
        (_plain(text), _plain(place)[:300], page, _plain(heading)) for text, place, page, heading in found.sections
    ]
    expected = EXTENSIONS.get(Path(name).suffix.lower())
    if expected is not None and expected != kind and {expected, kind} != {"markdown", "text"}:
        found.notes.insert(
            0, f"The name says {KINDS[expected]}, but the content is {KINDS[kind]}: it was read as {KINDS[kind]}."
        )
    return found


def _plain(text: str) -> str:
    """Without control characters and halves of characters: neither a page nor a database can hold them."""
    return re.sub(r"[\0-\x09\x0b-\x1f\x7f\ud800-\udfff\ufeff]", " ", text)


def kind_of(path: Path, name: str) -> str:
    """pdf, docx, html, markdown or text, by the file's first bytes. Raises BadInput for anything else."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    if not head:
        raise BadInput(f"{name} is empty.", "Check that it was saved and copied in full.")
    if b"%PDF-" in head[:1024]:
        return "pdf"
    if head.startswith(b"PK"):
        return _kind_of_zip(path, name)
    if head.startswith(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"):
        return _refuse_old_office(path, name)
    if head.startswith((b"{\\rtf", b"%!PS")):
        raise BadInput(f"{name} is of a type that cannot be read (RTF or PostScript).", USABLE)
    if _is_binary(head):
        raise BadInput(f"{name} is not a document: its content is neither PDF, DOCX, HTML nor text.", USABLE)
    if _looks_like_html(head):
        return "html"
    return "markdown" if EXTENSIONS.get(Path(name).suffix.lower()) == "markdown" else "text"


def _is_binary(head: bytes) -> bool:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or _utf16_without_mark(head):
        return False
    controls = sum(byte < 32 and byte not in b"\t\n\r\f\x1b" for byte in head)
    return b"\0" in head or controls > len(head) // 20


def _utf16_without_mark(head: bytes) -> str:
    """'utf-16-le' or 'utf-16-be' where nearly every second byte is zero, else ''."""
    half = len(head) // 2
    if half >= 4:
        if head[1::2].count(0) > 0.9 * half and head[0::2].count(0) == 0:
            return "utf-16-le"
        if head[0::2].count(0) > 0.9 * half and head[1::2].count(0) == 0:
            return "utf-16-be"
    return ""


def _looks_like_html(head: bytes) -> bool:
    text = head.replace(b"\0", b"").decode("latin-1").lstrip("\ufeff\xff\xfe\xef\xbb\xbf \t\r\n").lower()
    if re.match(r"(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<(!doctype html|html|head|body)\b", text, re.S):
        return True
    return bool(re.match(r"<(h[1-6]|p|div|table|ul|ol|section|article|meta|title)\b[^>]*>", text))


def _kind_of_zip(path: Path, name: str) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = {entry.filename for entry in archive.infolist()}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        raise BadInput(f"{name} is damaged or not complete: its ZIP directory cannot be read.", "Copy it again.") from None
    if "word/document.xml" in names:
        return "docx"
    kinds = (("ppt/", "a PowerPoint file"), ("xl/", "a spreadsheet"), ("META-INF/container.xml", "an EPUB book"))
    what = next((label for start, label in kinds if any(entry.startswith(start) for entry in names)), "a ZIP archive")
    raise BadInput(f"{name} is {what}, which cannot be read.", USABLE)


def _refuse_old_office(path: Path, name: str) -> str:
    with path.open("rb") as file:
        start = file.read(2**20)
    if "EncryptedPackage".encode("utf-16-le") in start:
        raise BadInput(f"{name} is locked with a password.", "Remove the password in Word, save it, and add that copy.")
    raise BadInput(f"{name} is in the old Office format (before 2007), which cannot be read.", "Save it as DOCX or PDF.")


# --- PDF -------------------------------------------------------------------------------------------------------------
def _read_pdf(path: Path, name: str, characters: int) -> Read:
    import pypdfium2
    import pypdfium2.raw as raw

    _refuse_cut_off(path, name)
    try:
        pdf = pypdfium2.PdfDocument(path)
    except pypdfium2.PdfiumError as error:
        if getattr(error, "err_code", None) == raw.FPDF_ERR_PASSWORD:
            raise BadInput(
                f"{name} is locked with a password.", "Save an unlocked copy (print it to PDF), and add that."
            ) from None
        raise BadInput(f"{name} is damaged or not complete: it is no readable PDF.", "Copy or download it again.") from None
    lines: list[list[str]] = []
    size = 0
    broken: list[int] = []
    for number in range(len(pdf)):
        try:
            page = pdf[number]
            textpage = page.get_textpage()
            text = textpage.get_text_range()
            textpage.close()
            page.close()
        except pypdfium2.PdfiumError:
            text = ""
            broken.append(number + 1)
        size += len(text)
        if size > characters:
            raise too_long(name, characters)
        # U+FFFE and U+0002 mark a hyphen that a line break put there.
        lines.append(re.sub(r"[\ufffe\x02]\s*", "", text).splitlines())
    if not lines:
        raise BadInput(f"{name} has no pages.", "Copy or download it again.")
    pages = _without_running_heads(lines)
    empty = [number for number, page_lines in enumerate(pages, 1) if not _has_text(page_lines) and number not in broken]
    sections: list[tuple[str, str, int | None, str]] = [
        (paragraphs(page_lines), f"p. {number}", number, "")
        for number, page_lines in enumerate(pages, 1)
        if _has_text(page_lines)
    ]
    if not sections and broken:
        raise BadInput(f"{name} is damaged: none of its pages can be read.", "Copy or download it again.")
    if not sections:
        raise BadInput(
            f"{name} contains only pictures of pages, no text.", "Run it through text recognition (OCR) first, then add it."
        )
    notes = [] if not empty else [f"{_ranges(empty)} no text: {'they are pictures' if len(empty) > 1 else 'it is a picture'}."]
    notes += [] if not broken else [f"{_ranges(broken)} damage and could not be read."]
    return Read("pdf", _pdf_title(pdf), len(pages), sections, notes)


def _refuse_cut_off(path: Path, name: str) -> None:
    """pdfium repairs a file that lost its end and is silent about the pages that went with it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(HEAD)
        file.seek(max(0, size - 65_536))
        tail = file.read()
    linear = re.search(rb"/Linearized\b.{0,80}?/L\s+(\d+)", head, re.S)
    if b"%%EOF" not in tail or (linear and size < int(linear.group(1)[:15])):
        raise BadInput(f"{name} is cut off: the end of the PDF is missing.", "Copy or download it again.")


def _pdf_title(pdf: Any) -> str:
    title = str(pdf.get_metadata_dict().get("Title") or "").strip()
    # What word processors put there on their own says nothing about the document.
    return "" if re.match(r"(untitled|microsoft word - |document\d*$|.*\.(docx?|pdf|tex|dvi)$)", title, re.I) else title


def _has_text(lines: Iterable[str]) -> bool:
    return sum(letter.isalnum() for line in lines for letter in line) >= 3


def _ranges(numbers: list[int]) -> str:
    """'Page 3 has', 'Pages 3-5, 9 have'."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    shown = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans[:8])
    more = " and more" if len(spans) > 8 else ""
    return f"Page {shown} has" if len(numbers) == 1 else f"Pages {shown}{more} have"


def _without_running_heads(pages: list[list[str]]) -> list[list[str]]:
    """Drop the first and last lines that most pages share but for their numbers: they answer nothing and match everything."""
    whole = [[line for line in lines if line.strip()] for lines in pages]
    rest = [list(lines) for lines in whole]
    for end in (0, -1, 0, -1):
        counts = Counter(_shape(lines[end]) for lines in rest if lines)
        common = {text for text, count in counts.items() if count >= 4 and count > len(pages) // 2}
        for lines in rest:
            if lines and _shape(lines[end]) in common:
                del lines[end]
    # Pages that are alike all through are the text itself, not its decoration.
    return rest if 5 * sum(map(_size, rest)) >= 4 * sum(map(_size, whole)) else whole


def _size(lines: list[str]) -> int:
    return sum(map(len, lines))


def _shape(line: str) -> str:
    return re.sub(r"\d+", "#", line.strip())


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


# --- DOCX ------------------------------------------------------------------------------------------------------------
def _read_docx(path: Path, name: str, characters: int) -> Read:
    import docx
    from docx.opc.exceptions import OpcError
    from lxml.etree import LxmlError

    _check_zip(path, name)
    try:
        document = docx.Document(str(path))
        blocks = list(_docx_blocks(document))
        title = str(document.core_properties.title or "").strip()
    except (OpcError, LxmlError, zipfile.BadZipFile, KeyError, ValueError, AttributeError, OSError, IndexError, TypeError):
        raise BadInput(
            f"{name} is damaged: it is no readable DOCX.", "Open it in a word processor and save it again."
        ) from None
    return _by_heading("docx", title, blocks, name, characters)


def _check_zip(path: Path, name: str) -> None:
    """Refuse a ZIP bomb from its directory, before anything is unpacked."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            unpacked = sum(entry.file_size for entry in entries)
            packed = max(1, min(sum(entry.compress_size for entry in entries), path.stat().st_size))
            heavy = unpacked > ZIP_BYTES or (unpacked > ZIP_RATIO_FROM and unpacked > ZIP_RATIO * packed)
            if len(entries) > ZIP_ENTRIES or heavy or any(entry.flag_bits & 1 for entry in entries):
                raise TooLarge(
                    f"{name} would unpack to {unpacked // 2**20} MB in {len(entries)} parts: no ordinary document does that.",
                    "Open it in a word processor, save a fresh copy, and add that.",
                )
            for entry in entries:
                if entry.filename.endswith((".xml", ".rels")):
                    with archive.open(entry) as part:
                        if b"<!DOCTYPE" in part.read(HEAD) or b"<!ENTITY" in part.read(HEAD):
                            raise BadInput(f"{name} declares XML entities: no word processor does that.", "Save a fresh copy.")
    except (zipfile.BadZipFile, OSError, NotImplementedError, EOFError, RuntimeError, ValueError):
        raise BadInput(f"{name} is damaged: its ZIP parts cannot be read.", "Copy it again.") from None


Block = tuple[int, str]  # heading level (0: text) and text


def _docx_blocks(document: Any) -> Iterator[Block]:
    from docx.table import Table
    from docx.text.paragraph import Paragraph

    for element in document.element.body.iterchildren():
        tag = element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""
        if tag == "p":
            paragraph = Paragraph(element, document)
            style = str(paragraph.style.name or "") if paragraph.style is not None else ""
            level = re.match(r"(?:Heading|heading) (\d)", style)
            yield (1 if style == "Title" else int(level.group(1)) if level else 0), paragraph.text
        elif tag == "tbl":
            for row in Table(element, document).rows:
                cells: list[str] = []
                for cell in row.cells:
                    text = " ".join(cell.text.split())
                    if text and (not cells or cells[-1] != text):  # a merged cell is reported once for each column
                        cells.append(text)
                yield 0, " | ".join(cells)


def _by_heading(kind: str, title: str, blocks: Iterable[Block], name: str, characters: int) -> Read:
    """Sections between headings; the place is the path of headings, "ch. 3 > Roots"."""
    sections: list[tuple[str, str, int | None, str]] = []
    path: list[tuple[int, str]] = []
    text: list[str] = []
    first_heading = ""
    size = 0

    def close() -> None:
        if text:
            place = " > ".join(heading for _, heading in path) or "beginning"
            sections.append(("\n".join(text), place, None, path[-1][1] if path else ""))
            text.clear()

    for level, raw in blocks:
        line = " ".join(raw.split())
        size += len(line)
        if size > characters:
            raise too_long(name, characters)
        if level and line:
            close()
            first_heading = first_heading or line
            path = [step for step in path if step[0] < level] + [(level, line[:200])]
        elif line:
            text.append(line)
    close()
    if not any(_has_text([section[0]]) for section in sections):
        raise BadInput(f"{name} contains no text.", "Check that the right file was added.")
    return Read(kind, title or first_heading, None, _without_title(sections, title or first_heading))


def _without_title(sections: list[tuple[str, str, int | None, str]], title: str) -> list[tuple[str, str, int | None, str]]:
    """A place says where in the document: its title, which is shown beside it, is left out."""
    prefix = f"{title} > "
    return [
        (text, place[len(prefix) :] if place.startswith(prefix) else "beginning" if place == title else place, page, heading)
        for text, place, page, heading in sections
    ]


# --- HTML, Markdown, text --------------------------------------------------------------------------------------------
HIDDEN = ["script", "style", "noscript", "template", "svg", "iframe", "object", "form", "nav"]
BLOCKS = frozenset(
    re.findall(
        r"\w+",
        "address article aside blockquote body caption dd details div dl dt fieldset figcaption figure footer h1 h2 h3 h4 h5 "
        "h6 header html li main ol p pre section summary table tbody td tfoot th thead title tr ul",
    )
)


def _read_html(path: Path, name: str, characters: int) -> Read:
    return _html("html", decode(path.read_bytes(), name, characters), name, characters)


def _read_markdown(path: Path, name: str, characters: int) -> Read:
    from markdown_it import MarkdownIt

    source = decode(path.read_bytes(), name, characters)
    source = re.sub(r"\A---\n.*?\n---\n", "", source, count=1, flags=re.S)  # front matter is for programs
    return _html("markdown", MarkdownIt("commonmark").enable("table").render(source), name, characters)


def _html(kind: str, source: str, name: str, characters: int) -> Read:
    import warnings

    from bs4 import BeautifulSoup

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # guesses about what else the text might be
        soup = BeautifulSoup(source, "lxml")
    title = " ".join(soup.title.get_text().split()) if kind == "html" and soup.title else ""
    for hidden in soup.find_all([*HIDDEN, "title"]):
        hidden.decompose()
    return _by_heading(kind, title, _html_blocks(soup), name, characters)


def _html_blocks(soup: Any) -> Iterator[Block]:
    from bs4 import NavigableString
    from bs4.element import PreformattedString

    text: list[str] = []
    owner: Any = None
    for node in soup.descendants:
        if not isinstance(node, NavigableString):
            if node.name == "br":
                text.append(" ")
            continue
        if isinstance(node, PreformattedString):  # comments, declarations
            continue
        block = next((parent for parent in node.parents if parent.name in BLOCKS), None)
        if block is not owner:
            yield _level(owner), "".join(text)
            text, owner = [], block
        text.append(str(node))
    yield _level(owner), "".join(text)


def _level(block: Any) -> int:
    return int(block.name[1]) if block is not None and re.fullmatch(r"h[1-6]", block.name) else 0


def _read_text(path: Path, name: str, characters: int) -> Read:
    source = decode(path.read_bytes(), name, characters)
    sections: list[tuple[str, str, int | None, str]] = []
    lines: list[str] = []
    start = 1
    for number, line in enumerate([*source.splitlines(), ""], 1):
        if line.strip():
            if not lines:
                start = number
            lines.append(line)
        elif lines:
            sections.append((paragraphs(lines), f"line {start}", None, ""))
            lines = []
    if not any(_has_text([section[0]]) for section in sections):
        raise BadInput(f"{name} contains no text.", "Check that the right file was added.")
    return Read("text", "", None, sections)


def decode(data: bytes, name: str, characters: int) -> str:
    """Text of any common encoding. Raises TooLarge before decoding what cannot fit, BadInput where it is no text."""
    if len(data) > 4 * characters:
        raise too_long(name, characters)
    marks = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe\0\0", "utf-32"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
    encoding = (
        next((codec for mark, codec in marks if data.startswith(mark)), "") or _utf16_without_mark(data[:HEAD]) or "utf-8"
    )
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        declared = re.search(rb"<meta[^>]{0,200}charset=[\"']?([\w-]+)", data[:HEAD], re.I)
        names = [declared.group(1).decode("ascii", "ignore") if declared else "", _guess(data[:200_000]), "cp1252"]
        text = _first_that_decodes(data, [codec for codec in names if codec])
    if len(text) > characters:
        raise too_long(name, characters)
    odd = text.count("\ufffd") + text.count("\0")
    if odd > 20 and odd > len(text) // 50:
        raise BadInput(f"{name} is not text: much of it cannot be decoded.", USABLE)
    return text


def _guess(sample: bytes) -> str:
    """The likeliest encoding; Western European where another one is no better, as in a short text with a few accents."""
    import charset_normalizer

    best = charset_normalizer.from_bytes(sample).best()
    western = charset_normalizer.from_bytes(sample, cp_isolation=["cp1252"]).best()
    if best is None or (western is not None and western.chaos <= best.chaos + 0.06):
        return "cp1252"
    return str(best.encoding)


def _first_that_decodes(data: bytes, codecs: list[str]) -> str:
    for codec in codecs:
        try:
            return data.decode(codec)
        except (UnicodeDecodeError, LookupError):
            continue
    return data.decode("utf-8", "replace")


def too_long(name: str, characters: int) -> TooLarge:
    return TooLarge(f"{name} holds more than {characters:,} characters of text.", "Split it into parts, and add those.")


_READERS = {"pdf": _read_pdf, "docx": _read_docx, "html": _read_html, "markdown": _read_markdown, "text": _read_text}
