"""The names of a roster in text, however they are cased, accented, spaced and punctuated.

Hides how spellings are compared and how a name that is also a word ("Grace", "Summer") is told from the word. It knows no names
but those it is given and those that a text introduces.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

Span = tuple[int, int, str]


@dataclass(frozen=True, slots=True)
class Name:
    """A person to be taken out. `id`: the school's number for them, taken out where it is no plain number."""

    first: str
    last: str
    id: str = ""


# Names that are also words. Alone, such a one is taken for a person only where the words around it say so.
WORDS = frozenset(
    """
    abbey ace acre addition adept alba alder alto amber an and angel apple april arch are arm art ash aspen aster
    august autumn axis baker ball band bank banks bar barber barker baron base basil bass bay beach bean bear bell
    belle bells bend berry best bianca bill birch bird bishop black bliss blossom blue blunt bond book booker bow box
    boy branch brand brave briar brick bridge bridges brook brown buck bull burn burns bush bushel butcher butler bye
    calm camp candy cane cannon card carol carpenter case cash castle chance chapel charity chart chase cherry china
    chip christmas church circle clay clear cliff close cloud clover coast cold cook cooper coral core count country
    court cove cow cox cream crisp cross crow crown crystal cube cup curry curve daisy dale dash dawn day days dean
    deer degree destiny dew diamond dick digit dot dove down drake draw drew drum duke dune dusk dust each earl early
    east easter eden edge eve even ever factor fair fairy faith fall falls farmer fawn fern field fields figure finch
    fine fish fisher fleet flower fond foot force ford forest fort forte foster four fox frame france frank free
    french friday friend frost fuller funny gale game garden gay gem gene general gentle german gift ginger given
    glass glory go gold golden good goose grace grain grand grant graph grave gray green grey grove guard gull gun guy
    hale half hall ham hand hands happy hardy harmony hart haven hawk hay haze hazel head heart heath heaven height
    her hero hill hills hind hint holiday home honey hood hook hope horn house hunt hunter hut ice if in india iris
    iron is isle it ivory ivy jack jade jam jay jazz jet jewel job joker jolly joy judge july june just justice key
    keys kid kind king kit knight lace lady lake lamb land lane lark laurel law lea leaf league legend lemon lent less
    light lilac lily lime line lion little lock long lord lot love low luck lucky luna lynx mace maiden mail main
    major man manor many maple march marine mark marks mars marsh mason master mat mate matrix max may me meadow mean
    means meek melody mercy merit merry mile miles mill miller min mine mint miss mode monday month moon moor more
    morning moss most mount mouse my myrtle near new nice night nine noble noon norm north not note nova number oak
    oaks ocean odd of olive on one only opal or orange orchard order page painter palm pan paris park part pat
    patience peace peach pear pearl penny pepper percent petal phoenix pi pike pine piper pitch place plain plane
    plant play plum poet point pole polish pond poor pop pope poppy porter post potter pound power powers press price
    pride prime prince princess prior prism product proof prosper queen quick quill rain rainbow ran range rank ray
    read real red reed reef rest rice rich ridge ring rise river rivers road rob robin rock rocky roman romance rook
    room root rope rosa rose rosemary rouge round row royal ruby rue rule ruler rush rusty rye sage sailor salt sand
    sandy saturday savage scale school scout sea season set seven sharp she shell shepherd shine ship short side silk
    silver simple sin singer six sky skye slope small smart smith smooth snow so sol solve son song soul south spark
    sparrow spears spring square squire star stark stars steel stein stella step stone storm street strong sue sum
    summer summers sun sunday sunny sunshine sure swan sweet swift table tailor tan teal temple ten term thorn
    thursday tiger times to topper total tower trace train tree trinity trip true trump try tuck turtle twig two
    unique unit unity us vale valley value van verse victory view vine viola violet virgin virtue wade walk walker
    wall walls ward ware was water waters watts waves way we weeks well wells west wheat wheeler white wick wild will
    willow wills winner winter winters wise wolf wood woods word worth wren wright yang yard year young zen zero
    """.split()  # noqa: SIM905
)
# Of these, the ones that often open a sentence: a comma behind them calls nobody.
OPENERS = frozenset(
    "even first given good great if in like may miss next not now on one or right so sure true well will".split()  # noqa: SIM905
)
PARTICLES = frozenset(
    "al bin de del della der di dos du el ibn la le les mac ní nic ó op san st ter the van von y".split()  # noqa: SIM905
)


def _marks() -> str:
    """The signs that belong to the letter before them (accents, vowels of Indian scripts)."""
    return "".join(chr(code) for code in range(0x300, 0xFE30) if unicodedata.category(chr(code))[0] == "M")


