"""The engine process: language model and embedder behind OpenAI's dialect on a Unix socket.

Hides which model is in memory (`loaded.py`), the gathering of texts to embed, and that a caller who left is noticed at once,
queued or not. It reads model files through `resolve`, which verifies them first, and trusts its one client (the web process or
the command line of this box) with what it asks, not with how: bodies are an allow-list with bounds (`dialect.py`). No network.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any, TypeVar

from fastapi import FastAPI
from fastapi import Request as HTTPRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.body_limit import RequestBodyLimitMiddleware

from appliance.engine import beating, dialect, schemas
from appliance.engine.dialect import Completion, Conversation, Embedding, Load, Reranking, Tokens
from appliance.engine.embedder import Embedder
from appliance.engine.gathering import Gathering
from appliance.engine.handler import Chunk, Message, Request, TokenChance
from appliance.engine.loaded import Loaded, MakeHandler, Resolve
from appliance.engine.metrics import Metrics
from appliance.engine.reranker import Reranker
from appliance.errors import ApplianceError, BadInput, Busy, ModelUnavailable, NotFound

LARGEST_BODY = 16 * 2**20  # bytes; a megabyte of prompt is still read, to be refused with its count of tokens
TEND_SECONDS = 5.0

log = logging.getLogger(__name__)
Result = TypeVar("Result")
Work = Callable[..., Awaitable[Any]]


def create_engine(
    resolve: Resolve,
    make: MakeHandler,
    embedder: Embedder,
    on_stop: Callable[[], None] = lambda: None,
    known: Callable[[], Sequence[str]] = lambda: (),
    tuning: Callable[[], bool] = lambda: False,
    reranker: Reranker | None = None,
) -> FastAPI:
    """The engine's ASGI application; warm: the served model and the embedder load in the background at start-up.

    known: ids of all models that may be asked for by name. tuning: whether a tuning run computes on this machine now.
    reranker: the school's cross-encoder, where it has one.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.loaded = Loaded(resolve, make, beside=[embedder, *([reranker] if reranker else [])])
        app.state.embedder = embedder
        app.state.embed = Gathering(embedder.embed)
        app.state.reranker = reranker
        app.state.metrics = Metrics()
        app.state.known = known
        tasks = [asyncio.create_task(_warm(app)), asyncio.create_task(_tend(app, tuning))]
        yield
        for task in tasks:
            task.cancel()
        await app.state.loaded.close()
        on_stop()

    app = FastAPI(
        title="engine", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan,
        middleware=[Middleware(RequestBodyLimitMiddleware, max_body_size=LARGEST_BODY)],
        exception_handlers={
            ApplianceError: _refuse, RequestValidationError: _refuse_body, HTTPException: _refuse_http,
        },
    )  # fmt: skip
    app.get("/health")(_health)
    app.get("/metrics")(_metrics)
    app.get("/v1/models")(_models)
    for name, work in {
        "chat/completions": _complete,
        "embeddings": _embed,
        "rerank": _rerank,
        "count": _count,
        "tokenize": _tokenize,
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
        await app.state.embed([""])


async def _tend(app: FastAPI, tuning: Callable[[], bool]) -> None:
    while True:
        await asyncio.sleep(TEND_SECONDS)
        try:
            await app.state.loaded.tend(tuning=await asyncio.to_thread(tuning))
        except Exception as error:  # noqa: BLE001 - what waits for quiet moments must not end because one of them failed
            log.warning("what is done in quiet moments failed: %s", type(error).__name__)


# --- faults ---------------------------------------------------------------------------------------------------------------
async def _refuse(_request: object, error: Exception) -> Response:
    assert isinstance(error, ApplianceError)
    # Whoever retries by the header, as OpenAI's own client does, need not read the body.
    headers = {"retry-after": str(max(1, math.ceil(error.retry_after)))} if isinstance(error, Busy) else {}
    return JSONResponse(dialect.fault(error), status_code=error.status, headers=headers)


async def _refuse_body(_request: object, error: Exception) -> Response:
    """What is wrong and where, without what was sent: it may be a pupil's words."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"][1:]) or "the body"
    return await _refuse(None, BadInput(f"{place[:200]}: {first['msg']}.", "Correct the request."))


async def _refuse_http(_request: object, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = NotFound if error.status_code == 404 else BadInput
    return JSONResponse(dialect.fault(kind("The engine cannot take this request.", "See /v1/models.")), error.status_code)


# --- conversations --------------------------------------------------------------------------------------------------------
def _complete(app: FastAPI) -> Work:
    async def complete(body: Completion, http: HTTPRequest) -> Response:
        request = body.request()
        if request.schema is not None:
            schemas.check(request.schema)
        chunks = _chunks(app, request)
        try:
            if not body.stream:
                return JSONResponse(await _unless_gone(http, _whole(chunks)))
            return await _stream(http, chunks)
        except _Gone:
            return Response(status_code=499)

    return complete


async def _chunks(app: FastAPI, request: Request) -> AsyncGenerator[Chunk, None]:
    metrics: Metrics = app.state.metrics
    started, said, outcome, usage = time.monotonic(), False, "left", None
    try:
        async with app.state.loaded.use(request.model) as model, aclosing(model.generate(request)) as chunks:
            async for chunk in chunks:
                if chunk.text and not said:
                    said = True
                    metrics.first_token(time.monotonic() - started)
                if chunk.finish:
                    outcome, usage = "finished", chunk.usage
                yield chunk
    except ApplianceError as error:
        outcome = "refused" if isinstance(error, Busy | BadInput | NotFound) else "failed"
        raise
    finally:
        metrics.ended(outcome, usage)


async def _stream(http: HTTPRequest, chunks: AsyncGenerator[Chunk, None]) -> Response:
    first = asyncio.create_task(_next(chunks))

    async def close() -> None:
        await _end(first)  # a generator can only be closed once it is not running
        await chunks.aclose()

    try:
        # The first chunk is awaited here, so that a refusal is an HTTP status and not an event; but not for ever.
        await _unless_gone(http, _patiently(first))
        if first.done():
            first.result()
    except BaseException:
        await close()
        raise
    return beating.Beating(_events(first, chunks), close)


async def _patiently(first: asyncio.Task[Chunk]) -> None:
    await asyncio.wait({first}, timeout=beating.BEAT_SECONDS)


async def _next(chunks: AsyncGenerator[Chunk, None]) -> Chunk:
    return await anext(chunks)


async def _whole(chunks: AsyncGenerator[Chunk, None]) -> dict[str, Any]:
    text, chances, last = "", list[TokenChance](), Chunk()
    async with aclosing(chunks):
        async for chunk in chunks:
            text, last = text + chunk.text, chunk
            chances += chunk.chances
    return dialect.completion(text, chances, last)


class _Gone(Exception):
    """The caller closed the connection."""


async def _unless_gone(http: HTTPRequest, work: Coroutine[Any, Any, Result]) -> Result:
    """What `work` gives, ended as soon as the caller leaves: nobody computes, or keeps a place in the queue, for nobody."""
    task, gone = asyncio.create_task(work), asyncio.create_task(_left(http))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise _Gone
        return task.result()
    finally:
        for one in (task, gone):
            await _end(one)


async def _end(task: asyncio.Task[Any]) -> None:
    if not task.done():
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _left(http: HTTPRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


async def _events(first: asyncio.Task[Chunk], rest: AsyncGenerator[Chunk, None]) -> AsyncGenerator[str, None]:
    try:
        yield dialect.event(dialect.chunk_event(await first))
        async for chunk in rest:
            yield dialect.event(dialect.chunk_event(chunk))
        yield "data: [DONE]\n\n"
    except ApplianceError as error:
        yield dialect.event(dialect.fault(error))


def _embed(app: FastAPI) -> Work:
    async def embed(body: Embedding) -> dict[str, Any]:
        texts = [body.input] if isinstance(body.input, str) else body.input
        vectors = await app.state.embed(texts)
        app.state.metrics.embedded += len(texts)
        data = [{"object": "embedding", "index": i, "embedding": row.tolist()} for i, row in enumerate(vectors)]
        return {"object": "list", "data": data, "model": "all-MiniLM-L6-v2"}

    return embed


def _rerank(app: FastAPI) -> Work:
    async def rerank(body: Reranking) -> dict[str, Any]:
        if app.state.reranker is None:
            raise ModelUnavailable("This box has no cross-encoder.", "Name the folder of one in the setting `reranker`.")
        scores = await asyncio.to_thread(app.state.reranker.scores, body.query, body.documents)
        return {"results": [{"index": index, "relevance_score": score} for index, score in enumerate(scores)]}

    return rerank


def _count(app: FastAPI) -> Work:
    async def count(body: Conversation) -> dict[str, int]:
        async with app.state.loaded.use(body.model) as model:
            return {"tokens": await model.count(body.plain()), "context": model.handler.context}

    return count


def _tokenize(app: FastAPI) -> Work:
    async def tokenize(body: Tokens) -> dict[str, Any]:
        """A text's tokens; names of control tokens in it are words, as they are in a pupil's message."""
        async with app.state.loaded.use(body.model) as model:
            tokens = await model.tokenize(body.content)
            return {"tokens": tokens, "count": len(tokens)}

    return tokenize


def _score(app: FastAPI) -> Work:
    async def score(body: Conversation) -> dict[str, list[float]]:
        async with app.state.loaded.use(body.model) as model:
            return {"scores": await model.score(body.plain())}

    return score


def _load(app: FastAPI) -> Work:
    async def load(body: Load) -> dict[str, str]:
        """Load a model and have it answer a question, before anything is promoted."""
        async with app.state.loaded.use(body.model) as model:
            said = [chunk async for chunk in model.generate(Request([Message("user", "Are you there?")], max_tokens=4))]
            if not said or not said[-1].finish:
                raise ModelUnavailable(f"The model {model.id} loads but does not answer.", "Serve another model.")
            return {"model": model.id}

    return load


# --- what it says of itself -----------------------------------------------------------------------------------------------
async def _models(http: HTTPRequest) -> dict[str, Any]:
    state = http.app.state
    loaded = state.loaded.ids()
    ids = sorted({*loaded, *await asyncio.to_thread(state.known)})
    data = [{"id": id, "object": "model", "owned_by": "appliance", "loaded": id in loaded} for id in ids]
    return {"object": "list", "data": data}


async def _health(http: HTTPRequest) -> dict[str, Any]:
    """What is loaded and how full: for each base its slots, cells of the cache, who runs, waits and is kept."""
    state = http.app.state
    models = await state.loaded.facts()
    totals = {name: sum(int(facts.get(name, 0)) for facts in models.values()) for name in ("running", "waiting")}
    return {
        "detail": "answers", "model": state.loaded.newest, "models": models, "loaded": state.loaded.ids(),
        "embedder": state.embedder.loaded, **totals,
    }  # fmt: skip


async def _metrics(http: HTTPRequest) -> Response:
    state = http.app.state
    return PlainTextResponse(state.metrics.text(await state.loaded.facts()), media_type="text/plain; version=0.0.4")
