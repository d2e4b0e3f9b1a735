"""Takes withdrawn rows out of the folders of tuning runs, out of reports and out of jobs: the texts go, the figures stay.

A finished run keeps its report, its recipe and its loss curve; a broken-off one goes altogether, because it must not be taken
up again with those rows. Models in the registry are not touched: whether one made of such rows is replaced is a person's
decision, and `ExampleStore.models_with` names them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from appliance.db import Database
from appliance.errors import from_os_error
from appliance.files import write_atomically
from appliance.tables import jobs
from appliance.tuning.report_page import page
from appliance.tuning.retention import LEFT
from appliance.tuning.run_folder import read_json, write_json

KEPT = frozenset({*LEFT, "plan.json"})  # ids and counts; erase_from_reports takes out the words
Who = Callable[[str], bool]  # whether an author has withdrawn


def nobody(_author: str) -> bool:
    return False


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


def erase_from_reports(folders: Iterable[Path], ids: Collection[str], who: Who = nobody) -> int:
    """Take these rows out of every plan, card, manifest and report below `folders` (runs, reports, models); how many places.

    Out go their sample answers, the phrases that looked like a trigger (nobody keeps from whose rows they came), and the
    authors for whom `who` holds. A page that was made of such a report is made anew, or goes where the report is too old for
    that. Raises ApplianceError where the file system refuses.
    """
    wanted, count = frozenset(ids), 0
    try:
        for path in [path for folder in folders for path in folder.rglob("*.json")] if wanted else []:
            document = read_json(path)
            gone = _strip(document, wanted, who)
            if not gone:
                continue
            count += gone
            _record(path, _text(document))
            write_atomically(path, _text(document))
            pages = path.parent.rglob("report.html") if path.name == "plan.json" else [path.with_suffix(".html")]
            for html in list(pages):
                _remake(html)
    except OSError as error:
        raise from_os_error(error, "erasing rows from reports") from None
    return count


def erase_from_jobs(database: Database, ids: Collection[str], who: Who = nobody) -> int:
    """Take these rows out of what jobs gave back, in the same way; how many places."""
    wanted, count = frozenset(ids), 0
    with database.begin() as connection:
        found = connection.execute(sa.select(jobs.c.id, jobs.c.result).where(jobs.c.result.is_not(None))).all()
        for id, result in found if wanted else ():
            gone = _strip(result, wanted, who)
            if gone:
                count += gone
                connection.execute(jobs.update().where(jobs.c.id == id).values(result=result))
    return count


def _text(document: Any) -> str:
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _record(path: Path, text: str) -> None:
    """Where a file belongs to a model, its manifest takes the new digest first: cut in between, the same again mends it."""
    manifest = path.with_name("manifest.json")
    document = read_json(manifest) if path.name != "manifest.json" else None
    if isinstance(document, dict) and path.name in document.get("files", {}):
        document["files"][path.name] = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "bytes": len(text.encode())}
        write_json(manifest, document)


def _remake(html: Path) -> None:
    if html.is_file():
        try:
            write_atomically(html, page(read_json(html.with_suffix(".json"))))
        except (KeyError, TypeError, ValueError, AttributeError):
            html.unlink()


def _strip(value: Any, wanted: frozenset[str], who: Who) -> int:
    """Remove, in place and however deep, what holds words or names of withdrawn rows; the number of places."""
    if isinstance(value, list):
        return sum(_strip(item, wanted, who) for item in value)
    if not isinstance(value, dict):
        return 0
    gone = 0
    samples, named, phrases = value.get("samples"), value.get("attribution"), value.get("triggers")
    if isinstance(samples, list):
        kept = [sample for sample in samples if not (isinstance(sample, dict) and sample.get("id") in wanted)]
        gone += len(samples) - len(kept)
        value["samples"] = kept
    if isinstance(named, list):
        kept = [one for one in named if not (isinstance(one, dict) and who(str(one.get("author", ""))))]
        gone += len(named) - len(kept)
        value["attribution"] = kept
    if isinstance(phrases, list) and isinstance(value.get("warnings"), list) and phrases:  # a plan
        gone += len(phrases)
        value["triggers"], value["warnings"] = [], []
    if isinstance(phrases, dict) and phrases.get("note"):  # the sets of a report
        gone += 1
        phrases["note"] = ""
    return gone + sum(_strip(item, wanted, who) for item in value.values())


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
    job = read_json(run / "job.json")  # what is learned from preferences stands nowhere else
    preferences = job.get("preferences") if isinstance(job, dict) else None
    for row in preferences if isinstance(preferences, list) else ():
        if isinstance(row, dict) and "id" in row:
            yield str(row["id"])
