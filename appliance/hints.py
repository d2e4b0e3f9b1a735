"""Hints first: whether a pupil has tried the task at hand, how many hints there were, and what the model is told of it.

Everything is read anew from the talk, so nothing has to be stored and a reload changes nothing: a task begins with the question
that is neither a try nor a plea nor a word about the one before; each answer since then was a hint. The whole solution may be
shown after a try and the two hints that follow it: begging first and guessing then does not shorten the way. It tells by words
which an educator can edit (`content/hints.toml`) and is wrong now and then: where unsure it takes a message for no try, or
for a new task, and the pupil gets a hint more. Pure functions; it asks no model. What a talk brought in through `/v1` says of
earlier answers is believed.
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from appliance.engine.handler import Message
from appliance.errors import BadInput
from appliance.knowledge.follow_ups import says_nothing
from appliance.knowledge.words import STOP_WORDS, fold

CONTENT = Path(__file__).parent / "content" / "hints.toml"
LEVELS = ("hints", "examples")  # of help: those with a state
ENOUGH = 2  # hints before the solution
LOOK_BACK = 60  # messages
LONGEST = 2_000  # characters of a message that are looked at
FAR = 12  # words; so many without one that was said before are about something else
SHORT = 8  # words; a plea no longer than that sets no task
INSTRUCTIONS = ("attempt", "again", "demand", "hint", "solution")

_CLAUSE = re.compile(r"[.!?;]+(?=\s|$)|\n+|,\s+|\s(?:but|pero|mais|لكن)\s|(?<=[؟،])")
_SUM = re.compile(r"[\w)\]²³]\s*(?:[+*/×·÷^=<>≈]|\s[-−x]\s)\s*[-−(\[√]?\s*\w")  # noqa: RUF001 - the signs of sums
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_VARIABLE = re.compile(r"\b(?:\d+[a-z]|[b-hj-z])\b")
_YES_OR_NO = re.compile(r"(?:is|are|was|would|could|should|does|do|did|can|will)\b")
_OPEN = re.compile(r"=\s*(?:\?|_+|$)")


@dataclass(frozen=True, slots=True)
class State:
    """Of the task at hand. hints: answers since it began, or since the first try. demanded: it is asked for."""

    attempted: bool = False
    hints: int = 0
    demanded: bool = False

    @property
    def stage(self) -> str:
        """One of INSTRUCTIONS."""
        if self.attempted:
            return "solution" if self.hints >= ENOUGH else "hint"
        return "demand" if self.demanded else "again" if self.hints else "attempt"


def note(help_level: str, messages: Sequence[Message]) -> str:
    """What the model is told behind the last message, "" where this level of help has no state."""
    if help_level not in LEVELS:
        return ""
    found = state(messages)
    number = found.hints if found.stage == "solution" else found.hints + 1
    return _content()[0][found.stage].replace("{n}", str(number))


def state(messages: Sequence[Message]) -> State:
    """Where a talk stands whose last message is the pupil's."""
    now, task = State(), ""
    for message in [one for one in messages if one.role != "system"][-LOOK_BACK:]:
        if message.role == "assistant":
            now, task = replace(now, hints=now.hints + 1), f"{task}\n{message.content[:LONGEST]}"
            continue
        text = message.content[:LONGEST]
        if not task or new_task(text, task):
            now, task = State(attempted=attempt(text)), text
        else:
            if not now.attempted and attempt(text, task):
                now = State(attempted=True)
            task = f"{task}\n{text}"
        now = replace(now, demanded=demand(text))
    return now


def attempt(text: str, before: str = "") -> bool:
    """Whether a message shows a try. `before`: what was said of the task; "" where the message sets the task itself.

    A first message shows one only where it says so ("I got 7"); later, an answer to what was asked back is one.
    """
    clauses = [one for one in _clauses(text) if not _filler(one)]
    own = [one for one in clauses if not _has("demand", one) and not (_has("surrender", one) and not _has("attempt", one))]
    told = [one for one in own if _has("attempt", one) and len(one.split()) > 1 and not _starts("ask", one)]
    guessed = [one for one in own if _guess(one, before)]
    asking = (
        not before or len(own) < len(clauses) or _has("plea", fold(text))
    )  # a plea beside it: then only what says that it is a try counts
    if asking:
        worked = bool(before) and any(_sum_of_own(one, before) for one in own)
        return any(_about(one) for one in told) or bool(guessed) or worked
    answers = [one for one in own if not _starts("ask", one) and not _repeated(one, before) and not _OPEN.search(one)]
    return bool(told or guessed or answers) and not far(text, before)


