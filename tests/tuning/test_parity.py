"""The comparison itself: what it lets pass, what it refuses, and that it says why."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from appliance.engine.handler import Message
from appliance.errors import ApplianceError, ModelUnavailable
from appliance.tuning import loading
from appliance.tuning.gguf import export_base
from appliance.tuning.parity import (
    GREEDY,
    SAMPLES,
    Kind,
    Reference,
    _within,
    chat_template,
    parity,
    reference,
    same_template,
    served_reference,
)

pytestmark = pytest.mark.llama
pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")


@pytest.fixture(scope="module")
def talks(rows: list[dict[str, Any]]) -> list[tuple[Message, ...]]:
    return [tuple(Message(**message) for message in row["messages"]) for row in rows[:8]]


@pytest.fixture(scope="module")
def served(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("served") / "model.gguf"
    export_base(tiny, out)
    return out


async def compare(references: list[Reference], talks: Any, served: Path, kind: Kind = "F16") -> dict[str, Any]:
    from appliance.engine.scheduler import LlamaHandler

    handler = LlamaHandler(served, threads=1)
    await handler.start()
    try:
        return await parity(references or await served_reference(handler, talks), talks, handler, kind)
    finally:
        await handler.close()


async def test_the_same_words_are_written(tiny: Path, talks: list[tuple[Message, ...]], served: Path) -> None:
    references = reference(loading.load_base(tiny).eval(), loading.load_tokenizer(tiny), talks)
    again = [Reference(**json.loads(json.dumps(one.to_json()))) for one in references]
    found = await compare(again, talks, served)
    assert 0 < found["greedy_tokens"] == sum(len(one.greedy) for one in references) <= 8 * GREEDY
    assert same_template(served, tiny, talks, references)
    at = next(number for number, one in enumerate(references) if one.greedy)
    references[at] = dataclasses.replace(references[at], text="Something else")
    with pytest.raises(ApplianceError, match=rf"in conversation {at + 1} it goes on .* says 'Something else'"):
        await compare(references, talks, served)
    # A file with fewer bits may go on with other words.
    assert (await compare(references, talks, served, "Q8_0"))["greedy_tokens"] == 0


async def test_a_file_is_held_to_one_that_was_checked_before(served: Path) -> None:
    found = await compare([], SAMPLES, served)
    assert found["mean_difference"] < 1e-6 and found["conversations"] == len(SAMPLES) == 8


@pytest.mark.parametrize(
    ("kind", "gaps", "passes"),
    [
        ("F16", [0.004] * 9, True), ("F16", [0.006] * 9, False), ("F16", [0.0] * 99 + [0.06], False),
        ("Q8_0", [0.09] * 9, True), ("Q8_0", [0.11] * 9, False), ("Q4_K_M", [0.0] * 9 + [3.0], True),
        ("Q4_K_M", [0.5] * 9, False), ("Q5_K_M", [float("nan")], False), ("BF16", [0.02], False),
    ],
)  # fmt: skip
def test_the_limits(kind: Kind, gaps: list[float], passes: bool) -> None:
    if passes:
        assert _within(gaps, kind)["tokens"] == len(gaps)
    else:
        with pytest.raises(ApplianceError, match="not registered: log-probabilities differ"):
            _within(gaps, kind)


def test_the_template_that_counts(tmp_path: Path) -> None:
    assert chat_template(tmp_path) == ""
    settings = tmp_path / "tokenizer_config.json"
    named = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    for value, expected in (("plain", "plain"), (None, ""), (named, "a"), ({"default": "c"}, "c")):
        settings.write_text(json.dumps({"chat_template": value}), "utf-8")
        assert chat_template(tmp_path) == expected
    (tmp_path / "chat_template.jinja").write_bytes(b"lines\r\n")
    assert chat_template(tmp_path) == "lines\r\n"
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ModelUnavailable, match="template cannot be read"):
        chat_template(tmp_path)
