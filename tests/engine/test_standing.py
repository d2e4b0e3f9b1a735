"""What a class shares outlives the process, whole or not at all, and holds nothing that one person said."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from appliance.engine.handler import Message, Request, TokenChance
from appliance.engine.openai_compatible import OpenAICompatible
from appliance.engine.scheduler import LlamaHandler
from appliance.engine.standing import LEAST_TOKENS, Standing, Tally
from tests.engine.adapters import write_adapter
from tests.engine.steps import PATIENCE
from tests.engine.test_crosstalk import CHANCES, apart, beyond_rounding

LESSON = "You are the school's teaching assistant. Give a hint, never the answer. Today: fractions. " * 4
LONG = LEAST_TOKENS + 10


# --- whose words may be kept ----------------------------------------------------------------------------------------------
def test_only_what_three_people_share_counts() -> None:
    tally = Tally()
    shared = list(range(LONG))
    for user in ("a", "a", "b", "", "", ""):
        tally.note("", shared, user)
    assert tally.shared("") == []
    tally.note("other adapter", shared, "c")
    assert tally.shared("") == [] == tally.shared("other adapter")
    tally.note("", shared, "c")
    assert tally.shared("") == [shared]


def test_a_prefix_is_cut_where_people_part() -> None:
    tally = Tally()
    common, lesson = list(range(LONG)), [500 + n for n in range(LONG)]
    for user in ("a", "b", "c"):
        tally.note("", [*common, ord(user), *range(900, 950)], user)
    assert tally.shared("") == [common], "what each has of their own is not kept"
    for user in ("d", "e", "f"):
        tally.note("", [*common, *lesson], user)
    assert tally.shared("") == [[*common, *lesson]], "the longer one holds the shorter one"
    tally.note("", [1, 2, 3], "g")
    assert tally.shared("") == [[*common, *lesson]]


def test_counting_does_not_grow() -> None:
    tally = Tally()
    for number in range(500):
        tally.note("", [number, *range(LONG)], f"u{number}")
    assert len(tally._seen[""]) <= 64


# --- the files ------------------------------------------------------------------------------------------------------------
TOKENS = list(range(LONG))


def test_what_is_written_comes_back_and_is_nobody_elses_to_read(tmp_path: Path) -> None:
    store = Standing(tmp_path / "engine-cache")
    key = store.key("model", "")
    assert key != store.key("model", "adapter") != store.key("other", "adapter")
    assert key != store.key("model", "", 5), "another layout of the cells"
    assert not store.has(key, TOKENS) and list(store.load(key)) == []
    assert store.save(key, TOKENS, b"state")
    assert store.has(key, TOKENS) and list(store.load(key)) == [(TOKENS, b"state")]
    assert list(store.load(store.key("model", "adapter"))) == []
    for folder in (tmp_path / "engine-cache", tmp_path / "engine-cache" / key):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "another name", "not one of ours", "huge count"])
def test_a_damaged_file_is_removed_and_the_rest_is_read(tmp_path: Path, damage: str) -> None:
    store = Standing(tmp_path)
    store.save("k", TOKENS, b"state" * 100)
    store.save("k", TOKENS[:-1], b"whole")
    path = store._path("k", TOKENS)
    data = bytearray(path.read_bytes())
    if damage == "another name":
        path = path.rename(path.with_name("0" * 32 + ".prefix"))
    elif damage == "huge count":
        data[40:44] = b"\xff\xff\xff\xff"
        path.write_bytes(data)
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes({"flipped": bytes(data), "cut": bytes(data[:100]), "empty": b""}.get(damage, os.urandom(500)))
    assert list(store.load("k")) == [(TOKENS[:-1], b"whole")]
    assert not path.exists()


def test_the_oldest_goes_when_room_is_needed_and_the_unused_in_time(tmp_path: Path) -> None:
    store = Standing(tmp_path, most_bytes=2500)
    for age, number in enumerate((1, 2, 3)):
        store.save("k", [*TOKENS, number], bytes(700))
        os.utime(store._path("k", [*TOKENS, number]), (time.time() - 300 + age, time.time() - 300 + age))
    assert not store.has("k", [*TOKENS, 1]) and store.has("k", [*TOKENS, 2]) and store.has("k", [*TOKENS, 3])
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.prefix")) <= 2500
    assert not store.save("k", TOKENS, bytes(2000)), "one that would take more than half of the room is not kept"
    os.utime(store._path("k", [*TOKENS, 3]), (1, 1))
    (tmp_path / "k" / ".half-written.123").write_bytes(b"x")
    store.sweep()
    assert not store.has("k", [*TOKENS, 3]) and not list(tmp_path.rglob(".*"))
    os.utime(store._path("k", [*TOKENS, 2]), (1, 1))
    store.sweep()
    assert list(tmp_path.iterdir()) == [], "an empty folder goes as well"


# --- in the engine --------------------------------------------------------------------------------------------------------
def asking(user: str, words: str, **options: object) -> Request:
    messages = [Message("system", LESSON), Message("user", words)]
    return Request(messages, max_tokens=16, user=user, ignore_eos=True, logprobs=CHANCES, **options)  # type: ignore[arg-type]


async def answer(handler: LlamaHandler | OpenAICompatible, request: Request) -> tuple[list[TokenChance], int]:
    """The chances of the answer's tokens, and how many of the prompt's tokens were not computed."""
    chunks = [chunk async for chunk in handler.generate(request)]
    assert chunks[-1].usage is not None
    return [chance for chunk in chunks for chance in chunk.chances], chunks[-1].usage.cached


def alike(before: list[TokenChance], after: list[TokenChance]) -> bool:
    """The same, as far as rounding lets two computations of it be: it may choose where two tokens are as likely."""
    return len(before) == len(after) == 16 and not beyond_rounding(apart(before, after))


def make(gguf: Path, folder: Path, digest: str = "d1") -> LlamaHandler:
    return LlamaHandler(gguf, threads=1, slots=4, standing=Standing(folder), digest=digest)


PUPILS = (("u1", "Why is it so?"), ("u2", "2 + 2"), ("u3", "How do plants eat?"))
LATER = ("u4", "Zebras: my secret is plover")


@pytest.mark.llama
async def test_the_first_answer_of_a_new_process_is_warm_and_the_same(starter_gguf: Path, tmp_path: Path) -> None:
    first = make(starter_gguf, tmp_path)
    await first.start()
    for user, words in PUPILS:
        await answer(first, asking(user, words))
    before, cached = await answer(first, asking(*LATER))
    ends = time.monotonic() + PATIENCE
    while not list(tmp_path.rglob("*.prefix")):
        assert time.monotonic() < ends, "a quiet moment came and nothing was kept"
        await first.rest()  # does nothing until the last answer has left the batch
    assert len(list(tmp_path.rglob("*.prefix"))) == 1
    await first.close()
    second = make(starter_gguf, tmp_path)
    await second.start()
    after, warm = await answer(second, asking(*LATER))
    assert warm >= 60 and abs(warm - cached) < 8, "the lesson was not computed again"
    assert alike(before, after)
    await second.close()


@pytest.mark.llama
async def test_no_words_of_a_pupil_are_written(starter_gguf: Path, tmp_path: Path) -> None:
    handler = make(starter_gguf, tmp_path)
    await handler.start()
    same = "My name is Plover Featherstone and I live in Wrenfield"
    for user in ("u1", "u2", "u3", "u4"):  # even where four type the very same
        await answer(handler, asking(user, same))
    await answer(handler, Request([Message("user", same * 8)], max_tokens=4, user="u1"))
    await handler.close()  # what was not written at a quiet moment is written now
    store = Standing(tmp_path)
    [(tokens, _state)] = store.load(store.key("d1", "", 5))
    lone = LlamaHandler(starter_gguf, threads=1)
    await lone.start()
    all_tokens, start = lone.tokens([Message("system", LESSON), Message("user", same), Message("assistant", "x")])
    words = await lone.tokenize(same)
    assert tokens == all_tokens[: len(tokens)]
    place = next(at for at in range(len(all_tokens)) if all_tokens[at : at + len(words)] == words)
    assert 60 < len(tokens) <= place < start
    await lone.close()


@pytest.mark.llama
async def test_without_three_people_or_a_known_file_nothing_is_written(starter_gguf: Path, tmp_path: Path) -> None:
    for digest, users in (("d1", ("u1", "u2", "u2", "", "")), ("", ("u1", "u2", "u3"))):
        handler = make(starter_gguf, tmp_path, digest)
        await handler.start()
        for user in users:
            await answer(handler, asking(user, "Why is it so?"))
        await handler.close()
    assert not list(tmp_path.rglob("*.prefix"))


@pytest.mark.llama
async def test_an_adapters_prefix_is_for_that_adapter_alone(starter_gguf: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "one.gguf", 1)
    first = make(starter_gguf, tmp_path / "cache")
    await first.start()
    await first.learn("one", adapter, "a1")
    for user, words in PUPILS:
        await answer(first, asking(user, words, adapter="one"))
    before = await answer(first, asking(*LATER, adapter="one"))
    await first.close()
    second = make(starter_gguf, tmp_path / "cache")
    await second.start()
    await second.learn("one", adapter, "a1")
    assert (await answer(second, asking(*LATER)))[1] == 0, "the base computes its own"
    after = await answer(second, asking(*LATER, adapter="one"))
    assert after[1] >= 60 and alike(before[0], after[0])
    await second.learn("retrained", adapter, "a2")
    assert (await answer(second, asking(*LATER, adapter="retrained")))[1] == 0, "the same name tuned again is another adapter"
    await second.close()


@pytest.mark.llama
@pytest.mark.parametrize("damage", ["flipped", "of another model", "half a state"])
async def test_a_state_that_does_not_fit_is_computed_anew(starter_gguf: Path, tmp_path: Path, damage: str) -> None:
    first = make(starter_gguf, tmp_path)
    await first.start()
    for user, words in PUPILS:
        await answer(first, asking(user, words))
    before, _ = await answer(first, asking(*LATER))
    await first.close()
    store = Standing(tmp_path)
    key = store.key("d1", "", 5)
    [(tokens, state)] = store.load(key)
    if damage == "flipped":
        path = store._path(key, tokens)
        data = bytearray(path.read_bytes())
        data[-9] ^= 255
        path.write_bytes(data)
    else:
        store.save(key, tokens, {"of another model": os.urandom(4096), "half a state": state[: len(state) // 2]}[damage])
    second = make(starter_gguf, tmp_path)
    await second.start()
    after, warm = await answer(second, asking(*LATER))
    assert warm == 0 and alike(before, after)
    assert not list(tmp_path.rglob("*.prefix")), "what was of no use is removed"
    await second.close()


CHILD = """
import asyncio, sys
from pathlib import Path
from appliance.engine.service import create_engine
from appliance.engine.embedder import Embedder
from appliance.engine.loaded import ModelFiles
from appliance.engine.scheduler import LlamaHandler
from appliance.engine.standing import Standing
from appliance.engine import service
import uvicorn
service.TEND_SECONDS = 0.2
gguf, folder, socket = map(Path, sys.argv[1:])
class NoEmbedder(Embedder):
    def embed(self, texts): return []
