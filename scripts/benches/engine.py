"""The engine beside llama-server and llama-cpp-python's own server: a class at once, a shared lesson, a second turn.

Every server gets the same GGUF (`engine_servers.py`), the same threads and the same prompts, and is asked through its HTTP
interface by the same client, in turn: while one is asked, the other rests. Every answer is made to run to its full length, and
drawn at a temperature at which random weights do not repeat themselves, so that guessing ahead gains nothing. Prints a table of
ratios and writes engine.md beside it.

Three things make the difference: what a class shares is computed once, answers are computed together, and kernels of our own
(scripts/kernels) compute attention and 4-bit matrices in half the time. What is left to gain on two cores against
llama_cpp.server, which has ggml's own kernels and answers one after the other: it reads a prompt of 200 tokens at 740 a second
and speaks at 130, so that sixteen answers take 16 * (0.27 + 0.49) = 12.2 s, 84 tokens a second, where it loses no time of its
own. We read the 3,200 tokens at 1,400 a second and speak 64 steps of 23 ms: 3.8 s, 270 tokens a second. That is 3.2 times as
much at the least, and more by what the other loses.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from engine_gpu import asked_of_transformers, beside_transformers, there_is_a_gpu
from engine_servers import APPLIANCE, Server, llama_server, make_model, ours, python_server, register

# One token each in the starter's vocabulary, with the space before it.
WORDS = (
    "water", "river", "garden", "house", "school", "tree", "light", "sound", "paper", "number", "table", "land", "day", "night",
    "people", "year", "work", "plant", "line",
)  # fmt: skip
NEW = 64  # tokens of each answer
WINDOW = 15.0  # seconds over which a steady load is counted
Row = tuple[str, str, str, str, str]


# --- the loads ---------------------------------------------------------------------------------------------------------------


@dataclass
class Load:
    """What one load gave: tokens a second of all answers together, and the median seconds to the first token."""

    speed: float
    first: float


def text(draw: random.Random, tokens: int) -> str:
    """So many tokens of words."""
    return " ".join(draw.choice(WORDS) for _ in range(tokens))


def chats(count: int, seed: int, *, shared: int = 0, own: int = 180) -> list[list[dict[str, str]]]:
    lesson = text(random.Random(f"lesson {seed}"), shared)
    prompts = []
    for number in range(count):
        mine = text(random.Random(f"{seed} {number}"), own)
        prompts.append([{"role": "system", "content": lesson}] * bool(shared) + [{"role": "user", "content": mine}])
    return prompts


async def events(server: Server, messages: list[dict[str, str]], new: int, **more: Any) -> AsyncIterator[dict[str, Any]]:
    """The events of one streamed answer."""
    body = {
        "messages": messages, "max_tokens": new, "temperature": 1.0, "top_p": 1.0, "top_k": 200, "min_p": 0.0, "seed": 1,
        "stream": True, "ignore_eos": True, "model": "default", "stream_options": {"include_usage": True},
    } | more  # fmt: skip
    if server.name == "llama_cpp.server":
        body.pop("ignore_eos")
        body.pop("stream_options")
    if server.name == "transformers":
        body = asked_of_transformers(body)
    async with server.client.stream("POST", "/v1/chat/completions", json=body) as answer:
        if answer.status_code != 200:
            raise SystemExit(f"{server.name}: {(await answer.aread()).decode()[:500]}")
        async for line in answer.aiter_lines():
            if line.startswith("data: ") and line != "data: [DONE]":
                event = json.loads(line[6:])
                if "error" in event:
                    raise SystemExit(f"{server.name}: {line[:500]}")
                yield event


def said(event: dict[str, Any]) -> str:
    return ((event.get("choices") or [{}])[0].get("delta") or {}).get("content") or ""


@dataclass
class Answer:
    """first and all: seconds to the first word, and to the end."""

    first: float
    all: float
    tokens: int
    text: str


async def ask(server: Server, messages: list[dict[str, str]], new: int = NEW, **more: Any) -> Answer:
    """Who tells no counts (llama_cpp.server) and ends an answer for its length has said as many tokens as were asked for: its
    events are fewer, because half of a letter makes none."""
    begun, first, pieces, counted = time.perf_counter(), 0.0, list[str](), 0
    async for event in events(server, messages, new, **more):
        if (event.get("choices") or [{}])[0].get("finish_reason") == "length":
            counted = counted or new
        if event.get("usage"):
            counted = event["usage"]["completion_tokens"]
        if piece := said(event):
            first = first or time.perf_counter() - begun
            pieces.append(piece)
    return Answer(first, time.perf_counter() - begun, counted or len(pieces), "".join(pieces))


async def steady(server: Server, models: Sequence[str], seed: int) -> list[float]:
    """Tokens a second of each of so many chats that all go on talking, counted while all of them are.

    An event may bring several tokens: the letters are counted, and taken for as many tokens as in an answer that is whole.
    """
    whole = await ask(server, chats(1, 1000 * seed + 999, own=60)[0], 256, model=models[0])
    share = whole.tokens / len(whole.text)
    counts = [0] * len(models)
    talking = [asyncio.Event() for _ in models]

    async def talk(number: int) -> None:
        async for event in events(server, chats(1, 1000 * seed + number, own=60)[0], 2500, model=models[number]):
            if piece := said(event):
                counts[number] += len(piece)
                talking[number].set()

    tasks = [asyncio.create_task(talk(number)) for number in range(len(models))]
    try:
        await asyncio.gather(*(one.wait() for one in talking))
        before, begun = list(counts), time.perf_counter()
        await asyncio.sleep(WINDOW)
        took = time.perf_counter() - begun
        if any(task.done() for task in tasks):
            raise SystemExit("an answer ended before it was counted")
        return [(count - start) * share / took for count, start in zip(counts, before, strict=True)]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def in_turn(
    servers: Sequence[Server], count: int, rounds: int, seed: int, *, model: str = "default", **kind: int
) -> list[Load]:
    """The same load for each server, asked in turn, since a machine is not equally fast all day; what each gave altogether."""
    given: list[list[Answer]] = [[] for _ in servers]
    took = [0.0] * len(servers)
    for number in range(rounds):
        for place, server in enumerate(servers):
            prompts = chats(count, 1000 * number + seed, **kind)
            begun = time.perf_counter()
            given[place] += await asyncio.gather(*(ask(server, prompt, model=model) for prompt in prompts))
            took[place] += time.perf_counter() - begun
    return [
        Load(sum(answer.tokens for answer in answers) / seconds, statistics.median(answer.first for answer in answers))
        for answers, seconds in zip(given, took, strict=True)
    ]


async def loads(servers: Sequence[Server], quick: bool) -> dict[str, list[Load]]:
    """Every load, for ours and llama-server; each with words of its own, so that no cache helps by accident."""
    for server in servers:
        await ask(server, chats(1, 999)[0], new=8)  # everything is loaded and warm
    found: dict[str, list[Load]] = {}
    for count in (1, 8, 16) if quick else (1, 8, 16, 32):
        found[f"{count} different"] = await in_turn(servers, count, max(2, 16 // count), count)
    for count in (16,) if quick else (16, 32):
        found[f"{count} shared"] = await in_turn(servers, count, 2, 100 + count, shared=500, own=80)
    found["second turn"] = [await second_turn(server) for server in servers]
    return found


async def second_turn(server: Server) -> Load:
    """Seconds to the first token of a long talk's second turn (`speed`), and of its first (`first`): medians of five talks.

    Random weights often begin with half a letter, which nobody sees.
    """
    firsts: list[tuple[float, float]] = []
    for number in range(5):
        talk = chats(1, 500 + number, own=1900)[0]
        cold = await ask(server, talk, new=32)
        talk += [{"role": "assistant", "content": cold.text}, {"role": "user", "content": "And what comes next?"}]
        firsts.append(((await ask(server, talk, new=32)).first, cold.first))
    return Load(*(statistics.median(column) for column in zip(*firsts, strict=True)))


# --- what only ours has ------------------------------------------------------------------------------------------------------


async def equal_texts(home: Path, threads: int) -> Row:
    """Greedy answers of 16 chats in one batch, and each alone: only rounding may part them."""
    prompts = chats(16, 700)
    with ours(home, threads, 16) as server:
        together = await asyncio.gather(*(ask(server, prompt, temperature=0.0) for prompt in prompts))
    with ours(home, threads, 16) as server:
        alone = [await ask(server, prompt, temperature=0.0) for prompt in prompts]
    equal = sum(one.text == other.text for one, other in zip(together, alone, strict=True))
    return ("16 greedy answers in a batch, the same text as alone", f"{equal} of 16", "-", f"{equal / 16:.2f}", "told")


async def adapters(home: Path, threads: int) -> list[Row]:
    """15 chats on one adapter, and one on another."""
    with ours(home, threads, 32) as server:
        many = statistics.mean(await steady(server, ["bench-a"] * 15, 1))
        lone = (await steady(server, ["bench-b"], 2))[0]
        both = await steady(server, ["bench-a"] * 15 + ["bench-b"], 3)
    rest, rare = statistics.mean(both[:15]), both[15]
    return [
        ("15 chats on an adapter beside 1 on another: each of the 15, tokens/s", f"{rest:.1f}", f"{many:.1f} without the one",
         f"{rest / many:.2f}", "at least 0.7"),
        ("the 1 on the other adapter, tokens/s", f"{rare:.1f}", f"{lone:.1f} alone", f"{rare / lone:.2f}", "at least 0.25"),
    ]  # fmt: skip


async def beside_tuning(home: Path, threads: int, starter: str) -> Row:
    """16 chats, then the same while `appliance tune` trains the starter in the same home."""
    examples = home / "examples.jsonl"
    draw = random.Random(5)
    turns = ({"role": role, "content": text(draw, 40)} for _ in range(400) for role in ("user", "assistant"))
    rows = ({"messages": [question, answer]} for question, answer in zip(turns, turns, strict=False))
    examples.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    recipe = home / "recipe.toml"
    recipe.write_text("epochs = 50\n", "utf-8")
    command = [APPLIANCE, "--home", str(home), "tune", "huggingface", "start", "--examples", str(examples), "--base", starter]
    command += ["--recipe", str(recipe), "--name", f"beside-{os.getpid()}", "--no-promote"]
    with ours(home, threads, 32) as server:
        alone = sum(await steady(server, ["default"] * 16, 4))
        with tempfile.TemporaryFile() as log:
            tuning = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"APPLIANCE_THREADS": str(threads)})
            try:
                ends = time.monotonic() + 300
                while not training(tuning.pid):
                    if tuning.poll() is not None or time.monotonic() > ends:
                        log.seek(0)
                        raise SystemExit(f"no training came up:\n{log.read()[-2000:].decode('utf-8', 'replace')}")
                    await asyncio.sleep(1)
                beside = sum(await steady(server, ["default"] * 16, 5))
                if not training(tuning.pid):
                    raise SystemExit("the training ended before it was measured beside")
            finally:
                tuning.terminate()
                tuning.wait()
    label = "16 chats while a tuning job runs, tokens/s"
    return (label, f"{beside:.0f}", f"{alone:.0f} without it", f"{beside / alone:.2f}", "at least 0.5")


def training(parent: int) -> bool:
    """Whether a descendant of the process has begun its steps: its processor time tells."""
    children: dict[int, list[tuple[int, float, bytes]]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                stat = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                spent = (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")
                children.setdefault(int(stat[1]), []).append((int(entry.name), spent, (entry / "cmdline").read_bytes()))
    below, waiting = [], [parent]
    while waiting:
        found = children.get(waiting.pop(), [])
        below += found
        waiting += [pid for pid, _, _ in found]
    return any(b"train_child" in command and spent > 20 for _, spent, command in below)


async def restart(home: Path, threads: int) -> Row:
    """The first answer of a new process: about a lesson that a class had asked about, and about one that nobody had."""
    known = chats(6, 900, shared=500, own=20)
    with ours(home, threads, 32) as server:
        for number, prompt in enumerate(known[:5]):
            await ask(server, prompt, new=4, user=f"pupil {number}")
        await asyncio.sleep(12)  # quiet moments, in which what is shared is kept
    with ours(home, threads, 32) as server:
        warm = await ask(server, known[5], new=4)
        cold = await ask(server, chats(1, 901, shared=500, own=20)[0], new=4)
    took = f"{warm.first:.2f} s"
    return (
        "first token after a restart, known lesson of 500",
        took,
        f"{cold.first:.2f} s, unknown",
        f"{warm.first / cold.first:.2f}",
        "told",
    )


async def soak(home: Path, threads: int, seconds: float) -> Row:
    """32 streams without a pause: no error, every stream complete, no growth of memory."""
    with ours(home, threads, 32) as server:
        count = short = 0
        memory: list[float] = []
        ends = time.monotonic() + seconds

        async def reader(number: int) -> None:
            nonlocal short, count
            turn = 0
            while time.monotonic() < ends:
                answer = await ask(server, chats(1, 10_000 * number + turn, shared=100, own=40)[0])
                count, turn = count + 1, turn + 1
                short += answer.tokens != NEW

        async def watch() -> None:
            while time.monotonic() < ends:
                memory.append(server.memory_mb)
                await asyncio.sleep(1)

        await asyncio.gather(watch(), *(reader(number) for number in range(32)))
        third = len(memory) // 3
        last = memory[2 * third :]
        grown = max(last) - max(memory[third : 2 * third])  # the first third fills the cache
    level = f"memory settles at {statistics.median(last):.0f} MB, last third {grown:+.1f} MB"
    result = f"{count} answers, {short} incomplete, {level}"
    return (f"32 streams for {seconds / 60:g} minutes", result, "-", "-", "no error, no growth")


# --- the table ---------------------------------------------------------------------------------------------------------------


def rows(found: dict[str, list[Load]], python: list[Load], seconds: dict[str, float]) -> list[Row]:
    table: list[Row] = []
    for name, (own, peer) in found.items():
        if name == "second turn":
            label = "second turn of a talk of 2,000 tokens: first token"
            share = f"{peer.speed / peer.first:.3f} of cold"
            took = f"{own.speed:.2f} s of {own.first:.2f} s"
            table.append((label, took, share, f"{own.speed / own.first:.3f} of cold", "at most 0.1"))
            continue
        count, shared = name.split()[0], "shared" in name
        least, most = ("5", "0.2") if shared else ("1.0", "1.0")
        label = f"{count} chat{'s' * (count != '1')}, {'500 of 600 tokens shared' if shared else 'different prompts'}"
        faster, sooner = f"{own.speed / peer.speed:.2f}", f"{own.first / peer.first:.2f}"
        table.append((f"{label}: tokens/s", f"{own.speed:.1f}", f"{peer.speed:.1f}", faster, f"at least {least}"))
        table.append((f"{label}: median first token", f"{own.first:.2f} s", f"{peer.first:.2f} s", sooner, f"at most {most}"))
    own, peer = python
    label = "16 chats, llama_cpp.server as the peer: tokens/s"
    table.append((label, f"{own.speed:.1f}", f"{peer.speed:.1f}", f"{own.speed / peer.speed:.2f}", "at least 4"))
    share = f"{100 * (1 - seconds['model'] / seconds['all']):.2f} %"
    table.append(("Python's share of the loop", share, "-", "-", "under 2 %"))
    return table


def write(table: list[Row], threads: int, out: Path, *, keep: bool) -> str:
    """Write the table, each row with its day; `keep`: among the rows that were there, of which some are new now."""
    today = str(date.today())
    told = {row[0]: (*row, today) for row in table}
    if keep and out.is_file():
        lines = [line[2:-2].split(" | ") for line in out.read_text("utf-8").splitlines() if line.startswith("| ")]
        told = {line[0]: tuple(line) for line in lines[1:]} | told
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    processor = next((line.split(":")[1].strip() for line in lines if "model name" in line), "?")
    head = (
        f"# The engine, measured\n\nMade by `scripts/bench engine`: {processor}, {threads} threads, "
        f"{platform.platform()}, llama-cpp-python {version('llama-cpp-python')} and a llama-server built from the same source "
        "(continuous batching, unified cache, 32 places); a Llama of 0.3 billion random weights in Q4_K_M; prompts of about "
        f"200 tokens, answers of {NEW}. The peer is llama-server where nothing else is said.\n\n"
        "| load | ours | peer | ratio | to reach | measured |\n|---|---|---|---|---|---|\n"
    )
    page = head + "".join("| " + " | ".join(row) + " |\n" for row in told.values())
    out.write_text(page, "utf-8")
    return page


async def against_peers(model: Path, home: Path, threads: int, quick: bool) -> list[Row]:
    with ours(home, threads, 32) as own:
        with llama_server(model, threads, 32) as peer:
            found = await loads((own, peer), quick)
        facts = (await own.client.get("/health")).json()["models"]["bench"]
        with python_server(model, threads) as peer:
            await ask(peer, chats(1, 999)[0], new=8)
            python = await in_turn((own, peer), 16, 3, 50_016)
    return rows(found, python, facts["seconds"])


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="fewer loads")
    parser.add_argument("--soak", type=float, default=0, metavar="MINUTES")
    parser.add_argument(
        "--only",
        choices=("peers", "equal", "adapters", "tuning", "restart", "soak", "gpu"),
        help="one part; the rows of the others stay as they were",
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--work", type=Path, default=None, help="keep the model here")
    given = parser.parse_args()
    if given.only == "gpu" and not there_is_a_gpu():
        raise SystemExit("Error: there is no GPU here that PyTorch can use.\nTry: scripts/bench engine")
    with contextlib.ExitStack() as stack:
        work = given.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        work.mkdir(parents=True, exist_ok=True)
        model, home = make_model(work), work / "home"
        starter = register(home, model)
        table, told = list[Row](), ""
        for part in ("peers", "adapters", "tuning", "restart", "equal", "soak", "gpu"):
            if given.only not in (None, part) or (part == "soak" and not given.soak):
                continue
            if part == "gpu" and not there_is_a_gpu():
                continue
            print(f"measuring: {part}", file=sys.stderr)
            if part == "peers":
                found = await against_peers(model, home, given.threads, given.quick)
            elif part == "adapters":
                found = await adapters(home, given.threads)
            elif part == "gpu":
                found = await beside_transformers(home, work / "hf", "cuda", in_turn, ask)
            elif part == "soak":
                found = [await soak(home, given.threads, 60 * given.soak)]
            elif part == "tuning":
                found = [await beside_tuning(home, given.threads, starter)]
            else:
                found = [await {"restart": restart, "equal": equal_texts}[part](home, given.threads)]
            # Part by part: what was measured is not lost where a later part fails.
            told = write(found, given.threads, Path(__file__).with_suffix(".md"), keep=bool(table) or given.only is not None)
            table += found
    print(json.dumps({"rows": table}) if given.json else told)


if __name__ == "__main__":
    asyncio.run(main())
