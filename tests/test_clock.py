"""A clock that errs, to 1970 or ten years ahead: whatever goes by its age goes one by one, and nothing goes all at once."""

from __future__ import annotations

import time

import pytest
import sqlalchemy as sa

from appliance.accounts import Accounts
from appliance.accounts.guessing import count_attempt
from appliance.audit import Audit
from appliance.checkup import machine
from appliance.conversations import Conversations
from appliance.db import Database
from appliance.figures import Figures
from appliance.quotas import Quotas
from appliance.settings import Settings
from appliance.tables import attempts, audit, conversations, figures, metadata, sessions, turns, usage

DAY = 86400.0
TEN_YEARS = 3652 * DAY
PASSWORD = "correct horse battery"


class Box:
    """The parts that let something go by its age, each with something to let go of."""

    def __init__(self, database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.database = time.time(), database
        monkeypatch.setattr(time, "time", lambda: self.now)
        self.accounts = Accounts(database, settings)
        self.head = self.accounts.create_first_administrator(self.accounts.ensure_setup_code() or "", "head", PASSWORD)
        self.talks, self.figures, self.quotas = Conversations(database, self.accounts), Figures(database), Quotas(database)
        self.audit = Audit(database)
        for number in range(3):
            self.talks.add_question(self.head, f"Question {number}?", None)
        self.chat = self.talks.list(self.head)[0].id
        self.talks.delete(self.head, self.chat)
        for day in range(60):
            self.figures.add({"memory": [0.5]}, self.now - day * DAY)
            with database.begin() as connection:
                connection.execute(
                    usage.insert().values(user=self.head.id, hour=int((self.now - day * DAY) // 3600), questions=1)
                )
        self.accounts.sign_in("head", PASSWORD, "10.0.0.9")
        count_attempt(database, "name:somebody")
        self.audit.note("promote", "m1")

    def sweep(self) -> None:
        """All that happens by itself, or when somebody signs in."""
        self.talks.purge()
        self.quotas.forget_old()
        self.figures.add({"memory": [0.5]})
        self.accounts.sign_in("head", PASSWORD, "10.0.0.9")
        count_attempt(self.database, "name:another")

    def counts(self) -> dict[str, int]:
        with self.database.read() as connection:
            return {name: connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0
                    for name, table in metadata.tables.items()}  # fmt: skip


@pytest.fixture
def box(database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Box:
    return Box(database, settings, monkeypatch)


GOES = {sessions.name, attempts.name}  # by design: a sign-in ends by the clock, and so does the wait of who guessed wrong


@pytest.mark.parametrize("leap", [-1, TEN_YEARS])
def test_nothing_is_let_go_of_all_at_once(box: Box, leap: float) -> None:
    right, before = box.now, box.counts()
    box.now = DAY if leap < 0 else right + leap
    box.sweep()
    after = box.counts()
    lost = {name: count - after[name] for name, count in before.items() if after[name] < count and name not in GOES}
    # Ten years ahead the one chat goes that its owner deleted, and with it what belongs to it; in 1970 not even that.
    mine = {conversations.name: 1, turns.name: 2} if leap > 0 else {}
    assert lost == mine and after[audit.name] >= before[audit.name]
    assert after[figures.name] == 61 and after[usage.name] == 60
    box.now = right + 60
    box.sweep()
    assert box.accounts.sign_in("head", PASSWORD, "10.0.0.9"), "whoever was signed out signs in again"
    assert len(box.talks.list(box.head)) == 2 and box.counts()[figures.name] >= 61


def test_in_1970_a_deleted_chat_comes_back_and_it_goes_when_the_clock_is_right(box: Box) -> None:
    right, box.now = box.now, DAY
    assert box.talks.purge() == 0
    box.talks.restore(box.head, box.chat)
    box.now = right + 60
    box.talks.delete(box.head, box.chat)
    box.now += 601
    assert box.talks.purge() == 1


def test_what_was_deleted_in_a_time_to_come_goes_once_the_clock_is_right(box: Box) -> None:
    right = box.now
    box.now += TEN_YEARS
    box.audit.note("promote", "m2")
    other = box.talks.list(box.head)[0].id
    box.talks.delete(box.head, other)
    box.now = right + 60
    assert box.talks.purge() == 0, "nobody has done anything under this clock: which one errs is not known"
    assert not machine.clock(box.database, box.now).ok
    box.audit.note("promote", "m3")
    assert box.talks.purge() == 1 and len(box.talks.list(box.head)) == 1
    assert machine.clock(box.database, box.now).ok, "or the doctor would warn for ten years"
