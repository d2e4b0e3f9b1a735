"""What a teacher's turn owes to the pupil who spoke before it: taken up, given back, on the task, and what a tutor did.

A linear classifier over facts of the two texts, learned by `scripts/train-move-detector` from public sets of labelled
exchanges; its weights are `content/practice/detector.npz`, their card stands beside it. For the labels on the task and what a
tutor did, the sentence model of `pairs` is heard too, where the box has it: it reads what those words mean together. For
uptake it adds nothing, which is mostly a matter of what is said again. Hides features and weights. Uptake costs a turn about a
millisecond and no model is loaded for it; a whole reading costs some hundredths of a second.

Of what it reads only `uptake` becomes a move. The other labels are measured beside it (`scripts/bench practice`) and tell a
teacher nothing, for three reasons. Whether a pupil is on the task is state in `pupils`, known and not guessed. Whether a
teacher is on it means nothing in scenes about behaviour or with parents, and of the turns written for the tests that are not
about the subject one in four passes as if it were. What a tutor does is found by the phrases of `moves` with fewer mistakes:
on sentences that are new to both, a "question" taken for asking what somebody thinks has precision 0.58, a "confirmation"
0.75, the phrases 1.00, since the tutors of that set teach one task in one language.
"""

from __future__ import annotations

import functools
import json
import math
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from appliance.errors import BadInput
from appliance.practice import pairs
from appliance.practice.clauses import Clause, clauses, words

WEIGHTS = Path(__file__).parents[1] / "content" / "practice" / "detector.npz"
LONGEST = 2_000  # characters of each text that are judged
UPTAKE, ON_TASK = ("none", "some", "much"), ("pupil on task", "teacher on task")
ACTIONS = ("question", "hint", "correction", "confirmation", "other")  # CIMA's names of what a tutor does
OUTPUTS = (*UPTAKE, *ON_TASK, *ACTIONS)
# Sets that `pairs` learned from -> the outputs it is heard for, and what the linear model counts for beside it. Chosen by
# cross-validation over parts 1 to 4 of the rows.
PAIRED = {"lessons": (ON_TASK, 1.0), "tutoring": (ACTIONS, 2.0)}
_STOP_WORDS = (
    "a an the i im ive id ill you youre youve we were weve they theyre he hes she shes it its this that thats these "
    "those there is am are was be been being do does did doing done have has had having will would can could should "
    "may might must to of in on at by for with from as and or but so if then than not no yes yeah ok okay well like "
    "just some any all what which who how when where why because about into out up down over again my your our their "
    "his her me us them him mine yours oh um uh now here get got go going gonna one thing think know say said says "
    "mean right good let lets cause cos also too very really"
)
STOP = frozenset(_STOP_WORDS.split())
_MARKS = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")  # noqa: RUF001 - apostrophes as they are typed
_QUOTED = re.compile('"[^"]{1,80}"|“[^”]{1,80}”')
_ENDINGS = re.compile(r"(?:ing|ies|ied|es|ed|s|ly|er)$")
_ACKNOWLEDGES_WORDS = "okay ok yes yeah yep right good great mm hm alright all excellent nice exactly correct no very"
_ACKNOWLEDGES = frozenset(_ACKNOWLEDGES_WORDS.split())
_ASKING_WORDS = "what why how who where when which whats hows whos whose can could would do does did is are"
_ASKING = frozenset(_ASKING_WORDS.split())


def contents(text: str) -> list[str]:
    """The words that carry meaning, without their endings: "counted in fives" -> count, five."""
    return [stem(word) for word in words(text) if word not in STOP]


def stem(word: str) -> str:
    return _ENDINGS.sub("", word) if len(word) > 4 else word.removesuffix("s") if len(word) == 4 else word


def shared(said: Iterable[str], pupils: frozenset[str]) -> bool:
    """Whether one of the pupils' words comes back."""
    return any(stem(word) in pupils for word in said if word not in STOP)


