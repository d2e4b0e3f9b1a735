"""The school's tutoring examples: imported, reviewed by people, withdrawn; and which of them stood in which dataset.

Hides the tables, what makes a row the same as one imported before, under which names a person's rows may stand, and how a
withdrawn text leaves the database file. Names are kept where a row needs its author; everywhere else (withdrawals, datasets,
the audit record) stands a digest. Which rows may be trained on is `selection.py`'s to say; nothing here reads a model.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert as upsert

from appliance.audit import Audit
from appliance.db import Database
from appliance.engine.handler import Message
from appliance.errors import BadInput, Conflict, NotFound, from_os_error
from appliance.files import sha256_of
from appliance.tables import dataset_rows, roster, withdrawals
from appliance.tables import examples as table
from appliance.tuning.examples import Example, Fault, placed, refuse
from appliance.tuning.incoming import CHANGEABLE, Incoming, content_of, read

if TYPE_CHECKING:
    from appliance.registry import Registry
    from appliance.tuning.dataset import Dataset

Review = Literal["pending", "approved", "rejected"]
REVIEWS: tuple[Review, ...] = ("pending", "approved", "rejected")
AT_ONCE = 500  # ids in one query: SQLite takes a limited number of values


@dataclass(frozen=True, slots=True)
class Row:
    """One example with what was decided about it. Times are UTC seconds; `created` is 0 where nobody said when.

    consent: None where nobody was asked. withdrawn: when; then nothing is left but the id.
    """

    id: str
    messages: tuple[Message, ...]
    correction: str | None
    rating: str | None
    subject: str
    grade: str
    skill: str
    source: str
    licence: str
    author: str
    user_role: str
    class_name: str
    consent: bool | None
    reviewed: Review
    reviewer: str
    reviewed_at: float | None
    origin: str
    extra: dict[str, Any]
    created: float
    imported: float
    withdrawn: float | None

    @property
    def classroom(self) -> bool:
        """Whether it was said in this school's lessons; else it is a set that somebody published or wrote."""
        return bool(self.user_role or self.class_name or self.rating or self.consent is not None)

    @property
    def own_author(self) -> str:
        """The author where the row itself named one; empty where a whole file was put under one name."""
        return "" if self.extra.get("author_declared") else self.author

    def example(self) -> Example:
        """As it was given, without the correction: for counting and showing, not for training."""
        return Example(
            self.id, self.messages, self.subject, self.grade, self.skill, self.source, self.licence, self.author
        )  # fmt: skip


@dataclass(frozen=True)
class Imported:
    """What an import did with the file's rows, and how those that are in the store now stand in review."""

    added: int
    updated: int
    unchanged: int
    withdrawn: int
    review: dict[str, int]


@dataclass(frozen=True)
class Exposed:
    """A model that had rows in its making. aliases: empty where it does not serve. through: the tuned model it is built on."""

    id: str
    aliases: tuple[str, ...]
    rows: int
    through: str = ""


@dataclass(frozen=True)
class Trace:
    """What a person left: rows under their name, rows of others that name them, and names that nearly match.

    earlier: rows that were in a dataset under their name and are withdrawn already.
    """

    digest: str
    known: bool
    rows: tuple[str, ...]
    earlier: tuple[str, ...]
    mentions: tuple[str, ...]
    similar: tuple[str, ...]


def person_key(name: str) -> str:
    """The digest that stands for a person wherever a name is not needed; the same however the name is cased and spaced."""
    plain = " ".join(unicodedata.normalize("NFKC", name).casefold().replace(",", " ").split())
    return hashlib.sha256(f"person\0{plain}".encode()).hexdigest()[:24]


