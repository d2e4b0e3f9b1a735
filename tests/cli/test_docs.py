"""Documents at the command line: added here or by a real worker, killed or not, and from folders that are watched.

No engine can start in these homes, which is quick: what is added is found by its words.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from appliance.cli import adding
from appliance.db import Database
from appliance.jobs import Jobs
from appliance.knowledge.ingest import Record
from appliance.knowledge.shelves import EVERYTHING, Shelves
from appliance.knowledge.watching import Watch, Watching
from appliance.settings import Settings
from tests.cli.test_commands import run
from tests.knowledge.helpers import PLANTS, RIVERS, pdf, pptx, shape

MANY = 40  # files: enough that a worker is not done with them before somebody looks


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home" / "run" / "engine.sock").mkdir(parents=True)  # nothing can listen there
    return tmp_path / "home"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of which two cannot be read."""
    folder = tmp_path / "in"
    folder.mkdir()
    pdf(folder / "rivers.pdf", [RIVERS, RIVERS.upper()])
    pptx(folder / "plants.pptx", [shape(PLANTS)])
    (folder / "empty.txt").touch()
    (folder / "notes.pdf").write_bytes(b"%PDF-1.7\n")
    return folder


def _json(home: Path, *arguments: str, code: int = 0) -> Any:
    done = run(home, *arguments, "--json")
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


