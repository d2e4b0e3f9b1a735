# ruff: noqa: RUF001 - quotation marks and letters of all languages are what this is about
"""An answer held back until each of its sentences has been judged.

Feed it text as it comes; it gives back what may be shown. How the text was cut on its way changes nothing, allowed text comes
out letter for letter, and no word is ever split. A sentence that may not be shown is replaced; most of what is refused ends the
answer as well. It knows no rule: it is handed a function that judges.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from appliance.safety.policy import Verdict

LONGEST = 200  # characters without an end of a sentence after which what there is gets judged
LONGEST_WORD = 2000  # and without a blank
BEFORE = 160  # characters before a cut inside a sentence that are judged together with what follows it

# A sentence ends with its mark and the blank behind it, or with a line; some scripts need no blank.
_END = re.compile("(?:[.!?…؟](?:[\"'”’»)\\]*_]*)\\s|[。！？]|\n)")
# "1. " and "e.g. " end no sentence.
_NO_END = re.compile(r"(?:\A|\s)(?:\d{1,3}|[A-Za-z]|e\.g|i\.e|etc|Mr|Ms|Mrs|Dr|St|vs|cf|p|pp|ch|fig|no)\.\s\Z", re.IGNORECASE)

Judge = Callable[[str, str], Verdict]


class StreamGuard:
    """One answer. judge(sentence, what came before it in the same sentence). instead(verdict) is what stands in its place.

    `ended`: the verdict that ended the answer; nothing more comes out after it. `softened`: verdicts that changed a sentence.
    """

    def __init__(self, judge: Judge, instead: Callable[[Verdict], str]) -> None:
        self._judge = judge
        self._instead = instead
        self._held = ""
        self._before = ""
        self.ended: Verdict | None = None
        self.softened: list[Verdict] = []

    def feed(self, text: str) -> str:
        """What may be shown now."""
        if self.ended is not None:
            return ""
        self._held += text
        out = []
        while self.ended is None and (cut := self._cut()):
            sentence, self._held = self._held[: cut[0]], self._held[cut[0] :]
            out.append(self._judged(sentence, whole=cut[1]))
        return "".join(out)

    def flush(self) -> str:
        """The rest, at the end of the answer."""
        sentence, self._held = self._held, ""
        return self._judged(sentence, whole=True) if sentence and self.ended is None else ""

    def _cut(self) -> tuple[int, bool] | None:
        """Where the first piece ends, and whether that is the end of a sentence. It looks at so many letters and no more, so
        that what comes later cannot change it.
        """
        window = self._held[:LONGEST]
        for match in _END.finditer(window):
            if not (match[0][0] == "." and _NO_END.search(window[: match.end()])):
                return match.end(), True
        if len(self._held) < LONGEST:
            return None
        blank = max(window.rfind(" "), window.rfind("\t"))
        if blank > 0:
            return blank + 1, False
        ends = re.compile(r"\s").search(self._held[:LONGEST_WORD], LONGEST)
        if ends is not None:
            return ends.end(), False
        return (LONGEST_WORD, False) if len(self._held) >= LONGEST_WORD else None

    def _judged(self, sentence: str, *, whole: bool) -> str:
        verdict = self._judge(sentence, self._before)
        self._before = "" if whole else (self._before + sentence)[-BEFORE:]
        if verdict.action == "allow":
            return sentence
        blank = sentence[len(sentence.rstrip()) :]
        if verdict.action == "redact":
            self.softened.append(verdict)
            return f"{self._instead(verdict)}{blank}" if verdict.support else verdict.text
        self.ended = verdict
        return self._instead(verdict)
