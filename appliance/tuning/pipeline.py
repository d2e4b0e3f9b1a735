"""The steps from a dataset to a model that serves: train -> export -> parity -> evaluate -> register -> promote.

Each step leaves a marker, written last: run again after a power cut, a full disk or a kill -9, the same work finds what was
finished and whole, and does the rest. `tune` brings a file of examples, `retrain.py` the school's reviewed rows. Steps know
nothing of each other; what each does is in its own file.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.engine.handler import Message
from appliance.errors import ApplianceError, BadInput, Conflict, GateNotPassed, NotFound, Unsupported, from_os_error
from appliance.files import sha256_of
from appliance.registry import Manifest, Registry, check_id
from appliance.settings import Settings
from appliance.tuning import dataset, report_page, steps
from appliance.tuning.dataset import Dataset
from appliance.tuning.evaluate import Report
from appliance.tuning.examples import Example
from appliance.tuning.huggingface import OnProgress, silent
from appliance.tuning.near import Judged
from appliance.tuning.recipe import Recipe
from appliance.tuning.run_folder import RunFolder, need_space, only_run, read_json, write_json
from appliance.tuning.screening import Screen
from appliance.tuning.standing import Standing, guarded
from appliance.tuning.steps import Work

# Adapter, optimizer state and the two checkpoints that are kept, beside logs: a sixth of the base's size and some.
SPACE_MB = 60

Promote = Callable[[str], Awaitable[object]]


@dataclass(frozen=True)
class TuneResult:
    """`id`: the adapter in the registry, whether or not the gate let it serve. `folder`: the run's record.

    `promoted`: it serves. `fresh`: false where the same work had been finished before, so that nothing was done.
    """

    id: str
    report: Report
    promoted: bool
    reasons: list[str]
    seconds_by_step: dict[str, float]
    folder: Path
    fresh: bool = True

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "report": self.report.to_json(),
            "promoted": self.promoted,
            "reasons": self.reasons,
            "seconds_by_step": self.seconds_by_step,
            "folder": str(self.folder),
            "fresh": self.fresh,
        }

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> TuneResult:
        """Raises KeyError, TypeError or ValueError where it is no such record."""
        kept = {name: row[name] for name in ("id", "promoted", "reasons", "seconds_by_step")}
        return cls(report=Report.from_json(row["report"]), folder=Path(row["folder"]), fresh=row.get("fresh", True), **kept)


async def tune(
    settings: Settings,
    registry: Registry,
    *,
    examples: Path,
    base: str | None = None,
    recipe: Recipe | None = None,
    name: str | None = None,
    limit: int | None = None,
    promote: bool = True,
    on_progress: OnProgress = silent,
    promote_with: Promote | None = None,
    screen: Screen | None = None,
) -> TuneResult:
    """Read -> dataset -> train -> export -> parity -> evaluate -> register -> promote; finished steps are not done again.

    base: registry id, None for the recipe's or the champion's. name: the new model's id, None derives one. screen: keeps out of
    the examples what may not be learned, and records the rest. Raises BadInput (every fault of the examples, a name that cannot
    be), Conflict (a run is under way), StorageFull, GateNotPassed (rows were withdrawn), and what a step could not do.
    """
    recipe = recipe or Recipe()
    if name is not None:
        check_id(name)
    on_progress("read", 0, 1, None, {})
    read = screen.read(examples) if screen else dataset.read_examples(examples)
    on_progress("read", 1, 1, 0.0, {"examples": len(read)})
    with only_run(settings.run / "tune.lock"):
        origin = base_to_tune(registry, base or recipe.base)
        need_space(settings.runs, SPACE_MB + origin.bytes // 6_000_000, settings.disk_reserve_mb)
        facts = screen.facts() if screen else None
        run, data, _ = open_run(settings, origin, recipe, read, limit=limit, facts=facts)
        on_progress("dataset", 1, 1, 0.0, {"train": len(data.train), "held_out": len(data.held_out), **data.card["dropped"]})
        gone = screen.record(data) if screen else tuple
        name = name or default_name(origin, run)
        work = Work(settings, registry, origin, run, data, recipe, name, on_progress, withdrawn=gone)
        report = await make(work)
        barred = await bring_into_service(work, report, promote_with) if promote else ""
        return finish(work, report, barred)


async def make(work: Work) -> Report:
    """Train -> export -> parity -> evaluate -> register, each unless it is finished and whole; what the gate found."""
    run, named = work.run, work.named
    check_name(work)
    talks = steps.parity_talks(work.data)
    _forget_what_is_damaged(work, len(talks))
    started = time.monotonic()
    trained = await steps.train(work, talks)
    work.seconds["train"] = round(time.monotonic() - started, 2)
    await _step(work, run, "export", lambda: steps.export(work, trained))
    await _step(work, run, "parity", lambda: steps.parity(work, trained, talks))
    judged = named.finished("evaluate")
    if judged is None or (not work.serves() and judged.get("baseline") != work.rival().id) or steps.report_of(named) is None:
        named.forget("evaluate")  # another model serves since: what was better than the old one need not be better than it
        named.forget("register")
    await _step(work, named, "evaluate", lambda: steps.judge(work))
    report = steps.report_of(named)
    if report is None:
        raise from_os_error(OSError(5, "the report cannot be read back"), "judging the new model")
    if (named.finished("register") or {}).get("id") != work.id or not whole(work.registry, work.id):
        named.forget("register")  # removed or damaged since
    await _step(work, named, "register", lambda: steps.register(work, trained, report))
    return report


async def bring_into_service(work: Work, report: Report, promote_with: Promote | None = None) -> str:
    """Promote the registered model if it passed the gate; why not, where it passed and must not serve all the same.

    Raises GateNotPassed where rows were withdrawn meanwhile, and what went wrong; then nothing changed.
    """
    none_withdrawn(work)
    if report.passed and not work.serves():
        if barred := work.barred(report):
            return barred
        work.tell("promote", 0, 1, None, {})
        started = time.monotonic()
        await (promote_with or _promote(work.registry))(work.id)
        work.seconds["promote"] = round(time.monotonic() - started, 2)
        work.tell("promote", 1, 1, 0.0, {})
    if work.serves():  # also where a kill came between the two; what stands already stays as it is
        gone = set(work.withdrawn())  # while it was brought into service: whoever withdrew found nothing here to forget
        Standing(work.settings.standing).add(work.data.digest, [one for one in work.data.held_out if one.id not in gone])
    return ""


def none_withdrawn(work: Work) -> None:
    """Raise GateNotPassed where a row was withdrawn while the model was being made of it."""
    gone = work.withdrawn()
    if gone:
        raise GateNotPassed(
            f"{len(gone)} rows were withdrawn while {work.id} was being made of them, so it is not promoted.",
            "Run the same command again: it learns from what is left.",
        )


def finish(work: Work, report: Report, barred: str = "") -> TuneResult:
    """Write the page for people and, last, `result.json`: the run is over. barred: why it does not serve though it passed."""
    report_page.save(work.settings, report, work.named.path / "report.html", work.run.path)
    reasons = [*report.reasons, *([barred] if barred else [])]
    result = TuneResult(work.id, report, work.serves(), reasons, work.seconds, work.run.path)
    write_json(work.named.path / "result.json", result.to_json())
    return result


async def _step(work: Work, place: RunFolder, title: str, do: Callable[[], Awaitable[dict[str, Any]]]) -> None:
    """Do a step and mark it finished, unless its marker says that it is; note its seconds either way."""
    facts = place.finished(title)
    if facts is None:
        work.tell(title, 0, 1, None, {})
        started = time.monotonic()
        facts = await do()
        facts = place.finish(title, facts | {"seconds": round(time.monotonic() - started, 2)})
        work.tell(title, 1, 1, 0.0, {})
    work.seconds[title] = facts.get("seconds", 0.0)


# --- where a run starts from ------------------------------------------------------------------------------------------


def base_to_tune(registry: Registry, asked: str) -> Manifest:
    """The verified base to tune: what was asked, else the champion's, else the only one there is."""
    if asked:
        manifest = registry.get(asked)
    else:
        champion = _readable_champion(registry)
        bases = [model for model in registry.list() if model.kind == "base"]
        if champion is None and len(bases) != 1:
            raise NotFound(f"There are {len(bases)} base models and none serves.", "Name one with --base.")
        manifest = champion or bases[0]
    if manifest.kind == "hosted":
        raise Unsupported(f"{manifest.id} is on another machine: it cannot be tuned here.", "Name a local base: --base ID.")
    origin = registry.verify(manifest.origin)
    if not any(name.startswith("hf/") for name in origin.files):
        raise Unsupported(
            f"The model {origin.id!r} was imported as GGUF alone: it can be served but not tuned.",
            "Import its Hugging Face folder: `appliance models import FOLDER`.",
        )
    return origin


