"""Two more ways in: the second step after a right password, and a class's code for young pupils.

Neither page says more than its visitor has shown to know. Codes are checked in `accounts`; the first step is in `pages`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from appliance.errors import ApplianceError, BadInput
from appliance.web import auth, show

if TYPE_CHECKING:
    from appliance.accounts.class_codes import Roll

router = APIRouter()


# --- the second step -------------------------------------------------------------------------------------------------
@router.get("/sign-in/code")
async def second_step(request: Request) -> Response:
    return await _second_step(request)


async def _second_step(request: Request, error: ApplianceError | None = None) -> Response:
    if not await asyncio.to_thread(auth.box(request).accounts.second_step.waits, auth.waiting(request)):
        return RedirectResponse("/", 303)
    response = await show.page(request, "second_step_ask.html", error.status if error else 200, error=error)
    auth.remember(request, response)
    return response


@router.post("/sign-in/code")
async def finish(request: Request) -> Response:
    data = await auth.form(request)
    step = auth.box(request).accounts.second_step
    code = auth.text(data, "code")
    try:
        token = await asyncio.to_thread(step.finish, auth.waiting(request), code, auth.about(request))
    except ApplianceError as error:
        return await _second_step(request, error)
    return await auth.enter(request, token)


# --- a class's code --------------------------------------------------------------------------------------------------
@router.get("/class")
async def by_class(request: Request) -> Response:
    return await _by_class(request)


async def _by_class(
    request: Request, error: ApplianceError | None = None, code: str = "", roll: Roll | None = None
) -> Response:
    status = error.status if error else 200
    response = await show.page(request, "by_class.html", status, error=error, code=code[:20], roll=roll)
    auth.remember(request, response)
    return response


@router.post("/class")
async def names(request: Request) -> Response:
    """The names of the class, to pick one's own. The code is typed again by the page with the pick: no address holds it."""
    data = await auth.form(request)
    code, pupil = auth.text(data, "code"), auth.text(data, "pupil")
    codes = auth.box(request).accounts.class_codes
    try:
        if not pupil:
            return await _by_class(request, None, code, await asyncio.to_thread(codes.roll, code, auth.source(request)))
        mine = auth.token(request)
        token = await asyncio.to_thread(codes.sign_in, code, pupil, auth.source(request), auth.about(request), mine)
        await asyncio.to_thread(auth.box(request).audit.note, "sign in by class code", pupil, {}, actor=pupil)
    except ApplianceError as error:
        return await _by_class(request, error, code)
    return await auth.enter(request, token)


@router.post("/classes/{id}/code")
async def make_code(request: Request, id: str) -> Response:
    """The code is on this answer only, which is why it is a page and not a redirect."""
    user = await auth.person(request)
    data = await auth.form(request)
    box = auth.box(request)
    box.accounts.require(user, "change", "class", id)
    found = await asyncio.to_thread(box.classes.get, id)
    shown: dict[str, Any] = {"class_id": id, "class_name": found.name, "error": None}
    try:
        hours = auth.text(data, "hours").strip() or "2"
        if not (hours.isdecimal() and hours.isascii() and len(hours) < 4):
            raise BadInput("The hours are not a number.", "Write a number such as 2.")
        shown["new_code"] = await asyncio.to_thread(box.accounts.class_codes.make, id, float(hours))
        await asyncio.to_thread(box.audit.note, "class code", id, {"hours": int(hours)}, actor=user.id)
    except ApplianceError as error:
        shown |= {"error": error, "code_until": await asyncio.to_thread(box.accounts.class_codes.until, id)}
    return await show.page(request, "class_code_page.html", shown["error"].status if shown["error"] else 200, **shown)


@router.post("/classes/{id}/code/end")
async def end_code(request: Request, id: str) -> Response:
    user = await auth.person(request)
    await auth.form(request)
    box = auth.box(request)
    box.accounts.require(user, "change", "class", id)
    pupils = await asyncio.to_thread(box.accounts.class_codes.end, id)
    await asyncio.to_thread(box.audit.note, "class code ended", id, {"pupils": len(pupils)}, actor=user.id)
    return RedirectResponse(f"/classes/{id}", 303)


@router.post("/classes/{id}/code/{person}/free")
async def free_name(request: Request, id: str, person: str) -> Response:
    """Whoever is in under this pupil's name by the code is out, and it can be picked again."""
    user = await auth.person(request)
    await auth.form(request)
    box = auth.box(request)
    box.accounts.require(user, "change", "class", id)
    await asyncio.to_thread(box.accounts.class_codes.out, id, person)
    await asyncio.to_thread(box.audit.note, "class name freed", id, {"pupil": person[:64]}, actor=user.id)
    return RedirectResponse(f"/classes/{id}#class-code", 303)
