"""Loads a base model and its adapter from a local folder, and nothing else that may lie in it.

Hides which files are allowed (safetensors and known JSON: no pickles, no Python), how 4-bit loading is asked for, and how the
method is chosen for the memory there is. Never touches the network.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from appliance.errors import BadInput, ModelUnavailable

REFUSED_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".py", ".so", ".npy", ".h5", ".msgpack"})
REFUSED_KEYS = ("auto_map", "_attn_implementation_internal", "trust_remote_code", "custom_pipelines")
BYTES_PER_WEIGHT = 2  # bfloat16
LORA_ROOM = 1.4  # activations, adapter and optimizer beside the frozen weights
GPU_SPARE = 2 * 10**9


def check_folder(folder: Path) -> None:
    """Refuse a model folder that holds anything executable. Raises ModelUnavailable, BadInput."""
    if not (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file():
        raise ModelUnavailable(f"There is no model in {folder.name}.", "Give a folder with config.json and safetensors files.")
    for path in sorted(folder.iterdir()):
        if path.suffix in REFUSED_SUFFIXES:
            raise BadInput(
                f"The model folder {folder.name} holds {path.name}, which can run code when it is loaded.",
                "Use a model in safetensors format.",
            )
        if path.suffix == ".json" and path.name.endswith("config.json"):
            _check_config(path)
    if not any(path.suffix == ".safetensors" for path in folder.iterdir()):
        raise ModelUnavailable(f"There are no weights in {folder.name}.", "Give a folder with safetensors files.")


def _check_config(path: Path) -> None:
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        raise BadInput(f"{path.name} of the model is not valid JSON.", "Copy the model again.") from None
    found = [key for key in REFUSED_KEYS if isinstance(config, dict) and key in config]
    if found:
        raise BadInput(f'{path.name} of the model asks for code of its own ("{found[0]}").', "Use a model without it.")


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
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def load_base(folder: Path, *, dtype: str = "float32", quantised: bool = False, device: str = "cpu") -> Any:
    """The base model in `dtype`, its weights in NF4 where `quantised`. Raises ModelUnavailable."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    check_folder(folder)
    options: dict[str, Any] = {}
    if quantised:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
        options["device_map"] = {"": device}
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
    return model if quantised else model.to(device)


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
    """Number of weights, from the safetensors headers: nothing is loaded."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as handle:
            header = json.loads(handle.read(int.from_bytes(handle.read(8), "little")))
        for name, entry in header.items():
            if name != "__metadata__":
                size = 1
                for length in entry["shape"]:
                    size *= length
                total += size
    return total


def choose_method(asked: str, weights: int, gpu_free: int | None) -> str:
    """ "lora" or "qlora": what was asked; left to us, QLoRA only where a GPU is there and LoRA would not fit in its memory."""
    if asked != "auto":
        return asked
    if gpu_free is None:
        return "lora"
    return "lora" if weights * BYTES_PER_WEIGHT * LORA_ROOM + GPU_SPARE <= gpu_free else "qlora"
