"""Citation marks in an answer: `[1]` points at a passage, and a mark that points at none is an invention and goes.

Works on a stream, so that every door (pages, `/v1`, the command line) shows the same clean text while it is being written.
"""

from __future__ import annotations

import re


class Citations:
    """Feed it text as it comes; it holds back an unfinished mark. `passages`: how many there are."""

    _MARK = re.compile(r"(?P<space> *)\[(?P<numbers>\s*\d+(?:\s*,\s*\d+)*\s*)\]")
    _OPEN = re.compile(r" *(?:\[[\d,\s]{0,16})?\Z")

    def __init__(self, passages: int) -> None:
        self._passages = passages
        self._held = ""
        self._ticks = 0

    def feed(self, text: str) -> str:
        text = self._held + text
        held = self._OPEN.search(text)
        cut = held.start() if held else len(text)
        self._held = text[cut:]
        return self._clean(text[:cut])

    def flush(self) -> str:
        text, self._held = self._held, ""
        return self._clean(text)

    def _clean(self, text: str) -> str:
        out, at = [], 0
        for mark in self._MARK.finditer(text):
            before = text[at : mark.start()]
            self._ticks += before.count("`")
            out.append(before)
            at = mark.end()
            if self._ticks % 2:  # inside code a bracket is an index, not a mark
                out.append(mark[0])
                continue
            good = [number for part in mark["numbers"].split(",") if 1 <= (number := int(part[:9])) <= self._passages]
            if good:
                out.append(f"{mark['space']}[{', '.join(map(str, good))}]")
        self._ticks += text[at:].count("`")
        return "".join([*out, text[at:]])
