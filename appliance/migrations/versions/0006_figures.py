"""How the box fared, hour by hour, in numbers. Only adds."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
only_adds = True  # the release before it may open the database again, where an upgrade is undone


def upgrade() -> None:
    op.create_table(
        "figures",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("hour", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("total", sa.Float(), nullable=False),
        sa.Column("most", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("name", "hour"),
    )
