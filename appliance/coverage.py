"""What the documents had for one question, and the answer that is given where they had nothing.

It searches nothing and asks no model; the sentences are in `openings`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from appliance import openings
from appliance.running import Event

if TYPE_CHECKING:
    from appliance.knowledge.library import Passage


@dataclass(frozen=True, slots=True)
class Sources:
    """`covered`: the passages answer the question; None where no document was asked. `nearest`: titles, where they do not."""

    covered: bool | None
    lexical_only: bool
    passages: list[Passage]
    nearest: list[str]

    def facts(self) -> dict[str, Any]:
        return {**asdict(self), "passages": [asdict(passage) for passage in self.passages]}

    def nothing(self) -> str:
        """What opens the answer while no passage is there to quote."""
        return openings.NOT_ASKED if self.covered is None else openings.NOT_COVERED

    def opens(self, code: str) -> Event:
        """What stands before the words that follow, with the titles that come nearest."""
        return Event("opening", {"code": code, "nearest": self.nearest})

    def only(self, seconds: float) -> list[Event]:
        """The whole answer where nothing but documents may answer and they do not."""
        who = {"model": "quotes", "handler": "quotes"}
        code = openings.NOT_ASKED_STRICT if self.covered is None else openings.NOT_COVERED_STRICT
        about = {"state": "done", "text": "", "lead": "", "opening": code, "starter": False, "covered": self.covered}
        return [
            Event("sources", {**self.facts(), **who}),
            self.opens(code),
            Event("done", {**about, **who, "finish": "stop", "tokens": {}, "seconds": seconds}),
        ]
