"""Judge a registered model again, with every set, against the champion or any other model of this box.

Hides where its held-out conversations are (the run that made it, while it is kept), what it is compared with, and that answers
once given are remembered. Asks the same questions as the gate of a run, and promotes nothing.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from appliance.engine.handler import Handler
from appliance.errors import BadInput, NotFound
from appliance.registry import Manifest, Registry
from appliance.settings import Settings
from appliance.tuning import dataset, report_page
from appliance.tuning.evaluate import evaluate
from appliance.tuning.examples import Example
from appliance.tuning.huggingface import HuggingFaceTuner
from appliance.tuning.report import Report
from appliance.tuning.run_folder import only_run, read_json, write_json
from appliance.tuning.sets import Sets
from appliance.tuning.standing import Standing


@dataclass(frozen=True)
class Judged:
    """The report, where it was written, and whether it was judged by conversations of its own that were held back."""

    report: Report
    json: Path
    html: Path
    own: bool


async def judge(
    settings: Settings,
    name: str,
    against: str | None = None,
    *,
    on_item: Callable[[int, int], None] = lambda _done, _total: None,
) -> Judged:
    """Ask a model and its rival everything, and write the report as JSON and as a page below `HOME/reports`.

    against: an id; None is what serves on the same base, else the base. A model whose run is gone, or which was not made here,
    is judged by the project's own conversations in place of held-out ones. Raises NotFound, BadInput, UnderWay,
    ModelUnavailable.
    """
    with only_run(settings.run / "tune.lock"):  # what is withdrawn meanwhile is erased from the report after it was written
        return await _judge(settings, name, against, on_item)


async def _judge(settings: Settings, name: str, against: str | None, on_item: Callable[[int, int], None]) -> Judged:
    registry = Registry(settings.models)
    candidate = registry.verify(name)
    rival = registry.verify(against) if against else rival_of(registry, candidate)
    if rival.id == candidate.id:
        raise BadInput(f"{candidate.id!r} cannot be judged against itself.", "Name another model: --against ID.")
    sets = Sets.load(settings.content)
    run = run_of(settings, candidate)
    held_out: Sequence[Example] = dataset.load(run / "data").held_out if run else sets.tutoring
    kept = {example.id for example in held_out}
    plan = (read_json(run / "plan.json") if run else None) or {}
    async with serving(settings, (rival, candidate)) as handlers:
        report = await evaluate(
            *handlers, held_out, sets=sets if run else replace(sets, tutoring=()),
            standing=[example for example in Standing(settings.standing).items() if example.id not in kept],
            triggers=plan.get("triggers", []), names=(rival.id, candidate.id), cache=settings.standing / "answered",
            keys=(_key(registry, rival), _key(registry, candidate)), budget=settings.gate_seconds or None, on_item=on_item,
        )  # fmt: skip
    report = report_page.with_people(settings, report)
    if run and not against and candidate.kind != "base":
        facts = {key: value for key, value in (candidate.report or {}).items() if key in ("parity", "training")}
        registry.judged(candidate.id, report.to_json() | facts)
    path = settings.reports / f"{candidate.id}-against-{rival.id}.json"
    write_json(path, report.to_json())
    page = report_page.save(settings, report, path.with_suffix(".html"), run)
    return Judged(report, path, page, run is not None)


def rival_of(registry: Registry, candidate: Manifest) -> Manifest:
    """What serves, where it stands on the same base or the model is a base itself; else the base. Raises NotFound."""
    champion = registry.champion()
    related = champion is not None and (candidate.kind == "base" or candidate.origin == champion.origin)
    if champion is not None and champion.id != candidate.id and related:
        return registry.verify(champion.id)
    if candidate.kind == "base":
        raise NotFound(f"There is nothing to judge {candidate.id!r} against.", "Name another model: --against ID.")
    return registry.verify(candidate.origin)


def run_of(settings: Settings, manifest: Manifest) -> Path | None:
    """The folder of the run that made a model, where it is kept with the very data; None otherwise."""
    for folder in sorted(settings.runs.glob("*/")) if manifest.dataset else []:
        card, recipe = read_json(folder / "data" / "card.json"), read_json(folder / "recipe.json")
        if not isinstance(card, dict) or card.get("digest") != manifest.dataset or not isinstance(recipe, dict):
            continue
        if (folder / "named" / manifest.id).is_dir() or (read_json(folder / "name.json") or {}).get("id") == manifest.id:
            return folder
    return None


@contextlib.asynccontextmanager
async def serving(settings: Settings, models: Sequence[Manifest]) -> AsyncIterator[tuple[Handler, Handler]]:
    """Two models, loaded, each through the files that would serve. Raises ModelUnavailable."""
    tuner = HuggingFaceTuner(settings)
    async with contextlib.AsyncExitStack() as stack:
        handlers = []
        for manifest in models:
            handler = tuner.create_handler(manifest.id)
            stack.push_async_callback(handler.close)
            await handler.start()
            handlers.append(handler)
        yield handlers[0], handlers[1]


def _key(registry: Registry, manifest: Manifest) -> str:
    """What a model's remembered answers stand under: the digests of its files, as in a run."""
    base = registry.get(manifest.base) if manifest.base else manifest
    adapter = manifest.files.get("adapter.gguf")
    weights = base.files.get("model.gguf")
    if weights is None:
        return json.dumps(sorted(fact.sha256 for fact in manifest.files.values()))
    return f"{weights.sha256}+{adapter.sha256 if adapter else ''}"
