"""The engine beside llama-server and llama-cpp-python's own server: a class at once, a shared lesson, a second turn.

Every server gets the same GGUF (a Llama of 300 million random weights in Q4_K_M, made on the spot), the same threads and the
same prompts, and is asked through its HTTP interface by the same client, one server at a time. Every answer is made to run to
its full length. Prints a table of ratios and writes engine.md beside it.
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
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
from llama_server import binary

ROOT = Path(__file__).resolve().parents[2]
APPLIANCE = str(Path(sys.executable).parent / "appliance")
WORDS = ("water", "river", "lesson", "triangle", "seed", "map", "castle", "verb", "magnet", "poem", "comet", "garden", "story")
NEW = 64  # tokens of each answer
Row = tuple[str, str, str, str, str]


# --- the model --------------------------------------------------------------------------------------------------------------


def make_model(folder: Path) -> Path:
    """A Llama of about 300 million random weights with the starter's tokenizer, as Q4_K_M."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from appliance.tuning.gguf import export_base
    from appliance.tuning.quantise import quantise

    out = folder / "model.gguf"
    if out.is_file():
        return out
    starter = ROOT / "models" / "starter"
    tokenizer = AutoTokenizer.from_pretrained(starter, local_files_only=True)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=1024, intermediate_size=2816, num_hidden_layers=24, num_attention_heads=16,
        num_key_value_heads=4, max_position_embeddings=4096, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder / "hf")
    tokenizer.save_pretrained(folder / "hf")
    export_base(folder / "hf", folder / "f16.gguf")
    quantise(folder / "f16.gguf", out, "Q4_K_M")
    (folder / "f16.gguf").unlink()
    return out


# --- the servers ------------------------------------------------------------------------------------------------------------


@dataclass
class Server:
    name: str
    client: httpx.AsyncClient
    process: subprocess.Popen[bytes]

    @property
    def memory_mb(self) -> float:
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@contextlib.contextmanager
def started(name: str, command: list[str], environment: dict[str, str], **client: Any) -> Iterator[Server]:
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | environment)
        try:
            ends = time.monotonic() + 180
            while True:
                if process.poll() is not None or time.monotonic() > ends:
                    log.seek(0)
                    raise SystemExit(f"{name} did not start:\n{log.read()[-2000:].decode('utf-8', 'replace')}")
                with contextlib.suppress(httpx.HTTPError), httpx.Client(**_sync(client)) as probe:
                    if probe.get("/v1/models" if "server" in name else "/health", timeout=5).status_code == 200:
                        break
                time.sleep(0.3)
            yield Server(name, httpx.AsyncClient(timeout=900, limits=httpx.Limits(max_connections=200), **client), process)
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _sync(client: dict[str, Any]) -> dict[str, Any]:
    socket = client.get("transport")
    if socket is not None:
        return {"base_url": client["base_url"], "transport": httpx.HTTPTransport(uds=socket._pool._uds)}
    return client


def ours(home: Path, threads: int, slots: int) -> contextlib.AbstractContextManager[Server]:
    environment = {"APPLIANCE_THREADS": str(threads), "APPLIANCE_SLOTS": str(slots), "APPLIANCE_CONTEXT": "3072"}
    socket = str(home / "run" / "engine.sock")
    return started(
        "ours", [APPLIANCE, "--home", str(home), "engine"], environment,
        base_url="http://engine", transport=httpx.AsyncHTTPTransport(uds=socket),
    )  # fmt: skip


def llama_server(model: Path, threads: int, slots: int) -> contextlib.AbstractContextManager[Server]:
    command = [
        str(binary()), "-m", str(model), "-t", str(threads), "-tb", str(threads), "-np", str(slots), "-c", str(3072 * slots),
        "--kv-unified", "-cb", "--port", "18231", "--jinja",
    ]  # fmt: skip
    return started("llama-server", command, {}, base_url="http://127.0.0.1:18231")


# The wheel keeps its processor back ends beside the library, where llama_cpp does not look by itself.
PYTHON_SERVER = """
import runpy
from appliance.engine.llama import _library
_library()
runpy.run_module("llama_cpp.server", run_name="__main__")
"""


def python_server(model: Path, threads: int) -> contextlib.AbstractContextManager[Server]:
    command = [
        sys.executable, "-c", PYTHON_SERVER, "--model", str(model), "--n_threads", str(threads), "--n_ctx", "3072",
        "--port", "18232", "--interrupt_requests", "false", "--verbose", "false",
    ]  # fmt: skip
    return started("llama_cpp.server", command, {}, base_url="http://127.0.0.1:18232")


# --- the loads ---------------------------------------------------------------------------------------------------------------


@dataclass
class Load:
    """What one load gave: tokens a second of all answers together, and the median seconds to the first token."""

    speed: float
    first: float
    cached: int = 0


