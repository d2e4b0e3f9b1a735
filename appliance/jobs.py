"""Long work that outlives the process that does it: a queue in the database, one job of a lane at a time.

Hides how a job that was broken off is told from one that is being done: whoever works a lane holds the lock of a file for as
long as the job lasts, and the system lets go of it when that process dies, however it dies. So a job that is `running` in a
lane which can be locked was broken off, and is taken up again; no clock has a say in it. Knows no kind of work: handlers are
handed in, and must themselves go on from where they were.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import time
import traceback
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from appliance import errors, logs
from appliance.db import Database
from appliance.errors import ApplianceError, Busy, Conflict, NotFound, UnderWay, from_os_error
from appliance.settings import Settings
from appliance.tables import jobs as table
from appliance.tables import new_id

LANES = ("heavy", "light", "outside")  # outside: this box waits for another machine's work, for hours
MOST_ATTEMPTS = 5  # a job that broke off this often takes its process down with it
LOOK = 0.5  # seconds between two looks at whether a running job shall stop
_log = logging.getLogger("appliance.jobs")
WRITE = 2.0  # seconds between two writings of its progress: each is a flush to disk


@dataclass(frozen=True, slots=True)
class Job:
    """`state`: queued, running, done, failed, cancelled; times are UTC seconds; `error` is {code, message, hint, exit_code}."""

    id: str
    kind: str
    lane: str
    payload: dict[str, Any]
    state: str
    progress: dict[str, Any]
    attempts: int
    cancel: bool
    owner: str
    worker: str
    error: dict[str, Any] | None
    result: dict[str, Any] | None
    created: float
    started: float | None
    beat: float | None
    finished: float | None

    @property
    def ended(self) -> bool:
        return self.state in ("done", "failed", "cancelled")

    def fault(self) -> ApplianceError | None:
        """What stopped it, as the error that it was."""
        if self.error is None:
            return None
        known = (kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ApplianceError))
        kinds = {kind.code: kind for kind in known}
        error = kinds.get(self.error["code"], ApplianceError)(self.error["message"], self.error["hint"])
        error.code, error.exit_code = self.error["code"], self.error["exit_code"]
        return error


Tell = Callable[[dict[str, Any]], None]
Handler = Callable[[Job, Tell], Awaitable[dict[str, Any]]]
Turned = Callable[[str], None]


class Jobs:
    """The queue of one home. Safe to use from several processes."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._locks = settings.run
        self._logs = settings.jobs

    # --- asking for work ----------------------------------------------------------------------------------------------
    def enqueue(self, kind: str, payload: dict[str, Any], *, lane: str = "heavy", owner: str = "", anew: bool = False) -> Job:
        """Put work in the queue. The same work that waits or runs already is not queued twice: that job is returned.

        Where that one was broken off, its attempts count anew: somebody asks for it again.
        `anew`: the same words may mean more by now, as those of a folder do; a job that is being done has looked already, and
        does not count.
        """
        at_work = self.busy(lane)
        with self._database.begin() as connection:
            open_ones = sa.select(table).where(table.c.kind == kind, table.c.state.in_(("queued", "running")))
            for row in connection.execute(open_ones.order_by(table.c.created)):
                seen_already = anew and at_work and row.state == "running"
                if row.payload == payload and not row.cancel and not seen_already:
                    if not at_work:
                        connection.execute(table.update().where(table.c.id == row.id).values(attempts=0))
                    return _job(row)
            id = new_id()
            connection.execute(
                table.insert().values(
                    id=id, kind=kind, lane=lane, payload=payload, state="queued", owner=owner, created=time.time()
                )
            )
        return self.get(id)

    def get(self, id: str) -> Job:
        """Raises NotFound."""
        with self._database.read() as connection:
            row = connection.execute(sa.select(table).where(table.c.id == id)).first()
        if row is None:
            raise NotFound(f"There is no job {id!r}.", "See `appliance jobs list`.")
        return _job(row)

    def list(self, *, kinds: Collection[str] = (), newest: int = 50) -> list[Job]:
        """The newest jobs first; `kinds` empty for all."""
        query = sa.select(table).order_by(table.c.created.desc(), table.c.id).limit(newest)
        query = query.where(table.c.kind.in_(kinds)) if kinds else query
        with self._database.read() as connection:
            return [_job(row) for row in connection.execute(query)]

    def counts(self) -> dict[str, int]:
        """How many jobs there are, by state."""
        with self._database.read() as connection:
            rows = connection.execute(sa.select(table.c.state, sa.func.count()).group_by(table.c.state))
            return {row[0]: row[1] for row in rows}

    def cancel(self, id: str) -> Job:
        """End a job: at once where nobody works on it, else its process sees it within a second. Raises Conflict."""
        job = self.get(id)
        at_work = job.state == "running" and self.busy(job.lane)
        with self._database.begin() as connection:
            state = connection.execute(sa.select(table.c.state).where(table.c.id == id)).scalar_one()
            if state not in ("queued", "running"):
                raise Conflict(f"The job {id} has ended already ({state}).", "See `appliance jobs list`.")
            ends = {"cancel": True} if at_work else {"cancel": True, "state": "cancelled", "finished": time.time()}
            connection.execute(table.update().where(table.c.id == id).values(**ends))
        return self.get(id)

    def log(self, id: str) -> Path:
        """Where the job's own record lies; there may be none yet."""
        return self._logs / f"{self.get(id).id}.log"

    # --- lanes --------------------------------------------------------------------------------------------------------
    def busy(self, lane: str) -> bool:
        """Whether a process works this lane now."""
        return held(self._lane(lane))

    def broken_off(self, job: Job) -> bool:
        """Whether the process that worked on this job is gone."""
        return job.state == "running" and not self.busy(job.lane)

    @contextlib.contextmanager
    def hold(self, lane: str) -> Iterator[None]:
        """Be the one who works this lane. Raises UnderWay while another process is."""
        with self.lock(self._lane(lane)) as mine:
            if not mine:
                raise UnderWay(
                    f"Another {lane} job is under way on this box{self._what_runs(lane)}.",
                    "Wait until it has ended (`appliance jobs list`), or cancel it with `appliance jobs cancel ID`.",
                )
            yield

    @contextlib.contextmanager
    def lock(self, path: Path) -> Iterator[bool]:
        """Hold a lock file while this lasts; false where another process does."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle = path.open("a")
        except OSError as error:
            raise from_os_error(error, "locking the queue of jobs") from None
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    def worker(self) -> Path:
        """The lock of the process that works both lanes as jobs come."""
        return self._locks / "worker.lock"

    def works(self) -> bool:
        """Whether such a process runs now."""
        return held(self.worker())

    def _lane(self, lane: str) -> Path:
        return self._locks / f"jobs-{lane}.lock"

    def _what_runs(self, lane: str) -> str:
        running = [job for job in self.list() if job.state == "running" and job.lane == lane]
        return f" ({running[0].kind}, job {running[0].id})" if running else ""

    # --- doing it: by who holds the lane ------------------------------------------------------------------------------
    def claim(self, lane: str, kinds: Collection[str], *, only: str = "", but: Collection[str] = ()) -> Job | None:
        """The next job of these kinds, marked as running: first what was broken off, then the oldest. None where none waits.

        only: this one or none. but: ids that are left for later. A job that broke off too often is given up.
        """
        with self._database.begin() as connection:
            waiting = sa.select(table).where(
                table.c.lane == lane, table.c.kind.in_(kinds), table.c.state.in_(("queued", "running")), table.c.id.not_in(but)
            )
            waiting = waiting.where(table.c.id == only) if only else waiting
            for row in connection.execute(waiting.order_by(table.c.state.desc(), table.c.created, table.c.id)).all():
                update = table.update().where(table.c.id == row.id)
                now = time.time()
                if row.cancel:
                    connection.execute(update.values(state="cancelled", finished=now))
                elif row.state == "running" and row.attempts >= MOST_ATTEMPTS:
                    error = ApplianceError(
                        f"The job was broken off {row.attempts} times, so it was given up.",
                        f"See `appliance jobs log {row.id}`, then run the same command again: what is finished is kept.",
                    )
                    connection.execute(update.values(state="failed", error=_error(error), finished=now))
                else:
                    taken = {
                        "state": "running",
                        "attempts": row.attempts + 1,
                        "worker": f"process {os.getpid()}",
                        "error": None,
                    }
                    connection.execute(update.values(**taken, started=row.started or now, beat=now))
                    return _job(connection.execute(sa.select(table).where(table.c.id == row.id)).one())
        return None

    def waiting(self, lane: str, kinds: Collection[str], *, but: Collection[str] = ()) -> bool:
        """Whether there is something to claim; asked every second, so it only reads."""
        query = sa.select(table.c.id).where(
            table.c.lane == lane, table.c.kind.in_(kinds), table.c.state.in_(("queued", "running")), table.c.id.not_in(but)
        )
        with self._database.read() as connection:
            return connection.execute(query.limit(1)).first() is not None

    def asked_to_stop(self, id: str) -> bool:
        with self._database.read() as connection:
            return bool(connection.execute(sa.select(table.c.cancel).where(table.c.id == id)).scalar())

    def beat(self, id: str, progress: dict[str, Any]) -> None:
        """Note how far a running job is."""
        self._write(id, progress=progress, beat=time.time())

    def finish(self, id: str, result: dict[str, Any]) -> None:
        self._write(id, state="done", result=result, finished=time.time())

    def fail(self, id: str, error: ApplianceError) -> None:
        self._write(id, state="failed", error=_error(error), finished=time.time())

    def cancelled(self, id: str) -> None:
        self._write(id, state="cancelled", finished=time.time())

    def put_back(self, id: str, why: ApplianceError | None = None) -> None:
        """Into the queue again, as if this attempt had not been: told to stop, or not the time for it yet."""
        back = {"state": "queued", "attempts": table.c.attempts - 1, "error": _error(why) if why else None}
        self._write(id, **back)

    def note(self, id: str, line: str) -> None:
        """Add a line to the job's own record. What cannot be written there stops no work."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
        with contextlib.suppress(OSError):
            self._logs.mkdir(parents=True, exist_ok=True, mode=0o700)
            with (self._logs / f"{id}.log").open("a", encoding="utf-8") as log:
                log.write(f"{stamp} {line}\n")

    def _write(self, id: str, **values: Any) -> None:
        with self._database.begin() as connection:
            connection.execute(table.update().where(table.c.id == id, table.c.state == "running").values(**values))


