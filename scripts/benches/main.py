"""The main job, measured: demo, tuning, first token, memory, search, ingest. Prints a table and writes main.md beside it.

Every figure comes from the commands a school would type, run on a home folder of its own that is thrown away. The books of
`../shared/data` are used where they are there; without them those rows say so.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
APPLIANCE = str(Path(sys.executable).parent / "appliance")
SHARED = ROOT.parent / "shared" / "data"
QUESTIONS = [
    "Why are leaves green?",
    "What is a fraction?",
    "What caused the Black Death?",
    "What is a simile?",
    "What is weight?",
]
Row = tuple[str, str, str, str]


def appliance(home: Path, *arguments: str) -> dict[str, Any]:
    """Run a command with --json and return its document; what it says to people is passed on."""
    done = subprocess.run(
        [APPLIANCE, *arguments, "--home", str(home), "--json"], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode not in (0, 4) or not done.stdout.strip():
        raise SystemExit(f"appliance {' '.join(arguments)} ended {done.returncode}")
    document: dict[str, Any] = json.loads(done.stdout)
    return document


@contextmanager
def serving(home: Path, port: int) -> Iterator[dict[str, int]]:
    """The box as `appliance serve` runs it; yields the process ids of engine and web."""
    command = [APPLIANCE, "serve", "--home", str(home), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            ends = time.monotonic() + 120
            while not ready(port):
                if time.monotonic() > ends:
                    raise SystemExit("the box did not become ready within two minutes")
                time.sleep(0.2)
            yield {name: child(process.pid, name) for name in ("engine", "web")}
        finally:
            process.terminate()
            process.wait()


def ready(port: int) -> bool:
    return ready_handler(port) == "llama"


def ready_handler(port: int) -> str:
    """Which back end would answer now; "" where nobody answers yet."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5) as answer:
            return str(json.load(answer).get("handler"))
    except OSError:
        return ""


def child(parent: int, name: str) -> int:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                up = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
            if up == parent and name.encode() in words:
                return int(entry.name)
    raise SystemExit(f"no {name} process")


def resident_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


def first_token(port: int, key: str, question: str) -> tuple[float, float]:
    """Seconds from the question, sent to /v1 as a program would, to the first words and to the model's own first word.

    While a starter serves, quotes come first and its own words stand below their heading.
    """
    body = json.dumps(
        {"model": "default", "stream": True, "messages": [{"role": "user", "content": question}], "max_tokens": 32}
    )
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", body.encode(), headers)
    started = time.perf_counter()
    text, first, own = "", 0.0, 0.0
    with urllib.request.urlopen(request, timeout=60) as answer:
        for line in answer:
            if line.startswith(b"data: {"):
                choices = json.loads(line[6:]).get("choices") or [{}]
                text += (choices[0].get("delta") or {}).get("content") or ""
                now = time.perf_counter() - started
                first = first or (now if text.strip() else 0.0)
                own = own or (now if text.partition("do not rely on them)**")[2].strip() else 0.0)
    if not first or not own:
        raise SystemExit(f"no words came for {question!r}")
    return first, own


def demo_rows(work: Path) -> Iterator[Row]:
    started = time.perf_counter()
    result = appliance(work / "home", "demo")
    yield "demo, after installation", f"{time.perf_counter() - started:.0f} s", "at most 300 s", "sample content, empty home"
    report = result["report"]
    before, after = report["before"]["value"], report["after"]["value"]
    yield (
        "held-out loss",
        f"{100 * (after / before - 1):+.1f} %",
        "at least -10 %",
        f"{before:.3f} to {after:.3f}, {report['n']} items",
    )
    started = time.perf_counter()
    content = str(ROOT / "appliance" / "content" / "examples")
    appliance(work / "tuning", "tune", "huggingface", "--examples", content, "--limit", "200", "--no-promote")
    yield "tuning on 200 examples", f"{time.perf_counter() - started:.0f} s", "at most 120 s", "with export, parity and judging"


