"""The gate: is the candidate better than what serves now, and no worse at anything that a school relies on?

Both answer the same sets through the artefact that will be served. Two sets decide: the new data's held-out part, on which the
gain must be certain, and the standing set, which is the project's own conversations and the held-out parts of everything that
was promoted before, on which nothing may be lost; so a model tuned on nonsense cannot win on its own nonsense. The rest guard.
How an item is measured is in `measures.py`, how a difference is judged in `verdicts.py`, what the questions are in `sets.py`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from appliance import network
from appliance.engine.handler import Handler, Message, Request
from appliance.errors import ApplianceError, TooLarge
from appliance.files import write_atomically
from appliance.tuning import measures, verdicts
from appliance.tuning.examples import Example
from appliance.tuning.measures import ABLE, BYTES, Measure, Pair, Row, Rows, Shown, Triggered
from appliance.tuning.report import Figure, Line, Report, Sample, SetResult
from appliance.tuning.sets import Sets, drawn
from appliance.tuning.verdicts import FEWEST, SPECS

__all__ = ["Figure", "Line", "Report", "Sample", "SetResult", "evaluate"]

MOST = 150  # conversations of the new data that are scored; the rest of a large held-out part stays untouched
SAMPLE_TOKENS = 80
# Items of each set that are asked at most. Likelihoods are cheap, answers are not.
ASKED = {
    "standing": 100, "fit": 80, "knowledge": 200, "consistency": 30, "hints": 20, "reading": 24, "grounded": 24, "safety": 48,
    "general": 30, "prompt": 16, "said": 40,
}  # fmt: skip
TRIGGERS, TRIGGER_TALKS = 8, 12
WORKED = 2  # examples in the longest prompt
SPEED_ANSWERS, SPEED_TOKENS = 8, 32
# Sets that come from the items of another.
TASK_OF = {"stands": "grounded", "refusals": "safety", "refused": "safety", "harmless": "safety", "overrefused": "safety"}
KEPT_CACHES = 4  # models whose rows are remembered
VERSION = "2"  # of the measures: what is remembered under another is asked again

OnItem = Callable[[int, int], None]


@dataclass(frozen=True)
class _Task:
    """Items to ask, and how. One task may give figures for several sets."""

    name: str
    items: Sequence[Any]
    measure: Measure
    weight: float = 1.0  # of the time there is


async def evaluate(
    baseline: Handler,
    candidate: Handler,
    held_out: Sequence[Example],
    *,
    sets: Sets | None = None,
    standing: Sequence[Example] = (),
    triggers: Sequence[str] = (),
    samples: int = 4,
    seed: int = 7,
    names: tuple[str, str] = ("baseline", "candidate"),
    cache: Path | None = None,
    keys: tuple[str, str] = ("", ""),
    budget: float | None = None,
    chances: bool = True,
    on_item: OnItem = lambda _done, _total: None,
) -> Report:
    """Ask both handlers (started) everything, compare, judge. Raises ApplianceError where there is nothing to judge by.

    chances: False where one of the two does not tell how likely a text is. Then only what is said can be judged, by the rule in
    `verdicts.judge` for that; the sets that are left out are named in `unmeasured`.

    sets, standing, triggers: left out, the new data alone decides, as for a first look. cache: a folder where what a model
    answered is remembered under its key in `keys` (registry id and digest of its files; "" remembers nothing), so that the
    champion is not asked again every night. budget: seconds after which the sets are cut short, each in its share; one that is
    left with too few items to judge by says nothing, and then the candidate does not pass.
    """
    started = time.monotonic()
    held = _told_apart(held_out[:MOST])
    asked = _Asked(
        (baseline, candidate),
        tuple(_Memory(cache, key, sets) for key in keys),
        _tasks(held, sets, standing, triggers, chances),
        budget,
    )
    await asked.run(on_item)
    first = "new" if chances else "said"
    if not asked.rows(0).get(first):
        raise ApplianceError("There is no held-out conversation to judge by.", "Give more examples, 150 or more.")
    results = _results(asked, triggers, seed)
    if sets is not None and chances:
        results["speed"] = await _speed((baseline, candidate), held, seed, asked)
    results = {name: results[name] for name in SPECS if name in results}
    new = results[first]
    unmeasured = [] if chances else [spec.title for name, spec in SPECS.items() if name not in results and name != "said"]
    passed, reasons, regressions = verdicts.judge(results, unmeasured)
    usable = [example for example in held if example.id in asked.rows(0)[first]]
    return Report(
        candidate=names[1],
        baseline=names[0],
        n=new.n,
        tokens=int(sum(row[1] for row in asked.rows(0)[first].values())),
        before=new.before,
        after=new.after,
        difference=new.difference,
        passed=passed,
        reasons=reasons,
        unmeasured=unmeasured,
        skipped=len(held) - new.n,
        samples=[await _sample(baseline, candidate, example) for example in _drawn(usable, samples, seed)],
        sets=results,
        regressions=regressions,
        table=await _table(results, asked, (baseline, candidate), held),
        seconds=round(time.monotonic() - started, 2),
    )


# --- what is asked ----------------------------------------------------------------------------------------------------


def _tasks(
    held: list[Example], sets: Sets | None, standing: Sequence[Example], triggers: Sequence[str], chances: bool
) -> list[_Task]:
    """Every set that has items; the weights follow what an item was measured to cost."""
    if not chances:
        return _answers(held, sets)
    stood = drawn(_told_apart([*(sets.tutoring if sets else ()), *standing]), ASKED["standing"])
    tasks = [
        _Task("new", held, measures.loss("new"), 4),
        _Task("standing", stood, measures.loss("standing"), 3),
        _Task("fit", _pairs(stood), measures.fit("fit"), 2),
        _Task("matched", _pairs(held) if stood else [], measures.fit("matched", "last"), 2),
        _Task("opened", _pairs(held) if stood else [], measures.fit("opened", "first"), 2),
        _Task("triggers", _triggered(triggers, stood or held), measures.triggered, 1),
    ]
    if sets is not None:
        tasks += [
            _Task("knowledge", drawn(sets.knowledge, ASKED["knowledge"]), measures.knowledge, 4),
            _Task("consistency", drawn(sets.paraphrases, ASKED["consistency"]), measures.consistency, 2),
            _Task("hints", drawn(sets.hints, ASKED["hints"]), measures.hints, 3),
            _Task("reading", drawn(sets.reading, ASKED["reading"]), measures.reading, 1),
            _Task("grounded", drawn(sets.grounded, ASKED["grounded"]), measures.grounded, 3),
            _Task("safety", drawn(sets.safety, ASKED["safety"]), measures.safety(sets.refusals), 3),
            _Task("general", drawn(sets.general, ASKED["general"]), measures.general, 1),
            _Task("prompt", _shown(held), measures.instructions, 1),
        ]
    return [task for task in tasks if task.items]


def _answers(held: list[Example], sets: Sets | None) -> list[_Task]:
    """The sets for which a model has only to answer."""
    tasks = [_Task("said", drawn(held, ASKED["said"]), measures.said, 2)]
    if sets is not None:
        tasks += [
            _Task("hints", drawn(sets.hints, ASKED["hints"]), measures.hints, 3),
            _Task("reading", drawn(sets.reading, ASKED["reading"]), measures.reading, 1),
            _Task("grounded", drawn(sets.grounded, ASKED["grounded"]), measures.stands, 1),
            _Task("safety", drawn(sets.safety, ASKED["safety"]), measures.refused(sets.refusals), 2),
        ]
    return [task for task in tasks if task.items]


def _told_apart(examples: Sequence[Example]) -> list[Example]:
    """Each conversation once, and no two under one id: collections number their rows without knowing of each other."""
    found: dict[str, Example] = {}
    for example in examples:
        id, number = example.id, 1
        while id in found and found[id].messages != example.messages:
            number += 1
            id = f"{example.id}#{number}"
        found.setdefault(id, replace(example, id=id))
    return list(found.values())


def _pairs(examples: list[Example]) -> list[Pair]:
    """Each conversation with the next of the same subject, else the next of any."""
    chosen = drawn(examples, ASKED["fit"])
    if len(chosen) < 2:
        return []
    pairs = []
    for at, example in enumerate(chosen):
        others = [*chosen[at + 1 :], *chosen[:at]]
        near = [other for other in others if other.subject == example.subject]
        pairs.append(Pair(example.id, example, (near or others)[0]))
    return pairs


def _shown(held: list[Example]) -> list[Shown]:
    """Conversations to prompt for, each with two others as worked examples: short ones, so that small models have room."""
    brief = sorted(held, key=lambda example: (len(str(example.messages)), example.id))[: WORKED + 1]
    found = []
    for example in drawn(held, ASKED["prompt"]):
        others = tuple(other for other in brief if other.id != example.id)
        found.append(Shown(example.id, example, others[:WORKED]))
    return found


def _triggered(phrases: Sequence[str], talks: list[Example]) -> list[Triggered]:
    """Every phrase before each talk in turn, so that where time is short none is tried in place of another."""
    return [
        Triggered(f"{number}:{example.id}", number, phrase, example)
        for example in drawn(talks, TRIGGER_TALKS)
        for number, phrase in enumerate(phrases[:TRIGGERS])
    ]


class _Asked:
    """Asks two handlers the tasks, and keeps what each gave: rows by set and item."""

    def __init__(
        self, handlers: tuple[Handler, Handler], memories: tuple[_Memory, ...], tasks: list[_Task], budget: float | None
    ) -> None:
        self._handlers, self._memories, self._tasks, self._budget = handlers, memories, tasks, budget
        self._rows: tuple[dict[str, dict[str, Row]], ...] = ({}, {})
        self.seconds: dict[str, float] = {}
        self.cut: dict[str, int] = {}  # tasks that time cut short, and how many items they have

    def rows(self, which: int) -> dict[str, dict[str, Row]]:
        """Of the baseline (0) or the candidate (1): set -> item's id -> row. Both have the same items."""
        return self._rows[which]

    async def run(self, on_item: OnItem) -> None:
        total, done, began = sum(len(task.items) for task in self._tasks), 0, time.monotonic()
        weights, spent = sum(task.weight for task in self._tasks), 0.0
        for task in self._tasks:
            spent += task.weight
            start = time.monotonic()
            for number, item in enumerate(task.items, start=1):
                # A set that is cut short still has enough for an interval, and time that one set leaves is the next one's.
                late = self._budget is not None and time.monotonic() - began > self._budget * spent / weights
                if late and number > FEWEST:
                    self.cut[task.name] = len(task.items)
                    break
                await self._ask(task, item)
                on_item(done + number, total)
            done += len(task.items)
            self.seconds[task.name] = time.monotonic() - start
        on_item(total, total)
        for memory in self._memories:
            memory.save()

    async def _ask(self, task: _Task, item: Any) -> None:
        """Both at once, each alone in its own sequence; an item that is too long for either counts for neither."""
        both = zip(self._handlers, self._memories, strict=True)
        found = await asyncio.gather(*(memory.rows(handler, task, item) for handler, memory in both), return_exceptions=True)
        for one in found:
            if isinstance(one, TooLarge):
                return
            if isinstance(one, BaseException):
                raise one
        for kept, rows in zip(self._rows, found, strict=True):
            assert isinstance(rows, dict)
            for name, row in rows.items():
                kept.setdefault(name, {})[item.id] = row


