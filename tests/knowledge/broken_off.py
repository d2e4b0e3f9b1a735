"""Runs a job that adds files, and kills itself, as if the power went, just before the N-th step that the disk would notice.

Run by test_ingest: `python -m tests.knowledge.broken_off JOB HOME...`, with N = 1, 4, 7 for the first, second, third home. What
it read before stands in HOME/read, a name a line.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

from appliance.db import Database
from appliance.jobs import Job, Jobs, Tell, work_one
from appliance.knowledge import intake
from appliance.knowledge.extract import Extracted, Section
from appliance.knowledge.ingest import LATER, Record, ingest
from appliance.knowledge.library import Library
from appliance.settings import Settings
from tests.knowledge.helpers import embed
from tests.knowledge.killed import STEPS


async def run(settings: Settings, job: str) -> Job:
    """Do the job, and note each file that is read; not in a child, which takes time and is another test's matter."""
    database = Database(settings.database)
    library = Library(settings, database, embed)
    real = intake.extract

    def noted(path: Path, name: str, *_more: Any) -> Extracted:
        with (settings.home / "read").open("a") as names:
            names.write(f"{name}\n")
        return Extracted("text", "", None, [Section(path.read_text(), "line 1", None, "")], "")

    async def handler(job: Job, tell: Tell) -> dict[str, Any]:
        return await ingest(library, Record(database, job.id), job.payload, tell=tell)

    intake.extract = noted
    try:
        return await work_one(Jobs(database, settings), job, {LATER: handler})
    finally:
        intake.extract = real
        library.close()
        database.close()


def main() -> int:
    settings = [Settings(home=Path(home)) for home in sys.argv[2:]]
    for number, one in enumerate(settings, 1):
        child = os.fork()
        if child == 0:
            _count(3 * number - 2)
            asyncio.run(run(one, sys.argv[1]))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        sys.stdout.write("killed\n" if os.WIFSIGNALED(status) else "finished\n" if status == 0 else "failed\n")
        sys.stdout.flush()
    return 0


def _count(left: int) -> None:
    def counted(call: Any) -> Any:
        def step(*arguments: Any, **names: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), 9)
            return call(*arguments, **names)

        return step

    for name in STEPS:
        setattr(os, name, counted(getattr(os, name)))


if __name__ == "__main__":
    sys.exit(main())
