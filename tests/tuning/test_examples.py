"""Every fault of an examples file is told at once, with file, line and remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from appliance.errors import BadInput, NotFound
from appliance.settings import PACKAGE
from appliance.tuning.examples import FAULTS_SHOWN, check, read_examples

GOOD = '{"messages": [{"role": "user", "content": "What is 2/4?"}, {"role": "assistant", "content": "Cut a pizza."}]}'


def write(tmp_path: Path, text: str | bytes, name: str = "lessons.jsonl") -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def turns(*pairs: tuple[str, object]) -> str:
    return json.dumps({"messages": [{"role": role, "content": content} for role, content in pairs]})


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("not json", "not valid JSON"),
        ('{"messages": [', "not valid JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("[1]", "not a JSON object"),
        ("{}", '"messages" is missing or empty'),
        ('{"messages": []}', '"messages" is missing or empty'),
        ('{"messages": ["hello"]}', "message 1 is not an object"),
        ('{"messages": [{"content": "hello"}]}', "message 1 has no role"),
        (turns(("teacher", "hello")), "unknown role"),
        (turns(("user", "hello"), ("assistant", " \n")), "message 2 (assistant) is an empty turn"),
        (turns(("user", 3), ("assistant", "yes")), "message 1 has no text"),
        (turns(("user", "hello")), "does not end with the tutor's turn"),
        (turns(("assistant", "hello")), "the pupil never speaks"),
        (turns(("assistant", "hi"), ("user", "a"), ("assistant", "b")), "does not begin with the pupil's turn"),
        (turns(("user", "a"), ("system", "b"), ("assistant", "c")), "system message stands after"),
        (turns(("user", "\ud800"), ("assistant", "c")), "lone surrogate"),
        (GOOD[:-1] + ', "subject": ["a"]}', '"subject" is not a text'),
    ],
)
def test_a_fault_names_file_line_and_remedy(tmp_path: Path, line: str, words: str) -> None:
    path = write(tmp_path, "\n".join([GOOD.replace("2/4", f"{n}/4") for n in range(6)] + [line]) + "\n")
    with pytest.raises(BadInput) as caught:
        read_examples(path)
    assert caught.value.message.startswith("lessons.jsonl, line 7: ")
    assert words in caught.value.message
    assert caught.value.hint.endswith(".")


def test_invalid_utf8_names_line_and_byte(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD.encode() + b"\n" + GOOD.encode().replace(b"pizza", b"p\xe9zza") + b"\n")
    with pytest.raises(BadInput, match=r"lessons.jsonl, line 2: byte \d+ \(0xe9\) is not valid UTF-8"):
        read_examples(path)


def test_all_faults_are_listed_at_once(tmp_path: Path) -> None:
    lines = [GOOD, "oops", turns(("user", "")), GOOD.replace("2/4", "3/4"), '{"messages": 1}']
    _, faults = check(write(tmp_path, "\n".join(lines)))
    assert [fault.line for fault in faults] == [2, 3, 5]
    with pytest.raises(BadInput) as caught:
        read_examples(tmp_path / "lessons.jsonl")
    assert caught.value.message.startswith("3 faults")
    assert all(f"line {line}" in caught.value.message for line in (2, 3, 5))


def test_the_first_twenty_are_shown_and_all_counted(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        read_examples(write(tmp_path, "oops\n" * 50))
    assert caught.value.message.startswith("50 faults")
    assert caught.value.message.count("line ") == FAULTS_SHOWN
    assert "30 more" in caught.value.message


def test_one_id_for_two_examples_is_a_fault_and_an_exact_repeat_is_not(tmp_path: Path) -> None:
    one = GOOD[:-1] + ', "id": "a"}'
    assert len(read_examples(write(tmp_path, f"{one}\n{one}\n"))) == 2
    other = one.replace("pizza", "cake")
    with pytest.raises(BadInput, match=r'line 2: the id "a" is already used by lessons.jsonl, line 1'):
        read_examples(write(tmp_path, f"{one}\n{other}\n"))


def test_harmless_oddities_are_read(tmp_path: Path) -> None:
    text = "\ufeff" + GOOD + "\r\n\r\n" + GOOD[:-1].replace("2/4", "1/4") + ', "grade": 5, "extra": {"a": 1}}'
    first, second = read_examples(write(tmp_path, text))
    assert first.id.startswith("x") and first.id != second.id
    assert second.grade == "5"


def test_other_files_are_refused_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such file"):
        read_examples(tmp_path / "absent.jsonl")
    with pytest.raises(BadInput, match="not an examples file"):
        read_examples(write(tmp_path, GOOD, "lessons.csv"))
    with pytest.raises(BadInput, match="no examples"):
        read_examples(write(tmp_path, "\n\n"))
    with pytest.raises(BadInput, match="UTF-16"):
        read_examples(write(tmp_path, GOOD.encode("utf-16")))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(BadInput, match=r"holds no \.jsonl or \.toml"):
        read_examples(empty)


TOML = """subject = "science"
licence = "CC BY 4.0"
author = "Somebody"

