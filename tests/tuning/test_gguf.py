"""What llama.cpp serves is what was trained; what differs is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from appliance.engine.handler import Message
from appliance.errors import ApplianceError, BadInput, ModelUnavailable, Unsupported
from appliance.registry import Registry
from appliance.tuning import loading
from appliance.tuning.gguf import export_adapter, export_base, install_base
from appliance.tuning.parity import MAX_TOLERANCE, MEAN_TOLERANCE, Reference, parity, reference

pytestmark = pytest.mark.llama
pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")


@pytest.fixture(scope="module")
def talks(rows: list[dict[str, Any]]) -> list[tuple[Message, ...]]:
    return [tuple(Message(**message) for message in row["messages"]) for row in rows[:8]]


@pytest.fixture(scope="module")
def adapter(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter with weights of a size that training reaches, on every kind of layer."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=12, target_modules="all-linear")
    model = get_peft_model(loading.load_base(tiny), config)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.1)
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="module")
def references(tiny: Path, adapter: Path, talks: list[tuple[Message, ...]]) -> list[Reference]:
    return reference(loading.load_adapted(tiny, adapter), loading.load_tokenizer(tiny), talks)


@pytest.fixture(scope="module")
def base_file(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("base") / "model.gguf"
    export_base(tiny, out)
    return out


async def compare(base: Path, adapter: Path | None, references: list[Reference], talks: list[tuple[Message, ...]]) -> Any:
    from appliance.engine.scheduler import LlamaHandler

    handler = LlamaHandler(base, adapter, threads=1)
    await handler.start()
    try:
        return await parity(references, talks, handler)
    finally:
        await handler.close()


async def test_the_export_says_what_the_trained_model_says(
    tiny: Path, base_file: Path, adapter: Path, references: list[Reference], talks: list[tuple[Message, ...]], tmp_path: Path
) -> None:
    out = tmp_path / "adapter.gguf"
    export_adapter(adapter, tiny, out)
    found = await compare(base_file, out, references, talks)
    assert found["conversations"] == 8 and found["tokens"] > 100
    assert found["mean_difference"] < MEAN_TOLERANCE / 2 and found["max_difference"] < MAX_TOLERANCE / 2
    assert [path.name for path in tmp_path.iterdir()] == ["adapter.gguf"]


def _damage(kind: str, name: str, tensor: np.ndarray) -> np.ndarray:
    if kind == "flipped" and name.endswith("lora_b"):
        return -tensor
    if kind == "unpermuted" and ("attn_q" in name or "attn_k" in name) and name.endswith("lora_b"):
        heads = 4 if "attn_q" in name else 2
        half = tensor.shape[0] // heads // 2
        return tensor.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(tensor.shape)
    if kind == "one layer lost" and "blk.1.ffn_down" in name:
        return tensor * 0
    return tensor


@pytest.mark.parametrize("kind", ["flipped", "unpermuted", "one layer lost", "half as strong", "none"])
async def test_an_export_that_differs_is_refused(
    kind: str,
    tiny: Path,
    base_file: Path,
    adapter: Path,
    references: list[Reference],
    talks: list[tuple[Message, ...]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import gguf

    right = gguf.GGUFWriter.add_tensor
    monkeypatch.setattr(gguf.GGUFWriter, "add_tensor", lambda self, name, t: right(self, name, _damage(kind, name, t)))
    if kind == "half as strong":
        monkeypatch.setattr("appliance.tuning.gguf._alpha", lambda _config: 6.0)
    out = tmp_path / "adapter.gguf"
    export_adapter(adapter, tiny, out)
    with pytest.raises(ApplianceError, match="not registered"):
        await compare(base_file, None if kind == "none" else out, references, talks)


async def test_other_tokens_and_too_few_talks_are_refused(
    base_file: Path, references: list[Reference], talks: list[tuple[Message, ...]]
) -> None:
    with pytest.raises(ApplianceError, match="needs 8 conversations and has 3"):
        await compare(base_file, None, references[:3], talks[:3])
    other = [Reference([*one.ids[:-2], 9, one.ids[-1]], one.logprobs) for one in references]
    with pytest.raises(ApplianceError, match="other tokens"):
        await compare(base_file, None, other, talks)
    broken = [Reference(one.ids, [float("nan")] * len(one.logprobs)) for one in references]
    with pytest.raises(ApplianceError, match="differ by nan"):
        await compare(base_file, None, broken, talks)


def test_tokenizer_marks_and_template_go_over_byte_for_byte(tiny: Path, base_file: Path) -> None:
    from appliance.engine.llama import Llama

    tokenizer = loading.load_tokenizer(tiny)
    model = Llama(base_file, threads=1, context=64, sequences=1)
    try:
        assert model.template == tokenizer.chat_template
        assert model.marks() == {"bos_token": "<|endoftext|>", "eos_token": "<|end|>"}
        assert model.meta("tokenizer.ggml.add_bos_token") == "false"
        assert int(model.meta("llama.context_length")) == 256
        texts = [
            "Hello there,  two spaces\n\nand lines\t",
            "It's 3.14 \u00d7 7 = 21.98!",
            "naïve café \u2013 \u201cquotes\u201d 東京 😀",
            "   ",
        ]
        for text in [*texts, "<|user|>What is 2/4?<|end|><|assistant|>"]:
            assert model.tokenize(text, control=True) == tokenizer.encode(text, add_special_tokens=False), text
        assert model.ends(tokenizer.convert_tokens_to_ids("<|end|>"))
    finally:
        model.close()


def test_bfloat16_weights_are_read(tiny: Path, tmp_path: Path, base_file: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    shutil.copytree(tiny, tmp_path / "hf")
    AutoModelForCausalLM.from_pretrained(tiny, local_files_only=True).to(torch.bfloat16).save_pretrained(tmp_path / "hf")
    export_base(tmp_path / "hf", tmp_path / "model.gguf")
    assert abs((tmp_path / "model.gguf").stat().st_size - base_file.stat().st_size) < 100


def change(folder: Path, file: str, **values: object) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values), "utf-8")


@pytest.mark.parametrize(
    ("file", "values", "words"),
    [
        ("config.json", {"architectures": ["NobodyForCausalLM"]}, "NobodyForCausalLM"),
        ("config.json", {"architectures": None}, "architecture none"),
        ("config.json", {"attention_bias": True, "quantization_config": {"quant_method": "gptq"}}, "quantised .gptq."),
    ],
)
def test_what_cannot_be_exported_is_named(tiny: Path, tmp_path: Path, file: str, values: dict[str, Any], words: str) -> None:
    shutil.copytree(tiny, tmp_path / "hf")
    change(tmp_path / "hf", file, **values)
    with pytest.raises(Unsupported, match=words):
        export_base(tmp_path / "hf", tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()


@pytest.mark.slow
def test_words_cut_in_a_way_of_their_own_are_named(tiny: Path, tmp_path: Path) -> None:
    """Not ours, so the converter is asked, which does not know it either."""
    shutil.copytree(tiny, tmp_path / "hf")
    change(tmp_path / "hf", "tokenizer.json", pre_tokenizer={"type": "Whitespace"})
    with pytest.raises(Unsupported, match=r"no equal in llama\.cpp: its words are cut by a rule of their own"):
        export_base(tmp_path / "hf", tmp_path / "model.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


async def test_one_table_stored_under_the_name_of_the_output(
    tiny: Path, tmp_path: Path, talks: list[tuple[Message, ...]]
) -> None:
    """A model whose input and output tables are one may be stored with either name."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(tiny, tmp_path / "hf")
    weights = load_file(tmp_path / "hf" / "model.safetensors")
    weights["lm_head.weight"] = weights.pop("model.embed_tokens.weight")
    save_file(weights, tmp_path / "hf" / "model.safetensors", {"format": "pt"})
    export_base(tmp_path / "hf", tmp_path / "model.gguf")
    plain = reference(loading.load_base(tiny).eval(), loading.load_tokenizer(tiny), talks)
    assert (await compare(tmp_path / "model.gguf", None, plain, talks))["tokens"] > 100


