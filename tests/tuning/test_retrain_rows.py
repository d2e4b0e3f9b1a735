"""`retrain` on the rows of a school: what it records, what stops it, what it does not do twice; and the GPU's hours."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from appliance.app import Appliance
from appliance.audit import Audit
from appliance.errors import Busy, GateNotPassed, Unsupported
from appliance.settings import Settings
from appliance.tuning import gpu_window, pipeline
from appliance.tuning.gguf import install_base
from appliance.tuning.lineage import answered_by, lineage
from appliance.tuning.pipeline import TuneResult
from appliance.tuning.recipe import Recipe
from appliance.tuning.retrain import School, retrain, select
from appliance.tuning.standing import Standing
from appliance.tuning.store import ExampleStore
from tests.tuning import school
from tests.tuning.conftest import build_model

pytestmark = [pytest.mark.llama]
RECIPE = Recipe(**school.RECIPE)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Appliance]:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    home = tmp_path_factory.mktemp("box") / "home"
    appliance = Appliance.open(Settings(home=home, disk_reserve_mb=0, threads=1))
    rows = school.reviewed(72)
    words = [message["content"] for row in rows for message in row["messages"]]
    base = install_base(appliance.registry, build_model(tmp_path_factory.mktemp("tiny"), words))
    appliance.registry.promote(base.id)
    school.add_rows(appliance, rows)
    yield appliance
    asyncio.run(appliance.close())


@pytest.fixture(autouse=True)
def _few_questions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A model of random weights has nothing to lose in the gate's questions but luck."""
    monkeypatch.setattr(Settings, "content", property(lambda _self: tmp_path / "content"))


@pytest.fixture(scope="module")
def done(opened: Appliance) -> TuneResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Settings, "content", property(lambda self: self.home / "content"))
        return asyncio.run(retrain(school.school(opened), recipe=RECIPE))


@pytest.mark.slow
def test_a_promoted_model_can_be_walked_back_to_its_rows(opened: Appliance, done: TuneResult) -> None:
    assert done.promoted and done.fresh
    settings, store = opened.settings, ExampleStore(opened.database)
    found = lineage(settings, opened.registry, store, done.id)
    plan = json.loads((done.folder / "plan.json").read_text("utf-8"))
    assert {row["id"] for row in found["rows"]} <= set(plan["used"]) and len(found["rows"]) > 50
    assert found["dataset"] == opened.registry.get(done.id).dataset and found["parents"][0]["kind"] == "base"
    assert Standing(settings.standing).datasets() == [found["dataset"]]
    assert answered_by(opened.database, "nothing") == ""
    (entry,) = [entry for entry in Audit(opened.database).entries(thing=done.id) if entry.verb == "retrain"]
    assert entry.facts["dataset"] == found["dataset"] and entry.facts["promoted"] is True
    assert "river" not in json.dumps(entry.facts), "ids and digests, no words"
    page = (done.folder / "report.html").read_text("utf-8")
    assert done.id in page and "<script" not in page


@pytest.mark.slow
async def test_the_same_rows_are_not_learned_twice_and_one_more_begins_a_new_run(opened: Appliance, done: TuneResult) -> None:
    told: list[str] = []

    def on_progress(stage: str, *_rest: Any) -> None:
        told.append(stage)

    again = await retrain(school.school(opened), recipe=RECIPE, on_progress=on_progress)
    assert (again.id, again.fresh, again.promoted) == (done.id, False, True)
    assert set(told) == {"select", "dataset"}
    asked: list[str] = []

    more = school.reviewed(80)[72:]
    school.add_rows(opened, more)
    store = ExampleStore(opened.database)

    def withdraw(stage: str, *_rest: Any) -> None:
        if stage == "register" and not asked:
            asked.append(stage)
            store.withdraw("Author 3", by="test")

    with pytest.raises(GateNotPassed, match="were withdrawn while"):
        await retrain(school.school(opened), recipe=RECIPE, on_progress=withdraw)
    champion = opened.registry.champion()
    assert champion is not None and champion.id == done.id, "what serves is untouched"


def test_too_few_rows_name_the_number_and_the_next_step(tmp_path: Path) -> None:
    appliance = Appliance.open(Settings(home=tmp_path / "home", disk_reserve_mb=0))
    school.add_rows(appliance, school.reviewed(12))
    chosen = select(School(appliance.settings, appliance.registry, appliance.database))
    assert chosen.warnings[0].startswith("No roster is loaded")
    from appliance.tuning.retrain import enough

    with pytest.raises(GateNotPassed, match="12 rows can be used and at least 30") as caught:
        enough(chosen)
    assert "examples review" in caught.value.hint and caught.value.exit_code == 4
    appliance.database.close()


@pytest.mark.parametrize(
    ("window", "clock", "opens", "closes"),
    [
        ("", "12:00", 0, None),
        ("20:00-06:00", "12:00", 8 * 3600, None),
        ("20:00-06:00", "20:00", 0, 10 * 3600),
        ("20:00-06:00", "23:30", 0, 6.5 * 3600),
        ("20:00-06:00", "05:59", 0, 60),
        ("20:00-06:00", "06:00", 14 * 3600, None),
        ("09:00-17:00", "08:00", 3600, None),
        ("09:00-17:00", "18:00", 15 * 3600, None),
        ("09:00-17:00", "10:00", 0, 7 * 3600),
    ],
)
def test_the_gpus_hours(window: str, clock: str, opens: float, closes: float | None) -> None:
    now = datetime.fromisoformat(f"2026-03-02T{clock}:00")
    assert gpu_window.opens_in(window, now) == opens
    if closes is not None:
        assert gpu_window.closes_in(window, now) == closes


@pytest.mark.slow
async def test_outside_its_hours_the_gpu_is_left_alone(opened: Appliance, monkeypatch: pytest.MonkeyPatch) -> None:
    """By day the processor trains where it can; a run that needs the GPU waits, and says until when."""
    hour = datetime.now().hour
    closed = f"{(hour + 3) % 24:02d}:00-{(hour + 5) % 24:02d}:00"
    settings = opened.settings.model_copy(update={"gpu_window": closed})
    monkeypatch.setattr(pipeline, "gpus_here", lambda: 1)
    asked: list[bool] = []

    class Tuner:
        def __init__(self, _settings: Settings) -> None: ...

        async def fine_tune(self, *_words: Any, gpu: bool, **_more: Any) -> None:
            asked.append(gpu)
            raise Unsupported("Too large for the processor.", "Use a GPU.")

    monkeypatch.setattr(pipeline, "HuggingFaceTuner", Tuner)
    with pytest.raises(Busy, match="needs the GPU") as caught:
        await retrain(School(settings, opened.registry, opened.database), recipe=Recipe(**school.RECIPE | {"seed": 8}))  # type: ignore[arg-type]
    assert asked == [False] and 3600 < caught.value.retry_after <= 3 * 3600 + 1
    settings = opened.settings.model_copy(update={"gpu_window": f"{hour:02d}:00-{(hour + 2) % 24:02d}:00"})
    with pytest.raises(Unsupported):
        await retrain(School(settings, opened.registry, opened.database), recipe=Recipe(**school.RECIPE | {"seed": 8}))  # type: ignore[arg-type]
    assert asked == [False, True]
