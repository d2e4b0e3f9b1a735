"""The web process: one application from its parts, and what holds for every page.

Hides the outer wall (Host and Origin checks, body limits, security headers) and how a fault becomes a page, JSON or an OpenAI
error. It holds no model and no rule about rights. Nothing here logs a path's query, a form or a fault's words.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, RedirectResponse, Response

from appliance.errors import ApplianceError, BadInput, Forbidden, NotFound, NotSignedIn, TooLarge, where
from appliance.web import (
    admin,
    api,
    auth,
    classes,
    directory,
    library,
    me,
    mentors,
    metrics,
    models,
    pages,
    people,
    practice,
    quotas,
    review,
    roll,
    safeguarding,
    scenes,
    show,
    signing,
    standards,
    talks,
    uploads,
)  # fmt: skip
from appliance.web.presence import Presence
from appliance.web.static_files import CompressedFiles

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from appliance.app import Appliance

log = logging.getLogger(__name__)

LARGEST_BODY = 1024 * 1024
LARGER = {uploads.ADDRESS: uploads.AT_ONCE, roll.ADDRESS: roll.AT_ONCE, standards.ADDRESS: standards.AT_ONCE}
THREADS = 24
HEADERS = {
    "content-security-policy": (
        "default-src 'self'; img-src 'self' data:; object-src 'none'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    # Not `no-referrer`: under that a browser sends `Origin: null` with our own forms.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


def create_app(appliance: Appliance) -> FastAPI:
    """Everything the web process answers. `appliance` needs settings, database, library, pool, accounts, chat, registry."""

    counted = metrics.Metrics()
    appliance.chat.on_first_words, appliance.chat.on_answered = counted.first_words, counted.answered

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncGenerator[None, None]:
        # Each look into the database takes a thread for a moment; six, which two cores would get, are held up by one slow disk.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, "work"))
        await appliance.chat.recover()
        keeping = asyncio.create_task(metrics.keep(appliance, counted))
        yield
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await appliance.chat.close()

    app = FastAPI(
        title="School appliance",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
        middleware=[
            Middleware(metrics.Counted),
            Middleware(Wall),
            Middleware(RequestBodyLimitMiddleware, max_body_size=LARGEST_BODY),
        ],
        exception_handlers={ApplianceError: _on_fault, HTTPException: _on_http_fault, RequestValidationError: _on_bad_path},
    )
    app.state.appliance = appliance
    app.state.presence = Presence()
    app.state.metrics = counted
    app.mount("/static", CompressedFiles(directory=Path(__file__).parent / "static"), name="static")
    app.include_router(_status)
    app.include_router(api.router)
    app.include_router(classes.router)
    app.include_router(uploads.router)
    app.include_router(library.router)
    app.include_router(review.router)
    app.include_router(models.router)
    app.include_router(admin.router)
    app.include_router(metrics.router)
    app.include_router(quotas.router)
    app.include_router(pages.router)
    app.include_router(signing.router)
    app.include_router(directory.router)
    app.include_router(me.router)
    app.include_router(roll.router)  # before people: its addresses are more particular
    app.include_router(people.router)
    app.include_router(talks.router)
    app.include_router(safeguarding.router)
    app.include_router(standards.router)
    app.include_router(scenes.router)
    app.include_router(practice.router)
    app.include_router(mentors.router)
    return app


class Wall:
    """Outermost: refuses before anything is routed or read, and puts the headers on whatever comes back."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def guarded_send(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                _put_headers(scope, message)
            await send(message)

        request = Request(scope, receive)
        fault = _refusal(scope)
        if fault is not None:
            request.state.form = None  # nothing of it is read, and nothing handed back that another site has written
            await (await fault_response(request, fault))(scope, receive, guarded_send)
            return
        try:
            await self._app(scope, receive, guarded_send)
        except ClientDisconnect:
            return  # in the middle of its own request: there is nobody to tell, and nothing that went wrong here
        except Exception as error:  # noqa: BLE001 - a fault's own words may hold what a pupil wrote: log its place only
            log.error("%s: %s", scope["method"], where(error))
            if not started:
                request.state.form = getattr(request.state, "form", None)  # what is not read by now may never come
                broken = ApplianceError("Something in the box went wrong.", "Try again; if it stays, tell the administrator.")
                await (await fault_response(request, broken))(scope, receive, guarded_send)


