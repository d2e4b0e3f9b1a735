"""Examples as the inputs and outputs of a prompt module, and which of them teach, choose and judge.

Takes rows of {"inputs", "outputs"}, flat rows with the module's own names, and conversations in any format of
`tuning.formats`: of a conversation the first exchange, since that is what a demonstration holds. Hides the split: by a hash of
the inputs and the seed, so that the same rows always fall the same way. Asks no model, and knows nothing of consent.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from appliance import forms, prompts
from appliance.errors import BadInput
from appliance.forms import Field

if TYPE_CHECKING:
    from appliance.prompts import Module
    from appliance.tuning.formats import Example

HELD_OUT, CHOOSE = 0.4, 0.4  # of all rows to judge by; of the rest, to choose between candidates by
MOST = {"train": 60, "choose": 30, "held_out": 100}  # each is asked again for every candidate
MARKS = ("id", "subject", "grade", "author", "consent", "final")  # of a row, beside its inputs and outputs


@dataclass(frozen=True, slots=True)
class Row:
    """One worked example. final: what a first hint must not give away (see the metric hints)."""

    id: str
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    subject: str = ""
    grade: str = ""
    author: str = ""
    final: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Split:
    """train: demonstrations are made of these. choose: candidates are compared on these. held_out: seen by no candidate."""

    train: list[Row]
    choose: list[Row]
    held_out: list[Row]
    digest: str = ""
    left_out: int = field(default=0)

    @property
    def seen(self) -> list[Row]:
        """What a program can have words of."""
        return [*self.train, *(one for one in self.choose if one not in self.train)]


def from_json(facts: Mapping[str, Any]) -> Row:
    return Row(**{**facts, "final": tuple(facts.get("final", ()))})


def read(module: Module, examples: Iterable[Any]) -> tuple[list[Row], int]:
    """The rows that examples make for a module, and how many were too long for a demonstration.

    Raises BadInput that names every one that is no example for it.
    """
    from appliance.tuning.formats import Unfit

    rows, wrong, too_long = [], [], 0
    for number, example in enumerate(examples, 1):
        try:
            row = _row(module, example)
        except Unfit as error:
            wrong += [f"example {number}: {what}" for what, _ in error.problems]
            continue
        except BadInput as error:
            wrong.append(f"example {number}: {error.message}")
            continue
        faults = _faults(module, row)
        if faults and isinstance(_plain(example), Mapping) and "inputs" in _plain(example):
            wrong += [f"example {number}: {one}" for one in faults]
        elif faults:
            too_long += 1
        else:
            rows.append(row)
    if wrong:
        names = f"{_names(module.inputs)} and outputs {_names(module.outputs)}"
        raise BadInput(f"They are no examples for {module.name}: {forms.told(wrong)}.", f"It takes inputs {names}.")
    return rows, too_long


def split(rows: Sequence[Row], seed: int, left_out: int = 0) -> Split:
    """Raises BadInput where there are fewer than two different ones."""
    unique: dict[str, Row] = {}
    for row in rows:
        unique.setdefault(_words(row.inputs), row)
    ordered = [row for _, row in sorted(unique.items(), key=lambda item: _hash(f"{seed}:{item[0]}"))]
    if len(ordered) < 2:
        raise BadInput(
            f"There are {len(ordered)} different examples; two are needed, and with fewer than a dozen nothing can be judged.",
            "Give more: 30 or more let a gain be seen.",
        )
    judged = max(1, round(HELD_OUT * len(ordered)))
    held_out, rest = ordered[:judged], ordered[judged:]
    choosing = max(1, round(CHOOSE * len(rest))) if len(rest) > 1 else 0
    train, choose = rest[choosing:], rest[:choosing] or rest
    told = [[row.inputs, row.outputs] for row in sorted(ordered, key=lambda row: row.id)]
    return Split(
        train[: MOST["train"]], choose[: MOST["choose"]], held_out[: MOST["held_out"]],
        _hash(json.dumps(told, sort_keys=True))[:24], left_out,
    )  # fmt: skip


# --- one example -------------------------------------------------------------------------------------------------------------
def _plain(example: Any) -> Any:
    """A `dspy.Example` as a mapping, without importing dspy."""
    return example.toDict() if callable(getattr(example, "toDict", None)) else example


def _row(module: Module, example: Any) -> Row:
    from appliance.tuning.formats import Example, detect, from_row

    given = _plain(example)
    if isinstance(given, Row):
        return given
    if isinstance(given, Example):
        return _of_talk(module, given)
    if not isinstance(given, Mapping):
        raise BadInput("it is no object")
    names = {one.name for one in (*module.inputs, *module.outputs)}
    if isinstance(given.get("inputs"), Mapping) and isinstance(given.get("outputs"), Mapping):
        return _marked(given, given["inputs"], given["outputs"])
    if {one.name for one in module.outputs} <= given.keys() and len(names) == len(module.inputs) + len(module.outputs):
        parts = ({one.name: given[one.name] for one in side if one.name in given} for side in (module.inputs, module.outputs))
        return _marked(given, *parts)
    row = {**given}
    kind = detect(row)
    if not kind:
        raise BadInput("it has neither inputs and outputs nor messages")
    return _of_talk(module, from_row(row, kind))


def _marked(given: Mapping[str, Any], inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Row:
    own = _hash(json.dumps([inputs, outputs], sort_keys=True, default=str))[:12]
    texts = {name: str(given.get(name) or "") for name in ("subject", "grade", "author") if name not in inputs}
    final = given.get("final") or ()
    final = (final,) if isinstance(final, str) else tuple(map(str, final))
    return Row(str(given.get("id") or f"x{own}"), dict(inputs), dict(outputs), **texts, final=final)


def _of_talk(module: Module, example: Example) -> Row:
    """The first exchange of a conversation."""
    if module.form != "text" or len(module.inputs) != 1:
        raise BadInput("it is a conversation; this module needs inputs and outputs")
    said = [one for one in example.messages if one.role != "system"]
    at = next(place for place, one in enumerate(said) if one.role == "assistant")
    asked = "\n".join(one.content.strip() for one in said[:at])
    pair = ({module.inputs[0].name: asked}, {module.outputs[0].name: said[at].content.strip()})
    return Row(example.id, *pair, example.subject, example.grade, example.author)


def _faults(module: Module, row: Row) -> list[str]:
    inputs = tuple(replace(one, letters=max(one.letters, prompts.LONGEST_INPUT)) for one in module.inputs)
    return forms.faults(row.inputs, inputs, "the inputs") + forms.faults(row.outputs, module.outputs, "the outputs")


def _names(fields: Sequence[Field]) -> str:
    return ", ".join(one.name for one in fields)


def _words(inputs: Mapping[str, Any]) -> str:
    return " ".join(json.dumps(inputs, sort_keys=True, ensure_ascii=False).casefold().split())


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
