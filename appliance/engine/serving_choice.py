"""Which back end serves which model on this box now, and why: the maker of handlers that the engine is given.

transformers where a GPU is free and large enough and the registry keeps the model's Hugging Face weights; llama.cpp for
everything else, its layers on the GPU where its build can and nobody else needs it. The setting `backend` forces either. Hides
what is remembered of failures, so that nothing that failed is tried again with every question. It loads and closes nothing
(`loaded.py` does), and imports neither torch nor llama.cpp on a machine without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol
from weakref import WeakKeyDictionary

from appliance.engine.backend import GPU_SPARE, Backend, Fallback, Machine, look, precision
from appliance.engine.handler import Handler
from appliance.engine.loaded import ModelFiles
from appliance.errors import ApplianceError

Setting = Literal["auto", "llama", "transformers"]
PLENTY = 2**60  # bytes: what stands on the GPU already needs no room for itself
ALL_LAYERS = -1  # llama.cpp's word for as many as there are


@dataclass(frozen=True, slots=True)
class Chosen:
    """precision: of the weights, "" where a GGUF file says it. why: to be read after "because"."""

    backend: Backend
    gpu: bool
    precision: str
    why: str


class MakeLlama(Protocol):
    def __call__(self, files: ModelFiles, *, gpu_layers: int) -> Handler: ...


class MakeTransformers(Protocol):
    """`on_fault` is to be told when the model fails for good while it serves."""

    def __call__(self, files: ModelFiles, chosen: Chosen, on_fault: Callable[[str], None]) -> Handler: ...


class Choice:
    """Call it with a model's files for an unstarted handler.

    tuning: whether a tuning run computes on this machine now. count: number of weights in a Hugging Face folder. offloads:
    whether llama.cpp's build can use a GPU. Safe to call from several threads: what is remembered only ever grows.
    """

    def __init__(
        self, llama: MakeLlama, transformers: MakeTransformers, *, setting: Setting = "auto",
        tuning: Callable[[], bool] = lambda: False, count: Callable[[Path], int], offloads: Callable[[], bool] = lambda: False,
        look: Callable[..., Machine] = look, fallback: Fallback | None = None,
    ) -> None:  # fmt: skip
        self._llama = llama
        self._transformers = transformers
        self._setting = setting
        self._tuning = tuning
        self._count = count
        self._offloads = offloads
        self._look = look
        self._fallback = fallback or Fallback()
        self._unfit: dict[tuple[str, ...], str] = {}  # what cannot serve a model, and why
        self._made: WeakKeyDictionary[Handler, Chosen] = WeakKeyDictionary()

    def __call__(self, files: ModelFiles) -> Handler:
        chosen = self.choose(files)
        if chosen.backend == "transformers":
            handler = self._transformers(files, chosen, lambda reason: self._failed(files, chosen, reason))
        else:
            handler = self._llama(files, gpu_layers=ALL_LAYERS if chosen.gpu else 0)
        self._made[handler] = chosen
        return handler

    def choose(self, files: ModelFiles, *, held: bool = False) -> Chosen:
        """What should serve a model now. held: it stands on the GPU already, so no room is asked for."""
        machine = self._look(tuning=self._tuning())
        if held and machine.gpu_free is not None:
            machine = replace(machine, gpu_free=PLENTY)
        fits = self._fits(files, machine)
        against = self._against(files, machine, fits)
        if against:
            return self._by_llama(files, machine, against)
        why = "the setting backend says so" if self._setting == "transformers" else "a GPU is free and large enough"
        return Chosen("transformers", bool(fits), fits or "float32", why)

    def outdated(self, handler: Handler, files: ModelFiles) -> bool:
        """Whether another back end should serve these files from now on."""
        mine = self._made.get(handler)
        if mine is None:
            return False
        now = self.choose(files, held=mine.gpu)
        return (now.backend, now.gpu) != (mine.backend, mine.gpu)

    def refused(self, handler: Handler, files: ModelFiles, reason: str) -> None:
        """A handler that was made here could not load its model."""
        mine = self._made.get(handler)
        if mine is not None:
            self._failed(files, mine, reason, loading=True)

    def facts(self, handler: Handler) -> dict[str, Any]:
        """What `health` says of the choice."""
        mine = self._made.get(handler)
        return {"gpu": mine.gpu, "precision": mine.precision, "why": mine.why} if mine else {}

    # ------------------------------------------------------------------------------------------------------------------
    def _fits(self, files: ModelFiles, machine: Machine) -> str:
        """The precision in which the GPU holds the model, "" where it does not."""
        if files.weights is None or machine.gpu_free is None:
            return ""
        try:
            return precision(machine, self._count(files.weights))
        except (ApplianceError, OSError):  # removed a moment ago
            return ""

    def _against(self, files: ModelFiles, machine: Machine, fits: str) -> str:
        """Why transformers should not serve a model now; "" where it should."""
        if self._setting == "llama":
            return "the setting backend says so"
        forced = self._setting == "transformers"
        if machine.gpu_free is None and not forced:
            return "the GPU was lost" if self._fallback.reason else "no GPU is here that could be used"
        if files.weights is None:
            return "its Hugging Face weights are not in the registry"
        if unfit := self._unfit.get(_key(files, "transformers")):
            return f"transformers cannot serve it: {unfit}"
        if self._fallback.waits and (fits or not forced):
            return f"the GPU failed: {self._fallback.reason}"
        if forced:
            return ""
        if machine.tuning:
            return "a tuning run has the GPU"
        return "" if fits else f"only {(machine.gpu_free or 0) / 1e9:.1f} GB of the GPU are free"

    def _by_llama(self, files: ModelFiles, machine: Machine, why: str) -> Chosen:
        """By llama.cpp: on the GPU where nobody tunes on it, all of the file fits, and the build can."""
        if machine.gpu_free is None or machine.tuning or self._fallback.waits or _key(files, "llama") in self._unfit:
            return Chosen("llama", False, "", why)
        try:
            fits = files.model.stat().st_size + GPU_SPARE <= machine.gpu_free
        except OSError:
            fits = False
        return Chosen("llama", fits and self._offloads(), "", why)

    def _failed(self, files: ModelFiles, chosen: Chosen, reason: str, *, loading: bool = False) -> None:
        """Remember a failure: of the GPU where it was the GPU's, else of this model under this back end."""
        gpus = not loading or Fallback.passes(reason) or "cuda" in reason.lower()
        if chosen.gpu and chosen.backend == "transformers" and gpus:
            self._fallback.failed(reason)
        elif chosen.gpu or chosen.backend == "transformers":
            self._unfit[_key(files, chosen.backend)] = reason


def _key(files: ModelFiles, backend: Backend) -> tuple[str, ...]:
    return (backend, files.id, files.digest, files.adapter_digest)
