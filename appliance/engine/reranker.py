"""A cross-encoder that reads question and passage together, in the engine process only, where a school has put one.

It orders a few passages better than two vectors can, and takes a hundred times as long. None comes with the box: the setting
`reranker` names a folder with a sentence-transformers CrossEncoder (`config.json`, `model.safetensors`, the tokenizer's files).
Weights come from safetensors alone, and no code that lies beside them runs. Hides the library. Not asynchronous: the engine
calls it in a thread.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from appliance.errors import ModelUnavailable

BATCH = 8
LONGEST = 512  # tokens of question and passage together; what is beyond is not read


class Reranker:
    """Loads on first use; safe to call from several threads, one of which computes at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._model: Any = None
        self._lock = threading.Lock()
        self._batches, self._inside = 0, False  # begun so far, and whether one is being computed now

    def step(self) -> tuple[int, float] | None:
        """Another one for each batch; None while nothing is computed."""
        return (self._batches, 0.0) if self._inside else None

    def scores(self, question: str, texts: Sequence[str]) -> list[float]:
        """How well each text answers, more is better; only their order means anything. Raises ModelUnavailable."""
        if not texts:
            return []
        with self._lock:
            if self._model is None:
                self._model = self._load()
                self._model.register_forward_pre_hook(self._next_batch)
            pairs = [(question, text) for text in texts]
            self._next_batch()
            self._inside = True
            try:
                scores = self._model.predict(pairs, batch_size=BATCH, show_progress_bar=False, convert_to_numpy=True)
            finally:
                self._inside = False
        return [float(score) for score in scores]

    def _next_batch(self, *_: Any) -> None:
        self._batches += 1

    def _load(self) -> Any:
        problem = ModelUnavailable(
            f"There is no cross-encoder that can be read in {self._folder}.",
            "Put a sentence-transformers CrossEncoder with one output there, as safetensors, or clear the setting `reranker`.",
        )
        if not (self._folder / "model.safetensors").is_file():
            raise problem
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of kernels it could have fetched
        import transformers
        from sentence_transformers import CrossEncoder

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        try:
            model = CrossEncoder(
                str(self._folder), device="cpu", local_files_only=True, trust_remote_code=False, max_length=LONGEST,
                model_kwargs={"use_safetensors": True},
            )  # fmt: skip
        except Exception as error:  # a folder from somewhere: each library that reads a part of it has errors of its own
            raise problem from error
        if model.num_labels != 1:
            raise problem
        return model