def given_back(clause: Clause, heard: Sequence[frozenset[str]]) -> bool:
    """Whether a sentence is, for the most part, what a pupil has just said. heard: the `contents` of each line."""
    own = [stem(word) for word in clause.words if word not in STOP]
    for theirs in heard:
        same = [word for word in own if word in theirs]
        if len(set(same)) >= 2 and len(same) >= 0.6 * len(own) and len(set(same)) >= 0.4 * len(theirs):
            return True
    return False


@dataclass(frozen=True, slots=True)
class Reading:
    """What the classifier makes of a turn. uptake: 0 none, 1 some, 2 much; the others yes or no.

    `actions`: those of `ACTIONS`.
    """

    uptake: int
    pupil_on_task: bool
    teacher_on_task: bool
    actions: frozenset[str]


@dataclass(frozen=True, slots=True)
class Tables:
    """What features need to know of words. rarity: of a word's stem; common: how little a word or a pair of words says."""

    rarity: Mapping[str, float]
    common: Mapping[str, float]
    rarest: float = 1.5


@dataclass(frozen=True, slots=True)
class _Model:
    tables: Tables
    places: Mapping[str, int]
    weights: np.ndarray[Any, np.dtype[np.float32]]  # features x OUTPUTS
    bias: np.ndarray[Any, np.dtype[np.float32]]


def read(said: str, heard: str, sets: Iterable[str] = tuple(PAIRED)) -> Reading:
    """One turn after a pupil's line. Raises BadInput where the weights are missing or damaged.

    sets: those of `PAIRED` that are wanted; for the labels of the others the linear model judges alone.
    """
    scores = _linear(said, heard)
    for kind in sets:
        if (read_together := pairs.scores(kind, heard[:LONGEST], said[:LONGEST])) is not None:
            add(scores, kind, read_together)
    at = len(UPTAKE)
    actions = scores[at + len(ON_TASK) :]
    return Reading(
        int(np.argmax(scores[:at])), bool(scores[at] > 0), bool(scores[at + 1] > 0),
        frozenset(name for name, score in zip(ACTIONS, actions, strict=True) if score > 0),
    )  # fmt: skip


def add(scores: np.ndarray[Any, Any], kind: str, read_together: np.ndarray[Any, Any]) -> None:
    """Scores in the order of `OUTPUTS` by the linear model become those by both."""
    names, share = PAIRED[kind]
    at = [OUTPUTS.index(name) for name in names]
    scores[at] = share * scores[at] + read_together


def taken_up(text: str, sentences: Sequence[Clause], heard: Sequence[str]) -> Clause | None:
    """The sentence that builds on what was said just before, None where the turn builds on nothing."""
    if not sentences or not heard or np.argmax(_linear(text, heard[-1])[: len(UPTAKE)]) < 2:
        return None
    rarity = _model().tables.rarity
    theirs = set(contents(heard[-1]))

    def owes(clause: Clause) -> float:
        own = {stem(word) for word in clause.words if word not in STOP}
        return sum(rarity.get(word, 1.0) for word in own & theirs) + 0.5 * clause.asks

    return max(sentences, key=owes)


