"""What the bodies of `/v1` hold, as JSON schemas: the one list of their keys.

`api` takes no key that is not listed here; the OpenAPI document of the application says the same. A schema is a description for
programs and their makers: `api` reads every value by itself and refuses with a sentence.
"""

from __future__ import annotations

from typing import Any

MOST_MESSAGES = 400
MOST_EMBEDDINGS = 256
MOST_TOKENS = 1_000_000
LONGEST_NAME = 200

_NAME: dict[str, Any] = {"type": "string", "maxLength": LONGEST_NAME}
_SHORT: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": LONGEST_NAME}
_TOKENS: dict[str, Any] = {"type": "integer", "minimum": 1, "maximum": MOST_TOKENS}
_PART: dict[str, Any] = {
    "type": "object", "required": ["type", "text"],
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
}  # fmt: skip
_MESSAGE: dict[str, Any] = {
    "type": "object", "required": ["role", "content"], "additionalProperties": False,
    "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant"]},
        "content": {"oneOf": [{"type": "string"}, {"type": "array", "items": _PART}]},
        "name": {"type": "string"},
    },
}  # fmt: skip
CHAT: dict[str, Any] = {
    "type": "object", "required": ["model", "messages"], "additionalProperties": False,
    "properties": {
        "model": _NAME,
        "messages": {"type": "array", "minItems": 1, "maxItems": MOST_MESSAGES, "items": _MESSAGE},
        "stream": {"type": "boolean"},
        "stream_options": {
            "type": "object", "additionalProperties": False, "properties": {"include_usage": {"type": "boolean"}},
        },
        "max_tokens": _TOKENS,
        "max_completion_tokens": _TOKENS,
        "temperature": {"type": "number", "minimum": 0, "maximum": 2},
        "top_p": {"type": "number", "minimum": 0, "maximum": 1},
        "seed": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1},
        "stop": {"oneOf": [_SHORT, {"type": "array", "items": _SHORT, "maxItems": 4}]},
        "collections": {"type": "array", "items": _SHORT, "maxItems": 100},
        "n": {"const": 1},
        "presence_penalty": {"const": 0},
        "frequency_penalty": {"const": 0},
        "user": {"type": "string"},
    },
}  # fmt: skip
EMBEDDINGS: dict[str, Any] = {
    "type": "object", "required": ["input"], "additionalProperties": False,
    "properties": {
        "input": {
            "oneOf": [
                {"type": "string", "minLength": 1},
                {"type": "array", "minItems": 1, "maxItems": MOST_EMBEDDINGS, "items": {"type": "string", "minLength": 1}},
            ]
        },
        "model": {"type": "string"},
        "encoding_format": {"enum": ["float", "base64"]},
        "user": {"type": "string"},
    },
}  # fmt: skip


def body(schema: dict[str, Any]) -> dict[str, Any]:
    """What a route's `openapi_extra` takes."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
