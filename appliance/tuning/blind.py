"""Two models side by side, judged by people who do not see which is which.

Hides the file in which answers and choices are kept (`HOME/comparisons`, one line each, flushed to disk at once, so that a
power cut loses at most the choice being made), which answer is shown first, and the arithmetic of the result. Asks no person
anything: the door does; and generates with any two handlers.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from appliance import prompts
from appliance.engine.handler import Handler, Message, Request
from appliance.errors import BadInput, TooLarge, from_os_error
from appliance.files import write_atomically
from appliance.registry import Manifest, Registry
from appliance.settings import Settings
from appliance.tuning.examples import read_examples
from appliance.tuning.sets import Sets, drawn

Verdict = Literal["a", "b", "tie", "bad"]
CERTAIN = 0.95
NO_ROOM = "(no room for an answer)"


@dataclass(frozen=True, slots=True)
class Question:
    """What both models are asked; `id` is for choosing among many."""

    id: str
    text: str
    subject: str = ""
    grade: str = ""


@dataclass(frozen=True, slots=True)
class Pair:
    """One question and both answers, in the comparison's own order of models."""

    key: str
    question: str
    answers: tuple[str, str]


@dataclass(frozen=True, slots=True)
class Result:
    """What people chose. `wins` of model `a` and of model `b`; `bad`: neither answer would do.

    share: of the choices between the two that went to `b`, with its exact 95 % interval; None where nobody chose either.
    """

    a: str
    b: str
    n: int
    wins: tuple[int, int]
    ties: int
    bad: int
    judges: int
    share: tuple[float, float, float] | None

    @property
    def certain(self) -> bool:
        """Whether chance alone would hardly have given this (the sign test at 5 %)."""
        return self.share is not None and not self.share[1] <= 0.5 <= self.share[2]

    @property
    def sentence(self) -> str:
        if self.share is None:
            return f"Nobody has preferred either of {self.a} and {self.b} yet."
        told = f"{self.b} was preferred {_times(self.wins[1])} and {self.a} {_times(self.wins[0])}"
        surely = "That is more than chance." if self.certain else "That may still be chance."
        return f"{told} (ties: {self.ties}, neither would do: {self.bad}). {surely}"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "certain": self.certain, "sentence": self.sentence}


def questions(settings: Settings, file: Path | None, count: int) -> list[Question]:
    """At most `count` questions: the pupils' first ones of a file, else the project's own. The same every time.

    A file holds one question a line, one object with "question" a line, or tutoring examples. Raises BadInput, NotFound.
    """
    if file is None:
        sets = Sets.load(settings.content)
        own = [Question(item.id, item.question, item.subject, str(item.grade)) for item in sets.reading]
        own += [Question(item.id, item.question, item.subject, item.grade) for item in sets.hints]
        return drawn(own, count)
    found = _from_file(file)
    if not found:
        raise BadInput(f"{file.name} holds no question.", "Write one question a line.")
    return found[:count]


