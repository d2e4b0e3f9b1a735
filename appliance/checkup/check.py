"""One look and what came of it, in plain words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Check:
    """`remedy`: what to do, "" where all is well; `command`: to type at the box, where that is the remedy."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""
    command: str = ""
