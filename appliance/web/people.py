"""The administrator's pages about people: who there is, one person, and passwords made for them.

Passwords are on one answer each and nowhere else. Files with many people are in `roll`; rules about people are in `accounts`.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from appliance.accounts import ROLES, User
from appliance.errors import ApplianceError, BadInput, TooLarge
from appliance.web import auth, show, words

if TYPE_CHECKING:
    from appliance.accounts import Person

router = APIRouter(prefix="/admin/people")

SHOWN = 100
MOST_ON_A_SHEET = 300  # a quarter of a minute of hashing; the command line does any number


@router.get("")
async def people(request: Request) -> Response:
    return await _people(request, await administrator(request, "read"))


async def _people(request: Request, user: User, error: ApplianceError | None = None, **typed: str) -> Response:
    query = request.query_params
    search, role, class_name = (query.get(name, "")[:80] for name in ("search", "role", "class"))
    box = auth.box(request)
    found = await asyncio.to_thread(box.people.list, search=search, role=role, class_name=class_name)
    start = query.get("from", "0")
    first = int(start) if start.isdecimal() and start.isascii() and len(start) < 7 else 0
    kept = urlencode({"search": search, "role": role, "class": class_name})
    return await show.page(
        request, "people.html", error.status if error else 200, error=error, typed=typed, people=found[first : first + SHOWN],
        count=len(found), waiting=sum(one.waiting for one in found), search=search, role=role, class_name=class_name,
        roles=ROLES, classes=[one.name for one in await asyncio.to_thread(box.classes.list)], first=first,
        earlier=max(0, first - SHOWN) if first else None, later=first + SHOWN if first + SHOWN < len(found) else None,
        kept=kept, may_change=box.accounts.can(user, "change", "people"), imported=_imported(query.get("done", "")),
        most=MOST_ON_A_SHEET,
    )  # fmt: skip


@router.post("")
async def add(request: Request) -> Response:
    """A new person, and the password made for them, shown once."""
    user = await administrator(request)
    data = await auth.form(request)
    name, full_name, role = (auth.text(data, field) for field in ("name", "full_name", "role"))
    box = auth.box(request)
    try:
        person, password = await asyncio.to_thread(box.people.add, name, role, full_name=full_name)
    except ApplianceError as error:
        return await _people(request, user, error, name=name, full_name=full_name, role=role)
    await note(request, user, "add person", person.id, {"role": role})
    return await _sheet(request, [(person, password)])


@router.post("/sheet")
async def sheet(request: Request) -> Response:
    """New passwords for the people of a class or a role who have none, to be printed and cut."""
    user = await administrator(request)
    data = await auth.form(request)
    role, class_name = auth.text(data, "role"), auth.text(data, "class")
    box = auth.box(request)
    found = await asyncio.to_thread(box.people.list, role=role, class_name=class_name, search=auth.text(data, "search"))
    wanted = [one for one in found if one.waiting and not one.disabled]
    try:
        if not wanted:
            raise BadInput("Everybody here has a password already.", "Open a person to make a new one.")
        if len(wanted) > MOST_ON_A_SHEET:
            raise TooLarge(
                f"{len(wanted)} people have no password; a sheet is for {MOST_ON_A_SHEET} at once.",
                "Choose a class, or run `appliance users sheet` on the box.",
            )
    except ApplianceError as error:
        return await _people(request, user, error)
    made = await asyncio.to_thread(box.people.sheet, [one.id for one in wanted])
    await note(request, user, "make passwords", "people", {"people": len(made)})
    return await _sheet(request, made)


@router.get("/{id}")
async def person(request: Request, id: str) -> Response:
    await administrator(request)
    return await _person(request, id)


async def _person(request: Request, id: str, error: ApplianceError | None = None, **typed: Any) -> Response:
    found = await asyncio.to_thread(auth.box(request).people.get, id)
    values = {"name": found.name, "full_name": found.full_name, "role": found.role, "chosen": found.language, **typed}
    return await show.page(
        request, "person.html", error.status if error else 200, error=error, person=found, values=values, roles=ROLES,
        languages=words.LANGUAGES, done=request.query_params.get("done", ""),
    )  # fmt: skip


@router.post("/{id}")
async def change(request: Request, id: str) -> Response:
    user = await administrator(request)
    data = await auth.form(request)
    typed = {name: auth.text(data, name) for name in ("name", "full_name", "role", "chosen")}
    box = auth.box(request)
    before = await asyncio.to_thread(box.people.get, id)
    wanted = {"name": typed["name"], "full_name": typed["full_name"], "role": typed["role"], "language": typed["chosen"]}
    columns = {name: value for name, value in wanted.items() if value != getattr(before, name)}
    try:
        if columns.get("language", "") not in ("", *words.LANGUAGES):
            raise BadInput("The pages do not speak that language yet.", "Take one of the list.")
        await asyncio.to_thread(box.people.change, id, **columns)
    except ApplianceError as error:
        return await _person(request, id, error, **typed)
    if "role" in columns:
        await leave(request, before)
    facts = {"changed": sorted(columns)} | ({"role": columns["role"], "before": before.role} if "role" in columns else {})
    await note(request, user, "change person", id, facts)
    return RedirectResponse(f"/admin/people/{id}?done=saved", 303)


@router.post("/{id}/{act}")
async def act(request: Request, id: str, act: str) -> Response:
    """disable, enable, second-step (take it off), password (make a new one, shown once)."""
    user = await administrator(request)
    await auth.form(request)
    box = auth.box(request)
    found = await asyncio.to_thread(box.people.get, id)
    try:
        if act in ("disable", "enable"):
            await asyncio.to_thread(box.people.change, id, disabled=act == "disable")
        elif act == "second-step":
            await asyncio.to_thread(box.accounts.second_step.turn_off, id)
        elif act == "password":
            password = await asyncio.to_thread(box.people.reset_password, id)
        else:
            raise BadInput("There is nothing of that name to do.", "Load the page again.")
    except ApplianceError as error:
        return await _person(request, id, error)
    if act in ("disable", "password", "second-step"):
        await leave(request, found)
    await note(request, user, f"{act} of person" if act in ("password", "second-step") else f"{act} person", id, {})
    if act == "password":
        return await _sheet(request, [(found, password)])
    return RedirectResponse(f"/admin/people/{id}?done={act}", 303)


async def _sheet(request: Request, made: list[tuple[Person, str]]) -> Response:
    return await show.page(request, "password_sheet.html", made=made, address=request.headers.get("host", ""))


def _imported(done: str) -> tuple[int, int] | None:
    """How many an import has just added and changed, as its own address says."""
    match = re.fullmatch(r"imported-([0-9]{1,6})-([0-9]{1,6})", done)
    return (int(match[1]), int(match[2])) if match else None


async def administrator(request: Request, verb: str = "change") -> User:
    """Raises NotSignedIn, Forbidden."""
    user = await auth.person(request)
    auth.box(request).accounts.require(user, verb, "people")
    return user


async def leave(request: Request, person: Person) -> None:
    """What this person has under way here ends now; elsewhere it is noticed within seconds."""
    await auth.box(request).chat.leave(User(person.id, person.name, person.role))


async def note(request: Request, user: User, verb: str, thing: str, facts: dict[str, Any]) -> None:
    await asyncio.to_thread(auth.box(request).audit.note, verb, thing, facts, actor=user.id)
