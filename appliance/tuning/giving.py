"""Examples that staff give one at a time, out of a conversation: made, changed and taken back by whoever gave them.

Such a row waits for review like an imported one, and again whenever its text changes; names are taken out of it as of any other
when a dataset is built. Taken back, its text leaves the database file and its id stays, so that the models that learned from it
can be told. Work is blocking.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from appliance.audit import Audit
from appliance.engine.handler import Message
from appliance.errors import Conflict
from appliance.tables import examples
from appliance.tuning.incoming import content_of
from appliance.tuning.people import People
from appliance.tuning.store import emptied

if TYPE_CHECKING:
    from appliance.db import Database

GIVE = "give example"  # the verb of the audit record, by which an erasure finds what somebody gave under another name
_WAITS = {"reviewed": "pending", "reviewer": "", "reviewed_at": None}


class Giving:
    """The given examples of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._audit = Audit(database)
        self._people = People(database)

    def keep(self, id: str, *, by: str, messages: Sequence[tuple[str, str]], **columns: Any) -> None:
        """Make the example `id`, or bring it up to date; `columns`: others of the table's. `by`: the id of who gives it.

        Raises Conflict where its author has asked that nothing of theirs is used, or the row was withdrawn meanwhile.
        """
        said = [Message("user" if role == "user" else "assistant", text) for role, text in messages]
        content = content_of(said, columns["correction"], columns["rating"])
        values = columns | {
            "messages": [[one.role, one.content] for one in said], "consent": True, "extra": {"fields": {}, "content": content},
        }  # fmt: skip
        now, this = time.time(), examples.c.id == id
        with self._database.begin() as connection:
            before = connection.execute(sa.select(examples).where(this)).first()
            if self._people.gone(connection)(columns["author"]) or (before is not None and before.withdrawn is not None):
                raise Conflict("It was asked that nothing of this is used for training.", "Take out the tick, and save again.")
            if before is None:
                row = values | _WAITS | {"id": id, "created": now, "imported": now}
                connection.execute(sa.insert(examples).values(**row))
            elif before.extra.get("content") != content:
                connection.execute(sa.update(examples).where(this).values(**values, **_WAITS))
            else:
                return
        self._audit.note(GIVE if before is None else "change example", id, {}, actor=by)

    def take_back(self, id: str, by: str) -> bool:
        """Leave nothing of an example but its id; whether there was more. One that is empty, or was never made, stays so."""
        with self._database.begin() as connection:
            here = (examples.c.id == id) & examples.c.withdrawn.is_(None)
            changed = connection.execute(sa.update(examples).where(here).values(**emptied(by, time.time()))).rowcount
        if changed:
            self._database.fold_log()
            self._audit.note("take back example", id, {}, actor=by)
        return changed > 0
