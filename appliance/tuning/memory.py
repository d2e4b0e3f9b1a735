"""How much memory a tuning run will need, before it is started: a run that cannot fit is refused with one that would.

Hides the arithmetic and its constants. The CPU's were fitted to peaks measured on two cores with Llama models of 6 to 349
million weights (`tests/tuning/test_memory.py` measures some of them again). For a GPU it is the same arithmetic with CUDA's own
share added, in line with published sizes (QLoRA, arXiv 2305.14314), and was not measured. Loads no model and no torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from appliance.engine.inspect import read_safetensors
from appliance.errors import BadInput, Unsupported
from appliance.tuning import loading, recipe
from appliance.tuning.packing import LOGITS
from appliance.tuning.recipe import Recipe
from appliance.tuning.trainer import SMALL_MODEL

GB = 10**9

# What stays until the backward pass, in floats for each that a layer's arithmetic names (`Shape.kept`) and for each input that
# dropout makes a copy of; copies of the logits that live at once.
FLOAT32, BFLOAT16 = (1.62, 1.5, 3.1), (1.0, 0.95, 3.6)
RECOMPUTED, RECOMPUTED_GPU = 6, 2  # layers' worth that lives at once where activations are computed anew
# Preferences are trained by trl, which computes the logits in tiles of its own.
TILE_TOKENS, TILE_VOCABULARY, TILE_COPIES = 4096, 32768, 8.2
RUNTIME = 560_000_000  # Python, torch, transformers, trl: resident after importing them
RUNTIME_TRL = 100_000_000  # and what trl's trainers load beyond that
RESERVED = 2_000_000_000  # counted by RLIMIT_DATA beyond what is resident: stacks, arenas, compiled kernels; 1.1 to 1.4 seen
NF4, INT8 = 0.516, 1.05  # bytes a weight with its scales
GPU_CONTEXT = 900_000_000  # CUDA's own, and the libraries' workspaces
GPU_SLACK = 1.1  # blocks that the allocator holds and cannot use
SPARE = 0.95  # of what is free: other processes live here as well


@dataclass(frozen=True, slots=True)
class Shape:
    """What memory depends on. linear: weights in the layers' matrices, which an adapter is laid over and 4 bits apply to;
    sides: sum of their widths and heights; inputs: sum of their widths in one layer; matrices: in one layer; kept: floats a
    token leaves behind in one layer."""

    weights: int
    linear: int
    sides: int
    inputs: int
    matrices: int
    kept: int
    hidden: int
    layers: int
    vocabulary: int

    @classmethod
    def of(cls, source: Path | Mapping[str, Any]) -> Shape:
        """From a model's folder, its config.json, or that file's content. Raises BadInput where a size is not said."""
        folder = source if isinstance(source, Path) and source.is_dir() else None
        sizes = _sizes(_config(source if folder is None else folder / "config.json"))
        hidden, layers, inner, vocabulary = sizes["hidden"], sizes["layers"], sizes["inner"], sizes["vocabulary"]
        queries, keys = sizes["heads"] * sizes["head"], sizes["pairs"] * sizes["head"]
        shapes = [(queries, hidden), (keys, hidden), (keys, hidden), (hidden, queries)]
        shapes += [(inner, hidden), (inner, hidden), (hidden, inner)]
        matrices = shapes * layers
        weights = sum(high * wide for high, wide in matrices) + vocabulary * hidden * (1 if sizes["tied"] else 2)
        if folder is not None:  # what the file holds is truer than what its configuration promises
            weights, matrices = _counted(folder, layers)
        return cls(
            weights=weights,
            linear=sum(high * wide for high, wide in matrices),
            sides=sum(high + wide for high, wide in matrices),
            inputs=sum(wide for _, wide in matrices) // layers,
            matrices=max(1, len(matrices) // layers),
            # Two norms keep their input, its square's root and the product; attention its heads; the feed-forward part four.
            kept=6 * hidden + 3 * queries + 2 * keys + 4 * inner,
            hidden=hidden,
            layers=layers,
            vocabulary=vocabulary,
        )


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes at the worst moment. parts: weights, adapter, optimizer, activations, logits, workspace, and reference: what the
    comparison in float32 after the training needs beyond that. host: of the machine's own memory, where a GPU trains."""

    total_bytes: int
    parts: dict[str, int]
    host_bytes: int
    method: str
    micro_batch: int
    length: int


