"""How the box fared, day by day: what is written down, how long it is kept, and that nobody stands in it."""

from __future__ import annotations

import time
from datetime import date, datetime

import sqlalchemy as sa

from appliance.accounts import People
from appliance.db import Database
from appliance.figures import KEPT_DAYS, Figures
from appliance.tables import figures as table
from appliance.tables import usage
from appliance.web.charts import DAYS, HEIGHT, charts

NOON = datetime(2026, 6, 15, 12, 0).timestamp()
DAY = 86400.0


def test_what_was_seen_in_a_day_is_summed(database: Database) -> None:
    figures = Figures(database)
    figures.add({"first_words": [1.0, 3.0], "disk": [0.5]}, NOON - DAY)
    figures.add({"first_words": [8.0]}, NOON - DAY)
    figures.add({"first_words": [4.0], "somebody's name": [1.0]}, NOON - DAY + 3600)
    days = figures.days("first_words", 3, NOON)
    assert [(one.day.day, one.count, one.mean, one.most) for one in days] == [
        (13, 0, None, None), (14, 4, 4.0, 8.0), (15, 0, None, None),
    ]  # fmt: skip
    with database.read() as connection:
        assert set(connection.execute(sa.select(table.c.name)).scalars()) == {"first_words", "disk"}


def test_the_newest_days_are_kept_and_a_clock_that_errs_empties_nothing(database: Database) -> None:
    figures = Figures(database)

    def kept() -> list[int]:
        with database.read() as connection:
            return sorted({hour // 24 for hour in connection.execute(sa.select(table.c.hour)).scalars()})

    first = int(NOON // DAY)
    for number in range(KEPT_DAYS + 3):
        figures.add({"memory": [0.4]}, NOON + number * DAY)
    days = list(range(first + 3, first + 3 + KEPT_DAYS))
    assert kept() == days
    figures.add({"memory": [0.4]}, NOON + 3660 * DAY)
    assert kept()[:-1] == days[1:], "ten years ahead: one day goes for one that came"
    figures.add({"memory": [0.4]}, 0.0)
    assert kept()[:-1] == days[1:], "1970: nothing goes but that hour"


def test_questions_are_those_of_the_whole_box(database: Database) -> None:
    people, now = People(database), time.time()
    for name, asked in (("ann", 3), ("ben", 4)):
        person, _ = people.add(name, "pupil")
        with database.begin() as connection:
            connection.execute(usage.insert().values(user=person.id, hour=int(now // 3600), questions=asked, tokens=9))
    days = Figures(database).questions(2, now)
    assert [(one.day, one.count) for one in days][-1] == (date.fromtimestamp(now), 7)


def test_a_chart_is_as_high_as_its_highest_day_and_shares_as_the_whole(database: Database) -> None:
    figures, now = Figures(database), time.time()
    figures.add({"first_words": [2.0], "memory": [0.5], "waiting": [0.0]}, now - 2 * DAY)
    figures.add({"first_words": [4.0], "memory": [0.25]}, now)
    drawn = {one.name: one for one in charts(figures)}
    assert all(len(one.bars) == DAYS for one in drawn.values())
    first, memory = drawn["first_words"], drawn["memory"]
    assert [(bar.height, bar.shown) for bar in first.bars if bar.shown] == [(HEIGHT // 2, "2.0 s"), (HEIGHT, "4.0 s")]
    assert [bar.height for bar in memory.bars if bar.shown] == [HEIGHT // 2, HEIGHT // 4]
    assert (first.newest, first.most, memory.most) == ("4.0 s", "4.0 s", "50 %")
    assert drawn["waiting"].most == "" and drawn["disk"].newest == "", "nothing to draw is said, not drawn"
    assert all(bar.y + bar.height == HEIGHT and bar.x + first.width <= 280 for bar in first.bars)
