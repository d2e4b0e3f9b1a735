"""Mentors by consent: who may read somebody's finished lessons, and what they write beside a turn.

Whoever rehearses chooses a colleague and takes that back whenever they like; both see it, either can end it, and the audit
record says when (never what was said). A better reply that its mentor gives for training becomes an example that waits for
review: the simulated pupils' lines and the mentor's words, nothing that the rehearsing teacher said. Whoever keeps examples
hands over how (`keep`, `take_back`). Work is blocking.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from appliance.accounts.policy import LOCAL
from appliance.errors import ApplianceError, BadInput, NotFound, TooLarge
from appliance.tables import mentor_notes, mentors, new_id, rehearsal_turns, users

if TYPE_CHECKING:
    from appliance.accounts import Accounts, User
    from appliance.audit import Audit
    from appliance.db import Database
    from appliance.practice.scenario import Scenario

LONGEST_NOTE = 2000
SOURCE = "a mentor's better reply in teacher practice"


@dataclass(frozen=True, slots=True)
class Consent:
    """`user` lets `mentor` read. name: of whichever of the two is not the one who asks."""

    user: str
    mentor: str
    name: str
    since: float


@dataclass(frozen=True, slots=True)
class Note:
    """What a mentor wrote beside a turn. example: the id of the row that was made of it, "" where none was given."""

    id: str
    turn: str
    mentor: str
    name: str
    text: str
    better: str
    example: str


class Mentors:
    def __init__(
        self,
        database: Database,
        accounts: Accounts,
        audit: Audit,
        keep: Callable[..., None],
        take_back: Callable[[str, str], None],
    ) -> None:
        """`keep(id, **columns)` makes or changes an example, `take_back(id, by)` empties it."""
        self._database = database
        self._accounts = accounts
        self._audit = audit
        self._keep = keep
        self._take_back = take_back

    # --- consent -------------------------------------------------------------------------------------------------------------
    def give(self, user: User, name: str) -> None:
        """Let a colleague read one's finished lessons. Raises NotSignedIn, Forbidden, NotFound, BadInput."""
        self._accounts.require(user, "practise", "lesson")
        if not name.strip():
            raise BadInput("No name was given.", "Write the name with which your mentor signs in.")
        try:
            other = self._accounts.named(name)
        except NotFound:
            other = None
        if other is None or other.role == LOCAL or not self._accounts.can(other, "practise", "lesson"):
            raise NotFound("There is no colleague of that name.", "Write the name with which your mentor signs in.")
        if other.id == user.id:
            raise BadInput("You cannot be your own mentor.", "Choose a colleague.")
        with self._database.begin() as connection:
            if connection.scalar(_pair(user.id, other.id)):
                return
            connection.execute(sa.insert(mentors).values(user=user.id, mentor=other.id, since=time.time()))
        self._audit.note("give mentor", user.id, {"mentor": other.id}, actor=user.id)

    def end(self, user: User, owner: str, mentor: str) -> None:
        """End a consent, by either of the two; one that has ended already stays so. Raises NotFound for other people's."""
        self._accounts.require(user, "practise", "lesson")
        if user.id not in (owner, mentor):
            raise NotFound("There is no such mentor here.", "Load the page again.")
        this = sa.and_(mentors.c.user == owner, mentors.c.mentor == mentor)
        with self._database.begin() as connection:
            ended = connection.execute(sa.delete(mentors).where(this)).rowcount
        if ended:
            self._audit.note("end mentor", owner, {"mentor": mentor}, actor=user.id)

    def of(self, user: User) -> Sequence[Consent]:
        """Who may read the user's lessons."""
        return self._consents(mentors.c.user == user.id, mentors.c.mentor)

    def by(self, user: User) -> Sequence[Consent]:
        """Whose lessons the user may read."""
        return self._consents(mentors.c.mentor == user.id, mentors.c.user)

    def reads(self, connection: sa.Connection, user: User, owner: str) -> bool:
        """Whether `owner` lets the user read. A key never does, nor does anybody who may not practise themselves."""
        allowed = not user.scope and self._accounts.can(user, "practise", "lesson")
        return allowed and connection.scalar(_pair(owner, user.id)) is not None

    def _consents(self, which: sa.ColumnElement[bool], other: sa.Column[str]) -> Sequence[Consent]:
        query = sa.select(mentors, users.c.name).join(users, users.c.id == other).where(which).order_by(users.c.name)
        with self._database.read() as connection:
            return [Consent(row.user, row.mentor, row.name, row.since) for row in connection.execute(query)]

    # --- what they write -----------------------------------------------------------------------------------------------------
    def seen(self, user: User, rehearsal: str, owner: str) -> None:
        """Put into the record that a mentor read somebody's lesson."""
        self._audit.note("read rehearsal", rehearsal, {"of": owner}, actor=user.id)

    def notes(self, rehearsal: str, by: str = "") -> Sequence[Note]:
        """What stands beside the turns of a lesson, oldest first; `by`: of one mentor alone.

        Who may read it is decided where the lesson is loaded.
        """
        query = (
            sa.select(mentor_notes, users.c.name)
            .join(rehearsal_turns, rehearsal_turns.c.id == mentor_notes.c.turn)
            .outerjoin(users, users.c.id == mentor_notes.c.mentor)
            .where(rehearsal_turns.c.rehearsal == rehearsal, mentor_notes.c.mentor == by if by else sa.true())
            .order_by(mentor_notes.c.created)
        )
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return [Note(row.id, row.turn, row.mentor, row.name or "", row.text, row.better, row.example) for row in rows]

    def note(
        self,
        user: User,
        owner: str,
        turn: str,
        text: str,
        better: str,
        *,
        scenario: Scenario,
        heard: Sequence[tuple[str, str]],
        train: bool = False,
    ) -> None:
        """Write this beside a turn of `owner`'s in place of what the user wrote there before; nothing at all takes it away.

        heard: (who, line) of what was said just before. train: the better reply may become an example. Raises NotFound (no
        mentor of theirs), BadInput, TooLarge, Conflict (it was asked that nothing of this is used).
        """
        text, better = _clean(text), _clean(better)
        if train and not better:
            raise BadInput("There is nothing yet to learn from.", "Write a better reply, or take out the tick.")
        with self._database.begin() as connection:
            if not self.reads(connection, user, owner):
                raise NotFound("There is no such lesson here.", "It may have been deleted, or its maker chose another mentor.")
            mine = sa.and_(mentor_notes.c.turn == turn, mentor_notes.c.mentor == user.id)
            before = connection.execute(sa.select(mentor_notes).where(mine)).first()
        example = ((before.example if before else "") or f"mentor-{new_id()}") if train else ""
        if before is not None and before.example and not train:
            self._take_back(before.example, user.id)
        if train:
            self._keep(example, by=user.id, **_columns(user, turn, better, scenario, heard))
        try:
            with self._database.begin() as connection:
                connection.execute(sa.delete(mentor_notes).where(mine))
                if text or better:
                    values = {"turn": turn, "mentor": user.id, "text": text, "better": better, "example": example}
                    connection.execute(sa.insert(mentor_notes).values(id=new_id(), created=time.time(), **values))
        except (ApplianceError, sa.exc.IntegrityError):
            if train:
                self._take_back(example, user.id)
            raise NotFound("This turn is not here any more.", "Its lesson was deleted.") from None
        self._audit.note("write mentor note", turn, {"example": example}, actor=user.id)

    def take_back_examples(self, rehearsal: str, by: str) -> None:
        """Empty the examples that were made of what stands beside a lesson, which is about to be deleted."""
        for note in self.notes(rehearsal):
            if note.example:
                self._take_back(note.example, by)


def _pair(user: str, mentor: str) -> sa.Select[Any]:
    return sa.select(mentors.c.since).where(mentors.c.user == user, mentors.c.mentor == mentor)


def _clean(text: str) -> str:
    if len(text) > LONGEST_NOTE:
        raise TooLarge(f"That is {len(text)} characters; {LONGEST_NOTE} fit here.", "Say it in fewer words.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise BadInput("The text has characters that are not valid Unicode.", "Type it again instead of pasting it.") from None
    return text.replace("\r\n", "\n").strip()


def _columns(user: User, turn: str, better: str, scenario: Scenario, heard: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """An example: what simulated pupils said, and what a teacher could say to that."""
    lines = [f"{who}: {line}" if who and len(heard) > 1 else line for who, line in heard]
    return {
        "messages": [("user", "\n".join(lines)), ("assistant", better)], "correction": None, "rating": None,
        "author": user.name, "user_role": user.role, "class_name": "", "subject": scenario.subject, "grade": scenario.grade,
        "skill": scenario.category, "source": SOURCE, "origin": f"rehearsal turn {turn}",
    }  # fmt: skip
