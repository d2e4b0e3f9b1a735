"""The servers that the engine's bench asks, and what they serve: ours, llama-server, and llama-cpp-python's own.

All get the same GGUF, a Llama of 300 million random weights made on the spot, the same threads and the same room for
conversations, and are asked through HTTP. Hides how each is started and found ready.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from llama_server import binary

ROOT = Path(__file__).resolve().parents[2]
APPLIANCE = str(Path(sys.executable).parent / "appliance")
LAYERS, WIDTH, INNER, RANK = 24, 1024, 2816, 8
CONTEXT = 3072


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
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=LAYERS, num_attention_heads=16,
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
                    if ready(probe.get("/v1/models" if "server" in name else "/health", timeout=5)):
                        break
                time.sleep(0.3)
            # No connection is used twice: a server may close one that has rested, at the moment in which it is used again.
            limits = httpx.Limits(max_connections=200, max_keepalive_connections=0)
            transport = client.pop("transport", None) or httpx.AsyncHTTPTransport(limits=limits)
            yield Server(name, httpx.AsyncClient(timeout=900, transport=transport, **client), process)
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def ready(answer: httpx.Response) -> bool:
    """Ours says when it has read its libraries and both models, which it does while it answers already."""
    if answer.status_code != 200:
        return False
    facts = answer.json()
    return "embedder" not in facts or bool(facts["embedder"] and facts["models"])


def _sync(client: dict[str, Any]) -> dict[str, Any]:
    socket = client.get("transport")
    if socket is not None:
        return {"base_url": client["base_url"], "transport": httpx.HTTPTransport(uds=socket._pool._uds)}
    return client


def ours(home: Path, threads: int, slots: int) -> contextlib.AbstractContextManager[Server]:
    environment = {"APPLIANCE_THREADS": str(threads), "APPLIANCE_SLOTS": str(slots), "APPLIANCE_CONTEXT": str(CONTEXT)}
    return started("ours", [APPLIANCE, "--home", str(home), "engine"], environment, **socket_of(home))


def socket_of(home: Path) -> dict[str, Any]:
    """How the engine of a home is reached."""
    socket = str(home / "run" / "engine.sock")
    transport = httpx.AsyncHTTPTransport(uds=socket, limits=httpx.Limits(max_keepalive_connections=0))
    return {"base_url": "http://engine", "transport": transport}


def llama_server(model: Path, threads: int, slots: int) -> contextlib.AbstractContextManager[Server]:
    command = [
        str(binary()), "-m", str(model), "-t", str(threads), "-tb", str(threads), "-np", str(slots), "-c", str(CONTEXT * slots),
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
        sys.executable, "-c", PYTHON_SERVER, "--model", str(model), "--n_threads", str(threads), "--n_ctx", str(CONTEXT),
        "--port", "18232", "--interrupt_requests", "false", "--verbose", "false",
    ]  # fmt: skip
    # With ggml's own kernels, as who installs it gets them.
    return started("llama_cpp.server", command, {"APPLIANCE_KERNELS": "0"}, base_url="http://127.0.0.1:18232")


def register(home: Path, model: Path) -> str:
    """The model as the champion of a home, two adapters of random weights on it (bench-a, bench-b), and the starter, whose id
    is given back."""
    from appliance.errors import NotFound
    from appliance.registry import Registry
    from appliance.settings import Settings
    from appliance.tuning.gguf import install_base

    registry = Registry(Settings(home=home).models)
    starter = install_base(registry, Settings().starter, starter=True).id  # what a tuning run beside the engine tunes
    try:
        registry.get("bench-b")
        return starter
    except NotFound:
        pass
    for id, base in (("bench", None), ("bench-a", "bench"), ("bench-b", "bench")):
        folder = home / f"incoming-{id}"
        folder.mkdir(parents=True)
        if base:
            write_adapter(folder / "adapter.gguf", seed=ord(id[-1]))
            registry.add(folder, id=id, kind="adapter", base=base, title=id, licence="none", context=4096)
        else:
            shutil.copyfile(model, folder / "model.gguf")
            registry.add(folder, id=id, kind="base", title="Bench", licence="none", context=4096)
    registry.promote("bench")
    return starter


def write_adapter(path: Path, seed: int) -> None:
    """A LoRA of rank 8 on every attention and feed-forward matrix, as a tuning run leaves it, of random weights."""
    import gguf
    import numpy as np

    draw = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(RANK))
    parts = {
        "attn_q": (WIDTH, WIDTH),
        "attn_k": (WIDTH // 4, WIDTH),
        "attn_v": (WIDTH // 4, WIDTH),
        "attn_output": (WIDTH, WIDTH),
    }
    parts |= {"ffn_gate": (INNER, WIDTH), "ffn_up": (INNER, WIDTH), "ffn_down": (WIDTH, INNER)}
    for layer in range(LAYERS):
        for part, (rows, columns) in parts.items():
            for half, shape in (("a", (RANK, columns)), ("b", (rows, RANK))):
                weights = draw.normal(0, 0.05, shape).astype(np.float32)
                writer.add_tensor(f"blk.{layer}.{part}.weight.lora_{half}", weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
