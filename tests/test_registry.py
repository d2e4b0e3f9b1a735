"""The registry: nothing damaged is served, nothing is half there, going back is one step."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from appliance.errors import BadInput, Conflict, ModelUnavailable, NotFound
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
        process = multiprocessing.get_context("spawn").Process(target=_promote_for_ever, args=(registry.root,))
        process.start()
        time.sleep(0.6 + round_ * 0.037)
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
    assert registry.for_task("teacher_responder", "history") is None
    registry.promote("general")
    registry.choose("teacher_responder/History", "history")
    registry.choose("student_reaction", "pupils")
    chosen = {
        (task, subject): manifest.id
        for task in ("teacher_responder", "student_reaction")
        for subject in ("", "history", "Mathematics")
        if (manifest := registry.for_task(task, subject))
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
