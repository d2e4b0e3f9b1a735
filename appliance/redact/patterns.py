"""What is personal by its shape: e-mail, phone, street address, date of birth, numbers that stand for a person.

A shape that sums have too (a run of digits, a date) counts only where a word before it says what it is, or a check digit does;
lengths of international phone numbers come from `phonenumbers`. Names are not its business. presidio-analyzer was measured and
left out: it loads spaCy, asks a server for domain endings, knows no street and takes "3.6D.De" for an address of the web.
"""

from __future__ import annotations

import ipaddress
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator

Span = tuple[int, int, str]

EMAIL = re.compile(
    r"(?<![\w.+-])[\w.+%'-]{1,64}(?:@|[ ]?(?:\(at\)|\[at\])[ ]?)"
    r"(?:[\w-]{1,63}(?:\.|[ ]?(?:\(dot\)|\[dot\])[ ]?)){1,8}[^\W\d_]{2,24}\b",
    re.IGNORECASE,
)
URL = re.compile(r"\b(?:https?://|www\.)[^\s<>\"\0]{3,2000}", re.IGNORECASE)
# Pages of persons and closed rooms. Other addresses lead to public pages and are part of the lesson.
PERSONAL_URL = re.compile(
    r"(?://|www\.)(?:[\w-]{1,63}\.){0,4}(?:facebook|instagram|tiktok|snapchat|twitter|x|linkedin|t|wa|discord|zoom|skype|"
    r"docs\.google|drive\.google|meet\.google|teams\.microsoft|sharepoint|onedrive\.live|dropbox)\.(?:com|me|gg|us|net)\b"
    r"|/~\w|[?&](?:token|key|user|email|name|sid|id)=",
    re.IGNORECASE,
)
HANDLE = re.compile(
    r"\b(?:insta(?:gram)?|snap(?:chat)?|tiktok|discord|gamer ?tag|user ?name|roblox|log-?in)(?: name| id| user)?(?: is|:)"
    r"[ ]{0,3}(?P<it>@?[\w.#-]{3,40})|(?<![\w.@$\\])(?P<at>@[a-z][\w.]{3,30})\b",
    re.IGNORECASE,
)
IP = re.compile(
    r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\w|\.\d)"
    r"|(?<![\w:.])(?:[0-9a-f]{0,4}:){3,7}[0-9a-f]{1,4}(?![\w:])",
    re.IGNORECASE,
)
SECTION = re.compile(r"(?:section|chapter|version|exercise|figure|table|example|unit|lesson|part|§)\s*$", re.IGNORECASE)
CARD = re.compile(
    r"(?<![\w.,$^*+/=-])(?:[2-6]\d{3}([ -]?)\d{4}(?:\1\d{4}){1,2}(?:\1\d{1,3})?"
    r"|3[47]\d\d([ -]?)\d{6}\2\d{5})(?![\w^*/=]|[.,]\d)"
)
IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?:[ ]?[A-Z0-9]{4}){2,7}(?:[ ]?[A-Z0-9]{1,3})?\b")

EXTENSION = r"(?:[ ]?(?:x|ext\.?)[ ]?\d{1,6})?"


def _digits(more: str) -> str:
    """A run of digits in groups, with a first one and so many more. A full stop before a blank ends it."""
    between = r"(?:[ \u00a0]?[()\u2010-\u2013-][ \u00a0]?|[ \u00a0]|/|\.(?=\d)|\)[ -]\(?)?"
    return r"\(?\d(?:" + between + r"\d){" + more + "}" + EXTENSION + r"(?!\d|[ ]?[%^*=\u00d7\u00f7]|[.,/]\d)"


PHONE_TOLD = re.compile(
    r"\b(?:(?:(?:tele)?phone|tel|mobile|cell|fax|landline|whats ?app)(?: (?:number|no|nr|me))?"
    r"|(?:my|his|her|our|their|mum's|mom's|dad's|contact) (?:number|no|nr)|(?:desk|office|work|home)(?=:)"
    r"|(?:call|txt|text|ring|phone|sms|reach|contact)(?:ing)? (?:me|us|him|her|them|home|mum|dad)|ph)"
    r"(?:[.:#]|[ ](?:is|at|on|are|number|now|it's|via)){0,4}[:.]?[ ]{0,3}(?P<it>\+?" + _digits("4,14") + ")",
    re.IGNORECASE,
)
PHONE_ABROAD = re.compile(r"(?<![\w)\]}$^*/+=-])(?P<it>(?:\+|00(?=[ -]?[1-9]))[ ]?" + _digits("6,14") + ")")
# Shapes that no sum has: an area code in brackets or with its leading zero, or 3-3-4 digits as in North America.
PHONE_HERE = re.compile(
    r"(?<![\w)\]}$^*/+=.,(-])(?:\(0?\d{2,4}\)[ ]?\d{3,4}[ -]\d{3,4}|[2-9]\d{2}([-.])[2-9]\d{2}\1\d{4}"
    r"|0\d{2,4}[ -]\d{3}[ -]?\d{3,4}|0\d(?:[ .]\d{2}){4}|0\d{4} \d{6})" + EXTENSION + r"(?![\d%^*=+/-]|[.,]\d)"
)

