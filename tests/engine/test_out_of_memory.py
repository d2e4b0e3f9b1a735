"""Too little memory: told before anything is loaded where the header says so, a sentence where llama.cpp finds out, and what
serves goes on."""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from appliance import network
from appliance.engine.handler import Message, Request
from appliance.engine.openai_compatible import OpenAICompatible
from appliance.engine.sizing import available_memory
from appliance.errors import ModelUnavailable
from tests.engine.steps import until
from tests.engine.test_sizing import write_model

pytestmark = pytest.mark.llama

MEGABYTE = 1_000_000
# Loads a model again and again, each time with a little more address space than before, until it fits.
SWEEP = """
import json, resource, sys
from pathlib import Path
from appliance.engine.llama import Llama, _library
from appliance.errors import ModelUnavailable

path = Path(sys.argv[1])
_library()
Llama(path, threads=1, context=1024).close()  # what the first time takes for good is not counted below
said = []
for extra in range(0, 400_000_000, int(sys.argv[2])):
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + extra, resource.RLIM_INFINITY))
    print("trying", extra, flush=True)
    try:
        Llama(path, threads=1, context=1024, conversations=64, sequences=64, cache_bytes=150_000_000).close()
        said.append("loaded")
    except ModelUnavailable as error:
        said.append(error.message + " " + error.hint)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    if said[-3:] == ["loaded"] * 3:
        break
print(json.dumps(said))
"""
# An engine that serves a small model, and is asked for one that is too large and for one whose conversations are.
ENGINE = """
import asyncio, sys
from pathlib import Path
import uvicorn
from appliance import network
from appliance.cli.serve import _fitting
from appliance.engine.embedder import Embedder
from appliance.engine.loaded import ModelFiles
from appliance.engine.scheduler import LlamaHandler
from appliance.engine.service import create_engine
from appliance.settings import Settings

network.stay_offline()
small, huge, socket = map(Path, sys.argv[1:])
class NoEmbedder(Embedder):
    def embed(self, texts): return []
def resolve(name):
    return ModelFiles("small" if name == "default" else name, huge if name == "huge" else small, None, 1024)
def make(files):
    slots, cache = (256, 1000) if files.id == "wide" else (4, 20)
    return LlamaHandler(
        files.model, threads=1, slots=slots, context=files.context, cache_mb=cache, model_id=files.id,
        fitting=lambda memory: _fitting(Settings(home=socket.parent), memory),
    )
app = create_engine(resolve, make, NoEmbedder())
asyncio.run(uvicorn.Server(uvicorn.Config(app, uds=str(socket), log_level="error", loop="asyncio")).serve())
"""


@pytest.mark.slow
def test_every_allocation_that_fails_while_loading_is_a_sentence_and_no_crash(starter_gguf: Path) -> None:
    step = 3 * MEGABYTE
    done = subprocess.run(
        [sys.executable, "-c", SWEEP, str(starter_gguf), str(step)], capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, f"{done.stdout[-200:]} {done.stderr[-2000:]}"
    said = json.loads(done.stdout.splitlines()[-1])
    assert said[-1] == "loaded", "with enough of it, it is loaded"
    for words in ("llama.cpp cannot load", "not enough memory for 48640 tokens of conversation"):
        assert any(words in one for one in said), f"{words!r} in none of {sorted(set(said))}"


@asynccontextmanager
async def engine(small: Path, huge: Path, folder: Path) -> AsyncIterator[tuple[OpenAICompatible, subprocess.Popen[bytes]]]:
    socket = folder / "engine.sock"
    child = subprocess.Popen([sys.executable, "-c", ENGINE, str(small), str(huge), str(socket)])
    client = OpenAICompatible(partial(network.socket_client, socket), context=1024)
    try:
        ends = time.monotonic() + 300
        while not (await client.health()).ok:
            assert child.poll() is None and time.monotonic() < ends
            await asyncio.sleep(0.1)
        await client.load("small")
        yield client, child
    finally:
        await client.close()
        child.kill()  # whatever it is doing
        child.wait()


async def running(client: OpenAICompatible) -> bool:
    return bool((await client.health()).facts.get("running"))


async def test_what_does_not_fit_is_refused_with_one_that_would_and_what_serves_goes_on(
    starter_gguf: Path, tmp_path: Path
) -> None:
    weights = 2 * available_memory()  # a file of zeros that takes no room on the disk
    huge = write_model(tmp_path / "huge.gguf", parameters=weights // 144 * 256)
    async with engine(starter_gguf, huge, tmp_path) as (client, child):
        size = int(Path(f"/proc/{child.pid}/statm").read_text().split()[0]) * resource.getpagesize()
        # Room for another conversation's work, and none for the 800 MB of "wide".
        resource.prlimit(child.pid, resource.RLIMIT_AS, (size + 400 * MEGABYTE, resource.RLIM_INFINITY))

        async def answer() -> int:
            request = Request([Message("user", "What is a fraction?")], max_tokens=800, ignore_eos=True)
            usage = [chunk.usage async for chunk in client.generate(request)][-1]
            return usage.completion if usage else 0

        under_way = asyncio.create_task(answer())
        await until(lambda: running(client), "an answer that is under way")
        with pytest.raises(ModelUnavailable, match=r"huge\.gguf does not fit") as caught:
            await client.load("huge")
        assert f"{weights / 1e9:.1f} GB"[:3] in caught.value.message and " would fit." in caught.value.hint
        with pytest.raises(ModelUnavailable, match=r"not enough memory for \d{6} tokens") as caught:
            await client.load("wide")
        assert "lower" in caught.value.hint
        assert await under_way == 800, "the answer that was under way came to its end"
        assert await answer() == 800
        with pytest.raises(ModelUnavailable, match="does not fit"):  # also where nobody is being answered
            await client.load("huge")
        assert await answer() == 800
        assert child.poll() is None
