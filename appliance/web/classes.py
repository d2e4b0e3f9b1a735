"""The teacher's pages: my classes, one class with its lesson, its people and its use, and the archive.

A class belongs to those who teach it: to everybody else, who may not change any, it is not there. What a form brings is kept
through every fault; of two who edit one lesson the second sees the other's values beside their own. No pupil's words are shown
here and no marks: numbers of questions, that is all. Rights are decided in `accounts`, and what a class is in `classes`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from appliance import teaching
from appliance.accounts import PUPIL, User
from appliance.errors import ApplianceError, BadInput, Conflict, Forbidden, NotFound
from appliance.knowledge.shelves import Filter
from appliance.web import auth, show
from appliance.web.standards import tagged

if TYPE_CHECKING:
    from appliance.classes import Member, SchoolClass

router = APIRouter()

DAYS = 14  # of the chart
LONGEST = 12 * 60  # minutes that a class stays open by itself
MOST_FIELDS = 500  # a box to tick for each collection
MOST_NAMES = 200
FIELDS = ("name", "lesson", "subject", "grade", "method", "help_level")


# --- my classes --------------------------------------------------------------------------------------------------------
@router.get("/classes")
async def classes(request: Request) -> Response:
    return await _list(request)


async def _list(request: Request, error: ApplianceError | None = None, **more: Any) -> Response:
    user, box = await _staff(request), auth.box(request)
    mine = await asyncio.to_thread(_mine, box, user)
    here = await asyncio.to_thread(box.chat.quotas.here, [one.id for one in mine])
    return await show.page(
        request, "classes.html", error.status if error else 200, error=error, here=here,
        classes=[one for one in mine if one.archived is None], archived=any(one.archived for one in mine),
        sizes=await asyncio.to_thread(box.classes.sizes), may_create=box.accounts.can(user, "create", "class"),
        may_limit=box.accounts.can(user, "change", "quota"), **more,
    )  # fmt: skip


@router.post("/classes")
async def create(request: Request) -> Response:
    """Whoever makes a class teaches it; an administrator makes one for others."""
    user, box = await auth.person(request), auth.box(request)
    data = await auth.form(request)
    box.accounts.require(user, "create", "class")
    any_class = box.accounts.can(user, "change", "any class")
    name = auth.text(data, "name")
    teacher = "" if any_class else user.id
    try:
        made = await asyncio.to_thread(lambda: box.classes.add(name, teacher=teacher, unread=not any_class))
    except ApplianceError as error:
        return await _list(request, error, typed=name)
    await _note(request, user, "create class", made.id, {"teachers": [teacher]})
    return RedirectResponse(f"/classes/{made.id}", 303)


@router.get("/classes/archive")
async def archive(request: Request) -> Response:
    user, box = await _staff(request), auth.box(request)
    mine = await asyncio.to_thread(_mine, box, user)
    return await show.page(
        request, "classes_archive.html", classes=[one for one in mine if one.archived],
        sizes=await asyncio.to_thread(box.classes.sizes),
    )  # fmt: skip


def _mine(box: Any, user: User) -> list[SchoolClass]:
    return [one for one in box.classes.list(archived=True) if box.accounts.can(user, "read", "class", one.id)]


# --- one class ---------------------------------------------------------------------------------------------------------
@dataclass
class _Typed:
    """What a form brought that could not be used: it comes back filled in."""

    lesson: Mapping[str, Any] = field(default_factory=dict)
    theirs: Mapping[str, str] = field(default_factory=dict)  # what somebody else has made of a field meanwhile
    people: str = ""
    part: str = ""
    error: ApplianceError | None = None
    error_of: str = ""  # the form that it stands above


@router.get("/classes/{id}")
async def one_class(request: Request, id: str) -> Response:
    user, _ = await _class(request, id, "read")
    return await _page(request, user, id, _Typed())


async def _page(request: Request, user: User, id: str, typed: _Typed) -> Response:
    box = auth.box(request)
    found = await asyncio.to_thread(box.classes.get, id)
    members = await asyncio.to_thread(box.classes.members, id)
    pupils = [one for one in members if one.part == "pupil"]
    chosen = await asyncio.to_thread(box.classes.collections, id)
    per_day = await asyncio.to_thread(box.chat.quotas.per_day, id, DAYS)
    here = await asyncio.to_thread(box.chat.quotas.here, [id])
    values: dict[str, Any] = {name: getattr(found, name) for name in FIELDS}
    values |= {"strict": found.strict, "collections": set(chosen)} | dict(typed.lesson)
    return await show.page(
        request, "class.html", typed.error.status if typed.error else 200, one=found, values=values, typed=typed,
        pupils=pupils, teachers=[one for one in members if one.part == "teacher"], here=here.get(id, 0),
        answering=box.chat.answering({one.id for one in pupils}), shelves=await _shelves(request, user, found, chosen),
        methods=teaching.methods().values(), levels=teaching.help_levels().values(),
        bars=_bars(per_day), asked=sum(number for _, number in per_day), most=max(number for _, number in per_day), days=DAYS,
        saved=request.query_params.get("saved", ""), class_id=id,
        code_until=await asyncio.to_thread(box.accounts.class_codes.until, id),
        by_code=await asyncio.to_thread(box.accounts.class_codes.here, id), now=await _now(request, found, members),
        **await tagged(request, user, "class", id, found.subject, found.grade),
    )  # fmt: skip


@router.get("/classes/{id}/here")
async def who_is_here(request: Request, id: str) -> Response:
    """The part of the class's page that says who is here now, as its script asks for it again; empty outside a lesson."""
    await _class(request, id, "read")
    found = await asyncio.to_thread(auth.box(request).classes.get, id)
    members = await asyncio.to_thread(auth.box(request).classes.members, id)
    return HTMLResponse(show.render(request, "here.html", now=await _now(request, found, members)))


