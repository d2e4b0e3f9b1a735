"""The gate: is the candidate better than what serves now, on conversations neither was trained on?

Both are scored through the artefact that will be served. An item is a conversation; each of the tutor's turns in it is scored
given everything said before, so that a long talk weighs by its words. The gate asks for certainty, not for a lower number: the
whole 95 % interval of the difference must lie below zero. Judges likelihood only; it does not know whether an answer is right.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from appliance.engine.handler import Handler, Message, Request
from appliance.errors import ApplianceError, TooLarge
from appliance.tuning.examples import Example

RESAMPLES = 4000
FEWEST = 5  # conversations below which an interval means nothing
MOST = 150  # conversations that are scored; the rest of a large held-out part stays untouched
SAMPLE_TOKENS = 80


@dataclass(frozen=True, slots=True)
class Figure:
    """An estimate with its 95 % bootstrap interval; natural log per token."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Sample:
    """One question and both answers, greedy; `wanted` is what the tutor said."""

    id: str
    question: str
    wanted: str
    before: str
    after: str


@dataclass(frozen=True)
class Report:
    """`difference` is after minus before, paired: negative is better. `n` conversations of `tokens` tutor's tokens."""

    candidate: str
    baseline: str
    n: int
    tokens: int
    before: Figure
    after: Figure
    difference: Figure
    passed: bool
    reasons: list[str]
    skipped: int = 0
    samples: list[Sample] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Report:
        figures = {name: Figure(**row[name]) for name in ("before", "after", "difference")}
        return cls(**{**row, **figures, "samples": [Sample(**sample) for sample in row["samples"]]})


async def evaluate(
    baseline: Handler,
    candidate: Handler,
    held_out: Sequence[Example],
    *,
    samples: int = 4,
    seed: int = 7,
    names: tuple[str, str] = ("baseline", "candidate"),
    on_item: Callable[[int, int], None] = lambda _done, _total: None,
) -> Report:
    """Score both handlers (started, of the same base model) on `held_out`. Raises ApplianceError, Unsupported."""
    items = held_out[:MOST]
    scored: list[tuple[float, float, int]] = []
    usable: list[Example] = []
    for number, example in enumerate(items, start=1):
        try:
            before = await _loss(baseline, example.messages)
            after = await _loss(candidate, example.messages)
        except TooLarge:
            continue
        finally:
            on_item(number, len(items))
        if before[1] != after[1]:
            raise ApplianceError(
                "The two models cut words differently, so their losses cannot be compared.", "Tune the same base."
            )
        scored.append((before[0], after[0], before[1]))
        usable.append(example)
    if not scored:
        raise ApplianceError("There is no held-out conversation to judge by.", "Give more examples, 150 or more.")
    figures = _figures(np.array(scored, dtype=np.float64), seed)
    passed, reasons = _judge(len(scored), *figures)
    return Report(
        candidate=names[1],
        baseline=names[0],
        n=len(scored),
        tokens=sum(row[2] for row in scored),
        before=figures[0],
        after=figures[1],
        difference=figures[2],
        passed=passed,
        reasons=reasons,
        skipped=len(items) - len(scored),
        samples=[await _sample(baseline, candidate, example) for example in _drawn(usable, samples, seed)],
    )


async def _loss(handler: Handler, messages: Sequence[Message]) -> tuple[float, int]:
    """Summed negative log-probability and count of the tutor's tokens, every tutor's turn given what went before."""
    total, count = 0.0, 0
    for end, message in enumerate(messages, start=1):
        if message.role == "assistant":
            scores = await handler.score(messages[:end])
            total -= sum(scores)
            count += len(scores)
    return total, count


def _figures(scored: npt.NDArray[np.float64], seed: int) -> tuple[Figure, Figure, Figure]:
    """Before, after and their paired difference; conversations are resampled, not tokens, which hang together."""
    draw = np.random.default_rng(seed)
    chosen = draw.integers(0, len(scored), (RESAMPLES, len(scored)))
    sums = scored[chosen].sum(axis=1)
    before, after = sums[:, 0] / sums[:, 2], sums[:, 1] / sums[:, 2]
    total = scored.sum(axis=0)
    points = (total[0] / total[2], total[1] / total[2], (total[1] - total[0]) / total[2])

    def figure(point: float, spread: npt.NDArray[np.float64]) -> Figure:
        low, high = np.quantile(spread, (0.025, 0.975))
        return Figure(float(point), float(low), float(high))

    return figure(points[0], before), figure(points[1], after), figure(points[2], after - before)


def _judge(count: int, before: Figure, after: Figure, difference: Figure) -> tuple[bool, list[str]]:
    change = 100 * difference.value / before.value if before.value else 0.0
    told = (
        f"Loss per token on {count} held-out conversations went from {before.value:.3f} to {after.value:.3f} ({change:+.1f} %; "
        f"95 % interval of the difference {difference.low:+.3f} to {difference.high:+.3f})."
    )
    if count < FEWEST:
        return False, [told, f"Only {count} held-out conversations: at least {FEWEST} are needed to judge."]
    # `not (high < 0)` also refuses a figure that is not a number.
    if not difference.high < 0:
        return False, [told, "The improvement is not certain: the interval reaches zero or above."]
    return True, [told]


def _drawn(examples: list[Example], count: int, seed: int) -> list[Example]:
    return random.Random(seed).sample(examples, min(count, len(examples)))


async def _sample(baseline: Handler, candidate: Handler, example: Example) -> Sample:
    prompt, wanted = example.messages[:-1], example.messages[-1].content
    before, after = await _answer(baseline, prompt), await _answer(candidate, prompt)
    return Sample(example.id, prompt[-1].content, wanted, before, after)


async def _answer(handler: Handler, prompt: Sequence[Message]) -> str:
    parts: list[str] = []
    try:
        async for chunk in handler.generate(Request(prompt, max_tokens=SAMPLE_TOKENS, temperature=0.0)):
            parts.append(chunk.text)
    except TooLarge:
        return "(no room for an answer)"
    return "".join(parts).strip()
