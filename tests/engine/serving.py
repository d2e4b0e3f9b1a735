"""The real engine application on a real Unix socket, in this process, for tests."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn

from appliance import network
from appliance.engine.embedder import Embedder
from appliance.engine.handler import Handler
from appliance.engine.openai_compatible import OpenAICompatible
from appliance.engine.scheduler import LlamaHandler
from appliance.engine.service import ModelFiles, create_engine
from appliance.errors import ModelUnavailable, NotFound


class NoEmbedder(Embedder):
    """Tests of the language model do not wait for the embedder."""

    def embed(self, texts: Sequence[str]) -> Any:
        raise ModelUnavailable(f"no embedder in this test for {len(texts)} texts")


@asynccontextmanager
async def engine_on_a_socket(
    gguf: Path, embedder: Embedder | None = None, resolve: Callable[[str], ModelFiles] | None = None
) -> AsyncIterator[OpenAICompatible]:
    def any_name(name: str) -> ModelFiles:
        if name not in ("default", "starter"):
            raise NotFound(f"There is no model called {name!r}.", "See `appliance models list`.")
        return ModelFiles("starter", gguf, None, 1024)

    def make(files: ModelFiles) -> Handler:
        return LlamaHandler(files.model, files.adapter, threads=2, slots=4, context=files.context, model_id=files.id)

    with tempfile.TemporaryDirectory() as folder:
        socket = Path(folder) / "engine.sock"
        config = uvicorn.Config(
            create_engine(resolve or any_name, make, embedder or NoEmbedder()),
            uds=str(socket),
            log_level="error",
            loop="asyncio",
        )
        server = uvicorn.Server(config)
        server.install_signal_handlers = lambda: None  # type: ignore[attr-defined,unused-ignore]
        task = asyncio.create_task(server.serve())
        client = OpenAICompatible(partial(network.socket_client, socket), context=1024)
        while not (await client.health()).ok:
            await asyncio.sleep(0.05)
        try:
            yield client
        finally:
            await client.close()
            server.should_exit = True
            await task