def text(draw: random.Random, tokens: int) -> str:
    """About so many tokens of words; the starter's tokenizer takes one for each of these, with its space."""
    return " ".join(draw.choice(WORDS) for _ in range(tokens))


def chats(count: int, seed: int, *, shared: int = 0, own: int = 180) -> list[list[dict[str, str]]]:
    lesson = text(random.Random(f"lesson {seed}"), shared)
    prompts = []
    for number in range(count):
        mine = text(random.Random(f"{seed} {number}"), own)
        prompts.append([{"role": "system", "content": lesson}] * bool(shared) + [{"role": "user", "content": mine}])
    return prompts


async def ask(server: Server, messages: list[dict[str, str]], new: int = NEW, **more: Any) -> tuple[float, float, int, str]:
    """(seconds to the first token, seconds altogether, tokens of the answer, its text)."""
    body = {
        "messages": messages, "max_tokens": new, "temperature": 0.0, "stream": True, "ignore_eos": True, "model": "default",
        "stream_options": {"include_usage": True},
    } | more  # fmt: skip
    if server.name == "llama_cpp.server":
        body.pop("ignore_eos")
        body.pop("stream_options")
    begun = time.perf_counter()
    first, pieces, said = 0.0, 0, ""
    counted = 0
    async with server.client.stream("POST", "/v1/chat/completions", json=body) as answer:
        if answer.status_code != 200:
            raise SystemExit(f"{server.name}: {(await answer.aread()).decode()[:500]}")
        async for line in answer.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            event = json.loads(line[6:])
            if event.get("usage"):
                counted = event["usage"]["completion_tokens"]
            piece = ((event.get("choices") or [{}])[0].get("delta") or {}).get("content")
            if piece:
                first = first or time.perf_counter() - begun
                pieces += 1
                said += piece
    return first, time.perf_counter() - begun, counted or pieces, said


async def load(server: Server, prompts: list[list[dict[str, str]]], **more: Any) -> Load:
    begun = time.perf_counter()
    answers = await asyncio.gather(*(ask(server, prompt, **more) for prompt in prompts))
    took = time.perf_counter() - begun
    return Load(sum(answer[2] for answer in answers) / took, statistics.median(answer[0] for answer in answers))


async def loads(server: Server, quick: bool) -> dict[str, Load]:
    """Every load that a llama-server is given as well; each with words of its own, so that no cache helps by accident."""
    await ask(server, chats(1, 999)[0], new=8)  # everything is loaded and warm
    found: dict[str, Load] = {}
    for count in (1, 8, 16) if quick else (1, 8, 16, 32):
        found[f"{count} different"] = await load(server, chats(count, count))
    for count in (16,) if quick else (16, 32):
        found[f"{count} shared"] = await load(server, chats(count, 100 + count, shared=500, own=80))
    talk = chats(1, 500, own=1900)[0]
    cold = await ask(server, talk, new=32)
    talk += [{"role": "assistant", "content": cold[3]}, {"role": "user", "content": "And what comes next?"}]
    warm = await ask(server, talk, new=32)
    found["second turn"] = Load(warm[0], cold[0])
    return found


async def measure_ours(home: Path, threads: int, quick: bool) -> tuple[dict[str, Load], dict[str, Any]]:
    with ours(home, threads, 32) as server:
        found = await loads(server, quick)
        facts: dict[str, Any] = (await server.client.get("/health")).json()
        await server.client.aclose()
    return found, facts


async def measure_peer(model: Path, threads: int, quick: bool) -> dict[str, Load]:
    with llama_server(model, threads, 32) as server:
        found = await loads(server, quick)
        await server.client.aclose()
    return found


async def measure_python(model: Path, threads: int) -> Load:
    with python_server(model, threads) as server:
        await ask(server, chats(1, 999)[0], new=8)
        found = await load(server, chats(16, 16))
        await server.client.aclose()
    return found


async def equal_texts(home: Path, threads: int) -> float:
    """The share of 16 answers that are the same in a batch as alone: only rounding may part them."""
    prompts = chats(16, 700)
    with ours(home, threads, 16) as server:
        together = await asyncio.gather(*(ask(server, prompt) for prompt in prompts))
        await server.client.aclose()
    with ours(home, threads, 16) as server:
        alone = [await ask(server, prompt) for prompt in prompts]
        await server.client.aclose()
    return sum(one[3] == other[3] for one, other in zip(together, alone, strict=True)) / len(prompts)


