"""Mentors: whom somebody lets read their finished lessons, whose a mentor reads, and what is written beside a turn.

Both sides see a consent and either ends it. What a form brings comes back through every fault. Rights are decided in `accounts`
and by the consent that `practice.mentors` keeps.
"""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from appliance.errors import ApplianceError, NotFound
from appliance.web import auth, show
from appliance.web.practice import feedback_page, progress_page, staff

router = APIRouter(prefix="/practice")


@router.get("/mentors")
async def mentors(request: Request) -> Response:
    return await _page(request)


async def _page(request: Request, error: ApplianceError | None = None, typed: str = "") -> Response:
    user, kept = await staff(request), auth.box(request).rehearsals.mentors
    return await show.page(
        request, "practice_mentors.html", error.status if error else 200, error=error, typed=typed,
        mine=await asyncio.to_thread(kept.of, user), others=await asyncio.to_thread(kept.by, user),
    )  # fmt: skip


@router.post("/mentors")
async def give(request: Request) -> Response:
    user = await staff(request)
    name = auth.text(await auth.form(request), "name")
    try:
        await asyncio.to_thread(auth.box(request).rehearsals.mentors.give, user, name)
    except ApplianceError as error:
        return await _page(request, error, name)
    return RedirectResponse("/practice/mentors", 303)


@router.post("/mentors/end")
async def end(request: Request) -> Response:
    """By who gave the consent, or by who has it."""
    user = await staff(request)
    data = await auth.form(request)
    owner, mentor = auth.text(data, "owner"), auth.text(data, "mentor")
    await asyncio.to_thread(auth.box(request).rehearsals.mentors.end, user, owner, mentor)
    return RedirectResponse("/practice/mentors", 303)


@router.get("/shared/{owner}")
async def shared(request: Request, owner: str) -> Response:
    """The progress and the lessons of somebody who chose this reader as their mentor."""
    user = await staff(request)
    kept = auth.box(request).rehearsals
    await asyncio.to_thread(kept.shared, user, owner)
    names = await asyncio.to_thread(auth.box(request).accounts.names, [owner])
    return await progress_page(request, user, owner, names.get(owner, ""))


@router.post("/notes/{turn}")
async def note(request: Request, turn: str) -> Response:
    user = await staff(request)
    data = await auth.form(request)
    text, better, train = auth.text(data, "note"), auth.text(data, "better"), bool(auth.text(data, "train"))
    kept = auth.box(request).rehearsals
    try:
        found = await asyncio.to_thread(lambda: kept.note(user, turn, text, better, train=train))
    except NotFound:
        raise
    except ApplianceError as error:
        lesson = await asyncio.to_thread(kept.of_turn, user, turn)
        return await feedback_page(request, user, lesson.id, error, about=turn, note=(text, better, train))
    return RedirectResponse(f"/practice/lessons/{found.id}/feedback#turn-{turn}", 303)
