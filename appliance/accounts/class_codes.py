"""Codes of a class: a young pupil types the lesson's code, picks their own name, and is in until the lesson ends.

Only a digest of the code is kept. A code works while its class is open, and shows pupils of that class alone; guessing is
slowed down for each source, and who types it rightly is never counted. Only pupils without a password can be picked, and each
name once: who picks one that is taken is refused, and the teacher is told and can free it. Who may make a code is for
`accounts.can` to say.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from appliance.accounts.credentials import CODE_LETTERS, digest, digest_of_code
from appliance.accounts.guessing import Limit, count, take_back
from appliance.accounts.people import NO_PASSWORD
from appliance.accounts.policy import PUPIL
from appliance.accounts.sessions import BY_CLASS, CLOCK_SLACK, alive, open_session
from appliance.errors import BadInput, Conflict, NotFound, NotSignedIn
from appliance.tables import attempts, classes, memberships, sessions, users

if TYPE_CHECKING:
    from appliance.db import Database

LETTERS = 6  # of 29 signs: six hundred million codes
MOST_HOURS = 12.0
# A whole class may sit behind one address, and seven-year-olds mistype. Past these there is one try each ten seconds, and never
# a longer wait: who plays tricks holds nobody up for long, and can try a few hundred codes before the right one has run out.
FREE_WRONG, PACE = 60, 10.0


@dataclass(frozen=True, slots=True)
class Choice:
    """A name to pick. `here`: somebody has picked it already."""

    id: str
    called: str
    here: bool


@dataclass(frozen=True, slots=True)
class Roll:
    """What a code opens."""

    class_name: str
    pupils: list[Choice]


@dataclass(frozen=True, slots=True)
class Here:
    """A pupil who came in by the code. `tried`: when somebody else last wanted this name; None where nobody did."""

    id: str
    called: str
    tried: float | None


class ClassCodes:
    def __init__(self, database: Database) -> None:
        self._database = database

    # --- the teacher's ----------------------------------------------------------------------------------------------------
    def make(self, class_id: str, hours: float = 2.0) -> str:
        """A new code for a class in place of any older one: XXX-XXX. Shown once. Raises NotFound, BadInput."""
        if not 0 < hours <= MOST_HOURS:
            raise BadInput(f"A code can last up to {MOST_HOURS:g} hours.", "Take a shorter time.")
        letters = "".join(secrets.choice(CODE_LETTERS) for _ in range(LETTERS))
        code = f"{letters[:3]}-{letters[3:]}"
        with self._database.begin() as connection:
            this = sa.and_(classes.c.id == class_id, classes.c.archived.is_(None))
            until = time.time() + hours * 3600
            made = connection.execute(sa.update(classes).where(this).values(code=digest_of_code(code), code_until=until))
            if not made.rowcount:
                raise NotFound("There is no such class here.", "It may have been archived.")
        return code

    def end(self, class_id: str) -> list[str]:
        """The code works no more, and who came in by it is out: their ids."""
        with self._database.begin() as connection:
            connection.execute(sa.update(classes).where(classes.c.id == class_id).values(code="", code_until=None))
            theirs = sa.and_(sessions.c.class_id == class_id, sessions.c.kind == BY_CLASS)
            ids = sorted(set(connection.scalars(sa.select(sessions.c.user).where(theirs))))
            connection.execute(sa.delete(sessions).where(theirs))
            connection.execute(sa.delete(attempts).where(_tries(class_id)))
        return ids

    def out(self, class_id: str, user: str = "") -> None:
        """End the sessions that came by this class's code, of one pupil or of all; the code stays, and the names are free."""
        theirs = sa.and_(sessions.c.class_id == class_id, sessions.c.kind == BY_CLASS)
        theirs = sa.and_(theirs, sessions.c.user == user) if user else theirs
        with self._database.begin() as connection:
            connection.execute(sa.delete(sessions).where(theirs))
            connection.execute(sa.delete(attempts).where(_tries(class_id, user)))

    def here(self, class_id: str) -> list[Here]:
        """Who is in by this class's code now, by name."""
        with self._database.read() as connection:
            ids = _taken(connection, class_id)
            rows = connection.execute(sa.select(users.c.id, users.c.name, users.c.full_name).where(users.c.id.in_(ids))).all()
            tried = {row.key: row.last for row in connection.execute(sa.select(attempts).where(_tries(class_id)))}
        found = [Here(row.id, row.full_name or row.name, tried.get(_try(class_id, row.id))) for row in rows]
        return sorted(found, key=lambda one: one.called.casefold())

    def until(self, class_id: str) -> float | None:
        """When the code of this class runs out; None where there is none that works."""
        with self._database.read() as connection:
            return connection.scalar(sa.select(classes.c.code_until).where(classes.c.id == class_id, _works()))

    def in_use(self) -> bool:
        """Whether any class has a code that works: only then need the page for it be offered."""
        with self._database.read() as connection:
            return connection.execute(sa.select(classes.c.id).where(_works()).limit(1)).first() is not None

    # --- the pupil's ------------------------------------------------------------------------------------------------------
    def roll(self, code: str, source: str) -> Roll:
        """The names that a code shows. Raises NotSignedIn (no such code now), Busy."""
        found = self._class_of(code, source)
        with self._database.read() as connection:
            rows = connection.execute(_pupils(found.id)).all()
            taken = _taken(connection, found.id)
        choices = [Choice(row.id, row.full_name or row.name, row.id in taken) for row in rows]
        return Roll(found.name, sorted(choices, key=lambda one: one.called.casefold()))

    def sign_in(self, code: str, pupil: str, source: str, about: str = "", token: str = "") -> str:
        """The token of a pupil's session, which ends with the code's time. Raises NotSignedIn, Busy, Conflict (it is taken).

        token: of the session that this browser has already; its own name is not taken.
        """
        found = self._class_of(code, source)
        taken = Conflict("Somebody is signed in with this name already.", "If it is yours, tell your teacher.")
        if self._is_taken(found.id, pupil, token):
            raise taken
        with self._database.begin() as connection:
            if _taken(connection, found.id, pupil, token):
                raise taken  # somebody was quicker by a moment
            if connection.execute(_pupils(found.id).where(users.c.id == pupil)).first() is None:
                raise NotSignedIn("That name is not in this class.", "Pick yours, or ask your teacher.")
            seconds = found.code_until - time.time()
            return open_session(connection, pupil, seconds, kind=BY_CLASS, class_id=found.id, about=about)

    def _is_taken(self, class_id: str, pupil: str, token: str) -> bool:
        """Where it is, the teacher is told that somebody else wanted it."""
        with self._database.begin() as connection:
            taken = bool(_taken(connection, class_id, pupil, token))
            if taken:
                key = _try(class_id, pupil)
                connection.execute(sa.delete(attempts).where(attempts.c.key == key))
                connection.execute(sa.insert(attempts).values(key=key, failures=0, last=time.time()))
        return taken

    def _class_of(self, code: str, source: str) -> Any:
        attempt = f"class:{source[:64]}"
        count(self._database, [Limit(attempt, FREE_WRONG, every=PACE)])
        wanted = digest_of_code(code)
        with self._database.begin() as connection:
            columns = (classes.c.id, classes.c.name, classes.c.code_until)
            row = connection.execute(sa.select(*columns).where(classes.c.code == wanted, _works())).first()
            if row is not None:
                take_back(connection, attempt)
        if row is None:
            raise NotSignedIn("There is no lesson with that code now.", "Look at the board again, or ask your teacher.")
        return row


