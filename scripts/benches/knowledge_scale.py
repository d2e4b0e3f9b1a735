"""The index at 100,000 and at a million passages, measured. Writes knowledge-scale.md beside it.

What a school has is too little to fill a million, so passages are made: sentences of the real books thrown together, their
words in other orders but as common as they are there, and vectors spread around those of real passages (cosine about 0.7).
They are written into the tables directly, because cutting and embedding a million would take hours and is measured elsewhere;
from there on everything is the appliance's own: the index is built by `Index.rebuild` and asked by `Library.search`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from knowledge_embedding import DATA, passages  # beside this file
from main import Row, machine

from appliance import network
from appliance.db import Database
from appliance.engine.embedder import Embedder
from appliance.knowledge import content, lexical
from appliance.knowledge.index import MARGIN, Generation, Index
from appliance.knowledge.library import EVERYTHING, Filter, Library
from appliance.knowledge.vectors import Vectors, kind
from appliance.knowledge.words import query_words
from appliance.settings import Settings
from appliance.tables import documents, new_id
from appliance.tables import passages as passages_table

COLLECTIONS, SUBJECTS, GRADES = 40, ("maths", "physics", "biology", "history"), ("7", "8", "9")
PAGES = 100  # passages of a document
BLOCK = 50_000
SIDE = 200_000  # rows for the kinds side by side
EMBEDDER = "bench"


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def shuffled(sentences: Sequence[str], variants: int = 300_000) -> list[str]:
    """The same words in other orders: whole sentences that recur everywhere would be copies of each other to the search."""
    numbers = random.Random(2)
    made = []
    for sentence in numbers.choices(sentences, k=variants):
        words = sentence.split()
        numbers.shuffle(words)
        made.append(" ".join(words))
    return made


class Material:
    """Real sentences, the vectors of real passages, and real questions with theirs."""

    def __init__(self) -> None:
        self.embedder = Embedder()
        texts, self.source = passages(0)
        self.sentences = shuffled([one for text in texts for one in re.split(r"(?<=[.?!])\s+", text) if len(one) > 20])
        self.vectors = np.asarray(self.embedder.embed(texts), dtype=np.float32)
        lines = [
            line
            for name in ("retrieval_questions", "unanswerable")
            for line in (DATA / "examples" / f"{name}.jsonl").read_text("utf-8").splitlines()
        ]
        self.questions = [str(json.loads(line)["question"]) for line in lines]
        self.asked = np.asarray(self.embedder.embed(self.questions), dtype=np.float32)

    def spread(self, rows: int, seed: int) -> np.ndarray[Any, Any]:
        numbers = np.random.default_rng(seed)
        noise = numbers.standard_normal((rows, 384), dtype=np.float32)
        noise /= np.linalg.norm(noise, axis=1, keepdims=True)
        made = 0.7 * self.vectors[numbers.integers(0, len(self.vectors), rows)] + 0.71 * noise
        return np.asarray(made / np.linalg.norm(made, axis=1, keepdims=True), dtype=np.float32)


def fill(database: Database, material: Material, rows: int) -> np.ndarray[Any, Any]:
    """`rows` passages in the tables; returns their vectors, by id less one."""
    import pysqlite3

    database.migrate()
    connection = pysqlite3.dbapi2.connect(str(database.path))
    connection.execute("PRAGMA synchronous=OFF")
    shelves = [(f"collection{number:06}", f"Collection {number}", 0.0) for number in range(COLLECTIONS)]
    connection.executemany("INSERT INTO collections (id, name, created) VALUES (?, ?, ?)", shelves)
    words, everything = random.Random(1), np.empty((rows, 384), dtype=np.float32)
    document = ""
    for start in range(0, rows, BLOCK):
        vectors = material.spread(min(BLOCK, rows - start), start)
        everything[start : start + len(vectors)] = vectors
        books, pages = [], []
        for at, vector in enumerate(vectors, start):
            if at % PAGES == 0:
                document, number = new_id(), at // PAGES
                subject, grade = words.choice(SUBJECTS), words.choice(GRADES)
                books.append(
                    (document, shelves[number % COLLECTIONS][0], f"Book {number}", f"{number}.pdf", document, subject, grade)
                )
            text = " ".join(words.choices(material.sentences, k=9))
            page = at % PAGES + 1 if at // PAGES % 5 else None  # one book of five is in a format without pages
            pages.append((at + 1, document, at % PAGES, f"part {at % PAGES + 1}", page, text, vector.tobytes(), EMBEDDER))
        connection.executemany(
            "INSERT INTO documents (id, collection, title, file, kind, sha256, bytes, note, added, subject, grade, passages)"
            f" VALUES (?, ?, ?, ?, 'pdf', ?, 1, '', 0, ?, ?, {PAGES})",
            books,
        )
        connection.executemany(
            "INSERT INTO passages (id, document, ordinal, place, page, text, vector, embedder) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            pages,
        )
        connection.commit()
    connection.close()
    with database.begin() as changing:
        content.changed(changing)
    return everything


def milliseconds(
    work: Callable[[Any], Any], inputs: Sequence[Any], clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    taken = []
    for one in inputs:
        started = clock()
        work(one)
        taken.append((clock() - started) * 1000)
    return taken


def spans(taken: Sequence[float]) -> tuple[float, float]:
    return statistics.median(taken), statistics.quantiles(taken, n=20)[-1]


async def timed(library: Library, texts: Sequence[str], within: Any, rounds: int) -> list[float]:
    """One question after another, each embedded alone, as people ask."""
    for text in texts:
        await library.search(text, within=within)
    taken = []
    for text in [*texts] * rounds:
        started = time.perf_counter()
        await library.search(text, within=within)
        taken.append((time.perf_counter() - started) * 1000)
    return taken


def recall(
    generation: Generation, everything: np.ndarray[Any, Any], asked: np.ndarray[Any, Any], seen: Any, within: Any
) -> float:
    """How many of the exact ten nearest are among the ten found. `seen`: which rows the filter lets through."""
    share = []
    allowed = np.flatnonzero(seen)
    for vector in asked:
        scores = everything @ vector if len(allowed) == len(everything) else everything[allowed] @ vector
        exact = {int(allowed[at]) + 1 for at in np.argpartition(-scores, 10)[:10]}
        share.append(len(exact & {passage for passage, _ in generation.nearest(vector, 10, within)}) / 10)
    return statistics.mean(share)


def agreement(generation: Generation, questions: Sequence[str], within: Any) -> float:
    """How many of the first ten by words are the same where the commonest words are asked for as well."""

    def first() -> list[set[int]]:
        return [{id for id, _ in generation.matching(query_words(text), 10, within)} for text in questions]

    kept = lexical.BUDGET, lexical.COMMON
    quick = first()
    lexical.BUDGET, lexical.COMMON = 10**9, 1.0
    whole = first()
    lexical.BUDGET, lexical.COMMON = kept
    return statistics.mean(len(one & other) / max(1, len(other)) for one, other in zip(quick, whole, strict=True))


def one_class(database: Database, rows: int) -> tuple[Filter, np.ndarray[Any, Any], int]:
    """What a pupil may see: a quarter of the collections, and one subject of them."""
    within = Filter(frozenset(f"collection{number:06}" for number in range(0, COLLECTIONS, 4)), frozenset(SUBJECTS[:1]))
    chosen = sa.select(passages_table.c.id).join(documents, documents.c.id == passages_table.c.document)
    chosen = chosen.where(documents.c.collection.in_(within.collections), documents.c.subject == SUBJECTS[0])
    seen = np.zeros(rows, dtype=bool)
    with database.read() as connection:
        seen[np.array(connection.scalars(chosen).all()) - 1] = True
    return within, seen, int(seen.sum())


def size(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20


def searching(home: Path, vectors: Path) -> None:
    """What a process that only searches needs: run as a process of its own, told in JSON."""
    from appliance.knowledge.search import search
    from appliance.knowledge.shelves import seen

    asked = np.load(vectors, allow_pickle=False)
    settings = Settings(home=home)
    database = Database(settings.database)
    index = Index(settings.index, settings.run / "index.lock", database, EMBEDDER)
    started = time.perf_counter()
    generation = index.fresh()
    opened = time.perf_counter() - started
    texts = json.loads(vectors.with_suffix(".json").read_text())

    def rows(chosen: Any) -> list[Any]:
        with database.read() as connection:
            return list(connection.execute(seen(chosen, EVERYTHING)))

    def ask(at: int) -> None:
        search(generation, rows, texts[at], asked[at], 5, EVERYTHING)

    milliseconds(ask, range(len(texts)))
    taken = milliseconds(ask, [*range(len(texts))] * 3)
    spent = milliseconds(ask, [*range(len(texts))] * 3, time.process_time)
    facts = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    resident = {name: int(facts[name].split()[0]) / 1024 for name in ("VmRSS", "RssAnon", "VmHWM")}
    print(json.dumps({"opened": opened, "p": spans(taken), "cpu": spans(spent), **resident}))


def change(database: Database, index: Index, material: Material) -> tuple[float, float]:
    """Seconds until a new document is found, and until nothing is left of one that was taken out."""
    with database.begin() as connection:
        document, shelf = new_id(), "collection000000"
        book = {"id": document, "collection": shelf, "title": "New", "file": "new.pdf", "kind": "pdf", "sha256": document}
        connection.execute(sa.insert(documents).values(**book, bytes=1, note="", added=0.0, passages=PAGES))
        vectors = material.spread(PAGES, 7)
        pages = [
            {"document": document, "ordinal": at, "place": "", "text": material.sentences[at], "vector": vector.tobytes(),
             "embedder": EMBEDDER} for at, vector in enumerate(vectors)
        ]  # fmt: skip
        connection.execute(sa.insert(passages_table), pages)
        content.changed(connection)
    started = time.perf_counter()
    index.rebuild()
    added = time.perf_counter() - started
    with database.begin() as connection:
        old = connection.scalar(sa.select(documents.c.id).where(documents.c.title == "Book 7"))
        connection.execute(sa.delete(documents).where(documents.c.id == old))
        content.changed(connection)
    started = time.perf_counter()
    index.rebuild()
    return added, time.perf_counter() - started


def at_scale(material: Material, rows: int, folder: Path, goal: int) -> Iterator[Row]:
    settings = Settings(home=folder / f"home-{rows}")
    database = Database(settings.database)
    say(f"filling {rows} passages")
    everything = fill(database, material, rows)
    say("building the index")
    index = Index(settings.index, settings.run / "index.lock", database, EMBEDDER)
    started = time.perf_counter()
    index.rebuild()
    built = time.perf_counter() - started
    generation = index.fresh()
    kinds = ", ".join(f"{kind(len(one.rows))} of {len(one.rows)}" for one in generation.segments)
    name = f"{rows:,} passages"
    yield f"{name}: index built", f"{built:.0f} s", "-", f"{size(settings.index):.0f} MB on disk; segments: {kinds}"

    async def embed(texts: Sequence[str]) -> Any:
        return await asyncio.to_thread(material.embedder.embed, texts)

    library = Library(settings, database, embed, EMBEDDER)
    within, seen, some = one_class(database, rows)
    say("asking")
    alone = spans(milliseconds(lambda text: material.embedder.embed([text]), material.questions))
    for what, scope in ((f"filter that leaves {some:,}", within), ("no filter", EVERYTHING)):
        middle, p95 = spans(asyncio.run(timed(library, material.questions, scope, 4)))
        how = (
            f"median {middle:.0f} ms of {4 * len(material.questions)}; embedding alone {alone[0]:.0f} ms, p95 {alone[1]:.0f} ms"
        )
        yield f"{name}: search, {what}", f"p95 {p95:.0f} ms", f"under {goal} ms", how
    asked = np.vstack([material.asked, material.spread(50, 99)])
    for what, scope, let in (
        (f"filter that leaves {some:,}", within, seen),
        ("no filter", EVERYTHING, np.ones(rows, dtype=bool)),
    ):
        found = recall(generation, everything, asked, let, scope)
        yield (
            f"{name}: recall@10, {what}",
            f"{found:.3f}",
            "at least 0.98",
            f"against exact, {len(asked)} questions and made vectors",
        )
    if rows <= 100_000:
        same = agreement(generation, material.questions, EVERYTHING)
        yield f"{name}: first ten by words", f"{same:.2f} the same", "-", "as if no common word were spared; meaning fills in"
    library.close()
    np.save(folder / "asked.npy", material.asked)
    (folder / "asked.json").write_text(json.dumps(material.questions))
    command = [sys.executable, __file__, "--searching", str(settings.home), "--vectors", str(folder / "asked.npy")]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    yield (
        f"{name}: a process that searches", f"{told['VmRSS']:.0f} MB resident", "under 2,048 MB" if goal > 50 else "-",
        f"{told['RssAnon']:.0f} MB of it its own, the rest mapped files; opened and verified in {told['opened']:.1f} s; "
        f"without embedding median {told['p'][0]:.0f} ms, p95 {told['p'][1]:.0f} ms "
        f"(of a processor {told['cpu'][0]:.0f} and {told['cpu'][1]:.0f} ms)",
    )  # fmt: skip
    say("changing")
    added, removed = change(database, index, material)
    how = f"taken out with all its bytes: {removed:.1f} s (its segment is written again, in the worker, while readers go on)"
    yield f"{name}: one document of {PAGES} passages added", f"{added:.1f} s", "-", how
    index.close()
    database.close()


def side_by_side(material: Material) -> Iterator[Row]:
    """The kinds that FAISS offers, over the same vectors; of each the best MARGIN + 10 are scored again exactly."""
    import faiss

    everything = material.spread(SIDE, 5)
    asked = np.vstack([material.asked, material.spread(50, 99)])
    lists = round(2 * SIDE**0.5)
    narrow = np.zeros(SIDE, dtype=bool)
    narrow[SIDE // 2 : SIDE // 2 + SIDE // 50] = True
    for name, key in (
        ("SQ8 scan", "SQ8"),
        ("IVF-SQ8", f"IVF{lists},SQ8"),
        ("IVF-PQ64", f"IVF{lists},PQ64"),
        ("HNSW32", "HNSW32,Flat"),
    ):
        say(name)
        index = faiss.index_factory(384, key, faiss.METRIC_INNER_PRODUCT)
        faiss.omp_set_num_threads(os.cpu_count() or 1)
        started = time.perf_counter()
        index.train(everything[: 40 * lists])
        index.add(everything)
        built = time.perf_counter() - started
        faiss.omp_set_num_threads(1)
        if name == "HNSW32":
            index.hnsw.efSearch = 128
        one = Vectors(index)
        whole = [(0, SIDE)]
        part = [(SIDE // 2, SIDE // 2 + SIDE // 50)]
        ask = _hnsw(index) if name == "HNSW32" else one.nearest
        found = [_share(everything, asked, ask, ranges) for ranges in (whole, part)]
        taken = spans(milliseconds(partial(ask, k=10 + MARGIN, ranges=whole), asked))
        weight = len(faiss.serialize_index(index)) / 2**20
        how = f"recall@10 {found[0]:.3f}, in a filter of {SIDE // 50:,} {found[1]:.3f}; built in {built:.0f} s, {weight:.0f} MB"
        yield f"{name}, {SIDE:,} vectors", f"p95 {taken[1]:.1f} ms", "-", how


def _hnsw(index: Any) -> Callable[..., list[tuple[int, float]]]:
    import faiss

    def nearest(vector: Any, k: int, ranges: Sequence[tuple[int, int]]) -> list[tuple[int, float]]:
        selector = faiss.IDSelectorRange(*ranges[0])
        parameters = faiss.SearchParametersHNSW(sel=selector, efSearch=128)
        _, found = index.search(vector.reshape(1, -1), k, params=parameters)
        return [(int(row), 0.0) for row in found[0] if row >= 0]

    return nearest


def _share(everything: Any, asked: Any, ask: Callable[..., Any], ranges: Sequence[tuple[int, int]]) -> float:
    (start, stop), share = ranges[0], []
    for vector in asked:
        exact = set((np.argpartition(-(everything[start:stop] @ vector), 10)[:10] + start).tolist())
        rows = np.array([row for row, _ in ask(vector, 10 + MARGIN, ranges)], dtype=int)
        best = rows[np.argsort(-(everything[rows] @ vector))[:10]] if len(rows) else rows
        share.append(len(exact & set(best.tolist())) / 10)
    return statistics.mean(share)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rows", type=int, nargs="*", default=[100_000, 1_000_000])
    parser.add_argument("--no-kinds", action="store_true", help="leave the kinds side by side out")
    parser.add_argument("--searching", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--vectors", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    network.stay_offline()
    if options.searching:
        searching(options.searching, options.vectors)
        return
    if not (DATA / "examples" / "retrieval_questions.jsonl").exists():
        raise SystemExit("Error: the books and questions of ../shared/data are not here.\nTry: put them there.")
    load = os.getloadavg()[0]
    say("embedding real passages")
    material = Material()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="bench") as folder:
        for count in options.rows:
            rows += at_scale(material, count, Path(folder), 40 if count <= 100_000 else 100)
    if not options.no_kinds:
        rows += side_by_side(material)
    lines = ["| what | measured | to reach | how |", "|---|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    about = (
        f"{date.today().isoformat()}, {machine()}; load average {load:.1f} at the start, {os.getloadavg()[0]:.1f} at the end"
    )
    made = f"Passages made of the words of {material.source}, written into the tables directly; vectors spread around theirs."
    text = f"# scripts/bench knowledge-scale\n\n{about}\n\n{made}\n\n" + "\n".join(lines) + "\n"
    (Path(__file__).parent / "knowledge-scale.md").write_text(text)
    if options.json:
        named = [dict(zip(("what", "measured", "to_reach", "how"), row, strict=True)) for row in rows]
        print(json.dumps({"machine": machine(), "rows": named}))
    else:
        print(text)


if __name__ == "__main__":
    main()
