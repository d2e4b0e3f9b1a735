"""Which rows may teach a program: a demonstration is served to everybody, so the rules are those of tuning.

From the school's store: reviewed, consented or licensed, with personal data out (`tuning.selection`). From a file: nothing that
was withdrawn or refused, personal data out (`tuning.screening`); who names the file answers for the rest. Hides that files of
inputs and outputs, which are no conversations, pass the same rules.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.errors import BadInput, from_os_error
from appliance.plugins import dspy_rows
from appliance.plugins.dspy_rows import Row
from appliance.redact import Redactor, Roster
from appliance.tuning.store import ExampleStore

if TYPE_CHECKING:
    from appliance.db import Database
    from appliance.prompts import Module
    from appliance.tuning.dataset import Dataset


@dataclass(frozen=True)
class Gathered:
    """record: remembers which rows stand in a dataset; what it returns says which of them were withdrawn by now."""

    rows: list[Row]
    left_out: int
    record: Callable[[Dataset], Callable[[], Collection[str]]]


def gather(database: Database, module: Module, path: Path | None) -> Gathered:
    """The rows of a file, or of the store where none is named. Raises BadInput with every fault, NotFound."""
    if path is None:
        return _of_store(database, module)
    pairs = _pairs(path)
    if pairs is not None:
        return _of_pairs(database, module, pairs)
    from appliance.tuning.screening import Screen

    screen = Screen(database)
    return Gathered(*dspy_rows.read(module, screen.read(path)), screen.record)


def _of_store(database: Database, module: Module) -> Gathered:
    from appliance.tuning.selection import plan

    if module.form != "text":
        what = f"The school's examples are conversations, and {module.name} needs inputs and outputs."
        raise BadInput(what, "Give a file of them: --examples FILE.jsonl.")
    store = ExampleStore(database)
    chosen = plan(store, Redactor(Roster(database).names()).redact).examples
    if not chosen:
        raise BadInput("There is no reviewed example yet.", "`appliance examples review`, or give --examples FILE.")

    def record(data: Dataset) -> Callable[[], Collection[str]]:
        store.record(data.digest, data)
        return lambda: store.withdrawn_from(data.digest)

    return Gathered(*dspy_rows.read(module, chosen), record)


def _pairs(path: Path) -> list[tuple[int, dict[str, Any]]] | None:
    """The rows of a JSONL file of inputs and outputs, with their lines; None where it is another kind of file."""
    if path.suffix != ".jsonl" or path.is_dir():
        return None
    try:
        lines = path.read_bytes().decode("utf-8", "replace").split("\n")
    except OSError as error:
        raise from_os_error(error, f"reading {path.name}") from None
    found: list[tuple[int, dict[str, Any]]] = []
    wrong = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            wrong.append(f"line {number} is not valid JSON")
            continue
        if not isinstance(row, dict) or not {"inputs", "outputs"} <= row.keys():
            if not found:
                return None
            wrong.append(f"line {number} needs inputs and outputs")
            continue
        found.append((number, row))
    if wrong and found:
        raise BadInput(f"{path.name}: {'; '.join(wrong[:12])}.", "Correct these lines, then run the same command again.")
    return found or None


def _of_pairs(database: Database, module: Module, pairs: list[tuple[int, dict[str, Any]]]) -> Gathered:
    store = ExampleStore(database)
    gone, erased, redactor = store.gone(), store.withdrawn(), Redactor(Roster(database).names())
    found, too_long = dspy_rows.read(module, [row for _, row in pairs if row.get("consent") is not False])
    allowed = [row for row in found if row.id not in erased and not gone(row.author)]
    authors = {row.id: row.author for row in allowed}
    kept = []
    for row in allowed:
        inputs, outputs = (_masked(redactor, dict(side)) for side in (row.inputs, row.outputs))
        kept.append(replace(row, inputs=inputs, outputs=outputs, author=store.people.author(row.author)))

    def record(data: Dataset) -> Callable[[], Collection[str]]:
        store.record(data.digest, data)

        def withdrawn() -> Collection[str]:
            now, lost = store.gone(), store.withdrawn()
            return [id for id, author in authors.items() if id in lost or now(author)]

        return withdrawn

    return Gathered(kept, too_long, record)


def _masked(redactor: Redactor, value: Any) -> Any:
    if isinstance(value, str):
        return redactor.redact(value).text
    if isinstance(value, list):
        return [_masked(redactor, one) for one in value]
    return {name: _masked(redactor, one) for name, one in value.items()} if isinstance(value, dict) else value