[[example]]
id = "s1"
grade = "3"
skill = "plants"
talk = '''
Pupil: Why is my bean pale?
It stands in a cupboard.
Tutor: What does a window give it?
'''

[[example]]
id = "s2"
grade = "4"
skill = "magnets"
talk = '''
Pupil: All metals stick.
Tutor: Try a drink can.
'''
"""


def test_toml_takes_the_files_defaults_and_keeps_lines_of_a_turn(tmp_path: Path) -> None:
    first, second = read_examples(write(tmp_path, TOML, "science.toml"))
    assert (first.id, first.subject, first.grade, first.skill, first.author) == ("s1", "science", "3", "plants", "Somebody")
    assert first.messages[0].content == "Why is my bean pale?\nIt stands in a cupboard."
    assert [message.role for message in second.messages] == ["user", "assistant"]


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("Tutor: What does a window give it?", "Tutor:  ", 12, "empty turn"),
        ("Tutor: Try a drink can.", "Pupil: Try.", 21, "same speaker"),
        ("Pupil: All metals stick.", "Child: All metals stick.", 20, "does not begin with a speaker"),
        ("Tutor: Try a drink can.\n", "", 15, "does not end with the tutor's turn"),
        ('skill = "magnets"', "skill = magnets", 18, "not valid TOML"),
        ('skill = "magnets"', 'skil = "magnets"', 15, 'unknown name "skil"'),
        ('author = "Somebody"', 'autor = "Somebody"', 3, '"autor" cannot stand here'),
        ("talk = '''\nPupil: All", "speech = '''\nPupil: All", 15, 'has no "talk"'),
    ],
)
def test_a_fault_in_toml_names_its_line(tmp_path: Path, old: str, new: str, line: int, words: str) -> None:
    assert old in TOML
    _, faults = check(write(tmp_path, TOML.replace(old, new, 1), "science.toml"))
    assert any(fault.line == line and words in fault.what for fault in faults), faults


def test_a_folder_is_all_its_files_and_faults_of_all_are_listed(tmp_path: Path) -> None:
    write(tmp_path, TOML, "a.toml")
    write(tmp_path, GOOD, "b.jsonl")
    write(tmp_path, "not read", "README.md")
    assert len(read_examples(tmp_path)) == 3
    write(tmp_path, "oops", "c.jsonl")
    write(tmp_path, TOML.replace('"science"', "science", 1).encode(), "d.toml")
    write(tmp_path, TOML.replace("pale", "p\xe4le").encode("latin-1"), "e.toml")
    _, faults = check(tmp_path)
    assert [(fault.file, fault.line) for fault in faults] == [("c.jsonl", 1), ("d.toml", 1), ("e.toml", 10)]


def test_the_examples_that_come_with_the_box_have_no_fault() -> None:
    examples, faults = check(PACKAGE / "content" / "examples")
    assert faults == []
    assert len(examples) >= 200
    assert all(example.licence and example.subject and example.id for example in examples)
