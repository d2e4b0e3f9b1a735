"""Judging a registered model again: while nobody withdraws, and for whatever was made here. No model is loaded."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import UnderWay
from appliance.registry import Registry
from appliance.settings import Settings
from appliance.tuning import dataset, judging
from appliance.tuning.report import Figure, Report
from appliance.tuning.run_folder import RunFolder, only_run, tuning_lock_held, write_json
from tests.tuning.test_pipeline import add, example


@pytest.fixture
def registry(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """A base, and a model merged of it and of what a run trained, which has its data."""
    monkeypatch.setattr(Settings, "content", property(lambda self: self.home / "content"))
    registry = Registry(settings.models)
    add(registry, "small")
    run = RunFolder(settings.runs / "run")
    data = dataset.build([example(number) for number in range(60)], run.path / "data")
    write_json(run.path / "recipe.json", {})
    run.named("merged")
    folder = settings.models.parent / "made-merged"
    folder.mkdir()
    (folder / "model.gguf").write_bytes(b"merged")
    registry.add(
        folder, id="merged", kind="merged", title="merged", licence="MIT", context=64, parents=("small",),
        dataset=data.digest, report={"passed": True, "baseline": "old", "parity": {"conversations": 9}},
    )  # fmt: skip
    registry.promote("small")
    return registry


@pytest.fixture(autouse=True)
def _gate(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.asynccontextmanager
    async def serving(*_words: Any) -> AsyncIterator[tuple[None, None]]:
        yield None, None

    async def evaluate(*_words: Any, **_more: Any) -> Report:
        with pytest.raises(UnderWay):
            tuning_lock_held(settings.run / "tune.lock")  # as withdrawing does before it erases
        figure = Figure(0.1, 0.0, 0.2)
        return Report("merged", "small", 9, 90, figure, figure, figure, False, ["It is worse."])

    monkeypatch.setattr(judging, "serving", serving)
    monkeypatch.setattr(judging, "evaluate", evaluate)
    monkeypatch.setattr(judging.report_page, "save", lambda _settings, _report, path, _run: path)


async def test_nothing_is_erased_while_it_judges_and_the_verdict_replaces_the_old_one(
    settings: Settings, registry: Registry
) -> None:
    found = await judging.judge(settings, "merged")
    assert found.own and not found.report.passed
    kept = registry.get("merged").report
    assert kept is not None and (kept["passed"], kept["baseline"], kept["parity"]) == (False, "small", {"conversations": 9})
    assert json.loads(Path(found.json).read_text("utf-8"))["baseline"] == "small"
    tuning_lock_held(settings.run / "tune.lock")


async def test_it_waits_for_no_run(settings: Settings, registry: Registry) -> None:
    assert registry.get("merged").report
    with only_run(settings.run / "tune.lock"), pytest.raises(UnderWay):
        await judging.judge(settings, "merged")
    assert not settings.reports.exists()