async def _now(request: Request, found: SchoolClass, members: Sequence[Member]) -> dict[str, Any] | None:
    """Which pupils are signed in and were seen lately, and how much was asked since the lesson began; None outside one."""
    box = auth.box(request)
    if found.archived or not found.is_open() or found.exam:
        return None
    pupils = {one.id: one.full_name or one.name for one in members if one.part == "pupil" and not one.disabled}
    seen = request.app.state.presence.of(pupils)
    here = seen & await asyncio.to_thread(box.accounts.signed_in, seen)
    asked, questions = await asyncio.to_thread(box.chat.lessons.asked, found.id, await asyncio.to_thread(_began, box, found.id))
    names = sorted((pupils[id] for id in here), key=str.casefold)
    return {"names": names, "pupils": len(pupils), "asked": asked, "questions": questions}


def _began(box: Any, id: str) -> float:
    """When the class was last opened, as the record has it; this morning where nobody ever did."""
    opened = [entry.at for entry in box.audit.entries(thing=id) if entry.verb == "open class"]
    today = time.localtime()
    return opened[-1] if opened else time.mktime((today.tm_year, today.tm_mon, today.tm_mday, 0, 0, 0, 0, 0, -1))


@router.post("/classes/{id}")
async def change(request: Request, id: str) -> Response:
    """The lesson. Where somebody else was quicker, both see what there is: theirs beside what was typed here."""
    user, before = await _class(request, id, "change")
    data = await auth.form(request, fields=MOST_FIELDS)
    box = auth.box(request)
    shown = {one["id"] for one in await _shelves(request, user, before, await asyncio.to_thread(box.classes.collections, id))}
    ticked = {one for one in data.getlist("collections") if isinstance(one, str)}
    values: dict[str, Any] = {name: auth.text(data, name) for name in FIELDS}
    values |= {"strict": bool(auth.text(data, "strict")), "collections": ticked & shown}
    version = auth.text(data, "version")
    free = box.accounts.can(user, "change", "any class")
    try:
        if values["method"] and values["method"] not in teaching.methods():
            raise BadInput("There is no such teaching method.", "Choose one of the list.")
        given = int(version) if version.isdecimal() and len(version) < 10 else -1
        await asyncio.to_thread(lambda: box.classes.change(id, version=given, unread=not free, **values))
    except Conflict as error:
        now = await asyncio.to_thread(box.classes.get, id)
        theirs = await _theirs(request, now, values) if str(now.version) != version else {}
        return await _page(request, user, id, _Typed(values, theirs, error=error, error_of="lesson"))
    except ApplianceError as error:
        return await _page(request, user, id, _Typed(values, error=error, error_of="lesson"))
    facts = {"help_level": values["help_level"], "strict": values["strict"], "collections": sorted(values["collections"])}
    await _note(request, user, "change class", id, facts)
    return RedirectResponse(f"/classes/{id}?saved=lesson", 303)


