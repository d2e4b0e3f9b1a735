"""`retrain`: from the rows that people reviewed to the model that serves, or an honest refusal.

Hides which parts it takes for that and in which order; what may be learned from is `selection.py`'s to say, how a model is made
and judged is `pipeline.py`'s. Every step can be broken off: the same rows are the same run, which goes on where it was. It asks
nobody anything and prints nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.audit import Audit
from appliance.db import Database
from appliance.errors import ApplianceError, GateNotPassed, from_os_error
from appliance.redact import Redactor, Roster
from appliance.registry import Registry
from appliance.settings import Settings
from appliance.tuning import pipeline, retention, selection
from appliance.tuning.dataset import Dataset
from appliance.tuning.examples import Example
from appliance.tuning.huggingface import OnProgress, silent
from appliance.tuning.near import Judged
from appliance.tuning.pipeline import Promote, TuneResult
from appliance.tuning.recipe import Recipe
from appliance.tuning.run_folder import need_space, only_run, read_json, write_json
from appliance.tuning.selection import Plan
from appliance.tuning.sets import Sets
from appliance.tuning.standing import Standing, guarded
from appliance.tuning.steps import Work
from appliance.tuning.store import ExampleStore

# Below this the held-out part is a handful of conversations: no interval means anything, and what is learned is those rows.
FEWEST_ROWS = 30


NO_ROSTER = (
    "No roster is loaded, so pupils' names are found only where a text introduces them. "
    "Load it: `appliance examples import FILE --roster ROSTER.csv`."
)


@dataclass(frozen=True)
class School:
    """The parts of the box that retraining stands on."""

    settings: Settings
    registry: Registry
    database: Database


async def retrain(
    school: School,
    *,
    base: str | None = None,
    recipe: Recipe | None = None,
    promote: bool = True,
    on_progress: OnProgress = silent,
    promote_with: Promote | None = None,
) -> TuneResult:
    """Select -> dataset -> train -> export -> parity -> evaluate -> register -> promote, on the reviewed rows.

    Rows, recipe and base that were finished before are not done again (`fresh` is false), also where a person has since gone
    back to another model. Raises GateNotPassed (too few rows), UnderWay (a run is under way), Busy (outside the GPU's hours),
    StorageFull, and what a step could not do; what serves is then untouched, and the same call goes on from there.
    """
    settings, registry = school.settings, school.registry
    recipe = recipe or Recipe()
    with only_run(settings.run / "tune.lock"):
        origin = pipeline.base_to_tune(registry, base or recipe.base)
        need_space(settings.runs, pipeline.SPACE_MB + origin.bytes // 6_000_000, settings.disk_reserve_mb)
        on_progress("select", 0, 1, None, {})
        chosen = await asyncio.to_thread(select, school)
        enough(chosen)
        on_progress("select", 1, 1, 0.0, {"rows": len(chosen.examples)})
        liked = {"dpo": chosen.preferences, "kto": chosen.thumbs}.get(recipe.objective, [])
        on_progress("dataset", 0, 1, None, {})
        run, data, liked = await asyncio.to_thread(
            pipeline.open_run, settings, origin, recipe, chosen.examples, preferences=liked, facts=chosen.facts()
        )
        store = ExampleStore(school.database)
        on_progress("dataset", 1, 1, 0.0, {"train": len(data.train), "held_out": len(data.held_out)})
        name = pipeline.default_name(origin, run)
        work = Work(
            settings, registry, origin, run, data, recipe, name, on_progress,
            triggers=chosen.triggers, preferences=liked, withdrawn=lambda: store.withdrawn_from(data.digest),
        )  # fmt: skip
        done = settled(work, promote=promote)
        if done is not None:
            return done
        asked = guarded(settings.content, Standing(settings.standing))
        write_json(run.path / "plan.json", (await asyncio.to_thread(exactly, chosen, data, asked)).to_json())
        await asyncio.to_thread(
            store.record, data.digest, data, [row["id"] for row in liked]
        )  # before anything is learned from them
        report = await pipeline.make(work)
        pipeline.none_withdrawn(work)
        barred = await pipeline.bring_into_service(work, report, promote_with) if promote else ""
        await asyncio.to_thread(note, school, work, work.serves())
        result = pipeline.finish(work, report, barred)
        await asyncio.to_thread(make_room, school)
        return result


def select(school: School) -> Plan:
    """Which rows may be learned from, with personal data out of them, and why the others may not."""
    names = Roster(school.database).names()
    # The standing set is kept out of training when the dataset is built: it holds earlier held-out rows, which stay held out.
    project = Sets.load(school.settings.content).examples()
    plan = selection.plan(ExampleStore(school.database), Redactor(names).redact, evaluation=project)
    return plan if names else dataclasses.replace(plan, warnings=[NO_ROSTER, *plan.warnings])


def plan(school: School) -> Plan:
    """Exactly what `retrain` would use: also without what falls out when the dataset is made. Changes nothing.

    Too few rows are no dataset, and are told as they were selected. Raises what making it would raise.
    """
    chosen, settings = select(school), school.settings
    if len(chosen.examples) < FEWEST_ROWS:
        return chosen
    new = not settings.runs.is_dir()
    try:
        settings.runs.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder = Path(tempfile.mkdtemp(prefix=".plan-", dir=settings.runs))  # where erasing looks, should it be left behind
    except OSError as error:
        raise from_os_error(error, "planning the run") from None
    try:
        data, asked = pipeline.build(settings, chosen.examples, folder)
        return exactly(chosen, data, asked)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if new:
            with contextlib.suppress(OSError):  # a run began meanwhile
                settings.runs.rmdir()


def exactly(chosen: Plan, data: Dataset, asked: Sequence[Example]) -> Plan:
    """The plan as the dataset came of it; asked: what else the result is judged by."""
    used = {example.id for example in (*data.train, *data.held_out)}
    kept_back, judged = Judged(data.held_out), Judged(asked)

    def why(example: Example) -> tuple[str, str, str]:
        if item := kept_back.resembled(example):
            return example.id, "near_held_out", f"It resembles {item}, which is held out to judge the result."
        if item := judged.resembled(example):
            return example.id, "near_evaluation", f"It resembles {item}, by which models are judged."
        return example.id, "near_duplicate", "It nearly repeats a row that is used."

    def learned(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return pipeline.trainable(rows, chosen.examples, data, asked)

    return dataclasses.replace(
        chosen,
        examples=[example for example in chosen.examples if example.id in used],
        refused=[*chosen.refused, *(why(example) for example in chosen.examples if example.id not in used)],
        held_out=[example.id for example in data.held_out],
        preferences=learned(chosen.preferences),
        thumbs=learned(chosen.thumbs),
    )


def make_room(school: School) -> None:
    """Let go of what nobody needs beyond the newest runs and candidates; the caller holds the lock of tuning runs."""
    with contextlib.suppress(ApplianceError):  # this run is over and whole; the next one tries again
        doomed = retention.plan(school.registry, school.settings.runs)
        if not doomed.models and not doomed.runs:
            return
        retention.clear(school.registry, doomed)
        facts = {"models": doomed.models, "runs": [path.name for path in doomed.runs]}
        Audit(school.database).note("prune", "models", facts)


def enough(chosen: Plan) -> None:
    """Raise GateNotPassed where there are too few rows for any verdict."""
    count = len(chosen.examples)
    if count < FEWEST_ROWS:
        raise GateNotPassed(
            f"{count} rows can be used and at least {FEWEST_ROWS} are needed, so nothing was trained and nothing changes.",
            "Review more (`appliance examples review`) or import more; `appliance retrain --plan` says why others are out.",
        )


def settled(work: Work, *, promote: bool) -> TuneResult | None:
    """The result of the same work where it was carried to its end before: promoted then, or refused against what serves now."""
    try:
        before = TuneResult.from_json(read_json(work.named.path / "result.json"))
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    refused = not before.report.passed and before.report.baseline == work.rival().id
    if before.report.passed and not pipeline.whole(work.registry, work.id):
        return None  # removed or damaged since: it is made again
    if before.promoted or refused or (not promote and before.report.passed):
        return dataclasses.replace(before, fresh=False, promoted=work.serves())
    return None


def note(school: School, work: Work, promoted: bool) -> None:
    """The end of the run in the record of who did what. Done again after a power cut, it notes nothing twice."""
    report = read_json(work.named.path / "report.json")
    facts = {
        "dataset": work.data.digest, "recipe": work.recipe.digest(), "run": work.run.path.name, "promoted": promoted,
        "report": hashlib.sha256(json.dumps(report, sort_keys=True).encode()).hexdigest(),
    }  # fmt: skip
    audit = Audit(school.database)
    if not any(entry.verb == "retrain" and entry.facts == facts for entry in audit.entries(thing=work.id)):
        audit.note("retrain", work.id, facts)
