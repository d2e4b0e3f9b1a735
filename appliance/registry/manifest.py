"""What is known of one model: its files, what it was made of, how it was judged, and where it is if it is not here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

# merged: tuned here, its adapter worked into a file of its own. hosted: on another machine; nothing of it lies here.
Kind = Literal["base", "adapter", "merged", "hosted"]


@dataclass(frozen=True, slots=True)
class FileFact:
    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is known of one model. `context` in tokens; `dataset` and `recipe` are sha256 digests; `created` UTC seconds.

    `starter` marks the small model that comes with the box and everything tuned from it: never to be taken for teaching.
    `hosted` is what a plugin needs to reach a model elsewhere: {"plugin": its name, "model": what it is called there, ...}; no
    secret stands in it.
    """

    id: str
    kind: Kind
    title: str
    licence: str
    context: int
    files: dict[str, FileFact]
    base: str | None = None
    parents: tuple[str, ...] = ()
    dataset: str | None = None
    recipe: str | None = None
    report: dict[str, Any] | None = None
    starter: bool = False
    created: float = 0.0
    hosted: dict[str, Any] | None = None
    aliases: tuple[str, ...] = field(default=(), compare=False)

    @property
    def origin(self) -> str:
        """The id of the base that it was tuned from; its own where it was not tuned here."""
        return self.base or (self.parents[0] if self.kind == "merged" and self.parents else self.id)

    @property
    def bytes(self) -> int:
        return sum(fact.bytes for fact in self.files.values())
