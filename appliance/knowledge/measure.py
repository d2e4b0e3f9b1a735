"""How good is the search? Hits and refusals on a file of questions whose answers are known.

A line with `book_file` and `page` is a hit where a passage of that file and page comes back; a line without, or with
`answer_in_books` false, must be refused. Knows the search only as a function.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from appliance.errors import BadInput, from_os_error


class _Hit(Protocol):
    @property
    def file(self) -> str: ...
    @property
    def page(self) -> int | None: ...


class _Answer(Protocol):
    @property
    def covered(self) -> bool: ...
    @property
    def passages(self) -> Sequence[_Hit]: ...


async def check(path: Path, search: Callable[[Sequence[str]], Awaitable[Sequence[_Answer]]]) -> dict[str, Any]:
    """Rates between 0 and 1, None where the file has no question of that sort; `rank` counts from 1, None is a miss.

    Raises BadInput naming the line at fault.
    """
    rows = await asyncio.to_thread(_rows, path)
    answers = await search([row["question"] for row in rows])
    questions: list[dict[str, Any]] = []
    ranks: list[int | None] = []
    refused: dict[bool, list[bool]] = {True: [], False: []}
    for row, answer in zip(rows, answers, strict=True):
        answerable = "book_file" in row and row.get("answer_in_books") is not False
        place = _rank(row, answer) if answerable else None
        if answerable:
            ranks.append(place)
        refused[answerable].append(not answer.covered)
        questions.append({"question": row["question"], "rank": place, "covered": answer.covered})
    return {
        "hit_at_1": _rate([place == 1 for place in ranks]),
        "hit_at_5": _rate([place is not None and place <= 5 for place in ranks]),
        "refused_unanswerable": _rate(refused[False]),
        "refused_answerable": _rate(refused[True]),
        "questions": questions,
    }


def _rank(row: dict[str, Any], answer: _Answer) -> int | None:
    for place, passage in enumerate(answer.passages, 1):
        if passage.file == row["book_file"] and (row.get("page") is None or passage.page == row["page"]):
            return place
    return None


def _rate(outcomes: Sequence[bool]) -> float | None:
    return round(sum(outcomes) / len(outcomes), 4) if outcomes else None


def _rows(path: Path) -> list[dict[str, Any]]:
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
