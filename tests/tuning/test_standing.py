"""The standing set remembers what was promoted, within bounds, and forgets who withdraws."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.engine.handler import Message
from appliance.errors import BadInput
from appliance.tuning.formats import Example
from appliance.tuning.sets import Sets
from appliance.tuning.standing import MOST, PER_DATASET, Standing, guarded


def talks(count: int, start: int = 0, reply: str = "Try it.") -> list[Example]:
    return [
        Example(f"t{n}", (Message("user", f"What is {n} times {n}?"), Message("assistant", reply)), subject="mathematics")
        for n in range(start, start + count)
    ]


def test_what_was_promoted_stands_and_nothing_is_written_before(tmp_path: Path) -> None:
    standing = Standing(tmp_path / "standing")
    assert standing.items() == [] and not (tmp_path / "standing").exists()
    assert standing.add("first", talks(5)) == 5
    assert standing.add("second", talks(5, start=5)) == 10
    assert sorted(item.id for item in Standing(tmp_path / "standing").items()) == [f"t{n}" for n in range(10)]
    assert standing.items()[0].subject == "mathematics" and standing.datasets() == ["first", "second"]
    before = standing.items()
    assert standing.add("second", talks(5, start=5)) == 10 and standing.items() == before


def test_a_first_turn_stands_once_with_its_newest_reply(tmp_path: Path) -> None:
    standing = Standing(tmp_path)
    standing.add("first", talks(3))
    standing.add("second", talks(1, start=1, reply="Count again."))
    replies = {item.id: item.messages[-1].content for item in standing.items()}
    assert replies == {"t0": "Try it.", "t1": "Count again.", "t2": "Try it."}


def test_the_set_is_bounded_and_its_sample_stable(tmp_path: Path) -> None:
    standing = Standing(tmp_path)
    assert standing.add("large", talks(500)) == PER_DATASET
    first = {item.id for item in standing.items()}
    # The same collection, grown by a fifth: mostly the same sample, and nothing that stood is lost.
    assert PER_DATASET < standing.add("larger", talks(600)) < 1.3 * PER_DATASET
    assert first < {item.id for item in standing.items()}
    for round in range(10):
        standing.add(f"other {round}", talks(100, start=1000 * (round + 1)))
    assert len(standing.items()) == MOST
    assert len(standing.datasets()) == 12, "each promotion keeps a share"
    turned = Standing(tmp_path / "turned")
    for round in reversed(range(10)):
        turned.add(f"other {round}", talks(100, start=1000 * (round + 1)))
    assert len({item.id for item in turned.items()} & {item.id for item in standing.items()}) > MOST / 2


def test_who_withdraws_is_forgotten(tmp_path: Path) -> None:
    standing = Standing(tmp_path)
    standing.add("first", talks(4))
    assert standing.forget({"t1", "t3", "nobody"}) == 2
    assert sorted(item.id for item in standing.items()) == ["t0", "t2"]
    assert "3 times 3" not in "".join(path.read_text("utf-8") for path in tmp_path.iterdir())
    assert standing.forget({"t1"}) == 0


@pytest.mark.parametrize("damage", ["{", '{"dataset": "x"}', '{"dataset": "x", "example": {"messages": []}}', "[]"])
def test_a_damaged_file_is_told_and_not_silently_dropped(tmp_path: Path, damage: str) -> None:
    standing = Standing(tmp_path)
    standing.add("first", talks(2))
    path = next(tmp_path.iterdir())
    path.write_text(path.read_text("utf-8") + damage + "\n", "utf-8")
    with pytest.raises(BadInput, match=r"line 3 of .*items.jsonl") as told:
        standing.items()
    assert "backup" in told.value.hint


def test_training_keeps_away_from_the_projects_items_and_from_what_stands(tmp_path: Path) -> None:
    folder = tmp_path / "content" / "evaluation"
    folder.mkdir(parents=True)
    row = '{"id": "k", "subject": "s", "grade": "5", "question": "Is it so?", "answers": ["a", "b", "c", "d"], "right": 1}\n'
    (folder / "knowledge.jsonl").write_text(row, "utf-8")
    standing = Standing(tmp_path / "standing")
    standing.add("first", talks(1))
    said = [[message.content for message in example.messages] for example in guarded(tmp_path / "content", standing)]
    assert said == [["Is it so?", "b"], ["What is 0 times 0?", "Try it."]]
    assert Sets.load(tmp_path / "content").examples()[0].id == "knowledge:k"
