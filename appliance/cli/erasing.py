"""Erasing one person everywhere: what is counted before it goes, the order in which it goes, and what is said of it.

The account goes last: cut off in between, the same command finds the person again and goes on.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from appliance.cli.examples import erase_withdrawn, forget_programs, show_models
from appliance.cli.tune_openai import say_what_was_sent
from appliance.tables import collection_readers, conversations, feedback, flags, keys, memberships, turns

if TYPE_CHECKING:
    from appliance.accounts import Person
    from appliance.app import Appliance
    from appliance.cli.output import Output


def erase_person(out: Output, appliance: Appliance, person: Person) -> dict[str, Any]:
    """What was removed, in numbers; "waiting" where the same command is needed once more, "backups_until" when the last backup
    that holds them is gone. Raises Conflict, NotFound, UnderWay (a backup would take along what is half erased).
    """
    from appliance.backup import working

    with working(out.settings):
        done = _erase(out, appliance, person)
        return done | copies_told(out, appliance, alone=True)


def _erase(out: Output, appliance: Appliance, person: Person) -> dict[str, Any]:
    from appliance.audit import unix_name
    from appliance.erasing import given_by
    from appliance.erasures import ERASE_PERSON, Erasures
    from appliance.tuning.blind import forget
    from appliance.tuning.giving import Giving
    from appliance.tuning.store import ExampleStore

    appliance.people.refuse_last(person.id)
    Erasures(out.settings).note("person", [person.id])
    counts = _count(appliance, person.id)
    store = ExampleStore(appliance.database)
    rows: set[str] = set()
    earlier: set[str] = set()
    given = given_by(appliance.database, person.id)
    names = [*_called(out, store, person), *_called_before(out, appliance, store, person)]
    forget(out.settings, (), store.asked(given))
    for called in names:
        trace = store.trace(called)
        earlier |= {*trace.earlier}
        forget(out.settings, (), store.asked(trace.rows))  # while their words can still be read
        rows |= {*store.withdraw(called, by=unix_name())}
    left = given & {row.id for row in store.list()}  # under a name that is somebody else's by now
    for id in sorted(left):
        Giving(appliance.database).take_back(id, unix_name())
    rows |= left
    runs, waiting = erase_withdrawn(out, appliance, store)
    forget_programs(out, appliance, {*rows, *earlier})
    models = store.models_with({*rows, *earlier}, appliance.registry)
    appliance.people.remove(person.id)
    with appliance.database.begin() as connection:
        mine = sa.and_(collection_readers.c.kind == "user", collection_readers.c.name == person.id)
        connection.execute(sa.delete(collection_readers).where(mine))
    waiting = not appliance.database.fold_log() or waiting
    appliance.audit.note(ERASE_PERSON, person.id, {**counts, "examples": len(rows)})
    told = [f"{number} {what}" for what, number in counts.items() if what != "flags"]
    out.say(f"Erased: the account, {', '.join(told)}, {len(rows)} examples.")
    if runs:
        out.say(f"The data of {len(runs)} tuning runs is erased; their reports stay: {', '.join(runs)}.")
    if counts["flags"]:
        out.say(f"{counts['flags']} flagged messages stay with the safeguarding lead.")
    if rows or earlier:
        show_models(out, models)
        say_what_was_sent(out, store)
    return {"id": person.id, **counts, "examples": len(rows), "runs": runs, "models": models, "waiting": waiting}


def copies_told(out: Output, appliance: Appliance, *, alone: bool = False) -> dict[str, Any]:
    """Sweep the states that are kept for an undo, and say until when backups hold what was erased. alone: the lock is held."""
    from appliance.backup import sweep_alone, sweep_now

    done = (sweep_alone if alone else sweep_now)(out.settings, appliance.database)
    if not done.swept:
        out.note("A backup or a restore is under way: states that are kept for an undo hold a copy until the next backup.")
        out.note("To have it erased there at once, afterwards: `appliance backup create`.")
    for state, until in done.damaged.items():
        out.note(f"{state} is damaged, and keeps a copy until {_day(until)}; `rm -r` lets go of it now.")
    if done.backups:
        when = f"until {_day(done.until)}" if done.until is not None else "for good"
        out.say(
            f"{done.backups} backups from before hold a copy {when} (the setting backup_keep), where one is made each night;"
        )
        out.say("a disk that is kept elsewhere, until backups are made to it again. A restore erases it from them again.")
    return {"backups": done.backups, "backups_until": done.until}


def _day(at: float) -> str:
    return time.strftime("%d %B %Y", time.localtime(at))


def _called(out: Output, store: Any, person: Person) -> list[str]:
    """What this person's examples may stand under: the id, the name, and the full name where it is theirs alone."""
    from appliance.errors import Conflict

    names = [person.id, person.name]
    for name in (person.full_name, person.external):
        if not name or name in names:
            continue
        try:
            store.trace(name)
        except Conflict as error:
            out.note(f"{error.message} Examples under that name are left; {error.hint[0].lower()}{error.hint[1:]}")
        else:
            names.append(name)
    return names


def _called_before(out: Output, appliance: Appliance, store: Any, person: Person) -> list[str]:
    """Names that they bore before, where the box knows of any (`erasing.earlier_names`)."""
    from appliance.backup.copies import kept_states
    from appliance.erasing import earlier_names
    from appliance.errors import Conflict

    states = [state / out.settings.database.name for state in kept_states(out.settings)]
    names = []
    for name in earlier_names(appliance.database, person.id, [path for path in states if path.is_file()]):
        try:
            store.trace(name)
        except Conflict:  # several pupils are called so
            continue
        names.append(name)
    if names:
        out.say(f"Also what stands under earlier names: {', '.join(names)}.")
    if store.list():
        out.note("Examples imported under an earlier name that is not named here stay: `appliance examples withdraw NAME`.")
    return names


def _count(appliance: Appliance, id: str) -> dict[str, int]:
    with appliance.database.read() as connection:

        def count(table: sa.Table, where: sa.ColumnElement[bool]) -> int:
            return connection.scalar(sa.select(sa.func.count()).select_from(table).where(where)) or 0

        theirs = sa.select(conversations.c.id).where(conversations.c.user == id)
        return {
            "chats": count(conversations, conversations.c.user == id),
            "messages": count(turns, turns.c.conversation.in_(theirs)),
            "keys": count(keys, keys.c.user == id),
            "memberships": count(memberships, memberships.c.user == id),
            "ratings": count(feedback, feedback.c.user == id),
            "flags": count(flags, flags.c.user == id),
        }
