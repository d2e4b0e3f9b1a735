"""Any architecture that llama.cpp knows -> GGUF, by llama.cpp's own converter of the very release that serves.

The converter comes out of the same source package as the engine (`scripts/install` keeps it beside the virtual environment);
nothing of it is copied here. It is a large program fed with a stranger's files, so it runs in a child process: offline, with a
clock and a memory limit, in an empty folder that shows it only weights, configuration and tokenizer. Hides that folder, the
child, and its answer. What our own writer handles (`gguf.py`) does not come here; whether a file says what the trained model
says is `parity.py`'s question.
"""

from __future__ import annotations

import ast
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from appliance import errors, network
from appliance.errors import ApplianceError, BadInput, ModelUnavailable, Unsupported, from_os_error
from appliance.files import sync, sync_tree
from appliance.settings import PACKAGE
from appliance.tuning.loading import check_folder

Dtype = Literal["F32", "F16", "BF16"]

TOLD = 3  # exit code of a child that said what is wrong
SECONDS = 180  # to import the libraries and to convert a small model
BYTES_PER_SECOND = 10 * 2**20  # a slow disk
MEMORY = 6 * 2**30  # of the libraries and the tables of a large vocabulary
# What the child may see of a model folder: no model card, whose front matter would be parsed for nothing.
SEEN = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "tokenizer.json",
        "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "tokenizer.model", "added_tokens.json",
        "vocab.json", "merges.txt")  # fmt: skip


def home() -> Path:
    """The converter's folder, of the release of llama.cpp that serves. Raises Unsupported where it was not installed."""
    folder = Path(sys.prefix) / "share" / "appliance" / f"converter-{metadata.version('llama-cpp-python')}"
    if not (folder / "convert_hf_to_gguf.py").is_file():
        raise Unsupported(
            "The converter for models of other architectures is not installed.", "Run `scripts/install` once with a network."
        )
    return folder


def convert_base(hf: Path, out: Path, dtype: Dtype = "F16", *, name: str = "model", licence: str = "") -> None:
    """Write the model in a Hugging Face folder as one GGUF file, whole or not at all.

    Raises Unsupported naming an architecture or tokenizer that llama.cpp has no equal for, ModelUnavailable, StorageFull.
    """
    with _workplace(hf, out) as (work, view):
        draft = work / "model.gguf"
        _run(work, view, verb="base", model=str(view), out=str(draft), dtype=dtype.lower(), name=name, licence=licence)
        _settle(draft, out)


def convert_adapter(weights: Mapping[str, Any], hf: Path, out: Path, *, alpha: float) -> None:
    """Write a LoRA adapter as a GGUF adapter in F32. weights: numpy arrays by peft's names; alpha: over the rank it gives the
    scale that was trained with.

    The base is the folder `hf`, whatever path, hub name or 4-bit copy the adapter says it was trained on.
    """
    from safetensors.numpy import save_file

    with _workplace(hf, out) as (work, view):
        worn = work / "adapter"
        worn.mkdir()
        save_file({name: weights[name].copy() for name in weights}, worn / "adapter_model.safetensors")
        (worn / "adapter_config.json").write_text(json.dumps({"lora_alpha": alpha}), "utf-8")
        draft = work / "adapter.gguf"
        _run(work, view, verb="adapter", model=str(view), adapter=str(worn), out=str(draft))
        _settle(draft, out)


def merge(hf: Path, adapter: Path, out: Path) -> None:
    """Make the Hugging Face folder `out` in float32: the base with the adapter's changes added, tokenizer files as they are.

    Takes every kind of adapter that peft can merge: rsLoRA, DoRA, embeddings, `lm_head`, modules saved whole.
    """
    check_folder(adapter)
    with _workplace(hf, out) as (work, view):
        draft = work / "merged"
        _run(work, view, memory=8, verb="merge", **_merging(hf, adapter, view, draft))
        _settle(draft, out)


def convert_merged(hf: Path, adapter: Path, out: Path, dtype: Dtype = "F16", *, name: str = "model", licence: str = "") -> None:
    """`merge` and `convert_base` in one child. Raises what they raise."""
    check_folder(adapter)
    with _workplace(hf, out) as (work, view):
        draft = work / "model.gguf"
        job = _merging(hf, adapter, view, work / "merged") | {"dtype": dtype.lower(), "name": name, "licence": licence}
        _run(work, view, memory=8, verb="merged", file=str(draft), **job)
        _settle(draft, out)