def test_a_base_from_elsewhere_and_in_four_bits(tiny: Path, adapter: Path, tmp_path: Path) -> None:
    """What an adapter says of its base is only where it was trained: a 4-bit copy, on another machine."""
    export_adapter(adapter, tiny, tmp_path / "right.gguf")
    for number, name in enumerate(("unsloth/tiny-bnb-4bit", "/home/somebody/models/tiny", None)):
        shutil.copytree(adapter, tmp_path / str(number))
        change(tmp_path / str(number), "adapter_config.json", base_model_name_or_path=name)
        export_adapter(tmp_path / str(number), tiny, tmp_path / f"{number}.gguf")
        assert (tmp_path / f"{number}.gguf").read_bytes() == (tmp_path / "right.gguf").read_bytes()


def test_the_starters_mark_and_the_licence_are_in_the_file(tiny: Path, tmp_path: Path) -> None:
    from appliance.engine.inspect import read_gguf

    export_base(tiny, tmp_path / "plain.gguf")
    export_base(tiny, tmp_path / "marked.gguf", licence="apache-2.0", starter=True)
    plain, marked = read_gguf(tmp_path / "plain.gguf"), read_gguf(tmp_path / "marked.gguf")
    assert (plain.starter, plain.licence) == (False, "") and (marked.starter, marked.licence) == (True, "apache-2.0")


