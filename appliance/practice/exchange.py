"""What passes between a teacher and the room: the teacher's moves, the pupils' states, and what the pupils do.

Plain values that can be stored: `as_facts` gives JSON, `from_facts` reads it back. They decide nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

# What a teacher can do with their words, in the order in which pages list it.
MOVES: Mapping[str, str] = {
    "elicit": "asks what a pupil thinks or knows",
    "press": "asks for the reason behind it",
    "revoice": "says a pupil's thought again and gives it back",
    "uptake": "builds on what a pupil has just said",
    "hint": "gives a hint and leaves the step to the pupil",
    "check": "checks what has been understood",
    "wait": "leaves time to think",
    "praise_effort": "praises what a pupil did, so that it can be done again",
    "acknowledge": "names what somebody feels, without judging it",
    "offer_choice": "offers a choice",
    "correct_behaviour": "says calmly what is expected",
    "confirm": "says that an answer is right or wrong",
    "tell": "gives the answer or the rule away",
    "praise_person": "praises what somebody is instead of what they did",
    "put_down": "shames, threatens or is sarcastic",
}


@dataclass(frozen=True, slots=True)
class Move:
    """One move in a turn. `quote` stands in the teacher's words from `start` to `end`, "" for a pause (which has no words)."""

    id: str
    quote: str = ""
    start: int = 0
    end: int = 0


@dataclass(frozen=True, slots=True)
class PupilState:
    """One pupil now. `hold`: what is left of a misconception, 0 for none; it only falls by the rules of `pupils`.

    knowledge, energy, attention: 0 to 4. mood: -2 (hurt, angry) to 2 (glad). spoke: the turn in which they last did, else 0.
    last: the written line of that turn, which they do not say twice in a row.
    """

    name: str
    knowledge: int
    hold: int
    mood: int
    energy: int
    attention: int
    spoke: int = 0
    last: str = ""


@dataclass(frozen=True, slots=True)
class Room:
    """All pupils after the teacher's turn number `turn`, 0 at first. `happened`: numbers of the events that came to pass."""

    turn: int
    pupils: tuple[PupilState, ...]
    seed: int = 0
    happened: tuple[int, ...] = ()

    def as_facts(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Room:
        pupils = tuple(PupilState(**one) for one in facts["pupils"])
        return cls(facts["turn"], pupils, facts["seed"], tuple(facts["happened"]))


@dataclass(frozen=True, slots=True)
class Beat:
    """What one pupil does after the teacher's turn.

    `intent`: what the rules made of their state, see `pupils.INTENTS`. `line`: the written words for it. `said`: the words that
    were shown, a model's or the written ones; `by_model` says which. An event of the scene has the intent "event".
    """

    pupil: str
    intent: str
    line: str
    said: str = ""
    by_model: bool = False


@dataclass(frozen=True, slots=True)
class Exchange:
    """One turn of the teacher and what came of it. `waited`: seconds of silence before they spoke on, None where unknown."""

    number: int
    said: str
    moves: tuple[Move, ...] = ()
    beats: tuple[Beat, ...] = ()
    waited: float | None = None

    def as_facts(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Exchange:
        moves = tuple(Move(**one) for one in facts["moves"])
        beats = tuple(Beat(**one) for one in facts["beats"])
        return cls(facts["number"], facts["said"], moves, beats, facts["waited"])