STREET = "street|road|avenue|lane|drive|crescent|boulevard|terrace|highway|close|parkway|straat|laan|weg"
SHORT_STREET = "st|rd|ave|ln|dr|blvd|cres|hwy|pkwy"
# Words of geometry and counting as well: only in front of a town, or where somebody says that it is an address.
WEAK_STREET = (
    "court|way|place|square|gardens?|grove|hill|park|view|mews|walk|parade|quay|rise|green|circle|trail|alley|plaza|"
    "row|ct|pl|sq"
)
WORD = r"[^\W\d_][\w'\u2019.-]{0,30}"
CAPITAL = r"(?-i:[^\W\d_a-zß-ÿ])[\w'\u2019.-]{1,30}"
FLAT = r"(?:,?[ \n]{1,3}(?:apt|apartment|flat|suite|unit|room)\.?[ ]?\w{1,5}\b)?"
TOWN = r"(?:,[ \n]{1,2}(?-i:[A-Z])[^\W\d_]{1,30}(?:[ ](?-i:[A-Z])[^\W\d_]{1,30}){0,2})?"
POSTCODE = (
    r"(?:,?[ ](?-i:[A-Z]{2})[ ]\d{5}(?:-\d{4})?|[ ,]{1,2}\d{4,5}(?![\w.,]*\d)"
    r"|,?[ ](?-i:[A-Z]{1,2}\d[A-Z\d]?[ ]?\d[ABD-HJLNP-UW-Z]{2}))?"
)
TAIL = FLAT + TOWN + POSTCODE
HOUSE = r"\d{1,5}[a-d]?,?[ ]"
NUMBER = r"(?<![\w.,$\\^*+=/-])(?:(?:apt|apartment|flat|unit)\.?[ ]\w{1,4},?[ ])?" + HOUSE
# No address is told by "we moved to 3 places" or "my address is 5 letters long".
QUANTITY = (
    r"(?!(?:letters?|words?|miles?|km|metres?|meters?|years?|people|minutes?|days?|places?|points?|units?|square|feet)\b)"
)


