"""A file of examples that does not come through the store is held to the store's rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from appliance.db import Database
from appliance.errors import BadInput
from appliance.redact import Pupil, Roster
from appliance.tuning import dataset
from appliance.tuning.screening import Screen
from appliance.tuning.store import ExampleStore
from tests.tuning.conftest import talk


def row(number: int, **more: Any) -> dict[str, Any]:
    return {"id": f"t{number}", "messages": talk(number), **more}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), "utf-8")
    return path


def test_withdrawn_people_refused_consent_and_names_stay_out(database: Database, tmp_path: Path) -> None:
    store = ExampleStore(database)
    Roster(database).replace([Pupil("p7", "Thabo", "Mokwenela", "6A")])
    store.import_rows(write(tmp_path / "old.jsonl", [row(1, author="Ann Other"), row(2, author="B. Body")]), reviewer="test")
    store.withdraw("Ann Other", by="test")
    named = talk(5)
    named[0]["content"] = "I am Thabo Mokwenela, and how do I measure the map?"
    rows = [
        row(1),  # of Ann, though the file no longer says so: its id was withdrawn
        row(3, author="Ann  OTHER"),
        row(4, consent=False),
        {"id": "t5", "messages": named, "author": "Thabo Mokwenela", "note": "Thabo Mokwenela wrote this"},
        row(6, author="B. Body"),
    ]
    screen = Screen(database)
    found = screen.read(write(tmp_path / "new.jsonl", rows))
    assert [one.id for one in found] == ["t5", "t6"]
    assert "[name]" in found[0].messages[0].content
    text = json.dumps([one.row() for one in found])
    assert "Thabo" not in text and "Mokwenela" not in text and "Body" not in text
    assert found[1].author.startswith("person-") and not any(one.extra for one in found)
    assert screen.facts()["screened"] == {"no_consent": 1, "withdrawn": 2} and screen.facts()["redactions"]["name"] == 1


def test_what_is_learned_is_recorded_and_a_later_withdrawal_is_seen(database: Database, tmp_path: Path) -> None:
    rows = [row(number, author=f"Author {number % 5}") for number in range(60)]
    screen = Screen(database)
    data = dataset.build(screen.read(write(tmp_path / "rows.jsonl", rows)), tmp_path / "data")
    withdrawn = screen.record(data)
    store = ExampleStore(database)
    parts = store.rows_of(data.digest)
    assert set(parts) == {one.id for one in (*data.train, *data.held_out)} and set(parts.values()) == {"train", "held_out"}
    assert not withdrawn()
    store.withdraw("Author 3", by="test")
    assert set(withdrawn()) == {id for id in parts if int(id[1:]) % 5 == 3}
    assert set(store.trace("Author 3").earlier) == set(withdrawn()), "and the models made of them can be named"


def test_every_fault_of_the_file_is_named(database: Database, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [row(1, consent="no"), row(2, rating="great"), row(3)])
    with pytest.raises(BadInput) as caught:
        Screen(database).read(path)
    assert "consent" in str(caught.value) and "rating" in str(caught.value)
