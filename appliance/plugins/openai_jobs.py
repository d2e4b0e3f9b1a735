"""One fine-tuning at OpenAI, from the first file to the model's name, so that no cut leaves it half or has it done twice.

Hides the state that is kept of it (`HOME/openai/runs/ID.json`: ids and counts, no words) and written before the next step is
taken; and that what a broken line left in doubt is looked up there before it is sent again: a file by its name, which is its
digest, a job by the run that stands in its metadata. Each `advance` is one look, so that whoever calls it may die in between.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from appliance.errors import ApplianceError, BadInput, Conflict, NotFound, UnderWay, from_os_error
from appliance.files import make_folder
from appliance.plugins import openai_line as line
from appliance.plugins.openai_data import Part, Prepared, content_of
from appliance.settings import Settings
from appliance.tuning.run_folder import read_json, write_json

if TYPE_CHECKING:
    from openai import AsyncOpenAI

DELETED = "deleted"  # our own word: the job had succeeded, and its model was deleted there at our wish
ENDED = frozenset({"succeeded", "failed", "cancelled", DELETED})
KEPT_SECONDS = 30 * 24 * 3600  # how long the files are to lie there
LOOKED_AT = 1000  # of the newest files and jobs there, when one is looked for
Row = dict[str, Any]


@dataclass(frozen=True)
class Status:
    """How a run stands. status: "new" before there is a job, then the service's own word. cost in the money of the prices.

    attempt counts the jobs of the same run: another one only where somebody asks again after one that did not succeed.
    digest: of the dataset, which says whose rows were sent. A file's id stands here as long as it lies there.
    """

    run: str
    model: str
    attempt: int = 1
    confirmed_by: str = ""
    train_file: str = ""
    validation_file: str = ""
    job: str = ""
    status: str = "new"
    step: int = 0
    steps: int = 0
    loss: float | None = None
    finishes: float | None = None
    event: str = ""
    tuned: str = ""
    checkpoints: tuple[str, ...] = ()
    trained_tokens: int | None = None
    trouble: str = ""
    updated: float = 0.0
    digest: str = ""

    @property
    def lies_there(self) -> bool:
        """Whether files, or a model that was made of them, are at the service as far as is known here."""
        return bool(self.train_file or self.validation_file or self.tuned)

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    def to_json(self) -> Row:
        return asdict(self)


@dataclass(frozen=True)
class Event:
    """One line that the service says of a job; figures where it has some."""

    id: str
    at: float
    level: str
    message: str
    data: Row


# --- what is kept -----------------------------------------------------------------------------------------------------------
class Kept:
    """The states of one home."""

    def __init__(self, settings: Settings) -> None:
        self._folder = settings.openai / "runs"

    def get(self, id: str) -> Status:
        """By the run's id, or by the job's at the service. Raises NotFound."""
        for one in self.all():
            if id in (one.run, one.job):
                return one
        raise NotFound(f"There is no run {id[:80]!r}.", "See `appliance tune openai list`.")

    def all(self) -> list[Status]:
        """The newest first."""
        found = (read_json(path) for path in sorted(self._folder.glob("openai-*.json")))
        made = [Status(**(raw | {"checkpoints": tuple(raw["checkpoints"])})) for raw in found if isinstance(raw, dict)]
        return sorted(made, key=lambda one: -one.updated)

    def put(self, status: Status) -> Status:
        status = replace(status, updated=time.time())
        write_json(self._folder / f"{status.run}.json", status.to_json())
        return status

    @contextmanager
    def only(self, run: str) -> Iterator[None]:
        """Be the one who works on a run. Raises UnderWay while another process does."""
        try:
            make_folder(self._folder)
            handle = open(self._folder / f"{run}.lock", "a")  # noqa: SIM115 - closed below, and the lock with it
        except OSError as error:
            raise from_os_error(error, "keeping what was sent") from None
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UnderWay(f"The run {run} is being worked on by another process.", "Wait a moment.") from None
            yield

    def begin(self, prepared: Prepared, confirmed_by: str) -> Status:
        """The state to go on from: of this run's job that is under way or has succeeded, else of a new attempt."""
        try:
            known = self.get(prepared.id)
        except NotFound:
            return self.put(
                Status(prepared.id, prepared.wish.model, confirmed_by=confirmed_by, digest=prepared.digest)
            )  # fmt: skip
        if known.ended and known.status != "succeeded":
            fresh = Status(
                known.run, known.model, attempt=known.attempt + 1, confirmed_by=confirmed_by, digest=prepared.digest
            )  # fmt: skip
            return self.put(replace(fresh, train_file=known.train_file, validation_file=known.validation_file))
        return self.put(replace(known, confirmed_by=confirmed_by, trouble=""))


