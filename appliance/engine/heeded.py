"""Which words of a JSON schema an answer is held to, and a refusal of all others: nothing of a schema is ignored in silence.

llama.cpp's converter reads one group of words of each part of a schema and passes over the rest (a `minimum`, a `minLength`
beside an `enum`), makes of `allOf` whatever it can, and follows a schema that has no end. Hides which group wins, and the
search for a text that ends. Annotations (`title`, `default`, an unknown `format`) are no promises and stay. Converts nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from appliance.errors import BadInput

Schema = dict[str, Any]

# Whatever the specification lets a schema demand (2020-12, and what earlier drafts had).
DEMANDS = frozenset(
    re.findall(
        r"\S+",
        """
        $ref $dynamicRef $recursiveRef type enum const anyOf oneOf allOf not if then else
        properties required additionalProperties patternProperties propertyNames minProperties maxProperties
        unevaluatedProperties dependentRequired dependentSchemas dependencies
        items prefixItems additionalItems unevaluatedItems contains minContains maxContains uniqueItems minItems maxItems
        pattern minLength maxLength minimum maximum exclusiveMinimum exclusiveMaximum multipleOf
        """,
    )
)
FORMATS = re.compile(r"uuid[1-5]?|date|time|date-time")
TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,), "null": (type(None),), "array": (list,),
    "object": (dict,),
}  # fmt: skip
OBJECT = frozenset({"type", "properties", "required", "additionalProperties"})
HINT = "Ask for plain types, enums, objects and arrays, and check the rest when the answer is there."
ENDLESS = "No text can meet the schema: it asks for itself again without an end."


def check(schema: Schema) -> None:
    """Raises BadInput, with the word, where an answer would not be held to the schema, or none can ever be finished."""
    for part in _parts(schema):
        heeded = _heeded(part)
        for word in sorted(DEMANDS & part.keys() - heeded):
            if part[word] is not False and not _implied(part, word):
                raise BadInput(f"The schema's {word!r} cannot be kept{_beside(part, heeded)}.", HINT)
        _sensible(part, schema)
    if not _has_end(schema):
        raise BadInput(ENDLESS, "Let the part that repeats be left out, or be a list that may be empty.")


def _parts(schema: Any) -> Iterator[Schema]:
    """Every schema in a schema; names of fields and values of enums are none."""
    waiting = [schema]
    while waiting:
        part = waiting.pop()
        if not isinstance(part, dict):
            continue
        yield part
        for word in ("properties", "$defs", "definitions"):
            inner = part.get(word)
            waiting += inner.values() if isinstance(inner, dict) else []
        for word in ("anyOf", "oneOf", "allOf", "items", "prefixItems"):
            inner = part.get(word)
            waiting += inner if isinstance(inner, list) else [inner]
        waiting.append(part.get("additionalProperties"))


def _heeded(part: Schema) -> frozenset[str]:
    """The words that the converter reads, in the order in which it looks for them."""
    kind = part.get("type")
    for word in ("$ref", "oneOf", "anyOf"):
        if word in part:
            return frozenset({word})
    if isinstance(kind, list):
        return frozenset({"type"})
    for word in ("const", "enum"):
        if word in part:
            return frozenset({word})
    if kind in (None, "object") and ("properties" in part or part.get("additionalProperties", True) is not True):
        return OBJECT
    if kind in (None, "object") and "allOf" in part:
        return frozenset({"type", "allOf"})
    if kind in (None, "array") and part.get("items") and not isinstance(part["items"], list):
        return frozenset({"type", "items", "minItems", "maxItems"})
    if kind in (None, "array") and (part.get("items") or part.get("prefixItems")):
        return frozenset({"type", "items" if part.get("items") else "prefixItems"})
    if kind in (None, "string") and "pattern" in part:
        return frozenset({"type", "pattern"})
    if kind == "string" and not FORMATS.fullmatch(str(part.get("format"))):
        return frozenset({"type", "minLength", "maxLength"})
    return frozenset({"type"})


def _implied(part: Schema, word: str) -> bool:
    """Whether a word that is not read says only what the words that are read say too."""
    value = part[word]
    if word == "additionalProperties":
        return value is True
    if word in ("minItems", "maxItems"):
        places = part.get("prefixItems")
        return isinstance(places, list) and (value <= len(places) if word == "minItems" else value >= len(places))
    if word != "type" or not isinstance(value, str):
        return False
    if "const" in part or "enum" in part:
        values = part["enum"] if "enum" in part and isinstance(part["enum"], list) else [part.get("const")]
        return all(_is(one, value) for one in values)
    ways = part.get("oneOf") or part.get("anyOf")
    return isinstance(ways, list) and all(
        isinstance(way, dict) and way.get("type", "object" if "properties" in way else None) == value for way in ways
    )


def _is(value: Any, kind: str) -> bool:
    return isinstance(value, TYPES.get(kind, ())) and (kind == "boolean" or not isinstance(value, bool))


def _beside(part: Schema, heeded: frozenset[str]) -> str:
    winner = next((word for word in part if word in heeded and word != "type"), "")
    return f" beside its {winner!r}" if winner else ""


def _sensible(part: Schema, whole: Schema) -> None:
    """What the words that are read say against one another."""
    fields = part.get("properties")
    if isinstance(fields, dict) and isinstance(part.get("required"), list):
        for name in part["required"]:
            if name not in fields:
                raise BadInput(f"The schema requires {str(name)[:60]!r} and does not describe it.", "Add it to `properties`.")
    pattern = part.get("pattern")
    if isinstance(pattern, str):
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise BadInput(f"A pattern in the schema is none: {error}.", "Correct it.") from None
    seen: set[str] = set()
    for one in part["allOf"] if isinstance(part.get("allOf"), list) else []:
        inner = _target(one, whole)
        names = inner.get("properties") if inner is not None and _heeded(inner) == OBJECT else None
        if not isinstance(names, dict) or inner is None or not inner.get("additionalProperties", True):
            raise BadInput("The schema's 'allOf' joins what are no open objects with fields.", HINT)
        if twice := sorted(seen & names.keys()):
            raise BadInput(f"The schema's 'allOf' describes {twice[0][:60]!r} twice.", "Describe each field once.")
        seen |= names.keys()


def _target(part: Any, whole: Schema) -> Schema | None:
    """The schema that a part stands for: what it refers to, or itself."""
    for _ in range(16):
        if not isinstance(part, dict) or not isinstance(part.get("$ref"), str):
            break
        found: Any = whole
        for step in part["$ref"].split("#/")[-1].split("/"):
            found = found.get(step) if isinstance(found, dict) else None
        part = found
    return part if isinstance(part, dict) else None


# --- whether there is an end ----------------------------------------------------------------------------------------------
def _has_end(schema: Schema) -> bool:
    """Whether some text that meets the schema has an end. References come to be known as endable until no more do."""
    targets = {part["$ref"]: _target(part, schema) for part in _parts(schema) if isinstance(part.get("$ref"), str)}
    known: set[str] = {name for name, target in targets.items() if target is None}  # whoever converts it says what is missing
    while fresh := {name for name, target in targets.items() if name not in known and target and _ends(target, known)}:
        known |= fresh
    return _ends(schema, known)


def _ends(part: Any, known: set[str]) -> bool:
    if not isinstance(part, dict):
        return True
    if "$ref" in part:
        return part["$ref"] in known
    ways = part.get("oneOf") or part.get("anyOf")
    if isinstance(ways, list):
        return any(_ends(way, known) for way in ways)
    if "const" in part or "enum" in part or isinstance(part.get("type"), list):
        return True
    needed: list[Any] = list(part["allOf"]) if isinstance(part.get("allOf"), list) else []
    fields, required = part.get("properties"), part.get("required")
    if isinstance(fields, dict) and isinstance(required, list):
        needed += [fields.get(name) for name in required]
    items = part.get("items") or part.get("prefixItems")
    if isinstance(items, list):
        needed += items
    elif part.get("minItems"):
        needed.append(items)
    return all(_ends(one, known) for one in needed)
