"""The school's classes: their lesson, how they are answered, whether they are open, and who belongs to them.

A class's name is compared without regard to case and spaces: a rule that is not found because somebody typed "7 b" would let
answers through that the school meant to hold back. Who may change one is for `accounts` to say; what strict or closed means is
known to `chat`. Work is blocking; async callers use a thread.
"""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from appliance.errors import BadInput, Conflict, NotFound
from appliance.tables import class_collections, classes, collection_readers, collections, memberships, new_id, users

if TYPE_CHECKING:
    from appliance.db import Database

LONGEST_NAME = 80


@dataclass(frozen=True, slots=True)
class SchoolClass:
    """A row of `classes` without its sign-in code; `version` goes up with each change."""

    id: str
    name: str
    year: str
    subject: str
    grade: str
    method: str
    strict: bool
    help_level: str
    lesson: str
    open: bool
    until: float | None
    exam: bool
    external: str
    version: int
    created: float
    archived: float | None


@dataclass(frozen=True, slots=True)
class Member:
    """`part`: pupil or teacher."""

    id: str
    name: str
    full_name: str
    part: str
    disabled: bool


class Classes:
    def __init__(self, database: Database) -> None:
        self._database = database

    def list(self, *, archived: bool = False) -> Sequence[SchoolClass]:
        """By name."""
        chosen = sa.select(classes).order_by(classes.c.name)
        if not archived:
            chosen = chosen.where(classes.c.archived.is_(None))
        with self._database.read() as connection:
            return [_class(row) for row in connection.execute(chosen)]

    def get(self, id: str) -> SchoolClass:
        """Raises NotFound."""
        with self._database.read() as connection:
            row = connection.execute(sa.select(classes).where(classes.c.id == id)).first()
        if row is None:
            raise NotFound("There is no such class here.", "It may have been removed.")
        return _class(row)

    def named(self, name: str) -> SchoolClass | None:
        """The class that is not archived and goes by that name, however it is written."""
        wanted = _key(name)
        return next((one for one in self.list() if _key(one.name) == wanted), None)

    def add(self, name: str, **columns: Any) -> SchoolClass:
        """Raises BadInput for what cannot be a name, Conflict where another class has it."""
        name = clean(name)
        with self._database.begin() as connection:
            taken = connection.scalars(sa.select(classes.c.name))
            if any(_key(one) == _key(name) for one in taken):
                raise Conflict(f"There is a class {name!r} already.", "Take another name, or change that class.")
            id = new_id()
            connection.execute(sa.insert(classes).values(id=id, name=name, created=time.time(), **columns))
        return self.get(id)

    def change(self, id: str, *, version: int | None = None, **columns: Any) -> SchoolClass:
        """Set columns. `version`: what the editor saw; raises Conflict where somebody else has changed the class since.

        A new name goes to whatever the old one could read. Raises NotFound, BadInput.
        """
        before = self.get(id)
        if version is not None and version != before.version:
            raise Conflict("Somebody else has changed this class meanwhile.", "Look at it again, then make your change.")
        if "name" in columns:
            columns["name"] = clean(columns["name"])
            same = self.named(columns["name"])
            if same is not None and same.id != id:
                raise Conflict(f"There is a class {same.name!r} already.", "Take another name.")
        with self._database.begin() as connection:
            this = sa.and_(classes.c.id == id, classes.c.version == before.version)
            done = connection.execute(sa.update(classes).where(this).values(version=before.version + 1, **columns))
            if not done.rowcount:
                raise Conflict("Somebody else has changed this class meanwhile.", "Look at it again, then make your change.")
            if columns.get("name", before.name) != before.name:
                reader = sa.and_(collection_readers.c.kind == "class", collection_readers.c.name == before.name)
                connection.execute(sa.update(collection_readers).where(reader).values(name=columns["name"]))
        return self.get(id)

    # --- who and what belongs to it -------------------------------------------------------------------------------------
    def members(self, id: str) -> Sequence[Member]:
        """Teachers first, then by name."""
        chosen = (
            sa.select(users.c.id, users.c.name, users.c.full_name, memberships.c.role, users.c.disabled)
            .join(users, users.c.id == memberships.c.user)
            .where(memberships.c.class_id == id)
            .order_by(memberships.c.role.desc(), users.c.name)
        )
        with self._database.read() as connection:
            return [Member(*row) for row in connection.execute(chosen)]

    def collections(self, id: str) -> Sequence[str]:
        """The names of the collections that its answers are drawn from; none: whatever the pupil may read."""
        chosen = (
            sa.select(collections.c.name)
            .join(class_collections, class_collections.c.collection == collections.c.id)
            .where(class_collections.c.class_id == id)
        )
        with self._database.read() as connection:
            return list(connection.scalars(chosen.order_by(collections.c.name)))

    # --- strict ------------------------------------------------------------------------------------------------------------
    def strict(self, names: Iterable[str]) -> bool:
        """Whether any of these classes is: who is in several is answered as the strictest of them asks."""
        wanted = {_key(name) for name in names}
        return bool(wanted) and any(one.strict and _key(one.name) in wanted for one in self.list())

    def set_strict(self, name: str, on: bool) -> SchoolClass:
        """Make the class where there is none of that name. Raises BadInput for what cannot be a name."""
        found = self.named(clean(name))
        return self.change(found.id, strict=on) if found else self.add(name, strict=on)


def clean(name: str) -> str:
    """Raises BadInput for what cannot be the name of a class."""
    name = " ".join(unicodedata.normalize("NFC", name).split())
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise BadInput(f"{name[:LONGEST_NAME]!r} cannot be the name of a class.", "Use 1 to 80 letters, digits or signs.")
    return name


def _class(row: Any) -> SchoolClass:
    return SchoolClass(**{one.name: row._mapping[one.name] for one in fields(SchoolClass)})


def _key(name: str) -> str:
    return "".join(unicodedata.normalize("NFKC", name).casefold().split())
