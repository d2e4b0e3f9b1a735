"""How good an answer of a prompt module is: a number from 0 to 1, with a sentence that an optimiser may learn from.

exact, f1: beside the example's own answer. rubric: a module that scores by the level it gives and whether its quote stands in
the talk, any other by the teaching moves that the example's answer makes. readability: the reading level of the pupil's grade.
hints: the step is handed back, and the answer is not given away. All are counted by rules of the house; none asks a model, so
that a score costs nothing and is the same tomorrow. Several at once count as their mean.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from appliance.errors import BadInput

if TYPE_CHECKING:
    from appliance.plugins.dspy_rows import Row
    from appliance.prompts import Module

FEWEST_WORDS = 5  # of an answer below which a reading level means nothing
TOO_HARD = 4.0  # grades above the band at which nothing is left of the score
HANDED_BACK = frozenset({"elicit", "press", "hint", "check"})  # moves that leave the step to the pupil
AGAINST = frozenset({"tell", "praise_person", "put_down"})
USUAL = {"assessment": ("rubric",)}  # metric of a module where none is asked for; else f1
ENOUGH = 0.5  # of a score, from which on an answer of the model's own may become a demonstration


@dataclass(frozen=True, slots=True)
class Scored:
    """`told`: what was missing, in words for a model that rewrites instructions."""

    value: float
    told: str


def checked(names: Sequence[str], module: Module, rows: Sequence[Row]) -> tuple[str, ...]:
    """The metrics to use. Raises BadInput for a name that is none, and where the rows lack what one needs."""
    wanted = tuple(dict.fromkeys(names)) or USUAL.get(module.name, ("f1",))
    unknown = [name for name in wanted if name not in METRICS]
    if unknown:
        raise BadInput(f"There is no metric called {unknown[0][:40]!r}.", f"Choose of: {', '.join(METRICS)}.")
    if {"readability", "hints"} & {*wanted} and module.form != "text":
        raise BadInput(f"{module.name} does not answer pupils in prose.", "Choose exact, f1 or rubric.")
    if "readability" in wanted and any(_band(row) is None for row in rows):
        raise BadInput("The metric readability needs the grade of every example.", "Write it in each row, or give --grade.")
    return wanted


def score(names: Sequence[str], module: Module, row: Row, outputs: Mapping[str, Any]) -> Scored:
    """The mean of the metrics. `outputs`: as `module.parse` gave them."""
    found = [METRICS[name](module, row, outputs) for name in names]
    return Scored(sum(one.value for one in found) / len(found), " ".join(one.told for one in found if one.told))


# --- beside the example's own answer -----------------------------------------------------------------------------------------
def exact(module: Module, row: Row, outputs: Mapping[str, Any]) -> Scored:
    """The share of the outputs that are the same, whatever their case, spaces and full stop."""
    wanted = [one.name for one in module.outputs if one.name in row.outputs]
    same = [_flat(outputs.get(name)) == _flat(row.outputs[name]) for name in wanted]
    value = sum(same) / max(1, len(same))
    return Scored(value, "" if value == 1 else f"Expected exactly: {_shown(row.outputs)}.")


def f1(module: Module, row: Row, outputs: Mapping[str, Any]) -> Scored:
    """Words in common: the harmonic mean of the shares that are right and that were found, over the outputs."""
    wanted = [one.name for one in module.outputs if one.name in row.outputs]
    shares = [_common(_words(outputs.get(name)), _words(row.outputs[name])) for name in wanted]
    value = sum(shares) / max(1, len(shares))
    return Scored(value, "" if value > 0.95 else f"A good answer here is: {_shown(row.outputs)}.")


def _common(said: Counter[str], wanted: Counter[str]) -> float:
    both = (said & wanted).total()
    if not said and not wanted:
        return 1.0
    return 2 * both / (said.total() + wanted.total())


def _words(value: Any) -> Counter[str]:
    return Counter(re.findall(r"\w+", _text(value).casefold()))


def _flat(value: Any) -> str:
    return " ".join(_text(value).casefold().split()).strip(" .!")


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(_text(one) for one in value.values())
    if isinstance(value, (list, tuple)):
        return " ".join(_text(one) for one in value)
    return "" if value is None else str(value)


def _shown(outputs: Mapping[str, Any]) -> str:
    return "; ".join(f"{name}: {_text(value)}" for name, value in outputs.items())[:600]


# --- what a teacher looks for ------------------------------------------------------------------------------------------
def rubric(module: Module, row: Row, outputs: Mapping[str, Any]) -> Scored:
    if "level" in row.outputs:
        return _level(row, outputs)
    wanted, made = _moves(module, row, row.outputs), _moves(module, row, outputs)
    value = _common(Counter(made), Counter(wanted)) if wanted - AGAINST else float(not made & AGAINST)
    missing, against = sorted(wanted - made - AGAINST), sorted(made & AGAINST - wanted)
    told = [f"Missing: {', '.join(map(_about, missing))}." if missing else ""]
    told += [f"Avoid what it did: {', '.join(map(_about, against))}." if against else ""]
    return Scored(value, " ".join(one for one in told if one))


def _level(row: Row, outputs: Mapping[str, Any]) -> Scored:
    wanted, given = row.outputs["level"], outputs.get("level")
    near = max(0.0, 1 - abs(int(wanted) - int(given)) / 2) if isinstance(given, int) else 0.0
    quote = _flat(outputs.get("quote"))
    stands = quote in _flat(" ".join(_text(value) for value in row.inputs.values()))
    told = "" if near == 1 else f"The right level is {wanted}, not {given}."
    return Scored(0.8 * near + 0.2 * stands, told if stands else f"{told} The quote does not stand in the talk.".strip())


def readability(module: Module, row: Row, outputs: Mapping[str, Any]) -> Scored:
    """Whether the answer can be read in the pupil's grade; simpler is no fault."""
    from appliance import reading

    text, band = _text(outputs.get(module.outputs[0].name)), _band(row)
    if band is None or len(re.findall(r"\w+", text)) < FEWEST_WORDS:
        return Scored(0.0, "The answer is too short to be measured.")
    above = reading.index(text) - band
    told = f"Too hard for grade {row.grade}: shorter sentences, shorter words." if above > 0 else ""
    return Scored(min(1.0, max(0.0, 1 - above / TOO_HARD)), told)


