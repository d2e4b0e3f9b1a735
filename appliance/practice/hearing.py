"""What a room hears in a teacher's words: who is meant, whether anything is said, and whether it can change a mind.

Names and words are found without regard to case, accents and kinds of apostrophe, in any script. The fixed phrases (for the
whole class, insults, calls to leave the play) are English; in other languages less is found, and nothing fails. Which moves a
turn makes is not decided here: they are handed in. Which questions only sound as if they asked for a reason, `reasons` knows.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from appliance.practice import reasons
from appliance.practice.exchange import Move
from appliance.practice.scenario import NEVER_CONVINCE, Misconception

ENOUGH = 8_000  # characters that are looked at: nobody says more in one turn
PAUSE = 3.0  # seconds of silence that count as time to think
HARSH = "put_down"
ASKS = frozenset(("elicit", "press", "hint", "check"))  # moves that ask something of somebody
ABOUT_THEM = frozenset(("uptake", "revoice", "press"))  # moves that answer what somebody has just said


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ENDS = frozenset(".!?;:-\u3002\u061f")
_STOPS = _ENDS | {",", "\u060c", "\u061b", "\u3001", ""}
_LEADS = _words("and dear good hello hey hi no now ok okay please right so sorry thanks well yes you")
_TAILS = _words("about do have here how it know mean now please right say see that there think this today want why you")
_ONE_KIND = {**dict.fromkeys(map(ord, "\u2018\u2019\u02bc`\u00b4"), "'"), **dict.fromkeys((0x2013, 0x2014), "-"), 0x2044: "/"}
_TITLES = _words("mr ms dr prof frau herr sir madam madame monsieur senor senora")
# Names that are words as well: heard only where they are written as names.
_ALSO_WORDS = _words(
    """
    amber an april art august bill chance dawn do drew faith frank grace he hope in iris ivy jack joy june lily mark may my no
    olive pat pearl penny ray rich robin rose ruby she sky so sue summer will"""
)


def _phrases(*patterns: str) -> re.Pattern[str]:
    """Of plain words (see `plain`), each from the beginning of a word."""
    return re.compile("|".join(rf"\b(?:{one})" for one in patterns))


_CLASS = _phrases(
    r"(every|any|some)(one|body)\b",
    r"(all|each|both|the two) of (you|us)\b",
    r"you (all|two|three)\b",
    r"class\b",
    r"(the|you) others\b",
    r"rest of\b",
    r"who (can|could|has|else|thinks|agrees|would|will|wants|is|knows|sees)\b",
    r"(children|kids|guys|folks|ladies and gentlemen)\b",
    r"in (pairs|groups)\b",
    r"(your|a) (neighbou?r|partner)s?\b",
    r"hands? up\b",
)
_NOTHING_BUT = r"( (a|an|just|only|really|actually|even|nothing but|some|kind of|all))*"
_BREAKS = _phrases(
    r"(?<!don't )(?<!not )(?<!never )(?<!you )(ignore|disregard|override|forget) "
    r"(all|any|everything|your|previous|prior|the (previous|prior|above|system))\b[^.!?]{0,30}"
    r"\b(instructions?|prompts?|programming|role|rules)\b",
    rf"(you are|you're|youre|you were|are you){_NOTHING_BUT} "
    r"(ai|a\.i\.|(chat ?|ro)?bots?|(large )?language models?|llm|machines?|computer programs?|simulat(ions?|ed)|chatgpt)\b",
    rf"(are you|you are|you're){_NOTHING_BUT} real (person|people|pupils?|children|humans?)\b",
    r"(not|aren't) (a )?real (person|people|pupils?|children|kids?|humans?)\b",
    r"stop (acting|pretending|simulating)(?= *(now|please|it|here)? *([.!?,;]|$)| (as|like) (a |an )?(pupils?|students?)\b)",
    r"stop (the |this |being (a )?)(role.?play\w*|simulation|pupils?\b|students?\b)",
    r"(out of|break|drop|leave|quit) (the |your )?(character|role|act|persona)\b",
    r"(act|answer|talk) (as|like) (an? )?(ai|bot|chatgpt)\b",
    r"as an? (ai|language model)\b",
    r"(system|hidden|initial) prompt\b",
    r"(show|reveal|print|repeat)( me)? your (prompt|instructions)\b",
    r"developer mode\b",
    r"jailbreak",
    r"(end|leave) (the|this) (simulation|role.?play)",
    rf"this is{_NOTHING_BUT} (simulation|role.?play)\b(?! of)",
    r"your (misconception|persona)\b",
)
_CALLED_NAMES = (
    r"(idiots?|stupid|dumb|morons?|imbeciles?|losers?|useless|worthless|pathetic|hopeless|disgusting|brainless|trash)"
)
_INSULTS = _phrases(
    r"(you|you're|youre|you are|are you|you all are)"
    rf"( (all|both|are|so|such|really|just|an?|bunch of|little|lot of|complete|total|always))*,? {_CALLED_NAMES}\b",
    r"(?<!no )(?<!not a )(?<!isn't a )(?<!never a )(?<!any )(stupid|dumb|idiotic|brainless) "
    r"(boy|girl|child|children|kids?|class|lot|answer|question|idea|thing to say)\b",
    r"shut (up|your (mouth|face|trap))\b",
    r"hate (you|this class|all of you)\b",
    r"f+u+c+k",
    r"(bitch|bastard|arsehole|asshole)",
    r"i('ll| will) (hit|beat|slap|hurt|kill) you\b",
    r"no(body| one) (likes|wants) you\b",
)


@dataclass(frozen=True, slots=True)
class Heard:
    """One turn. `named`: whoever is mentioned; `called`: those who are spoken to, the first to answer in front.

    whole: it is for everybody in the room. kinds: the moves made. waits: there was time to think.
    """

    said: str
    moves: tuple[Move, ...]
    kinds: frozenset[str]
    words: int
    named: frozenset[str]
    called: tuple[str, ...]
    whole: bool
    waits: bool
    breaks_role: bool
    harsh: bool
    english: bool = True

    @property
    def silent(self) -> bool:
        """Nothing was said that has a letter or a figure in it."""
        return not self.words

    def means(self, name: str, just_spoke: bool) -> bool:
        """Whether somebody is spoken to: by name, with everybody, or by an answer to what they have just said."""
        answered = just_spoke and not self.harsh and not self.kinds.isdisjoint(ABOUT_THEM)
        return self.whole or name in self.named or answered

    def convinces(self, believed: Misconception) -> bool:
        """Whether this turn gives a reason to doubt that belief: a move that it yields to, with words about it.

        What is only told, insisted on, pleaded, praised or shamed gives none, nor does a question that the teacher then
        answers, takes back, or asks for a yes alone.
        """
        if self.harsh or self.breaks_role or self.silent or reasons.mocks(plain(self.said)):
            return False
        told = [(move.start, move.end) for move in self.moves if move.id == "tell"]
        if any(end <= start for start, end in told):
            return False
        last = max((end for _, end in told), default=0)
        found = [
            move
            for move in self.moves
            if move.id in believed.yields_to
            and move.id not in NEVER_CONVINCE
            and (not told or (move.id != "wait" and move.start >= last))
            and not (self.english and move.id != "wait" and reasons.empty(move.quote or self.said, plain, asks=move.id in ASKS))
        ]
        return bool(found) and touches(_without(self.said, told), believed.about)


def hear(said: str, moves: Sequence[Move], names: Sequence[str], waited: float | None, language: str = "en") -> Heard:
    """What people of these names hear. waited: seconds of silence before the words. language: of the scene, see `Scenario`."""
    said = said[:ENOUGH]
    moves = tuple(moves)
    kinds = frozenset(move.id for move in moves)
    text = plain(said)
    mentions = [*_mentions(said, names)] if text else []
    named = frozenset(one.name for one in mentions)
    return Heard(
        said, moves, kinds,
        words=sum(any(letter.isalnum() for letter in word) for word in said.split()),
        named=named, called=_called(mentions), whole=not named or bool(_CLASS.search(text)) or len(names) == 1,
        waits="wait" in kinds or (waited is not None and waited >= PAUSE),
        breaks_role=bool(_BREAKS.search(text)), harsh=HARSH in kinds or bool(_INSULTS.search(text)),
        english=language.partition("-")[0] == "en",
    )  # fmt: skip


def touches(said: str, about: Sequence[str]) -> bool:
    """Whether one of the words stands in what was said, whole or in the plural."""
    pattern = _any_of(tuple(about))
    return pattern is not None and bool(pattern.search(plain(said)))


def plain(text: str) -> str:
    """Lower case, without accents, with one kind of apostrophe and single spaces."""
    if text.isascii():
        return " ".join(text.replace("`", "'").casefold().split())
    unaccented = "".join(one for one in unicodedata.normalize("NFKD", text) if not unicodedata.combining(one))
    straight = unaccented.translate(_ONE_KIND)
    return " ".join(straight.casefold().split())


def whole_word(word: str) -> str:
    """A pattern for a plain word: between other letters it is another word, but for scripts that write words together."""
    if any("\u0590" <= one < "\u1e00" or "\u2e80" <= one < "\ufe00" for one in word):
        return re.escape(word)
    return rf"(?<!\w){re.escape(word)}(?!\w)"


# --- minds -------------------------------------------------------------------------------------------------------------------
def _without(said: str, spans: Sequence[tuple[int, int]]) -> str:
    for start, end in spans:
        said = said[:start] + " " * (min(end, len(said)) - start) + said[end:]
    return said


@functools.lru_cache(maxsize=512)
def _any_of(words: tuple[str, ...]) -> re.Pattern[str] | None:
    found = [whole_word(one).replace(r"(?!\w)", r"(?:'?s|es)?(?!\w)") for one in (plain(word) for word in words) if one]
    return re.compile("|".join(found)) if found else None


# --- names -------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class _Mention:
    name: str
    at: int
    spoken_to: bool
    asked: bool


def _called(mentions: Sequence[_Mention]) -> tuple[str, ...]:
    """Who is spoken to. Where nobody is, but somebody is mentioned, these. Whoever is asked comes first."""
    spoken_to = [one for one in mentions if one.spoken_to] or list(mentions)
    ordered = sorted(spoken_to, key=lambda one: (not (one.spoken_to and one.asked), one.at))
    return tuple(dict.fromkeys(one.name for one in ordered))


def _mentions(said: str, names: Sequence[str]) -> Iterator[_Mention]:
    text = _with_titles(plain(said))
    for name, pattern in _patterns(tuple(names)):
        for hit in pattern.finditer(text):
            if hit.group() in _ALSO_WORDS and not _written_as_name(hit.group(), said):
                continue
            before, after = text[: hit.start()].rstrip(), text[hit.end() :].lstrip()
            opens = not before or before[-1] in _ENDS or before.rsplit(" ", 1)[-1] in _LEADS
            closes = after[:1] in ("", "?", "\u061f") and before.rsplit(" ", 1)[-1] in _TAILS
            spoken_to = closes or (after[:1] in _STOPS and (opens or before[-1:] in (",", "\u060c", "\u3001")))
            end = re.search("[.!?\u061f\u3002]", after)
            yield _Mention(name, hit.start(), spoken_to, end is not None and end.group() in "?\u061f")


@functools.lru_cache(maxsize=128)
def _patterns(names: tuple[str, ...]) -> tuple[tuple[str, re.Pattern[str]], ...]:
    """Each name as it can be said: whole, and by those of its words that nobody else in the room is called by in full.

    "Mr Haddad" is not Ms Haddad; "Haddad" alone is both.
    """
    spoken = {name: _with_titles(plain(name)) for name in names}
    found = []
    for name, full in spoken.items():
        parts = [part for part in full.split() if part not in _TITLES and len(part) > 1]
        others = [other for other in spoken.values() if other != full]
        ways = [whole_word(full)] if full else []
        for part in parts:
            taken = [other.rsplit(part, 1)[0] for other in others if part in other.split()]
            behind = "".join(rf"(?<!{re.escape(lead)})" for lead in taken if lead)
            ways += [behind + whole_word(part)] if part != full else []
        if ways:
            found.append((name, re.compile("|".join(ways))))
    return tuple(found)


def _with_titles(text: str) -> str:
    return re.sub(r"\b(mr|ms)\.", r"\1", re.sub(r"\b(mrs|miss)\b", "ms", text.replace("mister ", "mr ")))


def _written_as_name(word: str, said: str) -> bool:
    """With a capital letter, and not only because a sentence begins with it."""
    for hit in re.finditer(rf"(?<!\w){re.escape(word.capitalize())}(?!\w)", said):
        before, after = said[: hit.start()].rstrip(), said[hit.end() :].lstrip()
        if after[:1] in _STOPS or (before and before[-1] not in _ENDS):
            return True
    return False
