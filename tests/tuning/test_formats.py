"""Formats: what goes through one comes back whole, or is refused with file, line and remedy; nothing is cut on the way."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.engine.handler import Message
from appliance.errors import BadInput
from appliance.settings import PACKAGE
from appliance.tuning.examples import check, convert, read_examples
from appliance.tuning.formats import FORMATS, TEXT_FIELDS, Example, Unfit, content_id, detect, from_row, to_row

said = st.text(min_size=1, max_size=20).filter(str.strip)
names = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ["metadata", "extra", "turn_fields", "input_keys", "tools", "instruction", "history", "system", "question"]
    ),
).filter(lambda name: name not in TEXT_FIELDS)
leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=8), st.floats(allow_nan=False))
values = st.recursive(leaves, lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(names, inner, max_size=2)))
extras = st.dictionaries(names, values, max_size=3)


@st.composite
def conversations(draw: st.DrawFn, turn_about: bool = True) -> tuple[Message, ...]:
    system = [Message("system", draw(said))] if draw(st.booleans()) else []
    turns: list[Message] = []
    for _ in range(draw(st.integers(1, 4))):
        turns.append(Message("user", draw(said)))
        if not turn_about and draw(st.booleans()):
            turns.append(Message("user", draw(said)))
        turns.append(Message("assistant", draw(said)))
    return (*system, *turns)


@st.composite
def examples(draw: st.DrawFn, extra: st.SearchStrategy[dict[str, Any]], turn_about: bool = True) -> Example:
    messages = draw(conversations(turn_about))
    fields = {key: draw(st.text(max_size=6)) for key in TEXT_FIELDS}
    fields["id"] = fields["id"] or content_id(messages)
    return Example(messages=messages, extra=draw(extra), **fields)


def returned(example: Example, name: str) -> Example:
    row = json.loads(json.dumps(to_row(example, name)))
    return from_row(row, detect(row))


def same(one: Example, other: Example) -> bool:
    return one == other and one.extra == other.extra


@pytest.mark.parametrize("name", FORMATS)
@given(example=examples(extra=st.just({})))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_round_trip_loses_nothing(name: str, example: Example) -> None:
    assert same(returned(example, name), example)


@pytest.mark.parametrize("name", FORMATS)
@given(example=examples(extra=extras))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_fields_of_any_name_come_back_or_are_refused(name: str, example: Example) -> None:
    try:
        back = returned(example, name)
    except Unfit as error:
        assert all(what and remedy for what, remedy in error.problems)
    else:
        assert same(back, example)


@pytest.mark.parametrize("name", FORMATS)
@given(
    example=examples(
        extra=st.just({"rating": "down", "consent": True, "class": "6B", "seen": [1, {"a": None}]}), turn_about=False
    )
)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_turns_that_do_not_alternate_are_kept_or_refused_never_cut(name: str, example: Example) -> None:
    roles = [message.role for message in example.messages if message.role != "system"]
    alternate = all(one != other for one, other in pairwise(roles))
    if alternate or name in ("openai", "huggingface"):
        assert same(returned(example, name), example)
    else:
        with pytest.raises(Unfit, match="same speaker"):
            to_row(example, name)


KEYS = (
    "messages conversations instruction input output question answer prompt completion history system metadata extra "
    "turn_fields role content from value id subject input_keys"
)
keys = st.sampled_from(KEYS.split())
anything = st.recursive(
    st.one_of(leaves, st.sampled_from(["user", "assistant", "system", "human", "gpt", "\ud800", '{"messages": 1}'])),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=4)),
    max_leaves=20,
)


@given(
    example=examples(extra=extras),
    name=st.sampled_from(FORMATS),
    put=st.dictionaries(keys, anything, max_size=3),
    whole=st.booleans(),
)
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_row_is_an_example_or_a_list_of_problems(example: Example, name: str, put: dict[str, Any], whole: bool) -> None:
    try:
        row = {**(to_row(example, name) if whole else {}), **put}
    except Unfit:
        return
    for name in {detect(row) or "huggingface", *FORMATS}:
        try:
            example = from_row(row, name)
        except Unfit as error:
            assert error.problems
            continue
        for to in FORMATS:
            try:
                assert same(returned(example, to), example)
            except Unfit as error:
                assert error.problems


TALK = [("user", "What is 2/4?"), ("assistant", "Cut a pizza."), ("user", "Half?"), ("assistant", "Yes, why?")]
MESSAGES = [{"role": role, "content": text} for role, text in TALK]
SYSTEM = {"role": "system", "content": "You are a tutor."}
ROWS: dict[str, dict[str, Any]] = {
    "openai": {"messages": [SYSTEM, *MESSAGES], "tools": [], "parallel_tool_calls": False},
    "trl messages": {"messages": [SYSTEM, *MESSAGES]},
    "trl prompt and completion": {"prompt": [SYSTEM, *MESSAGES[:3]], "completion": MESSAGES[3:]},
    "alpaca": {
        "instruction": "Half?",
        "input": "",
        "output": "Yes, why?",
        "system": "You are a tutor.",
        "history": [["What is 2/4?", "Cut a pizza."]],
    },
    "sharegpt": {
        "conversations": [{"from": {"user": "human", "assistant": "gpt"}[role], "value": text} for role, text in TALK],
        "system": "You are a tutor.",
        "tools": "",
    },
    "sharegpt, system within": {
        "conversations": [
            {"from": "system", "value": "You are a tutor."},
            *({"from": {"user": "human", "assistant": "gpt"}[role], "value": text} for role, text in TALK),
        ]
    },
    "sharegpt with roles": {"conversations": [SYSTEM, *MESSAGES]},
    "dspy": {
        "question": "Half?",
        "answer": "Yes, why?",
        "system": "You are a tutor.",
        "history": {"messages": [{"question": "What is 2/4?", "answer": "Cut a pizza."}]},
    },
    "dspy with a bare history": {
        "question": "Half?",
        "answer": "Yes, why?",
        "system": "You are a tutor.",
        "history": [{"question": "What is 2/4?", "answer": "Cut a pizza."}],
    },
}


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("shape", ["lines", "list"])
def test_files_of_other_tools_load_as_they_are(tmp_path: Path, kind: str, shape: str) -> None:
    path = tmp_path / ("rows.jsonl" if shape == "lines" else "rows.json")
    path.write_text(json.dumps(ROWS[kind]) if shape == "lines" else json.dumps([ROWS[kind]], indent=2))
    [example] = read_examples(path)
    assert [(message.role, message.content) for message in example.messages] == [("system", "You are a tutor."), *TALK]


def test_alpacas_input_joins_its_instruction(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('[{"instruction": "Add.", "input": "2 and 3", "output": "Count on from 2.", "history": null}]')
    assert [message.content for message in read_examples(path)[0].messages] == ["Add.\n2 and 3", "Count on from 2."]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"instruction": "Add.", "input": "", "output": ""}, 'the field "output" (assistant) is an empty turn'),
        ({"instruction": "Add.", "input": 3, "output": "Yes"}, '"input" is not a text'),
        ({"instruction": "Add.", "output": "Yes", "history": "none"}, '"history" is not a list'),
        ({"instruction": "Add.", "output": "Yes", "history": [["a"]]}, 'pair 1 of "history" is not [asked, answered]'),
        ({"instruction": "Add.", "output": "Yes", "history": [["a", 1]]}, 'the answer of pair 1 in "history" has no text'),
        ({"conversations": []}, 'the list "conversations" is missing or empty'),
        ({"conversations": [{"from": "observation", "value": "3"}]}, 'message 1 has the unknown role "observation"'),
        ({"conversations": [{"value": "3"}]}, "message 1 has no role"),
        ({"conversations": [{"from": "gpt", "value": "Hi"}]}, "the pupil never speaks"),
        ({"question": "Why?", "answer": None}, 'the field "answer" has no text'),
        ({"question": "Why?", "answer": "Look.", "history": ["a"]}, 'turn 1 of "history" is not an object'),
        ({"question": "Why?", "answer": "Look.", "system": 3}, 'the field "system" has no text'),
        ({"prompt": "Why?", "completion": 3}, 'the field "completion" has no text'),
        ({"question": "Why?", "answer": "Look.", "subject": "\ud800"}, '"subject" holds half a character'),
    ],
)
def test_a_fault_in_any_format_names_its_line(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    good = {"question": "Why?", "answer": "Look."}
    lines, listed = tmp_path / "rows.jsonl", tmp_path / "rows.json"
    lines.write_text("".join(json.dumps(item) + "\n" for item in (good, row)))
    listed.write_text(json.dumps([good, row], indent=1))
    for path, line in ((lines, 2), (listed, 6)):
        _, faults = check(path)
        assert [(fault.file, fault.line) for fault in faults] == [(path.name, line)], faults
        assert words in faults[0].what and faults[0].remedy.endswith(".")


def test_a_row_without_known_keys_is_judged_as_its_neighbours(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"input": "2 and 3", "output": "Count on."}\n{"instruction": "Add.", "output": "Count on."}\n')
    _, [fault] = check(path)
    assert fault.line == 1 and 'the field "instruction"' in fault.what


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('[\n{"question": "a", "answer": "b"},\n{"question" "c"}]', 3, "not valid JSON"),
        ('[\n{"question": "a", "answer": "b"}\n', 3, "is not closed"),
        ('[\n{"question": "a", "answer": "b"}\n{"question": "c"}]', 3, "breaks off"),
        ('[\n{"question": "a", "answer": "b"},\n]', 3, "not valid JSON"),
        ('[\n{"question": "a", "answer": "b"},\n3]', 3, "not a JSON object"),
        ("[\n\n]", 0, "no examples"),
        ("[" * 100_000, 1, "nested too deeply"),
        ("[" + "1" * 5000 + "]", 1, "number that is too long"),
        ('[{"question": "a", "answer": "b"}]\n[]', 1, "breaks off"),
    ],
)
def test_a_list_that_breaks_names_the_line(tmp_path: Path, text: str, line: int, words: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    _, faults = check(path)
    assert [fault.line for fault in faults] == [line] and words in faults[0].what, faults


# OpenAI takes lines only.
@pytest.mark.parametrize(("name", "suffix"), [*((name, ".jsonl") for name in FORMATS), ("alpaca", ".json"), ("dspy", ".json")])
def test_converting_there_and_back_keeps_every_field_of_the_file(tmp_path: Path, name: str, suffix: str) -> None:
    rows = [
        {
            "id": f"fb-{number}",
            "messages": [SYSTEM, *MESSAGES, {"role": "user", "content": f"And {number}?\u2028\u0085 é"}, MESSAGES[1]],
            "subject": "mathematics",
            "grade": "5",
            "skill": "",
            "source": "",
            "licence": "CC BY 4.0",
            "author": "",
            "rating": "down",
            "consent": True,
            "marks": {"kind": [1, 2.5, None]},
            "half": "\ud800",
        }
        for number in range(3)
    ]
    rows[1]["messages"] = [*MESSAGES[:3], {**MESSAGES[3], "weight": 0}]
    first, middle, last = tmp_path / "in.jsonl", tmp_path / f"middle{suffix}", tmp_path / "out.jsonl"
    first.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert convert(first, middle, name) == 3
    assert convert(middle, last, "huggingface") == 3
    assert [json.loads(line) for line in last.read_text().split("\n") if line] == rows


def test_openai_rows_have_openais_keys_and_plain_rows_no_other(tmp_path: Path) -> None:
    plain = read_from(tmp_path, {"messages": MESSAGES})
    assert to_row(plain, "openai") == {"messages": MESSAGES}
    row = to_row(read_from(tmp_path, {"messages": MESSAGES, "grade": 5, "consent": True, "rating": "up"}), "openai")
    assert row.keys() == {"messages", "metadata"}
    assert row["metadata"] == {"grade": "5", "rating": "up", "extra": '{"consent": true}'}


@pytest.mark.parametrize(
    "metadata",
    ["a text", {"run": "7"}, {"run": 7}, {"messages": "mine"}, {"extra": "no JSON"}, {"extra": '{"run": 7}', "run": "8"}, {}],
)
def test_metadata_of_others_is_kept(tmp_path: Path, metadata: Any) -> None:
    example = read_from(tmp_path, {"messages": MESSAGES, "metadata": metadata})
    assert len(example.messages) == len(MESSAGES)
    assert "run" not in (metadata or {}) or "run" in json.dumps(example.extra)
    assert all(text in json.dumps(example.extra) for text in ("mine", "no JSON", "a text") if text in str(metadata))
    for name in FORMATS:
        assert same(returned(example, name), example)


def test_dspy_rows_say_which_fields_are_inputs(tmp_path: Path) -> None:
    row = to_row(read_from(tmp_path, {"messages": [SYSTEM, *MESSAGES]}), "dspy")
    assert row["input_keys"] == ["question", "history", "system"]
    assert row["history"] == {"messages": [{"question": "What is 2/4?", "answer": "Cut a pizza."}]}


def read_from(folder: Path, row: dict[str, Any]) -> Example:
    path = folder / "one.jsonl"
    path.write_text(json.dumps(row))
    return read_examples(path)[0]


def test_what_a_format_cannot_hold_is_refused_with_its_line_and_nothing_is_written(tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.json"
    twice = {"messages": [MESSAGES[0], MESSAGES[2], MESSAGES[3]]}
    named = {"messages": MESSAGES[:2], "output": "something of ours"}
    source.write_text("".join(json.dumps(row) + "\n" for row in ({"messages": MESSAGES}, twice, named)))
    target.write_text("kept")
    with pytest.raises(BadInput) as caught:
        convert(source, target, "alpaca")
    assert "in.jsonl, line 2: message 2 (user) follows one of the same speaker" in caught.value.message
    assert 'in.jsonl, line 3: "output" would be lost' in caught.value.message
    assert target.read_text() == "kept" and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(("target", "name"), [("out.json", "openai"), ("out.csv", "alpaca"), ("in.jsonl", "openai")])
def test_a_result_is_never_written_under_a_wrong_name_or_over_its_source(tmp_path: Path, target: str, name: str) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps({"messages": MESSAGES}))
    before = source.read_bytes()
    with pytest.raises(BadInput):
        convert(source, tmp_path / target, name)
    assert source.read_bytes() == before and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(BadInput, match="lies among"):
        convert(tmp_path, tmp_path / "more.jsonl", "dspy")


def test_the_examples_that_come_with_the_box_go_through_every_format(tmp_path: Path) -> None:
    before = read_examples(PACKAGE / "content" / "examples")
    for name in FORMATS:
        convert(PACKAGE / "content" / "examples", tmp_path / f"{name}.jsonl", name)
        assert read_examples(tmp_path / f"{name}.jsonl") == before
