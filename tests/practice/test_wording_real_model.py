"""The starter words pupils' lines through the engine, on the real road: the format holds, and only what fits is shown.

It is too small to word a line well, so nothing is said here of how its lines read.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance import prompts
from appliance.engine.handler import Chunk, Request
from appliance.engine.openai_compatible import OpenAICompatible
from appliance.practice import pupils
from appliance.practice.wording import MODULE
from appliance.settings import Settings
from tests.engine.serving import NoEmbedder, engine_on_a_socket
from tests.practice.test_wording import SCENE, spoken
from tests.web.box import PretendPool

pytestmark = pytest.mark.llama
SAYS = ("What do you think is more, Amara, a quarter or an eighth?", "Why do you think so, Amara?", "Joon, show us your strip.")


class Engine(PretendPool):
    """A pool whose answers are those of a real engine; it keeps each answer in full."""

    def __init__(self, engine: OpenAICompatible) -> None:
        super().__init__()
        self.engine = engine
        self.answers: list[str] = []

    async def generate(self, request: Request) -> AsyncGenerator[Chunk, None]:
        self.requests.append(request)
        text = ""
        async for chunk in self.engine.generate(replace(request, model="default", adapter="")):
            text += chunk.text
            yield chunk
        self.answers.append(text)


async def test_a_real_model_keeps_to_the_format_and_no_line_that_does_not_fit_is_shown(
    settings: Settings, starter_gguf: Path
) -> None:
    async with engine_on_a_socket(starter_gguf, NoEmbedder()) as engine:
        pool = Engine(engine)
        found = await spoken(settings, pool, *SAYS, practice_seconds=60.0)
    assert all(turn.asked for turn in found.turns) and len(pool.answers) >= len(SAYS)
    schemas: list[Any] = [request.schema for request in pool.requests]
    assert all(schema and schema["required"] == ["line"] for schema in schemas), "every request was held to the module's schema"
    lines = [prompts.load(MODULE).parse(text)["line"] for text in pool.answers]
    assert all(isinstance(one, str) and len(one) <= 240 for one in lines)
    for turn in found.turns:
        for beat in turn.exchange.beats:
            if beat.by_model:
                assert " ".join(beat.said.split()) in {" ".join(one.split()) for one in lines}
                assert pupils.fits(found.scenario, turn.room, beat, beat.said)
            else:
                assert beat.said == beat.line
    assert found.scenario.id == SCENE
