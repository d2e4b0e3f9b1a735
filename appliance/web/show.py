"""Templates into answers: pages, parts of pages, and faults as pages.

Hides where templates and static files lie and what they are given. It decides nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from fastapi import Request
from starlette.responses import HTMLResponse, Response

from appliance.conversations import Turn
from appliance.errors import ApplianceError, Busy
from appliance.web import auth, faults, kept, words
from appliance.web.markdown import to_html

if TYPE_CHECKING:
    from appliance.accounts import User
    from appliance.safeguarding import Alarm

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Room:
    path: str
    name: str
    here: bool


# Where it is, what it is called, who may enter, and which other addresses belong to it.
ROOMS: list[tuple[str, str, tuple[str, str], tuple[str, ...]]] = [
    ("/chat", "Chat", ("ask", "chat"), ()),
    ("/classes", "Classes", ("create", "class"), ("/standards",)),
    ("/practice", "Practice", ("practise", "lesson"), ()),
    ("/library", "Library", ("read", "library"), ("/document", "/passage")),
    ("/review", "Review", ("review", "example"), ()),
    ("/safeguarding", "Safeguarding", ("read", "flag"), ()),
    ("/counts", "Safety counts", ("read", "class counter"), ()),
    ("/admin", "The box", ("read", "settings"), ()),
    ("/keys", "Keys", ("create", "key"), ()),
    ("/about", "About", ("ask", "chat"), ()),
]


async def fault_page(request: Request, error: ApplianceError, headers: dict[str, str]) -> Response:
    """A fault as a page, with what was typed. It must not fail itself, so it asks for nobody's session."""
    html = render(request, "fault.html", error=error, me=None, csrf="", kept=await kept.typed(request, error))
    return HTMLResponse(html, error.status, headers)


async def page(request: Request, template: str, status: int = 200, /, **values: Any) -> Response:
    """A whole page, with who is signed in and the token that its forms need."""
    session = await auth.session(request)
    me = session.user if session else None
    may_enter = [] if session and session.temporary else rooms(request, me)
    about = {"me": me, "csrf": await auth.csrf(request), "rooms": may_enter, "watches": _watches(request, me)}
    html = render(request, template, **about, alarm=await alarm_for(request, me), **values)
    return HTMLResponse(html, status, retry_after(values.get("error")))


def retry_after(error: object) -> dict[str, str]:
    """When it makes sense to ask again, for whatever is only so for the moment; what restarts by itself takes some seconds."""
    if isinstance(error, Busy):
        return {"retry-after": str(max(1, round(error.retry_after)))}
    return {"retry-after": "10"} if isinstance(error, ApplianceError) and error.status == 503 else {}


def _watches(request: Request, me: User | None) -> bool:
    """Whether this person has to know of new safeguarding messages, or that nobody can read them."""
    accounts = auth.box(request).accounts
    return accounts.can(me, "read", "flag") or accounts.can(me, "change", "people")


async def alarm_for(request: Request, me: User | None) -> Alarm | None:
    """What the banner says to this person; None for nothing."""
    box = auth.box(request)
    if not _watches(request, me):
        return None
    return await asyncio.to_thread(box.safeguarding.alarm, lead=box.accounts.can(me, "read", "flag"))


def rooms(request: Request, me: User | None) -> list[Room]:
    """The rooms of the house that this person may enter, in the order of the header."""
    accounts, path = auth.box(request).accounts, request.scope["path"]
    say = words.catalogue(language_of(request)).gettext
    return [
        Room(first, say(name), path.startswith((first, *more)))
        for first, name, act, more in ROOMS
        if me is not None and accounts.can(me, *act)
    ]


def render(request: Request, template: str, /, **values: Any) -> str:
    """A template as text."""
    settings = auth.box(request).settings
    language = language_of(request)
    about: dict[str, Any] = {"school": settings.school, "path": request.scope["path"], "language": language}
    about["direction"] = "rtl" if language in words.FROM_THE_RIGHT else "ltr"
    session = getattr(request.state, "session", None)
    chosen = session.preferences if session else {}
    about |= {"text_size": chosen.get("text", "normal"), "spacing": chosen.get("spacing", "normal")}
    return _templates(language).get_template(template).render(**about, **values)


def language_of(request: Request) -> str:
    """The person's own choice, or the browser's. Known once the session was looked up."""
    session = getattr(request.state, "session", None)
    return words.choose(session.user.language if session else "", request.headers.get("accept-language", ""))


def day(seconds: float) -> str:
    """UTC seconds since 1970 as the box's own date."""
    return time.strftime("%Y-%m-%d", time.localtime(seconds))


def moment(seconds: float) -> str:
    """UTC seconds since 1970 as the box's own date and time."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def clock(seconds: float) -> str:
    """UTC seconds since 1970 as the box's own time of day."""
    return time.strftime("%H:%M", time.localtime(seconds))


def when(seconds: float) -> str:
    """The time of day of what was today, else the date."""
    return clock(seconds) if day(seconds) == day(time.time()) else day(seconds)


@cache
def _templates(language: str) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=jinja2.ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.i18n"],
    )
    environment.install_gettext_translations(words.catalogue(language), newstyle=True)  # type: ignore[attr-defined]
    # A fault's sentence is not a pattern: a "%" in it is a per cent.
    catalogue = words.catalogue(language)
    environment.filters |= {
        "fault": partial(faults.told, language=language),
        "said": lambda text: catalogue.gettext(text) if text else "",
        "markdown": partial(to_html, words=catalogue),
        "day": day,
        "moment": moment,
        "clock": clock,
        "when": when,
        "opening": lambda turn: turn.opening(catalogue.gettext),
        "snippet": _snippet,
        "cited": _cited,
    }
    environment.globals |= {"static": _static}
    return environment


@cache
def _static(name: str) -> str:
    """A file's address, which changes when the file does: browsers may keep it for ever."""
    return f"/static/{name}?v={hashlib.sha256((HERE / 'static' / name).read_bytes()).hexdigest()[:12]}"


def _snippet(text: str, size: int = 160) -> str:
    line = " ".join(text.split())
    return line if len(line) <= size else line[:size].rsplit(" ", 1)[0] + " …"


def _cited(turn: Turn) -> list[tuple[int, dict[str, Any]]]:
    """The passages that the answer cites, under their numbers; all that were found where it cites none."""
    marks = re.findall(r"\[(\d{1,4}(?: *, *\d{1,4})*) *\]", turn.facts.get("lead") or turn.text)
    numbers = {int(number) for mark in marks for number in mark.split(",") if number.strip()}
    found = list(enumerate(turn.passages, 1))
    return [(number, passage) for number, passage in found if number in numbers] or found
