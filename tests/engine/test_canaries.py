"""Pupils with secrets, over the engine's socket and in the pool of transformers: no answer is made of another's words.

`test_crosstalk.py` does the same at the decode loop, for longer, and with an eye on each cell. Here the whole road is walked:
HTTP, a client for each pupil, the fair queue; and the other back end. A lone handler that keeps nothing computes what each
should have heard.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance.engine.handler import Message, Request
from appliance.engine.openai_compatible import OpenAICompatible
from appliance.engine.scheduler import LlamaHandler
from appliance.engine.transformers_gpu import TransformersHandler
from tests.engine.serving import engine_on_a_socket, starter_parts
from tests.engine.test_crosstalk import CHANCES, LESSON, WORDS, Heard, differs

PUPILS = 10
TURNS = 3


class Pupil:
    """A conversation that grows, with a secret in each of its parts."""

    def __init__(self, number: int) -> None:
        self.name = f"pupil-{number}"
        self._draw = random.Random(number)
        self.secret = "".join(self._draw.choices("bcdfghjklmnpqrstvwxz", k=7)) + str(self._draw.randint(1000, 9999))
        self._group = ("6A", "7B")[number % 2]
        self._talk = [Message("system", f"{LESSON}This pupil's secret word is {self.secret}. ")]

    async def ask(self, handler: Any, heard: list[Heard]) -> None:
        words = self._draw.choices(WORDS, k=self._draw.choice((3, 8, 40)))
        words.insert(self._draw.randint(0, len(words)), f"My secret word is {self.secret}.")
        asked = (*self._talk, Message("user", " ".join(words) + "?"))
        request = Request(asked, max_tokens=self._draw.randint(6, 20), logprobs=CHANCES, user=self.name, group=self._group)
        chunks = [chunk async for chunk in handler.generate(request)]
        text, usage = "".join(chunk.text for chunk in chunks), chunks[-1].usage
        assert usage
        chances = tuple(one for chunk in chunks for one in chunk.chances)
        heard.append(Heard(self.name, "", asked, text, chances, True, usage.cached))
        self._talk = [*asked, Message("assistant", text)]


async def all_ask(pupils: Sequence[Pupil], handlers: Sequence[Any]) -> list[Heard]:
    """Everybody at once, on and on: those who are quick are in their next turn while others wait for their first."""
    heard: list[Heard] = []

    async def talk(pupil: Pupil, handler: Any) -> None:
        for _ in range(TURNS):
            await pupil.ask(handler, heard)

    await asyncio.gather(*(talk(pupil, handler) for pupil, handler in zip(pupils, handlers, strict=True)))
    assert len(heard) == PUPILS * TURNS
    return heard


async def check(pupils: Sequence[Pupil], heard: Sequence[Heard], lone: Any) -> None:
    secrets = {pupil.name: pupil.secret for pupil in pupils}
    for one in heard:
        assert one.chances, "an answer of no tokens proves nothing"
        assert not [name for name, secret in secrets.items() if name != one.user and secret in one.text.casefold()]
        assert not await differs(lone, one)
    # A leak would be noticed: had they been answered from their neighbour's words, the chances would tell.
    noticed = 0
    for number, one in enumerate(heard[:PUPILS]):
        other = secrets[pupils[number - 1].name if pupils[number - 1].name != one.user else pupils[number - 2].name]
        changed = (replace(said, content=said.content.replace(secrets[one.user], other)) for said in one.messages)
        noticed += bool(await differs(lone, replace(one, messages=tuple(changed))))
    assert noticed >= PUPILS // 3, f"only {noticed} of {PUPILS} changed secrets were noticed"


@pytest.mark.llama
@pytest.mark.slow
async def test_nobody_hears_anothers_secret_over_the_engines_socket(starter_gguf: Path) -> None:
    pupils = [Pupil(number) for number in range(PUPILS)]
    lone = LlamaHandler(starter_gguf, threads=1, context=1024)
    await lone.start()
    async with engine_on_a_socket(starter_gguf, slots=4) as engine:
        await engine.load("starter")
        clients = [OpenAICompatible(engine._connect) for _ in pupils]
        heard = await all_ask(pupils, clients)
        for client in clients:
            await client.close()
    assert max(one.cached for one in heard) > 50, "what they share is shared"
    await check(pupils, heard, lone)
    await lone.close()


@pytest.mark.slow
@pytest.mark.parametrize("keep", [True, False], ids=["kept", "nothing kept"])
async def test_nobody_hears_anothers_secret_in_the_pool_of_transformers(keep: bool) -> None:
    pupils = [Pupil(number) for number in range(PUPILS)]
    parts = starter_parts()
    handler = TransformersHandler(lambda: parts, model_id="starter", slots=4, cache_mb=100, keep=keep)
    await handler.start()
    heard = await all_ask(pupils, [handler] * PUPILS)
    await handler.close()
    assert keep == any(one.cached for one in heard)
    lone = TransformersHandler(lambda: parts, model_id="starter", slots=1, cache_mb=100, keep=False)
    await lone.start()
    await check(pupils, heard, lone)
    await lone.close()