# --- one step ---------------------------------------------------------------------------------------------------------------
class Fault(ApplianceError):
    """The job failed at the service."""


async def advance(client: AsyncOpenAI, kept: Kept, prepared: Prepared, on_event: Callable[[Event], None]) -> Status:
    """Do what is missing, then look once; each result is kept before the next step. Raises what went wrong."""
    status = kept.get(prepared.id)
    if not status.job:
        status = kept.put(replace(status, train_file=await _file(client, status.train_file, prepared.train)))
        if prepared.validation is not None:
            status = kept.put(
                replace(status, validation_file=await _file(client, status.validation_file, prepared.validation))
            )  # fmt: skip
        found = await _job_there(client, status)
        job = found if found is not None else await _create(client, status, prepared)
        status = kept.put(replace(status, job=job.id, status=job.status))
    return await look(client, kept, status, on_event)


async def look(client: AsyncOpenAI, kept: Kept, status: Status, on_event: Callable[[Event], None]) -> Status:
    """How its job stands now, with what it said since; a job that failed leaves its reason in `trouble`."""
    job = await client.fine_tuning.jobs.retrieve(status.job)
    for event in await _events(client, status):
        on_event(event)
        data = event.data
        status = replace(
            status, event=event.id, step=int(data.get("step") or status.step),
            steps=int(data.get("total_steps") or status.steps), loss=_figure(data.get("train_loss"), status.loss),
        )  # fmt: skip
    checkpoints = status.checkpoints
    if job.status == "succeeded":
        page = await client.fine_tuning.jobs.checkpoints.list(status.job, limit=10)
        checkpoints = tuple(one.fine_tuned_model_checkpoint for one in page.data)
        if not job.fine_tuned_model:
            raise BadInput(
                f"OpenAI says that the job {job.id} succeeded, and names no model.", "Look at it in the account there."
            )
    why = line.plain(job.error.message) if job.error is not None and job.error.message else ""
    return kept.put(
        replace(
            status, status=job.status, tuned=job.fine_tuned_model or "", checkpoints=checkpoints, trouble=why,
            trained_tokens=job.trained_tokens, finishes=float(job.estimated_finish) if job.estimated_finish else None,
        )
    )  # fmt: skip


def _figure(value: Any, before: float | None) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else before


async def _file(client: AsyncOpenAI, known: str, part: Part) -> str:
    """The id of a file at the service: the one that is kept, one with this content that lies there, or a new one."""
    if known:
        try:
            return (await client.files.retrieve(known)).id
        except Exception as error:
            if getattr(error, "status_code", 0) != 404:
                raise  # only where it is deleted by now it is sent anew
    seen = 0
    async for there in client.files.list(purpose="fine-tune", order="desc", limit=100):
        seen += 1
        if there.filename == part.remote_name and there.bytes == part.bytes and there.status != "error":
            return there.id
        if seen >= LOOKED_AT:
            break
    made = await client.files.create(
        file=(part.remote_name, content_of(part), "application/jsonl"), purpose="fine-tune",
        expires_after={"anchor": "created_at", "seconds": KEPT_SECONDS},
    )  # fmt: skip
    return made.id


def _mark(status: Status) -> dict[str, str]:
    return {"run": status.run, "attempt": str(status.attempt)}


