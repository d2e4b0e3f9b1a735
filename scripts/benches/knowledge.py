"""The search, measured: does it find the right page, and does it know when there is none? Writes knowledge.md beside it.

All books of `../shared/data` (or of --data) go into one collection of a home that is thrown away, in every format that can be
read, with the real embedder in this process; then the questions there are asked through `Library.check`: nothing of the search
was chosen on them. The questions that it was chosen on, appliance/content/retrieval, are asked as well, with parts of the
search left out one by one. While the books are added, another process searches as the web process does (`web_memory`).
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
from appliance.knowledge import calibration, ranking
from appliance.knowledge import search as searching
from appliance.knowledge.index import Index, Reader
from appliance.knowledge.library import EVERYTHING, FileReport, Library
from appliance.knowledge.measure import RATES, interval, is_answerable, questions_of, rank
from appliance.settings import Settings
from appliance.tables import passages

REACH = {
    "hit_at_5": ("right page among the first five", "at least 0.90"),
    "hit_at_1": ("right page first", "at least 0.70"),
    "refused_unanswerable": ("unanswerable questions refused", "at least 0.80"),
    "refused_answerable": ("answerable questions refused", "at most 0.10"),
}


CONTENT = Path(__file__).resolve().parents[2] / "appliance" / "content" / "retrieval"


class Part:
    """An index of which one half is silent."""

    def __init__(self, whole: Reader, *, words: bool = True, meaning: bool = True) -> None:
        self._whole = whole
        self._words = words
        self._meaning = meaning

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)

    def matching(self, *asked: Any) -> list[tuple[int, float]]:
        return self._whole.matching(*asked) if self._words else []

    def nearest(self, *asked: Any) -> list[tuple[int, float]]:
        return self._whole.nearest(*asked) if self._meaning else []


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


async def ingest_watched(library: Library, books: Path, home: Path) -> tuple[list[FileReport], float, dict[str, int]]:
    """`ingest`, and what a process that searches meanwhile says of itself. It begins with one small document, to be warm."""
    small = home / "small.txt"
    small.write_text("Leaves look green, since chlorophyll takes in red and blue light.")
    (first,) = await library.add([small], "small")
    command = [sys.executable, str(Path(__file__).with_name("web_memory.py")), str(home / "home")]
    searching = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)
    assert searching.stdin is not None and searching.stdout is not None
    await searching.stdout.readline()
    reports, seconds = await ingest(library, books)
    searching.stdin.close()
    told = json.loads(await searching.stdout.readline())
    await searching.wait()
    await library.remove(str(first.document), EVERYTHING)
    return reports, seconds, told


def memory_row(told: dict[str, int]) -> Row:
    before, after, largest = (f"{told[name] / 2**20:.0f} MB" for name in ("before", "after", "largest"))
    return "web process while all files are added", f"{before} before, {after} after", "flat", (
        f"its largest {largest}; the index of all of them is in it after; {told['searches']} searches, {told['faults']} failed"
    )  # fmt: skip


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
    report = await library.check(file, EVERYTHING)
    engine.away = True
    by_words = await library.check(file, EVERYTHING)
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
    await library.search(texts[0], within=EVERYTHING)
    taken = []
    for text in texts * 4:
        started = time.perf_counter()
        await library.search(text, within=EVERYTHING)
        taken.append((time.perf_counter() - started) * 1000)
    p95 = statistics.quantiles(taken, n=20)[-1]
    passages = sum(document.passages for document in await library.documents(EVERYTHING))
    return "search, warm", f"p95 {p95:.0f} ms", "under 40 ms at 100,000", (
        f"median {statistics.median(taken):.0f} ms of {len(taken)}, embedding included, {passages} passages"
    )  # fmt: skip


class Development:
    """The questions that the search was chosen on, asked of an index as it is or with a part left out."""

    def __init__(self, database: Database, generation: Reader, vectors: Any, rows: list[dict[str, Any]]) -> None:
        self._database = database
        self.generation = generation
        self._vectors = vectors
        self._rows = rows
        self.answerable = [is_answerable(row) for row in rows]

    def _run(self, chosen: Any) -> list[Any]:
        with self._database.read() as connection:
            return list(connection.execute(chosen))

    def asked(self, generation: Reader) -> tuple[list[int | None], list[float]]:
        """The place of the right page for each answerable question, and the best evidence for each question."""
        places, best = [], []
        for row, vector, answerable in zip(self._rows, self._vectors, self.answerable, strict=True):
            found = searching.search(generation, self._run, row["question"], vector, 5, EVERYTHING)
            best.append(found.best)
            if answerable:
                places.append(rank(row, found.passages))
        return places, best

    def proposed(self, generation: Reader) -> str:
        """How often the right page is among what is proposed, before anything is weighed."""
        first, any_ = 0, 0
        for row, vector, answerable in zip(self._rows, self._vectors, self.answerable, strict=True):
            if answerable:
                ids, _ = ranking.propose(generation, row["question"], vector, EVERYTHING)
                held = searching.passage_rows().where(passages.c.id.in_(ids))
                known = {one.id: searching.as_passage(one) for one in self._run(held)}
                place = rank(row, [known[id] for id in ids if id in known])
                first += place is not None and place <= 5
                any_ += place is not None
        return f"{first / sum(self.answerable):.2f} among five, {any_ / sum(self.answerable):.2f} among {ranking.JUDGED}"


def _apart(best: list[float], answerable: list[bool]) -> float:
    """How often an answerable question reaches more than an unanswerable one: no threshold is in it."""
    known = [one for one, yes in zip(best, answerable, strict=True) if yes]
    unknown = [one for one, yes in zip(best, answerable, strict=True) if not yes]
    return sum(one > other for one in known for other in unknown) / (len(known) * len(unknown))


def development_rows(development: Development) -> Iterator[Row]:
    whole, answerable = development.generation, development.answerable
    places, best = development.asked(whole)
    asked = len(places)
    for name, hits in (("first", 1), ("among the first five", 5)):
        count = sum(place is not None and place <= hits for place in places)
        low, high = interval(count, asked) or (0, 0)
        yield (
            f"development: right page {name}",
            f"{count / asked:.2f}",
            "-",
            f"of {asked}; 95 % interval {low:.2f} to {high:.2f}",
        )
    refused = calibration.held_out(best, answerable)
    for name, sort in (("answerable refused", True), ("unanswerable refused", False)):
        outside = [no for no, known in zip(refused, answerable, strict=True) if known is sort]
        usual = [one < ranking.COVERED for one, known in zip(best, answerable, strict=True) if known is sort]
        low, high = interval(sum(outside), len(outside)) or (0, 0)
        yield f"development: {name}", f"{sum(outside) / len(outside):.2f}", "-", (
            f"of {len(outside)}, each by a threshold fitted without it (5 folds); 95 % interval {low:.2f} to {high:.2f}; "
            f"with the usual {ranking.COVERED}: {sum(usual) / len(usual):.2f}; "
            f"the fit to all is {calibration.fit(best, answerable):.2f}"
        )  # fmt: skip
    parts = {"words alone": Part(whole, meaning=False), "meaning alone": Part(whole, words=False), "both fused": whole}
    for name, part in parts.items():
        yield (
            f"proposed by {name}",
            development.proposed(part),
            "both beat each",
            f"the right page, of {asked} development questions",
        )
    yield from _without(development)


def _without(development: Development) -> Iterator[Row]:
    """What each part of the evidence is worth: the same questions without it."""
    for names, what in (
        ((), "as it is"),
        (("NEAR_WEIGHT",), "words side by side"),
        (("PLACE_WEIGHT",), "words in the same place"),
        (("NEAR_WEIGHT", "PLACE_WEIGHT"), "any words (they still propose)"),
        (("ENUMERATED", "ASKING"), "the loss of lists of exercises"),
        (("UNKNOWN",), "the loss for words that stand nowhere"),
    ):
        kept = {name: getattr(ranking, name) for name in names}
        for name in names:
            setattr(ranking, name, 0.0)
        places, best = development.asked(development.generation)
        for name, value in kept.items():
            setattr(ranking, name, value)
        first = sum(place == 1 for place in places) / len(places)
        five = sum(place is not None for place in places) / len(places)
        how = f"among five {five:.2f}; answerable above unanswerable in {_apart(best, development.answerable):.3f} of all pairs"
        yield f"development without {what}" if names else f"development {what}", f"first {first:.2f}", "-", how


async def run(data: Path, home: Path) -> tuple[list[Row], list[str]]:
    settings = Settings(home=home / "home")
    database = Database(settings.database)
    database.migrate()
    engine = Engine()
    library = Library(settings, database, engine.embed)
    try:
        await engine.embed(["The model is loaded before anything is timed."])
        reports, seconds, told = await ingest_watched(library, data / "books", home)
        file, counts = questions(data, home)
        rows = [*await search_rows(library, engine, file, counts), await time_row(library, file)]
        rows += [*ingest_rows(reports, seconds), memory_row(told)]
        index = Index(settings.index, settings.run / "index.lock", database)
        asked = [row for name in ("answerable", "unanswerable") for row in questions_of(CONTENT / f"{name}.jsonl")]
        vectors = [(await engine.embed([row["question"]]))[0] for row in asked]
        rows += development_rows(Development(database, index.fresh(), vectors, asked))
        index.close()
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
