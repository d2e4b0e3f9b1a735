"""A school's database of an earlier release: nothing of it is lost, and nobody loses what they could read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from appliance.accounts import People
from appliance.backup import Backups
from appliance.checkup.kept import migrations
from appliance.db import MIGRATIONS, Database
from appliance.errors import Conflict
from appliance.settings import Settings

OLD = {
    "users": [("u1", "Ms Green", "administrator", "hash", 0, 1.0)],
    "collections": [("c1", "school", 1.5), ("c2", "Year 7", 1.6)],
    "documents": [
        ("d1", "c1", "Plants", "plants.pdf", "pdf", "a" * 64, 900, 2, "", 2.0),
        ("d2", "c2", "Magnets", "magnets.docx", "docx", "b" * 64, 800, None, "a note", 3.0),
    ],
    "passages": [
        (1, "d1", 0, "p. 1", 1, "Green plants make sugar.", b"\x01" * 1536),
        (2, "d1", 1, "p. 2", 2, "They need light.", None),
        (5, "d2", 0, "Compass", None, "A compass needle is a magnet.", b"\x02" * 1536),
    ],
    "conversations": [("t1", "u1", "Plants", 4.0, 5.0)],
    "turns": [("r1", "t1", 1, "user", "Why green?", "done", "", "", None, "[]", "{}", None, 4.0)],
    "jobs": [("j1", "retrain", "heavy", "{}", "done", "{}", 1, 0, "u1", "", None, "{}", 4.0, 4.5, 4.6, 5.0)],
}


@pytest.fixture
def old(settings: Settings) -> Iterator[Database]:
    """A database as the release before shelves left it, with rows."""
    settings.database.parent.mkdir(parents=True)
    database = Database(settings.database)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with database.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
        for table, rows in OLD.items():
            for row in rows:
                marks = ", ".join("?" * len(row))
                connection.exec_driver_sql(f"INSERT INTO {table} VALUES ({marks})", row)
    yield database
    database.close()


def _all(database: Database, query: str) -> list[tuple[Any, ...]]:
    with database.read() as connection:
        return [tuple(row) for row in connection.execute(sa.text(query))]


def test_an_older_database_loses_nothing(old: Database) -> None:
    old.migrate()
    for table, rows in OLD.items():
        found = _all(old, f"SELECT * FROM {table} ORDER BY 1")
        assert [row[: len(rows[0])] for row in found] == rows, table
    old.check()


def test_who_could_read_a_collection_still_can(old: Database) -> None:
    old.migrate()
    assert _all(old, "SELECT * FROM collection_readers ORDER BY 1") == [("c1", "everyone", ""), ("c2", "everyone", "")]
    assert _all(old, "SELECT owner, subject, grade, threshold, moved FROM collections") == [("", "", "", None, None)] * 2


def test_what_is_new_about_old_documents_is_counted_and_named(old: Database) -> None:
    old.migrate()
    assert _all(old, "SELECT id, version, passages FROM documents ORDER BY id") == [("d1", 1, 2), ("d2", 1, 1)]
    made_by = _all(old, "SELECT id, embedder FROM passages ORDER BY id")
    assert made_by == [(1, "minilm-53aa5117"), (2, ""), (5, "minilm-53aa5117")]
    assert _all(old, "SELECT name, number FROM library_state") == [("content", 1)]
    assert _all(old, "SELECT * FROM document_paths") == [], "nobody knows where their files lay"


def test_no_passage_of_an_older_database_gets_an_id_a_second_time(old: Database) -> None:
    old.migrate()
    with old.begin() as connection:
        connection.execute(sa.text("DELETE FROM passages WHERE id = 5"))
        values = ("d2", 0, "", "new", "")
        connection.exec_driver_sql(
            "INSERT INTO passages (document, ordinal, place, text, embedder) VALUES (?, ?, ?, ?, ?)", values
        )
    assert _all(old, "SELECT max(id) FROM passages") == [(6,)]


def test_a_collection_takes_its_readers_its_watches_and_its_traces_along(old: Database) -> None:
    old.migrate()
    with old.begin() as connection:
        gone = ("g1", "c1", "Old", "old.pdf", 1, 4.0, "", "removed", "")
        columns = 'id, collection, title, file, version, at, "by", why, successor'
        connection.exec_driver_sql(f"INSERT INTO gone_documents ({columns}) VALUES (?,?,?,?,?,?,?,?,?)", gone)
        connection.exec_driver_sql(
            'INSERT INTO watches (id, folder, collection, "by", created, seen) VALUES (?,?,?,?,?,?)',
            ("w1", "/books", "c1", "", 4.0, json.dumps({})),
        )
        connection.exec_driver_sql("INSERT INTO document_paths (document, path) VALUES ('d1', '/books/plants.pdf')")
        connection.execute(sa.text("DELETE FROM collections WHERE id = 'c1'"))
    for table in ("gone_documents", "watches", "document_paths"):
        assert _all(old, f"SELECT count(*) FROM {table}") == [(0,)]
    assert _all(old, "SELECT collection FROM collection_readers") == [("c2",)]


# --- an upgrade that is undone -----------------------------------------------------------------------------------------
NEXT = """
import sqlalchemy as sa
from alembic import op

