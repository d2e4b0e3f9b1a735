"""The chat's pages: asking, the stream of an answer, branches, feedback, and the list of one's own chats.

Each handler reads, asks one part to do it, and shows a template or goes on to another page; all of it works as plain forms.
Hides how a chat page is put together, what a script gets instead of a page, and the words for where an answer stands. Rights
are decided in `accounts`, answers are made in `chat`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from appliance import openings
from appliance.conversations import Conversation
from appliance.errors import ApplianceError, NotFound
from appliance.feedback import Given
from appliance.finding import find
from appliance.knowledge.shelves import Filter
from appliance.web import auth, export, show, words
from appliance.web.stream import EventStream, frame

if TYPE_CHECKING:
    from appliance.accounts import User

router = APIRouter()

LISTED = 60  # chats beside the page; all of them are one click away
A_PAGE = 100  # chats on a page of their own
LARGEST_QUESTION = 1024 * 1024  # bytes that are read, so that the text can come back with what is wrong with it
DAY = 86400.0


@dataclass(frozen=True, slots=True)
class Group:
    """Chats under one heading. folder: the heading is a folder's name, else it is when they were last written to."""

    name: str
    chats: list[Conversation]
    folder: bool = False


# --- a chat ----------------------------------------------------------------------------------------------------------
@router.get("/chat")
async def new_chat(request: Request) -> Response:
    return await _chat_page(request, await auth.person(request))


@router.get("/chat/{id}")
async def one_chat(request: Request, id: str) -> Response:
    return await _chat_page(request, await auth.person(request), id)


async def _chat_page(
    request: Request, user: User, id: str | None = None, error: ApplianceError | None = None, at: str = "", **typed: Any
) -> Response:
    """`at`: a turn that has to be on the page. typed: what a refused form held, and which turn it was about (`about`)."""
    box = auth.box(request)
    kept = box.chat.conversations
    lesson = await asyncio.to_thread(box.chat.lessons.of, user, id)
    within = Filter(lesson.within(await asyncio.to_thread(box.accounts.visible, user, "collection")))
    asked = at or request.query_params.get("at", "")
    chat, turns = await asyncio.to_thread(kept.load, user, id, asked) if id else (None, [])
    gone = request.query_params.get("deleted", "") if not id else ""
    return await show.page(
        request,
        "chat.html",
        error.status if error else 200,
        chat=chat,
        turns=turns,
        groups=await _groups(request, user),
        folders=await asyncio.to_thread(kept.folders, user) if chat else [],
        documents=[] if chat else await box.library.documents(within),
        error=error,
        lesson=lesson,
        left=await asyncio.to_thread(box.chat.quotas.left, user, lesson.class_id),
        gone=await asyncio.to_thread(kept.deleted, user, gone) if gone else None,
        now=int(time.time()),
        writing=any(turn.state == "streaming" for turn in turns),
        given=await asyncio.to_thread(box.feedback.of, user, [turn.id for turn in turns]) | typed.pop("given", {}),
        may_correct=box.accounts.can(user, "correct", "answer"),
        **typed,
    )


@router.post("/chat/ask")
async def ask(request: Request) -> Response:
    """Store a question and start its answer. To the script: where it is, and the turns to show; to a plain form: its page."""
    user = await auth.person(request)
    data = await auth.form(request, largest=LARGEST_QUESTION)
    question, id = auth.text(data, "question"), auth.text(data, "conversation") or None
    shown, edits = auth.text(data, "shown"), auth.text(data, "edits")
    box = auth.box(request)
    try:
        class_id = auth.text(data, "class_id")
        ids = (await box.chat.start(user, question, conversation=id, shown=shown, edits=edits, class_id=class_id)).data
    except ApplianceError as error:
        if not _plain(request) or isinstance(error, NotFound):
            raise
        return await _chat_page(request, user, id, error, edits or shown, typed=question, about=edits)
    if _plain(request):
        return RedirectResponse(f"/chat/{ids['conversation']}#{ids['question']}", 303)
    chat, turns = await asyncio.to_thread(box.chat.conversations.load, user, ids["conversation"])
    known = next((at for at, turn in enumerate(turns, 1) if turn.id == shown), len(turns) - 2)
    html = "".join([await _turn(request, user, turn) for turn in turns[known:]])
    if not id:
        html = show.render(request, "head.html", chat=chat, csrf=await auth.csrf(request)) + html
    listed = show.render(request, "chats.html", groups=await _groups(request, user), chat=chat)
    lesson = await asyncio.to_thread(box.chat.lessons.of, user, ids["conversation"])
    left = await asyncio.to_thread(box.chat.quotas.left, user, lesson.class_id)
    return JSONResponse(
        {
            "left": show.render(request, "quota_left.html", left=left),
            "turn": ids["turn"], "question": ids["question"], "url": f"/chat/{ids['conversation']}", "title": chat.title,
            "html": html, "chats": listed,
        }
    )  # fmt: skip


