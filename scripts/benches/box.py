"""The installed box, measured. Prints a table and writes appliance.md beside it.

backup: a home of one gigabyte - documents, a model and a database of which nothing can be compressed and nothing is there
twice, the worst case - is backed up, backed up again after a school day's changes, proven, and restored onto a blank home, by
the commands that a school would type.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from main import appliance, machine

MEGABYTE = 1_000_000
Row = tuple[str, str, str, str]


def backup(scratch: Path) -> list[Row]:
    home, disk, blank = scratch / "home", scratch / "disk", scratch / "blank"
    _fill(home)
    disk.mkdir()
    where = ("--to", str(disk), "--same-disk")
    first = appliance(home, "backup", "create", *where)
    _a_day(home)
    second = appliance(home, "backup", "create", *where)
    began = time.monotonic()
    proof = appliance(home, "backup", "verify", "latest", "--from", str(disk))
    proven = time.monotonic() - began
    began = time.monotonic()
    key = home / "backup.key"
    appliance(blank, "backup", "restore", "latest", "--from", str(disk), "--key-file", str(key))
    restored = time.monotonic() - began
    size = f"{first['bytes'] / 1e9:.2f} GB"
    return [
        (
            "first backup of 1 GB",
            f"{first['seconds']:.0f} s",
            "under 60 s",
            f"{size} that cannot be compressed, to the same disk",
        ),
        ("the next one", f"{second['seconds']:.0f} s", "", "after 10 MB of new documents and 2,000 changed rows"),
        ("proving it", f"{proven:.0f} s", "", f"restored aside: {proof['files']} files and {proof['rows']} rows compared"),
        ("restoring it onto a blank home", f"{restored:.0f} s", "", "proven on the way; until it answers"),
    ]


def _fill(home: Path) -> None:
    """200 documents of 2 MB, a model of 450 MB, a database of 150 MB."""
    from appliance.app import Appliance
    from appliance.settings import Settings

    box = Appliance.open(Settings(home=home))
    folder = home.parent / "model"
    folder.mkdir()
    _random(folder / "model.gguf", 450 * MEGABYTE)
    box.registry.add(folder, id="bench", kind="base", title="Bench", licence="MIT", context=1024)
    for number in range(200):
        _random(box.settings.documents / f"{number:03}.bin", 2 * MEGABYTE)
    _rows(box.database, 0, 30_000)
    box.database.close()


def _a_day(home: Path) -> None:
    from appliance.app import Appliance
    from appliance.settings import Settings

    box = Appliance.open(Settings(home=home))
    for number in range(5):
        _random(box.settings.documents / f"new-{number}.bin", 2 * MEGABYTE)
    _rows(box.database, 30_000, 32_000)
    box.database.close()


def _rows(database: object, start: int, end: int) -> None:
    """5 kB each, in the table of jobs."""
    from appliance.db import Database
    from appliance.tables import jobs

    assert isinstance(database, Database)
    for first in range(start, end, 1000):
        rows = [
            {"id": f"bench{n}", "kind": "bench", "lane": "light", "payload": {"x": os.urandom(2500).hex()}, "state": "done",
             "created": float(n), "finished": float(n)}
            for n in range(first, first + 1000)
        ]  # fmt: skip
        with database.begin() as connection:
            connection.execute(jobs.insert(), rows)


def _random(path: Path, size: int) -> None:
    with path.open("wb") as file:
        for _ in range(0, size, MEGABYTE):
            file.write(os.urandom(MEGABYTE))


PARTS: dict[str, Callable[[Path], list[Row]]] = {"backup": backup}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--part", choices=sorted(PARTS), action="append", help="only this one; else all")
    options = parser.parse_args()
    load = os.getloadavg()[1]
    rows = []
    for name in options.part or PARTS:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            rows += PARTS[name](Path(folder))
    about = f"{date.today().isoformat()}, {machine()}, load average {load:.1f} over the five minutes before."
    head = ["# scripts/bench appliance", "", about, "", "| what | measured | to reach | how |", "|---|---|---|---|"]
    lines = [*head, *(f"| {' | '.join(row)} |" for row in rows), ""]
    text = "\n".join(lines)
    if options.part is None or set(options.part) == set(PARTS):
        Path(__file__).with_name("appliance.md").write_text(text)
    print(json.dumps(rows, indent=1) if options.json else text)


if __name__ == "__main__":
    main()
