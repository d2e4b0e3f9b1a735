"""The one thin wrapper over llama_cpp's low-level calls: a loaded GGUF, its vocabulary, and a batch to decode.

Hides ctypes, pointer lifetimes, and the choice of the CPU back end (the wheel carries one library per processor generation).
It holds no policy: which sequence runs when, and what is kept, is the loop's. Not thread-safe; one thread owns an instance.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from appliance.errors import ModelUnavailable

BATCH = 512  # tokens that one decode call takes at most


_FIRST = threading.Lock()


def _library() -> Any:
    """llama_cpp, silenced, with the best CPU back end for this processor loaded. Once per process.

    Two models may be loaded by two threads at once: a second set-up would free the log callback that the first one handed over.
    """
    with _FIRST:
        return _set_up()


@functools.cache
def _set_up() -> Any:
    import llama_cpp

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def silent(_level: int, _text: bytes, _data: ctypes.c_void_p) -> None: ...

    # Kept on the module: llama.cpp holds the bare pointer for the life of the process.
    llama_cpp.appliance_log = silent
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    package = Path(llama_cpp.__file__).parent
    backends = package.parent / "bin"
    if any(backends.glob("libggml-cpu-*.so")):
        # libggml.so.0 by this very name: `libggml.so` beside it is a second copy whose registry nobody reads.
        ggml = ctypes.CDLL(str(package / "lib" / "libggml.so.0"))
        ggml.ggml_backend_load_all_from_path.argtypes = [ctypes.c_char_p]
        ggml.ggml_backend_load_all_from_path(str(backends).encode())
    llama_cpp.llama_backend_init()
    return llama_cpp


class Llama:
    """A model file, and a cache of `cells` tokens (0: `context` for each) that up to `sequences` conversations share.

    context: tokens of one conversation, 0 for what the model was trained for. Raises ModelUnavailable.
    """

    def __init__(
        self, path: Path, *, threads: int, context: int, sequences: int, adapter: Path | None = None, cells: int = 0
    ) -> None:
        lib = self._lib = _library()
        params = lib.llama_model_default_params()
        self._model = lib.llama_model_load_from_file(str(path).encode(), params)
        self._adapter: Any = None
        self._context: Any = None
        self.memory: Any = None
        if not self._model:
            raise ModelUnavailable(
                f"llama.cpp cannot load {path.name}: the file is damaged, or there is not enough memory.",
                "Run `appliance models verify`, or serve a smaller model.",
            )
        self.vocab = lib.llama_model_get_vocab(self._model)
        self.vocabulary = int(lib.llama_vocab_n_tokens(self.vocab))
        self.context = context or int(lib.llama_model_n_ctx_train(self._model))
        self.template = self.meta("tokenizer.chat_template")
        if adapter is not None:
            self._adapter = lib.llama_adapter_lora_init(self._model, str(adapter).encode())
            if not self._adapter:
                self.close()
                raise ModelUnavailable(
                    f"llama.cpp cannot load the adapter {adapter.name}: it is damaged or belongs to another base model.",
                    "Tune again, or serve another model with `appliance models rollback`.",
                )
        self.cells = max(cells, self.context) if cells else self.context * sequences
        self._make_context(self.cells, sequences, threads)
        self._batch = _Batch(lib)
        # A recurrent model's state is one for the whole past: no part of it can be copied or taken back.
        self.divisible = not (lib.llama_model_is_recurrent(self._model) or lib.llama_model_is_hybrid(self._model))

    def _make_context(self, cells: int, sequences: int, threads: int) -> None:
        lib = self._lib
        params = lib.llama_context_default_params()
        params.n_ctx = cells
        params.n_batch = params.n_ubatch = BATCH
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = True
        params.no_perf = True
        self._context = lib.llama_init_from_model(self._model, params)
        if not self._context:
            self.close()
            raise ModelUnavailable(
                f"There is not enough memory for {cells} tokens of conversation.", "Set `context` or `slots` lower."
            )
        self.memory = lib.llama_get_memory(self._context)
        if self._adapter:
            adapters = (lib.llama_adapter_lora_p_ctypes * 1)(self._adapter)
            scales = (ctypes.c_float * 1)(1.0)
            if lib.llama_set_adapters_lora(self._context, adapters, 1, scales) != 0:
                self.close()
                raise ModelUnavailable("llama.cpp refused the adapter.", "Serve another model: `appliance models rollback`.")

    # --- vocabulary ---------------------------------------------------------------------------------------------------
    def meta(self, key: str) -> str:
        """A text value of the model file's header; empty where absent."""
        size = 4096
        while True:
            buffer = ctypes.create_string_buffer(size)
            needed = self._lib.llama_model_meta_val_str(self._model, key.encode(), buffer, size)
            if needed < size:
                return buffer.value.decode("utf-8", "replace") if needed >= 0 else ""
            size = needed + 1

    def tokenize(self, text: str, *, control: bool) -> list[int]:
        """Token ids. `control`: names of control tokens in the text become those tokens."""
        raw = text.encode("utf-8", "replace")
        size = len(raw) + 8
        tokens = (self._lib.llama_token * size)()
        count = self._lib.llama_tokenize(self.vocab, raw, len(raw), tokens, size, False, control)
        return list(tokens[:count])

    def piece(self, token: int) -> bytes:
        """The bytes a token stands for; empty for control tokens."""
        buffer = ctypes.create_string_buffer(256)
        size = self._lib.llama_token_to_piece(self.vocab, token, buffer, 256, 0, False)
        return buffer.raw[: max(size, 0)]

    def marks(self) -> dict[str, str]:
        """The names of the first and the last token of a text, as chat templates call them."""
        lib = self._lib
        names = {"bos_token": lib.llama_vocab_bos(self.vocab), "eos_token": lib.llama_vocab_eos(self.vocab)}
        return {
            name: lib.llama_vocab_get_text(self.vocab, token).decode("utf-8", "replace") if token >= 0 else ""
            for name, token in names.items()
        }

    def ends(self, token: int) -> bool:
        return bool(self._lib.llama_vocab_is_eog(self.vocab, token))

    # --- decoding -----------------------------------------------------------------------------------------------------
    def decode(self, rows: Sequence[tuple[int, int, int, bool]]) -> bool:
        """Compute up to BATCH rows of (token, position, sequence, wants logits). False where the cache has no room left.

        Raises ModelUnavailable on any other failure.
        """
        code = self._lib.llama_decode(self._context, self._batch.filled(rows))
        if code not in (0, 1):
            raise ModelUnavailable(
                f"llama.cpp failed while computing (code {code}).", "The engine restarts by itself; ask again."
            )
        return bool(code == 0)

    def logits(self, row: int) -> npt.NDArray[np.float32]:
        """Logits of a row of the last decode, float32 of the vocabulary's size; valid until the next decode."""
        pointer = self._lib.llama_get_logits_ith(self._context, row)
        return np.ctypeslib.as_array(pointer, shape=(self.vocabulary,))

    # --- the cache ----------------------------------------------------------------------------------------------------
    def forget(self, sequence: int, start: int = 0) -> None:
        """Free the cells of a sequence from position `start` on."""
        self._lib.llama_memory_seq_rm(self.memory, sequence, start, -1)

    def copy(self, source: int, target: int, length: int) -> None:
        """Give the empty sequence `target` the first `length` cells of another: nothing is computed or moved, they share."""
        self._lib.llama_memory_seq_cp(self.memory, source, target, 0, length)

    def state(self, sequence: int) -> bytes:
        """A sequence's cells as bytes that `restore` of the same model and release takes."""
        size = self._lib.llama_state_seq_get_size(self._context, sequence)
        buffer = (ctypes.c_uint8 * size)()
        written = self._lib.llama_state_seq_get_data(self._context, buffer, size, sequence)
        return bytes(memoryview(buffer)[:written])

    def restore(self, sequence: int, data: bytes) -> bool:
        """Fill an empty sequence with what `state` gave; False where it does not fit this model or no room is left."""
        buffer = (ctypes.c_uint8 * len(data)).from_buffer_copy(data)
        return bool(self._lib.llama_state_seq_set_data(self._context, buffer, len(data), sequence))

    # --- sampling -----------------------------------------------------------------------------------------------------
    def sampler(self, *, temperature: float, top_k: int, top_p: float, min_p: float, repeat_penalty: float, seed: int) -> Any:
        """A sampler chain of its own for one conversation; hand it back with `free_sampler`. Temperature 0 is greedy."""
        lib = self._lib
        chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        if repeat_penalty != 1.0:
            penalties = lib.llama_sampler_init_penalties(self.vocabulary, 128, repeat_penalty, 0.0, 0.0)
            lib.llama_sampler_chain_add(chain, penalties)
        if temperature <= 0:
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_greedy())
            return chain
        if top_k > 0:
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_top_k(top_k))
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_top_p(top_p, 1))
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_min_p(min_p, 1))
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_temp(temperature))
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_dist(seed & 0xFFFFFFFF))
        return chain

    def sample(self, sampler: Any, row: int) -> int:
        """Draw a token from a row of the last decode, and let the chain remember it."""
        return int(self._lib.llama_sampler_sample(sampler, self._context, row))

    def free_sampler(self, sampler: Any) -> None:
        self._lib.llama_sampler_free(sampler)

    def close(self) -> None:
        """Give the memory back. Calling it twice is harmless."""
        lib = self._lib
        if self._context:
            lib.llama_free(self._context)
        if self._adapter:
            lib.llama_adapter_lora_free(self._adapter)
        if self._model:
            lib.llama_model_free(self._model)
        self._context = self._adapter = self._model = None


