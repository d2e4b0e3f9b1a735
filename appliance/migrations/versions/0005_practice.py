"""Teacher practice: scenes, rehearsals, mentors; curriculum standards; prompt programs. Only adds."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    _practice()
    _teaching()


def _practice() -> None:
    op.create_table(
        "scenarios",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("facts", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("author", sa.String(), nullable=False),
        sa.Column("approved_by", sa.String(), nullable=False),
        sa.Column("generated", sa.Boolean(), nullable=False),
        sa.Column("created", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id", "version"),
    )
    op.create_index(op.f("ix_scenarios_author"), "scenarios", ["author"], unique=False)
    op.create_index(op.f("ix_scenarios_state"), "scenarios", ["state"], unique=False)
    op.create_table(
        "rehearsals",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("user", sa.String(), nullable=False),
        sa.Column("scenario", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("facts", sa.JSON(), nullable=False),
        sa.Column("seed", sa.Integer(), nullable=False),
        sa.Column("leaf", sa.String(), nullable=False),
        sa.Column("after", sa.String(), nullable=False),
        sa.Column("created", sa.Float(), nullable=False),
        sa.Column("changed", sa.Float(), nullable=False),
        sa.Column("until", sa.Float(), nullable=False),
        sa.Column("finished", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(["user"], ["users.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_rehearsals_scenario"), "rehearsals", ["scenario"], unique=False)
    op.create_index(op.f("ix_rehearsals_user"), "rehearsals", ["user"], unique=False)
    op.create_table(
        "rehearsal_turns",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("rehearsal", sa.String(), nullable=False),
        sa.Column("parent", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("facts", sa.JSON(), nullable=False),
        sa.Column("room", sa.JSON(), nullable=False),
        sa.Column("created", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["rehearsal"], ["rehearsals.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_rehearsal_turns_rehearsal"), "rehearsal_turns", ["rehearsal"], unique=False)
    op.create_table(
        "mentors",
        sa.Column("user", sa.String(), nullable=False),
        sa.Column("mentor", sa.String(), nullable=False),
        sa.Column("since", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["mentor"], ["users.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["user"], ["users.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("user", "mentor"),
    )
    op.create_index(op.f("ix_mentors_mentor"), "mentors", ["mentor"], unique=False)
    op.create_table(
        "mentor_notes",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("turn", sa.String(), nullable=False),
        sa.Column("mentor", sa.String(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("better", sa.Text(), nullable=False),
        sa.Column("example", sa.String(), nullable=False),
        sa.Column("created", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["turn"], ["rehearsal_turns.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_mentor_notes_turn"), "mentor_notes", ["turn"], unique=False)
    # ### end Alembic commands ###


def _teaching() -> None:
    op.create_table(
        "standards",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("grade", sa.String(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_standards_subject"), "standards", ["subject"], unique=False)
    op.create_table(
        "standard_tags",
        sa.Column("standard", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("thing", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["standard"], ["standards.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("standard", "kind", "thing"),
    )
    op.create_index(op.f("ix_standard_tags_thing"), "standard_tags", ["thing"], unique=False)
    op.create_table(
        "programs",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("module", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("grade", sa.String(), nullable=False),
        sa.Column("facts", sa.JSON(), nullable=False),
        sa.Column("report", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("maker", sa.String(), nullable=False),
        sa.Column("created", sa.Float(), nullable=False),
        sa.Column("promoted", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_programs_module"), "programs", ["module"], unique=False)
