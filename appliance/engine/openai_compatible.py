"""One streaming client for every server that speaks OpenAI's dialect: the engine of this box first of all.

Hides server-sent events and the translation of HTTP faults into ApplianceErrors. The engine understands a few more words than
OpenAI's (place in the queue, scoring, counting, loading); against any other server those raise Unsupported.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt

from appliance import errors
from appliance.engine.handler import Chunk, Finish, Health, Message, Request, TokenChance, Usage
from appliance.errors import ApplianceError, ModelUnavailable, Unsupported

_BY_CODE: dict[str, type[ApplianceError]] = {
    kind.code: kind
    for kind in (errors.BadInput, errors.TooLarge, errors.NotFound, errors.Conflict, errors.Busy, ModelUnavailable, Unsupported)
}
_BY_CODE["context_length_exceeded"] = errors.TooLarge  # as OpenAI and most who speak its dialect say it
# What a server says in these cases is for who runs it, and may show a part of a key.
_BY_STATUS = {
    401: ("The model server does not take the key.", "Check the key, and the file that it stands in."),
    403: ("The model server does not let the key do this.", "Ask who runs that server."),
    404: ("The model server does not know the model or the address.", "Compare with what it lists under /v1/models."),
    429: ("The model server has too much to do, or the key's share is used up.", "Try again in a moment."),
}
_FINISH: dict[str, Finish] = {"stop": "stop", "length": "length", "content_filter": "blocked"}


class OpenAICompatible:
    """`connect` makes an httpx client (see `network.socket_client`); `own` says that the other side is this box's engine."""

    slots = 1

    def __init__(self, connect: Callable[[], httpx.AsyncClient], *, name: str = "llama", own: bool = True, context: int = 0):
        self.name = name
        self.context = context
        self._own = own
        self._connect = connect
        self._client: httpx.AsyncClient | None = None

    async def start(self) -> None:
        health = await self.health()
        if not health.ok:
            raise ModelUnavailable(f"The model server does not answer: {health.detail}", "Start it with `appliance serve`.")

    async def generate(self, request: Request) -> AsyncGenerator[Chunk, None]:
        body = self._body(request)
        # Our engine keeps the deadline itself; a stranger's server does not know of it.
        limit = request.deadline if not self._own else None
        ends = None if limit is None else time.monotonic() + limit
        last: Chunk | None = None
        try:
            async with self._http().stream(
                "POST", "/v1/chat/completions", json=body, timeout=limit or httpx.USE_CLIENT_DEFAULT
            ) as response:
                if response.status_code != 200:
                    raise _fault(response.status_code, await response.aread())
                async for line in response.aiter_lines():
                    if ends is not None and time.monotonic() >= ends:
                        raise _late()
                    if not line.startswith("data: ") or line == "data: [DONE]":
                        continue
                    chunk = self._chunk(json.loads(line[6:]))
                    if chunk.finish or last:  # OpenAI tells the token counts after the end: one last chunk says both
                        last = replace(last or chunk, usage=chunk.usage or (last.usage if last else None))
                    else:
                        yield chunk
        except httpx.HTTPError as error:
            raise (_late() if ends is not None and time.monotonic() >= ends else _unreachable(error)) from error
        except UnicodeEncodeError:
            raise _not_text() from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelUnavailable("The model server sent something that is no answer.", "Try again in a moment.") from error
        if last is None:
            raise ModelUnavailable("The model stopped in the middle of its answer.", "It restarts by itself; ask again.")
        yield last

    async def count(self, messages: Sequence[Message], model: str = "default") -> int:
        return int((await self.call("/v1/count", {"messages": _plain(messages), "model": model}))["tokens"])

    async def tokenize(self, text: str, model: str = "default") -> list[int]:
        """A text's tokens in a registered model's terms."""
        return [int(token) for token in (await self.call("/v1/tokenize", {"content": text, "model": model}))["tokens"]]

    async def models(self) -> list[str]:
        """The ids that may be asked for by name."""
        return [str(one["id"]) for one in await self.listed()]

    async def listed(self) -> list[dict[str, Any]]:
        """The models as the server tells of them, each with its "id"."""
        try:
            found = (await self._get("/v1/models")).json()["data"]
            return [dict(one) for one in found if one["id"]]
        except (ValueError, KeyError, TypeError) as error:
            raise ModelUnavailable(
                "The server's list of models is none.", "Check its address: it has to end before /v1."
            ) from error

    async def metrics(self) -> str:
        """The engine's numbers in Prometheus' text format."""
        return (await self._get("/metrics")).text

    async def score(self, messages: Sequence[Message]) -> list[float]:
        return [float(x) for x in (await self.call("/v1/score", {"messages": _plain(messages)}))["scores"]]

    async def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Unit vectors, float32 of shape (texts, dimensions). Raises ModelUnavailable."""
        data = (await self.call("/v1/embeddings", {"input": list(texts), "model": "default"}, own=False))["data"]
        return np.asarray([row["embedding"] for row in data], dtype=np.float32)

    async def rerank(self, question: str, texts: Sequence[str]) -> list[float]:
        """How well each text answers, in their order; more is better. Raises ModelUnavailable where none can say."""
        body = {"query": question, "documents": list(texts), "model": "default"}
        data = (await self.call("/v1/rerank", body))["results"]
        scores = {int(row["index"]): float(row["relevance_score"]) for row in data}
        return [scores[index] for index in range(len(texts))]

    async def load(self, model: str) -> str:
        """Load a registered model beside the others and let it answer once; returns its id. Raises what went wrong."""
        return str((await self.call("/v1/load", {"model": model}))["model"])

    async def health(self) -> Health:
        try:
            response = await self._http().get("/health" if self._own else "/v1/models", timeout=5.0)
            facts = response.json()
        except (httpx.HTTPError, ValueError) as error:
            return Health(False, str(_unreachable(error)))
        return Health(response.status_code == 200, facts.get("detail", ""), facts.get("model", ""), facts)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    # -----------------------------------------------------------------------------------------------------------------
    async def _get(self, path: str) -> httpx.Response:
        try:
            response = await self._http().get(path, timeout=5.0)
        except httpx.HTTPError as error:
            raise _unreachable(error) from error
        if response.status_code != 200:
            raise _fault(response.status_code, response.content)
        return response

    async def call(self, path: str, body: dict[str, Any], *, own: bool = True) -> dict[str, Any]:
        """POST JSON, answer JSON; faults as ApplianceErrors."""
        if own and not self._own:
            raise Unsupported("That server cannot do this.", "Use a local model.")
        try:
            response = await self._http().post(path, json=body)
            if response.status_code != 200:
                raise _fault(response.status_code, response.content)
            answer: dict[str, Any] = response.json()
        except httpx.HTTPError as error:
            raise _unreachable(error) from error
        except UnicodeEncodeError:
            raise _not_text() from None
        except ValueError as error:
            raise ModelUnavailable("The model server sent something that is not JSON.", "Try again in a moment.") from error
        return answer

    def _http(self) -> httpx.AsyncClient:
        if self._client is None:
            self._client = self._connect()
        return self._client

    def _body(self, request: Request) -> dict[str, Any]:
        if not request.messages:
            raise errors.BadInput("There is no message to answer.", "Write a question.")
        body: dict[str, Any] = {
            "model": request.model,
            "messages": _plain(request.messages),
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if request.stop:
            body["stop"] = list(request.stop)
        if request.seed is not None and request.seed >= 0:
            body["seed"] = request.seed
        for name in ("frequency_penalty", "presence_penalty"):
            if value := getattr(request, name):
                body[name] = value
        if request.logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": request.logprobs}
        if request.schema is not None:
            held = {"name": "answer", "schema": request.schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": held}
        if self._own:  # who asks is told to nobody but this box's engine
            body |= {
                "top_k": request.top_k,
                "min_p": request.min_p,
                "repeat_penalty": request.repeat_penalty,
                "ignore_eos": request.ignore_eos,
                "deadline": request.deadline,
                "user": request.user,
                "group": request.group,
                "adapter": request.adapter,
            }
        return body

    def _chunk(self, raw: dict[str, Any]) -> Chunk:
        if "error" in raw:
            raise _error(raw["error"], 500)
        choice = (raw.get("choices") or [{}])[0]
        usage = raw.get("usage")
        return Chunk(
            text=(choice.get("delta") or {}).get("content") or "",
            place=raw.get("place") if self._own else None,
            wait=raw.get("wait") if self._own else None,
            finish=_FINISH.get(choice["finish_reason"], "stop") if choice.get("finish_reason") else None,
            usage=Usage(
                usage["prompt_tokens"],
                (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0),
                usage["completion_tokens"],
            )
            if usage
            else None,
            model=raw.get("model") or "",
            handler=(raw.get("handler") if self._own else "") or self.name,
            chances=_chances(choice.get("logprobs")),
        )


def _chances(raw: dict[str, Any] | None) -> tuple[TokenChance, ...]:
    """What a server says of each token's chance; servers leave out what they do not know."""
    return tuple(
        TokenChance(one["token"], one["logprob"], tuple((top["token"], top["logprob"]) for top in one.get("top_logprobs", ())))
        for one in (raw or {}).get("content") or ()
    )


