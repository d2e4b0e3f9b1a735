"""As much of optuna as MIPROv2 asks for, drawing at random: for machines without the package, which is not in the extra."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

logging = SimpleNamespace(WARNING=30, set_verbosity=lambda _level: None)
samplers = SimpleNamespace(TPESampler=lambda **options: random.Random(options["seed"]))
trial = SimpleNamespace(create_trial=lambda **facts: SimpleNamespace(**facts))
distributions = SimpleNamespace(CategoricalDistribution=list)


class Draw:
    def __init__(self, number: int, lot: random.Random) -> None:
        self.number, self.params, self._lot = number, {}, lot

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        self.params[name] = self._lot.choice(list(choices))
        return self.params[name]


class Study:
    def __init__(self, lot: random.Random) -> None:
        self._lot = lot

    def add_trial(self, one: Any) -> None: ...

    def optimize(self, objective: Callable[[Draw], float], n_trials: int) -> None:
        for number in range(1, n_trials + 1):
            objective(Draw(number, self._lot))


def create_study(direction: str, sampler: random.Random) -> Study:
    assert direction == "maximize"
    return Study(sampler)
