"""The real DSPy over the real engine and the starter: the form is kept, and what is found is what the engine is sent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from appliance import prompts
from appliance.plugins.dspy import DSPyOptimizer
from appliance.settings import Settings
from tests.engine.serving import engine_on_a_socket
from tests.plugins.scripted import open_line

pytestmark = [pytest.mark.llama]
pytest.importorskip("dspy", reason="the extra [dspy] is not installed")


async def test_a_module_is_optimised_over_the_engine(starter_gguf: Path, settings: Settings) -> None:
    open_line(settings)
    talks = [{"question": f"What is {n} + {n}?", "answer": "What is half of it? Try it first."} for n in range(6)]
    levels = [
        {"inputs": {"criterion": "Asks why", "talk": f"Teacher: {n}?"}, "outputs": {"level": n % 3, "try_this": "Ask why."}}
        for n in range(3)
    ]
    async with engine_on_a_socket(starter_gguf) as engine:
        asker = DSPyOptimizer(engine, settings, context=1024)
        done = await asker.optimize_module("teacher_responder", talks, method="random", budget=16, answer_tokens=16)
        assert done.report["calls"] <= 16 and done.report["prompt"] > 0 < done.report["completion"]
        assert 0 <= done.report["after"]["value"] <= 1 and done.report["n"] == 2 and not done.passed
        module = done.module
        assert await module.within(1024 - 16, engine.count) == module
        start = replace(prompts.load("assessment"), demonstrations=())
        kept = await asker.optimize_module("assessment", levels, budget=6, start=start, answer_tokens=220)
        # A starter knows no levels; that it gets any points shows that its answers were held to the form.
        assert kept.report["after"]["value"] > 0 and kept.report["before"]["value"] > 0