def _from_file(file: Path) -> list[Question]:
    if file.suffix not in (".jsonl", ".json", ".toml"):
        try:
            lines = file.read_text("utf-8").split("\n")  # not splitlines: a text may hold U+2028
        except OSError as error:
            raise from_os_error(error, f"reading {file.name}") from None
        except UnicodeDecodeError:
            raise BadInput(f"{file.name} is not valid UTF-8.", "Save the file with the encoding UTF-8.") from None
        return [Question(str(number), line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    asked = _plain_questions(file)
    if asked is not None:
        return asked
    examples = read_examples(file)
    firsts = [next(message.content for message in one.messages if message.role == "user") for one in examples]
    return [Question(one.id, text, one.subject, one.grade) for one, text in zip(examples, firsts, strict=True)]


def _plain_questions(file: Path) -> list[Question] | None:
    """The lines of a JSONL file of {"question": ...} and no answers; None where it is something else."""
    if file.suffix != ".jsonl":
        return None
    found = []
    try:
        for number, line in enumerate(file.read_text("utf-8").split("\n"), 1):
            if not line.strip():
                continue
            row = json.loads(line)
            if not isinstance(row, dict) or not isinstance(row.get("question"), str) or "answer" in row or "messages" in row:
                return None
            found.append(Question(str(number), row["question"], *(str(row.get(key) or "") for key in ("subject", "grade"))))
    except (OSError, ValueError):
        return None  # the reader of examples says what is wrong, and in which line
    return found


class Comparison:
    """The comparison of two registered models: what was answered and chosen so far, and what is still to be judged.

    The two models stand in the order of their ids, whichever was named first, so that both ways of asking are one comparison.
    """

    def __init__(self, settings: Settings, one: Manifest, other: Manifest) -> None:
        if one.id == other.id:
            raise BadInput(f"{one.id!r} cannot be compared with itself.", "Name two models of `appliance models list`.")
        self.models = tuple(sorted((one, other), key=lambda manifest: manifest.id))
        self.a, self.b = (manifest.id for manifest in self.models)
        # "+" stands in no id. A model made anew under an old name is another model, whose answers nobody has judged.
        self.path = settings.comparisons / f"{self.a}+{self.b}.jsonl"
        self._stamp = _stamp(self.models)
        self._rows = [row for row in _read(self.path) if row.get("models") == self._stamp]

    def pairs(self) -> dict[str, Pair]:
        """Every question that both have answered, by key, in the order in which they were asked."""
        rows = [row for row in self._rows if "answers" in row]
        return {row["key"]: Pair(row["key"], row["question"], (row["answers"][0], row["answers"][1])) for row in rows}

    def ordered(self, pairs: Sequence[Pair], first: str) -> list[Pair]:
        """The pairs with the answers of the model `first` in front."""
        return list(pairs) if first == self.a else [replace(pair, answers=pair.answers[::-1]) for pair in pairs]

    def key(self, question: Question) -> str:
        return _digest(self._stamp, question.text, question.subject, question.grade)

    async def answer(
        self,
        handlers: Sequence[Handler],
        asked: Sequence[Question],
        *,
        tokens: int,
        on_item: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> list[Pair]:
        """Both models' greedy answers to every question, and keep them; what was answered before is not asked again.

        handlers: started, in the order of `models`. Raises ModelUnavailable, StorageFull.
        """
        known = self.pairs()
        for done, question in enumerate(asked):
            on_item(done, len(asked))
            key = self.key(question)
            if key not in known:
                said = [await _answer(handler, question, tokens) for handler in handlers]
                known[key] = Pair(key, question.text, (said[0], said[1]))
                self._append({"key": key, "id": question.id, "question": question.text, "answers": said})
        on_item(len(asked), len(asked))
        return [known[self.key(question)] for question in asked]

    def open(self, pairs: Sequence[Pair], judge: str) -> list[Pair]:
        """Those of the pairs on which this person has not chosen yet."""
        done = {row["key"] for row in self._rows if row.get("judge") == judge}
        return [pair for pair in pairs if pair.key not in done]

    def shown(self, pair: Pair, judge: str) -> tuple[str, str]:
        """The answers in the order in which this person sees them: by lot, and the same after a pause."""
        return pair.answers[::-1] if self._swapped(pair, judge) else pair.answers

    def choose(self, pair: Pair, choice: Literal["1", "2", "t", "b"], judge: str) -> None:
        """Keep a choice between the answers as they were shown. Raises StorageFull."""
        if choice in ("1", "2"):
            verdict: Verdict = "b" if (choice == "2") is not self._swapped(pair, judge) else "a"
        else:
            verdict = "tie" if choice == "t" else "bad"
        self._append({"key": pair.key, "judge": judge, "verdict": verdict})

    def result(self, a: str = "", b: str = "") -> Result:
        """What was chosen so far, told for the models in the order (a, b); a person's later choice replaces the earlier."""
        last = {(row["key"], row["judge"]): row["verdict"] for row in self._rows if "verdict" in row}
        counts = Counter(last.values())
        turned = (a, b) == (self.b, self.a)
        wins = (counts["b"], counts["a"]) if turned else (counts["a"], counts["b"])
        names = (self.b, self.a) if turned else (self.a, self.b)
        judges = len({judge for _, judge in last})
        share = interval(wins[1], sum(wins)) if sum(wins) else None
        return Result(*names, len(last), wins, counts["tie"], counts["bad"], judges, share)

    def _swapped(self, pair: Pair, judge: str) -> bool:
        return int(_digest("side", pair.key, judge), 16) % 2 == 1

    def _append(self, row: dict[str, Any]) -> None:
        row = {**row, "models": self._stamp, "at": round(time.time(), 3)}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with open(self.path, "ab") as file:
                # A line that a power cut left half written must not swallow this one.
                torn = file.tell() and not _ends_a_line(self.path)
                line = json.dumps(row, ensure_ascii=True)
                file.write((("\n" if torn else "") + line + "\n").encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise from_os_error(error, "keeping the choice") from None
        self._rows.append(row)


def _times(count: int) -> str:
    return {0: "never", 1: "once", 2: "twice"}.get(count, f"{count} times")


def result(settings: Settings, a: str, b: str) -> Result | None:
    """What people chose between two models, told as (a, b); None where one is gone or nobody compared them."""
    registry = Registry(settings.models)
    found = {manifest.id: manifest for manifest in registry.list()}
    if a == b or a not in found or b not in found:
        return None
    now = Comparison(settings, found[a], found[b]).result(a, b)
    return now if now.n else None


def results(settings: Settings, id: str) -> list[Result]:
    """Every comparison that a model stood in, it as `b`; the one that was judged most often first."""
    names = [path.stem.split("+") for path in sorted(settings.comparisons.glob("*+*.jsonl"))]
    rivals = [other for pair in names if id in pair for other in pair if other != id]
    found = [one for rival in rivals if (one := result(settings, rival, id)) is not None]
    return sorted(found, key=lambda one: -one.n)


def forget(settings: Settings, ids: Collection[str], asked: Collection[str]) -> int:
    """Drop the questions that are withdrawn rows, by id or by their words, with their answers and choices; how many.

    The pages on which they stand beside each other go as well: the next `models compare` writes them anew.
    """
    wanted, words, count = frozenset(ids), {_flat(text) for text in asked}, 0
    for path in sorted(settings.comparisons.glob("*+*.jsonl")):
        rows = _read(path)
        gone = {
            row["key"]
            for row in rows
            if str(row.get("id")) in wanted or ("question" in row and _flat(row["question"]) in words)
        }
        if not gone:
            continue
        kept = [row for row in rows if row["key"] not in gone]
        write_atomically(path, "".join(json.dumps(row, ensure_ascii=True) + "\n" for row in kept))
        count += len(gone)
        a, b = path.stem.split("+", 1)
        try:
            for page in (f"{a}-beside-{b}.html", f"{b}-beside-{a}.html"):
                (settings.reports / page).unlink(missing_ok=True)
        except OSError as error:
            raise from_os_error(error, "erasing a page of answers") from None
    return count


def _flat(text: str) -> str:
    return " ".join(text.casefold().split())


def interval(wins: int, count: int) -> tuple[float, float, float]:
    """A share with its exact 95 % interval, which excludes one half where the sign test does (Clopper and Pearson, 1934)."""
    tail = (1 - CERTAIN) / 2
    low = _where(lambda p: _at_least(wins, count, p) < tail) if wins else 0.0
    high = _where(lambda p: _at_least(wins + 1, count, p) < 1 - tail) if wins < count else 1.0
    return wins / count, low, high


def _at_least(least: int, count: int, p: float) -> float:
    return math.fsum(math.comb(count, k) * p**k * (1 - p) ** (count - k) for k in range(least, count + 1))


def _where(below: Callable[[float], bool]) -> float:
    """The share up to which `below` holds, by halving."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) else (low, middle)
    return (low + high) / 2


# --- the file and the answers -----------------------------------------------------------------------------------------


def _read(path: Path) -> list[dict[str, Any]]:
    """Every line that is whole: one that was being written when the power went is passed over."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise from_os_error(error, "reading the comparison") from None
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("key"), str) and (_answered(row) or _chosen(row)):
            rows.append(row)
    return rows


def _answered(row: dict[str, Any]) -> bool:
    said = row.get("answers")
    return isinstance(said, list) and len(said) == 2 and all(isinstance(one, str) for one in [*said, row.get("question")])


def _chosen(row: dict[str, Any]) -> bool:
    return isinstance(row.get("judge"), str) and row.get("verdict") in ("a", "b", "tie", "bad")


def _ends_a_line(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _stamp(models: Sequence[Manifest]) -> str:
    """What both models are made of, so that choices do not pass on to others of the same name."""
    made_of = [f"{one.id} {one.base} {name} {fact.sha256}" for one in models for name, fact in sorted(one.files.items())]
    elsewhere = [f"{one.id} {one.hosted.get('plugin')} {one.hosted.get('model')}" for one in models if one.hosted]
    return _digest(*made_of, *elsewhere)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


async def _answer(handler: Handler, question: Question, tokens: int) -> str:
    talk: list[Message] = prompts.render(question.text, subject=question.subject or None, grade=question.grade or None)
    parts = []
    try:
        async for chunk in handler.generate(Request(talk, max_tokens=tokens, temperature=0.0)):
            parts.append(chunk.text)
    except TooLarge:
        return NO_ROOM
    return "".join(parts).strip()
