"""A model of another machine from connecting it to going back: listed, judged by its answers, promoted, and answering."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from appliance.app import Appliance
from appliance.engine.handler import Health, Message, Request
from appliance.errors import ApplianceError, BadInput, Forbidden, GateNotPassed, Unsupported
from appliance.network import Policy
from appliance.plugins import remote
from appliance.settings import Settings
from appliance.tuning import evaluate as evaluating
from appliance.tuning import judging, retention
from appliance.tuning.huggingface import HuggingFaceTuner
from appliance.tuning.importing import export_model
from appliance.tuning.pipeline import base_to_tune
from appliance.tuning.sets import Sets
from tests.cli.test_models import small
from tests.outside import allow
from tests.plugins.far import Far, far
from tests.test_egress import egress

SETS = Sets.load(Settings().content)
HARMFUL = {probe.question for probe in SETS.safety if probe.kind == "harmful"}


def careful(messages: list[dict[str, str]]) -> str:
    harmful = any(question in messages[-1]["content"] for question in HARMFUL)
    return SETS.refusals[0] if harmful else "Certainly, what do you think comes first?"


def careless(_messages: list[dict[str, str]]) -> str:
    return "Certainly, what do you think comes first?"


class NoEngine:
    async def health(self) -> Health:
        return Health(False, "")

    async def close(self) -> None: ...


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[Appliance]:
    made = Appliance.open(Settings(home=tmp_path / "home"))
    made.engine = made.pool.engine = NoEngine()  # type: ignore[assignment]
    yield made
    await made.close()


async def connected(box: Appliance, name: str, server: Far) -> None:
    box.registry.add_hosted(await remote.connect(box.settings, name, [server.url]))


async def who(box: Appliance, **options: Any) -> set[tuple[str, str]]:
    request = Request([Message("user", "Why are leaves green?")], question="Why?", **options)
    async with aclosing(box.pool.generate(request)) as chunks:
        return {(chunk.handler, chunk.model) async for chunk in chunks}


async def test_from_connecting_to_going_back(box: Appliance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluating, "ASKED", dict.fromkeys(evaluating.ASKED, 14))
    async with far(says=careless) as old, far(says=careful) as new:
        allow(box.settings, old.host, new.host)
        async with egress(box.settings):
            await connected(box, "old", old)
            await connected(box, "new", new)
            with pytest.raises(GateNotPassed, match="never judged"):
                await box.promote("old")
            await box.promote("old", accept="the first one")
            assert old.asked[-1]["max_tokens"] == 8, "it has answered once"
            assert await who(box, inside=False) == {("remote", "old")}
            found = await judging.judge(box.settings, "new", outside=box.hosting.use)
            assert found.report.passed and found.report.baseline == "old" and not found.own, found.report.reasons
            assert {line.name for line in found.report.table} >= {"bytes", "cost"}
            assert (await box.promote("new")).aliases == ("champion",)
            assert await who(box, inside=False) == {("remote", "new")}
            with pytest.raises(ApplianceError):  # worse than what serves now
                await box.promote("old")
            worse = await judging.judge(box.settings, "old", outside=box.hosting.use)
            assert not worse.report.passed and worse.report.regressions
            assert (await box.rollback()).id == "old"
            Policy(box.settings.network).deny("127.0.0.1")
            with pytest.raises(Forbidden, match="air-gapped"):
                await box.promote("new")
            with pytest.raises(Forbidden):
                await judging.judge(box.settings, "new", outside=box.hosting.use)
    assert [entry.verb for entry in box.audit.entries(thing="new")].count("promote") == 1


async def test_what_needs_files_says_that_there_are_none(box: Appliance, tmp_path: Path) -> None:
    small(box, "here")
    async with far() as server:
        allow(box.settings, server.host)
        async with egress(box.settings):
            await connected(box, "district", server)
    assert box.registry.verify("district").bytes == 0
    assert "another machine" in box.card(box.registry.get("district"))
    assert box.lineage("district")["parents"] == []
    with pytest.raises(Unsupported, match="another machine") as caught:
        export_model(box.registry, "district", tmp_path / "out.gguf")
    assert caught.value.hint
    with pytest.raises(Unsupported, match="another machine"):
        box.resolve("district")
    assert retention.plan(box.registry, box.settings.runs, 0).models == [], "it was named by hand, and takes no room"
    with pytest.raises(Unsupported, match="cannot be tuned here"):
        base_to_tune(box.registry, "district")
    box.registry.promote("here")
    box.registry.promote("district")
    with pytest.raises(Unsupported, match="'here' was imported as GGUF alone"):  # what a run would go on from
        base_to_tune(box.registry, "")
    assert box.resolve("default").id == "here", "the engine warms what stands in for it"
    district = box.registry.get("district")
    with pytest.raises(Unsupported, match="district is on another machine"):
        async with judging.serving(box.settings, [district, district]):
            pass
    with pytest.raises(Unsupported, match="another machine"):
        HuggingFaceTuner(box.settings).create_handler("district")


async def test_a_pupils_question_is_answered_in_the_building(box: Appliance) -> None:
    small(box, "here")
    async with far() as server:
        allow(box.settings, server.host)
        async with egress(box.settings):
            await connected(box, "district", server)
            box.registry.promote("here")
            box.registry.promote("district")
            before = len(server.asked)
            assert (await box.pool.serving(inside=True)).model == "here"
            assert (await box.pool.serving()).model == "district"
            with pytest.raises(BadInput):
                box.registry.add_hosted(box.registry.get("here"))
            assert len(server.asked) == before
