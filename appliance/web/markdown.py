"""An answer's Markdown as HTML that is safe to show, with `[1]` turned into a link that opens the passage.

Two walls: markdown-it with raw HTML and images off, and nh3 over the finished HTML with a short allow-list. The content policy
of the pages is the third. Links lead only to this box.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import nh3
from markdown_it import MarkdownIt
from markupsafe import Markup

if TYPE_CHECKING:
    from markdown_it.renderer import RendererHTML
    from markdown_it.rules_inline import StateInline

_MARK = re.compile(r"\[(\s*\d{1,3}(?:\s*,\s*\d{1,3})*\s*)\](?!\()")
_TAGS = {
    "a", "blockquote", "br", "code", "em", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre", "s", "strong",
    "table", "tbody", "td", "th", "thead", "tr", "ul",
}  # fmt: skip
_ATTRIBUTES: dict[str, set[str]] = {"*": set(), "a": {"href", "class", "data-passage", "aria-label"}, "ol": {"start"}}


def to_html(text: str, passages: Sequence[dict[str, Any]] = ()) -> Markup:
    """`passages` in the order of their numbers; a number beyond them stays out."""
    html = _parser().render(text, {"passages": passages})
    clean = nh3.clean(
        html,
        tags=_TAGS,
        attributes=_ATTRIBUTES,
        url_schemes=set(),
        link_rel=None,
        attribute_filter=lambda tag, name, value: _own_link(value) if (tag, name) == ("a", "href") else value,
    )
    return Markup(clean)


@cache
def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "linkify": False, "maxNesting": 20}).enable(["table", "strikethrough"])
    parser.disable(["image", "html_block", "html_inline", "autolink"])
    parser.inline.ruler.before("link", "citation", _citation)
    parser.add_render_rule("citation", _render_citation)
    parser.core.ruler.push("small_headings", _small_headings)
    parser.validateLink = lambda url: _own_link(url) is not None  # type: ignore[method-assign]
    return parser


def _own_link(url: str) -> str | None:
    return url if re.match(r"/(?![/\\])", url) or url.startswith("#") else None


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
    return f'<a class="cite" href="/passage/{id}#here" data-passage="{id}" aria-label="Source {number}">{number}</a>'


def _small_headings(state: Any) -> None:
    """The page has its own h1 and h2; an answer starts below them."""
    for token in state.tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + 2)}"