def _address(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


ADDRESSES = [
    _address(NUMBER + f"(?:{CAPITAL}[ ]){{1,4}}(?=(?-i:[A-Z]))(?:(?:{STREET})\\b|(?:{SHORT_STREET})\\b\\.?)" + TAIL),
    _address(NUMBER + f"(?:{CAPITAL}[ ]){{1,3}}(?=(?-i:[A-Z]))(?:{WEAK_STREET})\\b(?=,[ ](?-i:[A-Z]))" + TAIL),
    _address(
        r"\b(?:liv(?:es?|ing)|stay(?:s|ing)?|moved|located|is|return)[ ](?:at|to|in|on)[ ]+(?P<it>"
        + f"(?:\\d{{1,4}}[ ])?{HOUSE}(?:(?:{WORD}[ ]){{1,4}}?(?:{STREET}|{SHORT_STREET}|{WEAK_STREET})\\b"
        + f"|{CAPITAL}(?:[ ]{CAPITAL}){{0,3}}(?:[ ]\\d{{1,4}}\\b(?![\\w.,]*\\d))?){TAIL})"
    ),
    _address(
        r"\b(?:address(?: is| to| with|: it is)?|address\? it is)[ ]?:?[ ]{1,3}(?P<it>"
        + f"(?:\\d{{1,4}}[ ])?{HOUSE}{QUANTITY}(?:(?!(?:and|so|but|for|in)\\b){WORD}[ ]?){{1,4}}(?:\\d{{1,4}}\\b)?{TAIL})"
    ),
    re.compile(
        r"\b[^\W\d_a-zß-ÿ][^\W\d_]{2,20}(?:straat|straße|strasse|gasse|gatan|veien|gata|plein)[ ]\d{1,4}[a-d]?\b" + TAIL
    ),
    re.compile(
        r"(?:\d{1,4}[, ]{1,2})?\b(?:[Rr]ue|[Cc]alle|[Vv]iale?|[Vv]ia|[Aa]venida|[Rr]ua|[Pp]iazza|[Uu]lica)"
        + f"(?:[ ](?:de|del|della|des|la|du|da|do)){{0,2}}(?:[ ]{CAPITAL}){{1,3}}[ ,]{{1,2}}\\d{{1,4}}\\b"
    ),
    _address(r"\b\d{1,4},?[ ]rue(?:[ ](?:de|des|la|du)){0,2}" + f"(?:[ ]{CAPITAL}){{1,3}}"),
    _address(r"\b(?:P\.?[ ]?O\.?[ ]?Box|Private Bag|Postbus|Postfach)[ ]{1,2}X?\d{1,6}\b" + TAIL),
    _address(r"\b(?:zip|my zip code|post ?code|postal code)(?: is|:)[ ]{1,2}(?P<it>(?=\w*[\d])\w{3,5}(?:[ -]\w{3,4})?)\b"),
    re.compile(r"\b[A-Z]{1,2}\d[A-Z\d]?[ ]\d[ABD-HJLNP-UW-Z]{2}\b"),
]

MONTH = r"(?:jan|feb|mar|apr|may|june?|july?|aug|sept?|oct|nov|dec)[a-z]{0,6}"
YEAR = r"(?:19[3-9]|20[0-4])\d"  # nobody at school was born before: the birthdays of history stay
DAY = (
    rf"(?:{YEAR}[-/.](?:0?[1-9]|1[0-2])[-/.][0-3]?\d|[0-3]?\d[-/.][0-3]?\d[-/.](?:{YEAR}|\d\d)\b"
    rf"|[0-3]?\d(?:st|nd|rd|th|er|º|\.)?[ ](?:of |de |d'|del )?[^\W\d_]{{3,10}}\.?(?:,?[ ](?:de |del )?{YEAR})"
    rf"|[0-3]?\d(?:st|nd|rd|th)?[ ](?:of )?{MONTH}\b(?!,?[ ]\d{{4}})"
    rf"|{MONTH}\.?[ ][0-3]?\d(?:st|nd|rd|th)?\b(?:,?[ ]{YEAR}|(?!,?[ ]\d{{4}})))"
)
BORN = (
    r"born|birth ?date|birth ?day|date of birth|d\.?o\.?b\.?|b-?day|n[ée]e? le|date de naissance|geboren|geburts(?:tag|datum)|"
    r"geboortedatum|verjaar|nacid[oa]|fecha de nacimiento|cumpleaños|nascid[oa]|data de nascimento|nat[oa] il|data di nascita|"
    r"compleanno"
)
BIRTH_DATES = [
    re.compile(
        rf"(?<!\w)(?:{BORN})(?:[ ](?:is|was|on|the|falls|it's|el|em|am|op|le|es|ist|est|il|è)){{0,3}}"
        rf"[ ]?[:=,]?[ ]{{0,2}}(?P<it>{DAY})",
        re.IGNORECASE,
    ),
    re.compile(
        rf"(?<![\w/.-])(?P<it>{DAY})[ ](?:is|was) (?:my|his|her|the) (?:birthday|birth date|date of birth|dob)\b",
        re.IGNORECASE,
    ),
]

ID_TOLD = re.compile(
    r"\b(?:(?:student|pupil|learner|candidate|admission|enrol+ment|matric(?:ulation)?|registration|passport|national|identity|"
    r"social security|national insurance|nhs|library card|membership|medical aid|driver(?:'s|s)? licen[cs]e|exam)[ ]?"
    r"(?:card[ ])?(?:id|no\.?|number|nr\.?|#|code)|(?-i:SSN|UPN|ULN|NIN|NINO|NHS|BSN|CPF|DNI|NIE|PPS|PESEL|Aadhaar|ID))"
    r"(?:[ ](?:number|no\.?|nr\.?|card))?(?:[ ](?:is|was|it's))?[ ]?[:=#]?[ ]?#?"
    r"(?P<it>(?-i:[A-Z]{0,3})[- ]?\d(?:[./-]?[\dA-Za-z]|[ ]\d){2,17})(?!\w)",
    re.IGNORECASE,
)
SSN = re.compile(r"(?<![\w.$^*+=/-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w^*=/-]|\.\d)")
NINO = re.compile(r"\b[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z]([ ]?)\d{2}\1\d{2}\1\d{2}\1[A-D]\b")
CPF = re.compile(r"(?<![\w.])\d{3}\.\d{3}\.\d{3}-\d{2}(?!\d)")
SOUTH_AFRICAN = re.compile(
    r"(?<![\w.,$^*+=/-])\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])[ ]?\d{4}[ ]?[01]\d{2}(?![\w^*=/]|[.,]\d)"
)
SPANISH = re.compile(r"(?<![\w.-])(?:[XYZ][ -]?\d{7}|\d{8})[ -]?[A-HJ-NP-TV-Z](?!\w)")


def find(text: str) -> Iterator[Span]:
    links = [match.span() for match in URL.finditer(text)]
    for start, end in links:
        if PERSONAL_URL.search(text, start, end):
            yield start, end, "url"
    for start, end in _abroad(text):
        if not _within(links, start):
            yield start, end, "phone"
    for pattern, kind, sound in RULES:
        for match in pattern.finditer(text):
            if sound is not None and not sound(match):
                continue
            group = next((name for name, value in match.groupdict().items() if value is not None), 0)
            start, end = match.span(group)
            if not _within(links, start):
                yield start, end, kind


def _within(places: list[tuple[int, int]], at: int) -> bool:
    index = bisect_right(places, at, key=lambda place: place[0]) - 1
    return index >= 0 and places[index][0] <= at < places[index][1]


def _is_card(match: re.Match[str]) -> bool:
    return _luhn(re.sub(r"\D", "", match[0]))


def _luhn(digits: str) -> bool:
    """ISO/IEC 7812-1, annex B."""
    doubled = [sum(divmod(int(digit) * 2, 10)) for digit in digits[-2::-2]]
    return len(set(digits)) > 2 and (sum(doubled) + sum(map(int, digits[::-2]))) % 10 == 0


def _is_iban(match: re.Match[str]) -> bool:
    """ISO 13616: the number, turned round and read in base 36, leaves 1 modulo 97."""
    plain = match[0].replace(" ", "")
    return 15 <= len(plain) <= 34 and int("".join(str(int(sign, 36)) for sign in plain[4:] + plain[:4])) % 97 == 1


def _is_ip(match: re.Match[str]) -> bool:
    try:
        address = ipaddress.ip_address(match[0])
    except ValueError:
        return False
    if address.version == 6:
        return match[0].count(":") > 3
    large = sum(int(octet) > 9 for octet in match[0].split("."))
    return large > 1 and not SECTION.search(match.string[max(0, match.start() - 12) : match.start()])


def _is_cpf(match: re.Match[str]) -> bool:
    digits = [int(digit) for digit in match[0] if digit.isdigit()]
    for length in (9, 10):
        rest = sum(digit * (length + 1 - place) for place, digit in enumerate(digits[:length])) * 10 % 11 % 10
        if rest != digits[length]:
            return False
    return True


def _is_spanish(match: re.Match[str]) -> bool:
    plain = re.sub(r"[ -]", "", match[0])
    number = plain[:-1].replace("X", "0").replace("Y", "1").replace("Z", "2")
    return "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23] == plain[-1]


def _abroad(text: str) -> Iterator[tuple[int, int]]:
    """Numbers with a country code, each as long as that country's numbers are: what stands behind may be a sum."""
    import phonenumbers

    for match in PHONE_ABROAD.finditer(text):
        for group in reversed(list(re.finditer(r"\d+", match[0]))):
            number = match[0][: group.end()]
            try:
                possible = phonenumbers.is_possible_number(phonenumbers.parse("+" + number.lstrip("+0 "), None))
            except phonenumbers.NumberParseException:
                break
            if possible:
                yield match.start(), match.start() + group.end()
                break


def _long_enough(match: re.Match[str]) -> bool:
    """Six digits, so that "call me at 9.30" is no phone number; a list of small numbers is none either."""
    groups = re.findall(r"\d+", match["it"])
    return (sum(map(len, groups)) > 5 and max(map(len, groups)) > 2) or match["it"].startswith("+")


RULES: list[tuple[re.Pattern[str], str, Callable[[re.Match[str]], bool] | None]] = [
    (EMAIL, "email", None),
    (HANDLE, "id", None),
    (IP, "ip", _is_ip),
    (CARD, "card", _is_card),
    (IBAN, "iban", _is_iban),
    (PHONE_TOLD, "phone", _long_enough),
    (PHONE_HERE, "phone", None),
    *((pattern, "address", None) for pattern in ADDRESSES),
    *((pattern, "birth_date", None) for pattern in BIRTH_DATES),
    (ID_TOLD, "id", None),
    (SSN, "id", None),
    (NINO, "id", None),
    (CPF, "id", _is_cpf),
    (SOUTH_AFRICAN, "id", lambda match: _luhn(re.sub(r"\D", "", match[0]))),
    (SPANISH, "id", _is_spanish),
]