async def soak(home: Path, threads: int, seconds: float) -> Row:
    """32 streams without a pause: no error, every stream complete, no growth of memory."""
    with ours(home, threads, 32) as server:
        await load(server, chats(32, 1))
        await load(server, chats(32, 2))
        before = server.memory_mb
        ends = time.monotonic() + seconds
        short = count = 0

        async def reader(number: int) -> None:
            nonlocal short, count
            turn = 0
            while time.monotonic() < ends:
                answer = await ask(server, chats(1, 10_000 * number + turn, shared=100, own=40)[0])
                count, turn = count + 1, turn + 1
                short += answer[2] != NEW

        await asyncio.gather(*(reader(number) for number in range(32)))
        grown = server.memory_mb - before
        await server.client.aclose()
    result = f"{count} answers, {short} incomplete, memory {grown:+.0f} MB"
    return (f"32 streams for {seconds / 60:.0f} minutes", result, "-", "-", "no error, no growth")


# --- the table ---------------------------------------------------------------------------------------------------------------


def rows(mine: dict[str, Load], theirs: dict[str, Load], python: Load | None, facts: dict[str, Any], equal: float) -> list[Row]:
    table: list[Row] = []
    for name, ours_ in mine.items():
        peer = theirs[name]
        if name == "second turn":
            share, other = ours_.speed / ours_.first, peer.speed / peer.first
            ours_text = f"{ours_.speed:.2f} s of {ours_.first:.2f} s cold"
            table.append(
                (
                    "second turn after 2,000 tokens, first token",
                    ours_text,
                    f"{other:.2f} of cold",
                    f"{share:.2f} of cold",
                    "0.10",
                )
            )
            continue
        goal = ("5", "0.2") if "shared" in name else ("1.0", "1.0")
        label = f"{name.split()[0]} chats, {'500 of 600 tokens shared' if 'shared' in name else 'different prompts'}"
        faster, sooner = ours_.speed / peer.speed, ours_.first / peer.first
        table.append((f"{label}: tokens/s", f"{ours_.speed:.0f}", f"{peer.speed:.0f}", f"{faster:.2f}", f"at least {goal[0]}"))
        waits = (f"{ours_.first:.2f} s", f"{peer.first:.2f} s")
        table.append((f"{label}: median first token", *waits, f"{sooner:.2f}", f"at most {goal[1]}"))
    if python is not None:
        ours_ = mine["16 different"]
        ratio = f"{ours_.speed / python.speed:.1f}"
        table.append(
            ("16 chats against llama_cpp.server: tokens/s", f"{ours_.speed:.0f}", f"{python.speed:.0f}", ratio, "at least 4")
        )
    spent = facts.get("seconds") or {}
    if spent.get("all"):
        table.append(
            ("Python's share of the loop", f"{100 * (1 - spent['model'] / spent['all']):.2f} %", "-", "-", "under 2 %")
        )
    table.append(("same text in a batch of 16 as alone", f"{100 * equal:.0f} %", "-", "-", "stated"))
    return table


def write(table: list[Row], threads: int, out: Path) -> str:
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "?"
    )
    head = (
        f"# The engine, measured\n\nMade by `scripts/bench engine` on {date.today()}: {cpu}, {threads} threads, "
        f"{platform.platform()}, llama-cpp-python {version('llama-cpp-python')} and llama-server from the same source; a Llama "
        f"of 0.3 billion random weights in Q4_K_M; {NEW} new tokens for each chat.\n\n"
        "| load | ours | peer | ratio | to reach |\n|---|---|---|---|---|\n"
    )
    told = head + "".join("| " + " | ".join(row) + " |\n" for row in table)
    out.write_text(told, "utf-8")
    return told


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="fewer loads")
    parser.add_argument("--soak", type=float, default=0, metavar="MINUTES")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--work", type=Path, default=None, help="keep the model here")
    given = parser.parse_args()
    with contextlib.ExitStack() as stack:
        work = given.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        work.mkdir(parents=True, exist_ok=True)
        model = make_model(work)
        home = work / "home"
        register(home, model)
        theirs = await measure_peer(model, given.threads, given.quick)
        mine, facts = await measure_ours(home, given.threads, given.quick)
        python = None
        try:
            python = await measure_python(model, given.threads)
        except SystemExit as error:
            print(f"llama_cpp.server could not be measured: {str(error)[:200]}", file=sys.stderr)
        equal = await equal_texts(home, given.threads)
        table = rows(mine, theirs, python, facts, equal)
        if given.soak:
            table.append(await soak(home, given.threads, 60 * given.soak))
    told = write(table, given.threads, Path(__file__).with_suffix(".md"))
    print(json.dumps({"rows": table}) if given.json else told)


def register(home: Path, model: Path) -> None:
    import shutil

    from appliance.errors import NotFound
    from appliance.registry import Registry
    from appliance.settings import Settings

    registry = Registry(Settings(home=home).models)
    try:
        registry.get("bench")
    except NotFound:
        folder = home / "incoming"
        folder.mkdir(parents=True)
        shutil.copyfile(model, folder / "model.gguf")
        registry.add(folder, id="bench", kind="base", title="Bench", licence="none", context=4096)
        registry.promote("bench")


if __name__ == "__main__":
    asyncio.run(main())
