"""What the engine's own converter makes of every family says what the trained model says; what differs is refused."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from appliance.engine.handler import Message
from appliance.engine.inspect import read_gguf
from appliance.errors import ApplianceError, BadInput, ModelUnavailable, Unsupported
from appliance.tuning import converter, converter_child, loading, tokens
from appliance.tuning.gguf import export_adapter, export_base, export_merged
from appliance.tuning.parity import (
    MAX_TOLERANCE,
    MEAN_TOLERANCE,
    ROUNDED_TOLERANCE,
    Kind,
    Reference,
    chat_template,
    parity,
    reference,
    same_template,
    text_parity,
    text_reference,
)
from appliance.tuning.quantise import quantise
from tests.tuning import families
from tests.tuning.conftest import talk
from tests.tuning.families import FAMILIES, adapted, change

pytestmark = [
    pytest.mark.llama,
    pytest.mark.slow,
    # peft's word on adapters that change a shared table, which is what is tested here.
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings=True`:UserWarning"),
]
pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

TEXTS = [message["content"] for number in range(72) for message in talk(number)]
TALKS = [tuple(Message(**message) for message in talk(number)) for number in range(8)]
# The one kind of smaller file that each family is made into; every kind is made of two.
ROUNDED: dict[str, Kind] = {"llama": "Q4_K_M", "qwen": "Q8_0", "gemma": "Q5_K_M", "phi": "Q4_K_M"}


@dataclass(frozen=True)
class Exported:
    """A family's model with an adapter, as trained (`hf`, `peft`) and as exported, and what training says it says."""

    hf: Path
    peft: Path
    base: Path
    adapter: Path
    plain: list[Reference]
    tuned: list[Reference]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    made: dict[str, Exported] = {}

    def make(name: str) -> Exported:
        if name not in made:
            root = tmp_path_factory.mktemp(name)
            hf = FAMILIES[name](root / "hf", TEXTS)
            # Llama has an output table of its own, so its adapter may change that too.
            also = {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "lm_head"]} if name == "llama" else {}
            peft = adapted(hf, root / "peft", **also)
            export_base(hf, root / "base.gguf")
            export_adapter(peft, hf, root / "adapter.gguf")
            tokenizer = loading.load_tokenizer(hf)
            made[name] = Exported(
                hf, peft, root / "base.gguf", root / "adapter.gguf",
                reference(loading.load_base(hf).eval(), tokenizer, TALKS),
                reference(loading.load_adapted(hf, peft), tokenizer, TALKS),
            )  # fmt: skip
        return made[name]

    return make


async def compare(references: list[Reference], base: Path, adapter: Path | None = None, kind: Kind = "F16") -> dict[str, Any]:
    from appliance.engine.scheduler import LlamaHandler

    handler = LlamaHandler(base, adapter, threads=1)
    await handler.start()
    try:
        return await parity(references, TALKS, handler, kind)
    finally:
        await handler.close()


# --- the suite ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
async def test_every_family_says_what_the_trained_model_says(
    name: str, family: Callable[[str], Exported], tmp_path: Path
) -> None:
    one = family(name)
    merged, rounded = tmp_path / "merged.gguf", tmp_path / "rounded.gguf"
    export_merged(one.hf, one.peft, merged)
    assert list(tmp_path.iterdir()) == [merged]
    for found in (
        await compare(one.plain, one.base), await compare(one.tuned, one.base, one.adapter), await compare(one.tuned, merged)
    ):  # fmt: skip
        assert found["conversations"] == 8 and found["tokens"] > 100 and found["greedy_tokens"] >= 8
        assert found["mean_difference"] < MEAN_TOLERANCE * 0.7 and found["max_difference"] < MAX_TOLERANCE / 2
    # The base is not the tuned model: what the suite holds equal is not equal by itself.
    with pytest.raises(ApplianceError, match="not registered"):
        await compare(one.tuned, one.base)
    digest = same_template(one.base, one.hf, TALKS, one.plain)
    assert digest == same_template(merged, one.hf) and chat_template(one.hf) in families.TEMPLATES
    made = quantise(merged, rounded, ROUNDED[name])
    assert made.bytes == rounded.stat().st_size < merged.stat().st_size and made.weights["F32"] < 2000
    found = await compare(one.tuned, rounded, kind=ROUNDED[name])
    assert MEAN_TOLERANCE < found["mean_difference"] < ROUNDED_TOLERANCE[ROUNDED[name]]


def _lost(values: Any) -> Any:
    return values * 0


