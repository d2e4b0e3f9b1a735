"""Tables and records: CSV and its relatives, XLSX, JSON.

A row is read as `Header: value; Header: value`, so that it says what it means without the rows above it, and its place is the
rows as a spreadsheet numbers them. Hides separators, how XLSX stores strings, dates and per cents, and what is a header.
Formulas are never worked out (their saved results are read), macros and links to other files never opened.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import re
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from appliance.errors import TooLarge
from appliance.knowledge.readers.archive import Archive, local
from appliance.knowledge.readers.sections import Budget, Read, Section, own_title, require_text
from appliance.knowledge.readers.text import decode, plain

CELLS = 2_000_000
TOGETHER = 20  # rows in one section
ABOUT = 800  # characters in one section: about a passage, so that the place stays exact
HEADER = 80
DEEP = 3  # levels of JSON that become a path; what is deeper stands in one line

Row = tuple[int, dict[int, str]]  # its number, and the text of each cell that has one


# --- what all of them share ------------------------------------------------------------------------------------------
def _grouped(lines: Iterable[tuple[int, str]], label: str, word: str, budget: Budget) -> Iterator[Section]:
    """Numbered lines, some at a time: 'Sheet1, rows 2-21'."""
    held: list[str] = []
    first = last = size = 0

    def section() -> Section:
        span = f"{word} {first}" if first == last else f"{word}s {first}-{last}"
        return "\n".join(held), f"{label}, {span}" if label else span, None, label

    for number, line in lines:
        if held and (len(held) >= TOGETHER or size + len(line) > ABOUT):
            yield section()
            held, size = [], 0
        first = first if held else number
        last = number
        size += len(line)
        held.append(budget.spend(line))
    if held:
        yield section()


def _said(rows: Iterable[Row], name: str) -> Iterator[tuple[int, str]]:
    """Rows as lines. The first row of several cells names the columns, where it can."""
    header: dict[int, str] | None = None
    unused: Row | None = None
    cells = 0
    for number, row in rows:
        cells += max(1, len(row))
        if cells > CELLS:
            raise TooLarge(f"{name} holds more than {CELLS:,} cells.", "Split it into parts, and add those.")
        if header is None and len(row) > 1:
            header = {at: text[:HEADER] for at, text in row.items()} if _names_columns(list(row.values())) else {}
            if header:
                unused = number, row
                continue
        if row:
            unused = None
            named = [f"{header[at]}: {text}" if header and at in header else text for at, text in sorted(row.items())]
            yield number, ("; " if header else " | ").join(named)
    if unused is not None:  # nothing but a header
        yield unused[0], " | ".join(unused[1].values())


def _names_columns(cells: list[str]) -> bool:
    """Names are no numbers; but a row of years is a header."""
    years = [text for text in cells if re.fullmatch(r"(19|20)\d\d", text)]
    numbers = [text for text in cells if re.fullmatch(r"[-+(]?[\s$€£]*\d[\d.,\s]*[%)]?", text)]
    return not numbers or (len(years) > 1 and len(years) == len(numbers))


# --- CSV, TSV, PSV ---------------------------------------------------------------------------------------------------
def read_csv(path: Path, name: str, characters: int) -> Read:
    """A table; where the lines do not make one, what it is: text."""
    source = decode(path.read_bytes(), name, characters)
    separator = _separator(source)
    if not separator:
        return plain(source, name)
    csv.field_size_limit(1_000_000)
    try:
        sections = list(_grouped(_said(_csv_rows(source, separator), name), "", "row", Budget(name, characters)))
    except csv.Error:  # a quotation mark that is opened and never closed
        found = plain(source, name)
        found.notes.append("Its rows cannot be told apart: it was read as plain text.")
        return found
    return Read("csv", "", None, require_text(name, sections))


def _csv_rows(source: str, separator: str) -> Iterator[Row]:
    for number, row in enumerate(csv.reader(io.StringIO(source, newline=""), delimiter=separator), 1):
        yield number, {at: text for at, cell in enumerate(row) if (text := " ".join(cell.split()))}


def _separator(source: str) -> str:
    """The sign that cuts most of the first lines into equally many cells, or ''."""
    head = source[:20_000].splitlines()[:50]
    best, found = (0.5, 1), ""
    for separator in ",;\t|":
        try:
            widths = [len(row) for row in csv.reader(head, delimiter=separator) if any(cell.strip() for cell in row)]
        except csv.Error:
            continue
        several = [width for width in widths if width > 1]
        if several:
            usual = max(set(several), key=several.count)
            score = several.count(usual) / len(widths), usual
            best, found = (score, separator) if score > best else (best, found)
    return found


# --- XLSX ------------------------------------------------------------------------------------------------------------
def read_xlsx(path: Path, name: str, characters: int) -> Read:
    budget = Budget(name, characters)
    sections: list[Section] = []
    notes: list[str] = []
    with Archive(path, name) as archive:
        main = archive.main("xl/workbook.xml")
        related = archive.related(main)
        book = archive.xml(main)
        from_1904 = any(entry.get("date1904") in ("1", "true") for entry in book.iter("{*}workbookPr"))
        reading = _Cells(archive, related, from_1904)
        for sheet in book.iter("{*}sheet"):
            link = next((str(value) for key, value in sheet.attrib.items() if key.startswith("{") and key.endswith("}id")), "")
            kind, part = related.get(link, ("", ""))
            label = " ".join(str(sheet.get("name") or "").split())[:100]
            if sheet.get("state") in ("hidden", "veryHidden"):
                notes.append(f"The sheet {label} is hidden and was not read.")
            elif kind == "worksheet" and part in archive.parts:
                sections += _grouped(_said(reading.rows(part), name), label, "row", budget)
        title = own_title(archive.core_title())
        if reading.without_result:
            notes.append(f"{reading.without_result} formulas have no saved result: open it in a spreadsheet and save it again.")
    return Read("xlsx", title, None, require_text(name, sections), notes[:20])


class _Cells:
    """What stands in the cells of a workbook. `without_result` counts formulas that were never worked out."""

    def __init__(self, archive: Archive, related: dict[str, tuple[str, str]], from_1904: bool) -> None:
        self._archive = archive
        self._epoch = datetime(1904, 1, 1) if from_1904 else datetime(1899, 12, 30)
        parts = {kind: part for kind, part in related.values() if part in archive.parts}
        strings = archive.each(parts["sharedStrings"], "si") if "sharedStrings" in parts else ()
        self._strings = [_string(entry) for entry in strings]
        self._formats = _formats(archive, parts["styles"]) if "styles" in parts else []
        self.without_result = 0

    def rows(self, part: str) -> Iterator[Row]:
        number = 0
        for row in self._archive.each(part, "row"):
            number = _count(str(row.get("r") or "")) or number + 1
            found: dict[int, str] = {}
            column = 0
            for cell in row:
                if local(cell) != "c":
                    continue
                column = _column(str(cell.get("r") or "")) or column + 1
                if text := " ".join(self._text(cell).split()):
                    found[column] = text
            yield number, found

    def _text(self, cell: Any) -> str:
        kind = str(cell.get("t") or "n")
        if kind == "inlineStr":
            return _string(cell)
        value, formula = "", False
        for child in cell:
            name = local(child)
            value = str(child.text or "") if name == "v" else value
            formula = formula or name == "f"
        if not value:
            self.without_result += formula
            return ""
        if kind == "s":
            at = _count(value)
            return self._strings[at] if at < len(self._strings) else ""
        if kind in ("str", "d"):
            return value
        if kind == "b":
            return "TRUE" if value == "1" else "FALSE"
        return "" if kind == "e" else self._number(value, _count(str(cell.get("s") or "")))

    def _number(self, value: str, style: int) -> str:
        try:
            number = float(value)
        except ValueError:
            return value
        shown = self._formats[style] if style < len(self._formats) else ""
        if shown == "date" and 0 <= number < 2_958_466:
            moment = self._epoch + timedelta(seconds=round(number * 86_400))
            if number < 1:
                return moment.strftime("%H:%M")
            return moment.strftime("%Y-%m-%d %H:%M" if number % 1 else "%Y-%m-%d")
        return f"{100 * number:.10g}%" if shown == "percent" else f"{number:.12g}" if abs(number) < 1e12 else value


def _string(entry: Any) -> str:
    """A string in pieces of different looks, without the reading aid that stands above East Asian words."""
    aid = {id(text) for phonetic in entry.iter("{*}rPh") for text in phonetic.iter("{*}t")}
    return "".join(str(text.text or "") for text in entry.iter("{*}t") if id(text) not in aid)


def _formats(archive: Archive, part: str) -> list[str]:
    """For each style of cells: 'date', 'percent' or ''."""
    root = archive.xml(part)
    own = {_count(str(entry.get("numFmtId") or "")): str(entry.get("formatCode") or "") for entry in root.iter("{*}numFmt")}
    formats: list[str] = []
    for group in root:
        if local(group) == "cellXfs":
            for style in group:
                number = _count(str(style.get("numFmtId") or ""))
                formats.append(_format(number, own.get(number, "")))
    return formats


def _format(number: int, code: str) -> str:
    if number in range(14, 23) or number in range(27, 37) or number in range(45, 48) or number in range(50, 59):
        return "date"
    plain_code = re.sub(r'"[^"]*"|\\.|_.|\*.|\[[^\]]*\]', "", code)
    if number in (9, 10) or "%" in plain_code:
        return "percent"
    return "date" if re.search(r"[ymdhs]", plain_code, re.I) and "general" not in plain_code.lower() else ""


def _count(digits: str) -> int:
    return int(digits) if len(digits) < 10 and digits.isascii() and digits.isdecimal() else 0


def _column(reference: str) -> int:
    """1 for A7, 28 for AB3, 0 where there is no such name."""
    return _letters(reference.rstrip("0123456789"))


@functools.lru_cache(1024)
def _letters(name: str) -> int:
    number = 0
    for letter in name if re.fullmatch("[A-Z]{1,3}", name) else "":
        number = 26 * number + ord(letter) - 64
    return number


# --- JSON ------------------------------------------------------------------------------------------------------------
def read_json(path: Path, name: str, characters: int) -> Read:
    """Records with the names of their fields; one JSON value a line is understood as well."""
    source = decode(path.read_bytes(), name, characters)
    budget = Budget(name, characters)
    try:
        return Read("json", "", None, require_text(name, list(_values(json.loads(source), [], budget))))
    except ValueError:
        pass
    try:
        lines = [(number, json.loads(line)) for number, line in enumerate(source.splitlines(), 1) if line.strip()]
    except ValueError:
        found = plain(source, name)
        found.notes.append("It is not valid JSON: it was read as plain text.")
        return found
    said = ((number, _one_line(value)) for number, value in lines)
    return Read("json", "", None, require_text(name, list(_grouped(said, "", "line", budget))))


def _values(value: Any, path: list[str], budget: Budget) -> Iterator[Section]:
    """Sections of a JSON value: lists are records, what has names becomes a path of names."""
    label = " > ".join(path)
    if isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        yield from _grouped(((at, _one_line(item)) for at, item in enumerate(value, 1)), label, "record", budget)
        return
    if not isinstance(value, dict):
        yield budget.spend(_one_line(value)), label or "beginning", None, path[-1] if path else ""
        return
    whole = {key: held for key, held in value.items() if len(path) >= DEEP or not _has_parts(held)}
    if whole:
        lines = [budget.spend(f"{key}: {_one_line(held)}") for key, held in whole.items()]
        yield "\n".join(lines), label or "beginning", None, path[-1] if path else ""
    for key, held in value.items():
        if key not in whole:
            yield from _values(held, [*path, " ".join(key.split())[:HEADER]], budget)


def _has_parts(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value))


def _one_line(value: Any) -> str:
    """'name: Ada; marks: 4, 5; home: (town: Leeds)'."""
    if isinstance(value, list) and not _has_parts(value):
        return ", ".join(_one_line(item) for item in value)
    if not isinstance(value, (dict, list)):
        return "" if value is None else str(value).lower() if isinstance(value, bool) else " ".join(str(value).split())
    named = value.items() if isinstance(value, dict) else ((str(at), item) for at, item in enumerate(value, 1))
    parts: list[str] = []
    for key, held in named:
        text = _one_line(held)
        if text:
            # A field's own fields follow in its brackets: repeating its name before each would multiply the text.
            parts.append(f"{key}: ({text})" if _has_parts(held) else f"{key}: {text}")
    return "; ".join(parts)
