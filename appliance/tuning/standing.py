"""The standing set: held-out conversations of everything that was promoted before, kept so that the next is asked them too.

Without it a model tuned on nonsense would be judged by the held-out part of its own nonsense. Hides the file and its bound: a
stable sample, so that the set changes little from one promotion to the next. The project's own conversations lie in `sets.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from appliance.errors import BadInput, from_os_error
from appliance.files import write_atomically
from appliance.tuning.dataset import part_key
from appliance.tuning.formats import Example, Unfit, from_row
from appliance.tuning.sets import Sets

PER_DATASET = 80  # conversations that one promotion adds at most, so that a large collection does not crowd out the others
MOST = 240  # conversations in all: scoring them takes a few seconds with the starter


class Standing:
    """The set in a folder (`settings.home / "standing"`). Nothing is written before the first promotion."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "items.jsonl"

    def add(self, dataset_digest: str, held_out: Sequence[Example]) -> int:
        """Keep a sample of a promoted model's held-out part; the number of items that stand now.

        Called twice with the same data, it changes nothing. Where a first turn stands already, the newer reply replaces it:
        it is the one that was reviewed last. Raises StorageFull.
        """
        stand = {part_key(example): (digest, example) for digest, example in self._read()}
        for example in sorted(held_out, key=_order)[:PER_DATASET]:
            stand[part_key(example)] = (dataset_digest, example)
        kept = sorted(stand.values(), key=lambda pair: _order(pair[1]))[:MOST]
        self._write(kept)
        return len(kept)

    def items(self) -> list[Example]:
        """What stands, in an order that does not depend on when it came. Raises BadInput where the file is damaged."""
        return [example for _, example in self._read()]

    def datasets(self) -> list[str]:
        """The digests of the datasets that something still stands of."""
        return sorted({digest for digest, _ in self._read()})

    def forget(self, ids: Collection[str]) -> int:
        """Drop the examples with these ids (their people have withdrawn); the number that was dropped."""
        pairs = self._read()
        kept = [pair for pair in pairs if pair[1].id not in ids]
        if len(kept) < len(pairs):
            self._write(kept)
        return len(pairs) - len(kept)

    def _read(self) -> list[tuple[str, Example]]:
        try:
            lines = [line for line in self._path.read_text("utf-8").split("\n") if line]  # a text may hold U+2028
        except FileNotFoundError:
            return []
        except OSError as error:
            raise from_os_error(error, "reading the standing set") from None
        except UnicodeDecodeError:
            raise _damaged(self._path, 1) from None
        pairs: list[tuple[str, Example]] = []
        for number, line in enumerate(lines, start=1):
            try:
                row: dict[str, Any] = json.loads(line)
                pairs.append((str(row["dataset"]), from_row(row["example"], "huggingface")))
            except (ValueError, KeyError, TypeError, AttributeError, Unfit):
                raise _damaged(self._path, number) from None
        return pairs

    def _write(self, pairs: Sequence[tuple[str, Example]]) -> None:
        rows = ({"dataset": digest, "example": example.row()} for digest, example in pairs)
        write_atomically(self._path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def guarded(content: Path, standing: Standing) -> list[Example]:
    """Everything that a row to train on must not be near: the project's items, and what stands. Raises BadInput."""
    return [*Sets.load(content).examples(), *standing.items()]


def _order(example: Example) -> bytes:
    return hashlib.sha256(f"standing\0{part_key(example)}".encode()).digest()


def _damaged(path: Path, line: int) -> BadInput:
    return BadInput(
        f"The standing set is damaged: line {line} of {path} cannot be read.",
        "Restore that file from a backup, or delete it: the next promotion begins a new one.",
    )
