"""What `docs check` found, and when: one line of JSON for each check, so that a school sees whether the search got better.

Hides the file. It keeps rates and how many questions there were, never the questions: they may be a pupil's.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from appliance.errors import from_os_error
from appliance.files import write_atomically
from appliance.knowledge.index import locked
from appliance.knowledge.measure import RATES

KEPT = 1_000  # checks; the oldest go first


class History:
    """The checks of one box, oldest first. Every method blocks."""

    def __init__(self, path: Path, lock: Path) -> None:
        self._path = path
        self._lock = lock

    def add(self, report: Mapping[str, Any], *, collection: str | None, questions: str, passages: int) -> None:
        """Keep the rates of a report. `questions`: the SHA-256 of the file, for only the same questions can be compared.

        Raises Busy where another check is being written at this moment, StorageFull.
        """
        record = {
            "at": round(time.time(), 3),
            "collection": collection,
            "questions": questions,
            "asked": len(report["questions"]),
            "passages": passages,
            "lexical_only": report["lexical_only"],
            **{name: report[name] for name in RATES},
            "collections": report["collections"],
        }
        with locked(self._lock):
            lines = [*self._lines(), json.dumps(record, ensure_ascii=False)]
            write_atomically(self._path, "\n".join(lines[-KEPT:]) + "\n")

    def entries(self, collection: str | None = None) -> list[dict[str, Any]]:
        """Every check, or those that asked one collection. A line that is damaged is left out."""
        found = []
        for line in self._lines():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict) and {"at", "collection", *RATES} <= record.keys():
                found.append(record)
        return [record for record in found if collection is None or record["collection"] == collection]

    def _lines(self) -> list[str]:
        try:
            return [line for line in self._path.read_text("utf-8", "replace").split("\n") if line.strip()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise from_os_error(error, f"reading {self._path.name}") from error
