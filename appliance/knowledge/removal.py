"""Taking a document out of the database for good, and what is left of it: a name, a date and a reason.

The rows of its passages go, with text and vectors. Conversations keep that a passage of it was cited, and from where, but
neither its text nor quotes of it (`quoted`); what people typed and sentences that a model wrote stay, and may repeat something
of it. `gone_documents` remembers what an old link needs. SQLite overwrites deleted rows (`db`); its log keeps old pages until
it is folded in. Files and the index are the caller's, after the transaction.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import sqlalchemy as sa

from appliance.knowledge import content, quoted
from appliance.tables import documents, gone_documents, passages, turns

REMOVED, REPLACED = "removed", "replaced"


def take_out(connection: sa.Connection, ids: Sequence[str], *, why: str, by: str = "", successor: str = "") -> None:
    """Delete these documents and leave a trace of each. `by`: a user's id, "" at the command line."""
    edges = (sa.func.min(passages.c.id).label("first"), sa.func.max(passages.c.id).label("last"))
    held = sa.select(passages.c.document, *edges).group_by(passages.c.document).where(passages.c.document.in_(ids)).subquery()
    chosen = sa.select(documents, held.c.first, held.c.last).outerjoin(held, held.c.document == documents.c.id)
    rows = connection.execute(chosen.where(documents.c.id.in_(ids))).all()
    for row in rows:
        trace = {
            "id": row.id, "collection": row.collection, "title": row.title, "file": row.file, "version": row.version,
            "first_passage": row.first, "last_passage": row.last, "at": time.time(), "by": by, "why": why,
            "successor": successor,
        }  # fmt: skip
        connection.execute(sa.insert(gone_documents).values(trace))
        _empty(connection, row.id)
    connection.execute(sa.delete(documents).where(documents.c.id.in_(ids)))
    content.changed(connection)


def _empty(connection: sa.Connection, document: str) -> None:
    """What conversations hold of its text goes; title, file and place stay."""
    chosen = sa.select(turns).where(sa.cast(turns.c.passages, sa.String).contains(document))
    for row in connection.execute(chosen).all():
        values = quoted.without(row._asdict(), {document})
        connection.execute(sa.update(turns).where(turns.c.id == row.id).values(values))