def held(path: Path) -> bool:
    """Whether a process holds the lock on this file."""
    try:
        with path.open("a") as handle:
            try:
                # Shared: two who only look must not take each other for the one who works.
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    except OSError:  # the folder is not there: nothing has ever run
        return False
    return False


# --- the ones who do it -------------------------------------------------------------------------------------------------


async def work(
    jobs: Jobs, handlers: Mapping[str, Handler], lanes: Collection[str] = LANES, *, pause: float = 1.0,
    turned: Turned = lambda _lane: None,
) -> None:  # fmt: skip
    """Work all lanes, each one job at a time, until cancelled; then what runs goes back into the queue.

    turned: told a lane each time that its loop comes round, which is every second or so, also while a job runs.
    Raises UnderWay where another process does this already.
    """
    with jobs.lock(jobs.worker()) as mine:
        if not mine:
            raise UnderWay("A worker is running already for this box.", "Use that one, or choose another --home.")
        async with asyncio.TaskGroup() as group:
            for lane in lanes:
                group.create_task(_work_lane(jobs, handlers, lane, pause, turned))


async def _work_lane(jobs: Jobs, handlers: Mapping[str, Handler], lane: str, pause: float, turned: Turned) -> None:
    later: dict[str, float] = {}  # id -> monotonic time before which it is left alone
    while True:
        turned(lane)
        now = time.monotonic()
        not_yet = [id for id, when in later.items() if when > now]
        try:
            if await asyncio.to_thread(jobs.waiting, lane, list(handlers), but=not_yet):
                with jobs.hold(lane):
                    # Not in a thread: told to stop between the claim and its work, nobody would put the job back.
                    job = jobs.claim(lane, list(handlers), but=not_yet)
                    wait = await _do(jobs, job, handlers[job.kind], turned=turned) if job is not None else None
                    if job is not None and wait is not None:
                        later[job.id] = time.monotonic() + wait
                continue
        except UnderWay:
            pass  # a command works this lane itself
        except ApplianceError as error:  # the disk is full, the database is locked: the queue is still there afterwards
            jobs.note("worker", f"{error.message} {error.hint}")
        await asyncio.sleep(pause)


