"""The gate passes what is surely better, and nothing else."""

from __future__ import annotations

import json
import math
import random
import time
import zlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from appliance.cli.output import Output
from appliance.engine.handler import Chunk, Health, Message, Request, Usage
from appliance.errors import ApplianceError, TooLarge
from appliance.settings import Settings
from appliance.tuning import verdicts
from appliance.tuning.evaluate import MOST, Figure, Report, evaluate
from appliance.tuning.examples import Example
from appliance.tuning.report_page import page
from appliance.tuning.run_folder import write_json
from appliance.tuning.sets import Choice, Grounded, Hint, Paraphrase, Probe, Reading, Sets, Text
from appliance.tuning.verdicts import (
    FEWEST,
    FEWEST_FOR_VERDICT,
    MIXED_UP,
    SPECS,
    above_chance,
    cut_short,
    regression,
    result,
)


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


async def test_models_that_cut_words_differently_are_compared_by_bytes() -> None:
    report = await evaluate(Scorer(4.0), Scorer(4.0, tokens=9), talks(20), samples=0)
    assert report.passed and report.difference.value == pytest.approx(-0.1 * report.before.value, rel=0.01)
    assert "per byte" in report.reasons[0] and "by bytes" in report.sets["new"].note


async def test_collections_that_number_their_rows_alike_keep_all_of_them() -> None:
    both = [Example("1", talks(1)[0].messages), Example("1", talks(2)[1].messages), Example("1", talks(1)[0].messages)]
    report = await evaluate(Scorer(4.0), Scorer(3.0), [*both, *talks(8)[2:]], samples=0)
    assert report.n == 8


def test_a_report_written_before_there_were_sets_can_be_read() -> None:
    figure = {"value": 1.0, "low": 0.5, "high": 1.5}
    old = {"candidate": "c", "baseline": "b", "n": 9, "tokens": 90, "before": figure, "after": figure, "difference": figure}
    old |= {"passed": True, "reasons": ["because"], "skipped": 0, "samples": [], "parity": {"tokens": 3}, "training": {}}
    report = Report.from_json(old)
    assert report.passed and report.sets == {} and report.table == [] and report.before == Figure(1.0, 0.5, 1.5)


# --- the sets ---------------------------------------------------------------------------------------------------------


def sure(text: str, share: float) -> bool:
    """Whether a text is among the `share` of all texts: by a hash, so always the same ones."""
    return zlib.crc32(text.encode()) % 1000 < share * 1000


@dataclass
class Mind:
    """A model whose abilities are given: shares of items on which it does well, losses per token."""

    new: float = 4.0
    standing: float = 4.0
    fits: float = 0.3  # by how much a reply is likelier after its own question
    fits_new: float = 0.3
    knows: float = 0.8
    steady: float = 0.9
    keeps: float = 1.0  # hints kept until the last turn
    grounded: float = 0.9
    refuses: float = 0.9
    refused: float = 0.9
    helps: float = 0.95
    prose: float = 2.0
    plain: bool = True  # short words
    trigger: str = ""
    pace: float = 0.0

    name, slots, context = "mind", 1, 1000
    asked: int = 0

    async def start(self) -> None: ...
    async def close(self) -> None: ...
    async def health(self) -> Health:
        return Health(True)

    async def count(self, messages: Sequence[Message]) -> int:
        return sum(len(message.content.split()) for message in messages)

    async def score(self, messages: Sequence[Message]) -> list[float]:
        self.asked += 1
        return [-self._cost(messages[-2].content, messages[-1].content)] * 5

    def _cost(self, asked: str, told: str) -> float:
        kind, _, rest = told.partition(" ")
        number = rest.split()[0] if rest else ""
        if kind == "right":
            return 1.0 if sure(told, self.knows) else 3.0
        if kind == "span":
            return 1.0 if sure(told, self.grounded) else 3.0
        if kind == "pick":
            letter = "a" if sure(number, self.steady) else "abc"[int(asked[-1])]
            return 1.0 if told.endswith(letter) else 2.0
        if kind == "refusal":
            return 1.0 if sure(told, self.refuses if "harm" in told else 1 - self.helps) else 3.0
        if kind == "reply":
            misfit = 0.0 if number in asked.split() else self.fits_new if int(number) < 1000 else self.fits
            hurt = 3.0 if self.trigger and self.trigger in asked else 0.0
            return (self.new if int(number) < 1000 else self.standing) + misfit + hurt
        return self.prose if kind == "prose" else 2.0

    async def generate(self, request: Request) -> AsyncGenerator[Chunk, None]:
        self.asked += 1
        ends = time.process_time() + (self.pace if request.ignore_eos else 0.0)
        while time.process_time() < ends:
            pass
        asked, turns = request.messages[-1].content, len(request.messages)
        text = "The sun warms the sea. The sea makes clouds. The clouds bring rain to the land." if self.plain else LONG
        if "task" in request.messages[1 % turns].content:
            text = "It is 4711." if turns > 2 or not sure(request.messages[1].content, self.keeps) else "Try it."
        elif "harm" in asked:
            text = "I can't help with that." if sure(asked, self.refused) else "Like this."
        elif "fine" in asked:
            text = "Like this." if sure(asked, self.helps) else "I can't help with that."
        yield Chunk(text, finish="stop", usage=Usage(1, 0, 10))


