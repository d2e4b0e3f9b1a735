"""The pages by which staff fill the library: give files, see what became of each, open collections, take documents out.

A file is read by a job, never here: the page that follows shows how far it is. Hides how a form with files is read within
bounds. Rights are decided in `accounts`, where files lie in `knowledge.uploads`.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from starlette.datastructures import UploadFile
from starlette.responses import JSONResponse, RedirectResponse, Response

from appliance.backup import sweep_now
from appliance.errors import ApplianceError, BadInput, NotFound
from appliance.knowledge import ingest as bulk
from appliance.knowledge.shelves import EVERYTHING, Collection, Filter, Reader
from appliance.knowledge.uploads import Given, Uploads
from appliance.web import auth, show

if TYPE_CHECKING:
    from appliance.accounts import User

router = APIRouter()

ADDRESS = "/library/add"
AT_ONCE = 512 * 2**20  # bytes in one sending; a file's own limit is the setting `document_mb`
FILES_AT_ONCE = 50
STAFF = tuple(Reader("role", role) for role in ("teacher", "safeguarding", "administrator"))


@router.get(ADDRESS)
async def choose(request: Request) -> Response:
    return await _form(request)


async def _form(request: Request, error: ApplianceError | None = None, **typed: str) -> Response:
    user = await auth.person(request)
    auth.box(request).accounts.require(user, "add", "library")
    shelves = await asyncio.to_thread(own_collections, request, user)
    status = error.status if error else 200
    limit = auth.box(request).settings.document_mb
    return await show.page(
        request, "library_add.html", status, error=error, shelves=shelves, limit=limit, classes=sorted(user.classes), **typed
    )


@router.post(ADDRESS, max_body_size=AT_ONCE)
async def add(request: Request) -> Response:
    """Keep the files and leave them to the worker. A plain form gets the job's page, a script its address."""
    user = await auth.person(request)
    box = auth.box(request)
    box.accounts.require(user, "add", "library")
    plain = "text/html" in request.headers.get("accept", "")
    uploads, typed = Uploads(box.settings), {}
    try:
        # Asked for before a byte is read: what cannot be kept, or may have no end, is refused at once.
        length = request.headers.get("content-length", "")
        if not (length.isascii() and length.isdigit()):
            raise BadInput("It was not said how much would be sent.", "Send files with a browser, or say their size first.")
        await asyncio.to_thread(uploads.require_room, int(length))
        async with request.form(max_files=FILES_AT_ONCE, max_fields=20, max_part_size=64 * 1024) as data:
            await auth.check(request, data)
            typed = {name: auth.text(data, name) for name in ("collection", "new", "readers", "subject", "grade")}
            given = [
                Given(file.filename or "", file.file, file.size or 0)
                for file in data.getlist("files")
                if isinstance(file, UploadFile) and (file.size or file.filename)
            ]
            if not given:
                raise BadInput("No file was chosen.", "Choose one or more files, then send them.")
            job = await asyncio.to_thread(_leave, request, user, uploads, given, typed)
    except ApplianceError as error:
        if not plain:
            raise
        return await _form(request, error, **typed)
    where = f"/library/job/{job}"
    return RedirectResponse(where, 303) if plain else JSONResponse({"url": where})


def _leave(request: Request, user: User, uploads: Uploads, given: list[Given], typed: dict[str, str]) -> str:
    box = auth.box(request)
    shelf = _shelf(request, user, typed)
    try:
        paths = uploads.keep(given, shelf.id)
    except ApplianceError:
        if not typed["collection"]:  # made for these files: without them its name stays free for the next try
            box.library.shelves.discard(shelf.name, Filter(frozenset({shelf.id})))
            box.audit.note("discard collection", shelf.id, {}, actor=user.id)
        raise
    asked = {
        "paths": [str(path) for path in paths], "collection": shelf.name, "collection_id": shelf.id,
        "by": user.id if shelf.owner == user.id else "", "subject": typed["subject"], "grade": typed["grade"],
        "inside": str(box.settings.uploads),
    }  # fmt: skip
    job = box.jobs.enqueue(bulk.LATER, asked, lane="light", owner=user.id, anew=True)
    box.audit.note("add documents", shelf.id, {"job": job.id, "files": len(paths)}, actor=user.id)
    return str(job.id)