async def _job_there(client: AsyncOpenAI, status: Status) -> Any:
    """The job of this attempt where it was made before the line broke; None where it was not."""
    seen = 0
    async for job in client.fine_tuning.jobs.list(limit=100, metadata={"run": status.run}):
        seen += 1
        if (job.metadata or {}) == _mark(status):
            return job
        if seen >= LOOKED_AT:
            break
    return None


async def _create(client: AsyncOpenAI, status: Status, prepared: Prepared) -> Any:
    wish = prepared.wish
    kind = "dpo" if wish.method == "preference" else "supervised"
    chosen = wish.hyperparameters()
    method: Any = {"type": kind, kind: {"hyperparameters": chosen} if chosen else {}}
    more: Row = {name: value for name, value in (("suffix", wish.suffix), ("seed", wish.seed)) if value not in ("", None)}
    if status.validation_file:
        more["validation_file"] = status.validation_file
    return await client.fine_tuning.jobs.create(
        model=wish.model, training_file=status.train_file, method=method, metadata=_mark(status), **more
    )


async def _events(client: AsyncOpenAI, status: Status) -> list[Event]:
    """What it said since the last look, oldest first."""
    found: list[Event] = []
    async for event in client.fine_tuning.jobs.list_events(status.job, limit=100):  # the service gives the newest first
        if event.id == status.event or len(found) >= LOOKED_AT:
            break
        data = event.data if isinstance(event.data, dict) else {}
        found.append(Event(event.id, float(event.created_at), event.level, line.plain(event.message), data))
    return found[::-1]


async def cancel(client: AsyncOpenAI, kept: Kept, status: Status) -> Status:
    """End it there as well; one that has ended stays as it ended."""
    if not status.job:
        found = await _job_there(client, status)  # made, perhaps, before a line broke
        if found is None:
            return kept.put(replace(status, status="cancelled"))
        status = kept.put(replace(status, job=found.id))
    job = await client.fine_tuning.jobs.retrieve(status.job)
    if job.status not in ENDED:
        job = await client.fine_tuning.jobs.cancel(status.job)
    return kept.put(replace(status, status=job.status, tuned=job.fine_tuned_model or ""))


async def delete(client: AsyncOpenAI, kept: Kept, status: Status, *, models: bool) -> list[str]:
    """Take its files off the service, and the models that were made of them where that is asked; the names of what went.

    What is gone there already counts as gone. Raises Conflict where a job that is under way still needs them.
    """
    files = {status.train_file, status.validation_file} - {""}
    needing = [one for one in kept.all() if not one.ended and (one.run == status.run or {one.train_file} & files)]
    if any(one.job for one in needing):
        raise Conflict(
            f"{needing[0].run} is under way at OpenAI and needs these files.",
            f"Let it end, or end it: `appliance tune openai cancel {needing[0].run}`.",
        )
    gone = [id for id in sorted(files) if await _gone(client.files.delete(id))]
    for one in kept.all():
        if {one.train_file, one.validation_file} & files:
            kept.put(
                replace(
                    one, train_file="" if one.train_file in files else one.train_file,
                    validation_file="" if one.validation_file in files else one.validation_file,
                )
            )  # fmt: skip
    if models and status.tuned:
        names = (status.tuned, *status.checkpoints)
        gone += [name for name in names if await _gone(client.models.delete(name))]
        kept.put(replace(kept.get(status.run), status=DELETED, tuned="", checkpoints=()))
    return gone


async def _gone(deleting: Awaitable[Any]) -> bool:
    """Whether it was there until now."""
    try:
        await deleting
    except Exception as error:
        if getattr(error, "status_code", 0) != 404:
            raise
        return False
    return True


def failure(status: Status) -> ApplianceError:
    """Why a run that ended has no model."""
    if status.status == DELETED:
        return BadInput(f"The model of {status.run} was deleted at OpenAI.", "The command that began it makes it anew.")
    if status.status == "cancelled":
        return BadInput(f"The run {status.run} was cancelled.", "Run the same command again: its files need not be sent again.")
    why = status.trouble or "It does not say why."
    return Fault(
        f"OpenAI could not tune the model: {why}",
        f"Correct that, then run the same command again; the job there is {status.job}.",
    )
