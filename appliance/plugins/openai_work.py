"""The durable job that sees a fine-tuning at OpenAI through: it sends, follows, and registers what came of it.

Hides back-off while the line is down, the end when the policy is closed meanwhile (the run is marked; the job there goes on),
and what a finished run leaves: a hosted model in the registry, with its dataset, its cost and who answers for it. May be killed
at any moment and begun again: `openai_jobs` keeps what was done.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from appliance.db import Database
from appliance.errors import ApplianceError, Busy, Conflict, Forbidden, ModelUnavailable, Unreachable
from appliance.plugins import openai_jobs as jobs
from appliance.plugins import openai_line as line
from appliance.plugins import require
from appliance.plugins.openai_data import Prepared
from appliance.plugins.openai_jobs import Event, Kept, Status
from appliance.plugins.openai_money import prices
from appliance.registry import Manifest, Registry
from appliance.settings import Settings
from appliance.tuning.run_folder import write_json
from appliance.tuning.store import ExampleStore

KIND, LANE = "tune openai", "outside"
SENDING_TRIES = 3
LONGEST_WAIT = 600.0  # seconds between two looks while the line is down
GIVE_UP = 24 * 3600.0
CANCEL_SECONDS = 15.0
STAGES = {
    "new": "Sending to OpenAI", "validating_files": "OpenAI checks the files", "queued": "Waiting at OpenAI",
    "paused": "Paused at OpenAI", "running": "Tuning at OpenAI",
}  # fmt: skip
Tell = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Box:
    """What the work needs of the box. note: takes a line for the job's own record; stop: whether somebody asked for its end."""

    settings: Settings
    database: Database
    registry: Registry
    note: Callable[[str], None] = lambda _line: None
    stop: Callable[[], bool] = lambda: False


async def see_through(box: Box, run: str, tell: Tell) -> dict[str, Any]:
    """Until it has ended. Raises what stopped it; Forbidden where the policy was closed."""
    kept = Kept(box.settings)
    with kept.only(run):
        await _none_withdrawn(box, kept, run)
        prepared = Prepared.load(box.settings.runs / run)
        try:
            status = await _follow(box, kept, prepared, tell)
        except asyncio.CancelledError:
            if box.stop():
                await _end_there(box, kept, run)
            raise
        except Forbidden as error:
            raise _closed(kept, run, error) from None
        except ApplianceError as error:
            kept.put(replace(kept.get(run), trouble=error.message))
            raise
        if status.status != "succeeded":
            raise jobs.failure(status)
        return await asyncio.to_thread(_register, box, prepared, status)


async def _follow(box: Box, kept: Kept, prepared: Prepared, tell: Tell) -> Status:
    tries, since = 0, time.monotonic()
    while True:
        status = kept.get(prepared.id)
        if status.status == jobs.DELETED:
            return status
        await _none_withdrawn(box, kept, status.run)
        try:
            if not status.job:
                tell(_progress(status))
            require(box.settings, "openai")
            async with line.official_client(box.settings) as client:
                status = await jobs.advance(client, kept, prepared, lambda event: box.note(_said(event)))
        except line.Refused:
            raise
        except (Unreachable, ModelUnavailable, Busy) as error:
            tries += 1
            sent = bool(kept.get(prepared.id).job)
            if (not sent and tries >= SENDING_TRIES) or time.monotonic() - since > GIVE_UP:
                raise _in_vain(error, sent) from None
            wait = min(box.settings.openai_poll_seconds * 2**tries, LONGEST_WAIT)
            wait = max(wait, error.retry_after) if isinstance(error, Busy) else wait
            kept.put(replace(kept.get(prepared.id), trouble=error.message))
            box.note(f"{error.message} Another look in {wait:.0f} s.")
            await asyncio.sleep(wait)
            continue
        tries, since = 0, time.monotonic()
        tell(_progress(status))
        if status.ended:
            await _none_withdrawn(box, kept, status.run)
            return status
        await asyncio.sleep(box.settings.openai_poll_seconds)


def _in_vain(error: ApplianceError, sent: bool) -> ApplianceError:
    known = "what was sent is kept and is not sent again" if not sent else "the job there goes on"
    return Unreachable(error.message, f"{error.hint} The same command goes on from there: {known}.")


def _closed(kept: Kept, run: str, error: Forbidden) -> Forbidden:
    """Marked, and said in one sentence: what is under way there cannot be ended from here any more."""
    status = kept.put(replace(kept.get(run), trouble="The network policy was closed while this was under way."))
    if not status.job:
        return Forbidden(error.message, error.hint)
    return Forbidden(
        f"{error.message} The job {status.job} at OpenAI goes on, and costs.",
        f"{error.hint} Then the same command goes on with it, and `appliance tune openai cancel` ends it.",
    )


