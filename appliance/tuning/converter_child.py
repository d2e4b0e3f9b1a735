"""The process in which llama.cpp's converter runs, and in which an adapter is merged into its base.

Started by `converter.py` with an order in JSON on its standard input; answers with its exit code and, where something is wrong,
one line of JSON. Limits itself before anything is read. Hides how the converter is driven from outside: its command lines, the
tokenizers it does not know by name, and the SentencePiece file that newer model folders lack (`tokens.py`).
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import resource
import runpy
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from appliance import guard, network
from appliance.errors import ApplianceError, BadInput, ModelUnavailable, Unsupported, from_os_error

TOLD = 3


def main() -> int:
    network.stay_offline()
    guard.install()
    order = json.loads(sys.stdin.read())
    # The kernel's own clock: it also ends a child that hangs in native code, or whose parent was killed.
    signal.setitimer(signal.ITIMER_REAL, order.pop("seconds"))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _limit_memory(order.pop("memory"))
    home, verb = Path(order.pop("home")), order.pop("verb")
    answer, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints is no answer
    try:
        # First in the line: the converter brings the `gguf` of its own release.
        sys.path[:0] = [str(home), str(home / "gguf-py")]
        VERBS[verb](home, **order)
    except ApplianceError as error:
        answer.write(json.dumps({"kind": type(error).__name__, "message": error.message, "hint": error.hint}))
        answer.flush()
        return TOLD
    return 0


def _limit_memory(most: int) -> None:
    """Private memory only: the weights are mapped from their files and may be larger than the limit."""
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


# --- the two scripts --------------------------------------------------------------------------------------------------------


def base(home: Path, *, model: str, out: str, dtype: str, name: str, licence: str) -> None:
    from appliance.tuning.tokens import complete

    complete(Path(model))
    options = ["--outfile", out, "--outtype", dtype, "--model-name", name]
    if licence:
        override = Path(out).with_name("metadata.json")
        override.write_text(json.dumps({"general.license": licence}), "utf-8")
        options += ["--metadata", str(override)]
    _script(home, "convert_hf_to_gguf.py", [*options, model])
    if "output.weight" not in _check_values(Path(out)) and _own_output(Path(model)):
        raise Unsupported(
            "llama.cpp has no place for this model's output table, which differs from its input table (lm_head).",
            "Tune without lm_head and embeddings.",
        )


def _own_output(model: Path) -> bool:
    """Whether the model's last table is one of its own, and not the first one used again."""
    from transformers import AutoConfig

    from appliance.engine.inspect import read_safetensors

    stored = {name for path in model.glob("*.safetensors") for name in read_safetensors(path)}
    config = AutoConfig.from_pretrained(model, local_files_only=True, trust_remote_code=False)
    return "lm_head.weight" in stored and not config.get_text_config().tie_word_embeddings


def adapter(home: Path, *, model: str, adapter: str, out: str) -> None:
    _script(home, "convert_lora_to_gguf.py", ["--base", model, "--outfile", out, "--outtype", "f32", adapter])
    _check_values(Path(out))


def _script(home: Path, script: str, words: list[str]) -> None:
    """Run one of the converter's scripts as its own command line would, our knowledge of tokenizers added."""
    reasons = _Reasons()
    logging.getLogger().addHandler(reasons)
    with _translated(reasons):
        known = importlib.import_module("conversion.base")
        _recognise(known.TextModel)
        _find_embedding(known.ModelBase)
        sys.argv = [script, *words]
        runpy.run_path(str(home / script), run_name="__main__")


def _recognise(model: Any) -> None:
    """Where the converter does not know a tokenizer by its hash, find llama.cpp's name for it by what it does."""
    known: Callable[[Any, Any], str] = model.get_vocab_base_pre

    def named(self: Any, tokenizer: Any) -> str:
        from appliance.tuning.tokens import pre_tokenizer

        try:
            return known(self, tokenizer)
        except NotImplementedError:
            return pre_tokenizer(json.loads(tokenizer.backend_tokenizer.to_str()))

    model.get_vocab_base_pre = named


