"""How hard a text is to read, and what is done about an answer that was too hard for a class.

`level` is the automated readability index (Senter and Smith, 1967): the school grade in which a text can be read, from letters
a word and words a sentence. It is counted as textstat counts it, which the gate uses (`tuning.measures`) and with which tests
compare it; that library would bring the web process 200 MB of others for one line of sums. The index was made for English, so
other languages have no level. Pure functions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from appliance import teaching
from appliance.engine.handler import Message
from appliance.knowledge.words import STOP_WORDS
from appliance.teaching import Band

FEWEST_WORDS = 20  # below that a level means nothing
LONGEST = 8_000  # characters that are looked at
ENGLISH = 0.2  # share of small English words from which on a text is taken for English
TOO_HARD = 2.0  # grades above the band after which the next answer is to be simpler

_ASIDE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|\$[^$\n]*\$|\[\d[\d,\s]*\]|https?://\S+", re.S)
_MARKS = re.compile(r"^[ \t>#*+-]+|[*_|#]+|^\s*\d+[.)]\s", re.M)
_SENTENCE = re.compile(r"\b[^.!?]+[.!?]*")


def level(text: str, language: str = "") -> float | None:
    """The school grade in which it can be read; None where it has too few words or is not English.

    `language`: its code where it is known, "" to look at its small words.
    """
    plain = _plain(text)
    if len(re.findall(r"\w+", plain)) < FEWEST_WORDS or not (language == "en" if language else english(plain)):
        return None
    return round(index(plain), 1)


def index(text: str) -> float:
    """The automated readability index of any text."""
    words = text.split()
    sentences = _SENTENCE.findall(text)
    whole = max(1, len(sentences) - sum(len(_words(one)) <= 2 for one in sentences))
    if not words:
        return 0.0
    return 4.71 * sum(map(len, words)) / len(words) + 0.5 * len(_words(text)) / whole - 21.43


def english(text: str) -> bool:
    words = re.findall(r"[^\W\d_]+", text.casefold())
    return bool(words) and sum(one in STOP_WORDS for one in words) / len(words) >= ENGLISH


def inside(level: float, band: Band) -> bool:
    """Whether a text of this level is for this band."""
    return band.reading[0] <= level <= band.reading[1]


def facts(text: str, grade: str) -> dict[str, object]:
    """What is kept with an answer for a grade: {} where there is no band or no level. hard: it lies above the band."""
    band, found = teaching.band(grade) if grade else None, level(text)
    if band is None or found is None:
        return {}
    return {"level": found, "band": band.id, "inside": inside(found, band), "hard": found > band.reading[1]}


def note(grade: str, messages: Sequence[Message]) -> str:
    """What the model is told behind a question: to write more simply where its last answer was too hard, else nothing."""
    band = teaching.band(grade) if grade else None
    last = next((one.content for one in reversed(messages) if one.role == "assistant"), "")
    found = level(last) if band is not None else None
    return teaching.simpler() if band and found is not None and found >= band.reading[1] + TOO_HARD else ""


def share_inside(texts: Sequence[str], grade: str) -> tuple[int, int]:
    """(texts inside the grade's band, texts that could be measured)."""
    measured = [found for found in (facts(text, grade) for text in texts) if found]
    return sum(bool(found["inside"]) for found in measured), len(measured)


def _words(text: str) -> list[str]:
    return re.sub(r"[^\w\s']|(?<!\w)'|'(?!\w)", "", text).split()


def _plain(text: str) -> str:
    """Without code, formulas, links, marks of Markdown and of citations; a line without an end mark is a sentence."""
    bare = _MARKS.sub("", _ASIDE.sub("", text[:LONGEST]))
    return "\n".join(line if re.search(r"[.!?:,;]\W*$", line) else f"{line}." for line in bare.splitlines() if line.strip())
