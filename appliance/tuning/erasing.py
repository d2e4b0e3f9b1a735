"""Takes withdrawn rows out of the folders of tuning runs and out of reports: the texts go, the figures stay.

A finished run keeps its report, its recipe and its loss curve; a broken-off one goes altogether, because it must not be taken
up again with those rows. Models in the registry are not touched: whether one made of such rows is replaced is a person's
decision, and `ExampleStore.models_with` names them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from appliance.errors import from_os_error
from appliance.files import write_atomically
from appliance.tuning.report_page import page
from appliance.tuning.retention import LEFT
from appliance.tuning.run_folder import read_json, write_json

KEPT = frozenset({*LEFT, "plan.json"})  # ids and counts, no texts


def erase_from_runs(runs: Path, ids: Collection[str]) -> tuple[str, ...]:
    """Erase from every run whose data holds one of these rows all but its reports; returns the names of those runs.

    The caller holds the lock of tuning runs. Raises ApplianceError where the file system refuses.
    """
    wanted = frozenset(ids)
    erased = []
    try:
        for run in sorted(runs.iterdir()) if runs.is_dir() and wanted else ():
            if not run.is_dir() or run.is_symlink() or not any(id in wanted for id in _ids(run)):
                continue
            if any(isinstance(read_json(result), dict) for result in run.glob("**/result.json")):
                _clear(run)
            else:
                shutil.rmtree(run)
            erased.append(run.name)
    except OSError as error:
        raise from_os_error(error, "erasing rows from tuning runs") from None
    return tuple(erased)


def erase_from_reports(folders: Iterable[Path], ids: Collection[str]) -> int:
    """Take these rows out of the sample answers of every report below `folders` (runs, reports, models); how many went.

    A page that was made of such a report is made anew, or goes where the report is too old for that. Raises ApplianceError
    where the file system refuses.
    """
    wanted, count = frozenset(ids), 0
    try:
        for path in [path for folder in folders for path in folder.rglob("*.json")] if wanted else []:
            document = read_json(path)
            gone = _strip(document, wanted)
            if not gone:
                continue
            count += gone
            write_json(path, document)
            html = path.with_suffix(".html")
            if html.is_file():
                try:
                    write_atomically(html, page(document))
                except (KeyError, TypeError, ValueError):
                    html.unlink()
    except OSError as error:
        raise from_os_error(error, "erasing rows from reports") from None
    return count


def _strip(value: Any, wanted: frozenset[str]) -> int:
    """Remove, in place, every sample with one of these ids, however deep; the number removed."""
    if isinstance(value, list):
        return sum(_strip(item, wanted) for item in value)
    if not isinstance(value, dict):
        return 0
    gone = 0
    samples = value.get("samples")
    if isinstance(samples, list):
        kept = [sample for sample in samples if not (isinstance(sample, dict) and sample.get("id") in wanted)]
        gone = len(samples) - len(kept)
        if gone:
            value["samples"] = kept
    return gone + sum(_strip(item, wanted) for item in value.values())


def _clear(folder: Path) -> None:
    """Leave the reports of a run, and of what it was judged as under other names."""
    for child in folder.iterdir():
        if child.name == "named" and child.is_dir():
            for other in child.iterdir():
                _clear(other)
        elif child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        elif child.name not in KEPT:
            child.unlink()


def _ids(run: Path) -> Iterator[str]:
    """The ids of the rows in a run's data, also where it lies half-made."""
    for folder in (run / "data", run):
        for part in ("train.jsonl", "held_out.jsonl"):
            try:
                lines = (folder / part).read_text("utf-8").split("\n")  # not splitlines: a text may hold U+2028
            except (OSError, UnicodeDecodeError):
                continue
            for line in lines:
                try:
                    yield str(json.loads(line)["id"])
                except (ValueError, KeyError, TypeError):
                    continue
