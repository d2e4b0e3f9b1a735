"""The named, typed fields that a prompt program takes and gives, and the JSON that keeps to them.

A field is text, a whole number, a list of texts, or a table of fields (and a list of those). Of the outputs a JSON schema is
made with the few words that `engine.heeded` keeps; `parse` checks an answer by the same rules, since not every model is held to
a schema. Hides JSON and the schema's words. It knows no module and no prompt.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from appliance.errors import BadInput

TYPES = ("str", "int", "list[str]", "table", "list[table]")
LETTERS = 300  # of a text
ITEMS = 6  # of a list
LONGEST_ANSWER = 60_000
MOST_FAULTS = 12


@dataclass(frozen=True, slots=True)
class Field:
    """`about` says what it holds. letters: of a text, or of each in a list. items: at most so many in a list.

    optional: it may be empty. choices: nothing else is taken. fields: of a table.
    """

    name: str
    about: str = ""
    type: str = "str"
    letters: int = LETTERS
    items: int = ITEMS
    optional: bool = False
    choices: tuple[str | int, ...] = ()
    fields: tuple[Field, ...] = ()


def schema(fields: Sequence[Field]) -> dict[str, Any]:
    """The JSON schema of an object with these fields, all of them and no other."""
    properties = {one.name: _schema(one) for one in fields}
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


def _schema(field: Field) -> dict[str, Any]:
    if field.type == "table":
        return schema(field.fields)
    if field.type.startswith("list"):
        items = schema(field.fields) if field.type == "list[table]" else _text(field, 1)
        return {"type": "array", "items": items, "minItems": 0 if field.optional else 1, "maxItems": field.items}
    if field.type == "int":
        return {"enum": [*field.choices]} if field.choices else {"type": "integer"}
    return _text(field, 0 if field.optional else 1)


def _text(field: Field, least: int) -> dict[str, Any]:
    if field.choices:
        return {"type": "string", "enum": [*field.choices]}
    return {"type": "string", "minLength": least, "maxLength": field.letters}


def described(fields: Sequence[Field]) -> str:
    """The fields in words, for a model: "line (text: what the pupil says); level (one of 0, 1, 2)"."""
    return "; ".join(f"{one.name} ({_kind(one)}{f': {one.about}' if one.about else ''})" for one in fields)


def _kind(field: Field) -> str:
    if field.fields:
        return f"{'a list of objects' if field.type == 'list[table]' else 'an object'} with {described(field.fields)}"
    kind = f"one of {', '.join(map(str, field.choices))}" if field.choices else {"int": "number"}.get(field.type, "text")
    return f"list, each {kind}" if field.type == "list[str]" else kind


def parse(text: str, fields: Sequence[Field]) -> dict[str, Any]:
    """The fields' values in an answer, texts without the blanks around them. Raises BadInput with every fault."""
    if len(text) > LONGEST_ANSWER:
        raise BadInput(f"The answer has {len(text)} characters; {LONGEST_ANSWER} are taken.", "Ask again.")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise BadInput("The answer is no JSON, or not all of it.", "Ask again.") from None
    wrong = faults(found, fields)
    if wrong:
        raise BadInput(f"The answer does not keep to its form: {told(wrong)}.", "Ask again.")
    stripped: dict[str, Any] = _stripped(found)
    return stripped


def told(wrong: Sequence[str]) -> str:
    """Faults as one sentence, of very many the first."""
    return "; ".join(wrong[:MOST_FAULTS]) + ("; and more" if len(wrong) > MOST_FAULTS else "")


def faults(values: Any, fields: Sequence[Field], of: str = "") -> list[str]:
    """What is wrong with values for these fields; none where nothing is."""
    if not isinstance(values, Mapping):
        return [f"{of or 'it'} has to be an object with {', '.join(one.name for one in fields)}"]
    known = {one.name for one in fields}
    wrong = [f"{str(name)[:40]!r}{_in(of)} is unknown" for name in values if name not in known]
    for one in fields:
        if one.name in values:
            wrong += _faults(values[one.name], one, f"{one.name}{_in(of)}")
        elif not one.optional:
            wrong.append(f"{one.name}{_in(of)} is missing")
    return wrong


def _faults(value: Any, field: Field, name: str) -> list[str]:
    if field.type == "table":
        return faults(value, field.fields, name)
    if field.type == "int":
        return [] if type(value) is int and value in (field.choices or (value,)) else [f"{name} has to be {_kind(field)}"]
    if field.type == "str":
        return _text_faults(value, field, name, empty=field.optional)
    if not isinstance(value, list) or not int(not field.optional) <= len(value) <= field.items:
        return [f"{name} has to be a list of {int(not field.optional)} to {field.items}"]
    wrong: list[str] = []
    for at, one in enumerate(value, 1):
        inner = f"number {at} of {name}"
        wrong += faults(one, field.fields, inner) if field.type == "list[table]" else _text_faults(one, field, inner)
    return wrong


def _text_faults(value: Any, field: Field, name: str, *, empty: bool = False) -> list[str]:
    if field.choices:
        return [] if value in field.choices else [f"{name} has to be {_kind(field)}"]
    if not isinstance(value, str) or len(value) > field.letters:
        return [f"{name} has to be text of at most {field.letters} characters"]
    if not value.strip():
        return [] if empty else [f"{name} is empty"]
    odd = any((one < " " and one not in "\n\t") or "\ud800" <= one <= "\udfff" for one in value)
    return [f"{name} holds what is no text"] if odd else []


def _in(of: str) -> str:
    return f" of {of}" if of else ""


def _stripped(value: Any) -> Any:
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, list):
        return [_stripped(one) for one in value]
    return {name: _stripped(one) for name, one in value.items()} if isinstance(value, dict) else value


def read(facts: Any, of: str = "") -> tuple[Field, ...]:
    """Fields as a file has them: a table of tables by their names. Raises BadInput."""
    if not isinstance(facts, Mapping):
        raise BadInput(f"The fields{_in(of)} have to be tables.", "Write [inputs.NAME] or [outputs.NAME].")
    found = []
    for name, about in facts.items():
        if not isinstance(about, Mapping) or not str(name).isidentifier():
            raise BadInput(f"The field {str(name)[:40]!r}{_in(of)} has to be a table with a name in letters.", "Correct it.")
        given: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in about.items()}
        if "fields" in given:
            given["fields"] = read(given["fields"], str(name))
        try:
            field = Field(str(name), **given)
        except TypeError:
            known = ", ".join(one for one in Field.__slots__ if one != "name")
            raise BadInput(f"The field {name!r}{_in(of)} says what no field has.", f"It may have {known}.") from None
        if field.type not in TYPES or bool(field.fields) != field.type.endswith(("table", "table]")):
            raise BadInput(f"The field {name!r}{_in(of)} has no type that is known.", f"Take one of {', '.join(TYPES)}.")
        found.append(field)
    return tuple(found)


def written(values: Mapping[str, Any], fields: Sequence[Field]) -> str:
    """Values as a model reads them: one line for each field, further lines of a text set in, so that none passes for a field.

    What is empty is left out. Raises BadInput where one is missing that may not be.
    """
    lines = []
    for one in fields:
        value = values.get(one.name, "")
        text = value.strip() if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        if text in ("", "[]", "{}", "null"):
            if one.optional:
                continue
            raise BadInput(f"The input {one.name!r} is missing.", "Give it some words.")
        lines.append(f"{one.name}: " + "\n  ".join(line.strip() for line in text.splitlines() if line.strip()))
    return "\n".join(lines)