def _readable_champion(registry: Registry) -> Manifest | None:
    try:
        champion = registry.champion()
        # Where a model of another machine serves, the one that stands in for it here is what a run goes on from.
        return registry.get("fallback") if champion is not None and "fallback" in registry.aliases() else champion
    except (BadInput, NotFound):  # its manifest is damaged or gone: that must not keep a new model from being made
        return None


def open_run(
    settings: Settings,
    origin: Manifest,
    recipe: Recipe,
    examples: Sequence[Example],
    *,
    limit: int | None = None,
    preferences: Sequence[dict[str, Any]] = (),
    facts: dict[str, Any] | None = None,
) -> tuple[RunFolder, Dataset, list[dict[str, Any]]]:
    """The run that this data, recipe and base make: a new folder, or the one where it was begun before.

    preferences: where they are what is learned from; those of them that may be are returned. facts: for the card.
    """
    fresh = settings.runs / ".new"
    shutil.rmtree(fresh, ignore_errors=True)
    built, asked = build(settings, examples, fresh, limit=limit, facts=facts)
    preferences = trainable(preferences, examples, built, asked)
    weights = origin.files["model.gguf"].sha256 if "model.gguf" in origin.files else ""
    parts = [built.digest, recipe.digest(), origin.id, weights]
    parts += [json.dumps(preferences, sort_keys=True)] if preferences else []
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    run = RunFolder(settings.runs / digest[:16])
    data = run.path / "data"
    try:
        shutil.rmtree(data, ignore_errors=True)  # the same content: the digest is the folder's name
        fresh.rename(data)
    except OSError as error:
        raise from_os_error(error, "making the run's folder") from None
    return run, Dataset(data, built.train, built.held_out, built.card), preferences


