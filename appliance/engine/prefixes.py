"""What stands in the model's cache: a tree of token runs, and which sequences pass through each.

A node is a run of cells that were computed once; sequences that were given a copy of a prefix pass through the same node, so
the tree counts each cell once, as llama.cpp's unified cache does. Two sequences that computed the same tokens separately are
two branches. Knows nothing of llama.cpp: the scheduler copies and removes cells, and tells the tree what it did.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field


@dataclass(eq=False, slots=True)
class _Node:
    tokens: list[int]
    parent: _Node | None
    children: list[_Node] = field(default_factory=list)
    holders: set[int] = field(default_factory=set)


class Prefixes:
    """The cells of all sequences. A sequence has an id, belongs to a `kind` (cells are shared only within one: the adapter that
    computed them), and is empty until tokens are appended or a prefix is shared with it."""

    def __init__(self) -> None:
        self._roots: dict[Hashable, _Node] = {}
        self._leaves: dict[int, _Node] = {}
        self.cells = 0  # distinct ones, over all kinds

    def __contains__(self, sequence: int) -> bool:
        return sequence in self._leaves

    def match(self, tokens: list[int], kind: Hashable = None) -> tuple[int, int]:
        """(sequence, length) of the longest prefix of `tokens` that a sequence holds; (-1, 0) where there is none."""
        root = self._roots.get(kind)
        found, most = -1, 0
        ways = [(root, 0)] if root is not None else []
        while ways:  # the same tokens may have been computed twice: more than one branch can lead on
            node, at = ways.pop()
            for child in node.children:
                same = common(child.tokens, tokens, at)
                if at + same > most:
                    found, most = next(iter(child.holders)), at + same
                if same == len(child.tokens):
                    ways.append((child, at + same))
        return found, most

    def length(self, sequence: int) -> int:
        """Tokens that a sequence holds."""
        return sum(len(node.tokens) for node in self._path(sequence))

    def own(self, sequence: int) -> int:
        """Cells that would come free if this sequence went."""
        return sum(len(node.tokens) for node in self._path(sequence) if len(node.holders) == 1)

    def share(self, sequence: int, source: int, length: int, kind: Hashable = None) -> None:
        """Give a new, empty `sequence` the first `length` tokens of `source`, or nothing where length is 0."""
        if sequence in self._leaves:
            raise ValueError(f"sequence {sequence} is in use")
        root = self._roots.setdefault(kind, _Node([], None))
        node = root
        if length:
            node = self._cut(source, length)
        self._leaves[sequence] = node
        while node is not root:
            node.holders.add(sequence)
            assert node.parent is not None
            node = node.parent

    def append(self, sequence: int, tokens: Sequence[int]) -> None:
        """Tokens were computed at the end of a sequence."""
        if not tokens:
            return
        leaf = self._leaves[sequence]
        if leaf.parent is None or leaf.children or len(leaf.holders) > 1:
            child = _Node(list(tokens), leaf, holders={sequence})
            leaf.children.append(child)
            self._leaves[sequence] = child
        else:
            leaf.tokens.extend(tokens)
        self.cells += len(tokens)

    def cut(self, sequence: int, length: int) -> None:
        """Only the first `length` tokens of a sequence stay."""
        if length >= self.length(sequence):
            return
        kept = self._cut(sequence, length) if length else self._root_of(sequence)
        self._release(sequence, kept)
        self._leaves[sequence] = kept

    def drop(self, sequence: int) -> None:
        """A sequence goes, with all cells that nobody else holds."""
        self._release(sequence, self._root_of(sequence))
        del self._leaves[sequence]

    def tokens(self, sequence: int) -> list[int]:
        """What a sequence holds, in order."""
        return [token for node in reversed(list(self._path(sequence))) for token in node.tokens]

    # ------------------------------------------------------------------------------------------------------------------
    def _path(self, sequence: int) -> Iterator[_Node]:
        """From the leaf up; without the root."""
        node = self._leaves[sequence]
        while node.parent is not None:
            yield node
            node = node.parent

    def _root_of(self, sequence: int) -> _Node:
        node = self._leaves[sequence]
        while node.parent is not None:
            node = node.parent
        return node

    def _cut(self, sequence: int, length: int) -> _Node:
        """The node that ends after the first `length` tokens of a sequence; a longer run is made two."""
        at = self.length(sequence)
        if not 0 < length <= at:
            raise ValueError(f"sequence {sequence} holds {at} tokens, not {length}")
        for node in self._path(sequence):
            start = at - len(node.tokens)
            if length == at:
                return node
            if length > start:
                return self._split(node, length - start)
            at = start
        raise AssertionError("unreachable")

    def _split(self, node: _Node, length: int) -> _Node:
        """Put a new node with the first `length` tokens above `node`, which keeps the rest and its leaves."""
        assert node.parent is not None
        upper = _Node(node.tokens[:length], node.parent, [node], set(node.holders))
        siblings = node.parent.children
        siblings[siblings.index(node)] = upper
        node.tokens, node.parent = node.tokens[length:], upper
        return upper

    def _release(self, sequence: int, until: _Node) -> None:
        node = self._leaves[sequence]
        while node is not until:
            parent = node.parent
            assert parent is not None
            node.holders.discard(sequence)
            if not node.holders:
                parent.children.remove(node)
                self.cells -= len(node.tokens)
            node = parent


def common(run: list[int], tokens: list[int], start: int = 0) -> int:
    """How many tokens at the beginning of `run` stand in `tokens` from `start` on."""
    most = min(len(run), len(tokens) - start)
    if run[:most] == tokens[start : start + most]:
        return most
    low, high = 0, most  # the first `low` are equal, the first `high` are not
    while high - low > 1:
        middle = (low + high) // 2
        if run[low:middle] == tokens[start + low : start + middle]:
            low = middle
        else:
            high = middle
    return low
