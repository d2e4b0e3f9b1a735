"""Reads what a model file or folder says of itself before any native parser sees it, and refuses what lies.

A model from a USB stick is a stranger's file, and llama.cpp's and other readers have crashed on bad ones. Here every count,
length and offset is compared with the file's size before it is believed. Hides the two binary formats (GGUF 2 and 3:
github.com/ggml-org/ggml/blob/master/docs/gguf.md; safetensors: github.com/huggingface/safetensors) and what a Hugging Face
folder may hold. It reads no weights, and it does not prove that a model is any good or harmless to a native parser: the
import loads it once in a process of its own for that.
"""

from __future__ import annotations

import json
import re
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO, Literal, NoReturn

from appliance.engine.gguf_rules import ARRAY, BOOL, FIXED, GGML, STRING, Listed, fault, repeats
from appliance.engine.handler import Message
from appliance.engine.template import ChatTemplate
from appliance.errors import ApplianceError, BadInput, from_os_error

HINT = "Copy or download the model again, or use another one."

# Bounds, each several times above the largest open model known. They keep a hostile file from costing time or memory.
MAX_KEYS = 10_000
MAX_TENSORS = 100_000
MAX_HEADER = 512 * 2**20  # bytes before the weights
MAX_ITEMS = 5_000_000  # strings in arrays: vocabulary and merges
MAX_VOCABULARY = 2**21
MAX_TOKEN = 2**16  # bytes
MAX_KEY = 1024
MAX_NAME = 64  # the specification's
MAX_TEXT = 2**18  # bytes of a text that is kept, such as a chat template
MAX_DEPTH = 4
MAX_SIDE = 2**24  # of a table: vocabulary, context, width
MAX_ALIGNMENT = 2**20

# safetensors' types: bytes of one weight.
DTYPES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
MAX_SAFETENSORS_HEADER = 16 * 2**20
MAX_CONFIG = 4 * 2**20
MAX_TABLE = 64 * 2**20  # tokenizer.json of the largest vocabularies

# What a Hugging Face folder may hold. Text that nothing reads may lie there too: it is not copied.
ALLOWED = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "tokenizer.json",
           "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json",
           "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "card.json", "LICENSE*", "NOTICE*", "*.md", "*.txt",
           ".gitattributes")  # fmt: skip
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
FORBIDDEN_KEYS = ("auto_map", "trust_remote_code", "custom_pipelines", "_attn_implementation_internal")
ATTENTION_KEYS = ("attn_implementation", "_attn_implementation", "_experts_implementation")
ATTENTION = (None, "eager", "sdpa", "flash_attention_2", "flex_attention")


@dataclass(frozen=True, slots=True)
class GGUFFacts:
    """What a GGUF file says of itself; texts are the file's own words and empty where it says nothing.

    context: tokens, 0 where not given. tensors: how many. parameters: weights in all of them. quantisation: ggml's name for
    the type that most of the weights have. starter: one of our own files says it is the small model that comes with the box.
    """

    version: int
    architecture: str
    name: str
    context: int
    template: str
    tensors: int
    parameters: int
    quantisation: str
    licence: str
    kind: Literal["model", "adapter"]
    starter: bool = False
    numbers: dict[str, float] = field(default_factory=dict)  # what it says under its architecture's name, without that name


# --- GGUF -----------------------------------------------------------------------------------------------------------------


