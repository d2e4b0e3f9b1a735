"""The pages about documents: what is there, a document open at a passage, and the file it came as.

What the person who asks may not see is answered like what is not there. Of the files only a PDF is shown by the browser; every
other kind is sent to be saved, an HTML file above all: it would speak with this box's own voice. Hides how much of a document
is shown at once. Rights are decided in `accounts`, and what became of a document in `Library`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response

from appliance.errors import NotFound
from appliance.knowledge import suspicion
from appliance.knowledge.charts import by_collection, history_chart
from appliance.knowledge.shelves import Filter, Gone
from appliance.web import auth, show
from appliance.web.uploads import own_collections

if TYPE_CHECKING:
    from collections.abc import Sequence

    from appliance.accounts import User
    from appliance.knowledge.library import Document, Passage

router = APIRouter()

BEFORE, AFTER = 15, 30  # passages around the marked one
FLAGS_LINKED = 5
LISTED = 12  # checks below a chart
# A file is a stranger's: it gets an origin of its own, whatever a browser makes of it. A PDF's viewer needs scripts of its own
# in Safari, which shows an empty page without; they run in that other origin as well.
PDF_POLICY = "sandbox allow-scripts; frame-ancestors 'none'"
FILE_POLICY = "sandbox; default-src 'none'"


@router.get("/library")
async def library(request: Request) -> Response:
    user, within = await _reader(request)
    documents = await auth.box(request).library.documents(within)
    may_review, may_add = (auth.box(request).accounts.can(user, verb, "library") for verb in ("review", "add"))
    return await show.page(request, "library.html", documents=documents, may_review=may_review, may_add=may_add)


@router.get("/library/checks")
async def checks(request: Request) -> Response:
    """How well the search did, check after check: of all collections together, and of each that may be seen."""
    user, within = await _reader(request)
    box = auth.box(request)
    box.accounts.require(user, "review", "library")
    names = {one.name for one in await asyncio.to_thread(box.library.shelves.list, within)}
    found = by_collection(await box.library.checks())
    parts = [
        (name, history_chart(found[name]), found[name][::-1][:LISTED]) for name in sorted(found) if not name or name in names
    ]
    return await show.page(request, "checks.html", parts=parts)


@router.get("/passage/{id}")
async def passage(request: Request, id: int) -> Response:
    """The document, open at the passage; with `?part=1` only the passage and what stands around it."""
    user, within = await _reader(request)
    found = await auth.box(request).library.passage(id, within)
    whole = found if isinstance(found, Gone) else await auth.box(request).library.document(found.document, within)
    if isinstance(found, Gone) or isinstance(whole, Gone):
        return await _gone(request, whole)
    document, passages = whole
    at = next((index for index, one in enumerate(passages) if one.id == id), 0)
    if request.query_params.get("part"):
        around = passages[max(0, at - 1) : at + 2]
        return HTMLResponse(show.render(request, "passage.html", document=document, passages=around, marked=found))
    return await _document(request, user, document, passages, max(0, at - BEFORE), found)


@router.get("/document/{id}")
async def document(request: Request, id: str) -> Response:
    user, within = await _reader(request)
    found = await auth.box(request).library.document(id, within)
    if isinstance(found, Gone):
        return await _gone(request, found)
    start = request.query_params.get("from", "0")
    return await _document(request, user, *found, int(start) if start.isdecimal() and len(start) < 9 else 0, None)


@router.get("/document/{id}/file")
async def file(request: Request, id: str) -> Response:
    """The file as it came. `#page=N` behind the address of a PDF opens it there."""
    _, within = await _reader(request)
    found = await auth.box(request).library.original(id, within)
    if isinstance(found, Gone):
        return await _gone(request, found)
    about, path = found
    try:
        facts = await asyncio.to_thread(path.stat)
    except OSError:
        raise NotFound("The file of this document is not on the box.", "Its text is still in the library.") from None
    shown = about.kind == "pdf"
    return FileResponse(
        path,
        stat_result=facts,
        filename=about.file,
        media_type="application/pdf" if shown else "application/octet-stream",
        content_disposition_type="inline" if shown else "attachment",
        headers={"content-security-policy": PDF_POLICY if shown else FILE_POLICY},
    )


async def _document(
    request: Request, user: User, document: Document, passages: Sequence[Passage], start: int, marked: Passage | None
) -> Response:
    shown = passages[start : start + BEFORE + AFTER]
    flagged = await asyncio.to_thread(_flagged, passages) if auth.box(request).accounts.can(user, "review", "library") else {}
    shelves = await asyncio.to_thread(own_collections, request, user)
    mine = any(one.name == document.collection for one in shelves)
    return await show.page(
        request,
        "document.html",
        shelves=shelves if mine else [],
        document=document,
        passages=shown,
        marked=marked,
        earlier=max(0, start - BEFORE - AFTER) if start else None,
        later=start + len(shown) if start + len(shown) < len(passages) else None,
        flagged=flagged,
        warning=suspicion.note([one.text for one in passages if one.id in flagged]),
        linked=list(flagged)[:FLAGS_LINKED],
    )


def _flagged(passages: Sequence[Passage]) -> dict[int, str]:
    """The passages that speak to the assistant, and the words that do."""
    found = ((one.id, suspicion.find(one.text)) for one in passages)
    return {id: phrases[0] for id, phrases in found if phrases}


async def _gone(request: Request, gone: Any) -> Response:
    """What became of a document that this person could see."""
    if "text/html" in request.headers.get("accept", ""):
        return await show.page(request, "gone.html", 410, gone=gone)
    message = f"{gone.title} was {gone.why} on {show.day(gone.at)}."
    hint = f"See /document/{gone.successor}." if gone.successor else "Look for it in the library."
    return JSONResponse({"error": {"code": "gone", "message": message, "hint": hint}}, 410)


async def _reader(request: Request) -> tuple[User, Filter]:
    """Who asks, and what of the library they may see."""
    user = await auth.person(request)
    accounts = auth.box(request).accounts
    accounts.require(user, "read", "library")
    return user, Filter(await asyncio.to_thread(accounts.visible, user, "collection"))
