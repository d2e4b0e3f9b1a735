"""Erasing in a home: what was made of withdrawn examples, and everything on a list of erasures where an older state comes back.

Hides where else a person's words may stand than in their own rows - runs, reports, jobs, comparisons, programs, the index - and
that a restored state may know somebody under another name than the one that was erased. Nothing here asks or tells anybody.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from appliance.audit import Audit, unix_name
from appliance.db import Database
from appliance.erasures import Erased, mark
from appliance.errors import ApplianceError, Conflict, from_os_error
from appliance.settings import Settings
from appliance.tables import audit, collection_readers, documents, examples, folded, users, withdrawals

if TYPE_CHECKING:
    from appliance.tuning.store import ExampleStore

AT_ONCE = 500  # ids in one query: SQLite takes a limited number of values


@dataclass(frozen=True, slots=True)
class Again:
    """What was still there of what had been erased."""

    people: int = 0
    examples: int = 0
    documents: int = 0

    def __bool__(self) -> bool:
        return bool(self.people or self.examples or self.documents)


def erase_from_made(settings: Settings, database: Database, ids: Collection[str], store: ExampleStore) -> tuple[str, ...]:
    """Take withdrawn rows out of what was made of them; the runs. Whoever calls holds the lock of tuning runs."""
    from appliance.tuning.erasing import erase_from_jobs, erase_from_reports, erase_from_runs
    from appliance.tuning.standing import Standing

    who = store.gone()
    Standing(settings.standing).forget(ids)
    erase_from_reports([settings.runs, settings.reports, settings.models], ids, who)
    erase_from_jobs(database, ids, who)
    return erase_from_runs(settings.runs, ids)


def erase_again(settings: Settings, erased: Erased, *, but: Collection[str] = ()) -> Again:
    """Erase from a home that nobody uses what is on the list; `but`: kinds that may stay. Raises ApplianceError.

    `settings.home` is a whole state with its database. Safe to repeat: where nothing is left to do, nothing is written.
    """
    if not erased or not settings.database.is_file():
        return Again()
    wanted = frozenset(one for one in erased if one[0] not in but)
    database = Database(settings.database)
    try:
        database.migrate()
        people = _there(database, "person", sa.select(users.c.id), wanted)
        gone = _there(database, "document", sa.select(documents.c.id), wanted)
        rows = _without_rows(settings, database, people, wanted)
        if people:
            _without_people(database, people)
        if gone:
            _without_documents(settings, database, gone)
        found = Again(len(people), rows, len(gone))
        if found:
            facts = {"people": found.people, "examples": found.examples, "documents": found.documents}
            Audit(database).note("erase again", "restored state", facts)
        database.fold_log()
        return found
    except OSError as error:
        raise from_os_error(error, "erasing from a restored state") from None
    finally:
        database.close()


def _there(database: Database, kind: str, query: sa.Select[tuple[str]], erased: Erased) -> list[str]:
    with database.read() as connection:
        return [str(id) for id in connection.execute(query).scalars() if (kind, mark(kind, str(id))) in erased]


def _without_rows(settings: Settings, database: Database, people: Iterable[str], erased: Erased) -> int:
    """Empty the examples on the list, and those of its people and authors under whatever name they stand here; how many."""
    from appliance.accounts import Accounts
    from appliance.programs import Programs
    from appliance.tuning.blind import forget
    from appliance.tuning.store import ExampleStore, emptied

    store, by = ExampleStore(database), unix_name()
    if settings.database.with_name("people.key").is_file():  # else their digests are of another box, and say nothing here
        _refuse(database, {its for kind, its in erased if kind == "author"}, by)
    left, gone = store.list(), store.gone()
    wanted = {row.id for row in left if ("row", mark("row", row.id)) in erased or gone(row.author)}
    wanted |= {row.id for row in left} & {example for id in people for example in given_by(database, id)}
    for name in [name for id in people for name in names_of(database, id)] if left else ():
        with contextlib.suppress(Conflict):  # several pupils are called so: the rows that were erased are known by their ids
            wanted |= {*store.trace(name).rows}
    if not wanted:
        return 0
    forget(settings, wanted, store.asked(wanted))  # while their words can still be read
    erase_from_made(settings, database, wanted | store.withdrawn(), store)
    Programs(database, Accounts(database, settings), Audit(database)).forget(wanted, by)
    with database.begin() as connection:
        for some in _some(sorted(wanted)):
            connection.execute(sa.update(examples).where(examples.c.id.in_(some)).values(emptied(by, time.time())))
    return len(wanted)


def _refuse(database: Database, authors: Collection[str], by: str) -> None:
    with database.begin() as connection:
        known = set(connection.execute(sa.select(withdrawals.c.person)).scalars())
        for one in sorted({*authors} - known):
            connection.execute(sa.insert(withdrawals).values(person=one, at=time.time(), by=by))


def names_of(database: Database, id: str) -> list[str]:
    """What an account's examples may stand under: the id, the name, the full name, what the register knows it by."""
    with database.read() as connection:
        row = connection.execute(sa.select(users).where(users.c.id == id)).first()
    names = () if row is None else (row.id, row.name, row.full_name, row.external)
    return list(dict.fromkeys(name for name in names if name))


