"""`appliance retrain`, `jobs`, `worker` and the verbs of `tune` as a person meets them, on a tiny model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.registry import Registry
from tests.tuning import school
from tests.tuning.conftest import build_model

pytestmark = [pytest.mark.llama, pytest.mark.slow]
pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = school.reviewed(72)
    words = [message["content"] for row in rows for message in row["messages"]]
    return school.open_box(tmp_path_factory.mktemp("box") / "home", build_model(tmp_path_factory.mktemp("tiny"), words), rows)


@pytest.fixture
def home(box: Path, tmp_path: Path) -> Path:
    return school.copy(box, tmp_path / "home")


@pytest.fixture
def worker(home: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(school.command(home, "worker"), env=school.environment(), cwd=school.CLONE)
    ends = time.monotonic() + 60
    while not _held(home / "run" / "worker.lock"):
        assert process.poll() is None and time.monotonic() < ends
        time.sleep(0.1)
    yield process
    process.terminate()
    assert process.wait(timeout=30) == 0, "it is told to stop and does so in order"


def _held(path: Path) -> bool:
    from appliance.jobs import held

    return path.exists() and held(path)


def run(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        school.command(home, *words), capture_output=True, text=True, env=school.environment(), cwd=school.CLONE, check=False
    )


def champion(home: Path) -> str:
    found = Registry(home / "models").champion()
    assert found is not None
    return Registry(home / "models").verify(found.id).id


def test_the_plan_names_every_row_and_changes_nothing(home: Path) -> None:
    done = run(home, "retrain", "--plan", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert len(plan["used"]) > 50
    said = run(home, "retrain", "--plan").stdout
    assert "72 rows in the store" in said and "No roster is loaded" in said
    assert not (home / "runs").exists() and json.loads(run(home, "jobs", "list", "--json").stdout) == {"jobs": []}


def test_too_few_rows_are_an_honest_refusal(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "content").mkdir()
    assert run(home, "models", "list").returncode == 0
    done = run(home, "retrain")
    assert done.returncode == 4, done.stderr
    assert "0 rows can be used and at least 30 are needed" in done.stderr and "appliance examples" in done.stderr
    assert "Traceback" not in done.stderr
    (job,) = json.loads(run(home, "jobs", "list", "--json").stdout)["jobs"]
    assert job["state"] == "failed" and job["error"]["code"] == "gate_not_passed"


def test_two_at_once_and_a_cancel(home: Path) -> None:
    before = champion(home)
    seen: dict[str, Any] = {}

    def meanwhile(_process: subprocess.Popen[str]) -> None:
        seen["other"] = run(home, "retrain", "--recipe", str(home / "recipe.toml"), "--no-promote")
        same = school.command(home, "retrain", "--recipe", str(home / "recipe.toml"))
        follower = subprocess.Popen(same, stderr=subprocess.PIPE, text=True, env=school.environment(), cwd=school.CLONE)
        time.sleep(3)
        (job,) = json.loads(run(home, "jobs", "list", "--json").stdout)["jobs"]
        seen["job"] = job
        began = time.monotonic()
        seen["cancel"] = run(home, "tune", "huggingface", "cancel", "--json")
        seen["seconds"] = time.monotonic() - began
        seen["follower"] = follower.communicate(timeout=60)[1]
        seen["follower_code"] = follower.returncode

    code, said = school.until(home, "Loading the base model.", meanwhile)
    assert seen["other"].returncode == 75, seen["other"].stderr
    assert f"job {seen['job']['id']}" in seen["other"].stderr and "Try: " in seen["other"].stderr
    assert seen["job"]["state"] == "running" and seen["job"]["kind"] == "retrain"
    assert seen["cancel"].returncode == 0 and json.loads(seen["cancel"].stdout)["state"] == "cancelled"
    assert seen["seconds"] < 20
    for exit_code, text in ((code, said), (seen["follower_code"], seen["follower"])):
        assert exit_code == 1 and "was cancelled; what serves is untouched" in text, text
    assert school.gone(home, 5) and champion(home) == before
    log = run(home, "jobs", "log", seen["job"]["id"]).stdout
    assert "retrain begins, attempt 1" in log and "cancelled" in log
    again = run(home, "jobs", "cancel", seen["job"]["id"])
    assert again.returncode == 1 and "ended already" in again.stderr


def test_a_worker_does_it_and_ctrl_c_leaves_it_running(home: Path, worker: subprocess.Popen[bytes]) -> None:
    def ctrl_c(process: subprocess.Popen[str]) -> None:
        os.kill(process.pid, signal.SIGINT)

    code, said = school.until(home, "Tuning.", ctrl_c)
    assert code == 130 and "is not lost" in said and "appliance jobs cancel" in said
    done = school.retrain(home)  # the same work: it is followed to its end
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    (job,) = json.loads(run(home, "jobs", "list", "--json").stdout)["jobs"]
    assert (job["state"], job["attempts"]) == ("done", 1) and job["result"]["id"] == result["id"]
    assert champion(home) == result["id"] and result["promoted"]
    assert (Path(result["folder"]) / "report.html").is_file()
    _the_next_night_is_quick(home, result)
    _what_a_person_took_back_is_not_served_again(home, result)
    _lineage(home, result)
    assert worker.poll() is None


def _the_next_night_is_quick(home: Path, result: dict[str, Any]) -> None:
    began = time.monotonic()
    done = school.retrain(home)
    assert done.returncode == 0 and "No row has changed" in done.stderr, done.stderr
    again = json.loads(done.stdout)
    assert (again["id"], again["fresh"], again["promoted"]) == (result["id"], False, True)
    assert "Tuning." not in done.stderr and "Judging" not in done.stderr
    assert time.monotonic() - began < 30


def _what_a_person_took_back_is_not_served_again(home: Path, result: dict[str, Any]) -> None:
    back = run(home, "models", "rollback", "--json")
    assert back.returncode == 0, back.stderr
    done = school.retrain(home)
    assert done.returncode == 0, done.stderr
    again = json.loads(done.stdout)
    assert (again["fresh"], again["promoted"]) == (False, False)
    assert champion(home) != result["id"] and f"models promote {result['id']}" in done.stderr
    shown = run(home, "tune", "huggingface", "promote", result["id"], "--json")
    assert shown.returncode == 0 and champion(home) == result["id"], shown.stderr
    listed = json.loads(run(home, "tune", "huggingface", "list", "--json").stdout)
    assert [one["id"] for one in listed["runs"]] == [result["id"]] and len(listed["jobs"]) == 3
    status = json.loads(run(home, "tune", "huggingface", "status", "--json").stdout)
    assert status["state"] == "done"


def _lineage(home: Path, result: dict[str, Any]) -> None:
    """From the model to its rows: the ids that the plan names, each in a part."""
    code = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "from appliance.db import Database\n"
        "from appliance.registry import Registry\n"
        "from appliance.settings import Settings\n"
        "from appliance.tuning.lineage import lineage\n"
        "from appliance.tuning.store import ExampleStore\n"
        "settings = Settings(home=Path(sys.argv[1]))\n"
        "store = ExampleStore(Database(settings.database))\n"
        "print(json.dumps(lineage(settings, Registry(settings.models), store, sys.argv[2])))\n"
    )
    words = [sys.executable, "-c", code, str(home), result["id"]]
    done = subprocess.run(words, capture_output=True, text=True, cwd=school.CLONE, check=True)
    found = json.loads(done.stdout)
    assert found["run"] == result["folder"] and found["parents"][0]["rows"] == []
    assert {row["part"] for row in found["rows"]} == {"train", "held_out"}
    assert not any(row["withdrawn"] for row in found["rows"]) and len(found["rows"]) > 50


@pytest.mark.parametrize("words", [["jobs", "show", "nothing"], ["jobs", "cancel", "nothing"], ["jobs", "log", "nothing"]])
def test_a_job_that_is_not_there(tmp_path: Path, words: list[str]) -> None:
    home = tmp_path / "home"
    (home / "content").mkdir(parents=True)
    done = run(home, *words)
    assert done.returncode == 1 and "no job 'nothing'" in done.stderr and "Try: " in done.stderr


@pytest.mark.parametrize("words", [["evaluate"], ["promote"], ["start", "something"], ["cancel"], ["status"]])
def test_verbs_of_tune_say_what_they_need(tmp_path: Path, words: list[str]) -> None:
    home = tmp_path / "home"
    (home / "content").mkdir(parents=True)
    done = run(home, "tune", "huggingface", *words)
    assert done.returncode == (1 if words in (["cancel"], ["status"]) else 2), done.stderr
    assert "Traceback" not in done.stderr