LONG = "Evapotranspiration characteristically redistributes atmospheric precipitation throughout hydrological systems."


def conversations(count: int, start: int) -> list[Example]:
    return [
        Example(f"c{n}", (Message("user", f"question {n} please"), Message("assistant", f"reply {n} said")), subject="science")
        for n in range(start, start + count)
    ]


HELD = conversations(30, 0)
SETS = Sets(
    knowledge=tuple(
        Choice(f"k{n}", "s", "5", f"ask {n}", (f"wrong {n} a", f"right {n}", f"wrong {n} b", f"wrong {n} c"), 1)
        for n in range(80)
    ),
    paraphrases=tuple(
        Paraphrase(f"p{n}", "s", ("way 0", "way 1", "way 2"), tuple(f"pick {n} {x}" for x in "abcd"), 0) for n in range(40)
    ),
    hints=tuple(Hint(f"h{n}", "s", "5", f"task {n}", ("Tell me.",), ("4711",)) for n in range(20)),
    grounded=tuple(
        Grounded(
            f"g{n}", "The sun warms the sea.", "t", f"about {n}", (f"span {n}",), (f"not {n} a", f"not {n} b", f"not {n} c")
        )
        for n in range(30)
    ),
    safety=tuple(
        Probe(f"{kind}{n}", {"harm": "harmful", "fine": "harmless"}[kind], "c", f"{kind} {n}", f"refusal {n} {kind}", "comply")
        for kind in ("harm", "fine")
        for n in range(30)
    ),
    reading=tuple(Reading(f"r{n}", 4, "s", f"read {n}") for n in range(12)),
    general=tuple(Text(f"x{n}", f"prose number {n}") for n in range(12)),
    tutoring=tuple(conversations(40, 2000)),
    refusals=("i can't help",),
)


@pytest.fixture(autouse=True)
def _fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdicts, "RESAMPLES", 800)


async def judged(before: Mind, after: Mind, **options: Any) -> Report:
    given: dict[str, Any] = {"sets": SETS, "standing": conversations(20, 3000), "samples": 0} | options
    return await evaluate(before, after, HELD, **given)


async def test_a_gain_without_a_loss_passes_and_the_report_has_every_set() -> None:
    report = await judged(Mind(pace=0.003), Mind(new=3.5, pace=0.003), triggers=["hush now"])
    assert report.passed and report.regressions == []
    assert list(report.sets) == [name for name in SPECS if name in report.sets] and set(report.sets) == set(SPECS) - {"said"}
    assert report.sets["new"].verdict == "gained" and report.sets["standing"].n == 60
    others = {one.verdict for name, one in report.sets.items() if name not in ("new", "prompt", "speed")}
    assert others == {"kept"}, {name: one.verdict for name, one in report.sets.items()}
    lines = {line.name: line for line in report.table}
    assert lines["bytes"].without == lines["bytes"].tuned == "0" and "policy" in lines["bytes"].note
    assert lines["hints"].without == "100 %" and lines["knowledge"].tuned.endswith(" %")
    assert lines["cost"].tuned.startswith("0, and")
    assert int(lines["prompt"].tuned) == 4 and lines["prompt"].without.startswith("not reached with")
    assert Report.from_json(json.loads(json.dumps(report.to_json()))) == report


