"""A scenario as a TOML file that a person can read, edit and hand to another school; and back.

Hides the format and its bounds. What the facts mean, and whether they can be used, is for `scenario.read`.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from appliance.errors import BadInput, TooLarge
from appliance.practice.scenario import Scenario

LARGEST = 64_000  # bytes; the longest that comes with the appliance has a sixth of it


def write(scenario: Scenario) -> str:
    """The text of a file that `read` takes back as the same facts."""
    facts = scenario.as_facts()
    events = [_short(one) for one in facts.pop("events")]
    pupils, rubric, id = facts.pop("pupils"), facts.pop("rubric"), facts.pop("id")
    parts = [f"# {_comment(scenario.title)} ({id})", *_pairs(facts)]
    parts += ["events = [", *(f"    {_value(one)}," for one in events), "]"] if events else []
    for one in pupils:
        lines, believes = one.pop("lines"), one.pop("misconception")
        parts += ["", "[[pupils]]", *_pairs(one), "[pupils.lines]", *_pairs(lines)]
        parts += ["[pupils.misconception]", *_pairs(believes)] if believes else []
    for one in rubric:
        parts += ["", "[[rubric]]", *_pairs(one)]
    return "\n".join(parts) + "\n"


def read(data: bytes, where: str) -> dict[str, Any]:
    """The facts of a file called `where`. Raises TooLarge, and BadInput for what is no such file."""
    if len(data) > LARGEST:
        raise TooLarge(
            f"{where} has {len(data)} bytes; a scene has {LARGEST} at most.", "Shorten it, or make two scenes of it."
        )
    try:
        return tomllib.loads(data.decode("utf-8-sig").replace("\r\n", "\n"))
    except UnicodeDecodeError:
        raise BadInput(f"{where} is no text in UTF-8.", "Save it as plain text in UTF-8, then import it again.") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        why = str(error) if isinstance(error, tomllib.TOMLDecodeError) else "it is nested too deep"
        raise BadInput(f"{where} is no scene in TOML: {why}.", "Correct that line, then import it again.") from None


def _short(event: Mapping[str, Any]) -> dict[str, Any]:
    """An event without what it does not use."""
    unused = ("at",) if event["when"] else ("when", "below")
    return {name: value for name, value in event.items() if name not in unused and value not in (None, {})}


def _pairs(facts: Mapping[str, Any]) -> list[str]:
    return [f"{name} = {_value(value)}" for name, value in facts.items()]


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(_pairs(value)) + " }" if value else "{}"
    if isinstance(value, str):
        # JSON's quoting is TOML's, but for one control character.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Sequence):
        return "[" + ", ".join(_value(one) for one in value) + "]"
    return json.dumps(value)


def _comment(text: str) -> str:
    return "".join(one if one.isprintable() else " " for one in text)
