"""A trained model -> the GGUF files that llama.cpp serves: the base once, each adapter by itself.

Hides who writes them. The starter's kind, plain Llama with GPT-2's byte-level BPE, is written here within a second, straight
from safetensors: tensor names, the row order that llama.cpp's rotary embedding expects, the tokenizer's tables; no torch, no
pickles. Everything else goes to llama.cpp's own converter (`converter.py`). Whether an export says what the trained model says
is `parity.py`'s question. Format: github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from appliance.engine.inspect import read_gguf
from appliance.errors import BadInput, ModelUnavailable, NotFound, Unsupported, from_os_error
from appliance.registry import Manifest, Registry
from appliance.tuning.converter import SEEN, Dtype, convert_adapter, convert_base, convert_merged, merge
from appliance.tuning.loading import check_folder
from appliance.tuning.parity import chat_template, same_template
from appliance.tuning.tokens import pre_tokenizer

Array = npt.NDArray[Any]

ARCHITECTURE = "LlamaForCausalLM"
TABLES = ("model.embed_tokens.weight", "lm_head.weight")
STARTER_KEY = "appliance.starter"  # in the header of our own files: a copy on another box keeps its mark
MODULES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
# What a base needs to be trained again and served; everything else in a model folder stays behind.
KEPT = (*SEEN, "README.md", "LICENSE*")
MERGED_HINT = "Export the two merged: appliance models export ID PATH --format merged."


# --- reading safetensors --------------------------------------------------------------------------------------------------


def _tensors(folder: Path) -> Iterator[tuple[str, Array]]:
    """Every tensor of a folder's safetensors files as float32, one at a time. Raises ModelUnavailable."""
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with path.open("rb") as handle:
                size = int.from_bytes(handle.read(8), "little")
                header = json.loads(handle.read(size))
            header.pop("__metadata__", None)
            data = np.memmap(path, np.uint8, "r", offset=8 + size) if header else np.empty(0, np.uint8)
            for name, entry in sorted(header.items()):
                start, end = entry["data_offsets"]
                yield name, _as_float32(name, entry["dtype"], data[start:end]).reshape(entry["shape"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelUnavailable(f"{path.name} is damaged: {error}.", "Copy the model again.") from None


def _as_float32(name: str, kind: str, raw: Array) -> Array:
    if kind == "BF16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if kind in ("F32", "F16"):
        return raw.view(np.float32 if kind == "F32" else np.float16).astype(np.float32)
    raise Unsupported(f"The tensor {name} is stored as {kind}.", "Use a model stored in 16 or 32 bits.")


def _permuted(rows: Array, heads: int) -> Array:
    """Query and key rows from the two halves of each head (transformers) to neighbouring pairs (llama.cpp)."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        raise ModelUnavailable(f"The model's {path.name} is missing or damaged.", "Copy the model again.") from None
    if not isinstance(value, dict):
        raise ModelUnavailable(f"The model's {path.name} is damaged.", "Copy the model again.")
    return value


def _ours(folder: Path) -> bool:
    """Whether this file's own writer knows the model in a folder; the converter takes the others."""
    try:
        _config(folder)
        tokenizer = _json(folder / "tokenizer.json")
        return pre_tokenizer(tokenizer) == "gpt-2" and not tokenizer.get("normalizer")
    except (Unsupported, ModelUnavailable):
        return False


def _config(folder: Path) -> dict[str, Any]:
    """config.json of a model that is written here. Raises Unsupported naming what is not."""
    config = _json(folder / "config.json")
    found = config.get("architectures") or ["none"]
    if found != [ARCHITECTURE]:
        raise Unsupported(f"Models of the architecture {found[0]} cannot be exported to GGUF here.", f"Use a {ARCHITECTURE}.")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise Unsupported("Models with scaled rotary embeddings cannot be exported to GGUF here.", "Use one without.")
    if config.get("attention_bias") or config.get("mlp_bias"):
        raise Unsupported("Llama models with biases cannot be exported to GGUF here.", "Use one without.")
    config["rope_theta"] = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    config["head_dim"] = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    config["num_key_value_heads"] = config.get("num_key_value_heads") or config["num_attention_heads"]
    return config


def _served_name(name: str) -> tuple[str, str]:
    """("blk.3.attn_q", "self_attn.q_proj") for a module's name. Raises Unsupported for one llama.cpp has no place for."""
    if name in OUTER:
        return OUTER[name], name
    inner = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
    if inner is None or inner.group(2) not in MODULES:
        raise Unsupported(f"The model's part {name} cannot be exported to GGUF.", "Use a plain Llama model.")
    return f"blk.{inner.group(1)}.{MODULES[inner.group(2)]}", inner.group(2)


def _heads(config: dict[str, Any], module: str) -> int:
    """How many heads' rows must be reordered; 0 for every other part."""
    key = {"self_attn.q_proj": "num_attention_heads", "self_attn.k_proj": "num_key_value_heads"}.get(module)
    return int(config[key]) if key else 0


# --- the base -------------------------------------------------------------------------------------------------------------


def export_base(
    hf_folder: Path, out: Path, name: str = "model", *, dtype: Dtype = "F16", licence: str = "", starter: bool = False
) -> None:
    """Write a model, its tokenizer and its chat template as one GGUF file, whole or not at all; same inputs, same bytes.

    starter: mark the file as the small model that comes with the box. Raises Unsupported naming the architecture or tokenizer,
    ModelUnavailable, BadInput, StorageFull.
    """
    check_folder(hf_folder)
    if dtype != "F16" or not _ours(hf_folder):
        convert_base(hf_folder, out, dtype, name=name, licence=licence)
    else:
        _write_base(hf_folder, out, name, licence, starter)
    same_template(out, hf_folder)


def export_merged(
    base_hf_folder: Path,
    adapter_folder: Path,
    out: Path,
    name: str = "model",
    *,
    dtype: Dtype = "F16",
    licence: str = "",
    starter: bool = False,
) -> None:
    """Write base and adapter as one GGUF file: merged in float32, then rounded once to `dtype`.

    Takes what no GGUF adapter can say: DoRA, modules saved whole, changed embeddings. Raises as `export_base` does.
    """
    if dtype != "F16" or not _ours(base_hf_folder):
        convert_merged(base_hf_folder, adapter_folder, out, dtype, name=name, licence=licence)
        same_template(out, base_hf_folder)
        return
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".merge-", dir=out.parent) as folder:
            merge(base_hf_folder, adapter_folder, Path(folder) / "merged")
            export_base(Path(folder) / "merged", out, name, dtype=dtype, licence=licence, starter=starter)
    except OSError as error:
        raise from_os_error(error, f"writing {out.name}") from None


def _write_base(hf_folder: Path, out: Path, name: str, licence: str, starter: bool) -> None:
    config = _config(hf_folder)
    with _writer(out, "llama") as (writer, gguf):
        writer.add_name(name)
        if licence:
            writer.add_license(licence)
        if starter:
            writer.add_bool(STARTER_KEY, True)
        writer.add_context_length(config["max_position_embeddings"])
        writer.add_embedding_length(config["hidden_size"])
        writer.add_block_count(config["num_hidden_layers"])
        writer.add_feed_forward_length(config["intermediate_size"])
        writer.add_head_count(config["num_attention_heads"])
        writer.add_head_count_kv(config["num_key_value_heads"])
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
        writer.add_rope_dimension_count(config["head_dim"])
        writer.add_rope_freq_base(config["rope_theta"])
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
        writer.add_vocab_size(config["vocab_size"])
        writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
        _add_tokenizer(writer, gguf, hf_folder, config["vocab_size"])
        for part, tensor in _weights(hf_folder, bool(config.get("tie_word_embeddings"))):
            served, module = _served_name(part.removesuffix(".weight"))
            if heads := _heads(config, module):
                tensor = _permuted(tensor, heads)
            if tensor.ndim > 1:
                with np.errstate(over="ignore"):
                    tensor = tensor.astype(np.float16)
            if not np.isfinite(tensor).all():
                raise ModelUnavailable(f"The tensor {part} does not fit into 16-bit floats.", "Copy the model again.")
            writer.add_tensor(f"{served}.weight", np.ascontiguousarray(tensor))


def _weights(folder: Path, tied: bool) -> Iterator[tuple[str, Array]]:
    """What is to be written. Tied: one table is input and output, and llama.cpp wants it under the input's name only."""
    output, has_input = None, False
    for name, tensor in _tensors(folder):
        has_input = has_input or name == "model.embed_tokens.weight"
        if tied and name == "lm_head.weight":
            output = tensor
        else:
            yield name, tensor
    if output is not None and not has_input:
        yield "model.embed_tokens.weight", output


class _writer:
    """A GGUF writer whose file appears under its name only when it is complete and flushed."""

    def __init__(self, out: Path, architecture: str) -> None:
        self.out, self.architecture = out, architecture
        self.draft = out.with_name(f".{out.name}.part")

    def __enter__(self) -> tuple[Any, Any]:
        import gguf

        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
        except OSError as fault:
            raise from_os_error(fault, f"writing {self.out.name}") from None
        self.writer = gguf.GGUFWriter(self.draft, self.architecture)  # opens the file only when it writes
        return self.writer, gguf

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if kind is None:
                self.writer.write_header_to_file()
                self.writer.write_kv_data_to_file()
                self.writer.write_tensors_to_file()
            self.writer.close()
            if kind is None:
                with self.draft.open("rb") as handle:
                    os.fsync(handle.fileno())
                self.draft.replace(self.out)
        except OSError as fault:
            raise from_os_error(fault, f"writing {self.out.name}") from None
        finally:
            self.draft.unlink(missing_ok=True)


def _add_tokenizer(writer: Any, gguf: Any, folder: Path, vocabulary: int) -> None:
    """Tokens, their kinds, merges, special ids and the chat template, as tokenizer.json and its siblings give them."""
    tokenizer = _json(folder / "tokenizer.json")
    model = tokenizer["model"]
    kinds = [gguf.TokenType.UNUSED] * vocabulary
    tokens = [f"[PAD{number}]" for number in range(vocabulary)]
    ids: dict[str, int] = dict(model["vocab"])
    for text, number in ids.items():
        tokens[number], kinds[number] = text, gguf.TokenType.NORMAL
    for added in tokenizer.get("added_tokens", []):
        ids[added["content"]] = added["id"]
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
    settings = _json(folder / "tokenizer_config.json")
    for key, add in (
        ("bos_token", writer.add_bos_token_id), ("eos_token", writer.add_eos_token_id), ("pad_token", writer.add_pad_token_id),
    ):  # fmt: skip
        token = settings.get(key)
        mark = token.get("content") if isinstance(token, dict) else token
        if mark in ids:
            add(ids[mark])
    writer.add_add_bos_token(False)
    chat = chat_template(folder)
    if not chat:
        raise Unsupported("The model has no chat template.", "Use a model made for conversation.")
    writer.add_chat_template(chat)


# --- the adapter ----------------------------------------------------------------------------------------------------------


def export_adapter(adapter_folder: Path, base_hf_folder: Path, out: Path) -> None:
    """Write a peft LoRA adapter as a GGUF adapter in F32, whole or not at all, for the base in `base_hf_folder`.

    Raises Unsupported for kinds of adapter that llama.cpp cannot apply, ModelUnavailable, StorageFull.
    """
    check_folder(adapter_folder)
    alpha = _alpha(_json(adapter_folder / "adapter_config.json"))
    parts = _changes(adapter_folder, base_hf_folder)
    if not parts:
        raise ModelUnavailable("The adapter holds no weights.", "Run the tuning again.")
    for name, tensor in parts.items():
        if not np.isfinite(tensor).all():
            raise ModelUnavailable(f"The adapter's weights {name} are not finite.", "Run the tuning again.")
    if not _ours(base_hf_folder):
        convert_adapter(parts, base_hf_folder, out, alpha=alpha)
        return
    config = _config(base_hf_folder)
    with _writer(out, "llama") as (writer, gguf):
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
        for name, tensor in parts.items():
            served, part = _adapter_part(name, config, tensor)
            writer.add_tensor(served, np.ascontiguousarray(part))


def _changes(adapter: Path, base: Path) -> dict[str, Array]:
    """The adapter's low-rank weights. Raises Unsupported for changes of the first and last table that it cannot carry.

    Where `lm_head` is among the changed parts, peft stores the base's own tables beside them; what only repeats the base goes.
    """
    parts = dict(_tensors(adapter))
    tables = [name for name in parts if ".lora_" not in name]
    whole = {name: name.removeprefix("base_model.model.").replace(".base_layer.", ".") for name in tables}
    held: dict[str, Array] = {}
    if whole or any(".lm_head." in name for name in parts):
        held = {name: tensor for name, tensor in _tensors(base) if name in {*whole.values(), *TABLES}}
    for name, stood in whole.items():
        same = held.get(stood, held.get("model.embed_tokens.weight") if stood == "lm_head.weight" else None)
        if same is None or not np.array_equal(parts.pop(name), same):
            raise Unsupported(f"The adapter changes {stood.removesuffix('.weight')} as a whole.", MERGED_HINT)
    if any(".embed_tokens." in name for name in parts):
        raise Unsupported("The adapter changes the embedding (embed_tokens), which no GGUF adapter can.", MERGED_HINT)
    shared = _json(base / "config.json").get("tie_word_embeddings") or "lm_head.weight" not in held
    if shared and any(".lm_head." in name for name in parts):
        raise Unsupported("The adapter changes lm_head, which this base shares with its embedding.", MERGED_HINT)
    return parts


def _alpha(adapter: dict[str, Any]) -> float:
    """The alpha that makes llama.cpp's scale, alpha / rank, the one that was trained with."""
    if adapter.get("peft_type") != "LORA":
        raise Unsupported(f"Adapters of the kind {adapter.get('peft_type')} cannot be exported.", "Use LoRA.")
    for key in ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "trainable_token_indices", "layer_replication"):
        if adapter.get(key):
            raise Unsupported(f"LoRA adapters with {key} cannot be exported by themselves.", MERGED_HINT)
    if adapter.get("bias", "none") != "none":
        raise Unsupported("LoRA adapters with biases cannot be exported by themselves.", MERGED_HINT)
    rank, alpha = int(adapter["r"]), float(adapter["lora_alpha"])
    return alpha * math.sqrt(rank) if adapter.get("use_rslora") else alpha