def given_by(database: Database, id: str) -> set[str]:
    """The examples that a person gave on this box, whatever they were called then: the record of who did what knows them."""
    from appliance.tuning.giving import GIVE

    noted = sa.select(audit.c.thing).where(audit.c.actor == id, audit.c.verb == GIVE)
    with database.read() as connection:
        return set(connection.execute(noted).scalars())


def earlier_names(database: Database, id: str, others: Iterable[Path]) -> list[str]:
    """Names that a person bore before, as far as the box knows them; none that somebody else bears by now.

    Nobody writes down what people were called, and nothing is kept for this: an earlier name is known from the examples that
    the person gave on this box under it, and from databases that lie there anyway (`others`: of states that are kept). What was
    imported under a name that neither knows is not found; `appliance examples withdraw NAME` is for that.
    """
    found: list[str] = []
    given = given_by(database, id)
    with database.read() as connection:
        for some in _some(sorted(given)):
            found += connection.execute(sa.select(examples.c.author).where(examples.c.id.in_(some))).scalars()
    for path in others:
        other = Database(path)
        try:
            with contextlib.suppress(ApplianceError, sa.exc.SQLAlchemyError):  # damaged, or of an older release
                found += names_of(other, id)
        finally:
            other.close()
    with database.read() as connection:
        rows = connection.execute(sa.select(users.c.name, users.c.full_name, users.c.external).where(users.c.id != id)).all()
    taken = {folded(name) for row in rows for name in row if name} | {folded(name) for name in names_of(database, id)}
    return [name for name in dict.fromkeys(found) if name and folded(name) not in taken]


def _without_people(database: Database, ids: list[str]) -> None:
    """The accounts with all that is theirs, the last administrator's as well: then the box gives a code for a new one."""
    with database.begin() as connection:
        for some in _some(ids):
            mine = sa.and_(collection_readers.c.kind == "user", collection_readers.c.name.in_(some))
            connection.execute(sa.delete(collection_readers).where(mine))
            connection.execute(sa.delete(users).where(users.c.id.in_(some)))


def _without_documents(settings: Settings, database: Database, ids: list[str]) -> None:
    """With file, passages and vectors; the index, which holds their words, is made anew by the first search."""
    from appliance.knowledge.removal import REMOVED, take_out

    for id in ids:
        (settings.documents / id).unlink(missing_ok=True)
    if settings.index.is_dir():
        shutil.rmtree(settings.index)
    with database.begin() as connection:
        for some in _some(ids):
            take_out(connection, some, why=REMOVED)


def _some(ids: list[str]) -> Iterable[list[str]]:
    return (ids[at : at + AT_ONCE] for at in range(0, len(ids), AT_ONCE))