class _Reader:
    """Walks forward through a file's header; never believes a length that the file is too short for."""

    def __init__(self, handle: BinaryIO, name: str, size: int) -> None:
        self.handle, self.name, self.size = handle, name, size
        self.at = 0
        self.items = 0

    def fail(self, why: str) -> NoReturn:
        raise BadInput(f"{self.name} is not a usable GGUF file: {why}.", HINT)

    def need(self, count: int) -> None:
        if count > self.size - self.at:
            self.fail("it is cut short, or its header claims more than the file holds")
        if self.at + count > MAX_HEADER:
            self.fail("its header is larger than that of any model")

    def take(self, count: int) -> bytes:
        self.need(count)
        data = self.handle.read(count)
        if len(data) != count:  # it shrank while we read
            self.fail("it is cut short")
        self.at += count
        return data

    def skip(self, count: int) -> None:
        self.need(count)
        self.handle.seek(count, 1)
        self.at += count

    def number(self, code: str) -> Any:
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def text(self, limit: int, what: str) -> str:
        try:
            return self.raw(limit, what).decode("utf-8")
        except UnicodeDecodeError:
            self.fail(f"{what} is not text")

    def raw(self, limit: int, what: str) -> bytes:
        length = self.number("<Q")
        self.need(length)
        if length > limit:
            self.fail(f"{what} is longer than {limit} bytes")
        return self.take(length)

    def value(self, kind: int, *, keep: bool, depth: int = 0) -> Any:
        """One metadata value; None for a text that is only walked over."""
        if kind in FIXED:
            found = self.number(FIXED[kind])
            if kind == BOOL and found > 1:
                self.fail("a yes-or-no value in its header is neither")
            return found
        if kind == STRING:
            if keep:
                return self.text(MAX_TEXT, "a text in its header")
            self.skip(self.number("<Q"))
            return None
        if kind == ARRAY:
            return self.array(depth + 1, keep=keep)
        return self.fail(f"its header holds a value of the unknown type {kind}")

    def array(self, depth: int, *, keep: bool) -> Listed:
        kind, count = self.number("<I"), self.number("<Q")
        if depth > MAX_DEPTH:
            self.fail("its header nests lists too deep")
        if kind in FIXED:
            self.skip(count * struct.calcsize(FIXED[kind]))
            return Listed(kind, count)
        self.need(count * 8)  # every text and every list takes at least its own length
        self.items += count
        if self.items > MAX_ITEMS or (keep and count > MAX_VOCABULARY):
            self.fail("its header lists more texts than any model")
        if keep and kind == STRING:
            return Listed(kind, count, repeats(self.raw(MAX_TOKEN, "a token") for _ in range(count)))
        for _ in range(count):
            self.value(kind, keep=False, depth=depth)
        return Listed(kind, count)


def read_gguf(path: Path) -> GGUFFacts:
    """Check the header of a GGUF file from end to end. Raises BadInput in one sentence that names the file and the fault."""
    try:
        with path.open("rb") as handle:
            size = handle.seek(0, 2)
            handle.seek(0)
            return _gguf(_Reader(handle, path.name, size))
    except OSError as error:
        raise from_os_error(error, f"reading {path.name}") from None


def _gguf(reader: _Reader) -> GGUFFacts:
    if reader.size < 24 or reader.take(4) != b"GGUF":
        reader.fail("it does not begin like one")
    version = reader.number("<I")
    if version not in (2, 3):
        swapped = version & 0xFFFF == 0
        reader.fail("it was written for big-endian machines" if swapped else f"version {version} of the format is not known")
    tensors, keys = reader.number("<Q"), reader.number("<Q")
    if keys > MAX_KEYS or tensors > MAX_TENSORS:
        reader.fail(f"its header claims {keys} entries and {tensors} tensors")
    known = _metadata(reader, keys)
    weights = _tensors(reader, tensors, _alignment(reader, known))
    kind = _said(reader, known, "general.type") or "model"
    if kind not in ("model", "adapter"):
        reader.fail(f"it holds no model but something of the kind {kind[:40]!r}")
    if known.get("split.count", 0) not in (0, 1):
        reader.fail("it is one part of a model that was split into several files")
    architecture = _said(reader, known, "general.architecture")
    context = known.get(f"{architecture}.context_length", 0)
    if type(context) is not int or not 0 <= context < 2**31:
        reader.fail("its context length is not a sensible number")
    why = fault(known, architecture)
    if why:
        reader.fail(why)
    return GGUFFacts(
        version=version, architecture=architecture, name=_said(reader, known, "general.name"), context=context,
        template=_said(reader, known, "tokenizer.chat_template"), tensors=tensors, parameters=sum(weights.values()),
        quantisation=weights.most_common(1)[0][0] if weights else "", licence=_said(reader, known, "general.license"),
        kind="adapter" if kind == "adapter" else "model", starter=known.get("appliance.starter") == 1,
        numbers={
            key.partition(".")[2]: number for key, number in known.items()
            if key.startswith(f"{architecture}.") and isinstance(number, int | float)
        },
    )  # fmt: skip


