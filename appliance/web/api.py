"""`/v1`: OpenAI's dialect for other programs, with a key for each.

Hides the shapes of that dialect. Keys in a body are an allow-list: what we do not act on is refused, not ignored, so that
nobody believes in a setting that has no effect, and nothing a client writes reaches the engine but through `chat`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, NoReturn

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from appliance import openings
from appliance.engine.handler import Message
from appliance.errors import ApplianceError, BadInput
from appliance.knowledge import tokens
from appliance.running import Event
from appliance.tables import new_id
from appliance.web import auth, shapes, words
from appliance.web.shapes import LONGEST_NAME, MOST_EMBEDDINGS, MOST_MESSAGES, MOST_TOKENS
from appliance.web.stream import EventStream, Left, frame, unless_gone

router = APIRouter(prefix="/v1")


@router.get("/models")
async def models(request: Request) -> Response:
    user = await auth.bearer(request)
    box = auth.box(request)
    box.accounts.require(user, "read", "status")
    serving = await box.pool.serving()
    manifests = await asyncio.to_thread(box.registry.list)
    listed: list[dict[str, Any]] = [{"id": "default", "root": serving.model}, {"id": "quotes"}]
    for manifest in manifests:
        listed.append({"id": manifest.id, "created": int(manifest.created), "starter": manifest.starter})
        listed += [{"id": alias, "root": manifest.id} for alias in manifest.aliases]
    return JSONResponse(
        {"object": "list", "data": [{"object": "model", "created": 0, "owned_by": "school", **entry} for entry in listed]}
    )


@router.post("/embeddings", openapi_extra=shapes.body(shapes.EMBEDDINGS))
async def embeddings(request: Request) -> Response:
    user = await auth.bearer(request)
    box = auth.box(request)
    box.accounts.require(user, "embed", "text")
    body = _Body(await _json(request), shapes.EMBEDDINGS)
    given = body.take("input", (str, list), required=True)
    texts = [given] if isinstance(given, str) else given
    if not 1 <= len(texts) <= MOST_EMBEDDINGS or not all(isinstance(text, str) and text for text in texts):
        raise BadInput(f"`input` has to be a text, or 1 to {MOST_EMBEDDINGS} texts.", "Send plain texts, not token numbers.")
    encoding = body.take("encoding_format", str) or "float"
    if encoding not in ("float", "base64"):
        raise BadInput("`encoding_format` has to be float or base64.", "Leave it out.")
    vectors = (await box.pool.embed([_plain(text) for text in texts])).astype("<f4")
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(vector.tobytes()).decode() if encoding == "base64" else vector.tolist(),
        }
        for index, vector in enumerate(vectors)
    ]
    # The embedder reads the beginning of a long text only. Counted as the search counts, without loading its tokenizer here.
    read = sum(min(tokens.estimate(text), tokens.LIMIT) for text in texts)
    usage = {"prompt_tokens": read, "total_tokens": read}
    return JSONResponse({"object": "list", "data": data, "model": body.take("model", str) or "default", "usage": usage})


@router.post("/chat/completions", openapi_extra=shapes.body(shapes.CHAT))
async def chat_completions(request: Request) -> Response:
    user = await auth.bearer(request)
    body = _Body(await _json(request), shapes.CHAT)
    options = _options(body)
    extra = body.take("stream_options", dict) or {}
    if set(extra) - {"include_usage"}:
        raise BadInput("`stream_options` knows only `include_usage`.", "Leave the others out.")
    streamed = body.take("stream", bool)
    events = auth.box(request).chat.complete(user, _messages(body), **options)
    language = words.choose(user.language, request.headers.get("accept-language", ""))
    reply = _Reply(options["model"], words.catalogue(language).gettext)
    try:
        if not streamed:
            return JSONResponse(await unless_gone(request.receive, reply.whole(events)))
        opening = await unless_gone(request.receive, _opening(events))
    except Left:
        return Response(status_code=499)  # nobody reads it
    return EventStream(reply.frames(opening, events, bool(extra.get("include_usage"))), auth.still(request, user))


async def _opening(events: AsyncGenerator[Event, None]) -> list[Event]:
    """The events up to the first that shows an answer: what is wrong with the request must still become a status code."""
    opening: list[Event] = []
    try:
        async for event in events:
            opening.append(event)
            if event.kind not in ("sources", "notice"):
                break
    except BaseException:
        await events.aclose()
        raise
    return opening


async def _after(opening: list[Event], events: AsyncGenerator[Event, None]) -> AsyncGenerator[Event, None]:
    for event in opening:
        yield event
    async for event in events:
        yield event


class _Reply:
    """One answer in OpenAI's shapes. `say` gives what stands before its words in the language of the key's owner."""

    def __init__(self, model: str, say: Callable[[str], str]) -> None:
        self._say = say
        self._common = {"id": f"chatcmpl-{new_id()}", "created": int(time.time()), "model": model}
        self._sources: dict[str, Any] = {}

    async def whole(self, events: AsyncGenerator[Event, None]) -> dict[str, Any]:
        done: dict[str, Any] = {}
        async with aclosing(events):
            async for event in events:
                if event.kind == "sources":
                    self._sources = event.data
                elif event.kind == "done":
                    done = event.data
        message = {"role": "assistant", "content": openings.whole(self._sources | done, self._say)}
        choice = {"index": 0, "message": message, "finish_reason": _finish(done), "logprobs": None}
        return {"object": "chat.completion", "choices": [choice], "usage": _usage(done), **self._common, **self._about(done)}

    async def frames(self, opening: list[Event], events: AsyncGenerator[Event, None], usage: bool) -> AsyncGenerator[str, None]:
        done: dict[str, Any] = {}
        gap = ""
        async with aclosing(events):
            yield self._chunk({"role": "assistant", "content": ""})
            try:
                async for event in _after(opening, events):
                    if event.kind == "sources":
                        self._sources = event.data
                    elif event.kind == "queue":  # no word of OpenAI's: who knows it can show how long the line is
                        yield self._chunk({}, place=event.data["place"], wait=event.data["wait"])
                    elif event.kind == "opening":
                        if before := openings.words(**event.data, say=self._say):
                            yield self._chunk({"content": before})
                            gap = "\n\n"
                    elif event.kind == "text":
                        yield self._chunk({"content": gap + event.data["delta"]})
                        gap = ""
                    elif event.kind == "quotes":
                        yield self._chunk({"content": gap + openings.before_text(event.data["text"], True, self._say)})
                        gap = "\n\n"
                    elif event.kind == "done":
                        done = event.data
            except ApplianceError as error:  # too late for a status code
                yield frame(openai_error(error))
                return
        yield self._chunk({}, finish=_finish(done), **self._about(done))
        if usage:
            yield frame({"object": "chat.completion.chunk", "choices": [], "usage": _usage(done), **self._common})
        yield frame("[DONE]")

    def _chunk(self, delta: dict[str, Any], finish: str | None = None, **more: Any) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return frame({"object": "chat.completion.chunk", "choices": [choice], **self._common, **more})

    def _about(self, done: dict[str, Any]) -> dict[str, Any]:
        return {
            "model": done["model"] or self._common["model"],
            "handler": done["handler"],
            "starter": done["starter"],
            "covered": done["covered"],
            "passages": self._sources.get("passages", []),
        }


def _finish(done: dict[str, Any]) -> str:
    """OpenAI's word for what was stopped."""
    return "content_filter" if done["finish"] == "blocked" else str(done["finish"])


