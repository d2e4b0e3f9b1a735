"""The gate passes what is surely better, and nothing else."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Sequence

import pytest

from appliance.engine.handler import Chunk, Health, Message, Request
from appliance.errors import ApplianceError, TooLarge
from appliance.tuning.evaluate import MOST, Report, evaluate
from appliance.tuning.examples import Example


class Scorer:
    """A handler whose losses are given: every token of an answer costs `loss` and the words of its id."""

    name, slots, context = "scorer", 1, 100

    def __init__(self, loss: float, swing: float = 0.0, tokens: int = 10) -> None:
        self.loss, self.swing, self.tokens = loss, swing, tokens
        self.scored: list[int] = []

    async def start(self) -> None: ...

    async def generate(self, request: Request) -> AsyncGenerator[Chunk, None]:
        yield Chunk(f"answer to {request.messages[-1].content} ")
        yield Chunk(f"by {self.loss}", finish="stop")

    async def count(self, messages: Sequence[Message]) -> int:
        return self.tokens * len(messages)

    async def score(self, messages: Sequence[Message]) -> list[float]:
        self.scored.append(len(messages))
        if "too long" in messages[0].content:
            raise TooLarge("too long", "shorten")
        number = int(messages[0].content.split()[1])
        return [-(self.loss + self.swing * math.sin(number))] * self.tokens

    async def health(self) -> Health:
        return Health(True)

    async def close(self) -> None: ...


def talks(count: int) -> list[Example]:
    return [
        Example(
            str(n),
            (
                Message("user", f"question {n}"),
                Message("assistant", "a"),
                Message("user", "b"),
                Message("assistant", f"wanted {n}"),
            ),
        )
        for n in range(count)
    ]


async def test_a_sure_gain_passes_and_every_tutor_turn_is_scored() -> None:
    before, after = Scorer(4.0, 0.5), Scorer(3.5, 0.6)
    report = await evaluate(before, after, talks(20), samples=3)
    assert report.passed and report.n == 20 and report.tokens == 20 * 2 * 10
    assert report.before.low < report.before.value < report.before.high
    assert report.difference.high < 0 and abs(report.difference.value + 0.5) < 0.1
    # Paired: both swing with the same questions, so the difference is known far better than either loss.
    assert report.difference.high - report.difference.low < (report.before.high - report.before.low) / 2
    assert before.scored[:2] == [2, 4]
    assert len(report.samples) == 3
    assert report.samples[0].after.endswith("by 3.5") and report.samples[0].wanted.startswith("wanted")
    assert "-12" in report.reasons[0]
    assert Report.from_json(report.to_json()) == report


@pytest.mark.parametrize(
    ("after", "count", "words"),
    [
        (Scorer(4.1), 20, "not certain"),
        (Scorer(4.0), 20, "not certain"),
        (Scorer(3.99, 3.0), 20, "not certain"),
        (Scorer(float("nan")), 20, "not certain"),
        (Scorer(3.0), 4, "at least 5"),
    ],
)
async def test_what_is_not_surely_better_does_not_pass(after: Scorer, count: int, words: str) -> None:
    report = await evaluate(Scorer(4.0), after, talks(count), samples=0)
    assert not report.passed
    assert any(words in reason for reason in report.reasons)


async def test_the_same_seed_gives_the_same_report() -> None:
    once = await evaluate(Scorer(4.0, 1), Scorer(3.5), talks(30), seed=1)
    assert once == await evaluate(Scorer(4.0, 1), Scorer(3.5), talks(30), seed=1)
    assert once != await evaluate(Scorer(4.0, 1), Scorer(3.5), talks(30), seed=2)


async def test_talks_that_do_not_fit_are_counted_and_a_large_part_is_capped() -> None:
    long = Example("long", (Message("user", "too long 1"), Message("assistant", "a")))
    report = await evaluate(Scorer(4.0), Scorer(3.0), [*talks(6), long], samples=0)
    assert (report.n, report.skipped) == (6, 1)
    seen: list[tuple[int, int]] = []
    report = await evaluate(Scorer(4.0), Scorer(3.0), talks(400), samples=0, on_item=lambda *at: seen.append(at))
    assert report.n == MOST and seen[-1] == (MOST, MOST)
    with pytest.raises(ApplianceError, match="no held-out conversation"):
        await evaluate(Scorer(4.0), Scorer(3.0), [long])


async def test_models_that_cut_words_differently_are_not_compared() -> None:
    with pytest.raises(ApplianceError, match="cut words differently"):
        await evaluate(Scorer(4.0), Scorer(3.0, tokens=9), talks(6))
