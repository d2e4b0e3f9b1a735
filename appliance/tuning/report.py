"""What the gate found, as a record: read by the commands, the page of the report and the registry.

Plain values that survive a round trip through JSON, also of reports written before there were sets. Measures and judges
nothing: the figures are made in `evaluate.py`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

Role = Literal["primary", "guard", "information"]
Better = Literal["higher", "lower"]
Verdict = Literal["gained", "kept", "lost", "not informative"]


@dataclass(frozen=True, slots=True)
class Figure:
    """An estimate with its 95 % bootstrap interval, in the unit of its set (natural log per token for losses)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class SetResult:
    """One set of questions, answered by both models. `difference` is after minus before, paired, whatever is better.

    name: its key. title: what it asks, in plain words. n: items that both answered. margin: the largest loss that is let pass,
    in `unit`, a positive number (0 on sets that only inform). note: why the verdict is what it is, or what to know of the set.
    """

    name: str
    title: str
    role: Role
    unit: str
    better: Better
    n: int
    before: Figure
    after: Figure
    difference: Figure
    margin: float
    verdict: Verdict
    note: str = ""
    seconds: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the report's first table, ready to print: `without` tuning (the baseline) and `tuned` (the candidate)."""

    name: str
    title: str
    without: str
    tuned: str
    note: str = ""


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
    """`before`, `after`, `difference`: the new data's held-out part; after minus before, paired: negative is better.

    n: its conversations, of `tokens` tutor's tokens. sets: every set that was asked, by name, primary ones first. regressions:
    a sentence for each set that was lost. table: 'without tuning / with tuning', for people. people: what people chose between
    the answers of these two models without knowing whose they were (`blind.Result` as JSON, the candidate as `b`), or nothing.
    unmeasured: titles of the sets that could not be asked, because one of the two does not tell how likely a text is; then the
    figures are those of the set `said`, more is better, and `tokens` counts its answers.
    """

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
    sets: dict[str, SetResult] = field(default_factory=dict)
    regressions: list[str] = field(default_factory=list)
    table: list[Line] = field(default_factory=list, compare=False)
    seconds: float = field(default=0.0, compare=False)
    people: dict[str, Any] = field(default_factory=dict, compare=False)
    unmeasured: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = finite(asdict(self))
        return found

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Report:
        """A report that was written by this or an earlier version; what others added to it is passed over."""
        known = {name: value for name, value in row.items() if name in {field.name for field in fields(cls)}}
        known |= _figures(row)
        known["samples"] = [Sample(**sample) for sample in row.get("samples", [])]
        known["sets"] = {name: SetResult(**result) for name, result in _results(row.get("sets", {})).items()}
        known["table"] = [Line(**line) for line in row.get("table", [])]
        known["people"] = row.get("people") or {}
        return cls(**known)


def finite(value: Any) -> Any:
    """The value as JSON can hold it: a figure that is no finite number becomes null."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: float | None) -> float:
    """A figure as it was before `finite`."""
    return math.nan if value is None else value


def _figures(row: dict[str, Any]) -> dict[str, Figure]:
    names = ("before", "after", "difference")
    return {name: Figure(**{part: _number(value) for part, value in row[name].items()}) for name in names}


def _results(rows: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: row | _figures(row) | {"margin": _number(row["margin"])} for name, row in rows.items()}
