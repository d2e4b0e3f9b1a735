"""Text in pages that are pictures, where tesseract is installed on this machine.

Hides two processes a page, each behind walls: the reader's own child draws it, and tesseract, which gets nothing but the
picture, reads it. So neither the program that reads hostile files nor the one that reads hostile pictures ever runs free, and
neither starts the other. Installs nothing, and does not decide what becomes of the text.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from appliance.errors import ApplianceError, TooLarge
from appliance.knowledge.child import child
from appliance.knowledge.readers.sections import has_text, paragraphs, plain
from appliance.settings import Settings

PAGES = 300  # of one document: at some seconds each, half an hour
PICTURE = 30 * 2**20  # bytes of one page
SAID = 2**20  # bytes of text on one page
WAIT = 90.0  # seconds of the wall clock for what tesseract does with one


@dataclass(frozen=True, slots=True)
class Recognised:
    """`texts`: page number to text, for the pages that had some. `why`: what kept it from looking, "" where nothing did.

    `remedy`: what to do about it.
    """

    texts: dict[int, str]
    why: str = ""
    remedy: str = ""


def tesseract() -> Path | None:
    """Where tesseract is on this machine; None where it is not."""
    found = shutil.which("tesseract")
    return Path(found).absolute() if found else None


def obstacle(settings: Settings) -> tuple[str, str]:
    """What keeps scanned pages from being read, and what to do about it; two empty texts where nothing does."""
    program = tesseract()
    if not settings.ocr_languages:
        return "text recognition is switched off", "Run it through text recognition (OCR) first"
    if program is None:
        return "text recognition is not installed", "Install tesseract-ocr on this machine"
    known = set(_output(program, "--list-langs").decode("utf-8", "replace").split())
    missing = [language for language in settings.ocr_languages.split("+") if language not in known]
    if missing:
        packages = " ".join(f"tesseract-ocr-{language.replace('_', '-')}" for language in missing)
        return f"text recognition does not know {', '.join(missing)}", f"Install {packages} on this machine"
    return "", ""


def recognise(
    path: Path, name: str, pages: Sequence[int], settings: Settings, *, left: int, stopped: threading.Event | None = None
) -> Recognised:
    """Read these pages of a PDF, at most PAGES of them; `left`: the characters it may still give. Blocking, seconds a page.

    A page that cannot be drawn or read has no text. Raises TooLarge, and ApplianceError once `stopped` is set.
    """
    why, remedy = obstacle(settings)
    program = tesseract()
    if why or program is None:
        return Recognised({}, why, remedy)
    texts: dict[int, str] = {}
    for number in pages[:PAGES]:
        if stopped is not None and stopped.is_set():
            raise ApplianceError(f"Reading {name} was stopped.", "Add it again.")
        picture = _drawn(path, number, settings)
        said = _output(program, "stdin", "stdout", "-l", settings.ocr_languages, picture=picture) if picture else b""
        text = paragraphs([plain(line) for line in said.decode("utf-8", "replace").splitlines()])
        if has_text([text]):
            texts[number] = text
            left -= len(text)
        if left < 0:
            raise TooLarge(
                f"{name} holds more than {settings.document_characters:,} characters of text.",
                "Split it into parts, and add those.",
            )
    return Recognised(texts)


def _drawn(path: Path, number: int, settings: Settings) -> bytes:
    """The page as a picture (PGM); nothing where it cannot be drawn within the limits."""
    job = {
        "path": str(path.absolute()),
        "draw": number,
        "memory": settings.extract_memory_mb * 2**20,
        "seconds": settings.extract_seconds,
    }
    with child("extract_child", seconds=settings.extract_seconds * 2 + 30, what="drawing a page") as process:
        assert process.stdin is not None and process.stdout is not None
        _feed(process.stdin, json.dumps(job).encode() + b"\n")
        picture = process.stdout.read(PICTURE + 1)
    head = re.match(rb"P5 (\d{1,6}) (\d{1,6}) 255\n", picture)
    whole = head is not None and len(picture) == head.end() + int(head[1]) * int(head[2]) <= PICTURE
    return picture if whole else b""


def _output(program: Path, *arguments: str, picture: bytes = b"") -> bytes:
    """What tesseract says; nothing where it fails, takes too long or says too much."""
    with child("ocr_child", str(program), *arguments, seconds=WAIT, what="reading a picture") as process:
        assert process.stdin is not None and process.stdout is not None
        # Fed from a thread: it may begin to speak before it has heard everything.
        feeder = threading.Thread(target=_feed, args=(process.stdin, picture), daemon=True)
        feeder.start()
        said = process.stdout.read(SAID + 1)
        if len(said) > SAID or process.wait() != 0:
            said = b""
    feeder.join()
    return said


def _feed(pipe: IO[bytes], content: bytes) -> None:
    with contextlib.suppress(OSError, ValueError):
        pipe.write(content)
        pipe.close()
