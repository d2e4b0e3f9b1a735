"""Rehearsing a lesson: the room, what is said in it, going back, the feedback, and attempts side by side.

Each handler asks `practice.rehearsals` and shows a template or goes on to another page; all of it works as plain forms, and
what was typed comes back through every fault. For staff alone, and only with one's own lessons; who else may read is in
`web.mentors`, scenes are in `web.scenes`. Rights are decided in `accounts`.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from appliance.accounts import User
from appliance.errors import ApplianceError, NotFound
from appliance.practice import portfolio, progress
from appliance.practice.exchange import MOVES
from appliance.practice.moves import heard_in
from appliance.web import auth, export, show, words

if TYPE_CHECKING:
    from collections.abc import Callable

    from appliance.practice.lesson import Rehearsal
    from appliance.practice.rehearsals import Rehearsals

router = APIRouter(prefix="/practice")

LARGEST_TURN = 256 * 1024  # bytes that are read, so that the text can come back with what is wrong with it


async def staff(request: Request) -> User:
    """Whoever may practise. Raises NotSignedIn, Forbidden."""
    user = await auth.person(request)
    auth.box(request).accounts.require(user, "practise", "lesson")
    return user


def _kept(request: Request) -> Rehearsals:
    kept: Rehearsals = auth.box(request).rehearsals
    return kept


# --- the room ----------------------------------------------------------------------------------------------------------
@router.get("/lessons/{id}")
async def lesson(request: Request, id: str) -> Response:
    """The room while the lesson lasts, the feedback after it."""
    user = await staff(request)
    found = await asyncio.to_thread(_kept(request).load, user, id)
    if found.finished is not None or found.user != user.id:
        return RedirectResponse(f"/practice/lessons/{id}/feedback", 303)
    return await _room(request, found)


async def _room(request: Request, found: Rehearsal, error: ApplianceError | None = None, typed: str = "") -> Response:
    return await show.page(
        request, "practice_room.html", error.status if error else 200, lesson=found, scenario=found.scenario, error=error,
        typed=typed, heard=heard_in(found.scenario.language), names=MOVES,
        minutes=max(0, round((found.until - time.time()) / 60)),
        written=bool(found.turns) and not found.turns[-1].asked,
    )  # fmt: skip


@router.post("/lessons/{id}/say")
async def say(request: Request, id: str) -> Response:
    """What the teacher says. Where it could not be said it comes back: in the room, or with the feedback."""
    user = await staff(request)
    data = await auth.form(request, largest=LARGEST_TURN)
    text = auth.text(data, "words")
    try:
        await _kept(request).say(user, id, text, shown=auth.text(data, "shown"), waited=_seconds(auth.text(data, "waited")))
    except NotFound:
        raise
    except ApplianceError as error:
        found = await asyncio.to_thread(_kept(request).load, user, id)
        if found.finished is not None:
            return await feedback_page(request, user, id, error, text)
        return await _room(request, found, error, text)
    return RedirectResponse(f"/practice/lessons/{id}#now", 303)


@router.post("/lessons/{id}/rewind")
async def rewind(request: Request, id: str) -> Response:
    """Before a turn: in the same lesson, or where that is finished in a new attempt that begins with what came before."""
    user = await staff(request)
    turn = auth.text(await auth.form(request), "turn")
    return RedirectResponse(f"/practice/lessons/{await asyncio.to_thread(_kept(request).rewind, user, id, turn)}#now", 303)


@router.post("/lessons/{id}/show")
async def show_branch(request: Request, id: str) -> Response:
    user = await staff(request)
    turn = auth.text(await auth.form(request), "turn")
    await asyncio.to_thread(_kept(request).show, user, id, turn)
    return RedirectResponse(f"/practice/lessons/{id}#now", 303)


@router.post("/lessons/{id}/finish")
async def finish(request: Request, id: str) -> Response:
    user = await staff(request)
    await auth.form(request)
    await asyncio.to_thread(_kept(request).finish, user, id)
    return RedirectResponse(f"/practice/lessons/{id}/feedback", 303)


@router.post("/lessons/{id}/delete")
async def delete(request: Request, id: str) -> Response:
    user = await staff(request)
    await auth.form(request)
    await asyncio.to_thread(_kept(request).delete, user, id)
    return RedirectResponse("/practice?deleted=1", 303)


# --- afterwards ----------------------------------------------------------------------------------------------------------
@router.get("/lessons/{id}/feedback")
async def feedback(request: Request, id: str) -> Response:
    user = await staff(request)
    return await feedback_page(request, user, id)


async def feedback_page(
    request: Request, user: User, id: str, error: ApplianceError | None = None, typed: str = "", **more: Any
) -> Response:
    """`typed`: words that came too late to be said; `more`: a mentor's note that could not be kept (see `web.mentors`)."""
    kept = _kept(request)
    found = await asyncio.to_thread(kept.load, user, id)
    if found.finished is None:
        return RedirectResponse(f"/practice/lessons/{id}", 303)
    found, told = await asyncio.to_thread(kept.feedback, user, id)
    mine = found.user == user.id
    attempts = await asyncio.to_thread(kept.attempts, user, id)
    owner = {} if mine else await asyncio.to_thread(auth.box(request).accounts.names, [found.user])
    codes = (await asyncio.to_thread(auth.box(request).standards.of_scenes, user)).get(found.scenario.id, frozenset())
    about = await asyncio.to_thread(auth.box(request).standards.known, user, {*codes, *found.scenario.standards})
    return await show.page(
        request, "practice_feedback.html", error.status if error else 200, lesson=found, scenario=found.scenario, told=told,
        attempts=[one for one in attempts if one.id != id], mine=mine, owner=owner.get(found.user, ""), error=error,
        typed=typed, notes=await asyncio.to_thread(kept.notes, user, found), names=MOVES,
        heard=heard_in(found.scenario.language),
        counted=[(move, told.moves[move]) for move in MOVES if told.moves.get(move)], standards=about, **more,
    )  # fmt: skip


