"""What this machine can do with a model file, told from the file's header before anything is loaded.

Threads, conversations at once, and memory for the cache, from memory, processor and the model's own figures; and a refusal in
figures, with a model that would fit, where it cannot. Hides control groups (a unit's `MemoryMax=` and `CPUQuota=` count as the
machine) and the arithmetic. The figures are estimates with stated assumptions. It loads nothing.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from appliance.engine.inspect import GGUFFacts, read_gguf
from appliance.errors import BadInput, ModelUnavailable
from appliance.settings import cores

CGROUPS = Path("/sys/fs/cgroup")
WORK_BYTES = 300_000_000  # llama.cpp's own buffers
KEEP_FREE = 500_000_000  # for the embedder and the rest of the process
CACHE_SHARE = 0.6  # of what is left beside the weights; the rest is for a second model at a promotion
PARKING_SHARE = 0.25  # of that: what is kept as bytes
MOST_PARKED = 16  # conversations of full length that are worth parking: some hundred as they are
KEPT = 48  # finished conversations that may stay in a pool of cells
UNTOLD_SHARE = 0.6
MOST_SLOTS = 32
FEWEST_SLOTS = 4
MOST_THREADS = 64
# Weights that one core works through in a second while it serves a batch: 59 tokens a second of a model of 294 million on two
# cores. A reader is content with PACE tokens a second; who would get less is better told a place in the queue.
CORE_SPEED = 8.7e9
PACE = 2.0
# Weights times prompt tokens that one core works through in a second: 1,000 tokens of that model on those two cores.
PROMPT_SPEED = 1.47e11


@dataclass(frozen=True, slots=True)
class Machine:
    """memory: bytes that could be had without swapping; cores: that this process may use."""

    memory: int
    cores: int

    @classmethod
    def here(cls) -> Machine:
        memory, share = available_memory(), float(cores())
        for folder in _groups():
            with suppress(OSError, ValueError):
                limit = (folder / "memory.max").read_text().strip()
                if limit != "max":
                    memory = min(memory, int(limit) - _used(folder))
            with suppress(OSError, ValueError):
                quota, period = (folder / "cpu.max").read_text().split()
                if quota != "max":
                    share = min(share, int(quota) / int(period))
        return cls(max(0, memory), max(1, math.ceil(share)))


@dataclass(frozen=True, slots=True)
class Plan:
    """How to load a model. weights, cell, cache, parking: bytes; `cell` is one token's place in the cache.

    reading: prompt tokens a second to expect, until they have been measured: what a batch may hold follows from it. apart:
    there is memory for every conversation to have cells of its own, which is quicker than a pool. spare: sequences for what
    has finished. parking: for what is kept outside the cache.
    """

    threads: int
    slots: int
    reading: float
    context: int
    weights: int
    cell: int
    cache: int
    apart: bool
    spare: int
    parking: int


def plan(
    path: Path,
    machine: Machine | None = None,
    *,
    adapters: int = 0,
    threads: int = 0,
    slots: int = 0,
    context: int = 0,
    cache: int = 0,
    keep: bool = True,
    fitting: Callable[[int], str] = lambda _bytes: "",
) -> Plan:
    """What is 0 is chosen. adapters: bytes; context: tokens; keep: whether anything outlives
    its answer. fitting: the name of a model for so much memory, or "".

    Raises ModelUnavailable for a file that is no usable model, or one that does not fit.
    """
    facts = inspected(path, "model")
    machine = machine or Machine.here()
    context = context or facts.context
    if not context:
        raise ModelUnavailable(f"{path.name} does not say how long a conversation it was made for.", "Set `context`.")
    weights, cell = path.stat().st_size + adapters, cell_bytes(facts)
    room = machine.memory - KEEP_FREE - WORK_BYTES - weights
    if room < cell * context:
        raise _refusal(path, machine, weights, cell, context, room, fitting)
    slots = slots or _slots(facts, machine, room, cell * min(context, 2048))
    cache = cache or max(cell * context, int(room * CACHE_SHARE))
    # A recurrent model's past is one state, which cannot be shared in part: nothing is kept of it.
    keep = keep and not any(key.startswith(("ssm.", "wkv.")) for key in facts.numbers)
    spare = 1 if keep else 0  # to begin the next one in, while all the others still hold what was
    most = int(cache * (1 - PARKING_SHARE)) if keep else cache
    apart = cell * -(-context // 256) * 256 * (slots + spare) <= most
    if not apart:
        spare = KEPT if keep else 0
        most = max(cell * context, min(cell * context * slots, most))
    else:
        most = cell * context * (slots + spare)
    parking = max(0, min(cache - most, MOST_PARKED * cell * context)) if keep else 0
    threads = threads or min(machine.cores, MOST_THREADS)
    reading = min(threads, machine.cores) * PROMPT_SPEED / max(1, facts.parameters)
    return Plan(threads, slots, reading, context, weights, cell, most, apart, spare, parking)


def inspected(path: Path, kind: str) -> GGUFFacts:
    """The header's facts, checked from end to end. Raises ModelUnavailable: no native parser may see what fails here."""
    try:
        facts = read_gguf(path)
    except BadInput as error:
        raise ModelUnavailable(error.message, error.hint) from None
    if facts.kind != kind:
        raise ModelUnavailable(f"{path.name} holds no {kind} but a kind of {facts.kind}.", "Run `appliance models verify`.")
    if not facts.tensors:
        raise ModelUnavailable(f"{path.name} holds no weights.", "Run `appliance models verify`, or serve another model.")
    if not facts.architecture:
        raise ModelUnavailable(f"{path.name} does not say what kind of model it is.", "Serve another model.")
    return facts


