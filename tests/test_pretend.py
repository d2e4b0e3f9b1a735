"""The declared pretend back end: it serves where the setting says so, tells the time of each word, and nothing is promoted."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from appliance.app import Appliance, serving_choice
from appliance.engine.handler import Message, Request
from appliance.engine.loaded import Loaded
from appliance.errors import Conflict, NotFound
from appliance.registry import Manifest
from appliance.settings import Settings


async def test_it_serves_where_the_setting_says_so_and_says_when_each_word_was_said(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", backend="fake")
    appliance = Appliance.open(settings)
    loaded = Loaded(appliance.resolve, serving_choice(settings, fitting=lambda _: "", tuning=lambda: False))
    began, said = time.time(), []
    async with loaded.use("default") as model:
        async for chunk in model.generate(Request([Message("user", "leaf now. now.")], max_tokens=9)):
            said.append(chunk)
        assert (await loaded.facts())["fake"]["backend"] == "fake"
    words = [chunk.text.strip() for chunk in said if chunk.text]
    assert words[0] == "LEAF" and {chunk.model for chunk in said} == {"fake"}
    assert began <= float(words[1].rstrip(".")) < float(words[2].rstrip(".")) <= time.time()
    active = appliance._active("teacher_responder")
    assert active and (active.id, active.starter) == ("fake", False) and "no model" in active.title
    assert (await appliance.pool.serving()).handler == "quotes", "its engine is not running"
    with pytest.raises(Conflict, match="load test"):
        await appliance._serve(Manifest("x", "base", "X", "", 512, {}), "promote", lambda: None, {}, "")
    await loaded.close()
    await appliance.close()


async def test_it_never_serves_by_itself(settings: Settings) -> None:
    appliance = Appliance.open(settings)
    assert settings.backend == "auto" and appliance._active("teacher_responder") is None
    with pytest.raises(NotFound):
        appliance.resolve("fake")
    await appliance.close()
