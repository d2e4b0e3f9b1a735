"""Answers by quoting the school's documents: the floor that works without any language model.

Picks the one to three sentences that answer best and cites the passage of each. Every quoted span stands word for word in its
passage. Hides how sentences are cut and weighed. It finds no passages itself (it is handed a search), invents no words between
the quotes, and decides no permissions.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from appliance.engine.handler import Chunk, Finish, Health, Message, Request, Source, Usage
from appliance.errors import BadInput, ModelUnavailable, Unsupported

Search = Callable[[str], Awaitable[Sequence[Source]]]
Embed = Callable[[Sequence[str]], Awaitable[Any]]  # texts to float32 rows of length 1

INTRODUCTION = "From your school's documents:"
NOT_COVERED = "The school's documents do not cover this."
MOST_QUOTES = 3
EMBEDDED = 24  # candidates that the embedder is asked about; it reads about twenty short texts in half a second
EMBED_SECONDS = 5.0
ENOUGH = 0.55  # a best sentence below this answers nothing
ENOUGH_BY_WORDS = 0.35  # the same where no embedder answers
STEPS = 70  # words that a list of steps may have
CLOSE = 0.8  # further sentences must come this near to the best one
SENTENCE_END = re.compile("(?:(?<=[.!?\u2026])|(?<=[.!?\u2026][\"'\u201d\u2019)\\]]))\\s+(?=[\"'\u201c\u2018(\\[]*[^\\W_a-z])")
ABBREVIATION = re.compile(r"(?:\b(?:[A-Z]|Mr|Mrs|Ms|Dr|Fig|No|p|pp|ch|vs|St|e\.g|i\.e|approx))\.$")
STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        """a about all am an and any are as at be been being but by can could did do does doing explain for from get give
        had has have how i if in into is it its just let me might more most much my no nor not of on one or our please
        say says should show so some such tell than that the their them then there these they this those to too us use
        used using very was we were what when where which while who whom whose why will with would you your""",
    )
)


@dataclass(slots=True)
class _Candidate:
    number: int  # of its passage, from 1
    order: int  # of the sentence among all
    text: str
    stems: frozenset[str]
    score: float = 0.0


class Quotes:
    """A Handler. Never raises ModelUnavailable of its own; without an embedder it goes by words."""

    name = "quotes"
    slots = 64
    context = 100_000

    def __init__(self, search: Search, embed: Embed | None = None) -> None:
        self._search = search
        self._embed = embed

    async def start(self) -> None:
        """There is nothing to load."""

    async def close(self) -> None:
        """There is nothing to let go of."""

    async def health(self) -> Health:
        return Health(ok=True, detail="Quotes the school's documents; needs no language model.", model=self.name)

    async def count(self, messages: Sequence[Message]) -> int:
        """Words: this handler's tokens."""
        if not messages:
            raise BadInput("There is no message to answer.", "Write a question.")
        return sum(len(message.content.split()) for message in messages)

    async def score(self, messages: Sequence[Message]) -> list[float]:
        del messages
        raise Unsupported("Quoting has no probabilities to tell.", "Ask a language model for them.")

    async def generate(self, request: Request) -> AsyncGenerator[Chunk, None]:
        """One chunk for the opening and one for each quote; the numbers are places in `request.passages`, from 1."""
        if request.schema is not None:
            raise Unsupported("Quotes cannot keep to a schema.", "Ask a language model.")
        prompt = await self.count(request.messages)
        question = request.question or _last_question(request.messages)
        sources = request.passages or (await self._search(question) if question.strip() else ())
        text, finish = _cut(await self._answer(question, sources), request)
        used = Usage(prompt=prompt, completion=len(text.split()))
        for part in re.findall(r".+?(?:\n\n|\Z)", text, re.S):
            yield Chunk(text=part, model=self.name, handler=self.name)
            await asyncio.sleep(0)  # so that closing the stream takes effect between two quotes
        yield Chunk(finish=finish, usage=used, model=self.name, handler=self.name)

    async def _answer(self, question: str, sources: Sequence[Source]) -> str:
        candidates = [
            _Candidate(number, 0, sentence, frozenset(_stems(sentence)))
            for number, source in enumerate(sources, 1)
            for sentence in sentences(source.text)
        ]
        for order, candidate in enumerate(candidates):
            candidate.order = order
        enough = await self._weigh(question, candidates)
        chosen = _choose(candidates, enough)
        if not chosen:
            return NOT_COVERED
        return "\n\n".join([INTRODUCTION, *(f'> "{candidate.text}" [{candidate.number}]' for candidate in chosen)])

    async def _weigh(self, question: str, candidates: list[_Candidate]) -> float:
        """Set each score from shared telling words and, where the embedder answers, shared meaning; returns what is enough."""
        wanted = [stem for stem in dict.fromkeys(_stems(question)) if stem]
        total = len(candidates)
        weights = {
            stem: math.log(1 + (1 + total) / (1 + sum(stem in candidate.stems for candidate in candidates))) for stem in wanted
        }
        whole = sum(weights.values()) or 1.0
        for candidate in candidates:
            candidate.score = sum(weight for stem, weight in weights.items() if stem in candidate.stems) / whole
        # Stable: of equal ones the passage that the search put first wins.
        candidates.sort(key=lambda candidate: -candidate.score)
        near = await self._similarities(question, [candidate.text for candidate in candidates[:EMBEDDED]])
        for candidate, similarity in zip(candidates, near or (), strict=False):
            candidate.score = 0.5 * candidate.score + max(0.0, similarity)
        if near is not None:
            del candidates[len(near) :]
        for candidate in candidates:
            candidate.score -= _untidiness(candidate.text) + 0.02 * (candidate.number - 1)
        return ENOUGH_BY_WORDS if near is None else ENOUGH

    async def _similarities(self, question: str, texts: Sequence[str]) -> list[float] | None:
        if self._embed is None or not texts:
            return None
        try:
            rows = await asyncio.wait_for(self._embed([question, *texts]), EMBED_SECONDS)
        except (ModelUnavailable, TimeoutError):
            return None
        return [float(similarity) for similarity in rows[1:] @ rows[0]]