def _unpermuted(rows: Any) -> Any:
    return rows.reshape(4, 8, 2, 64).swapaxes(1, 2).reshape(rows.shape)


def _swapped(rows: Any) -> Any:
    return np.concatenate(np.split(rows, 2)[::-1])


# A fault that somebody's exporter has had, in one tensor or one number of an otherwise right file.
FAULTS: dict[str, tuple[str, str, Callable[[Any], Any]]] = {
    "a layer lost": ("llama", "blk.1.ffn_down.weight", _lost),
    "queries unpermuted": ("llama", "blk.0.attn_q.weight", _unpermuted),
    "scaled rotation forgotten": ("llama", "rope_freqs.weight", np.ones_like),
    "biases lost": ("qwen", "blk.0.attn_k.bias", _lost),
    "norms not shifted": ("gemma", "blk.2.attn_q_norm.weight", lambda norm: norm - 1),
    "gate and up swapped": ("phi", "blk.0.ffn_up.weight", _swapped),
    "scale off by 2 %": ("qwen", "adapter.lora.alpha", lambda alpha: alpha * np.float32(1.02)),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_the_suite_catches_a_fault(fault: str, family: Callable[[str], Exported], tmp_path: Path) -> None:
    import gguf

    name, part, change_it = FAULTS[fault]
    one = family(name)
    base, adapter = tmp_path / "base.gguf", tmp_path / "adapter.gguf"
    shutil.copy(one.base, base)
    shutil.copy(one.adapter, adapter)
    reader = gguf.GGUFReader(adapter if part.startswith("adapter.") else base, "r+")
    if part in reader.fields:
        values = reader.fields[part].parts[-1]
    else:
        values = next(tensor.data for tensor in reader.tensors if tensor.name == part)
    values[:] = change_it(np.array(values))
    values.base.flush()
    references, worn = (one.tuned, adapter) if part.startswith("adapter.") else (one.plain, None)
    with pytest.raises(ApplianceError, match="not registered"):
        await compare(references, base, worn)


async def test_a_template_of_another_family_is_refused(family: Callable[[str], Exported], tmp_path: Path) -> None:
    one, other = family("phi"), family("qwen")
    with pytest.raises(ApplianceError, match="is not the one of the trained model"):
        same_template(one.base, other.hf)
    swapped = tmp_path / "swapped.gguf"
    theirs, ours = families.CHATML.encode(), chat_template(one.hf).encode()
    swapped.write_bytes(one.base.read_bytes().replace(ours, theirs[: len(ours)].ljust(len(ours))))
    with pytest.raises(ApplianceError, match="chat template"):
        same_template(swapped, one.hf)
    wrong = Reference(one.plain[0].ids, one.plain[0].logprobs, rendered=one.plain[0].rendered + "\n")
    with pytest.raises(ApplianceError, match="is rendered as"):
        same_template(one.base, one.hf, TALKS[:1], [wrong])
    with pytest.raises(ApplianceError, match="other tokens"):
        await compare(other.plain, one.base)


# --- adapters that only a merged file can carry ---------------------------------------------------------------------------


async def test_dora_and_the_shared_output_table(tiny: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"use_dora": True, "use_rslora": True, "target_modules": ["q_proj", "down_proj", "lm_head"]}
    peft = adapted(tiny, tmp_path / "peft", **options)
    with pytest.raises(Unsupported, match="use_dora") as caught:
        export_adapter(peft, tiny, tmp_path / "adapter.gguf")
    assert "--format merged" in caught.value.hint
    change(peft / "adapter_config.json", use_dora=False)
    with pytest.raises(Unsupported, match="lm_head, which this base shares"):
        export_adapter(peft, tiny, tmp_path / "adapter.gguf")
    change(peft / "adapter_config.json", use_dora=True)
    references = reference(loading.load_adapted(tiny, peft), loading.load_tokenizer(tiny), TALKS)
    export_merged(tiny, peft, tmp_path / "merged.gguf")
    assert (await compare(references, tmp_path / "merged.gguf"))["tokens"] > 100
    export_base(tiny, tmp_path / "base.gguf")
    assert read_gguf(tmp_path / "merged.gguf").tensors == read_gguf(tmp_path / "base.gguf").tensors + 1  # its own output


async def test_tables_that_were_trained_whole(family: Callable[[str], Exported], tmp_path: Path) -> None:
    one = family("phi")
    whole = {"target_modules": ["qkv_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}
    peft = adapted(one.hf, tmp_path / "peft", **whole)
    with pytest.raises(Unsupported, match="modules_to_save"):
        export_adapter(peft, one.hf, tmp_path / "adapter.gguf")
    references = reference(loading.load_adapted(one.hf, peft), loading.load_tokenizer(one.hf), TALKS)
    export_merged(one.hf, peft, tmp_path / "merged.gguf")
    assert (await compare(references, tmp_path / "merged.gguf"))["tokens"] > 100


def test_an_output_table_that_llama_cpp_has_no_place_for(family: Callable[[str], Exported], tmp_path: Path) -> None:
    """The first Gemma: the converter leaves its output table out without a word, and the model would babble."""
    import torch
    from transformers import GemmaConfig, GemmaForCausalLM

    folder = tmp_path / "hf"
    shutil.copytree(family("gemma").hf, folder)
    (folder / "model.safetensors").unlink()
    torch.manual_seed(1)
    shape = families.SHAPE | {"vocab_size": 600, "head_dim": 16, "tie_word_embeddings": False}
    GemmaForCausalLM(GemmaConfig(**shape)).save_pretrained(folder)
    with pytest.raises(Unsupported, match="no place for this model's output table"):
        export_base(folder, tmp_path / "model.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


async def test_rank_stabilised_scale(tiny: Path, tmp_path: Path) -> None:
    peft = adapted(tiny, tmp_path / "peft", use_rslora=True)
    references = reference(loading.load_adapted(tiny, peft), loading.load_tokenizer(tiny), TALKS)
    export_base(tiny, tmp_path / "base.gguf")
    export_adapter(peft, tiny, tmp_path / "adapter.gguf")
    assert (await compare(references, tmp_path / "base.gguf", tmp_path / "adapter.gguf"))["tokens"] > 100


# --- a real model with its own vocabulary, and no chat template -----------------------------------------------------------


def test_a_real_model_with_its_own_vocabulary(shared_data: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from appliance.engine.llama import Llama
    from appliance.registry import Registry
    from appliance.tuning.importing import import_model

    folder = tmp_path / "hf"
    shutil.copytree(shared_data / "models" / "tinystories-656k", folder)
    for extra in ("SOURCE.txt", "LICENSE.txt"):
        (folder / extra).unlink()
    folder.chmod(0o755)
    (folder / "chat_template.jinja").write_bytes(b"{% for m in messages %}{{ m['content'] }}\r\n{% endfor %}")
    files = {"F16": tmp_path / "story.gguf"}
    export_base(folder, files["F16"])
    assert read_gguf(files["F16"]).template == chat_template(folder) and "\r\n" in chat_template(folder)
    texts = [
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the park with her friends.",
        "Tom and his dog ran to the lake. The water was cold, but the sun was warm. They wanted to swim all day.",
        "The small bird could not fly. It was sad. A kind boy named Max came and gave it some food.",
        "One day, Sam found a box. In the box was a shiny key. He asked his mom what it was for.",
    ]
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()
    references = text_reference(model, AutoTokenizer.from_pretrained(folder, local_files_only=True), texts)
    kinds: list[Kind] = ["F16", "Q8_0", "Q5_K_M", "Q4_K_M"]
    for kind in kinds:
        if kind not in files:
            files[kind] = tmp_path / f"{kind}.gguf"
            quantise(files["F16"], files[kind], kind)  # type: ignore[arg-type]
        served = Llama(files[kind], threads=1, context=256, sequences=1)
        try:
            found = text_parity(references, served, kind)
            with pytest.raises(ApplianceError, match="other tokens"):
                text_parity([Reference([*references[0].ids[:-1], 9], references[0].logprobs, rendered=texts[0])], served)
        finally:
            served.close()
        assert found["texts"] == 4 and found["tokens"] > 60 and (kind != "F16" or found["greedy_tokens"] > 10)
    # Its vocabulary has no bytes: one letter that it does not know would end the engine, so it is not taken in.
    with pytest.raises(BadInput, match="no tokens for every letter"):
        import_model(Registry(tmp_path / "models"), files["F16"], licence="Apache-2.0")


# --- tokenizers -----------------------------------------------------------------------------------------------------------


def _byte_level(**model: Any) -> dict[str, Any]:
    return {"model": {"type": "BPE"} | model, "normalizer": None, "pre_tokenizer": {"type": "ByteLevel", "use_regex": True}}


def _split(pattern: str, **model: Any) -> dict[str, Any]:
    cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    steps = [cut, {"type": "ByteLevel", "use_regex": False, "add_prefix_space": False}]
    return _byte_level(**model) | {"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}


@pytest.mark.parametrize(
    ("tokenizer", "name"),
    [
        (_byte_level(), "gpt-2"),
        (_split(families.LLAMA_3, ignore_merges=True), "llama-bpe"),
        (_split(families.LLAMA_3), "dbrx"),
        (_split(families.QWEN_2) | {"normalizer": {"type": "NFC"}}, "qwen2"),
        (_split(families.GPT_4O), "gpt-4o"),
    ],
)
def test_the_name_of_a_cut(tokenizer: dict[str, Any], name: str) -> None:
    assert tokens.pre_tokenizer(tokenizer) == name


@pytest.mark.parametrize(
    ("tokenizer", "words"),
    [
        (_byte_level() | {"pre_tokenizer": {"type": "Whitespace"}}, "rule of their own"),
        (_byte_level() | {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "rule of their own"),
        (_byte_level() | {"normalizer": {"type": "Lowercase"}}, "changes text"),
        (_split(r"\p{L}+"), "rule of their own"),
        (_split(families.QWEN_2, ignore_merges=True), "without merging"),
        (_byte_level(type="Unigram"), "Unigram"),
    ],
)
def test_a_cut_without_a_name_is_refused(tokenizer: dict[str, Any], words: str) -> None:
    with pytest.raises(Unsupported, match=words):
        tokens.pre_tokenizer(tokenizer)


def test_a_missing_sentencepiece_file_is_made_again(family: Callable[[str], Exported]) -> None:
    import sentencepiece

    folder = family("gemma").hf
    described = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    real = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    made = sentencepiece.SentencePieceProcessor(model_proto=tokens.sentencepiece(described))
    assert made.get_piece_size() == real.get_piece_size() == 600
    for number in range(600):
        assert made.id_to_piece(number) == real.id_to_piece(number)
        kinds = [(one.is_control(number), one.is_byte(number), one.is_unknown(number)) for one in (made, real)]
        assert kinds[0] == kinds[1], made.id_to_piece(number)
    for text in [*TEXTS[:40], "  two spaces, naïve 東京"]:
        assert made.encode(text) == real.encode(text), text


# --- bad input ------------------------------------------------------------------------------------------------------------


def test_what_cannot_be_converted_is_said_at_once(
    family: Callable[[str], Exported], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = family("phi")
    folder = tmp_path / "hf"
    shutil.copytree(one.hf, folder)
    out = tmp_path / "model.gguf"
    change(folder / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    with pytest.raises(Unsupported, match="stored quantised"):
        converter.convert_base(folder, out)
    change(folder / "config.json", quantization_config=None, architectures=["NobodyForCausalLM"])
    with pytest.raises(Unsupported, match="NobodyForCausalLM"):
        converter.convert_base(folder, out)
    change(folder / "config.json", architectures=["Phi3ForCausalLM"])
    with monkeypatch.context() as patch:
        patch.setattr(converter, "SECONDS", -0.9)  # and one for the weights: a quick machine needs less than two for all
        with pytest.raises(BadInput, match="in time"):
            converter.convert_base(folder, out)
    with monkeypatch.context() as patch:
        patch.setattr(converter, "MEMORY", 2**20)
        with pytest.raises(ApplianceError, match="memory"):
            converter.convert_base(folder, out)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "prefix", str(tmp_path))
        with pytest.raises(Unsupported, match="not installed"):
            converter.convert_base(folder, out)
    (folder / "modeling.py").write_text("raise SystemExit", "utf-8")
    with pytest.raises(BadInput, match=r"modeling\.py"):
        converter.convert_base(folder, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]


@pytest.mark.parametrize(("kind", "dtype"), [("F16", np.float16), ("F32", np.float32), ("BF16", np.uint16)])
def test_a_weight_that_became_infinite_is_refused(kind: str, dtype: Any, tmp_path: Path) -> None:
    import gguf

    for number, values in enumerate((np.ones(64, dtype), np.full(64, 0x7F80 if kind == "BF16" else np.inf, dtype))):
        writer = gguf.GGUFWriter(tmp_path / f"{number}.gguf", "llama")
        raw = gguf.GGMLQuantizationType.BF16 if kind == "BF16" else None
        shown = values.view(np.uint8) if kind == "BF16" else values
        writer.add_tensor("output.weight", shown, raw_dtype=raw)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    assert converter_child._check_values(tmp_path / "0.gguf") == {"output.weight"}
    with pytest.raises(ModelUnavailable, match=r"output\.weight does not fit"):
        converter_child._check_values(tmp_path / "1.gguf")
