"""The whole database schema on one page.

SQLAlchemy Core tables; times are UTC seconds since 1970 (REAL), ids are random text made by `new_id`. Vectors are kept here,
as raw little-endian float32, because an index file can be damaged without noticing and this database cannot: every index is a
cache of these rows.
"""

from __future__ import annotations

import secrets

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData()


def new_id() -> str:
    """A random id of 80 bits: 16 letters and digits, not guessable, safe in a URL and a file name."""
    alphabet = "0123456789abcdefghjkmnpqrstvwxyz"
    return "".join(secrets.choice(alphabet) for _ in range(16))


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

collections = Table(
    "collections",
    metadata,
    Column("id", String, primary_key=True),
    Column("name", String, nullable=False, unique=True),
    Column("created", Float, nullable=False),
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
    UniqueConstraint("collection", "sha256"),
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
    sqlite_autoincrement=True,
)

conversations = Table(
    "conversations",
    metadata,
    Column("id", String, primary_key=True),
    _owner("user", "users.id"),
    Column("title", String, nullable=False),
    Column("created", Float, nullable=False),
    Column("updated", Float, nullable=False),
)

# One question or one answer. `state` of an answer: streaming, done, stopped, failed.
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
    UniqueConstraint("conversation", "ordinal"),
)
