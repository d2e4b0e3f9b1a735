"""Server-sent events: an answer's events, or anything else that comes in pieces, to one reader.

Hides the wire format and what happens when the reader leaves: the generator behind the stream is closed at once, in a task that
nothing else cancels. Events carry numbers, so that a reader who comes back goes on where it was (Last-Event-ID).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from appliance.errors import ApplianceError

KEEP_ALIVE = 10.0
# A cookie or key that was taken back must not go on reading: an indexed look-up for each open stream this often.
LOOK_AGAIN = 2.0

Result = TypeVar("Result")


class Left(Exception):
    """The reader hung up before there was anything to send."""


def frame(data: Any, event: str = "", number: int | None = None) -> str:
    """One event. JSON has no line breaks, so a single data line is enough."""
    head = (f"id: {number}\n" if number is not None else "") + (f"event: {event}\n" if event else "")
    return f"{head}data: {data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)}\n\n"


class EventStream(Response):
    """An ASGI response that sends what `frames` yields, with a comment every ten seconds of silence.

    It ends as soon as `still` says that the reader may read no more.
    """

    def __init__(self, frames: AsyncGenerator[str, None], still: Callable[[], Awaitable[bool]] | None = None) -> None:
        super().__init__()
        self._frames = frames
        self._still = still

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        pump = asyncio.create_task(self._pump(send))
        reader = asyncio.create_task(_gone(receive))
        right = asyncio.create_task(_until_not(self._still))
        try:
            await asyncio.wait({pump, reader, right}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            here = not reader.done()
            reader.cancel()
            right.cancel()
            if not pump.done():
                pump.cancel()
            with suppress(asyncio.CancelledError, OSError):
                await pump
        if here or not pump.cancelled():
            with suppress(OSError):
                await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _pump(self, send: Send) -> None:
        async with aclosing(self._frames) as frames:
            following = asyncio.ensure_future(anext(frames, None))
            try:
                while True:
                    done, _ = await asyncio.wait({following}, timeout=KEEP_ALIVE)
                    text = following.result() if done else ": still here\n\n"
                    if text is None:
                        return
                    await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
                    if done:
                        following = asyncio.ensure_future(anext(frames, None))
            finally:
                if not following.done():  # a generator can only be closed once it is not running
                    following.cancel()
                    with suppress(asyncio.CancelledError):
                        await following


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """What `work` gives; it is cancelled, and Left raised, as soon as the reader hangs up. The request's body has been read."""
    task, reader = asyncio.create_task(work), asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait({task, reader}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Left
        return task.result()
    finally:
        for one in (task, reader):
            if not one.done():
                one.cancel()
                with suppress(asyncio.CancelledError):
                    await one


async def _until_not(still: Callable[[], Awaitable[bool]] | None) -> None:
    if still is None:
        await asyncio.Event().wait()
        return
    good = True
    while good:
        await asyncio.sleep(LOOK_AGAIN)
        try:
            good = await still()
        except ApplianceError:
            continue  # a database that is busy for a moment says nothing about this reader


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
