"""The shapes in which people keep tutoring conversations, one pair of functions each: a parsed row to an Example, and back.

Hides the keys of OpenAI chat JSONL, Hugging Face messages (our own rows), DSPy examples, Alpaca and ShareGPT (both as
LLaMA-Factory documents them), and of trl's prompt and completion and OpenAI's preferences, which are only read. What a shape
has no place for travels in `Example.extra`; what it cannot hold at all is refused, never cut. Knows nothing of files, lines,
models or training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Any, get_args

from appliance.engine.handler import Message, Role

ROLES = get_args(Role)
TEXT_FIELDS = ("id", "subject", "grade", "skill", "source", "licence", "author")
OPENAI_KEYS = frozenset({"messages", "metadata", "tools", "parallel_tool_calls", "functions"})
OPENAI_MESSAGE_KEYS = frozenset({"name", "weight"})
ALPACA_KEYS = frozenset({"instruction", "input", "output", "system", "history"})
PREFERENCE_KEYS = frozenset({"input", "preferred_output", "non_preferred_output"})
DSPY_KEYS = frozenset({"question", "answer", "system", "history"})
# Names that ShareGPT dumps and their many descendants use for the two sides.
SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant"}

Row = dict[str, Any]
Problem = tuple[str, str]  # what is wrong, what to do
Said = tuple[str, Any, Any, Row]  # where in the row, role, content, the turn's other fields: not checked yet


class Unfit(ValueError):
    """A row that is no example, or an example that a format cannot hold; `problems` are all of them."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(what for what, _ in problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation to learn from; ends with the tutor's turn.

    extra: what the row held besides (any JSON), so that a conversion keeps it. `extra["turn_fields"]` has the other fields of
    single turns, by their place: {"1": {"weight": 0}}. No part of the example's identity; training does not see it.
    """

    id: str
    messages: tuple[Message, ...]
    subject: str = ""
    grade: str = ""
    skill: str = ""
    source: str = ""
    licence: str = ""
    author: str = ""
    extra: Row = field(default_factory=dict, compare=False, repr=False)

    def row(self) -> Row:
        """The public row format: one JSON object a line, without `extra`."""
        said = [{"role": message.role, "content": message.content} for message in self.messages]
        return {"id": self.id, "messages": said, **{key: getattr(self, key) for key in TEXT_FIELDS if key != "id"}}


def content_id(messages: tuple[Message, ...]) -> str:
    """A stable id for an example that has none: the beginning of the SHA-256 of what was said."""
    text = json.dumps([[message.role, message.content] for message in messages], ensure_ascii=False)
    return "x" + hashlib.sha256(text.encode()).hexdigest()[:12]


def detect(row: Mapping[str, Any]) -> str:
    """The name of the format whose keys a row has, or "" where it has none's."""
    if "messages" in row:
        return "openai" if len(row) > 1 and row.keys() <= OPENAI_KEYS else "huggingface"
    for name, keys in _MARKS:
        if keys <= row.keys():
            return name
    return ""


def from_row(row: Row, name: str) -> Example:
    """The example that a row of the format `name` holds. Raises Unfit with every problem of the row."""
    return _READERS[name](row)


def to_row(example: Example, name: str) -> Row:
    """The example as a row of the format `name`, checked by reading it back. Raises Unfit where anything would be lost."""
    row = _WRITERS[name](example)
    try:
        back = from_row(row, detect(row))  # as a reader would take it, whatever its fields are named
    except Unfit:
        lost = set(example.extra)
    else:
        if back == example and back.extra == example.extra:
            return row
        lost = {key for key, value in example.extra.items() if key not in back.extra or back.extra[key] != value}
    names = ", ".join(f'"{key}"' for key in sorted(lost)) or "a field"
    raise Unfit([(f"{names} would be lost: the name has a meaning of its own in {name}.", "Rename it in the source.")])


# --- what all have in common ----------------------------------------------------------------------------------------------


def _build(row: Row, said: list[Said], own: Set[str], problems: list[Problem]) -> Example:
    """An example of a row's turns and fields. `own` are the format's keys; all others are kept in `extra`."""
    fields: dict[str, str] = {}
    wrong: list[Problem] = []
    for key in TEXT_FIELDS:
        value = row.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if value is not None and not isinstance(value, str):
            wrong.append((f'"{key}" is not a text.', "Put its value in quotation marks."))
        elif isinstance(value, str) and _half(value):
            wrong.append((f'"{key}" holds half a character (a lone surrogate).', "Write the character again."))
        fields[key] = value if isinstance(value, str) else ""
    turns: list[Message] = []
    for where, role, content, _ in said:
        turn = _turn(where, role, content)
        if isinstance(turn, Message):
            turns.append(turn)
        else:
            problems.append(turn)
    wrong += problems or order(turns)
    if wrong:
        raise Unfit(wrong)
    extra = {key: value for key, value in row.items() if key not in own and key not in TEXT_FIELDS}
    if others := {str(place): rest for place, (*_, rest) in enumerate(said) if rest}:
        extra["turn_fields"] = _joined(extra.get("turn_fields"), others)
    messages = tuple(turns)
    return Example(**{**fields, "id": fields["id"] or content_id(messages)}, messages=messages, extra=extra)