def _find_embedding(model: Any) -> None:
    """A model whose input and output tables are one may store it under the output's name; llama.cpp wants the input's."""
    known: Callable[..., dict[str, Any]] = model.index_tensors

    def found(self: Any, *words: Any, **named: Any) -> dict[str, Any]:
        tensors = known(self, *words, **named)
        has_input = any(name.endswith("embed_tokens.weight") for name in tensors)
        if self.hparams.get("tie_word_embeddings") and "lm_head.weight" in tensors and not has_input:
            tensors["model.embed_tokens.weight"] = tensors.pop("lm_head.weight")
        return tensors

    model.index_tensors = found


class _Reasons(logging.Handler):
    """The last errors that the converter reported before it gave up."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


@contextlib.contextmanager
def _translated(reasons: _Reasons | None = None) -> Any:
    """Every exception of the libraries as one of ours."""
    try:
        yield
    except ApplianceError:
        raise
    except MemoryError:
        raise BadInput("The model needs more memory to be converted than it may take.", "Use a smaller model.") from None
    except SystemExit as error:
        if error.code:
            why = "; ".join(reasons.said[-2:]) if reasons else str(error.code)
            raise Unsupported(f"The model cannot be converted: {_line(why)}.", "Use a model of another kind.") from None
    except NotImplementedError as error:
        raise Unsupported(f"The model cannot be converted: {_line(error)}.", "Use a model of another kind.") from None
    except OSError as error:
        raise from_os_error(error, "converting the model") from None
    except Exception as error:  # noqa: BLE001 - the converter asserts and raises what it likes
        raise ModelUnavailable(
            f"The model's configuration, tokenizer and weights do not fit together ({type(error).__name__}: {_line(error)}).",
            "Copy the model again, or use another one.",
        ) from None


def _line(error: object) -> str:
    return " ".join(str(error).split())[:300].rstrip(".") or "no reason was given"


def _check_values(out: Path) -> set[str]:
    """The tensors' names. Refuses a file without weights, or with one that is no number: a 16-bit float ends at 65504."""
    import gguf
    import numpy as np

    tensors = gguf.GGUFReader(out).tensors
    if not tensors:
        raise ModelUnavailable("The model holds no weights that could be converted.", "Copy the model again.")
    for tensor in tensors:
        values = tensor.data
        if tensor.tensor_type.name == "BF16":
            broken = bool(((values.view(np.uint16) & 0x7F80) == 0x7F80).any())
        else:
            broken = values.dtype.kind == "f" and not np.isfinite(values).all()
        if broken:
            raise ModelUnavailable(
                f"The tensor {tensor.name} does not fit into the chosen kind of number.", "Export it as BF16 or F32."
            )
    return {tensor.name for tensor in tensors}


# --- merging ----------------------------------------------------------------------------------------------------------------


def merge(home: Path, *, model: str, view: str, adapter: str, folder: str) -> None:  # noqa: ARG001 - one shape for every verb
    # Nothing here is in 4 bits, and importing the library for it takes as long as the merging.
    sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]
    import torch
    from peft import PeftModel
    from transformers import GenerationConfig

    from appliance.tuning import loading

    plain = loading.load_base(Path(model))
    with _translated(), torch.no_grad():
        # Untied first: merged into one tensor that two modules share, a change of the one would change the other.
        inner, head = plain.get_input_embeddings(), plain.get_output_embeddings()
        was_tied = head.weight is inner.weight
        if was_tied:
            head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        merged = PeftModel.from_pretrained(plain, adapter, local_files_only=True).merge_and_unload(safe_merge=True)
        inner, head = merged.get_input_embeddings(), merged.get_output_embeddings()
        if was_tied and torch.equal(inner.weight, head.weight):
            head.weight = inner.weight
        elif was_tied:
            merged.config.tie_word_embeddings = False
        merged.generation_config = GenerationConfig()  # the base's own file comes in its place
        merged.save_pretrained(folder)
        for path in Path(view).iterdir():
            if path.name != "config.json" and "safetensors" not in path.name:
                Path(folder, path.name).write_bytes(path.read_bytes())


def merged(home: Path, *, folder: str, file: str, dtype: str, name: str, licence: str, **job: str) -> None:
    merge(home, folder=folder, **job)
    base(home, model=folder, out=file, dtype=dtype, name=name, licence=licence)


VERBS: dict[str, Callable[..., None]] = {"base": base, "adapter": adapter, "merge": merge, "merged": merged}

if __name__ == "__main__":
    sys.exit(main())
