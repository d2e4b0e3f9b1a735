"""An answer's Markdown as HTML that is safe to show: formulas, coloured code, tables, and `[1]` as a link that opens a passage.

Two walls: markdown-it with raw HTML off, and nh3 over the finished HTML with a short allow-list. The content policy of the
pages is the third. Links lead only to this box. An address outside is shown as words, never as a link: there is no internet to
follow it to, no policy of a browser limits where a click leads, and who clicks would carry along whatever a document had the
model write into that address. A picture is shown as its description, wherever it would have come from.
"""

from __future__ import annotations

import gettext
import re
from collections.abc import Sequence
from functools import cache
from html import escape
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import nh3
from markdown_it import MarkdownIt
from markupsafe import Markup

from appliance.web import formulas, highlight

if TYPE_CHECKING:
    from markdown_it.renderer import RendererHTML
    from markdown_it.rules_inline import StateInline

LONGEST_ADDRESS = 200
_MARK = re.compile(r"\[(\s*\d{1,3}(?:\s*,\s*\d{1,3})*\s*)\](?!\()")
_OUTSIDE = re.compile(r"(?:https?://|mailto:)", re.I)
_TAGS = {
    "a", "blockquote", "br", "code", "div", "em", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre", "s", "span", "strong",
    "table", "tbody", "td", "th", "thead", "tr", "ul", *formulas.ELEMENTS,
}  # fmt: skip
_SCROLLS = {"class", "tabindex", "role", "aria-label"}
_ATTRIBUTES: dict[str, set[str]] = {
    "*": set(), "a": {"href", "class", "data-passage", "aria-label"}, "ol": {"start"}, "div": _SCROLLS,
    "pre": _SCROLLS | {"dir"}, "span": _SCROLLS, "th": {"class", "scope"}, "td": {"class"},
    **{tag: {"class", *formulas.ATTRIBUTES} for tag in formulas.ELEMENTS},
}  # fmt: skip
_VALUES: dict[str, frozenset[str]] = {
    "class": frozenset({"cite", "scrolls", "address", "end", "middle", "boxed", "struck"}) | highlight.KINDS,
    "tabindex": frozenset({"0"}),
    "role": frozenset({"group"}),
    "dir": frozenset({"ltr"}),
    "scope": frozenset({"col"}),
}
_ENGLISH = gettext.NullTranslations()


def to_html(text: str, passages: Sequence[dict[str, Any]] = (), words: gettext.NullTranslations = _ENGLISH) -> Markup:
    """`passages` in the order of their numbers; a number beyond them stays out. words: of the reader's language."""
    return Markup(clean(_parser().render(text, {"passages": passages, "words": words})))


def clean(html: str) -> str:
    """Only what an answer may hold. Clean HTML stays as it is."""
    return nh3.clean(
        html, tags=_TAGS, attributes=_ATTRIBUTES, url_schemes=set(), link_rel=None, attribute_filter=_attribute
    )  # fmt: skip


def _attribute(tag: str, name: str, value: str) -> str | None:
    if name == "href":
        return _own_link(value)
    if name in _VALUES:
        return value if value in _VALUES[name] else None
    pattern = formulas.ATTRIBUTES.get(name) if tag in formulas.ELEMENTS else None
    return value if pattern is None or pattern.fullmatch(value) else None


@cache
def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "linkify": False, "maxNesting": 20}).enable(["table", "strikethrough"])
    parser.disable(["html_block", "html_inline", "autolink"])
    formulas.add_formulas(parser)
    parser.inline.ruler.before("link", "citation", _citation)
    parser.core.ruler.push("small_headings", _small_headings)
    parser.core.ruler.push("outside", _outside)
    for name, rule in {
        "citation": _render_citation, "address": _render_address, "image": _render_image, "fence": _render_code,
        "code_block": _render_code, "table_open": _render_table, "table_close": _render_table_end, "th_open": _render_cell,
        "td_open": _render_cell,
    }.items():  # fmt: skip
        parser.add_render_rule(name, rule)
    parser.validateLink = _is_link  # type: ignore[method-assign]
    return parser


# --- links and pictures ----------------------------------------------------------------------------------------------
def _own_link(url: str) -> str | None:
    return url if re.match(r"/(?![/\\])", url) or url.startswith("#") else None


def _is_link(url: str) -> bool:
    """What is read as a link or a picture at all; the rest stays as it was written."""
    return _own_link(url) is not None or _OUTSIDE.match(url) is not None


