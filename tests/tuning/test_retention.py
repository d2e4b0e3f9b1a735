"""Old runs and candidates make room; what serves, what is needed and every report stay."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from appliance.errors import UnderWay
from appliance.registry import Registry
from appliance.settings import Settings
from appliance.tuning import retention
from appliance.tuning.run_folder import only_run


def add(registry: Registry, name: str, base: str | None) -> None:
    folder = registry.root.parent / f"made-{name}"
    folder.mkdir(parents=True)
    (folder / ("adapter.gguf" if base else "model.gguf")).write_bytes(name.encode() * 100)
    kind = "adapter" if base else "base"
    registry.add(folder, id=name, kind=kind, title=name, licence="MIT", context=64, base=base, parents=(base,) if base else ())  # type: ignore[arg-type]


def run(runs: Path, name: str, age: int) -> Path:
    folder = runs / name
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"x" * 1000)
    (folder / "report.json").write_text("{}")
    (folder / "result.json").write_text(json.dumps({"id": name}))
    os.utime(folder / "result.json", (1_790_000_000 - age, 1_790_000_000 - age))
    return folder


def test_only_what_nothing_needs_goes_and_reports_stay(settings: Settings) -> None:
    registry = Registry(settings.models)
    add(registry, "base", None)
    for name in ("a", "b", "c", "d", "e"):
        add(registry, name, "base")
    registry.promote("a")
    registry.promote("b")  # a is what can be gone back to
    registry.choose("teacher_responder/history", "c")
    old, new = run(settings.runs, "old", 100), run(settings.runs, "new", 1)
    unfinished = settings.runs / "unfinished" / "checkpoints"
    unfinished.mkdir(parents=True)

    doomed = retention.plan(registry, settings.runs, keep=1)
    assert doomed.models == ["d"] and doomed.runs == [old]
    assert doomed.bytes == 100 + 1000
    retention.prune(registry, doomed, settings.run / "tune.lock")
    assert {manifest.id for manifest in registry.list()} == {"base", "a", "b", "c", "e"}
    assert sorted(path.name for path in old.iterdir()) == ["report.json", "result.json"]
    assert (new / "adapter").is_dir() and unfinished.is_dir()
    assert retention.plan(registry, settings.runs, keep=1) == retention.Doomed([], [], 0)


def test_reports_under_other_names_stay_and_the_rest_of_them_goes(settings: Settings) -> None:
    old = run(settings.runs, "old", 100)
    other = old / "named" / "second"
    (other / "done").mkdir(parents=True)
    for name in ("report.json", "report.html", "result.json"):
        (other / name).write_text("{}")
    (old / "name.json").write_text(json.dumps({"id": "old"}))
    registry = Registry(settings.models)
    retention.prune(registry, retention.plan(registry, settings.runs, keep=0), settings.run / "tune.lock")
    assert sorted(path.name for path in other.iterdir()) == ["report.html", "report.json", "result.json"]
    assert sorted(path.name for path in old.iterdir()) == ["name.json", "named", "report.json", "result.json"]
    assert retention.plan(registry, settings.runs, keep=0) == retention.Doomed([], [], 0)


def test_the_run_that_made_what_serves_stays(settings: Settings) -> None:
    registry = Registry(settings.models)
    add(registry, "base", None)
    add(registry, "a", "base")
    registry.promote("a")
    run(settings.runs, "a", 100)
    newer = run(settings.runs, "newer", 50)
    assert retention.plan(registry, settings.runs, keep=0).runs == [newer]


def test_broken_off_runs_go_once_a_newer_one_has_ended(settings: Settings) -> None:
    registry = Registry(settings.models)
    ended = run(settings.runs, "ended", 100)
    dead, alive = settings.runs / "dead", settings.runs / "alive"
    for folder, age in ((dead, 200), (alive, 10)):
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "checkpoints" / "weights").write_bytes(b"x" * 1000)
        for path in (folder / "checkpoints", folder):
            os.utime(path, (1_790_000_000 - age, 1_790_000_000 - age))
    hidden = settings.runs / ".new"
    hidden.mkdir()
    doomed = retention.plan(registry, settings.runs, keep=1)
    assert (doomed.runs, doomed.bytes) == ([dead], 1000)
    retention.prune(registry, doomed, settings.run / "tune.lock")
    assert not dead.exists() and alive.is_dir() and hidden.is_dir() and (ended / "adapter").is_dir()


def test_nothing_goes_while_a_run_is_under_way(settings: Settings) -> None:
    registry = Registry(settings.models)
    old = run(settings.runs, "old", 100)
    doomed = retention.plan(registry, settings.runs, keep=0)
    with only_run(settings.run / "tune.lock"), pytest.raises(UnderWay):
        retention.prune(registry, doomed, settings.run / "tune.lock")
    assert (old / "adapter").is_dir()


def test_usage_counts_bytes(settings: Settings) -> None:
    run(settings.runs, "one", 1)
    assert retention.describe([], settings.runs)["runs"] >= 1000