async def work_one(jobs: Jobs, id: str, handlers: Mapping[str, Handler], *, also: Tell = lambda _progress: None) -> Job:
    """Do this one job here and now, telling `also` how far it is. Raises UnderWay where its lane is worked by another."""
    job = jobs.get(id)
    with jobs.hold(job.lane):
        claimed = jobs.claim(job.lane, [job.kind], only=id)
        if claimed is not None:
            await _do(jobs, claimed, handlers[job.kind], also)
    return jobs.get(id)


async def _do(
    jobs: Jobs, job: Job, handler: Handler, also: Tell = lambda _progress: None, turned: Turned = lambda _lane: None
) -> float | None:
    """Do a claimed job and note how it ended; the seconds to leave it alone where it is not the time for it yet."""
    with logs.about(job.id):
        _say("begins", job)
        try:
            return await _done(jobs, job, handler, also, turned)
        finally:
            with contextlib.suppress(ApplianceError):
                _say("is left", jobs.get(job.id))


def _say(what: str, job: Job) -> None:
    """A line for the log. What its faults say, and what it works on, is told in the job's own record."""
    facts = {"kind": job.kind, "state": job.state, "attempt": job.attempts}
    if job.error:
        facts["code"] = job.error["code"]
    _log.info("a job %s", what, extra={"facts": facts})


