"""Web pages, Markdown and plain text in any common encoding.

Hides encodings, what browsers do not show, and how formulas and tables are written in HTML. Nothing that a page refers to is
fetched: addresses are not even looked at.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from appliance.errors import BadInput
from appliance.knowledge.readers.archive import parse
from appliance.knowledge.readers.letters import code_page
from appliance.knowledge.readers.maths import linear
from appliance.knowledge.readers.sections import (
    USABLE,
    Block,
    Read,
    Section,
    by_heading,
    paragraphs,
    require_text,
    too_long,
)

HEAD = 4096
# Half-width katakana: nobody writes a whole text in them, but Russian in KOI8-R looks like them to these.
HALF_WIDTH = re.compile("[\uff61-\uff9f]")
JAPANESE = ["cp932", "shift_jis", "shift_jis_2004", "shift_jisx0213"]
HIDDEN = ["script", "style", "noscript", "template", "svg", "iframe", "object", "form", "nav"]
BLOCKS = frozenset(
    re.findall(
        r"\w+",
        "address article aside blockquote body caption dd details div dl dt fieldset figcaption figure footer h1 h2 h3 h4 h5 "
        "h6 header html li main ol p pre section summary table tbody tfoot thead title tr ul",
    )
)


def read_html(path: Path, name: str, characters: int) -> Read:
    title, blocks = of_html(decode(path.read_bytes(), name, characters))
    return by_heading("html", title, blocks, name, characters)


def read_markdown(path: Path, name: str, characters: int) -> Read:
    from markdown_it import MarkdownIt

    source = decode(path.read_bytes(), name, characters)
    source = re.sub(r"\A---\n.*?\n---\n", "", source, count=1, flags=re.S)  # front matter is for programs
    _, blocks = of_html(MarkdownIt("commonmark").enable("table").render(source))
    return by_heading("markdown", "", blocks, name, characters)


def of_html(source: str) -> tuple[str, Iterator[Block]]:
    """The title of a page and its blocks. Used for web pages, chapters of books and rendered Markdown."""
    import warnings

    from bs4 import BeautifulSoup

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # guesses about what else the text might be
        soup = BeautifulSoup(source, "lxml")
    title = " ".join(soup.title.get_text().split()) if soup.title else ""
    for hidden in soup.find_all([*HIDDEN, "title"]):
        hidden.decompose()
    for formula in soup.find_all(["math", "m:math", "mml:math"]):
        formula.replace_with(f" {_formula(formula)} ")
    for picture in soup.find_all("img"):
        said = str(picture.get("alt") or "")  # a formula that is a picture says here what it is
        picture.replace_with("" if re.search(r"\.\w{3,4}$", said) else f" {said} ")
    for cell in soup.find_all(["td", "th"]):
        inner = cell.find_all(BLOCKS, limit=2)
        if len(inner) == 1 and inner[0].name in ("p", "div"):
            inner[0].unwrap()  # word processors put a paragraph into every cell: it is still one row
    return title, _html_blocks(soup)


def _formula(tag: Any) -> str:
    """MathML as one line; its alternative text, or the letters alone, where it is not well-formed."""
    if tag.parent is None or tag.decomposed:
        return ""
    try:
        root = parse(re.sub(r"(</?)\w+:", r"\1", str(tag)).encode(), "")
        return linear(root)
    except BadInput:
        return str(tag.get("alttext") or "") or str(tag.get_text(" "))


def _html_blocks(soup: Any) -> Iterator[Block]:
    from bs4 import NavigableString
    from bs4.element import PreformattedString

    text: list[str] = []
    owner: Any = None
    for node in soup.descendants:
        if not isinstance(node, NavigableString):
            if node.name == "br":
                text.append(" ")
            elif node.name in ("td", "th") and _block(node) is owner and any(part.strip(" |") for part in text):
                text.append(" | ")
            continue
        if isinstance(node, PreformattedString):  # comments, declarations
            continue
        block = _block(node)
        if block is not owner:
            yield _level(owner), "".join(text).strip(" |\n") if getattr(owner, "name", "") == "tr" else "".join(text)
            text, owner = [], block
        text.append(str(node))
    yield _level(owner), "".join(text)


def _block(node: Any) -> Any:
    return next((parent for parent in node.parents if parent.name in BLOCKS), None)


def _level(block: Any) -> int:
    return int(block.name[1]) if block is not None and re.fullmatch(r"h[1-6]", block.name) else 0


def read_text(path: Path, name: str, characters: int) -> Read:
    return plain(decode(path.read_bytes(), name, characters), name)


def plain(source: str, name: str) -> Read:
    """Paragraphs, each with the line it begins on."""
    sections: list[Section] = []
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
    return Read("text", "", None, require_text(name, sections))


def utf16_without_mark(head: bytes) -> str:
    """'utf-16-le' or 'utf-16-be' where nearly every second byte is zero, else ''."""
    half = len(head) // 2
    if half >= 4:
        if head[1::2].count(0) > 0.9 * half and head[0::2].count(0) == 0:
            return "utf-16-le"
        if head[0::2].count(0) > 0.9 * half and head[1::2].count(0) == 0:
            return "utf-16-be"
    return ""


def decode(data: bytes, name: str, characters: int) -> str:
    """Text of any common encoding. Raises TooLarge before decoding what cannot fit, BadInput where it is no text."""
    if len(data) > 4 * characters:
        raise too_long(name, characters)
    marks = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe\0\0", "utf-32"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
    encoding = next((codec for mark, codec in marks if data.startswith(mark)), "") or utf16_without_mark(data[:HEAD]) or "utf-8"
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
    """The likeliest encoding; where none is clearly better, one for Latin letters: by its letters, else Western European."""
    import charset_normalizer

    best = charset_normalizer.from_bytes(sample).best()
    if best is not None and 5 * len(HALF_WIDTH.findall(str(best))) > len(str(best)):
        best = charset_normalizer.from_bytes(sample, cp_exclusion=JAPANESE).best()
    western = charset_normalizer.from_bytes(sample, cp_isolation=["cp1252"]).best()
    if best is None or (western is not None and western.chaos <= best.chaos + 0.06):
        return code_page(sample) or "cp1252"
    return (code_page(sample) if _latin(str(best)) else "") or str(best.encoding)


def _latin(text: str) -> bool:
    """Whether its letters beyond ASCII are mostly Latin: then it is worth a second look which of them they are."""
    letters = [letter for letter in text[:HEAD] if letter > "\x7f" and letter.isalpha()]
    return 2 * sum(unicodedata.name(letter, "").startswith("LATIN") for letter in letters) > len(letters)


def _first_that_decodes(data: bytes, codecs: list[str]) -> str:
    for codec in codecs:
        try:
            return data.decode(codec)
        except (UnicodeDecodeError, LookupError):
            continue
    return data.decode("utf-8", "replace")