class _Batch:
    """The rows of one decode call, in buffers of our own: numpy fills them in five calls, where ctypes would take a
    microsecond for each number."""

    def __init__(self, lib: Any) -> None:
        self._columns = [np.zeros(BATCH, np.int32) for _ in range(3)]  # token, position, sequence
        self._wants = np.zeros(BATCH, np.int8)
        self._one = np.ones(BATCH, np.int32)
        token, position, sequence = self._columns
        pointers = sequence.ctypes.data + 4 * np.arange(BATCH, dtype=np.uint64)
        self._pointers = np.ascontiguousarray(pointers, dtype=np.uint64)

        def address(array: npt.NDArray[Any], kind: Any) -> Any:
            return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))

        self._struct = lib.llama_batch(
            0, address(token, ctypes.c_int32), None, address(position, ctypes.c_int32), address(self._one, ctypes.c_int32),
            address(self._pointers, ctypes.POINTER(ctypes.c_int32)), address(self._wants, ctypes.c_int8),
        )  # fmt: skip

    def filled(self, rows: Sequence[tuple[int, int, int, bool]]) -> Any:
        table = np.array(rows, dtype=np.int32)
        count = self._struct.n_tokens = len(rows)
        for number, column in enumerate(self._columns):
            column[:count] = table[:, number]
        self._wants[:count] = table[:, 3]
        return self._struct
