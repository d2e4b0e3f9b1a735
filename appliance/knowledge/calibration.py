"""How much evidence an answer needs in a collection, fitted to questions of which it is known whether it answers them.

A logistic curve through the best evidence of each question, both sorts weighing the same: the threshold is where an answer is
as likely as none. Five times a fifth of the questions is held out, so that the mistakes told are those on questions that the
fit did not see. Hides the fit. Knows the search only as a function, and of the database only where the threshold is kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

import numpy as np
import sqlalchemy as sa

from appliance.db import Database
from appliance.errors import BadInput, ModelUnavailable, NotFound
from appliance.knowledge.measure import interval, is_answerable, questions_of
from appliance.tables import collections

LEAST = 20  # questions of either sort: with fewer, one odd question moves the threshold
FOLDS = 5
RIDGE = 1e-3  # where the two sorts do not overlap, the steepest curve would be without end


class _Found(Protocol):
    @property
    def lexical_only(self) -> bool: ...
    @property
    def best(self) -> float: ...


async def calibrate(
    path: Path, search: Callable[[Sequence[str]], Awaitable[Sequence[_Found]]], files: Collection[str]
) -> dict[str, Any]:
    """The threshold for the collection that holds `files`, and the mistakes to expect with it, with their intervals.

    Questions that other files answer are left out. Raises BadInput where there are too few of either sort, ModelUnavailable
    where the search goes by words alone: their evidence is measured with another ruler.
    """
    rows = await asyncio.to_thread(questions_of, path)
    chosen = [row for row in rows if not is_answerable(row) or row["book_file"] in files]
    known = [is_answerable(row) for row in chosen]
    counts = {"answerable": sum(known), "unanswerable": len(known) - sum(known)}
    if min(counts.values()) < LEAST:
        raise BadInput(
            f"{path.name} holds {counts['answerable']} questions that this collection answers and {counts['unanswerable']} "
            f"that it does not; fitting a threshold takes {LEAST} of each.",
            "Write more of the sort that is short, as your pupils would ask them.",
        )
    found = await search([row["question"] for row in chosen])
    if any(one.lexical_only for one in found):
        raise ModelUnavailable("A threshold cannot be fitted while the search goes by words alone.", "Start the engine.")
    best = [one.best for one in found]
    if _mean(best, known, True) <= _mean(best, known, False):
        raise BadInput(
            "The questions that this collection does not answer find as much in it as those that it answers.",
            "Look whether `book_file` and `answer_in_books` are right, then run this again. The threshold stays as it was.",
        )
    refused = held_out(best, known)
    wrong = [no for no, answerable in zip(refused, known, strict=True) if answerable]
    right = [no for no, answerable in zip(refused, known, strict=True) if not answerable]
    return {
        "threshold": round(fit(best, known), 4),
        **counts,
        "refused_answerable": round(sum(wrong) / len(wrong), 4),
        "refused_unanswerable": round(sum(right) / len(right), 4),
        "intervals": {
            "refused_answerable": interval(sum(wrong), len(wrong)),
            "refused_unanswerable": interval(sum(right), len(right)),
        },
    }


def keep(database: Database, collection: str, threshold: float | None) -> None:
    """What an answer needs in the collection of this name from now on; None: the usual. Blocking; raises NotFound."""
    with database.begin() as connection:
        chosen = sa.update(collections).where(collections.c.name == collection).values(threshold=threshold)
        if not connection.execute(chosen).rowcount:
            raise NotFound(f"There is no collection named {collection}.", "See `appliance docs collections`.")


def _mean(best: Sequence[float], answerable: Sequence[bool], sort: bool) -> float:
    return fmean(one for one, known in zip(best, answerable, strict=True) if known is sort)


def fit(best: Sequence[float], answerable: Sequence[bool]) -> float:
    """The evidence at which an answer is as likely as none. There must be questions of both sorts."""
    x = np.asarray(best, dtype=float)
    y = np.asarray(answerable, dtype=float)
    middle, spread = x.mean(), x.std() or 1.0
    rows = np.stack([(x - middle) / spread, np.ones_like(x)], axis=1)
    weights = np.where(y > 0, 0.5 / y.sum(), 0.5 / (len(y) - y.sum()))
    curve = np.zeros(2)
    for _ in range(50):  # Newton's steps; it is convex
        chance = 1 / (1 + np.exp(-np.clip(rows @ curve, -30, 30)))
        slope = rows.T @ (weights * (chance - y)) + RIDGE * np.array([curve[0], 0.0])
        bend = (rows * (weights * np.maximum(chance * (1 - chance), 1e-9))[:, None]).T @ rows + RIDGE * np.eye(2)
        step = np.linalg.solve(bend, slope)
        curve -= step
        if np.abs(step).max() < 1e-9:
            break
    if curve[0] <= 0:  # the evidence says nothing: what is known is answered best by the middle
        return float(middle)
    return float(middle - spread * curve[1] / curve[0])


def held_out(best: Sequence[float], answerable: Sequence[bool]) -> list[bool]:
    """Of each question, whether it is refused by a threshold that was fitted without it."""
    refused = [False] * len(best)
    for fold in range(FOLDS):
        # Sort by sort, one in five: files list the answerable first.
        seen = {True: 0, False: 0}
        inside = []
        for number, known in enumerate(answerable):
            if seen[known] % FOLDS == fold:
                inside.append(number)
            seen[known] += 1
        rest = [number for number in range(len(best)) if number not in set(inside)]
        threshold = fit([best[number] for number in rest], [answerable[number] for number in rest])
        for number in inside:
            refused[number] = best[number] < threshold
    return refused
