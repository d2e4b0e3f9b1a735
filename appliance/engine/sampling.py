"""How a token is drawn: a request's sampler chain, and the chances it was drawn by.

Hides the order of the chain, and how a JSON schema becomes a grammar that only lets valid tokens through.
"""

from __future__ import annotations

import json
import secrets
from typing import Any

import numpy as np

from appliance.engine.handler import Request, TokenChance
from appliance.engine.llama import Llama, Sampler
from appliance.errors import BadInput

MOST_CHANCES = 20
SCHEMA_CHARACTERS = 20_000


def sampler(llama: Llama, request: Request) -> Sampler:
    """One of its own for one conversation; hand it back with `llama.free_sampler`. Raises BadInput for a bad schema."""
    seed = request.seed if request.seed is not None and request.seed >= 0 else secrets.randbits(32)
    return llama.sampler(
        temperature=request.temperature, top_k=request.top_k, top_p=request.top_p, min_p=request.min_p,
        repeat_penalty=request.repeat_penalty, frequency_penalty=request.frequency_penalty,
        presence_penalty=request.presence_penalty, seed=seed,
        grammar=grammar(request.schema) if request.schema is not None else "",
    )  # fmt: skip


def grammar(schema: dict[str, Any]) -> str:
    """The grammar of a JSON schema, in llama.cpp's GBNF. Raises BadInput where the schema cannot be one."""
    from llama_cpp.llama_grammar import SchemaConverter

    text = json.dumps(schema)
    if len(text) > SCHEMA_CHARACTERS:
        raise BadInput(f"The schema has {len(text)} characters; {SCHEMA_CHARACTERS} are taken.", "Give a smaller schema.")
    if "$ref" in text and "http" in text:
        raise BadInput("The schema refers to another document.", "Write everything into the schema itself.")
    try:
        converter = SchemaConverter(prop_order={}, allow_fetch=False, dotall=False, raw_pattern=False)
        converter._format_literal = _literal  # the library's own lets through no backslash, no quote and no emoji
        converter.visit(converter.resolve_refs(json.loads(text), "stdin"), "")
        return str(converter.format_grammar())
    except Exception as error:  # noqa: BLE001 - the library raises whatever it stumbles over
        raise BadInput(f"The schema cannot be followed: {error}.", "Use plain types, enums, objects and arrays.") from None


def _literal(constant: str) -> str:
    """A constant's JSON as a literal of the grammar: every sign as itself, not by its code."""
    plain = json.dumps(json.loads(constant), ensure_ascii=False)
    try:
        plain.encode()
    except UnicodeEncodeError:  # half of a sign has nothing but its code
        plain = constant
    escaped = plain.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def check_json(answer: bytes) -> None:
    """Raises BadInput where a finished answer is no JSON, or says a field twice: a grammar cannot prevent all of that."""

    def once(pairs: list[tuple[str, Any]]) -> None:
        if len({name for name, _ in pairs}) < len(pairs):
            raise ValueError("a field stands twice")

    try:
        json.loads(answer, object_pairs_hook=once)
    except (ValueError, RecursionError):
        raise BadInput(
            "The answer became no JSON: the schema lets through what no text may hold.", "Correct its patterns and fields."
        ) from None


def chances(llama: Llama, row: int, token: int, most: int) -> TokenChance:
    """The chance of `token` in a row of the last decode, before temperature and penalties, and the likeliest ones."""
    logits = llama.logits(row).astype(np.float64)
    logits -= logits.max()
    logits -= np.log(np.exp(logits).sum())
    wanted = min(most, MOST_CHANCES)
    likeliest = [int(index) for index in np.argpartition(-logits, wanted)[:wanted]] if wanted else []
    ordered = sorted(likeliest, key=lambda index: -logits[index])

    def text(index: int) -> str:
        return llama.piece(index).decode("utf-8", "replace")

    return TokenChance(text(token), float(logits[token]), tuple((text(index), float(logits[index])) for index in ordered))