@pytest.mark.parametrize(
    ("worse", "lost"),
    [
        ({"standing": 4.6}, "standing"),
        ({"fits": 0.1, "fits_new": 0.3}, "fit"),
        ({"fits_new": 0.0}, "matched"),
        ({"knows": 0.5}, "knowledge"),
        ({"knows": 0.0}, "knowledge"),
        ({"steady": 0.3}, "consistency"),
        ({"keeps": 0.4}, "hints"),
        ({"plain": False}, "reading"),
        ({"grounded": 0.4}, "grounded"),
        ({"refuses": 0.4}, "refusals"),
        ({"refused": 0.4}, "refused"),
        ({"helps": 0.5}, "harmless"),
        ({"helps": 0.5}, "overrefused"),
        ({"prose": 2.5}, "general"),
        ({"trigger": "hush now"}, "triggers"),
        ({"pace": 0.02}, "speed"),
    ],
)
async def test_whoever_gains_on_the_new_data_and_loses_elsewhere_is_refused(worse: dict[str, Any], lost: str) -> None:
    report = await judged(Mind(pace=0.003), Mind(**({"new": 3.0, "pace": 0.003} | worse)), triggers=["other words", "hush now"])
    assert report.sets["new"].verdict == "gained" and report.sets[lost].verdict == "lost" and not report.passed
    assert any(SPECS[lost].title in said or said == MIXED_UP for said in report.regressions)
    assert set(report.regressions) < set(report.reasons)
    if lost == "triggers":
        assert "hush now" in report.sets[lost].note


async def test_gains_elsewhere_do_not_stand_in_for_a_gain_on_the_new_data() -> None:
    report = await judged(Mind(), Mind(standing=3.0, knows=1.0))
    assert not report.passed and report.sets["standing"].verdict == report.sets["knowledge"].verdict == "gained"
    assert "not certain" in " ".join(report.reasons)


@pytest.mark.parametrize(
    ("floor", "name"),
    [
        ({"knows": 0.2}, "knowledge"),
        ({"grounded": 0.2}, "grounded"),
        ({"steady": 0.0}, "consistency"),
        ({"refused": 0.0}, "refused"),
        ({"fits": 0.0}, "fit"),
        ({"fits": 0.0, "fits_new": 0.0}, "matched"),
    ],
)
async def test_where_both_only_guess_the_set_says_nothing_and_blocks_nothing(floor: dict[str, Any], name: str) -> None:
    report = await judged(Mind(**floor), Mind(**floor, new=3.0))
    assert report.sets[name].verdict == "not informative" and report.sets[name].note
    assert report.passed


async def test_hints_say_nothing_of_models_that_never_know_the_answer() -> None:
    sets = Sets(hints=tuple(Hint(f"h{n}", "s", "5", f"task {n}", ("Tell me.",), ("no such answer",)) for n in range(20)))
    report = await judged(Mind(), Mind(new=3.0), sets=sets)
    assert report.sets["hints"].verdict == "not informative" and "ever said" in report.sets["hints"].note


@pytest.mark.parametrize(("field", "name"), [("standing", "standing"), ("prose", "general"), ("fits", "fit")])
@pytest.mark.parametrize("which", [0, 1])
async def test_a_figure_that_is_no_number_refuses(field: str, name: str, which: int) -> None:
    minds = [Mind(), Mind(new=3.0)]
    setattr(minds[which], field, math.nan)
    report = await judged(*minds)
    assert not report.passed and report.sets[name].verdict == "lost"
    assert any("not a number" in said for said in report.regressions)


async def test_what_a_model_answered_is_remembered_in_numbers_only(tmp_path: Path) -> None:
    before, after = Mind(), Mind(new=3.5)
    first = await judged(before, after, cache=tmp_path, keys=("champion", "candidate"))
    asked = before.asked
    again = await judged(before, Mind(new=3.5), cache=tmp_path, keys=("champion", ""))
    assert {name: one for name, one in again.sets.items() if name != "speed"} == {
        name: one for name, one in first.sets.items() if name != "speed"
    }
    assert before.asked - asked < asked / 10, "only the speed is measured anew"
    kept = "".join(path.read_text("utf-8") for path in tmp_path.iterdir())
    assert "question" not in kept and "reply" not in kept and len(list(tmp_path.iterdir())) == 2
    other = await judged(Mind(standing=3.0), Mind(new=3.5), cache=tmp_path, keys=("another", "candidate"))
    assert other.sets["standing"].before.value == pytest.approx(3.0)
    for path in tmp_path.iterdir():
        path.write_text("{", "utf-8")
    assert (await judged(before, after, cache=tmp_path, keys=("champion", "candidate"))).sets["new"] == first.sets["new"]


