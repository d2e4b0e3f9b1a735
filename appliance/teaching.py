"""Teaching methods and levels of help, in words that an educator can edit.

A method is a file in `content/methods/`, the three levels of help stand in `content/help.toml`. Hides TOML. What becomes of the
words is known to `lessons`; which a class has, to `classes`.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
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
