"""A recipe tells all its faults at once and has one digest for one meaning."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.errors import BadInput, NotFound
from appliance.tuning.recipe import BUILT_IN, Recipe, built_in, built_in_names, find


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
    path.write_text("rank = 12\nalpha = 24\nepochs = 2\n", "utf-8")
    recipe = Recipe.load(path)
    assert (recipe.rank, recipe.alpha, recipe.epochs) == (12, 24.0, 2.0)
    assert recipe.digest() == Recipe(rank=12, alpha=24.0, epochs=2.0).digest() != Recipe().digest()


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
    with pytest.raises(BadInput, match="2 at least"):
        Recipe(objective="kto", batch=1)


def test_lines_that_would_be_ignored_are_faults_and_told_with_the_others(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('objective = "kto"\nbatch = 1\npacking = true\ndropout = 0.1\npatience = 2\nrank = 0\n', "utf-8")
    with pytest.raises(BadInput) as caught:
        Recipe.load(path)
    for words in ("5 faults", "rank is 0", "batch is 1", "cannot pack", "trains without", "patience is 2"):
        assert words in caught.value.message
    path.write_text("beta = 0.2\n", "utf-8")
    with pytest.raises(BadInput, match="1 fault: beta is given"):
        Recipe.load(path)
    path.write_text('objective = "dpo"\nbeta = 0.2\npacking = false\ndropout = 0\n', "utf-8")
    recipe = Recipe.load(path)
    assert recipe.beta == 0.2 and not recipe.merged_only and Recipe(dora=True).merged_only


def test_the_recipes_of_the_box_load_and_read_like_notes() -> None:
    names = built_in_names()
    wanted = {"laptop-cpu", "small-gpu", "large-gpu", "several-gpus", "starter", "corrections-dpo", "thumbs-kto"}
    assert set(names) == wanted
    assert built_in("starter") == Recipe(), "no recipe at all is the starter's"
    assert built_in("small-gpu").method == "qlora" and built_in("several-gpus").gpus == 0
    assert (built_in("corrections-dpo").objective, built_in("thumbs-kto").objective) == ("dpo", "kto")
    for name in names:
        lines = (BUILT_IN / f"{name}.toml").read_text("utf-8").splitlines()
        notes = sum("#" in line for line in lines)
        assert lines[0].startswith("# ") and notes >= 4 and len(lines) < 30, name


def test_a_recipe_is_found_by_name_or_as_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text("rank = 3\n", "utf-8")
    assert find("mine.toml").rank == find(str(tmp_path / "mine.toml")).rank == 3
    assert find("small-gpu") == built_in("small-gpu")
    (tmp_path / "small-gpu").write_text("rank = 3\n", "utf-8")
    assert find("small-gpu") == built_in("small-gpu") and find("./small-gpu").rank == 3
    for search in (find, built_in):
        with pytest.raises(NotFound, match="'smal-gpu'") as caught:
            search("smal-gpu")
        assert "laptop-cpu" in caught.value.hint and "thumbs-kto" in caught.value.hint