def serving_rows(work: Path, port: int) -> Iterator[Row]:
    key = appliance(work / "home", "keys", "create", "bench")["key"]
    with serving(work / "home", port) as processes:
        time.sleep(8)  # the embedder warms up in the background
        times = [first_token(port, key, question) for question in QUESTIONS * 3]
        for what, taken in (
            ("first words (the quote)", [a for a, _ in times]),
            ("first token of the model", [b for _, b in times]),
        ):
            detail = f"median of {len(times)}, slowest {max(taken):.2f} s, search included"
            yield what, f"{statistics.median(taken):.2f} s", "at most 1 s", detail
        maps = Path(f"/proc/{processes['web']}/maps").read_text()
        heavy = [name for name in ("libtorch", "libllama") if name in maps]
        yield (
            "web process",
            f"{resident_mb(processes['web']):.0f} MB",
            "under 150 MB",
            f"holds {', '.join(heavy) or 'neither torch nor llama.cpp'}",
        )
        yield "engine process", f"{resident_mb(processes['engine']):.0f} MB", "under 900 MB", "starter, adapter and embedder"
        yield search_row(work)


def search_row(work: Path) -> Row:
    """With the engine up, the whole command over its questions: process start, embedding and search."""
    file = SHARED / "examples" / "retrieval_questions.jsonl"
    lines = file.read_text().splitlines() if file.is_file() else [json.dumps({"question": q}) for q in QUESTIONS * 8]
    taken = []
    for times in (1, 10):
        part = work / f"questions-{times}.jsonl"
        part.write_text("\n".join(lines * times))
        runs = []
        for _ in range(3):
            started = time.perf_counter()
            subprocess.run(
                [APPLIANCE, "docs", "search", "--from", str(part), "--json", "--home", str(work / "home")],
                stdout=subprocess.DEVNULL,
                check=True,
            )
            runs.append(time.perf_counter() - started)
        taken.append(statistics.median(runs))
    count = 10 * len(lines)
    more = (taken[1] - taken[0]) / (count - len(lines)) * 1000
    how = f"{count} questions, whole command {taken[1]:.1f} s; each question more costs {more:.1f} ms"
    return "docs search --from", f"{taken[1] / count * 1000:.0f} ms a question", "under 60 ms", how


def ingest_row(work: Path) -> Row:
    books = sorted((SHARED / "books").glob("prealgebra-ch0[1-5].pdf"))
    if not books:
        return "PDF pages ingested", "not measured", "300 in 180 s", "../shared/data is not here"
    started = time.perf_counter()
    result = appliance(work / "home", "docs", "add", "--collection", "books", *map(str, books))
    seconds = time.perf_counter() - started
    pages = sum(file["pages"] or 0 for file in result["files"])
    return (
        "PDF pages ingested",
        f"300 in {300 * seconds / pages:.0f} s",
        "300 in 180 s",
        f"{pages} pages in {seconds:.0f} s, vectors included",
    )


def machine() -> str:
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ""
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = f"{len(os.sched_getaffinity(0))} cores ({model or platform.machine()})"
    return f"{cores}, {memory:.0f} GiB, no GPU used, Python {platform.python_version()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--port", type=int, default=18080)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench") as folder:
        work = Path(folder)
        rows = [*demo_rows(work), ingest_row(work), *serving_rows(work, options.port)]
    lines = ["| what | measured | to reach | how |", "|---|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    text = f"# scripts/bench main\n\n{date.today().isoformat()}, {machine()}\n\n" + "\n".join(lines) + "\n"
    (Path(__file__).with_suffix(".md")).write_text(text)
    if options.json:
        print(
            json.dumps(
                {
                    "machine": machine(),
                    "rows": [dict(zip(("what", "measured", "to_reach", "how"), row, strict=True)) for row in rows],
                }
            )
        )
    else:
        print(text)


if __name__ == "__main__":
    main()
