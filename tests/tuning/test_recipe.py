"""A recipe tells all its faults at once and has one digest for one meaning."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.errors import BadInput, NotFound
from appliance.tuning.recipe import Recipe


def test_all_faults_of_a_recipe_are_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('rank = 0\nmethod = "full"\nrate = "fast"\nepoch = 3\nseed = 1.5\nbase = 4\nbatch = true\n', "utf-8")
    with pytest.raises(BadInput) as caught:
        Recipe.load(path)
    for words in (
        "7 faults",
        '"epoch"',
        "rank is 0",
        "method is 'full'",
        "rate is 'fast'",
        "seed is 1.5",
        "base is 4",
        "batch is True",
    ):
        assert words in caught.value.message
    assert "epochs" in caught.value.hint


def test_a_recipe_is_read_and_has_one_digest(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text("rank = 8\nalpha = 16\nepochs = 2\n", "utf-8")
    recipe = Recipe.load(path)
    assert (recipe.rank, recipe.alpha, recipe.epochs) == (8, 16.0, 2.0)
    assert recipe.digest() == Recipe(rank=8, alpha=16.0, epochs=2.0).digest() != Recipe().digest()


@pytest.mark.parametrize(("text", "words"), [("rank = ", "not valid TOML"), (b"\xff", "UTF-8")])
def test_an_unreadable_recipe_is_a_sentence(tmp_path: Path, text: str | bytes, words: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(BadInput, match=words):
        Recipe.load(path)
    with pytest.raises(NotFound):
        Recipe.load(tmp_path / "absent.toml")


def test_values_given_in_code_are_checked_too() -> None:
    with pytest.raises(BadInput, match="rank"):
        Recipe(rank=-1)
