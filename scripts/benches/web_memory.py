"""The web process as far as searching goes, for `scripts/bench knowledge`: what it takes in memory while others add documents.

`python web_memory.py HOME` opens everything that `appliance web` opens, then asks one question after another, by words and by
meaning (any vector: no embedder is in this process), until its standard input ends, and then a hundred more of what is there by
then. It prints "ready" once a hundred were answered, and at the end a line of JSON: {searches, faults, before, after, largest},
memory in bytes.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from appliance import network
from appliance.app import Appliance
from appliance.knowledge.library import EVERYTHING, Library
from appliance.settings import Settings
from appliance.web.server import create_app

QUESTIONS = ["Why do leaves look green?", "What is a prime number?", "How does a river build its delta?", "Who was Macbeth?"]
WARM = 100


def resident(what: str = "VmRSS") -> int:
    """VmHWM: the most it ever was, of this program alone; what getrusage tells begins with the process that started it."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what)]
    return int(line.split()[1]) * 1024


async def embed(texts: Sequence[str]) -> Any:
    made = np.random.default_rng(len(texts[0])).standard_normal((len(texts), 384), dtype=np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


async def main() -> None:
    network.stay_offline()
    appliance = Appliance.open(Settings(home=Path(sys.argv[1])))
    create_app(appliance)
    library = Library(appliance.settings, appliance.database, embed)
    searches = faults = 0

    async def ask() -> None:
        nonlocal searches, faults
        try:
            await library.search(QUESTIONS[searches % len(QUESTIONS)], within=EVERYTHING)
        except Exception:  # noqa: BLE001 - counted, and the count is shown
            faults += 1
        searches += 1

    for _ in range(WARM):
        await ask()
    before = resident()
    print("ready", flush=True)
    while not (select.select([0], [], [], 0)[0] and not os.read(0, 1)):
        await ask()
        await asyncio.sleep(0.05)  # a school's busy minute; without it two cores would have half the time for adding
    for _ in range(WARM):
        await ask()
    told = {"searches": searches, "faults": faults, "before": before, "after": resident(), "largest": resident("VmHWM")}
    print(json.dumps(told))
    library.close()
    await appliance.close()


if __name__ == "__main__":
    asyncio.run(main())
