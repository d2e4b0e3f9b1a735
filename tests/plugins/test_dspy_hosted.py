"""A prompt module optimised on a model at OpenAI: asked before its words leave, by the same handler, with what it cost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from appliance.cli import group
from appliance.errors import UsedUp
from appliance.plugins.openai_money import Budget, prices
from appliance.registry import Manifest
from appliance.settings import Settings
from tests.outside import way_out
from tests.plugins.openai_server import BASE, TUNED, Service, connected, service
from tests.plugins.scripted import BAD, GOOD, ROWS, RULE, Connected, box_of, write

pytest.importorskip("dspy", reason="the extra [dspy] is not installed")
CHAT = "POST /v1/chat/completions"


def shown(messages: list[dict[str, Any]]) -> str:
    """Better with a demonstration, as `Scripted` is."""
    good = RULE in messages[0]["content"] or any("tried" in one["content"] for one in messages if one["role"] == "assistant")
    return GOOD if good else BAD


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Service]:
    with service(tmp_path / "far") as made:
        made.says = shown
        yield made


@pytest.fixture
def settings(tmp_path: Path, far: Service, monkeypatch: pytest.MonkeyPatch) -> Settings:
    made = connected(tmp_path / "home", far)

    @classmethod  # type: ignore[misc]
    def opened(_cls: Any, settings: Settings) -> Any:
        box = box_of(settings, Connected())

        async def close() -> None:
            await box.chat.close()
            box.database.close()

        box.close = close
        return box

    for name in ("openai_url", "openai_key_file"):
        monkeypatch.setenv(f"APPLIANCE_{name.upper()}", str(getattr(made, name)))
    monkeypatch.setattr("appliance.app.Appliance.open", opened)
    return made


def test_a_model_of_another_machine_is_asked_only_where_it_is_named_and_its_cost_is_told(
    settings: Settings, far: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = box_of(settings, Connected())
    hosted = {"plugin": "openai", "model": TUNED, "base": BASE, "method": "supervised"}
    box.registry.add_hosted(Manifest("far-1", "hosted", "Tuned at OpenAI", "terms", 4096, {}, hosted=hosted))
    words = ["tune", "dspy", "start", "--examples", str(write(tmp_path / "rows.jsonl", ROWS)), "--budget", "120"]

    def line(*more: str, said: str = "") -> Result:
        return CliRunner().invoke(group, ["--home", str(settings.home), *more], input=said, standalone_mode=False)

    with way_out(settings):
        refused = line(*words, "--model", "far-1", said="n\n")
        assert "Send them?" in refused.stderr and refused.exception is not None
        assert far.calls == [] and not box.audit.entries(thing="far-1")
        monkeypatch.setenv("APPLIANCE_OPENAI_BUDGET", "0.003")
        poor = line(*words, "--model", "far-1", "--yes")
        assert isinstance(poor.exception, UsedUp) and "money for OpenAI is used up" in poor.exception.message
        paid = far.count(CHAT)
        monkeypatch.delenv("APPLIANCE_OPENAI_BUDGET")
        done = line(*words, "--model", "far-1", "--yes", "--json")
        assert done.return_value == 0, done.exception  # type: ignore[attr-defined]
        told = json.loads(done.stdout)
        before, spent = far.count(CHAT), Budget(settings, prices(settings)).spent()
        here = json.loads(line("tune", "dspy", "evaluate", told["id"], "--json").stdout)
        assert here["report"]["n"] == 12 and far.count(CHAT) == before, "in the building, where no model is named"
        there = line("tune", "dspy", "evaluate", told["id"], "--model", "far-1", "--yes", "--json")
        assert json.loads(there.stdout)["report"]["passed"] and far.count(CHAT) == before + 24
    report = told["report"]
    assert report["passed"] and report["model"] == "far-1" and report["calls"] == before == paid + report["asked"]
    assert paid > 0 < report["asked"], "what was answered before the money was used up is not paid for twice"
    assert report["cost"] == pytest.approx(spent, abs=1e-4) and report["cost"] > 0 and report["currency"] == "USD"
    assert " USD)" in done.stderr
    entries = box.audit.entries(thing="far-1")
    assert {one.verb for one in entries} == {"send examples"} and len(entries) == 3
    assert entries[0].facts["module"] == "teacher_responder"
    listed = json.loads(line("models", "list", "--json").stdout)["models"]
    assert next(one for one in listed if one["id"] == told["id"])["cost"] == f"{report['cost']} USD"
    box.database.close()
