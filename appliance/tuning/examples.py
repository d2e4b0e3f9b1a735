"""Reads tutoring examples as teachers and programs write them, and lists every fault at once.

Hides the two formats (one JSON object a line; TOML with `[[example]]` blocks whose talk is "Pupil: ... / Tutor: ...") and where
in a file each fault lies. Knows nothing of models, splits or training.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from appliance.engine.handler import Message, Role
from appliance.errors import BadInput, from_os_error

FAULTS_SHOWN = 20
ROLES = get_args(Role)
TEXT_FIELDS = ("id", "subject", "grade", "skill", "source", "licence", "author")
TOML_DEFAULTS = frozenset(TEXT_FIELDS) - {"id"} | {"system"}
SPEAKERS: dict[str, Role] = {"Pupil": "user", "Tutor": "assistant"}


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation to learn from; ends with the tutor's turn."""

    id: str
    messages: tuple[Message, ...]
    subject: str = ""
    grade: str = ""
    skill: str = ""
    source: str = ""
    licence: str = ""
    author: str = ""

    def row(self) -> dict[str, Any]:
        """The public row format: one JSON object a line."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong, where, and what to do. `line` counts from 1; 0 is the whole file."""

    file: str
    line: int
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.file}{f', line {self.line}' if self.line else ''}: {self.what}"


def read_examples(path: Path) -> list[Example]:
    """Every example of a `.jsonl` or `.toml` file, or of all such files of a folder, in order.

    Raises BadInput that lists every fault with file, line and remedy (the first 20 shown, all counted), NotFound.
    """
    examples, faults = check(path)
    if not faults:
        return examples
    if len(faults) == 1:
        raise BadInput(str(faults[0]), faults[0].remedy)
    shown = [f"{fault} {fault.remedy}" for fault in faults[:FAULTS_SHOWN]]
    if len(faults) > FAULTS_SHOWN:
        shown.append(f"... and {len(faults) - FAULTS_SHOWN} more.")
    raise BadInput(
        f"{len(faults)} faults in the examples:\n  " + "\n  ".join(shown),
        "Correct these lines, then run the same command again; nothing was changed.",
    )


def check(path: Path) -> tuple[list[Example], list[Fault]]:
    """The good examples of a file or folder, and every fault found. Raises NotFound and BadInput for the path itself."""
    try:
        files = _files(path)
        contents = [(file, file.read_bytes()) for file in files]
    except OSError as error:
        raise from_os_error(error, "reading examples") from None
    examples: list[Example] = []
    faults: list[Fault] = []
    seen: dict[str, tuple[Example, str]] = {}
    for file, data in contents:
        found = _read_toml(file.name, data) if file.suffix == ".toml" else _read_jsonl(file.name, data)
        before = len(examples) + len(faults)
        for line, item in found:
            if isinstance(item, Fault):
                faults.append(item)
                continue
            place = f"{file.name}, line {line}"
            earlier = seen.setdefault(item.id, (item, place))
            if earlier[0].messages != item.messages:
                what = f'the id "{item.id}" is already used by {earlier[1]}.'
                faults.append(Fault(file.name, line, what, "Give each example an id of its own."))
            else:
                examples.append(item)
        if len(examples) + len(faults) == before:
            faults.append(Fault(file.name, 0, "it holds no examples.", "Give a file with at least one example."))
    return examples, faults


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        if path.exists() and path.suffix not in (".jsonl", ".toml"):
            raise BadInput(f"{path.name} is not an examples file.", "Give a .jsonl or .toml file, or a folder of them.")
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix in (".jsonl", ".toml") and file.is_file())
    if not files:
        raise BadInput(f"The folder {path.name} holds no .jsonl or .toml file.", "Give a folder with examples files.")
    return files


def _decode(name: str, data: bytes, first_line: int) -> str | Fault:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = first_line + data.count(b"\n", 0, error.start)
        column = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
        what = f"byte {column} (0x{data[error.start]:02x}) is not valid UTF-8."
        return Fault(name, line, what, "Save the file with the encoding UTF-8.")


def _utf16(name: str, data: bytes) -> Fault | None:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return Fault(name, 0, "it is written in UTF-16.", "Save the file with the encoding UTF-8.")
    return None


# --- one JSON object a line -----------------------------------------------------------------------------------------------


