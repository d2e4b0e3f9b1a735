"""The kernels that this project adds to llama.cpp say what its own say, on every kind of processor that this machine is.

Rounding parts them, as it parts ggml's kernels for one processor from those for another; the truth is what comes out where
nothing of the past is rounded to 16 bits.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tests.engine import architectures

pytest.importorskip("llama_cpp")

ROOT = Path(__file__).resolve().parents[2]
# What each needs of the processor. Between them they are compiled with every way through the kernels.
NEEDS = {"haswell": {"avx2", "fma", "f16c"}, "skylakex": {"avx512bw", "avx512dq"}, "zen4": {"avx512_vnni", "avx512_bf16"}}
# Width, heads, keys that they share, and numbers in a head: a whole four, a part of one, more than one; short, usual and long.
SHAPES = {"fours": (256, 8, 2, 32), "threes": (768, 6, 2, 64), "sevens": (1792, 7, 1, 128), "each its own": (256, 4, 4, 64)}
OTHERS = {"gemma2": "fours", "refact": "threes", "gpt-oss": "fours"}  # which of these each other architecture is made from


def flags() -> set[str]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return set(next((line.split(":")[1] for line in lines if line.startswith("flags")), "").split())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two layers of random weights in 4 bits, whose heads look at some words much more than at others."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from appliance.tuning.gguf import export_base
    from appliance.tuning.quantise import quantise

    folder = tmp_path_factory.mktemp("kernels")
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "models" / "starter", local_files_only=True)
    made: dict[str, Path] = {}
    for name, (width, heads, shared, numbers) in SHAPES.items():
        torch.manual_seed(1)
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=width, intermediate_size=960, num_hidden_layers=2,
            num_attention_heads=heads, num_key_value_heads=shared, head_dim=numbers, max_position_embeddings=1024,
            tie_word_embeddings=True,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
        with torch.no_grad():
            for layer in model.model.layers:
                layer.self_attn.q_proj.weight *= 4
                layer.self_attn.k_proj.weight *= 4
        home = folder / name
        model.to(torch.bfloat16).save_pretrained(home)
        tokenizer.save_pretrained(home)
        export_base(home, folder / f"{name}.f16.gguf")
        made[name] = folder / f"{name}.gguf"
        quantise(folder / f"{name}.f16.gguf", made[name], "Q4_K_M")
    for name, plain in OTHERS.items():
        architectures.made(name, folder / f"{plain}.f16.gguf", folder / f"{name}.f16.gguf")
        made[name] = folder / f"{name}.gguf"
        quantise(folder / f"{name}.f16.gguf", made[name], "Q4_K_M")
    return made


def logits(model: Path, back_end: str, *words: str, kernels: str = "0") -> npt.NDArray[np.float32]:
    child, out = Path(__file__).with_name("kernels_child.py"), model.with_suffix(".npy")
    environment = os.environ | {"APPLIANCE_KERNELS": kernels, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(child), str(model), back_end, str(out), *words]
    subprocess.run(command, env=environment, check=True, stderr=subprocess.DEVNULL)
    said: npt.NDArray[np.float32] = np.load(out)
    return said


@pytest.mark.parametrize("name", [*SHAPES, *OTHERS])
def test_they_are_as_near_to_the_truth_as_llama_cpp_s_own(models: dict[str, Path], name: str) -> None:
    back_ends = [one for one, needs in NEEDS.items() if needs <= flags()]
    if not back_ends:
        pytest.skip("this processor has none of what the kernels are written for")
    true = logits(models[name], back_ends[0], "exact")
    for back_end in back_ends:
        ours, theirs = (logits(models[name], back_end, kernels=kernels) for kernels in "10")
        assert (ours != theirs).any(), f"{back_end}: the kernels were not used"
        off, usual = (np.abs(said - true).max(axis=1) / true.std(axis=1) for said in (ours, theirs))
        assert off.mean() < 1.25 * usual.mean() and off.max() < 1.5 * usual.max(), (back_end, off, usual)
