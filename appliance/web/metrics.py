"""`/metrics`: what the web process did since it started and how the box stands, as Prometheus reads it (text format 0.0.4).

Routes are told by their template, people not at all: no name, no id, no address of anybody, nothing that was typed. Hides the
counting of requests (outermost, around every answer) and how what was seen becomes the figures of an hour.
"""

from __future__ import annotations

import asyncio
import bisect
import logging
import re
import shutil
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from starlette.responses import PlainTextResponse, Response

from appliance.checkup.machine import memory_bytes
from appliance.errors import ApplianceError, where
from appliance.logs import METHODS
from appliance.web import auth

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

router = APIRouter()
log = logging.getLogger(__name__)

SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
LOOK = 30.0  # seconds between two looks at memory, disk and queue
LOOKS = 10  # of which so many are written down together
MOST_KEPT = 5000  # answers between two writings
ENGINE_LINE = re.compile(r'(# (HELP|TYPE) )?engine_[a-z_]+(\{[a-z_]+="[^"\\\n]*"\})?( [^\n]*)?')
JOB_STATES = ("queued", "running", "done", "failed", "cancelled")
LABEL = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


class Metrics:
    """Counters of one web process; its event loop alone writes and reads them."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, str, int]] = Counter()
        self._first = Histogram()
        self._answers = Histogram()
        self._seen: dict[str, deque[float]] = {name: deque(maxlen=MOST_KEPT) for name in ("first_words", "answer")}

    def asked(self, method: str, route: str, status: int) -> None:
        self._requests[method, route, status] += 1

    def first_words(self, seconds: float) -> None:
        """From a question to the first words of its answer."""
        self._first.add(seconds)
        self._seen["first_words"].append(seconds)

    def answered(self, seconds: float) -> None:
        """From a question to the end of its answer."""
        self._answers.add(seconds)
        self._seen["answer"].append(seconds)

    def take(self) -> dict[str, Sequence[float]]:
        """What was seen since this was called last, by the names of `figures`."""
        taken: dict[str, Sequence[float]] = {name: list(values) for name, values in self._seen.items()}
        for values in self._seen.values():
            values.clear()
        return taken

    def lines(self) -> Iterable[str]:
        rows = [({"method": m, "route": r, "status": str(s)}, n) for (m, r, s), n in sorted(self._requests.items())]
        yield from family("requests_total", "counter", "Requests by route and status; 0: nobody was left to answer", rows)
        yield from self._first.lines("first_words_seconds", "From a question to the first words of its answer")
        yield from self._answers.lines("answer_seconds", "From a question to the end of its answer")


class Histogram:
    def __init__(self) -> None:
        self._counts = [0] * (len(SECONDS) + 1)
        self._sum = 0.0

    def add(self, seconds: float) -> None:
        self._counts[bisect.bisect_left(SECONDS, seconds)] += 1
        self._sum += seconds

    def lines(self, name: str, text: str) -> Iterable[str]:
        yield from (f"# HELP appliance_{name} {text}", f"# TYPE appliance_{name} histogram")
        total = 0
        for bound, count in zip((*SECONDS, "+Inf"), self._counts, strict=True):
            total += count
            yield f'appliance_{name}_bucket{{le="{bound}"}} {total}'
        yield from (f"appliance_{name}_sum {self._sum:.6f}", f"appliance_{name}_count {total}")


def family(name: str, kind: str, text: str, rows: Iterable[tuple[dict[str, str], float]]) -> Iterable[str]:
    """One family of the text format: its two lines of head, then a line for each row of labels and a number."""
    yield from (f"# HELP appliance_{name} {text}", f"# TYPE appliance_{name} {kind}")
    for labels, value in rows:
        told = ",".join(f'{key}="{label.translate(LABEL)}"' for key, label in labels.items())
        yield f"appliance_{name}{f'{{{told}}}' if told else ''} {value}"


class Counted:
    """Outermost: counts each request once it is answered, whoever answered it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            route = getattr(scope.get("route"), "path", "") or ("/static" if scope["path"].startswith("/static/") else "")
            method = scope["method"] if scope["method"] in METHODS else "other"
            scope["app"].state.metrics.asked(method, route, status)


# --- the page ---------------------------------------------------------------------------------------------------------------
@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """For a program with an administrator's key of the scope admin; nobody else learns how much a school asks."""
    user = await auth.bearer(request)
    box = auth.box(request)
    box.accounts.require(user, "read", "metrics")
    kept: Metrics = request.app.state.metrics
    jobs = await asyncio.to_thread(box.jobs.counts)
    lines = [*kept.lines(), *_standing(box, jobs), *await _engine(box)]
    return PlainTextResponse("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")


def _standing(box: Any, jobs: dict[str, int]) -> Iterable[str]:
    free, whole = memory_bytes()
    disk = shutil.disk_usage(box.settings.home)
    yield from family("jobs", "gauge", "Jobs by state", [({"state": one}, jobs.get(one, 0)) for one in JOB_STATES])
    yield from family("memory_available_bytes", "gauge", "Memory that could be had without swapping", [({}, free)])
    yield from family("memory_bytes", "gauge", "Memory of the machine", [({}, whole)])
    yield from family("disk_free_bytes", "gauge", "Free space where the box keeps its things", [({}, disk.free)])
    yield from family("disk_bytes", "gauge", "Space there altogether", [({}, disk.total)])


async def _engine(box: Any) -> list[str]:
    """The engine's own numbers, as it tells them: lines of its format, and no other."""
    lines: list[str] = []
    with suppress(ApplianceError):
        lines = [line for line in (await box.engine.metrics()).splitlines() if ENGINE_LINE.fullmatch(line)]
    return [*family("engine_up", "gauge", "Whether the engine answers", [({}, int(bool(lines)))]), *lines]


# --- what is written down ---------------------------------------------------------------------------------------------------
async def look(box: Any) -> dict[str, float]:
    """How the box stands at this moment, by the names of `figures`."""
    free, whole = memory_bytes()
    disk = shutil.disk_usage(box.settings.home)
    seen = {"disk": 1 - disk.free / disk.total} | ({"memory": 1 - free / whole} if whole else {})
    health = await box.engine.health()
    return seen | ({"waiting": float(health.facts.get("waiting", 0))} if health.ok else {})


async def keep(box: Any, kept: Metrics) -> None:
    """For as long as the process lives: look, and write down what was seen; once more as it ends."""
    seen: list[dict[str, float]] = []
    try:
        while True:
            try:
                seen.append(await look(box))
                if len(seen) >= LOOKS:
                    await asyncio.to_thread(write, box, kept, seen)
                    seen = []
            except ApplianceError as error:  # a full disk, a locked database: the figures of these minutes are lost
                log.warning("figures could not be kept: %s", error.code)
                seen = []
            except Exception as error:  # noqa: BLE001 - figures are no reason for the pages to end
                log.error("figures: %s", where(error))
                seen = []
            await asyncio.sleep(LOOK)
    finally:
        with suppress(ApplianceError):
            write(box, kept, seen)


def write(box: Any, kept: Metrics, seen: Sequence[dict[str, float]]) -> None:
    names = {name for one in seen for name in one}
    box.figures.add({name: [one[name] for one in seen if name in one] for name in names} | kept.take())
