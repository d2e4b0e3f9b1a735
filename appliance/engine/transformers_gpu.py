"""A Hugging Face model, with its adapter or without, for a box with a GPU: transformers' continuous batching as a Handler.

The library batches, keeps the paged cache, and shares pages that begin alike. Hidden here: its thread, and how nobody who runs
is ever put back for want of room (all that a conversation can come to need is set aside before it may enter; whose turn it is,
is `admission.py`'s; how tokens are drawn, `drawing.py`'s). It opens no file: the loader that it is given knows what a model's
folder may hold, in what precision the model is and where it stands. It does not keep an answer to a JSON schema.

Tests run it on a CPU. What is for a GPU alone (how its memory is told, NF4, what follows a fault of the driver) follows the
libraries' documentation and is not tested.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import random
import secrets
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from appliance.engine.admission import FairQueue
from appliance.engine.cutting import Cutter
from appliance.engine.drawing import Chance, Draw, Seat, Words
from appliance.engine.handler import Chunk, Health, Message, Request, TokenChance
from appliance.engine.job import Job
from appliance.engine.template import ChatTemplate
from appliance.errors import ApplianceError, BadInput, Busy, ModelUnavailable, NotFound, TooLarge, Unsupported

PAGE = 32  # tokens of a page of the cache: prompts are shared in whole pages
BATCH = {"cpu": 512, "cuda": 2048}  # tokens that one step computes at most
SHARE = {"cpu": 0.25, "cuda": 0.6}  # of the free memory that the cache takes; steps need the rest
LONG = 50_000  # characters, which take some ten milliseconds to cut into tokens
MANY = 200  # messages, likewise
CHECK_SECONDS = 2.0  # after which whoever hears nothing looks whether the library's thread still lives
SCORED = 8_000_000  # logits that are asked for at once
MEGABYTE = 1_000_000

Loader = Callable[[], tuple[Any, Any]]


class TransformersHandler:
    """`load` gives (model, tokenizer): a causal language model or a peft model round one, on its device and in its precision.

    adapter: the name of the adapter that the model wears, "" for none. context: tokens of one conversation, 0 takes the
    model's own. slots: conversations in a batch. cache_mb: memory for their tokens, 0 takes a share of what is free. keep:
    whether pages outlive an answer. on_fault: told once, in a few words, when the model fails for good.
    """

    name = "transformers"

    def __init__(
        self, load: Loader, *, model_id: str, adapter: str = "", context: int = 0, slots: int = 8, queue: int = 64,
        cache_mb: int = 0, keep: bool = True, on_fault: Callable[[str], None] | None = None,
    ) -> None:  # fmt: skip
        self.model_id = model_id
        self.slots = slots
        self.context = context
        self._load = load
        self._adapter = adapter
        self._queue = queue
        self._cache_bytes = cache_mb * MEGABYTE
        self._keep = keep
        self._on_fault = on_fault
        self._fault = ""
        self._model: Any = None
        self._tokenizer: Any = None
        self._manager: Any = None
        self._ends: frozenset[int] = frozenset()
        self._pages = self._free_pages = self._bytes = 0
        self._waiting: FairQueue[Seat] = FairQueue()
        self._running: dict[str, Seat] = {}  # read by the library's thread
        self._draw = Draw(self._running)
        self._scoring = self._scored = 0  # callers who have something scored now, and pieces of that begun so far
        self._numbers = itertools.count()
        self._answer_seconds = 2.0
        self._reading = threading.Lock()  # held while the tokenizer works: it has one switch for all callers

    # --- Handler ------------------------------------------------------------------------------------------------------
    async def start(self) -> None:
        if self._manager is None:
            await asyncio.to_thread(self._begin)

    async def generate(self, request: Request) -> AsyncGenerator[Chunk, None]:
        if request.schema is not None:
            raise Unsupported(f"The engine of {self.model_id} cannot keep to a schema.", "Serve the model with llama.cpp.")
        seat = await self._seat(request)
        prompt = len(seat.job.tokens)
        if prompt + request.max_tokens > self.context:
            raise TooLarge(
                f"The question needs {prompt} tokens and the answer up to {request.max_tokens}; "
                f"this model holds {self.context}.",
                "Ask something shorter, or begin a new conversation.",
            )
        self._submit(seat)
        ends = None if request.deadline is None else time.monotonic() + request.deadline
        try:
            while True:
                item = await self._next(seat.job, ends)
                for chunk in [item] if isinstance(item, Chunk) else self._said(seat, item):
                    yield chunk
                    if chunk.finish:
                        return
        finally:
            self._leave(seat)

    async def count(self, messages: Sequence[Message]) -> int:
        return len((await self._tokens(messages, answer=True))[0])

    async def score(self, messages: Sequence[Message]) -> list[float]:
        if not messages or messages[-1].role != "assistant":
            raise BadInput("Only an assistant's turn can be scored.", "End the conversation with one.")
        tokens, start = await self._tokens(messages, answer=False)
        if len(tokens) > self.context:
            raise TooLarge(f"The conversation has {len(tokens)} tokens; this model holds {self.context}.", "Shorten it.")
        manager = self._alive()
        self._scoring += 1
        try:
            return await asyncio.to_thread(self._score, manager, tokens, start)
        finally:
            self._scoring -= 1

    async def tokenize(self, text: str) -> list[int]:
        """A text's tokens; names of control tokens in it are words."""
        self._alive()
        return await asyncio.to_thread(self._ids, text, control=False)

    async def health(self) -> Health:
        manager = self._manager
        ok = manager is not None and manager.is_running() and not self._fault
        detail = "answers" if ok else f"the model failed: {self._fault}" if self._fault else "not loaded"
        facts: dict[str, Any] = {
            "slots": self.slots,
            "context": self.context,
            "adapters": [self._adapter] if self._adapter else [],
            "running": len(self._running),
            "waiting": len(self._waiting),
            "cells": self._pages * PAGE,
            "cells_used": (self._pages - self._free_pages) * PAGE,
            "memory": self._bytes,
        }
        if ok and self._model.device.type == "cuda":
            import torch

            facts["gpu_free"], facts["gpu_total"] = torch.cuda.mem_get_info(self._model.device)
        return Health(ok, detail, self.model_id, facts)

    def step(self) -> tuple[int, float] | None:
        """Another one for each batch that is computed, and each piece of a text that is scored; None while there is none to do.

        Asked of the library, and not by who waits: whoever reads slowly has all of an answer long before leaving, and whoever
        left at a deadline is still being computed for where a driver hangs.
        """
        manager = self._manager
        if manager is None or self._fault or not manager.is_running():
            return None
        batches = manager.batch_processor
        owes = batches is not None and batches.has_pending_requests()
        owes = owes or self._scoring or any(not seat.sent for seat in self._running.values())
        return (self._draw.batches, self._scored) if owes else None

    async def close(self) -> None:
        leaving, self._manager = [self._manager], None
        for seat in [*self._waiting.clear(), *self._running.values()]:
            seat.job.send(_unloaded())
        if leaving[0] is not None:
            await asyncio.to_thread(self._end, leaving)

    # --- coming and going, in the event loop ----------------------------------------------------------------------------
    def _submit(self, seat: Seat) -> None:
        self._alive()
        if len(self._waiting) >= self._queue + self.slots - len(self._running):
            wait = self._wait(len(self._waiting))
            raise Busy(
                f"{len(self._waiting)} questions are waiting already.", f"Try again in {wait:.0f} seconds.", retry_after=wait
            )
        request = seat.job.request
        cost = len(seat.job.tokens) + request.max_tokens
        self._waiting.add(seat, group=request.group, user=request.user, cost=cost)
        self._admit()

    def _admit(self) -> None:
        while len(self._running) < self.slots:
            seat = self._waiting.first()
            if seat is None or seat.pages > self._free_pages:
                break
            self._waiting.take()
            self._free_pages -= seat.pages
            self._running[seat.id] = seat
            seat.job.began = time.monotonic()
            request = seat.job.request
            taken = self._alive().add_request(
                seat.job.tokens, request_id=seat.id, max_new_tokens=request.max_tokens, streaming=True,
                eos_token_id=[-1] if request.ignore_eos else sorted(self._ends),
            )  # fmt: skip
            if taken is None:  # its thread ended a moment ago
                seat.job.send(self._failed("its thread has ended"))
        for place, seat in enumerate(self._waiting.order(), 1):
            if seat.job.told_place != place:
                seat.job.told_place = place
                seat.job.send(Chunk(place=place, wait=self._wait(place)))

    def _leave(self, seat: Seat) -> None:
        """Give the place back at once. The library hears of those who go before those who come, so there is room."""
        if self._running.pop(seat.id, None) is None:
            self._waiting.remove(seat)
        else:
            self._free_pages += seat.pages
            if not seat.finished and self._manager is not None:
                self._manager.cancel_request(seat.id)
            if seat.finished:
                self._answer_seconds += 0.2 * (time.monotonic() - seat.job.began - self._answer_seconds)
        if self._manager is not None and not self._fault:
            self._admit()

    def _wait(self, place: int) -> float:
        return max(1.0, self._answer_seconds * place / self.slots)

    async def _next(self, job: Job, ends: float | None) -> Any:
        """What comes next for this request: a Chunk with its place, or tokens. Raises what went wrong, Busy at the deadline."""
        while True:
            left = CHECK_SECONDS if ends is None else min(CHECK_SECONDS, max(0.0, ends - time.monotonic()))
            try:
                async with asyncio.timeout(left):  # (wait_for would make a task of every token)
                    item = await job.outbox.get()
            except TimeoutError:
                if ends is not None and time.monotonic() >= ends:
                    raise Busy(
                        "The answer took longer than its time limit.", "Try again when fewer people are asking."
                    ) from None
                self._alive()
                continue
            if isinstance(item, BaseException):
                raise item
            return item

    def _said(self, seat: Seat, tokens: list[tuple[int, Chance | None]]) -> Iterator[Chunk]:
        """The chunks that new tokens of an answer let through; the last one says why it ends."""
        job = seat.job
        for token, chance in tokens:
            job.answer.append(token)
            ended = token in self._ends and not job.request.ignore_eos
            with self._reading:
                words = seat.words.add(None if ended else token, last=ended or len(job.answer) >= job.request.max_tokens)
                if chance is not None:
                    job.chances.append(self._chance(chance))
            text, finish = job.take(words.encode("utf-8", "replace"), ended=ended)
            if finish:
                seat.finished = ended or len(job.answer) >= job.request.max_tokens
                job.cached = max(0, len(job.tokens) - seat.computed)
            if text or finish:
                yield replace(job.chunk(text, finish, self.model_id), handler=self.name)
            if finish:
                return

    def _chance(self, chance: Chance) -> TokenChance:
        def text(token: int) -> str:
            return str(self._tokenizer.decode([token]))

        token, logprob, top = chance
        return TokenChance(text(token), logprob, tuple((text(other), value) for other, value in top))

    # --- what the library's thread calls --------------------------------------------------------------------------------
    def put(self, output: Any) -> None:
        """What a request has so far. (Stands where the library keeps a queue of outputs that somebody would have to poll.)"""
        seat = self._running.get(output.request_id)
        if seat is None:
            return
        if output.error is not None:
            seat.job.send(self._failed(output.error))
            return
        fresh = output.generated_tokens[seat.sent :]
        seat.sent += len(fresh)
        chances, seat.chances = seat.chances or [None] * len(fresh), []
        seat.job.send(list(zip(fresh, chances, strict=True)))

    def empty(self) -> bool:
        return True

    def _failed(self, reason: str) -> ModelUnavailable:
        """Remember that the model failed for good, and say so; whoever looks at its health serves another way from then on."""
        if self._manager is None:
            return _unloaded()
        first, self._fault = not self._fault, self._fault or reason[:300]
        if first and self._on_fault is not None:
            self._on_fault(self._fault)
        return ModelUnavailable(f"The model {self.model_id} failed: {self._fault}.", "Ask again: another engine answers then.")

    # --- loading and unloading, each in a thread ------------------------------------------------------------------------
    def _begin(self) -> None:
        try:
            model, tokenizer = self._load()
            if not tokenizer.chat_template:
                raise BadInput(f"The model {self.model_id} has no chat template.", "Choose a model made for conversations.")
            marks = {"bos_token": str(tokenizer.bos_token or ""), "eos_token": str(tokenizer.eos_token or "")}
            self._template = ChatTemplate(tokenizer.chat_template, **marks)
            # peft puts its weights into the base's own layers: the base then answers as the adapted model.
            self._model = model.get_base_model() if hasattr(model, "get_base_model") else model
            self._tokenizer = tokenizer
            self._cutter = self._new_cutter()
            self._ends = _ends(self._model, tokenizer)
            self._open()
        except ApplianceError:
            self._let_go()
            raise
        except Exception as error:  # noqa: BLE001 - torch and transformers raise whatever they stumble over
            self._let_go()
            raise ModelUnavailable(
                f"The model {self.model_id} cannot be loaded: {str(error)[:300] or type(error).__name__}.",
                "Set `slots` or `context` lower, or serve a smaller model.",
            ) from None

    def _open(self) -> None:
        """Make the cache and start the library's thread."""
        from transformers import GenerationConfig
        from transformers.generation.configuration_utils import ContinuousBatchingConfig

        model = self._model
        config = model.config.get_text_config()
        self.context = min(self.context or config.max_position_embeddings, config.max_position_embeddings)
        kept, besides = _cell_bytes(config, model.dtype.itemsize, BATCH[model.device.type])
        room = self._cache_bytes or int(_free_memory(model.device) * SHARE[model.device.type])
        each = -(-self.context // PAGE)
        self._pages = self._free_pages = min(each * self.slots, room // (PAGE * (kept + besides)))
        if self._pages < each:
            raise ModelUnavailable(
                f"There is not enough memory for {self.context} tokens of conversation.", "Set `context` lower."
            )
        manager = model.init_continuous_batching(
            generation_config=GenerationConfig(do_sample=False, eos_token_id=sorted(self._ends) or -1),
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=PAGE, num_blocks=self._pages, max_batch_tokens=BATCH[model.device.type],
                max_requests_per_batch=self.slots, allow_block_sharing=self._keep,
                # Drawing tokens runs in Python between two steps: a recorded graph would leave it out.
                use_async_batching=False, use_cuda_graph=False,
                auto_switch_to_flash=False,  # or it would look for kernels on the network
            ),
        )  # fmt: skip
        manager.logit_processor = self._draw
        manager.output_router.output_queue = self
        manager.warmup()  # makes the cache here, where a want of memory is an error for whoever loads
        # The library's thread is a daemon where whoever starts it is one: then a process that ends does not wait for it.
        starter = threading.Thread(target=manager.start, daemon=True)
        starter.start()
        starter.join()
        self._bytes = int(model.get_memory_footprint()) + (self._pages + 2) * PAGE * kept
        self._fault, self._manager = "", manager

    def _end(self, leaving: list[Any]) -> None:
        """`leaving`: the manager, taken out of it: whoever still held it would hold the model when memory is given back."""
        manager = leaving.pop()
        with contextlib.suppress(RuntimeError):  # a GPU that was lost refuses even to be tidied
            manager.stop(block=True, hard_stop=True)
            manager.destroy()
        manager.logit_processor.clear()
        del manager
        self._let_go()

    def _let_go(self) -> None:
        with self._reading:
            model, self._model, self._tokenizer = self._model, None, None
        on_gpu = model is not None and model.device.type == "cuda"
        del model
        gc.collect()
        if on_gpu:
            import torch

            with contextlib.suppress(RuntimeError):
                torch.cuda.empty_cache()

    def _alive(self) -> Any:
        """The library's manager. Raises ModelUnavailable where there is none that works."""
        manager = self._manager
        if manager is None:
            raise ModelUnavailable(f"The model {self.model_id} is not loaded.", "Ask again in a moment.")
        if self._fault or not manager.is_running():
            raise self._failed(str(manager.background_thread_status.fatal_error or "its thread has ended"))
        return manager

    # --- text and tokens ------------------------------------------------------------------------------------------------
    async def _seat(self, request: Request) -> Seat:
        self._alive()
        if request.adapter not in ("", self._adapter):
            raise NotFound(
                f"The adapter {request.adapter!r} is not loaded beside {self.model_id}.", "See `appliance models list`."
            )
        tokens, _ = await self._tokens(request.messages, answer=True)
        seed = request.seed if request.seed is not None and request.seed >= 0 else secrets.randbits(64)
        return Seat(
            Job(tokens, request, asyncio.get_running_loop()),
            id=f"{next(self._numbers)}",
            pages=-(-(len(tokens) + request.max_tokens) // PAGE),
            words=Words(self._tokenizer),
            random=random.Random(seed),
        )

    async def _tokens(self, messages: Sequence[Message], *, answer: bool) -> tuple[list[int], int]:
        """The prompt's tokens, and where the last message's words start. A long text is cut in a thread of its own."""
        if len(messages) > MANY or sum(len(message.content) for message in messages) > LONG:
            return await asyncio.to_thread(self._cut, messages, answer)
        return self._cut(messages, answer)

    def _cut(self, messages: Sequence[Message], answer: bool) -> tuple[list[int], int]:
        self._alive()
        pieces = self._template.pieces(messages, answer=answer)
        last = next((number for number, piece in enumerate(pieces) if piece.message == len(messages) - 1), -1)
        # The end mark belongs to a scored answer; a line break that a template adds after it does not.
        cut = self._cutter.cut(pieces, [last], None if answer or last < 0 else last)
        return cut.tokens, cut.starts.get(last, 0)

    def _new_cutter(self) -> Cutter:
        named = {token: str(one.content) for token, one in self._tokenizer.added_tokens_decoder.items() if one.special}
        joint = ""
        for token, name in itertools.islice(named.items(), 1):
            if self._ids(f"{name}a", control=True) != [token, *self._ids("a", control=False)]:
                # A space stands before the first text only.
                words = list(self._tokenizer.get_vocab())
                joint = next((sign for sign in "\n\t" if not any(sign in word and word != sign for word in words)), "")
        return Cutter(lambda text, control: self._ids(text, control=control), lambda token: named.get(token, ""), joint)

    def _ids(self, text: str, *, control: bool) -> list[int]:
        """Only what the template wrote may become control tokens; a pupil's "<|system|>" stays letters."""
        clean = text.encode("utf-8", "replace").decode()
        with self._reading:
            if self._tokenizer is None:
                raise _unloaded()
            cut = self._tokenizer(clean, add_special_tokens=False, split_special_tokens=not control, verbose=False)
        return list(cut["input_ids"])

    def _score(self, manager: Any, tokens: list[int], start: int) -> list[float]:
        """Natural-log probability of each token from `start` on, computed alone while the batch stands still."""
        import torch
        from transformers import DynamicCache

        scores: list[float] = []
        try:
            with manager.pause(), torch.inference_mode():
                model = self._model
                ids = torch.tensor([tokens], device=model.device)
                past = DynamicCache(config=model.config)
                step = max(1, min(BATCH[model.device.type], SCORED // model.config.get_text_config().vocab_size))
                for begin in range(0, len(tokens) - 1, step):
                    end = min(begin + step, len(tokens) - 1)
                    self._scored += 1
                    logits = model(input_ids=ids[:, begin:end], past_key_values=past, use_cache=True).logits[0]
                    chances = logits.float().log_softmax(-1).gather(1, ids[0, begin + 1 : end + 1, None])[:, 0]
                    scores += chances[max(0, start - 1 - begin) :].tolist()
        except RuntimeError as error:
            raise self._failed(str(error)) from None
        return scores


# --- the model --------------------------------------------------------------------------------------------------------------


def _ends(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end an answer, by the model's settings and the tokenizer's."""
    named = [model.generation_config.eos_token_id, tokenizer.eos_token_id]
    flat = [token for name in named for token in (name if isinstance(name, list) else [name])]
    return frozenset(int(token) for token in flat if token is not None)


def _cell_bytes(config: Any, item: int, batch: int) -> tuple[int, int]:
    """Memory that one token takes in the cache (keys and values of every layer), and besides it while a step is computed: a
    copy of one layer for every head, and its column of the attention mask."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    copied = (2 * config.num_attention_heads + heads) * size
    return int(config.num_hidden_layers * heads * size * 2 * item), int((copied + batch) * item)


def _free_memory(device: Any) -> int:
    """Bytes that could be had now where the model stands."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _unloaded() -> ModelUnavailable:
    return ModelUnavailable("The model was unloaded.", "Ask again.")
