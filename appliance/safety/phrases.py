"""The small language in which educators write what to look for, and its translation into patterns.

A phrase is plain words. `(a|b c)` is one of these, `(...)?` may be missing, `(...)*` may stand up to three times, `word*` has
any ending, `word?` may lack its last letter, `...` is up to four words of the same sentence, `{name}` stands for words that
mean the same and are listed once. Hides regular expressions; what a phrase finds means nothing here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from appliance.errors import BadInput
from appliance.safety.spelling import fold

_TOKEN = re.compile(r"\s+|\.\.\.|\{[\w ]+\}|[()|?*]|[^\s(){}|?*]+[?*]?")
_GAP = r"(?: [^ .]+){0,4}"
DEEPEST = 8


@dataclass(frozen=True, slots=True)
class Phrase:
    """`anchors`: one of these words stands in every text that the phrase finds; with a `*` they are beginnings."""

    source: str
    regular: str
    anchors: frozenset[str]

    @property
    def pattern(self) -> re.Pattern[str]:
        return _compiled(self.regular)


@cache
def _compiled(regular: str) -> re.Pattern[str]:
    """When it is first needed: most of a few hundred never are, and all of them take a second."""
    return re.compile(regular)


def compile_phrase(source: str, sets: Mapping[str, str]) -> Phrase:
    """Raises BadInput for what is no phrase."""
    tree = _Parser(source, sets).tree()
    anchors = _anchors(tree)
    if not anchors:
        raise BadInput(f"The phrase {source!r} has no word that must be there.", "Write at least one word outside of (...)?.")
    return Phrase(source, _pattern(tree) + "(?= )", anchors)


def words_of(source: str, sets: Mapping[str, str]) -> set[str]:
    """Every whole word of a phrase."""
    found: set[str] = set()

    def walk(node: _Node) -> None:
        if isinstance(node, str):
            if node != "..." and not node.endswith("*"):
                found.add(node)
        else:
            for branch in node.branches:
                for child in branch:
                    walk(child)

    walk(_Parser(source, sets).tree())
    return found


@dataclass(frozen=True, slots=True)
class _Group:
    """`times`: "" once, "?" perhaps, "*" up to three times."""

    branches: tuple[tuple[_Node, ...], ...]
    times: str = ""


_Node = str | _Group


class _Parser:
    def __init__(self, source: str, sets: Mapping[str, str], depth: int = 0) -> None:
        self._source, self._sets, self._depth = source, sets, depth
        self._tokens = [token for token in _TOKEN.findall(source) if not token.isspace()]
        self._at = 0

    def tree(self) -> _Group:
        group = self._branches()
        if self._at < len(self._tokens) or self._depth > DEEPEST:
            raise BadInput(f"The phrase {self._source!r} cannot be read.", "Check its brackets.")
        return group

    def _branches(self) -> _Group:
        branches: list[tuple[_Node, ...]] = []
        row: list[_Node] = []
        while self._at < len(self._tokens) and self._tokens[self._at] != ")":
            token = self._tokens[self._at]
            self._at += 1
            if token == "|":
                branches.append(tuple(row))
                row = []
            elif token == "(":
                inner = self._branches()
                if self._next() != ")":
                    raise BadInput(f"The phrase {self._source!r} has an open bracket.", "Close it.")
                row.append(_Group(inner.branches, self._times()))
            elif token.startswith("{"):
                name = token[1:-1]
                if name not in self._sets:
                    raise BadInput(f"The phrase {self._source!r} names {token}, which is not listed.", "See words.toml.")
                inner = _Parser(self._sets[name], self._sets, self._depth + 1).tree()
                row.append(_Group(inner.branches, self._times()))
            elif token == "...":
                row.append(token)
            elif token in "?*":
                raise BadInput(f"The phrase {self._source!r} has a {token} without brackets before it.", "Write (word)?.")
            else:
                row.append(_word(token))
        branches.append(tuple(row))
        return _Group(tuple(branches))

    def _peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _next(self) -> str:
        token = self._peek()
        self._at += 1
        return token

    def _times(self) -> str:
        return self._next() if self._peek() in ("?", "*") else ""


def _word(token: str) -> _Node:
    word = fold(token.rstrip("?*"))
    if not word.isalnum():
        raise BadInput(f"{token!r} is no word.", "Write words of letters and digits.")
    if token.endswith("?"):
        return _Group(((word,), (word[:-1],)))
    return f"{word}*" if token.endswith("*") else word


def _pattern(node: _Node) -> str:
    if isinstance(node, str):
        if node == "...":
            return _GAP
        return f" {re.escape(node[:-1])}[^ .]*" if node.endswith("*") else f" {re.escape(node)}(?= )"
    inner = "|".join("".join(map(_pattern, branch)) for branch in node.branches)
    return f"(?:{inner})" + {"": "", "?": "?", "*": "{0,3}"}[node.times]


def _anchors(node: _Node) -> frozenset[str]:
    """The rarest-looking set of words of which one must be there: few, and long."""
    if isinstance(node, str):
        return frozenset() if node == "..." else frozenset({node})
    if node.times:
        return frozenset()
    chosen: list[frozenset[str]] = []
    for branch in node.branches:
        sets = [found for found in map(_anchors, branch) if found]
        if not sets:
            return frozenset()
        chosen.append(max(sets, key=lambda words: (min(map(len, words)), -len(words))))
    return frozenset().union(*chosen)