def _joined(kept: Any, found: dict[str, Row]) -> Row:
    """The turns' other fields: those that came in a field of their own, and those found at the turns."""
    both: Row = dict(kept) if isinstance(kept, dict) else {}
    for place, rest in found.items():
        earlier = both.get(place)
        both[place] = {**(earlier if isinstance(earlier, dict) else {}), **rest}
    return both


def _turn(where: str, role: Any, content: Any) -> Message | Problem:
    if role is None:
        return f"{where} has no role.", 'Add "role": "user" (the pupil) or "assistant" (the tutor).'
    if role not in ROLES:
        return f"{where} has the unknown role {json.dumps(role)[:40]}.", "Use system, user or assistant."
    if not isinstance(content, str):
        return f"{where} has no text in its content.", 'Add "content": "...".'
    if not content.strip():
        return f"{where} ({role}) is an empty turn.", "Write what was said, or remove the turn."
    if _half(content):
        return f"{where} holds half a character (a lone surrogate).", "Write the character again."
    return Message(role, content)


def _half(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def order(turns: list[Message]) -> Iterator[Problem]:
    """What is wrong with the order of the speakers."""
    roles = [turn.role for turn in turns]
    if "system" in roles[1:]:
        yield "a system message stands after the first place.", "Keep one system message, at the start."
    if "user" not in roles:
        yield "the pupil never speaks.", "Add the pupil's turn (role user)."
    elif roles[-1] != "assistant":
        yield "it does not end with the tutor's turn.", "End with a message of the role assistant."
    elif roles[1 if roles[0] == "system" else 0] != "user":
        yield "it does not begin with the pupil's turn.", "Begin with a message of the role user."


def _listed(row: Row, key: str, problems: list[Problem], speaker: str = "role", text: str = "content") -> list[Said]:
    """The turns of a list of objects; both names are optional in ShareGPT's descendants, so ours are read there too."""
    turns = row.get(key)
    if not isinstance(turns, list) or not turns:
        problems.append((f'the list "{key}" is missing or empty.', f'Add "{key}": [{{"{speaker}", "{text}"}}, ...].'))
        return []
    said: list[Said] = []
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict):
            problems.append((f"message {number} is not an object.", f'Write {{"{speaker}": ..., "{text}": ...}}.'))
            continue
        names = (speaker, text) if speaker in turn or text in turn else ("role", "content")
        rest = {name: value for name, value in turn.items() if name not in names and value is not None}
        said.append((f"message {number}", turn.get(names[0]), turn.get(names[1]), rest))
    return said


def _system(row: Row) -> list[Said]:
    """A `system` column, where it says anything."""
    text = row.get("system")
    blank = text is None or (isinstance(text, str) and not text.strip())
    return [] if blank else [('the field "system"', "system", text, {})]


def _stated(example: Example) -> Row:
    """The fields that say something; an id made of the content is made again on reading."""
    made = content_id(example.messages)
    fields = {key: getattr(example, key) for key in TEXT_FIELDS}
    return {key: value for key, value in fields.items() if value and (key, value) != ("id", made)}


def _pairs(example: Example, name: str) -> tuple[str, list[tuple[str, str]]]:
    """The system text and the (pupil, tutor) pairs. Raises Unfit where they do not take turns."""
    turns = list(example.messages)
    system = turns.pop(0).content if turns[0].role == "system" else ""
    for place, turn in enumerate(turns):
        if turn.role != ("user", "assistant")[place % 2]:
            number = place + 1 + bool(system)
            what = f"message {number} ({turn.role}) follows one of the same speaker, and {name} holds only turn about."
            raise Unfit([(what, "Join the two turns in the source, or convert to openai or huggingface.")])
    said = [turn.content for turn in turns]
    return system, list(zip(said[::2], said[1::2], strict=True))


# --- lists of messages: Hugging Face (our own rows), OpenAI, ShareGPT, trl's prompt and completion ------------------------


def from_huggingface(row: Row) -> Example:
    """{"messages": [{"role", "content"}], ...}: trl's conversational rows, and the public row format of this project."""
    problems: list[Problem] = []
    return _build(row, _listed(row, "messages", problems), {"messages"}, problems)


def to_huggingface(example: Example) -> Row:
    messages, extra = _messages(example, None)
    return {**extra, **example.row(), "messages": messages}


