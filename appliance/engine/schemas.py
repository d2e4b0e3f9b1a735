"""Whether a JSON schema is small and plain enough to become a grammar, told before anything expands it.

A schema of a hundred characters can ask for a grammar of gigabytes (a text of a billion letters, a list of lists of lists), and
what expands it runs in the process that answers everybody. Bounds are several times above what a form or a quiz needs. It does
not check that a schema is valid: what it means is `sampling.grammar`'s.
"""

from __future__ import annotations

import re
from typing import Any

from appliance.engine import heeded
from appliance.errors import BadInput

MOST_PARTS = 1_000  # values in the schema, counted at every depth
DEEPEST = 24
MOST_PROPERTIES = 64  # of one object: each that may be left out doubles the ways to go on
MOST_REPEATED = 500  # items or letters asked for by number
MOST_EXPANDED = 20_000  # all the nested numbers multiplied
MOST_PATTERN = 200
COUNTS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")
HINT = "Ask for less at once: fewer fields, shorter lists."


def check(schema: dict[str, Any]) -> None:
    """Raises BadInput for a schema that is too deep, too large, asks for too much by number, or for what cannot be kept."""
    parts = 0
    waiting: list[tuple[Any, int, int]] = [(schema, 0, 1)]
    while waiting:
        value, depth, factor = waiting.pop()
        parts += 1
        if parts > MOST_PARTS:
            raise BadInput(f"The schema has more than {MOST_PARTS} parts.", HINT)
        if depth > DEEPEST:
            raise BadInput(f"The schema is nested deeper than {DEEPEST} levels.", HINT)
        if isinstance(value, dict):
            factor *= _repeated(value)
            if factor > MOST_EXPANDED:
                raise BadInput("The schema asks for lists within lists that are too long.", HINT)
            waiting += [(inner, depth + 1, factor) for inner in value.values()]
        elif isinstance(value, list):
            waiting += [(inner, depth + 1, factor) for inner in value]
    _possible(schema)
    heeded.check(schema)


def _repeated(part: dict[str, Any]) -> int:
    """The largest number by which this part repeats what is in it."""
    most = 1
    for name in COUNTS:
        count = part.get(name)
        if count is None or isinstance(count, dict):  # a property may be called maxItems
            continue
        if type(count) is not int or not 0 <= count <= MOST_REPEATED:
            raise BadInput(f"{name} in the schema has to be a number from 0 to {MOST_REPEATED}.", HINT)
        most = max(most, count)
    properties = part.get("properties")
    if isinstance(properties, dict) and len(properties) > MOST_PROPERTIES:
        raise BadInput(f"An object in the schema has {len(properties)} fields; {MOST_PROPERTIES} are taken.", HINT)
    pattern = part.get("pattern")
    if isinstance(pattern, str):
        if len(pattern) > MOST_PATTERN:
            raise BadInput(f"A pattern in the schema is longer than {MOST_PATTERN} characters.", HINT)
        for count in re.findall(r"\d+", " ".join(re.findall(r"\{([\d,\s]*)\}", pattern))):
            if len(count) > 4 or int(count) > MOST_REPEATED:
                raise BadInput(f"A pattern in the schema repeats more than {MOST_REPEATED} times.", HINT)
            most = min(MOST_EXPANDED + 1, most * max(1, int(count)))
    return most


def _possible(schema: dict[str, Any]) -> None:
    """Refuse what no text can meet, as far as it is plain to see."""
    waiting: list[Any] = [schema]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list):
            waiting += part
        if not isinstance(part, dict):
            continue
        waiting += part.values()
        for low, high in (("minItems", "maxItems"), ("minLength", "maxLength"), ("minimum", "maximum")):
            least, most = part.get(low), part.get(high)
            if isinstance(least, int | float) and isinstance(most, int | float) and least > most:
                raise BadInput(f"No text can meet the schema: {low} is above {high}.", "Exchange them.")
        for name in ("enum", "anyOf", "oneOf"):
            if part.get(name) == []:
                raise BadInput(f"No text can meet the schema: {name} is empty.", "Name at least one possibility.")
