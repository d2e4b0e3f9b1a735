"""An answer's text as HTML: what reads well, and that no text whatever becomes anything that runs, loads or leads away."""

from __future__ import annotations

import random
import re
import time
from html import unescape

import pytest
from bs4 import BeautifulSoup
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.web import formulas, highlight
from appliance.web.markdown import clean, to_html

PASSAGES = [{"id": 12}, {"id": 13}]
HARMLESS = {
    "a", "blockquote", "br", "code", "div", "em", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre", "s", "span", "strong",
    "table", "tbody", "td", "th", "thead", "tr", "ul", *formulas.ELEMENTS,
}  # fmt: skip
NAMES = {
    "href", "class", "data-passage", "aria-label", "start", "tabindex", "role", "dir", "scope", *formulas.ATTRIBUTES,
}  # fmt: skip


def html(text: str) -> str:
    return str(to_html(text, PASSAGES))


def soup(text: str) -> BeautifulSoup:
    return BeautifulSoup(html(text), "html.parser")


def shown(text: str) -> str:
    """What a reader sees, with the spaces between lines left out."""
    return " ".join(soup(text).get_text().split())


def is_harmless(made: str) -> None:
    """Nothing but what is listed, however a parser reads it; and what was cleaned once is clean."""
    for parser in ("html.parser", "lxml"):
        for tag in BeautifulSoup(made, parser).find_all(True):
            if parser == "lxml" and tag.name in ("html", "body"):
                continue
            assert tag.name in HARMLESS, tag.name
            assert set(tag.attrs) <= NAMES, tag.attrs
            href = tag.get("href")
            assert href is None or re.match(r"/(?![/\\])|#", str(href)), href
    assert clean(made) == made


# --- formulas --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "maths"),
    [
        ("So $x^2$ is", "<msup><mi>x</mi><mn>2</mn></msup>"),
        (r"So \(a \ne 0\) is", "<mo>≠</mo>"),
        ("the $n$th term", "<mi>n</mi>"),
        ("$5x + 3y = 11$", "<mn>11</mn>"),
        (r"$\frac{1}{2}$", "<mfrac>"),
        (r"$\sqrt[3]{x}$", "<mroot>"),
        (r"$$\sum_{i=1}^n i$$", "<munderover>"),
        (r"$a \pm b$", "<mo>±</mo>"),
        (r"$\text{if } x < y$", "<mo>&lt;</mo>"),
        (r"$\boxed{5}$", 'class="boxed"'),
        (r"$\cancel{5}$", 'class="struck"'),
        (r"$\begin{pmatrix} a & b \\ c & d \end{pmatrix}$", "<mtable>"),
        ("Thus\n\\[\nx =\n- 1\n\\]\nand", "<mo>\u2212</mo>"),
        ("$$\nx\n=\n1\n$$", "<mo>=</mo>"),
        ("- so\n  $$\n  a + b\n  - c\n  $$\n- next", "<mi>c</mi>"),
        ("| a |\n|---|\n| $x^2$ |", "<msup>"),
        ("**$x$** and > $y$", "<strong><math"),
        ("한국어$x$는", "<mi>x</mi>"),
    ],
)
def test_formulas_become_mathml(text: str, maths: str) -> None:
    assert "<math" in html(text) and maths in html(text)
    assert "$" not in shown(text) and "\\" not in shown(text)
    is_harmless(html(text))


@pytest.mark.parametrize(
    "text",
    [
        "It costs $5 and $6.",
        "Between $5-$6, or US$7-$8.",
        "$20 million and $30 million",
        "Pay $5 (or 4€), says Eva$.",
        "$HOME/$USER",
        "a $ b $ c",
        r"\$5 and 6\$",
        "`$x$` and `\\(x\\)`",
        "$\n\nx$",
        r"$\frac{1$",
        r"$\unknowncommand{x}$",
        "$$",
        "$",
        r"\(",
        r"\[ x",
        "$x^$",
        r"$\def\a{\a\a}\a$",
        r"$\href{javascript:alert(1)}{x}$",
        r"$\style{color:red}{x}$",
        r"$\class{top}{x}$",
        r"$\color{red}{x}$",
        r"$\hspace{-99em}x$",
        r"$\rule{99em}{99em}$",
        "$" + "{" * 60 + "x" + "}" * 60 + "$",
        "$x" + "'x" * 1500 + "$",
        "$x" + "^x" * 99 + "$",
        r"$\left( x$",
        "```\n$x$\n```",
        "    $x$",
    ],
)
def test_money_and_what_cannot_be_read_stays_as_it_was_written(text: str) -> None:
    assert "<math" not in html(text)
    plain = re.sub(r"\\([$([])", r"\1", text) if "`" not in text else text.replace("`", "")
    assert "".join(shown(text).split()) == "".join(plain.split())


