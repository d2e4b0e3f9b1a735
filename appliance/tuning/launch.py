"""How the training process is started: one process, or one for each of several GPUs that share every step.

Hides torch's launcher (which is what `accelerate launch` calls as well) and how a process learns which of them it is. All of it
stays on this machine: the processes find each other at 127.0.0.1. Loads no torch.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from appliance.errors import Unsupported
from appliance.tuning.recipe import Recipe

MODULE = "appliance.tuning.train_child"
# By address and through the loopback alone: a bare machine may know neither its own name nor "localhost".
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}


def gpus_here(driver: Path = Path("/proc/driver/nvidia/gpus")) -> int:
    """GPUs that a training process would see, without loading torch."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return len([one for one in chosen.split(",") if one.strip() not in ("", "-1")])
    return len(list(driver.iterdir())) if driver.is_dir() else 0


def processes(recipe: Recipe, gpus: int) -> int:
    """How many processes share a step. Raises Unsupported where the recipe asks for more GPUs than there are."""
    if recipe.gpus > max(1, gpus):
        raise Unsupported(
            f"The recipe asks for {recipe.gpus} GPUs and this machine has {gpus}; nothing was started.",
            f"Set gpus = {max(1, gpus)} in the recipe, or gpus = 0 for all there are.",
        )
    return recipe.gpus or max(1, gpus)


def launch_command(recipe: Recipe, gpus: int) -> list[str]:
    """The command that trains, but for the run's folder, which comes last. gpus: how many there are. Raises Unsupported."""
    count = processes(recipe, gpus)
    if count == 1:
        return [sys.executable, "-m", MODULE]
    return [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", "--rdzv-backend", "c10d",
        "--rdzv-endpoint", "127.0.0.1:0", "--rdzv-id", "tuning", "--local-addr", "127.0.0.1",
        "--nproc-per-node", str(count), "--max-restarts", "0", "-m", MODULE,
    ]  # fmt: skip


def rank() -> int:
    """Which of the processes this is. The first one speaks, writes and saves; the others only compute."""
    return int(os.environ.get("RANK", "0"))


def place() -> int:
    """The number of this process's GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def together() -> int:
    """How many processes share a step, as the launcher told this one."""
    return int(os.environ.get("WORLD_SIZE", "1"))
