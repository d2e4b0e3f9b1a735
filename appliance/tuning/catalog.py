"""Well-known open models, and which of them suit this machine.

Hides `models/catalog.toml` and the arithmetic of memory: weights, the cache of a class's conversations, and what tuning takes.
The figures are estimates with stated assumptions; it fetches nothing and recommends no purchase.
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path

from appliance.errors import BadInput, from_os_error

# Bits for a weight in a Q4_K_M file, averaged over models whose embeddings stay at 6 bits or more.
Q4_BITS = 4.9
WORK_BYTES = 300_000_000  # llama.cpp's buffers, the process around it
CLASS_CONVERSATIONS = 8  # that run in one batch
CLASS_TOKENS = 2048  # of each
# NF4 takes half a byte and some for each weight; the rest is adapter, optimizer and activations of short batches.
QLORA_BYTES = 0.75
QLORA_ROOM = 1_500_000_000
LORA_BYTES = 2.4
# What must stay free for the system, the pages and the embedder.
SPARE_BYTES = 1_500_000_000


@dataclass(frozen=True, slots=True)
class Known:
    """One model of the catalogue. parameters: millions; context: tokens; `suits`: plain words."""

    name: str
    publisher: str
    licence: str
    parameters: int
    layers: int
    kv_heads: int
    head_size: int
    context: int
    suits: str

    @property
    def file_bytes(self) -> int:
        """Of a Q4_K_M file."""
        return int(self.parameters * 1e6 * Q4_BITS / 8)

    @property
    def serving_bytes(self) -> int:
        """Memory to serve a class: CLASS_CONVERSATIONS at once, CLASS_TOKENS each, the cache in 16 bits."""
        token = 2 * self.layers * self.kv_heads * self.head_size * 2
        return self.file_bytes + token * CLASS_CONVERSATIONS * min(CLASS_TOKENS, self.context) + WORK_BYTES

    @property
    def tuning_bytes(self) -> int:
        """GPU memory to tune it with QLoRA."""
        return int(self.parameters * 1e6 * QLORA_BYTES) + QLORA_ROOM

    @property
    def cpu_tuning_bytes(self) -> int:
        """Memory to tune it with LoRA in 16 bits on the processor."""
        return int(self.parameters * 1e6 * LORA_BYTES) + QLORA_ROOM


@dataclass(frozen=True, slots=True)
class Machine:
    """What this machine has. memory, gpu: bytes; gpu is 0 where there is none. card: its name and its driver's number."""

    memory: int
    cores: int
    gpu: int
    card: str = ""

    @classmethod
    def here(cls) -> Machine:
        return cls(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), len(os.sched_getaffinity(0)), *_card())


@dataclass(frozen=True, slots=True)
class Fit:
    """What one machine can do with one model. `serve`: "yes", "slow" (it fits, but the processor is too weak) or "no";
    `tune`: "GPU", "CPU" (it fits; expect hours) or "no"."""

    model: Known
    serve: str
    tune: str


# Millions of parameters that one core can bear for a class: a word a second and more for each of eight pupils.
MILLIONS_A_CORE = 400
CPU_TUNING_MILLIONS = 700


def load(path: Path) -> list[Known]:
    """The catalogue. Raises BadInput naming the entry at fault, NotFound."""
    try:
        entries = tomllib.loads(path.read_text("utf-8")).get("model", [])
    except OSError as error:
        raise from_os_error(error, f"reading {path.name}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path.name} is not valid TOML: {error}.", "Correct that line.") from None
    found = []
    names = {field.name for field in fields(Known)}
    for number, entry in enumerate(entries, start=1):
        if set(entry) != names:
            wrong = ", ".join(sorted(set(entry) ^ names))
            raise BadInput(f"{path.name}: the model number {number} has missing or unknown fields: {wrong}.", "Correct it.")
        found.append(Known(**entry))
    return sorted(found, key=lambda model: model.parameters)


def fit(model: Known, machine: Machine) -> Fit:
    """Whether `machine` can serve a class with `model`, and tune it."""
    if machine.gpu >= model.serving_bytes:
        serve = "yes"
    elif machine.memory - SPARE_BYTES < model.serving_bytes:
        serve = "no"
    else:
        serve = "yes" if model.parameters <= MILLIONS_A_CORE * machine.cores else "slow"
    if machine.gpu >= model.tuning_bytes:
        tune = "GPU"
    elif machine.memory - SPARE_BYTES >= model.cpu_tuning_bytes and model.parameters <= CPU_TUNING_MILLIONS:
        tune = "CPU"
    else:
        tune = "no"
    return Fit(model, serve, tune)


def _card() -> tuple[int, str]:
    """The largest NVIDIA GPU, from the driver's own tool: torch would take seconds to say the same. (0, "") without one."""
    import shutil
    import subprocess

    tool = shutil.which("nvidia-smi")
    if tool is None:
        return 0, ""
    command = [tool, "--query-gpu=memory.total,name,driver_version", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
        found = [[part.strip() for part in line.split(",")] for line in said.splitlines() if line.strip()]
        memory, name, driver = max(found, key=lambda one: int(one[0]))
        return int(memory) * 2**20, f"{name}, driver {driver}"
    except (OSError, ValueError, subprocess.SubprocessError):
        return 0, ""
