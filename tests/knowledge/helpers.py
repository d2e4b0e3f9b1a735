"""What the tests of this folder share: an embedder that needs no model, and documents good and bad, made on the spot."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from appliance.errors import ModelUnavailable


async def embed(texts: Sequence[str]) -> np.ndarray[Any, Any]:
    """Texts that share words get near vectors: each word has a fixed random direction."""
    rows = np.zeros((len(texts), 384), dtype=np.float32)
    for row, text in zip(rows, texts, strict=True):
        for word in set(re.findall(r"[a-z]{4,}", text.lower())):
            row += np.random.default_rng(zlib.crc32(word.rstrip("s").encode())).standard_normal(384, dtype=np.float32)
        row /= float(np.linalg.norm(row)) or 1.0
    return rows


async def engine_down(texts: Sequence[str]) -> np.ndarray[Any, Any]:
    raise ModelUnavailable(f"The engine is not running; {len(texts)} texts wait.", "Start it.")


def pdf(path: Path, pages: Sequence[str], *, password: str = "", title: str = "") -> Path:
    """A PDF with one paragraph a page; an empty one becomes a picture."""
    from reportlab.lib.pagesizes import A5
    from reportlab.pdfgen.canvas import Canvas

    canvas = Canvas(str(path), pagesize=A5, encrypt=password or None)
    if title:
        canvas.setTitle(title)
    for text in pages:
        if text:
            words, line, height = text.split(), "", 550
            while words:
                line = f"{line} {words.pop(0)}".strip()
                if len(line) > 60 or not words:
                    canvas.drawString(30, height, line)
                    line, height = "", height - 14
        else:
            canvas.rect(50, 50, 200, 200, fill=1)
        canvas.showPage()
    canvas.save()
    return path


def docx(path: Path, blocks: Sequence[tuple[int, str]]) -> Path:
    """A DOCX of (heading level or 0, text)."""
    import docx as library

    document = library.Document()
    for level, text in blocks:
        if level:
            document.add_heading(text, level)
        else:
            document.add_paragraph(text)
    document.save(str(path))
    return path


def zip_bomb(path: Path, megabytes: int = 60, lie: bool = False) -> Path:
    """A DOCX whose one part unpacks to that much; with `lie`, its directory claims a kilobyte."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
        with archive.open("word/document.xml", "w") as part:
            for _ in range(megabytes):
                part.write(b"a" * 2**20)
    if lie:
        data = bytearray(path.read_bytes())
        size = (megabytes * 2**20).to_bytes(4, "little")
        while (place := data.find(size)) >= 0:
            data[place : place + 4] = (1024).to_bytes(4, "little")
        path.write_bytes(bytes(data))
    return path


def with_part(path: Path, name: str, content: bytes) -> Path:
    """A copy of a ZIP in which one part has other content."""
    held = BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(held, "w") as new:
        for entry in old.namelist():
            new.writestr(entry, content if entry == name else old.read(entry))
    path.write_bytes(held.getvalue())
    return path


PLANTS = "Green plants make sugar from sunlight, water and carbon dioxide. This process is called photosynthesis."
MAGNETS = "A compass needle is a small magnet. Its north pole turns towards the magnetic north pole of the Earth."
RIVERS = "A river carries pebbles and sand from the mountains. Where it slows down it drops them and builds a delta."
