"""What models and tuning runs take on the disk, and which of them nobody needs any more.

Kept in any case: what serves or may be gone back to, what a task or subject was given, every base that something stands on, and
the newest runs and candidates. A removed run leaves its report; a removed model leaves nothing, its run still has the adapter
until the run goes too.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import from_os_error
from appliance.registry import Manifest, Registry
from appliance.tuning.run_folder import only_run, read_json

KEEP = 5
LEFT = ("report.json", "report.html", "result.json", "recipe.json", "loss.jsonl", "loss.svg", "versions.json")


@dataclass(frozen=True)
class Doomed:
    """What pruning removes: models by id, folders of runs, and the bytes that come free."""

    models: list[str]
    runs: list[Path]
    bytes: int


def usage(folder: Path) -> int:
    """Bytes below a folder; files that vanish meanwhile count nothing."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() and not path.is_symlink() else 0
        except OSError:
            continue
    return total


def plan(registry: Registry, runs: Path, keep: int = KEEP) -> Doomed:
    """Candidates and runs beyond the newest `keep` of each that nothing needs."""
    models = registry.list()
    needed = {name for model in models for name in (model.base, *model.parents) if name}
    idle = [model for model in models if model.kind != "base" and not model.aliases and model.id not in needed]
    doomed_models = idle[: max(0, len(idle) - keep)]  # the list is oldest first
    finished = sorted((path for path in _finished(runs)), key=lambda path: (path / "result.json").stat().st_mtime)
    heavy = [path for path in finished if any(child.name not in LEFT for child in path.iterdir())]
    doomed_runs = heavy[: max(0, len(heavy) - keep)]
    freed = sum(model.bytes for model in doomed_models) + sum(_weight(path) for path in doomed_runs)
    return Doomed([model.id for model in doomed_models], doomed_runs, freed)


def prune(registry: Registry, doomed: Doomed, lock: Path) -> None:
    """Remove what `plan` named. Raises UnderWay during a tuning run, Conflict where a model came to be needed."""
    with only_run(lock):
        for name in doomed.models:
            registry.remove(name)
        for path in doomed.runs:
            try:
                for child in path.iterdir():
                    if child.name not in LEFT:
                        shutil.rmtree(child) if child.is_dir() else child.unlink()
            except OSError as error:
                raise from_os_error(error, f"clearing the run {path.name}") from None


def _finished(runs: Path) -> Iterable[Path]:
    return [path.parent for path in runs.glob("*/result.json") if isinstance(read_json(path), dict)]


def _weight(path: Path) -> int:
    return sum(usage(child) if child.is_dir() else child.stat().st_size for child in path.iterdir() if child.name not in LEFT)


def describe(models: Iterable[Manifest], runs: Path) -> dict[str, int]:
    """Bytes of models and of runs."""
    return {"models": sum(model.bytes for model in models), "runs": usage(runs) if runs.is_dir() else 0}