def hints(module: Module, row: Row, outputs: Mapping[str, Any]) -> Scored:
    """Whether the first answer is a hint: nothing where it gives the answer away, all where it also asks for a try."""
    from appliance.tuning.measures import says

    text = _text(outputs.get(module.outputs[0].name))
    asked = _text(list(row.inputs.values()))
    if not text.strip() or any(says(text, each) and not says(asked, each) for each in row.final):
        return Scored(0.0, "It gave the answer away: give a hint, and ask for a try first.")
    made = _moves(module, row, outputs)
    back, told = bool(made & HANDED_BACK), "tell" in made
    missing = ["" if back else "It asks for no try of the pupil's own.", "It explains too much at once." if told else ""]
    return Scored((back + (not told)) / 2, " ".join(one for one in missing if one))


def _moves(module: Module, row: Row, outputs: Mapping[str, Any]) -> frozenset[str]:
    """The teaching moves in an answer's words."""
    from appliance.practice import moves

    said = _text([outputs.get(one.name) for one in module.outputs])
    before = [_text(value) for value in row.inputs.values()]
    return frozenset(one.id for one in moves.detect(said, before[-1:]))


def _about(move: str) -> str:
    from appliance.practice.exchange import MOVES

    return MOVES.get(move, move)


def _band(row: Row) -> float | None:
    """The highest reading level of the row's grade."""
    from appliance import teaching

    grade = row.grade or str(row.inputs.get("grade") or "")
    band = teaching.band(grade) if grade else None
    return None if band is None else band.reading[1]


METRICS: Mapping[str, Callable[[Module, Row, Mapping[str, Any]], Scored]] = {
    "exact": exact, "f1": f1, "rubric": rubric, "readability": readability, "hints": hints,
}  # fmt: skip
