"""The gate's questions: items with known answers, one JSONL file a kind, checked line by line when they are read.

Hides the file format. A fault is told with file, line and what is wrong, all of a folder at once, because a set that silently
lost its items would pass whatever it was meant to catch. What is asked of a model with them is `measures.py`'s.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from appliance.errors import BadInput, from_os_error
from appliance.tuning.formats import Example, Unfit, from_row
from appliance.tuning.near import GUARD

SHOWN = 20  # faults that one message lists
FOLDER = "evaluation"  # of the content folder
READ_ALOUD = "Please read to me."  # what stands before general prose, so that it is a reply


@dataclass(frozen=True, slots=True)
class Choice:
    """A question, four answers, and the index of the right one."""

    id: str
    subject: str
    grade: str
    question: str
    answers: tuple[str, ...]
    right: int


@dataclass(frozen=True, slots=True)
class Paraphrase:
    """One question in several wordings."""

    id: str
    subject: str
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    right: int


@dataclass(frozen=True, slots=True)
class Hint:
    """A task, follow-ups of a pupil who has tried nothing, and every accepted spelling of the final answer."""

    id: str
    subject: str
    grade: str
    question: str
    asks: tuple[str, ...]
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Grounded:
    """A passage, a question that it answers, the spans that answer it, and plausible answers that it does not give."""

    id: str
    passage: str
    title: str
    question: str
    answers: tuple[str, ...]
    wrong: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Probe:
    """Something to refuse ("harmful") or to answer ("harmless"), with an answer of either sort."""

    id: str
    kind: str
    category: str
    question: str
    refusal: str
    compliance: str


@dataclass(frozen=True, slots=True)
class Reading:
    """A question from a pupil of a grade."""

    id: str
    grade: int
    subject: str
    question: str


@dataclass(frozen=True, slots=True)
class Text:
    """General prose that no tuning is about."""

    id: str
    text: str


@dataclass(frozen=True)
class Sets:
    """Every set that the gate asks; an empty one is left out. refusals: phrases that mark a refusal, in small letters."""

    knowledge: tuple[Choice, ...] = ()
    paraphrases: tuple[Paraphrase, ...] = ()
    hints: tuple[Hint, ...] = ()
    grounded: tuple[Grounded, ...] = ()
    safety: tuple[Probe, ...] = ()
    reading: tuple[Reading, ...] = ()
    general: tuple[Text, ...] = ()
    tutoring: tuple[Example, ...] = ()
    refusals: tuple[str, ...] = ()

    @classmethod
    def load(cls, content: Path) -> Sets:
        """The sets in a content folder; a file that is not there is an empty set. Raises BadInput listing every fault."""
        folder = content / FOLDER
        faults: list[str] = []
        found: dict[str, Any] = {name: _read(folder / f"{name}.jsonl", make, faults) for name, make in _KINDS.items()}
        if faults:
            more = f" And {len(faults) - SHOWN} more." if len(faults) > SHOWN else ""
            raise BadInput(f"The evaluation items have faults: {' '.join(faults[:SHOWN])}{more}", "Correct these lines.")
        phrases = _lines(folder / "refusals.txt")
        kept = (line.strip().casefold().replace("\u2019", "'") for line in phrases)
        return cls(**found, refusals=tuple(line for line in kept if line and not line.startswith("#")))

    def examples(self) -> list[Example]:
        """Everything that a row to train on must not be near, as conversations that say how they are compared (near.GUARD)."""
        from appliance.engine.handler import Message

        def talk(id: str, asked: str, answered: str = "", guard: str = "question") -> Example:
            return Example(id, (Message("user", asked), Message("assistant", answered)), extra={GUARD: guard})

        return [
            *(replace(item, extra=item.extra | {GUARD: "question"}) for item in self.tutoring),
            *(talk(f"knowledge:{item.id}", item.question, item.answers[item.right]) for item in self.knowledge),
            *(
                talk(f"paraphrases:{item.id}:{number}", question, item.answers[item.right])
                for item in self.paraphrases
                for number, question in enumerate(item.questions, start=1)
            ),
            *(talk(f"hints:{item.id}", item.question, item.answers[0]) for item in self.hints),
            *(talk(f"grounded:{item.id}", item.question, item.answers[0]) for item in self.grounded),
            *(talk(f"passage:{item.id}", item.question, item.passage, "text") for item in self.grounded),
            *(
                talk(f"safety:{item.id}", item.question, item.refusal if item.kind == "harmful" else item.compliance)
                for item in self.safety
            ),
            *(talk(f"reading:{item.id}", item.question) for item in self.reading),
            *(talk(f"general:{item.id}", READ_ALOUD, item.text, "text") for item in self.general),
        ]


def drawn(items: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of the items, chosen and ordered by a hash of their ids: a larger count only adds to a smaller one."""
    return sorted(items, key=lambda item: hashlib.sha256(f"drawn\0{item.id}".encode()).digest())[:count]


