"""What the documents had for one question, and what is said where they had nothing.

Hides the words of that answer and how titles are made safe to stand in it. It searches nothing and asks no model.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from appliance.engine.quotes import NOT_COVERED
from appliance.running import Event

if TYPE_CHECKING:
    from appliance.knowledge.library import Passage

NOT_ASKED = "No documents were asked."
NEAREST = "Nearest in the library"
NEAREST_NAMED = 3
NOT_FROM_THEM = "What follows does not come from them."
ONLY_DOCUMENTS = "This class is answered from documents only."
LONGEST_TITLE = 60


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
        """The answer while no passage is there to quote, with the titles that come nearest."""
        if self.covered is None:
            return NOT_ASKED
        titles = [title for title in map(_plain, self.nearest[:NEAREST_NAMED]) if title]
        return f"{NOT_COVERED} {NEAREST}: {', '.join(titles)}." if titles else NOT_COVERED

    def before_own_words(self) -> str:
        """What stands before a model's answer that the documents do not cover."""
        return f"{self.nothing()} {NOT_FROM_THEM}\n\n"

    def only(self, seconds: float) -> list[Event]:
        """The whole answer where nothing but documents may answer and they do not."""
        who = {"model": "quotes", "handler": "quotes"}
        text = f"{self.nothing()} {ONLY_DOCUMENTS}"
        about = {"state": "done", "text": text, "lead": "", "starter": False, "covered": self.covered}
        return [
            Event("sources", {**self.facts(), **who}),
            Event("text", {"delta": text}),
            Event("done", {**about, **who, "finish": "stop", "tokens": {}, "seconds": seconds}),
        ]


def shorten(text: str, size: int) -> str:
    """The first whole words of `text`, about `size` characters."""
    return text if len(text) <= size else text[:size].rsplit(" ", 1)[0] + " ..."


def _plain(title: str) -> str:
    """A document's title inside an answer: nothing in it is a mark, a link or any other Markdown."""
    return shorten(" ".join(re.sub(r"[\[\]()<>*_`#|~\\!&]|\w+://", " ", title).split()), LONGEST_TITLE)