@router.get("/lessons/{id}/compare/{other}")
async def compare(request: Request, id: str, other: str) -> Response:
    user = await staff(request)
    first, second, changes = await asyncio.to_thread(_kept(request).compare, user, id, other)
    return await show.page(
        request, "practice_compare.html", first=first, second=second, changes=changes, scenario=first.scenario,
        mine=first.user == user.id,
    )  # fmt: skip


@router.get("/progress")
async def over_weeks(request: Request) -> Response:
    user = await staff(request)
    return await progress_page(request, user, user.id)


async def progress_page(request: Request, user: User, owner: str, name: str = "", **more: Any) -> Response:
    assessed = await asyncio.to_thread(_kept(request).assessed, user, owner)
    found = progress.weeks(assessed)
    made = progress.moves_made(found)
    kept = auth.box(request).standards
    reached = progress.by_standard(assessed, await asyncio.to_thread(kept.of_scenes, user))
    known = await asyncio.to_thread(kept.known, user, reached)
    return await show.page(
        request, "practice_progress.html", weeks=found, made=made, names=MOVES, mine=owner == user.id, owner=name,
        most=max([1, *(sum(week.levels) for week in found)]), often=max([1.0, *(w.each(m) for w in found for m in made)]),
        lessons=[one for one, _ in assessed][::-1], standards=[(one, reached[one.code]) for one in known], **more,
    )  # fmt: skip


@router.get("/export.{kind}")
async def keep_copy(request: Request, kind: str) -> Response:
    """All of one's finished lessons as a file."""
    user = await staff(request)
    say = words.catalogue(show.language_of(request)).gettext
    writers: dict[str, tuple[Callable[[Any], str], str]] = {
        "md": (partial(portfolio.markdown, say=say), "text/markdown"),
        "json": (portfolio.as_json, "application/json"),
    }
    if kind not in writers:
        raise NotFound("A copy is kept as text or as data.", "Choose one of the two.")
    write, media = writers[kind]
    assessed = await asyncio.to_thread(_kept(request).assessed, user)
    return export.attachment(await asyncio.to_thread(write, assessed), f"teaching practice.{kind}", media)


def _seconds(text: str) -> float | None:
    """Seconds as a script measured them; None where none did."""
    try:
        return float(text) if 0 < len(text) < 12 else None
    except ValueError:
        return None
