"""Cells of a spreadsheet: encodings, separators, and formulas that must not run.

A program that opens a CSV runs a cell that begins like a formula. So such a cell is written with an apostrophe before it, which
is taken off when it is read; one that began with apostrophes already gets one more. Nothing here knows what a cell is about.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence

from appliance.errors import BadInput, TooLarge

LARGEST = 20_000_000
# Inside a word of a list of names, and not after a number as in 1ºA, no sign stands: it is a letter of another code page.
_LETTERS = re.compile(rb"(?<![0-9])[\xa1-\xbf](?=[A-Za-z\xc0-\xff])")
_CALLED = {
    "cp1250": ("Windows-1250 (Central Europe)", "ł and ő"), "iso8859-2": ("ISO 8859-2 (Central Europe)", "ł and ő"),
    "cp1254": ("Windows-1254 (Turkey)", "ş and ğ"), "cp1252": ("Windows-1252", "é and ü"),
}  # fmt: skip
_FORMULA = re.compile(r"'*[=+\-@\t\r\uff1d\uff0b\uff0d\uff20]")


def escape(cell: str) -> str:
    return f"'{cell}" if _FORMULA.match(cell) else cell


def unescape(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def decode(data: bytes, name: str, *, names: bool = False) -> tuple[str, str]:
    """(text, what its reader should know of its letters, or ""): UTF-8 with or without its mark, UTF-16 with it, else one of
    the old code pages, by its letters: Windows-1252 unless another is clearly likelier. `names`: it is a list of names.

    Raises BadInput, TooLarge.
    """
    if len(data) > LARGEST:
        raise TooLarge(f"{name} is larger than {LARGEST // 1_000_000} MB.", "Give a file with one line a person.")
    wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))  # as a spreadsheet saves "Unicode text"
    for encoding in ("utf-16",) if wide else ("utf-8-sig", ""):
        try:
            text = data.decode(encoding or (encoding := _code_page(data, names)))
        except UnicodeDecodeError:
            continue
        if "\0" in text:
            break
        called, letters = _CALLED.get(encoding, ("", ""))
        told = f"The file is not UTF-8; it was read as {called}. Check that letters such as {letters} look right."
        return text, told if called else ""
    raise BadInput(f"{name} is not a text file that can be read.", 'Save it as "CSV UTF-8" in the spreadsheet program.')


def _code_page(data: bytes, names: bool) -> str:
    from appliance.knowledge.readers.letters import WESTERN, code_page

    return code_page(data, frozenset(match[0][0] for match in _LETTERS.finditer(data)) if names else frozenset()) or WESTERN


def rows(text: str, name: str, most: int) -> list[tuple[int, list[str]]]:
    """(line, cells) of each row with something in it; split by what splits the first line most. Raises BadInput, TooLarge.

    most: rows below the first one.
    """
    first = text.lstrip("\ufeff\r\n").partition("\n")[0]
    split = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=split, strict=True)
    found: list[tuple[int, list[str]]] = []
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                found.append((reader.line_num, [unescape(cell.strip(" ")) for cell in cells]))
            if len(found) > most + 1:
                raise TooLarge(f"{name} has more than {most} lines.", "Cut it in parts, such as a year at a time.")
    except csv.Error as error:
        raise BadInput(f"{name}, line {reader.line_num}: {error}.", "Correct the quotation marks in this line.") from None
    return found


def write(lines: Iterable[Sequence[str]]) -> str:
    """Lines as spreadsheets read them: commas, CRLF, a mark for UTF-8 in front; no cell is a formula."""
    out = io.StringIO(newline="")
    csv.writer(out).writerows([[escape(cell) for cell in line] for line in lines])
    return f"\ufeff{out.getvalue()}"


def split_list(cell: str) -> list[str]:
    """The names in one cell, separated by semicolons; a backslash lets a name hold one."""
    names, current, escaped = [], "", False
    for letter in cell:
        if escaped or letter not in "\\;":
            current, escaped = current + letter, False
        elif letter == "\\":
            escaped = True
        else:
            names.append(current)
            current = ""
    return [name.strip() for name in [*names, current] if name.strip()]


def join_list(names: Iterable[str]) -> str:
    return ";".join(name.replace("\\", "\\\\").replace(";", "\\;") for name in names)
