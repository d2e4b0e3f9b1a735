"""Real servers and models for tests: our engine on a Unix socket of this process, a stranger's server, the starter in torch."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from appliance import network
from appliance.engine.embedder import Embedder
from appliance.engine.handler import Handler
from appliance.engine.loaded import ModelFiles
from appliance.engine.openai_compatible import OpenAICompatible
from appliance.engine.reranker import Reranker
from appliance.engine.scheduler import LlamaHandler
from appliance.engine.service import create_engine
from appliance.engine.transformers_gpu import TransformersHandler
from appliance.errors import ModelUnavailable, NotFound
from appliance.settings import Settings


class NoEmbedder(Embedder):
    """Tests of the language model do not wait for the embedder."""

    def embed(self, texts: Sequence[str]) -> Any:
        raise ModelUnavailable(f"no embedder in this test for {len(texts)} texts")


@asynccontextmanager
async def engine_on_a_socket(
    gguf: Path,
    embedder: Embedder | None = None,
    resolve: Callable[[str], ModelFiles] | None = None,
    slots: int = 4,
    reranker: Reranker | None = None,
) -> AsyncIterator[OpenAICompatible]:
    def any_name(name: str) -> ModelFiles:
        if name not in ("default", "starter"):
            raise NotFound(f"There is no model called {name!r}.", "See `appliance models list`.")
        return ModelFiles("starter", gguf, None, 1024)

    def make(files: ModelFiles) -> Handler:
        return LlamaHandler(files.model, files.adapter, threads=2, slots=slots, context=files.context, model_id=files.id)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "engine.sock"
        config = uvicorn.Config(
            create_engine(resolve or any_name, make, embedder or NoEmbedder(), reranker=reranker),
            uds=str(path),
            log_level="error",
            loop="asyncio",
        )
        server = uvicorn.Server(config)
        server.install_signal_handlers = lambda: None  # type: ignore[attr-defined,unused-ignore]
        task = asyncio.create_task(server.serve())
        client = OpenAICompatible(partial(network.socket_client, path), context=1024)
        while not (await client.health()).ok:
            await asyncio.sleep(0.05)
        try:
            yield client
        finally:
            await client.close()
            server.should_exit = True
            await task


# llama_cpp.server finds no processor back end by itself where the wheel carries one for each kind: load them first.
PEER = """
import runpy
from appliance.engine.llama import _library
_library()
runpy.run_module("llama_cpp.server", run_name="__main__")
"""


@contextmanager
def peer_server(gguf: Path) -> Iterator[str]:
    """llama-cpp-python's own server in a process of its own; its address."""
    pytest.importorskip("starlette_context", reason="llama_cpp.server needs starlette-context")
    pytest.importorskip("sse_starlette", reason="llama_cpp.server needs sse-starlette")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", PEER, "--model", str(gguf), "--n_ctx", "1024", "--n_threads", "2", "--port", str(port)]
    # Or a second question would cut the answer to the first one short.
    command += ["--host", "127.0.0.1", "--interrupt_requests", "false", "--verbose", "false"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        ends = time.monotonic() + 60
        while True:
            try:
                if httpx.get(f"{address}/v1/models", trust_env=False, timeout=2.0).status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            if process.poll() is not None or time.monotonic() > ends:
                raise AssertionError("llama_cpp.server did not start")
            time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait(10)


def peer_client(address: str) -> OpenAICompatible:
    def connect() -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=address, timeout=60.0, trust_env=False)

    return OpenAICompatible(connect, name="peer", own=False, context=1024)


def starter_parts() -> tuple[Any, Any]:
    """The starter model and its tokenizer in torch, in float32 on the CPU."""
    from appliance.tuning.loading import load_base, load_tokenizer

    folder = Settings().starter
    if not (folder / "model.safetensors").is_file():
        pytest.skip("models/starter holds no weights")
    return load_base(folder), load_tokenizer(folder)


@contextmanager
def transformers_served() -> Iterator[TransformersHandler]:
    """The starter in torch, loaded; for a whole file of tests, because torch and its libraries take seconds."""
    made = TransformersHandler(starter_parts, model_id="starter", slots=4, cache_mb=100)
    with ThreadPoolExecutor(1) as aside:
        aside.submit(asyncio.run, made.start()).result()
        try:
            yield made
        finally:
            aside.submit(asyncio.run, made.close()).result()