def build(
    settings: Settings,
    examples: Sequence[Example],
    folder: Path,
    *,
    limit: int | None = None,
    facts: dict[str, Any] | None = None,
) -> tuple[Dataset, list[Example]]:
    """The dataset of a run, with nothing to train on that is near what the gate asks; and what that is beside held-out."""
    asked = guarded(settings.content, Standing(settings.standing))
    built = dataset.build(examples, folder, limit=limit, evaluation=asked, facts=facts)
    if not built.held_out:
        raise BadInput(
            f"None of the {len(built.train)} examples fell to the held-out part, so nothing could judge the result.",
            "Give more examples; 150 or more give a gate that can be trusted.",
        )
    return built, asked


def default_name(origin: Manifest, run: RunFolder) -> str:
    return f"{origin.id}-{run.path.name[:8]}"


def whole(registry: Registry, id: str) -> bool:
    """Whether a model is registered and every file of it is what was registered."""
    try:
        return registry.verify(id).id == id
    except ApplianceError:
        return False


def check_name(work: Work) -> None:
    """Raise Conflict before any work where the name stands for a model made of something else."""
    try:
        there = work.registry.get(work.id)
    except (NotFound, BadInput):  # none of that name, or one whose manifest is damaged: it is made anew
        return
    if (there.dataset, there.recipe) != (work.data.digest, work.recipe.digest()):
        raise Conflict(f"There is another model called {work.id!r} already.", "Choose another name, or remove that one first.")


def _forget_what_is_damaged(work: Work, talks: int) -> None:
    """Have the steps done again whose files are not what their markers promise: a disk may fail after they were written."""
    run = work.run
    exported = run.finished("export")
    if exported is not None:
        try:
            whole = sha256_of(work.exported) == exported.get("sha256")
        except OSError:
            whole = False
        if not whole:
            run.forget("export")
            run.forget("parity")
    references = read_json(run.path / "reference.json")
    if run.finished("parity") is None and not (isinstance(references, list) and len(references) == talks):
        run.forget("train")


def trainable(
    preferences: Sequence[dict[str, Any]], examples: Sequence[Example], data: Dataset, asked: Sequence[Example]
) -> list[dict[str, Any]]:
    """The preferences that a model may learn from: those of rows that are trained on, and what pupils disliked.

    The latter are not among `examples`, so they are held here against everything that the result will be judged by.
    """
    usable, learned = {example.id for example in examples}, {example.id for example in data.train}
    judged, kept_back = Judged([*data.held_out, *asked]), {dataset.part_key(example) for example in data.held_out}

    def fits(row: dict[str, Any]) -> bool:
        if row["id"] in usable:
            return row["id"] in learned
        said = tuple(Message(**turn) for turn in row["messages"])
        talk = Example(row["id"], (*said, Message("assistant", row.get("completion") or row["chosen"])))
        return dataset.part_key(talk) not in kept_back and judged.resembled(talk) is None

    return [row for row in preferences if fits(row)]


def _promote(registry: Registry) -> Promote:
    async def promote(id: str) -> object:
        return await asyncio.to_thread(registry.promote, id)

    return promote
