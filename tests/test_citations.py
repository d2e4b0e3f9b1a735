# ruff: noqa: RUF001 - the quotation marks of all languages are what this is about
"""Citation marks: one stays only where what was quoted before it stands in its passage, however the text comes."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from appliance.citations import LOOK_BACK, Citations
from appliance.engine.handler import Message, Request
from appliance.engine.quotes import Quotes

LEAVES = "Chlorophyll takes in red and blue light\nand reflects green light, which is why leaves look green to us."
RIVERS = "A river carries pebbles and sand. Where it slows down, the river builds a delta. It is called a “bird’s foot”."
NUMBERS = "Of 15 pupils, 5 wrote CO₂ for carbon di\u00adoxide and **2x + 3** for `2x + 3`."
WORLD = (
    "Die Blätter sehen grün aus, weil Chlorophyll rotes Licht aufnimmt. Les feuilles sont vertes à cause de la chlorophylle. "
    "叶绿素吸收红光和\n蓝光，反射绿光。 الكلوروفيل يمتص الضوء الأحمر. הכלורופיל בולע אור אדום. ใบไม้มีสีเขียวเพราะคลอโรฟิลล์ "
    "क्लोरोफिल लाल प्रकाश सोखता है। Хлорофилл поглощает красный свет. Bladen är gröna på grund av klorofyll."
    " 잎은 엽록소 때문에 초록색이다."
)
TEXTS = [LEAVES, RIVERS, NUMBERS, WORLD]


def clean(text: str, texts: list[str] = TEXTS) -> str:
    marks = Citations(texts)
    return marks.feed(text) + marks.flush()


# --- without quotation marks -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Green [1].", "Green [1]."),
        ("Green [5].", "Green."),
        ("Green [0] and [2, 7].", "Green and [2]."),
        ("A list [x] and [", "A list [x] and ["),
        ("`row[7]` and [7]", "`row[7]` and"),
        ("[12345678901234567890123]", ""),
        ("See [1](/a).", "See [1](/a)."),
        ("It's the plants' light, don't you see [2].", "It's the plants' light, don't you see [2]."),
        ("A 5\" pot and a 6' pole [1].", "A 5\" pot and a 6' pole [1]."),
        ("Nothing was quoted [3, 3, 1].", "Nothing was quoted [3, 1]."),
    ],
)
def test_a_mark_without_a_quotation_stays_where_its_number_is_a_passages(text: str, expected: str) -> None:
    assert clean(text) == expected


# --- quoted words ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('The book says "leaves look green to us" [1].', 'The book says "leaves look green to us" [1].'),
        ('It says "the river builds a delta" [1].', 'It says "the river builds a delta" [2].'),
        ('It says "the river builds a delta" [9].', 'It says "the river builds a delta" [2].'),
        ('It says "the river builds a dam" [2].', 'It says "the river builds a dam".'),
        ('"Leaves look green to us." [1, 2]', '"Leaves look green to us." [1]'),
        ('"leaves look green" and "builds a delta" [1]', '"leaves look green" and "builds a delta" [1, 2]'),
        ('"leaves look green" and "builds a dam" [1]', '"leaves look green" and "builds a dam"'),
        ('"leaves look green" [1][2] [1]', '"leaves look green" [1] [1]'),
        (
            '> "Where it slows down, the river\n> builds a delta." [2]',
            '> "Where it slows down, the river\n> builds a delta." [2]',
        ),
        ('> "Where it slows down, the river builds a dam."\n[2]', '> "Where it slows down, the river builds a dam."\n'),
        ('"The river is a dam." So they say there [2].', '"The river is a dam." So they say there.'),
        ('"The river is a dam". They say so. It is dry [2].', '"The river is a dam". They say so. It is dry [2].'),
        ("He reads 'the river builds a dam' there [2].", "He reads 'the river builds a dam' there."),
        ("He reads 'the river builds a delta' there [1].", "He reads 'the river builds a delta' there [2]."),
        ('The light is "reflects green light [1]."', 'The light is "reflects green light [1]."'),
        ('They write "the river builds a dam [2]."', 'They write "the river builds a dam."'),
        ('"A river carries ... and sand" [2]', '"A river carries ... and sand" [2]'),
        ('"[The] river … a delta" [2] and "sand ... pebbles" [2]', '"[The] river … a delta" [2] and "sand ... pebbles"'),
        ('Of "1 pupils" and "5 pupils" [3]', 'Of "1 pupils" and "5 pupils"'),
        ('"5 wrote CO2 for carbon dioxide" [1]', '"5 wrote CO2 for carbon dioxide" [3]'),
        ('Write "`2x + 3` for 2x + 3" [3]', 'Write "`2x + 3` for 2x + 3" [3]'),
        ('`say "nothing here"` is code [1]', '`say "nothing here"` is code [1]'),
        ("\"called a 'bird's foot'\" [1]", "\"called a 'bird's foot'\" [2]"),
        ('"..." and "!" say nothing [1]', '"..." and "!" say nothing [1]'),
    ],
)
def test_a_mark_follows_what_was_quoted_before_it(text: str, expected: str) -> None:
    assert clean(text) == expected


@pytest.mark.parametrize(
    "quoted",
    [
        "„sehen grün aus, weil Chlorophyll“", "»weil Chlorophyll rotes Licht«", "« Les feuilles sont vertes »",
        "‹sont vertes›", "「叶绿素吸收红光和蓝光」", "“反射绿光”", '"吸收红光"', "＂反射绿光＂",
        '"يمتص الضوء الأحمر"', "«يمتص الضوء»", '"בולע אור אדום"', '"สีเขียวเพราะ"', "“लाल प्रकाश सोखता है”",
        "«поглощает красный свет»",
        "”Bladen är gröna”", "‘엽록소 때문에 초록색이다’", "“A cause de la chlorophylle”",
    ],
)  # fmt: skip
def test_quotations_of_every_script_are_found_where_they_stand(quoted: str) -> None:
    stands = quoted != "“A cause de la chlorophylle”"  # an accent is a letter's own: another word
    for said in (f"Text {quoted} [1].", f"{quoted}[1]", f"他说{quoted} [1]。"):
        assert clean(said) == said.replace("[1]", "[4]") if stands else "[" not in clean(said), said
    invented = re.sub(r"(\w)(\w+)", r"\2\1", quoted)
    assert "[" not in clean(f"Text {invented} [4]."), invented


def test_lists_that_open_their_lines_with_marks_keep_them() -> None:
    text = 'Sources:\n[1] "leaves look green"\n[2] "the river builds a delta"\n- [3] "5 wrote CO₂"'
    assert clean(text) == text
    assert clean('As follows: [1] "leaves look green" [2] "builds a delta"') == (
        'As follows: [1] "leaves look green" "builds a delta"'
    ), "words that may belong to the mark before them never move the next one"


def test_a_quotation_longer_than_what_is_looked_at_is_judged_by_its_end() -> None:
    long = "This is a rather long sentence of the book about many things. " * 20 + "And here it ends."
    for opener, closer in ('""', "“”", "«»"):
        said = f"See {opener}{long}{closer} [1]"
        assert clean(said, [long]) == said and clean(said, [LEAVES, long]) == said.replace("[1]", "[2]")
        assert "[" not in clean(said, [long.replace("here it ends", "there it ends")])
    assert clean(f'"leaves look red" {"and so on " * (LOOK_BACK // 10)}[1]').endswith("on [1]"), "too far away"


def test_a_quotation_that_is_never_closed_ends_with_its_paragraph() -> None:
    assert clean('He said "so it is.\n\nLeaves are green [1].') == 'He said "so it is.\n\nLeaves are green [1].'
    assert clean('The "odd mark [1] and then more words of ours [2].') == 'The "odd mark [1] and then more words of ours [2].'


# --- what holds for every text ---------------------------------------------------------------------------------------
PIECES = st.sampled_from(
    ['"', "“", "”", "«", " ", "\n", "\n\n", ". ", "`", "...", "[1]", " [2]", "[1, 2]", "[9]", "[3", "]", "'", "> ",
     "leaves look", "green to us", "the river builds", "a delta", "a dam",
     "reflects green light", "reflects  green\nlight", "「叶绿素吸收」"]
)  # fmt: skip
ANSWERS = st.lists(PIECES, max_size=40).map("".join)


LISTS = st.lists(st.sampled_from(["1", "2", "39", ",", ", ", "   ", "\t"]), max_size=60).map(
    lambda parts: f"[{''.join(parts)}]"
)
CODE = st.sampled_from(["It`s so. ", "`x` ", "``a`b`` ", "\n\n", "\n> \n", "```\n", ' "leaves are red" ', "so "])


@given(st.lists(LISTS | CODE))
@hypothesis_settings(deadline=None)
def test_long_lists_and_code_are_the_same_letter_by_letter(parts: list[str]) -> None:
    text, pieces = "".join(parts), Citations(TEXTS)
    assert "".join(pieces.feed(letter) for letter in text) + pieces.flush() == clean(text)


def test_a_number_between_many_spaces_is_a_mark_like_any_other() -> None:
    assert clean("The vector is [            5] and so on [          \t1   ].") == "The vector is and so on [1]."


@pytest.mark.parametrize("before", ["It`s so.", "A ` alone.", "`never closed"])
def test_a_stray_backtick_lets_no_invention_through(before: str) -> None:
    invented = 'It says "totally invented words here"'
    assert clean(f"{before}\n\n{invented} [1].") == f"{before}\n\n{invented}."


@given(ANSWERS | st.text(alphabet="ab `[]12,39 \"“”.\n'", max_size=80), st.lists(st.integers(1, 9), max_size=40))
@example('""`> \n\n[9]', [1, 6])  # an empty line between the pieces, after code that was never closed
@hypothesis_settings(deadline=None)
def test_marks_do_not_depend_on_how_the_text_comes(text: str, cuts: list[int]) -> None:
    pieces = Citations(TEXTS)
    streamed, at = "", 0
    for cut in cuts:
        streamed += pieces.feed(text[at : at + cut])
        at += cut
    assert streamed + pieces.feed(text[at:]) + pieces.flush() == clean(text)


@given(ANSWERS)
@hypothesis_settings(deadline=None)
def test_nothing_but_marks_is_ever_changed(text: str) -> None:
    def bare(answer: str) -> str:
        left = re.sub(r" *\[\s*\d+(?:\s*,\s*\d+)*\s*\]", "", answer)
        return left if left == answer else bare(left)  # a mark within brackets leaves another behind

    assert bare(clean(text)) == bare(text)
    # Brackets in code are no marks, and where code begins and ends is told by the tests of code; nor are brackets in brackets.
    if "`" in text or re.search(r"\[[^\]]*\[", text):
        return
    numbers = {int(number) for mark in re.findall(r"\[[\d, ]+\]", clean(text)) for number in re.findall(r"\d+", mark)}
    assert numbers <= set(range(1, len(TEXTS) + 1))


@given(st.sampled_from(TEXTS), st.integers(0, 60), st.integers(2, 14), st.integers(1, 5), st.booleans())
@hypothesis_settings(deadline=None)
def test_whatever_is_quoted_ends_at_a_passage_that_holds_it(
    text: str, start: int, size: int, number: int, spoilt: bool
) -> None:
    def plain(passage: str) -> list[str]:
        return re.sub(r"[\"“”’`*\u00ad]", "", passage).split()

    words = plain(text)[start : start + size]
    if len(words) < 2:
        return
    if spoilt:
        words.insert(1, "qqq")
    span = " ".join(words)
    answer = clean(f'It says "{span}" [{number}] there.')
    held = [str(place) for place, other in enumerate(TEXTS, 1) if f" {span} " in f" {' '.join(plain(other))} "]
    assert bool(held) != spoilt
    assert answer.endswith(tuple(f'" [{one}] there.' for one in held) if held else '" there.'), answer


@dataclass(frozen=True, slots=True)
class Page:
    text: str
    document: str = "d"
    title: str = "Our book"
    place: str = "p. 1"


WORDS = st.sampled_from(
    ["river", "Delta", "sand.", "\n", "  ", "Dr.", '"so"', "“no”", "(a)", "?", "!", "How To:", "1.", "7.5%", "e.g.", "É", "*b*",
     "The", "is", "it's", "‘one", "two’", "...", "[1]", "[sic]", "5\"", "plants'"]
)  # fmt: skip


@given(st.lists(st.lists(WORDS, max_size=60), min_size=1, max_size=3), st.lists(WORDS, min_size=1, max_size=5))
@example([["Delta", "[1]", "river", "sand."]], ["river"])  # a document with marks of its own
@hypothesis_settings(deadline=None)
def test_what_the_machine_quotes_itself_keeps_its_marks(texts: list[list[str]], question: list[str]) -> None:
    async def nothing(_question: str) -> list[Any]:
        return []

    async def answer() -> str:
        request = Request([Message("user", asked)], passages=[Page(" ".join(words)) for words in texts])
        return "".join([chunk.text async for chunk in Quotes(nothing).generate(request)])

    if not (asked := " ".join(question)).strip():
        return
    said = asyncio.run(answer())
    outer = r"\[(\d+)\]$"
    assert re.findall(outer, clean(said, [" ".join(words) for words in texts]), re.M) == re.findall(outer, said, re.M)


@pytest.mark.parametrize(
    "text",
    [r"On $[0, 1]$ it grows", r"where $x \in [0, 5]$", r"\([2, 3]\)", r"\[[2, 3]\]", r"$\left[0, 1\right]$", r"$a_[7]$"],
)
def test_an_interval_in_a_formula_is_no_mark(text: str) -> None:
    for size in (1, 3, 99):
        marks = Citations([LEAVES])
        pieces = [marks.feed(text[at : at + size]) for at in range(0, len(text), size)]
        assert "".join([*pieces, marks.flush()]) == text


def test_a_mark_beside_money_or_a_formula_is_still_judged() -> None:
    marks = Citations([LEAVES])
    text = "It costs 5$ [7], or $x^2$ [8] and [1]."
    assert marks.feed(text) + marks.flush() == "It costs 5$, or $x^2$ and [1]."
