"""Sessions: each sign-in makes a new one under a new token, and they end one by one or all of a person's at once.

Kept as digests of their tokens. A session of the kind "step" signs nobody in: the second step is still missing. One of the kind
"class" came by a class's code and lives only while that class is open. It checks no password and no code.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection
from dataclasses import dataclass

import sqlalchemy as sa

from appliance.accounts.credentials import digest
from appliance.tables import classes, keys, sessions

STEP, BY_CLASS = "step", "class"
STEP_SECONDS = 300.0
CLOCK_SLACK = 3600.0


@dataclass(frozen=True, slots=True)
class SignedIn:
    """A session as its owner may see it. `about`: browser and system. `current`: the one that asks."""

    about: str
    kind: str
    created: float
    expires: float
    current: bool


def open_session(
    connection: sa.Connection, user: str, seconds: float, *, kind: str = "", class_id: str = "", about: str = ""
) -> str:
    """The token of a new session; what has run out is swept away."""
    token, now = secrets.token_urlsafe(32), time.time()
    connection.execute(sa.delete(sessions).where(sessions.c.expires < now))
    connection.execute(
        sa.insert(sessions).values(
            hash=digest(token), user=user, csrf=secrets.token_urlsafe(24), created=now, expires=now + seconds, kind=kind,
            class_id=class_id, about=about[:80],
        )
    )  # fmt: skip
    return token


def alive() -> sa.ColumnElement[bool]:
    """Whether a row of `sessions`, outer joined with `classes`, has not ended.

    One that begins in the future was made before the clock was set back: it would live for as long as that took.
    """
    now = time.time()
    lesson = sa.and_(classes.c.open, classes.c.archived.is_(None), sa.or_(classes.c.until.is_(None), classes.c.until > now))
    in_time = sa.and_(sessions.c.expires > now, sessions.c.created < now + CLOCK_SLACK)
    return sa.and_(in_time, sa.or_(sessions.c.kind != BY_CLASS, lesson))


def sessions_of(connection: sa.Connection, user: str, token: str) -> list[SignedIn]:
    """A person's sessions that have not ended, newest first."""
    chosen = sa.select(sessions.c.hash, sessions.c.about, sessions.c.kind, sessions.c.created, sessions.c.expires).select_from(
        sessions.outerjoin(classes, classes.c.id == sessions.c.class_id)
    )
    mine = chosen.where(sessions.c.user == user, sessions.c.kind != STEP, alive()).order_by(sessions.c.created.desc())
    current = digest(token)
    return [SignedIn(r.about, r.kind, r.created, r.expires, r.hash == current) for r in connection.execute(mine)]


def signed_in(connection: sa.Connection, ids: Collection[str]) -> frozenset[str]:
    """Which of these people have a session that has not ended."""
    chosen = sa.select(sessions.c.user).outerjoin(classes, classes.c.id == sessions.c.class_id)
    return frozenset(connection.scalars(chosen.where(sessions.c.user.in_(sorted(ids)), sessions.c.kind != STEP, alive())))


def end_sessions(connection: sa.Connection, user: str, but: str = "") -> int:
    """End all of a person's sessions but the one of the token `but`; how many."""
    other = sa.and_(sessions.c.user == user, sessions.c.hash != digest(but))
    return connection.execute(sa.delete(sessions).where(other)).rowcount


def end_everything(connection: sa.Connection, user: str) -> None:
    """Sessions and keys: whoever holds one of them has to sign in again, or is out."""
    end_sessions(connection, user)
    connection.execute(sa.update(keys).where(keys.c.user == user, keys.c.revoked.is_(None)).values(revoked=time.time()))