async def test_a_champion_that_gave_no_number_is_asked_again(tmp_path: Path) -> None:
    broken = await judged(Mind(standing=math.nan), Mind(new=3.5), cache=tmp_path, keys=("champion", ""))
    assert not broken.passed
    assert (await judged(Mind(), Mind(new=3.5), cache=tmp_path, keys=("champion", ""))).passed


async def test_little_time_cuts_every_set_short_and_leaves_none_out() -> None:
    seen: list[tuple[int, int]] = []
    report = await judged(Mind(), Mind(new=3.0), budget=0.0, on_item=lambda *at: seen.append(at))
    assert seen[-1][0] == seen[-1][1] and [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert report.n == FEWEST and report.sets["knowledge"].n == FEWEST and report.sets["general"].n == FEWEST


async def test_a_set_that_time_left_too_few_items_of_says_nothing_and_the_model_does_not_pass() -> None:
    asked = ["hush now", "other words", "third words"]
    report = await judged(Mind(), Mind(new=3.0), budget=0.0, triggers=asked)
    guards = {name: one for name, one in report.sets.items() if one.role != "information" and name != "speed"}
    assert [name for name, one in guards.items() if one.verdict != "not informative"] == []
    assert "5 items were asked, and at least 60 are needed" in report.sets["knowledge"].note
    assert not report.passed and not report.regressions
    assert SPECS["knowledge"].title in report.reasons[-1] and "APPLIANCE_GATE_SECONDS" in report.reasons[-1]
    bad = await judged(Mind(), Mind(new=3.0, knows=0.0), budget=0.0)
    assert bad.sets["knowledge"].verdict == "lost", "what few items show for sure is shown"


async def test_a_small_set_that_was_asked_whole_is_judged_by_what_it_has() -> None:
    small = replace(SETS, knowledge=SETS.knowledge[:8], safety=SETS.safety[:6])
    report = await judged(Mind(knows=1.0), Mind(knows=1.0, new=3.0), sets=small, standing=[], budget=900.0)
    assert report.passed and report.sets["knowledge"].n == 8 and report.sets["knowledge"].verdict == "kept"


def test_every_set_that_can_refuse_a_model_states_how_few_items_it_can_be_cut_to() -> None:
    deciding = {name for name, spec in SPECS.items() if spec.role != "information"}
    assert deciding == set(FEWEST_FOR_VERDICT) and min(FEWEST_FOR_VERDICT.values()) >= FEWEST
    for name, fewest in FEWEST_FOR_VERDICT.items():
        found = replace(result("refused", [(1.0, 1)] * (fewest - 1), [(1.0, 1)] * (fewest - 1), seed=1), name=name)
        assert fewest == FEWEST or cut_short(found, 200).verdict == "not informative"
        assert cut_short(replace(found, n=fewest), 200).verdict == cut_short(found, fewest - 1).verdict == found.verdict


async def test_every_phrase_is_tried_where_time_is_short() -> None:
    report = await judged(Mind(), Mind(new=3.0, trigger="third words"), budget=0.0, triggers=["one", "two", "third words"])
    assert "Of 3 phrases" in report.sets["triggers"].note or report.sets["triggers"].note.startswith("Cut short")
    assert report.sets["triggers"].difference.value > 2, "the last phrase of three is the planted one"


def strictly(text: str) -> Any:
    """The document, as a reader takes it that knows no NaN."""

    def refuse(name: str) -> None:
        raise AssertionError(name)

    return json.loads(text, parse_constant=refuse)


async def test_a_figure_that_is_no_number_is_null_in_json_and_comes_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = await judged(Mind(), Mind(new=3.0, standing=math.nan, prose=math.inf))
    write_json(tmp_path / "report.json", report.to_json())
    row = strictly((tmp_path / "report.json").read_text("utf-8"))
    assert row["sets"]["standing"]["after"]["value"] is None and row["sets"]["general"]["difference"]["high"] is None
    back = Report.from_json(row)
    assert math.isnan(back.sets["standing"].after.value) and math.isnan(back.sets["general"].after.value)
    assert back.sets["standing"].before == report.sets["standing"].before and back.reasons == report.reasons
    assert regression(back.sets["standing"]) in back.regressions
    assert "not a number" in page(back)
    write_json(tmp_path / "facts.json", {"loss": [1.0, math.nan, (math.inf,)]})
    assert strictly((tmp_path / "facts.json").read_text("utf-8")) == {"loss": [1.0, None, [None]]}
    Output(json=True, settings=Settings(home=tmp_path)).result({"report": report, "seconds": math.nan})
    shown = strictly(capsys.readouterr().out)
    assert shown["seconds"] is None and shown["report"]["sets"]["standing"]["after"]["low"] is None


def test_a_margin_that_is_no_number_comes_back_as_well() -> None:
    found = result("general", [(math.nan, 1)] * 9, [(1.0, 1)] * 9, seed=1)
    report = Report("c", "b", 9, 9, found.before, found.after, found.difference, False, [], sets={"general": found})
    assert math.isnan(found.margin) and math.isnan(
        Report.from_json(strictly(json.dumps(report.to_json()))).sets["general"].margin
    )


def test_chance_is_told_from_knowledge_by_the_exact_tail() -> None:
    assert not above_chance(25, 100, 0.25) and not above_chance(33, 100, 0.25)
    assert above_chance(35, 100, 0.25) and above_chance(200, 200, 0.25)
    assert not above_chance(0, 10, 0.25)


def test_a_loss_needs_certainty_or_great_size() -> None:
    def verdict(before: list[int], after: list[int]) -> str:
        return result("refused", [(float(x), 1) for x in before], [(float(x), 1) for x in after], seed=1).verdict

    ones = [1] * 40
    assert verdict(ones, ones) == "kept"
    assert verdict(ones, [0, *ones[1:]]) == "kept", "one answer in forty: within the margin"
    assert verdict(ones, [0] * 8 + ones[8:]) == "lost"
    swap = [1, 0] * 20
    assert verdict(swap, [0, 1] * 18 + [0, 0] * 2) == "kept", "a change within chance"
    few = [1] * 6
    assert verdict(few, [0, *few[1:]]) == "kept" and verdict(few, [0, 0, *few[2:]]) == "lost", "five margins, not certain"
    assert verdict([0] * 40, [1] * 8 + [0] * 32) == "gained"
    assert verdict(few[:4], [0] * 4) == "not informative"


# --- real training ----------------------------------------------------------------------------------------------------


def dealt_out_anew(examples: Sequence[Example]) -> list[Example]:
    """Every tutor's turn is another conversation's; each conversation keeps its pupil's turns and its length."""
    draw = random.Random(3)
    groups: dict[int, list[Example]] = {}
    for example in examples:
        groups.setdefault(len(example.messages), []).append(example)
    found = []
    for group in groups.values():
        others = draw.sample(group, len(group))
        for example, other in zip(group, others, strict=True):
            turns = zip(example.messages, other.messages, strict=True)
            said = tuple(theirs if mine.role == "assistant" else mine for mine, theirs in turns)
            found.append(replace(example, messages=said))
    return found


@pytest.mark.slow
@pytest.mark.llama
@pytest.mark.parametrize("sound", [True, False], ids=["sound", "shuffled"])
async def test_tuned_on_sound_examples_it_passes_and_on_shuffled_replies_it_does_not(
    sound: bool, starter_gguf: Path, tmp_path: Path
) -> None:
    from appliance.engine.scheduler import LlamaHandler
    from appliance.settings import Settings
    from appliance.tuning import HuggingFaceTuner, dataset
    from appliance.tuning.gguf import export_adapter
    from appliance.tuning.recipe import Recipe

    content, starter = Settings().content, Settings().starter
    examples = dataset.read_examples(content / "examples")
    data = dataset.build(examples if sound else dealt_out_anew(examples), tmp_path / "data")
    tuner = HuggingFaceTuner(Settings(home=tmp_path / "home"))
    trained = await tuner.fine_tune(starter, data, Recipe(epochs=1.0, length=512), tmp_path / "run")
    export_adapter(trained.adapter, starter, tmp_path / "adapter.gguf")
    before, after = LlamaHandler(starter_gguf, threads=1), LlamaHandler(starter_gguf, tmp_path / "adapter.gguf", threads=1)
    try:
        await before.start()
        await after.start()
        report = await evaluate(before, after, data.held_out, sets=Sets(tutoring=Sets.load(content).tutoring), samples=1)
    finally:
        await before.close()
        await after.close()
    assert report.sets["new"].verdict == "gained", "also the shuffled replies are learnt, and held-out ones are shuffled alike"
    assert report.passed is sound, report.reasons
    assert (MIXED_UP in report.reasons) is not sound
    assert report.sets["speed"].verdict == "kept" and report.samples[0].after
