"""Templates into answers: pages, parts of pages, and faults as pages.

Hides where templates and static files lie and what they are given. It decides nothing.
"""

from __future__ import annotations

import hashlib
import re
import time
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from fastapi import Request
from starlette.responses import HTMLResponse, Response

from appliance.conversations import Turn
from appliance.errors import ApplianceError
from appliance.web import auth
from appliance.web.markdown import to_html

HERE = Path(__file__).parent


async def fault_page(request: Request, error: ApplianceError, headers: dict[str, str]) -> Response:
    """A fault as a page. It must not fail itself, so it asks for nobody's session."""
    html = render(request, "fault.html", error=error, me=None, csrf="")
    return HTMLResponse(html, error.status, headers)


async def page(request: Request, template: str, status: int = 200, /, **values: Any) -> Response:
    """A whole page, with who is signed in and the token that its forms need."""
    session = await auth.session(request)
    html = render(request, template, me=session.user if session else None, csrf=await auth.csrf(request), **values)
    return HTMLResponse(html, status)


def render(request: Request, template: str, /, **values: Any) -> str:
    """A template as text."""
    settings = auth.box(request).settings
    return _templates().get_template(template).render(school=settings.school, path=request.scope["path"], **values)


def day(seconds: float) -> str:
    """UTC seconds since 1970 as the box's own date."""
    return time.strftime("%Y-%m-%d", time.localtime(seconds))


@cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=jinja2.ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"markdown": to_html, "day": day, "snippet": _snippet, "cited": _cited}
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
    marks = re.findall(r"\[([\d, ]+)\]", turn.facts.get("lead") or turn.text)
    numbers = {int(number) for mark in marks for number in mark.split(",") if number.strip()}
    found = list(enumerate(turn.passages, 1))
    return [(number, passage) for number, passage in found if number in numbers] or found
