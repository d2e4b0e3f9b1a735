"""A Hugging Face model on a GPU: ours beside `transformers serve`, both with transformers' continuous batching.

Both get the same weights in the same precision, and are asked the same through HTTP, in turn. Hides how each is started.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from engine_servers import APPLIANCE, Server, socket_of, started

MODEL = "bench-weights"  # the same random weights as for llama.cpp, before they were quantised
CHATS = (1, 32, 128)
Device = Literal["cuda", "cpu"]
Row = tuple[str, str, str, str, str]


def there_is_a_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def keep_weights(home: Path, folder: Path) -> None:
    """The Hugging Face folder as a base model of that home."""
    from appliance.registry import Registry
    from appliance.settings import Settings
    from appliance.tuning.gguf import install_base

    install_base(Registry(Settings(home=home).models), folder, id=MODEL, starter=False, licence="none")


def by_transformers(home: Path, device: Device) -> contextlib.AbstractContextManager[Server]:
    """Our engine, which serves that model through transformers, whatever else it would choose."""
    places = str(max(CHATS))
    environment = {"APPLIANCE_BACKEND": "transformers", "APPLIANCE_SLOTS": places, "APPLIANCE_QUEUE": places}
    if device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    return started("ours", [APPLIANCE, "--home", str(home), "engine"], environment, **socket_of(home))


def transformers_serve(folder: Path, device: Device) -> contextlib.AbstractContextManager[Server]:
    command = [
        str(Path(sys.executable).parent / "transformers"), "serve", str(folder), "--continuous-batching", "--port", "18233",
        "--device", device, "--dtype", "bfloat16" if device == "cuda" else "float32",
    ]  # fmt: skip
    environment = {"HF_HUB_OFFLINE": "1", "PATH": os.environ["PATH"]}
    return started("transformers", command, environment, base_url="http://127.0.0.1:18233")


def asked_of_transformers(body: dict[str, Any]) -> dict[str, Any]:
    """The same request in its words: it refuses fields that it does not know, and takes what generation knows as one text."""
    config = {"top_k": body["top_k"], "min_new_tokens": body["max_tokens"], "max_new_tokens": body["max_tokens"]}
    known = {name: body[name] for name in ("messages", "max_tokens", "temperature", "top_p", "seed", "stream")}
    return known | {"generation_config": json.dumps(config | {"do_sample": True})}


async def beside_transformers(
    home: Path, folder: Path, device: Device, in_turn: Callable[..., Awaitable[Sequence[Any]]],
    ask: Callable[..., Awaitable[Any]], counts: Sequence[int] = CHATS,
) -> list[Row]:  # fmt: skip
    """in_turn, ask: of the bench. folder: the Hugging Face weights."""
    keep_weights(home, folder)
    table: list[Row] = []
    with by_transformers(home, device) as own, transformers_serve(folder, device) as peer:
        for server in (own, peer):
            await ask(server, [{"role": "user", "content": "water river garden"}], new=8, model=MODEL)
        facts = (await own.client.get("/health")).json()["models"][MODEL]
        if facts["backend"] != "transformers" or facts["gpu"] != (device == "cuda"):
            raise SystemExit(f"ours is not served as was wanted: {facts}")
        for count in counts:
            mine, theirs = await in_turn((own, peer), count, max(2, 32 // count), 7000 + count, model=MODEL)
            label = f"{count} chat{'s' * (count != 1)} on a GPU, transformers serve as the peer: tokens/s"
            share = f"{mine.speed / theirs.speed:.2f}"
            table.append((label, f"{mine.speed:.1f}", f"{theirs.speed:.1f}", share, "at least 1.0"))
    return table