def _linear(said: str, heard: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    model = _model()
    found = features(said, heard, model.tables)
    known = [(model.places[name], value) for name, value in found.items() if name in model.places]
    scores = model.bias.copy()
    if known:
        rows, values = zip(*known, strict=True)
        scores += np.asarray(values, np.float32) @ model.weights[list(rows)]
    return scores


@functools.cache
def _model() -> _Model:
    try:
        with WEIGHTS.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            tables = json.loads(kept["tables"].tobytes())
            names = kept["names"].tobytes().decode().split("\n")
            scale = dict(zip(kept["groups"].tobytes().decode().split("\n"), kept["scale"], strict=True))
            weights = kept["weights"].astype(np.float32)
            bias = kept["bias"].astype(np.float32)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        hint = "Install the appliance again, or run scripts/train-move-detector."
        raise BadInput(f"{WEIGHTS} cannot be read: {error}.", hint) from None
    weights *= np.stack([scale[name.partition(":")[0]] for name in names])
    common = dict.fromkeys((name[2:] for name in names if name[0] in "uv"), 1.0) | tables.pop("common")
    return _Model(Tables(common=common, **tables), {name: place for place, name in enumerate(names)}, weights, bias)


# --- what the classifier looks at ------------------------------------------------------------------------------------------
def features(said: str, heard: str, tables: Tables) -> dict[str, float]:
    """Name -> value. "t:" words of the teacher, "p:" of the pupil, "u:" and "v:" the same by how much they say, "q:" short runs
    without what is quoted, "m:" the same without what the pupil said, "s:" form and length, "o:" what the two share."""
    said, heard = said[:LONGEST], heard[:LONGEST]
    own, theirs = words(said), words(heard)
    sentences = clauses(said)
    found: dict[str, float] = {}
    _bag(found, "t", own)
    _bag(found, "p", theirs)
    _meaning(found, "u", own, tables.common)
    _meaning(found, "v", theirs, tables.common)
    _runs(found, "q", said)
    _runs(found, "m", said, frozenset(theirs))
    _form(found, said, own, sentences)
    _pupil(found, heard, theirs)
    _overlap(found, own, theirs, sentences, tables)
    return found


def _bag(found: dict[str, float], name: str, text: Sequence[str]) -> None:
    size = math.sqrt(len(set(text)) or 1)
    for word in set(text):
        found[f"{name}:{word}"] = 1 / size
    for pair in set(pairwise(text)):
        found[f"{name}:{pair[0]} {pair[1]}"] = 1 / size


def grams(text: Sequence[str]) -> set[str]:
    """Words and pairs of neighbours."""
    return {*text, *(f"{one} {other}" for one, other in pairwise(text))}


def _meaning(found: dict[str, float], name: str, text: Sequence[str], common: Mapping[str, float]) -> None:
    """Weights of these come from a sentence embedder: words that mean alike weigh alike. Long texts weigh as short ones."""
    values = {gram: common.get(gram, 1.0) for gram in grams(text)}
    size = math.sqrt(sum(value * value for gram, value in values.items() if gram in common)) or 1.0
    for gram, value in values.items():
        if gram in common:
            found[f"{name}:{gram}"] = value / size


def _runs(found: dict[str, float], name: str, said: str, theirs: frozenset[str] = frozenset()) -> None:
    """theirs: words of the pupil, which all count as one, so that the form of "No, X is Y" is seen whatever is talked of."""
    every = _MARKS.findall(_QUOTED.sub(" qq ", said.lower()))
    marks = ["^", *("pp" if len(one) > 3 and one in theirs else one for one in every), "$"]
    size = math.sqrt(len(marks))
    for length in (1, 2, 3):
        for at in range(len(marks) - length + 1):
            found[f"{name}:{' '.join(marks[at : at + length])}"] = 1 / size


def _form(found: dict[str, float], said: str, own: Sequence[str], sentences: Sequence[Clause]) -> None:
    found["s:length"] = math.log1p(len(own)) / 3
    found[f"s:length {min(6, int(math.log2(len(own) + 1)))}"] = 1
    found["s:sentences"] = math.log1p(len(sentences)) / 2
    asked = sum(one.asks for one in sentences)
    found["s:asks"] = float(asked > 0)
    found["s:asks much"] = math.log1p(asked)
    if sentences:
        first, last = sentences[0], sentences[-1]
        found["s:first asks"] = float(first.asks)
        found["s:last asks"] = float(last.asks)
        found[f"s:first {first.words[0]}"] = 1
        found[f"s:first {' '.join(first.words[:2])}"] = 1
        found[f"s:last {last.words[0]}"] = 1
        found["s:first short"] = float(len(first.words) <= 2)
        found["s:acknowledges"] = float(first.words[0] in _ACKNOWLEDGES)
        found["s:only acknowledges"] = float(all(word in _ACKNOWLEDGES for word in own))
        found["s:calls a name"] = float(bool(re.search(r"Student [A-Z]\b[.,?]?\s*(?:$|\?)", said[-14:])))
        found["s:only a name"] = float(len(own) <= 3 and "student" in own)
        for one in sentences[:8]:
            if one.asks and one.words[0] in _ASKING:
                found[f"s:asks {' '.join(one.words[:2])}"] = 1
    found["s:breaks off"] = float(said.rstrip().endswith(("–", "—", "-", "…")))  # noqa: RUF001 - dashes of transcripts
    found["s:number"] = float(any(character.isdigit() for character in said))
    found["s:quotes"] = float('"' in said or "“" in said)
    found["s:exclaims"] = float("!" in said)
    found["s:ellipsis"] = float("..." in said or "…" in said)


def _pupil(found: dict[str, float], heard: str, theirs: Sequence[str]) -> None:
    found["s:pupil length"] = math.log1p(len(theirs)) / 3
    found[f"s:pupil length {min(6, int(math.log2(len(theirs) + 1)))}"] = 1
    found["s:pupil asks"] = float("?" in heard)
    found["s:pupil number"] = float(any(character.isdigit() for character in heard))
    found["s:pupil breaks off"] = float(heard.rstrip().endswith(("–", "—", "-", "…")))  # noqa: RUF001 - dashes of transcripts
    if theirs:
        found[f"s:pupil first {theirs[0]}"] = 1
        found[f"s:pupil first {' '.join(theirs[:2])}"] = 1


def _overlap(
    found: dict[str, float], own: Sequence[str], theirs: Sequence[str], sentences: Sequence[Clause], tables: Tables
) -> None:
    mine = [stem(word) for word in own if word not in STOP]
    yours = [stem(word) for word in theirs if word not in STOP]
    weight = {word: tables.rarity.get(word, tables.rarest) for word in {*mine, *yours}}
    same = set(mine) & set(yours)
    total = sum(weight[word] for word in set(yours)) or 1.0
    found["o:share"] = sum(weight[word] for word in same) / total
    found["o:count"] = math.log1p(len(same))
    found["o:weight"] = math.log1p(sum(weight[word] for word in same))
    found["o:any"] = float(bool(same))
    first = [stem(word) for word in (sentences[0].words if sentences else ()) if word not in STOP]
    found["o:first share"] = sum(weight.get(word, 0.0) for word in set(first) & set(yours)) / total
    found["o:first of own"] = len(set(first) & set(yours)) / (len(set(first)) or 1)
    found["o:of own"] = len(same) / (len(set(mine)) or 1)
    every = set(own) & set(theirs)
    found["o:every"] = len(every) / (len(set(theirs)) or 1)
    found["o:alike"] = len(every) / (len(set(own) | set(theirs)) or 1)
    found["o:every of own"] = len(every) / (len(set(own)) or 1)
    found["o:answers"] = found["o:every of own"] if found["s:pupil asks"] else 0.0
    found["o:run"] = _run(own, theirs) / 3
    found["o:pairs"] = math.log1p(len(set(pairwise(own)) & set(pairwise(theirs))))
    asked = {stem(word) for one in sentences if one.asks for word in one.words}
    found["o:asks of it"] = float(bool(asked & set(yours)))
    found["o:numbers"] = float(bool({word for word in same if word[0].isdigit()}))
    found["o:nothing"] = float(not same and bool(yours) and len(own) > 4)


def _run(own: Sequence[str], theirs: Sequence[str]) -> int:
    """The most words in a row that both say, up to six."""
    longest = 0
    for length in range(1, 7):
        mine = {tuple(own[at : at + length]) for at in range(len(own) - length + 1)}
        if not any(tuple(theirs[at : at + length]) in mine for at in range(len(theirs) - length + 1)):
            break
        longest = length
    return longest