def test_marks_point_at_passages_beside_formulas_and_code_and_never_in_them() -> None:
    made = soup("It is $x_{[1]} = [2]$ [1], as `a[1]` says [2].\n\n```python\nb[1] = 2\n```")
    assert [link["data-passage"] for link in made.find_all("a")] == ["12", "13"]
    assert made.find("math") and "b[1]" in made.get_text() and "a[1]" in made.get_text()


def test_a_formula_has_room_to_scroll_where_it_is_long() -> None:
    made = soup("$x$ and $" + " + ".join("abcdefgh") + "^{1234567890}$")
    assert [one.parent["class"] for one in made.find_all("math") if one.parent.name == "span"] == [["scrolls"]]
    assert made.find("span", class_="scrolls")["tabindex"] == "0"


def test_formulas_of_one_answer_have_a_limit_together() -> None:
    text = " ".join(f"$x_{{{number}}}{'+ a' * 100}$" for number in range(200))
    started = time.process_time()
    assert 50 < html(text).count("<math") < 120
    assert time.process_time() - started < 5


def test_hostile_formulas_cost_little() -> None:
    """Every command that the converter knows, thrown together: nothing but a formula or its source comes out."""
    from latex2mathml import commands, symbols_parser

    words = [value for value in vars(commands).values() if isinstance(value, str) and value.startswith("\\")]
    words += (
        list(symbols_parser.parse_symbols())[:400] + list("{}[]^_&'()<>|0123456789.xyz ~%#\"") + [r"\\", "&#x3c;", "<script>"]
    )
    dice = random.Random(7)
    started = time.process_time()
    for _ in range(1500):
        formula = "".join(dice.choice(words) + dice.choice(["", "", " ", "{"]) for _ in range(dice.randrange(1, 40)))
        is_harmless(clean(f"<p>{formulas.to_mathml(formula, dice.random() < 0.5)}</p>"))
        assert clean(formulas.to_mathml(formula)) == clean(clean(formulas.to_mathml(formula)))
    assert time.process_time() - started < 60


# --- code and tables -------------------------------------------------------------------------------------------------
def test_code_is_coloured_by_classes() -> None:
    made = soup('```python\n# note\ndef f(x):\n    return "<b>" + 1\n```')
    kinds = {tag["class"][0]: tag.get_text().strip() for tag in made.select("pre code span")}
    assert kinds == {"c": "# note", "k": "return", "f": "f", "s": '"<b>"', "n": "1"}
    assert made.pre["tabindex"] == "0" and made.pre["role"] == "group" and made.pre["dir"] == "ltr"
    assert made.pre.get_text() == '# note\ndef f(x):\n    return "<b>" + 1\n'


@pytest.mark.parametrize("language", ["", "nonsense", "<script>", "python onclick=x", "../../etc/passwd", "brainfuck"])
def test_code_of_any_language_keeps_its_text(language: str) -> None:
    code = "x = 1 & 2 < 3\n"
    assert soup(f"```{language}\n{code}```").pre.get_text() == code


