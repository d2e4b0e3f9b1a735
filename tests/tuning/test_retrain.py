"""The whole pipeline on a tiny model: once, again, killed at many moments, refused while another runs."""

from __future__ import annotations

import asyncio
import dataclasses
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.engine.handler import Message, Request
from appliance.errors import BadInput, Conflict, ModelUnavailable, StorageFull
from appliance.registry import Registry
from appliance.settings import Settings
from appliance.tuning import HuggingFaceTuner
from appliance.tuning.gguf import install_base
from appliance.tuning.pipeline import TuneResult, tune
from appliance.tuning.recipe import Recipe
from appliance.tuning.report import Report

pytestmark = [pytest.mark.llama, pytest.mark.slow]
pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

RECIPE = Recipe(rank=4, alpha=8, rate=5e-3, epochs=4, batch=4, length=128, dropout=0.1, checkpoint_every=3)


def figures(report: Report) -> dict[str, Any]:
    """A report without what a clock measured."""
    found = report.to_json()
    for name in ("seconds", "table"):
        del found[name]
    del found["sets"]["speed"]
    for one in found["sets"].values():
        del one["seconds"]
    return found


def box(folder: Path, base: Path) -> tuple[Settings, Registry]:
    settings = Settings(home=folder, disk_reserve_mb=0, threads=1)
    registry = Registry(settings.models)
    registry.root.mkdir(parents=True)
    registry.promote(install_base(registry, base).id)
    return settings, registry


