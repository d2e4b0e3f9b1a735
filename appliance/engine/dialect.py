"""The words the engine speaks: OpenAI's shapes, and the few of our own beside them (place in the queue, scores, counts).

Request bodies are an allow-list with bounds: a field that is not named here is refused, never passed on. Answers are made here
too, so that `openai_compatible.py` has one place to read against. No behaviour, and nothing of llama.cpp's own parameters.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from appliance.engine.handler import Chunk, Message, Request, TokenChance
from appliance.errors import ApplianceError, BadInput, Busy

MOST_CHANCES = 20


def _unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("it has characters that are not valid Unicode") from None
    return text


Text = Annotated[str, AfterValidator(_unicode)]  # JSON can write half of a character, which no encoding can
Name = Annotated[Text, Field(max_length=200)]
# JSON's own "infinite" and "not a number" are Python's invention and nobody's wish.
Real = Annotated[float, Field(allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)


class MessageBody(_Strict):
    role: Literal["system", "user", "assistant"]
    content: Text


class Conversation(_Strict):
    messages: list[MessageBody] = Field(min_length=1)
    model: Name = "default"

    def plain(self) -> list[Message]:
        return [Message(message.role, message.content) for message in self.messages]


class Completion(Conversation):
    """`adapter` names a registered model on the same base; `user` and `group` are whom the queue is fair to."""

    max_tokens: int = Field(320, ge=1, le=2**31 - 1)
    temperature: Real = Field(0.0, ge=0, le=10)
    top_k: int = Field(40, ge=-1, le=1_000_000)
    top_p: Real = Field(0.95, ge=0, le=1)
    min_p: Real = Field(0.05, ge=0, le=1)
    repeat_penalty: Real = Field(1.0, gt=0, le=10)
    frequency_penalty: Real = Field(0.0, ge=-2, le=2)
    presence_penalty: Real = Field(0.0, ge=-2, le=2)
    stop: list[Annotated[Text, Field(min_length=1, max_length=200)]] = Field([], max_length=16)
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    stream: bool = False
    stream_options: dict[Literal["include_usage"], bool] = {}
    ignore_eos: bool = False
    deadline: Real | None = Field(None, le=86_400)
    user: Name = ""
    group: Name = ""
    adapter: Name = ""
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MOST_CHANCES)
    response_format: dict[str, Any] | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else [] if value is None else value

    def request(self) -> Request:
        """Raises BadInput for a response format that is not known."""
        return Request(
            messages=self.plain(), model=self.adapter or self.model, max_tokens=self.max_tokens, temperature=self.temperature,
            top_k=self.top_k, top_p=self.top_p, min_p=self.min_p, repeat_penalty=self.repeat_penalty,
            frequency_penalty=self.frequency_penalty, presence_penalty=self.presence_penalty, stop=self.stop, seed=self.seed,
            ignore_eos=self.ignore_eos, deadline=self.deadline, user=self.user, group=self.group,
            logprobs=self.top_logprobs if self.logprobs else None, schema=schema_of(self.response_format),
        )  # fmt: skip


class Embedding(_Strict):
    input: Text | list[Text]
    model: Name = "default"


class Reranking(_Strict):
    query: Text
    documents: Annotated[list[Text], Field(max_length=100)]
    model: Name = "default"


class Load(_Strict):
    model: Name


class Tokens(_Strict):
    content: Text
    model: Name = "default"


def schema_of(wanted: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The JSON schema in OpenAI's `response_format`, or in the shorter `{"type": "json_object", "schema": ...}`."""
    kind = "text" if wanted is None else wanted.get("type")
    if wanted is None or kind == "text":
        return None
    held = wanted.get("json_schema") if kind == "json_schema" else wanted
    schema = held.get("schema") if isinstance(held, dict) else None
    if kind == "json_object" and schema is None:
        return {"type": "object"}
    if kind not in ("json_schema", "json_object") or not isinstance(schema, dict):
        raise BadInput(
            "The response format is none of text, json_object, json_schema.", "Give a `json_schema` with a `schema`."
        )
    return schema


# --- answers --------------------------------------------------------------------------------------------------------------
def fault(error: ApplianceError) -> dict[str, Any]:
    body: dict[str, Any] = {"message": error.message, "hint": error.hint, "code": error.code, "type": error.code}
    if isinstance(error, Busy):
        body |= {"retry_after": error.retry_after}
    return {"error": body}


def event(value: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(value)}\n\n"


def chunk_event(chunk: Chunk) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": 0, "delta": {"content": chunk.text}, "finish_reason": _reason(chunk)}
    if chunk.chances:
        choice["logprobs"] = {"content": [_chance(one) for one in chunk.chances]}
    body: dict[str, Any] = {
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": chunk.model,
        "choices": [choice],
    }
    if chunk.place is not None:
        body |= {"place": chunk.place, "wait": chunk.wait}
    if chunk.handler:
        body["handler"] = chunk.handler
    if chunk.usage is not None:
        body["usage"] = usage(chunk)
    return body


def completion(text: str, chances: list[TokenChance], last: Chunk) -> dict[str, Any]:
    choice: dict[str, Any] = {
        "index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": _reason(last),
        "logprobs": {"content": [_chance(one) for one in chances]} if chances else None,
    }  # fmt: skip
    return {
        "object": "chat.completion",
        "created": int(time.time()),
        "model": last.model,
        "handler": last.handler,
        "choices": [choice],
        "usage": usage(last),
    }


def usage(chunk: Chunk) -> dict[str, Any] | None:
    if chunk.usage is None:
        return None
    return {
        "prompt_tokens": chunk.usage.prompt,
        "completion_tokens": chunk.usage.completion,
        "total_tokens": chunk.usage.prompt + chunk.usage.completion,
        "prompt_tokens_details": {"cached_tokens": chunk.usage.cached},
    }


def _reason(chunk: Chunk) -> str | None:
    return "content_filter" if chunk.finish == "blocked" else chunk.finish


def _chance(one: TokenChance) -> dict[str, Any]:
    top = [{"token": text, "logprob": logprob, "bytes": None} for text, logprob in one.top]
    return {"token": one.text, "logprob": one.logprob, "bytes": None, "top_logprobs": top}
