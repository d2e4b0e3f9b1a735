"""Sign-in by the school's own sign-in service, where one is set: to it, and back from it.

Hides the cookie that ties an answer to the browser that asked. What an answer is worth is for `accounts.oidc` to say. Sign-in
by a directory needs no page of its own: it happens behind the name and the password of the first page.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from appliance.accounts.oidc import PENDING_SECONDS, NotVouched, Oidc
from appliance.errors import NotFound
from appliance.web import auth

if TYPE_CHECKING:
    from appliance.accounts.vouched import Vouched

router = APIRouter()


def provider(request: Request) -> str:
    """What the service is called; "" where none is set."""
    oidc: Oidc | None = auth.box(request).oidc
    return oidc.name if oidc is not None else ""


def _oidc(request: Request) -> Oidc:
    oidc: Oidc | None = auth.box(request).oidc
    if oidc is None:
        raise NotFound("There is no such page here.", "Start again from the first page.")
    return oidc


@router.get("/sign-in/oidc")
async def there(request: Request) -> Response:
    url, state = await _oidc(request).start()
    response = RedirectResponse(url, 303)
    auth.keep(request, response, "oidc", state, int(PENDING_SECONDS))
    return response


@router.get("/sign-in/oidc/again")
async def again(request: Request) -> Response:
    """There, to type the password once more: for somebody who is signed in by that service."""
    oidc, user = _oidc(request), await auth.person(request)
    auth.box(request).accounts.require(user, "change", "self")
    person = await asyncio.to_thread(auth.box(request).people.get, user.id)
    if person.source != "oidc":
        raise NotFound("There is no such page here.", "This account signs in with a name and a password.")
    url, state = await oidc.start(again=person.external)
    response = RedirectResponse(url, 303)
    auth.keep(request, response, "oidc", state, int(PENDING_SECONDS))
    return response


@router.get("/sign-in/oidc/callback")
async def back(request: Request) -> Response:
    """Signed in, or a page that says why not. What stands in the address works once, and only in this browser."""
    oidc, accounts = _oidc(request), auth.box(request).accounts
    vouched, again = await oidc.finish(auth.kept(request, "oidc"), request.query_params)
    if again:
        return await _seen_again(request, vouched)
    id = await asyncio.to_thread(accounts.admit, vouched)
    if id is None:
        raise NotVouched("This account cannot sign in here.", "Ask the administrator.")
    token = await asyncio.to_thread(accounts.begin, id, auth.about(request))
    response = await auth.enter(request, token)
    auth.drop(request, response, "oidc")
    return response


async def _seen_again(request: Request, vouched: Vouched) -> Response:
    """Back where it was needed, in the session that they had: nobody becomes somebody else on this way."""
    user = await auth.person(request)
    person = await asyncio.to_thread(auth.box(request).people.get, user.id)
    if (person.source, person.external) != (vouched.source, vouched.external):
        raise NotVouched("That is another account than the one you are signed in with here.", "Sign in there with this one.")
    auth.box(request).accounts.confirming.saw(auth.token(request))
    response = RedirectResponse("/me/second-step", 303)
    auth.drop(request, response, "oidc")
    return response