def demand(text: str) -> bool:
    """Whether a message asks for the solution."""
    return any(_has("demand", one) for one in _clauses(text))


def new_task(text: str, before: str) -> bool:
    """Whether a message is about something else than the talk before it."""
    if says_nothing(text) or all(_filler(one) or _has("surrender", one) for one in _clauses(text)):
        return False
    asks = [one for one in _clauses(text) if (_starts("ask", one) or _OPEN.search(one)) and not _guess(one, before)]
    if any(_numbers(one) - _numbers(before) and not _YES_OR_NO.match(one) for one in asks):
        return True
    if asks and not any(_content_words(one) & _content_words(before) for one in asks) and any(map(_content_words, asks)):
        return not demand(text) or len(text.split()) >= SHORT
    return not attempt(text, before) and far(text, before)


def far(text: str, before: str) -> bool:
    """Whether a long message has no word and no number in common with what was said, and no sum and no sign of a try."""
    if len(text.split()) < FAR or _numbers(text) or any(_has("attempt", one) for one in _clauses(text)):
        return False
    return not _content_words(text) & _content_words(before)


# --- words ---------------------------------------------------------------------------------------------------------------
def _clauses(text: str) -> list[str]:
    plain = fold(text.replace("\u2019", "'"))
    marked = re.sub(r"[,.]?\s*\bright\?", " right?_", plain)  # "..., right?" says that it is a try
    return [one.strip(" \t\"'()¿¡_") for one in _CLAUSE.split(marked) if one and one.strip(" \t\"'()¿¡_.,!?;:")]


def _about(clause: str) -> bool:
    """Whether it says what was tried: more than "I think" alone."""
    return (
        len([one for one in re.findall(r"[\w/]+", clause) if one not in ("i", "think", "guess", "tried", "got", "maybe")]) > 0
    )


def _guess(clause: str, before: str) -> bool:
    """Whether it asks if something is right: "is it 7?"."""
    return bool(_YES_OR_NO.match(clause)) and (_has("attempt", clause) or bool(before and _numbers(clause) - _numbers(before)))


def _sum_of_own(clause: str, before: str) -> bool:
    return bool(_SUM.search(clause)) and not _repeated(clause, before) and not _OPEN.search(clause)


def _repeated(clause: str, before: str) -> bool:
    """Whether the task itself is only said again: three words or more, all in a row."""
    words = clause.split()
    return len(words) >= 3 and " ".join(words) in " ".join(fold(before).split())


def _numbers(text: str) -> set[str]:
    return set(_NUMBER.findall(text))


def _content_words(text: str) -> set[str]:
    """The beginnings of words that say something: "fractions" and "fraction" are one."""
    plain = fold(text)
    words = {one[:6] for one in re.findall(r"[^\W_]{3,}", plain) if one not in STOP_WORDS and not one.isdigit()}
    return words | set(_VARIABLE.findall(plain))


def _filler(clause: str) -> bool:
    return all(one in _content()[2] for one in re.findall(r"[\w']+", clause))


def _has(kind: str, clause: str) -> bool:
    return _content()[1][kind].search(clause) is not None


def _starts(kind: str, clause: str) -> bool:
    rest = re.sub(r"^(?:(?:and|so|but|ok|okay|please|then|well|y|et|و) )+", "", clause)
    return _content()[1][kind].match(rest) is not None


@functools.cache
def _content() -> tuple[Mapping[str, str], Mapping[str, re.Pattern[str]], frozenset[str]]:
    """(instructions, patterns, words that say nothing). Raises BadInput."""
    try:
        facts: Mapping[str, Any] = tomllib.loads(CONTENT.read_text("utf-8"))
        told = {name: str(facts["instructions"][name]).strip() for name in INSTRUCTIONS}
        kinds = ("attempt", "demand", "surrender", "plea", "ask")
        return told, {kind: _pattern(facts["words"][kind]) for kind in kinds}, frozenset(map(fold, facts["words"]["filler"]))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError, TypeError, re.error) as error:
        raise BadInput(f"{CONTENT} cannot be used: {error}.", "Correct that line.") from None


def _pattern(words: Sequence[str]) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w'])(?:{'|'.join(fold(one) for one in words)})(?![\w'])")