async def _end_there(box: Box, kept: Kept, run: str) -> None:
    """Somebody cancelled: the job there costs money, so it is ended too, as far as the line allows."""
    status = kept.get(run)
    try:
        async with asyncio.timeout(CANCEL_SECONDS), line.official_client(box.settings) as client:
            status = await jobs.cancel(client, kept, status)
            box.note(f"cancelled at OpenAI as well: {status.job or 'there was no job yet'}")
    except (ApplianceError, TimeoutError) as error:
        why = error.message if isinstance(error, ApplianceError) else "OpenAI took too long to answer."
        kept.put(replace(status, trouble=f"Cancelled here, but not there: {why}"))
        box.note(f"not cancelled at OpenAI, where {status.job or 'it'} may go on: {why}")


async def _none_withdrawn(box: Box, kept: Kept, run: str) -> None:
    """Raises Conflict where rows of a run have been withdrawn since it was prepared; what was sent is taken back then."""
    status = kept.get(run)
    gone = await asyncio.to_thread(ExampleStore(box.database).withdrawn_from, status.digest)
    if not gone:
        return
    again = "Run the command again: it reads the examples anew, without them."
    if not (status.job or status.lies_there):
        raise Conflict(f"{len(gone)} rows of {run} have been withdrawn since; nothing was sent.", again)
    told = f"{len(gone)} rows of {run} were withdrawn while OpenAI had them"
    try:
        async with asyncio.timeout(CANCEL_SECONDS), line.official_client(box.settings) as client:
            status = await jobs.cancel(client, kept, status)
            if status.job:  # it may have ended by itself: then its models have to be known
                status = await jobs.look(client, kept, status, lambda _event: None)
            await jobs.delete(client, kept, status, models=True)
    except (ApplianceError, TimeoutError) as error:
        why = error.message if isinstance(error, ApplianceError) else "OpenAI took too long to answer."
        kept.put(replace(kept.get(run), trouble=f"Rows were withdrawn, and are still there: {why}"))
        raise Conflict(
            f"{told}, and they could not be taken back: {why}",
            f"As soon as the line is there: `appliance tune openai cancel {run}`, then `delete {run} --with-model`.",
        ) from None
    raise Conflict(f"{told}: its job was ended, and its files and what was made of them are deleted there.", again)


def _progress(status: Status) -> dict[str, Any]:
    left = None if status.finishes is None else max(status.finishes - time.time(), 0.0)
    facts: dict[str, Any] = {"run": status.run, "job": status.job, "status": status.status}
    if status.loss is not None:
        facts["loss"] = status.loss
    stage = STAGES.get(status.status, f"At OpenAI: {status.status}")
    return {"stage": stage, "done": status.step, "total": status.steps, "left": left, "facts": facts}


def _said(event: Event) -> str:
    return f"OpenAI: {event.message}" if event.level == "info" else f"OpenAI ({event.level}): {event.message}"


# --- what came of it ----------------------------------------------------------------------------------------------------------
def _register(box: Box, prepared: Prepared, status: Status) -> dict[str, Any]:
    listed = prices(box.settings)
    price = listed.of(prepared.wish.model)
    cost = prepared.cost if status.trained_tokens is None else status.trained_tokens * price.training / 1e6
    wishes = json.dumps(asdict(prepared.wish), sort_keys=True).encode()
    manifest = Manifest(
        id=f"openai-{price.name}-{prepared.id.removeprefix('openai-')[:8]}"[:64], kind="hosted",
        title=f"{price.name}, tuned at OpenAI", licence="OpenAI's terms of use", context=price.context, files={},
        dataset=prepared.digest, recipe=hashlib.sha256(wishes).hexdigest(),
        hosted={
            "plugin": "openai", "model": status.tuned, "base": prepared.wish.model, "method": prepared.wish.method,
            "job": status.job, "run": status.run, "checkpoints": list(status.checkpoints), "loss": status.loss,
            "cost": round(cost, 4), "cost_estimated": round(prepared.cost, 4), "currency": listed.currency,
            "trained_tokens": status.trained_tokens, "confirmed_by": status.confirmed_by, "fixed": True,
        },
    )  # fmt: skip
    made = add(box.registry, manifest)
    if prepared.held_out:  # judged by these, which have stayed here; else by the project's own conversations
        write_json(prepared.folder / "name.json", {"id": made.id})
    result = {
        "id": made.id, "report": made.report, "promoted": False,
        "reasons": [f"It was not judged yet: `appliance tune openai evaluate {made.id}`, which asks it questions there."],
        "model": status.tuned, "job": status.job, "run": status.run, "cost": round(cost, 4), "currency": listed.currency,
        "folder": str(prepared.folder),
    }  # fmt: skip
    write_json(prepared.folder / "result.json", result)
    return result


def add(registry: Registry, manifest: Manifest) -> Manifest:
    """The one place where a model of OpenAI's comes into the registry."""
    return registry.add_hosted(manifest)
