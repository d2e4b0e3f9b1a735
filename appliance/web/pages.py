"""The pages people use: first start, sign-in, chat, keys. Those about documents are in `library`.

Each handler reads, asks one part to do it, and shows a template; forms work without the script. Hides which template belongs to
what. Rights are decided in `accounts`, answers are made in `chat`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from appliance.errors import ApplianceError, NotFound
from appliance.knowledge.shelves import Filter
from appliance.web import auth, directory, show
from appliance.web.stream import EventStream, frame

if TYPE_CHECKING:
    from appliance.accounts import User

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
        token, _ = await asyncio.to_thread(accounts.sign_in, name, password, auth.source(request), auth.about(request))
    except ApplianceError as error:
        return await _front(request, error, name, code)
    return await auth.enter(request, token)


@router.post("/sign-in")
async def sign_in(request: Request) -> Response:
    data = await auth.form(request)
    name, password = auth.text(data, "name"), auth.text(data, "password")
    accounts = auth.box(request).accounts
    try:
        token, _ = await asyncio.to_thread(accounts.sign_in, name, password, auth.source(request), auth.about(request))
    except ApplianceError as error:
        return await _front(request, error, name)
    return await auth.enter(request, token)


@router.post("/sign-out")
async def sign_out(request: Request) -> Response:
    await auth.form(request)
    response = RedirectResponse("/", 303)
    found = await auth.session(request)
    if found is not None:
        await auth.box(request).chat.leave(found.user)
    await auth.sign_out(request, response)
    return response


# --- chat ------------------------------------------------------------------------------------------------------------
@router.get("/chat")
async def new_chat(request: Request) -> Response:
    return await _chat_page(request, await auth.person(request))


@router.get("/chat/{id}")
async def one_chat(request: Request, id: str) -> Response:
    return await _chat_page(request, await auth.person(request), id)


async def _chat_page(
    request: Request, user: User, id: str | None = None, error: ApplianceError | None = None, typed: str = ""
) -> Response:
    box = auth.box(request)
    within = Filter(await asyncio.to_thread(box.accounts.visible, user, "collection"))
    chat, turns = await asyncio.to_thread(box.chat.conversations.load, user, id) if id else (None, [])
    return await show.page(
        request,
        "chat.html",
        error.status if error else 200,
        chat=chat,
        turns=turns,
        chats=await asyncio.to_thread(box.chat.conversations.list, user),
        documents=[] if chat else await box.library.documents(within),
        error=error,
        typed=typed,
        writing=any(turn.state == "streaming" for turn in turns),
    )


@router.post("/chat/ask")
async def ask(request: Request) -> Response:
    """Store a question and start its answer. To the script: where it is, and the turn to show; to a plain form: its page."""
    user = await auth.person(request)
    data = await auth.form(request)
    question, id = auth.text(data, "question"), auth.text(data, "conversation") or None
    plain = "text/html" in request.headers.get("accept", "")
    box = auth.box(request)
    try:
        ids = (await box.chat.start(user, question, conversation=id)).data
    except ApplianceError as error:
        if not plain or isinstance(error, NotFound):
            raise
        return await _chat_page(request, user, id, error, question)
    if plain:
        return RedirectResponse(f"/chat/{ids['conversation']}#{ids['turn']}", 303)
    chat, turns = await asyncio.to_thread(box.chat.conversations.load, user, ids["conversation"])
    chats = await asyncio.to_thread(box.chat.conversations.list, user)
    html = "".join([show.render(request, "turn.html", turn=turn) for turn in turns[-2:]])
    if not id:
        html = show.render(request, "head.html", chat=chat, csrf=await auth.csrf(request)) + html
    listed = show.render(request, "chats.html", chats=chats, chat=chat)
    return JSONResponse(
        {"turn": ids["turn"], "url": f"/chat/{ids['conversation']}", "title": chat.title, "html": html, "chats": listed}
    )


@router.get("/chat/stream/{turn}")
async def stream(request: Request, turn: str) -> Response:
    """The events of one answer; with Last-Event-ID those after it."""
    user = await auth.person(request)
    last = request.headers.get("last-event-id", "")
    after = int(last) + 1 if last.isascii() and last.isdigit() and len(last) < 9 else 0
    await asyncio.to_thread(auth.box(request).chat.conversations.turn, user, turn)
    return EventStream(_frames(request, user, turn, after), auth.still(request, user))


async def _frames(request: Request, user: User, turn: str, after: int) -> AsyncGenerator[str, None]:
    conversations = auth.box(request).chat.conversations
    number = after
    async with aclosing(auth.box(request).chat.follow(user, turn, after)) as events:
        async for event in events:
            data = dict(event.data)
            if event.kind == "sources":
                data = {"covered": data["covered"], "count": len(data["passages"])}
            elif event.kind in ("quotes", "done", "error"):  # stored before they are told
                stored = await asyncio.to_thread(conversations.turn, user, turn)
                data = {"html": show.render(request, "lead.html" if event.kind == "quotes" else "turn.html", turn=stored)}
            yield frame(data, event.kind if event.kind != "error" else "done", number)
            number += 1


@router.post("/chat/stop/{turn}")
async def stop(request: Request, turn: str) -> Response:
    user = await auth.person(request)
    await auth.form(request)
    await auth.box(request).chat.stop(user, turn)
    if "text/html" not in request.headers.get("accept", ""):
        return Response(status_code=204)
    stored = await asyncio.to_thread(auth.box(request).chat.conversations.turn, user, turn)
    return RedirectResponse(f"/chat/{stored.conversation}", 303)


@router.post("/chat/{id}/rename")
async def rename(request: Request, id: str) -> Response:
    user = await auth.person(request)
    data = await auth.form(request)
    await asyncio.to_thread(auth.box(request).chat.conversations.rename, user, id, auth.text(data, "title"))
    return RedirectResponse(f"/chat/{id}", 303)


@router.post("/chat/{id}/delete")
async def delete(request: Request, id: str) -> Response:
    user = await auth.person(request)
    await auth.form(request)
    await auth.box(request).chat.delete(user, id)
    return RedirectResponse("/chat", 303)


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
        _, key = await asyncio.to_thread(auth.box(request).accounts.create_key, user, name, scope)
    except ApplianceError as error:
        return await _keys(request, error, name=name, scope=scope)
    return await _keys(request, key=key, made=name)


@router.post("/keys/{id}/revoke")
async def revoke_key(request: Request, id: str) -> Response:
    user = await auth.person(request)
    await auth.form(request)
    await asyncio.to_thread(auth.box(request).accounts.revoke_key, user, id)
    return RedirectResponse("/keys", 303)


@router.get("/about")
async def about(request: Request) -> Response:
    return await show.page(request, "about.html", serving=await auth.box(request).pool.serving())
