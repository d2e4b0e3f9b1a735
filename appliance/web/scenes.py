"""Scenes to rehearse: the list, one scene, and a school's own, written as text or asked of the model, approved by a colleague.

What a form brings comes back through every fault. Rights are decided in `accounts`; what a scene is, in `practice.scenes`.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from appliance.asking import ask_text
from appliance.errors import ApplianceError, BadInput, NotFound
from appliance.practice import scene_file
from appliance.practice.exchange import MOVES
from appliance.practice.generating import Wish, generate
from appliance.practice.moves import heard_in
from appliance.practice.scenario import CATEGORIES, PHASES
from appliance.web import auth, export, show, words
from appliance.web.practice import staff
from appliance.web.standards import tagged

if TYPE_CHECKING:
    from collections.abc import Mapping

    from appliance.accounts import User

router = APIRouter(prefix="/practice")

MODULE = "scenario_generator"
WISH = ("subject", "grade", "challenge", "class_profile", "language")


# --- the list, and one -------------------------------------------------------------------------------------------------
@router.get("")
async def scenes(request: Request) -> Response:
    """One's lessons under way first, then the scenes, by kind, age and subject; a filter that is unknown lets all through."""
    user = await staff(request)
    box: Any = auth.box(request)
    asked = {name: request.query_params.get(name, "")[:60] for name in ("category", "phase", "subject")}
    chosen = {
        "category": asked["category"] if asked["category"] in CATEGORIES else "",
        "phase": asked["phase"] if asked["phase"] in PHASES else "",
        "subject": asked["subject"],
    }
    everything = await asyncio.to_thread(box.scenes.list, user)
    found = await asyncio.to_thread(partial(box.scenes.list, user, **chosen))
    standard = request.query_params.get("standard", "")[:60]
    if standard:
        codes = await asyncio.to_thread(box.standards.of_scenes, user)
        found = [one for one in found if standard in codes.get(one.scenario.id, ())]
    own = await asyncio.to_thread(box.rehearsals.list, user)
    return await show.page(
        request, "practice.html", scenes=found, chosen=chosen, categories=CATEGORIES, phases=PHASES,
        subjects=sorted({one.scenario.subject for one in everything if one.scenario.subject}, key=str.casefold),
        running=[one for one in own if one.finished is None], finished=[one for one in own if one.finished is not None][:6],
        deleted=bool(request.query_params.get("deleted")), drafts=[one for one in everything if one.draft],
        standard=standard,
    )  # fmt: skip


@router.get("/scenes/{id}")
async def scene(request: Request, id: str) -> Response:
    return await _scene(request, await staff(request), id)


async def _scene(request: Request, user: User, id: str, error: ApplianceError | None = None) -> Response:
    box = auth.box(request)
    found = await asyncio.to_thread(box.scenes.find, user, id, _version(request.query_params.get("version", "")))
    own = await asyncio.to_thread(box.rehearsals.list, user)
    mine = found.author == user.id or box.accounts.can(user, "change", "any class")
    return await show.page(
        request, "practice_scene.html", error.status if error else 200, found=found, scenario=found.scenario, error=error,
        lessons=[one for one in own if one.scenario.id == id], may_change=bool(found.author) and mine,
        may_approve=found.draft and box.accounts.can(user, "approve", "scenario"),
        saved=request.query_params.get("saved", ""), heard=heard_in(found.scenario.language), names=MOVES,
        standards=await asyncio.to_thread(box.standards.known, user, found.scenario.standards),
        **await tagged(request, user, "scenario", id, found.scenario.subject, found.scenario.grade),
    )  # fmt: skip


@router.post("/scenes/{id}/begin")
async def begin(request: Request, id: str) -> Response:
    """A new lesson. `after`: the one that is tried again, from its beginning and with the same class."""
    user, box = await staff(request), auth.box(request)
    data = await auth.form(request)
    after, version = auth.text(data, "after"), _version(auth.text(data, "version"))
    lesson = await asyncio.to_thread(lambda: box.rehearsals.begin(user, id, version=version, after=after))
    return RedirectResponse(f"/practice/lessons/{lesson}", 303)


# --- the school's own ----------------------------------------------------------------------------------------------------
@router.get("/write")
async def write(request: Request) -> Response:
    """A new scene. `like`: the one whose text it begins with."""
    user, box = await staff(request), auth.box(request)
    like = request.query_params.get("like", "")
    text = await asyncio.to_thread(box.scenes.export, user, like) if like else ""
    return await _write(request, text)


