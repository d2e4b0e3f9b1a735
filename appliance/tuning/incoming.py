"""One row of a file on its way into the store: what a classroom adds to an example, checked, and what makes it this row.

Hides the keys and values of feedback rows (rating, correction, consent, reviewed, user_role, class, created). Which decisions
they lead to is `store.py`'s.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from appliance.engine.handler import Message
from appliance.errors import from_os_error
from appliance.files import sha256_of
from appliance.tuning.examples import Example, Fault, content_id

CLASSROOM = ("rating", "correction", "consent", "reviewed", "user_role", "class", "created")
# What a later import of the same row may change. What was said and how it was judged is the row itself.
CHANGEABLE = ("consent", "licence", "source", "subject", "grade", "skill", "author", "user_role", "class_name")
RATINGS = {"up": "up", "down": "down", "": None}


@dataclass(frozen=True)
class Incoming:
    """`values`: the table's columns as the file has them; `content`: digest of what makes it this row."""

    file: str
    line: int
    id: str
    content: str
    reviewed: Literal["pending", "approved", "rejected"] | None
    values: dict[str, Any]

    def filled(self, licence: str, author: str) -> dict[str, Any]:
        """The columns with what was missing put in, and a mark where it was: a name given for a whole file is no one person."""
        values, extra = dict(self.values), dict(self.values["extra"])
        for key, given in (("licence", licence.strip()), ("author", author.strip())):
            if given and not values[key]:
                values[key] = given
                extra[f"{key}_declared"] = True
        return values | {"extra": extra}


def read(example: Example, file: str, line: int) -> tuple[Incoming | None, list[Fault]]:
    """The row that an example makes, or every fault of its classroom fields."""
    given = example.extra
    faults: list[Fault] = []

    def wrong(what: str, remedy: str) -> None:
        faults.append(Fault(file, line, what, remedy))

    rating = _choice(given, "rating", RATINGS, wrong)
    correction = _text(given, "correction", wrong).strip() or None
    role, room = _text(given, "user_role", wrong), _text(given, "class", wrong)
    states = {"pending": "pending", "approved": "approved", "rejected": "rejected", "": None}
    reviewed = _choice(given, "reviewed", states, wrong)
    consent = given.get("consent")
    if consent is not None and not isinstance(consent, bool):
        wrong('"consent" is not true or false.', "Write true, false, or null where nobody was asked.")
    created = _moment(given.get("created"), wrong)
    rest = {key: value for key, value in given.items() if key not in CLASSROOM}
    try:
        json.dumps(rest)
    except RecursionError:
        wrong("a field of this row is nested too deeply.", "Take the field out.")
    if faults:
        return None, faults
    said = [[message.role, message.content] for message in example.messages]
    content = content_of(example.messages, correction, rating)
    id = example.id
    if id == content_id(example.messages) and (correction or rating or role or example.author):
        # The row has no id of its own. The same talk can be judged by several people: each of their rows is one.
        id = "x" + _digest([said, correction, rating, role, room, example.author, created])[:12]
    values: dict[str, Any] = {
        key: getattr(example, key) for key in ("subject", "grade", "skill", "source", "licence", "author")
    }
    values |= {
        "id": id, "messages": said, "correction": correction, "rating": rating, "user_role": role, "class_name": room,
        "consent": consent, "created": created, "origin": f"{file}, line {line}", "extra": {"fields": rest, "content": content},
    }  # fmt: skip
    return Incoming(file, line, id, content, reviewed, values), []


def content_of(messages: Sequence[Message], correction: str | None, rating: str | None) -> str:
    """The digest of what makes a row this row: what was said, what should have been said, how it was judged."""
    return _digest([[[message.role, message.content] for message in messages], correction, rating])


def digest_of(path: Path) -> str:
    """What the audit record calls the imported file: a digest of its content, for a folder of its files'."""
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        return hashlib.sha256("".join(sha256_of(file) for file in files if file.is_file()).encode()).hexdigest()[:24]
    except OSError as error:
        raise from_os_error(error, "reading examples") from None


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _text(given: Mapping[str, Any], key: str, wrong: Any) -> str:
    value = given.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if value is None:
        return ""
    if not isinstance(value, str):
        wrong(f'"{key}" is not a text.', "Put its value in quotation marks.")
        return ""
    try:
        value.encode()
    except UnicodeEncodeError:
        wrong(f'"{key}" holds half a character (a lone surrogate).', "Write the character again.")
        return ""
    return value


def _choice(given: Mapping[str, Any], key: str, choices: Mapping[str, Any], wrong: Any) -> Any:
    value = given.get(key)
    if value is None:
        return None
    if not isinstance(value, str) or value not in choices:
        names = ", ".join(f'"{name}"' for name in choices if name)
        wrong(f'"{key}" is {json.dumps(value)[:40]}.', f"Write one of {names}, or null.")
        return None
    return choices[value]


def _moment(value: Any, wrong: Any) -> float:
    """UTC seconds of a date in ISO 8601 or a number of seconds; 0 where there is none. Without a zone it is taken as UTC."""
    if value is None or value == "":
        return 0.0
    try:
        if isinstance(value, str):
            moment = datetime.datetime.fromisoformat(value)
            moment = moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)
            return moment.timestamp()
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return datetime.datetime.fromtimestamp(value, datetime.UTC).timestamp()
    except (ValueError, OverflowError, OSError):
        pass
    wrong('"created" is not a date.', 'Write it like "2026-03-02T08:03:00+02:00".')
    return 0.0
