"""What is told of a rehearsal: each line of the rubric with the teacher's own words as evidence, and one thing to try next.

It counts moves and quotes them; it never gives a mark, a rank or a percentage of a person, and nobody is told of it but the
teacher. Pure: the same exchanges give the same feedback. Hides how counts become one of three sentences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from appliance.practice.clauses import words
from appliance.practice.exchange import MOVES, Exchange
from appliance.practice.moves import heard_in
from appliance.practice.scenario import Criterion, Scenario

QUOTES = 6  # for and against each line: more is not read
LONG_TURN = 120  # words: about a minute of talk
MOST_TALK = 0.8  # of all words
NOTHING_SAID = "Nothing has been said yet, so there is nothing to look at. Begin with one sentence to the pupils."
LESS_AT_ONCE = "One of your turns was very long. Try to stop after two sentences and ask what they make of it."
LEAVE_ROOM = "Most of the words were yours. Ask one question, and wait until somebody has answered it."
GO_ON = "Every line of this rubric has its evidence. Play it again and try to change one thing, or choose a harder scene."
MORE, LESS, AS_BEFORE = "You did more of this than before.", "You did less of this than before.", "As before."
# All that is said in these words: pages look them up in the reader's language. A rubric's own words are its scene's.
SENTENCES = (NOTHING_SAID, LESS_AT_ONCE, LEAVE_ROOM, GO_ON, MORE, LESS, AS_BEFORE)


@dataclass(frozen=True, slots=True)
class Quote:
    """The teacher's own words, letter for letter, in turn number `turn`; text "" is a pause."""

    turn: int
    text: str
    move: str


@dataclass(frozen=True, slots=True)
class Score:
    """One line of the rubric. level: the number of the sentence in `criterion.levels`; never shown as a number.

    turns: those with such a move less those with one against it; more than are quoted, where there are many.
    """

    criterion: Criterion
    level: int
    evidence: tuple[Quote, ...]
    against: tuple[Quote, ...]
    try_this: str
    turns: int = 0

    @property
    def words(self) -> str:
        """The sentence that is shown."""
        return self.criterion.levels[self.level]


@dataclass(frozen=True, slots=True)
class Feedback:
    """moves: turns in which each was made. talk: the teacher's share of all words, 0 to 1, None where nobody spoke.

    longest_turn: words of the longest turn. pauses: seconds of each pause that is known. turns: how often the teacher spoke.
    unheard: names of the rubric's lines that need moves which nobody can find in the scene's language. They have no score.
    """

    scores: tuple[Score, ...]
    moves: Mapping[str, int]
    talk: float | None
    longest_turn: int
    next_step: str
    pauses: tuple[float, ...] = ()
    turns: int = 0
    unheard: tuple[str, ...] = ()

    def as_facts(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Feedback:
        return cls(
            tuple(_score(one) for one in facts["scores"]), dict(facts["moves"]), facts["talk"], facts["longest_turn"],
            facts["next_step"], tuple(facts["pauses"]), facts["turns"], tuple(facts.get("unheard", ())),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Change:
    """One line of the rubric in two attempts. `before`, `after`: the sentences that were shown; `words`: what became of it."""

    criterion: str
    name: str
    before: str
    after: str
    direction: int  # -1, 0, 1
    words: str


def assess(scenario: Scenario, exchanges: Sequence[Exchange]) -> Feedback:
    """What the teacher's turns show. The turns are taken in their order; those without words count for nothing but a pause."""
    spoken = [one for one in exchanges if one.said.strip()]
    heard = heard_in(scenario.language)
    scores = tuple(_judge(one, exchanges) for one in scenario.rubric if not heard.isdisjoint(one.moves))
    unheard = tuple(one.name for one in scenario.rubric if heard.isdisjoint(one.moves))
    moves = {move: sum(any(one.id == move for one in exchange.moves) for exchange in exchanges) for move in MOVES}
    own = [len(words(one.said)) for one in spoken]
    theirs = sum(len(words(beat.said or beat.line)) for exchange in exchanges for beat in exchange.beats)
    total = sum(own) + theirs
    talk = sum(own) / total if total else None
    longest = max(own, default=0)
    pauses = tuple(one.waited for one in exchanges if one.waited is not None)
    step = _next_step(scores, longest, talk) if spoken else NOTHING_SAID
    made = {move: count for move, count in moves.items() if count}
    return Feedback(scores, made, talk, longest, step, pauses, len(spoken), unheard)


def compare(first: Feedback, second: Feedback) -> list[Change]:
    """What changed from one attempt to the next, for each line that both rubrics have, in the second one's order."""
    earlier = {score.criterion.id: score for score in first.scores}
    found = []
    for score in second.scores:
        before = earlier.get(score.criterion.id)
        if before is None:
            continue
        gained = (score.level, score.turns) > (before.level, before.turns)
        lost = (score.level, score.turns) < (before.level, before.turns)
        told = MORE if gained else LESS if lost else AS_BEFORE
        found.append(Change(score.criterion.id, score.criterion.name, before.words, score.words, int(gained) - int(lost), told))
    return found


def _judge(criterion: Criterion, exchanges: Sequence[Exchange]) -> Score:
    """Turns with one of its moves, less turns with one against it; the top from `enough` on, the middle from one."""
    evidence, against = _quotes(exchanges, criterion.moves), _quotes(exchanges, criterion.against)
    counted = len({one.turn for one in evidence}) - len({one.turn for one in against})
    level = 2 if counted >= criterion.enough else 1 if counted >= 1 else 0
    return Score(criterion, level, _shown(evidence), _shown(against), criterion.try_this, counted)


def _quotes(exchanges: Sequence[Exchange], moves: Sequence[str]) -> list[Quote]:
    """One for each sentence and turn, whichever of the moves it made first."""
    found: dict[tuple[int, str], Quote] = {}
    for exchange in exchanges:
        for move in exchange.moves:
            if move.id in moves:
                text = exchange.said[move.start : move.end]
                found.setdefault((exchange.number, text), Quote(exchange.number, text, move.id))
    return list(found.values())


def _shown(quotes: Sequence[Quote]) -> tuple[Quote, ...]:
    """At most `QUOTES`, one of each turn first, in the order in which they were said."""
    seen: set[int] = set()
    first: list[Quote] = []
    more: list[Quote] = []
    for quote in quotes:
        (more if quote.turn in seen else first).append(quote)
        seen.add(quote.turn)
    kept = [*first, *more][:QUOTES]
    return tuple(quote for quote in quotes if quote in kept)


def _next_step(scores: Sequence[Score], longest: int, talk: float | None) -> str:
    """One thing: the weakest line of the rubric, the first of equals; then how much was said; then going on."""
    weakest = min(scores, key=lambda score: (score.level, score.turns), default=None)
    if weakest is not None and weakest.level < 2:
        return weakest.try_this
    if longest > LONG_TURN:
        return LESS_AT_ONCE
    if talk is not None and talk > MOST_TALK:
        return LEAVE_ROOM
    return GO_ON if scores else ""


def _score(facts: Mapping[str, Any]) -> Score:
    of = facts["criterion"]
    criterion = Criterion(
        of["id"], of["name"], tuple(of["moves"]), tuple(of["against"]), of["enough"],
        (of["levels"][0], of["levels"][1], of["levels"][2]), of["try_this"],
    )  # fmt: skip
    evidence = tuple(Quote(**one) for one in facts["evidence"])
    against = tuple(Quote(**one) for one in facts["against"])
    return Score(criterion, facts["level"], evidence, against, facts["try_this"], facts["turns"])