class ExampleStore:
    """The examples of one database. Safe to use from several processes."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._audit = Audit(database)

    # --- importing ---------------------------------------------------------------------------------------------------------
    def import_rows(
        self, path: Path, *, licence: str = "", author: str = "", trust_review: bool = False, reviewer: str
    ) -> Imported:
        """Take over a file or folder of examples, all of it or nothing.

        A row that is there already is left alone; what its file says now about consent, licence, source and so on is taken
        over. `licence` and `author` fill in what is missing. Marks of review in the file count only where `trust_review`, and
        never against a decision made here. Rows and people that were withdrawn do not come back. Raises BadInput with every
        fault, NotFound, StorageFull.
        """
        good, faults = placed(path)
        rows: list[Incoming] = []
        for file, line, example in good:
            row, wrong = read(example, file, line)
            faults += wrong
            rows += [row] if row else []
        name = _digest_of(path)
        with self._database.begin() as connection:
            taking = _Taking(connection, {row.id for row in rows}, reviewer)
            for row in rows:
                faults += taking.take(row, row.filled(licence, author), row.reviewed if trust_review else None)
            refuse(faults)
            taking.write(connection)
        done = taking.done()
        facts = {"added": done.added, "updated": done.updated, "withdrawn": done.withdrawn, "trusted": trust_review}
        self._audit.note("import examples", name, facts, actor=reviewer)
        return done

    # --- reading -----------------------------------------------------------------------------------------------------------
    def list(self, *, review: Review | None = None, source: str = "", withdrawn: bool = False) -> list[Row]:
        """Rows in a fixed order: by when they were said, then by id. Withdrawn ones only where asked for."""
        query = sa.select(table).order_by(table.c.created, table.c.id)
        query = query if withdrawn else query.where(table.c.withdrawn.is_(None))
        query = query.where(table.c.reviewed == review) if review else query
        query = query.where(table.c.source == source) if source else query
        with self._database.read() as connection:
            return [_row(found) for found in connection.execute(query).mappings()]

    def pending(self, source: str = "") -> Sequence[Row]:
        """What waits for review, in the fixed order."""
        return self.list(review="pending", source=source)

    def get(self, id: str) -> Row:
        """One row, also a withdrawn one. Raises NotFound."""
        with self._database.read() as connection:
            return _found(_rows(connection, {id}), [id])[0]

    # --- reviewing ---------------------------------------------------------------------------------------------------------
    def approve(self, ids: Sequence[str], reviewer: str) -> None:
        """Allow rows for training, all or none. Raises NotFound, Conflict (withdrawn)."""
        self._decide(ids, "approved", reviewer)

    def reject(self, ids: Sequence[str], reviewer: str) -> None:
        """Keep rows out of training, all or none. Raises NotFound, Conflict (withdrawn)."""
        self._decide(ids, "rejected", reviewer)

    def correct(self, id: str, text: str, reviewer: str) -> None:
        """Say what the tutor's last turn should have been, and allow the row so. Raises BadInput, NotFound, Conflict."""
        if not text.strip():
            raise BadInput("The correction is empty.", "Write what the tutor should have said, or reject the row.")
        self._decide([id], "approved", reviewer, correction=text.strip())

    def draft(self, id: str, text: str) -> None:
        """Keep a correction that is being written, so that it is there after a cut; an empty one forgets it."""
        with self._database.begin() as connection:
            row = _present(_rows(connection, {id}), [id])[0]
            extra = {key: value for key, value in row.extra.items() if key != "draft"} | ({"draft": text} if text else {})
            connection.execute(table.update().where(table.c.id == id).values(extra=extra))

    def _decide(self, ids: Sequence[str], state: Review, reviewer: str, correction: str | None = None) -> None:
        with self._database.begin() as connection:
            for row in _present(_rows(connection, set(ids)), ids):
                values: dict[str, Any] = {"reviewed": state, "reviewer": reviewer, "reviewed_at": time.time()}
                if correction is not None:
                    values |= {"correction": correction}
                values["extra"] = {key: value for key, value in row.extra.items() if key != "draft"}
                if correction is not None and row.correction not in (None, correction):
                    values["extra"]["earlier"] = [*row.extra.get("earlier", ()), row.correction]
                connection.execute(table.update().where(table.c.id == row.id).values(values))
        thing = ids[0] if len(ids) == 1 else "examples"
        facts: dict[str, Any] = {"rows": len(ids)} | ({"corrected": True} if correction is not None else {})
        self._audit.note(f"{state} example" if len(ids) == 1 else f"{state} examples", thing, facts, actor=reviewer)

    # --- withdrawing -------------------------------------------------------------------------------------------------------
    def trace(self, person: str) -> Trace:
        """What withdrawing a person would take: by an author's name, a pupil's id or full name. Changes nothing.

        Raises BadInput for an empty name, Conflict where several pupils of the roster bear it.
        """
        with self._database.read() as connection:
            return _trace(connection, person)

    def withdraw(self, person: str, *, by: str, mentions: bool = False) -> tuple[str, ...]:
        """Empty every row of a person, and with `mentions` those that name them; none of it comes back. Returns their ids.

        The texts are overwritten in the database file too. Raises BadInput, Conflict as `trace` does.
        """
        now = time.time()
        empty: dict[str, Any] = {
            "messages": [], "correction": None, "rating": None, "skill": "", "author": "", "user_role": "", "class_name": "",
            "consent": False, "reviewed": "rejected", "reviewer": by, "reviewed_at": now, "extra": {}, "withdrawn": now,
        }  # fmt: skip
        with self._database.begin() as connection:
            connection.exec_driver_sql("PRAGMA secure_delete=ON")
            trace = _trace(connection, person)
            ids = (*trace.rows, *(trace.mentions if mentions else ()))
            for key in {person_key(name) for name in _names_of(connection, person)[0]}:
                row = upsert(withdrawals).values(person=key, at=now, by=by)
                connection.execute(row.on_conflict_do_nothing())
            for some in _chunks(ids):
                connection.execute(table.update().where(table.c.id.in_(some)).values(empty))
        self._truncate_log()
        self._audit.note("withdraw", trace.digest, {"rows": len(ids)}, actor=by)
        return ids

    def withdrawn(self) -> set[str]:
        """The ids of all rows that were ever withdrawn."""
        with self._database.read() as connection:
            return set(connection.execute(sa.select(table.c.id).where(table.c.withdrawn.is_not(None))).scalars())

    def _truncate_log(self) -> None:
        """The write-ahead log still holds the pages as they were: fold it into the file. A reader may hold it up for now."""
        with contextlib.suppress(sa.exc.DatabaseError):
            connection = self._database.engine.raw_connection()
            try:
                connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
            finally:
                connection.close()

    # --- lineage -----------------------------------------------------------------------------------------------------------
    def record(self, digest: str, data: Dataset) -> None:
        """Remember which rows stand in a dataset; to be called before anything is trained on it. Safe to repeat."""
        found = [
            {"dataset": digest, "example": example.id, "author": author_key(example.author), "part": part}
            for part, rows in (("train", data.train), ("held_out", data.held_out))
            for example in rows
        ]
        with self._database.begin() as connection:
            for some in _chunks(found):
                connection.execute(upsert(dataset_rows).on_conflict_do_nothing(), some)

    def rows_of(self, digest: str) -> dict[str, str]:
        """The ids of a dataset's rows, each with its part: train or held_out."""
        query = sa.select(dataset_rows.c.example, dataset_rows.c.part).where(dataset_rows.c.dataset == digest)
        with self._database.read() as connection:
            return {row.example: row.part for row in connection.execute(query.order_by(dataset_rows.c.example))}

    def withdrawn_from(self, digest: str) -> Sequence[str]:
        """Rows of a dataset that were withdrawn since it was made: what is trained on it must not be promoted."""
        gone = self.withdrawn()
        return [id for id in self.rows_of(digest) if id in gone]

    def models_with(self, ids: Iterable[str], registry: Registry) -> Sequence[Exposed]:
        """Every model whose dataset held one of these rows, in either part, and every model built on such a one."""
        held: Counter[str] = Counter()
        with self._database.read() as connection:
            for some in _chunks([*ids]):
                query = sa.select(dataset_rows.c.dataset).where(dataset_rows.c.example.in_(some))
                held.update(connection.execute(query).scalars())
        models = registry.list()  # oldest first: what a model is built on comes before it
        found: dict[str, Exposed] = {}
        for model in models:
            through = next((name for name in (model.base, *model.parents) if name in found), "")
            count = held.get(model.dataset or "", 0)
            if count or through:
                found[model.id] = Exposed(model.id, model.aliases, count, through or "")
        return [*found.values()]