@router.post("/chat/again/{turn}")
async def again(request: Request, turn: str) -> Response:
    """Another answer to the same question, beside the one that is there; with `simpler` one that is easier to read."""
    user = await auth.person(request)
    simpler = bool(auth.text(await auth.form(request), "simpler"))
    box = auth.box(request)
    try:
        ids = (await box.chat.again(user, turn, simpler=simpler)).data
    except ApplianceError as error:
        if not _plain(request) or isinstance(error, NotFound):
            raise
        stored = await asyncio.to_thread(box.chat.conversations.turn, user, turn)
        return await _chat_page(request, user, stored.conversation, error, turn)
    return RedirectResponse(f"/chat/{ids['conversation']}#{ids['question']}", 303)


@router.post("/chat/{id}/show")
async def show_branch(request: Request, id: str) -> Response:
    user = await auth.person(request)
    turn = auth.text(await auth.form(request), "turn")
    await asyncio.to_thread(auth.box(request).chat.conversations.show, user, id, turn)
    return RedirectResponse(f"/chat/{id}#{turn}", 303)


@router.post("/chat/stop/{turn}")
async def stop(request: Request, turn: str) -> Response:
    user = await auth.person(request)
    await auth.form(request)
    await auth.box(request).chat.stop(user, turn)
    if not _plain(request):
        return Response(status_code=204)
    stored = await asyncio.to_thread(auth.box(request).chat.conversations.turn, user, turn)
    return RedirectResponse(f"/chat/{stored.conversation}#{turn}", 303)


@router.post("/chat/rate/{turn}")
async def rate(request: Request, turn: str) -> Response:
    """A thumb, or everything else that can be said of an answer. To the script: the form as it stands now."""
    user = await auth.person(request)
    data = await auth.form(request)
    box = auth.box(request)
    rating = auth.text(data, "rating") if "rating" in data else auth.text(data, "rated")
    better = auth.text(data, "better").replace("\r\n", "\n").strip()
    new = Given(rating, auth.text(data, "reason"), auth.text(data, "words").strip(), better, bool(auth.text(data, "consent")))
    try:
        given = await asyncio.to_thread(box.feedback.give, user, turn, new)
    except ApplianceError as error:
        if not _plain(request) or isinstance(error, NotFound):
            raise
        stored = await asyncio.to_thread(box.chat.conversations.turn, user, turn)
        return await _chat_page(request, user, stored.conversation, error, turn, given={turn: new}, about=turn)
    stored = await asyncio.to_thread(box.chat.conversations.turn, user, turn)
    if _plain(request):
        return RedirectResponse(f"/chat/{stored.conversation}?at={turn}#rate-{turn}", 303)
    opened = given.rating == "down" and "rating" in data  # the next thing is to say why
    html = await _turn(request, user, stored, "feedback.html", given={turn: given}, saved=True, opened=opened)
    return JSONResponse({"html": html})