def estimate(
    source: Path | Mapping[str, Any] | Shape,
    chosen: Recipe,
    method: str,
    *,
    gpu: bool,
    micro_batch: int = 0,
    length: int = 0,
    mixed: bool | None = None,
) -> Estimate:
    """What the run will need where every row is full. source: as `Shape.of`; method: what `loading.choose_method` gave;
    micro_batch: conversations at once, the recipe's batch where 0; length: of the longest in tokens, the recipe's where 0;
    mixed: whether products are taken in bfloat16, None for what this processor does. Raises BadInput."""
    shape = source if isinstance(source, Shape) else Shape.of(source)
    batch, longest = micro_batch or chosen.batch, length or chosen.length
    tokens = batch * longest * (2 if chosen.objective == "dpo" else 1)  # of a pair both replies are read at once
    rounded = {"nf4": NF4, "int8": INT8}.get(loading.QUANTISED.get(method, ""))
    short = gpu or bool(rounded) or (short_products() if mixed is None else mixed)
    wide = 2 if gpu or rounded else 4  # bytes of a weight that is left as it is
    weights = shape.linear * rounded + (shape.weights - shape.linear) * wide if rounded else shape.weights * wide
    if short and wide == 4 and shape.weights <= SMALL_MODEL:
        weights += 2 * shape.linear  # the copies in 16 bits wait for the backward pass as well
    adapter = chosen.rank * shape.sides + (shape.sides if chosen.dora else 0)
    parts = {
        "weights": int(weights),
        "adapter": adapter * 4,
        "optimizer": adapter * 12,  # the gradient and Adam's two moments
        "activations": _activations(shape, chosen, tokens, short, RECOMPUTED_GPU if gpu else RECOMPUTED),
        "logits": _logits(shape, chosen, tokens, short),
        "workspace": GPU_CONTEXT if gpu else RUNTIME,
    }
    if chosen.objective != "imitate":
        parts["workspace"] += RUNTIME_TRL
    if rounded and not gpu:
        parts["workspace"] += 2 * shape.weights  # what is not rounded is used out of the file, which stays mapped
    if gpu:
        parts["workspace"] += int((GPU_SLACK - 1) * sum(parts.values()))
    total = sum(parts.values())
    # The saved adapter on its base in float32, on the CPU: what the export is compared with.
    after = RUNTIME + 4 * (shape.weights + adapter)
    parts["reference"] = 0 if gpu else max(0, after - total)
    return Estimate(total + parts["reference"], parts, after if gpu else 0, method, batch, longest)


def _activations(shape: Shape, chosen: Recipe, tokens: int, short: bool, recomputed: int) -> int:
    kept, dropped, _ = BFLOAT16 if short else FLOAT32
    floats = kept * (shape.kept + 2 * shape.matrices * chosen.rank)
    if chosen.dropout and chosen.objective == "imitate":
        floats += dropped * shape.inputs
    if shape.weights > SMALL_MODEL:  # only each layer's input is kept, and the layers are computed anew one after another
        return int(4 * tokens * (shape.layers * shape.hidden + recomputed * floats))
    return int(4 * tokens * shape.layers * floats)


def _logits(shape: Shape, chosen: Recipe, tokens: int, short: bool) -> int:
    if chosen.objective != "imitate":
        return int(4 * TILE_COPIES * min(tokens, TILE_TOKENS) * min(shape.vocabulary, TILE_VOCABULARY))
    return int(4 * (BFLOAT16 if short else FLOAT32)[2] * min(tokens * shape.vocabulary, LOGITS))


