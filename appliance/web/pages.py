"""The pages people use: first start, sign-in, chat, sources, library, keys.

Each handler reads, asks one part to do it, and shows a template; forms work without the script. Hides which template belongs to
what. Rights are decided in `accounts`, answers are made in `chat`.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from appliance.conversations import Turn
from appliance.errors import ApplianceError, NotFound
from appliance.web import auth
from appliance.web.markdown import to_html
from appliance.web.stream import EventStream, frame

if TYPE_CHECKING:
    from appliance.accounts import User

router = APIRouter()

HERE = Path(__file__).parent
BEFORE, AFTER = 15, 30


# --- first start and sign-in -----------------------------------------------------------------------------------------
@router.get("/")
async def front(request: Request) -> Response:
    if await auth.session(request) is not None:
        return RedirectResponse("/chat", 303)
    return await _front(request)


async def _front(request: Request, error: ApplianceError | None = None, name: str = "", code: str = "") -> Response:
    first = not await asyncio.to_thread(auth.box(request).accounts.has_administrator)
    status = error.status if error else 200
    response = await _page(request, "setup.html" if first else "sign_in.html", status, error=error, name=name, code=code)
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
        token, _ = await asyncio.to_thread(accounts.sign_in, name, password, auth.source(request))
    except ApplianceError as error:
        return await _front(request, error, name, code)
    response = RedirectResponse("/chat", 303)
    auth.sign_in(request, response, token)
    return response


@router.post("/sign-in")
async def sign_in(request: Request) -> Response:
    data = await auth.form(request)
    name, password = auth.text(data, "name"), auth.text(data, "password")
    try:
        token, _ = await asyncio.to_thread(auth.box(request).accounts.sign_in, name, password, auth.source(request))
    except ApplianceError as error:
        return await _front(request, error, name)
    response = RedirectResponse("/chat", 303)
    auth.sign_in(request, response, token)
    return response


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
    chat, turns = await asyncio.to_thread(box.chat.conversations.load, user, id) if id else (None, [])
    return await _page(
        request,
        "chat.html",
        error.status if error else 200,
        chat=chat,
        turns=turns,
        chats=await asyncio.to_thread(box.chat.conversations.list, user),
        documents=[] if chat else await box.library.documents(),
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
    html = "".join([_render(request, "turn.html", turn=turn) for turn in turns[-2:]])
    if not id:
        html = _render(request, "head.html", chat=chat, csrf=await auth.csrf(request)) + html
    listed = _render(request, "chats.html", chats=chats, chat=chat)
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
    return EventStream(_frames(request, user, turn, after))


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
                data = {"html": _render(request, "lead.html" if event.kind == "quotes" else "turn.html", turn=stored)}
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


# --- documents -------------------------------------------------------------------------------------------------------
@router.get("/library")
async def library(request: Request) -> Response:
    await _reader(request)
    return await _page(request, "library.html", documents=await auth.box(request).library.documents())


@router.get("/passage/{id}")
async def passage(request: Request, id: int) -> Response:
    """The document, open at the passage; with `?part=1` only the passage and what stands around it."""
    await _reader(request)
    if id > 2**62:
        raise NotFound("There is no such passage.", "The document may have been taken out.")
    found = await auth.box(request).library.passage(id)
    document, passages = await auth.box(request).library.document(found.document)
    at = next((index for index, one in enumerate(passages) if one.id == id), 0)
    if request.query_params.get("part"):
        around = passages[max(0, at - 1) : at + 2]
        return HTMLResponse(_render(request, "passage.html", document=document, passages=around, marked=found))
    return await _document(request, document, passages, max(0, at - BEFORE), found)


@router.get("/document/{id}")
async def document(request: Request, id: str) -> Response:
    await _reader(request)
    found, passages = await auth.box(request).library.document(id)
    start = request.query_params.get("from", "0")
    return await _document(request, found, passages, int(start) if start.isdecimal() and len(start) < 9 else 0, None)


async def _document(request: Request, document: Any, passages: Any, start: int, marked: Any) -> Response:
    shown = passages[start : start + BEFORE + AFTER]
    earlier = max(0, start - BEFORE - AFTER) if start else None
    later = start + len(shown) if start + len(shown) < len(passages) else None
    return await _page(request, "document.html", document=document, passages=shown, marked=marked, earlier=earlier, later=later)


async def _reader(request: Request) -> User:
    user = await auth.person(request)
    auth.box(request).accounts.require(user, "read", "library")
    return user


# --- keys, about -----------------------------------------------------------------------------------------------------
@router.get("/keys")
async def keys(request: Request) -> Response:
    return await _keys(request)


async def _keys(request: Request, error: ApplianceError | None = None, **more: Any) -> Response:
    user = await auth.person(request)
    auth.box(request).accounts.require(user, "create", "key")
    listed = await asyncio.to_thread(auth.box(request).accounts.list_keys, user)
    return await _page(request, "keys.html", error.status if error else 200, keys=listed, error=error, **more)


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
    return await _page(request, "about.html", serving=await auth.box(request).pool.serving())


# --- templates -------------------------------------------------------------------------------------------------------
async def fault_page(request: Request, error: ApplianceError, headers: dict[str, str]) -> Response:
    """A fault as a page. It must not fail itself, so it asks for nobody's session."""
    html = _render(request, "fault.html", error=error, me=None, csrf="")
    return HTMLResponse(html, error.status, headers)


async def _page(request: Request, template: str, status: int = 200, /, **values: Any) -> Response:
    session = await auth.session(request)
    html = _render(request, template, me=session.user if session else None, csrf=await auth.csrf(request), **values)
    return HTMLResponse(html, status)


def _render(request: Request, template: str, /, **values: Any) -> str:
    settings = auth.box(request).settings
    return _templates().get_template(template).render(school=settings.school, path=request.scope["path"], **values)


@cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=jinja2.ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"markdown": to_html, "day": _day, "snippet": _snippet, "cited": _cited}
    environment.globals |= {"static": _static}
    return environment


@cache
def _static(name: str) -> str:
    """A file's address, which changes when the file does: browsers may keep it for ever."""
    return f"/static/{name}?v={hashlib.sha256((HERE / 'static' / name).read_bytes()).hexdigest()[:12]}"


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(seconds))


def _snippet(text: str, size: int = 160) -> str:
    line = " ".join(text.split())
    return line if len(line) <= size else line[:size].rsplit(" ", 1)[0] + " …"


def _cited(turn: Turn) -> list[tuple[int, dict[str, Any]]]:
    """The passages that the answer cites, under their numbers; all that were found where it cites none."""
    marks = re.findall(r"\[([\d, ]+)\]", turn.facts.get("lead") or turn.text)
    numbers = {int(number) for mark in marks for number in mark.split(",") if number.strip()}
    found = list(enumerate(turn.passages, 1))
    return [(number, passage) for number, passage in found if number in numbers] or found
