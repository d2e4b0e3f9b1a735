"""Which files a document came as: the real paths at which its content was found.

By them a corrected file takes the place of what it was before, and of nothing else: two files of one name in two folders are
two documents, and two files of one content are one document, which stays for as long as one of them is still it. Paths are for
this purpose only; nobody who reads a document sees them. Works in the caller's transaction.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from appliance.knowledge.extract import clean_name
from appliance.tables import document_paths, documents


def known_at(connection: sa.Connection, collection: str, path: str) -> list[str]:
    """The documents of a collection that the file at this path is, or was until now."""
    joined = sa.select(documents.c.id).join(document_paths, document_paths.c.document == documents.c.id)
    chosen = joined.where(documents.c.collection == collection, document_paths.c.path == path)
    return list(connection.scalars(chosen.order_by(documents.c.added)))


def namesakes(connection: sa.Connection, collection: str, file: str) -> dict[str, bool]:
    """The documents of a collection whose file has this name, and whether it is known where each lay."""
    placed = sa.exists().where(document_paths.c.document == documents.c.id)
    chosen = sa.select(documents.c.id, placed).where(documents.c.collection == collection, documents.c.file == file)
    return {row[0]: bool(row[1]) for row in connection.execute(chosen)}


def becomes(connection: sa.Connection, path: str, document: str, before: Sequence[str]) -> list[str]:
    """The file at this path was the documents `before`, and is `document` now; those of `before` that no other file is.

    One that is still there as another file bears that file's name from now on. A path where nothing lies any more counts for
    nothing: its file was moved, most likely to where the new one lies.
    """
    was_here = sa.and_(document_paths.c.path == path, document_paths.c.document.in_(before))
    connection.execute(sa.delete(document_paths).where(was_here))
    connection.execute(insert(document_paths).values(document=document, path=path).on_conflict_do_nothing())
    chosen = sa.select(document_paths).where(document_paths.c.document.in_(before)).order_by(document_paths.c.path)
    names: dict[str, list[str]] = {}
    for row in connection.execute(chosen).all():
        if _there(row.path):
            names.setdefault(row.document, []).append(clean_name(Path(row.path).name))
    for id, left in names.items():
        other = sa.and_(documents.c.id == id, documents.c.file.not_in(left))
        connection.execute(sa.update(documents).where(other).values(file=left[0]))
    return [id for id in before if id not in names]


def _there(path: str) -> bool:
    """Whether something lies there, for all that may be known."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError:
        return True
    return True
