"""`appliance models` and `appliance audit` at the command line, with the real engine where a model is served."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.app import Appliance
from appliance.engine.handler import Health
from appliance.errors import BadInput, GateNotPassed, ModelUnavailable
from appliance.registry import Registry
from appliance.settings import Settings
from appliance.tables import dataset_rows
from appliance.tuning.store import ExampleStore

APPLIANCE = str(Path(sys.executable).parent / "appliance")


def run(home: Path, *arguments: str, code: int = 0) -> dict[str, Any]:
    command = [APPLIANCE, "--home", str(home), *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    document: dict[str, Any] = json.loads(done.stdout) if done.stdout else {"error": done.stderr}
    return document


def test_the_catalogue_is_fitted_to_this_machine(tmp_path: Path) -> None:
    told = run(tmp_path, "models", "list", "--fit")
    assert told["machine"]["memory"] > 0 and len(told["models"]) >= 12
    assert {row["serve"] for row in told["models"]} <= {"yes", "slow", "no"}


def add(home: Path, name: str, gguf: Path, report: dict[str, Any] | None) -> None:
    folder = home / f"made-{name}"
    folder.mkdir(parents=True)
    shutil.copyfile(gguf, folder / "model.gguf")
    Registry(Settings(home=home).models).add(
        folder, id=name, kind="base" if report is None else "adapter", title=name, licence="MIT", context=512, report=report
    )


def small(appliance: Appliance, id: str, *, base: str | None = None, starter: bool = False, **facts: Any) -> None:
    """A model that no engine is asked to load."""
    folder = appliance.settings.home / f"made-{id}"
    folder.mkdir()
    (folder / ("adapter.gguf" if base else "model.gguf")).write_text(id)
    kind, parents = ("adapter", (base,)) if base else ("base", ())
    appliance.registry.add(
        folder, id=id, kind=kind, title=id, licence="MIT", context=512, base=base, parents=parents, starter=starter, **facts
    )  # type: ignore[arg-type]


def passed(against: str) -> dict[str, Any]:
    return {"passed": True, "baseline": against, "reasons": []}


class Engine:
    """In place of the engine's client: loads nothing, and lets something happen meanwhile."""

    def __init__(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        self.meanwhile = meanwhile

    async def health(self) -> Health:
        return Health(True, "", "")

    async def load(self, _name: str) -> None:
        self.meanwhile()

    async def close(self) -> None:
        pass


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Appliance]:
    appliance = Appliance.open(Settings(home=tmp_path / "home"))
    appliance.engine = Engine()  # type: ignore[assignment]
    small(appliance, "base")
    small(appliance, "first", base="base", report=passed("base"))
    small(appliance, "second", base="base", report=passed("base"))
    yield appliance
    appliance.library.close()
    appliance.database.close()


async def test_a_model_serves_without_a_word_only_where_it_met_what_serves(box: Appliance) -> None:
    await box.promote("first")  # nothing serves
    await box.promote("base")
    await box.promote("first")
    with pytest.raises(GateNotPassed, match="passed the gate against base, but first serves now") as refused:
        await box.promote("second")
    assert "models evaluate second" in refused.value.hint and "--accept" in refused.value.hint
    with pytest.raises(GateNotPassed):
        box.choose("teacher_responder", "second")
    await box.promote("first")  # what serves may be named again
    box.registry.judged("second", passed("first"))
    await box.promote("second")
    assert (await box.rollback()).id == "first", "to go back is free"
    await box.promote("second")
    small(box, "third", base="base", report=passed("base"))
    await box.promote("third", accept="tried in 7B")
    assert box.registry.aliases() == {"champion": "third", "previous": "second"}


async def test_a_small_tuned_model_does_not_take_the_place_of_one_on_another_base(box: Appliance) -> None:
    small(box, "starter", starter=True)
    small(box, "tuned-starter", base="starter", starter=True, report=passed("starter"))
    await box.promote("starter")
    await box.promote("first")  # beat its own base, and the starter alone serves
    for serves in ("first", "base"):
        await box.promote(serves)
        with pytest.raises(GateNotPassed, match=f"but {serves} serves now") as refused:
            await box.promote("tuned-starter")
        assert "models evaluate" not in refused.value.hint, "there it is compared with its own base again"


async def test_what_comes_to_serve_while_a_model_loads_is_what_it_must_have_met(box: Appliance) -> None:
    await box.promote("base")
    box.engine = Engine(lambda: box.registry.promote("second"))  # type: ignore[assignment]
    with pytest.raises(GateNotPassed, match="but second serves now"):
        await box.promote("first")
    assert box.registry.aliases()["champion"] == "second"


def learned(box: Appliance, digest: str, rows: list[str]) -> None:
    with box.database.begin() as connection:
        connection.execute(
            dataset_rows.insert(), [{"dataset": digest, "example": id, "author": "", "part": "train"} for id in rows]
        )


def withdraw(box: Appliance, tmp_path: Path) -> None:
    said = [{"role": "user", "content": "How do I halve 30?"}, {"role": "assistant", "content": "What is half of 20?"}]
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"id": "row-1", "messages": said, "author": "Mo", "licence": "CC0-1.0"}) + "\n")
    store = ExampleStore(box.database)
    store.import_rows(file, reviewer="anna")
    assert list(store.withdraw("Mo", by="anna")) == ["row-1"]