def _works() -> sa.ColumnElement[bool]:
    now = time.time()
    open_now = sa.and_(classes.c.open, sa.or_(classes.c.until.is_(None), classes.c.until > now))
    # One that ends later than any that could be made now was made before the clock was set back: it would work until that day.
    in_time = sa.and_(classes.c.code_until > now, classes.c.code_until < now + MOST_HOURS * 3600 + CLOCK_SLACK)
    return sa.and_(classes.c.code != "", in_time, classes.c.archived.is_(None), open_now)


def _taken(connection: sa.Connection, class_id: str, pupil: str = "", but: str = "") -> set[str]:
    """The pupils who are in by this class's code, or the one; not by the session of the token `but`."""
    chosen = sa.select(sessions.c.user).outerjoin(classes, classes.c.id == sessions.c.class_id)
    chosen = chosen.where(sessions.c.kind == BY_CLASS, sessions.c.class_id == class_id, alive())
    chosen = chosen.where(sessions.c.user == pupil) if pupil else chosen
    return set(connection.scalars(chosen.where(sessions.c.hash != digest(but)) if but else chosen))


def _try(class_id: str, pupil: str) -> str:
    return f"taken:{class_id}:{pupil}"


def _tries(class_id: str, pupil: str = "") -> sa.ColumnElement[bool]:
    key = attempts.c.key
    return key == _try(class_id, pupil) if pupil else key.startswith(_try(class_id, ""), autoescape=True)


def _pupils(class_id: str) -> sa.Select[tuple[str, str, str]]:
    """Those who have no password of their own: who has one keeps what is theirs behind it. Of staff nobody can be picked."""
    without = sa.or_(users.c.password_hash == NO_PASSWORD, users.c.temporary)
    return (
        sa.select(users.c.id, users.c.name, users.c.full_name)
        .join(memberships, memberships.c.user == users.c.id)
        .where(memberships.c.class_id == class_id, memberships.c.role == "pupil", users.c.role == PUPIL, ~users.c.disabled)
        .where(without, users.c.source == "local")
    )
