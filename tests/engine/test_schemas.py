"""A JSON schema is kept to the letter or refused with the word that cannot be kept; none of them ends anybody else's answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from appliance.engine import schemas
from appliance.engine.handler import Message, Request
from appliance.engine.scheduler import LlamaHandler
from appliance.errors import BadInput

ITSELF = {"type": "array", "items": {"$ref": "#/$defs/a"}, "minItems": 1}
TREE = {"type": "object", "properties": {"in": {"type": "array", "items": {"$ref": "#/$defs/tree"}}}, "required": ["in"]}
NODE = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}, "required": ["next"]}
FIELDS: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}

NOT_KEPT: dict[str, tuple[dict[str, Any], str]] = {
    "a least number": ({"type": "integer", "minimum": 3}, "'minimum'"),
    "a largest number": ({"type": "object", "properties": {"n": {"type": "number", "maximum": 3}}}, "'maximum'"),
    "a divisor": ({"type": "integer", "multipleOf": 5}, "'multipleOf'"),
    "no two alike": ({"type": "array", "items": {"type": "string"}, "uniqueItems": True}, "'uniqueItems'"),
    "a negation": ({"not": {"type": "string"}, "type": "string"}, "'not'"),
    "a count without items": ({"type": "array", "minItems": 2}, "'minItems'"),
    "a length beside a pattern": ({"type": "string", "pattern": "^a*$", "minLength": 3}, "'minLength' .* 'pattern'"),
    "a length beside a list of types": ({"type": ["string", "null"], "maxLength": 3}, "'maxLength'"),
    "a type that no value has": ({"type": "string", "enum": ["a", 1]}, "'type' .* 'enum'"),
    "fields beside a reference": ({"$ref": "#/$defs/a", "properties": {}, "$defs": {"a": FIELDS}}, "'properties'"),
    "all of it beside fields": (FIELDS | {"allOf": [FIELDS]}, "'allOf'"),
    "all of two that differ": ({"allOf": [{"properties": {"a": {"const": one}}} for one in (1, 2)]}, "'a' twice"),
    "all of two types": ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "allOf"),
    "all of what is closed": ({"allOf": [FIELDS | {"additionalProperties": False}]}, "allOf"),
    "a field that is not described": (FIELDS | {"required": ["a", "b"]}, "'b'"),
    "a pattern that is none": ({"type": "string", "pattern": "^[b-a]$"}, "pattern"),
    "a chain without an end": (NODE | {"$defs": {"node": NODE}}, "end"),
    "a list of itself": ({"$ref": "#/$defs/a", "$defs": {"a": ITSELF}}, "end"),
}  # fmt: skip
KEPT: dict[str, dict[str, Any]] = {
    "a form": {
        "title": "Quiz", "$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object",
        "properties": {
            "minimum": {"type": "string", "maxLength": 3, "description": "a field may be called like a demand"},
            "kind": {"type": "string", "enum": ["x", "y"], "default": "x"},
            "mail": {"anyOf": [{"type": "string", "format": "email"}, {"type": "null"}]},
            "day": {"type": "string", "format": "date"},
            "marks": {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 2, "uniqueItems": False},
        },
        "required": ["kind"], "additionalProperties": False,
    },
    "all of two": {"allOf": [FIELDS, {"properties": {"b": {"const": 1}}}]},
    "a chain with an end": {
        "type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}}, "required": ["next"],
        "$defs": {"node": NODE | {"required": []}},
    },
    "a tree": {
        "type": "object", "properties": {"root": {"$ref": "#/$defs/tree"}}, "required": ["root"],
        "$defs": {"tree": TREE},
    },
}  # fmt: skip
# The door of the engine refuses it; a handler that is handed it finds that no sign may follow.
DEAD_END = {"type": "string", "pattern": "^a[b-a]$"}
# It lets a quotation mark into a text.
NO_JSON = {"type": "string", "pattern": '^"."$'}


@pytest.mark.parametrize("name", NOT_KEPT)
def test_what_cannot_be_kept_is_refused_by_its_name(name: str) -> None:
    schema, word = NOT_KEPT[name]
    with pytest.raises(BadInput, match=word) as caught:
        schemas.check(schema)
    assert caught.value.message.endswith(".") and caught.value.hint


@pytest.mark.llama
@pytest.mark.parametrize("name", KEPT)
def test_what_can_be_kept_becomes_a_grammar(name: str) -> None:
    pytest.importorskip("llama_cpp")
    from appliance.engine.sampling import grammar

    schemas.check(KEPT[name])
    assert "root ::=" in grammar(KEPT[name])


@pytest.fixture
async def handler(starter_gguf: Path) -> AsyncIterator[LlamaHandler]:
    made = LlamaHandler(starter_gguf, slots=4, threads=2)
    await made.start()
    yield made
    await made.close()


def asking(**options: Any) -> Request:
    return Request([Message("user", "What is a fraction?")], **options)


async def text_of(handler: Any, request: Request) -> str:
    return "".join([chunk.text async for chunk in handler.generate(request)])


@pytest.mark.llama
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("schema", "words"), [(DEAD_END, "nothing may follow"), (NO_JSON, "no JSON")])
async def test_a_grammar_that_leads_nowhere_ends_its_own_answer_alone(
    handler: LlamaHandler, schema: dict[str, Any], words: str, temperature: float
) -> None:
    others = [asyncio.create_task(text_of(handler, asking(max_tokens=900, ignore_eos=True))) for _ in range(2)]
    for _ in range(2):  # the second time in the place that the first one left
        with pytest.raises(BadInput, match=words):
            await text_of(handler, asking(max_tokens=40, schema=schema, temperature=temperature))
    assert all(await asyncio.gather(*others))
    kept = await text_of(handler, asking(max_tokens=40, schema={"type": "string", "pattern": "^[0-9]{3}$"}))
    assert len(json.loads(kept)) == 3 and json.loads(kept).isdigit()
    assert (await handler.health()).facts["running"] == 0


@pytest.mark.llama
async def test_a_schema_is_kept_whatever_else_is_asked_of_the_draw(handler: LlamaHandler) -> None:
    fields = {"n": {"enum": [7, 8]}, "why": {"type": "string", "maxLength": 8}}
    schema = {"type": "object", "properties": fields, "required": ["n"]}
    said = []
    for seed in range(6):
        request = asking(max_tokens=60, schema=schema, temperature=1.5, top_k=3, top_p=0.5, repeat_penalty=1.3, seed=seed)
        said.append(json.loads(await text_of(handler, request)))
    assert {one["n"] for one in said} <= {7, 8} and all(len(one.get("why", "")) <= 8 for one in said)