def _merging(hf: Path, adapter: Path, view: Path, folder: Path) -> dict[str, str]:
    return {"model": str(hf.resolve()), "adapter": str(adapter.resolve()), "view": str(view), "folder": str(folder)}


# --- the folder that the child sees ---------------------------------------------------------------------------------------


@contextmanager
def _workplace(hf: Path, out: Path) -> Iterator[tuple[Path, Path]]:
    """A folder beside `out`, which goes again, and in it a view of the model: links to the files that matter."""
    check_folder(hf)
    _check_config(hf)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".convert-", dir=out.parent) as folder:
            work = Path(folder).resolve()
            view = work / "model"
            view.mkdir()
            found = sorted({path for pattern in SEEN for path in hf.glob(pattern)})
            alone = sum(path.suffix == ".safetensors" for path in found) == 1
            for path in found:
                name = "model.safetensors" if alone and path.suffix == ".safetensors" else path.name
                (view / name).symlink_to(path.resolve())
            yield work, view
    except OSError as error:
        raise from_os_error(error, f"writing {out.name}") from None


def _check_config(hf: Path) -> None:
    """Refuse at once what a child would refuse after seconds, and weights that were stored in 4 or 8 bits for training."""
    config = _json(hf / "config.json")
    inner = config.get("text_config")
    named = (inner.get("architectures") if isinstance(inner, dict) else None) or config.get("architectures") or ["none"]
    if not isinstance(named, list) or named[0] not in architectures():
        what = named[0] if isinstance(named, list) else named
        raise Unsupported(f"Models of the architecture {str(what)[:80]} are unknown to llama.cpp.", "Use another model.")
    stored = config.get("quantization_config")
    if stored:
        how = stored.get("quant_method", "some way") if isinstance(stored, dict) else "some way"
        raise Unsupported(
            f"The weights of the model in {hf.name} are stored quantised ({how}).", "Give the original model in 16 bits."
        )


def architectures() -> frozenset[str]:
    """What the converter converts, by transformers' names; read from its table, because importing it takes seconds."""
    tree = ast.parse((home() / "conversion" / "__init__.py").read_text("utf-8"))
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "TEXT_MODEL_MAP" and node.value is not None:
            return frozenset(ast.literal_eval(node.value))
    raise Unsupported("The converter does not say what it converts.", "Run `scripts/install` again.")


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        value = None
    if not isinstance(value, dict):
        raise ModelUnavailable(f"The model's {path.name} is missing or damaged.", "Copy the model again.")
    return value


def _settle(draft: Path, out: Path) -> None:
    """Flush what the child wrote, then give it its name."""
    if draft.is_dir():
        sync_tree(draft)
    else:
        sync(draft)
    draft.replace(out)
    sync(out.parent)


# --- the child --------------------------------------------------------------------------------------------------------------


def _run(work: Path, view: Path, /, *, memory: int = 3, **job: str) -> None:
    """Do one job in a child process. memory: times the weights' size that it may take beside the libraries."""
    weights = sum(path.stat().st_size for path in view.glob("*.safetensors"))
    seconds = SECONDS + math.ceil(weights / BYTES_PER_SECOND)
    order = job | {"home": str(home()), "seconds": seconds, "memory": MEMORY + memory * weights}
    environment = os.environ | network.OFFLINE | {"PYTHONPATH": str(PACKAGE.parent)}
    # -P: nothing is imported from the working folder.
    command = [sys.executable, "-P", "-m", "appliance.tuning.converter_child"]
    try:
        done = subprocess.run(
            command, input=json.dumps(order).encode(), capture_output=True, cwd=work, env=environment, timeout=seconds + 30
        )
    except subprocess.TimeoutExpired:
        raise _slow() from None
    if done.returncode == 0:
        return
    if done.returncode == TOLD:
        raise _told(done.stdout)
    if done.returncode == -signal.SIGALRM:
        raise _slow()
    why = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
    raise BadInput(
        f"Converting the model ended the process that tried it ({why}): it is damaged, or there is too little memory.",
        "Use another copy, or a smaller model.",
    )


def _slow() -> BadInput:
    return BadInput("The model could not be converted in time.", "Try again when the machine is idle, or use a smaller model.")


def _told(answer: bytes) -> ApplianceError:
    fault = json.loads(answer.splitlines()[-1])
    kinds = {"BadInput": BadInput, "ModelUnavailable": ModelUnavailable, "StorageFull": errors.StorageFull}
    return kinds.get(fault["kind"], Unsupported)(fault["message"], fault["hint"])
