"""The steps from a dataset to a model that serves: train -> export -> parity -> evaluate -> register -> promote.

Each step leaves a marker, written last: run again after a power cut, a full disk or a kill -9, the same work finds what was
finished and whole, and does the rest. `tune` brings a file of examples, `retrain.py` the school's reviewed rows. Steps know
nothing of each other; what each does is in its own file.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import hashlib
import json
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.engine.handler import Message
from appliance.errors import BadInput, Conflict, NotFound, Unsupported, from_os_error
from appliance.files import sha256_of, sync_tree
from appliance.registry import Manifest, Registry
from appliance.settings import Settings, cores
from appliance.tuning import dataset, gpu_window, report_page
from appliance.tuning.dataset import Dataset, part_key
from appliance.tuning.evaluate import Report, evaluate
from appliance.tuning.gguf import export_adapter, export_merged
from appliance.tuning.huggingface import HuggingFaceTuner, OnProgress, Trained, silent
from appliance.tuning.launch import gpus_here
from appliance.tuning.parity import CHOSEN, CONVERSATIONS, parity
from appliance.tuning.recipe import Recipe
from appliance.tuning.run_folder import RunFolder, need_space, only_run, read_json, write_json
from appliance.tuning.sets import Sets
from appliance.tuning.standing import Standing, guarded

if TYPE_CHECKING:
    from appliance.engine.scheduler import LlamaHandler

# Adapter, optimizer state and the two checkpoints that are kept, beside logs: a sixth of the base's size and some.
SPACE_MB = 60
PARITY_BYTES = 900  # of a conversation: within every model's context, whatever its tokens are

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


@dataclass(frozen=True)
class Work:
    """One run under way: what is made of what, under which name, and who is told.

    triggers: phrases that no answer may change for. preferences: what a recipe that does not imitate learns from. seconds:
    fills up step by step.
    """

    settings: Settings
    registry: Registry
    origin: Manifest
    run: RunFolder
    data: Dataset
    recipe: Recipe
    id: str
    tell: OnProgress
    triggers: Sequence[str] = ()
    preferences: Sequence[dict[str, Any]] = ()
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def named(self) -> RunFolder:
        return self.run.named(self.id)

    @property
    def merged(self) -> bool:
        """What is trained cannot be served as an adapter: it is worked into a copy of the base."""
        return self.recipe.merged_only

    @property
    def exported(self) -> Path:
        return self.run.path / "export" / ("model.gguf" if self.merged else "adapter.gguf")

    def serves(self) -> bool:
        return self.registry.aliases().get("champion") == self.id

    def rival(self) -> Manifest:
        """What the candidate must beat: what serves now where that stands on the same base, else the base itself."""
        champion = self.registry.champion()
        fits = champion is not None and champion.origin == self.origin.id and champion.id != self.id
        return champion if fits and champion is not None else self.origin


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
        origin = base_to_tune(registry, base or recipe.base)
        need_space(settings.runs, SPACE_MB + origin.bytes // 6_000_000, settings.disk_reserve_mb)
        run, data = open_run(settings, origin, recipe, read, limit=limit)
        on_progress("dataset", 1, 1, 0.0, {"train": len(data.train), "held_out": len(data.held_out), **data.card["dropped"]})
        work = Work(settings, registry, origin, run, data, recipe, name or default_name(origin, run), on_progress)
        report = await make(work)
        promoted = await bring_into_service(work, report, promote_with) if promote else work.serves()
        return finish(work, report, promoted)


async def make(work: Work) -> Report:
    """Train -> export -> parity -> evaluate -> register, each unless it is finished and whole; what the gate found."""
    run, named = work.run, work.named
    check_name(work)
    talks = _parity_talks(work.data)
    _forget_what_is_damaged(work, len(talks))
    started = time.monotonic()
    trained = await _train(work, talks)
    work.seconds["train"] = round(time.monotonic() - started, 2)
    await _step(work, run, "export", lambda: _export(work, trained))
    await _step(work, run, "parity", lambda: _parity(work, trained, talks))
    judged = named.finished("evaluate")
    if judged is None or (not work.serves() and judged.get("baseline") != work.rival().id) or _report(named) is None:
        named.forget("evaluate")  # another model serves since: what was better than the old one need not be better than it
        named.forget("register")
    await _step(work, named, "evaluate", lambda: _evaluate(work))
    report = _report(named)
    if report is None:
        raise from_os_error(OSError(5, "the report cannot be read back"), "judging the new model")
    if (named.finished("register") or {}).get("id") != work.id or not _known(work.registry, work.id):
        named.forget("register")  # removed since
    await _step(work, named, "register", lambda: _register(work, trained, report))
    return report


async def bring_into_service(work: Work, report: Report, promote_with: Promote | None = None) -> bool:
    """Promote the registered model if it passed the gate; whether it serves. Raises what went wrong; then nothing changed."""
    if report.passed and not work.serves():
        work.tell("promote", 0, 1, None, {})
        started = time.monotonic()
        await (promote_with or _promote(work.registry))(work.id)
        work.seconds["promote"] = round(time.monotonic() - started, 2)
        work.tell("promote", 1, 1, 0.0, {})
    if work.serves():  # also where a kill came between the two; what stands already stays as it is
        Standing(work.settings.standing).add(work.data.digest, work.data.held_out)
    return work.serves()


def finish(work: Work, report: Report, promoted: bool) -> TuneResult:
    """Write the page for people and, last, `result.json`: the run is over."""
    report_page.save(work.settings, report, work.named.path / "report.html", work.run.path)
    result = TuneResult(work.id, report, promoted, report.reasons, work.seconds, work.run.path)
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
        champion = registry.champion()
        bases = [model for model in registry.list() if model.kind == "base"]
        if champion is None and len(bases) != 1:
            raise NotFound(f"There are {len(bases)} base models and none serves.", "Name one with --base.")
        manifest = champion or bases[0]
    origin = registry.verify(manifest.origin)
    if not any(name.startswith("hf/") for name in origin.files):
        raise Unsupported(
            f"The model {origin.id!r} was imported as GGUF alone: it can be served but not tuned.",
            "Import its Hugging Face folder: `appliance models import FOLDER`.",
        )
    return origin


def open_run(
    settings: Settings,
    origin: Manifest,
    recipe: Recipe,
    examples: Sequence[dataset.Example],
    *,
    limit: int | None = None,
    preferences: Sequence[dict[str, Any]] = (),
    facts: dict[str, Any] | None = None,
) -> tuple[RunFolder, Dataset]:
    """The run that this data, recipe and base make: a new folder, or the one where it was begun before.

    Nothing near what the gate asks is trained on. preferences: where they are what is learned from. facts: for the card.
    """
    fresh = settings.runs / ".new"
    shutil.rmtree(fresh, ignore_errors=True)
    asked = guarded(settings.content, Standing(settings.standing))
    built = dataset.build(examples, fresh, limit=limit, evaluation=asked, facts=facts)
    if not built.held_out:
        raise BadInput(
            f"None of the {len(built.train)} examples fell to the held-out part, so nothing could judge the result.",
            "Give more examples; 150 or more give a gate that can be trusted.",
        )
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
    return run, Dataset(data, built.train, built.held_out, built.card)


def default_name(origin: Manifest, run: RunFolder) -> str:
    return f"{origin.id}-{run.path.name[:8]}"


def _known(registry: Registry, id: str) -> bool:
    try:
        return registry.get(id).id == id
    except NotFound:
        return False


def check_name(work: Work) -> None:
    """Raise Conflict before any work where the name stands for a model made of something else."""
    if not _known(work.registry, work.id):
        return
    there = work.registry.get(work.id)
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


def trainable(preferences: Sequence[dict[str, Any]], data: Dataset) -> list[dict[str, Any]]:
    """The preferences that are not about a conversation which the result will be judged by."""
    kept_back = {part_key(example) for example in data.held_out}

    def key(row: dict[str, Any]) -> str:
        return part_key(dataset.Example(row["id"], tuple(Message(**turn) for turn in row["messages"])))

    return [row for row in preferences if key(row) not in kept_back]


# --- steps ------------------------------------------------------------------------------------------------------------


async def _train(work: Work, talks: list[tuple[Message, ...]]) -> Trained:
    """Train on the GPU in its window only; outside it on the processor where that can hold the run. Raises Busy else."""
    window, now = work.settings.gpu_window, datetime.datetime.now()
    closed = gpus_here() > 0 and gpu_window.opens_in(window, now) > 0
    ends = None if closed or not gpus_here() else gpu_window.closes_in(window, now)
    try:
        async with asyncio.timeout(ends):
            return await HuggingFaceTuner(work.settings).fine_tune(
                work.origin.id, work.data, work.recipe, work.run.path, parity_talks=talks, preferences=work.preferences,
                gpu=not closed, on_progress=work.tell,
            )  # fmt: skip
    except TimeoutError:  # the child is gone, and the GPU with it; its newest checkpoint is kept
        raise gpu_window.not_now(window, datetime.datetime.now()) from None
    except Unsupported:
        if closed:
            raise gpu_window.not_now(window, now) from None
        raise


async def _export(work: Work, trained: Trained) -> dict[str, Any]:
    base = work.registry.folder(work.origin.id) / "hf"
    if work.merged:
        out, licence, starter = work.exported, work.origin.licence, work.origin.starter
        await asyncio.to_thread(lambda: export_merged(base, trained.adapter, out, work.id, licence=licence, starter=starter))
    else:
        await asyncio.to_thread(export_adapter, trained.adapter, base, work.exported)
    return {"bytes": work.exported.stat().st_size, "sha256": sha256_of(work.exported)}


@contextlib.asynccontextmanager
async def _serving(work: Work, model: Manifest | None, *, at_once: int = 1) -> AsyncIterator[LlamaHandler]:
    """A handler for a registered model, or for the candidate (None), as it will be served.

    at_once: handlers that are asked at the same time, and share the processor's cores.
    """
    from appliance.engine.scheduler import LlamaHandler

    own = work.exported if model is None else work.registry.folder(model.id) / ("adapter.gguf" if model.base else "model.gguf")
    whole = work.merged if model is None else model.base is None
    base = work.registry.folder(work.origin.id) / "model.gguf"
    threads = max(1, (work.settings.threads or cores()) // at_once)
    handler = LlamaHandler(own, threads=threads) if whole else LlamaHandler(base, own, threads=threads)
    try:
        await handler.start()
        yield handler
    finally:
        await handler.close()


async def _parity(work: Work, trained: Trained, talks: list[tuple[Message, ...]]) -> dict[str, Any]:
    async with _serving(work, None) as candidate:
        return await parity(trained.references, talks, candidate)


async def _evaluate(work: Work) -> dict[str, Any]:
    rival = work.registry.verify(work.rival().id)
    async with _serving(work, rival, at_once=2) as before, _serving(work, None, at_once=2) as after:
        report = await evaluate(
            before, after, work.data.held_out, names=(rival.id, work.id), sets=Sets.load(work.settings.content),
            standing=Standing(work.settings.standing).items(), triggers=work.triggers,
            cache=work.settings.standing / "answered",
            keys=(_key(work, rival), _key(work, None)), budget=work.settings.gate_seconds or None,
            on_item=lambda done, total: work.tell("evaluate", done, total, None, {}),
        )  # fmt: skip
    write_json(work.named.path / "report.json", report.to_json())
    return {"passed": report.passed, "baseline": rival.id}


def _key(work: Work, model: Manifest | None) -> str:
    """What the remembered answers of a registered model, or of the candidate (None), stand under: its files' digests."""
    if model is None:
        own, whole = sha256_of(work.exported), work.merged
    else:
        own, whole = model.files["adapter.gguf" if model.base else "model.gguf"].sha256, model.base is None
    return f"{own}+" if whole else f"{work.origin.files['model.gguf'].sha256}+{own}"


