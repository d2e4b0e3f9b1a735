"""The public sets that the move detector is learned from and measured on, and which of their rows are held out.

uptake.csv (Demszky et al. 2021, MIT): 1,609 exchanges of elementary mathematics lessons with labels by up to three raters.
cima.json (Stasaski et al. 2020, CC BY 2.5): tutors' replies in language learning, with what each reply does.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

TASKS = {
    "uptake": "uptake_majority",
    "pupil on task": "student_on_task_majority",
    "teacher on task": "teacher_on_task_majority",
    "tutor actions": "",
}


@dataclass(frozen=True)
class Rows:
    """labels: one number a row, or five yes/no for tutor actions. shares: rows x classes, what part of the raters chose it.

    agreed: how many raters gave the label, where that is known.
    """

    pupil: list[str]
    teacher: list[str]
    labels: np.ndarray[Any, Any]
    shares: np.ndarray[Any, Any] | None = None
    agreed: np.ndarray[Any, Any] | None = None


PARTS = (0, 1, 2, 3, 4)  # of the rows, by the pupil's line; the first is held out from the weights that come with the box


def part_of(pupil: str) -> int:
    return int(hashlib.sha256(pupil.encode()).hexdigest(), 16) % len(PARTS)


def rows(data: Path, task: str, parts: Sequence[int]) -> Rows:
    folder = data / "teaching-moves"
    if task == "tutor actions":
        talks = json.loads((folder / "cima.json").read_text("utf-8"))["prepDataset"].values()
        kept = [
            (talk["past_convo"][-1], reply, [int(one) for one in actions])
            for talk in talks
            for reply, actions in zip(talk["tutorResponses"], talk["tutorActions"], strict=True)
            if part_of(talk["past_convo"][-1]) in parts
        ]
        return Rows([one[0] for one in kept], [one[1] for one in kept], np.array([one[2] for one in kept]))
    with (folder / "uptake.csv").open(newline="", encoding="utf-8") as file:
        found = [row for row in csv.DictReader(file) if row[TASKS[task]] and part_of(row["student_text"]) in parts]
    return Rows(
        [row["student_text"] for row in found],
        [row["teacher_text"] for row in found],
        np.array([int(float(row[TASKS[task]])) for row in found]),
        agreed=np.array([float(row[TASKS[task].replace("majority", "num_agree")]) for row in found]),
    )


def uptake_shares(data: Path, parts: Sequence[int]) -> Rows:
    """Every row of these parts that a rater judged for uptake; where they did not agree its label is -1."""
    with (data / "teaching-moves" / "uptake.csv").open(newline="", encoding="utf-8") as file:
        found = [row for row in csv.DictReader(file) if row["uptake"] and part_of(row["student_text"]) in parts]
    means = np.array([float(row["uptake"]) for row in found])
    low = np.floor(means).astype(int)
    shares = np.zeros((len(found), 3))
    shares[np.arange(len(found)), low] += 1 - (means - low)
    shares[np.arange(len(found)), np.ceil(means).astype(int)] += means - low
    labels = np.array([int(float(row["uptake_majority"] or -1)) for row in found])
    return Rows([row["student_text"] for row in found], [row["teacher_text"] for row in found], labels, shares)


def macro_f1(truth: np.ndarray[Any, Any], guess: np.ndarray[Any, Any]) -> float:
    """The mean of F1 over classes, or over the five yes/no labels of tutor actions."""
    if truth.ndim == 2:
        pairs = [(truth[:, at] == 1, guess[:, at] == 1) for at in range(truth.shape[1])]
    else:
        pairs = [(truth == label, guess == label) for label in np.unique(truth)]
    scores = []
    for real, said in pairs:
        wrong = int((real != said).sum())
        right = int((real & said).sum())
        scores.append(2 * right / (2 * right + wrong) if right or wrong else 1.0)
    return float(np.mean(scores))


def chosen(scores: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Labels for scores: the highest of three classes, else what is above nothing."""
    if scores.ndim == 2 and scores.shape[1] == 3:
        return scores.argmax(1)
    return (scores > 0).astype(int)


def offsets(truth: np.ndarray[Any, Any], scores: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What to add to each score so that macro-F1 is best: chosen on scores of rows that the model had not seen."""
    spread = scores.std() or 1.0
    steps = np.arange(-1.0, 1.01, 0.1) * spread
    best = np.zeros(scores.shape[1] if scores.ndim == 2 else 1)
    for _ in range(2):
        for at in range(len(best)):
            tried = [best + (np.arange(len(best)) == at) * step for step in steps]
            best = max(tried, key=lambda add: (round(macro_f1(truth, chosen(scores + add)), 6), -float(np.abs(add).sum())))
    return best
