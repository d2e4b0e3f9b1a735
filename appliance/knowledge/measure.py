"""How good is the search? Hits and refusals on a file of questions whose answers are known.

A line with `book_file` and `page` is a hit where a passage of that file and page comes back, or one that stands for it; so is
each further place in its `also_in`. A line without a file, or with `answer_in_books` false, must be refused. A line's
`collection` says whose figures it counts for: of a question that nothing answers, nothing else can say that. Knows the search
only as a function.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from appliance.errors import BadInput, from_os_error

RATES = ("hit_at_1", "hit_at_5", "refused_unanswerable", "refused_answerable")


class _Place(Protocol):
    @property
    def file(self) -> str: ...
    @property
    def page(self) -> int | None: ...


class _Hit(_Place, Protocol):
    @property
    def also(self) -> Sequence[_Place]: ...


class _Answer(Protocol):
    @property
    def covered(self) -> bool: ...
    @property
    def lexical_only(self) -> bool: ...
    @property
    def passages(self) -> Sequence[_Hit]: ...


async def check(
    path: Path,
    search: Callable[[Sequence[str]], Awaitable[Sequence[_Answer]]],
    shelves: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Rates between 0 and 1, None where the file has no question of that sort; `rank` counts from 1, None is a miss.

    `shelves` (file to collection) adds the rates of each collection: of questions that name it, or whose file lies there. What
    is in none of them counts for the whole.
    `intervals`: where each rate may lie, given so few questions. `lexical_only`: the embedder was away.
    Raises BadInput naming the line at fault.
    """
    rows = await asyncio.to_thread(questions_of, path)
    answers = await search([row["question"] for row in rows])
    questions: list[dict[str, Any]] = []
    outcomes: dict[str, list[bool]] = {name: [] for name in RATES}
    parts: dict[str, dict[str, list[bool]]] = {}
    known = list((shelves or {}).values())
    for row, answer in zip(rows, answers, strict=True):
        answerable = is_answerable(row)
        place = rank(row, answer.passages) if answerable else None
        questions.append({"question": row["question"], "rank": place, "covered": answer.covered})
        shelf = row.get("collection")
        if shelf not in known:
            shelf = (shelves or {}).get(row["book_file"]) if answerable else None
        for counts in [outcomes] if shelf is None else [outcomes, parts.setdefault(shelf, {name: [] for name in RATES})]:
            if answerable:
                counts["hit_at_1"].append(place == 1)
                counts["hit_at_5"].append(place is not None and place <= 5)
            counts["refused_answerable" if answerable else "refused_unanswerable"].append(not answer.covered)
    return {
        **{name: _rate(outcomes[name]) for name in RATES},
        "intervals": {name: interval(sum(outcomes[name]), len(outcomes[name])) for name in RATES},
        "collections": {shelf: _of_one(counts) for shelf, counts in sorted(parts.items())},
        "lexical_only": any(answer.lexical_only for answer in answers),
        "questions": questions,
    }


def interval(hits: int, of: int) -> tuple[float, float] | None:
    """Wilson's interval: where the true rate lies in 95 of 100 cases. None where nothing was asked."""
    if not of:
        return None
    z = 1.96
    rate, spread = hits / of, z * z / of
    middle = (rate + spread / 2) / (1 + spread)
    reach = z * math.sqrt(rate * (1 - rate) / of + spread / of / 4) / (1 + spread)
    return round(max(0.0, middle - reach), 4), round(min(1.0, middle + reach), 4)


def _of_one(counts: Mapping[str, Sequence[bool]]) -> dict[str, Any]:
    asked = len(counts["refused_answerable"]) + len(counts["refused_unanswerable"])
    return {**{name: _rate(counts[name]) for name in RATES}, "asked": asked}


def is_answerable(row: Mapping[str, Any]) -> bool:
    return "book_file" in row and row.get("answer_in_books") is not False


def rank(row: Mapping[str, Any], passages: Sequence[_Hit]) -> int | None:
    """At which place the right passage came, from 1; None where it did not come."""
    others = row.get("also_in")
    right = [row, *(other for other in (others if isinstance(others, list) else []) if isinstance(other, dict))]
    for place, passage in enumerate(passages, 1):
        for one in (passage, *passage.also):
            if any(one.file == at.get("book_file") and at.get("page") in (None, one.page) for at in right):
                return place
    return None


def _rate(outcomes: Sequence[bool]) -> float | None:
    return round(sum(outcomes) / len(outcomes), 4) if outcomes else None


def questions_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of questions. Blocking; raises BadInput naming the line at fault."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except UnicodeDecodeError:
        raise BadInput(f"{path.name} is not UTF-8 text.", "Save it as UTF-8.") from None
    except OSError as error:
        raise from_os_error(error, f"reading {path.name}") from error
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("question"), str):
            raise BadInput(f"Line {number} of {path.name} is not a JSON object with a question.", "Correct that line.")
        rows.append(row)
    if not rows:
        raise BadInput(f"{path.name} holds no questions.", 'Write one {"question": ...} a line.')
    return rows
