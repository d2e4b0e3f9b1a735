"""What the services tell systemd: that they can answer, that their own work goes on, that they end; and how they come back."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from appliance import logs
from appliance.db import Database
from appliance.engine.openai_compatible import OpenAICompatible
from appliance.jobs import Jobs
from appliance.network import socket_client
from appliance.notify import Unit
from appliance.registry import Registry
from appliance.settings import Settings
from tests.outside import Machine, allow

PERIOD = 1.2  # seconds that systemd would wait for a sign of life: here nobody ends a process, its signs are only counted
NAMES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
# The real command with one fault in it, each in the very work that a sign of life has to come from.
FAULTS = """
import sys, time
from appliance.cli import main

def web():
    from appliance.web import server
    make = server.create_app
    def create_app(appliance):
        application = make(appliance)
        @application.get("/hang", include_in_schema=False)
        async def hang():
            time.sleep(600)
        return application
    server.create_app = create_app

def engine():
    from appliance.engine.llama import Llama
    decode = Llama.decode
    Llama.decode = lambda self, rows: time.sleep(600) if len(rows) == 1 else decode(self, rows)

def worker():
    from appliance.cli import worker as module
    import asyncio
    async def long(job, tell):
        await asyncio.to_thread(time.sleep, job.payload["seconds"])
        return {}
    async def hang(job, tell):
        time.sleep(600)
    async def fails(job, tell):
        from appliance.errors import BadInput
        raise BadInput("CANARY is no question.", "Ask CANARY again.")
    module.handlers = lambda appliance: {"long": long, "hang": hang, "fails": fails}

globals()[sys.argv[3]]()
main(sys.argv[1:])
"""


def until(true: Callable[[], object], what: str = "it") -> None:
    """Four services that start at once take their time on a machine that has other work."""
    ends = time.monotonic() + 120
    while not true():
        assert time.monotonic() < ends, f"{what} did not happen"
        time.sleep(0.02)


class Systemd:
    """The other end of NOTIFY_SOCKET: what a service said, each word with the moment at which it came."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "notify"
        self.said: list[tuple[float, str]] = []
        self._line = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._line.bind(str(self.path))
        self._line.setblocking(False)

    def words(self) -> list[str]:
        with contextlib.suppress(BlockingIOError):
            while True:
                self.said += [(time.monotonic(), word) for word in self._line.recv(4096).decode().splitlines()]
        return [word for _, word in self.said]

    def signs(self) -> int:
        return self.words().count("WATCHDOG=1")

    def until(self, word: str, times: int = 1) -> None:
        until(lambda: self.words().count(word) >= times, word)

    def silent(self, settled: Callable[[], object]) -> None:
        """No sign of life comes for the whole time that systemd would wait, while `settled` stays true."""

        def waited() -> bool:
            self.words()
            last = max((at for at, word in self.said if word == "WATCHDOG=1"), default=0.0)
            assert settled()
            return time.monotonic() - last > PERIOD

        until(waited, "silence")

    def close(self) -> None:
        self._line.close()


