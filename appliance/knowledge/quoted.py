"""A stored answer without what it quotes from some documents: those that were removed, or that its reader may no longer see.

An answer that was put together from quotations, and the quotations that lead above a starter's words, lose every paragraph that
is not known to stand in a document that stays. Of a model's own answer only block quotations go; its sentences stay, even where
they repeat a document, in quotation marks or not. Hides how a quotation is told. It does not decide which documents those are.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

IN_PLACE = "This was quoted from a document that can no longer be opened here."

_PARAGRAPHS = re.compile(r"\n\s*\n")
_MARK = re.compile(r"\[([\d,\s]{1,80})\]\s*\Z")
_BLOCK = re.compile(r"^[ \t]*>[ \t>]*", re.M)
_QUOTES = '"“”„«» '


def without(answer: Mapping[str, Any], documents: Collection[str]) -> dict[str, Any]:
    """`text`, `facts` and `passages` of a row of `turns` that also has its `handler`, without the words of these documents.

    Its passages keep title, file and place.
    """
    passages = answer["passages"]
    taken = [_flat(one["text"]) for one in passages if one["document"] in documents]
    left = {number: _flat(one["text"]) for number, one in enumerate(passages, 1) if one["document"] not in documents}
    facts = dict(answer["facts"])
    if facts.get("lead"):
        facts["lead"] = _unquoted(facts["lead"], taken, left, True)
    return {
        "text": _unquoted(answer["text"], taken, left, answer["handler"] == "quotes"),
        "facts": facts,
        "passages": [{**one, "text": ""} if one["document"] in documents else one for one in passages],
    }


def _unquoted(text: str, taken: Sequence[str], left: Mapping[int, str], all_quoted: bool) -> str:
    """`left`: what may go on standing here, by the number of its mark; `all_quoted`: no model wrote any of this."""
    parts = _PARAGRAPHS.split(text)
    kept = [IN_PLACE if _goes(part, taken, left, all_quoted) else part for part in parts]
    if kept == parts:
        return text
    return "\n\n".join(part for before, part in zip(["", *kept], kept, strict=False) if part != IN_PLACE or before != IN_PLACE)


def _goes(part: str, taken: Sequence[str], left: Mapping[int, str], all_quoted: bool) -> bool:
    block = part.lstrip().startswith(">")
    if not (block or all_quoted):
        return False
    mark = _MARK.search(part)
    numbers = [int(number) for number in re.findall(r"\d+", mark[1])] if mark else []
    words = _flat(_BLOCK.sub("", part[: mark.start()] if mark else part)).strip(_QUOTES)
    if not words or any(words in left.get(number, "") for number in numbers):
        return False
    return (block and all_quoted) or any(words in text for text in taken)


def _flat(text: str) -> str:
    return " ".join(text.split())
