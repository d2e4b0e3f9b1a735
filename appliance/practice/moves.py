"""Which moves a teacher made with their words, each with the sentence in which they made it.

Spoken moves follow phrases that an educator can edit (`content/practice/moves.toml`); `uptake` is judged by a small trained
classifier (`listening`), a pause by its seconds, and a thought given back by the words that are the pupil's. Pure: the same
words give the same moves. It is written for English; in other languages it finds little, and never stops a lesson.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import BadInput
from appliance.practice import listening
from appliance.practice.clauses import Clause, clauses
from appliance.practice.exchange import MOVES, Move
from appliance.safety.phrases import Phrase, compile_phrase

CONTENT = Path(__file__).parents[1] / "content" / "practice" / "moves.toml"
PAUSE = 3.0  # seconds: what Rowe (1986) called wait time; most teachers leave one
ENOUGH = 20_000  # characters that are looked at: no turn of a lesson is longer
PLACES = ("asks", "opens", "says", "whole", "but_not")
RULED = tuple(move for move in MOVES if move not in ("wait", "uptake"))
# Not before a phrase that is to count: "I won't tell you the answer", "nobody is a genius".
_NEGATIONS_WORDS = (
    "not never dont doesnt didnt wont cant cannot isnt arent wasnt werent couldnt wouldnt shouldnt havent hasnt nobody without"
)
NEGATIONS = frozenset(_NEGATIONS_WORDS.split())


@dataclass(frozen=True, slots=True)
class Rule:
    """What makes a move: phrases in a question, where a part opens, anywhere, as a whole part; what undoes it."""

    asks: tuple[Phrase, ...]
    opens: tuple[Phrase, ...]
    says: tuple[Phrase, ...]
    whole: tuple[Phrase, ...]
    but_not: tuple[Phrase, ...]
    asked: bool = True  # whether a question can make it


def detect(said: str, before: Sequence[str] = (), waited: float | None = None) -> tuple[Move, ...]:
    """The moves of one turn in the order of `MOVES`; one of each at most for a sentence.

    before: the lines pupils said just before. waited: seconds of silence that the teacher left. Raises BadInput where the
    phrases cannot be read.
    """
    text = said[:ENOUGH]
    sentences = clauses(text)
    heard = [line for line in before if line.strip()][-3:]
    lines = [frozenset(listening.contents(line[: listening.LONGEST])) for line in heard]
    pupils = frozenset[str]().union(*lines)
    found: dict[str, list[Clause]] = {move: [] for move in MOVES}
    rules = _rules()
    seen: dict[tuple[str, bool], list[str]] = {}
    for clause in sentences:
        same = (clause.plain, clause.asks)
        if same not in seen:
            present = {*clause.words, *_beginnings(clause)}
            seen[same] = [move for move in RULED if _made(rules[move], clause, present)]
        echoes = not pupils or listening.shared(clause.words, pupils)
        for move in seen[same]:
            if move != "revoice" or echoes:
                found[move].append(clause)
        if "revoice" not in seen[same] and listening.given_back(clause, lines):
            found["revoice"].append(clause)
    if heard and (place := listening.taken_up(text, sentences, heard)) is not None:
        found["uptake"].append(place)
    moves = [Move(move, text[one.start : one.end], one.start, one.end) for move, places in found.items() for one in places]
    if waited is not None and waited >= PAUSE:
        moves.append(Move("wait"))
    order = list(MOVES)
    return tuple(sorted(moves, key=lambda move: (order.index(move.id), move.start)))


def _made(rule: Rule, clause: Clause, present: set[str]) -> bool:
    if clause.asks and not rule.asked:
        return False
    return any(
        _first(phrases, clause, present, place)
        for place, phrases in (("whole", rule.whole), ("opens", rule.opens), ("asks", rule.asks), ("says", rule.says))
        if phrases and (place != "asks" or clause.asks)
    ) and not _first(rule.but_not, clause, present, "but_not")


def _first(phrases: Sequence[Phrase], clause: Clause, present: set[str], place: str) -> bool:
    for phrase in phrases:
        if not phrase.anchors & present:
            continue
        if place in ("opens", "whole"):
            starts = (phrase.pattern.match(clause.plain, at) for at in clause.opens)
            if any(hit and (place == "opens" or hit.end() in clause.ends) for hit in starts):
                return True
        elif (hit := phrase.pattern.search(clause.plain)) and (place == "but_not" or not _negated(clause.plain[: hit.start()])):
            return True
    return False


def _negated(lead: str) -> bool:
    return not NEGATIONS.isdisjoint(lead.split()[-3:])


def _beginnings(clause: Clause) -> set[str]:
    """Beginnings of words, as phrases such as "clever*" ask for them."""
    return {f"{word[:length]}*" for word in clause.words for length in range(2, len(word) + 1)}


@functools.cache
def _rules() -> Mapping[str, Rule]:
    """Read and compiled once. Raises BadInput."""
    try:
        return read(tomllib.loads(CONTENT.read_text("utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{CONTENT} cannot be used: {error}.", "Correct that line.") from None
    except BadInput as error:
        raise BadInput(f"{CONTENT}: {error.message}", error.hint) from None


def read(facts: Mapping[str, object]) -> dict[str, Rule]:
    """The rules of every move that is spoken. Raises BadInput, which names the move and the phrase."""
    sets = facts.get("words", {})
    if not isinstance(sets, Mapping) or not all(isinstance(one, str) for one in sets.values()):
        raise BadInput("[words] has to be a list of names and phrases.", 'Write name = "(one|other)".')
    if unknown := sorted(set(facts) - {"words", *RULED}):
        raise BadInput(f"There is no spoken move {unknown[0]!r}.", f"The moves are {', '.join(RULED)}.")
    found = {}
    for move in RULED:
        rule = facts.get(move)
        if not isinstance(rule, Mapping) or not any(rule.get(place) for place in PLACES[:-1]):
            raise BadInput(f"The move {move!r} has no phrases.", f"Write [{move}] and one of {', '.join(PLACES[:-1])}.")
        if unknown := sorted(set(rule) - {*PLACES, "asked"}):
            raise BadInput(f"[{move}] has an unknown line, {unknown[0]!r}.", f"Use {', '.join(PLACES)}, asked.")
        asks, opens, says, whole, but_not = (_phrases(move, rule.get(place, []), sets) for place in PLACES)
        found[move] = Rule(asks, opens, says, whole, but_not, asked=bool(rule.get("asked", True)))
    return found


def _phrases(move: str, written: object, sets: Mapping[str, str]) -> tuple[Phrase, ...]:
    if not isinstance(written, list) or not all(isinstance(one, str) for one in written):
        raise BadInput(f"[{move}] needs lists of phrases.", 'Write ["one phrase", "another"].')
    try:
        return tuple(compile_phrase(one, sets) for one in written)
    except BadInput as error:
        raise BadInput(f"[{move}]: {error.message}", error.hint) from None