@pytest.mark.parametrize(
    ("key", "value"), [("use_dora", True), ("bias", "all"), ("peft_type", "LOHA"), ("modules_to_save", ["a"])]
)
def test_adapters_that_llama_cpp_cannot_apply_are_named(
    tiny: Path, adapter: Path, tmp_path: Path, key: str, value: object
) -> None:
    shutil.copytree(adapter, tmp_path / "a")
    change(tmp_path / "a", "adapter_config.json", **{key: value})
    with pytest.raises((Unsupported, BadInput)):
        export_adapter(tmp_path / "a", tiny, tmp_path / "adapter.gguf")


def test_a_base_is_installed_once(tiny: Path, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "models")
    registry.root.mkdir()
    first = install_base(registry, tiny)
    second = install_base(registry, tiny)
    assert first == second and len(registry.list()) == 1
    assert {"model.gguf", "hf/model.safetensors", "hf/tokenizer.json"} <= set(first.files)
    assert registry.verify(first.id).context == 256
    assert sorted(path.name for path in registry.root.iterdir() if path.is_dir()) == [first.id]


def test_a_model_folder_that_could_run_code_is_refused(tiny: Path, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "models")
    for name, text in (("pytorch_model.bin", ""), ("modeling.py", "")):
        folder = tmp_path / name
        shutil.copytree(tiny, folder)
        (folder / name).write_text(text, "utf-8")
        with pytest.raises(BadInput, match=name):
            install_base(registry, folder)
    folder = tmp_path / "auto"
    shutil.copytree(tiny, folder)
    change(folder, "config.json", auto_map={"AutoModel": "x.Y"})
    with pytest.raises(BadInput, match="auto_map"):
        install_base(registry, folder)
    with pytest.raises(ModelUnavailable, match="no model"):
        install_base(registry, tmp_path)


def test_a_truncated_weights_file_is_a_sentence(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "hf")
    data = (tiny / "model.safetensors").read_bytes()
    (tmp_path / "hf" / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(BadInput, match="cut short"):
        export_base(tmp_path / "hf", tmp_path / "model.gguf")
    assert not list(tmp_path.glob("*.gguf"))
