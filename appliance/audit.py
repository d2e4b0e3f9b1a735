"""The record of who did what to this box: append-only, each row chained to the one before by its hash.

Hides the chain and its check. Rows hold ids, digests and counts, never what a person wrote. It grants and refuses nothing.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import time
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from appliance.db import Database
from appliance.errors import ApplianceError
from appliance.tables import audit

START = "0" * 64
# Clocks are set by a few seconds now and then; a row that is further ahead was written under another clock.
SLACK = 300.0


@dataclass(frozen=True, slots=True)
class Entry:
    """One row. `at`: UTC seconds."""

    number: int
    at: float
    actor: str
    verb: str
    thing: str
    facts: dict[str, Any]
    hash: str


def clock_went_back(connection: sa.Connection, now: float) -> bool:
    """Whether the box has written down a later moment than this one, and nothing since: what goes by age has to wait.

    Rows are told by their order and not by their dates: once somebody is at work under a clock that was set right, whatever
    was written while it ran ahead says nothing any more.
    """
    last = connection.execute(sa.select(audit.c.at).order_by(audit.c.number.desc()).limit(1)).scalar()
    return last is not None and last > now + SLACK


class Audit:
    """The record of one database. Safe to use from several processes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def note(self, verb: str, thing: str, facts: dict[str, Any] | None = None, *, actor: str = "") -> Entry:
        """Append a row: `actor` (the Unix name of who runs this process where none is given) did `verb` to `thing`."""
        row: dict[str, Any] = {
            "at": time.time(), "actor": actor or unix_name(), "verb": verb, "thing": thing, "facts": facts or {},
        }  # fmt: skip
        with self._database.begin() as connection:
            last = connection.execute(sa.select(audit.c.hash).order_by(audit.c.number.desc()).limit(1)).scalar()
            row["previous"] = last or START
            row["hash"] = _hash(row)
            made = connection.execute(audit.insert().values(**row)).inserted_primary_key
        return Entry(int(made[0]) if made else 0, row["at"], row["actor"], verb, thing, row["facts"], row["hash"])

    def entries(self, *, thing: str = "", newest: int = 0) -> list[Entry]:
        """Rows, oldest first; of one `thing`, or only the `newest` so many."""
        query = sa.select(audit).order_by(audit.c.number.desc())
        query = query.where(audit.c.thing == thing) if thing else query
        query = query.limit(newest) if newest else query
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return [Entry(r.number, r.at, r.actor, r.verb, r.thing, r.facts, r.hash) for r in reversed(rows)]

    def verify(self) -> int:
        """Walk the whole chain; the number of rows. Raises ApplianceError naming the first row that does not fit or is gone.

        SQLite counts the numbers that it gave out in a table of its own, so rows taken from the end are missed as well. Whoever
        rewrites that table, or the whole chain, is not found out here: only a copy kept elsewhere can show that.
        """
        previous, last, count = START, 0, 0
        with self._database.read() as connection:
            for row in connection.execute(sa.select(audit).order_by(audit.c.number)).mappings():
                if row["previous"] != previous or _hash(dict(row)) != row["hash"]:
                    raise _changed(f"row {row['number']} does not fit the one before it")
                previous, last, count = row["hash"], row["number"], count + 1
            given = connection.execute(sa.text("SELECT seq FROM sqlite_sequence WHERE name = 'audit'")).scalar() or 0
        if last != given:
            raise _changed(f"row {last + 1} and what follows, up to row {given}, is gone")
        return count


def _changed(how: str) -> ApplianceError:
    return ApplianceError(
        f"The audit record was changed: {how}.",
        "Compare it with the last good backup, and find out who could write the database.",
    )


def unix_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def _hash(row: dict[str, Any]) -> str:
    names = ("at", "actor", "verb", "thing", "facts", "previous")
    return hashlib.sha256(json.dumps([row[name] for name in names], sort_keys=True).encode()).hexdigest()
