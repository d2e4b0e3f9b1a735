"""A trained model -> the GGUF files that llama.cpp serves: the base once, each adapter by itself.

Hides tensor names, the row order that llama.cpp's rotary embedding expects, and the tokenizer's tables. Written for the Llama
architecture with byte-level BPE (the starter's), straight from safetensors: no torch, no pickles. Whether an export says what
the trained model says is `parity.py`'s question. Format: github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from appliance.errors import BadInput, ModelUnavailable, NotFound, Unsupported, from_os_error
from appliance.registry import Manifest, Registry
from appliance.tuning.loading import check_folder

Array = npt.NDArray[Any]

ARCHITECTURE = "LlamaForCausalLM"
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
KEPT = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "tokenizer.json",
        "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "README.md", "LICENSE*")  # fmt: skip


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


def _config(folder: Path) -> dict[str, Any]:
    """config.json of a model this file can export. Raises Unsupported naming what it cannot."""
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


def export_base(hf_folder: Path, out: Path, name: str = "model") -> None:
    """Write a Llama model and its tokenizer as one F16 GGUF file, whole or not at all; the same inputs give the same bytes.

    Raises Unsupported naming the architecture or tokenizer, ModelUnavailable, StorageFull.
    """
    check_folder(hf_folder)
    config = _config(hf_folder)
    with _writer(out, "llama") as (writer, gguf):
        writer.add_name(name)
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
        tied = bool(config.get("tie_word_embeddings"))
        for name, tensor in _tensors(hf_folder):
            served, module = _served_name(name.removesuffix(".weight"))
            if served == "output" and tied:
                continue  # llama.cpp reuses the embedding
            if heads := _heads(config, module):
                tensor = _permuted(tensor, heads)
            if tensor.ndim > 1:
                with np.errstate(over="ignore"):
                    tensor = tensor.astype(np.float16)
            if not np.isfinite(tensor).all():
                raise ModelUnavailable(f"The tensor {name} does not fit into 16-bit floats.", "Copy the model again.")
            writer.add_tensor(f"{served}.weight", np.ascontiguousarray(tensor))


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
    model = tokenizer.get("model", {})
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise Unsupported(f"Tokenizers of the kind {model.get('type')} cannot be exported.", "Use a byte-level BPE tokenizer.")
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
    writer.add_tokenizer_pre(_pre_tokenizer(tokenizer))
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
    template = folder / "chat_template.jinja"
    # Bytes, because reading as text would change line ends: the template goes over as it is.
    chat = template.read_bytes().decode("utf-8") if template.is_file() else settings.get("chat_template")
    if not isinstance(chat, str) or not chat:
        raise Unsupported("The model has no chat template.", "Use a model made for conversation.")
    writer.add_chat_template(chat)


def _pre_tokenizer(tokenizer: dict[str, Any]) -> str:
    """llama.cpp's name for the way this tokenizer cuts text before merging. Raises Unsupported for a way it is not told."""
    step = tokenizer.get("pre_tokenizer") or {}
    plain = step.get("type") == "ByteLevel" and step.get("use_regex", True) and not step.get("add_prefix_space")
    if not plain or tokenizer.get("normalizer"):
        raise Unsupported("The model's tokenizer cuts words in a way that has no exporter here.", "Use GPT-2's splitting.")
    return "gpt-2"


# --- the adapter ----------------------------------------------------------------------------------------------------------


def export_adapter(adapter_folder: Path, base_hf_folder: Path, out: Path) -> None:
    """Write a peft LoRA adapter as a GGUF adapter in F32, whole or not at all.

    Raises Unsupported for kinds of adapter that llama.cpp cannot apply, ModelUnavailable, StorageFull.
    """
    config = _config(base_hf_folder)
    adapter = _json(adapter_folder / "adapter_config.json")
    alpha = _alpha(adapter)
    pairs = list(_tensors(adapter_folder))
    if not pairs:
        raise ModelUnavailable("The adapter holds no weights.", "Run the tuning again.")
    with _writer(out, "llama") as (writer, gguf):
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
        for name, tensor in pairs:
            served, part = _adapter_part(name, config, tensor)
            if not np.isfinite(part).all():
                raise ModelUnavailable(f"The adapter's weights {name} are not finite.", "Run the tuning again.")
            writer.add_tensor(served, np.ascontiguousarray(part))


def _alpha(adapter: dict[str, Any]) -> float:
    """The alpha that makes llama.cpp's scale, alpha / rank, the one that was trained with."""
    if adapter.get("peft_type") != "LORA":
        raise Unsupported(f"Adapters of the kind {adapter.get('peft_type')} cannot be exported.", "Use LoRA.")
    for key in ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "trainable_token_indices", "layer_replication"):
        if adapter.get(key):
            raise Unsupported(f"LoRA adapters with {key} cannot be exported.", "Tune without it.")
    if adapter.get("bias", "none") != "none":
        raise Unsupported("LoRA adapters with biases cannot be exported.", "Tune without them.")
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
    config = _config(hf_folder)
    incoming = registry.root / f".{name}.{os.getpid()}.new"
    try:
        shutil.rmtree(incoming, ignore_errors=True)
        (incoming / "hf").mkdir(parents=True)
        for pattern in KEPT:
            for path in hf_folder.glob(pattern):
                shutil.copyfile(path, incoming / "hf" / path.name)
        export_base(incoming / "hf", incoming / "model.gguf", name)
        return registry.add(
            incoming, id=name, kind="base", title=title or ("Starter" if starter else hf_folder.name),
            licence=licence or _licence(hf_folder, starter), context=int(config["max_position_embeddings"]), starter=starter,
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
    for pattern in KEPT[:8]:
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
