"""The transformers handler beyond what every handler does: the library's batch, its pages, faults, adapters, and who serves."""

from __future__ import annotations

import asyncio
import functools
import gc
import itertools
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from appliance.engine.backend import RETRY_SECONDS, Fallback, Machine, choose, look, precision
from appliance.engine.drawing import Draw, Words
from appliance.engine.handler import Chunk, Handler, Message, Request, TokenChance
from appliance.engine.loaded import Loaded, ModelFiles
from appliance.engine.scheduler import LlamaHandler
from appliance.engine.transformers_gpu import PAGE, TransformersHandler
from appliance.errors import BadInput, Busy, ModelUnavailable, NotFound
from tests.engine.serving import starter_parts, transformers_served
from tests.engine.test_crosstalk import CHANCES, apart, beyond_rounding

GIGABYTE = 10**9
PATIENCE = 30.0  # seconds
LESSON = "Plants make their own food. Light falls on the leaf, and the leaf turns water and air into sugar. " * 4
loaded = pytest.mark.slow  # torch and its libraries take seconds


@pytest.fixture(scope="module")
def parts() -> Iterator[tuple[Any, Any]]:
    made = starter_parts()
    gc.freeze()  # each closing collects what is free; what torch brought at import never is
    yield made
    gc.unfreeze()


@pytest.fixture(scope="module")
def handler() -> Iterator[TransformersHandler]:
    with transformers_served() as made:
        yield made


Serve = Callable[..., AbstractAsyncContextManager[TransformersHandler]]


@pytest.fixture
def serve(parts: tuple[Any, Any]) -> Serve:
    @asynccontextmanager
    async def serving(load: Any = None, **options: Any) -> AsyncIterator[TransformersHandler]:
        made = TransformersHandler(load or (lambda: parts), **{"model_id": "starter", "slots": 4, "cache_mb": 100} | options)
        await made.start()
        try:
            yield made
        finally:
            await made.close()

    return serving


def asking(words: str = "What is a fraction?", **options: Any) -> Request:
    return Request([Message("user", words)], **options)


async def collect(handler: TransformersHandler, request: Request) -> list[Chunk]:
    return [chunk async for chunk in handler.generate(request)]


async def text_of(handler: TransformersHandler, request: Request) -> str:
    return "".join(chunk.text for chunk in await collect(handler, request))


def reference(model: Any, tokenizer: Any, words: str, most: int) -> str:
    """What transformers itself answers, without a batch."""
    ids = tokenizer.apply_chat_template([{"role": "user", "content": words}], add_generation_prompt=True, return_dict=False)
    import torch

    made = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=most, do_sample=False)
    return str(tokenizer.decode(made[0, len(ids) :], skip_special_tokens=True))


# --- the same answers, whoever computes -----------------------------------------------------------------------------------
@loaded
async def test_answers_are_those_of_the_model_alone(handler: TransformersHandler, parts: tuple[Any, Any]) -> None:
    for words in ("What is a fraction?", LESSON):
        assert await text_of(handler, asking(words, max_tokens=24)) == reference(*parts, words, 24)