def _report(named: RunFolder) -> Report | None:
    """What the gate found, None where it did not judge yet or its record is damaged."""
    try:
        return Report.from_json(read_json(named.path / "report.json"))
    except (TypeError, KeyError, ValueError, AttributeError):
        return None


async def _register(work: Work, trained: Trained, report: Report) -> dict[str, Any]:
    """Hand a copy to the registry; the run keeps its own, so that its record is whole."""
    incoming = work.run.path / "incoming"
    try:
        shutil.rmtree(incoming, ignore_errors=True)
        (incoming / "hf").mkdir(parents=True)
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copyfile(trained.adapter / name, incoming / "hf" / name)
        shutil.copyfile(work.exported, incoming / work.exported.name)
        shutil.copyfile(work.data.folder / "card.json", incoming / "dataset.json")
        sync_tree(incoming)
    except OSError as error:
        raise from_os_error(error, "registering the new model") from None
    origin, record = work.origin, report.to_json() | {"parity": work.run.finished("parity"), "training": trained.facts}
    title = f"{origin.title}, tuned on {len(work.data.train)} examples"
    manifest = await asyncio.to_thread(
        lambda: work.registry.add(
            incoming, id=work.id, kind="merged" if work.merged else "adapter", title=title, licence=origin.licence,
            context=origin.context, base=None if work.merged else origin.id, parents=(origin.id,), report=record,
            dataset=work.data.digest, recipe=work.recipe.digest(), starter=origin.starter,
        )
    )  # fmt: skip
    if manifest.report != json.loads(json.dumps(record)):  # it was there already, judged against another model
        manifest = work.registry.judged(work.id, record)
    return {"id": manifest.id}


def _promote(registry: Registry) -> Promote:
    async def promote(id: str) -> object:
        return await asyncio.to_thread(registry.promote, id)

    return promote
