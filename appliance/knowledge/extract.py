"""The text of one document, read in a child process that may fail without harm.

Hides the child, its limits (memory, processor time, wall clock, size of what it may say) and its exit codes. Does not parse
anything itself (`readers` does, inside the child), does not cut text into passages, does not store.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import threading
import unicodedata
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from appliance.errors import ApplianceError, BadInput, NotFound, TooLarge
from appliance.knowledge import ocr
from appliance.knowledge.child import child
from appliance.knowledge.readers.sections import ranges
from appliance.settings import Settings

LONGEST_NAME = 200
SECTIONS = 500_000  # an honest book has some thousands; each takes memory of the process that asks
_ERRORS: dict[str, type[ApplianceError]] = {"bad_input": BadInput, "too_large": TooLarge}


@dataclass(frozen=True, slots=True)
class Section:
    """A stretch of text that lies in one place. Paragraphs are separated by line feeds. `page` counts from 1."""

    text: str
    place: str
    page: int | None
    heading: str


@dataclass(frozen=True, slots=True)
class Extracted:
    """What a document says. `kind`: one of `readers.KINDS`. `pages`: of a PDF, or the slides of a PPTX.

    `note`: what a person should know about it, or ''.
    """

    kind: str
    title: str
    pages: int | None
    sections: list[Section] = field(repr=False)
    note: str


def clean_name(name: str) -> str:
    """A file's name as harmless text: no folders, no control or direction marks, at most 200 characters."""
    name = name.encode("utf-8", "replace").decode("utf-8").replace("\\", "/").rstrip("/").rpartition("/")[2]
    name = "".join(" " if unicodedata.category(letter)[0] in "CZ" else letter for letter in unicodedata.normalize("NFC", name))
    name = " ".join(name.split())
    if len(name) > LONGEST_NAME:
        stem, dot, suffix = name.rpartition(".")
        keep = f"{dot}{suffix}" if stem and len(suffix) <= 10 else ""
        name = name[: LONGEST_NAME - len(keep)] + keep
    return name if name.strip(". ") else "document"


def extract(path: Path, name: str, settings: Settings, stopped: threading.Event | None = None) -> Extracted:
    """Read the document at `path`; `name` is what the person called it and what messages say. Blocking.

    Scanned pages are read where the machine can (see `ocr`): seconds each, given up once `stopped` is set. Raises BadInput
    (damaged, locked, only pictures, unknown type) or TooLarge, each naming the file.
    """
    name = clean_name(name)
    job = {
        "path": str(path.absolute()),
        "name": name,
        "memory": settings.extract_memory_mb * 2**20,
        "seconds": settings.extract_seconds,
        "characters": settings.document_characters,
        "pages": settings.document_pages,
    }
    if path.is_symlink():
        raise BadInput(f"{name} is a link, not a file.", "Add the file that it points to.")
    if not path.is_file():
        raise NotFound(f"There is no file {name}.", "Check the path.")
    # Processor seconds are limited inside the child; the wall clock stops one that waits.
    with child("extract_child", seconds=_wall(settings.extract_seconds), what=f"reading {name}") as process:
        found, pictures = _listen(process, job, name)
    return found if not pictures else _with_pictures(found, pictures, path, name, settings, stopped)


def _with_pictures(
    found: Extracted, pictures: list[int], path: Path, name: str, settings: Settings, stopped: threading.Event | None
) -> Extracted:
    """The document with what could be read on pages that are pictures, and with a word about each of these pages."""
    left = settings.document_characters - sum(len(section.text) for section in found.sections)
    seen = ocr.recognise(path, name, pictures, settings, left=left, stopped=stopped)
    added = [Section(text, f"p. {number}", number, "") for number, text in seen.texts.items()]
    sections = sorted(found.sections + added, key=lambda section: section.page or 0)
    if not sections and seen.why:
        raise BadInput(f"{name} contains only pictures of pages, no text.", f"{seen.remedy}, then add it again.")
    if not sections:
        raise BadInput(
            f"{name} contains only pictures of pages, and no text was recognised in them.",
            "Scan it again, straight and with more contrast, and add that.",
        )
    empty = [number for number in pictures if number not in seen.texts]
    notes = [f"{ranges(list(seen.texts))} text that was recognised in a picture: it may hold mistakes."] if seen.texts else []
    notes += [f"{ranges(empty)} no text: {'they are pictures' if len(empty) > 1 else 'it is a picture'}."] if empty else []
    if empty and seen.why and settings.ocr_languages:
        notes.append(f"{seen.remedy}, remove this document and add it again to have them read.")
    if len(pictures) > ocr.PAGES and not seen.why:
        notes.append(f"Only the first {ocr.PAGES} of its pictures were looked at.")
    return replace(found, sections=sections, note=" ".join([*notes, found.note]).strip())


def _listen(process: subprocess.Popen[bytes], job: dict[str, Any], name: str) -> tuple[Extracted, list[int]]:
    """Sections come one a line, then one line that ends it: {"done": ...} or {"error": ...}. And the pages without text."""
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None and stdout is not None
    with contextlib.suppress(BrokenPipeError):
        stdin.write(json.dumps(job).encode() + b"\n")
        stdin.close()
    sections: list[Section] = []
    # Escapes can make six bytes of a character; places and headings come on top.
    for message in _messages(stdout, limit=job["characters"] * 8 + 2**24, name=name):
        if "error" in message:
            kind = _ERRORS.get(str(message["error"]), BadInput)
            raise kind(str(message["message"]), str(message["hint"]))
        if "done" in message:
            done = message["done"]
            found = Extracted(str(done["kind"]), str(done["title"]), done["pages"], sections, str(done["note"]))
            return found, [int(number) for number in done["pictures"]]
        if len(sections) == SECTIONS:
            raise TooLarge(f"{name} falls into more than {SECTIONS:,} sections.", "Split it into parts, and add those.")
        sections.append(Section(**message))
    raise _died(process.wait(), name, job)


def _messages(stream: IO[bytes], limit: int, name: str) -> Any:
    seen = 0
    while line := stream.readline(limit):
        seen += len(line)
        if seen > limit:
            raise TooLarge(f"{name} holds more text than one document may.", "Split it into parts, and add those.")
        try:
            message = json.loads(line)
        except ValueError:
            return
        if isinstance(message, dict):
            yield message


def _wall(seconds: int) -> int:
    """Seconds by the clock for a reader that may use so many of the processor's."""
    return seconds * 2 + 30


def _died(code: int, name: str, job: dict[str, Any]) -> ApplianceError:
    hint = "Open it in the program it came from, save it again or print it to PDF, and add that."
    if code == -signal.SIGXCPU:
        return BadInput(f"{name} was not read: reading it took more than {job['seconds']} seconds.", hint)
    if code == -signal.SIGKILL:  # by the wall clock, or by the system where it has no memory left
        return BadInput(f"{name} was not read: it was still being read after {_wall(job['seconds'])} seconds.", hint)
    return BadInput(f"{name} was not read: it is damaged, or it needs more than {job['memory'] // 2**20} MB to read.", hint)
