"""A small OpenAI for tests, on a loopback port: files, fine-tuning jobs, models and chat completions in the published shapes.

It keeps what it was sent, counts its calls, and can be told to refuse, to be slow and to break off at any of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from appliance.engine import handler as ours
from appliance.engine.fake import Fake
from appliance.errors import ApplianceError, Busy, TooLarge
from appliance.network import Host
from appliance.settings import Settings
from tests.outside import allow, until
from tests.slapd import free_port, write_certificates

KEY = "sk-proj-school-4242424242424242"
BASE = "gpt-4.1-mini-2025-04-14"
TUNED = f"ft:{BASE}:school::abc123"
SCRIPT = ("validating_files", "queued", "running", "running", "succeeded")
Row = dict[str, Any]


class Cut(Response):
    """The line breaks in the middle of an answer: what was asked for is done, and nobody hears of it."""

    async def __call__(self, _scope: Any, _receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1000")]})
        await send({"type": "http.response.body", "body": b'{"id"', "more_body": True})


def refusal(
    status: int, message: str, code: str | None = None, kind: str = "invalid_request_error", **headers: str
) -> Response:
    body = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    return JSONResponse(body, status, headers=headers)


async def _last(usage: ours.Usage) -> AsyncIterator[ours.Chunk]:
    yield ours.Chunk(finish="stop", usage=usage)


class Service:
    """trouble: per "METHOD /path" what is answered instead, one after another. script: the states of a job, a look each."""

    def __init__(self, folder: Path, tls: bool) -> None:
        self.folder, self.tls, self.port = folder, tls, free_port()
        if tls:
            write_certificates(folder)
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}/v1"
        self.host = Host("127.0.0.1", self.port)
        self.reset()

    def reset(self) -> None:
        """As it was on the first day."""
        self.calls: list[str] = []
        self.bodies: list[bytes] = []
        self.files: dict[str, Row] = {}
        self.jobs: dict[str, Row] = {}
        self.events: dict[str, list[Row]] = {}
        self.looks: dict[str, int] = {}
        self.trouble: dict[str, list[Response | Callable[[], Any]]] = {}
        self.script: tuple[str, ...] = SCRIPT
        self.error: Row | None = None
        self.models = [BASE, "gpt-4o-mini-2024-07-18", TUNED]
        self.key = KEY
        self.pace = 0.0  # seconds a word
        self.break_after = 0  # words of an answer, then the line breaks
        self.says: Callable[[list[Row]], str] | None = None  # an answer to its messages; else the question in capitals

    def count(self, call: str) -> int:
        return sum(one == call for one in self.calls)

    def app(self) -> FastAPI:
        app = FastAPI(openapi_url=None)
        app.middleware("http")(self._gate)
        for method, path, answer in (
            ("GET", "/v1/models", self._models), ("GET", "/v1/files", self._list_files), ("POST", "/v1/files", self._upload),
            ("GET", "/v1/files/{id}", self._file), ("DELETE", "/v1/files/{id}", self._delete_file),
            ("DELETE", "/v1/models/{id}", self._delete_model), ("GET", "/v1/fine_tuning/jobs", self._list_jobs),
            ("POST", "/v1/fine_tuning/jobs", self._create), ("GET", "/v1/fine_tuning/jobs/{id}", self._look),
            ("POST", "/v1/fine_tuning/jobs/{id}/cancel", self._cancel),
            ("GET", "/v1/fine_tuning/jobs/{id}/events", self._events),
            ("GET", "/v1/fine_tuning/jobs/{id}/checkpoints", self._checkpoints),
            ("POST", "/v1/chat/completions", self._chat),
        ):  # fmt: skip
            app.add_api_route(path, answer, methods=[method], response_model=None)
        return app

    async def _gate(self, request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        call = f"{request.method} {request.url.path}"
        self.calls.append(call)
        self.bodies.append(await request.body())
        if request.headers.get("authorization") != f"Bearer {self.key}":
            shown = request.headers.get("authorization", "")[7:]
            return refusal(401, f"Incorrect API key provided: {shown}. You can find yours there.", "invalid_api_key")
        waiting = self.trouble.get(call, [])
        if not waiting:
            return await go_on(request)
        planned = waiting.pop(0)
        if isinstance(planned, Cut):
            await go_on(request)  # it is done all the same
        if isinstance(planned, Response):
            return planned
        await planned()
        return await go_on(request)

    # --- files and models ---------------------------------------------------------------------------------------------
    async def _models(self) -> Response:
        data = [{"id": name, "object": "model", "created": 1, "owned_by": "openai"} for name in self.models]
        return JSONResponse({"object": "list", "data": data})

    async def _upload(self, request: Request) -> Response:
        async with request.form() as form:
            file: Any = form["file"]
            content, name = await file.read(), file.filename
            purpose, expires = form["purpose"], form.get("expires_after[seconds]")
        id = f"file-{len(self.files) + 1}"
        self.files[id] = {
            "id": id, "object": "file", "bytes": len(content), "created_at": int(time.time()), "filename": name,
            "purpose": purpose, "status": "processed", "content": content, "expires": expires,
        }  # fmt: skip
        return JSONResponse(self._shown(self.files[id]))

    def _shown(self, file: Row) -> Row:
        return {name: value for name, value in file.items() if name not in ("content", "expires")}

    async def _file(self, id: str) -> Response:
        if id not in self.files:
            return refusal(404, f"No such File object: {id}")
        return JSONResponse(self._shown(self.files[id]))

    async def _delete_file(self, id: str) -> Response:
        if self.files.pop(id, None) is None:
            return refusal(404, f"No such File object: {id}")
        return JSONResponse({"id": id, "object": "file", "deleted": True})

    async def _delete_model(self, id: str) -> Response:
        if id not in self.models:
            return refusal(404, f"The model '{id}' does not exist", "model_not_found")
        self.models.remove(id)
        return JSONResponse({"id": id, "object": "model", "deleted": True})

    async def _list_files(self, request: Request) -> Response:
        return self._page(request, [self._shown(one) for one in self.files.values()][::-1])

    def _page(self, request: Request, rows: list[Row]) -> Response:
        """The newest first, in pages."""
        after, limit = request.query_params.get("after"), int(request.query_params.get("limit", 20))
        begin = next((place + 1 for place, row in enumerate(rows) if row["id"] == after), 0)
        some = rows[begin : begin + limit]
        return JSONResponse({"object": "list", "data": some, "has_more": begin + limit < len(rows)})

    # --- jobs ---------------------------------------------------------------------------------------------------------
    async def _create(self, request: Request) -> Response:
        asked = await request.json()
        if asked["model"] not in self.models:
            return refusal(400, f"The model `{asked['model']}` does not exist", "model_not_found")
        if asked["training_file"] not in self.files:
            return refusal(400, f"invalid training_file: {asked['training_file']}", "invalid_file")
        id = f"ftjob-{len(self.jobs) + 1}"
        self.jobs[id] = {
            "id": id, "object": "fine_tuning.job", "created_at": int(time.time()), "error": None, "fine_tuned_model": None,
            "finished_at": None, "hyperparameters": {"n_epochs": "auto"}, "model": asked["model"], "organization_id": "org-1",
            "result_files": [], "seed": asked.get("seed", 7), "status": "validating_files", "trained_tokens": None,
            "training_file": asked["training_file"], "validation_file": asked.get("validation_file"),
            "method": asked["method"], "metadata": asked.get("metadata"), "estimated_finish": None,
            "asked": asked,
        }  # fmt: skip
        self.events[id], self.looks[id] = [], 0
        self._say(id, f"Created fine-tuning job: {id}")
        return JSONResponse(self._job(id))

    def _job(self, id: str) -> Row:
        return {name: value for name, value in self.jobs[id].items() if name != "asked"}

    def _say(self, id: str, message: str, level: str = "info", data: Row | None = None) -> None:
        self.events[id].append(
            {
                "id": f"ftevent-{id}-{len(self.events[id])}", "object": "fine_tuning.job.event", "created_at": int(time.time()),
                "level": level, "message": message, "type": "metrics" if data else "message", "data": data or {},
            }
        )  # fmt: skip

    async def _look(self, id: str) -> Response:
        if id not in self.jobs:
            return refusal(404, f"Could not find fine tune: {id}", "fine_tune_not_found")
        job = self.jobs[id]
        if job["status"] not in ("succeeded", "failed", "cancelled"):
            place = min(self.looks[id], len(self.script) - 1)
            job["status"], self.looks[id] = self.script[place], self.looks[id] + 1
            if job["status"] == "running":
                step = 10 * self.looks[id]
                data = {"step": step, "train_loss": 2.0 / step, "total_steps": 100}
                self._say(id, f"Step {step}/100: training loss={2.0 / step:.2f}", data=data)
                job["estimated_finish"] = int(time.time()) + 60
            elif job["status"] == "succeeded":
                job |= {"fine_tuned_model": TUNED, "trained_tokens": 4000, "finished_at": int(time.time())}
                self._say(id, "The job has successfully completed")
            elif job["status"] == "failed":
                job["error"] = self.error or {"code": "server_error", "message": "It broke.", "param": None}
                self._say(id, "The job failed", "error")
        return JSONResponse(self._job(id))

    async def _cancel(self, id: str) -> Response:
        if self.jobs[id]["status"] in ("succeeded", "failed", "cancelled"):
            return refusal(400, "Job has already completed", "invalid_request_error")
        self.jobs[id]["status"] = "cancelled"
        return JSONResponse(self._job(id))

    async def _list_jobs(self, request: Request) -> Response:
        wanted = request.query_params.get("metadata[run]")
        jobs = [self._job(id) for id in self.jobs][::-1]
        return self._page(request, [job for job in jobs if wanted in (None, (job["metadata"] or {}).get("run"))])

    async def _events(self, request: Request, id: str) -> Response:
        return self._page(request, self.events[id][::-1])

    async def _checkpoints(self, request: Request, id: str) -> Response:
        return self._page(
            request,
            [
                {
                    "id": "ftckpt-1", "object": "fine_tuning.job.checkpoint", "created_at": 1, "fine_tuning_job_id": id,
                    "fine_tuned_model_checkpoint": f"{TUNED}:ckpt-step-50", "step_number": 50, "metrics": {"train_loss": 0.1},
                }
            ],
        )  # fmt: skip

    # --- answers ------------------------------------------------------------------------------------------------------
    async def _chat(self, request: Request) -> Response:
        asked = await request.json()
        if asked["model"] not in self.models:
            return refusal(404, f"The model `{asked['model']}` does not exist or you do not have access.", "model_not_found")
        if "response_format" in asked:
            return refusal(400, "Invalid parameter: 'response_format'", None)
        messages = [ours.Message(one["role"], one["content"]) for one in asked["messages"]]
        if self.says is not None:
            words = self.says(asked["messages"])
            first, usage = (
                ours.Chunk(words),
                ours.Usage(sum(len(one.content.split()) for one in messages), 0, len(words.split())),
            )
            return StreamingResponse(self._stream(asked["model"], first, _last(usage)), media_type="text/event-stream")
        mind = Fake(context=4096, seconds_per_word=self.pace)
        wish = ours.Request(messages, max_tokens=asked["max_tokens"], stop=asked.get("stop", ()))
        chunks = mind.generate(wish)
        try:
            first = await anext(chunks)
        except TooLarge as error:
            return refusal(400, error.message, "context_length_exceeded")
        except Busy as error:
            return refusal(429, error.message, "rate_limit_exceeded")
        except ApplianceError as error:
            return refusal(400, error.message)
        return StreamingResponse(self._stream(asked["model"], first, chunks), media_type="text/event-stream")

    async def _stream(self, model: str, first: ours.Chunk, rest: AsyncIterator[ours.Chunk]) -> AsyncIterator[str]:
        def line(choices: list[Row], usage: Row | None = None) -> str:
            body = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": model, "choices": choices}
            return f"data: {json.dumps(body | ({'usage': usage} if usage else {}))}\n\n"

        async def all_of_them() -> AsyncIterator[ours.Chunk]:
            yield first
            async for chunk in rest:
                yield chunk

        yield line([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
        said = 0
        async for chunk in all_of_them():
            if chunk.text:
                yield line([{"index": 0, "delta": {"content": chunk.text}, "finish_reason": None}])
                said += 1
            if self.break_after and said >= self.break_after:
                raise ConnectionError
            if chunk.finish and chunk.usage:
                yield line([{"index": 0, "delta": {}, "finish_reason": chunk.finish}])
                usage = {
                    "prompt_tokens": chunk.usage.prompt, "completion_tokens": chunk.usage.completion, "total_tokens": 0,
                    "prompt_tokens_details": {"cached_tokens": 0},
                }  # fmt: skip
                yield line([], usage)
        yield "data: [DONE]\n\n"


@contextlib.contextmanager
def service(folder: Path, *, tls: bool = False) -> Iterator[Service]:
    made = Service(folder, tls)
    certificates: Row = {"ssl_certfile": folder / "server.pem", "ssl_keyfile": folder / "server.key"} if tls else {}
    config = uvicorn.Config(
        made.app(), host="127.0.0.1", port=made.port, log_level=60, ws="none", lifespan="off",
        timeout_graceful_shutdown=1, **certificates,
    )  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        until(lambda: server.started, "the start of the service")
        yield made
    finally:
        server.should_exit = True
        thread.join(30)


def connected(home: Path, made: Service, **more: Any) -> Settings:
    """The settings of a box that may reach it, with its key in a file of its own."""
    home.mkdir(parents=True, exist_ok=True)
    file = home / "openai.key"
    file.touch(0o600)
    file.write_text(KEY + "\n")
    chosen: Row = {"openai_poll_seconds": 0.1, "openai_seconds": 10.0} | more
    settings = Settings(
        home=home, openai_url=made.url, openai_key_file=file, openai_ca_file=made.folder / "ca.pem" if made.tls else None,
        **chosen,
    )  # fmt: skip
    allow(settings, made.host)
    return settings


async def slowly() -> None:
    await asyncio.sleep(30)


def rows(count: int, words: str = "") -> list[Row]:
    """Conversations that differ from one another, as no two near-copies do."""
    made = []
    for number in range(count):
        mark = [hashlib.sha256(f"{number} {part}".encode()).hexdigest()[:7] for part in range(12)]
        said = [
            {"role": "user", "content": f"How do I work out the {mark[0]} of {' '.join(mark[1:5])}? {words}".strip()},
            {"role": "assistant", "content": f"What do you know about {' '.join(mark[5:9])} already?"},
        ]
        made.append({"messages": said})
    return made


def file_of(path: Path, made: list[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in made), "utf-8")
    return path
