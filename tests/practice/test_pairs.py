"""A line and the turn after it, read together: as PyTorch reads them, quickly, and a box without the model does without."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import ModelUnavailable
from appliance.practice import listening, pairs
from appliance.practice.listening import ACTIONS, ON_TASK, PAIRED

EXCHANGES = [
    ("I think it is four.", "Why do you think so?"),
    ("Can I go to the bathroom?", "Sit down, please."),
    ("è accanto al coniglio", "Almost! Which word says that it is pink? 🐇 " * 9),
    ("So you have to cut it in three, and each of them gets one. " * 12, "Okay."),
    ("", ""),
]


def kept() -> dict[str, dict[str, np.ndarray]]:
    found: dict[str, dict[str, np.ndarray]] = {kind: {} for kind in PAIRED}
    with np.load(pairs.CHANGES, allow_pickle=False) as file:
        for name in file.files:
            kind, _, rest = name.partition("/")
            found[kind][rest] = file[name].astype(np.float32)
    return found


@pytest.mark.parametrize("kind", PAIRED)
def test_the_arithmetic_is_that_of_the_published_model_with_the_changes_in_it(kind: str) -> None:
    import torch
    from transformers import AutoModel

    changed = kept()[kind]
    model = AutoModel.from_pretrained(str(pairs.published())).eval()
    cut_up = pairs.tokens(pairs.published())
    with torch.inference_mode():
        model.embeddings.token_type_embeddings.weight.copy_(torch.tensor(changed["segments"]))
        for number, layer in enumerate(model.encoder.layer):
            for which, name in pairs.PRODUCTS.items():
                low = changed[f"{number}.{which}.b"] @ changed[f"{number}.{which}.a"]
                layer.get_submodule(name).weight += torch.tensor(low)
        for pupil, teacher in EXCHANGES:
            ids, side = pairs.cut(cut_up(pupil), cut_up(teacher))
            segments = [[0] * side + [1] * (len(ids) - side)]
            seen = model(input_ids=torch.tensor([ids]), token_type_ids=torch.tensor(segments)).last_hidden_state[0].numpy()
            whole = np.concatenate([seen[0], seen[:side].mean(0), seen[side:].mean(0)])
            theirs = changed["head"] @ whole + changed["bias"]
            assert pairs.scores(kind, pupil, teacher) == pytest.approx(theirs, abs=0.05)  # of scores up to about 5
            without = changed["head"] @ np.zeros_like(whole) + changed["bias"]
            assert np.abs(theirs - without).max() > 0.2


@given(st.lists(st.integers(1000, 30000), max_size=200), st.lists(st.integers(1000, 30000), max_size=200))
def test_long_texts_are_cut_and_something_of_both_is_kept(pupil: list[int], teacher: list[int]) -> None:
    ids, side = pairs.cut(pupil, teacher)
    first, second = ids[1 : side - 1], ids[side:-1]
    assert len(ids) == min(pairs.LONGEST, len(pupil) + len(teacher) + 3)
    assert [ids[0], ids[side - 1], ids[-1]] == [pairs.START, pairs.END, pairs.END]
    assert first == pupil[len(pupil) - len(first) :] and second[: len(second) // 2] == teacher[: len(second) // 2]
    assert len(first) >= min(len(pupil), 25) and len(second) >= min(len(teacher), 25)


def test_without_the_package_the_linear_model_judges_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    alone = listening.read("Do you remember the word for tree?", "I don't know.", ())
    monkeypatch.setattr(pairs, "PACKAGE", "no_such_package")
    with caplog.at_level(logging.WARNING):
        assert pairs.scores("tutoring", "I don't know.", "Do you remember the word for tree?") is None
        assert listening.read("Do you remember the word for tree?", "I don't know.") == alone
    assert [one.message.count("not read together") for one in caplog.records] == [1], "said once, not at every turn"
    assert "tree" not in caplog.text
    with pytest.raises(ModelUnavailable, match="not installed"):
        pairs.published("no_such_package")


@pytest.mark.parametrize("harm", ["missing", "cut off", "no file of ours", "a set is missing", "a layer is missing"])
def test_damaged_changes_are_as_none(harm: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "pairs.npz"
    if harm == "cut off":
        file.write_bytes(pairs.CHANGES.read_bytes()[:50_000])
    elif harm == "no file of ours":
        file.write_bytes(b"\x00" * 500)
    elif harm == "a set is missing":
        np.savez(file, **{f"lessons/{name}": value for name, value in kept()["lessons"].items()})
    elif harm == "a layer is missing":
        some = {name: value for name, value in kept()["tutoring"].items() if not name.startswith("5.")}
        np.savez(file, **{f"tutoring/{name}": value for name, value in some.items()})
    monkeypatch.setattr(pairs, "CHANGES", file)
    assert pairs.scores("tutoring", "I don't know.", "Look again.") is None
    assert listening.read("Look again.", "I don't know.").actions == listening.read("Look again.", "I don't know.", ()).actions


def test_the_changes_are_small_and_of_the_labels_that_are_read_with_them() -> None:
    assert pairs.CHANGES.stat().st_size < 2_000_000
    assert {kind: len(changed["bias"]) for kind, changed in kept().items()} == {
        "lessons": len(ON_TASK),
        "tutoring": len(ACTIONS),
    }
