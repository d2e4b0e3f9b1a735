"""Who sent this request: cookie to user, key to user, and whether a browser was tricked into sending it.

Hides cookie names and their flags, the CSRF token, and the check of Host and Origin. It decides nothing about rights:
`accounts.can` does. No decision here reads `request.url`, which a hostile Host header can bend.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import re
import secrets
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from appliance.accounts import Session, User
from appliance.errors import BadInput, Forbidden, NotSignedIn

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.datastructures import FormData
    from starlette.types import Scope

    from appliance.app import Appliance
    from appliance.settings import Settings

# What a browser calls itself, the most telling word first; each pretends to be those below it.
_BROWSERS = ("Edg", "OPR", "Firefox", "Chrome", "Safari")
_SYSTEMS = ("CrOS", "Android", "iPhone", "iPad", "Windows", "Macintosh", "Linux")
_CALLED = {"Edg": "Edge", "OPR": "Opera", "CrOS": "Chromebook", "Macintosh": "Mac"}
DEVICE_SECONDS = 400 * 86400  # as long as browsers keep a cookie
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?")


# --- before anything is routed ---------------------------------------------------------------------------------------
def host_allowed(scope: Scope, settings: Settings) -> bool:
    """One Host header, and a name of ours: the settings', or the very address this connection came in on.

    A foreign name that was rebound to our address is neither. Behind the box's proxy nobody knows that address; any address
    does there, since what is no name cannot be rebound.
    """
    hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
    match = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
    if match is None:
        return False
    name = match[1].lower()
    if name in {allowed.lower() for allowed in (*settings.allowed_hosts, settings.host)}:
        return True
    local = (scope.get("server") or ("",))[0]
    behind_proxy = local.startswith("/") or scope.get("server") is None  # a Unix socket
    return _is_address(name.strip("[]")) and (name.strip("[]") == local.lower() or behind_proxy)


def origin_allowed(scope: Scope) -> bool:
    """A request that changes something must come from our own pages, as far as the browser says where it comes from."""
    if scope["method"] in ("GET", "HEAD", "OPTIONS"):
        return True
    headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
    if headers.get(b"sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = headers.get(b"origin")
    return origin is None or origin.lower() == f"{scope['scheme']}://{headers.get(b'host', '')}".lower()


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


class ChooseFirst(Forbidden):
    """Signed in with a password that somebody else knows: nothing is open until it is changed."""


# --- pages -----------------------------------------------------------------------------------------------------------
def box(request: Request) -> Appliance:
    appliance: Appliance = request.app.state.appliance
    return appliance


def source(request: Request) -> str:
    return request.client.host if request.client else ""


async def session(request: Request) -> Session | None:
    """The signed-in person's session, if any; looked up once for each request."""
    if not hasattr(request.state, "session"):
        token = request.cookies.get(_cookie(request, "session"), "")
        request.state.session = await asyncio.to_thread(box(request).accounts.session, token) if token else None
        if request.state.session is not None:
            request.app.state.presence.saw(request.state.session.user.id)
    found: Session | None = request.state.session
    return found


async def person(request: Request, *, temporary: bool = False) -> User:
    """Raises NotSignedIn, and ChooseFirst unless `temporary` passwords are good enough here."""
    found = await session(request)
    if found is None:
        raise NotSignedIn("You are not signed in, or your sign-in has ended.", "Sign in again; what you typed is kept.")
    if found.temporary and not temporary:
        raise ChooseFirst("Your password was made by somebody else.", "Choose one of your own first, under /me/password.")
    return found.user


def still(request: Request, user: User) -> Callable[[], Awaitable[bool]]:
    """Whether the cookie or the key of this request is still good, to be asked while an answer streams.

    Where it is not, everything that the person has under way ends.
    """
    accounts, cookie = box(request).accounts, request.cookies.get(_cookie(request, "session"), "")
    key = request.headers.get("authorization", "").partition(" ")[2].strip()

    async def good() -> bool:
        if await asyncio.to_thread(accounts.key if key else accounts.session, key or cookie) is not None:
            if not key:
                request.app.state.presence.saw(user.id)
            return True
        if not key:
            await box(request).chat.leave(user)
        return False

    return good


def about(request: Request) -> str:
    """Browser and system, as a person would say them; "" where it is something else."""
    told = request.headers.get("user-agent", "")[:400]
    found = [next((_CALLED.get(one, one) for one in words if one in told), "") for words in (_BROWSERS, _SYSTEMS)]
    return ", ".join(one for one in found if one)


async def form(request: Request, *, fields: int = 20, files: int = 0, largest: int = 256 * 1024) -> FormData:
    """The form of a request that changes something. Raises Forbidden unless it carries this session's token.

    largest: bytes of one field.
    """
    request.state.form = None  # a body can be read once only: `kept` hands back what was read of it
    try:
        data = await request.form(max_files=files, max_fields=fields, max_part_size=largest)
    except (UnicodeError, LookupError):
        raise BadInput("This form is written in letters that the box cannot read.", "Send it as UTF-8.") from None
    request.state.form = data
    await check(request, data)
    return data


