"""Training, measured: ours beside trl's SFTTrainer as it comes, and what serving keeps while a training runs.

Both train the same starter on the same conversations with the same adapter, rate, epochs and conversations a step, in processes
of their own that take turns. The peer pads batches of 8 and does not pack; gradient checkpointing and bfloat16 are as its
defaults have them. Prints a table and writes tuning.md beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
STARTER = ROOT / "models" / "starter"
OATUTOR = ROOT.parent / "shared" / "data" / "examples" / "oatutor.jsonl"
SETTINGS: dict[str, Any] = {"rank": 32, "alpha": 64, "dropout": 0.1, "rate": 2e-3, "batch": 8, "length": 1024}
PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate")
GPU_PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40": 181e12, "RTX 4090": 165e12}  # dense bfloat16
PAIRS = 4
Row = tuple[str, str, str, str]
Talk = list[dict[str, str]]


# --- what both are given ------------------------------------------------------------------------------------------------


def conversations(count: int) -> tuple[list[Talk], str]:
    """Conversations in an order of their own, and where they are from."""
    if OATUTOR.is_file():
        talks = [json.loads(line)["messages"] for line in OATUTOR.read_text("utf-8").splitlines()]
        source = "oatutor.jsonl"
    else:
        from appliance.tuning.dataset import read_examples

        found = read_examples(ROOT / "appliance" / "content" / "examples")
        talks = [[{"role": turn.role, "content": turn.content} for turn in example.messages] for example in found]
        source = "the content's own examples"
    random.Random(0).shuffle(talks)
    return talks[:count], source


def parts(tokenizer: Any, count: int) -> tuple[list[Talk], list[Talk], dict[str, int]]:
    """Training and held-out conversations that fit, and the training part's tokens, all and with loss."""
    from appliance.tuning import packing, trainer

    talks, _ = trainer.fit(tokenizer, conversations(count)[0], SETTINGS["length"])
    train, held_out = talks[len(talks) // 7 :], talks[: len(talks) // 7]
    rows = packing.encode(tokenizer, train)
    learnt = sum(label != packing.IGNORED for row in rows for label in row["labels"])
    return train, held_out, {"all": sum(len(row["input_ids"]) for row in rows), "loss": learnt}


def held_out_loss(model: Any, tokenizer: Any, talks: list[Talk]) -> float:
    """Loss per token of the tutor's turns, each conversation alone, in float32, by the library's own attention."""
    import torch
    from torch.nn.functional import cross_entropy

    from appliance.tuning import packing

    core = model.get_base_model() if hasattr(model, "get_base_model") else model
    core.set_attn_implementation("sdpa")
    total, count = 0.0, 0
    with packing.answering(model):
        for row in packing.encode(tokenizer, talks):
            labels = torch.tensor(row["labels"])[1:]
            logits = model(input_ids=torch.tensor([row["input_ids"]], device=model.device), use_cache=False).logits[0, :-1]
            total += float(cross_entropy(logits.float().cpu(), labels, ignore_index=packing.IGNORED, reduction="sum"))
            count += int((labels != packing.IGNORED).sum())
    return total / count


# --- the two, each in a process of its own ------------------------------------------------------------------------------


def peer(model: Any, tokenizer: Any, train: list[Talk], folder: Path, epochs: float, seed: int) -> tuple[Any, Any]:
    """trl's trainer with its defaults, told only what both are told."""
    import datasets
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    datasets.disable_progress_bars()
    arguments = SFTConfig(
        output_dir=str(folder), assistant_only_loss=True, num_train_epochs=epochs, learning_rate=SETTINGS["rate"], seed=seed,
        use_cpu=not model.device.type.startswith("cuda"), report_to="none", disable_tqdm=True,
    )  # fmt: skip
    assert arguments.per_device_train_batch_size == SETTINGS["batch"] and arguments.max_length == SETTINGS["length"]
    lora = LoraConfig(
        task_type="CAUSAL_LM", r=SETTINGS["rank"], lora_alpha=SETTINGS["alpha"], lora_dropout=SETTINGS["dropout"],
        target_modules="all-linear",
    )  # fmt: skip
    data = datasets.Dataset.from_list([{"messages": talk} for talk in train])
    made = SFTTrainer(model=model, args=arguments, processing_class=tokenizer, train_dataset=data, peft_config=lora)
    how = f"gradient checkpointing {bool(arguments.gradient_checkpointing or arguments.activation_checkpointing)}, "
    return made, (made.train, how + f"bf16 {arguments.bf16}, padded batches of {arguments.per_device_train_batch_size}")


def ours(model: Any, tokenizer: Any, train: list[Talk], folder: Path, epochs: float, seed: int) -> tuple[Any, Any]:
    from appliance.tuning import trainer
    from appliance.tuning.recipe import Recipe

    recipe = Recipe(**SETTINGS, warmup=0, epochs=epochs, seed=seed)
    made = trainer.build(
        model, tokenizer, train, recipe, folder, micro_batch=recipe.batch, report=lambda *_: None
    )  # fmt: skip
    how = f"{made.facts['packing']}, {made.facts['precision']}, checkpoints written"
    return made, (lambda: trainer.run(made, None), how)


def child(who: str, count: int, epochs: float, seed: int, base: Path) -> dict[str, Any]:
    """Train once; seconds, memory, loss."""
    import torch

    from appliance.tuning import loading

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    gpu = torch.cuda.is_available()
    tokenizer = loading.load_tokenizer(base)
    model = loading.load_base(base, dtype="bfloat16" if gpu else "float32", device="cuda:0" if gpu else "cpu")
    train, held_out, tokens = parts(tokenizer, count)
    weights = model.num_parameters()
    with tempfile.TemporaryDirectory(prefix="bench") as folder:
        before = held_out_loss(model, tokenizer, held_out)
        started = time.perf_counter()
        made, (work, how) = (peer if who == "peer" else ours)(model, tokenizer, train, Path(folder), epochs, seed)
        ready = time.perf_counter()
        busy = time.process_time()
        work()
        seconds, busy = time.perf_counter() - ready, time.process_time() - busy
        memory = torch.cuda.max_memory_allocated() / 2**20 if gpu else _peak_mb()
    found = {
        "who": who, "how": how, "seconds": seconds, "building": ready - started, "memory_mb": memory, "examples": len(train),
        "tokens_per_second": epochs * tokens["all"] / seconds, "loss_tokens_per_second": epochs * tokens["loss"] / seconds,
        "loss_tokens_per_cpu_second": epochs * tokens["loss"] / busy, "before": before,
        "steps": made.state.global_step, "held_out": held_out_loss(made.model, tokenizer, held_out),
    }  # fmt: skip
    if gpu:  # untested: no GPU was at hand. Forward and backward through frozen weights take 4 operations a weight and token.
        name = torch.cuda.get_device_name()
        peak = next((value for key, value in GPU_PEAK.items() if key in name), None)
        found["device"], found["mfu"] = name, 4 * weights * found["tokens_per_second"] / peak if peak else None
    return found


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_a_process(*arguments: str) -> dict[str, Any]:
    """Run this file again for one part; both sides get the environment that our trainer gives its own process."""
    from appliance.tuning.huggingface import QUIET_THREADS

    done = subprocess.run(
        [sys.executable, str(Path(__file__)), "--child", *arguments],
        env=os.environ | QUIET_THREADS, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"the part {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(found), file=sys.stderr, flush=True)
    return found


def training_rows(base: Path, count: int, epochs: float, repeats: int) -> list[Row]:
    runs: dict[str, list[dict[str, Any]]] = {"peer": [], "ours": []}
    for seed in range(1, repeats + 1):
        for who in ("peer", "ours") if seed % 2 else ("ours", "peer"):
            runs[who].append(in_a_process(who, str(count), str(epochs), str(seed), str(base)))

    def middle(who: str, what: str) -> float:
        return statistics.median(run[what] for run in runs[who])

    def spread(who: str, what: str) -> str:
        values = [run[what] for run in runs[who]]
        return f"{min(values):.0f} to {max(values):.0f}"

    rows: list[Row] = []
    for title, what in (
        ("tokens with loss, a second", "loss_tokens_per_second"),
        ("tokens that are not padding, a second", "tokens_per_second"),
        ("tokens with loss, a second of one processor", "loss_tokens_per_cpu_second"),
    ):
        each = ", ".join(f"{mine[what] / other[what]:.1f}" for mine, other in zip(runs["ours"], runs["peer"], strict=True))
        ratio = f"**{middle('ours', what) / middle('peer', what):.1f} times**"
        measured = f"{middle('ours', what):.0f} to {middle('peer', what):.0f}, {ratio}"
        rows.append(
            (title, measured, "1.5 times", f"each pair: {each}; ours {spread('ours', what)}, peer {spread('peer', what)}")
        )
    pairs = list(zip(runs["ours"], runs["peer"], strict=True))
    losses = ", ".join(f"{mine['held_out']:.4f} to {other['held_out']:.4f}" for mine, other in pairs)
    loss = f"{middle('ours', 'held_out'):.4f} to {middle('peer', 'held_out'):.4f}"
    memory = f"{middle('ours', 'memory_mb'):.0f} to {middle('peer', 'memory_mb'):.0f} MiB"
    rows.append(("held-out loss", loss, "no higher", f"before training {runs['ours'][0]['before']:.4f}; each pair: {losses}"))
    rows.append(("peak memory", memory, "no higher", "of the process, libraries included"))
    if "mfu" in runs["ours"][0]:
        shown = [f"{100 * (runs[who][0]['mfu'] or 0):.0f} %" for who in ("ours", "peer")]
        rows.append(("model FLOP utilisation", " to ".join(shown), "", runs["ours"][0]["device"]))
    for who in runs:
        one = runs[who][0]
        detail = (
            f"{one['examples']} conversations, {one['steps']} steps, median of {repeats} runs: {middle(who, 'seconds'):.0f} s"
        )
        rows.append((who, f"{one['how']}", "", detail))
    return rows


# --- serving beside tuning ----------------------------------------------------------------------------------------------


async def speed(handler: Any, seconds: float) -> float:
    """Words' worth of work: tokens a second that one pupil after another gets, greedy, prompts included in the time."""
    from appliance.engine.handler import Message, Request

    asked, made, started = 0, 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        asked += 1
        request = Request([Message("user", f"Question {asked}: why are leaves green, and what is a fraction?")], max_tokens=160)
        async for chunk in handler.generate(request):
            made += chunk.usage.completion if chunk.usage else 0
    return made / (time.perf_counter() - started)


async def serve_beside(base: Path, work: Path, threads: int, seconds: float) -> dict[str, float]:
    from appliance.engine.scheduler import LlamaHandler
    from appliance.settings import Settings
    from appliance.tuning import HuggingFaceTuner, dataset
    from appliance.tuning.gguf import export_base
    from appliance.tuning.recipe import Recipe

    export_base(base, work / "model.gguf")
    file = work / "examples.jsonl"
    talks, _ = conversations(600)
    lines = [json.dumps({"id": f"b{at}", "messages": talk, "licence": "CC BY 4.0"}) for at, talk in enumerate(talks)]
    file.write_text("\n".join(lines), "utf-8")
    tuner = HuggingFaceTuner(Settings(home=work / "home"))
    data = dataset.build(dataset.read_examples(file), work / "data")
    under_way = asyncio.Event()

    def tell(stage: str, done: int, *_rest: object) -> None:
        if stage == "train" and done > 1:
            under_way.set()

    handler = LlamaHandler(work / "model.gguf", threads=threads)
    await handler.start()
    found: dict[str, list[float]] = {"alone": [], "beside": []}
    training = asyncio.create_task(tuner.fine_tune(base, data, Recipe(epochs=50), work / "run", on_progress=tell))
    try:
        await asyncio.wait({asyncio.create_task(under_way.wait()), training}, return_when=asyncio.FIRST_COMPLETED)
        for _ in range(PAIRS):  # the training is held and let go in turns, so that whatever else runs here weighs on both
            for state, held in (("alone", signal.SIGSTOP), ("beside", signal.SIGCONT)):
                os.kill(training_process(), held)
                await speed(handler, 0.5)
                found[state].append(await speed(handler, seconds))
        if training.done():
            raise SystemExit(f"the training ended before it was measured beside: {training.exception()}")
    finally:
        training.cancel()
        await asyncio.gather(training, return_exceptions=True)
        await handler.close()
    return {state: statistics.median(values) for state, values in found.items()}


def training_process() -> int:
    """The child that trains."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                if parent == os.getpid() and b"train_child" in (entry / "cmdline").read_bytes():
                    return int(entry.name)
    raise SystemExit("no training process")


def serving_rows(base: Path, repeats: int) -> list[Row]:
    cores = len(os.sched_getaffinity(0))
    rows: list[Row] = []
    for threads in sorted({1, cores}):
        runs = [in_a_process("serve", str(threads), str(base)) for _ in range(repeats)]
        ratios = [run["beside"] / run["alone"] for run in runs]
        alone, beside = (statistics.median(run[what] for run in runs) for what in ("alone", "beside"))
        each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        detail = f"{beside:.0f} beside, {alone:.0f} alone, tokens a second; each run: {each}"
        title = f"serving beside tuning, engine with {threads} thread{'s' if threads > 1 else ''}"
        rows.append((title, f"{statistics.median(ratios):.2f} of its speed", "at least 0.5", detail))
    return rows


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), "") or platform.machine()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return (
        f"{len(os.sched_getaffinity(0))} cores ({model}), {memory:.0f} GiB, Python {platform.python_version()}, {packages}; "
        f"load average {os.getloadavg()[0]:.1f} at the start"
    )


def main(arguments: Sequence[str]) -> None:
    from appliance import network

    network.stay_offline()
    if arguments and arguments[0] == "--child":
        print(json.dumps(_part(*arguments[1:])))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rows", type=int, default=300, help="conversations, a seventh of them held out")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--base", type=Path, default=STARTER, help="a folder with a model in transformers' format")
    parser.add_argument("--only", choices=["training", "serving"])
    options = parser.parse_args(arguments)
    about = machine()
    rows: list[Row] = []
    if options.only != "serving":
        rows += training_rows(options.base, options.rows, options.epochs, options.repeats)
    if options.only != "training":
        rows += serving_rows(options.base, options.repeats)
    note = f"Ours to the peer's; {options.rows} conversations of {conversations(1)[1]}, epochs: {options.epochs:g}; "
    note += f"medians of {options.repeats} runs that took turns."
    lines = ["| what | measured | to reach | how |", "|---|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    text = f"# scripts/bench tuning\n\n{date.today().isoformat()}, {about}\n\n{note}\n\n" + "\n".join(lines) + "\n"
    if options.only is None:
        Path(__file__).with_suffix(".md").write_text(text)
    keys = ("what", "measured", "to_reach", "how")
    shown = {"machine": about, "rows": [dict(zip(keys, row, strict=True)) for row in rows]}
    print(json.dumps(shown) if options.json else text)


def _part(who: str, *given: str) -> dict[str, Any]:
    if who == "serve":
        with tempfile.TemporaryDirectory(prefix="bench") as folder:
            return asyncio.run(serve_beside(Path(given[1]), Path(folder), int(given[0]), 4.0))
    return child(who, int(given[0]), float(given[1]), int(given[2]), Path(given[3]))


if __name__ == "__main__":
    main(sys.argv[1:])
