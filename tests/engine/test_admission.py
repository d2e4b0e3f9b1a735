"""The queue of a full engine: nobody is passed over, and nobody gains by asking more."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.engine.admission import FairQueue


def drained(queue: FairQueue[str]) -> list[str]:
    return [queue.take() for _ in range(len(queue))]


def test_one_pupil_with_many_questions_does_not_keep_a_neighbour_waiting() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(10):
        queue.add(f"anna {number}", group="6A", user="anna", cost=300)
    queue.add("ben 0", group="6A", user="ben", cost=300)
    assert drained(queue).index("ben 0") == 1


def test_a_class_of_thirty_does_not_keep_a_single_pupil_of_another_class_waiting() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(30):
        queue.add(f"6A {number}", group="6A", user=f"pupil {number}", cost=300)
    for number in range(3):
        queue.add(f"7B {number}", group="7B", user="zola", cost=300)
    order = drained(queue)
    assert [order.index(f"7B {number}") for number in range(3)] == [1, 3, 5]


def test_long_questions_count_for_more_than_short_ones() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(4):
        queue.add(f"long {number}", group="6A", user="anna", cost=900)
        queue.add(f"short {number}", group="6B", user="ben", cost=100)
    assert drained(queue)[:6] == ["long 0", "short 0", "short 1", "short 2", "short 3", "long 1"]


def test_a_pause_gives_no_credit() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(20):
        queue.add(f"busy {number}", group="6A", user="anna", cost=100)
        assert queue.take() == f"busy {number}"
    for number in range(3):
        queue.add(f"busy again {number}", group="6A", user="anna", cost=100)
        queue.add(f"late {number}", group="6B", user="ben", cost=100)
    order = drained(queue)
    assert order.index("busy again 0") <= 1, "who has been away cannot take every turn that others had meanwhile"


def test_who_gives_up_leaves_the_line() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.add("a", group="6A", user="anna", cost=1)
    queue.add("b", group="6A", user="ben", cost=1)
    assert queue.remove("a") and not queue.remove("a")
    assert queue.first() == "b" and len(queue) == 1
    assert queue.clear() == ["b"] and queue.first() is None
    with pytest.raises(LookupError):
        queue.take()


requests = st.lists(
    st.tuples(st.sampled_from(["6A", "6B", "7A"]), st.sampled_from(["anna", "ben", "cai"]), st.integers(1, 500)), max_size=30
)


@given(requests)
@settings(max_examples=150, deadline=None)
def test_the_place_that_is_told_is_the_place_that_is_given(asked: list[tuple[str, str, int]]) -> None:
    queue: FairQueue[str] = FairQueue()
    for number, (group, user, cost) in enumerate(asked):
        queue.add(f"{number}", group=group, user=user, cost=cost)
    told = list(queue.order())
    assert told == drained(queue) and sorted(told, key=int) == [str(number) for number in range(len(asked))]
    seen: dict[tuple[str, str], int] = {}
    for name in told:
        group, user, _ = asked[int(name)]
        assert seen.get((group, user), -1) < int(name), "one's own questions keep their order"
        seen[group, user] = int(name)


@given(st.lists(st.integers(1, 400), min_size=20, max_size=60), st.lists(st.integers(1, 400), min_size=20, max_size=60))
@settings(max_examples=60, deadline=None)
def test_two_classes_that_always_ask_get_the_same_number_of_tokens(one: list[int], other: list[int]) -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue()
    for name, costs in (("6A", one), ("7B", other)):
        for number, cost in enumerate(costs):
            queue.add((name, cost), group=name, user=f"{name} {number % 7}", cost=cost)
    got = {"6A": 0, "7B": 0}
    left = {"6A": len(one), "7B": len(other)}
    while all(left.values()):
        name, cost = queue.take()
        got[name] += cost
        left[name] -= 1
        assert abs(got["6A"] - got["7B"]) <= 800, "never further apart than two of the longest questions"