revision = "9001"
down_revision = "{before}"
only_adds = {only_adds}


def upgrade():
    op.create_table("of_the_next_release", sa.Column("id", sa.String(), primary_key=True))
    op.add_column("users", sa.Column("of_the_next_release", sa.Integer(), nullable=False, server_default="1"))
"""


def _next_release(settings: Settings, monkeypatch: pytest.MonkeyPatch, folder: Path, *, only_adds: bool) -> Database:
    """A database that a release with one more migration has opened and written to; then this release's again."""
    database = Database(settings.database)
    database.migrate()
    shutil.copytree(MIGRATIONS, folder / "migrations")
    head = max(Database.revisions())
    (folder / "migrations" / "versions" / "9001_next.py").write_text(NEXT.format(before=head, only_adds=only_adds))
    with monkeypatch.context() as newer:
        newer.setattr("appliance.db.MIGRATIONS", folder / "migrations")
        database.migrate()
    with database.begin() as connection:
        connection.exec_driver_sql("INSERT INTO library_state (name, number) VALUES ('written by the next', 7)")
    return database


def test_after_an_upgrade_that_was_undone_nothing_that_came_meanwhile_is_lost(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    database = _next_release(settings, monkeypatch, tmp_path, only_adds=True)
    database.migrate()
    People(database).add("Ms Green", "administrator")
    assert _all(database, "SELECT number FROM library_state WHERE name = 'written by the next'") == [(7,)]
    assert _all(database, "SELECT name, of_the_next_release FROM users") == [("Ms Green", 1)]
    assert migrations(database).ok
    database.close()
    if shutil.which("restic"):  # or the next upgrade, which begins with a proven backup, could not be made
        backups = Backups(settings)
        assert backups.verify(backups.create(lambda _told: None).id, lambda _told: None).rows > 0


def test_a_database_that_a_newer_release_changed_for_good_is_refused_in_a_sentence(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    database = _next_release(settings, monkeypatch, tmp_path, only_adds=False)
    with pytest.raises(Conflict, match="newer release"):
        database.migrate()
    assert not migrations(database).ok
    database.close()


def test_a_migration_that_says_that_it_only_adds_does(settings: Settings) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    scripts = ScriptDirectory.from_config(config)
    settings.database.parent.mkdir(parents=True)
    database, before = Database(settings.database), dict[str, dict[str, Any]]()
    for script in reversed(list(scripts.walk_revisions())):
        with database.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, script.revision)
            found = sa.inspect(connection)
            now = {table: {str(one["name"]): one for one in found.get_columns(table)} for table in found.get_table_names()}
        for table, columns in before.items() if getattr(script.module, "only_adds", False) else ():
            for name in columns:
                assert str(now[table][name]["type"]) == str(columns[name]["type"]), f"{script.revision}: {table}.{name}"
            for name in now[table].keys() - columns.keys():
                new = now[table][name]
                assert new["nullable"] or new["default"] is not None, f"{script.revision}: {table}.{name} has to be given"
        before = now
    database.close()
