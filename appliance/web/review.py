"""The page on which staff decide what a model may learn from: one example at a time, approved, rejected, corrected or left.

A share of the rows is shown blind: without whose class it was and what wrote the answer, so that the words alone are judged.
Two reviewers who are at it at once get different rows. What a decision does is `tuning.store`'s.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from appliance.errors import ApplianceError, BadInput
from appliance.redact import Redactor, Roster
from appliance.tuning.store import ExampleStore
from appliance.web import auth, show
from appliance.web.standards import tagged

if TYPE_CHECKING:
    from collections.abc import Sequence

    from appliance.accounts import User
    from appliance.tuning.store import Row

router = APIRouter()

HELD = 600.0  # seconds for which a row is one reviewer's
SECONDS_EACH = 30  # what a decision takes, for the time that is told
BLIND_ONE_IN = 5


@dataclass(frozen=True, slots=True)
class Line:
    """Something that was said. `used`: what training would see of it, where that is less."""

    who: str
    text: str
    used: str


@router.get("/review")
async def review(request: Request) -> Response:
    return await _page(request)


async def _page(request: Request, error: ApplianceError | None = None, typed: str | None = None, id: str = "") -> Response:
    user = await auth.person(request)
    auth.box(request).accounts.require(user, "review", "example")
    row, left = await asyncio.to_thread(_next, request, user, id or request.query_params.get("row", ""))
    lines = await asyncio.to_thread(_lines, request, row.messages) if row else []
    status = error.status if error else 200
    answer = row.messages[-1].content if row and row.messages[-1].role == "assistant" else ""
    about = await tagged(request, user, "example", row.id, row.subject, row.grade) if row else {}
    better = typed if typed is not None else (str(row.extra.get("draft") or row.correction or answer) if row else "")
    return await show.page(
        request, "review.html", status, error=error, row=row, lines=lines, left=left, better=better,
        minutes=max(1, round(left * SECONDS_EACH / 60)), blind=row is not None and blind(row.id),
        **about,
    )  # fmt: skip


@router.post("/review/{id}")
async def decide(request: Request, id: str) -> Response:
    user = await auth.person(request)
    data = await auth.form(request)
    box = auth.box(request)
    box.accounts.require(user, "review", "example")
    choice, better = auth.text(data, "choice"), auth.text(data, "better").replace("\r\n", "\n").strip()
    try:
        await asyncio.to_thread(_decide, request, user, id, choice, better)
    except ApplianceError as error:
        return await _page(request, error, better, id)
    held = _held(request)
    if choice == "skip":
        held[id] = (user.id, time.monotonic() + HELD)  # comes again when the others are done
    else:
        held.pop(id, None)
    return RedirectResponse("/review", 303)


def _decide(request: Request, user: User, id: str, choice: str, better: str) -> None:
    store = ExampleStore(auth.box(request).database)
    row = store.get(id)
    answer = row.messages[-1].content if row.messages[-1].role == "assistant" else ""
    if choice == "approve" and better and better != (row.correction or answer).strip():
        store.correct(id, better, user.id)
    elif choice == "approve":
        store.approve([id], user.id)
    elif choice == "reject":
        store.reject([id], user.id)
    elif choice == "skip":
        store.draft(id, "" if better == answer.strip() else better)
    else:
        raise BadInput("Nothing was chosen for this example.", "Press Approve, Reject or Skip.")


def _next(request: Request, user: User, wanted: str) -> tuple[Row | None, int]:
    """The row to show, and how many wait: one that this person has open, else one that nobody has, skipped ones last."""
    held, now = _held(request), time.monotonic()
    for id in [id for id, (_, until) in held.items() if until < now]:
        del held[id]
    pending = ExampleStore(auth.box(request).database).pending()
    free = [row for row in pending if held.get(row.id, (user.id, 0.0))[0] == user.id]
    skipped = {id for id, (who, until) in held.items() if who == user.id and until > now + HELD / 2}
    named = [row for row in free if row.id == wanted]
    row = next(iter([*named, *(one for one in free if one.id not in skipped), *free]), None)
    if row is not None and row.id not in held:
        held[row.id] = (user.id, now + HELD / 2)
    return row, len(pending)


def _held(request: Request) -> dict[str, tuple[str, float]]:
    """Who looks at which row, and until when; it is only to keep two people from the same one, so memory is enough."""
    if not hasattr(request.app.state, "reviewing"):
        request.app.state.reviewing = {}
    held: dict[str, tuple[str, float]] = request.app.state.reviewing
    return held


def _lines(request: Request, messages: Sequence[object]) -> list[Line]:
    redactor = Redactor(Roster(auth.box(request).database).names())
    lines = []
    for message in messages:
        role, text = str(getattr(message, "role", "")), str(getattr(message, "content", ""))
        used = redactor.redact(text).text
        lines.append(Line(role, text, used if used != text else ""))
    return lines


def blind(id: str) -> bool:
    """Whether this row is judged by its words alone: by its id, so that it is the same for whoever reviews it."""
    return int(hashlib.sha256(id.encode()).hexdigest()[:8], 16) % BLIND_ONE_IN == 0