def _outside(state: Any) -> None:
    """Links that lead out become their words, with the address behind them."""
    for block in state.tokens:
        if block.children:
            kept: list[Any] = []
            leaving: list[tuple[str, int]] = []
            for token in block.children:
                if token.type == "link_open" and _own_link(token.attrGet("href") or "") is None:
                    leaving.append((token.attrGet("href") or "", len(kept)))
                elif token.type == "link_close" and leaving:
                    address, start = leaving.pop()
                    said = "".join(one.content for one in kept[start:]).strip()
                    token.type, token.tag, token.nesting = "address", "", 0
                    token.content = "" if said == address else address
                    kept.append(token)
                else:
                    kept.append(token)
            block.children = kept


def _render_address(_renderer: RendererHTML, tokens: Sequence[Any], index: int, _options: Any, _env: Any) -> str:
    address = unquote(tokens[index].content) if tokens[index].content else ""
    short = address if len(address) <= LONGEST_ADDRESS else f"{address[:LONGEST_ADDRESS]}…"
    return f' <span class="address">({escape(short)})</span>' if short else ""


def _render_image(renderer: RendererHTML, tokens: Sequence[Any], index: int, options: Any, env: Any) -> str:
    return escape(renderer.renderInlineAsText(tokens[index].children or [], options, env))


# --- citations and headings ------------------------------------------------------------------------------------------
def _citation(state: StateInline, silent: bool) -> bool:
    mark = _MARK.match(state.src, state.pos, state.posMax)
    if mark is None or state.linkLevel:
        return False
    if not silent:
        for number in mark[1].split(","):
            token = state.push("citation", "", 0)
            token.meta = {"number": int(number)}
    state.pos = mark.end()
    return True


def _render_citation(_renderer: RendererHTML, tokens: Sequence[Any], index: int, _options: Any, env: Any) -> str:
    number, passages = tokens[index].meta["number"], env["passages"]
    if not 1 <= number <= len(passages):
        return ""
    id = int(passages[number - 1]["id"])
    label = escape(env["words"].gettext("Source %(number)s") % {"number": number})
    return f'<a class="cite" href="/passage/{id}#here" data-passage="{id}" aria-label="{label}">{number}</a>'


def _small_headings(state: Any) -> None:
    """The page has its own h1 and h2: an answer starts with h3, wherever it began itself, and skips no step on the way down."""
    headings = [token for token in state.tokens if token.type in ("heading_open", "heading_close")]
    first = min((int(token.tag[1]) for token in headings), default=1)
    level = 2
    for token in headings:
        if token.type == "heading_open":
            level = min(int(token.tag[1]) - first + 3, level + 1, 6)
        token.tag = f"h{level}"


# --- what is wider than the column: it scrolls, also by keyboard -----------------------------------------------------
# A group and no region: a region is a landmark, and a long chat would be full of landmarks with the same name.
def _render_code(_renderer: RendererHTML, tokens: Sequence[Any], index: int, _options: Any, env: Any) -> str:
    code, label = tokens[index].content, escape(env["words"].gettext("Code"))
    language = (tokens[index].info.split() or [""])[0]
    left = env.get("code", highlight.MOST)
    env["code"] = left - len(code)
    inner = highlight.to_html(code, language) if len(code) <= left else escape(code, quote=False)
    return f'<pre class="scrolls" tabindex="0" role="group" aria-label="{label}" dir="ltr"><code>{inner}</code></pre>\n'


def _render_table(_renderer: RendererHTML, _tokens: Sequence[Any], _index: int, _options: Any, env: Any) -> str:
    label = escape(env["words"].gettext("Table"))
    return f'<div class="scrolls" tabindex="0" role="group" aria-label="{label}"><table>\n'


def _render_table_end(_renderer: RendererHTML, _tokens: Sequence[Any], _index: int, _options: Any, _env: Any) -> str:
    return "</table></div>\n"


def _render_cell(_renderer: RendererHTML, tokens: Sequence[Any], index: int, _options: Any, _env: Any) -> str:
    """markdown-it aligns by inline style, which the content policy refuses."""
    token = tokens[index]
    side = {"text-align:right": "end", "text-align:center": "middle"}.get(str(token.attrGet("style") or ""), "")
    known = f' class="{side}"' if side else ""
    return f'<th scope="col"{known}>' if token.tag == "th" else f"<td{known}>"
