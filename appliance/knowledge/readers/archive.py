"""The one door to documents that are ZIP files of XML: DOCX, PPTX, XLSX, EPUB, ODT.

Hides bombs (refused from the directory, before anything is unpacked), parts that lie about their size, declarations of
entities, and every way in which a ZIP or an XML part can be broken. A part is unpacked only when it is asked for, never an
archive inside the archive; nothing is written to disk, and no address that stands in a part is ever opened.
"""

from __future__ import annotations

import lzma
import posixpath
import struct
import zipfile
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote
from xml.parsers import expat

from appliance.errors import BadInput, TooLarge

ENTRIES = 5_000
BYTES = 300 * 2**20  # unpacked, of the whole archive
PART = 64 * 2**20
RATIO = 100  # unpacked to packed; counted once more than RATIO_FROM bytes come out
RATIO_FROM = 20 * 2**20
BROKEN = (
    zipfile.BadZipFile,
    OSError,
    NotImplementedError,
    EOFError,
    RuntimeError,
    ValueError,
    OverflowError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
)
SAVE_AGAIN = "Open it in the program it came from, save a fresh copy, and add that."


class Archive:
    """The parts of one document. Every method raises BadInput or TooLarge with the file's name."""

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        self._left = BYTES
        try:
            self._zip = zipfile.ZipFile(path)
            entries = self._zip.infolist()
        except BROKEN:
            raise BadInput(f"{name} is damaged or not complete: its ZIP directory cannot be read.", "Copy it again.") from None
        try:
            self._check(entries, path.stat().st_size)
        except BadInput:
            self._zip.close()
            raise
        self._parts = {entry.filename: entry for entry in entries}

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._zip.close()

    def _check(self, entries: list[zipfile.ZipInfo], size: int) -> None:
        unpacked = sum(entry.file_size for entry in entries)
        packed = max(1, min(sum(entry.compress_size for entry in entries), size))
        heavy = unpacked > BYTES or (unpacked > RATIO_FROM and unpacked > RATIO * packed)
        if len(entries) > ENTRIES or heavy:
            raise TooLarge(
                f"{self.name} would unpack to {unpacked // 2**20} MB in {len(entries)} parts: no ordinary document does that.",
                SAVE_AGAIN,
            )
        if any(entry.flag_bits & 1 for entry in entries):
            raise locked(self.name)

    @property
    def parts(self) -> frozenset[str]:
        return frozenset(self._parts)

    def part(self, part: str, limit: int = PART) -> bytes:
        """The bytes of one part: at most `limit` of them."""
        entry = self._parts.get(part)
        if entry is None:
            raise BadInput(f"{self.name} is damaged: one of its parts is missing.", SAVE_AGAIN)
        if entry.file_size > limit or entry.file_size > self._left:
            raise TooLarge(f"{self.name} has a part of {entry.file_size:,} bytes, which is too much to read.", SAVE_AGAIN)
        try:
            # The size in the directory is a claim; zipfile stops there, and the checksum of a part that lied is wrong.
            data = self._zip.read(entry)
        except BROKEN:
            raise BadInput(f"{self.name} is damaged: its ZIP parts cannot be read.", "Copy it again.") from None
        self._left -= len(data)
        return data

    def xml(self, part: str) -> Any:
        """The root element of one part."""
        return parse(self.part(part), self.name)

    def each(self, part: str, tag: str) -> Iterator[Any]:
        """The elements of that name (in any namespace), one at a time: a long sheet never stands in memory as a whole."""
        from lxml import etree

        data = self.part(part)
        refuse_declarations(data, self.name)
        try:
            for _, element in etree.iterparse(
                BytesIO(data), tag=f"{{*}}{tag}", remove_comments=True, remove_pis=True, **_options()
            ):
                yield element
                element.clear()
                while element.getprevious() is not None:
                    del element.getparent()[0]
        except etree.LxmlError as error:
            raise _unparsed(error, self.name) from None

    def related(self, part: str) -> dict[str, tuple[str, str]]:
        """What an Office part refers to inside the archive: id -> (last word of its type, part). Addresses are left out."""
        folder, base = posixpath.split(part)
        listed = posixpath.join(folder, "_rels", f"{base}.rels")
        if listed not in self._parts:
            return {}
        found = {}
        for link in self.xml(listed):
            target = str(link.get("Target") or "")
            if local(link) == "Relationship" and target and str(link.get("TargetMode") or "").lower() != "external":
                found[str(link.get("Id") or "")] = (str(link.get("Type") or "").rpartition("/")[2], inside(folder, target))
        return found

    def main(self, usual: str) -> str:
        """The part an Office file begins with."""
        named = [part for kind, part in self.related("").values() if kind == "officeDocument" and part in self._parts]
        return named[0] if named else usual

    def core_title(self) -> str:
        """The title in an Office file's properties, or ''. Properties that cannot be read are no reason to lose the text."""
        try:
            root = self.xml("docProps/core.xml") if "docProps/core.xml" in self._parts else None
        except BadInput:
            return ""
        return next((str(child.text or "") for child in (root if root is not None else ()) if local(child) == "title"), "")