def _messages(example: Example, allowed: Set[str] | None) -> tuple[list[Row], Row]:
    """The turns with those of their other fields that are allowed (None: all), and the extra that is left."""
    extra = dict(example.extra)
    others = extra.pop("turn_fields", {})
    left: Row = {}
    messages = []
    for place, message in enumerate(example.messages):
        rest = others.get(str(place), {}) if isinstance(others, dict) else {}
        rest = rest if isinstance(rest, dict) else {}
        kept = {key: value for key, value in rest.items() if allowed is None or key in allowed}
        messages.append({**kept, "role": message.role, "content": message.content})
        if stays := {key: value for key, value in rest.items() if key not in kept}:
            left[str(place)] = stays
    if not isinstance(others, dict):
        extra["turn_fields"] = others
    elif left:
        extra["turn_fields"] = left
    return messages, extra


def from_openai(row: Row) -> Example:
    """Chat JSONL: {"messages": [{"role", "content"}], "tools", ...}, and our fields as texts in "metadata".

    OpenAI's reference names messages, tools, parallel_tool_calls and functions only, so "metadata" is the one key that is not
    its own. A value that is no text is kept there as JSON, under "extra".
    """
    metadata = row.get("metadata")
    rest = {key: value for key, value in row.items() if key != "metadata"}
    if not isinstance(metadata, dict) or metadata.keys() & rest.keys():  # not written by us: kept as it is
        return from_huggingface(row)
    flat: Row = {**rest, **metadata}
    try:
        others = json.loads(flat["extra"])
    except (KeyError, TypeError, ValueError, RecursionError):
        others = None
    if isinstance(others, dict) and not others.keys() & (flat.keys() - {"extra"}):
        del flat["extra"]
        flat |= others
    return from_huggingface(flat)


def to_openai(example: Example) -> Row:
    messages, extra = _messages(example, OPENAI_MESSAGE_KEYS)
    row: Row = {"messages": messages}
    row |= {key: extra.pop(key) for key in sorted(OPENAI_KEYS - {"messages", "metadata"}) if key in extra}
    metadata = {key: value for key, value in extra.items() if isinstance(value, str) and key not in ("extra", *TEXT_FIELDS)}
    if rest := {key: value for key, value in extra.items() if key not in metadata}:
        metadata["extra"] = json.dumps(rest, ensure_ascii=False)
    metadata = {**_stated(example), **metadata}
    return {**row, "metadata": metadata} if metadata else row


def from_sharegpt(row: Row) -> Example:
    """{"conversations": [{"from": "human"|"gpt"|"system", "value"}], "system"}."""
    problems: list[Problem] = []
    said = _listed(row, "conversations", problems, "from", "value")
    named = [
        (where, SPEAKERS.get(role, role) if isinstance(role, str) else role, text, rest) for where, role, text, rest in said
    ]
    return _build(row, [*_system(row), *named], {"conversations", "system"}, problems)


def to_sharegpt(example: Example) -> Row:
    system, pairs = _pairs(example, "sharegpt")
    turns = [{"from": speaker, "value": text} for pair in pairs for speaker, text in zip(("human", "gpt"), pair, strict=True)]
    return {**example.extra, **_stated(example), "conversations": turns, **({"system": system} if system else {})}


def from_prompt(row: Row) -> Example:
    """{"prompt", "completion"}: two texts, or two lists of messages, as trl reads them."""
    problems: list[Problem] = []
    said: list[Said] = []
    for key, role in (("prompt", "user"), ("completion", "assistant")):
        if isinstance(row.get(key), list):
            said += _listed(row, key, problems)
        else:
            said.append((f'the field "{key}"', role, row.get(key), {}))
    return _build(row, said, {"prompt", "completion"}, problems)


def from_preference(row: Row) -> Example:
    """{"input": {"messages"}, "preferred_output": [...], "non_preferred_output": [...]}: OpenAI's pairs for DPO.

    The example ends with the preferred reply; the other one is kept as the text `extra["rejected"]`.
    """
    problems: list[Problem] = []
    talk = row.get("input")
    said = _listed(talk if isinstance(talk, dict) else {}, "messages", problems)
    preferred, other = (_listed(row, key, problems) for key in ("preferred_output", "non_preferred_output"))
    for key, turns in (("preferred_output", preferred), ("non_preferred_output", other)):
        if turns and (len(turns) != 1 or turns[0][1] != "assistant"):
            problems.append((f'"{key}" is not one turn of the tutor.', "Write one message of the role assistant."))
    rejected = _turn("the reply that is not preferred", other[0][1], other[0][2]) if other else None
    if isinstance(rejected, tuple):
        problems.append(rejected)
    example = _build(row, [*said, *preferred], PREFERENCE_KEYS, problems)
    if isinstance(rejected, Message):
        example.extra["rejected"] = rejected.content
    return example


