"""Examples -> a dataset folder: two parts, a card, and a digest that names exactly this data.

Hides duplicates, the split and the guard against near-copies of held-out items. The split looks only at what the lesson and
the pupil said first, so a corrected reply, another run or another limit never moves an example to the other part. Reading
files is `examples.py`'s; nothing here knows a model.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.errors import BadInput
from appliance.files import write_atomically
from appliance.tuning.examples import Example, Fault, check, read_examples
from appliance.tuning.run_folder import write_json

__all__ = ["Dataset", "Example", "Fault", "build", "check", "load", "part_key", "read_examples"]

# A sixth held out: of 150 examples about 24, enough for an interval; the share is the same for every size, because a share
# that depended on the number of examples would move items between the parts as a school's collection grows.
HELD_OUT_SHARE = 0.16
SHINGLE = 3  # words
NEAR = 0.6  # Jaccard similarity of shingle sets from which two conversations count as copies
PERMUTATIONS = 64
FIRST_TURN_WORDS = 8  # a first question shorter than this is too common to tell copies by ("Can you help me?")


@dataclass(frozen=True)
class Dataset:
    """A dataset folder: train.jsonl, held_out.jsonl, card.json. `card["digest"]` names the data."""

    folder: Path
    train: list[Example]
    held_out: list[Example]
    card: dict[str, Any]

    @property
    def digest(self) -> str:
        return str(self.card["digest"])


def build(
    examples: Sequence[Example], folder: Path, *, limit: int | None = None, held_out_share: float = HELD_OUT_SHARE
) -> Dataset:
    """Drop duplicates, take `limit` of them, split, drop near-copies of held-out items from training, write the folder.

    Raises BadInput where nothing is left to train on, StorageFull.
    """
    if limit is not None and limit < 1:
        raise BadInput(f"The limit of examples is {limit}.", "Give a limit of at least 1.")
    unique: dict[str, Example] = {}
    for example in examples:
        unique.setdefault(_fingerprint(example), example)
    # The order is a hash with another salt than the split's: the limited subset has the same share of held-out items, and a
    # larger limit only adds to a smaller one.
    ordered = sorted(unique.items(), key=lambda item: _hash("order", part_key(item[1]) + item[0]))
    chosen = [example for _, example in ordered[:limit]]
    held_out = [example for example in chosen if _is_held_out(example, held_out_share)]
    rest = [example for example in chosen if not _is_held_out(example, held_out_share)]
    train, near = _without_near_copies(rest, held_out)
    if not train:
        raise BadInput(
            f"Of {len(examples)} examples none is left to train on.",
            "Give more examples that differ from one another; 150 or more give a gate that can be trusted.",
        )
    dropped = {"duplicates": len(examples) - len(unique), "beyond_limit": len(unique) - len(chosen), "near_held_out": len(near)}
    return _write(folder, train, held_out, dropped)


def load(folder: Path) -> Dataset:
    """A dataset folder as it was written. Raises BadInput where a file does not match its card."""
    try:
        card = json.loads((folder / "card.json").read_text("utf-8"))
        for name, digest in card["sha256"].items():
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
                raise ValueError(name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise BadInput(f"The dataset folder {folder.name} is damaged.", "Delete it and run the same command again.") from None
    parts = []
    for name in ("train.jsonl", "held_out.jsonl"):
        empty = not (folder / name).read_bytes().strip()
        parts.append([] if empty else read_examples(folder / name))
    return Dataset(folder, parts[0], parts[1], card)


def part_key(example: Example) -> str:
    """What decides the part: the lesson's instructions and the pupil's first turn, in plain words.

    The instructions belong to it because whole collections open with one stock sentence ("I am ready for the next exercise").
    """
    first = next(message.content for message in example.messages if message.role == "user")
    system = " ".join(message.content for message in example.messages if message.role == "system")
    return f"{_plain(system)}\n{_plain(first)}"


def _is_held_out(example: Example, share: float) -> bool:
    return int(_hash("part", part_key(example))[:15], 16) < share * 16**15


def _hash(salt: str, text: str) -> str:
    return hashlib.sha256(f"{salt}\0{text}".encode()).hexdigest()


def _plain(text: str) -> str:
    """Case, accents' spelling, punctuation and spacing do not make a different question; signs in a sum do."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.findall(r"\w+|[^\w\s.,;:!?'\"]", folded)) or folded.strip()


def _fingerprint(example: Example) -> str:
    said = [[message.role, " ".join(message.content.split())] for message in example.messages]
    return hashlib.sha256(json.dumps(said, ensure_ascii=False).encode()).hexdigest()


# --- near-copies ----------------------------------------------------------------------------------------------------------


def _shingles(text: str) -> frozenset[str]:
    words = _plain(text).split()
    return frozenset(" ".join(words[at : at + SHINGLE]) for at in range(max(1, len(words) - SHINGLE + 1)))


def _views(example: Example) -> list[frozenset[str]]:
    """What is compared: the whole talk, and the first question where it is long enough to mean something."""
    talk = [message for message in example.messages if message.role != "system"]
    views = [_shingles("\n".join(message.content for message in talk))]
    if len(talk[0].content.split()) >= FIRST_TURN_WORDS:
        views.append(_shingles(talk[0].content))
    return views


def _without_near_copies(rest: list[Example], held_out: list[Example]) -> tuple[list[Example], list[Example]]:
    """(kept, dropped): training items none of whose views resembles the same view of a held-out item."""
    from datasketch import MinHash, MinHashLSH

    def sketch(view: frozenset[str]) -> Any:
        minhash = MinHash(num_perm=PERMUTATIONS, seed=1)
        minhash.update_batch([shingle.encode() for shingle in sorted(view)])
        return minhash

    # Bands of 4 rows find pairs well below NEAR too; the exact similarity then decides.
    indexes = [MinHashLSH(num_perm=PERMUTATIONS, params=(PERMUTATIONS // 4, 4)) for _ in range(2)]
    stored: dict[str, frozenset[str]] = {}
    for number, example in enumerate(held_out):
        for kind, view in enumerate(_views(example)):
            stored[f"{kind}:{number}"] = view
            indexes[kind].insert(f"{kind}:{number}", sketch(view))

    def resembles(example: Example) -> bool:
        for kind, view in enumerate(_views(example)):
            for key in indexes[kind].query(sketch(view)):
                if len(view & stored[key]) >= NEAR * len(view | stored[key]):
                    return True
        return False

    kept: list[Example] = []
    dropped: list[Example] = []
    for example in rest:
        (dropped if resembles(example) else kept).append(example)
    return kept, dropped


# --- the folder -----------------------------------------------------------------------------------------------------------


def _write(folder: Path, train: list[Example], held_out: list[Example], dropped: dict[str, int]) -> Dataset:
    parts = {"train.jsonl": _lines(train), "held_out.jsonl": _lines(held_out)}
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in parts.items()}
    both = [*train, *held_out]
    card = {
        "digest": hashlib.sha256("".join(digests.values()).encode()).hexdigest(),
        "examples": len(both),
        "train": len(train),
        "held_out": len(held_out),
        "dropped": dropped,
        "subject": _count(example.subject for example in both),
        "source": _count(example.source or example.author for example in both),
        "licence": _count(example.licence for example in both),
        "sha256": digests,
    }
    for name, data in parts.items():
        write_atomically(folder / name, data)
    write_json(folder / "card.json", card)
    return Dataset(folder, train, held_out, card)


def _lines(examples: Iterable[Example]) -> bytes:
    return "".join(json.dumps(example.row(), ensure_ascii=False) + "\n" for example in examples).encode()


def _count(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(value or "not stated" for value in values).items()))