# --- rows and tables ----------------------------------------------------------------------------------------------------------


def _row(found: Any) -> Row:
    said = tuple(Message(role, text) for role, text in found["messages"])
    return Row(**{**found, "messages": said, "extra": found["extra"] or {}})


def _rows(connection: sa.Connection, ids: Collection[str]) -> dict[str, Row]:
    found: dict[str, Row] = {}
    for some in _chunks(sorted(ids)):
        rows = connection.execute(sa.select(table).where(table.c.id.in_(some))).mappings()
        found |= {row["id"]: _row(row) for row in rows}
    return found


def _chunks(items: Sequence[Any]) -> Iterable[Sequence[Any]]:
    return (items[at : at + AT_ONCE] for at in range(0, len(items), AT_ONCE))


def _present(found: dict[str, Row], ids: Sequence[str]) -> list[Row]:
    """The rows in the order asked for. Raises NotFound, Conflict (withdrawn)."""
    rows = _found(found, ids)
    if gone := [row.id for row in rows if row.withdrawn is not None]:
        raise Conflict(f"The example {', '.join(gone)} was withdrawn; nothing is left of it.", "Choose another one.")
    return rows


def _found(found: dict[str, Row], ids: Sequence[str]) -> list[Row]:
    if missing := [id for id in ids if id not in found]:
        raise NotFound(f"There is no example called {', '.join(missing)}.", "See `appliance examples review --list`.")
    return [found[id] for id in ids]