@pytest.fixture(scope="module", autouse=True)
def _few_questions() -> Iterator[None]:
    """A model of random weights has nothing to lose in the gate's questions but luck."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Settings, "content", property(lambda self: self.home / "content"))
        yield


class Told(list[tuple[str, int, int]]):
    def __call__(self, stage: str, done: int, total: int, _left: float | None, _facts: dict[str, Any]) -> None:
        self.append((stage, done, total))

    @property
    def stages(self) -> Counter[str]:
        return Counter(stage for stage, _, _ in self)


@pytest.fixture(scope="module")
def unbroken(tiny: Path, examples_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, TuneResult, Told]:
    settings, registry = box(tmp_path_factory.mktemp("unbroken"), tiny)
    told = Told()
    result = asyncio.run(tune(settings, registry, examples=examples_file, recipe=RECIPE, on_progress=told))
    return settings, result, told


def test_the_result_is_registered_judged_and_promoted(unbroken: tuple[Settings, TuneResult, Told]) -> None:
    settings, result, told = unbroken
    registry = Registry(settings.models)
    manifest = registry.verify(result.id)
    assert result.promoted and result.report.passed
    assert result.report.after.value < 0.9 * result.report.before.value
    assert manifest.kind == "adapter" and manifest.aliases == ("champion",) and manifest.starter
    assert {"adapter.gguf", "hf/adapter_model.safetensors", "hf/adapter_config.json"} <= set(manifest.files)
    assert manifest.report is not None and manifest.report["parity"]["conversations"] >= 8
    assert told.stages.keys() >= {"load", "train", "export", "parity", "evaluate", "register"}
    assert set(result.seconds_by_step) >= {"train", "export", "parity", "evaluate", "register", "promote"}
    json.dumps(result.to_json())


def test_the_run_folder_keeps_the_record(unbroken: tuple[Settings, TuneResult, Told]) -> None:
    _, result, _ = unbroken
    folder = result.folder
    for name in (
        "recipe.json",
        "versions.json",
        "loss.jsonl",
        "loss.svg",
        "train.log",
        "report.json",
        "result.json",
        "data/card.json",
    ):
        assert (folder / name).is_file(), name
    assert json.loads((folder / "recipe.json").read_text("utf-8"))["seed"] == RECIPE.seed
    assert "torch" in json.loads((folder / "versions.json").read_text("utf-8"))
    assert not (folder / "checkpoints").exists()
    assert folder.stat().st_mode & 0o077 == 0


async def test_run_again_nothing_is_done_twice(unbroken: tuple[Settings, TuneResult, Told], examples_file: Path) -> None:
    settings, result, _ = unbroken
    told = Told()
    started = time.monotonic()
    again = await tune(settings, Registry(settings.models), examples=examples_file, recipe=RECIPE, on_progress=told)
    assert again.id == result.id and figures(again.report) == figures(result.report) and again.promoted
    assert not told.stages.keys() & {"train", "export", "parity", "evaluate", "register"}
    assert time.monotonic() - started < 5


async def test_run_again_after_another_model_came_to_serve_it_is_judged_anew(
    unbroken: tuple[Settings, TuneResult, Told], examples_file: Path
) -> None:
    settings, result, _ = unbroken
    registry = Registry(settings.models)
    base = registry.get(result.id).base
    assert base is not None
    registry.promote(base)
    marker = result.folder / "done" / "evaluate.json"
    marker.write_text(json.dumps({"passed": True, "baseline": "somebody-else"}), "utf-8")
    told = Told()
    again = await tune(settings, registry, examples=examples_file, recipe=RECIPE, on_progress=told)
    assert "evaluate" in told.stages and "train" not in told.stages
    assert again.report.difference == result.report.difference and again.promoted
    assert "standing" in again.report.sets, "what was promoted before is asked of it as well"
    assert json.loads(marker.read_text("utf-8"))["baseline"] == base


async def test_a_removed_model_is_registered_again_without_training(
    unbroken: tuple[Settings, TuneResult, Told], examples_file: Path
) -> None:
    settings, result, _ = unbroken
    registry = Registry(settings.models)
    other = await tune(settings, registry, examples=examples_file, recipe=RECIPE, name="second-name", promote=False)
    assert other.id == "second-name" and not other.promoted
    first, second = json.loads((result.folder / "report.json").read_text("utf-8")), other.folder / "named" / "second-name"
    assert first["candidate"] == result.id, "the first verdict stands"
    assert json.loads((second / "report.json").read_text("utf-8"))["candidate"] == "second-name"
    assert json.loads((result.folder / "result.json").read_text("utf-8"))["id"] == result.id
    registry.remove("second-name")
    told = Told()
    await tune(settings, registry, examples=examples_file, recipe=RECIPE, name="second-name", promote=False, on_progress=told)
    assert registry.get("second-name").files == registry.get(result.id).files
    assert not told.stages.keys() & {"train", "export", "parity"}
    registry.remove("second-name")


@pytest.mark.slow
async def test_what_no_adapter_file_can_say_is_served_merged_and_tuned_on_from_its_base(
    tiny: Path, examples_file: Path, tmp_path: Path
) -> None:
    settings, registry = box(tmp_path / "home", tiny)
    base = registry.get("champion").id
    made = await tune(settings, registry, examples=examples_file, recipe=dataclasses.replace(RECIPE, dora=True))
    manifest = registry.verify(made.id)
    assert made.promoted and manifest.kind == "merged" and manifest.base is None and manifest.origin == base
    assert {"model.gguf", "hf/adapter_model.safetensors"} <= set(manifest.files)
    handler = HuggingFaceTuner(settings).create_handler(made.id)
    await handler.start()
    try:
        assert [chunk async for chunk in handler.generate(Request([Message("user", "Go on?")], max_tokens=4))][-1].finish
    finally:
        await handler.close()
    after = await tune(settings, registry, examples=examples_file, recipe=RECIPE, promote=False)
    assert registry.get(after.id).base == base and after.report.baseline == made.id, "judged against what serves"
    with pytest.raises(Conflict):
        registry.remove(base)


async def test_too_few_examples_are_told_before_any_training(tiny: Path, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    settings, registry = box(tmp_path / "home", tiny)
    path = tmp_path / "few.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:7]), "utf-8")
    told = Told()
    with pytest.raises(BadInput) as caught:
        await tune(settings, registry, examples=path, on_progress=told)
    assert "150 or more" in caught.value.hint
    assert not told.stages.keys() - {"read", "dataset"}


async def test_the_tuned_model_answers_through_the_tuner(unbroken: tuple[Settings, TuneResult, Told]) -> None:
    settings, result, _ = unbroken
    tuner = HuggingFaceTuner(settings)
    handler = tuner.create_handler(settings.models / result.id)
    await handler.start()
    try:
        question = [Message("user", "Question 50: what should I notice about the river?")]
        text = "".join([chunk.text async for chunk in handler.generate(Request(question, max_tokens=12))])
        scores = await handler.score([*question, Message("assistant", "Look at the river again.")])
    finally:
        await handler.close()
    assert text and all(score <= 0 for score in scores)
    model, tokenizer = tuner.load_fine_tuned_model(result.id)
    assert model.peft_config and tokenizer.chat_template
    tuner.save_model(model, settings.home / "copy")
    assert (settings.home / "copy" / "adapter_model.safetensors").is_file()
    path = settings.models / result.id / "adapter.gguf"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    try:
        with pytest.raises(ModelUnavailable, match=r"adapter\.gguf"):
            HuggingFaceTuner(settings).create_handler(result.id)
    finally:
        data[-1] ^= 1
        path.write_bytes(data)


async def test_a_name_that_stands_for_something_else_is_refused_before_any_work(
    unbroken: tuple[Settings, TuneResult, Told], examples_file: Path
) -> None:
    settings, result, _ = unbroken
    told = Told()
    with pytest.raises(Conflict, match="another model called"):
        models = Registry(settings.models)
        await tune(settings, models, examples=examples_file, recipe=RECIPE, name=result.id, limit=40, on_progress=told)
    assert not told.stages.keys() - {"read", "dataset"}


async def test_a_second_run_is_refused_while_one_is_under_way(
    unbroken: tuple[Settings, TuneResult, Told], examples_file: Path
) -> None:
    settings, _, _ = unbroken
    with (settings.run / "tune.lock").open("a+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(Conflict, match="already under way"):
            await tune(settings, Registry(settings.models), examples=examples_file, recipe=RECIPE)


async def test_too_little_space_is_told_before_the_start(tiny: Path, examples_file: Path, tmp_path: Path) -> None:
    settings, registry = box(tmp_path, tiny)
    full = Settings(home=tmp_path, disk_reserve_mb=10**9)
    with pytest.raises(StorageFull, match="nothing was started"):
        await tune(full, registry, examples=examples_file, recipe=RECIPE)
    assert not settings.runs.exists() or not any(settings.runs.iterdir())


async def test_bad_examples_stop_before_anything_is_written(tiny: Path, tmp_path: Path) -> None:
    settings, registry = box(tmp_path / "home", tiny)
    path = tmp_path / "bad.jsonl"
    path.write_text("oops\n", "utf-8")
    with pytest.raises(BadInput, match=r"bad\.jsonl, line 1"):
        await tune(settings, registry, examples=path)
    one = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    path.write_text(json.dumps(one), "utf-8")
    with pytest.raises(BadInput):
        await tune(settings, registry, examples=path)
    assert not settings.runs.exists() or not any(
        path.suffix == "" and not path.name.startswith(".") for path in settings.runs.iterdir()
    )


DRIVER = """
import asyncio, json, sys
from pathlib import Path
from appliance.registry import Registry
from appliance.settings import Settings
from appliance.tuning.recipe import Recipe
from appliance.tuning.report import Report
from appliance.tuning.pipeline import tune

