"""Who goes next, when the engine is full: a queue that is fair between classes, and within a class between pupils.

Start-time fair queueing (Goyal, Vin and Cheng 1996) on two levels, counted in tokens: a class, and in it a pupil, that has had
many tokens lately waits behind one that has had few; who comes after a pause gets no credit for it. So thirty questions of one
class cannot keep another class waiting, and ten questions of one pupil cannot keep a neighbour waiting. Hides the virtual
clocks. It does not know what is being computed, and forgets who has nothing waiting as soon as the clock has passed them.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(slots=True)
class _Clock(Generic[Item]):
    """Virtual time of one level, and who has been served until when."""

    now: float = 0.0
    served: dict[str, float] = field(default_factory=dict)

    def start(self, name: str) -> float:
        return max(self.now, self.served.get(name, 0.0))

    def charge(self, name: str, cost: float) -> None:
        self.now = self.start(name)
        self.served[name] = self.now + cost

    def forget(self, waiting: set[str]) -> None:
        for name in [name for name, until in self.served.items() if until <= self.now and name not in waiting]:
            del self.served[name]


class FairQueue(Generic[Item]):
    """Items that wait, each with a group (class), a user and a cost in tokens. Not thread-safe."""

    def __init__(self) -> None:
        self._waiting: dict[str, dict[str, deque[tuple[int, Item, float]]]] = {}
        self._groups: _Clock[Item] = _Clock()
        self._users: dict[str, _Clock[Item]] = {}
        self._arrivals = itertools.count()
        self._length = 0
        self.version = 0  # rises with every change

    def __len__(self) -> int:
        return self._length

    def add(self, item: Item, *, group: str, user: str, cost: float) -> None:
        self._waiting.setdefault(group, {}).setdefault(user, deque()).append((next(self._arrivals), item, cost))
        self._length += 1
        self.version += 1

    def first(self) -> Item | None:
        """Whose turn it is."""
        return next(self.order(), None)

    def take(self) -> Item:
        """Remove whose turn it is, and charge their class and them. Raises LookupError where nobody waits."""
        group, user = self._turn(self._waiting, self._groups, self._users)
        item = self._waiting[group][user][0][1]
        self._serve(group, user, 0)
        return item

    def claim(self, item: Item) -> bool:
        """`take` for this one, whoever has come since it was its turn; False where it has given up."""
        for group, user, place in self._places(item):
            self._serve(group, user, place)
            return True
        return False

    def _serve(self, group: str, user: str, place: int) -> None:
        cost = self._waiting[group][user][place][2]
        self._drop(group, user, place)
        self._groups.charge(group, cost)
        self._users.setdefault(group, _Clock()).charge(user, cost)
        self._groups.forget(set(self._waiting))
        for name in [name for name in self._users if name not in self._waiting and name not in self._groups.served]:
            del self._users[name]
        if group in self._users:
            self._users[group].forget(set(self._waiting.get(group, {})))

    def remove(self, item: Item) -> bool:
        """Take out one that gave up; whether it was there."""
        for group, user, place in self._places(item):
            self._drop(group, user, place)
            return True
        return False

    def _places(self, item: Item) -> list[tuple[str, str, int]]:
        """Where an item stands: one place, or none."""
        return [
            (group, user, place)
            for group, users in self._waiting.items()
            for user, queue in users.items()
            for place, (_, waiting, _cost) in enumerate(queue)
            if waiting is item
        ]

    def clear(self) -> list[Item]:
        """Everything that waited, in no order; the queue is empty then."""
        items = [item for users in self._waiting.values() for queue in users.values() for _, item, _ in queue]
        self._waiting.clear()
        self._length = 0
        return items

    def order(self) -> Iterator[Item]:
        """Everybody in the order in which they would go if nobody else came."""
        waiting = {group: {user: deque(queue) for user, queue in users.items()} for group, users in self._waiting.items()}
        groups = _Clock[Item](self._groups.now, dict(self._groups.served))
        clocks = {group: _Clock[Item](clock.now, dict(clock.served)) for group, clock in self._users.items()}
        while waiting:
            group, user = self._turn(waiting, groups, clocks)
            _, item, cost = waiting[group][user].popleft()
            groups.charge(group, cost)
            clocks.setdefault(group, _Clock()).charge(user, cost)
            if not waiting[group][user]:
                del waiting[group][user]
            if not waiting[group]:
                del waiting[group]
            yield item

    # ------------------------------------------------------------------------------------------------------------------
    @staticmethod
    def _turn(
        waiting: dict[str, dict[str, deque[tuple[int, Item, float]]]],
        groups: _Clock[Item],
        users: dict[str, _Clock[Item]],
    ) -> tuple[str, str]:
        """The class and pupil whose turn it is: least served first, then who came first."""
        if not waiting:
            raise LookupError("nobody is waiting")

        def first_arrival(group: str) -> int:
            return min(queue[0][0] for queue in waiting[group].values())

        group = min(waiting, key=lambda name: (groups.start(name), first_arrival(name)))
        clock = users.get(group, _Clock())
        user = min(waiting[group], key=lambda name: (clock.start(name), waiting[group][name][0][0]))
        return group, user

    def _drop(self, group: str, user: str, place: int) -> None:
        del self._waiting[group][user][place]
        self._length -= 1
        self.version += 1
        self._tidy(group, user)

    def _tidy(self, group: str, user: str) -> None:
        if not self._waiting[group][user]:
            del self._waiting[group][user]
        if not self._waiting[group]:
            del self._waiting[group]