async def _done(jobs: Jobs, job: Job, handler: Handler, also: Tell, turned: Turned) -> float | None:
    latest: dict[str, Any] = dict(job.progress)

    def tell(progress: dict[str, Any]) -> None:
        if progress.get("stage") != latest.get("stage"):
            jobs.note(job.id, f"{progress.get('stage')}")
        latest.update(progress)
        also(progress)

    jobs.note(job.id, f"{job.kind} begins, attempt {job.attempts}, process {os.getpid()}")
    task = asyncio.ensure_future(handler(job, tell))
    try:
        await _watch(jobs, job, task, latest, turned)
    except asyncio.CancelledError:  # this process is told to stop, not the job
        over = task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        with contextlib.suppress(ApplianceError):  # what cannot be written now counts as broken off; the process stops
            if over or not (task.cancelled() or task.exception()):
                _ended(jobs, job, task)
            else:
                jobs.put_back(job.id)
                jobs.note(job.id, "stopped with its process; it goes on when the queue is worked again")
        raise
    return _ended(jobs, job, task)


def _ended(jobs: Jobs, job: Job, task: asyncio.Future[dict[str, Any]]) -> float | None:
    """Write down how a job came to its end; the seconds to leave it alone where it is not the time for it yet."""
    try:
        jobs.finish(job.id, task.result())
        jobs.note(job.id, "done")
    except asyncio.CancelledError:  # the job's own: somebody asked for it
        jobs.cancelled(job.id)
        jobs.note(job.id, "cancelled")
    except Busy as error:
        jobs.put_back(job.id, error)
        jobs.note(job.id, f"put back: {error.message}")
        return error.retry_after
    except ApplianceError as error:
        jobs.fail(job.id, error)
        jobs.note(job.id, f"failed: {error.message} {error.hint}")
    except Exception as error:  # noqa: BLE001 - one job's fault must not end the worker; the trace is in its record
        jobs.note(job.id, traceback.format_exc())
        sentence = ApplianceError(f"A fault in the appliance: {type(error).__name__}.", f"See `appliance jobs log {job.id}`.")
        jobs.fail(job.id, sentence)
    return None


async def _watch(jobs: Jobs, job: Job, task: asyncio.Future[dict[str, Any]], latest: dict[str, Any], turned: Turned) -> None:
    """Wait for the task's end, write its progress down, and cancel it when it is asked to stop."""
    written, next_write = dict(latest), 0.0
    while not task.done():
        await asyncio.wait({task}, timeout=LOOK)
        turned(job.lane)
        with contextlib.suppress(ApplianceError):  # a full disk stops the work where it must, not here
            if not task.done() and await asyncio.to_thread(jobs.asked_to_stop, job.id):
                task.cancel()
                while not task.done():  # as long as it takes: what it does cannot always be cut short
                    await asyncio.wait({task}, timeout=LOOK)
                    turned(job.lane)
            if latest != written and time.monotonic() >= next_write:
                written, next_write = dict(latest), time.monotonic() + WRITE
                await asyncio.to_thread(jobs.beat, job.id, written)


def _error(error: ApplianceError) -> dict[str, Any]:
    return {"code": error.code, "message": error.message, "hint": error.hint, "exit_code": error.exit_code}


def _job(row: Any) -> Job:
    return Job(**row._mapping)