@loaded
async def test_scores_are_those_of_the_model_alone(
    handler: TransformersHandler, parts: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    model, tokenizer = parts
    talk = [{"role": "user", "content": "What is a half?"}, {"role": "assistant", "content": "One of two equal parts. " * 4}]
    ids = tokenizer.apply_chat_template(talk, return_dict=False)
    start = len(tokenizer.apply_chat_template(talk[:1], add_generation_prompt=True, return_dict=False))
    with torch.no_grad():
        logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    expected = [float(logs[place - 1, ids[place]]) for place in range(start, len(ids))]
    messages = [Message(one["role"], one["content"]) for one in talk]  # type: ignore[arg-type]
    assert await handler.score(messages) == pytest.approx(expected, abs=1e-4)
    monkeypatch.setattr("appliance.engine.transformers_gpu.SCORED", 7 * 4096)  # in pieces of seven rows
    assert await handler.score(messages) == pytest.approx(expected, abs=1e-4)


@loaded
async def test_scoring_waits_for_no_answer_and_stops_none(handler: TransformersHandler) -> None:
    talk = [Message("user", "What is a half?"), Message("assistant", "One of two.")]
    alone = await handler.score(talk)
    stream = handler.generate(asking(max_tokens=200, ignore_eos=True))
    await anext(stream)
    assert await handler.score(talk) == alone
    rest = [chunk async for chunk in stream]
    assert rest[-1].usage and rest[-1].usage.completion == 200


@loaded
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks by the old name
async def test_an_adapter_changes_the_answers(serve: Serve, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model

    plain, tokenizer = starter_parts()
    before = reference(plain, tokenizer, "What is a fraction?", 16)
    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=32, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    tuned = get_peft_model(plain, config)
    after = reference(tuned, tokenizer, "What is a fraction?", 16)
    tuned.save_pretrained(tmp_path)
    assert before != after

    def load() -> tuple[Any, Any]:
        base, words = starter_parts()
        return PeftModel.from_pretrained(base, str(tmp_path)), words

    async with serve(load, adapter="history") as handler:
        assert await text_of(handler, asking(max_tokens=16)) == after
        assert await text_of(handler, asking(max_tokens=16, adapter="history")) == after
        assert (await handler.health()).facts["adapters"] == ["history"]
        with pytest.raises(NotFound, match="geography"):
            await collect(handler, asking(adapter="geography"))


@loaded
async def test_a_base_of_4_bits_answers(serve: Serve) -> None:
    from appliance.settings import Settings
    from appliance.tuning.loading import load_base

    def load() -> tuple[Any, Any]:
        base = load_base(Settings().starter, dtype="bfloat16", quantised="nf4")
        return base, starter_parts()[1]

    async with serve(load) as handler:
        chunks = await collect(handler, asking(max_tokens=8, ignore_eos=True))
        assert chunks[-1].usage and chunks[-1].usage.completion == 8
        assert (await handler.health()).facts["memory"] > 0


# --- drawing --------------------------------------------------------------------------------------------------------------
@loaded
@pytest.mark.parametrize("option", [{"top_k": 1}, {"min_p": 1.0, "top_k": 0}, {"top_p": 1e-6, "top_k": 0}])
async def test_each_limit_at_its_end_leaves_the_likeliest(handler: TransformersHandler, option: dict[str, Any]) -> None:
    greedy = await text_of(handler, asking(max_tokens=12))
    loose: dict[str, Any] = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "temperature": 2.0, "seed": 3, "max_tokens": 12}
    assert await text_of(handler, asking(**loose)) != greedy
    assert await text_of(handler, asking(**loose | option)) == greedy


@loaded
async def test_penalties_keep_words_from_coming_again(handler: TransformersHandler) -> None:
    async def kinds(**options: float) -> int:
        chunks = await collect(handler, asking(max_tokens=50, ignore_eos=True, logprobs=0, **options))
        tokens = [chance.text for chunk in chunks for chance in chunk.chances]
        assert len(tokens) == 50
        return len(set(tokens))

    plain = await kinds()
    for option in ("repeat_penalty", "frequency_penalty", "presence_penalty"):
        assert await kinds(**{option: 2.0}) > plain, option


@loaded
async def test_neighbours_in_a_batch_keep_their_own_rules(handler: TransformersHandler) -> None:
    """A hot one, a cold one, one with a seed, one with a penalty: each as if alone, but for rounding."""
    options: list[dict[str, Any]] = [
        {"temperature": 2.0, "top_k": 1},
        {},
        {"temperature": 0.8, "seed": 5},
        {"repeat_penalty": 1.3},
    ]

    async def told(option: dict[str, Any]) -> list[TokenChance]:
        chunks = await collect(handler, asking(max_tokens=8, ignore_eos=True, logprobs=CHANCES, **option))
        return [chance for chunk in chunks for chance in chunk.chances]

    alone = [await told(option) for option in options]
    together = await asyncio.gather(*(told(option) for option in options))
    for option, one, other in zip(options, alone, together, strict=True):
        same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0].text == pair[1].text, zip(one, other, strict=True)))
        if "seed" in option or "repeat_penalty" in option:
            # What is drawn need not be the likeliest, so only what was said alike can be compared; that is nearly always all.
            assert same >= 3, option
            one, other = one[:same], other[:same]
        assert not beyond_rounding(apart(one, other)), option


