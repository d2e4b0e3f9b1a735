"""A scene to rehearse: who is in the room, what happens, and by which rubric the teacher reads their own words afterwards.

A scenario is a TOML file in `content/scenarios/` that an educator can edit, or the same facts kept by the school. `read` checks
one and tells all its faults at once. Hides the format; it knows nothing of how pupils react or how a rubric is scored.
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unicodedata import category

from appliance.errors import BadInput
from appliance.practice.exchange import MOVES

CONTENT = Path(__file__).parents[1] / "content" / "scenarios"
CATEGORIES = ("behaviour", "misconception", "engagement", "inclusion", "parents", "assessment")
PHASES = ("primary", "lower secondary", "upper secondary")
SUBJECTS = ("history", "languages", "mathematics", "science")  # of the scenes that come with the box; a school's may have any
# What a pupil can be heard to do; each needs at least one written line in a scenario (see `PupilSpec.lines`).
SITUATIONS = ("holds", "wavers", "understands", "answers", "unsure", "off_task", "withdrawn", "warms")
# Moves to which no belief yields: whoever is told, judged, flattered or shamed still thinks the same.
NEVER_CONVINCE = ("tell", "confirm", "praise_person", "put_down")
MOST = 40  # of anything in a list
MOST_FAULTS = 30  # told at once
_FROM_THE_RIGHT = ("ar", "dv", "fa", "he", "ps", "sd", "ug", "ur", "yi")
_TAG = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8}){0,3}")  # of a language
SCALES = {"knowledge": (0, 4), "energy": (0, 4), "attention": (0, 4), "mood": (-2, 2)}


@dataclass(frozen=True, slots=True)
class Misconception:
    """`strength`: helpful turns it takes to let go, 1 to 6. A turn helps where it makes one of the moves `yields_to` and holds
    one of the words `about`."""

    belief: str
    strength: int
    yields_to: tuple[str, ...]
    about: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PupilSpec:
    """Somebody in the room. `about` is for the teacher, `voice` for the model that words their lines.

    lines: written words for each situation, from which one is taken where no model words it. `who`: pupil, parent, colleague.
    """

    name: str
    about: str
    voice: str
    knowledge: int
    mood: int
    energy: int
    attention: int
    lines: Mapping[str, tuple[str, ...]]
    misconception: Misconception | None = None
    who: str = "pupil"


@dataclass(frozen=True, slots=True)
class Happening:
    """An event of the scene: after the teacher's turn number `at`, or once a pupil's `when` scale is at or below `below`."""

    pupil: str
    line: str
    at: int = 0
    when: str = ""
    below: int = 0
    change: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True)
class Criterion:
    """One line of the rubric: counts turns with one of `moves`, less those with one of `against`; `enough` of them is the top.

    levels: three sentences, from "not yet" to "well". `try_this`: one thing to try next time.
    """

    id: str
    name: str
    moves: tuple[str, ...]
    against: tuple[str, ...]
    enough: int
    levels: tuple[str, str, str]
    try_this: str


@dataclass(frozen=True, slots=True)
class Scenario:
    """`id` is the file's name. `approved_by` "" is a draft: it is shown as one, and only its maker rehearses it.

    language: the one its words are in and the teacher speaks, as a tag of BCP 47: "en", "es", "pt-BR".
    """

    id: str
    version: int
    title: str
    category: str
    phase: str
    subject: str
    grade: str
    minutes: int
    setting: str
    opening: str
    objectives: tuple[str, ...]
    pupils: tuple[PupilSpec, ...]
    rubric: tuple[Criterion, ...]
    events: tuple[Happening, ...] = ()
    standards: tuple[str, ...] = ()
    approved_by: str = ""
    language: str = "en"

    @property
    def direction(self) -> str:
        """How its words are written: "rtl" or "ltr"."""
        return "rtl" if self.language.partition("-")[0] in _FROM_THE_RIGHT else "ltr"

    def as_facts(self) -> dict[str, Any]:
        """The same facts that `read` takes."""
        return asdict(self)


def read(facts: Mapping[str, Any], id: str, *, where: str = "") -> Scenario:
    """A checked scenario. Raises BadInput with every fault, and `where` it stands."""
    if not isinstance(facts, Mapping):
        raise BadInput(
            f"The scenario {where or id} cannot be used: it is no table.", "Write it as in the files that came along."
        )
    found = _Reading(facts)
    scenario = found.scenario(id)
    if found.faults:
        shown = "; ".join(found.faults[:MOST_FAULTS]) + ("; and more" if len(found.faults) > MOST_FAULTS else "")
        raise BadInput(f"The scenario {where or id} cannot be used: {shown}.", "Correct that and read it again.")
    return scenario


@functools.cache
def written() -> Mapping[str, Scenario]:
    """Every scenario that comes with the appliance, by its id. Raises BadInput."""
    found = {}
    for path in sorted(CONTENT.glob("*.toml")):
        try:
            facts = tomllib.loads(path.read_text("utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise BadInput(f"{path} cannot be used: {error}.", "Correct that line.") from None
        found[path.stem] = read(facts, path.stem, where=str(path))
    return found


class _Reading:
    """Takes facts apart and notes what is wrong with them; what is wrong reads as something harmless until the end."""

    def __init__(self, facts: Mapping[str, Any]) -> None:
        self.faults: list[str] = []
        self._facts = facts

    def scenario(self, id: str) -> Scenario:
        facts = self._facts
        pupils = tuple(self._pupil(one, place) for place, one in enumerate(self._rows(facts, "pupils", least=1), 1))
        names = [one.name for one in pupils]
        if len({name.casefold() for name in names}) < len(names):
            self.faults.append("two of the pupils have one name")
        events = tuple(self._event(one, place, names) for place, one in enumerate(self._rows(facts, "events"), 1))
        rubric = tuple(self._criterion(one, place) for place, one in enumerate(self._rows(facts, "rubric", least=1), 1))
        if len({one.id for one in rubric}) < len(rubric):
            self.faults.append("two lines of the rubric have one id")
        return Scenario(
            id, self._number(facts, "version", 1, 10**6), self._text(facts, "title", 120),
            self._one_of(facts, "category", CATEGORIES), self._one_of(facts, "phase", PHASES),
            self._text(facts, "subject", 60, empty=True), self._text(facts, "grade", 20, empty=True),
            self._number(facts, "minutes", 3, 45), self._text(facts, "setting", 1500), self._text(facts, "opening", 1500),
            self._texts(facts, "objectives", least=1), pupils, rubric, events, self._texts(facts, "standards"),
            self._text(facts, "approved_by", 120, empty=True), self._language(facts),
        )  # fmt: skip

    def _pupil(self, facts: Mapping[str, Any], place: int) -> PupilSpec:
        of = f" of pupil {place}"
        lines = facts.get("lines", {})
        if not isinstance(lines, Mapping):
            self.faults.append(f"lines{of} has to be a table")
            lines = {}
        self.faults += [f"lines{of} has an unknown situation, {_short(name)}" for name in lines if name not in SITUATIONS]
        believes = facts.get("misconception")
        needed = [one for one in SITUATIONS if believes or one not in ("holds", "wavers", "understands")]
        kept = {
            name: self._texts(lines, name, least=int(name in needed), of=of)
            for name in SITUATIONS
            if name in lines or name in needed
        }
        scales = {name: self._number(facts, name, *SCALES[name], of=of) for name in SCALES}
        name = self._text(facts, "name", 40, of=of)
        if len(name.splitlines()) > 1:
            self.faults.append(f"name{of} has to be one line")
        return PupilSpec(
            name, self._text(facts, "about", 400, of=of),
            self._text(facts, "voice", 300, of=of),
            scales["knowledge"], scales["mood"], scales["energy"], scales["attention"], kept,
            self._misconception(believes, of) if believes is not None else None,
            self._one_of(facts, "who", ("pupil", "parent", "colleague"), default="pupil"),
        )  # fmt: skip

    def _misconception(self, facts: Any, of: str) -> Misconception:
        if not isinstance(facts, Mapping):
            self.faults.append(f"misconception{of} has to be a table")
            facts = {}
        of = f" of the misconception{of}"
        about = self._texts(facts, "about", least=1, of=of)
        if not all(any(letter.isalnum() for letter in one) for one in about):
            self.faults.append(f"about{of} has a word without letters")
        yields_to = self._moves(facts, "yields_to", of, least=1)
        self.faults += [
            f"no belief yields to {one!r}: it cannot stand in yields_to{of}" for one in yields_to if one in NEVER_CONVINCE
        ]
        strength = self._number(facts, "strength", 1, 6, of=of)
        return Misconception(self._text(facts, "belief", 300, of=of), strength, yields_to, about)

    def _event(self, facts: Mapping[str, Any], place: int, names: Sequence[str]) -> Happening:
        of = f" of event {place}"
        pupil = self._text(facts, "pupil", 40, of=of)
        if pupil and pupil not in names:
            self.faults.append(f"event {place} is about {_short(pupil)}, who is not among the pupils")
        if bool(facts.get("at")) == bool(facts.get("when")):
            self.faults.append(f"event {place} needs either `at` or `when`")
        change = facts.get("change") or {}
        if not isinstance(change, Mapping) or any(
            name not in SCALES or isinstance(value, bool) or not isinstance(value, int) or abs(value) > 4
            for name, value in change.items()
        ):
            self.faults.append(f"change{of} may have whole numbers from -4 to 4 for {', '.join(SCALES)}")
            change = {}
        when = self._one_of(facts, "when", tuple(SCALES), of=of) if facts.get("when") else ""
        at = self._number(facts, "at", 1, 60, of=of) if facts.get("at") else 0
        below = self._number(facts, "below", *SCALES[when], of=of) if when else 0
        return Happening(pupil, self._text(facts, "line", 400, of=of), at, when, below, dict(change))

    def _criterion(self, facts: Mapping[str, Any], place: int) -> Criterion:
        of = f" of rubric line {place}"
        levels = self._texts(facts, "levels", of=of)
        if len(levels) != 3:
            self.faults.append(f"levels{of} has to have three sentences: it cannot be scored")
            levels = ("", "", "")
        moves = self._moves(facts, "moves", of, least=1)
        against = self._moves(facts, "against", of)
        if both := [one for one in moves if one in against]:
            self.faults.append(f"{', '.join(both)} stands for and against{of}: it cannot be scored")
        return Criterion(
            self._text(facts, "id", 40, of=of), self._text(facts, "name", 120, of=of), moves, against,
            self._number(facts, "enough", 1, 20, of=of), (levels[0], levels[1], levels[2]),
            self._text(facts, "try_this", 400, of=of),
        )  # fmt: skip

    def _language(self, facts: Mapping[str, Any]) -> str:
        tag = facts.get("language", "en")
        if not isinstance(tag, str) or not names_a_language(tag):
            self.faults.append('language has to be a tag such as "en", "es" or "pt-BR"')
            return "en"
        return tag

    # --- one value -------------------------------------------------------------------------------------------------------
    def _rows(self, facts: Mapping[str, Any], name: str, least: int = 0) -> list[Mapping[str, Any]]:
        rows = facts.get(name, [])
        if not isinstance(rows, list | tuple) or not all(isinstance(one, Mapping) for one in rows):
            self.faults.append(f"{name} has to be a list of tables")
            return []
        if len(rows) < least:
            self.faults.append(f"{name} is missing")
        if len(rows) > MOST:
            self.faults.append(f"{name} has more than {MOST} entries")
        return list(rows[:MOST])

    def _text(self, facts: Mapping[str, Any], name: str, most: int, *, empty: bool = False, of: str = "") -> str:
        value = facts.get(name, "")
        if not isinstance(value, str) or len(value.strip()) > most:
            self.faults.append(f"{name}{of} has to be text of at most {most} characters")
            return ""
        if not _readable(value):
            self.faults.append(f"{name}{of} has characters that cannot be shown")
            return ""
        if not value.strip() and not empty:
            self.faults.append(f"{name}{of} is missing")
        return value.strip()

    def _texts(self, facts: Mapping[str, Any], name: str, *, least: int = 0, of: str = "") -> tuple[str, ...]:
        values = facts.get(name, [])
        if not isinstance(values, list | tuple) or not all(
            isinstance(one, str) and 0 < len(one.strip()) <= 400 and _readable(one) for one in values
        ):
            self.faults.append(f"{name}{of} has to be a list of texts")
            return ()
        if len(values) > MOST:
            self.faults.append(f"{name}{of} has more than {MOST} entries")
        if len(values) < least:
            self.faults.append(f"{name}{of} is missing")
        return tuple(one.strip() for one in values)

    def _moves(self, facts: Mapping[str, Any], name: str, of: str, *, least: int = 0) -> tuple[str, ...]:
        moves = self._texts(facts, name, least=least, of=of)
        self.faults += [f"{name}{of} has an unknown move, {_short(one)}" for one in moves if one not in MOVES]
        return moves

    def _one_of(self, facts: Mapping[str, Any], name: str, known: Sequence[str], *, default: str = "", of: str = "") -> str:
        value = facts.get(name, default)
        if value not in known:
            self.faults.append(f"{name}{of} has to be one of {', '.join(known)}")
            return known[0]
        return str(value)

    def _number(self, facts: Mapping[str, Any], name: str, least: int, most: int, *, of: str = "") -> int:
        value = facts.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self.faults.append(f"{name}{of} has to be a whole number from {least} to {most}")
            return least
        return value


def names_a_language(tag: str) -> bool:
    """Whether it has the form of a tag of BCP 47."""
    return bool(_TAG.fullmatch(tag))


def _readable(text: str) -> bool:
    """Whether it can be stored and shown: no halves of characters, no control characters but line breaks."""
    return not any(category(one) in ("Cs", "Cc") and one not in "\n\r\t" for one in text)


def _short(value: object) -> str:
    return repr(value if len(str(value)) <= 40 else f"{str(value)[:40]}...")