@contextlib.contextmanager
def service(
    settings: Settings, folder: Path, name: str, *more: str, faulty: bool = False
) -> Iterator[tuple[Systemd, subprocess.Popen[str]]]:
    """A service as a unit of systemd starts it; `faulty`: with the fault that FAULTS has for it."""
    folder.mkdir(parents=True, exist_ok=True)
    systemd = Systemd(folder)
    given = {"NOTIFY_SOCKET": str(systemd.path), "WATCHDOG_USEC": str(int(PERIOD * 1e6)), "APPLIANCE_LOG_FORMAT": "json"}
    program = ["-c", FAULTS] if faulty else ["-m", "appliance"]
    command = [sys.executable, *program, "--home", str(settings.home), name, *more]
    with open(folder / "log", "w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, text=True, env=os.environ | given)
        try:
            yield systemd, process
        finally:
            process.kill()
            process.wait()
            systemd.close()


@pytest.fixture
def prepared(settings: Settings) -> Settings:
    """A home whose database is ready, with a model where there is one, so that a start takes no longer than it must."""
    settings.run.mkdir(parents=True)
    with closing(Database(settings.database)) as database:
        database.migrate()
    return settings


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def engine_of(settings: Settings) -> httpx.Client:
    return httpx.Client(transport=httpx.HTTPTransport(uds=str(settings.engine_socket)), base_url="http://engine", timeout=30)


def engine_answers(settings: Settings) -> bool:
    with engine_of(settings) as engine:
        return bool(engine.get("/health").json()["detail"] == "answers")


async def asked_by_the_web_process(settings: Settings) -> None:
    engine = OpenAICompatible(lambda: socket_client(settings.engine_socket))
    assert (await engine.health()).ok
    await engine.close()


def held(path: Path) -> bool:
    with path.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_each_service_says_that_it_is_ready_when_it_is_that_it_lives_and_that_it_ends(
    prepared: Settings, tmp_path: Path
) -> None:
    outside, port = Machine(), free_port()
    allow(prepared, outside.host)
    with contextlib.ExitStack() as stack:
        services = {
            name: stack.enter_context(
                service(prepared, tmp_path / name, name, *(("--port", str(port)) if name == "web" else ()))
            )
            for name in ("worker", "egress", "engine", "web")
        }
        asked: dict[str, Callable[[], object]] = {
            "web": lambda: httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200,
            "engine": lambda: engine_answers(prepared),
            "worker": lambda: held(prepared.run / "worker.lock"),
            "egress": lambda: through(prepared.egress_socket, f"{outside.host}"),
        }
        for name, (systemd, _process) in services.items():
            systemd.until("READY=1")
            assert asked[name](), f"{name} was not ready when it said so"
        with logs.about("0123456789abcdef"):
            asyncio.run(asked_by_the_web_process(prepared))
        for name, (systemd, process) in services.items():
            systemd.until("WATCHDOG=1", 2)
            status = next(word for word in systemd.words() if word.startswith("STATUS="))
            assert status.endswith("."), status
            assert len(list(prepared.run.glob(f"{name}.starts"))) == 1, "a start is counted until it proved good"
            process.terminate()
        for name, (systemd, process) in services.items():
            assert process.wait(30) == 0
            assert "STOPPING=1" in systemd.words() and systemd.words().count("READY=1") == 1
            log = (tmp_path / name / "log").read_text()
            assert "Traceback" not in log, log
    assert not list(prepared.run.glob("*.starts")), "who was told to end has not failed"
    told = [line["request"] for line in lines(tmp_path / "engine") if line.get("route") == "/health"]
    assert told.count("0123456789abcdef") == 1, "the engine's line names what was asked of the other process"
    assert len(set(told)) == len(told) > 1, "who does not say for whom it asks is told from the others"
    outside.close()


def lines(folder: Path) -> list[dict[str, Any]]:
    """What a service logged."""
    return [json.loads(line) for line in (folder / "log").read_text().splitlines()]


def through(path: Path, host: str) -> bool:
    """Whether the way out connects to a host."""
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(str(path))
        line.sendall(f"CONNECT {host} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        return line.recv(64).split(b" ")[1] == b"200"


def test_a_way_out_with_nothing_to_do_ends_without_having_failed(prepared: Settings, tmp_path: Path) -> None:
    with service(prepared, tmp_path / "egress", "egress") as (systemd, process):
        assert process.wait(30) == 3
        said = systemd.words()
        assert said.index("READY=1") < said.index("STOPPING=1"), "or systemd takes it for a failure, and starts it again"


def test_a_web_process_whose_loop_hangs_gives_no_sign_of_life(prepared: Settings, tmp_path: Path) -> None:
    port = free_port()
    with service(prepared, tmp_path / "web", "web", "--port", str(port), faulty=True) as (systemd, process):
        systemd.until("WATCHDOG=1", 2)
        with pytest.raises(httpx.ReadTimeout):
            httpx.get(f"http://127.0.0.1:{port}/hang", timeout=0.5)
        systemd.silent(lambda: process.poll() is None)
        process.send_signal(6)  # as systemd does then
        process.wait(10)
    log = (tmp_path / "web" / "log").read_text()
    assert "in hang" in log and "most recent call first" in log, "the journal has to say where it hung"


@pytest.mark.llama
def test_an_engine_whose_decode_loop_hangs_gives_no_sign_of_life_although_it_answers(
    prepared: Settings, tmp_path: Path, starter_gguf: Path
) -> None:
    incoming = prepared.models / ".incoming"
    incoming.mkdir(parents=True)
    (incoming / "model.gguf").write_bytes(starter_gguf.read_bytes())
    registry = Registry(prepared.models)
    registry.add(incoming, id="class", kind="base", title="Class", licence="Apache-2.0", context=512)
    registry.promote("class")
    with service(prepared, tmp_path / "engine", "engine", faulty=True) as (systemd, process):
        systemd.until("STATUS=It serves class.")
        systemd.until("WATCHDOG=1", systemd.signs() + 2)  # at rest it lives
        body = {"messages": [{"role": "user", "content": "Why are leaves green?"}], "model": "default", "max_tokens": 8}
        with engine_of(prepared) as engine:
            with pytest.raises(httpx.ReadTimeout):
                engine.post("/v1/chat/completions", json=body, timeout=1.0)
            systemd.silent(lambda: engine.get("/health").status_code == 200 and process.poll() is None)


def test_a_worker_lives_through_a_long_job_and_not_through_one_that_holds_its_loop(prepared: Settings, tmp_path: Path) -> None:
    with closing(Database(prepared.database)) as database:
        queue = Jobs(database, prepared)
        job = queue.enqueue("long", {"seconds": 600, "words": "CANARY"})
        fails = queue.enqueue("fails", {}, lane="outside")
        with service(prepared, tmp_path / "worker", "worker", faulty=True) as (systemd, process):
            until(lambda: queue.get(job.id).state == "running")
            systemd.until("WATCHDOG=1", systemd.signs() + 2)
            queue.cancel(job.id)  # which a thread does not heed
            systemd.until("WATCHDOG=1", systemd.signs() + 2)
            stuck = queue.enqueue("hang", {}, lane="light")
            until(lambda: queue.get(stuck.id).state == "running")
            systemd.silent(lambda: process.poll() is None)
    told = [
        (line["request"], line["message"], line["kind"], line["state"], line.get("code")) for line in lines(tmp_path / "worker")
    ]
    assert (job.id, "a job begins", "long", "running", None) in told
    assert (fails.id, "a job is left", "fails", "failed", "bad_input") in told
    assert "CANARY" not in (tmp_path / "worker" / "log").read_text() + (prepared.jobs / f"{job.id}.log").read_text()


def test_who_comes_back_too_often_waits_longer_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    systemd = Systemd(tmp_path)

    def begun() -> Unit:
        monkeypatch.setenv("NOTIFY_SOCKET", str(systemd.path))
        return Unit("web", tmp_path / "run")

    assert [begun().delay() for _ in range(8)] == [0, 0, 4, 8, 16, 32, 60, 60]
    begun().end()
    assert begun().delay() == 0, "told to end: it did not fail"
    (tmp_path / "run" / "web.starts").write_text(json.dumps({"release": "/opt/appliance/releases/0.1", "starts": 9}))
    assert begun().delay() == 0, "another release has nothing to do with that one's failures"
    (tmp_path / "run" / "web.starts").write_text("half a li")
    assert begun().delay() == 0
    systemd.close()


def test_a_unit_that_waits_to_come_back_ends_at_once_when_it_is_told_to(prepared: Settings, tmp_path: Path) -> None:
    (prepared.run / "worker.starts").write_text(json.dumps({"release": sys.prefix, "starts": 20}))
    with service(prepared, tmp_path / "worker", "worker") as (systemd, process):
        systemd.until("STATUS=It ended several times without being told to; it begins in 60 s.")
        process.terminate()
        assert process.wait(10) == 0
        assert "READY=1" not in systemd.words() and not (prepared.run / "worker.starts").exists()


def test_an_abstract_socket_is_told_too_under_the_guard_and_nothing_is_left_for_children(tmp_path: Path) -> None:
    name = f"appliance-test-{os.getpid()}"
    script = (
        "import os, sys; from pathlib import Path; from appliance import guard\n"
        "from appliance.notify import Unit; guard.install()\n"
        "unit = Unit('web', Path(sys.argv[1])); unit.beat('Two\\nWATCHDOG=lines'); unit.end()\n"
        f"assert not {{*os.environ}} & {set(NAMES)}"
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.bind(f"\0{name}")
        given = os.environ | {"NOTIFY_SOCKET": f"@{name}", "WATCHDOG_USEC": "60000000"}
        subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=given, check=True)
        line.settimeout(10)
        assert line.recv(999).decode().splitlines() == ["READY=1", "STATUS=Two WATCHDOG=lines", "WATCHDOG=1"]
        assert line.recv(999).decode().splitlines()[0] == "STOPPING=1"


@pytest.mark.parametrize(
    "given", [{}, {"NOTIFY_SOCKET": "/nowhere/notify"}, {"NOTIFY_SOCKET": "vsock:2:9", "WATCHDOG_USEC": "soon"}]
)
def test_where_nobody_listens_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, str]) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    unit = Unit("web", tmp_path / "run")
    assert unit.delay() == 0 and unit.watched is bool(given)
    unit.beat("It answers.")
    unit.end()
    assert not list((tmp_path / "run").glob("*")) if given else not (tmp_path / "run").exists()
