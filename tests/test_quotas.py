"""Quotas: the nearest rule counts, a window ends, a wrong clock locks nobody out and forgets nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import pytest
import sqlalchemy as sa

from appliance.accounts import User
from appliance.errors import BadInput, NotFound, UsedUp
from appliance.quotas import KEPT_DAYS, Quotas
from appliance.settings import Settings
from appliance.tables import usage
from tests.web.box import make_box

NOON = datetime(2026, 3, 4, 12, 30).timestamp()  # a Wednesday, by the box's own clock
HOUR, DAY = 3600.0, 86400.0


@pytest.fixture
async def box(settings: Settings) -> AsyncIterator[Any]:
    box = make_box(settings)
    yield box
    await box.chat.close()
    box.database.close()


@pytest.fixture
def quotas(box: Any) -> Quotas:
    return box.chat.quotas  # type: ignore[no-any-return]


@pytest.fixture
def ann(box: Any) -> User:
    box.people.add("ann", "pupil")
    return box.accounts.named("ann")  # type: ignore[no-any-return]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    now = [NOON]
    monkeypatch.setattr("appliance.quotas.time.time", lambda: now[0])
    return lambda at: now.__setitem__(0, at)


def asks(quotas: Quotas, user: User, times: int, class_id: str = "") -> int:
    """How many of so many questions were taken."""
    taken = 0
    for _ in range(times):
        try:
            quotas.take(user, class_id)
            taken += 1
        except UsedUp:
            pass
    return taken


def test_a_window_is_used_up_and_another_begins(quotas: Quotas, ann: User, clock: Any) -> None:
    quotas.set("role", "pupil", "hour", 3)
    quotas.set("role", "pupil", "day", 4)
    assert asks(quotas, ann, 5) == 3
    with pytest.raises(UsedUp, match=r"All 3 questions have been asked this hour") as caught:
        quotas.take(ann)
    assert caught.value.retry_after == pytest.approx(1800) and "13:00" in caught.value.hint and caught.value.status == 429
    clock(NOON + HOUR)
    assert asks(quotas, ann, 5) == 1
    with pytest.raises(UsedUp, match="today") as caught:
        quotas.take(ann)
    assert caught.value.retry_after == pytest.approx(10.5 * HOUR)
    clock(NOON + DAY)
    assert asks(quotas, ann, 5) == 3


def test_a_week_begins_on_monday(quotas: Quotas, ann: User, clock: Any) -> None:
    quotas.set("role", "pupil", "week", 2)
    assert asks(quotas, ann, 3) == 2
    clock(NOON + 4 * DAY)
    assert asks(quotas, ann, 3) == 0, "Sunday"
    clock(NOON + 5 * DAY)
    assert asks(quotas, ann, 3) == 2, "Monday"


def test_the_nearest_rule_counts(box: Any, quotas: Quotas, ann: User, clock: Any) -> None:
    del clock
    made = box.classes.add("7B")
    quotas.set("role", "pupil", "hour", 2)
    assert asks(quotas, ann, 9) == 2
    quotas.set("class", made.id, "hour", 3)
    assert asks(quotas, ann, 9, made.id) == 3, "what was asked outside the class is not the class's"
    quotas.set("user", ann.id, "hour", 8)
    assert asks(quotas, ann, 9, made.id) == 3, "8 in all, of whatever class"
    quotas.remove("user", ann.id, "hour")
    quotas.remove("class", made.id, "hour")
    quotas.set("role", "pupil", "hour", 0)
    with pytest.raises(UsedUp, match="No questions can be asked"):
        quotas.take(ann)


def test_it_is_told_before_it_bites(quotas: Quotas, ann: User, clock: Any) -> None:
    del clock
    assert quotas.left(ann) is None
    quotas.set("role", "pupil", "hour", 20)
    asks(quotas, ann, 14)
    left = quotas.left(ann)
    assert left is not None and (left.left, left.low) == (6, False)
    asks(quotas, ann, 1)
    left = quotas.left(ann)
    assert left is not None and (left.left, left.low, left.window) == (5, True, "hour")


def test_many_at_once_are_not_more_than_the_quota(quotas: Quotas, ann: User, clock: Any) -> None:
    del clock
    quotas.set("role", "pupil", "hour", 5)
    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(lambda _: asks(quotas, ann, 1), range(24))) == 5


@pytest.mark.parametrize("wrong", [NOON - 366 * DAY, 0.0, NOON + 3650 * DAY])
def test_a_wrong_clock_locks_nobody_out_and_forgets_nothing(
    box: Any, quotas: Quotas, ann: User, clock: Any, wrong: float
) -> None:
    for window in ("hour", "day", "week"):
        quotas.set("role", "pupil", window, 5)
    assert asks(quotas, ann, 9) == 5
    clock(wrong)
    assert asks(quotas, ann, 9) == 5, "what was asked by the right clock does not count here"
    assert quotas.forget_old() == 0
    clock(NOON)
    assert asks(quotas, ann, 9) == 0 and quotas.forget_old() == 0
    with box.database.read() as connection:
        assert connection.scalar(sa.select(sa.func.sum(usage.c.questions))) == 10


def test_only_the_oldest_days_are_forgotten(box: Any, quotas: Quotas, ann: User) -> None:
    hours = [day * 24 + hour for day in range(1000, 1000 + KEPT_DAYS + 3) for hour in (8, 9)]
    with box.database.begin() as connection:
        connection.execute(sa.insert(usage), [{"user": ann.id, "hour": hour, "class_id": "", "questions": 1} for hour in hours])
    assert quotas.forget_old() == 6 and quotas.forget_old() == 0


def test_what_was_asked_day_by_day_and_who_is_here(box: Any, quotas: Quotas, ann: User, clock: Any) -> None:
    made = box.classes.add("7B")
    box.people.add("ben", "pupil")
    asks(quotas, ann, 2, made.id)
    clock(NOON + DAY)
    asks(quotas, box.accounts.named("ben"), 1, made.id)
    asks(quotas, ann, 3, made.id)
    asks(quotas, ann, 7)
    assert [number for _, number in quotas.per_day(made.id, 4)] == [0, 0, 2, 4]
    assert quotas.per_day(made.id, 4)[-1][0].isoformat() == "2026-03-05"
    assert quotas.here([made.id, "nothing"]) == {made.id: 2}


@pytest.mark.parametrize(
    ("rule", "error"),
    [
        (("planet", "Mars", "hour", 1), BadInput),
        (("role", "pupil", "year", 1), BadInput),
        (("role", "pupil", "hour", -1), BadInput),
        (("role", "king", "hour", 1), NotFound),
        (("class", "nothing", "hour", 1), NotFound),
        (("user", "nobody", "hour", 1), NotFound),
    ],
)
def test_what_is_no_quota(quotas: Quotas, rule: Any, error: Any) -> None:
    with pytest.raises(error):
        quotas.set(*rule)
    with pytest.raises(NotFound):
        quotas.remove(*rule[:3])
    assert quotas.list() == []


async def test_every_road_counts_and_the_command_line_does_not(box: Any, quotas: Quotas, ann: User) -> None:
    quotas.set("role", "pupil", "day", 2)
    async for _ in box.chat.answer(ann, "Why are leaves green?"):
        pass
    assert (await box.chat.ask(ann, "Why are leaves green?"))["answer"]
    for road in (box.chat.ask(ann, "Why?"), box.chat.start(ann, "Why?")):
        with pytest.raises(UsedUp):
            await road
    assert len(box.chat.conversations.list(ann)) == 1 and len(box.pool.requests) == 2
    with box.database.read() as connection:
        row = connection.execute(sa.select(sa.func.sum(usage.c.questions), sa.func.sum(usage.c.tokens))).one()
    assert row[0] == 2 and row[1] > 40, "what the model took is counted as well"
    local = box.accounts.local_administrator()
    await asyncio.gather(*(box.chat.ask(local, "Why?") for _ in range(3)))
    assert quotas.left(local) is None
