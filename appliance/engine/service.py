"""The engine process: language model and embedder behind OpenAI's dialect on a Unix socket.

Hides loading, keeping the served model beside its successor while the old one's conversations end, and the embedder's thread.
It reads model files through `resolve`, which verifies them first, and trusts its one client (the web process or the command
line of this box): what pupils send never reaches it as JSON. No network at all.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fastapi import FastAPI
from fastapi import Request as HTTPRequest
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from appliance.engine.embedder import Embedder
from appliance.engine.handler import Chunk, Handler, Message, Request
from appliance.errors import ApplianceError, Busy, ModelUnavailable

# Beside the model that serves, this many may stay loaded: enough for a promotion under load, and for going back.
SPARE = 1


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A verified model on disk; `context` in tokens."""

    id: str
    model: Path
    adapter: Path | None
    context: int


Resolve = Callable[[str], ModelFiles]
MakeHandler = Callable[[ModelFiles], Handler]


class Loaded:
    """The handlers in memory, by model id. A handler in use is never closed; one whose loop died is loaded again."""

    def __init__(self, resolve: Resolve, make: MakeHandler) -> None:
        self._resolve = resolve
        self._make = make
        self._handlers: dict[str, Handler] = {}
        self._users: dict[str, int] = {}
        self._loading: dict[str, asyncio.Lock] = {}

    @asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[tuple[str, Handler]]:
        """The handler for an id or alias, loaded if need be. Raises NotFound or ModelUnavailable."""
        files = await asyncio.to_thread(self._resolve, name)
        # A lock for each model: who asks the one in memory does not wait while another is loaded.
        async with self._loading.setdefault(files.id, asyncio.Lock()):
            handler = self._handlers.get(files.id)
            if handler is not None and not (await handler.health()).ok:
                del self._handlers[files.id]  # its loop died: make a new one
                await handler.close()
                handler = None
            if handler is None:
                handler = self._make(files)
                await handler.start()
            self._handlers.pop(files.id, None)
            self._handlers[files.id] = handler  # newest last
            self._users[files.id] = self._users.get(files.id, 0) + 1
        try:
            yield files.id, handler
        finally:
            self._users[files.id] -= 1
            await self._unload_spares()

    async def _unload_spares(self) -> None:
        idle = [id for id in self._handlers if not self._users.get(id)]
        doomed = [self._handlers.pop(id) for id in idle[: max(0, len(self._handlers) - SPARE - 1)]]
        for handler in doomed:
            await handler.close()

    async def facts(self) -> dict[str, Any]:
        return {id: (await handler.health()).facts for id, handler in list(self._handlers.items())}

    async def close(self) -> None:
        for handler in self._handlers.values():
            await handler.close()
        self._handlers.clear()


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Message(_Strict):
    role: Literal["system", "user", "assistant"]
    content: str


class _Conversation(_Strict):
    messages: list[_Message] = Field(min_length=1)
    model: str = "default"

    def plain(self) -> list[Message]:
        return [Message(message.role, message.content) for message in self.messages]


class _Completion(_Conversation):
    max_tokens: int = Field(320, ge=1)
    temperature: float = Field(0.0, ge=0, le=10)
    top_k: int = 40
    top_p: float = Field(0.95, ge=0, le=1)
    min_p: float = Field(0.05, ge=0, le=1)
    repeat_penalty: float = Field(1.0, gt=0, le=10)
    stop: list[str] = []
    seed: int | None = None
    stream: bool = False
    stream_options: dict[str, bool] = {}
    ignore_eos: bool = False
    deadline: float | None = None


class _Embedding(_Strict):
    input: str | list[str]
    model: str = "default"


class _Load(_Strict):
    model: str


