"""Pupils, teachers and their classes; branches of a talk; feedback; what a safeguarding lead sees. Only adds."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from appliance.tables import folded

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    _columns()
    _tables()
    # A talk was one line of turns: each follows the one before it.
    before = (
        "SELECT b.id FROM turns AS b WHERE b.conversation = turns.conversation AND b.ordinal < turns.ordinal "
        "ORDER BY b.ordinal DESC LIMIT 1"
    )
    op.get_bind().execute(sa.text(f"UPDATE turns SET parent = coalesce(({before}), '')"))


def _columns() -> None:
    for name in ("kind", "class_id", "about"):
        op.add_column("sessions", sa.Column(name, sa.String(), nullable=False, server_default=""))
    op.create_index(op.f("ix_sessions_class_id"), "sessions", ["class_id"], unique=False)
    for name in ("folder", "leaf", "class_id"):
        op.add_column("conversations", sa.Column(name, sa.String(), nullable=False, server_default=""))
    op.add_column("conversations", sa.Column("deleted", sa.Float(), nullable=True))
    op.create_index(op.f("ix_conversations_deleted"), "conversations", ["deleted"], unique=False)
    op.add_column("turns", sa.Column("parent", sa.String(), nullable=False, server_default=""))
    for name in ("full_name", "language", "external", "totp"):
        op.add_column("users", sa.Column(name, sa.String(), nullable=False, server_default=""))
    op.add_column("users", sa.Column("preferences", sa.JSON(), nullable=False, server_default="{}"))
    op.add_column("users", sa.Column("temporary", sa.Boolean(), nullable=False, server_default="0"))
    op.add_column("users", sa.Column("source", sa.String(), nullable=False, server_default="local"))
    op.add_column("users", sa.Column("totp_step", sa.Integer(), nullable=False, server_default="0"))
    op.create_index(op.f("ix_users_external"), "users", ["external"], unique=False)
    op.add_column("users", sa.Column("folded", sa.String(), nullable=False, server_default=""))
    op.create_index(op.f("ix_users_folded"), "users", ["folded"], unique=False)
    users = sa.table("users", sa.column("id"), sa.column("name"), sa.column("folded"))
    for row in op.get_bind().execute(sa.select(users.c.id, users.c.name)).all():
        op.get_bind().execute(sa.update(users).where(users.c.id == row.id).values(folded=folded(row.name)))


def _tables() -> None:
    op.create_table(
        "recovery_codes",
        sa.Column("hash", sa.String(), nullable=False),
        sa.Column("user", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["user"], ["users.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("hash"),
    )
    op.create_index(op.f("ix_recovery_codes_user"), "recovery_codes", ["user"], unique=False)
    op.create_table(
        "classes",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("year", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("grade", sa.String(), nullable=False),
        sa.Column("method", sa.String(), nullable=False),
        sa.Column("strict", sa.Boolean(), nullable=False),
        sa.Column("help_level", sa.String(), nullable=False),
        sa.Column("lesson", sa.String(), nullable=False),
        sa.Column("open", sa.Boolean(), nullable=False),
        sa.Column("until", sa.Float(), nullable=True),
        sa.Column("exam", sa.Boolean(), nullable=False),
        sa.Column("code", sa.String(), nullable=False),
        sa.Column("code_until", sa.Float(), nullable=True),
        sa.Column("external", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created", sa.Float(), nullable=False),
        sa.Column("archived", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name"),
    )
    op.create_index(op.f("ix_classes_code"), "classes", ["code"], unique=False)
    op.create_index(op.f("ix_classes_external"), "classes", ["external"], unique=False)
    op.create_table(
        "flags",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("user", sa.String(), nullable=False),
        sa.Column("class_id", sa.String(), nullable=False),
        sa.Column("conversation", sa.String(), nullable=False),
        sa.Column("category", sa.String(), nullable=False),
        sa.Column("rule", sa.String(), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("by", sa.String(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("changed", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_flags_at"), "flags", ["at"], unique=False)
    op.create_index(op.f("ix_flags_state"), "flags", ["state"], unique=False)
    op.create_index(op.f("ix_flags_user"), "flags", ["user"], unique=False)
    op.create_table(
        "quotas",
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("window", sa.String(), nullable=False),
        sa.Column("most", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("kind", "name", "window"),
    )
    op.create_table(
        "safety_counts",
        sa.Column("day", sa.String(), nullable=False),
        sa.Column("class_id", sa.String(), nullable=False),
        sa.Column("category", sa.String(), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("day", "class_id", "category", "action"),
    )
    op.create_table(
        "class_collections",
        sa.Column("class_id", sa.String(), nullable=False),
        sa.Column("collection", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["class_id"], ["classes.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["collection"], ["collections.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("class_id", "collection"),
    )
    op.create_table(
        "memberships",
        sa.Column("class_id", sa.String(), nullable=False),
        sa.Column("user", sa.String(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["class_id"], ["classes.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["user"], ["users.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("class_id", "user"),
    )
    op.create_index(op.f("ix_memberships_user"), "memberships", ["user"], unique=False)
    op.create_table(
        "usage",
        sa.Column("user", sa.String(), nullable=False),
        sa.Column("hour", sa.Integer(), nullable=False),
        sa.Column("class_id", sa.String(), nullable=False),
        sa.Column("questions", sa.Integer(), nullable=False),
        sa.Column("tokens", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["user"], ["users.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("user", "hour", "class_id"),
    )
    op.create_table(
        "feedback",
        sa.Column("turn", sa.String(), nullable=False),
        sa.Column("user", sa.String(), nullable=False),
        sa.Column("rating", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("words", sa.String(), nullable=False),
        sa.Column("better", sa.Text(), nullable=False),
        sa.Column("consent", sa.Boolean(), nullable=False),
        sa.Column("example", sa.String(), nullable=False),
        sa.Column("created", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["turn"], ["turns.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["user"], ["users.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("turn", "user"),
    )
    op.create_index(op.f("ix_feedback_user"), "feedback", ["user"], unique=False)
