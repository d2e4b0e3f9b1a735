"""What each step of a run does, from training to the registry; when and whether it is done is `pipeline.py`'s.

Hides which files a step reads and writes in the run's folder, when the GPU may be used, and how a candidate that is in no
registry yet is served for its judges. A step neither knows of another one nor promotes anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import shutil
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.engine.handler import Message
from appliance.errors import BadInput, NotFound, Unsupported, from_os_error
from appliance.files import sha256_of, sync_tree
from appliance.registry import Manifest, Registry
from appliance.settings import Settings, cores
from appliance.tuning import gpu_window
from appliance.tuning.dataset import Dataset
from appliance.tuning.evaluate import Report, evaluate
from appliance.tuning.gguf import export_adapter, export_merged
from appliance.tuning.huggingface import HuggingFaceTuner, OnProgress, Trained
from appliance.tuning.launch import gpus_here
from appliance.tuning.parity import CHOSEN, CONVERSATIONS
from appliance.tuning.parity import parity as same_answers
from appliance.tuning.recipe import Recipe
from appliance.tuning.report import finite
from appliance.tuning.run_folder import RunFolder, read_json, write_json
from appliance.tuning.sets import Sets
from appliance.tuning.standing import Standing

if TYPE_CHECKING:
    from appliance.engine.scheduler import LlamaHandler

PARITY_BYTES = 900  # of a conversation: within every model's context, whatever its tokens are


@dataclass(frozen=True)
class Work:
    """One run under way: what is made of what, under which name, and who is told.

    triggers: phrases that no answer may change for. preferences: what a recipe that does not imitate learns from. withdrawn:
    says which of its rows were withdrawn by now. seconds: fills up step by step.
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
    withdrawn: Callable[[], Collection[str]] = tuple
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
        champion = self._other()
        return champion if champion is not None and champion.origin == self.origin.id else self.origin

    def _other(self) -> Manifest | None:
        """What serves in its place; None where nothing does that could be read."""
        try:
            return None if self.serves() else self.registry.champion()
        except (BadInput, NotFound):
            return None

    def barred(self, report: Report) -> str:
        """Why a candidate that passed must not take the place of what serves now; "" where it may."""
        champion = self._other()
        if champion is not None and champion.origin != self.origin.id:
            return (
                f"{champion.id} serves, which stands on another base: nothing has compared {self.id} with it. "
                f"`appliance models evaluate {self.id} --against {champion.id}` does, and "
                f"`appliance models promote {self.id} --accept REASON` serves it."
            )
        if report.baseline != self.rival().id:
            return (
                f"{self.id} was judged against {report.baseline}, and {self.rival().id} came to serve meanwhile. "
                "Run the same command again: it is judged against that one, and nothing is trained again."
            )
        return ""


def parity_talks(data: Dataset) -> list[tuple[Message, ...]]:
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


async def train(work: Work, talks: list[tuple[Message, ...]]) -> Trained:
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


async def export(work: Work, trained: Trained) -> dict[str, Any]:
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


async def parity(work: Work, trained: Trained, talks: list[tuple[Message, ...]]) -> dict[str, Any]:
    async with _serving(work, None) as candidate:
        return await same_answers(trained.references, talks, candidate)


async def judge(work: Work) -> dict[str, Any]:
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


def report_of(named: RunFolder) -> Report | None:
    """What the gate found, None where it did not judge yet or its record is damaged."""
    try:
        return Report.from_json(read_json(named.path / "report.json"))
    except (TypeError, KeyError, ValueError, AttributeError):
        return None


async def register(work: Work, trained: Trained, report: Report) -> dict[str, Any]:
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
    facts = {"parity": work.run.finished("parity"), "training": trained.facts}
    origin, record = work.origin, finite(report.to_json() | facts)
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
