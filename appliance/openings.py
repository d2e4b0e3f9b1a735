"""What stands before an answer's own words: that the documents do not cover the question, or that quotations follow.

It is kept with an answer as a code and the titles that come nearest, never as a sentence: each reader gets it in their own
language, at the moment they read it. Answers of before this was so hold the English sentence in their text, and are shown as
they stand. Hides which codes there are and how titles are made safe to stand in a sentence. It decides nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from appliance.engine import quotes

QUOTED = "quoted"
NOT_ASKED = "not_asked"
NOT_COVERED = "not_covered"
NOT_COVERED_OWN = "not_covered_own"  # a model's own words follow
NOT_COVERED_STRICT = "not_covered_strict"  # nothing follows: only documents may answer
NOT_ASKED_STRICT = "not_asked_strict"

NONE_ASKED = "No documents were asked."
NOT_FROM_THEM = "What follows does not come from them."
ONLY_DOCUMENTS = "This class is answered from documents only."
NEAREST = "Nearest in the library: %(titles)s."
STARTER_HEADING = "The starter model's own words (for trying the box; do not rely on them)"
SENTENCES = {
    QUOTED: (quotes.INTRODUCTION,),
    NOT_ASKED: (NONE_ASKED,),
    NOT_ASKED_STRICT: (NONE_ASKED, ONLY_DOCUMENTS),
    NOT_COVERED: (quotes.NOT_COVERED,),
    NOT_COVERED_OWN: (quotes.NOT_COVERED, NOT_FROM_THEM),
    NOT_COVERED_STRICT: (quotes.NOT_COVERED, ONLY_DOCUMENTS),
}
NEAREST_NAMED = 3
LONGEST_TITLE = 60


def words(code: str, nearest: Sequence[str] = (), say: Callable[[str], str] = str) -> str:
    """The sentences of a code; "" for none. `say` gives a sentence in the reader's language."""
    if code not in SENTENCES:
        return ""
    first, *rest = (say(sentence) for sentence in SENTENCES[code])
    titles = [title for title in map(plain, nearest[:NEAREST_NAMED]) if title]
    near = [say(NEAREST) % {"titles": ", ".join(titles)}] if titles and code.startswith(NOT_COVERED) else []
    return " ".join([first, *near, *rest])


def code_of(text: str) -> str:
    """Of what quoting begins with: its code, where it is one of the fixed sentences; else ""."""
    return {quotes.INTRODUCTION: QUOTED, quotes.NOT_COVERED: NOT_COVERED}.get(text.strip(), "")


def whole(facts: Mapping[str, Any], say: Callable[[str], str] = str) -> str:
    """An answer for places that show one text: what opens it and quotes first, then a starter's words under their heading.

    facts: those of its events "sources" and "done".
    """
    opening = words(facts.get("opening", ""), facts.get("nearest", ()), say)
    return "\n\n".join(part for part in (opening, before_text(facts["lead"], facts["starter"], say), facts["text"]) if part)


def before_text(lead: str, starter: bool, say: Callable[[str], str] = str) -> str:
    """What stands above the text of such an answer: the quotations that lead, and the heading of a starter's words."""
    heading = f"---\n\n**{say(STARTER_HEADING)}**" if starter else ""
    return "\n\n".join(part for part in (lead, heading) if part)


def shorten(text: str, size: int) -> str:
    """The first whole words of `text`, about `size` characters."""
    return text if len(text) <= size else text[:size].rsplit(" ", 1)[0] + " ..."


def plain(title: str) -> str:
    """A document's title inside an answer: nothing in it is a mark, a link or any other Markdown."""
    return shorten(" ".join(re.sub(r"[\[\]()<>*_`#|~\\!&]|\w+://", " ", title).split()), LONGEST_TITLE)