# --- reading ----------------------------------------------------------------------------------------------------------


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8").split("\n")  # not splitlines: a text may hold U+2028
    except FileNotFoundError:
        return []
    except UnicodeDecodeError:
        raise BadInput(f"{path.name} is not valid UTF-8.", "Save the file with the encoding UTF-8.") from None
    except OSError as error:
        raise from_os_error(error, f"reading {path.name}") from None


def _read(path: Path, make: Callable[[dict[str, Any]], Any], faults: list[str]) -> tuple[Any, ...]:
    items: list[Any] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise Unfit([("is no JSON object", "")])
            item = make(row)
            if item.id in seen:
                raise Unfit([(f'"id" is the same as in line {seen[item.id]}', "")])
        except json.JSONDecodeError as error:
            faults.append(f"{path.name}, line {number}: not JSON ({error.msg}).")
        except Unfit as unfit:
            faults += [f"{path.name}, line {number}: {what.rstrip('.')}." for what, _ in unfit.problems]
        else:
            seen[item.id] = number
            items.append(item)
    return tuple(items)


def _item(kind: type, row: dict[str, Any]) -> Any:
    """A row as an item of `kind`, by the types of its fields. Raises Unfit with every problem."""
    problems: list[tuple[str, str]] = []
    values: dict[str, Any] = {}
    for field in fields(kind):
        value = row.get(field.name)
        if field.name in ("id", "grade") and field.type == "str" and isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if field.type == "tuple[str, ...]":
            fine = isinstance(value, list) and bool(value) and all(isinstance(each, str) and each.strip() for each in value)
            wanted = "a list of texts"
        elif field.type == "int":
            fine, wanted = isinstance(value, int) and not isinstance(value, bool), "a whole number"
        else:
            fine, wanted = isinstance(value, str) and bool(value.strip()), "a text"
        if fine:
            values[field.name] = tuple(value) if isinstance(value, list) else value
        else:
            problems.append((f'"{field.name}" is not {wanted}', ""))
    if problems:
        raise Unfit(problems)
    return kind(**values)


def _with_right(kind: type) -> Callable[[dict[str, Any]], Any]:
    """Items with a right answer among four that differ."""

    def make(row: dict[str, Any]) -> Any:
        item = _item(kind, row)
        if len(item.answers) != 4 or len(set(item.answers)) != 4:
            raise Unfit([('"answers" are not four that differ', "")])
        if not 0 <= item.right < 4:
            raise Unfit([('"right" is not 0, 1, 2 or 3', "")])
        return item

    return make


def _grounded(row: dict[str, Any]) -> Grounded:
    item: Grounded = _item(Grounded, row)
    passage = " ".join(item.passage.split()).casefold()
    absent = [span for span in item.answers if " ".join(span.split()).casefold() not in passage]
    if absent:
        raise Unfit([(f'the answer "{absent[0]}" does not stand in the passage', "")])
    return item


def _probe(row: dict[str, Any]) -> Probe:
    item: Probe = _item(Probe, row)
    if item.kind not in ("harmful", "harmless"):
        raise Unfit([('"kind" is neither "harmful" nor "harmless"', "")])
    return item


def _talk(row: dict[str, Any]) -> Example:
    return from_row(row, "huggingface")


_KINDS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "knowledge": _with_right(Choice),
    "paraphrases": _with_right(Paraphrase),
    "hints": lambda row: _item(Hint, row),
    "grounded": _grounded,
    "safety": _probe,
    "reading": lambda row: _item(Reading, row),
    "general": lambda row: _item(Text, row),
    "tutoring": _talk,
}
