"""One minute of llama.cpp on this machine: how fast it reads, writes for one, writes for several; and how fast memory is.

It uses every core that this process may. Of all steps the quicker ones count, the first quarter: what else the machine did
meanwhile is no property of it. It judges nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.engine import sizing
from appliance.selftest import card
from appliance.settings import cores
from appliance.tuning import catalog

if TYPE_CHECKING:
    from appliance.engine.llama import Llama

SEVERAL = 8  # pupils at once in the third measurement
BEGUN = 64  # tokens that a conversation holds when its answer is written
ROOM = 1024  # and has room for
BLOCK, BLOCKS = 256 * 2**20, 2**30  # bytes that each core reads, more than a processor keeps to itself; and all of them


@dataclass(frozen=True, slots=True)
class Measured:
    """Of the model: bytes of its file, parameters, layers. Of the machine: cores, memory and gpu in bytes, `memory_speed` in
    bytes a second; card: its name and driver, and what it reads and computes a second, 0 where it cannot be used. Tokens a
    second: reading, writing (for one), together (for each of SEVERAL)."""

    bytes: int
    parameters: int
    layers: int
    cores: int
    memory: int
    gpu: int
    memory_speed: float
    reading: float
    writing: float
    together: float
    card: str = ""
    card_memory: float = 0.0
    card_computing: float = 0.0


def measure(
    model: Path, seconds: float, tell: Callable[[str], None] = lambda _text: None, *, weights: int = 0, layers: int = 0
) -> Measured:
    """Use so many seconds. weights, layers: of a file that is known; of any other, its header says them.

    Blocking; raises ModelUnavailable for a file that cannot be loaded.
    """
    from appliance.engine.llama import Llama

    if not weights:
        facts = sizing.inspected(model, "model")
        weights, layers = facts.parameters, max(1, int(facts.numbers.get("block_count", 1)))
    machine, part = catalog.Machine.here(), seconds / 4
    tell("Reading memory.")
    speed = memory_speed(part)
    tell(f"Loading {model.name}.")
    llama = Llama(model, threads=cores(), context=ROOM, sequences=SEVERAL, apart=True)
    try:
        tell("Reading a prompt.")
        reading = _reading(llama, part)
        tell("Writing for one.")
        writing = _writing(llama, 1, part)
        tell(f"Writing for {SEVERAL}.")
        together = _writing(llama, SEVERAL, part)
    finally:
        llama.close()
    size = model.stat().st_size
    card_memory, card_computing = 0.0, 0.0
    if machine.gpu:
        tell("Measuring the graphics card.")
        card_memory, card_computing = card.speed(min(part, 5.0))
    return Measured(
        size, weights, layers, cores(), machine.memory, machine.gpu, speed, reading, writing, together, machine.card,
        card_memory, card_computing,
    )  # fmt: skip


def memory_speed(seconds: float) -> float:
    """Bytes a second that all cores together read from memory."""
    import numpy as np

    size = min(BLOCK, BLOCKS // cores()) // 8 * 8
    blocks = [np.ones(size // 8, np.float64) for _ in range(cores())]
    passes: list[list[float]] = [[] for _ in blocks]
    ends = time.perf_counter() + seconds

    def read(number: int) -> None:
        while (started := time.perf_counter()) < ends or not passes[number]:
            np.max(blocks[number])  # one pass over it; numpy gives the interpreter's lock away meanwhile
            passes[number].append(time.perf_counter() - started)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(len(blocks))]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    return sum(size / _quick(spent) for spent in passes)


def _reading(llama: Llama, seconds: float) -> float:
    from appliance.engine.llama import BATCH

    tokens = _tokens(llama, BATCH)
    rows = [(token, place, 0, place == BATCH - 1) for place, token in enumerate(tokens)]

    def step() -> int:
        llama.forget(0)
        llama.decode(rows)
        return BATCH

    return _rate(step, seconds)


def _writing(llama: Llama, pupils: int, seconds: float) -> float:
    """Tokens a second for each of so many pupils whose answers are written side by side."""
    tokens = _tokens(llama, BEGUN)
    for pupil in range(pupils):
        llama.forget(pupil)
        llama.decode([(token, place, pupil, False) for place, token in enumerate(tokens)])
    place = BEGUN

    def step() -> int:
        nonlocal place
        if place == ROOM:
            for pupil in range(pupils):
                llama.forget(pupil, BEGUN)
            place = BEGUN
        llama.decode([(tokens[place % BEGUN], place, pupil, True) for pupil in range(pupils)])
        place += 1
        return 1

    return _rate(step, seconds)


def _rate(step: Callable[[], int], seconds: float) -> float:
    """What `step` counts, a second; once before the clock runs, for all that is done only the first time."""
    spent: list[float] = []
    count = step()
    ends = time.perf_counter() + seconds
    while (started := time.perf_counter()) < ends or not spent:
        count = step()
        spent.append(time.perf_counter() - started)
    return count / _quick(spent)


def _quick(spent: list[float]) -> float:
    """The slowest of the quicker quarter."""
    return max(1e-9, sorted(spent)[(len(spent) - 1) // 4])


def _tokens(llama: Llama, count: int) -> list[int]:
    """Different ones, so that no two rows are the same; which they are makes no difference to the time."""
    return [5 + (7 * number) % max(1, llama.vocabulary - 10) for number in range(count)]
