"""How guessing is slowed down: wrong tries are counted on disk, and past a few of them the next one has to wait.

A try is counted before it is judged, so that a burst of parallel guesses is one burst, and taken back where it was right. Two
kinds of limit: waits that double, for what one person alone can trip; and a steady pace, for what many share, which never
holds anybody up for longer than one step. A clock that is set back makes a wait begin anew, and none longer. It knows no
passwords and no codes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from appliance.errors import Busy
from appliance.tables import attempts

if TYPE_CHECKING:
    from appliance.db import Database

FREE_FAILURES = 10
LONGEST_WAIT = 900.0
FORGET_FAILURES = 24 * 3600


@dataclass(frozen=True, slots=True)
class Limit:
    """What is counted under `key`: so many wrong tries are `free`; from then on each has to wait.

    The wait doubles from 2 s up to `longest`. Where `every` is given, it does not grow: one try is forgotten each so many
    seconds, and makes room for another.
    """

    key: str
    free: int = FREE_FAILURES
    longest: float = LONGEST_WAIT
    every: float = 0.0

    def judge(self, failures: int, last: float, now: float) -> tuple[float, int, float]:
        """(seconds that are still to be waited, failures that count, since when), for a try at `now`."""
        if self.every:
            last = min(last, now)  # the clock was set back
            forgotten = min(failures, int((now - last) / self.every))
            failures, last = failures - forgotten, last + forgotten * self.every
            if failures < self.free:
                return 0.0, failures, last if failures else now
            return last + self.every - now, failures, last
        wait = wait_after(failures, self.free, self.longest)
        left = last + wait - now
        if left > wait:  # the clock was set back: the wait begins anew, instead of lasting until that day comes again
            left, last = wait, now
        return max(0.0, left), failures, last if left > 0 else now


def count_attempt(database: Database, key: str, free: int = FREE_FAILURES) -> None:
    """Write one failure down in advance; `forgive` or `take_back` undo it. Raises Busy while the key has to wait."""
    count(database, [Limit(key, free)])


def count(database: Database, limits: list[Limit]) -> None:
    """As `count_attempt`, under several keys; while one of them has to wait, it is counted under none. Raises Busy."""
    now = time.time()
    with database.begin() as connection:
        connection.execute(sa.delete(attempts).where(attempts.c.last < now - FORGET_FAILURES))
        known = {row.key: row for row in connection.execute(_these(limits))}
        judged = {one.key: _judged(one, known.get(one.key), now) for one in limits}
        left = max(wait for wait, _, _ in judged.values())
        more = 0 if left > 0 else 1
        for key, (_, failures, last) in judged.items():
            values = {"failures": failures + more, "last": last}
            if key in known:
                connection.execute(sa.update(attempts).where(attempts.c.key == key).values(**values))
            elif more:
                connection.execute(sa.insert(attempts).values(key=key, **values))
    if left > 0:
        raise Busy("There were too many wrong tries.", f"Wait {max(1, round(left))} seconds, then try again.", retry_after=left)


def forgive(connection: sa.Connection, key: str) -> int:
    """Forget a key's failures; how many there were."""
    count = connection.scalar(sa.select(attempts.c.failures).where(attempts.c.key == key)) or 0
    connection.execute(sa.delete(attempts).where(attempts.c.key == key))
    return int(count)


def take_back(connection: sa.Connection, key: str, tries: int = 1) -> None:
    """So many tries were right; the wrong ones before them still count."""
    this = attempts.c.key == key
    connection.execute(sa.update(attempts).where(this).values(failures=attempts.c.failures - tries))
    connection.execute(sa.delete(attempts).where(this, attempts.c.failures <= 0))


def wait_after(failures: int, free: int = FREE_FAILURES, longest: float = LONGEST_WAIT) -> float:
    """Seconds to wait after so many failures in a row: none up to `free`, then 2, 4, 8 ... up to `longest`."""
    if failures < free:
        return 0.0
    return min(2.0 ** min(failures - free + 1, 16), longest)


def _these(limits: list[Limit]) -> sa.Select[Any]:
    return sa.select(attempts).where(attempts.c.key.in_([one.key for one in limits]))


def _judged(limit: Limit, row: Any, now: float) -> tuple[float, int, float]:
    return limit.judge(row.failures, row.last, now) if row is not None else (0.0, 0, now)
