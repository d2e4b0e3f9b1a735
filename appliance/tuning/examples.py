"""Reads tutoring examples as teachers and programs write them, and lists every fault at once.

Hides the three kinds of file (one JSON object a line; one JSON list; TOML with `[[example]]` blocks whose talk is "Pupil: ... /
Tutor: ...") and where in a file each fault lies. The keys of a row are `formats.py`'s. Knows nothing of models, splits or
training.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.engine.handler import Message, Role
from appliance.errors import BadInput, from_os_error
from appliance.files import write_atomically
from appliance.tuning.formats import TEXT_FIELDS, Example, Unfit, content_id, detect, from_row, order, to_row

__all__ = ["Example", "Fault", "check", "content_id", "convert", "placed", "read_examples", "refuse"]

FAULTS_SHOWN = 20
TOML_DEFAULTS = frozenset(TEXT_FIELDS) - {"id"} | {"system"}
SPEAKERS: dict[str, Role] = {"Pupil": "user", "Tutor": "assistant"}


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
    """Every example of a `.jsonl`, `.json` or `.toml` file, or of all `.jsonl` and `.toml` files of a folder, in order.

    Rows may have the keys of any format of `formats.py`. Raises BadInput that lists every fault with file, line and remedy (the
    first 20 shown, all counted), NotFound.
    """
    examples, faults = check(path)
    refuse(faults)
    return examples


def check(path: Path) -> tuple[list[Example], list[Fault]]:
    """The good examples of a file or folder, and every fault found. Raises NotFound and BadInput for the path itself."""
    good, faults = placed(path)
    return [example for _, _, example in good], faults


def convert(source: Path, target: Path, to: str) -> int:
    """Write the examples of a file or folder in the format `to` (one of `formats.FORMATS`); returns how many.

    A target `x.jsonl` gets one object a line, `x.json` one list; it is replaced whole or not at all. Raises BadInput that lists
    every fault of the source and every example that the format cannot hold, NotFound, StorageFull.
    """
    if target.suffix not in (".jsonl", ".json") or (to == "openai" and target.suffix == ".json"):
        kinds = "a .jsonl file" if to == "openai" else "a .jsonl or .json file"
        raise BadInput(f"{target.name} is not the name of {kinds}, which {to} needs.", "Give another name for the result.")
    good, faults = placed(source)
    refuse(faults)
    try:
        if (target.exists() and target.samefile(source)) or (source.is_dir() and target.resolve().parent == source.resolve()):
            # The next run over such a folder would read its own result as more examples.
            raise BadInput(f"{target.name} is, or lies among, what is to be read.", "Give another place for the result.")
    except OSError as error:
        raise from_os_error(error, f"writing {target.name}") from None
    lines = []
    for file, line, example in good:
        try:
            lines.append(_dumped(to_row(example, to)))
        except Unfit as error:
            faults += [Fault(file, line, *problem) for problem in error.problems]
        except RecursionError:
            faults.append(Fault(file, line, "a field of this row is nested too deeply.", "Take the field out."))
    refuse(faults)
    text = "".join(f"{line}\n" for line in lines) if target.suffix == ".jsonl" else "[\n" + ",\n".join(lines) + "\n]\n"
    write_atomically(target, text, private=False)
    return len(lines)


def _dumped(row: dict[str, Any]) -> str:
    """JSON that people can read; escaped where a field holds half a character, which UTF-8 cannot."""
    text = json.dumps(row, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(row)
    return text


def refuse(faults: list[Fault]) -> None:
    """Raise BadInput that lists them, the first 20 shown and all counted; nothing where there are none."""
    if not faults:
        return
    if len(faults) == 1:
        raise BadInput(str(faults[0]), faults[0].remedy)
    shown = [f"{fault} {fault.remedy}" for fault in faults[:FAULTS_SHOWN]]
    if len(faults) > FAULTS_SHOWN:
        shown.append(f"... and {len(faults) - FAULTS_SHOWN} more.")
    raise BadInput(
        f"{len(faults)} faults in the examples:\n  " + "\n  ".join(shown),
        "Correct these lines, then run the same command again; nothing was changed.",
    )


def placed(path: Path) -> tuple[list[tuple[str, int, Example]], list[Fault]]:
    """Each good example with its file and line, and every fault. Raises NotFound and BadInput for the path itself."""
    try:
        files = _files(path)
        contents = [(file, file.read_bytes()) for file in files]
    except OSError as error:
        raise from_os_error(error, "reading examples") from None
    examples: list[tuple[str, int, Example]] = []
    faults: list[Fault] = []
    seen: dict[str, tuple[Example, str]] = {}
    for file, data in contents:
        found = _read_toml(file.name, data) if file.suffix == ".toml" else _read_json(file.name, data, file.suffix == ".json")
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
                examples.append((file.name, line, item))
        if len(examples) + len(faults) == before:
            faults.append(Fault(file.name, 0, "it holds no examples.", "Give a file with at least one example."))
    return examples, faults


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        if path.exists() and path.suffix not in (".jsonl", ".json", ".toml"):
            raise BadInput(f"{path.name} is not an examples file.", "Give a .jsonl, .json or .toml file, or a folder of them.")
        return [path]
    # A .json file is read only where it is named: in folders such files describe others (cards, dataset_info.json).
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


# --- JSON: one object a line, or one list ----------------------------------------------------------------------------------


def _read_json(name: str, data: bytes, may_be_list: bool) -> Iterator[tuple[int, Example | Fault]]:
    """Examples and faults with their lines. A row whose keys name no format is taken to have that of the file's other rows."""
    if wide := _utf16(name, data):
        yield 0, wide
        return
    data = data.removeprefix(b"\xef\xbb\xbf")
    is_list = may_be_list and data.lstrip(b" \t\r\n")[:1] == b"["
    rows = list(_listed(name, data) if is_list else _lines(name, data))
    formats = (detect(row) for _, row in rows if isinstance(row, dict))
    usual = next((known for known in formats if known), "huggingface")
    for line, row in rows:
        if isinstance(row, Fault):
            yield line, row
        elif not isinstance(row, dict):
            what = "this is not a JSON object."
            yield line, Fault(name, line, what, 'Write {"messages": [...]} on the line.')
        else:
            try:
                yield line, from_row(row, detect(row) or usual)
            except Unfit as error:
                for problem in error.problems:
                    yield line, Fault(name, line, *problem)


