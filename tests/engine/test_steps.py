"""What happens between two steps of the model, counted in steps: who goes on, who leaves, what is drawn, what is guessed."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from appliance.engine import loop, sizing
from appliance.engine.handler import Chunk, Message, Request, TokenChance
from appliance.engine.scheduler import LlamaHandler
from appliance.errors import Busy
from tests.engine.serving import engine_on_a_socket
from tests.engine.steps import Steps, counted_steps, until
from tests.engine.test_crosstalk import apart, beyond_rounding

pytestmark = pytest.mark.llama

Serve = Callable[..., AbstractAsyncContextManager[LlamaHandler]]
TELL = 20  # likeliest tokens that are told


@pytest.fixture
def steps() -> Iterator[Steps]:
    with counted_steps() as counted:
        yield counted


@pytest.fixture
def serve(starter_gguf: Path) -> Serve:
    @asynccontextmanager
    async def serving(**options: Any) -> AsyncIterator[LlamaHandler]:
        made = LlamaHandler(starter_gguf, **{"slots": 2, "threads": 2, "context": 1024} | options)
        await made.start()
        try:
            yield made
        finally:
            await made.close()

    return serving


def asking(words: str = "What is a fraction?", **options: Any) -> Request:
    return Request([Message("user", words)], **{"max_tokens": 24, "ignore_eos": True} | options)


async def collect(handler: Any, request: Request) -> list[Chunk]:
    return [chunk async for chunk in handler.generate(request)]


async def told(handler: LlamaHandler, request: Request) -> list[TokenChance]:
    return [chance for chunk in await collect(handler, request) for chance in chunk.chances]


async def text_of(handler: LlamaHandler, request: Request) -> str:
    return "".join(chunk.text for chunk in await collect(handler, request))


# --- who goes on ----------------------------------------------------------------------------------------------------------
async def test_a_long_prompt_never_stalls_anybodys_words(serve: Serve, steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is read in pieces, every step brings the next token of the answer that is being given."""
    monkeypatch.setattr(loop, "STEP_SECONDS", 0.0)  # the pieces are as small as they may be, on the fastest machine too
    async with serve() as handler:
        speaks = asyncio.create_task(collect(handler, asking(max_tokens=900)))
        await until(lambda: len(steps) > 5, "an answer that is under way")
        speaker = steps.log[-1][0][2]
        long = asking("why is it so " * 150, max_tokens=4)
        size = await handler.count(long.messages)
        began = len(steps)
        await collect(handler, long)
        during = [rows for rows in steps.log[began:] if any(row[2] != speaker for row in rows)]
        reading = [rows for rows in during if sum(row[2] != speaker for row in rows) > 1]
        assert not speaks.done(), "nothing is proved if the other answer has ended"
        assert len(reading) >= size // (2 * loop.FEWEST_PROMPT) >= 3
        places = [[row[1] for row in rows if row[2] == speaker] for rows in during]
        assert all(places), "a step in which the speaker says nothing"
        # Each step begins at the first place that is not yet settled: a guessed word may settle more than one, never none.
        steady = itertools.pairwise(places)
        assert all(one[0] < after[0] <= one[-1] + 1 for one, after in steady), "a step that brought no word"
        speaks.cancel()
        await asyncio.gather(speaks, return_exceptions=True)