LETTERS = re.compile(rf"[^\W\d_](?:[^\W\d_]|[{_marks()}])*")
# What may stand between the parts of one name, and what may stand inside a part.
LOOSE = re.compile(
    r"[\s.,;:'\u2019\u2018\u02bc`\u00b4_•·/|()\"\u201c\u201d*~\u00ad\u200b-\u200f\u2010-\u2015\u2060\ufeff-]{0,6}"
)
TIGHT = re.compile(r"[.'\u2019\u2018\u02bc`\u00b4_*\u00ad\u200b-\u200f\u2010-\u2011\u2060\ufeff-]{0,2}")
UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
PLAIN = str.maketrans({"\u0131": "i", "ł": "l", "ø": "o", "đ": "d", "ð": "d", "þ": "th", "æ": "ae", "œ": "oe", "ħ": "h"})
UMLAUTS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "å": "aa", "ø": "oe", "ñ": "ny"})
LATER = r"(?!(?:and|but|or|so|i|is|am|in|on|at|from|my|can|what|how|please|i'm|im|the|to|with|not|email|this)\b)"
GIVEN = r"[^\W\d_](?:[^\W\d_]|['\u2019-]){1,30}"
INTRODUCED = re.compile(
    r"\b(?:my (?:full |first |last )?name(?:['\u2019]s| is)|they call me|"
    r"(?:student|pupil|learner)(?:['\u2019]s)? name(?: is|:))"
    r"[ ](?P<name>(?!(?:not?|in|on|the|an?|also|and|so|too|at|as|written|spelt|wrong|there)\b)"
    rf"{GIVEN}(?:[ ]{LATER}{GIVEN}){{0,2}})",
    re.IGNORECASE,
)
# Before or after it, these words make a person of a name that is also a word.
GREETED = re.compile(
    r"(?:^|[\s\0])(?:hi|hello|hey|hiya|dear|thanks|thank you|bye|goodbye|welcome|sorry|tried|done|named|called|"
    r"miss|sir|mr|mrs|ms|dr|my name is|name|sincerely|classmate|pupil|student|learner|partner|friend)[,.:!]?\s$",
    re.IGNORECASE,
)
CALLED = re.compile(r"\s*(?:,|[?!]|\.?\s*(?:\n|$))|\s+(?:you|I|your|please)\b")
ACTS = re.compile(
    r",?\s+(?:and I\b|and (?=[A-Z])|(?:copied|said|says|told|asked|asks|thinks|thought|helped|wrote|got|gets|has|had|is|was|"
    r"did|does|wants|wanted|needs|knows|bought|buys|eats|ate|gave|gives|took|made|makes|found|went|here)\b)"
)
NOT_A_PERSON = re.compile(
    r"(?:^|\W)(?:in|during|this|last|next|every|each|the|a|an|of|by|since|until|till|early|late|mid|per|no|into|through|one|any|"
    r"our|your|its|on)\s+$",
    re.IGNORECASE,
)
PLACE = re.compile(r"\b(?:San|Santa|Saint|Port|Fort)[ ]$")  # San Diego
SENTENCE = re.compile(r"(?:^|[.!?:;\n\"\u201c•|*(\[-])[ \t\0]*$")


def fold(text: str) -> str:
    """Letters without case and accents, so that spellings of one name meet. The length may change."""
    if text.isascii():
        return text.lower()
    marked = unicodedata.normalize("NFKD", text.casefold().translate(PLAIN))
    return "".join(letter for letter in marked if not "\u0300" <= letter <= "\u036f").translate(PLAIN)


def _parts(name: str) -> list[str]:
    return [fold(part) for part in LETTERS.findall(name)]