def _plain(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def _late() -> ApplianceError:
    return errors.Busy("The answer took longer than its time limit.", "Try again when fewer people are asking.")


def _not_text() -> ApplianceError:
    return errors.BadInput("The text has characters that are not valid Unicode.", "Type it again instead of pasting it.")


def _unreachable(error: Exception) -> ModelUnavailable:
    if isinstance(error, httpx.TimeoutException):
        return ModelUnavailable("The model server took too long to answer.", "Try again when fewer people are asking.")
    return ModelUnavailable("The model server is not running or has just stopped.", "It restarts by itself; ask again.")


def _fault(status: int, content: bytes) -> ApplianceError:
    try:
        return _error(json.loads(content)["error"], status)
    except (ValueError, KeyError, TypeError):
        if status == 413:
            return errors.TooLarge("The text is larger than the model server takes.", "Send less at once.")
        if status in _BY_STATUS:
            return _error({}, status)
        return ModelUnavailable(f"The model server answered with HTTP status {status}.", "Try again in a moment.")


def _error(raw: dict[str, Any], status: int) -> ApplianceError:
    known = _BY_CODE.get(str(raw.get("code")))
    if known is None and status in _BY_STATUS:
        return (errors.Busy if status == 429 else ModelUnavailable)(*_BY_STATUS[status])
    kind = known or (errors.BadInput if 400 <= status < 500 else ModelUnavailable)
    fault = kind(str(raw.get("message", "")), str(raw.get("hint") or ""))
    if isinstance(fault, errors.Busy) and isinstance(raw.get("retry_after"), (int, float)):
        fault.retry_after = float(raw["retry_after"])
    return fault