async def _theirs(request: Request, now: SchoolClass, mine: Mapping[str, Any]) -> dict[str, str]:
    """In words, each field that stands differently in the class now from what was typed."""
    chosen = await asyncio.to_thread(auth.box(request).classes.collections, now.id)
    differ = {name: str(getattr(now, name)) for name in FIELDS if getattr(now, name) != mine[name].strip()}
    ways = {**teaching.methods(), **teaching.help_levels()}
    told = {name: ways[value].name if value in ways else value for name, value in differ.items()}
    if now.strict != mine["strict"]:
        told["strict"] = "on" if now.strict else ""
    if set(chosen) != mine["collections"]:
        told["collections"] = ", ".join(chosen.values())
    return told


# --- the switch, the exam, the archive -----------------------------------------------------------------------------------
@router.post("/classes/{id}/open")
async def open_class(request: Request, id: str) -> Response:
    """For as many minutes as were chosen, or until somebody closes it."""
    user, _ = await _class(request, id, "change")
    minutes = auth.text(await auth.form(request), "minutes")
    until = time.time() + 60 * min(LONGEST, int(minutes)) if minutes.isdecimal() and 0 < len(minutes) < 6 else None
    box = auth.box(request)
    await asyncio.to_thread(lambda: box.classes.open(id, until))
    await _note(request, user, "open class", id, {"until": until})
    return RedirectResponse(f"/classes/{id}", 303)


@router.post("/classes/{id}/close")
async def close_class(request: Request, id: str) -> Response:
    user, _ = await _class(request, id, "change")
    await auth.form(request)
    box = auth.box(request)
    await asyncio.to_thread(box.classes.close, id)
    await asyncio.to_thread(box.accounts.class_codes.out, id)  # or a shared tablet would open as the last child
    await _note(request, user, "close class", id)
    return RedirectResponse(f"/classes/{id}", 303)


@router.post("/classes/{id}/exam")
async def exam(request: Request, id: str) -> Response:
    """On: nobody of the class is answered anywhere, and answers under way end. Off with an empty `on`."""
    user, _ = await _class(request, id, "change")
    on = bool(auth.text(await auth.form(request), "on"))
    box = auth.box(request)
    await asyncio.to_thread(lambda: box.classes.exam(id, on))
    await _note(request, user, "class exam", id, {"on": on})
    if on:
        for one in await asyncio.to_thread(box.classes.members, id):
            if one.part == "pupil":
                await box.chat.leave(User(one.id, one.name, PUPIL))
    return RedirectResponse(f"/classes/{id}", 303)


@router.post("/classes/{id}/archive")
async def put_away(request: Request, id: str) -> Response:
    """`undo` takes it out again."""
    user, _ = await _class(request, id, "change")
    undo = bool(auth.text(await auth.form(request), "undo"))
    box = auth.box(request)
    await asyncio.to_thread(lambda: box.classes.archive(id, not undo))
    await _note(request, user, "restore class" if undo else "archive class", id)
    return RedirectResponse(f"/classes/{id}", 303)


# --- who belongs to it ---------------------------------------------------------------------------------------------------
@router.post("/classes/{id}/people")
async def add_people(request: Request, id: str) -> Response:
    """A name a line. Those that are known are put in; the others come back in the form, to be corrected."""
    user, _ = await _class(request, id, "change")
    data = await auth.form(request)
    part, given = auth.text(data, "part"), auth.text(data, "people")
    names = [name for line in given.splitlines() if (name := " ".join(line.split()))]
    added, unknown = await asyncio.to_thread(_join, auth.box(request), id, part, names[:MOST_NAMES])
    unknown += names[MOST_NAMES:]
    if added:
        facts = {"people": added, "part": part}
        await _note(request, user, "assign to class", id, facts)
    if unknown or not names:
        told = f"Not added: {len(unknown)} of these names." if unknown else "No name was given."
        error = NotFound(told, "Write the name that each signs in with; pupils and staff are added apart.")
        return await _page(request, user, id, _Typed(people="\n".join(unknown), part=part, error=error, error_of="people"))
    return RedirectResponse(f"/classes/{id}?saved=people#people", 303)


