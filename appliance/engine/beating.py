"""An answer's events as they come, and a sign of life where none come: a long queue or a long prompt is silence, not a fault.

Whoever reads gives up after some minutes without a byte (`network.socket_client`), and a class that waits its turn would be
told that the model is gone. So a comment, which every reader of server-sent events passes over, follows each BEAT_SECONDS of
silence. Hides that it costs the words nothing: no task and no clock of its own for each of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress

from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

BEAT_SECONDS = 10.0
BEAT = b": still here\n\n"


class Beating(StreamingResponse):
    """Sends what `frames` yields as server-sent events, with a comment after BEAT_SECONDS to twice that without one.

    close: called at the end, however it comes, and also where no frame was ever asked for.
    """

    def __init__(self, frames: AsyncGenerator[str, None], close: Callable[[], Awaitable[None]]) -> None:
        super().__init__(frames, media_type="text/event-stream")
        self._frames = frames
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._frames.aclose()
            await self._close()

    async def stream_response(self, send: Send) -> None:
        writing = asyncio.Lock()
        heard, ended = False, False

        async def say(message: Message) -> None:
            nonlocal heard, ended
            async with writing:
                heard, ended = True, message["type"] == "http.response.body" and not message.get("more_body")
                await send(message)

        async def beat() -> None:
            nonlocal heard
            with suppress(OSError):  # its reader has left, which the answer notices by itself
                while not ended:
                    await asyncio.sleep(BEAT_SECONDS)
                    async with writing:
                        if not heard and not ended:
                            await send({"type": "http.response.body", "body": BEAT, "more_body": True})
                        heard = False

        await say({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        beats = asyncio.create_task(beat())
        try:
            async for frame in self.body_iterator:
                await say({"type": "http.response.body", "body": str(frame).encode(), "more_body": True})
            await say({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            beats.cancel()
