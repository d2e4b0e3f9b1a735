"""The administrator's page of quotas: how many questions a role, a class or a person may ask. What counts is in `quotas`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from appliance.accounts import ROLES
from appliance.errors import ApplianceError, BadInput
from appliance.quotas import WINDOWS
from appliance.web import auth, show

if TYPE_CHECKING:
    from appliance.accounts import User

router = APIRouter()


@router.get("/quotas")
async def quotas(request: Request) -> Response:
    await _administrator(request)
    return await _page(request)


async def _page(request: Request, error: ApplianceError | None = None, **typed: Any) -> Response:
    box = auth.box(request)
    return await show.page(
        request, "quotas.html", error.status if error else 200, error=error, typed=typed, roles=ROLES, windows=WINDOWS,
        quotas=await asyncio.to_thread(box.chat.quotas.list), classes=await asyncio.to_thread(box.classes.list),
    )  # fmt: skip


@router.post("/quotas")
async def set_quota(request: Request) -> Response:
    """`who`: role:NAME, class:ID, or user: with the name in `person`."""
    user = await _administrator(request)
    data = await auth.form(request)
    typed = {name: auth.text(data, name) for name in ("who", "person", "window", "most")}
    kind, _, name = typed["who"].partition(":")
    box = auth.box(request)
    try:
        if kind == "user" and not name:
            name = (await asyncio.to_thread(box.accounts.named, typed["person"])).id
        if not (typed["most"].isdecimal() and len(typed["most"]) < 8):
            raise BadInput("How many questions is missing.", "Write a number.")
        made = await asyncio.to_thread(box.chat.quotas.set, kind, name, typed["window"], int(typed["most"]))
    except ApplianceError as error:
        return await _page(request, error, **typed)
    facts = {"window": made.window, "most": made.most}
    await asyncio.to_thread(box.audit.note, "set quota", f"{kind}:{name}", facts, actor=user.id)
    return RedirectResponse("/quotas", 303)


@router.post("/quotas/remove")
async def remove_quota(request: Request) -> Response:
    user = await _administrator(request)
    data = await auth.form(request)
    kind, _, name = auth.text(data, "who").partition(":")
    window, box = auth.text(data, "window"), auth.box(request)
    await asyncio.to_thread(box.chat.quotas.remove, kind, name, window)
    await asyncio.to_thread(box.audit.note, "remove quota", f"{kind}:{name}", {"window": window}, actor=user.id)
    return RedirectResponse("/quotas", 303)


async def _administrator(request: Request) -> User:
    user = await auth.person(request)
    auth.box(request).accounts.require(user, "change", "quota")
    return user
