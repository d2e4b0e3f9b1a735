"""PDF: the text of every page, with its number.

Hides pdfium, running heads and hyphens at line ends. A document of more pages than it may have is refused by its count alone;
pages that are pictures are named, and can be drawn for whoever can read them. Scripts, forms, attachments and links in the
file are never looked at.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from appliance.errors import BadInput, TooLarge
from appliance.knowledge.readers.sections import AGAIN, Budget, Read, Section, has_text, own_title, paragraphs, ranges

PAGES = 5_000
HEAD = 4096
DOTS = 200  # an inch, of a page that is drawn: what text recognition was made for
MOST_DOTS = 24_000_000  # of one page: an A3 at 200 an inch has 8 million


def read(path: Path, name: str, characters: int, pages: int = PAGES) -> Read:
    """Text page by page. Where no page has any, there are no sections and `pictures` names them all."""
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
        raise BadInput(f"{name} is damaged or not complete: it is no readable PDF.", AGAIN) from None
    if len(pdf) > pages:
        raise TooLarge(
            f"{name} has {len(pdf):,} pages: more than the {pages:,} that are read of one document.",
            "Split it into parts, and add those.",
        )
    lines: list[list[str]] = []
    budget = Budget(name, characters)
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
        # U+FFFE and U+0002 mark a hyphen that a line break put there.
        lines.append(re.sub(r"[\ufffe\x02]\s*", "", budget.spend(text)).splitlines())
    if not lines:
        raise BadInput(f"{name} has no pages.", AGAIN)
    lines = _without_running_heads(lines)
    pictures = [number for number, page_lines in enumerate(lines, 1) if not has_text(page_lines) and number not in broken]
    sections: list[Section] = [
        (paragraphs(page_lines), f"p. {number}", number, "")
        for number, page_lines in enumerate(lines, 1)
        if has_text(page_lines)
    ]
    if not sections and not pictures:
        raise BadInput(f"{name} is damaged: none of its pages can be read.", AGAIN)
    notes = [] if not broken else [f"{ranges(broken)} damage and could not be read."]
    title = own_title(str(pdf.get_metadata_dict().get("Title") or ""))
    return Read("pdf", title, len(lines), sections, notes, pictures)


def draw(path: Path, number: int) -> bytes:
    """Page `number` (from 1) as a grey picture (PGM), at 200 dots an inch or what MOST_DOTS leave of them."""
    import pypdfium2

    page = pypdfium2.PdfDocument(path)[number - 1]
    inches = page.get_width() / 72 * page.get_height() / 72
    dots = min(DOTS, (MOST_DOTS / max(inches, 1e-6)) ** 0.5)
    bitmap = page.render(scale=dots / 72, grayscale=True, may_draw_forms=False)
    rows = memoryview(bitmap.buffer)
    lines = (rows[row * bitmap.stride : row * bitmap.stride + bitmap.width] for row in range(bitmap.height))
    return b"P5 %d %d 255\n" % (bitmap.width, bitmap.height) + b"".join(lines)


def _refuse_cut_off(path: Path, name: str) -> None:
    """pdfium repairs a file that lost its end and is silent about the pages that went with it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(HEAD)
        file.seek(max(0, size - 65_536))
        tail = file.read()
    linear = re.search(rb"/Linearized\b.{0,80}?/L\s+(\d+)", head, re.S)
    if b"%%EOF" not in tail or (linear and size < int(linear.group(1)[:15])):
        raise BadInput(f"{name} is cut off: the end of the PDF is missing.", AGAIN)


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
