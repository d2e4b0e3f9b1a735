"""Lines of a log with only what the product itself says left in them.

Nobody can list all that people write, but what the product writes stands in its source. So a word stays where it and two of its
neighbours stand in that order in one of our own sentences, and the shape of a line stays: its time, its level, the kind and the
place of a fault. Everything else is left out, whatever it is, and so is each word of the names that are known here.
"""

from __future__ import annotations

import ast
import builtins
import gc
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from appliance.logs import METHODS

GAP = "[...]"
NUMBER = "#"
LONGEST_NUMBER = 6  # digits: more may be a telephone or an identity card
LEVELS = frozenset({"debug", "info", "warning", "error", "critical"})
PROCESSES = frozenset({"serve", "web", "engine", "worker", "egress"})
TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d{1,6})?(?:Z|[+-]\d\d:?\d\d)?")
WORD = re.compile(r"\d+(?:\.\d+)?|\w+")
PLACE = re.compile(r"\b(?P<file>[a-z_0-9]+)\.py(?:\", line |:)(?P<line>\d{1,6})(?:, in (?P<function>[A-Za-z_0-9]+))?")
NAME = re.compile(r"\b[A-Za-z]+\b")
HOLES = re.compile(r"%(?:\(\w+\))?[-.0-9]*[sdfgr]|\{[^{}]*\}")


class OwnWords:
    """The sentences of one package. names: of people, classes and the like, of which no word may stay."""

    def __init__(self, package: Path, names: Iterable[str] = ()) -> None:
        self._threes: set[tuple[str, str, str]] = set()
        self._defined: set[str] = set()
        self.texts: set[str] = set()
        self._files = {path.stem for path in package.rglob("*.py")} | set(sys.stdlib_module_names)
        self._kinds = {name for name in dir(builtins) if name.endswith(("Error", "Exception", "Warning"))}
        self._names = {word.casefold() for name in names for word in WORD.findall(name) if len(word) > 1}
        for path in sorted(package.rglob("*.py")):
            for node in ast.walk(_parsed(path)):
                self._learn(node)

    def _learn(self, node: ast.AST) -> None:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            self._defined.add(node.name)
            if isinstance(node, ast.ClassDef):
                self._kinds.add(node.name)
        text = ""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = HOLES.sub(" 0 ", node.value)
            self.texts.add(node.value)
        elif isinstance(node, ast.JoinedStr):
            text = "".join(str(one.value) if isinstance(one, ast.Constant) else " 0 " for one in node.values)
        words = [word for word, _, _ in _words(text)]
        for three in zip(words, words[1:], words[2:], strict=False):
            if three.count(NUMBER) < 2:
                self._threes.add(three)

    def knows(self, text: object) -> str:
        """A text that stands in the source as it is, such as a verb of the record; else a gap."""
        return text if isinstance(text, str) and (text in self.texts or not text) else GAP

    def line(self, text: str) -> str:
        """What may stay of a line, with gaps for the rest."""
        if text in self.texts and not self._names.intersection(word for word, _, _ in _words(text)):
            return text
        kept = sorted(self._spans(text))
        out, at, gap = "", 0, False
        for start, end in kept:
            if start < at:
                continue
            between = text[at:start]
            gap = bool(re.search(r"\w", between)) or len(between) > 3
            out += f" {GAP} " if gap else between
            out += text[start:end]
            at = end
        if re.search(r"\w", text[at:]):
            out += f" {GAP}"
        return out.strip()

    def _spans(self, text: str) -> Iterator[tuple[int, int]]:
        if time := TIME.match(text):
            yield time.span()
        for place in PLACE.finditer(text):
            if place["file"] in self._files:
                known = place["function"] in self._defined and place["function"].casefold() not in self._names
                yield place.start(), place.end() if known else place.end("line")
        for name in NAME.finditer(text):
            said = name.group()
            if (said in self._kinds and said.casefold() not in self._names) or (said.isupper() and said.lower() in LEVELS):
                yield name.span()
        words = list(_words(text))
        stays: set[int] = set()
        for number in range(len(words) - 2):
            if tuple(word for word, _, _ in words[number : number + 3]) in self._threes:
                stays |= {number, number + 1, number + 2}
        for number in sorted(stays):
            _, start, end = words[number]
            if text[start:end].casefold() not in self._names:
                yield start, end

    def log_line(self, text: str) -> str:
        """The same for a line of a service's log, which may be one of JSON: of that, the keys that we know."""
        try:
            said = json.loads(text)
        except ValueError:
            return self.line(text)
        if not isinstance(said, dict):
            return self.line(text)
        return json.dumps({name: kept for name, value in said.items() if (kept := self._fact(name, value)) is not None})

    def _fact(self, name: str, value: Any) -> Any:
        if name in ("status", "ms", "exit", "place", "wait") and isinstance(value, int | float):
            return value
        if not isinstance(value, str):
            return None
        among = {"level": LEVELS, "process": PROCESSES, "method": METHODS | {"other"}}
        if name in among:
            return value if value in among[name] else None
        if name == "time":
            return value if TIME.fullmatch(value) else None
        if name == "route":
            return self.knows(value) if value.startswith("/") or not value else GAP
        if name == "code":
            return self.knows(value)
        return self.line(value) if name in ("message", "hint", "fault") else None


def _words(text: str) -> Iterator[tuple[str, int, int]]:
    """The words of a text in small letters, with where they stand; NUMBER for a short number."""
    for found in WORD.finditer(text):
        said = found.group()
        plain = said.replace(".", "").isdigit()
        yield NUMBER if plain and len(said) <= LONGEST_NUMBER else said.casefold(), found.start(), found.end()


def _parsed(path: Path) -> ast.Module:
    """Without the collector: CPython 3.11 raises SystemError where it runs Python code while a tree is being built."""
    gc.disable()
    try:
        return ast.parse(path.read_text("utf-8"))
    finally:
        gc.enable()
