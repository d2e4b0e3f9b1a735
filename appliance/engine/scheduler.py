"""Many conversations, one batch: the llama.cpp handler.

Renders a conversation with the model's own template, turns it into tokens, and hands it to the decode loop (`loop.py`), which
runs in a thread of its own. Hides that thread behind the Handler protocol: a closed iterator leaves at the next step, and so
does one whose deadline has come. It never cuts a prompt: what does not fit is refused with the counts.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

from appliance.engine import sampling
from appliance.engine.handler import Chunk, Health, Message, Request
from appliance.engine.job import Job
from appliance.engine.llama import Llama
from appliance.engine.loop import KEPT, Loop
from appliance.engine.template import ChatTemplate
from appliance.errors import ApplianceError, BadInput, Busy, ModelUnavailable, NotFound, TooLarge
from appliance.settings import cores

MEGABYTE = 1_000_000
LONG = 50_000  # characters, which take some ten milliseconds to cut into tokens
MOST_SEQUENCES = 256  # llama.cpp's limit


class LlamaHandler:
    """A GGUF model, with an adapter or without; more adapters can be loaded beside it.

    threads: 0 takes every core. context: tokens of one conversation, 0 takes the model's own. slots: conversations in a batch.
    cache_mb: memory for what conversations share and keep, 0 takes a quarter of what is free. keep: whether the cache outlives
    an answer; without it every request is computed from its first token, which is what judging wants.
    """

    name = "llama"

    def __init__(
        self,
        model: Path,
        adapter: Path | None = None,
        *,
        threads: int = 0,
        context: int = 0,
        slots: int = 1,
        queue: int = 64,
        model_id: str = "",
        cache_mb: int = 0,
        keep: bool | None = None,
    ) -> None:
        self.model_id = model_id or model.stem
        self.slots = slots
        self.context = context
        self._model = model
        self._own = self.model_id if adapter else ""
        self._adapters: dict[str, Path] = {self._own: adapter} if adapter else {}
        self._threads = threads or cores()
        self._queue = queue
        self._cache_bytes = cache_mb * MEGABYTE
        # One conversation at a time is how models are judged: there, the same question has to give the same answer.
        self._keep = slots > 1 if keep is None else keep
        self._llama: Llama | None = None
        self._loop: Loop | None = None
        self._reading = threading.Lock()  # held while callers read the vocabulary, so that closing waits for them

    # --- Handler ------------------------------------------------------------------------------------------------------
    async def start(self) -> None:
        if self._loop is None:
            await asyncio.to_thread(self._load)

    def _load(self) -> None:
        llama = Llama(
            self._model, threads=self._threads, context=self.context, conversations=self.slots,
            sequences=min(MOST_SEQUENCES, self.slots + (KEPT if self._keep else 0)), cache_bytes=self._cache_bytes,
        )  # fmt: skip
        try:
            if not llama.template:
                raise BadInput(f"The model {self.model_id} has no chat template.", "Choose a model made for conversations.")
            self._template = ChatTemplate(llama.template, **llama.marks())
            for name, path in self._adapters.items():
                llama.learn(name, path)
        except ApplianceError:
            llama.close()
            raise
        self.context = llama.context
        self._llama = llama
        self._loop = Loop(llama, slots=self.slots, queue=self._queue, model=self.model_id, keep=self._keep)
        self._loop.begin()

    async def generate(self, request: Request) -> AsyncGenerator[Chunk, None]:
        if request.schema is not None:
            sampling.grammar(request.schema)  # a schema that cannot be is refused before anybody waits
        job = await self._read(request.messages, request)
        if len(job.tokens) + request.max_tokens > self.context:
            raise TooLarge(
                f"The question needs {len(job.tokens)} tokens and the answer up to {request.max_tokens}; "
                f"this model holds {self.context}.",
                "Ask something shorter, or begin a new conversation.",
            )
        loop = self._running()
        loop.submit(job)
        ends = None if request.deadline is None else time.monotonic() + request.deadline
        try:
            while True:
                left = None if ends is None else max(0.0, ends - time.monotonic())
                item = await asyncio.wait_for(job.outbox.get(), left)
                if isinstance(item, BaseException):
                    raise item
                yield item
                if item.finish:
                    return
        except TimeoutError:
            raise Busy("The answer took longer than its time limit.", "Try again when fewer people are asking.") from None
        finally:
            loop.cancel(job)

    async def count(self, messages: Sequence[Message]) -> int:
        return len((await self._read(messages, Request(messages))).tokens)

    async def score(self, messages: Sequence[Message]) -> list[float]:
        if not messages or messages[-1].role != "assistant":
            raise BadInput("Only an assistant's turn can be scored.", "End the conversation with one.")
        job = self._job(messages, Request(messages), asyncio.get_running_loop(), answer=False)
        if len(job.tokens) > self.context:
            raise TooLarge(f"The conversation has {len(job.tokens)} tokens; this model holds {self.context}.", "Shorten it.")
        loop = self._running()
        loop.submit(job)
        try:
            result = await job.outbox.get()
        finally:
            loop.cancel(job)
        if isinstance(result, BaseException):
            raise result
        scores: list[float] = result
        return scores

    def tokens(self, messages: Sequence[Message]) -> tuple[list[int], int]:
        """All token ids of a conversation, and where the last message's words start; for checking an export."""
        job = self._job(messages, Request(messages), asyncio.get_event_loop(), answer=False)
        return job.tokens, job.score_from or 0

    async def health(self) -> Health:
        loop = self._loop
        ok = loop is not None and loop.alive
        facts = {"slots": self.slots, "context": self.context, "adapters": sorted(self._adapters)}
        return Health(ok, "answers" if ok else "not loaded", self.model_id, facts | (loop.facts() if loop else {}))

    async def close(self) -> None:
        loop, self._loop = self._loop, None
        if loop is not None:
            await asyncio.to_thread(loop.close)
        with self._reading:
            if self._llama is not None:
                self._llama.close()
                self._llama = None

    # --- adapters -----------------------------------------------------------------------------------------------------
    async def learn(self, name: str, path: Path) -> None:
        """Load an adapter beside the others; requests wear it by its name. Raises ModelUnavailable."""
        llama, loop = self._llama, self._running()
        assert llama is not None
        await asyncio.wrap_future(loop.between_steps(lambda: llama.learn(name, path)))
        self._adapters[name] = path

    async def unlearn(self, name: str) -> None:
        """Give an adapter's memory back; nobody may be wearing it."""
        llama, loop = self._llama, self._running()
        assert llama is not None
        self._adapters.pop(name, None)
        await asyncio.wrap_future(loop.between_steps(lambda: loop.unlearn(name)))

    # --- between the coroutines and the loop --------------------------------------------------------------------------
    def _running(self) -> Loop:
        if self._loop is None:
            raise ModelUnavailable(f"The model {self.model_id} is not loaded.", "Ask again in a moment.")
        return self._loop

    async def _read(self, messages: Sequence[Message], request: Request) -> Job:
        """The prompt's tokens. A long text goes to a thread, so that others' words keep coming; short ones keep their order."""
        waiting = asyncio.get_running_loop()
        if sum(len(message.content) for message in messages) > LONG:
            return await asyncio.to_thread(self._job, messages, request, waiting, answer=True)
        return self._job(messages, request, waiting, answer=True)

    def _job(self, messages: Sequence[Message], request: Request, waiting: asyncio.AbstractEventLoop, *, answer: bool) -> Job:
        self._running()
        tokens: list[int] = []
        score_from = None
        for piece in self._template.pieces(messages, answer=answer):
            if not answer and piece.message == len(messages) - 1:
                score_from = len(tokens)
            with self._reading:
                if self._llama is None:
                    raise ModelUnavailable(f"The model {self.model_id} is not loaded.", "Ask again in a moment.")
                ids = self._llama.tokenize(piece.text, control=piece.control)
            if score_from is not None and piece.message is None:
                ids = ids[:1]  # the end mark belongs to the answer; a line break that a template adds after it does not
            tokens.extend(ids)
        return Job(tokens, request, waiting, kind=self._kind(request), score_from=score_from)

    def _kind(self, request: Request) -> str:
        name = request.adapter or self._own
        if name and name not in self._adapters:
            raise NotFound(f"The adapter {name!r} is not loaded beside {self.model_id}.", "See `appliance models list`.")
        return name
