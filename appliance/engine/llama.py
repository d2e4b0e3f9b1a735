"""The one thin wrapper over llama_cpp's low-level calls: a loaded GGUF, its vocabulary, and a batch to decode.

Hides ctypes, pointer lifetimes, and the choice of the CPU back end (the wheel carries one library per processor generation).
It holds no policy: which sequence runs when, and what is kept, is the loop's. Not thread-safe; one thread owns an instance.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from appliance.errors import BadInput, ModelUnavailable

BATCH = 512  # tokens that one decode call takes at most

State = npt.NDArray[np.uint8]
TOKEN = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # llama_token_data


@dataclass(frozen=True, slots=True)
class Sampler:
    """What draws one conversation's tokens: llama.cpp's chain, and before it what keeps to a grammar where one is asked for."""

    chain: Any
    keeper: Any = None


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
    llama_cpp.appliance_short = _short_calls(llama_cpp)
    return llama_cpp


def _short_calls(llama_cpp: Any) -> Any:
    """Calls of microseconds, made with the interpreter's lock held.

    ctypes gives the lock away for each call, and to have it back takes milliseconds where another thread is busy: sixteen
    answers would wait for that sixteen times a step.
    """
    library = ctypes.PyDLL(llama_cpp.llama_cpp._lib._name)
    for name in ("llama_sampler_sample", "llama_token_to_piece", "llama_vocab_is_eog"):
        known = getattr(llama_cpp, name)
        call = getattr(library, name)
        call.argtypes, call.restype = known.argtypes, known.restype
    return library


def _free_memory() -> int:
    """Bytes that could be had without swapping."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def offloads() -> bool:
    """Whether this build of llama.cpp can compute on a GPU."""
    return bool(_library().llama_supports_gpu_offload())


