# ruff: noqa: RUF001 - quotation marks and letters of all languages are what this is about
"""The rules: read from `content/safety`, compiled once, and asked about each message and each sentence of an answer.

Hides how a few hundred phrases are tried in under a millisecond (only those of which a word is there) and how the strongest of
several findings is chosen. Pure and deterministic: the same text and reader get the same verdict, and nothing is remembered.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from appliance.errors import BadInput
from appliance.redact import patterns
from appliance.safety.phrases import Phrase, compile_phrase, words_of
from appliance.safety.spelling import Spelling

Action = Literal["allow", "redact", "block", "escalate"]
# From the weakest to the strongest. "review" is "allow" with a flag for a person to look at.
ACTIONS = ("allow", "review", "redact", "block", "escalate")
LANGUAGES = ("en", "es", "fr", "ar")
WHO = ("young", "pupils", "everyone")
# Kinds of personal data that nobody needs in a lesson. Sums have none of these shapes: see `redact.patterns`.
PERSONAL = frozenset({"phone", "email", "address", "card", "iban", "id"})
_QUOTED = re.compile('"[^"\n]{1,300}"|“[^”\n]{1,300}”|«[^»\n]{1,300}»|„[^“”\n]{1,300}[“”]|‘[^’\n]{1,300}’(?!\\w)|^>.*$', re.M)


@dataclass(frozen=True, slots=True)
class Reader:
    """Who writes and reads: `staff` are judged more leniently, the `young` (up to the fifth grade) more strictly."""

    staff: bool = False
    young: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be done with a text. `rule`: "file/name of the rule"; `text`: the text, without what was taken out of it.

    `review`: it is answered, and a person looks at it later. `flag`: the safeguarding lead is told. `support`: which fixed text
    stands in place of an answer. `language`: that of the rule, "" where it has none.
    """

    action: Action = "allow"
    rule: str = ""
    category: str = ""
    text: str = ""
    review: bool = False
    flag: bool = False
    support: str = ""
    language: str = ""

    @property
    def name(self) -> str:
        """What counts and records call it."""
        return "review" if self.review else self.action


@dataclass(frozen=True, slots=True)
class Rule:
    """`who`: young, pupils, everyone. `where`: question, answer. `softened`: contexts in which a person looks at it instead."""

    name: str
    category: str
    action: str
    who: str
    where: frozenset[str]
    support: str
    flag: bool
    softened: frozenset[str]
    unquoted: bool
    document: bool  # holds also for what the school's own documents say
    but_not: tuple[Phrase, ...]

    def holds_for(self, reader: Reader) -> bool:
        return self.who == "everyone" or (not reader.staff and (self.who == "pupils" or reader.young))


JOINED = 200  # characters of each of two messages that are judged together
SHORT = 2  # words of a message that go on with the one before it even where that ended its sentence
# What begins a question of its own; the second row only where its mark stands at the end.
_ASKS = frozenset({
    "how", "what", "why", "who", "when", "where", "which", "whose", "cómo", "qué", "quién", "cuándo", "dónde", "cuál",
    "comment", "pourquoi", "quand", "où", "quel", "quelle", "quels", "quelles", "كيف", "ماذا", "لماذا", "متى", "أين",
})  # fmt: skip
_ASKS_MARKED = frozenset({
    "is", "are", "was", "were", "do", "does", "did", "can", "could", "should", "would", "will", "es", "son", "puedo", "est",
    "peut", "هل",
})  # fmt: skip
_MARKS = " \t\r\n.,;:!?…-–—\"'”’。！？؟،"
_SENTENCES = re.compile("[.!?…;。！？؟؛]+\\s+|\n+")
LONGEST_ANCHOR = 40  # letters of a word by which a phrase is looked up: more of a longer word need not be tried


@dataclass
class _Index:
    """Phrases by the words of which one must be there."""

    whole: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    begun: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))

    def add(self, number: int, phrase: Phrase) -> None:
        for anchor in phrase.anchors:
            (self.begun if anchor.endswith("*") else self.whole)[anchor.rstrip("*")].append(number)

    def candidates(self, words: Iterable[str]) -> list[int]:
        found: set[int] = set()
        for word in words:
            found.update(self.whole.get(word, ()))
            for end in range(2, min(len(word), LONGEST_ANCHOR) + 1):
                if word[:end] in self.begun:
                    found.update(self.begun[word[:end]])
        return sorted(found)