async def check(request: Request, data: FormData) -> None:
    """Raise Forbidden unless a form that was read carries this session's token."""
    found = await session(request)
    expected = found.csrf if found else request.cookies.get(_cookie(request, "visitor"), "")
    given = request.headers.get("x-csrf-token") or data.get("csrf") or ""
    if (
        not expected
        or not isinstance(given, str)
        or not hmac.compare_digest(given.encode("utf-8", "replace"), expected.encode())
    ):
        raise Forbidden("This form is too old or did not come from this page.", "Load the page again, then send it once more.")


def text(data: FormData, name: str) -> str:
    value: Any = data.get(name, "")
    return value if isinstance(value, str) else ""


async def csrf(request: Request) -> str:
    """The token for this page's forms: the session's, or before sign-in one in a cookie of its own (see `remember`)."""
    found = await session(request)
    if found is not None:
        return found.csrf
    if not hasattr(request.state, "visitor"):
        request.state.visitor = request.cookies.get(_cookie(request, "visitor")) or secrets.token_urlsafe(24)
    visitor: str = request.state.visitor
    return visitor


def remember(request: Request, response: Response) -> None:
    """Send the visitor's token back with a page that has a form for people who are not signed in."""
    visitor = getattr(request.state, "visitor", None)
    if visitor is not None:
        _set(request, response, "visitor", visitor, 12 * 3600)


async def enter(request: Request, token: str, user: User | None = None) -> Response:
    """To the first page after a right password, or to the second step. An older session of this browser ends.

    user: whose password was right, by which this browser knows them from now on.
    """
    accounts = box(request).accounts
    older = request.cookies.get(_cookie(request, "session"), "")
    if older:
        await asyncio.to_thread(accounts.sign_out, older)
    if await asyncio.to_thread(accounts.second_step.waits, token):
        response = RedirectResponse("/sign-in/code", 303)
        _set(request, response, "step", token, 300)
    else:
        response = RedirectResponse("/chat", 303)
        sign_in(request, response, token)
    if user is not None:
        mark = await asyncio.to_thread(accounts.devices.remember, device(request), user.id)
        _set(request, response, "device", mark, DEVICE_SECONDS)
    return response


def device(request: Request) -> str:
    """The mark by which this browser shows who has signed in here before, or ""."""
    return request.cookies.get(_cookie(request, "device"), "")


def waiting(request: Request) -> str:
    """The token of a sign-in whose second step is missing, or ""."""
    return request.cookies.get(_cookie(request, "step"), "")


def token(request: Request) -> str:
    """The token of the session that this request came with, or ""."""
    return request.cookies.get(_cookie(request, "session"), "")


def sign_in(request: Request, response: Response, token: str) -> None:
    response.delete_cookie(_cookie(request, "step"), secure=_https(request), httponly=True, samesite="lax")
    _set(request, response, "session", token, int(box(request).settings.session_hours * 3600))
    response.delete_cookie(_cookie(request, "visitor"), secure=_https(request), httponly=True, samesite="lax")


async def sign_out(request: Request, response: Response) -> None:
    name = _cookie(request, "session")
    await asyncio.to_thread(box(request).accounts.sign_out, request.cookies.get(name, ""))
    response.delete_cookie(name, secure=_https(request), httponly=True, samesite="lax")


def _https(request: Request) -> bool:
    return bool(request.scope["scheme"] == "https")


def _cookie(request: Request, name: str) -> str:
    return f"__Host-{name}" if _https(request) else name


def _set(request: Request, response: Response, name: str, value: str, seconds: int) -> None:
    response.set_cookie(
        _cookie(request, name), value, max_age=seconds, path="/", secure=_https(request), httponly=True, samesite="lax"
    )


def keep(request: Request, response: Response, name: str, value: str, seconds: int) -> None:
    """A cookie for this browser's way through a sign-in, for a while."""
    _set(request, response, name, value, seconds)


def kept(request: Request, name: str) -> str:
    return request.cookies.get(_cookie(request, name), "")


def drop(request: Request, response: Response, name: str) -> None:
    response.delete_cookie(_cookie(request, name), secure=_https(request), httponly=True, samesite="lax")


# --- /v1 -------------------------------------------------------------------------------------------------------------
async def bearer(request: Request) -> User:
    """The user behind an API key. Raises NotSignedIn."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    user = None
    if scheme.lower() == "bearer" and token.isascii():
        user = await asyncio.to_thread(box(request).accounts.key, token.strip())
    if user is None:
        raise NotSignedIn("The API key is missing, unknown or revoked.", "Send `Authorization: Bearer sk-school-...`.")
    return user
