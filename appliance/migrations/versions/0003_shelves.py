"""Collections have owners and readers; documents have versions and leave a trace; files are added by jobs and from folders.

Only adds. What was there before this release could be read by everyone who may read the library, and still can.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    _columns()
    _tables()
    connection = op.get_bind()
    connection.execute(
        sa.text("INSERT INTO collection_readers (collection, kind, name) SELECT id, 'everyone', '' FROM collections")
    )
    connection.execute(
        sa.text("UPDATE documents SET passages = (SELECT count(*) FROM passages WHERE passages.document = documents.id)")
    )
    # Every vector so far was made by the one embedder there was; its precision was not noted, and does not matter.
    connection.execute(sa.text("UPDATE passages SET embedder = 'minilm-53aa5117' WHERE vector IS NOT NULL"))
    connection.execute(sa.text("INSERT INTO library_state (name, number) VALUES ('content', 1)"))


def _columns() -> None:
    for table in ("collections", "documents"):
        for name in ("owner", "subject", "grade"):
            op.add_column(table, sa.Column(name, sa.String(), nullable=False, server_default=""))
    op.add_column("collections", sa.Column("threshold", sa.Float(), nullable=True))
    op.add_column("collections", sa.Column("moved", sa.Float(), nullable=True))
    op.add_column("documents", sa.Column("version", sa.Integer(), nullable=False, server_default="1"))
    op.add_column("documents", sa.Column("passages", sa.Integer(), nullable=True))
    op.add_column("passages", sa.Column("embedder", sa.String(), nullable=False, server_default=""))
    op.create_index(op.f("ix_passages_embedder"), "passages", ["embedder"], unique=False)


def _tables() -> None:
    op.create_table(
        "collection_readers",
        sa.Column("collection", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["collection"], ["collections.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("collection", "kind", "name"),
    )
    op.create_table(
        "document_paths",
        sa.Column("document", sa.String(), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["document"], ["documents.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("document", "path"),
    )
    op.create_index(op.f("ix_document_paths_path"), "document_paths", ["path"], unique=False)
    op.create_table(
        "gone_documents",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("collection", sa.String(), nullable=False),
        sa.Column("title", sa.String(), nullable=False),
        sa.Column("file", sa.String(), nullable=False),
        sa.Column("first_passage", sa.Integer(), nullable=True),
        sa.Column("last_passage", sa.Integer(), nullable=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("by", sa.String(), nullable=False),
        sa.Column("why", sa.String(), nullable=False),
        sa.Column("successor", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["collection"], ["collections.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_gone_documents_collection"), "gone_documents", ["collection"], unique=False)
    op.create_index("ix_gone_documents_passages", "gone_documents", ["first_passage", "last_passage"], unique=False)
    op.create_table(
        "library_state",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "ingest_files",
        sa.Column("job", sa.String(), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=True),
        sa.Column("mtime", sa.Float(), nullable=True),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("document", sa.String(), nullable=True),
        sa.Column("pages", sa.Integer(), nullable=True),
        sa.Column("passages", sa.Integer(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.Column("note", sa.String(), nullable=False),
        sa.Column("error", sa.JSON(), nullable=True),
        sa.ForeignKeyConstraint(["job"], ["jobs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job", "path"),
    )
    op.create_table(
        "watches",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("folder", sa.String(), nullable=False),
        sa.Column("collection", sa.String(), nullable=False),
        sa.Column("by", sa.String(), nullable=False),
        sa.Column("created", sa.Float(), nullable=False),
        sa.Column("seen", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["collection"], ["collections.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_watches_collection"), "watches", ["collection"], unique=False)
    op.create_table(
        "retrieval_checks",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("collection", sa.String(), nullable=False),
        sa.Column("questions_sha256", sa.String(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("embedder", sa.String(), nullable=False),
        sa.Column("passages", sa.Integer(), nullable=False),
        sa.Column("facts", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_retrieval_checks_collection"), "retrieval_checks", ["collection"], unique=False)