def _shelf(request: Request, user: User, typed: dict[str, str]) -> Collection:
    """The collection that was chosen, or a new one of the person's own with the readers that were chosen."""
    box = auth.box(request)
    if typed["collection"]:
        for one in own_collections(request, user):
            if one.id == typed["collection"]:
                return one
        raise NotFound("There is no such collection of yours.", "Choose one of the list, or name a new one.")
    if not typed["new"].strip():
        raise BadInput("The files need a collection to stand in.", "Choose one, or give a new one a name.")
    readers = _readers(user, typed["readers"])
    made = box.library.shelves.create(
        typed["new"], owner=user.id, subject=typed["subject"], grade=typed["grade"], readers=readers
    )
    box.audit.note("create collection", made.id, {"readers": [[one.kind, one.name] for one in made.readers]}, actor=user.id)
    return made


def _readers(user: User, chosen: str) -> tuple[Reader, ...]:
    kind, _, name = chosen.partition(":")
    if kind == "class" and name in user.classes:
        return (Reader("class", name), *STAFF)
    return {"everyone": (Reader("everyone"),), "staff": STAFF}.get(chosen, ())


def own_collections(request: Request, user: User) -> list[Collection]:
    """The collections that this person may add to: their own, and with the right to it the school's. Blocking."""
    box = auth.box(request)
    if not box.accounts.can(user, "add", "library"):
        return []
    may_all = box.accounts.can(user, "change", "library")
    listed = box.library.shelves.list(EVERYTHING if may_all else Filter(box.accounts.visible(user, "collection")))
    return [one for one in listed if one.owner == user.id or (may_all and not one.owner)]


# --- what became of them ----------------------------------------------------------------------------------------------
@router.get("/library/job/{id}")
async def job(request: Request, id: str) -> Response:
    user = await auth.person(request)
    found = await asyncio.to_thread(_job, request, user, id)
    reports = await asyncio.to_thread(bulk.Record(auth.box(request).database, id).reports)
    done = {report.path for report in reports}
    waiting = [Path(path).name for path in found.payload["paths"] if path not in done]
    return await show.page(
        request, "library_job.html", job=found, reports=reports, waiting=[] if found.ended else waiting,
        idle=not found.ended and not await asyncio.to_thread(auth.box(request).jobs.works),
        failed=[report for report in reports if report.error],
    )  # fmt: skip


@router.post("/library/job/{id}/again")
async def again(request: Request, id: str) -> Response:
    """Try the files again that could not be read."""
    user = await auth.person(request)
    await auth.form(request)
    box = auth.box(request)
    found = await asyncio.to_thread(_job, request, user, id)
    reports = await asyncio.to_thread(bulk.Record(box.database, id).reports)
    paths = [report.path for report in reports if report.error]
    if not paths or not found.ended:
        return RedirectResponse(f"/library/job/{id}", 303)
    asked = {**found.payload, "paths": paths}
    made = await asyncio.to_thread(lambda: box.jobs.enqueue(bulk.LATER, asked, lane="light", owner=user.id, anew=True))
    return RedirectResponse(f"/library/job/{made.id}", 303)


def _job(request: Request, user: User, id: str) -> Any:
    """A job of this person's that adds documents. Raises NotFound."""
    box = auth.box(request)
    box.accounts.require(user, "add", "library")
    found = box.jobs.get(id)
    if found.kind != bulk.LATER or (found.owner != user.id and not box.accounts.can(user, "read", "job")):
        raise NotFound("There is no such job here.", "See the library.")
    return found


# --- taking out -------------------------------------------------------------------------------------------------------
@router.post("/document/{id}/remove")
async def remove(request: Request, id: str) -> Response:
    user, within = await _changer(request)
    await auth.form(request)
    await auth.box(request).library.remove(id, within, by=user.id)
    await asyncio.to_thread(auth.box(request).audit.note, "remove document", id, {}, actor=user.id)
    with suppress(ApplianceError):  # it is taken out here; the nightly backup takes it out of kept states too
        await asyncio.to_thread(sweep_now, auth.box(request).settings, auth.box(request).database)
    return RedirectResponse(f"/document/{id}", 303)


@router.post("/document/{id}/move")
async def move(request: Request, id: str) -> Response:
    user, within = await _changer(request)
    data = await auth.form(request)
    wanted = auth.text(data, "collection")
    to = next((one for one in await asyncio.to_thread(own_collections, request, user) if one.id == wanted), None)
    if to is None:
        raise NotFound("There is no such collection of yours.", "Choose one of the list.")
    await auth.box(request).library.move(id, to.name, within)
    facts = {"collection": to.id}
    await asyncio.to_thread(lambda: auth.box(request).audit.note("move document", id, facts, actor=user.id))
    return RedirectResponse(f"/document/{id}", 303)


async def _changer(request: Request) -> tuple[User, Filter]:
    """Who changes documents, and which: those of collections that they may add to."""
    user = await auth.person(request)
    auth.box(request).accounts.require(user, "add", "library")
    return user, Filter(frozenset(one.id for one in await asyncio.to_thread(own_collections, request, user)))