# --- the stream of an answer -----------------------------------------------------------------------------------------
@router.get("/chat/stream/{turn}")
async def stream(request: Request, turn: str) -> Response:
    """The events of one answer; with Last-Event-ID, or `after`, those after it."""
    user = await auth.person(request)
    last = request.headers.get("last-event-id") or request.query_params.get("after", "")
    after = int(last) + 1 if last.isascii() and last.isdigit() and len(last) < 9 else 0
    await asyncio.to_thread(auth.box(request).chat.conversations.turn, user, turn)
    return EventStream(_frames(request, user, turn, after), auth.still(request, user))


async def _frames(request: Request, user: User, turn: str, after: int) -> AsyncGenerator[str, None]:
    """A word costs nothing but its frame: what is stored is read and rendered where the answer leads or ends, never between."""
    conversations = auth.box(request).chat.conversations
    number = after
    async with aclosing(auth.box(request).chat.follow(user, turn, after)) as events:
        async for event in events:
            data: dict[str, Any] = dict(event.data)
            if event.kind in ("queue", "sources", "saving"):
                told = {key: data[key] for key in ("place", "wait", "covered") if key in data}
                data = told | {"words": _standing(request, event.kind, data)}
            elif event.kind == "notice":
                data = {"message": words.catalogue(show.language_of(request)).gettext(data["message"])}
            elif event.kind == "opening":
                data = {"message": openings.words(**event.data, say=words.catalogue(show.language_of(request)).gettext)}
            elif event.kind == "quotes":
                data = {"html": show.render(request, "lead.html", turn=await asyncio.to_thread(conversations.turn, user, turn))}
            elif event.kind in ("done", "error"):
                data = {"html": await _turn(request, user, await asyncio.to_thread(conversations.turn, user, turn))}
            yield frame(data, event.kind if event.kind != "error" else "done", number)
            number += 1


def _standing(request: Request, kind: str, data: dict[str, Any]) -> str:
    """Where an answer stands, in the reader's language."""
    say = words.catalogue(show.language_of(request))
    if kind == "saving":
        return say.gettext("The answer is written. The box is still saving it.")
    if kind == "sources":
        if not data["covered"]:
            return say.gettext("The documents do not cover this. Writing.")
        found = len(data["passages"])
        return say.ngettext("Found %(found)d passage. Writing.", "Found %(found)d passages. Writing.", found) % {"found": found}
    told = {"place": data["place"], "seconds": max(1, round(data.get("wait") or 0))}
    place = say.gettext("You are next.") if data["place"] <= 1 else say.gettext("You are number %(place)d in line.") % told
    if not data.get("wait"):
        return place
    return f"{place} " + say.ngettext("About %(seconds)d second.", "About %(seconds)d seconds.", told["seconds"]) % told


# --- one's own chats -------------------------------------------------------------------------------------------------
@router.get("/chats")
async def all_chats(request: Request) -> Response:
    """All of them, those of a folder, or those that hold some words; `before` is where the next page goes on."""
    user = await auth.person(request)
    kept = auth.box(request).chat.conversations
    query, folder = request.query_params.get("q", "")[:200].strip(), request.query_params.get("folder", "")
    hits = None
    groups: list[Group] = []
    more = ""
    if query:
        hits = await asyncio.to_thread(lambda: find(kept.texts(user), query))
    else:
        before = _seconds(request.query_params.get("before", ""))
        chats = await asyncio.to_thread(lambda: kept.list(user, A_PAGE + 1, folder=folder, before=before))
        more = f"{chats[A_PAGE - 1].updated:.6f}" if len(chats) > A_PAGE else ""
        groups = group(request, chats[:A_PAGE], apart=not folder)
    folders = await asyncio.to_thread(kept.folders, user)
    return await show.page(
        request, "find.html", query=query, hits=hits, groups=groups, folder=folder, folders=folders, more=more
    )


@router.post("/chat/{id}/rename")
async def rename(request: Request, id: str) -> Response:
    user = await auth.person(request)
    data = await auth.form(request)
    try:
        await asyncio.to_thread(auth.box(request).chat.conversations.rename, user, id, auth.text(data, "title"))
    except ApplianceError as error:
        if not _plain(request) or isinstance(error, NotFound):
            raise
        return await _chat_page(request, user, id, error)
    return RedirectResponse(f"/chat/{id}", 303)