def cell_bytes(facts: GGUFFacts) -> int:
    """One token's keys and values in every layer, in 16 bits; generous where a model has fewer heads in some layers."""
    said = facts.numbers
    layers = max(1, int(said.get("block_count", 1)))
    heads = max(1, int(said.get("attention.head_count", 1)))
    shared = max(1, int(said.get("attention.head_count_kv", heads)))
    size = int(said.get("embedding_length", 0)) // heads
    key, value = (int(said.get(f"attention.{name}_length", size)) for name in ("key", "value"))
    return max(1, layers * shared * (key + value) * 2)


def _slots(facts: GGUFFacts, machine: Machine, room: int, conversation: int) -> int:
    """Conversations at once: as many as get PACE tokens a second each, and as there is memory for."""
    speed = machine.cores * CORE_SPEED / max(1, facts.parameters)
    wanted = min(MOST_SLOTS, max(FEWEST_SLOTS, int(speed / PACE)))
    return max(1, min(wanted, int(room * CACHE_SHARE) // max(1, conversation)))


def _refusal(
    path: Path, machine: Machine, weights: int, cell: int, context: int, room: int, fitting: Callable[[int], str]
) -> ModelUnavailable:
    needs = weights + WORK_BYTES + KEEP_FREE
    said = (
        f"{path.name} does not fit: its weights take {gigabytes(weights)}, a conversation of {context} tokens "
        f"{gigabytes(cell * context)} and the work around them {gigabytes(WORK_BYTES + KEEP_FREE)}; "
        f"{gigabytes(machine.memory)} are free."
    )
    tokens = room // cell // 256 * 256
    if room > 0 and tokens >= 1024:
        return ModelUnavailable(said, f"Set `context` to {tokens}, or serve a smaller model.")
    other = fitting(machine.memory)
    if other:
        return ModelUnavailable(said, f"Serve a smaller model: {other} would fit.")
    return ModelUnavailable(said, f"Serve a smaller model, or give the box {gigabytes(needs + cell * context)} of free memory.")


def gigabytes(count: int) -> str:
    return f"{max(0, count) / 1e9:.1f} GB" if count >= 1e9 else f"{max(0, count) / 1e6:.0f} MB"


# --- the machine ----------------------------------------------------------------------------------------------------------
def available_memory() -> int:
    """Bytes that could be had without swapping; a cautious share of all where the system does not tell."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * UNTOLD_SHARE)


def _groups() -> list[Path]:
    """The control groups (version 2) that this process is in, innermost first."""
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::/"):
                inner = CGROUPS / line[4:].strip()
                return [folder for folder in (inner, *inner.parents) if folder.is_relative_to(CGROUPS)]
    return []


def _used(group: Path) -> int:
    """Bytes that a group holds and cannot simply give back: files that were only read can be."""
    files = 0
    for line in (group / "memory.stat").read_text().splitlines():
        if line.startswith("inactive_file "):
            files = int(line.split()[1])
    return int((group / "memory.current").read_text()) - files
