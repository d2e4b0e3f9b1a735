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


def archive(path: Path, parts: dict[str, str | bytes]) -> Path:
    """A ZIP of these parts. An Office file that was made by another program is as bare as this."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in parts.items():
            made.writestr(name, content)
    return path


OFFICE = "http://schemas.openxmlformats.org"
_RELATIONS = f"{OFFICE}/officeDocument/2006/relationships"


def relations(links: dict[str, tuple[str, str]]) -> str:
    """A .rels part: id -> (kind, target)."""
    return "<Relationships>{}</Relationships>".format(
        "".join(f'<Relationship Id="{id}" Type="{_RELATIONS}/{kind}" Target="{to}"/>' for id, (kind, to) in links.items())
    )


def word(path: Path, body: str, **parts: str) -> Path:
    """A DOCX whose body is this XML; `parts` are further ones by the name of their file, such as styles or footnotes."""
    names = f'xmlns:w="{OFFICE}/wordprocessingml/2006/main" xmlns:m="{OFFICE}/officeDocument/2006/math" xmlns:mc="mc"'
    made = {"word/document.xml": f"<w:document {names}><w:body>{body}</w:body></w:document>"}
    made |= {f"word/{name}.xml": f"<w:{name} {names}>{content}</w:{name}>" for name, content in parts.items()}
    made["word/_rels/document.xml.rels"] = relations({name: (name, f"{name}.xml") for name in parts})
    return archive(path, {**made})


def pptx(path: Path, slides: Sequence[str], *, order: Sequence[int] = (), notes: dict[int, str] | None = None) -> Path:
    """A PPTX whose slides are these shapes (XML); `order`: the numbers of their files in the order in which they are shown."""
    names = 'xmlns:a="a" xmlns:p="p" xmlns:r="r" xmlns:m="m" xmlns:mc="mc"'
    order = order or range(1, len(slides) + 1)
    listed = "".join(f'<p:sldId id="{number}" r:id="r{number}"/>' for number in order)
    parts: dict[str, str | bytes] = {
        "ppt/presentation.xml": f"<p:presentation {names}><p:sldIdLst>{listed}</p:sldIdLst></p:presentation>",
        "ppt/_rels/presentation.xml.rels": relations({f"r{n}": ("slide", f"slides/slide{n}.xml") for n in order}),
    }
    for number, shapes in enumerate(slides, 1):
        show = ' show="0"' if shapes.startswith("hidden") else ""
        tree = f"<p:cSld><p:spTree>{shapes.removeprefix('hidden')}</p:spTree></p:cSld>"
        parts[f"ppt/slides/slide{number}.xml"] = f"<p:sld {names}{show}>{tree}</p:sld>"
    for number, text in (notes or {}).items():
        parts[f"ppt/slides/_rels/slide{number}.xml.rels"] = relations({"n": ("notesSlide", f"../notesSlides/n{number}.xml")})
        parts[f"ppt/notesSlides/n{number}.xml"] = f"<p:notes {names}>{shape(text, 'body')}{shape('7', 'sldNum')}</p:notes>"
    return archive(path, parts)


def shape(text: str, place: str = "") -> str:
    """A shape of a slide with one paragraph a line."""
    lines = "".join(f"<a:p><a:r><a:t>{line}</a:t></a:r></a:p>" for line in text.split("\n"))
    mark = f'<p:nvSpPr><p:nvPr><p:ph type="{place}"/></p:nvPr></p:nvSpPr>' if place else ""
    return f"<p:sp>{mark}<p:txBody><a:bodyPr/>{lines}</p:txBody></p:sp>"


def xlsx(path: Path, sheets: dict[str, Sequence[Sequence[str | float]]], *, hidden: str = "", styles: str = "") -> Path:
    """A spreadsheet: texts are shared strings, numbers numbers; a text that begins with < is a whole cell as XML."""
    strings: list[str] = []
    parts: dict[str, str | bytes] = {}
    listed = ""
    for number, (name, rows) in enumerate(sheets.items(), 1):
        state = ' state="hidden"' if name == hidden else ""
        listed += f'<sheet name="{name}" sheetId="{number}" r:id="r{number}"{state}/>'
        body = ""
        for at, row in enumerate(rows, 1):
            cells = ""
            for column, value in zip("ABCDEFGH", row, strict=False):
                if isinstance(value, str) and value.startswith("<"):
                    cells += value
                elif isinstance(value, str) and value:
                    cells += f'<c r="{column}{at}" t="s"><v>{len(strings)}</v></c>'
                    strings.append(value)
                elif value != "":
                    cells += f'<c r="{column}{at}"><v>{value}</v></c>'
            body += f'<row r="{at}">{cells}</row>'
        parts[f"xl/worksheets/sheet{number}.xml"] = f'<worksheet xmlns="s"><sheetData>{body}</sheetData></worksheet>'
    links = {f"r{number}": ("worksheet", f"worksheets/sheet{number}.xml") for number in range(1, len(sheets) + 1)}
    links |= {"s": ("sharedStrings", "sharedStrings.xml"), "t": ("styles", "styles.xml")}
    shared = "".join(f"<si><t>{text}</t></si>" for text in strings)
    return archive(
        path,
        {
            "xl/workbook.xml": f'<workbook xmlns="s" xmlns:r="r"><sheets>{listed}</sheets></workbook>',
            "xl/_rels/workbook.xml.rels": relations(links),
            "xl/sharedStrings.xml": f'<sst xmlns="s">{shared}</sst>',
            "xl/styles.xml": f'<styleSheet xmlns="s">{styles}</styleSheet>',
            **parts,
        },
    )


def epub(path: Path, chapters: dict[str, str], *, spine: Sequence[str] = (), **more: str) -> Path:
    """A book of chapters (file name -> HTML); `spine`: their order; `more`: further parts below META-INF by their name."""
    items = "".join(f'<item id="{name}" href="text/{name}" media-type="application/xhtml+xml"/>' for name in chapters)
    order = "".join(f'<itemref idref="{name}"/>' for name in spine or chapters)
    title = "<metadata><dc:title>A Book</dc:title></metadata>"
    parts: dict[str, str | bytes] = {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": '<container><rootfiles><rootfile full-path="OPS/book.opf"/></rootfiles></container>',
        "OPS/book.opf": f'<package xmlns:dc="dc">{title}<manifest>{items}</manifest><spine>{order}</spine></package>',
    }
    parts |= {f"META-INF/{name}.xml": content for name, content in more.items()}
    return archive(path, parts | {f"OPS/text/{name}": content for name, content in chapters.items()})


def odt(path: Path, body: str, more: dict[str, str | bytes] | None = None) -> Path:
    """An OpenDocument text with this body (XML)."""
    office = "urn:oasis:names:tc:opendocument:xmlns:office:1.0"
    names = f'xmlns:office="{office}" xmlns:text="t" xmlns:table="b" xmlns:draw="d" xmlns:xlink="x"'
    content = f"<office:document {names}><office:body><office:text>{body}</office:text></office:body></office:document>"
    made: dict[str, str | bytes] = {"mimetype": "application/vnd.oasis.opendocument.text", "content.xml": content}
    return archive(path, made | (more or {}))


PLANTS = "Green plants make sugar from sunlight, water and carbon dioxide. This process is called photosynthesis."
MAGNETS = "A compass needle is a small magnet. Its north pole turns towards the magnetic north pole of the Earth."
RIVERS = "A river carries pebbles and sand from the mountains. Where it slows down it drops them and builds a delta."