class Policy:
    """Safe to share between threads."""

    def __init__(self, folder: Path) -> None:
        """Raises BadInput naming the file and the rule at fault."""
        self._rules: list[tuple[Rule, Phrase, str]] = []  # with its language
        self._index = _Index()
        self._contexts: dict[str, list[Phrase]] = {}
        words = _read(folder / "words.toml")
        sets = {language: dict(words.get(language, {})) for language in LANGUAGES}
        vocabulary: set[str] = set()
        for path in sorted(folder.glob("*.toml")):
            if path.name != "words.toml":
                self._load(path, sets, vocabulary)
        for name, by_language in words.get("contexts", {}).items():
            self._contexts[name] = [
                compile_phrase(source, sets[language]) for language, sources in by_language.items() for source in sources
            ]
        self._spelling = Spelling(
            vocabulary, words.get("misspelt", ()), words.get("correct", ()), words.get("starred", ()), self._tells
        )

    def _load(self, path: Path, sets: Mapping[str, Mapping[str, str]], vocabulary: set[str]) -> None:
        data = _read(path)
        for given in data.get("rule", []):
            name = f"{path.stem}/{given.get('name', '')}"
            try:
                rule = _rule(name, {**{k: v for k, v in data.items() if k != "rule"}, **given}, sets)
                for language in LANGUAGES:
                    for source in given.get(language, ()):
                        self._index.add(len(self._rules), phrase := compile_phrase(source, sets[language]))
                        self._rules.append((rule, phrase, language))
                        vocabulary |= words_of(source, sets[language])
            except (BadInput, KeyError, TypeError, ValueError) as error:
                raise BadInput(f"{path}: the rule {name!r} cannot be used: {error}.", "Correct it; see its README.") from None

    def warm(self) -> None:
        """Compile every pattern now, so that no message has to wait for one."""
        for rule, phrase, _ in self._rules:
            for one in (phrase, *rule.but_not):
                _ = one.pattern
        for phrases in self._contexts.values():
            for one in phrases:
                _ = one.pattern

    # --- a message ---------------------------------------------------------------------------------------------------
    def check(self, text: str, reader: Reader) -> Verdict:
        """What is to be done with what a person wrote."""
        plain = self._spelling.plain(text)
        best = self._strongest(self._found(plain, reader, "question"), plain)
        if ACTIONS.index(best.name) <= ACTIONS.index("redact") and not reader.staff and (spans := personal(text)):
            taken = _without(text, spans)
            rule, category = best.rule or "personal data", best.category or "personal data"
            return Verdict("redact", rule, category, taken, best.review, best.flag, "personal", best.language)
        return _with_text(best, text)

    def check_joined(self, before: str, text: str, reader: Reader) -> Verdict:
        """What a message and the one before it, of the same person, say together and neither says alone: "how do I make a",
        "bomb". Only what begins in the one and ends in the other counts, and only where the second goes on with the first.
        """
        head, ends = _last_sentence(before)
        tail = _first_sentence(text)
        begins = tail.split()[0].casefold() if tail else ""
        anew = begins in _ASKS or (begins in _ASKS_MARKED and text.rstrip().endswith(("?", "؟")))
        if not head or not tail or anew or (ends and len(tail.split()) > SHORT):
            return Verdict()
        first = re.sub(" 2$", " to", self._spelling.plain(head).rstrip(" ."))  # "want 2", "die"
        second = self._spelling.plain(tail)
        whole = first + second
        alone = {hit[0].name for part in (f"{first} ", second) for hit in self._found(part, reader, "question")}
        found = [hit for hit in self._found(whole, reader, "question", across=len(first)) if hit[0].name not in alone]
        return _with_text(self._strongest(found, whole), text)

    # --- an answer ---------------------------------------------------------------------------------------------------
    def check_answer(self, text: str, reader: Reader, *, before: str = "", known: str = "") -> Verdict:
        """What is to be done with a sentence of an answer, which follows on `before`.

        known: what the school's documents and the question say, as `known_text` makes it: what stands there word for word is
        not the assistant's own.
        """
        whole = f"{before}{text}"
        plain = self._spelling.plain(whole)
        from_documents = len(text) > 20 and self._spelling.plain(text).strip(" .") in known if known else False
        unquoted = self._spelling.plain(_QUOTED.sub(" ", whole)) if any(mark in whole for mark in '"“«„‘>') else plain
        hits = [
            hit
            for hit in self._found(plain, reader, "answer")
            if not (from_documents and not hit[0].document)
            and not (hit[0].unquoted and unquoted != plain and not hit[1].pattern.search(unquoted))
        ]
        best = self._strongest(hits, plain, contexts=False)
        if best.action == "allow" and not reader.staff:
            spans = [span for span in personal(text) if _bare(text[span[0] : span[1]]) not in known.replace(" ", "")]
            if spans:
                return Verdict("redact", "personal data", "personal data", _without(text, spans))
        return _with_text(best, text)

    def known_text(self, texts: Sequence[str]) -> str:
        """Texts as `check_answer` compares them: once for each answer."""
        return "".join(self._spelling.plain(text) for text in texts)

    def _found(self, plain: str, reader: Reader, where: str, across: int = 0) -> Iterator[tuple[Rule, Phrase, str, int]]:
        """across: only what begins before that letter and ends behind it."""
        for number in self._index.candidates(set(plain.split())):
            rule, phrase, language = self._rules[number]
            if where in rule.where and rule.holds_for(reader):
                for match in phrase.pattern.finditer(plain):
                    if across and not match.start() < across < match.end():
                        continue
                    if not (rule.but_not and _excepted(rule, plain, match)):
                        yield rule, phrase, language, match.start()
                        break

    def _strongest(self, hits: Iterable[tuple[Rule, Phrase, str, int]], plain: str, *, contexts: bool = True) -> Verdict:
        best, action = Verdict(), "allow"
        met: dict[str, bool] = {}
        for rule, _, language, _ in hits:
            met |= {name: self._context(name, plain) for name in rule.softened if contexts and name not in met}
            soft = any(met.get(name) for name in rule.softened)
            this = "review" if soft and rule.action in ("block", "escalate") else rule.action
            if ACTIONS.index(this) > ACTIONS.index(action):
                action = this
                name = "allow" if this == "review" else this
                best = Verdict(
                    name, rule.name, rule.category, "", this == "review", rule.flag or this in ("review", "escalate"),  # type: ignore[arg-type]
                    "" if this == "review" else rule.support, language,
                )  # fmt: skip
        return best

    def _tells(self, plain: str) -> bool:
        numbers = self._index.candidates(set(plain.split()))
        return any(self._rules[number][1].pattern.search(plain) for number in numbers)

    def _context(self, name: str, plain: str) -> bool:
        return any(phrase.pattern.search(plain) for phrase in self._contexts.get(name, ()))


