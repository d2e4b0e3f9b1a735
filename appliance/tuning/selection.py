"""From all rows of the store to exactly those that a model may learn from, with one reason for each of the others.

Hides the order of the questions: may it be used (review, consent, licence, withdrawal), is it good (thumbs, corrections), what
in it is personal, is it a copy, is somebody repeating himself. Nothing is trained, and nothing but the plan comes out.

Caps against poisoning, in rows: the same reply, or nearly the same, is used 3 times at most, whoever gave it. A person's own
classroom rows are at most 20 or a tenth of the usable ones, whichever is more. Classroom rows without an author can be
anybody's in that class, so a class (its pupils, its teachers) is held to half of the set as soon as there are others. Sets that
somebody published under a licence have one author for a good reason and are not capped by author; of those, one reply may make
up 1 %.
"""

from __future__ import annotations

import hashlib
import textwrap
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from appliance.engine.handler import Message
from appliance.tuning.dataset import fingerprint
from appliance.tuning.examples import Example
from appliance.tuning.licences import forbids
from appliance.tuning.near import Judged, Taken, Texts, plain, shingles
from appliance.tuning.store import ExampleStore, Row
from appliance.tuning.triggers import Given, triggers

REPEATS = 3
REPEATS_SHARE = 0.01  # of the usable rows, for sets that were published
PERSON_ROWS, PERSON_SHARE = 20, 0.1
CLASS_ROWS, CLASS_SHARE = 20, 0.5
SAME_WORDS = 0.8  # Jaccard similarity from which two replies are one
SHORT = 5  # words; replies shorter than this are compared letter by letter, case and punctuation aside
LEAST_LEFT = 0.5  # of the words, after redaction
IDS_SHOWN = 4
LINE = 120  # characters of a line of the whole plan
LESSONS = "this school's lessons"  # the source of classroom rows that state none

# Code -> what it is called in the table. In this order they are asked, and shown.
REASONS = {
    "withdrawn": "withdrawn",
    "rejected": "rejected in review",
    "pending": "waiting for review",
    "no_consent": "no consent",
    "licence": "licence does not allow it",
    "rated_down": "rated down, not corrected",
    "mostly_redacted": "hardly anything but personal data",
    "near_evaluation": "near an evaluation item",
    "near_held_out": "near a held-out conversation",
    "duplicate": "duplicate",
    "near_duplicate": "near-duplicate",
    "repetition": "the same reply too often",
    "author_cap": "too much from one author",
}
Reason = tuple[str, str]  # code, sentence


class Redacted(Protocol):
    """What `appliance.redact` makes of a text."""

    @property
    def text(self) -> str: ...
    @property
    def counts(self) -> Mapping[str, int]: ...


Redact = Callable[[str], Redacted]


