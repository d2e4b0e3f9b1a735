"""Code in an answer, coloured on the server: six kinds of words, each a class of the stylesheet.

Hides Pygments, its hundreds of kinds of tokens, and its limits: some of its languages take a second for one long line, so what
is long, or of a language that schools do not teach, stays plain. It runs no code and guesses no language.
"""

from __future__ import annotations

import html
from functools import cache, lru_cache
from typing import Any

LONGEST = 6000  # characters of one piece of code,
LONGEST_LINE = 200  # of one of its lines,
MOST = 24_000  # and of all the code in one answer
KINDS = frozenset({"k", "s", "c", "n", "f", "t"})
_LANGUAGES = {
    "python": "python", "py": "python", "python3": "python", "pycon": "pycon", "javascript": "javascript", "js": "javascript",
    "typescript": "typescript", "ts": "typescript", "java": "java", "c": "c", "cpp": "cpp", "c++": "cpp", "csharp": "csharp",
    "cs": "csharp", "c#": "csharp", "html": "html", "xml": "xml", "css": "css", "sql": "sql", "json": "json", "bash": "bash",
    "sh": "bash", "shell": "bash", "console": "console", "php": "php", "ruby": "ruby", "rb": "ruby", "go": "go", "rust": "rust",
    "kotlin": "kotlin", "swift": "swift", "r": "r", "latex": "latex", "tex": "latex", "ini": "ini", "toml": "toml",
    "yaml": "yaml", "lua": "lua", "scala": "scala", "haskell": "haskell", "vbnet": "vbnet", "pascal": "pascal",
    "matlab": "matlab", "octave": "octave", "makefile": "makefile",
}  # fmt: skip


@lru_cache(256)
def to_html(code: str, language: str) -> str:
    """The code, escaped, with `<span class="...">` around what has a kind."""
    name = _LANGUAGES.get(language.lower())
    if name is None or len(code) > LONGEST or any(len(line) > LONGEST_LINE for line in code.split("\n")):
        return html.escape(code, quote=False)
    return "".join(_parts(name, code))


def _parts(name: str, code: str) -> Any:
    kind, run = "", ""
    for token, text in _lexer(name).get_tokens(code):
        found = _kind(token)
        if found != kind and not text.isspace():
            yield _span(kind, run)
            kind, run = found, ""
        run += text
    yield _span(kind, run)


def _span(kind: str, text: str) -> str:
    plain = html.escape(text, quote=False)
    return f'<span class="{kind}">{plain}</span>' if kind and text else plain


@cache
def _kind(token: Any) -> str:
    from pygments.token import Comment, Keyword, Name, Number, Operator, String

    for family, kind in (
        (Comment, "c"), (String, "s"), (Number, "n"), (Keyword, "k"), (Operator.Word, "k"), (Name.Tag, "k"),
        (Name.Function, "f"), (Name.Class, "f"), (Name.Decorator, "f"), (Name.Builtin, "t"), (Name.Attribute, "t"),
    ):  # fmt: skip
        if token in family:
            return kind
    return ""


@cache
def _lexer(name: str) -> Any:
    from pygments.lexers import get_lexer_by_name

    return get_lexer_by_name(name, stripnl=False, ensurenl=False)
