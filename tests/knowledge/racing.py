"""One of several processes that add the same folder to the same collection at once, and try again while another does.

Run by test_readers: `python -m tests.knowledge.racing HOME JOB FOLDER`; begins when its standard input ends. Prints the status
of each of the job's files as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from appliance.db import Database
from appliance.errors import UnderWay
from appliance.knowledge import ingest as bulk
from appliance.knowledge.library import Library
from appliance.settings import Settings
from tests.knowledge.helpers import embed


async def main() -> None:
    home, job, folder = sys.argv[1:]
    settings = Settings(home=Path(home))
    database = Database(settings.database)
    library = Library(settings, database, embed)
    record = bulk.Record(database, job)
    bulk.PORTION_FILES, bulk.PAUSE = 2, 0.01  # so that others get in between
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.read()
    while True:
        try:
            await bulk.ingest(library, record, bulk.later(database, [Path(folder)], "school"), tell=lambda _: None)
            break
        except UnderWay:
            await asyncio.sleep(0.02)
    sys.stdout.write(json.dumps({report.file: report.status for report in record.reports()}))
    library.close()
    database.close()


if __name__ == "__main__":
    asyncio.run(main())