def test_long_code_is_plain_and_quick() -> None:
    started = time.process_time()
    for unit in (
        "a b ",
        "class a ",
        '"\\',
        "import a ",
        "a<b<",
        "${",
        "/*",
        "<script>",
        "a.b\n",
        "a b\n",
        '"\\\n',
        "{\n",
        "&\n",
    ):
        for language in sorted(
            {"java", "javascript", "typescript", "cpp", "go", "csharp", "css", "xml", "html", "php", "swift"}
        ):
            code = unit * (highlight.LONGEST // len(unit))
            assert unescape(re.sub("<[^>]+>", "", highlight.to_html(code, language))) == code
    assert time.process_time() - started < 60
    assert "<span" not in highlight.to_html("x = 1\n" * 2000, "python")


def test_tables_scroll_and_align_without_inline_style() -> None:
    made = soup("| a | b | c |\n|:--|--:|:-:|\n| 1 | 2 | 3 |")
    assert made.div["class"] == ["scrolls"] and made.div["tabindex"] == "0" and made.div["aria-label"] == "Table"
    assert [cell.get("class") for cell in made.find_all("td")] == [None, ["end"], ["middle"]]
    assert {cell["scope"] for cell in made.find_all("th")} == {"col"}


@pytest.mark.parametrize(
    ("text", "levels"),
    [
        ("## a\n### b\n## c", "343"),
        ("# a\n#### b\n###### c\n# d", "3453"),
        ("### a\n# b", "33"),
        ("# a\n## b\n### c\n#### d\n##### e", "34566"),
    ],
)
def test_headings_go_down_step_by_step(text: str, levels: str) -> None:
    assert "".join(re.findall(r"<h(\d)>", html(text))) == levels


# --- links and pictures ----------------------------------------------------------------------------------------------
def test_an_address_outside_is_shown_and_leads_nowhere() -> None:
    made = soup("See [this *page*](https://evil.example/?q=secret) or [https://a.b](https://a.b) or [me](mailto:a@b.c).")
    assert made.find("a") is None
    assert shown("See [this *page*](https://evil.example/?q=x) now") == "See this page (https://evil.example/?q=x) now"
    assert shown("[https://a.b](https://a.b)") == "https://a.b"
    assert len(shown(f"[x](https://a.b/{'y' * 999})")) < 230
    assert soup("[in](/library) [here](#x)").find_all("a")[0]["href"] == "/library"


def test_a_picture_is_its_description() -> None:
    for address in ("https://evil.example/x.png", "/static/x.png", "data:image/svg+xml;base64,AAAA"):
        made = html(f"![a *green* <leaf>]({address})")
        assert "<img" not in made and ("a green &lt;leaf&gt;" in made or address.startswith("data:"))


# --- any text whatever -----------------------------------------------------------------------------------------------
HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)>",
    "<iframe srcdoc='<script>'>",
    "<base href=//e>",
    "<math><mtext><table><mglyph><style><!--</style><img title=--&gt;&lt;img src=1 onerror=alert(1)&gt;>",
    '<math><mi><mglyph><svg><mtext><textarea><path id="</textarea><img onerror=alert(1) src=1>">',
    "<form><math><mtext></form><form><mglyph><style></math><img src onerror=alert(1)>",
    '<svg></p><style><a id="</style><img src=1 onerror=alert(1)>">',
    '<noscript><p title="</noscript><img src=x onerror=alert(1)>">',
    "<math><annotation-xml encoding='text/html'><style><img src onerror=alert(1)></style></annotation-xml></math>",
    '<a href="/x" class="cite" data-passage="99">1</a>',
    "</code></pre><script>alert(1)</script>",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt&#58;alert(1))",
    "[x](\tjavascript:alert(1))",
    "[x](data:text/html,<script>)",
    "[x](vbscript:x)",
    "[x](//evil.example)",
    "[x](/\\evil.example)",
    "[x](\\\\evil.example)",
    "![x](https://evil.example/?q=x)",
    "<https://evil.example>",
    '[a](https://e.x "onmouseover=alert(1)")',
    r"$\text{<img src=x onerror=alert(1)>}$",
    r"$\text{</math><script>alert(1)</script>}$",
    r"$\href{javascript:alert(1)}{x}$",
    r"$\unicode{x3c}$",
    "$<script>$",
    r"$\mathrm{&lt;img src=x&gt;}$",
    r"\(&#60;script&#62;\)",
    "```html\n</code></pre><script>alert(1)</script>\n```",
    '```" onmouseover="alert(1)\nx\n```',
    "`</code><script>`",
    "&lt;script&gt;",
    "&amp;lt;script&amp;gt;",
    "|<script>|\n|-|\n|<img src=x onerror=alert(1)>|",
    "[x]: javascript:alert(1)\n\n[x]",
    "[1](javascript:x)",
    "\x00<script>",
    "<\x00script>",
    "\u2028<script>",
    "\ufeff$x$",
    "\u202e$x$",
    "[[1]](x)",
    "# <script>\n",
    "> <img src=x>",
    "* * *\n<hr onclick=x>",
]
PIECES = st.one_of(
    st.sampled_from(HOSTILE),
    st.sampled_from(
        [
            "$",
            "$$",
            r"\(",
            r"\)",
            r"\[",
            r"\]",
            "```",
            "`",
            "**",
            "|",
            "\n",
            "\n\n",
            "> ",
            "- ",
            "[1]",
            "[",
            "](",
            ")",
            "![",
            "<",
            ">",
            "&",
        ]
    ),
    st.text(max_size=20),
)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_harmless(text: str) -> None:
    is_harmless(html(text))
    is_harmless(html(f"So {text} [1] $x$ {text}\n\n{text}"))


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, max_size=25).map("".join))
def test_any_text_is_harmless(text: str) -> None:
    is_harmless(html(text))


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=200))
def test_plain_words_come_out_as_they_went_in(text: str) -> None:
    """Escaped once, not twice and not never: in code nothing has a meaning."""
    body = re.sub(r"[`\r\x00\n\t]", " ", text).strip() or "x"
    assert soup(f"```\n{body}\n```").pre.get_text().strip() == body


@pytest.mark.parametrize(
    "unit",
    [
        "$",
        "$$",
        "$a",
        r"\(",
        r"\[",
        r"\[" + "\n",
        "$$\n",
        "$$x\n",
        "[",
        "![",
        "[x](",
        "**",
        "*a ",
        "`",
        "> ",
        "- ",
        "|",
        "|a",
        "<",
        "&",
        "[1]",
        "~~",
        "\\",
        "x",
        "_a",
        "```\n",
        "$x$ ",
        r"\(x\)",
        "$\\",
        "{",
        "((",
        "[a][",
        "<a ",
        "|a\n|-\n",
        "#",
    ],
)
def test_long_runs_end_soon(unit: str) -> None:
    started = time.process_time()
    html((unit * 20_000)[:20_000])
    assert time.process_time() - started < 10, "the processor's seconds, many times what it takes"
