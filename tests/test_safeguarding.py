"""The two stores: no flag is lost, counts have no words, and whoever reads flagged words is written down."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa

from appliance import safeguarding as module
from appliance.accounts import User
from appliance.audit import Audit
from appliance.errors import ApplianceError, BadInput, Conflict, NotFound, StorageFull
from appliance.safeguarding import digest
from appliance.safety import Verdict
from appliance.settings import Settings
from appliance.tables import audit, flags, safety_counts
from tests.web.box import make_box

ESCALATE = Verdict("escalate", "self-harm/wants to die", "self-harm", "", flag=True, support="distress", language="en")
BLOCK = Verdict("block", "person/wants a person", "no person", "", support="person")


@pytest.fixture
async def box(settings: Settings) -> AsyncIterator[Any]:
    box = make_box(settings)
    yield box
    await box.chat.close()
    box.database.close()


@pytest.fixture
def pupil(box: Any) -> User:
    person, _ = box.people.add("amira", "pupil", password="correct horse battery")
    for name in ("7 B", "Chess"):
        box.people.join(person.id, box.classes.add(name).id)
    return box.accounts.named("amira")  # type: ignore[no-any-return]


def lead(box: Any) -> User:
    box.people.add("Mx Lead", "safeguarding", password="correct horse battery")
    return box.accounts.named("Mx Lead")  # type: ignore[no-any-return]


def stored(box: Any, table: Any) -> list[Any]:
    with box.database.read() as connection:
        return list(connection.execute(sa.select(table)))


async def test_counts_are_by_class_and_have_no_words(box: Any, pupil: User) -> None:
    await box.safeguarding.report(pupil, ESCALATE, "I want to die zebrafish")
    await box.safeguarding.report(pupil, BLOCK, "be my friend zebrafish")
    await box.safeguarding.report(pupil, BLOCK, "be my friend zebrafish again")
    chess = box.classes.named("Chess").id
    counts = box.safeguarding.counts({chess}, since="2000-01-01")
    assert [(one.class_id, one.category, one.action, one.number) for one in counts] == [
        (chess, "no person", "block", 2), (chess, "self-harm", "escalate", 1),
    ]  # fmt: skip
    assert "zebrafish" not in str(stored(box, safety_counts)) and len(stored(box, flags)) == 1
    assert len(box.safeguarding.counts(None, since="2000-01-01")) == 4
    assert box.safeguarding.counts(set(), since="2000-01-01") == []


async def test_the_same_words_within_a_day_are_one_flag(box: Any, pupil: User, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        await box.safeguarding.report(pupil, ESCALATE, "I want to die")
    assert len(stored(box, flags)) == 1
    monkeypatch.setattr(module, "SAME", 0.0)
    await box.safeguarding.report(pupil, ESCALATE, "I want to die")
    assert len(stored(box, flags)) == 2


@pytest.mark.parametrize("fault", [StorageFull("The disk is full.", "x"), Conflict("The database is locked.", "x")])
async def test_a_flag_that_cannot_be_written_is_kept_and_tried_again(
    box: Any, pupil: User, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: ApplianceError
) -> None:
    monkeypatch.setattr(module, "RETRY", (0.01,))
    broken = True
    real = box.database.begin

    @contextmanager
    def begin() -> Any:
        if broken:
            raise fault
        with real() as connection:
            yield connection

    monkeypatch.setattr(box.database, "begin", begin)
    with caplog.at_level(logging.DEBUG):
        await box.safeguarding.report(pupil, ESCALATE, "I want to die zebrafish")
    assert box.safeguarding.waiting == 1 and "tried again" in caplog.text and "zebrafish" not in caplog.text
    assert box.safeguarding.alarm(lead=True).new == 1, "the banner knows it before the disk does"
    broken = False
    while box.safeguarding.waiting:
        await asyncio.sleep(0.01)
    assert [flag.text for flag in stored(box, flags)] == ["I want to die zebrafish"]
    assert [entry.verb for entry in box.audit.entries()] == ["safety escalate"]


async def test_a_flag_outlives_a_record_that_could_not_be_written(
    box: Any, pupil: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY", (0.01,))
    real, calls = Audit.note, []

    def note(self: Audit, *given: Any, **more: Any) -> Any:
        calls.append(given)
        if len(calls) == 1:
            raise StorageFull("The disk is full.", "x")
        return real(self, *given, **more)

    monkeypatch.setattr(Audit, "note", note)
    await box.safeguarding.report(pupil, ESCALATE, "I want to die")
    while box.safeguarding.waiting:
        await asyncio.sleep(0.01)
    assert len(stored(box, flags)) == 1 == len(box.audit.entries()), "neither lost nor doubled"
    assert [count.number for count in stored(box, safety_counts)] == [1, 1]


async def test_reading_flagged_words_is_recorded_and_the_list_has_none(box: Any, pupil: User) -> None:
    box.pool.down = True
    async for _ in box.chat.answer(pupil, "Why is the sky blue? zebrafish"):
        pass
    ids = (await box.chat.start(pupil, "I want to die zebrafish", conversation=stored(box, module.turns)[0].conversation)).data
    async for _ in box.chat.follow(pupil, ids["turn"]):
        pass
    somebody = lead(box)
    (listed,) = box.safeguarding.list()
    assert listed.text == "" and listed.state == "new"
    flag, around = box.safeguarding.read(somebody, listed.id)
    assert flag.text == "I want to die zebrafish"
    assert [line.role for line in around] == ["user", "assistant", "user", "assistant"]
    assert [line.here for line in around] == [False, False, True, False]
    last = box.audit.entries(newest=1)[0]
    assert (last.verb, last.thing, last.actor) == ("read flag", flag.id, somebody.id)
    written = next(entry for entry in box.audit.entries() if entry.verb == "safety escalate")
    assert written.facts == {"flag": flag.id, "sha256": digest({name: getattr(flag, name) for name in flag.__slots__})}
    with pytest.raises(NotFound):
        box.safeguarding.read(somebody, "nothing")


async def test_a_flag_is_acknowledged_and_closed_with_a_note_and_never_gone(box: Any, pupil: User) -> None:
    await box.safeguarding.report(pupil, ESCALATE, "I want to die")
    somebody, (flag,) = lead(box), box.safeguarding.list()
    box.safeguarding.change(somebody, flag.id, "seen")
    assert box.safeguarding.alarm(lead=True) is None
    with pytest.raises(BadInput):
        box.safeguarding.change(somebody, flag.id, "closed", "  ")
    with pytest.raises(BadInput):
        box.safeguarding.change(somebody, flag.id, "gone", "x")
    box.safeguarding.change(somebody, flag.id, "closed", "Spoke with her and her mother.")
    assert box.safeguarding.list() == [] and [one.id for one in box.safeguarding.list(closed=True)] == [flag.id]
    box.safeguarding.change(somebody, flag.id, "seen", "Opened again.")
    assert box.safeguarding.read(somebody, flag.id)[0].note == "Spoke with her and her mother.\n\nOpened again."
    assert [e.verb for e in box.audit.entries()][1:3] == ["acknowledge flag", "close flag"]
    assert "mother" not in str(box.audit.entries())
    box.people.remove(pupil.id)
    assert box.safeguarding.read(somebody, flag.id)[0].text == "I want to die", "it stays when the account goes"


async def test_without_a_lead_the_administrator_hears_that_there_is_something_and_no_more(box: Any, pupil: User) -> None:
    assert box.safeguarding.alarm(lead=False) is None
    await box.safeguarding.report(pupil, ESCALATE, "I want to die")
    assert box.safeguarding.alarm(lead=False) == module.Alarm(1, unread=True)
    somebody = lead(box)
    assert box.safeguarding.alarm(lead=False) is None
    box.people.change(somebody.id, disabled=True)
    assert box.safeguarding.alarm(lead=False) == module.Alarm(1, unread=True)


async def test_a_changed_record_is_found_out(box: Any, pupil: User) -> None:
    await box.safeguarding.report(pupil, ESCALATE, "I want to die")
    await box.safeguarding.report(pupil, BLOCK, "be my friend")
    with box.database.begin() as connection:
        connection.execute(sa.delete(audit).where(audit.c.number == 1))
    with pytest.raises(ApplianceError, match="audit record was changed"):
        box.audit.verify()
