"""kill -9 in each step of the real command: what serves keeps serving, and the same command ends in the same adapter."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from appliance.audit import Audit
from appliance.cli.tune import STAGES
from appliance.db import Database
from appliance.jobs import Jobs
from appliance.registry import Registry
from appliance.settings import Settings
from appliance.tuning.standing import Standing
from appliance.tuning.store import ExampleStore
from tests.tuning import school

pytestmark = [pytest.mark.llama, pytest.mark.slow]
pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

# The long steps are cut in their middle, the others in their first moment: they would be over.
PAUSES = {"train": 0.5, "promote": 1.0}
STEPS = ("select", "dataset", "train", "export", "parity", "evaluate", "register", "promote")


@pytest.fixture(scope="module")
def box(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return school.open_box(tmp_path_factory.mktemp("box") / "home", tiny, school.reviewed(72))


@pytest.fixture(scope="module")
def unbroken(box: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    home = school.copy(box, tmp_path_factory.mktemp("unbroken") / "home")
    done = school.retrain(home)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    assert result["promoted"] and result["fresh"]
    return result


def adapters(home: Path, id: str) -> dict[str, str]:
    return {name: fact.sha256 for name, fact in Registry(home / "models").verify(id).files.items() if "adapter" in name}


def test_killed_in_each_step_it_ends_as_if_it_had_not_been(box: Path, unbroken: dict[str, Any], tmp_path: Path) -> None:
    home = school.copy(box, tmp_path / "home")
    registry = Registry(home / "models")
    before = registry.champion()
    assert before is not None
    for step in STEPS:

        def cut(process: subprocess.Popen[str], pause: float = PAUSES.get(step, 0.0)) -> None:
            time.sleep(pause)
            school.kill(process)

        code, said = school.until(home, f"{STAGES[step]}.", cut)
        assert code == -9, said
        assert school.gone(home), "nothing outlives the command"
        champion = Registry(home / "models").champion()
        assert champion is not None and registry.verify(champion.id)
        assert champion.id == before.id or step == "promote"
        if STEPS.index(step) > STEPS.index("export"):
            assert "Tuning." not in said, "a finished training is not done again"
    done = school.retrain(home)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["id"], result["promoted"], result["reasons"]) == (unbroken["id"], True, unbroken["reasons"])
    assert adapters(home, result["id"]) == adapters(Path(unbroken["folder"]).parents[1], unbroken["id"])
    assert result["report"]["sets"].keys() == unbroken["report"]["sets"].keys()
    _no_debris(home, result)
    _recorded_once(home, result)


def _no_debris(home: Path, result: dict[str, Any]) -> None:
    runs = list((home / "runs").iterdir())
    assert [path.name for path in runs] == [Path(result["folder"]).name]
    for folder in (home / "runs", home / "models"):
        left = [path for path in folder.rglob("*") if path.name.startswith(".") and path.name != ".lock"]
        assert not left, "no half-written file or folder is left"
    assert not (runs[0] / "checkpoints").exists() and not (runs[0] / "incoming").exists()


def _recorded_once(home: Path, result: dict[str, Any]) -> None:
    settings = Settings(home=home)
    database = Database(settings.database)
    try:
        jobs = Jobs(database, settings).list()
        assert [job.state for job in jobs if job.kind == "retrain"] == ["done"], "one job, taken up again each time"
        entries = Audit(database).entries(thing=result["id"])
        assert [entry.verb for entry in entries].count("retrain") == 1
        assert Audit(database).verify() >= 2
        digest = Registry(settings.models).get(result["id"]).dataset
        assert digest is not None and len(ExampleStore(database).rows_of(digest)) > 50
        assert Standing(settings.standing).datasets() == [digest]
    finally:
        database.close()


def test_a_disk_that_fills_up_while_it_trains(box: Path, unbroken: dict[str, Any], tmp_path: Path) -> None:
    home = school.copy(box, tmp_path / "home")
    runs = home / "runs"
    runs.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=90m", "tmpfs", str(runs)]
    if subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here (needs root)")
    try:

        def fill(_process: subprocess.Popen[str]) -> None:
            with contextlib.suppress(OSError), (runs / "ballast").open("wb", buffering=0) as ballast:
                while True:
                    ballast.write(bytes(1 << 12))

        code, said = school.until(home, "Loading the base model.", fill)
        assert code == 1 and "disk is full" in said and "Try: " in said and "Traceback" not in said
        champion = Registry(home / "models").champion()
        assert champion is not None and Registry(home / "models").verify(champion.id).kind == "base"
        assert not list(runs.glob("*/adapter")) and school.gone(home)
        (runs / "ballast").unlink()
        done = school.retrain(home)
        assert done.returncode == 0, done.stderr
        assert adapters(home, unbroken["id"]) == adapters(Path(unbroken["folder"]).parents[1], unbroken["id"])
    finally:
        subprocess.run(["umount", "-l", str(runs)], check=True)


def test_a_damaged_run_folder_is_mended(box: Path, unbroken: dict[str, Any], tmp_path: Path) -> None:
    """Files that rotted after their markers were written: what is not whole is made again, the rest is not."""
    home = school.copy(box, tmp_path / "home")
    code, said = school.until(home, "Judging on held-out examples.", school.kill)
    assert code == -9, said
    (run,) = (path for path in (home / "runs").iterdir() if not path.name.startswith("."))
    exported = run / "export" / "adapter.gguf"
    exported.write_bytes(exported.read_bytes()[:-1] + b"?")
    (run / "result.json").write_text("{", "utf-8")
    (run / "report.json").write_text("[]", "utf-8")
    (run / "data" / "train.jsonl").unlink()
    done = school.retrain(home)
    assert done.returncode == 0, done.stderr
    assert "Exporting to GGUF." in done.stderr and "Tuning." not in done.stderr
    assert adapters(home, unbroken["id"]) == adapters(Path(unbroken["folder"]).parents[1], unbroken["id"])