def _last_sentence(text: str) -> tuple[str, bool]:
    """The end of a message, without the marks behind it, and whether they end a sentence: dots that trail off do not."""
    bare = text.rstrip(_MARKS)
    marks = text[len(bare) :]
    ends = any(mark in ".?!。！？؟" for mark in marks) and ".." not in marks and "…" not in marks
    return _SENTENCES.split(bare[-JOINED:])[-1].strip(), ends


def _first_sentence(text: str) -> str:
    return _SENTENCES.split(text.lstrip(_MARKS)[:JOINED])[0].strip()


def personal(text: str) -> list[patterns.Span]:
    """Where personal data stands, in order and without overlaps."""
    if "@" not in text and not any(letter.isdigit() for letter in text):
        return []
    spans: list[patterns.Span] = []
    for start, end, kind in sorted(patterns.find(text), key=lambda span: (span[0], -span[1])):
        if kind in PERSONAL and not (kind == "id" and text[start] == "@") and (not spans or start >= spans[-1][1]):
            spans.append((start, end, kind))
    return spans


def _without(text: str, spans: Sequence[patterns.Span]) -> str:
    parts, at = [], 0
    for start, end, kind in spans:
        parts += [text[at:start], f"[{kind}]"]
        at = end
    return "".join([*parts, text[at:]])


def _bare(text: str) -> str:
    return "".join(letter for letter in text.lower() if letter.isalnum())


def _excepted(rule: Rule, plain: str, match: re.Match[str]) -> bool:
    """Whether something that makes it harmless stands in the same sentence."""
    stops = [stop.start() for stop in re.finditer(r" \.(?= )", plain)]
    before, after = bisect_right(stops, match.start()), bisect_right(stops, max(match.start(), match.end() - 1))
    start = stops[before - 1] + 2 if before else 0
    end = stops[after] if after < len(stops) else len(plain)
    sentence = plain[start:end] + " "
    return any(phrase.pattern.search(sentence) for phrase in rule.but_not)


def _with_text(verdict: Verdict, text: str) -> Verdict:
    return Verdict(
        verdict.action, verdict.rule, verdict.category, text, verdict.review, verdict.flag, verdict.support, verdict.language
    )


# --- reading the files -----------------------------------------------------------------------------------------------
def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadInput(
            f"{path} cannot be read: {error}.", "Correct that line, or copy the file from the release again."
        ) from None


def _rule(name: str, given: Mapping[str, Any], sets: Mapping[str, Mapping[str, str]]) -> Rule:
    known = {
        "name", "category", "action", "for", "in", "support", "flag", "softened_by", "unquoted", "documents_too", "but_not",
        *LANGUAGES,
    }  # fmt: skip
    unknown = sorted(set(given) - known)
    if unknown:
        raise BadInput(f"it has {', '.join(unknown)}", "")
    action, who, where = given["action"], given.get("for", "pupils"), given.get("in", ["question"])
    if action not in ("review", "block", "escalate", "replace") or who not in WHO or set(where) - {"question", "answer"}:
        raise BadInput("its `action`, `for` or `in` is none of those that there are", "")
    everything = {key: value for language in LANGUAGES for key, value in sets[language].items()}
    return Rule(
        name, given["category"], "redact" if action == "replace" else action, who, frozenset(where), given.get("support", ""),
        bool(given.get("flag", False)), frozenset(given.get("softened_by", ())), bool(given.get("unquoted", False)),
        bool(given.get("documents_too", False)),
        tuple(compile_phrase(source, everything) for source in given.get("but_not", ())),
    )  # fmt: skip
