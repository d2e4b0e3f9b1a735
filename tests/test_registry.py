"""The registry: nothing damaged is served, nothing is half there, going back is one step."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.errors import BadInput, Conflict, ModelUnavailable, NotFound
from appliance.files import write_atomically
from appliance.registry import Manifest, Registry


def add(registry: Registry, name: str, *, base: str | None = None, words: bytes = b"weights") -> Manifest:
    folder = registry.root.parent / f"made-{name}"
    (folder / "hf").mkdir(parents=True)
    (folder / ("adapter.gguf" if base else "model.gguf")).write_bytes(words)
    (folder / "hf" / "config.json").write_text("{}")
    kind = "adapter" if base else "base"
    return registry.add(folder, id=name, kind=kind, title=name, licence="MIT", context=1024, base=base)  # type: ignore[arg-type]


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "models")


def test_added_model_is_found_with_the_digest_of_every_file(registry: Registry) -> None:
    add(registry, "base")
    manifest = registry.get("base")
    assert set(manifest.files) == {"model.gguf", "hf/config.json"}
    assert manifest.bytes == len(b"weights") + 2
    assert [m.id for m in registry.list()] == ["base"]
    registry.verify("base")


def test_one_changed_byte_is_found_even_with_the_same_length(registry: Registry) -> None:
    add(registry, "base")
    registry.verify("base")
    (registry.folder("base") / "model.gguf").write_bytes(b"weighTs")
    with pytest.raises(ModelUnavailable, match=r"model\.gguf"):
        registry.verify("base")
    with pytest.raises(ModelUnavailable):
        registry.promote("base")


def test_a_damaged_base_stops_the_adapter_that_needs_it(registry: Registry) -> None:
    add(registry, "base")
    add(registry, "tuned", base="base")
    (registry.folder("base") / "model.gguf").unlink()
    with pytest.raises(ModelUnavailable, match="base"):
        registry.promote("tuned")
    assert registry.champion() is None


def test_promotion_and_rollback(registry: Registry) -> None:
    add(registry, "one")
    add(registry, "two")
    with pytest.raises(NotFound):
        registry.rollback()
    registry.promote("one")
    registry.promote("two")
    assert registry.aliases() == {"champion": "two", "previous": "one"}
    assert registry.get("default").id == "two"
    assert registry.promote("two").aliases == ("champion",), "promoting it again must not lose what to go back to"
    assert registry.rollback().id == "one"
    assert registry.get("previous").id == "two"


def test_the_same_files_under_the_same_name_are_one_model(registry: Registry) -> None:
    add(registry, "one")
    add(registry, "one")
    with pytest.raises(Conflict, match="another model"):
        add(registry, "one", words=b"other")
    assert len(registry.list()) == 1


@pytest.mark.parametrize("name", ["../x", "a/b", "", "UPPER", "champion", "default", "quotes", ".hidden", "x" * 65])
def test_names_that_are_refused(registry: Registry, name: str, tmp_path: Path) -> None:
    folder = tmp_path / "made"
    folder.mkdir()
    with pytest.raises(BadInput):
        registry.add(folder, id=name, kind="base", title="t", licence="MIT", context=1)
    with pytest.raises(NotFound):
        registry.get(name)


def test_links_are_not_followed(registry: Registry, tmp_path: Path) -> None:
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "model.gguf").symlink_to("/etc/passwd")
    with pytest.raises(BadInput, match="link"):
        registry.add(folder, id="sly", kind="base", title="t", licence="MIT", context=1)


def test_a_model_that_is_needed_stays(registry: Registry) -> None:
    add(registry, "base")
    add(registry, "tuned", base="base")
    with pytest.raises(Conflict, match="tuned"):
        registry.remove("base")
    registry.promote("tuned")
    with pytest.raises(Conflict, match="champion"):
        registry.remove("tuned")
    add(registry, "spare")
    registry.remove("spare")
    assert [m.id for m in registry.list()] == ["base", "tuned"]


def test_damaged_records_are_named_not_guessed(registry: Registry) -> None:
    add(registry, "one")
    add(registry, "two")
    registry.promote("one")
    (registry.folder("two") / "manifest.json").write_text('{"id": "two"')
    with pytest.raises(BadInput, match="damaged"):
        registry.get("two")
    assert [m.id for m in registry.list()] == ["one"]
    (registry.root / "active.json").write_text("{")
    with pytest.raises(ModelUnavailable, match=r"active\.json"):
        registry.champion()
    registry.promote("one")
    assert registry.get("champion").id == "one"


def _promote_for_ever(root: Path) -> None:
    registry = Registry(root)
    while True:
        registry.promote("one")
        registry.promote("two")


def test_kill_during_promotion_leaves_one_of_the_two(registry: Registry) -> None:
    add(registry, "one")
    add(registry, "two")
    registry.promote("one")
    for round_ in range(5):
        write_atomically(registry.root / "active.json", json.dumps({"champion": "one"}))
        process = multiprocessing.get_context("spawn").Process(target=_promote_for_ever, args=(registry.root,))
        process.start()
        ends = time.monotonic() + 30
        while "previous" not in registry.aliases() and time.monotonic() < ends:  # it takes its time to start on a busy machine
            time.sleep(0.01)
        time.sleep(0.1 + round_ * 0.037)
        assert process.pid
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        active = json.loads((registry.root / "active.json").read_text())
        assert {active["champion"], active["previous"]} == {"one", "two"}
        assert Registry(registry.root).champion() is not None


def test_a_damaged_champion_is_stepped_back_from_and_the_alarm_stays_until_somebody_chooses(registry: Registry) -> None:
    add(registry, "one")
    add(registry, "two")
    registry.promote("one")
    registry.promote("two")
    assert registry.step_back() is None and registry.damaged() is None, "nothing is damaged"
    (registry.folder("two") / "model.gguf").write_bytes(b"weighTs")
    stand_in = registry.step_back()
    assert stand_in is not None and stand_in.id == "one"
    assert registry.damaged() == "two"
    assert registry.aliases() == {"champion": "one"}, "nobody may go back to what is damaged"
    registry.promote("one")
    assert registry.damaged() is None


def test_there_is_no_step_back_to_a_model_that_is_damaged_as_well(registry: Registry) -> None:
    add(registry, "one")
    add(registry, "two")
    registry.promote("one")
    registry.promote("two")
    for name in ("one", "two"):
        (registry.folder(name) / "model.gguf").write_bytes(b"weighTs")
    assert registry.step_back() is None
    assert registry.aliases() == {"champion": "two", "previous": "one"}


def test_a_task_and_a_subject_can_have_a_model_of_their_own(registry: Registry) -> None:
    for name in ("general", "history", "pupils"):
        add(registry, name)
    assert registry.for_task("teacher_responder", "history") == []
    registry.promote("general")
    registry.choose("teacher_responder/History", "history")
    registry.choose("student_reaction", "pupils")
    chosen = {
        (task, subject): registry.for_task(task, subject)[0]
        for task in ("teacher_responder", "student_reaction")
        for subject in ("", "history", "Mathematics")
    }
    assert chosen == {
        ("teacher_responder", ""): "general",
        ("teacher_responder", "history"): "history",
        ("teacher_responder", "Mathematics"): "general",
        ("student_reaction", ""): "pupils",
        ("student_reaction", "history"): "pupils",
        ("student_reaction", "Mathematics"): "pupils",
    }
    assert registry.get("history").aliases == ("teacher_responder/history",)
    with pytest.raises(Conflict, match="teacher_responder/history"):
        registry.remove("history")
    registry.choose("teacher_responder/history", None)
    registry.remove("history")


@pytest.mark.parametrize("task", ["", "../x", "a b", "teacher_responder/", "teacher_responder/../x", "x/y/z"])
def test_a_task_has_a_plain_name(registry: Registry, task: str) -> None:
    add(registry, "one")
    with pytest.raises(BadInput, match="name of a task"):
        registry.choose(task, "one")


def test_a_lost_manifest_of_the_champion_is_got_past_by_every_command(registry: Registry) -> None:
    for name in ("one", "two", "three"):
        add(registry, name)
    registry.promote("one")
    registry.promote("two")
    for damage in ('{"id": "two"', json.dumps({"id": "one"}), "[]", None):
        path = registry.root / "two" / "manifest.json"
        path.write_text(damage) if damage is not None else path.unlink()
        assert registry.ids() == ["one", "three", "two"] and registry.id_of("default") == "two"
        with pytest.raises((BadInput, NotFound)):
            registry.champion()
    with pytest.raises(Conflict, match="champion"):
        registry.remove("two")
    assert registry.promote("three").id == "three"
    assert registry.aliases() == {"champion": "three"}, "nobody goes back to what cannot be read"
    registry.remove("two")
    assert registry.ids() == ["one", "three"]


def test_a_champion_without_a_readable_manifest_is_stepped_back_from(registry: Registry) -> None:
    add(registry, "one")
    add(registry, "two")
    registry.promote("one")
    registry.promote("two")
    (registry.root / "two" / "manifest.json").write_text("{")
    stand_in = registry.step_back()
    assert stand_in is not None and stand_in.id == "one" and registry.damaged() == "two"
    assert registry.for_task("teacher_responder") == ["one"]


def test_a_manifest_of_another_model_is_not_believed(registry: Registry) -> None:
    add(registry, "one")
    add(registry, "two", words=b"other")
    (registry.root / "two" / "manifest.json").write_bytes((registry.root / "one" / "manifest.json").read_bytes())
    with pytest.raises(BadInput, match="that of 'one'"):
        registry.get("two")


@pytest.mark.parametrize("damage", ["file", "manifest", "no manifest"])
def test_a_damaged_model_is_mended_by_adding_it_again(registry: Registry, damage: str) -> None:
    add(registry, "one")
    file = registry.root / "one" / ("model.gguf" if damage == "file" else "manifest.json")
    file.unlink() if damage == "no manifest" else file.write_bytes(b"weighTs")
    mended = add(registry, "one")
    assert registry.verify("one") == mended
    assert (registry.root / "one" / "model.gguf").read_bytes() == b"weights"
    assert [path.name for path in registry.root.iterdir() if path.name != ".lock"] == ["one"]


def test_a_damaged_champion_is_mended_with_its_own_files_and_never_with_unknown_ones(registry: Registry) -> None:
    add(registry, "one")
    registry.promote("one")
    (registry.root / "one" / "model.gguf").write_bytes(b"weighTs")
    add(registry, "one")
    assert registry.verify("champion").id == "one"
    (registry.root / "one" / "manifest.json").write_text("{")
    with pytest.raises(BadInput, match="damaged"):
        add(registry, "one", words=b"never judged")
    assert (registry.root / "one" / "model.gguf").read_bytes() == b"weights"


@pytest.mark.parametrize("lost", ["model.gguf", "manifest.json"])
def test_a_damaged_model_of_a_task_gives_way_to_the_champion_and_the_alarm_stays(registry: Registry, lost: str) -> None:
    for name in ("general", "history"):
        add(registry, name)
    registry.promote("general")
    for task in ("teacher_responder/history", "student_reaction"):
        registry.choose(task, "history")
    assert registry.give_up("history") == [] and registry.damaged() is None, "nothing is damaged"
    (registry.root / "history" / lost).write_bytes(b"weighTs")
    assert registry.for_task("student_reaction") == ["history", "general"]
    assert registry.give_up("history") == ["student_reaction", "teacher_responder/history"]
    assert registry.damaged() == "history" and registry.aliases() == {"champion": "general"}
    assert registry.for_task("student_reaction") == registry.for_task("teacher_responder", "History") == ["general"]
    registry.choose("student_reaction", "general")
    assert registry.damaged() == "history"
    registry.choose("teacher_responder/history", None)
    assert registry.damaged() is None and registry.aliases() == {"champion": "general"}


@pytest.mark.parametrize("serve", [lambda r: r.promote("two"), lambda r: r.choose("teacher_responder", "two")])
def test_what_is_removed_meanwhile_is_not_served(registry: Registry, serve: Callable[[Registry], object]) -> None:
    """Another process removes the model after it was verified, before its name is written down."""
    add(registry, "one")
    add(registry, "two")
    registry.promote("one")
    locks = 0
    real = registry._lock

    @contextmanager
    def late() -> Iterator[None]:
        nonlocal locks
        locks += 1
        Registry(registry.root).remove("two")
        with real():
            yield

    registry._lock = late  # type: ignore[method-assign]
    with pytest.raises(NotFound):
        serve(registry)
    assert locks == 1 and registry.aliases() == {"champion": "one"} and registry.tasks() == {}


def test_a_task_is_given_to_no_adapter_whose_base_is_damaged(registry: Registry) -> None:
    add(registry, "base")
    add(registry, "tuned", base="base")
    (registry.root / "base" / "model.gguf").write_bytes(b"weighTs")
    with pytest.raises(ModelUnavailable, match="'base'"):
        registry.choose("teacher_responder", "tuned")


# --- models of other machines ------------------------------------------------------------------------------------------
def hosted(name: str = "far", **facts: object) -> Manifest:
    about = {"plugin": "remote", "model": "big", "urls": ["https://llm.district.example/v1"]} | facts
    return Manifest(id=name, kind="hosted", title=name, licence="unknown", context=8192, files={}, hosted=about)


def test_a_hosted_model_is_listed_verified_promoted_and_rolled_back_like_any(registry: Registry) -> None:
    add(registry, "here")
    registry.promote("here")
    made = registry.add_hosted(hosted())
    assert made.created > 0 and registry.get("far").hosted == made.hosted and registry.get("far").bytes == 0
    assert [one.id for one in registry.list()] == ["here", "far"]
    assert registry.verify("far").origin == "far"
    assert registry.promote("far").aliases == ("champion",) and registry.get("here").aliases == ("fallback", "previous")
    assert registry.choose("assessment", "far") is not None
    assert registry.judged("far", {"passed": True}).report == {"passed": True}
    with pytest.raises(Conflict):
        registry.remove("far")
    assert registry.rollback().id == "here" and registry.aliases() == {"champion": "here", "previous": "far"}
    registry.choose("assessment", None)
    registry.promote("here")
    registry.rollback()
    registry.rollback()
    assert registry.aliases() == {"champion": "here", "previous": "far"}


def test_the_last_local_model_stands_in_for_hosted_ones_and_is_kept(registry: Registry) -> None:
    add(registry, "wished")
    add(registry, "here")
    registry.add_hosted(hosted("far"))
    registry.add_hosted(hosted("farther"))
    registry.add_hosted(hosted("own", fallback="wished"))
    for name in ("here", "far", "farther"):
        registry.promote(name)
    assert registry.aliases() == {"champion": "farther", "previous": "far", "fallback": "here"}
    assert registry.for_task("assessment") == ["farther", "far", "here"]
    with pytest.raises(Conflict, match="fallback"):
        registry.remove("here")
    assert registry.promote("own").aliases == ("champion",) and registry.get("fallback").id == "wished"
    registry.promote("here")
    assert registry.aliases() == {"champion": "here", "previous": "own"}


def test_the_same_hosted_model_again_is_brought_up_to_date_and_another_is_a_conflict(registry: Registry) -> None:
    first = registry.add_hosted(hosted())
    registry.judged("far", {"passed": True})
    again = registry.add_hosted(hosted(urls=["https://new.example/v1"]))
    assert (again.created, again.report) == (first.created, {"passed": True})
    assert registry.get("far").hosted == hosted(urls=["https://new.example/v1"]).hosted
    with pytest.raises(Conflict, match="another model"):
        registry.add_hosted(hosted(model="other"))
    add(registry, "here")
    with pytest.raises(Conflict):
        registry.add_hosted(hosted("here"))
    registry.remove("far")
    assert [one.id for one in registry.list()] == ["here"]


WRONG = [{"kind": "base"}, {"hosted": None}, {"hosted": {"plugin": "x"}}, {"base": "here"}, {"id": "A"}]


@pytest.mark.parametrize("wrong", WRONG)
def test_a_hosted_model_that_cannot_be_reached_is_refused(registry: Registry, wrong: dict[str, object]) -> None:
    with pytest.raises(BadInput):
        registry.add_hosted(replace(hosted(), **wrong))  # type: ignore[arg-type]
    assert registry.list() == []
