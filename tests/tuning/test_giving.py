"""Examples given one at a time: kept, changed, taken back; and never used before a person has looked at them."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.audit import Audit
from appliance.db import Database
from appliance.errors import Conflict
from appliance.redact import Redactor
from appliance.tuning.giving import Giving
from appliance.tuning.selection import plan
from appliance.tuning.store import ExampleStore

TALK = [("user", "Why are leaves green?"), ("assistant", "Because.")]
COLUMNS: dict[str, Any] = {
    "correction": "Ask yourself which light a leaf gives back. My number is 0171 234 5678.", "rating": "down",
    "author": "Ms Green",
    "user_role": "teacher", "class_name": "7B", "subject": "science", "grade": "7", "origin": "turn t1",
}  # fmt: skip


def keep(giving: Giving, id: str = "given-1", **more: Any) -> None:
    giving.keep(id, by="u1", messages=TALK, **(COLUMNS | more))


def test_a_given_example_waits_for_review_and_is_redacted_before_use(database: Database) -> None:
    giving, store = Giving(database), ExampleStore(database)
    keep(giving)
    (row,) = store.pending()
    assert (row.id, row.consent, row.author, row.correction) == ("given-1", True, "Ms Green", COLUMNS["correction"])
    redact = Redactor([]).redact
    assert plan(store, redact).examples == [], "nobody has reviewed it"
    store.approve(["given-1"], "Mr Brown")
    (example,) = plan(store, redact).examples
    assert "0171" not in example.messages[-1].content and "which light" in example.messages[-1].content
    assert [entry.verb for entry in Audit(database).entries(thing="given-1")] == ["give example", "approved example"]
    assert "Ms Green" not in str(Audit(database).entries()) and Audit(database).verify()


def test_a_change_waits_again_and_the_same_once_more_does_not(database: Database) -> None:
    giving, store = Giving(database), ExampleStore(database)
    keep(giving)
    store.approve(["given-1"], "Mr Brown")
    keep(giving)
    assert store.get("given-1").reviewed == "approved"
    keep(giving, correction="Another hint.")
    assert (store.get("given-1").reviewed, store.get("given-1").correction) == ("pending", "Another hint.")


def test_taken_back_leaves_no_word_in_the_file(database: Database) -> None:
    giving, store = Giving(database), ExampleStore(database)
    keep(giving, correction="A word nobody else says: xylophonist.")
    giving.take_back("given-1", "u1")
    giving.take_back("given-1", "u1")
    giving.take_back("never", "u1")
    assert store.withdrawn() == {"given-1"} and store.list() == []
    files = [path.read_bytes() for path in database.path.parent.glob(f"{database.path.name}*")]
    assert files and not any(b"xylophonist" in data for data in files)
    with pytest.raises(Conflict):
        keep(giving)


def test_who_has_withdrawn_gives_nothing(database: Database) -> None:
    giving, store = Giving(database), ExampleStore(database)
    store.withdraw("ms  green", by="office")
    with pytest.raises(Conflict):
        keep(giving)
    assert store.list(withdrawn=True) == []