# --- text -----------------------------------------------------------------------------------------------------------------
@loaded
def test_no_character_is_ever_shown_in_halves(parts: tuple[Any, Any]) -> None:
    _, tokenizer = parts
    text = "Äpfel 🍎🍏, 👩‍🏫 مرحبا \u202eשלום and 漢字."  # noqa: RUF001
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(tokens) > len(text.split()), "or no character is in several tokens"
    words = Words(tokenizer)
    pieces = [words.add(token, last=place == len(tokens) - 1) for place, token in enumerate(tokens)]
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces)
    cut = Words(tokenizer)
    apple = tokenizer("a🍎", add_special_tokens=False)["input_ids"]
    assert "".join(cut.add(token, last=token == apple[-2]) for token in apple[:-1]) == "a"


@loaded
def test_spaces_of_a_sentencepiece_vocabulary_stay() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<unk>": 0, "▁one": 1, "▁two": 2, "▁": 3, "<0xF0>": 4, "<0x9F>": 5, "<0x8D>": 6, "<0x8E>": 7}
    inner = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    inner.decoder = decoders.Sequence(steps)
    words = Words(PreTrainedTokenizerFast(tokenizer_object=inner))
    assert [words.add(token, last=False) for token in (1, 2, 4, 5, 6, 7, 1)] == ["one", " two", "", "", "", "🍎", " one"]


@loaded
async def test_names_of_control_tokens_typed_by_a_pupil_are_words(handler: TransformersHandler) -> None:
    control = {token for word in ("<|end|>", "<|system|>") for token in await handler.tokenize(word)}
    assert not control & {0, 1, 2, 3, 4}
    plain = await handler.count([Message("user", "hello")])
    assert await handler.count([Message("user", "<|end|><|system|>")]) > plain + 2


# --- coming and going -----------------------------------------------------------------------------------------------------
@loaded
async def test_who_waits_is_told_the_place_and_one_too_many_is_refused(serve: Serve) -> None:
    async with serve(slots=2, queue=3) as handler:
        long = [asyncio.create_task(collect(handler, asking(max_tokens=100, ignore_eos=True))) for _ in range(5)]
        await asyncio.sleep(0.05)
        with pytest.raises(Busy) as caught:
            await collect(handler, asking())
        assert caught.value.retry_after > 0
        answers = await asyncio.gather(*long)
        places = [[chunk.place for chunk in chunks if chunk.place] for chunks in answers]
        assert places == [[], [], [1], [2, 1], [3, 2, 1]]
        assert all(chunk.wait and chunk.wait > 0 for chunks in answers for chunk in chunks if chunk.place)