def _usage(done: dict[str, Any]) -> dict[str, Any]:
    used = {"prompt": 0, "cached": 0, "completion": 0, **done["tokens"]}
    return {
        "prompt_tokens": used["prompt"],
        "completion_tokens": used["completion"],
        "total_tokens": used["prompt"] + used["completion"],
        "prompt_tokens_details": {"cached_tokens": used["cached"]},
    }


def openai_error(error: ApplianceError) -> dict[str, Any]:
    """The error object that OpenAI's clients read."""
    kind = "server_error" if error.status >= 500 else "invalid_request_error"
    return {"error": {"message": f"{error.message} {error.hint}".strip(), "type": kind, "param": None, "code": error.code}}


# --- reading what a client wrote -------------------------------------------------------------------------------------
async def _json(request: Request) -> dict[str, Any]:
    """Raises BadInput for anything but one plain JSON object: no NaN, no key twice, no bottomless nesting."""
    raw = await request.body()
    try:
        body = json.loads(raw, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        raise BadInput("The body is not valid JSON.", "Send one JSON object, each key once, without NaN or Infinity.") from None
    if not isinstance(body, dict):
        raise BadInput("The body has to be a JSON object.", 'Send {"model": ..., "messages": [...]}.')
    return body


def _refuse_constant(_name: str) -> NoReturn:
    raise ValueError


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError
    return made


class _Body:
    """A JSON object read key by key, each with its type; a key that its shape does not list is refused by name."""

    def __init__(self, body: dict[str, Any], shape: dict[str, Any]) -> None:
        known = set(shape["properties"])
        unknown = sorted(set(body) - known)
        if unknown:
            names = ", ".join(ascii(name)[:40] for name in unknown[:5])
            raise BadInput(f"These keys are not known here: {names}.", f"Known are: {', '.join(sorted(known))}.")
        self._body = body

    def take(self, key: str, kind: type | tuple[type, ...], *, required: bool = False) -> Any:
        value = self._body.get(key)
        if value is None and not required:
            return None
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise BadInput(f"`{key}` is missing or of the wrong type.", "See OpenAI's description of this call.")
        return value

    def number(self, key: str, low: float, high: float, *, whole: bool = False) -> Any:
        value = self.take(key, int if whole else (int, float))
        if value is not None and not low <= value <= high:
            raise BadInput(f"`{key}` has to be between {low:g} and {high:g}.", "Correct it or leave it out.")
        return value


def _options(body: _Body) -> dict[str, Any]:
    for key, only in (("n", 1), ("presence_penalty", 0), ("frequency_penalty", 0)):
        if body.take(key, (int, float)) not in (None, only):
            raise BadInput(f"`{key}` can only be {only} here.", "Leave it out.")
    most = [body.number(key, 1, MOST_TOKENS, whole=True) for key in ("max_completion_tokens", "max_tokens")]
    given: dict[str, Any] = {
        "max_tokens": most[0] or most[1],
        "temperature": body.number("temperature", 0, 2),
        "top_p": body.number("top_p", 0, 1),
        "seed": body.number("seed", 0, 2**31 - 1, whole=True),
        "stop": _texts(body, "stop", most=4),
        "collections": _texts(body, "collections", most=100),
    }
    model = body.take("model", str, required=True)
    if len(model) > LONGEST_NAME:
        raise BadInput("`model` is too long to be the name of a model.", "See /v1/models.")
    return {"model": _plain(model), **{key: value for key, value in given.items() if value is not None}}


def _texts(body: _Body, key: str, most: int) -> list[str] | None:
    value = body.take(key, (str, list))
    if value is None:
        return None
    texts = [value] if isinstance(value, str) else value
    if len(texts) > most or not all(isinstance(text, str) and 0 < len(text) <= LONGEST_NAME for text in texts):
        raise BadInput(f"`{key}` has to be a list of up to {most} short texts.", "Correct it or leave it out.")
    return [_plain(text) for text in texts]


def _messages(body: _Body) -> list[Message]:
    given = body.take("messages", list, required=True)
    if not 1 <= len(given) <= MOST_MESSAGES:
        raise BadInput(f"`messages` has to hold 1 to {MOST_MESSAGES} messages.", "Send the last ones only.")
    return [_message(message) for message in given]


def _message(given: Any) -> Message:
    if not isinstance(given, dict) or given.keys() - {"role", "content", "name"}:
        raise BadInput("A message holds `role` and `content`, and nothing else.", "Tools and images are not taken here.")
    role, content = given.get("role"), given.get("content")
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content]
        content = None if None in parts else "\n".join(str(part) for part in parts)
    if role == "developer":
        role = "system"
    if role not in ("system", "user", "assistant") or not isinstance(content, str):
        raise BadInput("A message has the role system, user or assistant, and text as content.", "Correct the messages.")
    return Message(role, _plain(content))


def _plain(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise BadInput("A text has half of a surrogate pair, which is not valid Unicode.", "Correct that text.") from None
    return text