@contextmanager
def _worker(home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A real worker that looks at its folders all the time; killed with all its children at the end."""
    environment = os.environ | {"APPLIANCE_WATCH_SECONDS": "0.1"}
    command = [sys.executable, "-m", "appliance", "--home", str(home), "worker"]
    process = subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def _database(home: Path) -> Iterator[Database]:
    """Looked into directly: a command a look would take most of the machine."""
    database = Database(Settings(home=home).database)
    try:
        yield database
    finally:
        database.close()


def _until(true: Callable[[], Any], worker: subprocess.Popen[bytes]) -> Any:
    """For as long as the worker lives; an hour of it is no machine's fault."""
    ends = time.monotonic() + 3600
    while not (found := true()):
        assert worker.poll() is None, "the worker died"
        assert time.monotonic() < ends, "it never came to that"
        time.sleep(0.05)
    return found


def test_slides_are_called_slides_and_each_file_has_its_line(home: Path, folder: Path) -> None:
    done = run(home, "docs", "add", str(folder))
    assert done.returncode == 1
    assert "plants.pptx: 1 slide, 1 passages" in done.stdout and "rivers.pdf: 2 pages, " in done.stdout
    assert "2 of 4 files are in the collection 'school'." in done.stdout
    assert "empty.txt is empty." in done.stderr and done.stderr.count("Try: ") == 2
    again = _json(home, "docs", "add", str(folder), code=1)
    assert {Path(file["path"]).name: file["status"] for file in again["files"]} == {
        "empty.txt": "failed", "notes.pdf": "failed", "plants.pptx": "unchanged", "rivers.pdf": "unchanged",
    }  # fmt: skip
    jobs = _json(home, "jobs", "list")["jobs"]
    assert [(job["kind"], job["state"]) for job in jobs] == [("docs add", "done")] * 2
    with _database(home) as database:
        asked = Jobs(database, Settings(home=home)).get(jobs[0]["id"]).payload
        (held,) = Shelves(database).list(EVERYTHING)
        assert asked["collection_id"] == held.id, "whatever it is called by the time that its turn comes"
    shown = _json(home, "jobs", "show", jobs[-1]["id"])
    assert shown["result"] == {"collection": "school", "files": 4, "passages": 3, "added": 2, "unchanged": 0, "failed": 2}
    assert {file["file"]: file["status"] for file in shown["files"]}["rivers.pdf"] == "added"


def test_a_worker_that_is_killed_goes_on_where_it_was_and_its_report_is_kept(home: Path, folder: Path) -> None:
    for number in range(MANY):
        (folder / f"{number:02}.txt").write_text(f"{PLANTS} Lesson {number}.")
    left = run(home, "docs", "add", str(folder), "--later", "--json")
    assert left.returncode == 0 and "No worker runs now" in left.stderr
    id = json.loads(left.stdout)["job"]
    assert _json(home, "docs", "add", str(folder), "--later")["job"] == id, "the same again is the same job"

    with _database(home) as database:
        record = Record(database, id)
        with _worker(home) as worker:
            _until(lambda: len(record.reports()) >= 3, worker)
        before = [adding.record(report) for report in record.reports()]
        assert len(before) < MANY + 4, "it was killed on its way"
        with _worker(home) as worker:
            _until(lambda: Jobs(database, Settings(home=home)).get(id).ended, worker)
    shown = _json(home, "jobs", "show", id)
    assert shown["state"] == "done" and shown["attempts"] == 2
    states = [file["status"] for file in shown["files"]]
    assert (states.count("added"), states.count("failed"), len(states)) == (MANY + 2, 2, MANY + 4)
    assert [file for file in shown["files"] if file["path"] in {old["path"] for old in before}] == before
    assert all(file["error"] and file["hint"] for file in shown["files"] if file["status"] == "failed")
    assert len(_json(home, "docs", "list")["documents"]) == MANY + 2
    log = _json(home, "jobs", "log", id)["lines"]
    assert sum("empty.txt is empty. Check" in one for one in log) == 1 and any("13.txt" not in one for one in log)
    text = run(home, "jobs", "show", id)
    assert "03.txt: 1 passages" in text.stdout and "empty.txt is empty." in text.stderr


def test_a_real_worker_takes_what_is_put_into_a_watched_folder(home: Path, tmp_path: Path) -> None:
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    (inbox / "rivers.txt").write_text(RIVERS)
    tied = run(home, "docs", "watch", str(inbox), "--collection", "Year 7", "--json")
    assert tied.returncode == 0 and json.loads(tied.stdout)["folder"] == str(inbox)

    with _database(home) as database, _worker(home) as worker:

        def seen() -> Watch:
            return Watching(database, Settings(home=home)).one(str(inbox))

        _until(lambda: seen().states == {"there": 1}, worker)
        (inbox / "plants.txt").write_text(PLANTS)
        _until(lambda: seen().states == {"there": 2}, worker)
        (inbox / "rivers.txt").unlink()
        _until(lambda: seen().gone == ["rivers.txt"], worker)
    listed = run(home, "docs", "watches")
    assert "Year 7" in listed.stdout and "rivers.txt has vanished; it is still in the library" in listed.stderr
    documents = _json(home, "docs", "list", "--collection", "Year 7")["documents"]
    assert [document["file"] for document in documents] == ["plants.txt", "rivers.txt"]
    assert run(home, "docs", "unwatch", str(inbox)).returncode == 0
    assert _json(home, "docs", "watches") == {"watches": []}


@pytest.mark.parametrize(
    "arguments", [("watch", "nowhere"), ("unwatch", "nowhere"), ("add", "x", "--collection", "\n")], ids=lambda one: one[0]
)
def test_what_cannot_be_done_has_a_sentence_and_a_next_step(home: Path, arguments: tuple[str, ...]) -> None:
    done = run(home, "docs", *arguments)
    assert done.returncode == 1 and "Error: " in done.stderr and "Try: " in done.stderr


def test_another_run_is_named_with_a_way_round_it(home: Path, folder: Path) -> None:
    import fcntl

    with (home / "run" / "jobs-light.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run(home, "docs", "add", str(folder))
    assert done.returncode == 75 and "Another light job is under way" in done.stderr and "--later" in done.stderr
    assert [job["state"] for job in _json(home, "jobs", "list")["jobs"]] == ["cancelled"], "nobody asked for it later"


def test_what_is_left_to_the_worker_while_it_is_at_the_same_folder_is_a_job_of_its_own(home: Path, folder: Path) -> None:
    """The one that runs has listed the folder already, and would not see what was put there since."""
    first = _json(home, "docs", "add", str(folder), "--later")["job"]
    with _database(home) as database:
        queue = Jobs(database, Settings(home=home))
        with queue.hold("light"):
            running = queue.claim("light", ["ingest"])
            assert running is not None and running.id == first
            second = _json(home, "docs", "add", str(folder), "--later")
    assert second["job"] != first and second["state"] == "queued"
