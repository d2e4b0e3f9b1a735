"""One number for what the library holds: it goes up with every change that an index of the passages has to follow.

Counting rows cannot tell that a document moved to another collection; this can. The number is changed in the transaction that
changes the content, so that whoever reads both in one transaction never takes old content for new.
"""

from __future__ import annotations

import sqlalchemy as sa

from appliance.tables import library_state

CONTENT = "content"


def number(connection: sa.Connection) -> int:
    """The number of the content that this transaction sees."""
    return int(connection.scalar(sa.select(library_state.c.number).where(library_state.c.name == CONTENT)) or 0)


def changed(connection: sa.Connection) -> None:
    """Call once in every transaction that adds, removes or moves passages, or gives them vectors."""
    raised = sa.update(library_state).where(library_state.c.name == CONTENT).values(number=library_state.c.number + 1)
    if not connection.execute(raised).rowcount:
        connection.execute(sa.insert(library_state).values(name=CONTENT, number=1))
