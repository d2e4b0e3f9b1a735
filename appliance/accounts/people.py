"""Who there is: the school's pupils and staff, their passwords and their classes, as an administrator keeps them.

Every change of a password, a role or of being disabled ends that person's sessions and keys at once. Whoever calls has asked
`accounts.can` first. Work is blocking; async callers use a thread.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from appliance.accounts.credentials import (
    LONGEST_SECRET,
    Passwords,
    as_code,
    clean_name,
    new_code,
    strong,
)  # fmt: skip
from appliance.accounts.guessing import count_attempt, forgive
from appliance.accounts.policy import ADMINISTRATOR, LOCAL, ROLES, TEACHER
from appliance.accounts.sessions import end_everything
from appliance.errors import BadInput, Conflict, NotFound, NotSignedIn
from appliance.tables import classes, folded, memberships, new_id, users

if TYPE_CHECKING:
    from appliance.db import Database


LONGEST_FULL_NAME = 120
NO_PASSWORD = ""  # of somebody who was imported and has got none yet: nothing opens it
TEXT = ("normal", "large", "larger")
SPACING = ("normal", "wide")


@dataclass(frozen=True, slots=True)
class Person:
    """`classes`: name of each class that is not archived, and the role in it. `external`: the school register's number.

    `source`: who says that the password is right: local, ldap, oidc. `waiting`: there is no password yet.
    """

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
    waiting: bool = False


Sheet = list[tuple[Person, str]]  # people with the passwords made for them


class People:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._passwords = Passwords()

    def list(self, *, role: str = "", class_name: str = "", search: str = "") -> list[Person]:
        """By name; the box's own command line is nobody. `search`: a part of either name, however it is cased."""
        part = folded(search.strip())
        with self._database.read() as connection:
            return [
                one
                for one in _people(connection, sa.select(users).where(users.c.role != LOCAL).order_by(users.c.folded))
                if (not role or one.role == role)
                and (not class_name or class_name in one.classes)
                and (not part or part in folded(one.name) or part in folded(one.full_name))
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
        known_role(role)
        given = strong(password) if password is not None else new_code()
        row = {
            "id": new_id(), "name": name, "role": role, "full_name": clean_full_name(full_name),
            "password_hash": self._passwords.hash(given) if source == "local" else NO_PASSWORD, "created": time.time(),
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
            columns["folded"] = folded(columns["name"])
        if "full_name" in columns:
            columns["full_name"] = clean_full_name(columns["full_name"])
        known_role(columns.get("role", before.role))
        with self._database.begin() as connection:
            if before.role == ADMINISTRATOR and (
                columns.get("disabled") or columns.get("role", ADMINISTRATOR) != ADMINISTRATOR
            ):
                keep_one_administrator(connection, id)
            if columns.get("name", before.name) != before.name:
                _refuse_taken(connection, columns["name"], but=id)
            connection.execute(sa.update(users).where(users.c.id == id).values(**columns))
            if columns.get("disabled") or columns.get("role", before.role) != before.role:
                end_everything(connection, id)
        return self.get(id)

    # --- passwords ---------------------------------------------------------------------------------------------------
    def reset_password(self, id: str) -> str:
        """A made-up password that has to be changed at the next sign-in. Raises NotFound, Conflict (kept elsewhere)."""
        _kept_here(self.get(id))
        password = new_code()
        self._set(id, password, temporary=True)
        return password

    def sheet(self, ids: Iterable[str], step: Callable[[int, int], None] = lambda _done, _all: None) -> Sheet:
        """As `reset_password` for many, by name; people whose password is kept elsewhere are left out. All or nobody.

        Hashing takes its 25 ms for each of them, on every core at once; `step` is told how far it is.
        """
        wanted = set(ids)
        people = [one for one in self.list() if one.id in wanted and one.source == "local"]
        made = [(one, new_code()) for one in people]
        hashed: list[dict[str, Any]] = []
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            for (one, _), its in zip(made, threads.map(self._passwords.hash, [code for _, code in made]), strict=True):
                hashed.append({"this": one.id, "hash": its})
                step(len(hashed), len(made))
        with self._database.begin() as connection:
            if hashed:
                this = sa.update(users).where(users.c.id == sa.bindparam("this"))
                connection.execute(this.values(password_hash=sa.bindparam("hash"), temporary=True), hashed)
            for one in people:
                end_everything(connection, one.id)
        return made

    def change_password(self, id: str, old: str, new: str) -> None:
        """All sessions and keys end. Raises NotSignedIn (the old one), Busy, BadInput (weak, or the same), Conflict."""
        strong(new)
        self.confirm(id, old)
        if old == new:
            raise BadInput("The new password is the old one.", "Take another one.")
        self._set(id, new, temporary=False)

    def choose_password(self, id: str, new: str) -> None:
        """In place of one that was given by somebody else. Raises Conflict where it is not, BadInput (weak, or the same)."""
        strong(new)
        if not _kept_here(self.get(id)).temporary:
            raise Conflict("This password is your own already.", "Change it with the old one.")
        with self._database.read() as connection:
            hashed = connection.scalar(sa.select(users.c.password_hash).where(users.c.id == id))
        if self._passwords.fits(hashed, as_code(new)):
            raise BadInput("This is the password that you were given.", "Take one that only you know.")
        self._set(id, new, temporary=False)

    def confirm(self, id: str, password: str) -> None:
        """That it is really this person, before what a borrowed page must not do. Raises NotSignedIn, Busy, Conflict."""
        _kept_here(self.get(id))
        attempt = f"confirm:{id}"
        count_attempt(self._database, attempt)
        with self._database.read() as connection:
            hashed = connection.scalar(sa.select(users.c.password_hash).where(users.c.id == id))
        if len(password) > LONGEST_SECRET or not self._passwords.fits(hashed, password):
            raise NotSignedIn("The password is not right.", "Type the one that you signed in with.")
        with self._database.begin() as connection:
            forgive(connection, attempt)

    # --- the rest of a person ----------------------------------------------------------------------------------------
    def prefer(self, id: str, **chosen: str) -> None:
        """Keep how this person wants pages: text (TEXT), spacing (SPACING). Raises BadInput, NotFound."""
        for name, values in (("text", TEXT), ("spacing", SPACING)):
            if chosen.get(name, values[0]) not in values:
                raise BadInput(f"There is no such {name}: {chosen[name][:40]!r}.", f"Take one of: {', '.join(values)}.")
        with self._database.begin() as connection:
            row = connection.execute(sa.select(users.c.preferences).where(users.c.id == id)).first()
            if row is None:
                raise NotFound("There is no such person here.", "They may have been removed.")
            kept = {**(row.preferences or {}), **chosen}
            connection.execute(sa.update(users).where(users.c.id == id).values(preferences=kept))

    def remove(self, id: str) -> None:
        """With everything that is theirs: conversations, keys, memberships. Raises NotFound, Conflict (last administrator)."""
        role = self.get(id).role
        with self._database.begin() as connection:
            if role == ADMINISTRATOR:
                keep_one_administrator(connection, id)
            connection.execute(sa.delete(users).where(users.c.id == id))

    def refuse_last(self, id: str) -> None:
        """Raises what `remove` would, before anything that cannot be undone is done."""
        if self.get(id).role == ADMINISTRATOR:
            with self._database.read() as connection:
                keep_one_administrator(connection, id)

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
            end_everything(connection, id)


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
            bool(row.totp), row.created, belong.get(row.id, {}), row.source == "local" and row.password_hash == NO_PASSWORD,
        )
        for row in rows
    ]  # fmt: skip


