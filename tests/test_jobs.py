"""The queue: done once, one of a lane at a time, taken up again after a kill, never stolen, stopped within a second or two."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.db import Database
from appliance.errors import BadInput, Busy, Conflict, NotFound, StorageFull, UnderWay
from appliance.jobs import MOST_ATTEMPTS, Job, Jobs, Tell, held, work, work_one
from appliance.settings import Settings


@pytest.fixture
def queue(database: Database, settings: Settings) -> Jobs:
    return Jobs(database, settings)


async def until(true: Callable[[], bool], seconds: float = 10.0) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, "it did not come to that in time"
        await asyncio.sleep(0.02)


async def test_a_job_is_done_with_its_progress_and_its_result(queue: Jobs) -> None:
    async def count(job: Job, tell: Tell) -> dict[str, Any]:
        tell({"stage": "counting", "done": 2, "total": 3})
        await asyncio.sleep(0.7)  # longer than one look of the one who writes it down
        assert queue.get(job.id).progress == {"stage": "counting", "done": 2, "total": 3}
        return {"sum": job.payload["a"] + 1}

    heard: list[dict[str, Any]] = []
    job = queue.enqueue("count", {"a": 1}, owner="anna")
    assert (job.state, job.owner, job.attempts) == ("queued", "anna", 0)
    done = await work_one(queue, job.id, {"count": count}, also=heard.append)
    assert (done.state, done.result, done.attempts) == ("done", {"sum": 2}, 1)
    assert heard == [{"stage": "counting", "done": 2, "total": 3}]
    log = queue.log(job.id).read_text("utf-8")
    assert "counting" in log and log.strip().endswith("done")
    assert (await work_one(queue, job.id, {"count": count})).attempts == 1, "what is done is not done again"


def test_the_same_work_is_not_queued_twice(queue: Jobs) -> None:
    one = queue.enqueue("count", {"a": 1})
    assert queue.enqueue("count", {"a": 1}).id == one.id
    assert queue.enqueue("count", {"a": 2}).id != one.id
    queue.cancel(one.id)
    assert queue.enqueue("count", {"a": 1}).id != one.id


def test_what_waits_is_cancelled_at_once_and_what_ended_cannot_be(queue: Jobs) -> None:
    job = queue.cancel(queue.enqueue("count", {}).id)
    assert job.state == "cancelled" and job.ended
    with pytest.raises(Conflict, match="ended already"):
        queue.cancel(job.id)
    with pytest.raises(NotFound, match="no job 'nothing'"):
        queue.cancel("nothing")


async def test_what_runs_is_stopped_within_two_seconds_and_tidies_up(queue: Jobs) -> None:
    tidied: list[str] = []

    async def endless(job: Job, tell: Tell) -> dict[str, Any]:
        try:
            tell({"stage": "at it"})
            await asyncio.sleep(60)
        finally:
            tidied.append(job.id)
        return {}

    job = queue.enqueue("endless", {})
    doing = asyncio.create_task(work_one(queue, job.id, {"endless": endless}))
    await until(lambda: queue.get(job.id).state == "running")
    began = time.monotonic()
    assert queue.cancel(job.id).state == "running", "its own process ends it"
    assert (await doing).state == "cancelled"
    assert time.monotonic() - began < 2 and tidied == [job.id]


async def test_one_heavy_and_one_light_job_at_a_time_in_the_order_they_came(queue: Jobs) -> None:
    now: Counter[str] = Counter()
    most: Counter[str] = Counter()
    together, order = 0, []

    async def some(job: Job, _tell: Tell) -> dict[str, Any]:
        nonlocal together
        now[job.lane] += 1
        most[job.lane] = max(most[job.lane], now[job.lane])
        together = max(together, now.total())
        order.append(job.payload["n"])
        await asyncio.sleep(0.3)
        now[job.lane] -= 1
        return {}

    ids = [queue.enqueue("some", {"n": n}, lane="light" if n == 9 else "heavy").id for n in (1, 2, 3, 9)]
    working = asyncio.create_task(work(queue, {"some": some}, pause=0.05))
    await until(lambda: all(queue.get(id).state == "done" for id in ids))
    with pytest.raises(UnderWay, match="running already"):
        await work(queue, {"some": some})
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    assert most == {"heavy": 1, "light": 1} and together == 2
    assert [n for n in order if n != 9] == [1, 2, 3]
    assert not held(queue.worker()) and not queue.busy("heavy")


async def test_a_worker_that_is_told_to_stop_puts_its_job_back(queue: Jobs) -> None:
    async def endless(_job: Job, _tell: Tell) -> dict[str, Any]:
        await asyncio.sleep(60)
        return {}

    job = queue.enqueue("endless", {})
    for _ in range(MOST_ATTEMPTS + 1):  # however often: to be stopped is no fault of the job's
        working = asyncio.create_task(work(queue, {"endless": endless}, pause=0.05))
        await until(lambda: queue.get(job.id).state == "running")
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        assert queue.get(job.id).state == "queued" and queue.get(job.id).attempts == 0


async def test_a_job_that_ends_as_its_worker_is_told_to_stop_is_done_and_the_worker_stops(
    queue: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, ended = threading.Event(), threading.Event()
    real = queue.asked_to_stop

    def slow_look(id: str) -> bool:  # the stop comes while this thread looks, and the job ends meanwhile
        asked.set()
        assert ended.wait(10)
        return real(id)

    async def brief(_job: Job, _tell: Tell) -> dict[str, Any]:
        while not asked.is_set():
            await asyncio.sleep(0.01)
        return {"sum": 3}

    monkeypatch.setattr(queue, "asked_to_stop", slow_look)
    job = queue.enqueue("brief", {})
    working = asyncio.create_task(work(queue, {"brief": brief}, pause=0.05))
    await until(asked.is_set)
    await asyncio.sleep(0.1)
    working.cancel()
    _, left = await asyncio.wait({working}, timeout=5)
    ended.set()
    assert not left and working.cancelled(), "it stops when it is told to"
    done = queue.get(job.id)
    assert (done.state, done.result) == ("done", {"sum": 3})


async def test_a_job_that_will_not_be_cut_short_is_done_when_the_worker_stops(queue: Jobs) -> None:
    async def stubborn(_job: Job, tell: Tell) -> dict[str, Any]:
        tell({"stage": "at it"})
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return {"last": "words"}
        return {}

    job = queue.enqueue("stubborn", {})
    working = asyncio.create_task(work(queue, {"stubborn": stubborn}, pause=0.05))
    await until(lambda: queue.log(job.id).is_file() and "at it" in queue.log(job.id).read_text())
    working.cancel()
    await asyncio.wait({working}, timeout=5)
    assert working.cancelled() and queue.get(job.id).result == {"last": "words"}


def test_who_only_looks_is_not_taken_for_one_who_works(tmp_path: Path) -> None:
    path = tmp_path / "lane.lock"
    with path.open("a") as other:
        fcntl.flock(other, fcntl.LOCK_SH)  # another process looks at the same moment
        assert not held(path)
        fcntl.flock(other, fcntl.LOCK_EX)
        assert held(path)


async def test_faults_are_kept_as_what_they_were_and_the_worker_goes_on(queue: Jobs) -> None:
    async def faulty(job: Job, _tell: Tell) -> dict[str, Any]:
        if job.payload["n"] == 1:
            raise StorageFull("The disk is full.", "Free some.")
        if job.payload["n"] == 2:
            raise UnderWay("Not twice.", "Wait.")
        raise ZeroDivisionError("by accident")

    ids = [queue.enqueue("faulty", {"n": n}).id for n in (1, 2, 3)]
    working = asyncio.create_task(work(queue, {"faulty": faulty}, pause=0.05))
    await until(lambda: all(queue.get(id).ended for id in ids))
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    full, twice, accident = (queue.get(id).fault() for id in ids)
    assert isinstance(full, StorageFull) and (full.message, full.hint) == ("The disk is full.", "Free some.")
    assert isinstance(twice, UnderWay) and twice.exit_code == 75
    assert accident is not None and "ZeroDivisionError" in accident.message and ids[2] in accident.hint
    assert "by accident" in queue.log(ids[2]).read_text("utf-8"), "the trace is in its record"


async def test_what_is_not_yet_to_be_done_goes_back_and_waits(queue: Jobs) -> None:
    begun: list[float] = []

    async def later(_job: Job, _tell: Tell) -> dict[str, Any]:
        begun.append(time.monotonic())
        if len(begun) == 1:
            raise Busy("The GPU is in use.", "Later.", retry_after=0.6)
        return {"late": True}

    job = queue.enqueue("later", {})
    working = asyncio.create_task(work(queue, {"later": later}, pause=0.05))
    await until(lambda: bool(begun) and queue.get(job.id).state == "queued")
    assert queue.get(job.id).error is not None
    await until(lambda: queue.get(job.id).state == "done")
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    assert begun[1] - begun[0] >= 0.6
    done = queue.get(job.id)
    assert done.attempts == 1 and done.error is None


# A process that works one job for a minute; its clock may be told wrong.
DRIVER = """
import asyncio, sys, time
from pathlib import Path
from appliance.db import Database
from appliance.jobs import Jobs, work_one
from appliance.settings import Settings

