"""The search, measured: does it find the right page, and does it know when there is none? Writes knowledge.md beside it.

All books of `../shared/data` (or of --data) go into one collection of a home that is thrown away, in every format that can be
read, with the real embedder in this process; then the questions there are asked through `Library.check`. No server runs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from main import SHARED, Row, machine  # beside this file

from appliance import network
from appliance.db import Database
from appliance.engine.embedder import Embedder
from appliance.errors import ModelUnavailable
from appliance.knowledge.library import FileReport, Library
from appliance.knowledge.measure import RATES
from appliance.settings import Settings

REACH = {
    "hit_at_5": ("right page among the first five", "at least 0.90"),
    "hit_at_1": ("right page first", "at least 0.70"),
    "refused_unanswerable": ("unanswerable questions refused", "at least 0.80"),
    "refused_answerable": ("answerable questions refused", "at most 0.10"),
}


class Engine:
    """The embedder as the library is handed it; it can be away."""

    def __init__(self) -> None:
        self._embedder = Embedder()
        self.away = False

    async def embed(self, texts: Sequence[str]) -> Any:
        if self.away:
            raise ModelUnavailable("The engine is stopped for a part of this bench.", "Wait.")
        return await asyncio.to_thread(self._embedder.embed, texts)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def questions(data: Path, work: Path) -> tuple[Path, dict[str, int]]:
    """Both files as one, and how many questions of each sort it holds."""
    lines: list[str] = []
    counts = {}
    for name in ("retrieval_questions", "unanswerable"):
        part = [line for line in (data / "examples" / f"{name}.jsonl").read_text("utf-8").splitlines() if line.strip()]
        counts[name] = len(part)
        lines += part
    path = work / "questions.jsonl"
    path.write_text("\n".join(lines), "utf-8")
    return path, counts


async def ingest(library: Library, books: Path) -> tuple[list[FileReport], float]:
    started = time.perf_counter()
    reports = await library.add([books], "books", on_file=lambda one: say(f"  {one.file}: {one.status}"))
    return reports, time.perf_counter() - started


def ingest_rows(reports: list[FileReport], seconds: float) -> Iterator[Row]:
    added = [one for one in reports if one.error is None]
    pages = sum(one.pages or 0 for one in added)
    paged = sum(one.seconds for one in added if one.pages)
    passages = sum(one.passages for one in added)
    how = f"{pages} pages in {paged:.0f} s, vectors included; all {len(reports)} files in {seconds:.0f} s, {passages} passages"
    yield "pages ingested", f"{pages / paged:.1f} a second" if paged else "none", "printed", how
    rate = f"{len(added)} of {len(reports)} files"
    yield "files that could be read", rate, "-", "the rest and why are listed below"


async def search_rows(library: Library, engine: Engine, file: Path, counts: dict[str, int]) -> Iterator[Row]:
    report = await library.check(file)
    engine.away = True
    by_words = await library.check(file)
    engine.away = False
    rows = []
    for name, (what, reach) in REACH.items():
        asked = counts["unanswerable" if name == "refused_unanswerable" else "retrieval_questions"]
        low, high = report["intervals"][name]
        how = f"of {asked} questions; 95 % interval {low:.2f} to {high:.2f}; by words alone {by_words[name]:.2f}"
        rows.append((what, f"{report[name]:.2f}", reach, how))
    misses = [one["question"] for one in report["questions"][: counts["retrieval_questions"]] if one["rank"] is None]
    say("\n  ".join(["not among the first five:", *misses]))
    return iter(rows)


async def time_row(library: Library, file: Path) -> Row:
    """One question after another, each embedded alone, as people ask."""
    texts = [json.loads(line)["question"] for line in file.read_text("utf-8").splitlines()]
    await library.search(texts[0])
    taken = []
    for text in texts * 4:
        started = time.perf_counter()
        await library.search(text)
        taken.append((time.perf_counter() - started) * 1000)
    p95 = statistics.quantiles(taken, n=20)[-1]
    passages = sum(document.passages for document in await library.documents())
    return "search, warm", f"p95 {p95:.0f} ms", "under 40 ms at 100,000", (
        f"median {statistics.median(taken):.0f} ms of {len(taken)}, embedding included, {passages} passages"
    )  # fmt: skip


async def run(data: Path, home: Path) -> tuple[list[Row], list[str]]:
    settings = Settings(home=home / "home")
    database = Database(settings.database)
    database.migrate()
    engine = Engine()
    library = Library(settings, database, engine.embed)
    try:
        await engine.embed(["The model is loaded before anything is timed."])
        reports, seconds = await ingest(library, data / "books")
        file, counts = questions(data, home)
        rows = [*await search_rows(library, engine, file, counts), await time_row(library, file)]
        rows += ingest_rows(reports, seconds)
    finally:
        library.close()
        database.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rows.append(("this process at its largest", f"{peak:.0f} MB", "-", "the embedder is in it; on a box it is the engine's"))
    return rows, [f"- {one.error.message}" for one in reports if one.error]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--data", type=Path, default=SHARED, help="folder with books/ and examples/")
    options = parser.parse_args()
    network.stay_offline()
    for part in ("books", "examples/retrieval_questions.jsonl", "examples/unanswerable.jsonl"):
        if not (options.data / part).exists():
            raise SystemExit(f"Error: {options.data} holds no {part}.\nTry: scripts/bench knowledge --data FOLDER")
    assert set(REACH) == set(RATES)
    with tempfile.TemporaryDirectory(prefix="bench") as folder:
        rows, refused = asyncio.run(run(options.data, Path(folder)))
    lines = ["| what | measured | to reach | how |", "|---|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    lines += ["", "Not read:", "", *(refused or ["- nothing"])]
    text = f"# scripts/bench knowledge\n\n{date.today().isoformat()}, {machine()}\n\n" + "\n".join(lines) + "\n"
    Path(__file__).with_suffix(".md").write_text(text)
    if options.json:
        named = [dict(zip(("what", "measured", "to_reach", "how"), row, strict=True)) for row in rows]
        print(json.dumps({"machine": machine(), "rows": named, "not_read": refused}))
    else:
        print(text)


if __name__ == "__main__":
    main()