async def _write(request: Request, text: str, error: ApplianceError | None = None, about: str = "", **more: Any) -> Response:
    """`about`: the form that the fault is of, "text" or "wish"."""
    serving = await auth.box(request).pool.serving(MODULE)
    values = {"id": "", "version": 0, "wish": {}, "languages": words.LANGUAGES, **more}
    return await show.page(
        request, "practice_write.html", error.status if error else 200, text=text, error=error, about=about,
        can_ask=serving.handler != "quotes", starter=serving.starter, **values,
    )  # fmt: skip


@router.post("/write")
async def save_new(request: Request) -> Response:
    user = await staff(request)
    return await _save(request, user, auth.text(await auth.form(request), "scene"))


@router.get("/scenes/{id}/edit")
async def edit(request: Request, id: str) -> Response:
    user, box = await staff(request), auth.box(request)
    found = await asyncio.to_thread(box.scenes.get, user, id, _version(request.query_params.get("version", "")))
    return await _write(request, scene_file.write(found), id=id, version=found.version)


@router.post("/scenes/{id}/edit")
async def save(request: Request, id: str) -> Response:
    user = await staff(request)
    data = await auth.form(request)
    return await _save(request, user, auth.text(data, "scene"), id, _version(auth.text(data, "seen")) or 0)


async def _save(request: Request, user: User, text: str, id: str = "", seen: int = 0) -> Response:
    box = auth.box(request)

    def store() -> Any:
        facts = scene_file.read(text.replace("\r\n", "\n").encode("utf-8", "replace"), "What you wrote")
        if not id:
            return box.scenes.save(user, {**facts, "version": 1})
        return box.scenes.save(user, {**facts, "version": seen}, id, version=seen)

    try:
        made = await asyncio.to_thread(store)
    except NotFound:
        raise
    except ApplianceError as error:
        return await _write(request, text, error, "text", id=id, version=seen)
    return RedirectResponse(f"/practice/scenes/{made.id}?version={made.version}&saved=draft", 303)


@router.post("/generate")
async def ask_for_one(request: Request) -> Response:
    """A draft that the model writes; what was asked for stays in the form where it wrote none."""
    user, box = await staff(request), auth.box(request)
    data = await auth.form(request)
    wish = {name: auth.text(data, name) for name in WISH}
    wish["language"] = wish["language"] or show.language_of(request)
    try:
        admitted = await box.chat.admit(user)

        async def ask(inputs: Mapping[str, str], schema: Mapping[str, Any]) -> str:
            named = {**inputs, "language": words.LANGUAGES.get(inputs["language"], inputs["language"])}
            return await ask_text(box.chat, user, MODULE, named, schema=dict(schema), lesson=admitted)

        made = await generate(user, Wish(**wish), box.scenes, ask)
    except ApplianceError as error:
        return await _write(request, "", error, "wish", wish=wish)
    return RedirectResponse(f"/practice/scenes/{made.id}?version={made.version}&saved=draft", 303)


@router.post("/scenes/{id}/approve")
async def approve(request: Request, id: str) -> Response:
    """By a colleague, and of the very version that was read."""
    user, box = await staff(request), auth.box(request)
    version = _version(auth.text(await auth.form(request), "version"))
    box.accounts.require(user, "approve", "scenario")
    if version is None:
        raise BadInput("It is not said which version is approved.", "Load the page again.")
    try:
        await asyncio.to_thread(box.scenes.approve, user, id, version)
    except NotFound:
        raise
    except ApplianceError as error:
        return await _scene(request, user, id, error)
    return RedirectResponse(f"/practice/scenes/{id}?saved=approved", 303)


@router.post("/scenes/{id}/archive")
async def archive(request: Request, id: str) -> Response:
    """Put away, or with `undo` taken out again."""
    user, box = await staff(request), auth.box(request)
    data = await auth.form(request)
    undo, version = bool(auth.text(data, "undo")), _version(auth.text(data, "version"))
    await asyncio.to_thread(box.scenes.archive, user, id, not undo)
    return RedirectResponse(f"/practice/scenes/{id}?version={version or 1}", 303)


@router.get("/scenes/{id}/file")
async def as_file(request: Request, id: str) -> Response:
    user, box = await staff(request), auth.box(request)
    version = _version(request.query_params.get("version", ""))
    text = await asyncio.to_thread(box.scenes.export, user, id, version)
    return export.attachment(text, f"{id}.toml", "application/toml")


def _version(text: str) -> int | None:
    """The number of a version; None where none is named. Raises NotFound for what is no number."""
    if not text:
        return None
    if not text.isdecimal() or len(text) > 6:
        raise NotFound("There is no such version of this scene.", "Look at the list of scenes again.")
    return int(text)