def _read_jsonl(name: str, data: bytes) -> Iterator[tuple[int, Example | Fault]]:
    if wide := _utf16(name, data):
        yield 0, wide
        return
    for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not raw.strip():
            continue
        text = _decode(name, raw, number)
        if isinstance(text, Fault):
            yield number, text
            continue
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            what = f"this is not valid JSON: {error.msg} at column {error.colno}."
            yield number, Fault(name, number, what, "Put one whole JSON object on the line.")
            continue
        except RecursionError:
            yield number, Fault(name, number, "this JSON is nested too deeply.", "Use the row format of the documentation.")
            continue
        example = _from_row(name, number, row)
        if isinstance(example, Example):
            yield number, example
        else:
            for fault in example:
                yield number, fault


def _from_row(name: str, line: int, row: Any) -> Example | list[Fault]:
    """An example from a parsed row, or all its faults."""
    if not isinstance(row, dict):
        return [Fault(name, line, "this is not a JSON object.", 'Write {"messages": [...]} on the line.')]
    faults: list[Fault] = []
    fields: dict[str, str] = {}
    for key in TEXT_FIELDS:
        value = row.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if value is not None and not isinstance(value, str):
            faults.append(Fault(name, line, f'"{key}" is not a text.', "Put its value in quotation marks."))
        fields[key] = value if isinstance(value, str) else ""
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        faults.append(
            Fault(name, line, 'the list "messages" is missing or empty.', 'Add "messages": [{"role", "content"}, ...].')
        )
        return faults
    turns: list[Message] = []
    for position, message in enumerate(messages, start=1):
        turn = _turn(message, position)
        if isinstance(turn, Message):
            turns.append(turn)
        else:
            faults.append(Fault(name, line, *turn))
    if not faults:
        faults += [Fault(name, line, *fault) for fault in _order(turns)]
    return faults or _example(fields, turns)


def _turn(message: Any, position: int) -> Message | tuple[str, str]:
    """A message, or what is wrong with it and its remedy."""
    if not isinstance(message, dict):
        return f"message {position} is not an object.", 'Write {"role": ..., "content": ...}.'
    role, content = message.get("role"), message.get("content")
    if role is None:
        return f"message {position} has no role.", 'Add "role": "user" (the pupil) or "assistant" (the tutor).'
    if role not in ROLES:
        return f"message {position} has the unknown role {json.dumps(role)[:40]}.", "Use system, user or assistant."
    if not isinstance(content, str):
        return f"message {position} has no text in its content.", 'Add "content": "...".'
    if not content.strip():
        return f"message {position} ({role}) is an empty turn.", "Write what was said, or remove the turn."
    if any("\ud800" <= character <= "\udfff" for character in content):
        return f"message {position} holds half a character (a lone surrogate).", "Write the character again."
    return Message(role, content)


def _order(turns: list[Message]) -> Iterator[tuple[str, str]]:
    roles = [turn.role for turn in turns]
    if "system" in roles[1:]:
        yield "a system message stands after the first place.", "Keep one system message, at the start."
    if "user" not in roles:
        yield "the pupil never speaks.", "Add the pupil's turn (role user)."
    elif roles[-1] != "assistant":
        yield "it does not end with the tutor's turn.", "End with a message of the role assistant."
    elif roles[1 if roles[0] == "system" else 0] != "user":
        yield "it does not begin with the pupil's turn.", "Begin with a message of the role user."


def _example(fields: dict[str, str], turns: list[Message]) -> Example:
    messages = tuple(turns)
    return Example(**{**fields, "id": fields["id"] or content_id(messages)}, messages=messages)


def content_id(messages: tuple[Message, ...]) -> str:
    """A stable id for an example that has none: the beginning of the SHA-256 of what was said."""
    text = json.dumps([[message.role, message.content] for message in messages], ensure_ascii=False)
    return "x" + hashlib.sha256(text.encode()).hexdigest()[:12]


# --- TOML -----------------------------------------------------------------------------------------------------------------


def _read_toml(name: str, data: bytes) -> Iterator[tuple[int, Example | Fault]]:
    if wide := _utf16(name, data):
        yield 0, wide
        return
    text = _decode(name, data.removeprefix(b"\xef\xbb\xbf"), 1)
    if isinstance(text, Fault):
        yield text.line, text
        return
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"\(at line (\d+), column \d+\)", str(error))
        line = int(place.group(1)) if place else text.count("\n") + 1
        reason = re.sub(r" \(at .*\)$", "", str(error))
        yield line, Fault(name, line, f"this is not valid TOML: {reason}.", "Compare the block with the one before it.")
        return
    blocks = document.pop("example", [])
    if not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
        yield 0, Fault(name, 0, '"example" is not a list of blocks.', "Begin each example with a line [[example]].")
        return
    defaults: dict[str, str] = {}
    for key, value in document.items():
        if key not in TOML_DEFAULTS or not isinstance(value, str):
            line = _line_of_key(text, key)
            known = ", ".join(sorted(TOML_DEFAULTS))
            yield (
                line,
                Fault(name, line, f'the setting "{key}" cannot stand here.', f"At the top of the file: {known}, as texts."),
            )
        else:
            defaults[key] = value
    places = _block_lines(text, len(blocks))
    for block, (start, talk_line) in zip(blocks, places, strict=True):
        yield from _from_block(name, block, defaults, start, talk_line)


