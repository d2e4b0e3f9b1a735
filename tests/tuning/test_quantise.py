"""Fewer bits for each weight: said which, whole or not at all, and never by a process that serves."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from appliance.engine.inspect import read_gguf
from appliance.errors import BadInput, NotFound, Unsupported
from appliance.tuning import quantise as module
from appliance.tuning.gguf import export_base
from appliance.tuning.quantise import KINDS, Kind, quantise

pytestmark = pytest.mark.llama
pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")


@pytest.fixture(scope="module")
def full(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("full") / "model.gguf"
    export_base(tiny, out)
    return out


@pytest.mark.slow
def test_rows_that_fit_and_rows_that_do_not(full: Path, starter_gguf: Path, tmp_path: Path) -> None:
    whole = quantise(starter_gguf, tmp_path / "starter.gguf", "Q4_K_M")
    assert {"Q4_K", "Q6_K", "F32"} == set(whole.weights) and whole.weights["Q4_K"] > whole.weights["Q6_K"]
    assert whole.bytes < starter_gguf.stat().st_size / 3
    assert read_gguf(tmp_path / "starter.gguf").template == read_gguf(starter_gguf).template
    # Rows of 64 weights hold no block of 256: llama.cpp takes kinds with blocks of 32, and the report says so.
    narrow = quantise(full, tmp_path / "tiny.gguf", "Q4_K_M")
    assert not {"Q4_K", "Q6_K"} & set(narrow.weights) and {"Q5_0", "Q8_0"} & set(narrow.weights)
    assert sum(narrow.weights.values()) == read_gguf(full).parameters
    kinds: tuple[Kind, ...] = ("F16", "Q8_0", "Q5_K_M", "Q4_K_M")
    sizes = [quantise(full, tmp_path / f"{kind}.gguf", kind).bytes for kind in kinds]
    assert sizes == sorted(sizes, reverse=True)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".gguf"] * 6


def test_what_cannot_be_made_smaller(full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.gguf"
    cut, damaged = tmp_path / "cut.gguf", tmp_path / "damaged.gguf"
    cut.write_bytes(full.read_bytes()[:-4000])
    damaged.write_bytes(full.read_bytes().replace(b"llama.block_count", b"llama.blick_count"))
    with pytest.raises(BadInput, match="cut short"):
        quantise(cut, out, "Q8_0")
    with pytest.raises(BadInput, match=r"cannot round damaged\.gguf to Q8_0|ended the process"):
        quantise(damaged, out, "Q8_0")
    with pytest.raises(NotFound):
        quantise(tmp_path / "none.gguf", out, "Q8_0")
    quantise(full, tmp_path / "small.gguf", "Q8_0")
    with pytest.raises(Unsupported, match="rounded already"):
        quantise(tmp_path / "small.gguf", out, "Q4_K_M")
    with monkeypatch.context() as patch:
        patch.setattr(module, "MEMORY", -full.stat().st_size + 2**20)
        with pytest.raises(BadInput, match="ended the process"):
            quantise(full, out, "Q8_0")
    assert not out.exists() and not list(tmp_path.glob(".*"))


def test_every_kind_has_a_number() -> None:
    import llama_cpp

    assert set(KINDS) == set(get_args(Kind))
    for kind, number in KINDS.items():
        assert getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}") == number
