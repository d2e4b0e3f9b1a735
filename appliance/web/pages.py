"""The pages people use: first start, sign-in, keys. The chat is in `talks`, documents are in `library`.

Each handler reads, asks one part to do it, and shows a template; forms work without the script. Hides which template belongs to
what. Rights are decided in `accounts`.
"""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from appliance.errors import ApplianceError
from appliance.web import auth, directory, show

router = APIRouter()


# --- first start and sign-in -----------------------------------------------------------------------------------------
@router.get("/")
async def front(request: Request) -> Response:
    if await auth.session(request) is not None:
        return RedirectResponse("/chat", 303)
    return await _front(request)


async def _front(request: Request, error: ApplianceError | None = None, name: str = "", code: str = "") -> Response:
    first = not await asyncio.to_thread(auth.box(request).accounts.has_administrator)
    status = error.status if error else 200
    by_class = not first and await asyncio.to_thread(auth.box(request).accounts.class_codes.in_use)
    template = "setup.html" if first else "sign_in.html"
    more = {"by_class": by_class, "provider": directory.provider(request)}
    response = await show.page(request, template, status, error=error, name=name, code=code, **more)
    auth.remember(request, response)
    return response


@router.post("/setup")
async def setup(request: Request) -> Response:
    """The one-time code makes the first administrator, who is signed in at once."""
    data = await auth.form(request)
    code, name, password = (auth.text(data, field) for field in ("code", "name", "password"))
    accounts = auth.box(request).accounts
    try:
        await asyncio.to_thread(accounts.create_first_administrator, code, name, password, auth.source(request))
        token, user = await asyncio.to_thread(accounts.sign_in, name, password, auth.source(request), auth.about(request))
    except ApplianceError as error:
        return await _front(request, error, name, code)
    return await auth.enter(request, token, user)


@router.post("/sign-in")
async def sign_in(request: Request) -> Response:
    data = await auth.form(request)
    name, password = auth.text(data, "name"), auth.text(data, "password")
    accounts = auth.box(request).accounts
    about, device = auth.about(request), auth.device(request)
    try:
        token, user = await asyncio.to_thread(accounts.sign_in, name, password, auth.source(request), about, device)
    except ApplianceError as error:
        return await _front(request, error, name)
    return await auth.enter(request, token, user)


@router.post("/sign-out")
async def sign_out(request: Request) -> Response:
    await auth.form(request)
    response = RedirectResponse("/", 303)
    found = await auth.session(request)
    if found is not None:
        await auth.box(request).chat.leave(found.user)
    await auth.sign_out(request, response)
    return response


# --- keys, about -----------------------------------------------------------------------------------------------------
@router.get("/keys")
async def keys(request: Request) -> Response:
    return await _keys(request)


async def _keys(request: Request, error: ApplianceError | None = None, **more: Any) -> Response:
    user = await auth.person(request)
    auth.box(request).accounts.require(user, "create", "key")
    listed = await asyncio.to_thread(auth.box(request).accounts.list_keys, user)
    return await show.page(request, "keys.html", error.status if error else 200, keys=listed, error=error, **more)


@router.post("/keys")
async def create_key(request: Request) -> Response:
    """The key is on this answer only, which is why it is a page and not a redirect."""
    user = await auth.person(request)
    data = await auth.form(request)
    name, scope = auth.text(data, "name"), auth.text(data, "scope") or "chat"
    try:
        id, key = await asyncio.to_thread(auth.box(request).accounts.create_key, user, name, scope)
        await asyncio.to_thread(auth.box(request).audit.note, "create key", id, {"scope": scope}, actor=user.id)
    except ApplianceError as error:
        return await _keys(request, error, name=name, scope=scope)
    return await _keys(request, key=key, made=name)


@router.post("/keys/{id}/revoke")
async def revoke_key(request: Request, id: str) -> Response:
    user = await auth.person(request)
    await auth.form(request)
    await asyncio.to_thread(auth.box(request).accounts.revoke_key, user, id)
    await asyncio.to_thread(auth.box(request).audit.note, "revoke key", id, {}, actor=user.id)
    return RedirectResponse("/keys", 303)


@router.get("/about")
async def about(request: Request) -> Response:
    return await show.page(request, "about.html", serving=await auth.box(request).pool.serving())