def _refuse_taken(connection: sa.Connection, name: str, but: str = "") -> None:
    if connection.execute(sa.select(users.c.id).where(users.c.folded == folded(name), users.c.id != but)).first() is not None:
        raise Conflict(f"There is somebody named {name} already.", "Add a letter or a number to tell them apart.")


def _kept_here(person: Person) -> Person:
    if person.source != "local":
        raise Conflict(f"The password of {person.name} is not kept here.", "Change it where the school's accounts are kept.")
    return person


def known_role(role: str) -> str:
    """Raises BadInput."""
    if role not in ROLES:
        raise BadInput(f"There is no role {role[:40]!r}.", f"Take one of: {', '.join(ROLES)}.")
    return role


def clean_full_name(name: str) -> str:
    """May be empty. Raises BadInput."""
    return clean_name(name, "full name", LONGEST_FULL_NAME) if name.strip() else ""


def keep_one_administrator(connection: sa.Connection, id: str) -> None:
    """Raises Conflict where nobody else is an administrator who can sign in."""
    others = sa.select(users.c.id).where(users.c.role == ADMINISTRATOR, users.c.id != id, ~users.c.disabled)
    if connection.execute(others).first() is None:
        raise Conflict("This is the last administrator.", "Make somebody else an administrator first.")