class _Taking:
    """One import under way: what each of its rows means beside what is there. Nothing is written before `write`."""

    def __init__(self, connection: sa.Connection, ids: Collection[str], reviewer: str) -> None:
        self._known = _rows(connection, ids)
        self._aliases = _aliases(connection)
        self._gone = set(connection.execute(sa.select(withdrawals.c.person)).scalars())
        self._reviewer, self._now = reviewer, time.time()
        self._new: dict[str, dict[str, Any]] = {}
        self._changed: dict[str, dict[str, Any]] = {}
        self._counts: Counter[str] = Counter()
        self._ids: set[str] = set()

    def take(self, row: Incoming, filled: dict[str, Any], review: Review | None) -> list[Fault]:
        before = self._known.get(row.id)
        if (before is not None and before.withdrawn is not None) or self._withdrawn(filled["author"]):
            self._counts["withdrawn"] += 1
            return []
        if before is None:
            values = filled | _decision(review or "pending", self._reviewer, self._now)
            self._new[row.id] = values | {"imported": self._now, "withdrawn": None}
            self._known[row.id] = _row(self._new[row.id])
        elif before.extra.get("content", content_of(before.messages, before.correction, before.rating)) != row.content:
            what = f'the id "{row.id}" stands for something else already ({before.origin}).'
            return [Fault(row.file, row.line, what, "Give this row an id of its own.")]
        else:
            change = _change(before, filled)
            if review and review != "pending" and before.reviewed == "pending":
                change |= _decision(review, self._reviewer, self._now)
            self._known[row.id] = replace(before, **change)
            target = self._new if row.id in self._new else self._changed
            if change:
                target[row.id] = target.get(row.id, {}) | change
            self._counts["unchanged"] += not change and row.id not in self._ids
        self._ids.add(row.id)
        return []

    def _withdrawn(self, author: str) -> bool:
        key = person_key(author)
        return bool(author) and bool(self._gone & self._aliases.get(key, {key}))

    def write(self, connection: sa.Connection) -> None:
        for some in _chunks([*self._new.values()]):
            connection.execute(table.insert(), some)
        for id, change in self._changed.items():
            connection.execute(table.update().where(table.c.id == id).values(change))

    def done(self) -> Imported:
        states = Counter(self._known[id].reviewed for id in self._ids)
        unchanged, withdrawn = self._counts["unchanged"], self._counts["withdrawn"]
        return Imported(len(self._new), len(self._changed), unchanged, withdrawn, {state: states[state] for state in REVIEWS})


def _decision(state: Review, reviewer: str, now: float) -> dict[str, Any]:
    decided = state != "pending"
    return {"reviewed": state, "reviewer": reviewer if decided else "", "reviewed_at": now if decided else None}