async def test_a_slow_machine_reads_in_small_pieces_from_the_first_step_on(
    serve: Serve, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who comes or leaves waits for a step's end, and a step of 512 tokens would last half a minute there."""
    monkeypatch.setattr(sizing, "PROMPT_SPEED", 1.0)
    monkeypatch.setattr(loop, "ALONE_SECONDS", 0.0)  # however fast this machine turns out to be
    async with serve() as handler:
        long = asking("why is it so " * 150, max_tokens=1)
        await collect(handler, long)
        assert sum(len(rows) for rows in steps.log) >= await handler.count(long.messages)
        assert max(len(rows) for rows in steps.log) <= 1.5 * loop.FEWEST_PROMPT


# --- who leaves -----------------------------------------------------------------------------------------------------------
async def nobody(engine: Any) -> bool:
    facts = (await engine.health()).facts
    return int(facts["running"]) == 0


async def test_who_stops_is_gone_within_one_step(serve: Serve, steps: Steps) -> None:
    async with serve() as handler:
        stream = handler.generate(asking(max_tokens=900))
        await anext(stream)
        with steps.held():
            await until(lambda: steps.standing, "a step that has not begun")
            await stream.aclose()
            before = len(steps)
            steps.allow(1)
            await until(lambda: nobody(handler), "a free place")
            assert len(steps) == before + 1, "the step that was under way, and no other"


async def test_whose_deadline_has_come_is_gone_within_one_step(serve: Serve, steps: Steps) -> None:
    async with serve() as handler:
        with steps.held():
            with pytest.raises(Busy, match="time limit"):
                await collect(handler, asking(max_tokens=900, deadline=0.05))
            steps.allow(1)
            await until(lambda: nobody(handler), "a free place")
            assert len(steps) <= 1


async def test_who_hangs_up_is_gone_within_one_step_of_the_engines_hearing_it(starter_gguf: Path, steps: Steps) -> None:
    async with engine_on_a_socket(starter_gguf, slots=2) as engine:
        await engine.load("starter")

        async def left() -> bool:
            return 'engine_requests_total{outcome="left"} 1' in await engine.metrics()

        async with aclosing(engine.generate(asking(max_tokens=900))) as stream:
            await anext(stream)
            with steps.held():
                await until(lambda: steps.standing, "a step that has not begun")
                await stream.aclose()
                await until(left, "the engine's noticing it")
                before = len(steps)
                steps.allow(1)
                await until(lambda: nobody(engine), "a free place")
                assert len(steps) == before + 1


# --- what is drawn --------------------------------------------------------------------------------------------------------
async def test_alone_a_seed_repeats_exactly(serve: Serve) -> None:
    dicing = {"temperature": 1.5, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "max_tokens": 60, "logprobs": 3}
    async with serve(slots=1) as handler:
        one, again, other = [await told(handler, asking(seed=seed, **dicing)) for seed in (7, 7, 8)]
    assert one == again, "to the last digit of every chance"
    assert [chance.text for chance in one] != [chance.text for chance in other]


@pytest.mark.parametrize("option", [{"top_k": 1}, {"top_p": 0.0}, {"min_p": 1.0}])
async def test_the_narrowest_choice_is_the_likeliest_token(serve: Serve, option: dict[str, Any]) -> None:
    loose: dict[str, Any] = {"temperature": 5.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 3}
    async with serve(slots=1) as handler:
        greedy = await text_of(handler, asking())
        assert await text_of(handler, asking(**loose)) != greedy
        assert await text_of(handler, asking(**loose | option)) == greedy


def rank(chance: TokenChance) -> int:
    return sum(value > chance.logprob for _, value in chance.top)


WITHIN: dict[str, tuple[dict[str, Any], Callable[[TokenChance], bool]]] = {
    "top-k": ({"top_k": 3}, lambda chance: rank(chance) < 3),
    "top-p": (
        {"top_p": 0.6},
        lambda chance: sum(math.exp(value) for _, value in chance.top if value > chance.logprob) < 0.6 + 1e-3,
    ),
    "min-p": ({"min_p": 0.2}, lambda chance: chance.logprob >= chance.top[0][1] + math.log(0.2) - 1e-3),
}


@pytest.mark.parametrize("name", WITHIN)
async def test_no_token_is_drawn_from_outside_the_choice(serve: Serve, name: str) -> None:
    option, inside = WITHIN[name]
    loose: dict[str, Any] = {"temperature": 2.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "max_tokens": 80, "logprobs": TELL}
    async with serve(slots=1) as handler:
        held = [one for seed in range(4) for one in await told(handler, asking(seed=seed, **loose | option))]
        free = [one for seed in range(4) for one in await told(handler, asking(seed=seed, **loose))]
    assert all(map(inside, held)), [one for one in held if not inside(one)][:2]
    assert not all(map(inside, free)), "or the rule is kept without being asked for"
    assert any(rank(one) > 0 for one in held), "and there is a choice"


async def test_penalties_keep_words_from_coming_again(serve: Serve) -> None:
    async def kinds(handler: LlamaHandler, **options: float) -> int:
        return len({chance.text for chance in await told(handler, asking(max_tokens=60, logprobs=0, **options))})

    async with serve(slots=1) as handler:
        plain = await kinds(handler)
        for option in ("repeat_penalty", "frequency_penalty", "presence_penalty"):
            assert await kinds(handler, **{option: 2.0}) > plain, option


# --- what is guessed ------------------------------------------------------------------------------------------------------
QUOTES = [
    "Say it again: the number below says into how many parts, the number above says how many. The number below says into",
    "one two three four, one two three four, one two three four, one two",
    "Water rises, clouds form, rain falls. Water rises, clouds form, rain falls. Water rises, clouds",
]


async def test_guessing_ahead_saves_steps_and_changes_no_word(
    serve: Serve, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve(keep=False) as handler:
        guessed = [await told(handler, asking(words, max_tokens=120, logprobs=TELL)) for words in QUOTES]
        taken = len(steps)
        facts = (await handler.health()).facts
        assert 0 < facts["guessed_right"] < facts["guessed"], "some were right, and some had to be taken back"
        monkeypatch.setattr(loop, "GUESSING", 0)
        plain = [await told(handler, asking(words, max_tokens=120, logprobs=TELL)) for words in QUOTES]
        assert (await handler.health()).facts["guessed"] == facts["guessed"]
    assert taken < (len(steps) - taken) - facts["guessed_right"] // 2, "each right guess is a step less"
    for with_guesses, without in zip(guessed, plain, strict=True):
        assert len(with_guesses) == len(without) == 120
        assert not beyond_rounding(apart(without, with_guesses)), "only where two tokens are as likely may rounding choose"


# --- what stays -----------------------------------------------------------------------------------------------------------
async def test_what_costs_more_to_read_again_stays_longer(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three places in the cache, all taken by what has finished; the oldest is by far the longest."""
    monkeypatch.setattr(sizing, "MOST_PARKED", 0)  # what leaves is gone
    talks = {
        "long": "the river carries mud to the sea " * 60,
        "short": "Why is it so, in a few words please?",
        "other": "How many?",
    }
    async with serve(slots=2) as handler:
        first = {name: await text_of(handler, asking(words, max_tokens=20)) for name, words in talks.items()}
        assert (await handler.health()).facts["kept"] == 3
        await collect(handler, asking("Another question altogether, for which there is no place", max_tokens=4))
        again = [Message("user", talks["long"]), Message("assistant", first["long"]), Message("user", "Go on.")]
        usage = (await collect(handler, Request(again, max_tokens=4)))[-1].usage
        assert usage and usage.cached > 300, usage
