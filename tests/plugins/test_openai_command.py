"""`appliance tune openai` as a person meets it: air-gapped, shown, unconfirmed, confirmed, followed, listed, cancelled."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from appliance.cli import main
from appliance.settings import Settings
from tests.outside import until, way_out
from tests.plugins.openai_server import BASE, KEY, TUNED, Service, connected, file_of, rows, service

pytest.importorskip("openai", reason="the package openai is not installed")
WHO = "Thandi Mokoena"


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Service]:
    with service(tmp_path / "far") as made:
        yield made


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def settings(tmp_path: Path, far: Service, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A box that may reach the service, as every command in this process finds it."""
    made = connected(tmp_path / "home", far)
    for name in ("openai_url", "openai_key_file", "openai_poll_seconds"):
        monkeypatch.setenv(f"APPLIANCE_{name.upper()}", str(getattr(made, name)))
    monkeypatch.setenv("OPENAI_LOG", "debug")
    return made


def code_of(settings: Settings, *words: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["--home", str(settings.home), *words])
    return int(str(caught.value.code or 0))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """A command in this process: importing everything for each would take most of the time."""

    def made(settings: Settings, *words: str) -> Done:
        capsys.readouterr()
        code = code_of(settings, *words)
        return Done(code, *capsys.readouterr())

    return made


def document(done: Done) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_while_air_gapped_each_verb_is_one_sentence_and_nothing_is_imported(
    tmp_path: Path, settings: Settings, far: Service, run: Callable[..., Done]
) -> None:
    settings.network.unlink()
    start = ["start", "--examples", str(file_of(tmp_path / "rows.jsonl", rows(12))), "--confirm", WHO]
    for words in (start, ["status"], ["list"], ["cancel"], ["models"], ["evaluate", "openai-x"], ["promote", "openai-x"]):
        done = run(settings, "tune", "openai", *words)
        assert done.returncode == 3 and done.stdout == ""
        said = done.stderr.splitlines()
        assert said[0] == "Error: Fine-tuning by OpenAI is off while the box is air-gapped." and len(said) == 2
        assert said[1].startswith("Try: ") and f"network allow 127.0.0.1:{far.port}" in said[1]
    command = [sys.executable, "-X", "importtime", "-m", "appliance", "--home", str(settings.home), "tune", "openai", *start]
    alone = subprocess.run(command, capture_output=True, text=True, check=False)
    imported = {line.split("|")[-1].strip() for line in alone.stderr.splitlines()}
    assert alone.returncode == 3 and "appliance.plugins.openai_jobs" in imported and not {"openai", "httpx2"} & imported
    assert far.calls == []


