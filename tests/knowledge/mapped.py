"""An index that is read in place, whose vectors somebody damages between two searches, in a process that this may end.

Run by test_mapped: `python -m tests.knowledge.mapped HOME KIND DAMAGE`, and with `--unguarded` without the look at the file
that comes before each search. Prints as JSON what both searches found: [passages before, passages after, was it noticed].
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from appliance.db import Database
from appliance.knowledge import segments, vectors
from appliance.knowledge.shelves import EVERYTHING
from appliance.settings import Settings
from tests.knowledge.school import School, units

PASSAGES = 1200


def damaged(path: Path, how: str) -> None:
    size = path.stat().st_size
    match how:
        case "cut to a page":
            os.truncate(path, 4096)
        case "emptied":
            os.truncate(path, 0)
        case "half of it":
            os.truncate(path, size // 2)
        case "zeros":
            with path.open("r+b") as file:
                file.write(bytes(size))
        case "noise":
            with path.open("r+b") as file:
                file.write(os.urandom(size))
        case "longer":
            with path.open("ab") as file:
                file.write(bytes(10_000))
        case "removed":
            path.unlink()
        case "replaced":
            other = path.with_name("other")
            other.write_bytes(bytes(100))
            os.replace(other, path)
        case "touched":
            os.utime(path)
        case _:
            raise ValueError(how)


def small_but_mapped(kind: str) -> None:
    """The kinds of large segments, of as many rows as a test can fill."""
    vectors.FLAT_BELOW = 1
    vectors.CLUSTERS_FROM = 1 if kind == "clusters" else 10**9
    vectors.PROBES = 10**6
    segments.IN_MEMORY = 0


def main() -> None:
    home, kind, damage, *unguarded = sys.argv[1:]
    if unguarded:
        written: Any = lambda _descriptor: (0, 0)  # noqa: E731
        vectors._written = written
    small_but_mapped(kind)
    settings = Settings(home=Path(home))
    database = Database(settings.database)
    database.migrate()
    school = School(settings, database)
    school.add("all", [f"page{number}" for number in range(PASSAGES)])
    school.index.rebuild()
    school.index.close()
    before = school.fresh()
    asked = units(1)[0]
    nearest = [id for id, _ in before.nearest(asked, 20, EVERYTHING)]
    (file,) = settings.index.glob("seg-*/vectors.faiss")
    damaged(file, damage)
    before.nearest(asked, 20, EVERYTHING)
    noticed = not before.whole
    after = [id for id, _ in school.fresh().nearest(asked, 20, EVERYTHING)]
    sys.stdout.write(json.dumps([nearest, after, noticed]))
    school.index.close()
    database.close()


if __name__ == "__main__":
    main()
