"""HuggingFaceTuner: LoRA and QLoRA tuning with transformers, peft and trl, seen from outside.

Hides that training is a process of its own (`train_child.py`), how its progress and faults come back, the one retry with
smaller batches where memory ran out, that a run that was broken off goes on from its newest complete checkpoint, and that no
copy of the conversations outlives the training. What happens to the adapter afterwards - export, checks, promotion - is
`pipeline.py`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from appliance import errors
from appliance.engine.handler import Handler, Message
from appliance.errors import ApplianceError, BadInput, ModelUnavailable, NotFound, Unsupported, from_os_error
from appliance.registry import Registry
from appliance.settings import PACKAGE, Settings, cores
from appliance.settings import load as load_settings
from appliance.tuning import checkpoints, dataset
from appliance.tuning.dataset import Dataset
from appliance.tuning.gguf import folder_digest
from appliance.tuning.launch import LOOPBACK, gpus_here, launch_command
from appliance.tuning.parity import Reference
from appliance.tuning.recipe import Recipe
from appliance.tuning.run_folder import RunFolder, read_json, write_json
from appliance.tuning.trainer import JUDGED_ON

# Threads that wait must sleep: spinning ones took a hundredfold of the engine's time on two cores.
QUIET_THREADS = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}

# stage ("load", "train", ...), done, total, seconds left or None, facts
OnProgress = Callable[[str, int, int, "float | None", dict[str, Any]], None]


@dataclass(frozen=True)
class Trained:
    """`adapter`: folder in peft's format; `references`: what the trained model makes of the parity conversations."""

    adapter: Path
    references: list[Reference]
    facts: dict[str, Any]


def silent(_stage: str, _done: int, _total: int, _left: float | None, _facts: dict[str, Any]) -> None:
    """The progress report of those who do not ask for one."""


