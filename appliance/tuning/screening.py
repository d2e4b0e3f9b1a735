"""What a file of examples must pass before a model learns from it, where it does not come through the school's store.

Hides that the same rules hold as there: no row that was withdrawn, whose author has, or where consent was refused; no personal
data; and a record of which rows stand in which dataset, under the ids that the store would give them. Nobody has reviewed
these rows: who names the file answers for that.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from appliance.db import Database
from appliance.engine.handler import Message
from appliance.redact import Redactor, Roster
from appliance.tuning.dataset import Dataset
from appliance.tuning.examples import Example, placed, refuse
from appliance.tuning.incoming import Incoming
from appliance.tuning.incoming import read as incoming
from appliance.tuning.store import ExampleStore


class Screen:
    """The rules for one file; `facts` are known once it was read."""

    def __init__(self, database: Database) -> None:
        self._store = ExampleStore(database)
        self._roster = Roster(database)
        self._authors: dict[str, str] = {}
        self._dropped: Counter[str] = Counter()
        self._redactions: Counter[str] = Counter()

    def read(self, path: Path) -> list[Example]:
        """The examples that may be learned, without personal data. Raises BadInput with every fault, NotFound."""
        good, faults = placed(path)
        rows: list[tuple[Example, Incoming]] = []
        for file, line, example in good:
            row, wrong = incoming(example, file, line)
            faults += wrong
            rows += [(example, row)] if row else []
        refuse(faults)
        gone, erased, redactor = self._store.gone(), self._store.withdrawn(), Redactor(self._roster.names())
        kept = []
        for example, row in rows:
            if row.id in erased or gone(example.author):
                self._dropped["withdrawn"] += 1
            elif row.values["consent"] is False:
                self._dropped["no_consent"] += 1
            else:
                self._authors[row.id] = example.author
                kept.append(self._masked(dataclasses.replace(example, id=row.id), redactor))
        return kept

    def facts(self) -> dict[str, Any]:
        """What the dataset's card says of it: counts, no words."""
        return {"redactions": dict(sorted(self._redactions.items())), "screened": dict(sorted(self._dropped.items()))}

    def record(self, data: Dataset) -> Callable[[], Collection[str]]:
        """Remember which rows stand in the dataset; what is returned says which of them were withdrawn by now."""
        self._store.record(data.digest, data)
        ids = [example.id for example in (*data.train, *data.held_out)]

        def withdrawn() -> Collection[str]:
            gone, erased = self._store.gone(), self._store.withdrawn()
            return [id for id in ids if id in erased or gone(self._authors.get(id, ""))]

        return withdrawn

    def _masked(self, example: Example, redactor: Redactor) -> Example:
        def text(words: str) -> str:
            found = redactor.redact(words)
            self._redactions.update(found.counts)
            return found.text

        said = tuple(Message(message.role, text(message.content)) for message in example.messages)
        author = self._store.people.author(example.author)
        return dataclasses.replace(
            example, messages=said, skill=text(example.skill), source=text(example.source), author=author, extra={}
        )
