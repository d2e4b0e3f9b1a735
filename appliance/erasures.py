"""What was erased, outside the database: by this list a restored state, which is older, has the same erased once more.

Hides the file (`HOME/backups/erased.jsonl`, a line each, flushed to disk at once; a restore leaves it where it is, and a copy
lies beside the backups) and where else the same is known from: the database of this moment, which may be damaged. It holds
digests of ids, so that it says nothing of anybody. Nothing is ever taken off it: an id is given to nobody else. Who erases
writes it down first, so that a kill in between leaves one line too many and never one too few. What erasing means is not here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import sqlalchemy as sa

from appliance.db import Database
from appliance.errors import ApplianceError, from_os_error
from appliance.files import make_folder, sync, write_atomically
from appliance.settings import Settings
from appliance.tables import audit, examples, gone_documents, withdrawals

# person: an account. row: an example. author: whose rows may not be used, as `tuning.people` digests them. document: one.
Kind = Literal["person", "row", "author", "document"]
KINDS: tuple[Kind, ...] = ("person", "row", "author", "document")
Erased = frozenset[tuple[str, str]]  # (kind, mark)
NAME = "erased.jsonl"
ERASE_PERSON = "erase person"  # the verb of the audit record


class Erasures:
    """The list of one home."""

    def __init__(self, settings: Settings) -> None:
        self.path = settings.backups / NAME

    def note(self, kind: Kind, ids: Iterable[str]) -> None:
        """Write down what is about to be erased; what stands there already is not written twice. Raises ApplianceError."""
        self._append(sorted({(kind, mark(kind, id)) for id in ids} - self.read()))

    def read(self) -> Erased:
        """Raises ApplianceError where the list is there and cannot be read: without it erased people would come back."""
        return frozenset(_read(self.path))

    def learn(self, database: Database) -> None:
        """Write down what a database knows of erasures: those from before there was a list, and examples taken back."""
        self.remember(known_to(database))

    def remember(self, erased: Erased) -> None:
        self._append(sorted(erased - self.read()))

    def take_over(self, other: Path) -> None:
        """Write down what another copy of the list holds, where there is one. Raises ApplianceError."""
        self._append(sorted(frozenset(_read(other)) - self.read()))

    def copy_to(self, other: Path) -> None:
        """Bring another copy up to date. Raises ApplianceError."""
        found = self.read() | _read(other)
        if found != _read(other):
            write_atomically(other, "".join(_line(kind, its) for kind, its in sorted(found)))

    def _append(self, rows: Iterable[tuple[str, str]]) -> None:
        text = "".join(_line(kind, its) for kind, its in rows)
        if not text:
            return
        try:
            make_folder(self.path.parent)
            new = not self.path.exists()
            with open(self.path, "a+b", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
                if file.seek(0, os.SEEK_END):
                    file.seek(-1, os.SEEK_END)
                    text = text if file.read(1) == b"\n" else f"\n{text}"  # a line that a power cut left half written
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
            if new:
                sync(self.path.parent)
        except OSError as error:
            raise from_os_error(error, "writing down what is erased") from None


def mark(kind: str, id: str) -> str:
    """What stands for an id in the list; an author is a keyed digest already."""
    return id if kind == "author" else hashlib.sha256(f"{kind}\0{id}".encode()).hexdigest()[:32]


def known_to(database: Database) -> Erased:
    """What a database of this release remembers of erasures. Raises ApplianceError where it cannot be read."""
    chosen: dict[Kind, sa.Select[tuple[str]]] = {
        "person": sa.select(audit.c.thing).where(audit.c.verb == ERASE_PERSON),
        "row": sa.select(examples.c.id).where(examples.c.withdrawn.is_not(None)),
        "author": sa.select(withdrawals.c.person),
        "document": sa.select(gone_documents.c.id).where(gone_documents.c.why == "removed"),
    }
    with database.read() as connection:
        found = ((kind, str(id)) for kind, query in chosen.items() for id in connection.execute(query).scalars())
        return frozenset((kind, mark(kind, id)) for kind, id in found)


def known_at(path: Path) -> Erased:
    """As `known_to`, of a file that may be missing, damaged or of another release: then nothing."""
    if not path.is_file():
        return frozenset()
    database = Database(path)
    with contextlib.suppress(ApplianceError, sa.exc.SQLAlchemyError):
        try:
            return known_to(database)
        finally:
            database.close()
    return frozenset()


def _line(kind: str, its: str) -> str:
    return json.dumps({"kind": kind, "mark": its, "noted": round(time.time())}) + "\n"


def _read(path: Path) -> set[tuple[str, str]]:
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return set()
    except OSError as error:
        raise ApplianceError(
            f"The list of what was erased, {path}, cannot be read: {error.strerror}.", "Check that disk, and who owns the file."
        ) from None
    found = set()
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError):  # half written when the power went
            row = json.loads(line)
            if row["kind"] in KINDS and re.fullmatch(r"[0-9a-f]{24,32}", str(row["mark"])):
                found.add((str(row["kind"]), str(row["mark"])))
    return found
