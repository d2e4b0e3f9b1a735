"""What the engine did since it started, in numbers, as Prometheus reads them (text format 0.0.4).

No words of people, no names of people or classes, and no more than one line for each number: the page may be shown to anybody
who looks after the box.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from typing import Any

from appliance.engine.handler import Usage

FIRST_TOKEN_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
OUTCOMES = ("finished", "refused", "failed", "left")
GAUGES = {
    "running": "Conversations in the batch",
    "waiting": "Requests in the queue",
    "kept": "Finished conversations whose past is still in the cache",
    "cells": "Tokens that the cache can hold",
    "cells_used": "Tokens in the cache",
    "guessed": "Tokens guessed ahead by the models in memory",
    "guessed_right": "Tokens guessed ahead that were what the model said",
}


class Metrics:
    """Counters; one event loop writes and reads them."""

    def __init__(self) -> None:
        self._outcomes = dict.fromkeys(OUTCOMES, 0)
        self._tokens = {"prompt": 0, "cached": 0, "completion": 0}
        self._first = [0] * (len(FIRST_TOKEN_SECONDS) + 1)
        self._first_sum = 0.0
        self.embedded = 0

    def ended(self, outcome: str, usage: Usage | None = None) -> None:
        """A request ended in one of OUTCOMES."""
        self._outcomes[outcome] += 1
        if usage is not None:
            self._tokens["prompt"] += usage.prompt
            self._tokens["cached"] += usage.cached
            self._tokens["completion"] += usage.completion

    def first_token(self, seconds: float) -> None:
        self._first[bisect.bisect_left(FIRST_TOKEN_SECONDS, seconds)] += 1
        self._first_sum += seconds

    def text(self, models: Mapping[str, Mapping[str, Any]]) -> str:
        """The page; `models`: what each loaded base says of itself."""
        lines = [
            *_lines("requests_total", "counter", "Requests by how they ended", self._outcomes, "outcome"),
            *_lines("tokens_total", "counter", "Tokens; the cached ones are among the prompt's", self._tokens, "kind"),
            *_lines("embedded_texts_total", "counter", "Texts turned into vectors", self.embedded),
            *_lines("loaded_models", "gauge", "Base models in memory", len(models)),
        ]
        for name, text in GAUGES.items():
            lines += _lines(name, "gauge", text, sum(int(facts.get(name, 0)) for facts in models.values()))
        name = "engine_first_token_seconds"
        lines += [f"# HELP {name} From a request to its first word", f"# TYPE {name} histogram"]
        total = 0
        for bound, count in zip((*FIRST_TOKEN_SECONDS, "+Inf"), self._first, strict=True):
            total += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {total}')
        lines += [f"{name}_sum {self._first_sum:.6f}", f"{name}_count {total}"]
        return "\n".join(lines) + "\n"


def _lines(name: str, kind: str, text: str, value: int | Mapping[str, int], label: str = "") -> list[str]:
    rows = {f'{{{label}="{key}"}}': count for key, count in value.items()} if isinstance(value, Mapping) else {"": value}
    head = [f"# HELP engine_{name} {text}", f"# TYPE engine_{name} {kind}"]
    return head + [f"engine_{name}{labels} {count}" for labels, count in rows.items()]
