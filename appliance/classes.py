"""The school's classes: their lesson, how they are answered, whether they are open, and who belongs to them.

A class's name is compared without regard to case and spaces: a rule that is not found because somebody typed "7 b" would let
answers through that the school meant to hold back. Two who edit one class notice each other by its version; opening, closing
and the exam lock set a state and are no edit, so that they never meet a conflict. Who may change one is for `accounts` to say;
what strict or closed means for an answer is known to `lessons`. Work is blocking; async callers use a thread.
"""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from appliance.errors import BadInput, Conflict, NotFound
from appliance.naming import odd
from appliance.tables import class_collections, classes, collection_readers, collections, memberships, new_id, users

if TYPE_CHECKING:
    from appliance.db import Database

LONGEST_NAME = 80
LONGEST_WORDS = 120  # of a lesson's title, a subject, a grade
HELP_LEVELS = ("hints", "examples", "full")
_JOINERS = "\u200c\u200d"  # Persian, Hindi and others spell with them


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

    def is_open(self, now: float | None = None) -> bool:
        """Whether its pupils may ask: opened, and its time not over."""
        return self.open and (self.until is None or (time.time() if now is None else now) < self.until)


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

    def list(self, *, archived: bool = False, of: str = "") -> Sequence[SchoolClass]:
        """By name; `of` a person: only those that they belong to, as pupil or teacher."""
        chosen = sa.select(classes).order_by(classes.c.name)
        if not archived:
            chosen = chosen.where(classes.c.archived.is_(None))
        if of:
            chosen = chosen.where(classes.c.id.in_(sa.select(memberships.c.class_id).where(memberships.c.user == of)))
        with self._database.read() as connection:
            return [_class(row) for row in connection.execute(chosen)]

    def get(self, id: str) -> SchoolClass:
        """Raises NotFound."""
        with self._database.read() as connection:
            return _class(_row(connection, id))

    def named(self, name: str) -> SchoolClass | None:
        """The class that is not archived and goes by that name, however it is written."""
        wanted = _key(name)
        return next((one for one in self.list() if _key(one.name) == wanted), None)

    def add(self, name: str, *, teacher: str = "", unread: bool = False, **columns: Any) -> SchoolClass:
        """A new class, taught by the person `teacher` where one is given.

        unread: no collection may have been opened to a class of this name: what a class may read is not to be had by taking
        its name. Raises BadInput for what cannot be a name, Conflict where another class has it, archived ones too.
        """
        name, id = clean(name), new_id()
        columns = _checked(columns)
        with self._database.begin() as connection:
            _free(connection, name)
            if unread:
                _unread(connection, name)
            connection.execute(sa.insert(classes).values(id=id, name=name, created=time.time(), **columns))
            if teacher:
                connection.execute(sa.insert(memberships).values(class_id=id, user=teacher, role="teacher"))
        return self.get(id)

    def change(
        self,
        id: str,
        *,
        version: int | None = None,
        collections: Iterable[str] | None = None,
        unread: bool = False,
        **columns: Any,
    ) -> SchoolClass:
        """Set columns, and `collections` (their ids). A new name goes to whatever the old one could read; `unread` as in `add`.

        version: what the editor saw; raises Conflict where another has changed the class since. Raises NotFound, BadInput.
        """
        columns = _checked(columns)
        if "name" in columns:
            columns["name"] = clean(columns["name"])
        with self._database.begin() as connection:
            before = _row(connection, id)
            if version is not None and version != before.version:
                raise Conflict("Somebody else has changed this class meanwhile.", "Look at it again, then make your change.")
            name = columns.get("name", before.name)
            if name != before.name:
                _free(connection, name, but=id)
                if unread and _key(name) != _key(before.name):
                    _unread(connection, name)
                reader = sa.and_(collection_readers.c.kind == "class", collection_readers.c.name == before.name)
                connection.execute(sa.update(collection_readers).where(reader).values(name=name))
            done = sa.update(classes).where(classes.c.id == id).values(version=before.version + 1, **columns)
            connection.execute(done)
            if collections is not None:
                connection.execute(sa.delete(class_collections).where(class_collections.c.class_id == id))
                rows = [{"class_id": id, "collection": one} for one in sorted(set(collections))]
                if rows:
                    connection.execute(sa.insert(class_collections), rows)
        return self.get(id)

    # --- for this lesson ---------------------------------------------------------------------------------------------------
    def open(self, id: str, until: float | None = None) -> SchoolClass:
        """Its pupils may ask, `until` then (UTC seconds) or until somebody closes it. Raises NotFound."""
        return self._set(id, open=True, until=until)

    def close(self, id: str) -> SchoolClass:
        return self._set(id, open=False, until=None)

    def exam(self, id: str, on: bool) -> SchoolClass:
        """While it is on, nobody of the class is answered anywhere. Raises NotFound."""
        return self._set(id, exam=on)

    def archive(self, id: str, on: bool = True) -> SchoolClass:
        """Put it away with all that belongs to it, or take it out again. Its name stays taken. Raises NotFound."""
        return self._set(id, archived=time.time() if on else None)

    def _set(self, id: str, **columns: Any) -> SchoolClass:
        with self._database.begin() as connection:
            _row(connection, id)
            connection.execute(sa.update(classes).where(classes.c.id == id).values(**columns))
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

    def collections(self, id: str) -> Mapping[str, str]:
        """Id and name of the collections that its answers are drawn from; none: whatever the pupil may read."""
        chosen = (
            sa.select(collections.c.id, collections.c.name)
            .join(class_collections, class_collections.c.collection == collections.c.id)
            .where(class_collections.c.class_id == id)
        )
        with self._database.read() as connection:
            return {row.id: row.name for row in connection.execute(chosen.order_by(collections.c.name))}

    def sizes(self) -> Mapping[str, int]:
        """How many pupils each class has; one without is left out."""
        counted = sa.select(memberships.c.class_id, sa.func.count()).where(memberships.c.role == "pupil")
        with self._database.read() as connection:
            return {row[0]: row[1] for row in connection.execute(counted.group_by(memberships.c.class_id))}

    # --- strict ------------------------------------------------------------------------------------------------------------
    def strict(self, names: Iterable[str]) -> bool:
        """Whether any of these classes is: who is in several is answered as the strictest of them asks."""
        wanted = {_key(name) for name in names}
        return bool(wanted) and any(one.strict and _key(one.name) in wanted for one in self.list())

    def set_strict(self, name: str, on: bool) -> SchoolClass:
        """Make the class where there is none of that name. Raises BadInput for what cannot be a name."""
        found = self.named(clean(name))
        return self.change(found.id, strict=on) if found else self.add(name, strict=on)


