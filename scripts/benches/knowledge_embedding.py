"""Embedding, measured: ours beside sentence-transformers' plain `encode`, and what is found by vectors that were made quicker.

Both embed the same passages (the books, where they are there, and the content's own documents, cut as the library cuts them)
with the same weights on the same threads, in one process and by turns. The peer computes in full precision with its defaults.
Recall is counted against the peer's vectors: how many of its ten nearest are among ours. Prints a table and writes
knowledge_embedding.md beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
PACKAGES = ("torch", "sentence-transformers", "transformers", "tokenizers")
QUERIES = 500  # passages that are asked with, beside the questions
CALL = 32  # texts in one request of `docs add`
Row = tuple[str, str, str, str]
Vectors = npt.NDArray[np.float32]


def passages(most: int) -> tuple[list[str], str]:
    """Passages as they are embedded, and where they are from."""
    from appliance.errors import ApplianceError
    from appliance.knowledge.chunks import cut, embedding_text
    from appliance.knowledge.extract import extract
    from appliance.settings import Settings

    settings = Settings(home=Path("/nonexistent"))
    files = [*sorted((DATA / "books").glob("*.pdf")), *sorted((ROOT / "appliance" / "content" / "documents").glob("*.md"))]
    texts: dict[str, None] = {}  # chapters that stand there twice count once
    read = 0
    for path in files:
        try:
            sections = extract(path, path.name, settings).sections
        except ApplianceError:
            continue  # locked, cut off or scanned, on purpose
        read += 1
        texts.update(dict.fromkeys(embedding_text(piece.place, piece.text) for piece in cut(sections)))
    chosen = list(texts)[:: max(1, len(texts) // most)][:most] if most else list(texts)
    return chosen, f"{len(chosen)} passages of {read} documents"


def questions() -> list[str]:
    path = DATA / "examples" / "retrieval_questions.jsonl"
    return [json.loads(line)["question"] for line in path.read_text("utf-8").splitlines()] if path.is_file() else []


def seconds(work: Callable[[], Any]) -> tuple[tuple[float, float], Any]:
    """Seconds on the clock and of processors, and what came of it."""
    started = time.perf_counter(), time.process_time()
    done = work()
    return (time.perf_counter() - started[0], time.process_time() - started[1]), done


def recall(asked: Vectors, exact: Vectors, ours: Vectors, own: Sequence[int] = ()) -> float:
    """How many of the ten nearest by `exact` are among the ten nearest by `ours`. `own`: which passage each question is."""
    found = []
    for vectors in (exact, ours):
        scores = asked @ vectors.T
        scores[np.arange(len(own)), list(own)] = -2  # a passage is not what is near to it
        found.append(np.argsort(-scores, axis=1, kind="stable")[:, :10])
    return float(np.mean([len(set(first) & set(second)) / 10 for first, second in zip(*found, strict=True)]))


def measure(texts: list[str], repeats: int, threads: int) -> list[Row]:
    from sentence_transformers import SentenceTransformer

    from appliance.engine import embedder

    ours = embedder.Embedder(threads)
    ours.embed(texts[:64])
    peer = SentenceTransformer(str(embedder._folder()), device="cpu", local_files_only=True)

    def encode(some: list[str]) -> Vectors:
        return np.asarray(peer.encode(some, normalize_embeddings=True, show_progress_bar=False))

    encode(texts[:64])
    size = sum(len(row) for row in peer.tokenizer(texts, truncation=True, max_length=peer.max_seq_length)["input_ids"])
    times: dict[str, list[tuple[float, float]]] = {"ours": [], "peer": [], "calls": []}
    exact = made = np.zeros((0, 0), dtype=np.float32)
    for _ in range(repeats):
        spent, exact = seconds(lambda: encode(texts))
        times["peer"].append(spent)
        spent, made = seconds(lambda: ours.embed(texts))
        times["ours"].append(spent)
        spent, _ = seconds(lambda: [ours.embed(texts[at : at + CALL]) for at in range(0, len(texts), CALL)])
        times["calls"].append(spent)
    rows = _speed(times, len(texts), size, ours.id)
    rows += _sameness(exact, made, texts, encode)
    return rows + _alone(ours, encode)


def _speed(times: dict[str, list[tuple[float, float]]], count: int, size: int, precision: str) -> list[Row]:
    rows: list[Row] = []
    for at, of, aim in ((0, "", "2 times"), (1, " of one processor", "2 times")):
        rate = {name: count / statistics.median(one[at] for one in values) for name, values in times.items()}
        pairs = [theirs[at] / own[at] for theirs, own in zip(times["peer"], times["ours"], strict=True)]
        each = "each pair: " + ", ".join(f"{one:.2f}" for one in pairs)
        told = f"{rate['ours']:.0f} to {rate['peer']:.0f}, **{statistics.median(pairs):.2f} times**"
        rows.append((f"passages a second{of}", told, aim, f"{each}; {precision}, {size / count:.0f} tokens a passage"))
        calls = statistics.median(theirs[at] / own[at] for theirs, own in zip(times["peer"], times["calls"], strict=True))
        small = f"{rate['calls']:.0f} to {rate['peer']:.0f}, {calls:.2f} times"
        rows.append((f"the same{of}, {CALL} a call", small, "", "ours in small calls, the peer in one"))
    return rows


def _sameness(exact: Vectors, made: Vectors, texts: list[str], encode: Callable[[list[str]], Vectors]) -> list[Row]:
    own = np.linspace(0, len(texts) - 1, min(QUERIES, len(texts))).astype(int)
    alike = (exact * made).sum(axis=1)
    rows = [
        ("recall@10, passages as questions", f"{recall(exact[own], exact, made, own.tolist()):.4f}", "at least 0.99",
         f"{len(own)} of them, each without itself"),
    ]  # fmt: skip
    if asked := questions():
        found = recall(encode(asked), exact, made)
        rows.append(("recall@10, questions", f"{found:.4f}", "at least 0.99", f"{len(asked)} of retrieval_questions.jsonl"))
    rows.append(("cosine to full precision", f"{alike.min():.5f}", "", f"the least; mean {alike.mean():.6f}"))
    return rows


def _alone(ours: Any, encode: Callable[[list[str]], Vectors]) -> list[Row]:
    """One question at a time: the vector must be the published model's own."""
    asked = questions() or ["Why do leaves look green?", "What is a prime number?", "Who was buried in a pyramid?"]
    spent: dict[str, list[float]] = {"ours": [], "peer": []}
    far = 0.0
    for question in asked:
        took, theirs = seconds(lambda question=question: encode([question]))
        spent["peer"].append(took[0])
        took, own = seconds(lambda question=question: ours.embed([question]))
        spent["ours"].append(took[0])
        far = max(far, float(np.abs(own - theirs).max()))
    middle = {name: 1000 * statistics.median(values) for name, values in spent.items()}
    return [
        ("one question alone", f"{middle['ours']:.1f} to {middle['peer']:.1f} ms", "", f"{len(asked)} of them, medians"),
        ("one question's vector, furthest from the peer's", f"{far:.1e}", "0", "of any of 384 numbers"),
    ]


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), "") or platform.machine()
    flags = next((line.split() for line in lines if line.startswith(("flags", "Features"))), [])
    able = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "bf16") if flag in flags]
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return (
        f"{len(os.sched_getaffinity(0))} cores ({model}: {', '.join(able) or 'no vectors of note'}), "
        f"Python {platform.python_version()}, {packages}; load average {os.getloadavg()[0]:.1f} at the start"
    )


def main(arguments: Sequence[str]) -> None:
    from appliance import network

    network.stay_offline()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rows", type=int, default=1200, help="passages; 0: all")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args(arguments)
    about = machine()
    texts, source = passages(options.rows)
    rows = measure(texts, options.repeats, options.threads)
    if options.json:
        print(json.dumps({"machine": about, "source": source, "rows": [list(row) for row in rows]}))
        return
    lines = [
        "# scripts/bench knowledge-embedding", "", f"{date.today()}, {about}", "",
        f"Ours to the peer's; {source}, {options.threads} threads; medians of {options.repeats} runs that took turns.", "",
        "| what | measured | to reach | how |", "|---|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows), "",
    ]  # fmt: skip
    text = "\n".join(lines)
    print(text)
    Path(__file__).with_suffix(".md").write_text(text)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main(sys.argv[1:])
