"""The pages about oneself: how pages look, one's password, the second step, and where one is signed in.

Everything here is about the person who asks, so no address names anybody. Rights and secrets are `accounts`'.
"""

from __future__ import annotations

import asyncio
import io
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from appliance.accounts.people import SPACING, TEXT
from appliance.errors import ApplianceError, BadInput, Forbidden
from appliance.web import auth, directory, show, words

if TYPE_CHECKING:
    from appliance.accounts import Session, User

router = APIRouter()


@router.get("/me")
async def me(request: Request) -> Response:
    return await _me(request)


async def _me(request: Request, error: ApplianceError | None = None, **typed: str) -> Response:
    session, user = await _self(request)
    box = auth.box(request)
    person = await asyncio.to_thread(box.people.get, user.id)
    values = {"full_name": person.full_name, "chosen": person.language, **session.preferences, **typed}
    signed_in = await asyncio.to_thread(box.accounts.sessions_of, user, auth.token(request))
    shown = {"languages": words.LANGUAGES, "texts": TEXT, "spacings": SPACING, "signed_in": signed_in}
    done = request.query_params.get("done", "")
    return await show.page(
        request, "me.html", error.status if error else 200, error=error, person=person, values=values,
        by_class=session.kind == "class", done=done, **shown,
    )  # fmt: skip


@router.post("/me")
async def change(request: Request) -> Response:
    """Language and looks; the full name of staff. A pupil's is the school's to write."""
    _, user = await _self(request)
    data = await auth.form(request)
    typed = {name: auth.text(data, name) for name in ("full_name", "chosen", "text", "spacing")}
    box = auth.box(request)
    try:
        if typed["chosen"] and typed["chosen"] not in words.LANGUAGES:
            raise BadInput("The pages do not speak that language yet.", "Take one of the list.")
        looks = {"text": typed["text"] or TEXT[0], "spacing": typed["spacing"] or SPACING[0]}
        await asyncio.to_thread(partial(box.people.prefer, user.id, **looks))
        columns = {"language": typed["chosen"]} | ({"full_name": typed["full_name"]} if user.staff else {})
        await asyncio.to_thread(box.people.change, user.id, **columns)
    except ApplianceError as error:
        return await _me(request, error, **typed)
    return RedirectResponse("/me?done=saved", 303)


@router.post("/me/sessions/end")
async def end_others(request: Request) -> Response:
    _, user = await _self(request)
    await auth.form(request)
    box = auth.box(request)
    await asyncio.to_thread(box.accounts.end_sessions, user, auth.token(request))
    return RedirectResponse("/me?done=ended", 303)


# --- password --------------------------------------------------------------------------------------------------------
@router.get("/me/password")
async def password(request: Request) -> Response:
    return await _password(request)


async def _password(request: Request, error: ApplianceError | None = None) -> Response:
    session, _ = await _self(request, temporary=True, password=True)
    status = error.status if error else 200
    return await show.page(request, "password.html", status, error=error, temporary=session.temporary)


@router.post("/me/password")
async def change_password(request: Request) -> Response:
    """All sessions end, this one too; a new one begins, under a new token."""
    session, user = await _self(request, temporary=True, password=True)
    data = await auth.form(request)
    old, new, again = (auth.text(data, name) for name in ("old", "new", "again"))
    box = auth.box(request)
    try:
        if new != again:
            raise BadInput("The two new passwords are not the same.", "Type the new one twice.")
        if session.temporary:
            await asyncio.to_thread(box.people.choose_password, user.id, new)
        else:
            await asyncio.to_thread(box.people.change_password, user.id, old, new)
    except ApplianceError as error:
        return await _password(request, error)
    await box.chat.leave(user)
    await _note(request, user, "change password")
    token = await asyncio.to_thread(box.accounts.renew, user.id, auth.about(request))
    response = RedirectResponse("/chat" if session.temporary else "/me?done=password", 303)
    auth.sign_in(request, response, token)
    return response


# --- second step -----------------------------------------------------------------------------------------------------
@router.get("/me/second-step")
async def second_step(request: Request) -> Response:
    return await _second_step(request)


