"""What was erased, outside the database: by this list a restored state, which is older, has the same erased once more.

Hides the file (`HOME/backups/erased.jsonl`, a line each, flushed to disk at once; a restore leaves it where it is, and a copy
lies beside the backups) and where else the same is known from: the database of this moment, which may be damaged. It holds
digests of ids, so that it says nothing of anybody. An id is given to nobody else; only a document can come back, where a
restore was told so, and of two lines the later counts. Who erases writes it down first, so that a kill in between leaves one
line too many and never one too few. What erasing means is not here.
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
from appliance.tables import audit, documents, examples, gone_documents, withdrawals

# person: an account. row: an example. author: whose rows may not be used, as `tuning.people` digests them. document: one.
Kind = Literal["person", "row", "author", "document"]
KINDS: tuple[Kind, ...] = ("person", "row", "author", "document")
NEVER = (0.0, False)
Erased = frozenset[tuple[str, str]]  # (kind, mark)
NAME = "erased.jsonl"
ERASE_PERSON = "erase person"  # the verb of the audit record


class Erasures:
    """The list of one home."""

    def __init__(self, settings: Settings) -> None:
        self.path = settings.backups / NAME

    def note(self, kind: Kind, ids: Iterable[str]) -> None:
        """Write down what is about to be erased; what stands there already is not written twice. Raises ApplianceError."""
        self._append({(kind, mark(kind, id)) for id in ids} - self.read())

    def read(self) -> Erased:
        """Raises ApplianceError where the list is there and cannot be read: without it erased people would come back."""
        return frozenset(one for one, (_at, back) in _read(self.path).items() if not back)

    def learn(self, database: Database) -> None:
        """Write down what a database knows: erasures from before there was a list, examples taken back, documents that are
        there again. Raises ApplianceError, also where the database cannot be read.
        """
        listed = self.read()
        self._append(known_to(database) - listed)
        with database.read() as connection:
            there = {("document", mark("document", id)) for id in connection.execute(sa.select(documents.c.id)).scalars()}
        self._append(there & listed, back=True)

    def learn_at(self, path: Path) -> None:
        """As `learn`, of a file that may be missing, damaged or of another release: then nothing."""
        if not path.is_file():
            return
        database = Database(path)
        try:
            with contextlib.suppress(ApplianceError, sa.exc.SQLAlchemyError):
                self.learn(database)
        finally:
            database.close()

    def take_over(self, other: Path) -> None:
        """Write down what another copy of the list holds, where there is one. Raises ApplianceError."""
        own = _read(self.path)
        self._write("".join(_line(one, facts) for one, facts in sorted(_read(other).items()) if facts > own.get(one, NEVER)))

    def copy_to(self, other: Path) -> None:
        """Bring another copy up to date. Raises ApplianceError."""
        own, its = _read(self.path), _read(other)
        both = {one: max(own.get(one, NEVER), its.get(one, NEVER)) for one in own.keys() | its.keys()}
        if both != its:
            write_atomically(other, "".join(_line(one, facts) for one, facts in sorted(both.items())))

    def _append(self, which: Iterable[tuple[str, str]], *, back: bool = False) -> None:
        self._write("".join(_line(one, (time.time(), back)) for one in sorted(which)))

    def _write(self, text: str) -> None:
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


def _line(one: tuple[str, str], facts: tuple[float, bool]) -> str:
    (kind, its), (at, back) = one, facts
    return json.dumps({"kind": kind, "mark": its, "noted": at} | ({"back": True} if back else {})) + "\n"


def _read(path: Path) -> dict[tuple[str, str], tuple[float, bool]]:
    """{(kind, mark): (when, whether it came back)}, of each the latest line."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ApplianceError(
            f"The list of what was erased, {path}, cannot be read: {error.strerror}.", "Check that disk, and who owns the file."
        ) from None
    found: dict[tuple[str, str], tuple[float, bool]] = {}
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError):  # half written when the power went
            row = json.loads(line)
            if row["kind"] in KINDS and re.fullmatch(r"[0-9a-f]{24,32}", str(row["mark"])):
                one, back = (str(row["kind"]), str(row["mark"])), row["kind"] == "document" and row.get("back") is True
                found[one] = max(found.get(one, NEVER), (float(row["noted"]), back))
    return found