def same_name(one: str, other: str) -> bool:
    """Whether both are one class's name, however it is written."""
    return _key(one) == _key(other)


def clean(name: str) -> str:
    """Raises BadInput for what cannot be the name of a class: also where part of it cannot be seen."""
    name = " ".join(unicodedata.normalize("NFC", name).split())
    if not any(one.isalnum() for one in name) or len(name) > LONGEST_NAME or not name.isprintable() or odd(name):
        raise BadInput(f"{name[:LONGEST_NAME]!r} cannot be the name of a class.", "Use 1 to 80 letters, digits or signs.")
    return name


def _checked(columns: dict[str, Any]) -> dict[str, Any]:
    """Raises BadInput for a value that no class can have."""
    columns = dict(columns)
    for field in ("lesson", "subject", "grade", "year", "method"):
        if field in columns:
            columns[field] = _words(columns[field], field)
    if columns.get("help_level", HELP_LEVELS[0]) not in HELP_LEVELS:
        raise BadInput(f"There is no help level {str(columns['help_level'])[:40]!r}.", f"Take {', '.join(HELP_LEVELS)}.")
    return columns


def _words(text: str, field: str) -> str:
    """One line of plain words: no control or direction signs, which could make it read as something else."""
    text = unicodedata.normalize("NFC", text)
    text = " ".join("".join(one if one.isprintable() or one in _JOINERS else " " for one in text).split())
    if len(text) > LONGEST_WORDS:
        raise BadInput(f"The {field} has {len(text)} characters; {LONGEST_WORDS} fit.", "Say it in fewer words.")
    return text


def _row(connection: sa.Connection, id: str) -> Any:
    row = connection.execute(sa.select(classes).where(classes.c.id == id)).first()
    if row is None:
        raise NotFound("There is no such class here.", "It may have been removed.")
    return row


def _free(connection: sa.Connection, name: str, but: str = "") -> None:
    for id, taken, archived in connection.execute(sa.select(classes.c.id, classes.c.name, classes.c.archived)):
        if id != but and _key(taken) == _key(name):
            where = " in the archive" if archived else ""
            raise Conflict(f"There is a class {taken!r}{where} already.", "Take another name, or change that class.")


def _unread(connection: sa.Connection, name: str) -> None:
    opened = connection.scalars(sa.select(collection_readers.c.name).where(collection_readers.c.kind == "class"))
    if any(_key(one) == _key(name) for one in opened):
        raise Conflict(f"Documents are kept for a class {name!r}.", "Ask the administrator to make that class.")


def _class(row: Any) -> SchoolClass:
    return SchoolClass(**{one.name: row._mapping[one.name] for one in fields(SchoolClass)})


def _key(name: str) -> str:
    return "".join(unicodedata.normalize("NFKC", name).casefold().split())
