"""The school's tutoring examples: imported, reviewed by people, withdrawn; and which of them stood in which dataset.

Hides the tables, what makes a row the same as one imported before, under which names a person's rows may stand, and how a
withdrawn text leaves the database file. Names are kept where a row needs its author; everywhere else (withdrawals, datasets,
the audit record) stands a digest. Which rows may be trained on is `selection.py`'s to say; nothing here reads a model.
"""

from __future__ import annotations

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
from appliance.errors import BadInput, Conflict, NotFound
from appliance.redact.roster import Pupil, exchange
from appliance.tables import dataset_rows, roster, withdrawals
from appliance.tables import examples as table
from appliance.tuning.examples import Example, Fault, placed, refuse
from appliance.tuning.incoming import CHANGEABLE, Incoming, content_of, digest_of, read
from appliance.tuning.people import Gone, People

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
    """What an import did with the file's rows, and how those that are in the store now stand in review.

    emptied: rows that were there, and are now known to be of somebody who has withdrawn.
    """

    added: int
    updated: int
    unchanged: int
    withdrawn: int
    review: dict[str, int]
    emptied: tuple[str, ...] = ()


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


class ExampleStore:
    """The examples of one database. Safe to use from several processes."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._audit = Audit(database)
        self.people = People(database)

    # --- importing ---------------------------------------------------------------------------------------------------------
    def import_rows(
        self,
        path: Path,
        *,
        licence: str = "",
        author: str = "",
        trust_review: bool = False,
        reviewer: str,
        pupils: Sequence[Pupil] | None = None,
    ) -> Imported:
        """Take over a file or folder of examples, all of it or nothing.

        A row that is there already is left alone; what its file says now about consent, licence, source and so on is taken
        over. `licence` and `author` fill in what is missing. Marks of review in the file count only where `trust_review`, and
        never against a decision made here. Rows and people that were withdrawn do not come back, and a row that turns out to
        be of such a one is emptied. `pupils` become the roster in the same step. Raises BadInput with every fault, NotFound,
        StorageFull.
        """
        good, faults = placed(path)
        rows: list[Incoming] = []
        for file, line, example in good:
            row, wrong = read(example, file, line)
            faults += wrong
            rows += [row] if row else []
        name = digest_of(path)
        with self._database.begin() as connection:
            if pupils is not None:
                exchange(connection, pupils)
            taking = _Taking(connection, {row.id for row in rows}, reviewer, self.people.gone(connection))
            for row in rows:
                faults += taking.take(row, row.filled(licence, author), row.reviewed if trust_review else None)
            refuse(faults)
            taking.write(connection)
        done = taking.done()
        if done.emptied:
            self._database.fold_log()
        if pupils is not None:
            self._audit.note("replace", "roster", {"pupils": len(pupils)}, actor=reviewer)
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

    def asked(self, ids: Collection[str]) -> set[str]:
        """What pupils said in these rows, in whichever turn."""
        with self._database.read() as connection:
            rows = _rows(connection, ids).values()
        return {message.content for row in rows for message in row.messages if message.role == "user"}

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
            return _trace(connection, self.people, person)

    def withdraw(self, person: str, *, by: str, mentions: bool = False) -> tuple[str, ...]:
        """Empty every row of a person, and with `mentions` those that name them; none of it comes back. Returns their ids.

        The texts are overwritten in the database file too; in its log as soon as nobody reads (`Database.fold_log`). Raises
        BadInput, Conflict as `trace` does.
        """
        now = time.time()
        with self._database.begin() as connection:
            trace = _trace(connection, self.people, person)
            ids = (*trace.rows, *(trace.mentions if mentions else ()))
            for key in {self.people.key(name) for name in self.people.names_of(connection, person)[0]}:
                row = upsert(withdrawals).values(person=key, at=now, by=by)
                connection.execute(row.on_conflict_do_nothing())
            for some in _chunks(ids):
                connection.execute(table.update().where(table.c.id.in_(some)).values(emptied(by, now)))
        self._database.fold_log()
        self._audit.note("withdraw", trace.digest, {"rows": len(ids)}, actor=by)
        return ids

    def withdrawn(self) -> set[str]:
        """The ids of all rows that were ever withdrawn."""
        with self._database.read() as connection:
            return set(connection.execute(sa.select(table.c.id).where(table.c.withdrawn.is_not(None))).scalars())

    def gone(self) -> Gone:
        """Who has withdrawn: a question to be asked with authors' names."""
        with self._database.read() as connection:
            return self.people.gone(connection)

    # --- lineage -----------------------------------------------------------------------------------------------------------
    def record(self, digest: str, data: Dataset, preferences: Iterable[str] = ()) -> None:
        """Remember which rows stand in a dataset; to be called before anything is trained on it. Safe to repeat.

        preferences: ids of rows of the store that are learned from as preferences; those outside the dataset are a part too.
        """
        found = [
            {"dataset": digest, "example": example.id, "author": self.people.author(example.author), "part": part}
            for part, rows in (("train", data.train), ("held_out", data.held_out))
            for example in rows
        ]
        with self._database.begin() as connection:
            besides = _rows(connection, {*preferences} - {row["example"] for row in found}).values()
            found += [
                {"dataset": digest, "example": row.id, "author": self.people.author(row.author), "part": "preference"}
                for row in besides
            ]
            for some in _chunks(found):
                connection.execute(upsert(dataset_rows).on_conflict_do_nothing(), some)

    def rows_of(self, digest: str) -> dict[str, str]:
        """The ids of a dataset's rows, each with its part: train, held_out or preference."""
        query = sa.select(dataset_rows.c.example, dataset_rows.c.part).where(dataset_rows.c.dataset == digest)
        with self._database.read() as connection:
            return {row.example: row.part for row in connection.execute(query.order_by(dataset_rows.c.example))}

    def withdrawn_from(self, digest: str) -> Sequence[str]:
        """Rows of a dataset that were withdrawn since it was made, or whose author has: what learned them is not promoted."""
        theirs = dataset_rows.c.author.in_(sa.select(sa.literal("person-") + withdrawals.c.person))  # also of no row here
        with self._database.read() as connection:
            query = sa.select(dataset_rows.c.example).where(dataset_rows.c.dataset == digest, theirs)
            gone = self.withdrawn() | set(connection.execute(query).scalars())
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

    def __init__(self, connection: sa.Connection, ids: Collection[str], reviewer: str, gone: Gone) -> None:
        self._known = _rows(connection, ids)
        self._gone = gone
        self._reviewer, self._now = reviewer, time.time()
        self._new: dict[str, dict[str, Any]] = {}
        self._changed: dict[str, dict[str, Any]] = {}
        self._counts: Counter[str] = Counter()
        self._ids: set[str] = set()
        self._emptied: list[str] = []

    def take(self, row: Incoming, filled: dict[str, Any], review: Review | None) -> list[Fault]:
        before = self._known.get(row.id)
        if before is not None and before.withdrawn is None and self._gone(_author(before, filled)) and _same(before, row):
            self._empty(before)
            return []
        if (before is not None and before.withdrawn is not None) or (before is None and self._gone(filled["author"])):
            self._counts["withdrawn"] += 1
            return []
        if before is None:
            values = filled | _decision(review or "pending", self._reviewer, self._now)
            self._new[row.id] = values | {"imported": self._now, "withdrawn": None}
            self._known[row.id] = _row(self._new[row.id])
        elif not _same(before, row):
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

    def _empty(self, row: Row) -> None:
        """Leave of a row nothing but its id: its file says now whose it is."""
        values = emptied(self._reviewer, self._now)
        target = self._new if row.id in self._new else self._changed
        target[row.id] = target.get(row.id, {}) | values
        self._known[row.id] = replace(row, **values | {"messages": ()})
        self._ids.discard(row.id)
        self._counts["withdrawn"] += 1
        self._emptied.append(row.id)

    def write(self, connection: sa.Connection) -> None:
        for some in _chunks([*self._new.values()]):
            connection.execute(table.insert(), some)
        for id, change in self._changed.items():
            connection.execute(table.update().where(table.c.id == id).values(change))

    def done(self) -> Imported:
        states = Counter(self._known[id].reviewed for id in self._ids)
        unchanged, withdrawn = self._counts["unchanged"], self._counts["withdrawn"]
        new, changed = (len({*rows} - {*self._emptied}) for rows in (self._new, self._changed))
        review: dict[str, int] = {state: states[state] for state in REVIEWS}
        return Imported(new, changed, unchanged, withdrawn, review, tuple(self._emptied))


