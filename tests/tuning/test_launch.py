"""Several GPUs share the steps of one run; tried here with two processes on the processor."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import Unsupported
from appliance.settings import Settings
from appliance.tuning import HuggingFaceTuner, checkpoints, dataset
from appliance.tuning.launch import gpus_here, launch_command, processes
from appliance.tuning.loss_log import LossLog
from appliance.tuning.recipe import Recipe, built_in

TWO = Recipe(gpus=2, rank=4, alpha=8, rate=5e-3, epochs=1, batch=4, length=128, checkpoint_every=2)


def test_the_command_follows_the_recipe_and_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = [sys.executable, "-m", "appliance.tuning.train_child"]
    assert launch_command(Recipe(), 4) == launch_command(built_in("several-gpus"), 0) == alone
    four = launch_command(built_in("several-gpus"), 4)
    assert four[four.index("--nproc-per-node") + 1] == "4" and four[-2:] == alone[1:]
    assert "127.0.0.1" in four, "no name of the machine has to be looked up"
    assert [processes(Recipe(gpus=asked), there) for asked, there in ((0, 0), (0, 3), (1, 3), (2, 3))] == [1, 3, 1, 2]
    with pytest.raises(Unsupported, match="asks for 4 GPUs and this machine has 2"):
        launch_command(Recipe(gpus=4), 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "0000:01:00.0").mkdir()
    (tmp_path / "0000:02:00.0").mkdir()
    assert gpus_here(tmp_path) == 2 and gpus_here(tmp_path / "absent") == 0
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert gpus_here(tmp_path) == 1


@pytest.mark.slow
async def test_two_processes_share_a_run(
    tiny: Path, rows: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.tuning.huggingface.gpus_here", lambda: 2)  # none is here: two processes on the processor
    path = tmp_path / "lessons.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    tuner = HuggingFaceTuner(Settings(home=tmp_path / "home"))
    data = dataset.build(dataset.read_examples(path), tmp_path / "data")
    told: list[int] = []

    def tell(stage: str, done: int, _total: int, _left: float | None, _facts: dict[str, Any]) -> None:
        if stage == "train":
            told.append(done)

    trained = await tuner.fine_tune(tiny, data, TWO, tmp_path / "run", on_progress=tell)
    steps = -(-len(data.train) // 8)  # two processes with four conversations each
    log = LossLog(tmp_path / "run" / "loss.jsonl", 10**6).rows
    assert [row["step"] for row in log] == list(range(1, steps + 1)), "one process writes the log"
    assert told == [0, *range(1, steps + 1)], "and one tells"
    assert trained.facts["steps"] == steps and checkpoints.complete(trained.adapter)
    assert log[-1]["loss"] < log[0]["loss"]


@pytest.mark.slow
async def test_processes_that_a_launcher_started_end_with_the_run(
    tiny: Path, rows: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    monkeypatch.setattr("appliance.tuning.huggingface.gpus_here", lambda: 2)
    path = tmp_path / "lessons.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    tuner = HuggingFaceTuner(Settings(home=tmp_path / "home"))
    data = dataset.build(dataset.read_examples(path), tmp_path / "data")
    begun = asyncio.Event()

    def tell(stage: str, done: int, *_rest: object) -> None:
        if stage == "train" and done == 2:
            begun.set()

    run = tuner.fine_tune(tiny, data, replace(TWO, epochs=50), tmp_path / "run", on_progress=tell)
    task = asyncio.create_task(run)
    await asyncio.wait_for(begun.wait(), 300)
    assert len(working(tmp_path / "run")) >= 2
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for _ in range(100):
        if not working(tmp_path / "run"):
            break
        await asyncio.sleep(0.2)
    assert not working(tmp_path / "run")


def working(folder: Path) -> list[int]:
    """Processes that train in this folder."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and str(folder).encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]