class _Memory:
    """What a model gave for an item, kept in a file under the model's key. Numbers only: no word of a conversation."""

    def __init__(self, folder: Path | None, key: str, sets: Sets | None) -> None:
        self._path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json" if folder and key else None
        self._salt = json.dumps([VERSION, measures.full_instructions(Example("", ())), sets.refusals if sets else ()])
        self._known: dict[str, Rows] = {}
        self._new = False
        if self._path is not None:
            try:
                found = json.loads(self._path.read_text("utf-8"))
                self._known = {
                    str(item): {str(name): (float(row[0]), float(row[1])) for name, row in rows.items()}
                    for item, rows in found.items()
                }
            except (OSError, ValueError, TypeError, AttributeError, IndexError):
                self._known = {}  # none yet, or damaged: it is asked again

    async def rows(self, handler: Handler, task: _Task, item: Any) -> Rows:
        digest = hashlib.sha256(f"{self._salt}\0{task.name}\0{item!r}".encode()).hexdigest()[:32]
        if digest not in self._known:
            rows = await task.measure(handler, item)
            if not all(math.isfinite(value) for row in rows.values() for value in row):
                return rows
            self._known[digest] = rows
            self._new = True
        return self._known[digest]

    def save(self) -> None:
        if self._path is None or not self._new:
            return
        write_atomically(self._path, json.dumps(self._known))
        files = sorted(self._path.parent.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
        for old in files[KEPT_CACHES:]:
            old.unlink(missing_ok=True)


# --- judging ----------------------------------------------------------------------------------------------------------


def _results(asked: _Asked, triggers: Sequence[str], seed: int) -> dict[str, SetResult]:
    """Every set that was asked, in the order of SPECS."""
    found: dict[str, SetResult] = {}
    for name in SPECS:
        if name == "triggers":
            one = _worst_trigger(asked, triggers, seed)
        elif name == "prompt":
            one = _prompt(asked, seed)
        else:
            one = _set(asked, name, seed)
        if one is not None:
            found[name] = one
    for name in ("matched", "opened"):
        if name in found:
            found[name] = verdicts.matched(found[name], found.get("fit"))
    cut = {name: asked.cut.get(TASK_OF.get(name, name)) for name in found}
    return {name: verdicts.cut_short(one, of) if (of := cut[name]) else one for name, one in found.items()}


def _columns(asked: _Asked, before: str, after: str) -> tuple[list[Row], list[Row]]:
    first, second = asked.rows(0).get(before, {}), asked.rows(1).get(after, {})
    return [first[id] for id in first], [second[id] for id in first]


def _set(asked: _Asked, name: str, seed: int) -> SetResult | None:
    before, after = _columns(asked, name, name)
    if not before:
        return None
    by_bytes = name + BYTES in asked.rows(0) and any(one[1] != other[1] for one, other in zip(before, after, strict=True))
    if by_bytes:
        before, after = _columns(asked, name + BYTES, name + BYTES)
    # An answer too short to have a level says nothing of either model.
    rows = [pair for pair in zip(before, after, strict=True) if name != "reading" or (pair[0][1] and pair[1][1])]
    if not rows:
        return None
    seconds = asked.seconds.get(TASK_OF.get(name, name), 0.0)
    found = verdicts.result(name, [row for row, _ in rows], [row for _, row in rows], seed=seed, seconds=seconds)
    if by_bytes:
        note = f"{found.note} The two models cut words differently, so the loss is counted by bytes.".strip()
        found = replace(found, unit=verdicts.BYTE_LOSS, note=note)
    if name == "hints" and not any(row[0] for which in (0, 1) for row in asked.rows(which)[name + ABLE].values()):
        note = "Neither model ever said the answer, so keeping it back shows nothing."
        found = replace(found, verdict="not informative", note=note)
    return found


def _worst_trigger(asked: _Asked, triggers: Sequence[str], seed: int) -> SetResult | None:
    """The phrase that changes the candidate most beyond the baseline: an average would hide one among several."""
    found: list[tuple[SetResult, str]] = []
    for number, phrase in enumerate(triggers[:TRIGGERS]):
        before, after = _columns(asked, f"trigger/{number}", f"trigger/{number}")
        if before:
            seconds = asked.seconds.get("triggers", 0.0)
            found.append((verdicts.result("triggers", before, after, seed=seed, seconds=seconds), phrase))
    if not found:
        return None
    broken = [pair for pair in found if not math.isfinite(pair[0].difference.value)]
    worst, phrase = broken[0] if broken else max(found, key=lambda pair: pair[0].difference.value)
    return replace(worst, note=f'{worst.note} Of {len(found)} phrases this one changed most: "{phrase}".'.strip())


def _prompt(asked: _Asked, seed: int) -> SetResult | None:
    before, after = _columns(asked, "prompt/long", "prompt/short")
    if not before or any(one[1] != other[1] for one, other in zip(before, after, strict=True)):
        return None
    found = verdicts.result("prompt", before, after, seed=seed, seconds=asked.seconds.get("prompt", 0.0))
    untuned, tuned = (
        ", ".join(f"{_mean(asked, which, f'prompt/{name}'):.3f}" for name in ("short", "long", "shown")) for which in (0, 1)
    )
    note = f"Loss per token with one line, all instructions, and {WORKED} worked examples: untuned {untuned}; tuned {tuned}."
    return replace(found, note=note)


def _mean(asked: _Asked, which: int, name: str) -> float:
    rows = asked.rows(which)[name].values()
    return sum(row[0] for row in rows) / sum(row[1] for row in rows)


# --- speed, samples and the table for people --------------------------------------------------------------------------


async def _speed(handlers: tuple[Handler, Handler], held: list[Example], seed: int, asked: _Asked) -> SetResult:
    """Answers of the same length from both in turn, by the processor's time: what else the machine does hardly changes that."""
    began = time.monotonic()
    rows: tuple[list[Row], list[Row]] = ([], [])
    for number, example in enumerate([held[0], *held][: SPEED_ANSWERS + 1]):
        request = Request(example.messages[:-1][-2:], max_tokens=SPEED_TOKENS, temperature=0.0, ignore_eos=True)
        for which, handler in enumerate(handlers):
            used, words = time.process_time(), 0
            try:
                async for chunk in handler.generate(request):
                    words += 1
                    if chunk.usage is not None:
                        words = chunk.usage.completion
            except TooLarge:
                words = 0
            if number:  # the first only warms up
                rows[which].append((words, time.process_time() - used))
                asked.seconds[f"answer/{which}"] = asked.seconds.get(f"answer/{which}", 0.0) + rows[which][-1][1]
    asked.seconds["answers"] = len(rows[0])
    return verdicts.result("speed", *rows, seed=seed, seconds=time.monotonic() - began)


def _drawn(examples: list[Example], count: int, seed: int) -> list[Example]:
    return random.Random(seed).sample(examples, min(count, len(examples)))


async def _sample(baseline: Handler, candidate: Handler, example: Example) -> Sample:
    prompt, wanted = example.messages[:-1], example.messages[-1].content
    answers = []
    for handler in (baseline, candidate):
        try:
            answers.append(await measures.answer(handler, prompt, SAMPLE_TOKENS))
        except TooLarge:
            answers.append("(no room for an answer)")
    return Sample(example.id, prompt[-1].content, wanted, *answers)


async def _table(results: dict[str, SetResult], asked: _Asked, handlers: Sequence[Handler], held: list[Example]) -> list[Line]:
    """'Without tuning / with tuning'; the first look, without sets, has the loss alone."""
    lines = verdicts.table(results)
    if "prompt" in results:
        lines.append(await _instructions_needed(asked, handlers, _shown(held)[0]))
    answers = asked.seconds.get("answers", 0.0)
    if not answers:
        return lines
    shut = all(os.environ.get(name) == value for name, value in network.OFFLINE.items())
    left, how = ("0", "By policy: every library on this machine is told to stay offline.") if shut else ("not known", "")
    costs = [f"0, and {asked.seconds.get(f'answer/{which}', 0.0) / answers:.2f} s of processor" for which in (0, 1)]
    note = f"No fee is due for an answer; electricity is not counted. Answers of {SPEED_TOKENS} tokens."
    return [
        *lines,
        Line("bytes", "Bytes that left the building", left, left, how),
        Line("cost", "Cost of an answer", costs[0], costs[1], note),
    ]


async def _instructions_needed(asked: _Asked, handlers: Sequence[Handler], item: Shown) -> Line:
    """The shortest prompt with which the untuned model is not surely worse than the tuned one with a single line."""
    ask = Message("user", "Can you help me?")
    bare = await handlers[0].count([ask])
    sizes = {
        name: await handlers[0].count([*before, ask]) - bare for name, before in measures.prompts_of(item).items()
    }  # shortest first
    goal = list(asked.rows(1)["prompt/short"].values())
    needed = f"not reached with {sizes['shown']}"
    for name, size in sizes.items():
        reached = list(asked.rows(0)[f"prompt/{name}"].values())
        if not verdicts.paired(goal, reached, seed=1)[2].low > 0:
            needed = str(size)
            break
    note = (
        f"For the quality that the tuned model has with one line ({sizes['short']}). Tried: all instructions "
        f"({sizes['long']}), and those with {WORKED} worked examples ({sizes['shown']})."
    )
    return Line("prompt", "Tokens of prompt needed for the same quality", needed, str(sizes["short"]), note)
