"""Adds documents and kills itself, as if the power went, just before the N-th step that the disk would notice.

Run by test_durability: `python killed.py [--apart] HOME... -- PATH...`, with N = 1, 2, 3 for the first, second, third home.
With --apart the index treats every segment as a large one: nothing is merged, and what is gone is purged in a step of its own.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

from appliance.db import Database
from appliance.knowledge import index
from appliance.knowledge.library import Library
from appliance.settings import Settings
from tests.knowledge.helpers import embed

STEPS = ("fsync", "replace", "rename", "unlink", "rmdir")


def add(home: Path, paths: list[Path], kill_before: int) -> None:
    """Imported libraries are shared by the forks of `main`, which is why this is fast enough to try every step."""
    left = kill_before

    def counted(call: Any) -> Any:
        def step(*arguments: Any, **names: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **names)

        return step

    for name in STEPS:
        setattr(os, name, counted(getattr(os, name)))
    settings = Settings(home=home)
    asyncio.run(Library(settings, Database(settings.database), embed).add(paths))


def main() -> int:
    divide = sys.argv.index("--")
    paths = [Path(path) for path in sys.argv[divide + 1 :]]
    homes = sys.argv[1:divide]
    if homes[0] == "--apart":
        homes = homes[1:]
        index.GROWTH = index.QUICK = 0
    for number, home in enumerate(homes, 1):
        child = os.fork()
        if child == 0:
            add(Path(home), paths, number)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        sys.stdout.write("killed\n" if os.WIFSIGNALED(status) else "finished\n" if status == 0 else "failed\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