async def test_a_model_made_of_withdrawn_rows_serves_only_by_somebodys_decision(box: Appliance, tmp_path: Path) -> None:
    learned(box, "d1", ["row-1", "row-2"])
    small(box, "had", base="base", report=passed("first"), dataset="d1")
    await box.promote("first")
    await box.promote("had")
    await box.promote("first", accept="for the test")
    withdraw(box, tmp_path)
    for again in (lambda: box.promote("had"), box.rollback):
        with pytest.raises(GateNotPassed, match="1 rows of it have been taken back"):
            await again()
    with pytest.raises(GateNotPassed, match="taken back"):
        box.choose("teacher_responder", "had")
    assert box.registry.aliases()["champion"] == "first"
    assert (await box.promote("had", accept="asked again, agreed")).id == "had"


async def test_a_row_that_is_withdrawn_while_the_model_loads_stops_it(box: Appliance, tmp_path: Path) -> None:
    learned(box, "d1", ["row-1"])
    small(box, "had", base="base", report=passed("base"), dataset="d1")
    await box.promote("base")
    box.engine = Engine(lambda: withdraw(box, tmp_path))  # type: ignore[assignment]
    with pytest.raises(GateNotPassed, match="taken back"):
        await box.promote("had")
    assert box.registry.aliases() == {"champion": "base"}


@pytest.mark.parametrize("damage", ["{", None])
async def test_a_champion_whose_manifest_is_lost_is_got_past(box: Appliance, damage: str | None) -> None:
    def break_it(id: str) -> None:
        path = box.registry.root / id / "manifest.json"
        path.write_text(damage) if damage is not None else path.unlink()

    small(box, "another")
    await box.promote("base")
    await box.promote("first")
    break_it("first")
    assert await asyncio.to_thread(box._active, "teacher_responder") is not None, "the engine is asked, not the quotes"
    assert box.resolve("default").id == "base"
    assert box.registry.damaged() == "first" and box.registry.aliases() == {"champion": "base"}
    box.registry.remove("first")
    assert box.champion() is not None
    break_it("base")
    assert box.champion() is None, "nothing is left to step back to, and nothing fails for it"
    assert (await box.promote("another")).id == "another"
    entries = box.audit.entries()
    assert entries[-1].facts == {"before": "base"} and entries[-2].verb == "step back"


@pytest.mark.parametrize("lost", ["model.gguf", "manifest.json"])
async def test_a_damaged_model_of_a_task_is_replaced_by_the_champion(box: Appliance, lost: str) -> None:
    small(box, "history")
    await box.promote("base")
    box.choose("teacher_responder/history", "history")
    (box.registry.root / "history" / lost).write_text("?")
    active = box._active("teacher_responder/History")
    assert active is not None and active.id == "history"
    assert box.resolve(active.id).id == "base", "what the engine does when it is asked for it"
    after = box._active("teacher_responder/history")
    assert after is not None and after.id == "base" and box.registry.damaged() == "history"
    assert box.audit.entries()[-1].facts == {"damaged": "history", "tasks": ["teacher_responder/history"]}
    with pytest.raises((ModelUnavailable, BadInput)):
        box.resolve("history")  # asked for by its own name there is nothing in its place


def test_verify_names_what_lost_its_manifest(tmp_path: Path) -> None:
    home = tmp_path / "home"
    appliance = Appliance.open(Settings(home=home))
    for id in ("base", "other"):
        small(appliance, id)
        appliance.registry.promote(id)
    appliance.library.close()
    appliance.database.close()
    (home / "models" / "other" / "manifest.json").write_text("{")
    told = run(home, "models", "verify", code=1)
    assert told["verified"] == ["base"] and told["damaged"].keys() == {"other"} and told["serves_now"] == "base"
    assert run(home, "status", code=1)["damaged"] == "other"
    assert "no model called 'nothing'" in run(home, "models", "verify", "nothing", code=1)["error"]
    run(home, "models", "remove", "other")
    assert run(home, "models", "verify")["verified"] == ["base"]


@pytest.mark.llama
@pytest.mark.slow
def test_gate_override_damage_and_the_record_of_it(tmp_path: Path, starter_gguf: Path) -> None:
    home = tmp_path / "home"
    add(home, "base", starter_gguf, None)
    add(home, "refused", starter_gguf, {"passed": False, "baseline": "base", "reasons": ["It forgot its manners."]})
    run(home, "models", "promote", "base")
    told = run(home, "models", "promote", "refused", code=4)
    assert "It forgot its manners." in told["error"] and "--accept" in told["error"]
    run(home, "models", "choose", "teacher_responder/history", "refused", code=4)
    run(home, "models", "promote", "refused", "--accept", "tried in 7B for a week")

    path = home / "models" / "refused" / "model.gguf"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    asked = run(home, "ask", "What is a fraction?")
    assert asked["model"] == "base", "the model before it answers"
    status = run(home, "status", code=1)
    assert status["damaged"] == "refused"
    assert run(home, "models", "verify", code=1)["damaged"].keys() == {"refused"}
    run(home, "models", "choose", "teacher_responder", "base")
    run(home, "models", "promote", "base")
    assert run(home, "models", "list")["damaged"] is None

    entries = run(home, "audit", "show")["entries"]
    assert [(entry["verb"], entry["thing"]) for entry in entries] == [
        ("promote", "base"),
        ("promote", "refused"),
        ("step back", "base"),
        ("choose", "teacher_responder"),
        ("promote", "base"),
    ]
    assert entries[1]["facts"] == {"accept": "tried in 7B for a week", "before": "base"}
    assert entries[2]["facts"] == {"damaged": "refused"}
    assert run(home, "audit", "verify")["rows"] == 5