def _decision(state: Review, reviewer: str, now: float) -> dict[str, Any]:
    decided = state != "pending"
    return {"reviewed": state, "reviewer": reviewer if decided else "", "reviewed_at": now if decided else None}


def emptied(by: str, now: float) -> dict[str, Any]:
    """What a withdrawn row is set to: whatever holds a person's words, or says who or where they are."""
    return {
        "messages": [], "correction": None, "rating": None, "skill": "", "source": "", "author": "", "user_role": "",
        "class_name": "", "consent": False, "reviewed": "rejected", "reviewer": by, "reviewed_at": now, "origin": "",
        "extra": {}, "withdrawn": now,
    }  # fmt: skip


def _same(before: Row, row: Incoming) -> bool:
    """Whether a file's row is the one that bears its id already."""
    known: str = before.extra.get("content", content_of(before.messages, before.correction, before.rating))
    return known == row.content


def _author(before: Row, filled: dict[str, Any]) -> str:
    """Whose a row is once its file is taken over: a name given for a whole file replaces none."""
    declared = filled["extra"].get("author_declared", False)
    return before.author if not filled["author"] or (declared and before.author) else str(filled["author"])


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


# --- people -------------------------------------------------------------------------------------------------------------------


def _trace(connection: sa.Connection, people: People, person: str) -> Trace:
    names, in_roster = people.names_of(connection, person)
    keys = {people.key(name) for name in names}
    found = [_row(one) for one in connection.execute(sa.select(table).where(table.c.withdrawn.is_(None))).mappings()]
    everybody = [f"{one.first_name} {one.last_name}" for one in connection.execute(sa.select(roster))]
    query = sa.select(dataset_rows.c.example).where(dataset_rows.c.author.in_([f"person-{key}" for key in keys]))
    taught = set(connection.execute(query).scalars())
    own = {row.id for row in found if row.author and people.key(row.author) in keys}
    wanted = [_flat(name) for name in names if len(name.split()) > 1]
    mentions = {row.id for row in found if row.id not in own and any(name in _flat(_words(row)) for name in wanted)}
    earlier = taught - {row.id for row in found}
    known = in_roster or bool(own or earlier)
    similar = () if known else _similar(person, [*everybody, *{row.author for row in found if row.author}])
    return Trace(people.key(person), known, tuple(sorted(own)), tuple(sorted(earlier)), tuple(sorted(mentions)), similar)


def _flat(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _words(row: Row) -> str:
    extra = json.dumps(row.extra, ensure_ascii=False)
    return "\n".join([*(message.content for message in row.messages), row.correction or "", row.source, extra])


def _similar(person: str, names: Sequence[str]) -> tuple[str, ...]:
    import difflib

    return tuple(difflib.get_close_matches(person, sorted(set(names)), n=3, cutoff=0.75))
