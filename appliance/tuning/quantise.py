"""A GGUF model -> a smaller one, its weights rounded to fewer bits by llama.cpp itself.

Hides the child process (a bad file may end it), its limits, and the release's numbers for kinds of file. llama.cpp rounds in
blocks of 256 weights for the K kinds and takes a coarser or finer kind for a tensor whose rows do not divide so, and finer ones
where it hurts most: `Quantised.weights` says what came out. How much is lost is `parity.py`'s question.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import resource
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from appliance import guard, network
from appliance.engine.inspect import read_gguf
from appliance.errors import BadInput, StorageFull, Unsupported, from_os_error
from appliance.files import sync
from appliance.settings import PACKAGE, cores

Kind = Literal["Q4_K_M", "Q5_K_M", "Q8_0", "F16"]
KINDS: dict[Kind, int] = {"F16": 1, "Q8_0": 7, "Q4_K_M": 15, "Q5_K_M": 17}  # llama.h, enum llama_ftype

SECONDS = 60
BYTES_PER_SECOND = 2 * 2**20  # of an old processor, one core
MEMORY = 4 * 2**30  # beside the file, which is mapped: working room for the largest tensors
TOLD = 3


@dataclass(frozen=True, slots=True)
class Quantised:
    """bytes: of the new file. weights: how many of them are of each of ggml's types."""

    bytes: int
    weights: dict[str, int]


def quantise(source: Path, out: Path, kind: Kind) -> Quantised:
    """Write `source` (F16, BF16 or F32) again with its weights as `kind`, whole or not at all.

    Raises BadInput where the file is damaged, Unsupported where it cannot be rounded (an adapter; rounded before), StorageFull.
    """
    facts = read_gguf(source)
    if facts.kind != "model" or facts.quantisation not in ("F32", "F16", "BF16"):
        what = "an adapter" if facts.kind != "model" else f"rounded already ({facts.quantisation})"
        raise Unsupported(f"{source.name} is {what} and cannot be made smaller.", "Begin with the model in F16.")
    draft = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        weights = _child(source, draft, kind)
        sync(draft)
        draft.replace(out)
        return Quantised(out.stat().st_size, weights)
    except OSError as error:
        raise from_os_error(error, f"writing {out.name}") from None
    finally:
        draft.unlink(missing_ok=True)


def _child(source: Path, draft: Path, kind: Kind) -> dict[str, int]:
    size = source.stat().st_size
    seconds = SECONDS + math.ceil(size / BYTES_PER_SECOND)
    environment = os.environ | network.OFFLINE | {"PYTHONPATH": str(PACKAGE.parent), "GGML_NO_BACKTRACE": "1"}
    words = [str(source.resolve()), str(draft.resolve()), kind, str(seconds), str(MEMORY + size)]
    command = [sys.executable, "-P", "-m", "appliance.tuning.quantise", *words]
    try:
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, env=environment, timeout=seconds + 30)
    except subprocess.TimeoutExpired:
        done = None
    if done is None or done.returncode == -signal.SIGALRM:
        raise BadInput(f"{source.name} could not be made smaller in time.", "Try again when the machine is idle.")
    if done.returncode == 0:
        found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
        return found
    if b"o space left" in done.stderr or b"failed to write" in done.stderr:
        raise StorageFull(f"The disk is full: writing {draft.name} stopped.", "Free some space, then try again.")
    if done.returncode == TOLD:
        raise BadInput(f"llama.cpp cannot round {source.name} to {kind}.", "Run `appliance models verify`.")
    why = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
    raise BadInput(
        f"Rounding {source.name} ended the process that tried it ({why}): it is damaged, or there is too little memory.",
        "Run `appliance models verify`, or use a smaller model.",
    )


# --- in the child -----------------------------------------------------------------------------------------------------------


def _round(source: Path, draft: Path, kind: Kind, seconds: int, memory: int) -> int:
    network.stay_offline()
    guard.install()
    signal.alarm(seconds)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (memory if hard == resource.RLIM_INFINITY else min(memory, hard), hard))
    import llama_cpp

    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = KINDS[kind]
    params.nthread = cores()
    if llama_cpp.llama_model_quantize(str(source).encode(), str(draft).encode(), ctypes.byref(params)) != 0:
        return TOLD
    import gguf

    weights: Counter[str] = Counter()
    for tensor in gguf.GGUFReader(draft).tensors:
        weights[tensor.tensor_type.name] += int(tensor.n_elements)
    sys.stdout.write("\n" + json.dumps(dict(weights.most_common())))
    return 0


if __name__ == "__main__":
    sys.exit(_round(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5])))  # type: ignore[arg-type]
