"""What a service says to whoever runs the box: plain lines, or one JSON object a line for a program that collects them.

Hides the two forms, and what is taken out: a fault's own words, which may be what a pupil wrote (its kind and place stand for
it), and what other libraries fill into their sentences. Of a request it tells the route's template, never the address itself:
no query, no id, nothing that was typed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import sys
import time
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from appliance.errors import where
from appliance.tables import new_id

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# They put a fault with all its words into what they log.
WORDY = ("asyncio", "uvicorn.error", "concurrent.futures")
HEADER = b"x-request-id"  # by which the web process tells the engine for which of its requests it asks
_ID = re.compile(rb"[0-9A-Za-z_-]{1,32}")
_request: ContextVar[str] = ContextVar("request", default="")
_log = logging.getLogger("appliance.requests")


def begin(process: str, form: str) -> None:
    """Once, as a service starts. form: plain leaves the lines as Python and uvicorn write them; json."""
    logging.raiseExceptions = False  # a line that cannot be written is not told either, with all that it held
    for name in WORDY:
        logging.getLogger(name).addFilter(_without_words)
    if form == "json":
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(Lines(process))
        logging.getLogger().handlers[:] = [handler]
        logging.getLogger("appliance").setLevel(logging.INFO)


@contextlib.contextmanager
def about(id: str) -> Iterator[None]:
    """The id of a request or a job, which stands in every line that is written meanwhile."""
    before = _request.set(id)
    try:
        yield
    finally:
        _request.reset(before)


def current() -> str:
    """The id of what is being done here; "" where it has none."""
    return _request.get()


def _without_words(record: logging.LogRecord) -> bool:
    """The first line of what is said, and where the fault was, in place of all of it."""
    said = record.getMessage().partition("\n")[0][:200]
    fault = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
    record.msg, record.args, record.exc_info = f"{said}: {where(fault)}" if fault else said, (), None
    return True


class Lines(logging.Formatter):
    """A record as one line of JSON."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        ours = record.name.partition(".")[0] in ("appliance", *WORDY, "uvicorn")
        said: dict[str, Any] = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            # What others fill in is not known to us: their sentence as it stands in their source.
            "message": record.getMessage() if ours else str(record.msg).partition("\n")[0][:200],
        }
        if request := _request.get():
            said["request"] = request
        said |= getattr(record, "facts", {})
        if isinstance(record.exc_info, tuple) and record.exc_info[1] is not None:
            said["fault"] = where(record.exc_info[1])
        return json.dumps(said, ensure_ascii=True, default=str)


class Requests:
    """Outermost: a line for each request, once it is answered, and an id that stands in every line written meanwhile.

    believed: whoever asks is a process of the box, and may say for which request of its own.
    """

    def __init__(self, app: ASGIApp, *, believed: bool = False) -> None:
        self._app = app
        self._believed = believed

    def _id(self, scope: Scope) -> str:
        told = next((value for name, value in scope["headers"] if name == HEADER), b"") if self._believed else b""
        return told.decode() if _ID.fullmatch(told) else new_id()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, started, ours = 0, time.monotonic(), _request.set(self._id(scope))

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            route = getattr(scope.get("route"), "path", "") or ("/static" if scope["path"].startswith("/static/") else "")
            facts = {
                "method": scope["method"] if scope["method"] in METHODS else "other",
                "route": route,  # "" where there is none
                "status": status,  # 0 where nobody was left to answer
                "ms": round(1000 * (time.monotonic() - started), 1),
            }
            _log.info("request", extra={"facts": facts})
            _request.reset(ours)