def _join(box: Any, id: str, part: str, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """(ids of those put in, names that are not known): a pupil is no teacher, nor are staff pupils."""
    added, unknown = [], []
    for name in names:
        try:
            found = box.accounts.named(name)
        except NotFound:
            found = None
        if found is None or part not in ("pupil", "teacher") or found.staff != (part == "teacher") or found.role == "local":
            unknown.append(name)
            continue
        box.people.join(found.id, id, teaches=part == "teacher")
        added.append(found.id)
    return added, unknown


@router.post("/classes/{id}/people/{person}/remove")
async def remove_person(request: Request, id: str, person: str) -> Response:
    """Nobody leaves a class without a teacher, but whoever may change any."""
    user, _ = await _class(request, id, "change")
    await auth.form(request)
    box = auth.box(request)
    members = {one.id: one.part for one in await asyncio.to_thread(box.classes.members, id)}
    if person not in members:
        raise NotFound("There is no such person in this class.", "They may have been removed already.")
    last = members[person] == "teacher" and list(members.values()).count("teacher") == 1
    if last and not box.accounts.can(user, "change", "any class"):
        error = Conflict("This is the class's last teacher.", "Add another one first, or ask the administrator.")
        return await _page(request, user, id, _Typed(error=error, error_of="people"))
    await asyncio.to_thread(box.people.leave, person, id)
    await asyncio.to_thread(box.accounts.class_codes.out, id, person)
    await _note(request, user, "remove from class", id, {"people": [person]})
    return RedirectResponse("/classes" if person == user.id else f"/classes/{id}#people", 303)


# --- who may, and what is drawn --------------------------------------------------------------------------------------------
async def _staff(request: Request) -> User:
    """Whoever teaches a class, or may make one. Raises NotSignedIn, Forbidden."""
    user = await auth.person(request)
    if not user.staff:
        raise Forbidden("This page is for teachers.", "Ask your teacher.")
    if not user.teaches:
        auth.box(request).accounts.require(user, "create", "class")
    return user


async def _class(request: Request, id: str, verb: str) -> tuple[User, SchoolClass]:
    """Raises NotFound, in the same words where it is another's and where there is none."""
    user = await auth.person(request)
    auth.box(request).accounts.require(user, verb, "class", id)
    return user, await asyncio.to_thread(auth.box(request).classes.get, id)


async def _note(request: Request, user: User, verb: str, id: str, facts: dict[str, Any] | None = None) -> None:
    await asyncio.to_thread(auth.box(request).audit.note, verb, id, facts, actor=user.id)


async def _shelves(request: Request, user: User, one: SchoolClass, chosen: Mapping[str, str]) -> list[dict[str, Any]]:
    """The collections that may be chosen: those this teacher sees, and those that are chosen already.

    closed: the class's pupils may not read it, so that choosing it gives them nothing.
    """
    box = auth.box(request)
    visible = await asyncio.to_thread(box.accounts.visible, user, "collection")
    listed = await asyncio.to_thread(box.library.shelves.list, Filter(visible | set(chosen)))
    readers = {("everyone", ""), ("role", PUPIL), ("class", one.name)}
    return [
        {
            "id": shelf.id, "name": shelf.name, "documents": shelf.documents,
            "closed": not any((reader.kind, reader.name) in readers for reader in shelf.readers),
        }
        for shelf in listed
    ]  # fmt: skip


def _bars(per_day: Sequence[tuple[date, int]]) -> list[dict[str, Any]]:
    """A bar a day, in a drawing of 20 units a day and 100 high."""
    most = max((number for _, number in per_day), default=0) or 1
    return [
        {"x": 20 * index, "day": day, "number": number, "height": round(92 * number / most, 1)}
        for index, (day, number) in enumerate(per_day)
    ]
