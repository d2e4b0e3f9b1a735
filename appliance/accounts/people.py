"""Who there is: the school's pupils and staff, their passwords and their classes, as an administrator keeps them.

Every change of a password, a role or of being disabled ends that person's sessions and keys at once. Whoever calls has asked
`accounts.can` first. Work is blocking; async callers use a thread.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from appliance.accounts.credentials import Passwords, clean_name, new_code, strong
from appliance.accounts.policy import ADMINISTRATOR, LOCAL, ROLES, TEACHER
from appliance.errors import BadInput, Conflict, NotFound, NotSignedIn
from appliance.tables import classes, keys, memberships, new_id, sessions, users

if TYPE_CHECKING:
    from appliance.db import Database


@dataclass(frozen=True, slots=True)
class Person:
    """`classes`: name of each class that is not archived, and the role in it. `external`: the school register's number."""

    id: str
    name: str
    full_name: str
    role: str
    disabled: bool
    language: str
    source: str
    external: str
    temporary: bool
    totp: bool
    created: float
    classes: Mapping[str, str]


class People:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._passwords = Passwords()

    def list(self, *, role: str = "", class_name: str = "") -> list[Person]:
        """By name; the box's own command line is nobody."""
        with self._database.read() as connection:
            return [
                one
                for one in _people(connection, sa.select(users).where(users.c.role != LOCAL).order_by(users.c.name))
                if (not role or one.role == role) and (not class_name or class_name in one.classes)
            ]

    def get(self, id: str) -> Person:
        """Raises NotFound."""
        with self._database.read() as connection:
            found = _people(connection, sa.select(users).where(users.c.id == id, users.c.role != LOCAL))
        if not found:
            raise NotFound("There is no such person here.", "They may have been removed.")
        return found[0]

    def add(
        self,
        name: str,
        role: str,
        *,
        password: str | None = None,
        full_name: str = "",
        language: str = "",
        external: str = "",
        source: str = "local",
    ) -> tuple[Person, str]:
        """A new person and their password: a made-up one that has to be changed at the first sign-in where none is given.

        Raises BadInput (name, role, password), Conflict (the name is taken, however it is written).
        """
        name = clean_name(name)
        if role not in ROLES:
            raise BadInput(f"There is no role {role[:40]!r}.", f"Take one of: {', '.join(ROLES)}.")
        given = strong(password) if password is not None else new_code()
        row = {
            "id": new_id(), "name": name, "role": role, "full_name": clean_name(full_name) if full_name.strip() else "",
            "password_hash": self._passwords.hash(given) if source == "local" else "!", "created": time.time(),
            "language": language, "external": external, "source": source, "temporary": password is None and source == "local",
            "preferences": {},
        }  # fmt: skip
        with self._database.begin() as connection:
            _refuse_taken(connection, name)
            connection.execute(sa.insert(users).values(**row))
        return self.get(str(row["id"])), given

    def change(self, id: str, **columns: Any) -> Person:
        """Set some of: name, full_name, role, language, external, disabled. Raises NotFound, BadInput, Conflict.

        The last administrator stays one, and stays enabled.
        """
        before = self.get(id)
        if "name" in columns:
            columns["name"] = clean_name(columns["name"])
        if columns.get("role", ROLES[0]) not in ROLES:
            raise BadInput(f"There is no role {str(columns['role'])[:40]!r}.", f"Take one of: {', '.join(ROLES)}.")
        with self._database.begin() as connection:
            if before.role == ADMINISTRATOR and (
                columns.get("disabled") or columns.get("role", ADMINISTRATOR) != ADMINISTRATOR
            ):
                _keep_one_administrator(connection, id)
            if columns.get("name", before.name) != before.name:
                _refuse_taken(connection, columns["name"], but=id)
            connection.execute(sa.update(users).where(users.c.id == id).values(**columns))
            if columns.get("disabled") or columns.get("role", before.role) != before.role:
                _end_everything(connection, id)
        return self.get(id)

    def reset_password(self, id: str) -> str:
        """A made-up password that has to be changed at the next sign-in. All sessions of that person end."""
        self.get(id)
        password = new_code()
        self._set(id, password, temporary=True)
        return password

    def change_password(self, id: str, old: str, new: str) -> None:
        """Raises NotSignedIn (the old one is wrong), BadInput (the new one is weak, or the same). All sessions end."""
        strong(new)
        with self._database.read() as connection:
            hashed = connection.scalar(sa.select(users.c.password_hash).where(users.c.id == id))
        if not self._passwords.fits(hashed, old):
            raise NotSignedIn("The old password is not right.", "Type the one that you signed in with.")
        if old == new:
            raise BadInput("The new password is the old one.", "Take another one.")
        self._set(id, new, temporary=False)

    def remove(self, id: str) -> None:
        """With everything that is theirs: conversations, keys, memberships. Raises NotFound, Conflict (last administrator)."""
        person = self.get(id)
        with self._database.begin() as connection:
            if person.role == ADMINISTRATOR:
                _keep_one_administrator(connection, id)
            connection.execute(sa.delete(users).where(users.c.id == id))

    # --- classes -----------------------------------------------------------------------------------------------------
    def join(self, id: str, class_id: str, *, teaches: bool = False) -> None:
        """Put a person into a class; once more changes their part in it."""
        role = TEACHER if teaches else "pupil"
        with self._database.begin() as connection:
            this = (memberships.c.user == id) & (memberships.c.class_id == class_id)
            connection.execute(sa.delete(memberships).where(this))
            connection.execute(sa.insert(memberships).values(user=id, class_id=class_id, role=role))

    def leave(self, id: str, class_id: str) -> None:
        with self._database.begin() as connection:
            connection.execute(sa.delete(memberships).where(memberships.c.user == id, memberships.c.class_id == class_id))

    def _set(self, id: str, password: str, *, temporary: bool) -> None:
        hashed = self._passwords.hash(password)
        with self._database.begin() as connection:
            connection.execute(sa.update(users).where(users.c.id == id).values(password_hash=hashed, temporary=temporary))
            connection.execute(sa.delete(sessions).where(sessions.c.user == id))