async def _second_step(request: Request, error: ApplianceError | None = None, secret: str = "", **more: Any) -> Response:
    _, user = await _self(request, password=True)
    box = auth.box(request)
    _require_staff(user)
    step = box.accounts.second_step
    person = await asyncio.to_thread(box.people.get, user.id)
    if not person.totp:
        secret = secret or step.new_secret()
        more |= {"secret": secret, "picture": picture(step.address(secret, user.name))}
    left = await asyncio.to_thread(step.codes_left, user.id)
    seen = person.source == "oidc" and box.accounts.confirming.seen(auth.token(request))
    return await show.page(
        request, "second_step.html", error.status if error else 200, error=error, person=person, left=left, seen=seen,
        provider=directory.provider(request), **more,
    )  # fmt: skip


@router.post("/me/second-step")
async def turn_on(request: Request) -> Response:
    """The recovery codes are on this answer only, which is why it is a page and not a redirect."""
    _, user = await _self(request, password=True)
    data = await auth.form(request)
    _require_staff(user)
    secret, code = auth.text(data, "secret"), auth.text(data, "code")
    box = auth.box(request)
    try:
        await _confirm(request, user, auth.text(data, "password"))
        codes = await asyncio.to_thread(box.accounts.second_step.turn_on, user.id, secret, code, auth.token(request))
    except ApplianceError as error:
        return await _second_step(request, error, secret if len(secret) == 32 and secret.isalnum() else "")
    await _note(request, user, "second step on")
    return await _second_step(request, codes=codes, turned_on=True)


@router.post("/me/second-step/codes")
async def fresh_codes(request: Request) -> Response:
    _, user = await _self(request, password=True)
    data = await auth.form(request)
    _require_staff(user)
    box = auth.box(request)
    try:
        await _confirm(request, user, auth.text(data, "password"))
        codes = await asyncio.to_thread(box.accounts.second_step.fresh_codes, user.id)
    except ApplianceError as error:
        return await _second_step(request, error)
    await _note(request, user, "second step codes")
    return await _second_step(request, codes=codes)


@router.post("/me/second-step/off")
async def turn_off(request: Request) -> Response:
    _, user = await _self(request, password=True)
    data = await auth.form(request)
    _require_staff(user)
    box = auth.box(request)
    try:
        await _confirm(request, user, auth.text(data, "password"))
        await asyncio.to_thread(box.accounts.second_step.turn_off, user.id, auth.token(request))
    except ApplianceError as error:
        return await _second_step(request, error)
    await _note(request, user, "second step off")
    return RedirectResponse("/me?done=off", 303)


def picture(text: str) -> str:
    """A QR code as an SVG element without style or script: dark on white, whatever the page's colours."""
    import segno

    out = io.BytesIO()
    looks: dict[str, Any] = {"border": 3, "omitsize": True, "light": "#fff", "svgclass": "qr", "lineclass": None}
    segno.make(text, error="m").save(out, kind="svg", xmldecl=False, **looks)
    return out.getvalue().decode()


async def _self(request: Request, *, temporary: bool = False, password: bool = False) -> tuple[Session, User]:
    """Who asks. `password`: only for those who came by one. Raises NotSignedIn, ChooseFirst, Forbidden."""
    user = await auth.person(request, temporary=temporary)
    auth.box(request).accounts.require(user, "change", "self")
    found = await auth.session(request)
    assert found is not None
    if password and found.kind:
        raise Forbidden("You came in by your class's code.", "There is no password to change in such a lesson.")
    return found, user


def _require_staff(user: User) -> None:
    if not user.staff:
        raise Forbidden("The second step is for staff.", "Your password is enough.")


async def _confirm(request: Request, user: User, password: str) -> None:
    await asyncio.to_thread(auth.box(request).accounts.confirming, user.id, password, auth.token(request))


async def _note(request: Request, user: User, verb: str) -> None:
    await asyncio.to_thread(auth.box(request).audit.note, verb, user.id, {}, actor=user.id)
