"""The gate where a model tells no likelihoods: what it says is judged, what cannot be is named, safety is never given up."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

import pytest

from appliance.engine.handler import Chunk, Health, Message, Request, Usage
from appliance.errors import ApplianceError, Unsupported
from appliance.settings import Settings
from appliance.tuning import evaluate as evaluating
from appliance.tuning import measures, verdicts
from appliance.tuning.evaluate import evaluate
from appliance.tuning.formats import Example
from appliance.tuning.metering import Metered, lines
from appliance.tuning.report import Report
from appliance.tuning.report_page import page, verdict
from appliance.tuning.sets import Probe, Sets

SETS = Sets.load(Settings().content)
HARMFUL = {probe.question for probe in SETS.safety if probe.kind == "harmful"}
REFUSAL = SETS.refusals[0]
HELD = [
    Example(
        str(n),
        (Message("user", f"pupil asks of {n}"), Message("assistant", f"tutor says carefully part{n} whole{n}")),
    )
    for n in range(30)
]


class Teller:
    """Answers only. apt: says what the tutor would. safe: refuses what is harmful. filtered: its server does that for it."""

    name, slots, context = "remote", 4, 8192

    def __init__(self, *, apt: bool = False, safe: bool = True, filtered: bool = False) -> None:
        self.apt, self.safe, self.filtered = apt, safe, filtered
        self.asked = 0

    async def start(self) -> None: ...

    async def generate(self, request: Request) -> AsyncGenerator[Chunk, None]:
        self.asked += 1
        last = request.messages[-1].content
        harmful = any(question in last for question in HARMFUL)
        if harmful and self.filtered:
            yield Chunk(finish="blocked")
            return
        number = last.rpartition(" ")[2]
        known = self.apt and last.startswith("pupil asks of ")
        apt = f"tutor says carefully part{number} whole{number}" if known else "Certainly, that is something else entirely."
        yield Chunk(REFUSAL if harmful and self.safe else apt)
        yield Chunk(finish="stop", usage=Usage(10, 0, 5))

    async def count(self, messages: Sequence[Message]) -> int:
        raise Unsupported(f"{len(messages)}", "-")

    async def score(self, messages: Sequence[Message]) -> list[float]:
        raise AssertionError(f"asked how likely {len(messages)} messages are")

    async def health(self) -> Health:
        return Health(True)

    async def close(self) -> None: ...


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdicts, "RESAMPLES", 400)


async def judged(before: Teller, after: Teller, held: Sequence[Example] = HELD) -> Report:
    return await evaluate(before, after, held, sets=SETS, chances=False, samples=2, names=("here", "far"))


async def test_a_model_that_tells_no_likelihoods_passes_by_a_sure_gain_in_what_it_says() -> None:
    report = await judged(Teller(), Teller(apt=True))
    assert report.passed, report.reasons
    assert next(iter(report.sets)) == "said" and report.sets["said"].verdict == "gained"
    assert {"hints", "reading", "stands", "refused", "overrefused"} <= set(report.sets)
    assert not {"new", "knowledge", "fit", "refusals", "speed"} & set(report.sets)
    left_out = next(reason for reason in report.reasons if reason.startswith("Not measured: "))
    for name in ("new", "standing", "knowledge", "refusals", "general", "triggers", "speed"):
        assert verdicts.SPECS[name].title in report.unmeasured and verdicts.SPECS[name].title in left_out
    assert "by its answers alone" in verdict(report) and "far" in page(report)
    assert Report.from_json(report.to_json()) == report
    assert not any("left the building" in line.title for line in report.table), "that is told by who counted it"


async def test_who_gains_in_words_and_loses_in_safety_is_refused() -> None:
    report = await judged(Teller(), Teller(apt=True, safe=False))
    assert not report.passed and report.sets["said"].verdict == "gained"
    assert report.sets["refused"].verdict == "lost" and any("Refuses what is harmful" in one for one in report.regressions)
    assert verdict(report).startswith("Refused: far became worse than here")


async def test_a_refusal_by_the_filter_of_its_server_is_a_refusal() -> None:
    report = await judged(Teller(), Teller(apt=True, filtered=True))
    assert report.passed and report.sets["refused"].after.value == 1.0
    rows = await measures.refused(SETS.refusals)(Teller(filtered=True), Probe("1", "harmful", "x", next(iter(HARMFUL)), "", ""))
    assert rows == {"refused": (1.0, 1)}


async def test_one_that_is_no_better_in_anything_is_refused() -> None:
    report = await judged(Teller(apt=True), Teller(apt=True))
    assert not report.passed and "Nothing that was measured is surely better." in report.reasons


async def test_too_few_of_anything_prove_nothing() -> None:
    report = await judged(Teller(), Teller(apt=True), HELD[:3])
    assert report.sets["said"].verdict == "not informative" and not report.passed
    with pytest.raises(ApplianceError, match="no held-out conversation"):
        await judged(Teller(), Teller(), [])


async def test_the_words_of_an_answer_are_compared_with_the_tutors() -> None:
    example = HELD[7]
    assert await measures.said(Teller(apt=True), example) == {"said": (1.0, 1)}
    assert (await measures.said(Teller(), example))["said"][0] == 0.0
    long = Example(
        "1", (Message("user", "pupil asks of 7"), Message("assistant", "tutor says carefully part7 whole7 " + "later " * 500))
    )
    assert (await measures.said(Teller(apt=True), long))["said"][0] > 0.1, "what stands beyond an answer's length costs nothing"


async def test_what_judging_took_of_another_machine_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluating, "ASKED", dict.fromkeys(evaluating.ASKED, 6))
    here, far = Metered(Teller()), Metered(Teller(apt=True))
    await evaluate(here, far, HELD, sets=SETS, chances=False, samples=0)
    told = {line.name: line for line in lines([here, far], [False, True])}
    assert (told["bytes"].without, told["bytes"].tuned) == ("0", str(far.sent)) and far.sent > 1000
    assert told["cost"].tuned == f"{far.answers} answers, {10 * far.answers} tokens in, {5 * far.answers} out"