def sentences(text: str) -> list[str]:
    """Full sentences of a passage, each word for word, white space collapsed; no headings, list items, questions."""
    found: list[str] = []
    for paragraph in _with_steps(text).split("\n"):
        parts = SENTENCE_END.split(" ".join(paragraph.split()))
        held = ""
        for part in parts:
            held = f"{held} {part}" if held else part
            if ABBREVIATION.search(held) or (_is_how_to(held) and part is not parts[-1]):
                continue  # "Dr. Smith" is no end, and a list of steps is quoted whole
            if _is_sentence(held):
                found.append(held)
            held = ""
    return found


def _with_steps(text: str) -> str:
    """A line like "How to add fractions:" says nothing without the lines below it: they become one paragraph."""
    lines: list[str] = []
    steps = False
    for line in text.split("\n"):
        steps = steps and not re.match(r"(example|try it|solution|exercise|figure|\[picture)\b", line, re.I)
        if steps and len(lines[-1].split()) + len(line.split()) <= STEPS:
            lines[-1] += f" {line}"
        else:
            lines.append(line)
            steps = _is_how_to(line)
    return "\n".join(lines)


def _is_how_to(text: str) -> bool:
    return text[:7].lower() == "how to:"


def _is_sentence(text: str) -> bool:
    words = text.split()
    letters = sum(letter.isalpha() for letter in text)
    opening = text.lstrip("\"'\u201c\u2018([")[:1]
    return (
        4 <= len(words) <= 80
        and text.rstrip("\"'\u201d\u2019)]").endswith((".", "!", "…"))
        and (opening.isupper() or opening.isdigit() or not opening.isascii())
        and letters >= 0.5 * len(text.replace(" ", ""))
    )


def _untidiness(text: str) -> float:
    """What makes a sentence a poor answer on its own: it points backwards, describes a picture, or gives an order."""
    penalty = 0.0
    if re.match(r"in the following exercises\b", text, re.I):
        penalty += 0.5
    if re.match(
        r"(it|this|that|these|those|they|he|she|so|but|and|then|therefore|however|in the (?:last|previous|next) section)\b",
        text,
        re.I,
    ):
        penalty += 0.12
    if re.match(r"\[?(picture|figure|table|example|try it|answer|solution)\b", text, re.I) or "[Picture" in text:
        penalty += 0.15
    if re.match(r"(\d+\.|\(?[a-z]\)|find|write|name|use|draw|describe|explain|calculate|simplify|solve)\s", text, re.I):
        penalty += 0.15
    return penalty


def _choose(candidates: Sequence[_Candidate], enough: float) -> list[_Candidate]:
    """The best, and up to two more that come near it and say something else; in the order of their passages."""
    ranked = sorted(candidates, key=lambda candidate: (-candidate.score, candidate.order))
    if not ranked or ranked[0].score < enough:
        return []
    chosen = [ranked[0]]
    for candidate in ranked[1:]:
        if len(chosen) == MOST_QUOTES or candidate.score < CLOSE * ranked[0].score:
            break
        if all(_overlap(candidate.stems, other.stems) < 0.6 for other in chosen):
            chosen.append(candidate)
    return sorted(chosen, key=lambda candidate: (candidate.number, candidate.order))


def _overlap(first: frozenset[str], second: frozenset[str]) -> float:
    return len(first & second) / (len(first | second) or 1)


def _stems(text: str) -> list[str]:
    """The telling words without their commonest English endings."""
    words = [word for word in re.findall(r"[^\W_]+", text.lower()) if word not in STOP_WORDS]
    return [re.sub(r"(?<=\w{3})(ations?|ings?|ied|ies|ed|es|ly|s|e|y)$", "", word) for word in words]


def _last_question(messages: Sequence[Message]) -> str:
    return next((message.content for message in reversed(messages) if message.role == "user"), "")


def _cut(text: str, request: Request) -> tuple[str, Finish]:
    """The answer within the request's stop texts and length (in words); quotes that do not fit are left out whole."""
    for stop in request.stop:
        if stop:
            text = text.partition(stop)[0]
    if len(text.split()) <= request.max_tokens:
        return text, "stop"
    parts = text.split("\n\n")
    while len(parts) > 2 and len(" ".join(parts).split()) > request.max_tokens:
        parts.pop()
    text = "\n\n".join(parts)
    pieces = re.findall(r"\S+\s*", text)
    return "".join(pieces[: request.max_tokens]).rstrip(), "length"
