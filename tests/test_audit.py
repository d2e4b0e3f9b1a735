"""The record of who did what: it grows, it is chained, and a change to it shows."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from appliance.audit import Audit
from appliance.db import Database
from appliance.errors import ApplianceError
from appliance.tables import audit


@pytest.fixture
def record(tmp_path: Path) -> Audit:
    database = Database(tmp_path / "box.sqlite3")
    database.migrate()
    return Audit(database)


def test_what_was_done_is_found_again_in_order(record: Audit) -> None:
    record.note("promote", "model-a", {"accept": "tried in class"}, actor="anna")
    record.note("remove", "model-b", actor="ben")
    assert [(entry.actor, entry.verb, entry.thing) for entry in record.entries()] == [
        ("anna", "promote", "model-a"),
        ("ben", "remove", "model-b"),
    ]
    assert record.entries(thing="model-a")[0].facts == {"accept": "tried in class"}
    assert [entry.verb for entry in record.entries(newest=1)] == ["remove"]
    assert record.verify() == 2


def test_without_a_name_the_unix_name_stands_there(record: Audit) -> None:
    assert record.note("promote", "model-a").actor


@pytest.mark.parametrize(
    "change",
    [
        audit.update().where(audit.c.number == 2).values(actor="somebody else"),
        audit.update().where(audit.c.number == 2).values(facts={"n": 7}),
        audit.delete().where(audit.c.number == 2),
        audit.delete().where(audit.c.number == 4),
        audit.delete().where(audit.c.number > 1),
        audit.delete(),
    ],
)
def test_a_changed_record_is_found(record: Audit, change: sa.sql.dml.UpdateBase) -> None:
    for number in range(4):
        record.note("import", f"thing-{number}", {"n": number})
    with record._database.begin() as connection:
        connection.execute(change)
    with pytest.raises(ApplianceError, match=r"audit record was changed: row [1-4]"):
        record.verify()