class Llama:
    """A model file, and a cache of tokens that up to `sequences` conversations share.

    context: tokens of one conversation, 0 for what the model was trained for. apart: each sequence has `context` cells of its
    own; otherwise all take theirs from one pool, with room for so many `conversations` of that length as far as `cache_bytes`
    reach (0: a quarter of the memory that is free). Apart, a step costs what its sequences hold; in a pool, it also pays for
    looking past everybody else's cells. gpu_layers: that a GPU computes where the build can, below 0 all. Raises
    ModelUnavailable.
    """

    def __init__(
        self,
        path: Path,
        *,
        threads: int,
        context: int,
        conversations: int = 1,
        sequences: int = 1,
        cache_bytes: int = 0,
        apart: bool = False,
        gpu_layers: int = 0,
    ) -> None:
        lib = self._lib = _library()
        params = lib.llama_model_default_params()
        params.n_gpu_layers = gpu_layers
        self._model = lib.llama_model_load_from_file(str(path).encode(), params)
        self._adapters: dict[str, Any] = {}
        self._worn = ""
        # What tokens stand for, as far as it was asked: it never changes, and every word of every answer asks for it.
        self._pieces: dict[int, bytes] = {}
        self._ends: dict[int, bool] = {}
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
        self.sequences = sequences
        self.apart = apart
        self.cell_bytes = self._cell_bytes()
        room = (cache_bytes or _free_memory() // 4) // self.cell_bytes
        pool = max(self.context, min(self.context * conversations, room // 256 * 256))
        self.cells = -(-self.context // 256) * 256 * sequences if apart else pool
        self.seconds = 0.0  # spent in llama.cpp since the start, batches, samplers and copies together
        self._copied: tuple[int, State] | None = None  # the state last taken for `copy`: a whole class may ask for it
        self._spare: State | None = None
        self._make_context(threads)
        self._batch = _Batch(lib)
        # A recurrent model's state is one for the whole past: no part of it can be copied or taken back.
        self.divisible = not (lib.llama_model_is_recurrent(self._model) or lib.llama_model_is_hybrid(self._model))

    def _cell_bytes(self) -> int:
        """Memory that one token takes in the cache: keys and values of every layer, in 16 bits."""
        lib = self._lib
        family = self.meta("general.architecture")
        heads = max(1, lib.llama_model_n_head_kv(self._model))
        size = lib.llama_model_n_embd(self._model) // max(1, lib.llama_model_n_head(self._model))
        key, value = (int(self.meta(f"{family}.attention.{name}_length") or size) for name in ("key", "value"))
        return int(max(1, lib.llama_model_n_layer(self._model) * heads * (key + value) * 2))

    def _make_context(self, threads: int) -> None:
        lib = self._lib
        params = lib.llama_context_default_params()
        params.n_ctx = self.cells
        params.n_batch = params.n_ubatch = BATCH
        params.n_seq_max = self.sequences
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = not self.apart
        params.swa_full = True  # or a window's cells would be gone before another conversation could share them
        params.no_perf = True
        self._context = lib.llama_init_from_model(self._model, params)
        if not self._context:
            self.close()
            raise ModelUnavailable(
                f"There is not enough memory for {self.cells} tokens of conversation.", "Set `context` or `slots` lower."
            )
        self.memory = lib.llama_get_memory(self._context)

    @property
    def streams(self) -> int:
        """Part of the layout of every `state`: one with another number cannot be restored."""
        return self.sequences if self.apart else 1

    def threads(self, count: int) -> None:
        """Compute with so many threads from now on."""
        self._lib.llama_set_n_threads(self._context, count, count)

    # --- adapters -----------------------------------------------------------------------------------------------------
    def learn(self, name: str, path: Path) -> None:
        """Load an adapter beside the base, under a name. Raises ModelUnavailable."""
        if name in self._adapters:
            return
        adapter = self._lib.llama_adapter_lora_init(self._model, str(path).encode())
        if not adapter:
            raise ModelUnavailable(
                f"llama.cpp cannot load the adapter {path.name}: it is damaged or belongs to another base model.",
                "Tune again, or serve another model with `appliance models rollback`.",
            )
        self._adapters[name] = adapter

    def unlearn(self, name: str) -> None:
        """Give an adapter's memory back."""
        if self._worn == name:
            self.wear("")
        adapter = self._adapters.pop(name, None)
        if adapter:
            self._lib.llama_adapter_lora_free(adapter)

    def wear(self, name: str) -> None:
        """Compute with this adapter from now on; "" is the base alone."""
        if name == self._worn:
            return
        adapters = [self._adapters[name]] if name else []
        count = len(adapters)
        given = (self._lib.llama_adapter_lora_p_ctypes * max(1, count))(*adapters)
        scales = (ctypes.c_float * max(1, count))(*[1.0] * count)
        if self._lib.llama_set_adapters_lora(self._context, given, count, scales) != 0:
            raise ModelUnavailable("llama.cpp refused the adapter.", "Serve another model: `appliance models rollback`.")
        self._worn = name

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
        known = self._pieces.get(token)
        if known is None:
            buffer = ctypes.create_string_buffer(256)
            size = self._lib.appliance_short.llama_token_to_piece(self.vocab, token, buffer, 256, 0, False)
            known = self._pieces[token] = buffer.raw[: max(size, 0)]
        return known

    def marks(self) -> dict[str, str]:
        """The names of the first and the last token of a text, as chat templates call them."""
        lib = self._lib
        names = {"bos_token": lib.llama_vocab_bos(self.vocab), "eos_token": lib.llama_vocab_eos(self.vocab)}
        return {
            name: lib.llama_vocab_get_text(self.vocab, token).decode("utf-8", "replace") if token >= 0 else ""
            for name, token in names.items()
        }

    def joint(self) -> str:
        """A sign that joins with no other, where this vocabulary puts a space before each text that it cuts; else empty."""
        lib = self._lib
        if lib.llama_vocab_type(self.vocab) != lib.LLAMA_VOCAB_TYPE_SPM:
            return ""
        if self.meta("tokenizer.ggml.add_space_prefix") == "false":
            return ""
        names = {lib.llama_vocab_get_text(self.vocab, token) for token in range(self.vocabulary)}
        for sign, byte in ((b"\n", b"<0x0A>"), (b"\t", b"<0x09>")):
            # llama.cpp ends the process at a sign for which a vocabulary has neither a token nor bytes.
            if (sign in names or byte in names) and not any(sign in name and name != sign for name in names):
                return sign.decode()
        return ""

    def mark(self, token: int) -> str:
        """What a control token is called in a text; empty for any other token."""
        lib = self._lib
        if not lib.llama_vocab_get_attr(self.vocab, token) & lib.LLAMA_TOKEN_ATTR_CONTROL:
            return ""
        return str(lib.llama_vocab_get_text(self.vocab, token).decode("utf-8", "replace"))

    def ends(self, token: int) -> bool:
        if token not in self._ends:
            self._ends[token] = bool(self._lib.appliance_short.llama_vocab_is_eog(self.vocab, token))
        return self._ends[token]

    # --- decoding -----------------------------------------------------------------------------------------------------
    def decode(self, rows: Sequence[tuple[int, int, int, bool]]) -> bool:
        """Compute up to BATCH rows of (token, position, sequence, wants logits). False where the cache has no room left.

        Raises ModelUnavailable on any other failure.
        """
        self._copied = None
        batch = self._batch.filled(rows)
        started = time.perf_counter()
        code = self._lib.llama_decode(self._context, batch)
        self.seconds += time.perf_counter() - started
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
        self._copied = None
        started = time.perf_counter()
        self._lib.llama_memory_seq_rm(self.memory, sequence, start, -1)
        self.seconds += time.perf_counter() - started

    def copy(self, source: int, target: int, length: int) -> None:
        """Give the empty sequence `target` the first `length` cells of another: shared in a pool, else copied."""
        if not self.apart:
            self._lib.llama_memory_seq_cp(self.memory, source, target, 0, length)
            return
        if self._copied is None or self._copied[0] != source:
            self._copied = (source, self.state(source))
        if not self.restore(target, self._copied[1]):
            raise ModelUnavailable("llama.cpp could not copy what a class shares.", "The engine restarts by itself; ask again.")
        self._lib.llama_memory_seq_rm(self.memory, target, length, -1)

    def length(self, sequence: int) -> int:
        """Tokens that a sequence holds."""
        return int(self._lib.llama_memory_seq_pos_max(self.memory, sequence)) + 1

    def state(self, sequence: int) -> State:
        """A sequence's cells as bytes that `restore` of the same model and release takes.

        In pages of their own, which go back to the system with them: from the heap, what came and went for an hour in many
        sizes would leave holes of some fifty megabytes.
        """
        size = int(self._lib.llama_state_seq_get_size(self._context, sequence))
        state, self._spare = self._spare, None
        if state is None or not size <= state.nbytes <= size + size // 8:
            state = np.frombuffer(mmap.mmap(-1, size), np.uint8)
        started = time.perf_counter()
        written = self._lib.llama_state_seq_get_data(self._context, _bytes_of(state), state.nbytes, sequence)
        self.seconds += time.perf_counter() - started
        return state[:written]

    def reuse(self, state: State) -> None:
        """Take back the bytes of a state that is not needed any more, for the next: new pages take ten times as long."""
        whole = state.base if isinstance(state.base, np.ndarray) else state  # it may have been smaller than its pages
        if whole.flags.writeable:  # else it came from elsewhere
            self._spare = whole

    def restore(self, sequence: int, state: State) -> bool:
        """Fill an empty sequence with what `state` gave; False where it does not fit this model or no room is left."""
        started = time.perf_counter()
        read = self._lib.llama_state_seq_set_data(self._context, _bytes_of(state), state.nbytes, sequence)
        self.seconds += time.perf_counter() - started
        return bool(read)

    # --- sampling -----------------------------------------------------------------------------------------------------
    def sampler(
        self,
        *,
        temperature: float,
        top_k: int,
        top_p: float,
        min_p: float,
        repeat_penalty: float,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        seed: int,
        grammar: str = "",
    ) -> Sampler:
        """A sampler of its own for one conversation; hand it back with `free_sampler`. Temperature 0 is greedy.

        grammar: GBNF that the text keeps to. Raises BadInput where llama.cpp cannot read it.
        """
        lib = self._lib
        keeper = lib.llama_sampler_init_grammar(self.vocab, grammar.encode(), b"root") if grammar else None
        if grammar and not keeper:
            raise BadInput("The schema cannot be followed.", "Use plain types, enums, objects and arrays.")
        chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        if (repeat_penalty, frequency_penalty, presence_penalty) != (1.0, 0.0, 0.0):
            penalties = lib.llama_sampler_init_penalties(
                self.vocabulary, 128, repeat_penalty, frequency_penalty, presence_penalty
            )
            lib.llama_sampler_chain_add(chain, penalties)
        if temperature <= 0:
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_greedy())
            return Sampler(chain, keeper)
        if top_k > 0:
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_top_k(top_k))
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_top_p(top_p, 1))
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_min_p(min_p, 1))
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_temp(temperature))
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_dist(seed & 0xFFFFFFFF))
        return Sampler(chain, keeper)

    def sample(self, sampler: Sampler, row: int) -> int:
        """Draw a token from a row of the last decode, and let the sampler remember it.

        Raises BadInput where its grammar lets no token through.
        """
        started = time.perf_counter()
        try:
            if sampler.keeper is not None:
                return self._sample_kept(sampler, row)
            return int(self._lib.appliance_short.llama_sampler_sample(sampler.chain, self._context, row))
        finally:
            self.seconds += time.perf_counter() - started

    def _sample_kept(self, sampler: Sampler, row: int) -> int:
        """llama.cpp ends the process where a grammar is handed a token that it does not know how to go on with: it never is."""
        lib = self._lib
        tokens = np.zeros(self.vocabulary, TOKEN)
        tokens["id"], tokens["logit"] = np.arange(self.vocabulary), self.logits(row)
        # It tries the whole vocabulary, and nobody else may have to wait for that: these calls give the lock away.
        lib.llama_sampler_apply(sampler.keeper, ctypes.byref(self._choice(tokens)))
        kept = np.ascontiguousarray(tokens[np.isfinite(tokens["logit"])])
        if not len(kept):
            raise BadInput("No text can meet the schema: nothing may follow what was said.", "Correct its pattern.")
        choice = self._choice(kept)
        lib.llama_sampler_apply(sampler.chain, ctypes.byref(choice))
        token = int(kept["id"][max(0, choice.selected)])
        for part in (sampler.keeper, sampler.chain):
            lib.llama_sampler_accept(part, token)
        return token

    def _choice(self, tokens: npt.NDArray[Any]) -> Any:
        """An array of tokens as llama.cpp's samplers take it; valid as long as the array is."""
        data = ctypes.cast(tokens.ctypes.data, ctypes.POINTER(self._lib.llama_token_data))
        return self._lib.llama_token_data_array(data, len(tokens), -1, False)

    def free_sampler(self, sampler: Sampler) -> None:
        for part in (sampler.chain, sampler.keeper):
            if part is not None:
                self._lib.llama_sampler_free(part)

    def close(self) -> None:
        """Give the memory back. Calling it twice is harmless."""
        lib = self._lib
        if self._context:
            lib.llama_free(self._context)
        for adapter in self._adapters.values():
            lib.llama_adapter_lora_free(adapter)
        self._adapters.clear()
        if self._model:
            lib.llama_model_free(self._model)
        self._context = self._model = None


def _bytes_of(array: State) -> Any:
    """Where an array's bytes begin, as llama_cpp takes it; valid as long as the array is."""
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))


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