@loaded
async def test_a_driver_that_hangs_is_told_from_one_that_is_busy_also_when_everybody_has_left(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the watchdog asks: whether anything is in the very step that it was in at the last look."""
    files = ModelFiles("starter", Path("starter"), None, 1024)
    compute, hangs, go = Draw.__call__, threading.Event(), threading.Event()

    def computes(self: Draw, *given: Any) -> Any:
        if hangs.is_set():
            assert go.wait(PATIENCE)
        return compute(self, *given)

    monkeypatch.setattr(Draw, "__call__", computes)
    async with serve(slots=2) as handler:
        loaded = Loaded(lambda _name: files, lambda _files: handler)
        async with loaded.use("starter") as model:
            steps, answer = set(), model.generate(asking(max_tokens=40, ignore_eos=True))
            async for _ in answer:
                steps.add(handler.step())
            assert len(steps) > 10, "a long answer goes on from batch to batch"
            slow = model.generate(asking(max_tokens=4, ignore_eos=True))
            await anext(slow)
            await until(lambda: handler.step() is None)  # the rest waits for whoever reads slowly
            assert loaded.advances() and loaded.advances()
            await slow.aclose()
            await handler.score([Message("user", "a"), Message("assistant", "b")])
            assert handler.step() is None
            hangs.set()
            with pytest.raises(Busy):
                await collect(handler, asking(deadline=0.2))
            assert (await handler.health()).facts["running"] == 0, "who asked has left"
            loaded.advances()
            assert not loaded.advances() and not loaded.advances()
            hangs.clear()
            go.set()
            await until(lambda: handler.step() is None)
            assert loaded.advances()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not true():
            await asyncio.sleep(0.01)


@loaded
async def test_another_class_does_not_wait_for_all_of_the_first(serve: Serve) -> None:
    async with serve(slots=1) as handler:
        order: list[str] = []

        async def ask(group: str, user: str) -> None:
            await collect(handler, asking(max_tokens=12, group=group, user=user))
            order.append(group)

        tasks = [asyncio.create_task(ask("7a", str(pupil))) for pupil in range(5)]
        await asyncio.sleep(0.01)
        tasks.append(asyncio.create_task(ask("7b", "late")))
        await asyncio.gather(*tasks)
        assert order.index("7b") <= 2


@loaded
async def test_nobody_enters_without_room_to_reach_the_end(serve: Serve) -> None:
    """The cache holds two such answers; four are asked for, and all of them come to their ends without being put back."""
    async with serve(cache_mb=5, context=256) as handler:
        cells = (await handler.health()).facts["cells"]
        assert 2 * 160 <= cells < 3 * 160
        tasks = [asyncio.create_task(collect(handler, asking(max_tokens=140, ignore_eos=True))) for _ in range(4)]
        most = 0
        while not all(task.done() for task in tasks):
            facts = (await handler.health()).facts
            most = max(most, facts["running"])
            assert facts["cells_used"] <= cells
            await asyncio.sleep(0.02)
        assert most == 2
        assert [task.result()[-1].usage.completion for task in tasks] == [140] * 4  # type: ignore[union-attr]
        facts = (await handler.health()).facts
        assert facts["running"] == facts["waiting"] == facts["cells_used"] == 0


@loaded
async def test_what_a_class_shares_is_computed_once_and_changes_nothing(serve: Serve) -> None:
    asked = [f"{LESSON} Question {number}?" for number in range(3)]
    async with serve(keep=False) as handler:
        plain = [(await collect(handler, asking(words, max_tokens=8)))[-1].usage for words in asked]
        alone = [await text_of(handler, asking(words, max_tokens=8)) for words in asked]
    assert [usage.cached for usage in plain if usage] == [0, 0, 0]
    async with serve() as handler:
        shared = [(await collect(handler, asking(words, max_tokens=8)))[-1].usage for words in asked]
        assert [await text_of(handler, asking(words, max_tokens=8)) for words in asked] == alone
    cached = [usage.cached for usage in shared if usage]
    most = (plain[0].prompt if plain[0] else 0) // PAGE * PAGE
    assert cached[0] == 0
    assert all(most - 2 * PAGE <= count <= most and count % PAGE == 0 for count in cached[1:])


# --- faults ---------------------------------------------------------------------------------------------------------------
def failing(after: int, message: str) -> tuple[Any, Any]:
    """The starter, which fails at the given step as a lost GPU does."""
    model, tokenizer = starter_parts()
    forward, steps = model.forward, 0

    @functools.wraps(forward)
    def broken(*args: Any, **options: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps > after:
            raise RuntimeError(message)
        return forward(*args, **options)

    model.forward = broken
    return model, tokenizer


@loaded
@pytest.mark.parametrize("message", ["CUDA error: an illegal memory access was encountered", "CUDA out of memory. Tried ..."])
async def test_a_fault_in_mid_answer_is_told_and_the_next_engine_takes_over(serve: Serve, message: str) -> None:
    told = Fallback()
    reasons: list[str] = []

    def on_fault(reason: str) -> None:
        reasons.append(reason)
        told.failed(reason)

    machine = Machine(gpu_free=40 * GIGABYTE)
    assert told.choose(machine, 10**9) == "transformers"
    async with serve(lambda: failing(5, message), on_fault=on_fault, slots=1) as handler:
        said: list[Chunk] = []

        async def first() -> None:
            async for chunk in handler.generate(asking(max_tokens=50, ignore_eos=True)):
                said.append(chunk)

        waiting = asyncio.create_task(collect(handler, asking(max_tokens=50)))
        outcomes = await asyncio.wait_for(asyncio.gather(first(), waiting, return_exceptions=True), 10)
        assert all(isinstance(outcome, ModelUnavailable) and outcome.hint for outcome in outcomes), outcomes
        assert message[:20] in str(outcomes[0])
        health = await handler.health()
        assert not health.ok and message[:20] in health.detail
        with pytest.raises(ModelUnavailable):
            await collect(handler, asking())
        with pytest.raises(ModelUnavailable):
            await handler.score([Message("user", "a"), Message("assistant", "b")])
    assert len(reasons) == 1
    assert told.choose(machine, 10**9) == "llama"


@loaded
@pytest.mark.llama
async def test_the_question_after_a_fault_is_answered_by_llama(starter_gguf: Path) -> None:
    fallback, machine = Fallback(), Machine(gpu_free=40 * GIGABYTE)

    def make(files: ModelFiles) -> Handler:
        if fallback.choose(machine, 10**9) == "llama":
            return LlamaHandler(files.model, threads=2, slots=2, model_id=files.id)
        load = partial(failing, 5, "CUDA error: device lost")
        return TransformersHandler(load, model_id=files.id, slots=2, cache_mb=50, on_fault=fallback.failed)

    models = Loaded(lambda _name: ModelFiles("starter", starter_gguf, None, 1024), make)
    async with models.use("default") as model:
        with pytest.raises(ModelUnavailable, match="device lost"):
            async for _ in model.generate(asking(max_tokens=50, ignore_eos=True)):
                pass
    async with models.use("default") as model:
        chunks = [chunk async for chunk in model.generate(asking(max_tokens=4))]
    assert chunks[-1].finish and chunks[-1].handler == "llama"
    await models.close()


@loaded
async def test_after_closing_the_memory_is_free_and_everybody_was_told(serve: Serve) -> None:
    kept: list[weakref.ref[Any]] = []

    def load() -> tuple[Any, Any]:
        model, tokenizer = starter_parts()
        kept.append(weakref.ref(model))
        return model, tokenizer

    async with serve(load, slots=1) as handler:
        kept.append(weakref.ref(handler._manager.batch_processor.cache.cache_tensor))
        threads = [thread for thread in threading.enumerate() if "_run_generation_loop" in thread.name]
        assert threads and all(thread.daemon for thread in threads), "a process that ends would wait for it"
        tasks = [asyncio.create_task(collect(handler, asking(max_tokens=900, ignore_eos=True))) for _ in range(2)]
        await asyncio.sleep(0.1)
        await handler.close()
        outcomes = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
        assert all(isinstance(outcome, ModelUnavailable) and "unloaded" in outcome.message for outcome in outcomes), outcomes
        health = await handler.health()
        assert not health.ok and health.detail == "not loaded"
        with pytest.raises(ModelUnavailable):
            await collect(handler, asking())
        gc.collect()
        assert [one() for one in kept] == [None, None]
        await handler.start()  # and it can be loaded again
        assert (await collect(handler, asking(max_tokens=2)))[-1].finish


@loaded
async def test_what_does_not_fit_or_cannot_be_loaded_is_refused(parts: tuple[Any, Any]) -> None:
    with pytest.raises(ModelUnavailable, match="1024 tokens") as caught:
        await TransformersHandler(lambda: parts, model_id="starter", cache_mb=1).start()
    assert caught.value.hint

    def damaged() -> tuple[Any, Any]:
        raise RuntimeError("CUDA out of memory")

    with pytest.raises(ModelUnavailable, match="out of memory") as caught:
        await TransformersHandler(damaged, model_id="starter").start()
    assert caught.value.hint

    class Silent:
        chat_template = ""

    with pytest.raises(BadInput, match="chat template"):
        await TransformersHandler(lambda: (parts[0], Silent()), model_id="starter").start()


# --- who serves -----------------------------------------------------------------------------------------------------------
def test_the_gpu_serves_where_it_is_free_and_large_enough() -> None:
    large, small = Machine(gpu_free=40 * GIGABYTE), Machine(gpu_free=8 * GIGABYTE)
    seven = 7 * 10**9
    assert (precision(large, seven), precision(small, seven), precision(Machine(), seven)) == ("bfloat16", "nf4", "")
    assert choose(large, seven) == choose(small, seven) == "transformers"
    assert choose(Machine(), seven) == "llama"
    assert choose(Machine(gpu_free=40 * GIGABYTE, tuning=True), seven) == "llama"
    assert choose(small, 70 * 10**9) == "llama"


def test_too_little_memory_is_tried_again_and_a_lost_gpu_is_not() -> None:
    now = 100.0
    machine = Machine(gpu_free=40 * GIGABYTE)
    fallback = Fallback(lambda: now)
    fallback.failed("CUDA out of memory. Tried to allocate 2 GiB")
    assert fallback.choose(machine, 10**9) == "llama"
    now += RETRY_SECONDS + 1
    assert fallback.choose(machine, 10**9) == "transformers"
    fallback.failed("CUDA error: device lost")
    now += 1000 * RETRY_SECONDS
    assert fallback.choose(machine, 10**9) == "llama"
    assert "device lost" in fallback.reason


@loaded
def test_the_machine_is_looked_at_as_it_is() -> None:
    import torch

    seen = look(tuning=True)
    assert seen.tuning
    assert (seen.gpu_free is None) is not torch.cuda.is_available()
