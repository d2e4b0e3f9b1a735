"""Which engine serves on this machine: transformers on a GPU that is free and large enough, llama.cpp on the CPU for all else.

Plain functions over what the machine has, and a memory of how the GPU failed; `serving_choice.py` decides with them. Starts
and stops nothing, and asks nobody whether a tuning job runs (whoever looks says so). What `look` tells of a GPU follows torch's
documentation; it is not tested on one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Backend = Literal["llama", "transformers"]
WEIGHT_BYTES = {"bfloat16": 2.0, "nf4": 0.6}  # of memory for each weight; NF4 with its scales and what stays in 16 bits
GPU_SPARE = 2 * 10**9  # bytes for the cache and the steps, at the least
RETRY_SECONDS = 600.0  # after a GPU that had too little memory
# What the drivers that torch knows (NVIDIA's, AMD's, and WSL's) leave in the system; torch is asked only where one of them is.
DRIVERS = ("/dev/nvidiactl", "/dev/nvidia0", "/proc/driver/nvidia/version", "/dev/kfd", "/dev/dxg")


@dataclass(frozen=True, slots=True)
class Machine:
    """What the choice rests on. gpu_free: bytes, None where there is no GPU. tuning: whether a job computes on it now."""

    gpu_free: int | None = None
    tuning: bool = False


def look(*, tuning: bool = False) -> Machine:
    """The machine as it is now. Without a driver for a GPU, torch is not even imported."""
    if not any(Path(path).exists() for path in DRIVERS):
        return Machine(None, tuning)
    import torch

    if not torch.cuda.is_available():
        return Machine(None, tuning)
    try:
        return Machine(int(torch.cuda.mem_get_info()[0]), tuning)
    except RuntimeError:  # the driver lost it
        return Machine(None, tuning)


def precision(machine: Machine, weights: int) -> str:
    """ "bfloat16" where so many weights fit the GPU, "nf4" where only that does, "" where nothing does."""
    free = (machine.gpu_free or 0) - GPU_SPARE
    return next((name for name, size in WEIGHT_BYTES.items() if weights * size <= free), "")


def choose(machine: Machine, weights: int) -> Backend:
    """transformers on a GPU that nobody tunes on and that holds the model; llama.cpp on the CPU for everything else."""
    return "transformers" if precision(machine, weights) and not machine.tuning else "llama"


class Fallback:
    """`choose`, by one who remembers how the GPU failed: hand `failed` to a handler as its `on_fault`.

    Too little memory may pass, so the GPU is tried again after a while. After any other fault of the driver, the process cannot
    use the GPU again until it is started anew, so llama.cpp serves until then.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until = 0.0
        self.reason = ""

    @staticmethod
    def passes(reason: str) -> bool:
        """Whether what went wrong may be over in a while."""
        return any(words in reason.lower() for words in ("out of memory", "not enough memory"))

    def failed(self, reason: str) -> None:
        self.reason = reason
        self._until = self._clock() + RETRY_SECONDS if self.passes(reason) else float("inf")

    @property
    def waits(self) -> bool:
        """Whether the GPU is left alone now."""
        return self._clock() < self._until

    def choose(self, machine: Machine, weights: int) -> Backend:
        return "llama" if self.waits else choose(machine, weights)
