"""Adapters for the starter model that change its words for certain: made on the spot, trained on nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np

LAYERS, WIDTH, INNER, RANK = 6, 256, 768, 4


def write_adapter(path: Path, seed: int, strength: float = 6.0) -> Path:
    """A GGUF adapter on the starter's last layers; another seed says other things."""
    import gguf

    draw = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(RANK))
    for layer in range(LAYERS - 2, LAYERS):
        for part, shape in (("a", (RANK, INNER)), ("b", (WIDTH, RANK))):
            weights = draw.normal(0, strength / np.sqrt(shape[1]), shape).astype(np.float32)
            writer.add_tensor(f"blk.{layer}.ffn_down.weight.lora_{part}", weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
