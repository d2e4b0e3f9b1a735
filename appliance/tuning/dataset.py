"""Examples -> a dataset folder: two parts, a card, and a digest that names exactly this data.

Hides duplicates, the split and the guard against near-copies of what a model is judged by. The split looks only at what the
lesson and the pupil said first, so a corrected reply, another run or another limit never moves an example to the other part.
Reading files is `examples.py`'s, which rows may be used `selection.py`'s; nothing here knows a model.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.errors import BadInput
from appliance.files import write_atomically
from appliance.tuning.examples import Example, Fault, check, read_examples
from appliance.tuning.near import Judged, Taken, plain
from appliance.tuning.run_folder import write_json

__all__ = ["Dataset", "Example", "Fault", "build", "check", "fingerprint", "load", "part_key", "read_examples"]

# A sixth held out: of 150 examples about 24, enough for an interval; the share is the same for every size, because a share
# that depended on the number of examples would move items between the parts as a school's collection grows.
HELD_OUT_SHARE = 0.16


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
    examples: Sequence[Example],
    folder: Path,
    *,
    limit: int | None = None,
    held_out_share: float = HELD_OUT_SHARE,
    evaluation: Sequence[Example] = (),
    facts: dict[str, Any] | None = None,
) -> Dataset:
    """Drop duplicates, take `limit` of them, split, drop from training what nearly repeats something, write the folder.

    Out of training go near-copies of held-out items, of the items in `evaluation`, and of training items before them; the
    held-out part is left as it fell. `facts` are added to the card. Raises BadInput where nothing is left to train on,
    StorageFull.
    """
    if limit is not None and limit < 1:
        raise BadInput(f"The limit of examples is {limit}.", "Give a limit of at least 1.")
    unique: dict[str, Example] = {}
    for example in examples:
        unique.setdefault(fingerprint(example), example)
    # The order is a hash with another salt than the split's: the limited subset has the same share of held-out items, and a
    # larger limit only adds to a smaller one.
    ordered = sorted(unique.items(), key=lambda item: _hash("order", part_key(item[1]) + item[0]))
    chosen = [example for _, example in ordered[:limit]]
    held_out = [example for example in chosen if _is_held_out(example, held_out_share)]
    rest = [example for example in chosen if not _is_held_out(example, held_out_share)]
    train, near = _without_near_copies(rest, held_out, evaluation)
    if not train:
        raise BadInput(
            f"Of {len(examples)} examples none is left to train on.",
            "Give more examples that differ from one another; 150 or more give a gate that can be trusted.",
        )
    dropped = {"duplicates": len(examples) - len(unique), "beyond_limit": len(unique) - len(chosen), **near}
    return _write(folder, train, held_out, dropped, facts or {})


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
    return f"{plain(system)}\n{plain(first)}"


def _is_held_out(example: Example, share: float) -> bool:
    return int(_hash("part", part_key(example))[:15], 16) < share * 16**15


def _hash(salt: str, text: str) -> str:
    return hashlib.sha256(f"{salt}\0{text}".encode()).hexdigest()


def fingerprint(example: Example) -> str:
    """What makes two examples the same: who said what, spacing aside."""
    said = [[message.role, " ".join(message.content.split())] for message in example.messages]
    return hashlib.sha256(json.dumps(said, ensure_ascii=False).encode()).hexdigest()


def _without_near_copies(
    rest: list[Example], held_out: Sequence[Example], evaluation: Sequence[Example]
) -> tuple[list[Example], dict[str, int]]:
    """What of `rest` may be trained on, and how many fell out for which reason."""
    judges = {"near_held_out": Judged(held_out), "near_evaluation": Judged(evaluation)}
    taken = Taken()
    dropped = dict.fromkeys([*judges, "near_duplicates"], 0)
    kept: list[Example] = []
    for example in rest:
        reason = next((name for name, judge in judges.items() if judge.resembled(example)), "")
        if not reason and taken.copied(example):
            reason = "near_duplicates"
        if reason:
            dropped[reason] += 1
        else:
            kept.append(example)
    return kept, dropped


# --- the folder -----------------------------------------------------------------------------------------------------------


def _write(
    folder: Path, train: list[Example], held_out: list[Example], dropped: dict[str, int], facts: dict[str, Any]
) -> Dataset:
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
        "authors": len({example.author for example in both if example.author}),
        "rows": {"train": [example.id for example in train], "held_out": [example.id for example in held_out]},
        "sha256": digests,
    }
    card |= {name: value for name, value in facts.items() if name not in card}
    for name, data in parts.items():
        write_atomically(folder / name, data)
    write_json(folder / "card.json", card)
    return Dataset(folder, train, held_out, card)


def _lines(examples: Iterable[Example]) -> bytes:
    return "".join(json.dumps(example.row(), ensure_ascii=False) + "\n" for example in examples).encode()


def _count(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(value or "not stated" for value in values).items()))