def short_products(cpu: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the trainer takes products in bfloat16 here: the processor has instructions for it."""
    flags = next((line for line in cpu.read_text("utf-8").splitlines() if line.startswith("flags")), "").split()
    return "avx512_bf16" in flags or "amx_bf16" in flags


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes that a run may take. limit: of one process's private memory (setting train_memory_mb), 0 for none; machine: free
    in the machine; gpu: free on the GPU, None where there is none."""

    machine: int
    limit: int = 0
    gpu: int | None = None

    def holds(self, needed: Estimate) -> bool:
        here = needed.total_bytes if self.gpu is None else needed.host_bytes
        if here > self.machine * SPARE:
            return False
        if self.gpu is not None:  # a GPU's driver maps far more than it uses, so no limit is set there
            return needed.total_bytes <= self.gpu * SPARE
        return not self.limit or here + RESERVED <= self.limit

    def words(self) -> str:
        here = min(self.machine * SPARE, self.limit - RESERVED if self.limit and self.gpu is None else self.machine)
        return f"{_gb(here)} of memory" if self.gpu is None else f"{_gb(self.gpu * SPARE)} on the GPU and {_gb(here)} beside it"


def check(source: Path | Mapping[str, Any] | Shape, chosen: Recipe, room: Room, *, context: int = 0) -> Estimate:
    """The estimate of a run that fits, with the largest part of the recipe's batch that does: smaller parts are the same step.

    context: tokens that the model can hold. Raises Unsupported, naming the change or the recipe that would fit.
    """
    shape = source if isinstance(source, Shape) else Shape.of(source)
    found = fitting(shape, chosen, room, context)
    if found is not None:
        return found
    smallest = list(_tries(shape, chosen, room, context))[-1]
    needs = _gb(smallest.total_bytes)
    if room.gpu is not None:
        needs += f" on the GPU and {_gb(smallest.host_bytes)} beside it"
    raise Unsupported(
        f"Tuning this model with this recipe needs {needs}, even one conversation at a time, and there are {room.words()}; "
        "nothing was started.",
        _remedy(shape, chosen, room, context),
    )


def fitting(shape: Shape, chosen: Recipe, room: Room, context: int = 0) -> Estimate | None:
    """The estimate with the largest part of the batch that fits, None where none does."""
    return next((needed for needed in _tries(shape, chosen, room, context) if room.holds(needed)), None)


def _tries(shape: Shape, chosen: Recipe, room: Room, context: int) -> Iterator[Estimate]:
    method = loading.choose_method(chosen.method, shape.weights, room.gpu)
    length = min(chosen.length, context) if context else chosen.length
    batch = chosen.batch
    least = 2 if chosen.objective == "kto" else 1  # it compares the conversations of a batch with each other
    while True:
        yield estimate(shape, chosen, method, gpu=room.gpu is not None, micro_batch=batch, length=length)
        if batch // 2 < least:
            return
        batch //= 2


def _remedy(shape: Shape, chosen: Recipe, room: Room, context: int) -> str:
    """The smallest change that makes it fit, found by trying them."""
    if room.limit and (found := fitting(shape, chosen, replace(room, limit=0), context)):
        return f"This machine has the room: allow it with the setting train_memory_mb = {_limit_for(found)}."
    length = min(chosen.length, context) if context else chosen.length
    for method in (chosen.method, "qlora"):
        for part in (1, 2, 4, 8):
            other = replace(chosen, method=method, length=max(16, length // part))
            if length // part >= 64 and fitting(shape, other, room, context):
                change = [f'method = "{method}"'] if method != chosen.method else []
                change += [f"length = {other.length}"] if part > 1 else []
                return f"It fits with {' and '.join(change)} in the recipe{_also(shape, chosen, room, context)}."
    also = _also(shape, chosen, room, context).removeprefix(", or ")
    return f"It fits {also}." if also else "Use a smaller model: `appliance models list --fit` names those that suit."


def _limit_for(needed: Estimate) -> int:
    """In MB, rounded up to half a GB."""
    return -(-(needed.total_bytes + RESERVED) // 500_000_000) * 500


def _also(shape: Shape, chosen: Recipe, room: Room, context: int) -> str:
    names = [name for name in recipe.built_in_names() if recipe.built_in(name).objective == chosen.objective]
    fit = [name for name in names if recipe.built_in(name).gpus == 1 and fitting(shape, recipe.built_in(name), room, context)]
    return f", or with --recipe {' or '.join(fit)}" if fit else ""


def room_here(limit_mb: int, gpu_free: int | None = None, processes: int = 1) -> Room:
    """What there is now, for each of so many processes of a run."""
    return Room(machine=available() // processes, limit=limit_mb * 1_000_000, gpu=gpu_free)


def available() -> int:
    """Bytes that the machine can give without swapping, and that this process's control group may still take."""
    found = 0
    for line in Path("/proc/meminfo").read_text("utf-8").splitlines():
        if line.startswith("MemAvailable:"):
            found = int(line.split()[1]) * 1024
    group = Path("/sys/fs/cgroup")
    try:
        own = next(line for line in Path("/proc/self/cgroup").read_text("utf-8").splitlines() if line.startswith("0::"))
        here = group / own.removeprefix("0::").lstrip("/")
        most, used = (here / "memory.max").read_text("utf-8").strip(), int((here / "memory.current").read_text("utf-8"))
        return found if most == "max" else min(found, max(0, int(most) - used))
    except (OSError, ValueError, StopIteration):  # an older kernel, or no such file in this container
        return found


def _gb(count: float) -> str:
    return f"{max(0.0, count) / GB:.1f} GB"


def _config(source: Path | Mapping[str, Any]) -> Mapping[str, Any]:
    config: Any = source
    if isinstance(source, Path):
        try:
            config = json.loads(source.read_text("utf-8"))
        except (OSError, ValueError, RecursionError):
            raise BadInput(f"{source.name} of the model cannot be read.", "Copy the model again.") from None
    if not isinstance(config, Mapping):
        raise BadInput("The model's config.json is not an object.", "Copy the model again.")
    inner = config.get("text_config")  # a model that also sees keeps the part that writes in there
    return {**config, **inner} if isinstance(inner, Mapping) else config


def _sizes(config: Mapping[str, Any]) -> dict[str, int]:
    """The sizes under the names that the families give them. Raises BadInput naming what is missing."""

    def size(*names: str, default: int = 0) -> int:
        for name in names:
            value = config.get(name)
            value = max(value) if isinstance(value, list) and value else value  # some families differ from layer to layer
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
        if not default:
            raise BadInput(f"The model's config.json does not say {names[0]}.", "Use another copy of the model.")
        return default

    hidden, heads = size("hidden_size", "n_embd", "d_model"), size("num_attention_heads", "n_head")
    inner = size("intermediate_size", "n_inner", "ffn_dim", default=4 * hidden)
    if config.get("num_experts_per_tok"):  # of many experts only some see a token
        inner = size("moe_intermediate_size", default=inner) * size("num_experts_per_tok")
    return {
        "hidden": hidden,
        "layers": size("num_hidden_layers", "n_layer"),
        "heads": heads,
        "pairs": size("num_key_value_heads", default=heads),
        "head": size("head_dim", default=max(1, hidden // heads)),
        "inner": inner,
        "vocabulary": size("vocab_size"),
        "tied": int(bool(config.get("tie_word_embeddings"))),
    }


def _counted(folder: Path, layers: int) -> tuple[int, list[tuple[int, int]]]:
    """The number of weights, and the shapes of the layers' matrices, from the headers. Raises BadInput."""
    matrices: list[tuple[int, int]] = []
    for path in sorted(folder.glob("*.safetensors")):
        for name, (_kind, sides) in read_safetensors(path).items():
            outside = any(word in name for word in ("embed", "wte", "wpe", "lm_head", "norm"))
            if len(sides) == 2 and not outside and name.endswith("weight"):
                matrices.append((sides[0], sides[1]))
    return loading.weights_in(folder), matrices if len(matrices) >= layers else []
