"""From a prompt's pieces to tokens, as if it were one text, and without letting what a person typed become a control token.

A vocabulary may put a space before each text that it cuts (Llama 2 and its kin), or join the template's last letters with a
person's first ones. So what stands between two control tokens is cut in one go, whoever wrote it, and never read for control
tokens; only the template's own pieces are. Hides how a piece is taken apart at its control tokens, and how a space is kept away
that belongs before the first text only. It knows no tokenizer: it is given one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from appliance.engine.template import Piece

REMEMBERED = 256  # of the template's own pieces, which are few unless it writes the date

Part = str | list[int]  # words that are cut with what stands beside them, or tokens


@dataclass(frozen=True, slots=True)
class Cut:
    """The tokens of a prompt; `starts`: for the pieces that were asked for, the tokens before them."""

    tokens: list[int]
    starts: dict[int, int]


@dataclass(slots=True)
class _Run:
    """Text between two control tokens, and which pieces begin where in it."""

    first: bool = False
    text: str = ""
    begins: list[tuple[int, int]] = field(default_factory=list)


class Cutter:
    """encode: tokens of a text, in which names of control tokens are those tokens where `control` says so, and words where not.
    name: what a control token is called in a text, "" for any other token.

    joint: a sign that joins with no other, where `encode` puts a space before each text and the model was taught one before the
    first text only; "" where a text after a control token is cut like any other.
    """

    def __init__(self, encode: Callable[[str, bool], list[int]], name: Callable[[int], str], joint: str = "") -> None:
        self._encode = encode
        self._name = name
        self._joint = joint
        self._before = encode(joint, False) if joint else []
        self._known: dict[str, list[Part]] = {}

    def cut(self, pieces: Sequence[Piece], ask: Sequence[int] = (), end: int | None = None) -> Cut:
        """ask: numbers of pieces whose start is wanted. end: the piece after which only the mark of its end is kept, which is
        the next control token, or one token where there is none."""
        cut = Cut([], {})
        run = _Run(first=True)
        for number, piece in enumerate(pieces):
            run.begins.append((number, len(run.text)))
            for part in self._parts(piece.text) if piece.control else [piece.text]:
                if isinstance(part, str):
                    run.text += part
                    continue
                self._flush(run, cut, ask)
                if end is not None and number > end:
                    return Cut(cut.tokens + part[:1], cut.starts)
                cut.tokens.extend(part)
                run = _Run()
        after = end + 1 if end is not None and end + 1 < len(pieces) else None
        self._flush(run, cut, ask if after is None else [*ask, after])
        return cut if after is None else Cut(cut.tokens[: cut.starts.pop(after) + 1], cut.starts)

    def _flush(self, run: _Run, cut: Cut, ask: Sequence[int]) -> None:
        ids = self._words(run.text, first=run.first)
        for number, at in run.begins:
            if number in ask:
                cut.starts[number] = len(cut.tokens) + _common(self._words(run.text[:at], first=run.first), ids)
        cut.tokens.extend(ids)

    def _words(self, text: str, *, first: bool) -> list[int]:
        if not text:
            return []
        if not first and self._joint:
            ids = self._encode(self._joint + text, False)
            if ids[: len(self._before)] == self._before:
                return ids[len(self._before) :]
        return self._encode(text, False)

    def _parts(self, text: str) -> list[Part]:
        found = self._known.get(text)
        if found is None:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            found = self._known[text] = self._apart(text)
        return found

    def _apart(self, text: str) -> list[Part]:
        """A piece of the template, cut at its control tokens."""
        ids = self._encode(text, True)
        parts: list[Part] = []
        at = begin = 0
        for place, token in enumerate(ids):
            name = self._name(token)
            if not name:
                continue
            found = text.find(name, at)
            if found < 0:
                return [ids]  # it is written in another way than it is called
            parts += [self._between(text[at:found], ids[begin:place]), [token]]
            at, begin = found + len(name), place + 1
        return [part for part in [*parts, self._between(text[at:], ids[begin:])] if part]

    def _between(self, text: str, ids: list[int]) -> Part:
        """The words beside a control token; the token may swallow the spaces next to it."""
        if not ids:
            return ""
        for words in (text, text.lstrip(), text.rstrip(), text.strip()):
            if ids in (self._encode(words, False), self._words(words, first=False)):
                return words
        return ids


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens that both begin with."""
    return next((place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
