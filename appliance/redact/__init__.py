"""Personal data out of tutoring text, before a model is trained on it.

Hides the rules: how a pupil of the roster is recognised however the name is cased, spaced and punctuated, and the patterns of
e-mail addresses, phone numbers, street addresses, dates of birth and identity numbers. What is found is replaced by a mark
that reads like a word (`[name]`, `[phone]`); sums, dates and numbers of a lesson stay as they are.

A name that is forgotten is worse than a word that is lost: a pupil's first name goes even where it might be somebody in a word
problem. It knows no names but those it is given and those that a text introduces ("my name is ..."), leaves towns, schools and
ages standing, does not change numbers spelt in words, and is no anonymisation in the legal sense: a person reviews every row.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from appliance.redact import patterns
from appliance.redact.names import Name, Names
from appliance.redact.roster import Pupil, Roster, read_roster

__all__ = ["KINDS", "Name", "Pupil", "Redacted", "Redactor", "Roster", "read_roster"]

KINDS = ("name", "email", "phone", "address", "birth_date", "id", "card", "iban", "ip", "url")
PASSES = 8  # taking something out can uncover a neighbour; two are the rule
Span = tuple[int, int, str]


@dataclass(frozen=True, slots=True)
class Redacted:
    """The text without them, and how many of each kind were there; kinds that were not are absent."""

    text: str
    counts: dict[str, int]


class Redactor:
    """Takes personal data out of text. Built once for a roster, then used for every row; safe to share between threads."""

    def __init__(self, names: Sequence[Name]) -> None:
        self._names = Names(names)

    def redact(self, text: str) -> Redacted:
        """Replace what is personal by marks. Takes time in proportion to the text; a second run changes nothing."""
        counts: Counter[str] = Counter()
        for _ in range(PASSES):
            # A mark of an earlier pass is no word: it neither is looked into nor speaks for what stands beside it.
            masked = MARK.sub(lambda mark: "\0" * len(mark[0]), text)
            spans = _merged([*self._names.find(masked), *patterns.find(masked)], masked)
            if not spans:
                break
            counts.update(kind for _, _, kind in spans)
            text = _replaced(text, spans)
        return Redacted(text, {kind: counts[kind] for kind in KINDS if counts[kind]})


def _mark(kind: str) -> str:
    return f"[{kind.replace('_', ' ')}]"


MARK = re.compile("|".join(re.escape(_mark(kind)) for kind in KINDS))


def _merged(found: list[Span], text: str) -> list[Span]:
    """In order, without overlaps: where two touch the same letters both go, under the name of the longer one."""
    spans: list[Span] = []
    for start, end, kind in sorted(found, key=lambda span: (span[0], -span[1])):
        if spans and start < spans[-1][1]:
            first, last, before = spans[-1]
            longer = kind if end - start > last - first else before
            spans[-1] = (first, max(last, end), longer)
        elif spans and kind == spans[-1][2] == "name" and BETWEEN_NAMES.fullmatch(text, spans[-1][1], start):
            spans[-1] = (spans[-1][0], end, kind)  # "Thabo J. Mokwenela" is one person
        else:
            spans.append((start, end, kind))
    return spans


BETWEEN_NAMES = re.compile(r"[ \u00a0]{1,3}(?:[^\W\d_]\.?[ \u00a0]{1,3})?")


def _replaced(text: str, spans: list[Span]) -> str:
    parts, at = [], 0
    for start, end, kind in spans:
        parts += [text[at:start], _mark(kind)]
        at = end
    return "".join([*parts, text[at:]])