def inside(folder: str, target: str) -> str:
    """The part that a reference in `folder` means. It may not exist, and it is never a path on disk."""
    target = unquote(target.partition("#")[0])
    return posixpath.normpath(target if target.startswith("/") else posixpath.join(folder, target)).lstrip("/")


def local(element: Any) -> str:
    """An element's name without its namespace; '' for what is no element."""
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def attribute(element: Any, name: str, default: str = "") -> str:
    """The attribute of that name, whatever its namespace."""
    for key, value in element.attrib.items():
        if key.rpartition("}")[2] == name:
            return str(value)
    return default


def parse(data: bytes, name: str) -> Any:
    """The root of an XML text that declares nothing."""
    from lxml import etree

    refuse_declarations(data, name)
    try:
        root = etree.fromstring(data, etree.XMLParser(remove_comments=True, remove_pis=True, **_options()))
    except (etree.LxmlError, ValueError) as error:
        raise _unparsed(error, name) from None
    found = root.getroottree().docinfo
    if found.doctype or found.internalDTD is not None:
        raise _declares(name)
    return root


def _options() -> dict[str, bool]:
    return {"resolve_entities": False, "no_network": True, "load_dtd": False, "huge_tree": False}


class _Begun(Exception):
    """The root element was reached: nothing can be declared after it."""


class _Declared(Exception):
    pass


def refuse_declarations(data: bytes, name: str) -> None:
    """Refuse a DOCTYPE wherever it stands and in whatever encoding, before anything it declares is read.

    A parser finds it, not a search in the first bytes: a long comment before it or UTF-16 would hide it from that.
    """
    parser = expat.ParserCreate()

    def begun(*_: Any) -> None:
        raise _Begun

    def declared(*_: Any) -> None:
        raise _Declared

    parser.StartElementHandler = begun
    parser.StartDoctypeDeclHandler = declared
    try:
        parser.Parse(data, True)
    except _Begun:
        return
    except _Declared:
        raise _declares(name) from None
    except (expat.ExpatError, LookupError, ValueError, OverflowError):
        pass
    raise _no_xml(name)


def _declares(name: str) -> BadInput:
    return BadInput(f"{name} declares XML entities: no ordinary program does that.", SAVE_AGAIN)


def _unparsed(error: Exception, name: str) -> Exception:
    """Where the parser was given no more memory, the file is not damaged: whoever limits the memory says so."""
    from lxml import etree

    return MemoryError() if getattr(error, "code", None) == etree.ErrorTypes.ERR_NO_MEMORY else _no_xml(name)


def _no_xml(name: str) -> BadInput:
    return BadInput(f"{name} is damaged: what is inside it is no readable XML.", SAVE_AGAIN)


def locked(name: str) -> BadInput:
    return BadInput(f"{name} is locked with a password.", "Save a copy without a password, and add that.")