def make(files):
    return LlamaHandler(files.model, threads=1, slots=4, standing=Standing(folder), digest="d1", model_id=files.id)
app = create_engine(lambda name: ModelFiles("starter", gguf, None, 1024), make, NoEmbedder())
asyncio.run(uvicorn.Server(uvicorn.Config(app, uds=str(socket), log_level="error", loop="asyncio")).serve())
"""


@pytest.mark.llama
@pytest.mark.slow
async def test_an_engine_that_is_killed_starts_warm(starter_gguf: Path, tmp_path: Path) -> None:
    from functools import partial

    from appliance import network

    async def live(socket: Path) -> tuple[subprocess.Popen[bytes], OpenAICompatible]:
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(starter_gguf), str(tmp_path / "cache"), str(socket)])
        client = OpenAICompatible(partial(network.socket_client, socket))
        ends = time.monotonic() + PATIENCE
        while not (await client.health()).ok:
            assert time.monotonic() < ends and child.poll() is None
            await asyncio.sleep(0.1)
        return child, client

    child, client = await live(tmp_path / "1.sock")
    for user, words in PUPILS:
        await answer(client, asking(user, words))
    before, _ = await answer(client, asking(*LATER))
    ends = time.monotonic() + PATIENCE
    while not list(tmp_path.rglob("*.prefix")):
        assert time.monotonic() < ends, "a quiet moment came and nothing was kept"
        await asyncio.sleep(0.1)
    child.send_signal(signal.SIGKILL)
    child.wait()
    await client.close()
    child, client = await live(tmp_path / "2.sock")
    after, warm = await answer(client, asking(*LATER))
    child.terminate()
    child.wait()
    await client.close()
    assert warm >= 60 and alike(before, after)
