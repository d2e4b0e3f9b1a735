"""What a model's tokenizer does, in the terms that llama.cpp's converter understands.

The converter knows byte-level BPE tokenizers by a hash over one text, so it refuses every vocabulary that a school or a
researcher trained, and it wants a SentencePiece file, which folders saved by newer versions of transformers no longer hold.
Both can be told from the tokenizer itself: the way it cuts text has a name in llama.cpp or has not, and its tables make the
missing file. Whether llama.cpp then finds the same tokens is proven by `parity.py`, not here. Runs in the converter's child.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from appliance.errors import Unsupported
from appliance.tuning.parity import chat_template

SPACE = "\u2581"
# What llama.cpp cuts text with, by the patterns as tokenizer.json gives them (src/llama-vocab.cpp, llm_tokenizer_bpe).
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r"\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
PATTERNS = {
    rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{REST}": "dbrx",
    rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{REST}": "qwen2",
    rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{REST}": "qwen35",
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{REST}": "gpt-4o",
}  # fmt: skip
# The same cut, where whole words that are in the vocabulary are taken without merging.
WHOLE_WORDS = {"dbrx": "llama-bpe"}


def pre_tokenizer(tokenizer: dict[str, Any]) -> str:
    """llama.cpp's name for the way this byte-level BPE tokenizer cuts text. Raises Unsupported for a way it has no name for.

    tokenizer: as in tokenizer.json. Unicode's NFC is allowed before the cut: llama.cpp leaves it out, so text that is not in
    that form already (rare: letters typed with separate accents) becomes other tokens.
    """
    model = tokenizer.get("model") or {}
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise _unknown(f"it is {model.get('type')}, not byte-level BPE")
    if any(step.get("type") != "NFC" for step in _steps(tokenizer.get("normalizer"), "normalizers")):
        raise _unknown("it changes text before cutting it")
    steps = [_step(step) for step in _steps(tokenizer.get("pre_tokenizer"), "pretokenizers")]
    found = {("bytes by word",): "gpt-2", ("digits", "bytes by word"): "smollm"}.get(tuple(steps))
    if found is None and len(steps) == 2 and steps[1] == "bytes":
        found = PATTERNS.get(steps[0])
    if found is None:
        raise _unknown("its words are cut by a rule of their own")
    if model.get("ignore_merges"):
        found = WHOLE_WORDS.get(found)
        if found is None:
            raise _unknown("it takes whole words without merging")
    return found


def _steps(part: dict[str, Any] | None, inner: str) -> list[dict[str, Any]]:
    if not part:
        return []
    return list(part[inner]) if part.get("type") == "Sequence" else [part]


def _step(step: dict[str, Any]) -> str:
    """One step as a word, or as its pattern; empty for one that no cut of llama.cpp has."""
    kind = step.get("type")
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return "bytes by word" if step.get("use_regex", True) else "bytes"
    if kind == "Digits" and step.get("individual_digits"):
        return "digits"
    if kind == "Split" and step.get("behavior") in ("Isolated", "Removed") and "Regex" in step.get("pattern", {}):
        # "Removed" and inverted says: keep what matches, which is everything for the patterns above.
        return str(step["pattern"]["Regex"]) if (step["behavior"] == "Removed") == bool(step.get("invert")) else ""
    return ""


def _unknown(why: str) -> Unsupported:
    return Unsupported(
        f"The model's tokenizer has no equal in llama.cpp: {why}.", "Use a model with the tokenizer of a well-known family."
    )


# --- SentencePiece ----------------------------------------------------------------------------------------------------------


def complete(folder: Path) -> None:
    """Make a view of a model whole for the converter: one chat template, the added tokens, a SentencePiece file where it fits.

    The template is the one that transformers renders with; the converter would take another where a folder holds two.
    """
    settings = folder / "tokenizer_config.json"
    values = json.loads(settings.read_text("utf-8")) if settings.is_file() else {}
    values["chat_template"] = chat_template(folder) or None
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer = _loaded(folder) if (folder / "tokenizer.json").is_file() else {}
    model = tokenizer.get("model") or {}
    if model.get("type") == "BPE" and model.get("byte_fallback"):
        if not (folder / "tokenizer.model").is_file():
            (folder / "tokenizer.model").write_bytes(sentencepiece(tokenizer))
        if not values.get("added_tokens_decoder"):
            keys = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
            values["added_tokens_decoder"] = {
                str(token["id"]): {key: token[key] for key in keys} for token in tokenizer.get("added_tokens", [])
            }
    elif json.loads((folder / "config.json").read_text("utf-8")).get("model_type") == "phi3" and model.get("type") == "BPE":
        values["tokenizer_class"] = "GPT2Tokenizer"  # the one name by which the converter tells Phi's two kinds apart
    settings.unlink(missing_ok=True)  # a link to the school's own file
    settings.write_text(json.dumps(values), "utf-8")


def _loaded(folder: Path) -> dict[str, Any]:
    """The tokenizer as transformers uses it, which is not always as its file describes it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    found: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return found


def sentencepiece(tokenizer: dict[str, Any]) -> bytes:
    """A SentencePiece model file with a BPE tokenizer's pieces; merging by score then follows the order of its merges.

    Format: github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto. Raises Unsupported.
    """
    model = tokenizer["model"]
    pieces: dict[int, str] = {number: text for text, number in model["vocab"].items()}
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    rank: dict[str, int] = {}
    for place, (left, right) in enumerate(merges):
        rank.setdefault(left + right, place)
    added = {token["id"]: token for token in tokenizer.get("added_tokens", [])}
    pieces |= {number: token["content"] for number, token in added.items()}
    if sorted(pieces) != list(range(len(pieces))):
        raise _unknown("its tokens are not numbered without gaps")
    unknown = model.get("unk_token") or pieces[0]
    has_bytes = {f"<0x{byte:02X}>" for byte in range(256)} <= set(pieces.values())
    whole = b""
    for number in range(len(pieces)):
        text = pieces[number]
        kind = _kind(text, unknown, added.get(number), has_bytes=has_bytes)
        score = -float(rank[text]) if text in rank else 0.0
        whole += _field(1, _field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + b"\x18" + bytes([kind]))
    # trainer_spec: model_type = BPE, byte_fallback; normalizer_spec: one that changes nothing.
    fallback = b"\x98\x02\x01" if has_bytes else b""
    return whole + _field(2, b"\x18\x02" + fallback) + _field(3, _field(1, b"identity") + b"\x18\x00\x20\x00")


def _kind(text: str, unknown: str, added: dict[str, Any] | None, *, has_bytes: bool) -> int:
    """SentencePiece's type of a piece: normal 1, unknown 2, control 3, user-defined 4, byte 6."""
    if text == unknown:
        return 2
    if added is not None:
        return 3 if added.get("special") else 4
    return 6 if has_bytes and len(text) == 6 and text.startswith("<0x") and text.endswith(">") else 1


def _field(number: int, content: bytes) -> bytes:
    """A protobuf field of bytes: tag, length, content."""
    length, size = b"", len(content)
    while size >= 128:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content