@router.post("/chat/{id}/move")
async def move(request: Request, id: str) -> Response:
    user = await auth.person(request)
    data = await auth.form(request)
    await asyncio.to_thread(auth.box(request).chat.conversations.move, user, id, auth.text(data, "folder"))
    return RedirectResponse(f"/chat/{id}", 303)


@router.post("/chat/{id}/delete")
async def delete(request: Request, id: str) -> Response:
    """Gone from every page at once; the next page offers to undo it."""
    user = await auth.person(request)
    await auth.form(request)
    await auth.box(request).chat.delete(user, id)
    return RedirectResponse(f"/chat?deleted={id}", 303)


@router.post("/chat/{id}/restore")
async def restore(request: Request, id: str) -> Response:
    user = await auth.person(request)
    await auth.form(request)
    await asyncio.to_thread(auth.box(request).chat.conversations.restore, user, id)
    return RedirectResponse(f"/chat/{id}", 303)


@router.get("/chat/{id}/export.{kind}")
async def download(request: Request, id: str, kind: str) -> Response:
    """One's own chat as a file: Markdown of the branch that is shown, or JSON of all of it."""
    user = await auth.person(request)
    kept = auth.box(request).chat.conversations
    say = words.catalogue(show.language_of(request)).gettext
    if kind == "md":
        chat, turns = await asyncio.to_thread(kept.load, user, id)
        return export.attachment(export.markdown(chat, turns, say), f"{chat.title}.md", "text/markdown")
    if kind == "json":
        chat, turns = await asyncio.to_thread(kept.tree, user, id)
        given = await asyncio.to_thread(auth.box(request).feedback.of, user, [turn.id for turn in turns])
        return export.attachment(export.as_json(chat, turns, given, say), f"{chat.title}.json", "application/json")
    raise NotFound("There is no such form of a chat here.", "Take Markdown or JSON.")


def group(request: Request, chats: Sequence[Conversation], now: float | None = None, *, apart: bool = True) -> list[Group]:
    """Chats under their headings: folders by name, the rest by when they were last written to, by the box's own calendar.

    Without `apart`, folders are not told apart.
    """
    say = words.catalogue(show.language_of(request)).gettext
    today = time.localtime(now)
    midnight = time.mktime((today.tm_year, today.tm_mon, today.tm_mday, 0, 0, 0, 0, 0, -1))
    since = [(midnight, say("Today")), (midnight - DAY, say("Yesterday")), (midnight - 7 * DAY, say("Last week"))]
    folders: dict[str, list[Conversation]] = {}
    times: dict[str, list[Conversation]] = {}
    for chat in chats:
        if chat.folder and apart:
            folders.setdefault(chat.folder, []).append(chat)
        else:
            name = next((name for start, name in since if chat.updated >= start), say("Earlier"))
            times.setdefault(name, []).append(chat)
    found = [Group(name, folders[name], folder=True) for name in sorted(folders, key=str.casefold)]
    return found + [Group(name, chats) for name, chats in times.items()]


async def _groups(request: Request, user: User) -> list[Group]:
    listed = await asyncio.to_thread(auth.box(request).chat.conversations.list, user, LISTED)
    return group(request, listed)


# --- small pieces ----------------------------------------------------------------------------------------------------
async def _turn(request: Request, user: User, turn: Any, template: str = "turn.html", **values: Any) -> str:
    """A turn, or a part of one, as it stands in the page."""
    box = auth.box(request)
    if "given" not in values:
        values["given"] = await asyncio.to_thread(box.feedback.of, user, [turn.id])
    may = box.accounts.can(user, "correct", "answer")
    return show.render(request, template, turn=turn, csrf=await auth.csrf(request), may_correct=may, **values)


def _plain(request: Request) -> bool:
    """Sent by a form, not by the script."""
    return "text/html" in request.headers.get("accept", "")


def _seconds(text: str) -> float | None:
    try:
        return float(text) if text and len(text) < 30 else None
    except ValueError:
        return None
