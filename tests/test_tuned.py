"""The one table of everything that was tuned: here, at OpenAI, by DSPy, or only connected; each row says the same of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from appliance.app import Appliance
from appliance.cli import main
from appliance.prompts import load
from appliance.registry import Manifest
from appliance.settings import Settings
from appliance.tuned import listed
from appliance.tuning.dataset import Dataset
from appliance.tuning.examples import Example
from appliance.tuning.store import ExampleStore
from tests.cli.test_models import small

FIGURES = {name: {"value": value, "low": value, "high": value} for name, value in (("before", 2.5), ("after", 1.25))}
REPORT = {"passed": True, "reasons": [], **FIGURES, "difference": {"value": -1.25, "low": -1.5, "high": -1.0}}


def elsewhere(id: str, dataset: str | None = None, report: dict[str, Any] | None = None, **hosted: Any) -> Manifest:
    return Manifest(id=id, kind="hosted", title=id, licence="not known", context=512, files={}, dataset=dataset, report=report,
                    hosted=hosted)  # fmt: skip


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A box with one of each."""
    box = Appliance.open(Settings(home=tmp_path / "home"))
    store = ExampleStore(box.database)
    for digest, count in (("d-here", 3), ("d-openai", 12)):
        rows = [Example(f"{digest}-{number}", ()) for number in range(count)]
        store.record(digest, Dataset(tmp_path, rows, [], {"digest": digest}))
    small(box, "base")
    training = {"method": "qlora", "train_seconds": 52.86}
    small(box, "here", base="base", dataset="d-here", report=REPORT | {"training": training})
    box.registry.add_hosted(
        elsewhere("there", "d-openai", REPORT, plugin="openai", model="ft:x", base="gpt-x", method="supervised", cost=0.0335,
                  currency="USD")
    )  # fmt: skip
    price = {"input": 0.5, "output": 1.5, "currency": "EUR"}
    box.registry.add_hosted(elsewhere("district", plugin="remote", model="big", price=price))
    box.registry.add_hosted(elsewhere("free", plugin="remote", model="small"))
    report = REPORT | {
        "method": "random",
        "parts": {"train": 4, "held_out": 6},
        "dataset": "d",
        "cost": 0.12,
        "currency": "USD",
    }
    box.chat.programs.add(box.accounts.local_administrator(), load("assessment").as_program(), report=report, maker="dspy")
    box.library.close()
    box.database.close()
    return tmp_path / "home"


def test_all_ways_stand_in_one_table_with_method_base_data_scores_and_cost(home: Path) -> None:
    box = Appliance.open(Settings(home=home))
    found = {
        one.kind if one.kind == "program" else one.id: one for one in listed(box.registry, box.chat.programs, box.database)
    }
    box.library.close()
    box.database.close()
    told = {name: (one.method, one.base, one.rows, one.score, one.cost) for name, one in found.items()}
    judged = "2.500 to 1.250, passed"
    assert told == {
        "base": ("imported", "", 0, "-", ""),
        "here": ("huggingface qlora", "base", 3, judged, "53 s here"),
        "there": ("openai supervised", "gpt-x", 12, judged, "0.0335 USD"),
        "program": ("dspy random", "assessment", 10, judged, "0.12 USD"),
        "district": ("connected", "", 0, "-", "0.5 in, 1.5 out EUR/million tokens"),
        "free": ("connected", "", 0, "-", ""),
    }


def test_the_command_prints_that_table(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--home", str(home), "models", "list"])
    out = capsys.readouterr().out

    def line(name: str) -> str:
        return next(line for line in out.splitlines() if line.startswith(f"{name} "))

    assert ended.value.code == 0 and line("id").split()[:6] == ["id", "method", "base", "data", "judged", "cost"]
    for name, words in {
        "here": ["huggingface qlora", "3 rows", "2.500 to 1.250, passed", "53 s here"],
        "there": ["openai supervised", "gpt-x", "12 rows", "0.0335 USD"],
        "district": ["connected", "0.5 in, 1.5 out EUR/million tokens"],
    }.items():
        assert all(word in line(name) for word in words), line(name)
    assert "dspy random" in out and "0.12 USD" in out
