"""The tree of what stands in the cache says what a plain list of lists would say, and counts every cell once."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from appliance.engine.prefixes import Prefixes


def test_a_class_that_shares_a_lesson_holds_it_once() -> None:
    tree = Prefixes()
    lesson = list(range(500))
    tree.share(0, -1, 0)
    tree.append(0, [*lesson, 900, 901])
    for pupil in range(1, 16):
        source, length = tree.match([*lesson, 1000 + pupil])
        assert length == 500
        tree.share(pupil, source, length)
        tree.append(pupil, [1000 + pupil])
    assert tree.cells == 500 + 2 + 15
    assert tree.own(0) == 2 and tree.own(7) == 1
    tree.drop(0)
    assert tree.cells == 500 + 15 and tree.match(lesson)[1] == 500
    for pupil in range(1, 16):
        tree.drop(pupil)
    assert tree.cells == 0 and tree.match(lesson) == (-1, 0)


def test_cells_are_shared_only_within_a_kind() -> None:
    tree = Prefixes()
    tree.share(0, -1, 0, kind="history")
    tree.append(0, [1, 2, 3])
    assert tree.match([1, 2, 3], "history") == (0, 3)
    assert tree.match([1, 2, 3], "mathematics") == (-1, 0)


def test_misuse_is_refused() -> None:
    tree = Prefixes()
    tree.share(0, -1, 0)
    tree.append(0, [1, 2])
    with pytest.raises(ValueError):
        tree.share(0, -1, 0)
    with pytest.raises(ValueError):
        tree.share(1, 0, 3)


class Cache(RuleBasedStateMachine):
    """The same steps in the tree and in lists of cells; a copied cell is the same object in both lists."""

    def __init__(self) -> None:
        super().__init__()
        self.tree = Prefixes()
        self.model: dict[int, list[tuple[int, int]]] = {}  # sequence -> (cell, token)
        self.made = 0
        self.next = 0

    @rule(tokens=st.lists(st.integers(0, 2), min_size=1, max_size=6))
    def begin(self, tokens: list[int]) -> None:
        """As the scheduler does: share the longest prefix there is, compute the rest."""
        source, length = self.tree.match(tokens)
        assert length == max((self.shared(cells, tokens) for cells in self.model.values()), default=0)
        if length:
            assert [token for _, token in self.model[source][:length]] == tokens[:length]
        self.tree.share(self.next, source, length)
        self.model[self.next] = list(self.model[source][:length]) if length else []
        self.compute(self.next, tokens[length:])
        self.next += 1

    @staticmethod
    def shared(cells: list[tuple[int, int]], tokens: list[int]) -> int:
        same = 0
        for (_, one), other in zip(cells, tokens, strict=False):
            if one != other:
                break
            same += 1
        return same

    def compute(self, sequence: int, tokens: list[int]) -> None:
        self.tree.append(sequence, tokens)
        for token in tokens:
            self.model[sequence].append((self.made, token))
            self.made += 1

    @precondition(lambda self: self.model)
    @rule(data=st.data(), tokens=st.lists(st.integers(0, 2), max_size=4))
    def go_on(self, data: st.DataObject, tokens: list[int]) -> None:
        self.compute(data.draw(st.sampled_from(sorted(self.model))), tokens)

    @precondition(lambda self: self.model)
    @rule(data=st.data(), length=st.integers(0, 8))
    def cut(self, data: st.DataObject, length: int) -> None:
        sequence = data.draw(st.sampled_from(sorted(self.model)))
        self.tree.cut(sequence, length)
        self.model[sequence] = self.model[sequence][:length]

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(sorted(self.model)))
        self.tree.drop(sequence)
        del self.model[sequence]

    @invariant()
    def both_say_the_same(self) -> None:
        assert self.tree.cells == len({cell for cells in self.model.values() for cell, _ in cells})
        for sequence, cells in self.model.items():
            assert self.tree.tokens(sequence) == [token for _, token in cells]
            others = {cell for other, held in self.model.items() if other != sequence for cell, _ in held}
            assert self.tree.own(sequence) == len({cell for cell, _ in cells} - others)


TestCache = Cache.TestCase
TestCache.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@given(st.lists(st.integers(0, 1), max_size=40), st.lists(st.integers(0, 1), max_size=40))
@settings(max_examples=200, deadline=None)
def test_the_longest_common_prefix_is_found(held: list[int], asked: list[int]) -> None:
    tree = Prefixes()
    tree.share(0, -1, 0)
    tree.append(0, held)
    expected = next((i for i, (a, b) in enumerate(zip(held, asked, strict=False)) if a != b), min(len(held), len(asked)))
    assert tree.match(asked)[1] == expected