# --- questions and answers: Alpaca, DSPy ----------------------------------------------------------------------------------


def from_alpaca(row: Row) -> Example:
    """{"instruction", "input", "output", "system", "history": [[asked, answered], ...]}; input joins the instruction."""
    problems: list[Problem] = []
    said = _system(row)
    for number, pair in enumerate(_history(row.get("history"), problems), start=1):
        if not isinstance(pair, list) or len(pair) != 2:
            problems.append((f'pair {number} of "history" is not [asked, answered].', "Write two texts in square brackets."))
            continue
        said += [
            (f'the question of pair {number} in "history"', "user", pair[0], {}),
            (f'the answer of pair {number} in "history"', "assistant", pair[1], {}),
        ]
    instruction, given = row.get("instruction"), row.get("input")
    if given is not None and not isinstance(given, str):
        problems.append(('"input" is not a text.', "Put its value in quotation marks."))
    elif given and isinstance(instruction, str):
        instruction = f"{instruction}\n{given}" if instruction else given
    said += [('the field "instruction"', "user", instruction, {}), ('the field "output"', "assistant", row.get("output"), {})]
    return _build(row, said, ALPACA_KEYS, problems)


def to_alpaca(example: Example) -> Row:
    system, pairs = _pairs(example, "alpaca")
    asked, answered = pairs[-1]
    row = {
        "instruction": asked,
        "input": "",
        "output": answered,
        "system": system,
        "history": [list(pair) for pair in pairs[:-1]],
    }
    return {**example.extra, **_stated(example), **row}


def _history(turns: Any, problems: list[Problem]) -> list[Any]:
    if turns is None or isinstance(turns, list):
        return turns or []
    problems.append(('"history" is not a list.', "Write the earlier questions and answers as a list, or leave it out."))
    return []


def from_dspy(row: Row) -> Example:
    """{"question", "answer", "history": {"messages": [{"question", "answer"}]}, "system", "input_keys"}.

    `history` is what dspy.History holds, and may be its list alone. Load one with
    `dspy.Example(**row).with_inputs(*row["input_keys"])`.
    """
    problems: list[Problem] = []
    said = _system(row)
    past = row.get("history")
    past = past.get("messages") if isinstance(past, dict) else past
    for number, pair in enumerate(_history(past, problems), start=1):
        if not isinstance(pair, dict):
            problems.append((f'turn {number} of "history" is not an object.', 'Write {"question": ..., "answer": ...}.'))
            continue
        rest = {key: value for key, value in pair.items() if key not in ("question", "answer") and value is not None}
        said += [
            (f'the question of turn {number} in "history"', "user", pair.get("question"), {}),
            (f'the answer of turn {number} in "history"', "assistant", pair.get("answer"), rest),
        ]
    said += [(f'the field "{key}"', role, row.get(key), {}) for key, role in (("question", "user"), ("answer", "assistant"))]
    example = _build(row, said, DSPY_KEYS, problems)
    if example.extra.get("input_keys") == _inputs(example):
        del example.extra["input_keys"]
    return example


def to_dspy(example: Example) -> Row:
    system, pairs = _pairs(example, "dspy")
    asked, answered = pairs[-1]
    past = [{"question": question, "answer": answer} for question, answer in pairs[:-1]]
    row: Row = {"question": asked, "history": {"messages": past}, "answer": answered, **({"system": system} if system else {})}
    return {"input_keys": _inputs(example), **example.extra, **_stated(example), **row}


def _inputs(example: Example) -> list[str]:
    """What a DSPy program is given; the rest is label or metadata."""
    return ["question", "history", *(["system"] if example.messages[0].role == "system" else [])]


_MARKS: tuple[tuple[str, Set[str]], ...] = (
    ("sharegpt", frozenset({"conversations"})),
    ("preference", frozenset({"preferred_output", "non_preferred_output"})),
    ("alpaca", frozenset({"instruction"})),
    ("prompt", frozenset({"prompt", "completion"})),
    ("dspy", frozenset({"question", "answer"})),
)
_READERS: dict[str, Callable[[Row], Example]] = {
    "openai": from_openai,
    "huggingface": from_huggingface,
    "dspy": from_dspy,
    "alpaca": from_alpaca,
    "sharegpt": from_sharegpt,
    "prompt": from_prompt,
    "preference": from_preference,
}
_WRITERS: dict[str, Callable[[Example], Row]] = {
    "openai": to_openai,
    "huggingface": to_huggingface,
    "dspy": to_dspy,
    "alpaca": to_alpaca,
    "sharegpt": to_sharegpt,
}
FORMATS = tuple(_WRITERS)
