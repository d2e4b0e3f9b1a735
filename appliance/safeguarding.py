"""What was judged unsafe, in two stores: counts without words for teachers, and the flagged words for the safeguarding lead.

A flag must never be lost: where the database is locked or its disk is full it is kept in memory and tried again until it is
written. Every decision and every reading of flagged words goes to the audit record, by ids and digests. Flags are closed, never
deleted, and stay when the conversation or the pupil's account goes. Nothing here needs a model, mail or the network, and
nothing here logs a word that somebody wrote. Who may call what is for `accounts` to say.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from appliance import openings
from appliance.accounts import PUPIL, SAFEGUARDING
from appliance.errors import ApplianceError, BadInput, NotFound
from appliance.tables import classes, conversations, flags, memberships, new_id, safety_counts, turns, users

if TYPE_CHECKING:
    from appliance.accounts import User
    from appliance.audit import Audit
    from appliance.db import Database
    from appliance.safety import Verdict

log = logging.getLogger(__name__)

PATIENCE = 2.0  # seconds that an answer waits for its flag to be on disk
RETRY = (1.0, 2.0, 5.0, 10.0)  # seconds between tries; the last one again and again
SAME = 24 * 3600.0  # the same words of the same person within a day are one flag
AROUND = 3  # turns before and after the flagged one
LONGEST_NOTE = 4000
URGENT = ("escalate", "block")


@dataclass(frozen=True, slots=True)
class Flag:
    """A row of `flags`. `action`: escalate, block, or review for what only resembles. `state`: new, seen, closed."""

    id: str
    at: float
    user: str
    class_id: str
    conversation: str
    category: str
    rule: str
    action: str
    text: str
    state: str
    by: str
    note: str
    changed: float | None


@dataclass(frozen=True, slots=True)
class Line:
    """A turn of the conversation around a flag. `here`: the flagged one."""

    role: str
    text: str
    here: bool


@dataclass(frozen=True, slots=True)
class Count:
    class_id: str
    category: str
    action: str
    number: int


@dataclass(frozen=True, slots=True)
class Alarm:
    """What the header says: `new` flags for a lead to look at; `unread`: there is no lead who could, and somebody must know."""

    new: int
    unread: bool = False


class Safeguarding:
    """One for each process. Safe to share between threads."""

    def __init__(self, database: Database, audit: Audit) -> None:
        self._database = database
        self._audit = audit
        self._waiting: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._retry: asyncio.Task[None] | None = None
        self._under_way: set[asyncio.Task[None]] = set()

    # --- writing -----------------------------------------------------------------------------------------------------
    async def report(
        self, user: User, verdict: Verdict, text: str, *, conversation: str = "", asks: bool = True, again: bool = False
    ) -> None:
        """As `tell`. Returns once it is on disk, or after two seconds."""
        told = self.tell(user, verdict, text, conversation=conversation, asks=asks, again=again)
        await asyncio.wait({told}, timeout=PATIENCE)

    def tell(
        self, user: User, verdict: Verdict, text: str, *, conversation: str = "", asks: bool = True, again: bool = False
    ) -> asyncio.Task[None]:
        """Count it, record it, and where it has a flag keep the words for the lead: from now on it is not lost, whatever
        becomes of who tells it. The task ends when it is on disk, or is being tried again.

        asks: whether the person wrote it, or the model. again: it stands earlier in a talk, and is news only where nobody was
        told of it. What is written once more is news each time: the open flag of the same words rises, a closed one does not.
        """
        row = {
            "id": new_id(), "at": time.time(), "user": user.id, "conversation": conversation, "category": verdict.category,
            "rule": verdict.rule, "action": verdict.name, "text": text if asks else f"(the assistant's words) {text}",
            "flag": verdict.flag, "again": again,
        }  # fmt: skip
        with self._lock:
            self._waiting.append(row)
        task = asyncio.create_task(self._write_soon())
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return task

    async def _write_soon(self) -> None:
        if not await asyncio.to_thread(self.write_waiting):
            self._keep_trying()

    def write_waiting(self) -> bool:
        """Write what is not on disk yet; whether all of it is now. Blocking."""
        with self._writing:
            while True:
                with self._lock:
                    row = self._waiting[0] if self._waiting else None
                if row is None:
                    return True
                try:
                    self._write(row)
                except ApplianceError as error:
                    log.error("a safeguarding record could not be written (%s); it is kept and tried again", error.code)
                    return False
                with self._lock:
                    self._waiting.remove(row)

    def _keep_trying(self) -> None:
        async def again() -> None:
            number = 0
            while self.waiting:
                await asyncio.sleep(RETRY[min(number, len(RETRY) - 1)])
                number += 1
                await asyncio.to_thread(self.write_waiting)

        if self._retry is None or self._retry.done():
            self._retry = asyncio.create_task(again())

    @property
    def waiting(self) -> int:
        """Flags that are not on disk yet."""
        with self._lock:
            return len(self._waiting)

    async def close(self) -> None:
        """One more try for what is not on disk yet."""
        await asyncio.gather(*self._under_way, return_exceptions=True)
        if self._retry is not None:
            self._retry.cancel()
            await asyncio.gather(self._retry, return_exceptions=True)
        await asyncio.to_thread(self.write_waiting)

    def _write(self, row: dict[str, Any]) -> None:
        flagged = row["flag"]
        with self._database.begin() as connection:
            in_classes = self._classes(connection, row["user"], row["conversation"])
            if flagged and not row.get("written"):
                same = sa.and_(flags.c.user == row["user"], flags.c.text == row["text"])
                if row["again"] and connection.execute(sa.select(flags.c.id).where(same)).first() is not None:
                    return
                recent = sa.and_(same, flags.c.at > row["at"] - SAME, flags.c.state != "closed")
                known = connection.scalar(sa.select(flags.c.id).where(recent))
                if known is not None:
                    row["id"] = known
                    connection.execute(sa.update(flags).where(flags.c.id == known).values(at=row["at"], state="new"))
                else:
                    values = {one.name: row[one.name] for one in flags.columns if one.name in row}
                    class_id = in_classes[0] if len(in_classes) == 1 else ""
                    connection.execute(sa.insert(flags).values(**values, class_id=class_id, state="new"))
            if not row.get("written"):
                day = time.strftime("%Y-%m-%d", time.localtime(row["at"]))
                for class_id in in_classes or [""]:
                    _count(connection, day, class_id, row["category"], row["action"])
        row["written"] = True  # should the record fail now, it alone is tried again
        facts = {"flag": row["id"], "sha256": digest(row)} if flagged else {}
        self._audit.note(f"safety {row['action']}", row["conversation"] or "message", facts, actor=row["user"])

    @staticmethod
    def _classes(connection: sa.Connection, user: str, conversation: str) -> list[str]:
        """The class that a conversation was begun for, or those that its pupil is in."""
        if conversation:
            found = connection.scalar(sa.select(conversations.c.class_id).where(conversations.c.id == conversation))
            if found:
                return [found]
        mine = (
            sa.select(memberships.c.class_id)
            .join(classes, classes.c.id == memberships.c.class_id)
            .where(memberships.c.user == user, memberships.c.role == PUPIL, classes.c.archived.is_(None))
        )
        return list(connection.scalars(mine.order_by(memberships.c.class_id)))

    # --- for the lead ------------------------------------------------------------------------------------------------
    def list(self, *, closed: bool = False, limit: int = 200) -> Sequence[Flag]:
        """Without their words: what is urgent and new first, then the latest."""
        state = flags.c.state == "closed" if closed else flags.c.state != "closed"
        order = (flags.c.state != "new", flags.c.action == "review", flags.c.action != "escalate", flags.c.at.desc())
        with self._database.read() as connection:
            rows = connection.execute(sa.select(flags).where(state).order_by(*order).limit(limit)).all()
        return [_flag({**row._mapping, "text": "", "note": ""}) for row in rows]

    def read(self, user: User, id: str) -> tuple[Flag, Sequence[Line]]:
        """One flag with its words and those around it; that it was read is recorded first. Raises NotFound."""
        with self._database.read() as connection:
            row = connection.execute(sa.select(flags).where(flags.c.id == id)).first()
            if row is None:
                raise NotFound("There is no such flag here.", "Go back to the list.")
        self._audit.note("read flag", id, actor=user.id)
        with self._database.read() as connection:
            talk = connection.execute(
                sa.select(turns)
                .where(turns.c.conversation == row.conversation, row.conversation != "")
                .order_by(turns.c.ordinal)
            ).all()
        at = next((number for number, turn in enumerate(talk) if _meant(turn, row.text)), None)
        if at is None:
            at = max((number for number, turn in enumerate(talk) if turn.created <= row.at), default=0)
        near = talk[max(0, at - AROUND) : at + AROUND + 1]
        return _flag(row._mapping), [Line(turn.role, _said(turn), _meant(turn, row.text)) for turn in near]

    def change(self, user: User, id: str, state: str, note: str = "") -> None:
        """Acknowledge a flag ("seen"), or close it with a note. Raises NotFound, BadInput."""
        note = note.strip()
        if state == "closed" and not note:
            raise BadInput("The note is empty.", "Write what was done, in a few words, then close it.")
        if state not in ("seen", "closed") or len(note) > LONGEST_NOTE:
            raise BadInput(f"A note has at most {LONGEST_NOTE} characters.", "Write it shorter.")
        with self._database.begin() as connection:
            before = connection.execute(sa.select(flags).where(flags.c.id == id)).first()
            if before is None:
                raise NotFound("There is no such flag here.", "Go back to the list.")
            # A later note stands below the earlier ones: nothing that a lead wrote is lost.
            notes = "\n\n".join(one for one in (before.note, note) if one)
            values = {"state": state, "by": user.id, "note": notes, "changed": time.time()}
            connection.execute(sa.update(flags).where(flags.c.id == id).values(**values))
        self._audit.note("close flag" if state == "closed" else "acknowledge flag", id, actor=user.id)

    # --- who has to know ---------------------------------------------------------------------------------------------
    def alarm(self, *, lead: bool) -> Alarm | None:
        """For a lead: new flags. For who runs the box: only that there are some and nobody to read them."""
        urgent = sa.select(sa.func.count()).select_from(flags).where(flags.c.state == "new", flags.c.action.in_(URGENT))
        with self._database.read() as connection:
            new = (connection.scalar(urgent) or 0) + self.waiting
            if lead or not new:
                return Alarm(new) if new else None
            someone = sa.select(users.c.id).where(users.c.role == SAFEGUARDING, ~users.c.disabled).limit(1)
            return None if connection.execute(someone).first() is not None else Alarm(new, unread=True)

    def counts(self, class_ids: Collection[str] | None, *, since: str) -> Sequence[Count]:
        """How often what happened since a day, of these classes or of all: numbers, and no name or word."""
        c = safety_counts.c
        chosen = sa.select(c.class_id, c.category, c.action, sa.func.sum(c.number)).where(c.day >= since)
        if class_ids is not None:
            chosen = chosen.where(c.class_id.in_(sorted(class_ids)))
        chosen = chosen.group_by(c.class_id, c.category, c.action).order_by(c.class_id, c.category, c.action)
        with self._database.read() as connection:
            return [Count(*row) for row in connection.execute(chosen)]


def digest(row: Any) -> str:
    """What the audit record holds of a flag: a change of its words shows, and its random id keeps them from being guessed."""
    words = "\x1f".join(str(row[name]) for name in ("id", "user", "category", "rule", "action", "text"))
    return hashlib.sha256(words.encode()).hexdigest()


def _count(connection: sa.Connection, day: str, class_id: str, category: str, action: str) -> None:
    key = {"day": day, "class_id": class_id, "category": category, "action": action}
    this = sa.and_(*(safety_counts.c[name] == value for name, value in key.items()))
    done = connection.execute(sa.update(safety_counts).where(this).values(number=safety_counts.c.number + 1))
    if not done.rowcount:
        connection.execute(sa.insert(safety_counts).values(**key, number=1))


def _said(turn: Any) -> str:
    """The words of a turn's row, whichever of its parts holds them."""
    facts = turn.facts or {}
    return turn.text or facts.get("lead") or openings.words(facts.get("opening", ""), facts.get("nearest", ()))


def _meant(turn: Any, text: str) -> bool:
    """Whether a flag's words are this turn's: alone, or on lines of their own after those of the message before it."""
    return turn.role == "user" and bool(turn.text) and (text == turn.text or text.endswith(f"\n{turn.text}"))


def _flag(row: Any) -> Flag:
    return Flag(**{one.name: row[one.name] for one in fields(Flag)})
