"""How fast a graphics card is: what it reads from its memory and what it computes, in the format that models are served in.

Hides torch. Tested on a processor only, which does the same work; no card was at hand.
"""

from __future__ import annotations

import time
from typing import Any

BYTES = 2**29  # of a block that is read; more than any card keeps to itself
SIDE = 4096  # of the matrices that are multiplied


def speed(seconds: float, device: str = "cuda", *, size: int = BYTES, side: int = SIDE) -> tuple[float, float]:
    """Bytes a second that are read, operations a second that are computed; (0, 0) where torch cannot use the card."""
    try:
        import torch

        if device == "cuda" and not torch.cuda.is_available():
            return 0.0, 0.0
        kind = torch.bfloat16 if device == "cuda" else torch.float32
        block = torch.ones(size // torch.empty(0, dtype=kind).element_size(), dtype=kind, device=device)
        reading = size / _quick(lambda: block.max(), torch, device, seconds / 2)
        matrix = torch.ones(side, side, dtype=kind, device=device)
        computing = 2 * side**3 / _quick(lambda: matrix @ matrix, torch, device, seconds / 2)
    except (ImportError, RuntimeError):  # torch's word for a driver that is too old, and for memory that is taken
        return 0.0, 0.0
    return reading, computing


def _quick(step: Any, torch: Any, device: str, seconds: float) -> float:
    """Seconds that a step takes: the slowest of the quicker quarter."""
    spent: list[float] = []
    step()
    ends = time.perf_counter() + seconds
    while (started := time.perf_counter()) < ends or not spent:
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        spent.append(time.perf_counter() - started)
    return max(1e-9, sorted(spent)[(len(spent) - 1) // 4])
