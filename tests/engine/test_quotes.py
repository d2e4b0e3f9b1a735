"""Quoting: word for word, cited, and honest where there is nothing to quote."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from appliance.engine.handler import Chunk, Handler, Message, Request
from appliance.engine.quotes import NOT_COVERED, Quotes, sentences
from appliance.errors import ModelUnavailable, Unsupported


@dataclass(frozen=True, slots=True)
class Page:
    text: str
    document: str = "d"
    title: str = "Our book"
    place: str = "p. 1"


PLANTS = Page(
    "Photosynthesis\nGreen plants make sugar from sunlight, water and\ncarbon dioxide. This process is called photosynthesis. "
    "Dr. Ingenhousz described photosynthesis in 1779.\nCheck yourself\nWhat is photosynthesis?"
)
RIVERS = Page("A river carries pebbles and sand. Where it slows down, a river builds a delta.\nTry it: name a river.")
JOINED = Page(PLANTS.text.replace("and\ncarbon", "and carbon"))


async def nothing(question: str) -> Sequence[Page]:
    raise AssertionError(f"nobody should search for {question!r}")


async def _chunks(quotes: Quotes, request: Request) -> list[Chunk]:
    return [chunk async for chunk in quotes.generate(request)]


async def _answer(question: str, passages: Sequence[Page], quotes: Quotes | None = None, **more: Any) -> str:
    request = Request(messages=[Message("user", question)], passages=passages, **more)
    return "".join(chunk.text for chunk in await _chunks(quotes or Quotes(nothing), request))


def _quoted(answer: str) -> list[tuple[str, int]]:
    return [(text, int(number)) for text, number in re.findall(r'^> "(.*)" \[(\d+)\]$', answer, re.M)]


async def test_the_sentence_that_answers_is_quoted_with_its_passage() -> None:
    answer = await _answer("Where does a river build a delta?", [JOINED, RIVERS])
    assert answer == 'From your school\'s documents:\n\n> "Where it slows down, a river builds a delta." [2]'


async def test_headings_and_check_questions_are_not_answers() -> None:
    for text, _ in _quoted(await _answer("What is photosynthesis?", [JOINED])):
        assert text.endswith(".") and len(text.split()) > 3
    assert sentences(JOINED.text) == [
        "Green plants make sugar from sunlight, water and carbon dioxide.",
        "This process is called photosynthesis.",
        "Dr. Ingenhousz described photosynthesis in 1779.",
    ]


async def test_steps_stay_together() -> None:
    page = Page(
        "How To: Add fractions with different denominators.\n1. Find the LCD.\n2. Convert each one.\n3. Add them.\nExample 4"
    )
    ((text, number),) = _quoted(await _answer("How do I add fractions with different denominators?", [page]))
    assert number == 1 and text.endswith("3. Add them.") and "Example" not in text


@pytest.mark.parametrize("passages", [[], [RIVERS], [Page("")], [Page("Only a heading")]])
async def test_nothing_to_quote_is_said(passages: list[Page]) -> None:
    async def none(question: str) -> Sequence[Page]:
        del question
        return []

    assert await _answer("Who wrote Romeo and Juliet?", passages, Quotes(none)) == NOT_COVERED


async def test_it_searches_for_the_question_where_no_passages_are_given() -> None:
    asked: list[str] = []

    async def search(question: str) -> Sequence[Page]:
        asked.append(question)
        return [RIVERS]

    messages = [Message("user", "Hello"), Message("assistant", "Hi"), Message("user", "Where does a river build a delta?")]
    chunks = await _chunks(Quotes(search), Request(messages=messages))
    assert asked == ["Where does a river build a delta?"]
    assert "builds a delta" in "".join(chunk.text for chunk in chunks)
    await _chunks(Quotes(search), Request(messages=messages, question="What do rivers carry?"))
    assert asked[1:] == ["What do rivers carry?"]


async def test_meaning_counts_where_an_embedder_answers() -> None:
    async def embed(texts: Sequence[str]) -> np.ndarray[Any, Any]:
        return np.array([[1, 0] if "delta" in text or "mouth" in text else [0, 1] for text in texts], dtype=np.float32)

    async def down(texts: Sequence[str]) -> np.ndarray[Any, Any]:
        raise ModelUnavailable(f"No embeddings of {len(texts)} texts now.", "Start the engine.")

    question = "What lies at its mouth?"
    assert _quoted(await _answer(question, [RIVERS], Quotes(nothing, embed))) == [
        ("Where it slows down, a river builds a delta.", 1)
    ]
    assert await _answer(question, [RIVERS], Quotes(nothing, down)) == NOT_COVERED
    assert _quoted(await _answer("Where does a river build a delta?", [RIVERS], Quotes(nothing, down)))


async def test_chunks_usage_and_limits() -> None:
    request = Request(messages=[Message("user", "What is a river?")], passages=[RIVERS])
    *texts, last = await _chunks(Quotes(nothing), request)
    assert len(texts) >= 2 and all(chunk.finish is None and chunk.text for chunk in texts)
    assert last.finish == "stop" and last.usage is not None
    assert (last.usage.prompt, last.usage.completion) == (4, len("".join(chunk.text for chunk in texts).split()))
    assert all(chunk.handler == chunk.model == "quotes" for chunk in [*texts, last])
    for most in (1, 3, 8):
        *texts, last = await _chunks(Quotes(nothing), Request(request.messages, passages=[RIVERS], max_tokens=most))
        assert len("".join(chunk.text for chunk in texts).split()) <= most and last.finish == "length"
    assert "delta" not in await _answer("Where is a delta built?", [RIVERS], stop=["delta"])


async def test_it_is_a_handler() -> None:
    quotes = Quotes(nothing)
    assert isinstance(quotes, Handler) and quotes.name == "quotes"
    await quotes.start()
    assert (await quotes.health()).ok
    assert await quotes.count([Message("user", "four words are here")]) == 4
    with pytest.raises(Unsupported):
        await quotes.score([Message("assistant", "x")])
    await quotes.close()


WORDS = st.sampled_from(
    [
        "river",
        "Delta",
        "sand.",
        "\n",
        "  ",
        "Dr.",
        '"so"',
        "(a)",
        "?",
        "!",
        "How To:",
        "1.",
        "7.5%",
        "[Picture:",
        "e.g.",
        "É",
        "*b*",
        "The",
        "is",
    ]
)


@given(st.lists(st.lists(WORDS, max_size=60), min_size=1, max_size=4), st.lists(WORDS, max_size=6))
@hypothesis_settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_quoted_span_stands_in_its_passage(texts: list[list[str]], question: list[str]) -> None:
    import asyncio

    passages = [Page(" ".join(words)) for words in texts]
    loop = asyncio.new_event_loop()
    try:
        answer = loop.run_until_complete(_answer(" ".join(question), passages)) if "".join(question).strip() else NOT_COVERED
    finally:
        loop.close()
    quoted = _quoted(answer)
    assert quoted or answer == NOT_COVERED
    for text, number in quoted:
        assert text in " ".join(passages[number - 1].text.split())
    assert len(quoted) <= 3
