"""What GGUF files are made of, and what llama.cpp takes for granted of them.

Most of what can be wrong in a header llama.cpp's parser refuses with an error, and that is enough. `fault` is only for what it
asserts, which ends the whole process, or what it never looks at and then reads past the end of. `inspect.py` reads the header
and asks here. Knows values, no bytes.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

# GGUF's value types by number: the struct code of the fixed ones.
FIXED = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<B", 10: "<Q", 11: "<q", 12: "<d"}
BOOL, STRING, ARRAY = 7, 8, 9

# ggml's tensor types by number: name, weights in a block, bytes of a block.
GGML = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18),
}  # fmt: skip

MOST_LAYERS = 512
MOST_EXPERTS = 512
SCALINGS = ("none", "linear", "yarn", "longrope")

# Lists of the vocabulary, and the types of value that each may have: texts, floats, whole numbers.
LISTS = {"tokens": (STRING,), "merges": (STRING,), "scores": (6,), "token_type": (4, 5)}


class Listed(NamedTuple):
    """A list in a header. `repeats`: that a text is in it twice, as far as somebody asked."""

    kind: int
    length: int
    repeats: bool = False


def repeats(texts: Iterable[bytes]) -> bool:
    """Whether a text is there twice as llama.cpp reads them: up to a zero byte, and what is empty gets a name of its own."""
    import numpy as np

    named = (text.partition(b"\0")[0] or b"[EMPTY_%d]" % place for place, text in enumerate(texts))
    seen = np.sort(np.frombuffer(array("q", map(hash, named)), np.int64))  # eight bytes for each, whatever its length
    return bool((seen[1:] == seen[:-1]).any())


def fault(known: Mapping[str, Any], architecture: str) -> str:
    """What llama.cpp would end itself over, or ""."""
    return _lists(known) or _numbers(known, architecture)


def _lists(known: Mapping[str, Any]) -> str:
    tokens = known.get("tokenizer.ggml.tokens")
    for name, kinds in LISTS.items():
        key = f"tokenizer.ggml.{name}"
        listed = known.get(key)
        if key not in known:
            continue
        if not isinstance(listed, Listed) or listed.kind not in kinds:
            return f"{key} in its header is not the list that it should be"
        if name != "merges" and isinstance(tokens, Listed) and listed.length != tokens.length:
            return f"{key} in its header is not as long as its vocabulary"
        if listed.repeats:
            return "its vocabulary has the same token twice"
    return ""


def _numbers(known: Mapping[str, Any], architecture: str) -> str:
    count, used = (known.get(f"{architecture}.expert_{what}", 0) for what in ("count", "used_count"))
    if isinstance(count, int) and isinstance(used, int) and not (0 < used <= count <= MOST_EXPERTS or used == count == 0):
        return f"it claims to use {used} of {count} experts"
    layers = known.get(f"{architecture}.block_count", 1)
    if isinstance(layers, int) and not 0 < layers <= MOST_LAYERS:
        return f"it claims {layers} layers"
    for name in ("layer_norm_rms_epsilon", "layer_norm_epsilon"):
        small = known.get(f"{architecture}.attention.{name}", 0.0)
        if isinstance(small, float) and not (math.isfinite(small) and small >= 0):
            return f"its {name} is not a sensible number"
    scaling = known.get(f"{architecture}.rope.scaling.type", "none")
    if isinstance(scaling, str) and scaling not in SCALINGS:
        return "it names a rope scaling that is not known"
    return ""
