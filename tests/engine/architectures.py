"""Small models whose attention is not plain Llama's, made from a Llama model in GGUF: what it lacks is drawn at random.

Only what llama.cpp computes with is told; nobody would talk to one of these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np

Tensors = dict[str, np.ndarray[Any, Any]]
EXPERTS, EXPERT = 2, 256  # how many, all of them asked so that rounding decides nothing, and how wide each is
WINDOW = 48  # tokens that every second layer sees
COPIED = ("context_length", "embedding_length", "feed_forward_length", "block_count", "rope.dimension_count", "rope.freq_base")
OF_HEADS = ("head_count", "head_count_kv", "key_length", "value_length", "layer_norm_rms_epsilon")


def soft_capped(facts: gguf.GGUFWriter, tensors: Tensors) -> None:
    """As Gemma 2: no score is above a cap, and every second layer sees what is near only."""
    facts.add_attn_logit_softcapping(3.0)
    facts.add_final_logit_softcapping(30.0)
    facts.add_sliding_window(WINDOW)
    for name in [one for one in tensors if one.endswith("attn_norm.weight")]:
        for norm in ("post_attention_norm", "post_ffw_norm"):
            tensors[name.replace("attn_norm", norm)] = tensors[name]


def sloped(facts: gguf.GGUFWriter, tensors: Tensors) -> None:
    """As Refact: no rotation, and what is further away counts for less, in each head by another slope (ALiBi)."""


def sunk(facts: gguf.GGUFWriter, tensors: Tensors) -> None:
    """As gpt-oss: each head has a sink that takes a part of its attention, layers see near and far in turn, experts."""
    facts.add_sliding_window(WINDOW)
    facts.add_expert_count(EXPERTS)
    facts.add_expert_used_count(EXPERTS)
    facts.add_expert_feed_forward_length(EXPERT)
    width, draw = tensors["output_norm.weight"].shape[0], np.random.default_rng(3)

    def drawn(*shape: int) -> np.ndarray[Any, Any]:
        return draw.normal(0, 0.02, shape).astype(np.float16 if len(shape) > 1 else np.float32)

    tensors["output.weight"] = tensors["token_embd.weight"]
    for name in [one for one in tensors if one.endswith(".attn_q.weight")]:
        layer = name.removesuffix("attn_q.weight")
        tensors[f"{layer}attn_sinks.weight"] = draw.normal(2, 2, heads_of(facts)).astype(np.float32)
        tensors[f"{layer}attn_output.bias"] = drawn(width)
        tensors[f"{layer}post_attention_norm.weight"] = tensors.pop(f"{layer}ffn_norm.weight")
        tensors[f"{layer}ffn_gate_inp.weight"] = drawn(EXPERTS, width).astype(np.float32)
        tensors[f"{layer}ffn_gate_inp.bias"] = drawn(EXPERTS)
        for part, shape in (("gate", (EXPERT, width)), ("up", (EXPERT, width)), ("down", (width, EXPERT))):
            del tensors[f"{layer}ffn_{part}.weight"]
            tensors[f"{layer}ffn_{part}_exps.weight"] = drawn(EXPERTS, *shape)
            tensors[f"{layer}ffn_{part}_exps.bias"] = drawn(EXPERTS, shape[0]).astype(np.float32)


ARCHITECTURES: dict[str, Callable[[gguf.GGUFWriter, Tensors], None]] = {
    "gemma2": soft_capped,
    "refact": sloped,
    "gpt-oss": sunk,
}


def made(architecture: str, llama: Path, out: Path) -> None:
    """Write `out`, a model of this architecture with the other's tokenizer and as many layers and heads."""
    reader = gguf.GGUFReader(llama)
    facts = gguf.GGUFWriter(out, architecture)
    for name, value, types in _told(reader):
        kept = name.removeprefix("llama.")
        if name.startswith("tokenizer.") or kept in COPIED or kept.removeprefix("attention.") in OF_HEADS:
            facts.add_key_value(name.replace("llama.", f"{architecture}.", 1), value, *types[:2])
    tensors = {one.name: np.array(one.data) for one in reader.tensors}
    ARCHITECTURES[architecture](facts, tensors)
    for name, tensor in tensors.items():
        facts.add_tensor(name, np.ascontiguousarray(tensor))
    facts.write_header_to_file()
    facts.write_kv_data_to_file()
    facts.write_tensors_to_file()
    facts.close()


def heads_of(facts: gguf.GGUFWriter) -> int:
    return int(facts.kv_data[0][f"{facts.arch}.attention.head_count"].value)


def _told(reader: gguf.GGUFReader) -> Iterator[tuple[str, Any, list[gguf.GGUFValueType]]]:
    for name, field in reader.fields.items():
        if not name.startswith("GGUF."):
            yield name, field.contents(), field.types