class Names:
    """Finds a roster's names in one walk over the words: a word is looked up as a name's start, then lengthened."""

    def __init__(self, names: Iterable[Name]) -> None:
        self._full: set[str] = set()  # first and last, in either order
        self._single: set[str] = set()  # one of them; may be a word too
        self._initials: set[tuple[str, str]] = set()  # single name, initial of the other
        self._joints: set[tuple[str, int]] = set()  # name, and after how many of its letters a blank is no surprise
        self._ids: set[str] = set()
        unspaced: set[str] = set()
        for name in names:
            for first, last in {(name.first, name.last), (_spelt(name.first), _spelt(name.last))}:
                self._learn(first, last)
            unspaced |= {part for part in (name.first + name.last, name.last + name.first) if UNSPACED.search(part)}
            unspaced |= {part for part in (name.first, name.last) if UNSPACED.search(part) and len(part) > 1}
            if re.fullmatch(r"(?=.*\d)(?=.*[^\W\d_]|\d{5})[\w./-]{4,}", name.id):
                self._ids.add(name.id.casefold())
        self._starts = {name[:length] for name in self._full | self._single for length in range(1, len(name) + 1)}
        ordered = sorted(unspaced, key=len, reverse=True)
        self._unspaced = re.compile("|".join(map(re.escape, ordered))) if ordered else None

    def _learn(self, first: str, last: str) -> None:
        sides = [_parts(first), _parts(last)]
        joined = ["".join(side) for side in sides]
        for whole, parts in zip(joined, sides, strict=True):
            singles = {whole} | {part for part in parts if len(part) > 3 and part not in PARTICLES}
            self._single |= singles - {""}
            self._join(parts)
        if not all(joined):
            return
        for one, other in ((0, 1), (1, 0)):
            self._full.add(joined[one] + joined[other])
            self._join(sides[one] + sides[other])
            self._initials.add((joined[one], joined[other][0]))

    def _join(self, parts: list[str]) -> None:
        self._joints |= {("".join(parts), len("".join(parts[:count]))) for count in range(1, len(parts))}

    def find(self, text: str) -> Iterator[Span]:
        words = [(word.start(), word.end(), fold(word[0])) for word in LETTERS.finditer(text)]
        at = 0
        while at < len(words):
            word = words[at][2]
            taken = self._at(text, words, at) if word in self._starts or word[:-1] in self._single else 0
            if taken:
                start, end = self._with_initials(text, words, at, at + taken - 1)
                yield start, _after_digits(text, start, end), "name"
            at += taken or 1
        for match in INTRODUCED.finditer(text):
            yield *match.span("name"), "name"
        for match in self._unspaced.finditer(text) if self._unspaced else ():
            yield *match.span(), "name"
        for match in ID_WORD.finditer(text) if self._ids else ():
            if match[0].casefold() in self._ids:
                yield *match.span(), "id"

    def _at(self, text: str, words: list[tuple[int, int, str]], at: int) -> int:
        """How many words from here on are a name; the longest reading wins, 0 where there is none."""
        read, best, blanks = "", 0, set[int]()
        for count in range(at, len(words)):
            start, end, word = words[count]
            if count > at:
                before = words[count - 1][1]
                if not LOOSE.fullmatch(text, before, start):
                    break
                if not TIGHT.fullmatch(text, before, start):
                    blanks.add(len(read))
            read += word
            if read not in self._starts:
                known = read[:-1] if count == at and len(read) > 4 and read.endswith("s") else ""  # a lost apostrophe: "Thabos"
                return 1 if known in self._single and known not in WORDS else best
            tight = all((read, place) in self._joints for place in blanks)
            spelt_out = all(later - earlier == 1 for earlier, later, _ in words[at : count + 1]) and len(read) > 3
            if (read in self._full and (tight or spelt_out or len(read) > 7)) or (
                read in self._single and (tight or spelt_out) and self._person(text, words[at][0], end, read)
            ):
                best = count - at + 1
        return best

    def _person(self, text: str, start: int, end: int, read: str) -> bool:
        """Whether a first or last name that stands alone means a person, where it is a word as well."""
        if PLACE.search(text, max(0, start - 6), start):
            return False
        if len(read) > 2 and read not in WORDS:
            return True
        before, after = text[max(0, start - 24) : start], text[end : end + 24]
        capital = text[start].isupper() and not (end - start > 1 and text[start:end].isupper())
        if len(read) == 1:
            return False
        if GREETED.search(before) and (capital or len(read) > 3):
            return True
        if not capital:
            return len(read) > 3 and bool(re.match(r"\s+(?:copied|told me|helped me)\b", after))
        if (read, after[1:2].casefold()) in self._initials and re.match(r" [A-Z](?:\.|\b(?!['\u2019]))", after):
            return True
        if NOT_A_PERSON.search(before):
            return False
        if ACTS.match(after):
            return True
        if SENTENCE.search(before):
            return read not in OPENERS and bool(CALLED.match(after))
        return before[-1:].isspace() and not re.match(r"\s+[A-Z0-9$\\\0=+*/^<>-]|\s*[=+*/^<>\d$\\(]", after)

    def _with_initials(self, text: str, words: list[tuple[int, int, str]], first: int, last: int) -> tuple[int, int]:
        """The name's place in the text with the initial that stands before or after it: "G. Thornbury", "Niamh N."."""
        start, end = words[first][0], words[last][1]
        read = "".join(word for _, _, word in words[first : last + 1])
        if last + 1 < len(words):
            begin, finish, word = words[last + 1]
            if (read, word) in self._initials and text[begin].isupper() and text[end:begin] in (" ", ", "):
                end = finish + (text[finish : finish + 1] == ".")
        if first:
            begin, finish, word = words[first - 1]
            if (read, word) in self._initials and text[begin].isupper() and re.fullmatch(r"\.? ?", text[finish:start]):
                start = begin
        return start, end


ID_WORD = re.compile(r"\w+(?:[./-]\w+)*")


def _spelt(name: str) -> str:
    """As a keyboard without accents writes it: Bjoern for Björn."""
    return unicodedata.normalize("NFC", name).lower().translate(UMLAUTS)


def _after_digits(text: str, start: int, end: int) -> int:
    """The end of a user name such as niamh11."""
    digits = re.compile(r"_?\d{1,4}(?![\d/*+=^-]|[.,]\d)").match(text, end)
    return digits.end() if digits and end - start > 2 else end
