"""The process that trains: `python -m appliance.tuning.train_child FOLDER`.

Reads FOLDER/job.json, writes checkpoints, the loss log, `adapter/` and `reference.json` (what the trained model makes of the
parity conversations), and speaks one JSON object a line on standard output: progress, then `done` or `error`. A process of its
own, so that its memory has a limit, its death hurts nobody, and torch and llama.cpp never share one. It ends when the process
that started it goes away.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import threading
import time
from pathlib import Path
from typing import Any, TextIO

from appliance import guard, network
from appliance.engine.handler import Message
from appliance.errors import ApplianceError, BadInput, ModelUnavailable, StorageFull, from_os_error
from appliance.tuning import checkpoints
from appliance.tuning.launch import place, rank, together
from appliance.tuning.recipe import Recipe
from appliance.tuning.run_folder import read_json, write_json

NICENESS = 15  # a pupil's answer goes before tomorrow's model: beside serving, training takes what is left over


class OutOfMemory(ApplianceError):
    code = "out_of_memory"


def main(folder: Path) -> int:
    """Train as the job says. Exit code 0, or 1 after an `error` line."""
    network.stay_offline()
    guard.install()
    voice = _take_standard_output()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _give_way()
    try:
        facts = train(folder, read_json(folder / "job.json"), voice)
    except ApplianceError as error:
        return _tell_fault(voice, error)
    except (OSError, MemoryError, RuntimeError) as error:
        known = translate(error, folder)
        if known is None:
            raise
        return _tell_fault(voice, known)
    if rank() == 0:
        _say(voice, {"done": facts})
    return 0


def _give_way() -> None:
    """Serving comes first: for the processors' time, and where the machine runs out of memory."""
    os.nice(NICENESS)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("900", "ascii")


def _tell_fault(voice: TextIO, error: ApplianceError) -> int:
    _say(voice, {"error": {"code": error.code, "message": error.message, "hint": error.hint}})
    return 1


def _take_standard_output() -> TextIO:
    """Keep the protocol to ourselves: whatever a library prints goes to standard error, which is the run's log."""
    voice = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return voice


def _end_with_parent() -> None:
    """Standard input is a pipe nobody writes to; it ends when the parent dies, also by kill -9."""
    # Not sys.stdin: its lock, held by this thread, would abort the interpreter at a regular end.
    while os.read(0, 1024):
        pass
    os._exit(75)


def _say(voice: TextIO, line: dict[str, Any]) -> None:
    print(json.dumps(line), file=voice, flush=True)


def translate(error: BaseException, folder: Path) -> ApplianceError | None:
    """A full disk or memory met inside a library, as a sentence; None for anything else."""
    import shutil

    text = str(error)
    # torch and safetensors report a full disk as a RuntimeError; the disk itself is the better witness.
    disk = "iostream" in text or "No space left" in text or "unexpected pos" in text or "PytorchStreamWriter" in text
    if disk or (isinstance(error, RuntimeError) and shutil.disk_usage(folder).free < 65536):
        return StorageFull("The disk is full: tuning stopped.", "Free some space, then run the same command again.")
    if isinstance(error, MemoryError) or "can't allocate memory" in text or "out of memory" in text.lower():
        return OutOfMemory(
            "Tuning needs more memory than it may use (setting train_memory_mb, or the GPU's).",
            "Lower batch or length in the recipe, or allow more memory.",
        )
    if isinstance(error, RuntimeError) and "CUDA error" in text:
        return ModelUnavailable(
            "The GPU stopped answering while it was tuning.",
            "Run the same command again: it goes on from the newest complete checkpoint.",
        )
    return from_os_error(error, "tuning") if isinstance(error, OSError) else None


