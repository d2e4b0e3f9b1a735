"""People for whom another system vouches, the school's directory or its sign-in service: their rows among the box's own.

Hides how a person is found again, by that system's own number for them and never by the name alone, and which changes of theirs
are taken over at each sign-in. It asks no other system anything.
"""

from __future__ import annotations

import time
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from appliance.accounts.credentials import clean_name
from appliance.accounts.people import NO_PASSWORD, clean_full_name, keep_one_administrator, known_role
from appliance.accounts.policy import ADMINISTRATOR, TEACHER
from appliance.accounts.sessions import end_everything
from appliance.errors import ApplianceError, Conflict
from appliance.tables import classes, folded, memberships, new_id, users

if TYPE_CHECKING:
    from appliance.db import Database

_PUT_INTO = "directory_classes"  # among a person's preferences: the ids of the classes that the other system put them into


@dataclass(frozen=True, slots=True)
class Vouched:
    """Somebody who has shown another system who they are.

    source: ldap or oidc. external: that system's number for them, which stays when names change. role: theirs, if they are new
    or it is `ruled` there. classes: the names of theirs; None where that system does not say.
    """

    source: str
    external: str
    name: str
    full_name: str = ""
    role: str = "pupil"
    ruled: bool = False
    classes: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Admitted:
    """`changed`: what is new, for the record; empty where nothing is."""

    id: str
    changed: dict[str, Any]


def admit(database: Database, vouched: Vouched) -> Admitted | None:
    """The row of somebody who is vouched for, made or brought up to date; None where the account is disabled here.

    Raises Conflict where somebody else has the name, BadInput where the name cannot be one.
    """
    name, full_name = clean_name(vouched.name), _full_name(vouched.full_name)
    with database.begin() as connection:
        row = _row(connection, vouched, name)
        if row is None:
            made = {
                "id": new_id(), "name": name, "full_name": full_name, "role": known_role(vouched.role), "created": time.time(),
                "password_hash": NO_PASSWORD, "source": vouched.source, "external": vouched.external, "preferences": {},
            }  # fmt: skip
            connection.execute(sa.insert(users).values(**made))
            id, preferences, role = str(made["id"]), {}, vouched.role
            changed: dict[str, Any] = {"new": vouched.source, "role": role}
        elif row.disabled:
            return None
        else:
            id, preferences = str(row.id), dict(row.preferences or {})
            role, changed = _bring_up_to_date(connection, row, vouched, name, full_name)
        if vouched.classes is not None:
            _join(connection, id, role, vouched.classes, preferences)
    return Admitted(id, changed)


def _full_name(text: str) -> str:
    try:
        return clean_full_name(text)
    except ApplianceError:
        return ""  # a name that cannot be shown is no reason to keep a person out


def _row(connection: sa.Connection, vouched: Vouched, name: str) -> Any:
    """Theirs, by that system's number; else one of that name that was made for them beforehand and has no number yet."""
    theirs = sa.select(users).where(users.c.source == vouched.source, users.c.external == vouched.external)
    row = connection.execute(theirs).first()
    if row is not None:
        return row
    same = connection.execute(sa.select(users).where(users.c.folded == folded(name))).first()
    if same is not None and (same.source != vouched.source or same.external):
        raise Conflict(
            f"There is somebody else named {name} on this box.", "Ask the administrator to rename or remove that account."
        )
    return same


def _bring_up_to_date(
    connection: sa.Connection, row: Any, vouched: Vouched, name: str, full_name: str
) -> tuple[str, dict[str, Any]]:
    """The role from now on, and what changed."""
    values: dict[str, Any] = {"external": vouched.external, "full_name": full_name or row.full_name}
    if name != row.name:
        other = sa.select(users.c.id).where(users.c.folded == folded(name), users.c.id != row.id)
        if connection.execute(other).first() is None:  # else they keep the old one, for now
            values |= {"name": name, "folded": folded(name)}
    changed: dict[str, Any] = {} if row.external else {"linked": vouched.source}
    if vouched.ruled and vouched.role != row.role:
        if row.role == ADMINISTRATOR:
            keep_one_administrator(connection, row.id)
        values["role"] = known_role(vouched.role)
        changed |= {"role": vouched.role, "before": row.role}
        end_everything(connection, row.id)
    connection.execute(sa.update(users).where(users.c.id == row.id).values(**values))
    return str(values.get("role", row.role)), changed


def _join(connection: sa.Connection, id: str, role: str, names: tuple[str, ...], preferences: dict[str, Any]) -> None:
    """Into the classes of these names that the box has, and out of those that the same system had put them into before.

    Classes that people of the box put them into are left alone.
    """
    known = {_key(row.name): row.id for row in connection.execute(sa.select(classes).where(classes.c.archived.is_(None)))}
    wanted = {known[_key(name)] for name in names if _key(name) in known}
    mine = set(connection.scalars(sa.select(memberships.c.class_id).where(memberships.c.user == id)))
    before = {str(one) for one in preferences.get(_PUT_INTO, [])}
    for gone in before - wanted:
        connection.execute(sa.delete(memberships).where(memberships.c.user == id, memberships.c.class_id == gone))
    part = TEACHER if role == TEACHER else "pupil"
    for new in wanted - mine:
        connection.execute(sa.insert(memberships).values(user=id, class_id=new, role=part))
    put = sorted((before | (wanted - mine)) & wanted)
    if put != sorted(before):
        kept = preferences | {_PUT_INTO: put}
        connection.execute(sa.update(users).where(users.c.id == id).values(preferences=kept))


def _key(name: str) -> str:
    """As `classes` compares names: case and spaces make no difference."""
    return "".join(unicodedata.normalize("NFKC", name).casefold().split())
