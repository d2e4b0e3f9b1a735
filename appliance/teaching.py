"""Subjects, grade bands, teaching methods and levels of help, in words that an educator can edit.

A method is a file in `content/methods/`, a subject one in `content/subjects/` (a school adds its own beside them), the levels
of help stand in `content/help.toml`, the grade bands in `content/grades.toml`. Hides TOML, and how a class's own words for
subject and grade find theirs. What becomes of the words is known to `lessons`; which a class has, to `classes`.
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.errors import BadInput

CONTENT = Path(__file__).parent / "content"


@dataclass(frozen=True, slots=True)
class Way:
    """`name` and `about` are for the teacher's page, `instructions` for the model."""

    id: str
    name: str
    about: str
    instructions: str


@functools.cache
def methods() -> Mapping[str, Way]:
    """Every method by its id, in the order of their names. Raises BadInput."""
    found = [_way(path.stem, _read(path), path) for path in (CONTENT / "methods").glob("*.toml")]
    return {way.id: way for way in sorted(found, key=lambda way: way.name)}


@functools.cache
def help_levels() -> Mapping[str, Way]:
    """Every level of help, the least first. Raises BadInput."""
    path = CONTENT / "help.toml"
    return {id: _way(id, words, path) for id, words in _read(path).items()}


@dataclass(frozen=True, slots=True)
class Band:
    """Some grades. `grades`, `ages`, `reading` (see `reading.level`): from, to."""

    id: str
    name: str
    grades: tuple[int, int]
    ages: tuple[int, int]
    reading: tuple[float, float]
    instructions: str


@functools.cache
def subjects() -> Mapping[str, Way]:
    """Every subject by its id, in the order of their names. Raises BadInput."""
    found = [_way(path.stem, _read(path), path) for path in (CONTENT / "subjects").glob("*.toml")]
    return {way.id: way for way in sorted(found, key=lambda way: way.name)}


@functools.lru_cache(maxsize=500)
def subject(name: str) -> Way | None:
    """The subject that a class calls so, by its name, id or another name for it. Raises BadInput."""
    wanted = " ".join(name.casefold().split())
    for id, way in subjects().items():
        also = _read(CONTENT / "subjects" / f"{id}.toml").get("also", [])
        if wanted in (id.casefold(), way.name.casefold(), *(str(one).casefold() for one in also)):
            return way
    return None


@functools.cache
def bands() -> Sequence[Band]:
    """The grade bands, the lowest first. Raises BadInput."""
    path = CONTENT / "grades.toml"
    try:
        found = [
            Band(
                id, words["name"].strip(), _span(words["grades"], int), _span(words["ages"], int),
                _span(words["reading"], float), words["instructions"].strip(),
            )
            for id, words in _read(path).items()
            if id not in ("simpler", "plainer")
        ]  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError):
        hint = "Each band needs name, grades, ages, reading (two numbers, the lower first) and instructions."
        raise BadInput(f"{path} cannot be used.", hint) from None
    return sorted(found, key=lambda band: band.grades)


def band(grade: str) -> Band | None:
    """The band of a class's grade, by the first number in it: "7", "Grade 7", "7B". Raises BadInput."""
    number = re.search(r"\d{1,2}", grade)
    return next((one for one in bands() if number and one.grades[0] <= int(number[0]) <= one.grades[1]), None)


@functools.cache
def simpler() -> str:
    """What is told after an answer that was hard to read."""
    return str(_read(CONTENT / "grades.toml").get("simpler", "")).strip()


@functools.cache
def plainer() -> str:
    """What is told where the reader asks for an answer once more in simpler words."""
    return str(_read(CONTENT / "grades.toml").get("plainer", "")).strip()


def _span(value: Any, kind: type) -> tuple[Any, Any]:
    low, high = (kind(one) for one in value)
    if low > high:
        raise ValueError
    return low, high


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be used: {error}.", "Correct that line.") from None


def _way(id: str, words: Any, path: Path) -> Way:
    try:
        return Way(id, words["name"].strip(), words["about"].strip(), words["instructions"].strip())
    except (KeyError, TypeError, AttributeError):
        raise BadInput(f"{path} cannot be used.", "It needs `name`, `about` and `instructions` in quotes.") from None