def _adapter_part(name: str, config: dict[str, Any], tensor: Array) -> tuple[str, Array]:
    """GGUF name and tensor: A is (rank, in), B is (out, rank), B of queries and keys reordered as the base is."""
    found = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.weight", name)
    if found is None:
        raise Unsupported(f"The adapter's part {name} cannot be exported.", "Use a plain LoRA adapter.")
    served, module = _served_name(found.group(1))
    if found.group(2) == "A":
        return f"{served}.weight.lora_a", tensor
    heads = _heads(config, module)
    return f"{served}.weight.lora_b", _permuted(tensor, heads) if heads else tensor


# --- into the registry ----------------------------------------------------------------------------------------------------


def install_base(
    registry: Registry, hf_folder: Path, *, id: str | None = None, starter: bool = True, licence: str = "", title: str = ""
) -> Manifest:
    """Export a base model and add it to the registry; once only, because its id carries the digest of its weights.

    Raises ModelUnavailable where the folder holds no model, Unsupported, BadInput, StorageFull.
    """
    check_folder(hf_folder)
    name = id or f"{'starter' if starter else _slug(hf_folder.name)}-{folder_digest(hf_folder)[:8]}"
    try:
        return registry.get(name)
    except NotFound:
        pass
    if not chat_template(hf_folder):
        raise Unsupported(f"The model in {hf_folder.name} has no chat template.", "Use a model made for conversation.")
    terms = licence or _licence(hf_folder, starter)
    incoming = registry.root / f".{name}.{os.getpid()}.new"
    try:
        shutil.rmtree(incoming, ignore_errors=True)
        (incoming / "hf").mkdir(parents=True)
        for pattern in KEPT:
            for path in hf_folder.glob(pattern):
                shutil.copyfile(path, incoming / "hf" / path.name)
        export_base(incoming / "hf", incoming / "model.gguf", name, licence=terms, starter=starter)
        return registry.add(
            incoming, id=name, kind="base", title=title or ("Starter" if starter else hf_folder.name),
            licence=terms, context=read_gguf(incoming / "model.gguf").context, starter=starter,
        )  # fmt: skip
    except OSError as error:
        raise from_os_error(error, "installing the base model") from None
    except KeyError as error:
        raise ModelUnavailable(f"The model's config.json lacks {error}.", "Copy the model again.") from None
    finally:
        shutil.rmtree(incoming, ignore_errors=True)


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._")[:48] or "base"


def folder_digest(folder: Path) -> str:
    """SHA-256 over the names and contents of the files that make the model what it is."""
    digest = hashlib.sha256()
    for pattern in SEEN:
        for path in sorted(folder.glob(pattern)):
            with path.open("rb") as handle:
                digest.update(f"{path.name} {hashlib.file_digest(handle, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def _licence(folder: Path, starter: bool) -> str:
    """The licence that the model card's front matter names. Raises BadInput where it names none."""
    card = folder / "README.md"
    found = re.search(r"^licen[cs]e:\s*(\S.*)$", card.read_text("utf-8", "replace"), re.M | re.I) if card.is_file() else None
    if found is None and starter:  # comes with the box, under the box's own licence
        return "see LICENSE"
    if found is None:
        raise BadInput(f"The model in {folder.name} does not say under which licence it stands.", "Give its licence.")
    return found.group(1).strip()
