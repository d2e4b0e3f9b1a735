"""The web process as far as the library goes: all that it imports, and a search after another while others change the library.

Run by test_readers: `python -m tests.knowledge.reader HOME QUESTION KIND`, until its standard input ends. KIND: flat, or one of
large segments, which are then read in place. Prints a line of JSON for each search, [file of each passage] or the fault, and at
the end {built: segments it built itself, modules: what it has imported}.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import sys
from pathlib import Path
from typing import Any

from appliance.app import Appliance
from appliance.knowledge import segments
from appliance.knowledge.library import EVERYTHING, Library
from appliance.settings import Settings
from appliance.web.server import create_app
from tests.knowledge.helpers import embed
from tests.knowledge.mapped import small_but_mapped


def say(what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


async def main() -> None:
    if sys.argv[3] != "flat":
        small_but_mapped(sys.argv[3])
    built = 0
    build = segments.build

    def counted(*arguments: Any) -> Any:
        nonlocal built
        built += 1
        return build(*arguments)

    segments.build = counted
    appliance = Appliance.open(Settings(home=Path(sys.argv[1])))
    create_app(appliance)
    library = Library(appliance.settings, appliance.database, embed)
    while not (select.select([0], [], [], 0)[0] and not os.read(0, 1)):
        try:
            found = await library.search(sys.argv[2], k=40, within=EVERYTHING)
            say([passage.file for passage in found.passages])
        except Exception as error:  # noqa: BLE001 - any is what the test looks for
            say(repr(error))
    say({"built": built, "modules": sorted({name.partition(".")[0] for name in sys.modules})})
    library.close()
    await appliance.close()


if __name__ == "__main__":
    asyncio.run(main())