def _change(before: Row, filled: dict[str, Any]) -> dict[str, Any]:
    """What a second import of a row changes: facts that its file states now; what was filled in only where there is nothing."""
    change: dict[str, Any] = {}
    for key in CHANGEABLE:
        value, declared = filled[key], filled["extra"].get(f"{key}_declared", False)
        if value in ("", None) or value == getattr(before, key) or (declared and getattr(before, key)):
            continue
        change[key] = value
        if key in ("author", "licence") and declared != before.extra.get(f"{key}_declared", False):
            change["extra"] = change.get("extra", before.extra) | {f"{key}_declared": declared}
    return change


def _digest_of(path: Path) -> str:
    """What the audit record calls the imported file: a digest of its content, for a folder of its files'."""
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        return hashlib.sha256("".join(sha256_of(file) for file in files if file.is_file()).encode()).hexdigest()[:24]
    except OSError as error:
        raise from_os_error(error, "reading examples") from None


# --- people -------------------------------------------------------------------------------------------------------------------


def author_key(author: str) -> str:
    """The digest under which an author stands in datasets; empty where there is none, itself where it is one already."""
    return author if not author or author.startswith("person-") else f"person-{person_key(author)}"


def _forms(connection: sa.Connection) -> dict[str, list[str]]:
    """For each pupil of the roster the names under which rows may stand."""
    pupils = connection.execute(sa.select(roster))
    return {
        one.pupil: [one.pupil, f"{one.first_name} {one.last_name}", f"{one.last_name} {one.first_name}"] for one in pupils
    }  # fmt: skip


def _aliases(connection: sa.Connection) -> dict[str, set[str]]:
    """From each name's digest to the digests of all names of the pupils who bear it."""
    found: dict[str, set[str]] = {}
    for names in _forms(connection).values():
        keys = {person_key(name) for name in names}
        for key in keys:
            found[key] = found.get(key, set()) | keys
    return found


def _names_of(connection: sa.Connection, person: str) -> tuple[list[str], bool]:
    """Every name under which a person's rows may stand, and whether the roster knows them."""
    if not person.strip():
        raise BadInput("No name was given.", "Give an author's name, or a pupil's id or full name.")
    key, forms = person_key(person), _forms(connection)
    matching = [id for id in forms if person_key(id) == key]
    matching = matching or [id for id, names in forms.items() if key in {person_key(name) for name in names}]
    if len(matching) > 1:
        raise Conflict(
            f"{len(matching)} pupils are called {person}: {', '.join(sorted(matching))}.",
            "Give the pupil's id instead; rows that stand under the name alone are then taken as theirs.",
        )
    return [person, *(forms[matching[0]] if matching else ())], bool(matching)


def _trace(connection: sa.Connection, person: str) -> Trace:
    names, in_roster = _names_of(connection, person)
    keys = {person_key(name) for name in names}
    found = [_row(one) for one in connection.execute(sa.select(table).where(table.c.withdrawn.is_(None))).mappings()]
    everybody = [f"{one.first_name} {one.last_name}" for one in connection.execute(sa.select(roster))]
    query = sa.select(dataset_rows.c.example).where(dataset_rows.c.author.in_([f"person-{key}" for key in keys]))
    taught = set(connection.execute(query).scalars())
    own = {row.id for row in found if row.author and person_key(row.author) in keys}
    wanted = [_flat(name) for name in names if len(name.split()) > 1]
    mentions = {row.id for row in found if row.id not in own and any(name in _flat(_words(row)) for name in wanted)}
    earlier = taught - {row.id for row in found}
    known = in_roster or bool(own or earlier)
    similar = () if known else _similar(person, [*everybody, *{row.author for row in found if row.author}])
    return Trace(person_key(person), known, tuple(sorted(own)), tuple(sorted(earlier)), tuple(sorted(mentions)), similar)


def _flat(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _words(row: Row) -> str:
    extra = json.dumps(row.extra, ensure_ascii=False)
    return "\n".join([*(message.content for message in row.messages), row.correction or "", row.source, extra])


def _similar(person: str, names: Sequence[str]) -> tuple[str, ...]:
    import difflib

    return tuple(difflib.get_close_matches(person, sorted(set(names)), n=3, cutoff=0.75))
