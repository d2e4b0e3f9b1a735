"""`retrain` on the rows of a school: what it records, what stops it, what it does not do twice; and the GPU's hours."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from appliance.app import Appliance
from appliance.audit import Audit
from appliance.errors import Busy, GateNotPassed, ModelUnavailable, Unsupported
from appliance.settings import Settings
from appliance.tuning import gpu_window, pipeline, steps
from appliance.tuning.gguf import install_base
from appliance.tuning.lineage import answered_by, lineage
from appliance.tuning.pipeline import TuneResult
from appliance.tuning.recipe import Recipe
from appliance.tuning.retrain import School, plan, retrain, select
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
        (broken_off(opened) / "checkpoints").mkdir(parents=True)
        for path in (broken_off(opened) / "checkpoints", broken_off(opened)):
            os.utime(path, (1, 1))
        return asyncio.run(retrain(school.school(opened), recipe=RECIPE))


def broken_off(opened: Appliance) -> Path:
    return opened.settings.runs / "0123456789abcdef"


@pytest.mark.slow
def test_a_promoted_model_can_be_walked_back_to_its_rows(opened: Appliance, done: TuneResult) -> None:
    assert done.promoted and done.fresh
    settings, store = opened.settings, ExampleStore(opened.database)
    found = lineage(settings, opened.registry, store, done.id)
    kept = json.loads((done.folder / "plan.json").read_text("utf-8"))
    assert {row["id"] for row in found["rows"]} <= set(kept["used"]) and len(found["rows"]) > 50
    assert found["dataset"] == opened.registry.get(done.id).dataset and found["parents"][0]["kind"] == "base"
    assert Standing(settings.standing).datasets() == [found["dataset"]]
    assert answered_by(opened.database, "nothing") == ""
    (entry,) = [entry for entry in Audit(opened.database).entries(thing=done.id) if entry.verb == "retrain"]
    assert entry.facts["dataset"] == found["dataset"] and entry.facts["promoted"] is True
    assert "river" not in json.dumps(entry.facts), "ids and digests, no words"
    page = (done.folder / "report.html").read_text("utf-8")
    assert done.id in page and "<script" not in page
    assert not broken_off(opened).exists(), "an old broken-off run made room"
    assert any(entry.verb == "prune" for entry in Audit(opened.database).entries(thing="models"))
    assert plan(school.school(opened)).to_json() == json.loads(json.dumps(kept)), "the plan says what was used"
    assert {row["id"]: row["part"] for row in found["rows"]} == {
        id: "held_out" if id in kept["held_out"] else "train" for id in kept["used"]
    }
    assert not [path for path in settings.runs.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
async def test_a_model_that_was_damaged_or_removed_is_made_whole_again(opened: Appliance, done: TuneResult) -> None:
    path = opened.registry.folder(done.id) / "adapter.gguf"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    told: list[str] = []

    def on_progress(stage: str, *_rest: Any) -> None:
        told.append(stage)

    with pytest.raises(ModelUnavailable):
        opened.registry.verify(done.id)
    await retrain(school.school(opened), recipe=RECIPE, on_progress=on_progress)
    assert opened.registry.verify(done.id) and "register" in told and "train" not in told
    told.clear()
    shutil.rmtree(opened.registry.folder(done.id))  # what `models remove` leaves
    await retrain(school.school(opened), recipe=RECIPE, on_progress=on_progress)
    assert opened.registry.verify(done.id) and "register" in told and "train" not in told


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


PLANT = "What does part number {} of the long green plant in our book do?"
BEETLE = "How many legs has beetle number {} that I found below the old stone?"


def planned_rows() -> list[dict[str, Any]]:
    """40 rows, 40 more that ask nearly the same as those and get other answers, and 20 that were rated down."""
    made = []
    for number in range(40):
        first, last = f"Which leaf is nearest to part {number}?", f"Look below it, and name {number} things that you see there."
        asked = PLANT.format(f"{number} {chr(97 + number % 26) * 3} {chr(97 + number // 2 % 26) * 4}")
        made.append({"id": f"a{number}", "messages": [said("user", asked), said("assistant", first)]})
        made.append({"id": f"b{number}", "messages": [said("user", f"{asked} Please."), said("assistant", last)]})
    for number in range(20):
        asked = PLANT.format(f"{number} {chr(97 + number % 26) * 3} {chr(97 + number // 2 % 26) * 4}")
        question = f"{asked} Now!" if number % 2 else BEETLE.format(f"{number} {chr(97 + number) * 3}")
        messages = [said("user", question), said("assistant", f"{number} of them, {number} in all.")]
        made.append({"id": f"d{number}", "messages": messages, "rating": "down", "consent": True})
    return [one | {"reviewed": "approved"} for one in made]


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


async def test_the_plan_is_what_is_used_and_preferences_stand_in_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    appliance = Appliance.open(Settings(home=tmp_path / "home", disk_reserve_mb=0))
    try:
        school.add_rows(appliance, planned_rows())
        found, chosen = plan(school.school(appliance)), select(school.school(appliance))
        counts = found.counts()
        assert counts["near_held_out"] >= 3 and len(found.examples) == len(chosen.examples) - counts["near_held_out"]
        assert not appliance.settings.runs.exists(), "nothing is changed"
        kept: dict[str, Any] = {}

        async def make(work: Any) -> None:
            kept["work"], kept["plan"] = work, json.loads((work.run.path / "plan.json").read_text("utf-8"))
            kept["parts"] = ExampleStore(appliance.database).rows_of(work.data.digest)
            raise GateNotPassed("enough", "")

        (tmp_path / "base").mkdir()
        (tmp_path / "base" / "model.gguf").write_bytes(b"base")
        appliance.registry.add(tmp_path / "base", id="base", kind="base", title="base", licence="MIT", context=64)
        monkeypatch.setattr(pipeline, "base_to_tune", lambda registry, _asked: registry.get("base"))
        monkeypatch.setattr(pipeline, "make", make)
        with pytest.raises(GateNotPassed, match="enough"):
            await retrain(school.school(appliance), recipe=dataclasses.replace(RECIPE, objective="kto"))
    finally:
        await appliance.close()
    data, parts = kept["work"].data, kept["parts"]
    assert found.to_json() == kept["plan"]
    assert found.to_json()["used"] == [one.id for one in chosen.examples if one.id in parts]
    assert found.held_out == [one.id for one in data.held_out]
    given = {row["id"] for row in kept["work"].preferences}
    assert given == {one["id"] for one in found.thumbs} and given == {id for id, part in parts.items() if part == "preference"}
    assert {f"d{number}" for number in range(0, 20, 2)} <= given, "nothing is judged by questions about beetles"
    near = {f"d{one.id[1:]}" for one in data.held_out if int(one.id[1:]) % 2 and int(one.id[1:]) < 20}
    assert near and not near & given, "they ask what the result is judged by"


def test_the_whole_plan_names_every_row_and_its_reason(tmp_path: Path) -> None:
    appliance = Appliance.open(Settings(home=tmp_path / "home", disk_reserve_mb=0))
    try:
        school.add_rows(appliance, planned_rows())
        found = plan(school.school(appliance))
    finally:
        asyncio.run(appliance.close())
    text = "\n".join(found.lines(every=True))
    words = set(text.replace(",", " ").split())
    assert {one["id"] for one in planned_rows()} <= words
    assert all(sentence.split(",")[0][:40] in " ".join(text.split()) for _, _, sentence in found.refused)
    assert "near a held-out conversation" in text and "These judge the result:" in text
    assert max(len(line) for line in text.split("\n") if line.startswith("    ")) <= 128 and len(found.lines()) < 12


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
    monkeypatch.setattr(steps, "gpus_here", lambda: 1)
    asked: list[bool] = []

    class Tuner:
        def __init__(self, _settings: Settings) -> None: ...

        async def fine_tune(self, *_words: Any, gpu: bool, **_more: Any) -> None:
            asked.append(gpu)
            raise Unsupported("Too large for the processor.", "Use a GPU.")

    monkeypatch.setattr(steps, "HuggingFaceTuner", Tuner)
    with pytest.raises(Busy, match="needs the GPU") as caught:
        await retrain(School(settings, opened.registry, opened.database), recipe=Recipe(**school.RECIPE | {"seed": 8}))  # type: ignore[arg-type]
    assert asked == [False] and 3600 < caught.value.retry_after <= 3 * 3600 + 1
    settings = opened.settings.model_copy(update={"gpu_window": f"{hour:02d}:00-{(hour + 2) % 24:02d}:00"})
    with pytest.raises(Unsupported):
        await retrain(School(settings, opened.registry, opened.database), recipe=Recipe(**school.RECIPE | {"seed": 8}))  # type: ignore[arg-type]
    assert asked == [False, True]