def _lines(name: str, data: bytes) -> Iterator[tuple[int, Any]]:
    for number, raw in enumerate(data.split(b"\n"), start=1):
        if not raw.strip():
            continue
        text = _decode(name, raw, number)
        if isinstance(text, Fault):
            yield number, text
            continue
        try:
            yield number, json.loads(text)
        except (ValueError, RecursionError) as error:
            yield number, _not_json(name, number, error, "Put one whole JSON object on the line.")


def _listed(name: str, data: bytes) -> Iterator[tuple[int, Any]]:
    """The items of a JSON list with the lines on which they begin. After a fault in the JSON nothing more can be read."""
    text = _decode(name, data, 1)
    if isinstance(text, Fault):
        yield text.line, text
        return
    decoder, blank = json.JSONDecoder(), re.compile(r"[ \t\r\n]*")

    def skip(at: int) -> int:
        return blank.match(text, at).end()  # type: ignore[union-attr] # it matches nothing, too

    line, counted = 1, 0
    at = skip(skip(0) + 1)
    more = text[at : at + 1] != "]"
    while more:
        line, counted = line + text.count("\n", counted, at), at
        try:
            row, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            line = error.lineno if isinstance(error, json.JSONDecodeError) else line
            yield line, _not_json(name, line, error, "Compare this item of the list with the one before it.")
            return
        yield line, row
        at = skip(at)
        if more := text[at : at + 1] == ",":
            at = skip(at + 1)
    if text[at : at + 1] != "]" or text[at + 1 :].strip():
        line += text.count("\n", counted, at)
        what = "the list of examples is not closed." if at >= len(text) else "the list of examples breaks off here."
        yield line, Fault(name, line, what, "Put a comma between the items, and one ] at the very end.")


def _not_json(name: str, line: int, error: Exception, remedy: str) -> Fault:
    if isinstance(error, RecursionError):
        return Fault(name, line, "this JSON is nested too deeply.", "Use the row format of the documentation.")
    if isinstance(error, json.JSONDecodeError):
        return Fault(name, line, f"this is not valid JSON: {error.msg} at column {error.colno}.", remedy)
    return Fault(name, line, "this JSON holds a number that is too long.", "Put it in quotation marks.")


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
        faults += [Fault(name, start, *fault) for fault in order(turns)]
    if faults:
        for fault in faults:
            yield start, fault
    else:
        messages = tuple(turns)
        fields["id"] = fields["id"] or content_id(messages)
        yield start, Example(messages=messages, **fields)  # type: ignore[arg-type] # TEXT_FIELDS are its text fields


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