def test_the_list_of_plugins_says_what_is_missing_one_after_another(
    settings: Settings, run: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line, the key, the way out; only then it is ready."""

    def state() -> tuple[bool, str, str]:
        found = {one["name"]: one for one in document(run(settings, "models", "plugins", "--json"))["plugins"]}
        return tuple(found["openai"][name] for name in ("ready", "message", "hint"))  # type: ignore[return-value]

    ready, message, hint = state()
    assert (ready, message) == (False, "The way out of the box is not running.") and "appliance serve" in hint
    with monkeypatch.context() as without:
        without.delenv("APPLIANCE_OPENAI_KEY_FILE")
        without.delenv("CREDENTIALS_DIRECTORY", raising=False)
        ready, message, hint = state()
    assert (ready, message) == (False, "The box has no key for OpenAI.") and "openai_key_file" in hint
    with way_out(settings):
        assert state() == (True, "", "")
    settings.network.unlink()
    assert "air-gapped" in state()[1]


def test_shown_confirmed_followed_listed(tmp_path: Path, settings: Settings, far: Service, run: Callable[..., Done]) -> None:
    file = file_of(tmp_path / "rows.jsonl", rows(13))
    words = ("tune", "openai", "start", "--examples", str(file), "--suffix", "school")
    shut = run(settings, *words, "--confirm", WHO)
    assert shut.returncode == 1 and "Error: The way out of the box is not running." in shut.stderr and far.calls == []
    with way_out(settings):
        dry = document(run(settings, *words, "--dry-run", "--json"))
        assert not dry["sent"] and dry["train"]["rows"] >= 10 and far.calls == []
        bare = run(settings, *words)
        assert bare.returncode == 3 and "nobody has answered for that yet" in bare.stderr and "--confirm" in bare.stderr
        assert "by prices as of 2025-10-01" in bare.stderr and "check the prices" in bare.stderr
        assert f"{dry['id']}/leaving.txt" in bare.stderr and "exactly what is sent" in bare.stdout and far.calls == []
        done = run(settings, *words, "--confirm", WHO, "--json")
        result = document(done)
        assert result["model"] == TUNED and result["promoted"] is False and result["report"] is None
        assert "evaluate" in result["reasons"][0] and "Tuning at OpenAI." in done.stderr
        assert len(far.files) == len(far.jobs) == 1
        assert document(run(settings, *words, "--confirm", WHO, "--json"))["id"] == result["id"]
        assert len(far.files) == len(far.jobs) == 1, "asked for again, nothing is sent again"
        listed = document(run(settings, "tune", "openai", "list", "--json"))
        assert [one["id"] for one in listed["there"]] == ["ftjob-1"] and listed["runs"][0]["tuned"] == TUNED
        assert document(run(settings, "tune", "openai", "status", "--json"))["status"] == "succeeded"
    (model,) = document(run(settings, "models", "list", "--json"))["models"]
    assert model["id"] == result["id"] and BASE in model["id"]
    secret = json.loads(file.read_text().splitlines()[0])["messages"][0]["content"]
    kept = [path for path in settings.home.rglob("*") if path.is_file() and path != settings.openai_key_file]
    assert KEY not in done.stderr and secret not in done.stderr and not any(KEY.encode() in path.read_bytes() for path in kept)
    assert not any(
        secret.encode() in path.read_bytes() for path in (*settings.jobs.glob("*"), *settings.openai.rglob("*.json"))
    )
    shown = run(settings, "settings", "--all")
    assert KEY not in shown.stdout and "openai_budget" in shown.stdout


def test_whoever_withdraws_is_told_what_lies_there_and_it_is_deleted(
    tmp_path: Path, settings: Settings, far: Service, run: Callable[..., Done]
) -> None:
    made = [row | {"author": f"Writer {number}", "licence": "CC BY 4.0"} for number, row in enumerate(rows(13))]
    words = ("tune", "openai", "start", "--examples", str(file_of(tmp_path / "rows.jsonl", made)), "--confirm", WHO)
    with way_out(settings):
        id = document(run(settings, *words, "--json"))["run"]
        told = run(settings, "examples", "withdraw", "Nobody Known", "--yes")
        assert told.returncode == 0 and "OpenAI" not in told.stdout
        told = run(settings, "examples", "withdraw", "Writer 3", "--yes")
        assert f"{id} sent them to OpenAI" in told.stdout and f"`appliance tune openai delete {id}`" in told.stdout
        assert TUNED in told.stdout, "and what was made of them"
        gone = run(settings, "tune", "openai", "delete", id)
        assert "Deleted at OpenAI: file-1." in gone.stdout and f"The model {TUNED}" in gone.stdout and far.files == {}
        assert document(run(settings, "tune", "openai", "delete", id, "--with-model", "--json"))["deleted"] == [TUNED]
        again = document(run(settings, "examples", "withdraw", "Writer 3", "--yes", "--json"))
        assert again["sent"] == [] and TUNED not in far.models
        assert run(settings, "tune", "openai", "delete").returncode == 2, "which one has to be named"


def test_a_wrong_key_is_told_and_a_job_is_cancelled_on_both_sides(
    tmp_path: Path, settings: Settings, far: Service, run: Callable[..., Done]
) -> None:
    file = file_of(tmp_path / "rows.jsonl", rows(13))
    words = ["tune", "openai", "start", "--examples", str(file), "--confirm", WHO]
    with way_out(settings):
        far.key = "sk-another-key-altogether"
        wrong = run(settings, *words)
        assert wrong.returncode == 1 and "does not accept the key" in wrong.stderr and wrong.stderr.count("Try: ") == 1
        assert KEY not in wrong.stderr and "Traceback" not in wrong.stderr
        far.key, far.script = KEY, ("running",) * 5000
        codes: list[int] = []
        going = threading.Thread(target=lambda: codes.append(code_of(settings, *words)))
        going.start()
        until(lambda: far.count("GET /v1/fine_tuning/jobs/ftjob-1") > 1, "the second look")
        ended = run(settings, "tune", "openai", "cancel")
        assert ended.returncode == 0 and far.jobs["ftjob-1"]["status"] == "cancelled"
        going.join(60)
        assert codes == [1]