def _people(connection: sa.Connection, query: Any) -> list[Person]:
    rows = connection.execute(query).all()
    belong: dict[str, dict[str, str]] = {}
    joined = sa.select(memberships.c.user, memberships.c.role, classes.c.name).join(
        classes, classes.c.id == memberships.c.class_id
    )
    if len(rows) == 1:
        joined = joined.where(memberships.c.user == rows[0].id)
    for one in connection.execute(joined.where(classes.c.archived.is_(None)).order_by(classes.c.name)):
        belong.setdefault(one.user, {})[one.name] = one.role
    return [
        Person(
            row.id, row.name, row.full_name, row.role, row.disabled, row.language, row.source, row.external, row.temporary,
            bool(row.totp), row.created, belong.get(row.id, {}),
        )
        for row in rows
    ]  # fmt: skip


def _refuse_taken(connection: sa.Connection, name: str, but: str = "") -> None:
    same = sa.or_(users.c.name == name, sa.func.lower(users.c.name) == name.lower())
    if connection.execute(sa.select(users.c.id).where(same, users.c.id != but)).first() is not None:
        raise Conflict(f"There is somebody named {name} already.", "Add a letter or a number to tell them apart.")


def _keep_one_administrator(connection: sa.Connection, id: str) -> None:
    others = sa.select(users.c.id).where(users.c.role == ADMINISTRATOR, users.c.id != id, ~users.c.disabled)
    if connection.execute(others).first() is None:
        raise Conflict("This is the last administrator.", "Make somebody else an administrator first.")


def _end_everything(connection: sa.Connection, id: str) -> None:
    connection.execute(sa.delete(sessions).where(sessions.c.user == id))
    connection.execute(sa.update(keys).where(keys.c.user == id, keys.c.revoked.is_(None)).values(revoked=time.time()))
