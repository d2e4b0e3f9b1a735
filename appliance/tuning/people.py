"""Under which digests people stand where their names must not, and which names are one person's.

Hides the key of the digests: without it anybody could try every name of a school against a dataset that left the box. The key
lies beside the database, readable by its owner alone. Which rows a person has is `store.py`'s.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import unicodedata
from collections import defaultdict
from functools import cached_property
from pathlib import Path

import sqlalchemy as sa

from appliance.db import Database
from appliance.errors import ApplianceError, BadInput, Conflict, from_os_error
from appliance.files import sync
from appliance.tables import roster, withdrawals

KEY_BYTES = 32


class People:
    """The people of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def key(self, name: str) -> str:
        """The digest that stands for a person; the same however the name is cased and spaced. Raises ApplianceError."""
        plain = " ".join(unicodedata.normalize("NFKC", name).casefold().replace(",", " ").split())
        return hmac.new(self._secret, f"person\0{plain}".encode(), hashlib.sha256).hexdigest()[:24]

    def author(self, author: str) -> str:
        """What stands for an author in datasets; empty where there is none, itself where it is such a one already."""
        return author if not author or author.startswith("person-") else f"person-{self.key(author)}"

    def names_of(self, connection: sa.Connection, person: str) -> tuple[list[str], bool]:
        """Every name under which a person's rows may stand, and whether the roster knows them. Raises BadInput, Conflict."""
        if not person.strip():
            raise BadInput("No name was given.", "Give an author's name, or a pupil's id or full name.")
        key, forms = self.key(person), _forms(connection)
        matching = [id for id in forms if self.key(id) == key]
        matching = matching or [id for id, names in forms.items() if key in {self.key(name) for name in names}]
        if len(matching) > 1:
            raise Conflict(
                f"{len(matching)} pupils are called {person}: {', '.join(sorted(matching))}.",
                "Give the pupil's id instead; rows that stand under the name alone are then taken as theirs.",
            )
        return [person, *((matching[0], *forms[matching[0]]) if matching else ())], bool(matching)

    def gone(self, connection: sa.Connection) -> Gone:
        """Who has withdrawn, as it stands now."""
        keys = frozenset(connection.execute(sa.select(withdrawals.c.person)).scalars())
        return Gone(self, keys, {self.key(id): {self.key(n) for n in names} for id, names in _forms(connection).items()})

    @cached_property
    def _secret(self) -> bytes:
        path = self._database.path.with_name("people.key")
        try:
            return _read(path)
        except FileNotFoundError:
            pass
        with self._database.read() as connection:
            known = connection.execute(sa.select(withdrawals.c.person).limit(1)).first()
        if known is not None:  # a new key would let them back in
            raise ApplianceError(
                f"The key {path} is missing, without which nobody who has withdrawn is recognised.",
                "Restore it from the backup that the database belongs to.",
            )
        try:
            return _make(path)
        except OSError as error:
            raise from_os_error(error, "making the key of the people's digests") from None


class Gone:
    """Who has withdrawn: asked with an author's name as a row has it."""

    def __init__(self, people: People, keys: frozenset[str], pupils: dict[str, set[str]]) -> None:
        self._people, self._keys, self._pupils = people, keys, pupils
        self._bearers: dict[str, set[str]] = defaultdict(set)
        for id, names in pupils.items():
            for name in names:
                self._bearers[name].add(id)

    def __call__(self, author: str) -> bool:
        if not author.strip():
            return False
        key = self._people.key(author)
        if key in self._keys:
            return True
        if key in self._pupils:
            return any(name in self._keys and not self._namesake(key, name) for name in self._pupils[key])
        return any(self._keys & {id, *self._pupils[id]} for id in self._bearers.get(key, ()))

    def _namesake(self, id: str, name: str) -> bool:
        """Whether a name was withdrawn with another pupil who bears it: then it says nothing of this one."""
        return any(other in self._keys for other in self._bearers[name] - {id})


def _forms(connection: sa.Connection) -> dict[str, list[str]]:
    """For each pupil of the roster, by id, the full name in both orders."""
    pupils = connection.execute(sa.select(roster))
    return {
        one.pupil: [f"{one.first_name} {one.last_name}", f"{one.last_name} {one.first_name}"] for one in pupils
    }  # fmt: skip


def _read(path: Path) -> bytes:
    try:
        found = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise from_os_error(error, "reading the key of the people's digests") from None
    if len(found) != KEY_BYTES:
        raise ApplianceError(f"The key {path} is damaged.", "Restore it from the backup that the database belongs to.")
    return found


def _make(path: Path) -> bytes:
    """A new key, or the one that another process has made meanwhile. Whole or not there. Raises OSError."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with open(aside, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as handle:
            handle.write(secrets.token_bytes(KEY_BYTES))
            handle.flush()
            os.fsync(handle.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)
        sync(path.parent)
    finally:
        aside.unlink(missing_ok=True)
    return _read(path)
