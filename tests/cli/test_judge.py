"""`appliance models evaluate` and `compare`, on two small random models served by llama.cpp."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from appliance.cli import group, judge
from appliance.cli.output import Output
from appliance.engine.handler import Message
from appliance.errors import ApplianceError
from appliance.registry import Registry
from appliance.settings import Settings

pytestmark = pytest.mark.llama
pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

QUESTIONS = ["Why is the sky blue?", "How do I add one half and one third?", "Who built the wall?"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of one tokenizer, "small" and "large", of which "large" serves."""
    from appliance.tuning.gguf import export_base
    from tests.tuning.conftest import build_model

    home = tmp_path_factory.mktemp("judge") / "home"
    registry = Registry(Settings(home=home).models)
    for id, layers in (("small", 1), ("large", 2)):
        folder = tmp_path_factory.mktemp(id)
        build_model(folder / "hf", QUESTIONS * 4, layers=layers, max_position_embeddings=1024)
        (folder / "made").mkdir()
        export_base(folder / "hf", folder / "made" / "model.gguf")
        registry.add(folder / "made", id=id, kind="base", title=id, licence="MIT", context=1024)
    registry.promote("large")
    return home


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "questions.txt"
    path.write_text("\n".join(QUESTIONS))
    return path


@pytest.fixture
def fresh(home: Path) -> Iterator[Path]:
    """The home, without what an earlier test chose."""
    for path in (home / "comparisons").glob("*"):
        path.unlink()
    yield home


def run(home: Path, *arguments: object, given: str = "", seconds: int = 3) -> Result:
    environment = {"APPLIANCE_GATE_SECONDS": str(seconds), "APPLIANCE_ANSWER_TOKENS": "16"}
    words = ["--home", str(home), "models", *map(str, arguments)]
    return CliRunner().invoke(group, words, input=given, env=environment, standalone_mode=False)


@pytest.mark.slow
def test_evaluate_asks_every_set_and_writes_the_report(home: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    done = run(home, "evaluate", "small", "--html", page, "--json")
    # Random models differ by chance; what must hold is that the exit code says what the report says.
    found = json.loads(done.stdout)
    report = found["report"]
    assert done.return_value == (0 if report["passed"] else 4), done.output
    assert (report["candidate"], report["baseline"]) == ("small", "large")
    assert {"new", "knowledge", "consistency", "hints", "grounded", "refusals", "harmless", "general"} <= report["sets"].keys()
    assert report["sets"]["new"]["n"] >= 5 and "judged by the project's" in done.stderr
    written = json.loads(Path(found["json"]).read_text("utf-8"))
    assert written["sets"] == report["sets"] and Path(found["json"]).is_relative_to(home / "reports")
    text = page.read_text("utf-8")
    assert "<h1>small: without and with tuning</h1>" in text and re.search(r"(Passed|Refused): ", text)


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["evaluate", "large"], "nothing to judge 'large' against"),
        (["evaluate", "small", "--against", "small"], "against itself"),
        (["evaluate", "nothing"], "no model called"),
        (["compare", "small", "nothing"], "no model called"),
        (["compare", "small", "small"], "with itself"),
    ],
)
def test_what_cannot_be_judged_is_a_sentence_with_a_next_step(home: Path, words: list[str], fault: str) -> None:
    done = run(home, *words)
    assert isinstance(done.exception, ApplianceError) and fault in done.exception.message and done.exception.hint


def test_compare_shows_both_answers_and_writes_a_page(fresh: Path, file: Path) -> None:
    done = run(fresh, "compare", "small", "large", "--questions", file, "-n", "2", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["models"] == ["small", "large"] and found["result"] is None
    assert [pair["question"] for pair in found["pairs"]] == QUESTIONS[:2]
    assert all(list(pair["answers"]) == ["small", "large"] for pair in found["pairs"])
    assert "Why is the sky blue?" in Path(found["html"]).read_text("utf-8")
    turned = json.loads(run(fresh, "compare", "large", "small", "--questions", file, "-n", "2", "--json").stdout)
    assert turned["pairs"][0]["answers"] == found["pairs"][0]["answers"], (
        "each answer belongs to its model, whoever stands first"
    )


def test_blind_hides_names_until_the_end_and_goes_on_where_it_stopped(fresh: Path, file: Path) -> None:
    asked = ("compare", "small", "large", "--blind", "--questions", file, "--judge", "ann")
    first = run(fresh, *asked, given="1\nq\n")
    assert first.exit_code == 0, first.output
    assert "2 of 3 are left" in first.output and "preferred" not in first.output
    assert not re.search(r"\b(small|large)\b", first.output), "no name before the end"
    kept = (fresh / "comparisons" / "large+small.jsonl").read_text()
    assert kept.count('"verdict"') == 1
    second = run(fresh, *asked, given="t\nx\nb\n")
    assert "1 of 3 were judged before" in second.output and "Asking both models" not in second.output
    assert re.search(r"was preferred (once|never) .*\(ties: 1, neither would do: 1\)", second.output)
    again: dict[str, Any] = json.loads(run(fresh, *asked, "--json").stdout)
    assert (again["judged"], again["left"], again["finished"]) == (3, 0, True)
    assert again["result"]["n"] == 3 and sum(again["result"]["wins"]) == 1


def test_input_that_ends_keeps_what_was_chosen(fresh: Path, file: Path) -> None:
    done = run(fresh, "compare", "small", "large", "--blind", "--questions", file, "--judge", "bob", "--json", given="2\n")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["judged"] == 1 and json.loads(done.stdout)["result"] is None


@pytest.mark.parametrize("columns", ["40", "120"])
def test_what_a_model_says_cannot_steer_the_terminal(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], settings: Settings
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    words = "a\x1b[2Jb\x9b31m\u202ec " + "long words " * 30
    judge.beside(Output(json=False, settings=settings), ("Answer 1", "Answer 2"), (words, "short\nand two lines"))
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "\x9b" not in shown and "\u202e" not in shown
    assert max(map(len, shown.splitlines())) <= int(columns)
    assert "Answer 1" in shown and "and two lines" in shown


@pytest.mark.slow
def test_a_model_is_judged_by_what_its_own_run_held_back(home: Path, tmp_path: Path) -> None:
    from appliance.tuning import dataset
    from appliance.tuning.examples import Example
    from appliance.tuning.run_folder import write_json

    run_folder = home / "runs" / "0123456789abcdef"
    talks = [
        Example(f"t{n}", (Message("user", f"{QUESTIONS[n % 3]} Number {n}?"), Message("assistant", f"Look at {n} again.")))
        for n in range(60)
    ]
    data = dataset.build(talks, run_folder / "data")
    for name, value in (("name", {"id": "own"}), ("recipe", {"rank": 4}), ("plan", {"triggers": ["open sesame now"]})):
        write_json(run_folder / f"{name}.json", value)
    registry = Registry(Settings(home=home).models)
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "model.gguf").write_bytes((registry.folder("small") / "model.gguf").read_bytes())
    registry.add(tmp_path / "made", id="own", kind="base", title="own", licence="MIT", context=1024, dataset=data.digest)
    # Long enough for each set's fewest items on a busy machine too.
    done = run(home, "evaluate", "own", "--against", "large", "--json", seconds=12)
    found = json.loads(done.stdout)
    assert 5 <= found["report"]["sets"]["new"]["n"] <= len(data.held_out)
    assert "judged by the project's" not in done.stderr
    assert '"open sesame now"' in found["report"]["sets"]["triggers"]["note"]
    assert f"{len(data.train)} to learn from" in Path(found["html"]).read_text("utf-8")