def _refusal(scope: Scope) -> ApplianceError | None:
    settings = scope["app"].state.appliance.settings
    if not auth.host_allowed(scope, settings):
        return BadInput(
            "This address is not one of the box's names.", "Add it to `allowed_hosts` in the settings, or use its name."
        )
    if not auth.origin_allowed(scope):
        return Forbidden("This came from another web site.", "Open the box's own page and do it there.")
    for name, value in scope["headers"]:
        if name == b"content-length" and not (value.isdigit() and len(value) < 16):
            return BadInput("The length of the body is not a number.", "Send a valid Content-Length.")
        if name == b"content-length" and int(value) > _largest(scope):
            return _too_much(scope)
    return None


def _largest(scope: Scope) -> int:
    """Bytes that a request may bring: files to the addresses that take some, words to every other."""
    return LARGER.get(scope["path"], LARGEST_BODY)


def _too_much(scope: Scope) -> TooLarge:
    most = _largest(scope)
    told = f"{most // 2**20} MB" if most >= 2**20 else f"{most // 1024} KiB"
    return TooLarge(f"More than {told} cannot be sent at once.", "Send less at a time.")


def _put_headers(scope: Scope, message: Message) -> None:
    headers = message.setdefault("headers", [])
    names = {name for name, _ in headers}
    headers.extend((name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in names)
    if b"cache-control" not in names:
        # A static file's address changes with the file; everything else is somebody's own.
        keep = scope["path"].startswith("/static/") and b"v=" in scope.get("query_string", b"") and message["status"] == 200
        headers.append((b"cache-control", b"public, max-age=31536000, immutable" if keep else b"no-store"))


# --- faults ----------------------------------------------------------------------------------------------------------
async def fault_response(request: Request, error: ApplianceError) -> Response:
    """OpenAI's shape below /v1, a page for a browser (with what was typed), JSON for the rest."""
    headers = show.retry_after(error)
    if _for_programs(request):
        return JSONResponse(api.openai_error(error), error.status, headers)
    if "text/html" in request.headers.get("accept", ""):
        return await show.fault_page(request, error, headers)
    return JSONResponse({"error": {"code": error.code, "message": error.message, "hint": error.hint}}, error.status, headers)


def _for_programs(request: Request) -> bool:
    """Below /v1 whoever asks is a program, whatever its library says that it reads."""
    return bool((request.scope["path"] + "/").startswith("/v1/"))


async def _on_fault(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApplianceError)
    for_a_person = request.method == "GET" and "text/html" in request.headers.get("accept", "")
    for_a_person = for_a_person and not _for_programs(request)
    if for_a_person and isinstance(error, (NotSignedIn, auth.ChooseFirst)):
        return RedirectResponse("/" if isinstance(error, NotSignedIn) else "/me/password", 303)
    return await fault_response(request, error)


async def _on_http_fault(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    known: dict[int, ApplianceError] = {
        404: NotFound("There is no such page here.", "Start again from the first page."),
        413: _too_much(request.scope),
    }
    fault = known.get(error.status_code) or BadInput("The box cannot read this request.", "Load the page again.")
    response = await fault_response(request, fault)
    response.status_code = error.status_code
    return response


async def _on_bad_path(request: Request, _error: Exception) -> Response:
    """The only typed parts of our addresses are numbers of passages."""
    return await _on_http_fault(request, HTTPException(404))


# --- is it well? -----------------------------------------------------------------------------------------------------
_status = APIRouter()


@_status.get("/health")
async def health() -> dict[str, str]:
    """Alive: the process answers."""
    return {"status": "ok"}


@_status.get("/ready")
async def ready(request: Request) -> Response:
    """Can answer: who would, and why it is not the promoted model where it is not. 503 while the database is away."""
    box = auth.box(request)
    started = time.monotonic()
    try:
        await asyncio.to_thread(box.accounts.has_administrator)
    except ApplianceError as error:
        return JSONResponse({"ready": False, "handler": "", "model": "", "detail": error.message}, 503)
    serving = await box.pool.serving()
    facts = {"ready": True, "handler": serving.handler, "model": serving.model, "starter": serving.starter}
    return JSONResponse({**facts, "ok": serving.ok, "detail": serving.detail, "seconds": round(time.monotonic() - started, 4)})
