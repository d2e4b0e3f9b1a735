"""Many conversations, one batch: the llama.cpp handler.

Renders a conversation with the model's own template, turns it into tokens, and hands it to the decode loop (`loop.py`), which
runs in a thread of its own. Hides that thread behind the Handler protocol: a closed iterator leaves at the next step, and so
does one whose deadline has come. It never cuts a prompt: what does not fit is refused with the counts.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path

from appliance.engine import sampling, sizing
from appliance.engine.cutting import Cutter
from appliance.engine.handler import Chunk, Health, Message, Request
from appliance.engine.job import Job
from appliance.engine.llama import Llama
from appliance.engine.loop import Loop
from appliance.engine.standing import Keeper, Standing
from appliance.engine.template import ChatTemplate
from appliance.errors import ApplianceError, BadInput, Busy, ModelUnavailable, NotFound, TooLarge

MEGABYTE = 1_000_000
LONG = 50_000  # characters, which take some ten milliseconds to cut into tokens
MANY = 200  # messages, likewise
MOST_SEQUENCES = 256  # llama.cpp's limit


class LlamaHandler:
    """A GGUF model, with an adapter or without; more adapters can be loaded beside it.

    threads: 0 takes every core. context: tokens of one conversation, 0 takes the model's own. slots: conversations in a batch,
    0 as many as the machine bears. cache_mb: memory for what conversations share and keep, 0 what `sizing` chooses. keep:
    whether the cache outlives an answer; without it every request is computed from its first token, which is what judging
    wants. standing: where the prefixes of a whole class outlive the process, for files whose sha256 (`digest`) is known.
    fitting: the name of a model for so many bytes of memory, for whoever asked for one that does not fit. gpu_layers: that a
    GPU computes where llama.cpp's build can, below 0 all.
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
        standing: Standing | None = None,
        digest: str = "",
        fitting: Callable[[int], str] = lambda _bytes: "",
        gpu_layers: int = 0,
    ) -> None:
        self.model_id = model_id or model.stem
        self.slots = slots
        self.context = context
        self._model = model
        self._own = self.model_id if adapter else ""
        self._adapters: dict[str, Path] = {self._own: adapter} if adapter else {}
        self._threads = self._using = threads
        self._queue = queue
        self._cache_bytes = cache_mb * MEGABYTE
        # One conversation at a time is how models are judged: there, the same question has to give the same answer.
        self._keep = slots != 1 if keep is None else keep
        self._standing = standing if digest else None
        self._digest = digest
        self._fitting = fitting
        self._gpu_layers = gpu_layers
        self._keeper: Keeper | None = None
        self._llama: Llama | None = None
        self._loop: Loop | None = None
        self._reading = threading.Lock()  # held while callers read the vocabulary, so that closing waits for them

    # --- Handler ------------------------------------------------------------------------------------------------------
    async def start(self) -> None:
        if self._loop is None:
            await asyncio.to_thread(self._load)
            if self._standing is not None:
                self._keeper = Keeper(self._standing, self._running(), self._digest)
                if not self._own:
                    await self._keeper.warm("", "")

    def _load(self) -> None:
        for path in self._adapters.values():
            sizing.inspected(path, "adapter")
        plan = sizing.plan(
            self._model, adapters=sum(path.stat().st_size for path in self._adapters.values()), threads=self._threads,
            slots=self.slots, context=self.context, cache=self._cache_bytes, keep=self._keep, fitting=self._fitting,
        )  # fmt: skip
        self.slots, self._threads, self._using = plan.slots, plan.threads, plan.threads
        llama = Llama(
            self._model, threads=plan.threads, context=plan.context, conversations=plan.slots,
            sequences=min(MOST_SEQUENCES, plan.slots + plan.spare), cache_bytes=plan.cache, apart=plan.apart,
            gpu_layers=self._gpu_layers,
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
        self._cutter = Cutter(lambda text, control: self._cut(text, control=control), self._mark, llama.joint())
        self._loop = Loop(
            llama, slots=self.slots, queue=self._queue, model=self.model_id, keep=self._keep, parking=plan.parking,
            reading=plan.reading,
        )  # fmt: skip
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
        if self._keeper is not None:
            self._keeper.note(job.kind, job.tokens[: job.common], request.user)
        late = Busy("The answer took longer than its time limit.", "Try again when fewer people are asking.")
        limit = request.deadline
        # Into the same box as the words: to wait for each of them with a clock of its own takes a task each.
        timer = None if limit is None else asyncio.get_running_loop().call_later(limit, job.outbox.put_nowait, late)
        try:
            while True:
                item = await job.outbox.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
                if item.finish:
                    return
        finally:
            if timer is not None:
                timer.cancel()
            loop.cancel(job)

    async def count(self, messages: Sequence[Message]) -> int:
        return len((await self._read(messages, Request(messages))).tokens)

    async def score(self, messages: Sequence[Message], adapter: str = "") -> list[float]:
        if not messages or messages[-1].role != "assistant":
            raise BadInput("Only an assistant's turn can be scored.", "End the conversation with one.")
        job = self._job(messages, Request(messages, adapter=adapter), asyncio.get_running_loop(), answer=False)
        if len(job.tokens) > self.context:
            raise TooLarge(f"The conversation has {len(job.tokens)} tokens; this model holds {self.context}.", "Shorten it.")
        loop = self._running()
        loop.submit(job)
        try:
            while isinstance(result := await job.outbox.get(), Chunk):
                pass  # its place in line
        finally:
            loop.cancel(job)
        if isinstance(result, BaseException):
            raise result
        scores: list[float] = result
        return scores

    async def tokenize(self, text: str) -> list[int]:
        """A text's tokens; names of control tokens in it are words."""
        return await asyncio.to_thread(self._cut, text, control=False)

    def tokens(self, messages: Sequence[Message]) -> tuple[list[int], int]:
        """All token ids of a conversation, and where the last message's words start; for checking an export."""
        job = self._job(messages, Request(messages), asyncio.get_event_loop(), answer=False)
        return job.tokens, job.score_from or 0

    async def health(self) -> Health:
        loop = self._loop
        ok = loop is not None and loop.alive
        facts = {"threads": self._using, "slots": self.slots, "context": self.context, "adapters": sorted(self._adapters)}
        return Health(ok, "answers" if ok else "not loaded", self.model_id, facts | (loop.facts() if loop else {}))

    async def close(self) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            await keeper.end()
        loop, self._loop = self._loop, None
        if loop is not None:
            await asyncio.to_thread(loop.close)
        with self._reading:
            if self._llama is not None:
                self._llama.close()
                self._llama = None

    def step(self) -> tuple[int, float] | None:
        loop = self._loop
        return None if loop is None else loop.step()

    async def rest(self) -> None:
        """While nobody asks: keep what came to be shared."""
        if self._keeper is not None and self._running().idle:
            await self._keeper.rest()

    async def share(self, tuning: bool) -> None:
        """While a tuning run computes on this machine, leave it half of the cores: a step ends with its slowest thread, and one
        that shares its core with the trainer is slow."""
        llama, loop = self._llama, self._loop
        wanted = max(1, self._threads // 2) if tuning else self._threads
        if llama is None or loop is None or not loop.alive or wanted == self._using:
            return
        self._using = wanted
        await asyncio.wrap_future(loop.between_steps(lambda: llama.threads(wanted)))

    # --- adapters -----------------------------------------------------------------------------------------------------
    async def learn(self, name: str, path: Path, digest: str = "") -> None:
        """Load an adapter beside the others; requests wear it by its name. Raises ModelUnavailable."""
        llama, loop = self._llama, self._running()
        assert llama is not None
        await asyncio.to_thread(sizing.inspected, path, "adapter")
        await asyncio.wrap_future(loop.between_steps(lambda: llama.learn(name, path)))
        self._adapters[name] = path
        if self._keeper is not None and digest:
            await self._keeper.warm(name, digest)

    async def unlearn(self, name: str) -> None:
        """Give an adapter's memory back; nobody may be wearing it."""
        llama, loop = self._llama, self._running()
        assert llama is not None
        self._adapters.pop(name, None)
        if self._keeper is not None:
            self._keeper.forget(name)
        await asyncio.wrap_future(loop.between_steps(lambda: loop.unlearn(name)))

    # --- between the coroutines and the loop --------------------------------------------------------------------------
    def _running(self) -> Loop:
        if self._loop is None:
            raise ModelUnavailable(f"The model {self.model_id} is not loaded.", "Ask again in a moment.")
        return self._loop

    async def _read(self, messages: Sequence[Message], request: Request) -> Job:
        """The prompt's tokens. A long text goes to a thread, so that others' words keep coming; short ones keep their order."""
        waiting = asyncio.get_running_loop()
        if len(messages) > MANY or sum(len(message.content) for message in messages) > LONG:
            return await asyncio.to_thread(self._job, messages, request, waiting, answer=True)
        return self._job(messages, request, waiting, answer=True)

    def _job(self, messages: Sequence[Message], request: Request, waiting: asyncio.AbstractEventLoop, *, answer: bool) -> Job:
        self._running()
        pieces = self._template.pieces(messages, answer=answer)
        said = [number for number, piece in enumerate(pieces) if piece.message is not None]
        first = next((number for number in said if messages[pieces[number].message or 0].role != "system"), -1)
        # The end mark belongs to a scored answer; a line break that a template adds after it does not.
        last = next((n for n in said if pieces[n].message == len(messages) - 1), None) if not answer else None
        cut = self._cutter.cut(pieces, [first] if last is None else [first, last], last)
        score_from = None if last is None else cut.starts[last]
        return Job(
            cut.tokens, request, waiting, kind=self._kind(request), score_from=score_from, common=cut.starts.get(first, 0)
        )

    def _cut(self, text: str, *, control: bool) -> list[int]:
        with self._reading:
            if self._llama is None:
                raise ModelUnavailable(f"The model {self.model_id} is not loaded.", "Ask again in a moment.")
            return self._llama.tokenize(text, control=control)

    def _mark(self, token: int) -> str:
        with self._reading:
            return self._llama.mark(token) if self._llama is not None else ""

    def _kind(self, request: Request) -> str:
        name = request.adapter or self._own
        if name and name not in self._adapters:
            raise NotFound(f"The adapter {name!r} is not loaded beside {self.model_id}.", "See `appliance models list`.")
        return name