def train(folder: Path, job: dict[str, Any], voice: TextIO) -> dict[str, Any]:
    """Load, train (or resume), save the adapter, score the parity conversations; what is noted about the run."""
    recipe = Recipe(**job["recipe"])

    def report(stage: str, done: int, total: int, left: float | None, facts: dict[str, Any]) -> None:
        if rank() == 0:
            _say(voice, {"stage": stage, "done": done, "total": total, "seconds_left": left, "facts": facts})

    report("load", 0, 1, None, {})
    import torch

    from appliance.tuning import loading, memory, trainer
    from appliance.tuning.loss_log import LossLog

    gpu = torch.cuda.is_available() and job.get("gpu", True)
    if not gpu:
        limit = job["memory_mb"] * 1_000_000  # of private memory; a GPU's driver maps far more than it uses
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    torch.set_num_threads(max(1, job["threads"] // together()))
    if gpu:
        torch.cuda.set_device(place())
    base = Path(job["base"])
    newest = checkpoints.newest(folder / "checkpoints")
    free = torch.cuda.mem_get_info()[0] if gpu else None
    needed = memory.check(base, recipe, memory.room_here(job["memory_mb"], free, together()), context=_context(base))
    if newest is None and together() == 1:  # several processes must all take the parts that the job names
        job |= {"micro_batch": min(job["micro_batch"], needed.micro_batch), "method": needed.method}
        write_json(folder / "job.json", job)
    # A run that goes on keeps what it began with, whatever memory is free by now.
    micro_batch, method = job["micro_batch"], job.get("method", needed.method)
    tokenizer = loading.load_tokenizer(base)
    quantised = loading.QUANTISED.get(method, "")
    dtype = "bfloat16" if gpu or quantised else "float32"
    model = loading.load_base(base, dtype=dtype, quantised=quantised, device=f"cuda:{place()}" if gpu else "cpu")
    made, facts = _build(model, tokenizer, job, recipe, folder, needed.length, micro_batch, report)
    facts |= {
        "method": method,
        "device": "cuda" if gpu else "cpu",
        "micro_batch": micro_batch,
        "threads": job["threads"],
    }
    report("load", 1, 1, None, facts)
    if rank() == 0:
        write_json(folder / "versions.json", versions())
    started = time.monotonic()
    outcome = trainer.run(made, newest)
    if together() > 1:
        # The others' work is done. A process that ends with its group alive may be aborted by a thread of the group's.
        torch.distributed.destroy_process_group()
    if rank() != 0:
        return {}
    seconds = time.monotonic() - started
    log = LossLog(folder / "loss.jsonl", made.state.global_step)
    log.draw(folder / "loss.svg")
    weights = trainer.save_adapter(made.model, folder / "adapter")
    del made, model
    score_reference(folder, base, tokenizer, job["parity"])
    losses = [row["loss"] for row in log.rows]
    return facts | {
        **outcome,
        "resumed_from": int(newest.name.split("-")[1]) if newest else 0,
        "train_seconds": round(seconds, 2),
        "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "adapter_weights": weights,
        "first_loss": losses[0],
        "last_loss": losses[-1],
    }


def _context(base: Path) -> int:
    """Tokens that the model was made for; 0 where it does not say."""
    config = read_json(base / "config.json")
    found = config.get("max_position_embeddings") if isinstance(config, dict) else None
    return found if isinstance(found, int) else 0


def _build(
    model: Any, tokenizer: Any, job: dict[str, Any], recipe: Recipe, folder: Path, length: int, micro_batch: int, report: Any
) -> tuple[Any, dict[str, Any]]:
    """The trainer for the recipe's objective, and what is noted about its examples."""
    from appliance.tuning import preference, trainer

    if recipe.objective != "imitate":
        rows, fitted = preference.prepare_preferences(tokenizer, job["preferences"], length)
        made = preference.build(model, tokenizer, rows, recipe, folder, micro_batch=micro_batch, report=report)
        return made, {"examples": len(rows), **fitted}
    talks, fitted = trainer.fit(tokenizer, job["train"], length)
    held_out: list[trainer.Talk] = []
    with contextlib.suppress(BadInput):  # none of them fits: then nothing is judged, and the facts say so
        held_out = trainer.fit(tokenizer, job["held_out"], length)[0]
    options: dict[str, Any] = {"micro_batch": micro_batch, "report": report, "held_out": held_out}
    made = trainer.build(model, tokenizer, talks, recipe, folder, **options)
    return made, {"examples": len(talks), **fitted, **made.facts}


def score_reference(folder: Path, base: Path, tokenizer: Any, rows: list[list[dict[str, Any]]]) -> None:
    """`reference.json`: the saved adapter on its base in float32, on each parity conversation."""
    from appliance.tuning import loading
    from appliance.tuning.parity import reference

    model = loading.load_adapted(base, folder / "adapter")
    talks = [[Message(**row) for row in talk] for talk in rows]
    scores = reference(model, tokenizer, talks)
    write_json(folder / "reference.json", [score.to_json() for score in scores])


def versions() -> dict[str, str]:
    """What the run was made with, so that it can be made again."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in ("torch", "transformers", "peft", "trl", "accelerate", "datasets", "bitsandbytes", "safetensors"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
