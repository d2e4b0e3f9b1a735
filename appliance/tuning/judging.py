"""Judge a registered model again, with every set, against the champion or any other model of this box.

Hides where its held-out conversations are (the run that made it, while it is kept), what it is compared with, and that answers
once given are remembered. Asks the same questions as the gate of a run, and promotes nothing. A model of another machine tells
no likelihoods: then both are judged by what they answer, and what that took is told.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from appliance.engine.handler import Handler
from appliance.errors import BadInput, NotFound, Unsupported
from appliance.registry import Manifest, Registry
from appliance.settings import Settings
from appliance.tuning import dataset, report_page
from appliance.tuning.evaluate import evaluate
from appliance.tuning.examples import Example
from appliance.tuning.huggingface import HuggingFaceTuner
from appliance.tuning.metering import Metered, lines
from appliance.tuning.report import Report
from appliance.tuning.run_folder import only_run, read_json, write_json
from appliance.tuning.sets import Sets
from appliance.tuning.standing import Standing

# The handler for what a hosted model's manifest says of it, while it is used: `Hosting.use`.
Outside = Callable[[Mapping[str, Any]], AbstractAsyncContextManager[Handler]]


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
    outside: Outside | None = None,
    on_item: Callable[[int, int], None] = lambda _done, _total: None,
) -> Judged:
    """Ask a model and its rival everything, and write the report as JSON and as a page below `HOME/reports`.

    against: an id; None is what `rival_of` says. A model whose run is gone, or which was not made here, is judged by the
    project's own conversations in place of held-out ones; so is one of another machine, unless everybody's words may leave the
    building (`hosted_for`), for those that were held back are the school's. Raises NotFound, BadInput, UnderWay,
    ModelUnavailable, and what `outside` does.
    """
    with only_run(settings.run / "tune.lock"):  # what is withdrawn meanwhile is erased from the report after it was written
        return await _judge(settings, name, against, outside, on_item)


async def _judge(
    settings: Settings, name: str, against: str | None, outside: Outside | None, on_item: Callable[[int, int], None]
) -> Judged:
    registry = Registry(settings.models)
    candidate = registry.verify(name)
    rival = registry.verify(against) if against else rival_of(registry, candidate)
    if rival.id == candidate.id:
        raise BadInput(f"{candidate.id!r} cannot be judged against itself.", "Name another model: --against ID.")
    sets = Sets.load(settings.content)
    hosted = "hosted" in (candidate.kind, rival.kind)
    run = run_of(settings, candidate) if not hosted or settings.hosted_for == "everyone" else None
    held_out: Sequence[Example] = dataset.load(run / "data").held_out if run else sets.tutoring
    kept = {example.id for example in held_out}
    plan = (read_json(run / "plan.json") if run else None) or {}
    async with serving(settings, (rival, candidate), outside) as asked:
        meters = [Metered(handler) for handler in asked] if hosted else []
        before, after = meters or asked
        report = await evaluate(
            before, after, held_out, chances=not hosted, sets=sets if run else replace(sets, tutoring=()),
            standing=[example for example in Standing(settings.standing).items() if example.id not in kept],
            triggers=plan.get("triggers", []), names=(rival.id, candidate.id), cache=settings.standing / "answered",
            keys=(_key(registry, rival), _key(registry, candidate)), budget=settings.gate_seconds or None, on_item=on_item,
        )  # fmt: skip
    if hosted:
        far = [model.kind == "hosted" for model in (rival, candidate)]
        report = replace(report, table=[*report.table, *lines(meters, far)])
    report = report_page.with_people(settings, report)
    if _counts(registry, candidate, rival, not against and (run is not None or hosted)):
        facts = {key: value for key, value in (candidate.report or {}).items() if key in ("parity", "training")}
        registry.judged(candidate.id, report.to_json() | facts)
    path = settings.reports / f"{candidate.id}-against-{rival.id}.json"
    write_json(path, report.to_json())
    page = report_page.save(settings, report, path.with_suffix(".html"), run)
    return Judged(report, path, page, run is not None)


def _counts(registry: Registry, candidate: Manifest, rival: Manifest, usual: bool) -> bool:
    """Whether this is the report that the model's promotion asks for."""
    if candidate.kind == "base":
        return False
    return usual or ("hosted" in (candidate.kind, rival.kind) and rival.id == registry.aliases().get("champion"))


def rival_of(registry: Registry, candidate: Manifest) -> Manifest:
    """What serves, where it stands on the same base or the model has none here; else the base. Raises NotFound.

    One of another machine that serves itself meets the local model that stands in for it.
    """
    champion = registry.champion()
    whole = candidate.kind in ("base", "hosted")
    related = champion is not None and (whole or candidate.origin == champion.origin)
    if champion is not None and champion.id != candidate.id and related:
        return registry.verify(champion.id)
    if candidate.kind == "hosted" and "fallback" in registry.aliases():
        return registry.verify("fallback")
    if whole:
        raise NotFound(
            f"There is nothing to judge {candidate.id!r} against.",
            f"Have one serve first, or name one: `appliance models evaluate {candidate.id} --against ID`.",
        )
    return registry.verify(candidate.origin)


def run_of(settings: Settings, manifest: Manifest) -> Path | None:
    """The folder of the run that made a model, where it is kept with the very data; None otherwise."""
    for folder in sorted(settings.runs.glob("*/")) if manifest.dataset else []:
        card, recipe = read_json(folder / "data" / "card.json"), read_json(folder / "recipe.json")
        known = isinstance(recipe, dict) or manifest.kind == "hosted"  # elsewhere it followed no recipe of ours
        if not isinstance(card, dict) or card.get("digest") != manifest.dataset or not known:
            continue
        if (folder / "named" / manifest.id).is_dir() or (read_json(folder / "name.json") or {}).get("id") == manifest.id:
            return folder
    return None


@contextlib.asynccontextmanager
async def serving(
    settings: Settings, models: Sequence[Manifest], outside: Outside | None = None
) -> AsyncIterator[tuple[Handler, Handler]]:
    """Two models, loaded, each through the files that would serve, or its plugin. Raises ModelUnavailable."""
    tuner = HuggingFaceTuner(settings)
    async with contextlib.AsyncExitStack() as stack:
        handlers: list[Handler] = []
        for manifest in models:
            if manifest.hosted is not None:
                if outside is None:
                    raise Unsupported(
                        f"{manifest.id} is on another machine.", f"`appliance models evaluate {manifest.id}` asks it."
                    )
                handler = await stack.enter_async_context(outside(manifest.hosted))
                await handler.start()
                handlers.append(handler)
                continue
            handler = tuner.create_handler(manifest.id)
            stack.push_async_callback(handler.close)
            await handler.start()
            handlers.append(handler)
        yield handlers[0], handlers[1]


def _key(registry: Registry, manifest: Manifest) -> str:
    """What a model's remembered answers stand under: the digests of its files, as in a run; "" for one that may change.

    One of another machine whose plugin says that it never changes (`fixed`) has its name there.
    """
    if manifest.kind == "hosted":
        facts = manifest.hosted or {}  # elsewhere, who can say whether it is still the same?
        return json.dumps([facts.get("plugin"), facts.get("model")]) if facts.get("fixed") is True else ""
    base = registry.get(manifest.base) if manifest.base else manifest
    adapter = manifest.files.get("adapter.gguf")
    weights = base.files.get("model.gguf")
    if weights is None:
        return json.dumps(sorted(fact.sha256 for fact in manifest.files.values()))
    return f"{weights.sha256}+{adapter.sha256 if adapter else ''}"
