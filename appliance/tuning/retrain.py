"""The tuning pipeline, from a file of examples to the model that serves, as one readable function.

Each step leaves a marker, written last: run again after a power cut, a full disk or a kill -9, the same command finds what was
finished and does the rest. Steps know nothing of each other; what each does is in its own file.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.engine.handler import Message
from appliance.errors import BadInput, Conflict, NotFound, Unsupported, from_os_error
from appliance.files import sync_tree
from appliance.registry import Manifest, Registry
from appliance.settings import Settings
from appliance.tuning import dataset
from appliance.tuning.dataset import Dataset
from appliance.tuning.evaluate import Report, evaluate
from appliance.tuning.gguf import export_adapter
from appliance.tuning.huggingface import HuggingFaceTuner, OnProgress, Trained, silent
from appliance.tuning.parity import CHOSEN, CONVERSATIONS, parity
from appliance.tuning.recipe import Recipe
from appliance.tuning.run_folder import RunFolder, need_space, only_run, read_json, write_json

if TYPE_CHECKING:
    from appliance.engine.scheduler import LlamaHandler

# Adapter, optimizer state and the two checkpoints that are kept, beside logs: a sixth of the base's size and some.
SPACE_MB = 60
PARITY_BYTES = 900  # of a conversation: within every model's context, whatever its tokens are


@dataclass(frozen=True)
class TuneResult:
    """`id`: the adapter in the registry, whether or not the gate let it serve. `folder`: the run's record."""

    id: str
    report: Report
    promoted: bool
    reasons: list[str]
    seconds_by_step: dict[str, float]
    folder: Path

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "report": self.report.to_json(),
            "promoted": self.promoted,
            "reasons": self.reasons,
            "seconds_by_step": self.seconds_by_step,
            "folder": str(self.folder),
        }


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
    promote_with: Callable[[str], Awaitable[object]] | None = None,
) -> TuneResult:
    """Read -> dataset -> train -> export -> parity -> evaluate -> register -> promote; finished steps are not done again.

    base: registry id, None for the recipe's or the champion's. name: the new model's id, None derives one. Raises BadInput
    (every fault of the examples), Conflict (a run is under way), StorageFull, and what a step could not do.
    """
    recipe = recipe or Recipe()
    on_progress("read", 0, 1, None, {})
    read = dataset.read_examples(examples)
    on_progress("read", 1, 1, 0.0, {"examples": len(read)})
    with only_run(settings.run / "tune.lock"):
        origin = _base(registry, base or recipe.base)
        need_space(settings.runs, SPACE_MB + origin.bytes // 6_000_000, settings.disk_reserve_mb)
        run, data = _open_run(settings, origin, recipe, read, limit)
        on_progress("dataset", 1, 1, 0.0, {"train": len(data.train), "held_out": len(data.held_out), **data.card["dropped"]})
        talks = _parity_talks(data)
        id = name or f"{origin.id}-{run.path.name[:8]}"
        _check_name(registry, id, data, recipe)
        seconds: dict[str, float] = {}
        step = functools.partial(_step, run, seconds, on_progress)
        started = time.monotonic()
        trained = await HuggingFaceTuner(settings).fine_tune(
            origin.id, data, recipe, run.path, parity_talks=talks, on_progress=on_progress
        )
        seconds["train"] = round(time.monotonic() - started, 2)
        await step("export", lambda: _export(registry, origin, trained, run))
        await step("parity", lambda: _parity(settings, registry, origin, trained, talks, run))
        rival = _rival(registry, origin, id)
        serves = registry.aliases().get("champion") == id
        if not serves and (run.finished("evaluate") or {}).get("baseline", rival.id) != rival.id:
            run.forget("evaluate")  # another model serves since: what was better than the old one need not be better than it
        await step("evaluate", lambda: _evaluate(settings, registry, origin, rival, id, data, run, on_progress))
        report = Report.from_json(read_json(run.path / "report.json"))
        if (run.finished("register") or {}).get("id") != id or not _known(registry, id):
            run.forget("register")  # under another name, or removed since
        await step("register", lambda: _register(registry, origin, id, data, recipe, trained, report, run))
        if promote and report.passed and not serves:
            started = time.monotonic()
            await (promote_with or _promote(registry))(id)
            seconds["promote"] = round(time.monotonic() - started, 2)
            serves = True
        result = TuneResult(id, report, serves, report.reasons, seconds, run.path)
        write_json(run.path / "result.json", result.to_json())
        return result


async def _step(
    run: RunFolder, seconds: dict[str, float], tell: OnProgress, title: str, work: Callable[[], Awaitable[dict[str, Any]]]
) -> None:
    """Do a step and mark it finished, unless its marker says that it is; note its seconds either way."""
    facts = run.finished(title)
    if facts is None:
        tell(title, 0, 1, None, {})
        started = time.monotonic()
        facts = await work()
        facts = run.finish(title, facts | {"seconds": round(time.monotonic() - started, 2)})
        tell(title, 1, 1, 0.0, {})
    seconds[title] = facts.get("seconds", 0.0)


# --- where a run starts from ------------------------------------------------------------------------------------------


def _base(registry: Registry, asked: str) -> Manifest:
    """The verified base to tune: what was asked, else the champion's, else the only one there is."""
    if asked:
        manifest = registry.get(asked)
    else:
        champion = registry.champion()
        bases = [model for model in registry.list() if model.kind == "base"]
        if champion is None and len(bases) != 1:
            raise NotFound(f"There are {len(bases)} base models and none serves.", "Name one with --base.")
        manifest = champion or bases[0]
    origin = registry.verify(manifest.base or manifest.id)
    if not any(name.startswith("hf/") for name in origin.files):
        raise Unsupported(
            f"The model {origin.id!r} was imported as GGUF alone: it can be served but not tuned.",
            "Import its Hugging Face folder: `appliance models import FOLDER`.",
        )
    return origin


def _open_run(
    settings: Settings, origin: Manifest, recipe: Recipe, examples: Sequence[dataset.Example], limit: int | None
) -> tuple[RunFolder, Dataset]:
    """The run that this data, recipe and base make: a new folder, or the one where it was begun before."""
    fresh = settings.runs / ".new"
    shutil.rmtree(fresh, ignore_errors=True)
    built = dataset.build(examples, fresh, limit=limit)
    if not built.held_out:
        raise BadInput(
            f"None of the {len(built.train)} examples fell to the held-out part, so nothing could judge the result.",
            "Give more examples; 150 or more give a gate that can be trusted.",
        )
    weights = origin.files["model.gguf"].sha256 if "model.gguf" in origin.files else ""
    digest = hashlib.sha256(f"{built.digest}\n{recipe.digest()}\n{origin.id}\n{weights}".encode()).hexdigest()
    run = RunFolder(settings.runs / digest[:16])
    data = run.path / "data"
    try:
        shutil.rmtree(data, ignore_errors=True)  # the same content: the digest is the folder's name
        fresh.rename(data)
    except OSError as error:
        raise from_os_error(error, "making the run's folder") from None
    return run, Dataset(data, built.train, built.held_out, built.card)


def _known(registry: Registry, id: str) -> bool:
    try:
        return registry.get(id).id == id
    except NotFound:
        return False


def _check_name(registry: Registry, id: str, data: Dataset, recipe: Recipe) -> None:
    """Raise Conflict before any work where the name stands for a model made of something else."""
    if not _known(registry, id):
        return
    there = registry.get(id)
    if (there.dataset, there.recipe) != (data.digest, recipe.digest()):
        raise Conflict(f"There is another model called {id!r} already.", "Choose another name, or remove that one first.")


def _parity_talks(data: Dataset) -> list[tuple[Message, ...]]:
    """Real conversations for the parity check, held-out ones first, each cut after a tutor's turn to a modest length.

    Talks with angle brackets are passed over: what looks like a model's own mark is text to the server and a mark in training.
    """
    talks: list[tuple[Message, ...]] = []
    for example in [*data.held_out, *data.train]:
        length, end = 0, 0
        for position, message in enumerate(example.messages, start=1):
            length += len(message.content.encode()) + 8
            if length <= PARITY_BYTES and message.role == "assistant":
                end = position
        if end and not any("<" in message.content for message in example.messages[:end]):
            talks.append(example.messages[:end])
    if len(talks) < CONVERSATIONS:
        raise BadInput(
            f"Only {len(talks)} examples are short and plain enough to check the export with; {CONVERSATIONS} are needed.",
            "Give more examples; 150 or more give a gate that can be trusted.",
        )
    return talks[:CHOSEN]


# --- steps ------------------------------------------------------------------------------------------------------------


async def _export(registry: Registry, origin: Manifest, trained: Trained, run: RunFolder) -> dict[str, Any]:
    out = run.path / "export" / "adapter.gguf"
    await asyncio.to_thread(export_adapter, trained.adapter, registry.folder(origin.id) / "hf", out)
    return {"bytes": out.stat().st_size}


@contextlib.asynccontextmanager
async def _serving(settings: Settings, registry: Registry, base: Manifest, adapter: Path | None) -> AsyncIterator[LlamaHandler]:
    from appliance.engine.scheduler import LlamaHandler

    handler = LlamaHandler(registry.folder(base.id) / "model.gguf", adapter, threads=settings.threads)
    try:
        await handler.start()
        yield handler
    finally:
        await handler.close()


async def _parity(
    settings: Settings, registry: Registry, origin: Manifest, trained: Trained, talks: list[tuple[Message, ...]], run: RunFolder
) -> dict[str, Any]:
    async with _serving(settings, registry, origin, run.path / "export" / "adapter.gguf") as candidate:
        return await parity(trained.references, talks, candidate)


def _rival(registry: Registry, origin: Manifest, id: str) -> Manifest:
    """What the candidate must beat: what serves now where that stands on the same base, else the base itself."""
    champion = registry.champion()
    return champion if champion is not None and champion.base == origin.id and champion.id != id else origin


async def _evaluate(
    settings: Settings,
    registry: Registry,
    origin: Manifest,
    rival: Manifest,
    id: str,
    data: Dataset,
    run: RunFolder,
    tell: OnProgress,
) -> dict[str, Any]:
    registry.verify(rival.id)
    worn = registry.folder(rival.id) / "adapter.gguf" if rival.base else None
    async with (
        _serving(settings, registry, origin, worn) as before,
        _serving(settings, registry, origin, run.path / "export" / "adapter.gguf") as after,
    ):
        report = await evaluate(
            before, after, data.held_out, names=(rival.id, id),
            on_item=lambda done, total: tell("evaluate", done, total, None, {}),
        )  # fmt: skip
    write_json(run.path / "report.json", report.to_json())
    return {"passed": report.passed, "baseline": rival.id}


async def _register(
    registry: Registry,
    origin: Manifest,
    id: str,
    data: Dataset,
    recipe: Recipe,
    trained: Trained,
    report: Report,
    run: RunFolder,
) -> dict[str, Any]:
    """Hand a copy to the registry; the run keeps its own, so that its record is whole."""
    incoming = run.path / "incoming"
    try:
        shutil.rmtree(incoming, ignore_errors=True)
        (incoming / "hf").mkdir(parents=True)
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copyfile(trained.adapter / name, incoming / "hf" / name)
        shutil.copyfile(run.path / "export" / "adapter.gguf", incoming / "adapter.gguf")
        shutil.copyfile(data.folder / "card.json", incoming / "dataset.json")
        sync_tree(incoming)
    except OSError as error:
        raise from_os_error(error, "registering the new model") from None
    title = f"{origin.title}, tuned on {len(data.train)} examples"
    manifest = await asyncio.to_thread(
        lambda: registry.add(
            incoming, id=id, kind="adapter", title=title, licence=origin.licence,
            context=origin.context, base=origin.id, parents=(origin.id,), dataset=data.digest, recipe=recipe.digest(),
            report=report.to_json() | {"parity": run.finished("parity"), "training": trained.facts}, starter=origin.starter,
        )
    )  # fmt: skip
    return {"id": manifest.id}


def _promote(registry: Registry) -> Callable[[str], Awaitable[object]]:
    async def promote(id: str) -> object:
        return await asyncio.to_thread(registry.promote, id)

    return promote
