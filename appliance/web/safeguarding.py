"""The safeguarding lead's pages, the counts that teachers see, and the banner that says that somebody has to look.

Each handler asks `accounts` for the right, has `safeguarding` do it, and shows a template. Flagged words are on one page only,
and opening it is recorded. It decides nothing about what is unsafe.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from appliance.errors import ApplianceError
from appliance.web import auth, show

if TYPE_CHECKING:
    from collections.abc import Sequence

    from appliance.accounts import User
    from appliance.safeguarding import Flag

router = APIRouter()

DAYS = (7, 30, 365)


@dataclass(frozen=True, slots=True)
class Row:
    """A flag as its list shows it: with names in place of ids."""

    flag: Flag
    when: str
    who: str
    class_name: str


# Before the address of one flag, which would take it for an id.
@router.get("/safeguarding/alarm")
async def alarm(request: Request) -> Response:
    """The banner alone, for pages that stay open; empty where there is nothing to say."""
    user = await auth.person(request)
    return HTMLResponse(show.render(request, "alarm.html", me=user, alarm=await show.alarm_for(request, user)))


@router.get("/safeguarding")
async def flags(request: Request) -> Response:
    user = await _lead(request, "read")
    closed = request.query_params.get("closed") == "1"
    listed = await asyncio.to_thread(auth.box(request).safeguarding.list, closed=closed)
    rows = await _named(request, listed)
    return await show.page(request, "flags.html", rows=rows, closed=closed, user=user)


@router.get("/safeguarding/{id}")
async def flag(request: Request, id: str) -> Response:
    """With its words: that this person read them is recorded before they are shown."""
    return await _flag_page(request, await _lead(request, "read"), id)


@router.post("/safeguarding/{id}")
async def change(request: Request, id: str) -> Response:
    """Acknowledge, close with a note, or open again."""
    user = await _lead(request, "change")
    data = await auth.form(request)
    note = auth.text(data, "note")
    try:
        await asyncio.to_thread(auth.box(request).safeguarding.change, user, id, auth.text(data, "state"), note)
    except ApplianceError as error:
        if error.status == 404:
            raise
        return await _flag_page(request, user, id, error, note)
    return RedirectResponse("/safeguarding", 303)


@router.get("/counts")
async def counts(request: Request) -> Response:
    """How often what was stopped: of the classes that one teaches, or of the whole school for who may see all."""
    user = await auth.person(request)
    box = auth.box(request)
    box.accounts.require(user, "read", "class counter")
    everywhere = box.accounts.can(user, "read", "counter")
    given = request.query_params.get("days", "")
    days = int(given) if given in map(str, DAYS) else 30
    since = time.strftime("%Y-%m-%d", time.localtime(time.time() - (days - 1) * 86400))
    found = await asyncio.to_thread(box.safeguarding.counts, None if everywhere else user.teaches, since=since)
    names = {one.id: one.name for one in await asyncio.to_thread(box.classes.list, archived=True)}
    grouped: dict[str, list[Any]] = {}
    for one in found:
        grouped.setdefault(names.get(one.class_id, ""), []).append(one)
    groups = sorted(grouped.items(), key=lambda group: (group[0] == "", group[0]))
    return await show.page(request, "counts.html", groups=groups, days=days, choices=DAYS, everywhere=everywhere)


async def _lead(request: Request, verb: str) -> User:
    user = await auth.person(request)
    auth.box(request).accounts.require(user, verb, "flag")
    return user


async def _flag_page(request: Request, user: User, id: str, error: ApplianceError | None = None, note: str = "") -> Response:
    box = auth.box(request)
    flag, around = await asyncio.to_thread(box.safeguarding.read, user, id)
    (row,) = await _named(request, [flag])
    status = error.status if error else 200
    return await show.page(request, "flag.html", status, row=row, flag=flag, around=around, error=error, note=note)


async def _named(request: Request, listed: Sequence[Flag]) -> list[Row]:
    box = auth.box(request)
    people = await asyncio.to_thread(box.accounts.names, {one.user for one in listed})
    names = {one.id: one.name for one in await asyncio.to_thread(box.classes.list, archived=True)}
    return [
        Row(one, time.strftime("%Y-%m-%d %H:%M", time.localtime(one.at)), people.get(one.user, ""), names.get(one.class_id, ""))
        for one in listed
    ]
