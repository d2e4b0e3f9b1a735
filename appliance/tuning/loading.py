"""Loads a base model and its adapter from a local folder, and nothing else that may lie in it.

Hides which files are allowed (safetensors and known JSON: no pickles, no Python), how 4-bit and 8-bit bases are asked for, and
how the method is chosen for the memory there is. Never touches the network. What a base model's folder may hold is the import's
rule (`engine.inspect`); it is asked again here, because a folder can be given to the tuner without having been imported.
"""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from appliance.engine.inspect import check_hf_folder, read_safetensors
from appliance.errors import BadInput, ModelUnavailable

Quantised = Literal["", "nf4", "int8"]
QUANTISED: dict[str, Quantised] = {"qlora": "nf4", "lora8": "int8"}  # by method; any other keeps the base as it is

# What a folder with an adapter may hold: what peft writes, our manifest, and text.
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "manifest.json", "*.md", "LICENSE*", "NOTICE*")
# Parts of peft's configuration that import a module by name, compute on the base while loading, or that we never write.
ADAPTER_EMPTY = (
    "auto_mapping", "megatron_config", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "velora_config",
    "monteclora_config", "arrow_config", "kasa_config", "use_bdlora",
)  # fmt: skip
MAX_ADAPTER_CONFIG = 2**20
BYTES_PER_WEIGHT = 2  # bfloat16
LORA_ROOM = 1.4  # activations, adapter and optimizer beside the frozen weights
GPU_SPARE = 2 * 10**9


def check_folder(folder: Path) -> None:
    """Refuse a model's or an adapter's folder that holds anything executable. Raises ModelUnavailable, BadInput."""
    if (folder / "adapter_config.json").is_file():
        _check_adapter(folder)
        return
    if not (folder / "config.json").is_file():
        raise ModelUnavailable(f"There is no model in {folder.name}.", "Give a folder with config.json and safetensors files.")
    if not any(path.suffix in (".safetensors", ".bin") for path in folder.iterdir()):
        raise ModelUnavailable(f"There are no weights in {folder.name}.", "Give a folder with safetensors files.")
    check_hf_folder(folder)


def _check_adapter(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        if path.is_symlink() or not path.is_file() or not any(fnmatchcase(path.name, name) for name in ADAPTER_FILES):
            raise BadInput(
                f"The adapter's folder {folder.name} holds {path.name}, which is no part of an adapter and may run code.",
                "Copy only adapter_config.json and adapter_model.safetensors into a new folder.",
            )
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    if not weights.is_file():
        raise ModelUnavailable(f"There are no weights in {folder.name}.", "Give a folder with adapter_model.safetensors.")
    read_safetensors(weights)
    try:
        values = json.loads(config.read_text("utf-8")) if config.stat().st_size < MAX_ADAPTER_CONFIG else None
    except (OSError, ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise BadInput("adapter_config.json is not valid JSON.", "Copy the adapter again.")
    wrong = [key for key in ADAPTER_EMPTY if values.get(key)]
    if values.get("peft_type") != "LORA":
        wrong.append("peft_type")
    if values.get("megatron_core") not in (None, "megatron.core"):  # the name of a module that would be imported
        wrong.append("megatron_core")
    if not isinstance(values.get("init_lora_weights", True), bool):
        wrong.append("init_lora_weights")
    if isinstance(values.get("target_modules"), str) and values["target_modules"] != "all-linear":  # a regular expression
        wrong.append("target_modules")
    if wrong:
        raise BadInput(
            f'adapter_config.json asks for something that a plain LoRA adapter does not need ("{wrong[0]}").',
            "Use an adapter that was tuned here, or a plain LoRA adapter.",
        )


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer, padding right, with a padding token. Raises ModelUnavailable."""
    from transformers import AutoTokenizer

    check_folder(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelUnavailable(f"The tokenizer in {folder.name} cannot be read: {error}.", "Copy the model again.") from None
    if not tokenizer.chat_template:
        raise ModelUnavailable(f"The model in {folder.name} has no chat template.", "Use a model made for conversation.")
    _try_template(tokenizer, folder.name)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def _try_template(tokenizer: Any, name: str) -> None:
    """A template that passed the import with one question may still refuse, or reach for more, with a whole conversation."""
    talk = [{"role": role, "content": "Hello"} for role in ("user", "assistant", "user", "assistant")]
    try:
        tokenizer.apply_chat_template(talk, tokenize=False)
        tokenizer.apply_chat_template(talk[:3], tokenize=False, add_generation_prompt=True)
    except Exception as error:  # noqa: BLE001 - a template is a stranger's program and can raise anything
        why = f"{type(error).__name__}: {str(error)[:200]}"
        raise BadInput(f"The chat template in {name} refused a conversation: {why}.", "Use another model.") from None


def load_base(folder: Path, *, dtype: str = "float32", quantised: Quantised | bool = "", device: str = "cpu") -> Any:
    """The base model in `dtype`, the weights of its layers in NF4 (also: True) or 8 bits where asked. Raises
    ModelUnavailable."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    check_folder(folder)
    options: dict[str, Any] = {}
    if quantised:
        options = {"quantization_config": _rounding("int8" if quantised == "int8" else "nf4"), "device_map": {"": device}}
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            attn_implementation="sdpa",
            dtype=getattr(torch, dtype),
            **options,
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ModelUnavailable(f"The model in {folder.name} cannot be loaded: {error}.", "Copy the model again.") from None
    except ImportError as error:
        raise ModelUnavailable(f"The model in {folder.name} cannot be loaded: {error}.", 'Use method = "lora".') from None
    return model if quantised else model.to(device)


def _rounding(kind: Quantised) -> Any:
    """How bitsandbytes holds the frozen weights: NF4 (arXiv 2305.14314) or LLM.int8 (arXiv 2208.07339)."""
    import torch
    from transformers import BitsAndBytesConfig

    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def load_adapted(base_folder: Path, adapter_folder: Path) -> Any:
    """Base and adapter in float32 on the CPU, ready to answer: the reference that exports are compared with."""
    from peft import PeftModel

    check_folder(adapter_folder)
    base = load_base(base_folder)
    try:
        model = PeftModel.from_pretrained(base, str(adapter_folder), local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelUnavailable(f"The adapter does not fit its base: {error}.", "Run the tuning again.") from None
    return model.float().eval()


def weights_in(folder: Path) -> int:
    """Number of weights, from the safetensors headers: nothing is loaded. Raises BadInput."""
    total = 0
    for path in folder.glob("*.safetensors"):
        for _kind, shape in read_safetensors(path).values():
            size = 1
            for side in shape:
                size *= side
            total += size
    return total


def choose_method(asked: str, weights: int, gpu_free: int | None) -> str:
    """ "lora", "qlora" or "lora8": what was asked; left to us, QLoRA only where a GPU is there and LoRA would not fit in its
    memory."""
    if asked != "auto":
        return asked
    if gpu_free is None:
        return "lora"
    return "lora" if weights * BYTES_PER_WEIGHT * LORA_ROOM + GPU_SPARE <= gpu_free else "qlora"
