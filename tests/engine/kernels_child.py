"""Computes some logits with one processor back end of llama.cpp, and writes them. A process of its own: the kernels that it
begins with are those that it keeps.

    python kernels_child.py MODEL BACK_END OUT [exact]

exact: with what is kept of the past in 32 bits, and attention as one sum, not in pieces.
"""

from __future__ import annotations

import ctypes
import random
import sys
import tempfile
from pathlib import Path

import llama_cpp
import numpy as np

from appliance.engine.llama import Llama

SEQUENCES = 5


def only(back_end: str) -> None:
    """Load this back end before any other: llama.cpp computes with the first."""
    package = Path(llama_cpp.__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        name = f"libggml-cpu-{back_end}.so"
        (Path(folder) / name).symlink_to(package.parent / "bin" / name)
        load = ctypes.CDLL(str(package / "lib" / "libggml.so.0")).ggml_backend_load_all_from_path
        load.argtypes = [ctypes.c_char_p]
        load(folder.encode())


def exact() -> None:
    given = llama_cpp.llama_context_default_params

    def params() -> llama_cpp.llama_context_params:
        made = given()
        made.type_k = made.type_v = llama_cpp.GGML_TYPE_F32
        made.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        return made

    llama_cpp.llama_context_default_params = params


def logits(model: Path, *, apart: bool) -> list[np.ndarray]:
    """Prompts of several lengths, steps of all together and of one alone, and a few tokens at once as in guessing ahead."""
    llama = Llama(model, threads=2, context=1024, sequences=SEQUENCES, conversations=SEQUENCES, apart=apart)
    draw = random.Random(5)
    at = [0] * SEQUENCES
    found: list[np.ndarray] = []

    def compute(*wanted: tuple[int, int]) -> None:
        """So many tokens of each sequence, in one batch; keeps the logits of each one's last."""
        rows, lasts = list[tuple[int, int, int, bool]](), list[int]()
        for sequence, count in wanted:
            tokens = [draw.randrange(100, llama.vocabulary) for _ in range(count)]
            rows += [(token, at[sequence] + place, sequence, place == count - 1) for place, token in enumerate(tokens)]
            at[sequence] += count
            lasts.append(len(rows) - 1)
        assert llama.decode(rows)
        found.extend(llama.logits(row).copy() for row in lasts)

    for sequence, count in enumerate((130, 7, 257, 512, 1)):
        compute((sequence, count))
    compute((3, 90))  # past the length from which one answer alone is parted between the threads
    compute((0, 40), (1, 40), (2, 40))
    for _ in range(2):
        compute(*((sequence, 1) for sequence in range(SEQUENCES)))
    compute((3, 1))
    compute((2, 6))
    compute((1, 3))
    llama.close()
    return found


if __name__ == "__main__":
    only(sys.argv[2])
    if sys.argv[4:] == ["exact"]:
        exact()
    np.save(sys.argv[3], np.stack([row for apart in (True, False) for row in logits(Path(sys.argv[1]), apart=apart)]))