def create_engine(
    resolve: Resolve, make: MakeHandler, embedder: Embedder, on_stop: Callable[[], None] = lambda: None
) -> FastAPI:
    """The engine's ASGI application; warm: the served model and the embedder load in the background at start-up."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.loaded = Loaded(resolve, make)
        app.state.embedder = embedder
        warm = asyncio.create_task(_warm(app))
        yield
        warm.cancel()
        await app.state.loaded.close()
        on_stop()

    app = FastAPI(title="engine", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.add_exception_handler(ApplianceError, _refuse)
    app.get("/health")(_health)
    for name, work in {
        "chat/completions": _complete,
        "embeddings": _embed,
        "count": _count,
        "score": _score,
        "load": _load,
    }.items():
        app.post(f"/v1/{name}", response_model=None)(work(app))
    return app


async def _warm(app: FastAPI) -> None:
    # Nothing promoted yet, or damaged: whoever asks is told then.
    with suppress(ApplianceError):
        async with app.state.loaded.use("default"):
            pass
    with suppress(ApplianceError):
        await asyncio.to_thread(app.state.embedder.embed, [""])


def _body(error: ApplianceError) -> dict[str, Any]:
    body: dict[str, Any] = {"message": error.message, "hint": error.hint, "code": error.code, "type": error.code}
    if isinstance(error, Busy):
        body |= {"retry_after": error.retry_after}
    return {"error": body}


async def _refuse(_request: object, error: Exception) -> Response:
    assert isinstance(error, ApplianceError)
    return JSONResponse(_body(error), status_code=error.status)


Work = Callable[[Any], Awaitable[Any]]


def _complete(app: FastAPI) -> Work:
    async def complete(body: _Completion) -> Response:
        request = Request(
            messages=body.plain(), model=body.model, max_tokens=body.max_tokens, temperature=body.temperature, top_k=body.top_k,
            top_p=body.top_p, min_p=body.min_p, repeat_penalty=body.repeat_penalty, stop=body.stop, seed=body.seed,
            ignore_eos=body.ignore_eos, deadline=body.deadline,
        )  # fmt: skip
        chunks = _chunks(app, request)
        if body.stream:
            # The first chunk is awaited here, so that a refusal is an HTTP status and not an event.
            first = await anext(chunks)
            return StreamingResponse(_events(first, chunks), media_type="text/event-stream")
        text, last = "", Chunk()
        async for chunk in chunks:
            text, last = text + chunk.text, chunk
        return JSONResponse(_completion(text, last))

    return complete


async def _chunks(app: FastAPI, request: Request) -> AsyncGenerator[Chunk, None]:
    async with app.state.loaded.use(request.model) as (_id, handler):
        stream = handler.generate(request)
        try:
            async for chunk in stream:
                yield chunk
        finally:
            await stream.aclose()


async def _events(first: Chunk, rest: AsyncGenerator[Chunk, None]) -> AsyncGenerator[str, None]:
    try:
        yield f"data: {json.dumps(_event(first))}\n\n"
        async for chunk in rest:
            yield f"data: {json.dumps(_event(chunk))}\n\n"
        yield "data: [DONE]\n\n"
    except ApplianceError as error:
        yield f"data: {json.dumps(_body(error))}\n\n"
    finally:
        await rest.aclose()


def _event(chunk: Chunk) -> dict[str, Any]:
    event: dict[str, Any] = {
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": chunk.model,
        "choices": [{"index": 0, "delta": {"content": chunk.text}, "finish_reason": chunk.finish}],
    }
    if chunk.place is not None:
        event |= {"place": chunk.place, "wait": chunk.wait}
    if chunk.usage is not None:
        event["usage"] = _usage(chunk)
    return event


def _usage(chunk: Chunk) -> dict[str, Any] | None:
    usage = chunk.usage
    if usage is None:
        return None
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
    }


def _completion(text: str, last: Chunk) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {
        "object": "chat.completion",
        "created": int(time.time()),
        "model": last.model,
        "choices": [{"index": 0, "message": message, "finish_reason": last.finish}],
        "usage": _usage(last),
    }


def _embed(app: FastAPI) -> Work:
    async def embed(body: _Embedding) -> dict[str, Any]:
        texts = [body.input] if isinstance(body.input, str) else body.input
        vectors = await asyncio.to_thread(app.state.embedder.embed, texts)
        data = [{"object": "embedding", "index": i, "embedding": row.tolist()} for i, row in enumerate(vectors)]
        return {"object": "list", "data": data, "model": "all-MiniLM-L6-v2"}

    return embed


def _count(app: FastAPI) -> Work:
    async def count(body: _Conversation) -> dict[str, int]:
        async with app.state.loaded.use(body.model) as (_id, handler):
            return {"tokens": await handler.count(body.plain()), "context": handler.context}

    return count


def _score(app: FastAPI) -> Work:
    async def score(body: _Conversation) -> dict[str, list[float]]:
        async with app.state.loaded.use(body.model) as (_id, handler):
            return {"scores": await handler.score(body.plain())}

    return score


def _load(app: FastAPI) -> Work:
    async def load(body: _Load) -> dict[str, str]:
        """Load a model and have it answer a question, before anything is promoted."""
        async with app.state.loaded.use(body.model) as (id, handler):
            said = [chunk async for chunk in handler.generate(Request([Message("user", "Are you there?")], max_tokens=4))]
            if not said or not said[-1].finish:
                raise ModelUnavailable(f"The model {id} loads but does not answer.", "Serve another model.")
            return {"model": id}

    return load


async def _health(request: HTTPRequest) -> dict[str, Any]:
    state = request.app.state
    models = await state.loaded.facts()
    return {"detail": "answers", "model": next(reversed(models), ""), "models": models, "embedder": state.embedder.loaded}
