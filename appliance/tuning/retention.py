"""What models and tuning runs take on the disk, and which of them nobody needs any more.

Kept in any case: what serves or may be gone back to, what a task or subject was given, the runs that made those, every base
that something stands on, and the newest runs and candidates. A removed run leaves its reports, a broken-off one nothing; a
removed model leaves nothing, its run still has the adapter until the run goes too.
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
LEFT = ("name.json", "report.json", "report.html", "result.json", "recipe.json", "loss.jsonl", "loss.svg", "versions.json")


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
    """Candidates and runs beyond the newest `keep` of each that nothing needs, and broken-off runs that newer ones followed."""
    models = registry.list()
    needed = {name for model in models for name in (model.base, *model.parents) if name}
    kept = ("base", "hosted")  # one of another machine takes no room, and was named by hand
    idle = [model for model in models if model.kind not in kept and not model.aliases and model.id not in needed]
    doomed_models = idle[: max(0, len(idle) - keep)]  # the list is oldest first
    finished, dead = _runs(runs)
    serving = {model.id for model in models if model.aliases}
    heavy = [path for path in finished if _rest(path)]
    doomed_runs = dead + [path for path in heavy[: max(0, len(heavy) - keep)] if not serving & _made(path)]
    freed = sum(model.bytes for model in doomed_models) + sum(_weight(path) for path in doomed_runs)
    return Doomed([model.id for model in doomed_models], doomed_runs, freed)


def prune(registry: Registry, doomed: Doomed, lock: Path) -> None:
    """Remove what `plan` named. Raises UnderWay during a tuning run, Conflict where a model came to be needed."""
    with only_run(lock):
        clear(registry, doomed)


def clear(registry: Registry, doomed: Doomed) -> None:
    """`prune` for who holds the lock of tuning runs already."""
    for name in doomed.models:
        registry.remove(name)
    for path in doomed.runs:
        try:
            for child in _rest(path):
                shutil.rmtree(child) if child.is_dir() else child.unlink()
            if not _results(path):
                shutil.rmtree(path)
        except OSError as error:
            raise from_os_error(error, f"clearing the run {path.name}") from None


def _runs(runs: Path) -> tuple[list[Path], list[Path]]:
    """Finished runs, the one that ended last at the end; and those that were broken off before that one ended."""
    ended, broken = {}, []
    for path in runs.glob("[!.]*/"):
        if results := _results(path):
            ended[path] = max(result.stat().st_mtime for result in results)
        else:
            broken.append(path)
    newest = max(ended.values(), default=0.0)
    return sorted(ended, key=lambda path: ended[path]), [path for path in sorted(broken) if _touched(path) < newest]


def _results(run: Path) -> list[Path]:
    """The records that say how a run ended, under its first name and under others."""
    return [path for path in (*run.glob("result.json"), *run.glob("named/*/result.json")) if isinstance(read_json(path), dict)]


def _made(run: Path) -> set[str]:
    """The ids of the models that a run made."""
    return {str(read_json(path).get("id")) for path in _results(run)}


def _touched(run: Path) -> float:
    return max(path.stat().st_mtime for path in (run, *run.iterdir()))


def _rest(run: Path) -> list[Path]:
    """What of a finished run may go: all but its reports, and those under other names."""
    rest = [child for child in run.iterdir() if child.name not in (*LEFT, "named")]
    return rest + [child for other in run.glob("named/*/") for child in other.iterdir() if child.name not in LEFT]


def _weight(path: Path) -> int:
    going = _rest(path) if _results(path) else [path]
    return sum(usage(child) if child.is_dir() else child.stat().st_size for child in going)


def describe(models: Iterable[Manifest], runs: Path) -> dict[str, int]:
    """Bytes of models and of runs."""
    return {"models": sum(model.bytes for model in models), "runs": usage(runs) if runs.is_dir() else 0}