@dataclass(frozen=True)
class Plan:
    """What would be used and why the rest is not.

    examples: redacted, corrections in place, authors as digests. preferences: {id, messages, chosen, rejected} of used rows
    that were corrected. thumbs: {id, messages, completion, good} of rated rows. refused: (id, code, sentence). triggers:
    phrases that look like a backdoor's. redactions: how many of each kind were taken out of the examples. attribution: whom
    the licences of the used rows ask to be named. held_out: ids of the examples that judge the result, once that is known.
    """

    considered: int
    examples: list[Example]
    preferences: list[dict[str, Any]] = field(default_factory=list)
    thumbs: list[dict[str, Any]] = field(default_factory=list)
    refused: list[tuple[str, str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    triggers: list[str] = field(default_factory=list)
    redactions: dict[str, int] = field(default_factory=dict)
    attribution: list[dict[str, str]] = field(default_factory=list)
    held_out: list[str] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """Rows refused for each reason, in the order of `REASONS`."""
        found = Counter(code for _, code, _ in self.refused)
        return {code: found[code] for code in REASONS if found[code]}

    def facts(self) -> dict[str, Any]:
        """What the dataset's card says of how its rows were chosen."""
        return {
            "redactions": self.redactions,
            "selection": {"considered": self.considered, "used": len(self.examples), "refused": self.counts()},
            "attribution": self.attribution,
        }

    def to_json(self) -> dict[str, Any]:
        """Ids, counts and reasons; no row's text (a trigger's phrase apart)."""
        return {
            **self.facts(),
            "used": [example.id for example in self.examples],
            "held_out": self.held_out,
            "refused": [{"id": id, "code": code, "reason": sentence} for id, code, sentence in self.refused],
            "preferences": [pair["id"] for pair in self.preferences],
            "thumbs": [{"id": one["id"], "good": one["good"]} for one in self.thumbs],
            "warnings": self.warnings,
            "triggers": self.triggers,
        }

    def lines(self, *, every: bool = False) -> list[str]:
        """The plan as a person reads it: how many rows for which reason, the first of each, and what looks suspicious.

        every: name all rows, below the sentence that says why they are out, or what they are used for.
        """
        by_code: dict[str, list[str]] = defaultdict(list)
        for id, code, _ in self.refused:
            by_code[code].append(id)
        rows = [("used", [example.id for example in self.examples])]
        rows += [(title, by_code[code]) for code, title in REASONS.items() if by_code[code]]
        wide = max(len(title) for title, _ in rows)
        shown = [f"{self.considered} rows in the store"]
        for title, ids in rows:
            first = ", ".join(ids[:IDS_SHOWN]) + (", ..." if len(ids) > IDS_SHOWN else "")
            shown.append(f"  {title.ljust(wide)}  {len(ids):>6}  {'' if every else first}".rstrip())
            shown += self._named(title) if every else []
        if self.redactions:
            taken = ", ".join(f"{count} x {kind.replace('_', ' ')}" for kind, count in self.redactions.items())
            shown.append(f"Personal data taken out of the rows used: {taken}.")
        shown += [f"Warning: {warning}" for warning in self.warnings]
        return shown

    def _named(self, title: str) -> list[str]:
        """All rows of one line of the table, by the sentence that says why."""
        sentences: dict[str, list[str]] = defaultdict(list)
        if title == "used":
            for example in self.examples:
                what = "These judge the result:" if example.id in self.held_out else "These are learned from:"
                sentences[what].append(example.id)
        for id, code, sentence in self.refused:
            if REASONS[code] == title:
                sentences[sentence].append(id)
        return [
            line
            for sentence, ids in sentences.items()
            for line in textwrap.wrap(
                f"{sentence} {', '.join(ids)}", LINE, initial_indent="    ", subsequent_indent="      ",
                break_long_words=False, break_on_hyphens=False,
            )
        ]  # fmt: skip


@dataclass(frozen=True)
class _Candidate:
    """A row that may be used, redacted. reply: what the tutor first said, where a correction took its place."""

    row: Row
    example: Example
    reply: str
    counts: Counter[str]


def plan(store: ExampleStore, redact: Redact, *, evaluation: Sequence[Example] = ()) -> Plan:
    """Choose from all rows of the store. The same store gives the same plan; nothing is changed.

    redact: `Redactor(...).redact`. evaluation: items that a model will be judged by; nothing near them is used.
    """
    rows = store.list(withdrawn=True)
    reasons: dict[str, Reason] = {}
    allowed = [row for row in rows if not _refuse(reasons, row.id, _forbidden(row))]
    disliked = [row for row in allowed if row.rating == "down" and row.correction is None]
    for row in disliked:
        reasons[row.id] = ("rated_down", "It was rated down and nobody wrote a better reply; preference tuning can use it.")
    judged = Judged(evaluation)
    mask = _Mask(redact, store.people.author)
    usable = [mask.candidate(row) for row in allowed if row.id not in reasons]
    replies = _Replies(usable)
    kept = _sieve(usable, replies, judged, reasons)
    bad = _sieve(unliked := [mask.candidate(row) for row in disliked], _Replies(unliked), judged, {})
    used = [one.example for one in kept]
    phrases, warnings = triggers([_given(one, replies.group(one.row.id)) for one in usable])
    return Plan(
        considered=len(rows),
        examples=used,
        preferences=[_pair(one) for one in kept if one.row.correction and one.reply != used_reply(one)],
        thumbs=[_thumb(one) for one in (*kept, *bad) if one.row.rating],
        refused=[(row.id, *reasons[row.id]) for row in rows if row.id in reasons],
        warnings=replies.warnings() + warnings,
        triggers=phrases,
        redactions=dict(sorted(sum((one.counts for one in kept), Counter()).items())),
        attribution=_attribution(kept),
    )


# --- may it be used -----------------------------------------------------------------------------------------------------------


def _refuse(reasons: dict[str, Reason], id: str, reason: Reason | None) -> bool:
    if reason is not None:
        reasons[id] = reason
    return reason is not None


def _forbidden(row: Row) -> Reason | None:
    if row.withdrawn is not None:
        return "withdrawn", "It was withdrawn, and its text is gone."
    if row.reviewed == "rejected":
        return "rejected", "A reviewer rejected it."
    if row.reviewed != "approved":
        return "pending", "Nobody has reviewed it yet: `appliance examples review`."
    if row.consent is False:
        return "no_consent", "Consent to train on it was refused."
    if row.licence and (why := forbids(row.licence)):
        return "licence", f'Its licence "{row.licence}" {why}.'
    if row.consent is None and not row.licence:
        return (
            "no_consent",
            "Neither consent nor a licence is stated; `appliance examples import --licence` fills in a licence.",
        )
    return None


# --- what is left of it -------------------------------------------------------------------------------------------------------


class _Mask:
    """Rows with their personal data out; a text that stands in many rows is looked at once."""

    def __init__(self, redact: Redact, author: Callable[[str], str]) -> None:
        self._redact, self._author = redact, author
        self._seen: dict[str, Redacted] = {}

    def candidate(self, row: Row) -> _Candidate:
        counts: Counter[str] = Counter()
        *talk, last = row.messages
        said = [Message(message.role, self._text(message.content, counts)) for message in talk]
        first = self._text(last.content, Counter() if row.correction else counts)
        final = self._text(row.correction, counts) if row.correction else first
        example = Example(
            id=row.id,
            messages=(*said, Message(last.role, final)),
            subject=row.subject,
            grade=row.grade,
            skill=self._text(row.skill, Counter()),
            source=self._text(row.source or (LESSONS if row.classroom else row.author), Counter()),
            licence=row.licence,
            author=self._author(row.author),
            extra={"rating": row.rating, "corrected": row.correction is not None},
        )
        return _Candidate(row, example, first, counts)

    def _text(self, text: str, counts: Counter[str]) -> str:
        if text not in self._seen:
            self._seen[text] = self._redact(text)
        counts.update(self._seen[text].counts)
        return self._seen[text].text


def _emptied(one: _Candidate) -> bool:
    """Whether little but marks is left of the talk, or of what is to be learnt from it."""
    before = [*(message.content for message in one.row.messages[:-1]), one.row.correction or one.row.messages[-1].content]
    after = [message.content for message in one.example.messages]
    whole = _left(" ".join(before), " ".join(after))
    return bool(one.counts) and min(whole, _left(before[-1], after[-1])) < LEAST_LEFT


def _left(before: str, after: str) -> float:
    """The share of a text's words that are still there."""
    words = Counter(before.split())
    return sum((words & Counter(after.split())).values()) / max(sum(words.values()), 1)


# --- copies and caps ----------------------------------------------------------------------------------------------------------


class _Replies:
    """Which rows give the same last reply, and how many of each may be used."""

    def __init__(self, candidates: Sequence[_Candidate]) -> None:
        self._published = max(REPEATS, int(REPEATS_SHARE * len(candidates)))
        self._groups: dict[str, int] = {}
        self._members: list[list[_Candidate]] = []
        exact: dict[str, int] = {}
        long = Texts(SAME_WORDS)
        numbers: list[int] = []  # of the groups, in the order of `long`
        for one in candidates:
            words = plain(used_reply(one))
            number = exact.get(words)
            found = [] if number is not None or len(words.split()) < SHORT else long.like(view := shingles(words))
            if number is None and found:
                number = numbers[found[0]]
            if number is None:
                number = len(self._members)
                self._members.append([])
                if len(words.split()) >= SHORT:
                    long.add(view)
                    numbers.append(number)
            exact[words] = number
            self._groups[one.row.id] = number
            self._members[number].append(one)

    def group(self, id: str) -> int:
        return self._groups[id]

    def most(self, one: _Candidate) -> int:
        """How often this row's reply may be used."""
        return REPEATS if one.row.classroom or one.row.correction else self._published

    def times(self, one: _Candidate) -> int:
        return len(self._members[self._groups[one.row.id]])

    def warnings(self) -> list[str]:
        """Replies that were given more often than anybody says by chance, the most frequent first."""
        often = [group for group in self._members if len(group) > max(self.most(one) for one in group)]
        found = []
        for group in sorted(often, key=lambda group: -len(group)):
            who = Counter(own for one in group if (own := _own_author(one)))
            by = f", {who.most_common(1)[0][1]} of them from one author" if who else ""
            most = max(self.most(one) for one in group)
            ids = ", ".join(one.row.id for one in group[:IDS_SHOWN])
            found.append(f"The same reply is given {len(group)} times{by}; {most} at most are used ({ids}, ...).")
        return found


def _sieve(candidates: list[_Candidate], replies: _Replies, judged: Judged, reasons: dict[str, Reason]) -> list[_Candidate]:
    """What is used of the candidates, in their order; the others get their reason."""
    seen: dict[str, str] = {}
    taken, given = Taken(), Counter[int]()
    kept = []
    for one in candidates:
        id, group = one.row.id, replies.group(one.row.id)
        same = seen.setdefault(fingerprint(one.example), id)
        reason: Reason | None = None
        if _emptied(one):
            reason = ("mostly_redacted", "Once personal data is out, hardly anything is left.")
        elif item := judged.resembled(one.example):
            reason = ("near_evaluation", f"It resembles {item}, by which models are judged.")
        elif same != id:
            reason = ("duplicate", f"It says the same as {same}.")
        elif given[group] >= replies.most(one):
            times = replies.times(one)
            reason = ("repetition", f"The same reply is given {times} times; {replies.most(one)} at most are used.")
        elif copied := taken.copied(one.example):
            reason = ("near_duplicate", f"It nearly repeats {copied}.")
        if not _refuse(reasons, id, reason):
            given[group] += 1
            kept.append(one)
    return _capped(kept, reasons)


def _capped(kept: list[_Candidate], reasons: dict[str, Reason]) -> list[_Candidate]:
    """At most so many classroom rows of one person, or of one class where nobody says who it was."""
    groups: dict[tuple[str, ...], list[_Candidate]] = defaultdict(list)
    for one in kept:
        if one.row.classroom:
            own = _own_author(one)
            groups[(own,) if own else ("", one.row.class_name, one.row.user_role)].append(one)
    dropped = set()
    for key, members in groups.items():
        person = len(key) == 1
        least, share = (PERSON_ROWS, PERSON_SHARE) if person else (CLASS_ROWS, CLASS_SHARE)
        most = len(kept) if not person and len(members) == len(kept) else max(least, int(share * len(kept)))
        # By a hash of the id, so that neither the first nor the loudest week of a year decides.
        for one in sorted(members, key=lambda one: hashlib.sha256(one.row.id.encode()).hexdigest())[most:]:
            whose = "Its author" if person else f"Its class ({key[1] or 'none named'}, {key[2] or 'no role'})"
            sentence = f"{whose} gave {len(members)} of {len(kept)} usable rows; {most} at most are used."
            dropped.add(one.row.id)
            reasons[one.row.id] = ("author_cap", sentence)
    return [one for one in kept if one.row.id not in dropped]


# --- what comes out -----------------------------------------------------------------------------------------------------------


def used_reply(one: _Candidate) -> str:
    return one.example.messages[-1].content


def _own_author(one: _Candidate) -> str:
    """What stands for the person whom the row itself names; empty where a whole file was put under one name."""
    return one.example.author if one.row.own_author else ""


def _given(one: _Candidate, group: int) -> Given:
    said = [message.content for message in one.example.messages if message.role == "user"]
    return Given(one.row.id, said, group, _own_author(one))


def _talk(one: _Candidate) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in one.example.messages[:-1]]


def _pair(one: _Candidate) -> dict[str, Any]:
    return {"id": one.row.id, "messages": _talk(one), "chosen": used_reply(one), "rejected": one.reply}


def _thumb(one: _Candidate) -> dict[str, Any]:
    """The reply that the thumb was given to, whatever was put in its place later."""
    return {"id": one.row.id, "messages": _talk(one), "completion": one.reply, "good": one.row.rating == "up"}


def _attribution(kept: Sequence[_Candidate]) -> list[dict[str, str]]:
    """Published sets ask to be named with their author; nobody of the classroom is."""
    named = {(one.row.source, one.row.author, one.row.licence) for one in kept if one.row.licence and not one.row.classroom}
    return [{"source": source, "author": author, "licence": licence} for source, author, licence in sorted(named)]
