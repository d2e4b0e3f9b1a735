"""A talk as a tree: whatever grows in it, each path is whole, and every turn is on one."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from appliance.branches import newest_below, path, versions


@dataclass(frozen=True)
class Node:
    id: str
    parent: str
    ordinal: int
    role: str


@st.composite
def trees(draw: st.DrawFn) -> list[Node]:
    """Turns as a talk grows: each follows nothing, or one of those before it."""
    nodes: list[Node] = []
    for ordinal in range(1, draw(st.integers(0, 12)) + 1):
        parent = draw(st.sampled_from([None, *nodes]))
        role = "user" if parent is None or parent.role == "assistant" else "assistant"
        nodes.append(Node(f"n{ordinal}", parent.id if parent else "", ordinal, role))
    return nodes


@given(trees(), st.randoms())
def test_every_turn_is_on_the_path_to_the_newest_below_it(nodes: list[Node], random: object) -> None:
    random.shuffle(nodes)  # type: ignore[attr-defined]
    for node in nodes:
        leaf = newest_below(nodes, node.id)
        found = path(nodes, leaf)
        assert node in found and found[0].parent == "" and found[-1].id == leaf
        assert all(after.parent == before.id for before, after in itertools.pairwise(found))
        assert not any(other.parent == leaf for other in nodes), "it ends where nothing follows"


@given(trees())
def test_versions_stand_in_one_place_and_nothing_is_left_out(nodes: list[Node]) -> None:
    found = versions(nodes)
    by_id = {node.id: node for node in nodes}
    for node in nodes:
        assert node.id in found[node.id]
        assert {(by_id[id].parent, by_id[id].role) for id in found[node.id]} == {(node.parent, node.role)}
        assert [by_id[id].ordinal for id in found[node.id]] == sorted(by_id[id].ordinal for id in found[node.id])
    assert sum(1 for node in nodes if found[node.id][0] == node.id) == len({(node.parent, node.role) for node in nodes})


def test_no_leaf_means_the_newest_and_damage_ends_no_path_in_a_circle() -> None:
    talk = [Node("a", "", 1, "user"), Node("b", "a", 2, "assistant"), Node("c", "", 3, "user")]
    assert [node.id for node in path(talk)] == ["c"] == [node.id for node in path(talk, "gone")]
    circle = [Node("a", "b", 1, "user"), Node("b", "a", 2, "assistant"), Node("d", "lost", 3, "user")]
    assert [node.id for node in path(circle, "b")] == ["a", "b"] and [node.id for node in path(circle, "d")] == ["d"]
    assert path([]) == []