class HuggingFaceTuner:
    """Tunes a local model on local examples. `settings` None reads them as every command does."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or load_settings()
        self.registry = Registry(self.settings.models)

    def load_model(self, path: str | Path) -> tuple[Any, Any]:
        """(model, tokenizer) of a base in a folder, or of a registry id: transformers objects in float32 on the CPU."""
        from appliance.tuning import loading

        folder = self._hf(path)
        return loading.load_base(folder), loading.load_tokenizer(folder)

    def prepare_dataset(self, examples: str | Path, folder: str | Path, *, limit: int | None = None) -> Dataset:
        """Read examples and write the dataset folder. Raises BadInput listing every fault."""
        return dataset.build(dataset.read_examples(Path(examples)), Path(folder), limit=limit)

    async def fine_tune(
        self,
        base: str | Path,
        data: Dataset,
        recipe: Recipe,
        folder: str | Path,
        *,
        parity_talks: Sequence[Sequence[Message]] = (),
        preferences: Sequence[dict[str, Any]] = (),
        gpu: bool = True,
        on_progress: OnProgress = silent,
    ) -> Trained:
        """Train an adapter for `base` in `folder`, or finish the run that was broken off there, or return the finished one.

        preferences: pairs or thumbs as `preference.prepare_preferences` takes them, where the recipe's objective is not to
        imitate. gpu: false keeps the run off a GPU that is there. The same base, data and recipe are the same run; anything
        else begins anew. Raises what stopped it; the folder then still holds the newest complete checkpoint.
        """
        run = RunFolder(Path(folder))
        job = self._job(self._hf(base), data, recipe, parity_talks, preferences) | {"gpu": gpu}
        facts = run.finished("train")
        if facts is None or facts.get("run") != job["run"] or not checkpoints.complete(run.path / "adapter"):
            facts = await self._train(run, job, on_progress)
        rows = read_json(run.path / "reference.json") or []
        return Trained(run.path / "adapter", [Reference(**row) for row in rows], facts)

    def _job(
        self,
        base: Path,
        data: Dataset,
        recipe: Recipe,
        talks: Sequence[Sequence[Message]],
        preferences: Sequence[dict[str, Any]],
    ) -> dict[str, Any]:
        """What the training process is told. `run` names base, data and recipe; the rest decides speed, or rounding only."""
        imitates = recipe.objective == "imitate"
        job: dict[str, Any] = {
            "base": str(base.resolve()),
            "recipe": recipe.to_json(),
            "train": [[asdict(message) for message in example.messages] for example in data.train] if imitates else [],
            "held_out": [[asdict(message) for message in example.messages] for example in data.held_out[:JUDGED_ON]]
            if imitates and recipe.patience
            else [],
            "preferences": [] if imitates else list(preferences),
            "parity": [[asdict(message) for message in talk] for talk in talks],
        }
        content = json.dumps([folder_digest(base), *(job[name] for name in list(job)[1:])])
        return job | {
            "run": hashlib.sha256(content.encode()).hexdigest(),
            "micro_batch": recipe.batch,
            "threads": self.settings.threads or cores(),
            "memory_mb": self.settings.train_memory_mb,
        }

    async def _train(self, run: RunFolder, job: dict[str, Any], tell: OnProgress) -> dict[str, Any]:
        before = read_json(run.path / "job.json")
        if isinstance(before, dict) and before.get("run") == job["run"]:
            # Batches and threads stay as they were, so that the resumed run gives what the unbroken one would have.
            job |= {key: before[key] for key in ("micro_batch", "threads", "method") if key in before}
        else:
            shutil.rmtree(run.path / "checkpoints", ignore_errors=True)
        try:
            run.path.chmod(0o700)  # job.json and the checkpoints hold what pupils wrote, or what was learnt from it
            write_json(run.path / "job.json", job)
            write_json(run.path / "recipe.json", job["recipe"])
            facts = await run_child(run.path, tell)
        except ApplianceError as error:
            job |= read_json(run.path / "job.json") or {}  # it may have begun with smaller parts than it was told
            if error.code != "out_of_memory" or job["micro_batch"] == 1:
                raise
            job["micro_batch"] = max(1, job["micro_batch"] // 2)
            tell("load", 0, 1, None, {"retry": "out of memory", "micro_batch": job["micro_batch"]})
            shutil.rmtree(run.path / "checkpoints", ignore_errors=True)  # made with other batches
            write_json(run.path / "job.json", job)
            facts = await run_child(run.path, tell)
        facts = run.finish("train", facts | {"run": job["run"]})
        shutil.rmtree(run.path / "checkpoints", ignore_errors=True)
        (run.path / "job.json").unlink(missing_ok=True)  # the dataset folder has the text; one place to erase it from
        return facts

    def save_model(self, model: Any, path: str | Path) -> None:
        """Write an adapter as safetensors, complete or not at all. Raises where a weight is not finite, StorageFull."""
        from appliance.tuning import trainer

        try:
            trainer.save_adapter(model, Path(path))
        except OSError as error:
            raise from_os_error(error, "saving the adapter") from None

    def load_fine_tuned_model(self, path: str | Path, base: str | Path | None = None) -> tuple[Any, Any]:
        """(model, tokenizer) of a base with the adapter in `path` (a folder or a registry id), in float32 on the CPU.

        base: where the adapter is a folder outside the registry.
        """
        from appliance.tuning import loading

        adapter = self._hf(path)
        if base is None:
            manifest = self.registry.get(self._id(path))
            if manifest.base is None:
                return self.load_model(path)
            base = manifest.base
        base_folder = self._hf(base)
        return loading.load_adapted(base_folder, adapter), loading.load_tokenizer(base_folder)

    def create_handler(self, path: str | Path) -> Handler:
        """A handler for a tuned model: a registry id, its folder, or a folder with model.gguf (and adapter.gguf).

        Not yet loaded: call `start()`. Raises NotFound, ModelUnavailable where a file was changed since it was registered.
        """
        from appliance.engine.scheduler import LlamaHandler

        folder = Path(path)
        threads, context = self.settings.threads, self.settings.context
        if (folder / "model.gguf").is_file():
            adapter = folder / "adapter.gguf"
            return LlamaHandler(folder / "model.gguf", adapter if adapter.is_file() else None, threads=threads, context=context)
        manifest = self.registry.verify(self._id(path))
        if manifest.kind == "hosted":
            raise Unsupported(f"{manifest.id} is on another machine: nothing of it is here.", "Ask it through what serves.")
        own = self.registry.folder(manifest.id)
        if manifest.base is None:
            return LlamaHandler(own / "model.gguf", threads=threads, context=context, model_id=manifest.id)
        base = self.registry.folder(self.registry.verify(manifest.base).id) / "model.gguf"
        return LlamaHandler(base, own / "adapter.gguf", threads=threads, context=context, model_id=manifest.id)

    def _id(self, path: str | Path) -> str:
        """The registry id that a name or a folder inside the registry stands for."""
        place = Path(path).expanduser().resolve()
        root = self.registry.root.resolve()
        if place.is_relative_to(root) and place != root:
            return place.relative_to(root).parts[0]
        return str(path)

    def _hf(self, path: str | Path) -> Path:
        """The folder with a model in transformers' format."""
        folder = Path(path)
        if (folder / "hf").is_dir():
            return folder / "hf"
        if (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file():
            return folder
        try:
            manifest = self.registry.verify(self._id(path))
        except (NotFound, BadInput):
            raise NotFound(f"There is no model at {path}.", "Give a folder, or an id of `appliance models list`.") from None
        return self.registry.folder(manifest.id) / "hf"


async def run_child(folder: Path, tell: OnProgress) -> dict[str, Any]:
    """Run the training process for the job in `folder` to its end; its facts. Raises what it reported, or how it died.

    Cancelling ends the process at once.
    """
    job = read_json(folder / "job.json") or {}
    command = launch_command(Recipe(**job.get("recipe", {})), gpus_here())
    path = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    environment = os.environ | QUIET_THREADS | LOOPBACK | {"PYTHONPATH": path}
    with (folder / "train.log").open("ab") as log:
        child = await asyncio.create_subprocess_exec(
            *command, str(folder), env=environment,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log,
        )  # fmt: skip
        done: dict[str, Any] | None = None
        fault: dict[str, str] | None = None
        try:
            assert child.stdout is not None
            async for raw in child.stdout:
                line = json.loads(raw)
                done, fault = line.get("done", done), line.get("error", fault)
                if "stage" in line:
                    tell(line["stage"], line["done"], line["total"], line["seconds_left"], line["facts"])
            await child.wait()
        finally:
            if child.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    child.kill()
                if child.stdin is not None:
                    child.stdin.close()  # its end tells the processes that a launcher started
                await child.wait()
    if fault is not None:
        raise _fault(fault)
    if child.returncode != 0 or done is None:
        raise _died(child.returncode or 0, folder)
    return done


def _fault(fault: dict[str, str]) -> ApplianceError:
    """The child's error as the class that its code stands for."""
    kinds = {kind.code: kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ApplianceError)}
    error = kinds.get(fault["code"], ApplianceError)(fault["message"], fault["hint"])
    error.code = fault["code"]
    return error


def _died(code: int, folder: Path) -> ApplianceError:
    if code < 0:
        return ModelUnavailable(
            f"The tuning process was stopped from outside (signal {-code}; out of memory is the usual reason).",
            "Run the same command again: it goes on from the newest complete checkpoint.",
        )
    return ApplianceError(f"The tuning process failed; its last words are in {folder / 'train.log'}.", "Run it again.")