shift = float(sys.argv[3])
real = time.time
time.time = lambda: real() + shift

async def slow(job, tell):
    tell({"stage": "slow", "done": 1})
    print("at it", flush=True)
    await asyncio.sleep(60)
    return {}

settings = Settings(home=Path(sys.argv[1]))
asyncio.run(work_one(Jobs(Database(settings.database), settings), sys.argv[2], {"slow": slow}))
"""


def started(settings: Settings, id: str, shift: float = 0.0) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(settings.home), id, str(shift)],
        stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "at it\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


async def quick(_job: Job, _tell: Tell) -> dict[str, Any]:
    return {"quick": True}


@pytest.mark.parametrize("years", [0, 10, -56])
async def test_a_killed_job_is_taken_up_again_and_a_live_one_never_whatever_the_clock_says(
    queue: Jobs, settings: Settings, years: int
) -> None:
    job = queue.enqueue("slow", {})
    process = started(settings, job.id, years * 365.25 * 86400)
    try:
        assert queue.busy("heavy") and not queue.broken_off(queue.get(job.id))
        with pytest.raises(UnderWay, match=f"slow, job {job.id}"):
            await work_one(queue, job.id, {"slow": quick})
        other = queue.enqueue("slow", {"another": True})
        with pytest.raises(UnderWay):
            await work_one(queue, other.id, {"slow": quick})
    finally:
        kill(process)
    left = queue.get(job.id)
    assert left.state == "running" and queue.broken_off(left)
    done = await work_one(queue, job.id, {"slow": quick})
    assert (done.state, done.attempts, done.result) == ("done", 2, {"quick": True})


async def test_a_job_that_always_takes_its_process_down_is_given_up(queue: Jobs) -> None:
    job = queue.enqueue("slow", {})
    for _ in range(MOST_ATTEMPTS):  # each claim without an end is a process that died
        with queue.hold("heavy"):
            assert queue.claim("heavy", ["slow"]) is not None
    assert queue.broken_off(queue.get(job.id))
    done = await work_one(queue, job.id, {"slow": quick})
    fault = done.fault()
    assert done.state == "failed" and fault is not None
    assert f"{MOST_ATTEMPTS} times" in fault.message and job.id in fault.hint


def test_a_broken_off_job_is_cancelled_at_once(queue: Jobs, settings: Settings) -> None:
    job = queue.enqueue("slow", {})
    kill(started(settings, job.id))
    assert queue.cancel(job.id).state == "cancelled"


def test_only_jobs_of_known_kinds_are_taken(queue: Jobs) -> None:
    job = queue.enqueue("of tomorrow", {})
    with queue.hold("heavy"):
        assert queue.claim("heavy", ["slow"]) is None
    assert queue.get(job.id).state == "queued"


def test_a_fault_of_input_keeps_its_exit_code(queue: Jobs) -> None:
    job = queue.enqueue("slow", {})
    with queue.hold("heavy"):
        queue.claim("heavy", ["slow"])
        queue.fail(job.id, BadInput("Wrong.", "Right."))
    fault = queue.get(job.id).fault()
    assert isinstance(fault, BadInput) and fault.exit_code == 1
