"""`appliance models` and `appliance audit` at the command line, with the real engine where a model is served."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from appliance.registry import Registry
from appliance.settings import Settings

APPLIANCE = str(Path(sys.executable).parent / "appliance")


def run(home: Path, *arguments: str, code: int = 0) -> dict[str, Any]:
    command = [APPLIANCE, "--home", str(home), *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    document: dict[str, Any] = json.loads(done.stdout) if done.stdout else {"error": done.stderr}
    return document


def test_the_catalogue_is_fitted_to_this_machine(tmp_path: Path) -> None:
    told = run(tmp_path, "models", "list", "--fit")
    assert told["machine"]["memory"] > 0 and len(told["models"]) >= 12
    assert {row["serve"] for row in told["models"]} <= {"yes", "slow", "no"}


def add(home: Path, name: str, gguf: Path, report: dict[str, Any] | None) -> None:
    folder = home / f"made-{name}"
    folder.mkdir(parents=True)
    shutil.copyfile(gguf, folder / "model.gguf")
    Registry(Settings(home=home).models).add(
        folder, id=name, kind="base" if report is None else "adapter", title=name, licence="MIT", context=512, report=report
    )


@pytest.mark.llama
@pytest.mark.slow
def test_gate_override_damage_and_the_record_of_it(tmp_path: Path, starter_gguf: Path) -> None:
    home = tmp_path / "home"
    add(home, "base", starter_gguf, None)
    add(home, "refused", starter_gguf, {"passed": False, "baseline": "base", "reasons": ["It forgot its manners."]})
    run(home, "models", "promote", "base")
    told = run(home, "models", "promote", "refused", code=4)
    assert "It forgot its manners." in told["error"] and "--accept" in told["error"]
    run(home, "models", "choose", "teacher_responder/history", "refused", code=4)
    run(home, "models", "promote", "refused", "--accept", "tried in 7B for a week")

    path = home / "models" / "refused" / "model.gguf"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    asked = run(home, "ask", "What is a fraction?")
    assert asked["model"] == "base", "the model before it answers"
    status = run(home, "status", code=1)
    assert status["damaged"] == "refused"
    assert run(home, "models", "verify", code=1)["damaged"].keys() == {"refused"}
    run(home, "models", "choose", "teacher_responder", "base")
    run(home, "models", "promote", "base")
    assert run(home, "models", "list")["damaged"] is None

    entries = run(home, "audit", "show")["entries"]
    assert [(entry["verb"], entry["thing"]) for entry in entries] == [
        ("promote", "base"),
        ("promote", "refused"),
        ("step back", "base"),
        ("choose", "teacher_responder"),
        ("promote", "base"),
    ]
    assert entries[1]["facts"] == {"accept": "tried in 7B for a week", "before": "base"}
    assert entries[2]["facts"] == {"damaged": "refused"}
    assert run(home, "audit", "verify")["rows"] == 5
