"""The administrator's pages about the box itself: is it well, what it works on, how it is set, and who did what.

Only looks, but for jobs, which can be stopped and begun again. Rights are decided in `accounts`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from appliance import doctor, selftest
from appliance.errors import ApplianceError, NotFound
from appliance.settings import CONFIG_FILE, Settings
from appliance.web import auth, show
from appliance.web.charts import charts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from appliance.accounts import User
    from appliance.audit import Entry

router = APIRouter()

NEWEST = 200
LOG_LINES = 200


async def _enter(request: Request, verb: str, thing: str) -> User:
    user = await auth.person(request)
    auth.box(request).accounts.require(user, verb, thing)
    return user


@router.get("/admin")
async def admin(request: Request) -> Response:
    await _enter(request, "read", "settings")
    found = await _checks(request)
    return await show.page(request, "admin.html", amiss=[one for one in found if not one.ok])


@router.get("/admin/health")
async def health(request: Request) -> Response:
    await _enter(request, "read", "settings")
    box = auth.box(request)
    drawn = await asyncio.to_thread(charts, box.figures)
    measured = await asyncio.to_thread(selftest.last, box.settings)
    return await show.page(request, "health.html", checks=await _checks(request), charts=drawn, measured=measured)


async def _checks(request: Request) -> Any:
    box = auth.box(request)
    return await doctor.checks(box.settings, box.database, box.pool, box.jobs, box.people, box.registry)


def _plain(value: Any) -> Any:
    """A list as people write one."""
    return ", ".join(map(str, value)) if isinstance(value, list) else value


@router.get("/admin/settings")
async def settings(request: Request) -> Response:
    """Every setting with its value, what it is by itself, and what it does; one that is secret is not shown."""
    await _enter(request, "read", "settings")
    now = auth.box(request).settings
    values = now.model_dump(mode="json")
    usual = Settings.model_fields
    rows = [
        {
            "name": name,
            "value": "" if _secret(usual[name]) else _plain(values[name]),
            "changed": not usual[name].is_required()
            and usual[name].get_default(call_default_factory=True) != getattr(now, name),
            "help": usual[name].description,
        }
        for name in usual
    ]
    return await show.page(request, "settings.html", rows=rows, file=str(CONFIG_FILE))


def _secret(field: Any) -> bool:
    return bool((field.json_schema_extra or {}).get("secret"))


@router.get("/admin/audit")
async def audit(request: Request) -> Response:
    await _enter(request, "read", "audit")
    box = auth.box(request)
    wanted = request.query_params.get("verb", "")[:80]
    entries = (await asyncio.to_thread(lambda: box.audit.entries(newest=5 * NEWEST)))[::-1]
    verbs = sorted({one.verb for one in entries})
    chosen = [one for one in entries if not wanted or one.verb == wanted][:NEWEST]
    names = await asyncio.to_thread(_names, box, chosen)
    verified, fault = None, None
    if request.query_params.get("verify"):
        try:
            verified = await asyncio.to_thread(box.audit.verify)
        except ApplianceError as error:
            fault = error
    return await show.page(
        request,
        "audit.html",
        entries=chosen,
        verbs=verbs,
        wanted=wanted,
        names=names,
        id_of=_id,
        verified=verified,
        error=fault,
    )


def _names(box: Any, entries: Sequence[Entry]) -> dict[str, str]:
    """What the people, classes and models of these rows are called now, by id. The record holds ids alone, so that whoever is
    erased is erased from it too: they stay an id.
    """
    ids = {id for one in entries for id in (one.actor, _id(one.thing))}
    classes = {one.id: one.name for one in box.classes.list(archived=True)}
    models = {one.id: one.title for one in box.registry.list()}
    return {id: name for id, name in {**models, **classes, **box.accounts.names(ids)}.items() if id in ids and name != id}


def _id(thing: str) -> str:
    """ "person", then an id, is how the record names whom another system vouches for."""
    return thing.removeprefix("person ")


# --- jobs -----------------------------------------------------------------------------------------------------------------
@router.get("/admin/jobs")
async def jobs(request: Request) -> Response:
    await _enter(request, "read", "job")
    box = auth.box(request)
    found = await asyncio.to_thread(box.jobs.list)
    names = await asyncio.to_thread(box.accounts.names, {one.owner for one in found})
    works = await asyncio.to_thread(box.jobs.works)
    return await show.page(request, "jobs.html", jobs=found, names=names, works=works)


@router.get("/admin/jobs/{id}")
async def job(request: Request, id: str) -> Response:
    await _enter(request, "read", "job")
    box = auth.box(request)
    found = await asyncio.to_thread(_known, box, id)
    log = await asyncio.to_thread(_log, box, id)
    return await show.page(request, "job.html", job=found, log=log)


def _known(box: Any, id: str) -> Any:
    try:
        return box.jobs.get(id)
    except NotFound:
        raise NotFound("There is no such job here.", "See the list of jobs.") from None


def _log(box: Any, id: str) -> str:
    try:
        lines = box.jobs.log(id).read_text("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-LOG_LINES:])


@router.post("/admin/jobs/{id}/cancel")
async def cancel(request: Request, id: str) -> Response:
    user = await _enter(request, "change", "job")
    await auth.form(request)
    box = auth.box(request)
    await asyncio.to_thread(_known, box, id)
    await asyncio.to_thread(box.jobs.cancel, id)
    await asyncio.to_thread(lambda: box.audit.note("cancel job", id, {}, actor=user.id))
    return RedirectResponse(f"/admin/jobs/{id}", 303)


@router.post("/admin/jobs/{id}/again")
async def again(request: Request, id: str) -> Response:
    """Ask for the same work once more; what is finished is kept."""
    user = await _enter(request, "change", "job")
    await auth.form(request)
    box = auth.box(request)
    old = await asyncio.to_thread(_known, box, id)
    made = await asyncio.to_thread(lambda: box.jobs.enqueue(old.kind, old.payload, lane=old.lane, owner=user.id))
    await asyncio.to_thread(lambda: box.audit.note("repeat job", id, {"job": made.id}, actor=user.id))
    return RedirectResponse(f"/admin/jobs/{made.id}", 303)
