"""How good the trained classifier is: on exchanges written for this, and on held-out rows of the public sets where they are."""

from __future__ import annotations

import functools
import importlib.util
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from appliance.practice import listening
from appliance.practice.listening import ACTIONS, Reading
from appliance.practice.moves import detect

WRITTEN = tomllib.loads((Path(__file__).parent / "moves-exchanges.toml").read_text("utf-8"))
# Floors of macro-F1, somewhat under what the bench measures: whoever trains anew sees here that something was lost.
ON_WRITTEN = {"uptake": 0.85, "pupil on task": 0.85, "teacher on task": 0.75} | dict.fromkeys(ACTIONS[:4], 0.85)
ON_HELD_OUT = {"uptake": 0.5, "pupil on task": 0.67, "teacher on task": 0.67, "tutor actions": 0.65}
# The sets that the sentence model is heard for: each takes its time.
NEEDED = {"uptake": (), "pupil on task": ("lessons",), "teacher on task": ("lessons",), "tutor actions": ("tutoring",)}
reading = functools.cache(listening.read)


@pytest.fixture(scope="module")
def sets() -> Any:
    """`scripts/move_data.py`."""
    spec = importlib.util.spec_from_file_location("move_data", Path(__file__).parents[2] / "scripts" / "move_data.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def given(label: str, pupil: str, teacher: str) -> bool:
    """Whether a label is given: uptake as a lesson has it, the others as the classifier reads them."""
    if label == "uptake":
        return any(move.id == "uptake" for move in detect(teacher, [pupil]))
    found = listening.read(teacher, pupil)
    on_task = {"pupil on task": found.pupil_on_task, "teacher on task": found.teacher_on_task}
    return on_task.get(label, label in found.actions)


@pytest.mark.parametrize("label", ON_WRITTEN)
def test_every_trained_label_is_found_in_exchanges_written_for_it(label: str, sets: Any) -> None:
    least = 20 if label == "uptake" else 10
    assert len(WRITTEN[label]["yes"]) >= least and len(WRITTEN[label]["no"]) >= least
    lines = [(line.partition(" => "), side) for side in ("yes", "no") for line in WRITTEN[label][side]]
    truth = np.array([side == "yes" for _, side in lines])
    guess = np.array([given(label, pupil, teacher) for (pupil, _, teacher), _ in lines])
    wrong = [line for line, missed in zip(lines, truth != guess, strict=True) if missed]
    assert sets.macro_f1(truth, guess) >= ON_WRITTEN[label], wrong


@pytest.mark.parametrize("task", ON_HELD_OUT)
def test_on_held_out_rows_of_the_public_sets_it_keeps_its_floor(task: str, sets: Any, shared_data: Path) -> None:
    if not (shared_data / "teaching-moves").is_dir():
        pytest.skip("the labelled exchanges are not here")
    held = sets.rows(shared_data, task, [0])
    needed = [
        kind for kind, (names, _) in listening.PAIRED.items() if task in names or (task, names) == ("tutor actions", ACTIONS)
    ]
    found = [listening.read(teacher, pupil, needed) for teacher, pupil in zip(held.teacher, held.pupil, strict=True)]
    assert sets.macro_f1(held.labels, np.array([labels(task, one) for one in found])) >= ON_HELD_OUT[task]


def labels(task: str, found: Reading) -> Any:
    """As the sets have them."""
    if task == "tutor actions":
        return [int(action in found.actions) for action in ACTIONS]
    return int({"uptake": found.uptake, "pupil on task": found.pupil_on_task, "teacher on task": found.teacher_on_task}[task])
