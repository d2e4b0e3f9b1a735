"""Which moves a teacher made with their words, each with the sentence in which they made it.

Spoken moves follow phrases that an educator can edit (`content/practice/moves.toml`); `uptake` is judged by a small trained
classifier (`listening`), a pause by its seconds, and a thought given back by the words that are the pupil's. Pure: the same
words give the same moves. Phrases are kept for each language that has any (`moves-es.toml`); where a language has none, still
heard are a question by its mark, a thought given back, and a pause (see `heard_in`). `uptake` was learned in English alone.
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
ENGLISH = "en"
ANYWHERE = ("elicit", "revoice", "wait")  # heard without a word of the language
ASKED_IN = 3  # words and more of a question that is known by its mark alone: "¿De acuerdo?" asks nothing
PAUSE = 3.0  # seconds: what Rowe (1986) called wait time; most teachers leave one
ENOUGH = 20_000  # characters that are looked at: no turn of a lesson is longer
PLACES = ("asks", "opens", "says", "whole", "but_not")
EXTRA = ("words", "negations")  # what a file has beside moves
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
    negations: frozenset[str] = NEGATIONS


def heard_in(language: str) -> frozenset[str]:
    """The moves that can be found in a language, a tag as a scenario has one. Raises BadInput as `detect` does."""
    language = _spoken(language)
    return frozenset(MOVES) if language == ENGLISH else frozenset((*ANYWHERE, *_rules(language)))


def detect(said: str, before: Sequence[str] = (), waited: float | None = None, language: str = ENGLISH) -> tuple[Move, ...]:
    """The moves of one turn in the order of `MOVES`; one of each at most for a sentence.

    before: the lines pupils said just before. waited: seconds of silence that the teacher left. language: the scene's. Raises
    BadInput where the phrases cannot be read.
    """
    language = _spoken(language)
    text = said[:ENOUGH]
    sentences = clauses(text)
    heard = [line for line in before if line.strip()][-3:]
    lines = [frozenset(listening.contents(line[: listening.LONGEST])) for line in heard]
    pupils = frozenset[str]().union(*lines)
    found: dict[str, list[Clause]] = {move: [] for move in MOVES}
    rules = _rules(language)
    seen: dict[tuple[str, bool], list[str]] = {}
    for clause in sentences:
        same = (clause.plain, clause.asks)
        if same not in seen:
            present = {*clause.words, *_beginnings(clause)}
            seen[same] = [move for move, rule in rules.items() if _made(rule, clause, present)]
            if language != ENGLISH and "elicit" not in rules and clause.asks and len(clause.words) >= ASKED_IN:
                seen[same].append("elicit")
        echoes = not pupils or listening.shared(clause.words, pupils)
        for move in seen[same]:
            if move != "revoice" or echoes:
                found[move].append(clause)
        if "revoice" not in seen[same] and listening.given_back(clause, lines):
            found["revoice"].append(clause)
    if heard and language == ENGLISH and (place := listening.taken_up(text, sentences, heard)) is not None:
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
        _first(phrases, clause, present, place, rule.negations)
        for place, phrases in (("whole", rule.whole), ("opens", rule.opens), ("asks", rule.asks), ("says", rule.says))
        if phrases and (place != "asks" or clause.asks)
    ) and not _first(rule.but_not, clause, present, "but_not", rule.negations)


def _first(phrases: Sequence[Phrase], clause: Clause, present: set[str], place: str, negations: frozenset[str]) -> bool:
    for phrase in phrases:
        if not phrase.anchors & present:
            continue
        if place in ("opens", "whole"):
            starts = (phrase.pattern.match(clause.plain, at) for at in clause.opens)
            if any(hit and (place == "opens" or hit.end() in clause.ends) for hit in starts):
                return True
        elif (hit := phrase.pattern.search(clause.plain)) and (
            place == "but_not" or not _negated(clause, hit.start(), negations)
        ):
            return True
    return False


def _negated(clause: Clause, at: int, negations: frozenset[str]) -> bool:
    """Whether one of the three words before is a negation, in the same part: "Don't rush, how many are there?" asks."""
    part = max((start for start in clause.ends if start <= at), default=0)
    return not negations.isdisjoint(clause.plain[part:at].split()[-3:])


def _beginnings(clause: Clause) -> set[str]:
    """Beginnings of words, as phrases such as "clever*" ask for them."""
    return {f"{word[:length]}*" for word in clause.words for length in range(2, len(word) + 1)}


def _spoken(language: str) -> str:
    """A tag without its region: "pt-BR" is heard as "pt"."""
    return language.partition("-")[0].casefold()


@functools.cache
def _rules(language: str = ENGLISH) -> Mapping[str, Rule]:
    """Read and compiled once; of a language without phrases none. Raises BadInput."""
    if not language.isalpha():
        return {}
    path = CONTENT if language == ENGLISH else CONTENT.with_name(f"moves-{language}.toml")
    if not path.is_file() and language != ENGLISH:
        return {}
    try:
        return read(tomllib.loads(path.read_text("utf-8")), every=language == ENGLISH)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be used: {error}.", "Correct that line.") from None
    except BadInput as error:
        raise BadInput(f"{path}: {error.message}", error.hint) from None


def read(facts: Mapping[str, object], *, every: bool = True) -> dict[str, Rule]:
    """The rules of the moves that are spoken; `every`: none may be missing. Raises BadInput, which names move and phrase."""
    sets = facts.get("words", {})
    if not isinstance(sets, Mapping) or not all(isinstance(one, str) for one in sets.values()):
        raise BadInput("[words] has to be a list of names and phrases.", 'Write name = "(one|other)".')
    negations = facts.get("negations", [*NEGATIONS])
    if not isinstance(negations, list) or not all(isinstance(one, str) for one in negations):
        raise BadInput("negations has to be a list of words.", 'Write negations = ["no", "nunca"].')
    if unknown := sorted(set(facts) - {*EXTRA, *RULED}):
        raise BadInput(f"There is no spoken move {unknown[0]!r}.", f"The moves are {', '.join(RULED)}.")
    found = {}
    for move in RULED if every else [one for one in RULED if one in facts]:
        rule = facts.get(move)
        if not isinstance(rule, Mapping) or not any(rule.get(place) for place in PLACES[:-1]):
            raise BadInput(f"The move {move!r} has no phrases.", f"Write [{move}] and one of {', '.join(PLACES[:-1])}.")
        if unknown := sorted(set(rule) - {*PLACES, "asked"}):
            raise BadInput(f"[{move}] has an unknown line, {unknown[0]!r}.", f"Use {', '.join(PLACES)}, asked.")
        asks, opens, says, whole, but_not = (_phrases(move, rule.get(place, []), sets) for place in PLACES)
        found[move] = Rule(asks, opens, says, whole, but_not, bool(rule.get("asked", True)), frozenset(negations))
    return found


def _phrases(move: str, written: object, sets: Mapping[str, str]) -> tuple[Phrase, ...]:
    if not isinstance(written, list) or not all(isinstance(one, str) for one in written):
        raise BadInput(f"[{move}] needs lists of phrases.", 'Write ["one phrase", "another"].')
    try:
        return tuple(compile_phrase(one, sets) for one in written)
    except BadInput as error:
        raise BadInput(f"[{move}]: {error.message}", error.hint) from None
