"""Formulas as one line of text: Office's OMML and the MathML of web pages and OpenDocument.

A passage is shown and searched as plain text, so a half is `1/2`, a square `x^2`, a root `√(x+1)`: what a pupil would type.
Hides both vocabularies. Layout (spacing, sizes, colours) is left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from appliance.knowledge.readers.archive import attribute, local

MADE_OF_PARTS = 60  # formulas inside one another; what is deeper is written without its structure


def linear(element: Any, depth: int = 0) -> str:
    """The formula as text; also of one part of a formula."""
    if depth > MADE_OF_PARTS:
        return " ".join("".join(element.itertext()).split())
    name = local(element)
    write = _WRITERS.get(name)
    if write is not None:
        return write(element, depth + 1)
    if name in _LEAVES:
        return _leaf(name, str(element.text or ""))
    return "" if name in _SILENT or name.endswith("Pr") else _joined(element, depth)


def _leaf(name: str, text: str) -> str:
    text = text if name == "t" else " ".join(text.split())
    text = text.replace("\u2061", " ").translate(_INVISIBLE)
    return f"{text} " if name == "mi" and len(text) > 1 and text.isalpha() else text


def _joined(element: Any, depth: int) -> str:
    """All parts one after the other. A fraction keeps its distance: 2 and a half is not 21/2."""
    return re.sub(r"\s+", " ", "".join(linear(child, depth + 1) for child in element)).strip()


def _part(element: Any, name: str, depth: int) -> str:
    found = next((child for child in element if local(child) == name), None)
    return "" if found is None else linear(found, depth).strip()


def _parts(element: Any, depth: int) -> list[str]:
    return [linear(child, depth).strip() for child in element if local(child)]


def _setting(element: Any, name: str, default: str) -> str:
    """A property such as the sign of a sum: <m:naryPr><m:chr m:val="..."/>."""
    for child in element:
        if local(child).endswith("Pr"):
            for entry in child:
                if local(entry) == name:
                    return attribute(entry, "val")
    return default


def _group(text: str) -> str:
    return text if not text or re.fullmatch(r"-?[\w.,]+|\([^()]*\)|\W", text) else f"({text})"


def _over(top: str, bottom: str) -> str:
    return f" {_group(top)}/{_group(bottom)} "


def _scripted(base: str, below: str = "", above: str = "") -> str:
    return f"{base}{'_' + _group(below) if below else ''}{'^' + _group(above) if above else ''}"


def _root(inner: str, degree: str) -> str:
    return f"√[{degree}]{_group(inner)}" if degree else f"√{_group(inner)}"


def _of_three(write: Callable[[str, str, str], str]) -> Callable[[Any, int], str]:
    """MathML says what a part is by its position: base, below, above."""

    def written(element: Any, depth: int) -> str:
        first, second, third = [*_parts(element, depth), "", "", ""][:3]
        return write(first, second, third)

    return written


# --- OMML ------------------------------------------------------------------------------------------------------------
def _delimited(element: Any, depth: int) -> str:
    inner = [linear(child, depth).strip() for child in element if local(child) == "e"]
    opening, closing = _setting(element, "begChr", "("), _setting(element, "endChr", ")")
    return f"{opening}{(_setting(element, 'sepChr', '|') or ' ').join(inner)}{closing}"


def _nary(element: Any, depth: int) -> str:
    sign = _scripted(_setting(element, "chr", "∫"), _part(element, "sub", depth), _part(element, "sup", depth))
    return f"{sign} {_part(element, 'e', depth)}"


def _matrix(element: Any, depth: int) -> str:
    rows = [row for row in element if local(row) in ("mr", "mtr", "mlabeledtr")]
    return f"[{'; '.join(', '.join(part for part in _parts(row, depth) if part) for row in rows)}]"


def _stacked(element: Any, depth: int) -> str:
    return "; ".join(linear(child, depth).strip() for child in element if local(child) == "e")


# --- MathML ----------------------------------------------------------------------------------------------------------
def _fenced(element: Any, depth: int) -> str:
    separator = (attribute(element, "separators", ",").strip() or " ")[0]
    return attribute(element, "open", "(") + f"{separator} ".join(_parts(element, depth)) + attribute(element, "close", ")")


def _semantics(element: Any, depth: int) -> str:
    shown = [child for child in element if local(child) not in ("", "annotation", "annotation-xml")]
    text = linear(shown[0], depth) if shown else ""
    return text or " ".join(str(child.text or "") for child in element if local(child) == "annotation").strip()


def _mathematics(element: Any, depth: int) -> str:
    return _joined(element, depth) or attribute(element, "alttext")


_INVISIBLE = {0x2062: None, 0x2063: None, 0x2064: None}
_LEAVES = {"t", "mi", "mn", "mo", "mtext", "ms"}
_SILENT = {"annotation", "annotation-xml", "mphantom", "phant", "ctrlPr"}
_WRITERS: dict[str, Callable[[Any, int], str]] = {
    "f": lambda e, d: _over(_part(e, "num", d), _part(e, "den", d)),
    "sSup": lambda e, d: _scripted(_part(e, "e", d), "", _part(e, "sup", d)),
    "sSub": lambda e, d: _scripted(_part(e, "e", d), _part(e, "sub", d)),
    "sSubSup": lambda e, d: _scripted(_part(e, "e", d), _part(e, "sub", d), _part(e, "sup", d)),
    "sPre": lambda e, d: _scripted("", _part(e, "sub", d), _part(e, "sup", d)) + _part(e, "e", d),
    "limLow": lambda e, d: _scripted(_part(e, "e", d), _part(e, "lim", d)),
    "limUpp": lambda e, d: _scripted(_part(e, "e", d), "", _part(e, "lim", d)),
    "rad": lambda e, d: _root(_part(e, "e", d), _part(e, "deg", d)),
    "func": lambda e, d: f"{_part(e, 'fName', d)} {_part(e, 'e', d)}",
    "d": _delimited,
    "nary": _nary,
    "m": _matrix,
    "eqArr": _stacked,
    "mfrac": _of_three(lambda top, bottom, _: _over(top, bottom)),
    "msup": _of_three(lambda base, above, _: _scripted(base, "", above)),
    "mover": _of_three(lambda base, above, _: _scripted(base, "", above)),
    "msub": _of_three(lambda base, below, _: _scripted(base, below)),
    "munder": _of_three(lambda base, below, _: _scripted(base, below)),
    "msubsup": _of_three(_scripted),
    "munderover": _of_three(_scripted),
    "msqrt": lambda e, d: _root(_joined(e, d), ""),
    "mroot": _of_three(lambda inner, degree, _: _root(inner, degree)),
    "mfenced": _fenced,
    "mtable": _matrix,
    "mspace": lambda _e, _d: " ",
    "semantics": _semantics,
    "math": _mathematics,
}
