"""The one interface behind which every model stands.

A handler turns a Request into a stream of Chunks. Local tuned models, the quoting handler, any OpenAI-compatible server and
the optional plugins all implement `Handler`, pass the same conformance tests, and can stand in for one another. This file is
what a new back end has to read; it holds no behaviour beyond the value types.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

Role = Literal["system", "user", "assistant"]
Finish = Literal["stop", "length", "blocked"]


class Source(Protocol):
    """What a handler may know of a passage: enough to quote it. `knowledge.Passage` is one."""

    @property
    def document(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def place(self) -> str: ...
    @property
    def text(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens, in the model's own terms. `cached` of the prompt's tokens were not computed again."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """One answer to make. `model` names a registry id or alias; back ends with a single model ignore it.

    `task` says which task asks, as "teacher_responder" or "teacher_responder/history": a model may have been chosen for it.
    `user` and `group` (a class) are whom the queue is fair to. `adapter` is a registry id whose adapter shall answer, where the
    back end has it loaded. temperature 0 is greedy. `seed` None or below 0 draws one. `schema` is a JSON schema that the answer
    keeps to. `logprobs` asks for the chance of each token and of so many likeliest ones. `passages` are the sources that the
    prompt already contains, for handlers that quote. `deadline` is in seconds from the call. `inside`: it must stay in the
    building, so no model of another machine may be asked; who does not say otherwise means that.
    """

    messages: Sequence[Message]
    model: str = "default"
    max_tokens: int = 320
    temperature: float = 0.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    stop: Sequence[str] = ()
    seed: int | None = None
    passages: Sequence[Source] = ()
    question: str = ""
    deadline: float | None = None
    ignore_eos: bool = False
    user: str = ""
    group: str = ""
    task: str = ""
    adapter: str = ""
    schema: dict[str, Any] | None = None
    logprobs: int | None = None
    inside: bool = True


@dataclass(frozen=True, slots=True)
class TokenChance:
    """A token of the answer, the natural log of its chance, and the likeliest ones in its place."""

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of the answer. `place` (1 = next) and `wait` (seconds) are set while the request is queued and has no text.

    `finish` and `usage` are set on the last chunk only; `model` names what really answered.
    """

    text: str = ""
    place: int | None = None
    wait: float | None = None
    finish: Finish | None = None
    usage: Usage | None = None
    model: str = ""
    handler: str = ""
    chances: tuple[TokenChance, ...] = ()


@dataclass(frozen=True, slots=True)
class Health:
    """`ok`: can answer now. `detail`: one plain sentence."""

    ok: bool
    detail: str = ""
    model: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


@runtime_checkable
class Handler(Protocol):
    """A back end is one file. Closing the iterator that `generate` returns cancels the work at once."""

    name: str
    slots: int
    context: int

    async def start(self) -> None:
        """Load. Raises ModelUnavailable with a hint."""
        ...

    def generate(self, request: Request) -> AsyncGenerator[Chunk, None]:
        """Stream the answer. Raises TooLarge where the prompt cannot fit, Busy where the queue is full, ModelUnavailable."""
        ...

    async def count(self, messages: Sequence[Message]) -> int:
        """Tokens of the rendered prompt, in this model's own terms."""
        ...

    async def score(self, messages: Sequence[Message]) -> list[float]:
        """Natural-log probability of each token of the last message (which must be the assistant's) and of its end mark.

        Raises Unsupported where the back end does not tell.
        """
        ...

    async def health(self) -> Health: ...

    async def close(self) -> None: ...
