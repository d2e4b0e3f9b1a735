"""The whole database schema on one page.

SQLAlchemy Core tables; times are UTC seconds since 1970 (REAL), ids are random text made by `new_id`. Vectors are kept here,
as raw little-endian float32, because an index file can be damaged without noticing and this database cannot: every index is a
cache of these rows.
"""

from __future__ import annotations

import secrets
import unicodedata
from typing import Any

from sqlalchemy import (  # isort: skip
    JSON, Boolean, Column, Float, ForeignKey, Index, Integer, LargeBinary, MetaData, String, Table, Text, UniqueConstraint,
)  # fmt: skip

metadata = MetaData()


def new_id() -> str:
    """A random id of 80 bits: 16 letters and digits, not guessable, safe in a URL and a file name."""
    alphabet = "0123456789abcdefghjkmnpqrstvwxyz"
    return "".join(secrets.choice(alphabet) for _ in range(16))


def folded(name: str) -> str:
    """What two names share that are the same to a reader: case, width and accents however they are encoded."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def _folded_name(context: Any) -> str:
    return folded(context.get_current_parameters()["name"])


def _owner(name: str, target: str) -> Column[str]:
    return Column(name, String, ForeignKey(target, ondelete="CASCADE"), nullable=False, index=True)


users = Table(
    "users",
    metadata,
    Column("id", String, primary_key=True),
    Column("name", String, nullable=False, unique=True),
    Column("role", String, nullable=False),
    Column("password_hash", String, nullable=False),
    Column("disabled", Boolean, nullable=False, default=False),
    Column("created", Float, nullable=False),
    Column("full_name", String, nullable=False, default=""),
    Column("language", String, nullable=False, default=""),  # "" is the browser's
    Column("preferences", JSON, nullable=False, default=dict),  # text size, spacing, which notices were read
    Column("temporary", Boolean, nullable=False, default=False),  # the password was given by somebody else: change it first
    Column("source", String, nullable=False, default="local"),  # local, ldap, oidc: who says that the password is right
    Column("external", String, nullable=False, default="", index=True),  # the source's or the register's id
    Column("totp", String, nullable=False, default=""),  # base32 secret; "" without a second step
    Column("totp_step", Integer, nullable=False, default=0),  # the last time step that was used: each code works once
    Column("folded", String, nullable=False, default=_folded_name, index=True),  # `name`, as it is looked for
)

# What stands in for the second step of a person who has lost the phone: digests of random codes, each used once.
recovery_codes = Table(
    "recovery_codes",
    metadata,
    Column("hash", String, primary_key=True),
    _owner("user", "users.id"),
)

# `code`: the digest of the sign-in code for young pupils. `open`: pupils may ask, and `until` when.
classes = Table(
    "classes",
    metadata,
    Column("id", String, primary_key=True),
    Column("name", String, nullable=False, unique=True),
    Column("year", String, nullable=False, default=""),
    Column("subject", String, nullable=False, default=""),
    Column("grade", String, nullable=False, default=""),
    Column("method", String, nullable=False, default=""),
    Column("strict", Boolean, nullable=False, default=False),  # from the documents or not at all
    Column("help_level", String, nullable=False, default="hints"),  # hints, examples, full
    Column("lesson", String, nullable=False, default=""),  # what today is about, in the teacher's words
    Column("open", Boolean, nullable=False, default=True),
    Column("until", Float),
    Column("exam", Boolean, nullable=False, default=False),  # nobody of the class is answered anywhere
    Column("code", String, nullable=False, default="", index=True),
    Column("code_until", Float),
    Column("external", String, nullable=False, default="", index=True),
    Column("version", Integer, nullable=False, default=1),  # goes up with each change: two editors notice each other
    Column("created", Float, nullable=False),
    Column("archived", Float),
)

# Who belongs to a class: `role` is pupil or teacher.
memberships = Table(
    "memberships",
    metadata,
    Column("class_id", String, ForeignKey("classes.id", ondelete="CASCADE"), primary_key=True),
    Column("user", String, ForeignKey("users.id", ondelete="CASCADE"), primary_key=True, index=True),
    Column("role", String, nullable=False),
)

# What a class's answers are drawn from; none: whatever the pupil may read.
class_collections = Table(
    "class_collections",
    metadata,
    Column("class_id", String, ForeignKey("classes.id", ondelete="CASCADE"), primary_key=True),
    Column("collection", String, ForeignKey("collections.id", ondelete="CASCADE"), primary_key=True),
)

# How much may be asked. `kind`: role, class, user; `window`: hour, day, week; `most`: questions in it.
quotas = Table(
    "quotas",
    metadata,
    Column("kind", String, primary_key=True),
    Column("name", String, primary_key=True),
    Column("window", String, primary_key=True),
    Column("most", Integer, nullable=False),
)

# What was asked, hour by hour: numbers without words.
usage = Table(
    "usage",
    metadata,
    Column("user", String, ForeignKey("users.id", ondelete="CASCADE"), primary_key=True),
    Column("hour", Integer, primary_key=True),  # hours since 1970
    Column("class_id", String, primary_key=True, default=""),
    Column("questions", Integer, nullable=False, default=0),
    Column("tokens", Integer, nullable=False, default=0),
)

# A one-time code that makes the first administrator; only its hash is kept.
setup_codes = Table(
    "setup_codes",
    metadata,
    Column("hash", String, primary_key=True),
    Column("created", Float, nullable=False),
    Column("expires", Float, nullable=False),
)

sessions = Table(
    "sessions",
    metadata,
    Column("hash", String, primary_key=True),
    _owner("user", "users.id"),
    Column("csrf", String, nullable=False),
    Column("created", Float, nullable=False),
    Column("expires", Float, nullable=False),
    Column("kind", String, nullable=False, default=""),  # "", or step: the second step is missing; or class: by its code
    Column("class_id", String, nullable=False, default="", index=True),  # whose code it was
    Column("about", String, nullable=False, default=""),  # browser and system, for the person to know it by
)

# Failed sign-ins and setup attempts: the only thing that slows a guesser down, so it survives a restart.
attempts = Table(
    "attempts",
    metadata,
    Column("key", String, primary_key=True),
    Column("failures", Integer, nullable=False),
    Column("last", Float, nullable=False),
)

keys = Table(
    "keys",
    metadata,
    Column("id", String, primary_key=True),
    _owner("user", "users.id"),
    Column("name", String, nullable=False),
    Column("hash", String, nullable=False, unique=True),
    Column("scope", String, nullable=False),
    Column("created", Float, nullable=False),
    Column("used", Float),
    Column("revoked", Float),
)

# `owner` and the names of readers are ids, roles and classes: who they are is known to `accounts` alone.
collections = Table(
    "collections",
    metadata,
    Column("id", String, primary_key=True),
    Column("name", String, nullable=False, unique=True),
    Column("created", Float, nullable=False),
    Column("owner", String, nullable=False, default=""),
    Column("subject", String, nullable=False, default=""),
    Column("grade", String, nullable=False, default=""),
    Column("threshold", Float),  # the evidence that an answer needs here; null: the usual one
    Column("moved", Float),  # when a document last came or went by a move
)

# Who may read a collection beside its owner. `kind`: everyone (of the school), role, class, user; any other lets nobody in.
collection_readers = Table(
    "collection_readers",
    metadata,
    Column("collection", String, ForeignKey("collections.id", ondelete="CASCADE"), primary_key=True),
    Column("kind", String, primary_key=True),
    Column("name", String, primary_key=True, default=""),
)

documents = Table(
    "documents",
    metadata,
    Column("id", String, primary_key=True),
    _owner("collection", "collections.id"),
    Column("title", String, nullable=False),
    Column("file", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("sha256", String, nullable=False),
    Column("bytes", Integer, nullable=False),
    Column("pages", Integer),
    Column("note", String, nullable=False, default=""),
    Column("added", Float, nullable=False),
    Column("owner", String, nullable=False, default=""),
    Column("subject", String, nullable=False, default=""),
    Column("grade", String, nullable=False, default=""),
    Column("version", Integer, nullable=False, default=1),
    Column("passages", Integer),  # how many; null until they are counted
    UniqueConstraint("collection", "sha256"),
)

# The files that a document came as: real paths, as text. None: it is older than this table. See `knowledge.sources`.
document_paths = Table(
    "document_paths",
    metadata,
    Column("document", String, ForeignKey("documents.id", ondelete="CASCADE"), primary_key=True),
    Column("path", String, primary_key=True, index=True),
)

# What a removed or replaced document leaves: enough for an old link to say what became of it, and nothing of its text. The
# ids of a document's passages follow each other. `successor`: the id of the document that took its place, or "".
gone_documents = Table(
    "gone_documents",
    metadata,
    Column("id", String, primary_key=True),
    _owner("collection", "collections.id"),
    Column("title", String, nullable=False),
    Column("file", String, nullable=False),
    Column("first_passage", Integer),
    Column("last_passage", Integer),
    Column("version", Integer, nullable=False),
    Column("at", Float, nullable=False),
    Column("by", String, nullable=False, default=""),
    Column("why", String, nullable=False),  # removed, replaced
    Column("successor", String, nullable=False, default=""),
    Index("ix_gone_documents_passages", "first_passage", "last_passage"),
)

passages = Table(
    "passages",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    _owner("document", "documents.id"),
    Column("ordinal", Integer, nullable=False),
    Column("place", String, nullable=False),
    Column("page", Integer),
    Column("text", Text, nullable=False),
    Column("vector", LargeBinary),
    Column("embedder", String, nullable=False, default="", index=True),  # what made the vector; "" without one
    sqlite_autoincrement=True,
)

# Numbers that tell whether something changed. `content`: goes up with every change of what an index of the passages holds.
library_state = Table(
    "library_state",
    metadata,
    Column("name", String, primary_key=True),
    Column("number", Integer, nullable=False),
)

# What became of each file of a job that adds many: by it a job that was broken off goes on where it was.
ingest_files = Table(
    "ingest_files",
    metadata,
    Column("job", String, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("path", String, primary_key=True),
    Column("size", Integer),
    Column("mtime", Float),
    Column("state", String, nullable=False),
    Column("document", String),
    Column("pages", Integer),
    Column("passages", Integer, nullable=False, default=0),
    Column("seconds", Float, nullable=False, default=0.0),
    Column("note", String, nullable=False, default=""),
    Column("error", JSON),  # code, message, hint
)

# Folders whose files are added by themselves. `seen`: what stood there at the last look.
watches = Table(
    "watches",
    metadata,
    Column("id", String, primary_key=True),
    Column("folder", String, nullable=False),
    _owner("collection", "collections.id"),
    Column("by", String, nullable=False, default=""),
    Column("created", Float, nullable=False),
    Column("seen", JSON, nullable=False, default=dict),
)

# What a check of the search found. Figures and a digest of the questions: the questions may be a pupil's.
retrieval_checks = Table(
    "retrieval_checks",
    metadata,
    Column("id", String, primary_key=True),
    Column("collection", String, nullable=False, default="", index=True),
    Column("questions_sha256", String, nullable=False),
    Column("at", Float, nullable=False),
    Column("embedder", String, nullable=False, default=""),
    Column("passages", Integer, nullable=False),
    Column("facts", JSON, nullable=False, default=dict),
)

conversations = Table(
    "conversations",
    metadata,
    Column("id", String, primary_key=True),
    _owner("user", "users.id"),
    Column("title", String, nullable=False),
    Column("created", Float, nullable=False),
    Column("updated", Float, nullable=False),
    Column("folder", String, nullable=False, default=""),
    Column("leaf", String, nullable=False, default=""),  # the last turn of the branch that is shown; "": the newest turn
    Column("class_id", String, nullable=False, default=""),  # for which lesson it was begun
    Column("deleted", Float, index=True),  # when; it can be brought back for a while, then it goes for good
)

# One question or one answer. `state` of an answer: streaming, done, stopped, failed; of either: blocked, where it was judged
# unsafe. `parent`: the turn it follows, so that an edited question or a second answer is a branch; "": the first of a talk.
turns = Table(
    "turns",
    metadata,
    Column("id", String, primary_key=True),
    _owner("conversation", "conversations.id"),
    Column("ordinal", Integer, nullable=False),
    Column("role", String, nullable=False),
    Column("text", Text, nullable=False),
    Column("state", String, nullable=False),
    Column("model", String, nullable=False, default=""),
    Column("handler", String, nullable=False, default=""),
    Column("covered", Boolean),
    Column("passages", JSON, nullable=False, default=list),
    Column("facts", JSON, nullable=False, default=dict),  # token counts, what led, why it ended
    Column("seconds", Float),
    Column("created", Float, nullable=False),
    Column("parent", String, nullable=False, default=""),
    UniqueConstraint("conversation", "ordinal"),
)

# What a reader thought of an answer. `better` and `consent` are staff's: a pupil's thumb is never a consent to training.
feedback = Table(
    "feedback",
    metadata,
    Column("turn", String, ForeignKey("turns.id", ondelete="CASCADE"), primary_key=True),
    Column("user", String, ForeignKey("users.id", ondelete="CASCADE"), primary_key=True, index=True),
    Column("rating", String, nullable=False, default=""),  # up, down
    Column("reason", String, nullable=False, default=""),  # one of a few
    Column("words", String, nullable=False, default=""),  # and what they say of it themselves
    Column("better", Text, nullable=False, default=""),
    Column("consent", Boolean, nullable=False, default=False),
    Column("example", String, nullable=False, default=""),  # the row of `examples` that was made of it
    Column("created", Float, nullable=False),
)

# What a safeguarding lead has to see: the only place where flagged words are kept apart from the conversation itself.
flags = Table(
    "flags",
    metadata,
    Column("id", String, primary_key=True),
    Column("at", Float, nullable=False, index=True),
    Column("user", String, nullable=False, index=True),
    Column("class_id", String, nullable=False, default=""),
    Column("conversation", String, nullable=False, default=""),
    Column("category", String, nullable=False),
    Column("rule", String, nullable=False),
    Column("action", String, nullable=False),
    Column("text", Text, nullable=False),
    Column("state", String, nullable=False, default="new", index=True),  # new, seen, closed
    Column("by", String, nullable=False, default=""),
    Column("note", Text, nullable=False, default=""),
    Column("changed", Float),
)

# How often what happened, a day and a class at a time: what teachers may see of it, without words or names.
safety_counts = Table(
    "safety_counts",
    metadata,
    Column("day", String, primary_key=True),
    Column("class_id", String, primary_key=True),
    Column("category", String, primary_key=True),
    Column("action", String, primary_key=True),
    Column("number", Integer, nullable=False, default=0),
)

# --- what models are tuned on ---------------------------------------------------------------------------------------------

# One tutoring example as it was imported or given in class, and what was decided about it. `messages` is [[role, text], ...];
# `correction` is what the tutor's last turn should have been. The text of a withdrawn row is emptied; its id stays, so that
# the same row does not come back with the next import.
examples = Table(
    "examples",
    metadata,
    Column("id", String, primary_key=True),
    Column("messages", JSON, nullable=False),
    Column("correction", Text),
    Column("rating", String),  # up, down, none given
    Column("subject", String, nullable=False, default=""),
    Column("grade", String, nullable=False, default=""),
    Column("skill", String, nullable=False, default=""),
    Column("source", String, nullable=False, default=""),  # where it comes from, in the words of who gave it
    Column("licence", String, nullable=False, default=""),
    Column("author", String, nullable=False, default="", index=True),
    Column("user_role", String, nullable=False, default=""),
    Column("class_name", String, nullable=False, default=""),
    Column("consent", Boolean),  # null: nobody was asked
    Column("reviewed", String, nullable=False, default="pending", index=True),  # pending, approved, rejected
    Column("reviewer", String, nullable=False, default=""),
    Column("reviewed_at", Float),
    Column("origin", String, nullable=False, default=""),  # file and line, or the conversation's turn
    Column("extra", JSON, nullable=False, default=dict),
    Column("created", Float, nullable=False),
    Column("imported", Float, nullable=False),
    Column("withdrawn", Float),
)

# People whose data may not be used, whatever is imported later. `person` is a digest of an author's name or a pupil's id or
# full name: who looks through the disk finds nobody.
withdrawals = Table(
    "withdrawals",
    metadata,
    Column("person", String, primary_key=True),
    Column("at", Float, nullable=False),
    Column("by", String, nullable=False, default=""),
)

# The names of this school's pupils: only used to find them in text and take them out.
roster = Table(
    "roster",
    metadata,
    Column("pupil", String, primary_key=True),
    Column("first_name", String, nullable=False),
    Column("last_name", String, nullable=False),
    Column("class_name", String, nullable=False, default=""),
)

# Which rows stood in which dataset, for as long as a model made of it may exist: from a model to its rows and back.
dataset_rows = Table(
    "dataset_rows",
    metadata,
    Column("dataset", String, primary_key=True),  # the card's digest
    Column("example", String, primary_key=True, index=True),
    Column("author", String, nullable=False, default="", index=True),
    Column("part", String, nullable=False),  # train, held_out, preference
)

# --- long work and the record of it ----------------------------------------------------------------------------------------

# A job outlives the process that does it. `state`: queued, running, done, failed, cancelled. A running one whose `beat` is old
# was broken off and is taken up again.
jobs = Table(
    "jobs",
    metadata,
    Column("id", String, primary_key=True),
    Column("kind", String, nullable=False),
    Column("lane", String, nullable=False),  # heavy, light: one of each runs at a time
    Column("payload", JSON, nullable=False, default=dict),
    Column("state", String, nullable=False, index=True),
    Column("progress", JSON, nullable=False, default=dict),
    Column("attempts", Integer, nullable=False, default=0),
    Column("cancel", Boolean, nullable=False, default=False),
    Column("owner", String, nullable=False, default=""),
    Column("worker", String, nullable=False, default=""),
    Column("error", JSON),  # code, message, hint
    Column("result", JSON),
    Column("created", Float, nullable=False),
    Column("started", Float),
    Column("beat", Float),
    Column("finished", Float),
)

# How the box fared, an hour at a time: sums of the whole box, without words or names. `name`: see `figures`.
figures = Table(
    "figures",
    metadata,
    Column("name", String, primary_key=True),
    Column("hour", Integer, primary_key=True),  # hours since 1970
    Column("number", Integer, nullable=False),
    Column("total", Float, nullable=False),
    Column("most", Float, nullable=False),
)

# Append-only: each row's hash covers the one before it. Ids and digests, never words.
audit = Table(
    "audit",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False),
    Column("actor", String, nullable=False),
    Column("verb", String, nullable=False),
    Column("thing", String, nullable=False),
    Column("facts", JSON, nullable=False, default=dict),
    Column("previous", String, nullable=False),
    Column("hash", String, nullable=False, unique=True),
    sqlite_autoincrement=True,
)
