"""Words in one's own conversations: which of them hold all the words, and where the first one stands.

Letters are compared without case and accents, in every script, which the database's own search does not do. It is given what
its user may read today, so nothing can be found that could not be opened.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from appliance.conversations import Conversation, Turn

MOST = 50
AROUND = 70  # letters on each side of what was found
_LOOKS = re.compile(r"\*\*|`|^#+ |^> ?| ?\[\d+(?:, ?\d+)*\]", re.M)  # of Markdown, which is shown as plain text here
_MARKS = re.compile("[\u0300-\u036f\u0483-\u0487\u0591-\u05bd\u0610-\u061a\u0640\u064b-\u065f\u0670]")


@dataclass(frozen=True, slots=True)
class Hit:
    """`turn`: where the words stand, "" where it is in the title alone; the text around them is in three parts."""

    conversation: Conversation
    turn: str
    before: str = ""
    found: str = ""
    after: str = ""


def find(talks: Iterable[tuple[Conversation, Sequence[Turn]]], words: str, most: int = MOST) -> list[Hit]:
    """Conversations whose title and turns hold every one of the words, in the order given."""
    wanted = plain(words).split()
    hits: list[Hit] = []
    for chat, turns in talks if wanted else ():
        texts = [(turn, plain(turn.said)) for turn in turns]
        whole = "\n".join([plain(chat.title), *(text for _, text in texts)])
        if not all(word in whole for word in wanted):
            continue
        best = max(texts, key=lambda one: _worth(one[0], one[1], wanted, chat.title), default=None)
        word = next((word for word in wanted if best is not None and word in best[1]), "")
        hits.append(Hit(chat, best[0].id, *_around(best[0].said, word)) if best is not None and word else Hit(chat, ""))
        if len(hits) == most:
            break
    return hits


def _worth(turn: Turn, text: str, wanted: Sequence[str], title: str) -> tuple[int, bool]:
    """The turn with most of the words is shown, and of those one that says more than the title does."""
    return sum(word in text for word in wanted), turn.said != title


def plain(text: str) -> str:
    """Without case, accents and what is only written for looks."""
    if text.isascii():
        return text.lower()
    return _MARKS.sub("", unicodedata.normalize("NFKD", text).casefold())


def _around(text: str, word: str) -> tuple[str, str, str]:
    """What stands before, at and after the first place of a plain word in a text that is not plain."""
    places = [at for at, letter in enumerate(text) for _ in plain(letter)]
    start = plain(text).find(word)
    first, last = places[start], places[start + len(word) - 1] + 1
    while last < len(text) and not plain(text[last]):
        last += 1
    before, after = (" ".join(_LOOKS.sub("", part).split()) for part in (text[:first], text[last:]))
    before = before if len(before) <= AROUND else "… " + before[-AROUND:].partition(" ")[2]
    after = after if len(after) <= AROUND else after[:AROUND].rpartition(" ")[0] + " …"
    glue = [" " if text[at : at + 1].isspace() else "" for at in (max(first - 1, 0), last)]
    return before + (glue[0] if before else ""), text[first:last], glue[1] + after