def _metadata(reader: _Reader, count: int) -> dict[str, Any]:
    """Key to value of what is kept: numbers, the few texts we ask for, and of lists what they are; None for all else."""
    asked = ("general.architecture", "general.name", "general.license", "general.type", "tokenizer.chat_template",
             "tokenizer.ggml.tokens")  # fmt: skip
    found: dict[str, Any] = {}
    for _ in range(count):
        key = reader.text(MAX_KEY, "a key in its header")
        if not key.isascii() or not key.isprintable() or ".." in key:
            reader.fail("a key in its header has signs that no key has")
        if key in found:
            reader.fail(f"its header has {key} twice")
        found[key] = reader.value(reader.number("<I"), keep=key in asked or key.endswith(".rope.scaling.type"))
    return found


def _said(reader: _Reader, known: dict[str, Any], key: str) -> str:
    text = known.get(key, "")
    if not isinstance(text, str):
        reader.fail(f"{key} in its header is not a text")
    return text


def _alignment(reader: _Reader, known: dict[str, Any]) -> int:
    alignment = known.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        reader.fail("its alignment is not a power of two")
    return alignment


def _tensors(reader: _Reader, count: int, alignment: int) -> Counter[str]:
    """Weights by ggml type. Each tensor must lie inside the file, aligned, and on no other's bytes."""
    weights: Counter[str] = Counter()
    names: set[str] = set()
    places: list[tuple[int, int, str]] = []
    for _ in range(count):
        name = reader.text(MAX_NAME, "a tensor's name")
        if not name or name in names:
            reader.fail(f"the tensor {name!r} is there twice" if name else "a tensor has no name")
        names.add(name)
        kind, total, length = _shape(reader, name)
        offset = reader.number("<Q")
        if offset % alignment:
            reader.fail(f"the tensor {name!r} does not begin where tensors may")
        weights[kind] += total
        places.append((offset, length, name))
    start = -(-reader.at // alignment) * alignment
    end = 0
    for offset, length, name in sorted(places):
        if offset < end:
            reader.fail(f"the tensor {name!r} lies on another one's bytes")
        end = offset + length
        if start + end > reader.size:
            reader.fail(f"the tensor {name!r} lies outside the file, which may be cut short")
    return weights


def _shape(reader: _Reader, name: str) -> tuple[str, int, int]:
    """A tensor's type, weights and bytes."""
    rank = reader.number("<I")
    if not 1 <= rank <= 4:
        reader.fail(f"the tensor {name!r} has {rank} dimensions")
    shape = struct.unpack(f"<{rank}Q", reader.take(8 * rank))
    total = 1
    for side in shape:
        total *= side
        if not 0 < total < 2**63:
            reader.fail(f"the tensor {name!r} has an impossible shape")
    number = reader.number("<I")
    if number not in GGML:
        reader.fail(f"the tensor {name!r} is of the unknown type {number}")
    kind, block, width = GGML[number]
    if shape[0] % block:
        reader.fail(f"the rows of the tensor {name!r} do not divide into blocks of {kind}")
    return kind, total, total // block * width


# --- safetensors ----------------------------------------------------------------------------------------------------------


def read_safetensors(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of every tensor, from a header checked against the file. Raises BadInput."""
    try:
        with path.open("rb") as handle:
            size = handle.seek(0, 2)
            handle.seek(0)
            length = int.from_bytes(handle.read(8), "little")
            if size < 10 or length > min(size - 8, MAX_SAFETENSORS_HEADER):
                _bad(path, "its header claims more than the file holds, or than any model needs")
            header = _parsed(path, handle.read(length))
    except OSError as error:
        raise from_os_error(error, f"reading {path.name}") from None
    notes = header.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
        _bad(path, "its notes are not texts")
    if len(header) > MAX_TENSORS:
        _bad(path, f"it claims {len(header)} tensors")
    found = {name: _tensor(path, name, entry) for name, entry in header.items()}
    end = 0
    for (start, stop), name in sorted((offsets, name) for name, (_, _, offsets) in found.items()):
        if start != end:
            _bad(path, f"the tensor {name[:80]!r} overlaps another one or leaves a gap")
        end = stop
    if 8 + length + end != size:
        _bad(path, "its size is not what its header says: it may be cut short")
    return {name: (kind, shape) for name, (kind, shape, _) in found.items()}


def _tensor(path: Path, name: str, entry: Any) -> tuple[str, tuple[int, ...], tuple[int, int]]:
    wrong = f"the entry of the tensor {name[:80]!r}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        _bad(path, f"{wrong} is not one")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in DTYPES:
        _bad(path, f"{wrong} names a type that is not known")
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2 or len(shape) > 16:
        _bad(path, f"{wrong} has an impossible shape or place")
    total = 1
    for side in shape:
        total *= side
        if total >= 2**63:
            _bad(path, f"{wrong} has an impossible shape")
    if offsets[1] - offsets[0] != total * DTYPES[kind]:
        _bad(path, f"{wrong} has a place that is not its size")
    return kind, tuple(shape), (offsets[0], offsets[1])


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _bad(path: Path, why: str) -> NoReturn:
    raise BadInput(f"{path.name} is not usable: {why}.", HINT)


def _parsed(path: Path, raw: bytes) -> dict[str, Any]:
    """A JSON object without a key said twice, which two readers could take differently. Raises BadInput."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            _bad(path, "it says the same name twice")
        return found

    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError):  # RecursionError: a hundred thousand brackets
        _bad(path, "it is not valid JSON")
    if not isinstance(value, dict):
        _bad(path, "it is not a JSON object")
    return value


# --- a Hugging Face folder ------------------------------------------------------------------------------------------------


def check_hf_folder(folder: Path) -> None:
    """Refuse a folder that holds anything but weights in safetensors, known JSON and text. Raises BadInput."""
    try:
        names = _allowed_names(folder)
        if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
            raise BadInput(f"There is no model in {folder.name}.", "Give a folder with config.json and safetensors files.")
        tensors: dict[str, str] = {}
        for name in names:
            if name.endswith(".safetensors"):
                for tensor in read_safetensors(folder / name):
                    if tensor in tensors:
                        raise BadInput(f"{name} and {tensors[tensor]} both hold the tensor {tensor[:80]!r}.", HINT)
                    tensors[tensor] = name
        for name in names:
            if name.endswith(".json"):
                _check_json(folder / name, tensors)
        if "chat_template.jinja" in names:
            check_template(_bytes(folder / "chat_template.jinja", MAX_TEXT).decode("utf-8"), "chat_template.jinja")
    except UnicodeDecodeError:
        raise BadInput("chat_template.jinja is not text.", HINT) from None
    except OSError as error:
        raise from_os_error(error, f"reading {folder.name}") from None


def _allowed_names(folder: Path) -> list[str]:
    names = []
    for path in sorted(folder.iterdir()):
        if path.is_symlink() or not path.is_file():
            what = "a link" if path.is_symlink() else "a folder" if path.is_dir() else "no plain file"
            raise BadInput(
                f"{path.name} in {folder.name} is {what}; a model is made of plain files.", "Copy only the model's files."
            )
        if path.suffix.lower() in PICKLES:
            raise BadInput(
                f"{folder.name} holds {path.name}, which can run code when it is loaded.", "Use a model in safetensors format."
            )
        if not any(fnmatchcase(path.name, pattern) for pattern in ALLOWED):
            raise BadInput(
                f"{folder.name} holds {path.name}, which is no part of a model we can take.",
                "Copy only the model's weights, its JSON files and its licence into a new folder.",
            )
        names.append(path.name)
    return names


def _bytes(path: Path, limit: int) -> bytes:
    if path.stat().st_size > limit:
        _bad(path, f"it is larger than {limit} bytes")
    with path.open("rb") as handle:
        return handle.read(limit)


def _check_json(path: Path, tensors: dict[str, str]) -> None:
    large = path.name in ("tokenizer.json", "vocab.json", "added_tokens.json") or path.name.endswith(".index.json")
    value = _parsed(path, _bytes(path, MAX_TABLE if large else MAX_CONFIG))
    if path.name.endswith(".index.json"):
        places = value.get("weight_map")
        if not isinstance(places, dict) or not places:
            _bad(path, "it has no weight_map")
        for tensor, file in places.items():
            if tensors.get(tensor) != file:  # also what climbs out: no such file was read
                _bad(path, f"it places the tensor {tensor[:80]!r} in {str(file)[:80]!r}, which does not hold it")
        return
    if large:
        return
    for key, inner in _pairs(value):
        if key in FORBIDDEN_KEYS:
            raise BadInput(f'{path.name} of the model asks for code of its own ("{key}").', "Use a model without it.")
        if key in ATTENTION_KEYS and not (inner is None or (isinstance(inner, str) and inner in ATTENTION)):
            raise BadInput(f'{path.name} of the model asks for code from elsewhere ("{key}").', "Use a model without it.")
    if path.name == "config.json":
        _check_numbers(path, value)
    for name, source in _templates(path, value.get("chat_template")):
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
            _bad(path, f"it names a chat template {name[:80]!r}, which is not a name")
        check_template(source, path.name, render=name == "default")


def _check_numbers(path: Path, config: dict[str, Any]) -> None:
    """Sizes that are believed when tables are made: each a number that some model could have."""
    for key, value in config.items():
        if key.startswith("num_") or key.endswith(("_size", "_positions", "_embeddings")) or key == "head_dim":
            whole = value is None or isinstance(value, bool | float) or (isinstance(value, int) and 0 <= value <= MAX_SIDE)
            if not whole:
                _bad(path, f"{key[:80]} is not a sensible number")


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key with its value, at every depth."""
    waiting = [value]
    while waiting:
        found = waiting.pop()
        if isinstance(found, dict):
            yield from found.items()
        waiting += found.values() if isinstance(found, dict) else found if isinstance(found, list) else ()


def _templates(path: Path, value: Any) -> list[tuple[str, str]]:
    """(name, source) of the chat templates in a configuration, which may hold one, several by name, or none."""
    if value is None:
        return []
    if isinstance(value, str):
        return [("default", value)]
    if isinstance(value, dict):
        value = [{"name": name, "template": source} for name, source in value.items()]
    if isinstance(value, list) and all(isinstance(one, dict) for one in value):
        found = [(one.get("name"), one.get("template")) for one in value]
        if all(isinstance(name, str) and isinstance(source, str) for name, source in found):
            return [(str(name), str(source)) for name, source in found]
    return _bad(path, "its chat_template is neither a text nor a list of them")


def check_template(source: str, where: str, *, render: bool = True) -> None:
    """Compile a chat template and, unless told otherwise, render one question with it. Raises BadInput.

    A template is a program: it can loop or fill the memory. Where a stranger wrote it, call this in a process with limits.
    """
    if len(source.encode("utf-8", "replace")) > MAX_TEXT:
        raise BadInput(f"The chat template in {where} is larger than that of any model.", HINT)
    try:
        template = ChatTemplate(source, bos_token="", eos_token="")
        pieces = template.pieces([Message("user", "Hello")], answer=True) if render else []
    except ApplianceError:
        raise
    except Exception as error:  # noqa: BLE001 - Jinja hands on what Python's compiler raises: too deep, too many blocks
        raise BadInput(f"The chat template in {where} cannot be read: {type(error).__name__}.", HINT) from None
    if render and not any(piece.message == 0 for piece in pieces):
        raise BadInput(f"The chat template in {where} leaves out what a pupil writes.", "Use a model made for conversation.")
