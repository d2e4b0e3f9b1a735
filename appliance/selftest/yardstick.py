"""A made-up model to measure with, where none of a useful size is here: random weights in the shape and format of a real one.

The starter is so small that what surrounds its weights takes most of its time: from it nothing can be said of a real model.
What this one says is noise, but it takes the time that weights take.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

LAYERS, WIDTH, INNER, HEADS, SHARED, VOCABULARY, CONTEXT = 6, 1536, 6144, 12, 4, 8192, 2048
BLOCK, BLOCK_BYTES = 256, 144  # of Q4_K: weights, and the bytes that they take


def write(path: Path) -> tuple[int, int]:
    """Write it; how many weights and layers it has. About 130 MB, in a second."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("yardstick")
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("none")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(SHARED)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    noise, weights = np.random.default_rng(7), 0
    narrow = WIDTH // HEADS * SHARED
    shapes = {"attn_q": (WIDTH, WIDTH), "attn_k": (narrow, WIDTH), "attn_v": (narrow, WIDTH), "attn_output": (WIDTH, WIDTH),
              "ffn_gate": (INNER, WIDTH), "ffn_up": (INNER, WIDTH), "ffn_down": (WIDTH, INNER)}  # fmt: skip
    tables = {"token_embd": (VOCABULARY, WIDTH)}
    tables |= {f"blk.{layer}.{name}": shape for layer in range(LAYERS) for name, shape in shapes.items()}
    for name, (rows, columns) in tables.items():
        blocks = noise.integers(0, 256, (rows * columns // BLOCK, BLOCK_BYTES), np.uint8)
        blocks[:, :4] = np.frombuffer(np.array([2e-4, 2e-4], np.float16).tobytes(), np.uint8)  # scales that keep it finite
        raw = blocks.reshape(rows, columns // BLOCK * BLOCK_BYTES)
        writer.add_tensor(f"{name}.weight", raw, raw_dtype=gguf.GGMLQuantizationType.Q4_K)
        weights += rows * columns
    norms = ["output_norm"] + [f"blk.{layer}.{name}" for layer in range(LAYERS) for name in ("attn_norm", "ffn_norm")]
    for name in norms:
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights, LAYERS