def _line_of_key(text: str, key: str) -> int:
    found = re.search(rf"^\s*[\"']?{re.escape(key)}[\"']?\s*[=.\]]|^\s*\[+\s*{re.escape(key)}", text, re.M)
    return text.count("\n", 0, found.end()) + 1 if found else 0


def _block_lines(text: str, count: int) -> list[tuple[int, int]]:
    """For each block the line of its `[[example]]` and the line on which its talk's text begins (0 where unclear)."""
    lines = text.split("\n")
    starts = [number for number, line in enumerate(lines) if re.match(r"\s*\[\[\s*example\s*\]\]", line)]
    if len(starts) != count:  # such a line inside a talk, or an inline table: better no line than a wrong one
        return [(0, 0)] * count
    places = []
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        talk = 0
        for number in range(start, end):
            if opened := re.match(r"\s*talk\s*=\s*('''|\"\"\"|'|\")(.*)$", lines[number]):
                # TOML drops a newline that follows the opening quotes at once.
                talk = number + 2 if opened.group(2).strip("\r") == "" and len(opened.group(1)) == 3 else number + 1
                break
        places.append((start + 1, talk))
    return places


def _from_block(
    name: str, block: dict[str, Any], defaults: dict[str, str], start: int, talk_line: int
) -> Iterator[tuple[int, Example | Fault]]:
    faults: list[Fault] = []
    unknown = sorted(set(block) - TOML_DEFAULTS - {"id", "talk"})
    if unknown:
        faults.append(Fault(name, start, f'unknown name "{unknown[0]}".', "Use id, grade, skill and talk."))
    talk = block.get("talk")
    turns: list[Message] = []
    if not isinstance(talk, str):
        faults.append(Fault(name, start, 'the example has no "talk".', "Add talk = '''Pupil: ... Tutor: ...'''."))
    else:
        turns, wrong = _talk(talk)
        faults += [Fault(name, talk_line + line if talk_line else start, what, remedy) for line, what, remedy in wrong]
    fields: dict[str, str] = {}
    for key in (*TEXT_FIELDS, "system"):
        value = block.get(key, defaults.get(key, ""))
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str):
            faults.append(Fault(name, start, f'"{key}" is not a text.', "Put its value in quotation marks."))
            value = ""
        fields[key] = value
    system = fields.pop("system")
    if system.strip():
        turns = [Message("system", system), *turns]
    if not faults:
        faults += [Fault(name, start, *fault) for fault in _order(turns)]
    if faults:
        for fault in faults:
            yield start, fault
    else:
        yield start, _example(fields, turns)


def _talk(talk: str) -> tuple[list[Message], list[tuple[int, str, str]]]:
    """Turns of "Pupil: ... / Tutor: ..." and faults as (line within the talk, what, remedy)."""
    turns: list[tuple[int, Role, list[str]]] = []
    faults: list[tuple[int, str, str]] = []
    for number, line in enumerate(talk.split("\n")):
        spoken = re.match(r"\s*(Pupil|Tutor):\s?(.*)$", line, re.S)
        if spoken:
            turns.append((number, SPEAKERS[spoken.group(1)], [spoken.group(2)]))
        elif turns:
            turns[-1][2].append(line)
        elif line.strip():
            faults.append((number, "the talk does not begin with a speaker.", "Begin the turn with Pupil: or Tutor:."))
    messages: list[Message] = []
    for number, role, parts in turns:
        content = "\n".join(parts).strip()
        if not content:
            faults.append((number, "this is an empty turn.", "Write what was said, or remove the turn."))
        elif messages and messages[-1].role == role:
            faults.append((number, "the same speaker speaks twice in a row.", "Join the two turns, or add the one between."))
        messages.append(Message(role, content))
    if not turns and not faults:
        faults.append((0, "the talk is empty.", "Write at least one line Pupil: and one line Tutor:."))
    return messages, faults
