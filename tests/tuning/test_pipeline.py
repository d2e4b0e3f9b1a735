"""What may take the place of what serves, what may be learned from, and which names can be: without training anything."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest

from appliance.app import Appliance
from appliance.cli.worker import handlers
from appliance.engine.handler import Message
from appliance.errors import BadInput, GateNotPassed
from appliance.registry import Registry
from appliance.settings import Settings
from appliance.tuning import dataset, pipeline
from appliance.tuning.dataset import Dataset
from appliance.tuning.examples import Example
from appliance.tuning.huggingface import silent
from appliance.tuning.pipeline import bring_into_service, finish, trainable, tune
from appliance.tuning.recipe import Recipe
from appliance.tuning.report import Figure, Report
from appliance.tuning.run_folder import RunFolder, only_run
from appliance.tuning.screening import Screen
from appliance.tuning.standing import Standing
from appliance.tuning.steps import Work


def example(number: int, question: str = "", reply: str = "") -> Example:
    asked = question or f"What does number {number} in our exercise book about plants really mean?"
    answer = reply or f"Which word of line {number} do you know already, and which {number * 7} do you not?"
    return Example(f"t{number}", (Message("user", asked), Message("assistant", answer)))


def add(registry: Registry, id: str, base: str | None = None) -> None:
    folder = registry.root.parent / f"made-{id}"
    folder.mkdir(parents=True)
    (folder / ("adapter.gguf" if base else "model.gguf")).write_bytes(id.encode() * 50)
    kind: Any = "adapter" if base else "base"
    registry.add(folder, id=id, kind=kind, title=id, licence="MIT", context=64, base=base, parents=(base,) if base else ())


def report(baseline: str) -> Report:
    figure = Figure(-0.1, -0.2, -0.05)
    return Report("new", baseline, 20, 200, figure, figure, figure, True, [])


@pytest.fixture
def registry(settings: Settings) -> Registry:
    """Two bases, "small" with an adapter "old" and the candidate "new", and "large"."""
    registry = Registry(settings.models)
    for id, base in (("small", None), ("large", None), ("old", "small"), ("new", "small")):
        add(registry, id, base)
    return registry


@pytest.fixture
def work(settings: Settings, registry: Registry) -> Callable[..., Work]:
    def make(withdrawn: Callable[[], Collection[str]] = tuple) -> Work:
        run = RunFolder(settings.runs / "run")
        data = dataset.build([example(number) for number in range(60)], run.path / "data")
        small = registry.get("small")
        return Work(settings, registry, small, run, data, Recipe(), "new", silent, withdrawn=withdrawn)

    return make


class Promotions:
    def __init__(self, registry: Registry) -> None:
        self.ids: list[str] = []
        self._registry = registry

    async def __call__(self, id: str) -> None:
        self.ids.append(id)
        self._registry.promote(id)


async def test_what_stands_on_another_base_is_not_replaced_unseen(work: Callable[..., Work], registry: Registry) -> None:
    registry.promote("large")
    promote = Promotions(registry)
    one = work()
    assert one.rival().id == "small"
    barred = await bring_into_service(one, report("small"), promote)
    assert "another base" in barred and "--accept" in barred and "large serves" in barred
    assert not promote.ids and one.rival().id == "small" and registry.aliases()["champion"] == "large"
    result = finish(one, report("small"), barred)
    assert not result.promoted and result.reasons == [barred]
    assert json.loads((one.run.path / "result.json").read_text("utf-8"))["reasons"] == [barred]
    assert not Standing(one.settings.standing).items()


async def test_who_came_to_serve_while_the_gate_judged_must_be_met(work: Callable[..., Work], registry: Registry) -> None:
    registry.promote("old")
    promote = Promotions(registry)
    one = work()
    barred = await bring_into_service(one, report("small"), promote)
    assert "was judged against small" in barred and "old came to serve" in barred and not promote.ids
    assert await bring_into_service(one, report("old"), promote) == "" and promote.ids == ["new"]
    assert registry.aliases()["champion"] == "new"


async def test_a_lost_champion_does_not_keep_the_next_one_out(work: Callable[..., Work], registry: Registry) -> None:
    registry.promote("old")
    (registry.root / "old" / "manifest.json").write_text("{", "utf-8")
    assert work().rival().id == "small"
    assert await bring_into_service(work(), report("small"), Promotions(registry)) == ""


async def test_rows_withdrawn_meanwhile_stop_it_and_never_come_to_stand(work: Callable[..., Work], registry: Registry) -> None:
    with pytest.raises(GateNotPassed, match="1 rows were withdrawn"):
        await bring_into_service(work(lambda: ["t1"]), report("small"), Promotions(registry))
    assert registry.aliases() == {}
    first = work().data.held_out[0].id
    told: list[list[str]] = [[], [first]]  # withdrawn while the engine was loading it
    one = work(lambda: told.pop(0))
    assert await bring_into_service(one, report("small"), Promotions(registry)) == ""
    stands = {item.id for item in Standing(one.settings.standing).items()}
    assert stands == {item.id for item in one.data.held_out} - {first} and stands


def thumb(one: Example, good: bool) -> dict[str, Any]:
    talk = [{"role": turn.role, "content": turn.content} for turn in one.messages[:-1]]
    return {"id": one.id, "messages": talk, "completion": one.messages[-1].content, "good": good}


def test_no_preference_is_near_what_the_result_is_judged_by(tmp_path: Path) -> None:
    examples = [example(number) for number in range(60)]
    built = dataset.build(examples, tmp_path / "data")
    train, held_out = built.train[0], built.held_out[0]
    out = Dataset(built.folder, built.train[1:], built.held_out, built.card)  # the first fell out when it was made
    asked = example(900, "Why do leaves turn red and yellow and brown in autumn?", "What do they lose then?")
    question = held_out.messages[0].content
    disliked = [
        example(901, f"Please tell me: {question}", "It means nothing at all, go away."),
        example(902, f"Please: {asked.messages[0].content}", "Because they do."),
        example(903, "How many legs has a beetle that I found below a stone?", "Six."),
    ]
    rows = [thumb(built.train[1], True), thumb(train, True), thumb(held_out, True), *(thumb(one, False) for one in disliked)]
    assert [row["id"] for row in trainable(rows, examples, out, [asked])] == [built.train[1].id, "t903"]
    pair = {"id": train.id, "messages": rows[1]["messages"], "chosen": "a", "rejected": "b"}
    assert trainable([pair], examples, out, []) == [] and trainable([pair], examples, built, []) == [pair]


@pytest.mark.parametrize("name", ["../../escaped", "Named", "champion", "", "a/b", "quotes"])
async def test_a_name_that_cannot_be_is_refused_before_anything_is_read(settings: Settings, name: str) -> None:
    with pytest.raises(BadInput, match=r"cannot be the name|reserved"):
        await tune(settings, Registry(settings.models), examples=Path("/nowhere"), name=name)
    assert not settings.runs.exists() and not settings.run.exists()


def test_no_verdict_is_written_outside_its_run(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "runs" / "one")
    run.named("first")
    with pytest.raises(BadInput):
        run.named("../../../escaped")
    assert run.named("second").path == run.path / "named" / "second" and not (tmp_path / "escaped").exists()


async def test_a_file_given_to_the_worker_is_screened(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    appliance = Appliance.open(settings)
    given: dict[str, Any] = {}

    async def instead(*_words: Any, **more: Any) -> Any:
        given.update(more)
        raise BadInput("enough")

    monkeypatch.setattr(pipeline, "tune", instead)
    monkeypatch.setattr(Appliance, "ensure_starter", lambda _self: None)
    words = {"examples": "x", "base": None, "recipe": {}, "name": None, "limit": None, "promote": True}

    class Job:
        payload = words

    try:
        with pytest.raises(BadInput, match="enough"):
            await handlers(appliance)["tune huggingface"](Job(), lambda _progress: None)  # type: ignore[arg-type]
    finally:
        await appliance.close()
    assert isinstance(given["screen"], Screen)


async def test_what_is_screened_is_what_is_made_into_a_dataset(
    settings: Settings, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The screen's rows and its record are what the run stands on."""
    asked: list[str] = []

    class Three:
        def read(self, path: Path) -> list[Example]:
            asked.append(path.name)
            return [example(number) for number in range(60)]

        def facts(self) -> dict[str, Any]:
            return {"screened": {"withdrawn": 4}}

        def record(self, data: Dataset) -> Callable[[], Collection[str]]:
            asked.append(data.digest)
            return lambda: ["t1"]

    async def made(work: Work) -> Report:
        assert asked == ["x.jsonl", work.data.digest], "recorded before anything is learned"
        assert work.data.card["screened"] == {"withdrawn": 4}
        return report("small")

    monkeypatch.setattr(pipeline, "make", made)
    monkeypatch.setattr(pipeline, "base_to_tune", lambda registry, _asked: registry.get("small"))
    roomy = settings.model_copy(update={"disk_reserve_mb": 0})
    with pytest.raises(GateNotPassed, match="withdrawn"):
        await tune(roomy, registry, examples=Path("x.jsonl"), screen=Three())  # type: ignore[arg-type]
    with only_run(settings.run / "tune.lock"):
        pass  # and lets go of it