Settings.content = property(lambda self: self.home / "content")
home, examples, recipe = Path(sys.argv[1]), Path(sys.argv[2]), Recipe(**json.loads(sys.argv[3]))
settings = Settings(home=home, disk_reserve_mb=0, threads=1)
tell = lambda stage, done, total, left, facts: print(stage, done, flush=True)
asyncio.run(tune(settings, Registry(settings.models), examples=examples, recipe=recipe, on_progress=tell))
print("finished", 0, flush=True)
"""


def run_until(settings: Settings, examples: Path, stage: str, least: int) -> list[tuple[str, int]]:
    """Start the pipeline in a process of its own and kill -9 it at the first report of `stage` from `least` on."""
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(settings.home), str(examples), json.dumps(RECIPE.to_json())],
        stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    told: list[tuple[str, int]] = []
    with process:
        assert process.stdout is not None
        for line in process.stdout:
            name, done = line.split()
            told.append((name, int(done)))
            if name == stage and int(done) >= least:
                os.kill(process.pid, signal.SIGKILL)
                break
        process.stdout.close()
    return told


def children_of(home: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if b"train_child" in words and str(home).encode() in words:
                found.append(int(entry.name))
    return found


def test_killed_at_many_moments_it_ends_in_the_same_adapter(
    unbroken: tuple[Settings, TuneResult, Told], tiny: Path, examples_file: Path, tmp_path: Path
) -> None:
    settings, registry = box(tmp_path, tiny)
    reached = 0
    for stage, least in (("train", 6), ("train", 20), ("export", 0), ("evaluate", 3), ("register", 0)):
        told = run_until(settings, examples_file, stage, least)
        assert told[-1][0] == stage, told
        resumed = [done for name, done in told if name == "train"]
        if resumed:
            assert resumed[0] >= reached // 3 * 3 - 3, "what was kept is not trained again"
            reached = resumed[-1]
        if stage in ("evaluate", "register"):
            assert not resumed, "a finished training is not done again"
        ends = time.monotonic() + 10
        while children_of(settings.home) and time.monotonic() < ends:
            time.sleep(0.05)
        assert not children_of(settings.home), "the training process outlives the one that started it"
        assert registry.champion() is not None and registry.champion() == registry.get(registry.list()[0].id)
    result = asyncio.run(tune(settings, registry, examples=examples_file, recipe=RECIPE))
    _, whole, _ = unbroken
    assert result.promoted and result.id == whole.id
    assert figures(result.report) == figures(whole.report)
    for name in ("adapter/adapter_model.safetensors", "export/adapter.gguf"):
        assert (result.folder / name).read_bytes() == (whole.folder / name).read_bytes(), name
    steps = [json.loads(line)["step"] for line in (result.folder / "loss.jsonl").read_text("utf-8").splitlines()]
    assert steps == list(range(1, len(steps) + 1))
