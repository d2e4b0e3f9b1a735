"""The school's curriculum standards: the list with what there is for each, taken in from a file; and tags on other things.

A file with a fault changes nothing and each faulty line is told. Classes, scenes and examples show and change their tags on
pages of their own, by forms that come here. Rights are decided in `accounts`, what a list is in `standards`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from fastapi import APIRouter, Request
from starlette.datastructures import UploadFile
from starlette.responses import RedirectResponse, Response

from appliance.errors import ApplianceError, BadInput
from appliance.web import auth, export, show

if TYPE_CHECKING:
    from collections.abc import Sequence

    from appliance.accounts import User
    from appliance.standards import Count, Outcome, Standard

router = APIRouter()

ADDRESS = "/standards"
AT_ONCE = 4 * 2**20  # bytes: ten thousand lines
SHOWN = 200
CHOICES = 300
# Where the form for a tag stands.
OF: dict[str, str] = {
    "class": "/classes/{}#standards",
    "scenario": "/practice/scenes/{}#standards",
    "example": "/review?row={}",
}


@router.get("/standards")
async def standards(request: Request) -> Response:
    user = await auth.person(request)
    return await _page(request, user)


async def _page(
    request: Request, user: User, error: ApplianceError | None = None, done: Outcome | None = None, file: str = ""
) -> Response:
    box = auth.box(request)
    everything = await asyncio.to_thread(box.standards.counts, user)
    asked = request.query_params.get("q", "")[:120].strip()
    found = [one for one in everything if _fits(one, asked)]
    status = error.status if error else 400 if done and done.faults else 200
    return await show.page(
        request, "standards.html", status, error=error, done=done, file=file, q=asked, found=found[:SHOWN], count=len(found),
        all=len(everything), most=SHOWN, may_change=box.accounts.can(user, "change", "standard"),
    )  # fmt: skip


def _fits(one: Count, asked: str) -> bool:
    """Whether all the words that were typed stand in it."""
    standard = one.standard
    text = f"{standard.code} {standard.subject} {standard.grade} {standard.text}".casefold()
    return all(word in text for word in asked.casefold().split())


@router.post("/standards", max_body_size=AT_ONCE)
async def take(request: Request) -> Response:
    """A CSV file, whole or not at all; `replace`: what is not in it goes."""
    user = await auth.person(request)
    auth.box(request).accounts.require(user, "change", "standard")
    data = await auth.form(request, files=1)
    try:
        given: Any = data.get("file")
        if not isinstance(given, UploadFile) or not given.filename:
            return await _page(request, user, BadInput("No file was chosen.", "Choose a CSV file."))
        name, content = _plain(given.filename), await given.read()
    finally:
        await data.close()
    kept, replace = auth.box(request).standards, bool(auth.text(data, "replace"))
    try:
        done = await asyncio.to_thread(lambda: kept.take(user, content, name, replace=replace))
    except ApplianceError as error:
        return await _page(request, user, error)
    return await _page(request, user, done=done, file=name)


@router.get("/standards/file")
async def as_file(request: Request) -> Response:
    user = await auth.person(request)
    text = await asyncio.to_thread(auth.box(request).standards.export, user)
    return export.attachment(text, "standards.csv", "text/csv")


@router.post("/standards/tag")
async def tag(request: Request) -> Response:
    """Say that a class, a scene or an example is about a standard; with `undo` take it back."""
    user = await auth.person(request)
    data = await auth.form(request)
    code, kind, thing = (auth.text(data, name).strip() for name in ("code", "kind", "thing"))
    kept = auth.box(request).standards
    await asyncio.to_thread(kept.untag if auth.text(data, "undo") else kept.tag, user, code, kind, thing)
    return RedirectResponse(OF[kind].format(quote(thing, safe="")), 303)


async def tagged(request: Request, user: User, kind: str, thing: str, subject: str = "", grade: str = "") -> dict[str, Any]:
    """What the form for tags needs (see standards_parts.html): those there are, and those to choose from, the nearest first."""
    kept = auth.box(request).standards

    def look() -> dict[str, Any]:
        codes = kept.tags(user, kind, thing)
        return {"mine": kept.known(user, codes), "choices": _nearest(kept.list(user), subject, grade)}

    return {"tagged": await asyncio.to_thread(look)}


def _nearest(found: Sequence[Standard], subject: str, grade: str) -> list[Standard]:
    """Those of the subject and grade first."""
    wanted = {name.casefold() for name in (subject, grade) if name}
    return sorted(found, key=lambda one: -len(wanted & {one.subject.casefold(), one.grade.casefold()}))[:CHOICES]


def _plain(name: str) -> str:
    """A file's name as it may be shown: what a browser sends may be anything."""
    return "".join(letter for letter in name.replace("\\", "/").rsplit("/", 1)[-1] if letter.isprintable())[:80] or "file"
