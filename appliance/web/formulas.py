r"""Formulas in an answer: `$...$`, `$$...$$`, `\(...\)` and `\[...\]` as MathML, which browsers show without a script.

Hides where a formula ends, what is money and no formula, and which parts of MathML a page may hold: what says how it looks, in
small measures, and nothing that links, colours, hides or runs. What cannot be read, is too long or too deep stays as it was
written, so nothing that was said is lost. Macros are not taken: a few lines of them would grow to gigabytes.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

    from markdown_it import MarkdownIt
    from markdown_it.renderer import RendererHTML
    from markdown_it.rules_block import StateBlock
    from markdown_it.rules_inline import StateInline

LONGEST = 2000  # characters of one formula,
MOST = 30_000  # and of all those in one answer
DEEPEST = 40
LINES = 60
WIDE = 30  # characters that surely fit into a line of the smallest phone
# Elements with the number of children that each must have; None is any.
ELEMENTS: dict[str, int | None] = {
    "math": None, "mrow": None, "mi": 0, "mn": 0, "mo": 0, "mtext": 0, "mspace": 0, "mfrac": 2, "msqrt": None, "mroot": 2,
    "msup": 2, "msub": 2, "msubsup": 3, "munder": 2, "mover": 2, "munderover": 3, "mtable": None, "mtr": None, "mtd": None,
    "mstyle": None, "mpadded": None, "mphantom": None,
}  # fmt: skip
_WORD = re.compile(r"[a-z-]{1,20}(?: [a-z-]{1,20}){0,9}")
_LENGTH = re.compile(r"[+-]?(?:[0-2](?:\.\d{1,4})?|\.\d{1,4})(?:em|ex)|[+-]?\d{1,2}(?:\.\d{1,3})?(?:px|pt|mu)|[+-]?\d")
_LENGTHS = re.compile(r"(?:[0-2](?:\.\d{1,3})?em|\d{1,2}pt)(?: (?:[0-2](?:\.\d{1,3})?em|\d{1,2}pt)){0,9}")
ATTRIBUTES: dict[str, re.Pattern[str]] = {
    **dict.fromkeys(
        ("display", "mathvariant", "stretchy", "fence", "form", "displaystyle", "accent", "accentunder", "movablelimits",
         "largeop", "symmetric", "columnalign", "columnlines", "rowlines"), _WORD,
    ),
    **dict.fromkeys(
        ("width", "height", "depth", "voffset", "lspace", "rspace", "linethickness", "minsize", "maxsize"), _LENGTH
    ),
    "scriptlevel": re.compile(r"[0-2]"),
    "columnspacing": _LENGTHS,
    "rowspacing": _LENGTHS,
}  # fmt: skip
_REFUSED = re.compile(
    r"\\(?:[egx]?def|let|(?:re|provide)?newcommand|newenvironment|href|url|style|class|cssId|id|bbox|unicode|require|include\w*"
    r"|input|color|textcolor|colorbox|fcolorbox|hskip|kern|mkern|hspace|mspace|mskip|rule|raise|lower|moveleft|moveright)(?![A-Za-z])"
)
_COMMAND = re.compile(r"\\(?:text\w*|mbox|operatorname\*?|begin|end)\s*\{[^{}]*\}|\\[A-Za-z]+")
_WORDS = re.compile(r"[^\W\d_]{3,}")
_AFTER = re.compile(r"(?![0-9A-Za-z])|(?:th|st|nd|rd|s)\b")
_CLOSING = {"$$": "$$", r"\[": r"\]", r"\(": r"\)", "$": "$"}
# What may stand in a formula within a line; what follows it has to be the closing mark. No two of its ways begin alike, so that
# it never goes back; a possessive repeat would say so, but Debian 12's Python, 3.11.2, misreads those.
_INNER = re.compile(rf"(?:[^\\$\n]|\\(?![)\]])[\s\S]|\n(?!\n)){{0,{LONGEST // 2}}}")
_BLOCK = re.compile(r"\$\$|\\\[")


@lru_cache(512)
def to_mathml(formula: str, block: bool = False) -> str:
    """MathML for a formula without its marks; "" where it cannot be read."""
    if not formula.strip() or len(formula) > LONGEST or _too_deep(formula) or _REFUSED.search(formula):
        return ""
    from latex2mathml.converter import convert_to_element

    try:
        made = convert_to_element(formula, display="block" if block else "inline")
        return "".join(_written(made, 0))
    except Exception:  # noqa: BLE001 - it raises whatever it meets: StopIteration, IndexError, KeyError, RecursionError
        return ""


def _too_deep(formula: str) -> bool:
    """Also of what opens without a brace: `x^x^x`, `\\left(`, `\\sqrt\\sqrt`."""
    depth = most = 0
    for sign in formula:
        depth += (sign == "{") - (sign == "}")
        most = max(most, depth)
    chains = [len(run[0]) // 2 for run in re.finditer(r"(?:[\^_][^{\\]?){2,}", formula)]
    opened = max(formula.count(word) for word in (r"\left", r"\begin", r"\sqrt", r"\frac", r"\not"))
    return most > DEEPEST or opened > 2 * DEEPEST or max(chains, default=0) > DEEPEST


class _Unreadable(Exception):
    """The formula has no shape that a browser can show."""


def _written(element: Element, depth: int) -> Iterator[str]:
    """Our own writer: only what is listed, and every text escaped."""
    tag, children = element.tag, list(element)
    if depth > 3 * DEEPEST:
        raise _Unreadable
    kept = ""
    if tag not in ELEMENTS:
        frame = "boxed" if element.get("notation") == "box" else "struck"
        kept = f' class="{frame}"' if tag == "menclose" else ""
        tag = "mrow"
    count = ELEMENTS[tag]
    if count is not None and len(children) != count:
        raise _Unreadable
    text = html.unescape(element.text or "")
    if text.startswith("\\") or "\x00" in text or (text.strip() and count != 0):
        raise _Unreadable  # a command that it does not know
    if tag == "mi" and len(text) == 1 and unicodedata.category(text)[0] == "S":
        tag = "mo"  # plus or minus, an arrow: it takes the space of an operator
    kept += "".join(
        f' {name}="{html.escape(value)}"'
        for name, value in element.attrib.items()
        if name in ATTRIBUTES and ATTRIBUTES[name].fullmatch(value)
    )
    yield f"<{tag}{kept}>{html.escape(text, quote=False)}"
    for child in children:
        yield from _written(child, depth + 1)
    yield f"</{tag}>"


# --- where formulas are ----------------------------------------------------------------------------------------------
def add_formulas(parser: MarkdownIt) -> None:
    """Teach a parser to read formulas. Its `env` holds "words", and gets "formulas": how many characters are left."""
    parser.inline.ruler.before("escape", "formula", _inline)
    parser.block.ruler.before("fence", "formula_block", _block, {"alt": ["paragraph", "reference", "blockquote", "list"]})
    parser.add_render_rule("formula", _render)
    parser.add_render_rule("formula_block", _render)


def _inline(state: StateInline, silent: bool) -> bool:
    source, start = state.src, state.pos
    if source[start] not in "$\\":
        return False
    mark = source[start : start + 2]
    if mark not in _CLOSING:
        mark = source[start]
    if mark not in _CLOSING:
        return False
    end = _end(source, start + len(mark), _CLOSING[mark])
    if end < 0 or end + len(mark) > state.posMax:
        return False
    formula = source[start + len(mark) : end]
    if mark == "$" and not _is_formula(formula, source[start - 1 : start] if start else "", source[end + 1 : end + 4]):
        return False
    made = _make(state.env, formula, mark in ("$$", r"\["))
    if not made:
        return False
    if not silent:
        token = state.push("formula", "math", 0)
        token.content, token.meta = made, {"size": len(formula)}
    state.pos = end + len(mark)
    return True


def _end(source: str, at: int, closing: str) -> int:
    """Where the closing mark stands; -1 where there is none on the way, or an empty line before it."""
    if source.find(closing, at) < 0:
        return -1
    inner = _INNER.match(source, at)
    end = inner.end() if inner else at
    return end if source.startswith(closing, end) else -1


def _is_formula(formula: str, before: str, after: str) -> bool:
    """Whether what stands between two dollar signs is a formula, and not what lies between two sums of money."""
    if not formula or formula[0].isspace() or formula[-1].isspace() or (before.isascii() and before.isalnum()):
        return False
    if not _AFTER.match(after):
        return False
    return not (formula[0].isdigit() and _WORDS.search(_COMMAND.sub(" ", formula)))


def _make(env: Any, formula: str, block: bool) -> str:
    left = env.get("formulas", MOST)
    if len(formula) > left:
        return ""
    env["formulas"] = left - len(formula)
    return to_mathml(formula.strip(), block)


def _block(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """A formula on lines of its own: whatever stands in it is no list, no heading and no code."""
    if state.is_code_block(start):
        return False
    first = state.src[state.bMarks[start] + state.tShift[start] : state.eMarks[start]]
    opening = _BLOCK.match(first)
    if opening is None:
        return False
    closing = _CLOSING[opening[0]]
    lines = [first[opening.end() :]]
    line = start
    while closing not in lines[-1]:
        line += 1
        if line >= end or line - start > LINES or state.sCount[line] < state.blkIndent:
            return False
        lines.append(state.src[state.bMarks[line] + state.tShift[line] : state.eMarks[line]])
        if not lines[-1].strip():
            return False
    lines[-1], _, rest = lines[-1].partition(closing)
    if rest.strip(" .,;"):
        return False
    made = _make(state.env, "\n".join(lines), True)
    if not made:
        return False
    if not silent:
        token = state.push("formula_block", "math", 0)
        token.content, token.block, token.map = made, True, [start, line + 1]
        token.info, token.meta = rest.strip(), {"size": max(map(len, lines))}
    state.line = line + 1
    return True


def _render(_renderer: RendererHTML, tokens: Any, index: int, _options: Any, env: Any) -> str:
    """A long formula scrolls by itself, also by keyboard: browsers do not break one into lines."""
    token = tokens[index]
    made = str(token.content)
    if token.meta["size"] > WIDE:
        label = html.escape(env["words"].gettext("Formula"))
        made = f'<span class="scrolls" tabindex="0" role="group" aria-label="{label}">{made}</span>'
    return f"<p>{made}{html.escape(token.info)}</p>\n" if token.type == "formula_block" else made
