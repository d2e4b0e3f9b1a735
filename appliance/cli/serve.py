"""`appliance serve`, `web`, `engine`, `egress`: start the processes."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import importlib
import logging
import os
import signal
import socket as socketlib
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance import guard, logs, notify
from appliance.cli.output import Output, command
from appliance.errors import ApplianceError, BadInput, Conflict, Forbidden
from appliance.settings import Settings

if TYPE_CHECKING:
    from appliance.app import Appliance

PORT = click.IntRange(1, 65535)
LOOKED_THROUGH = 5.0  # seconds that looking through the database may keep people waiting; a proof reads all of it each week
LOOK_SECONDS = 0.5  # between two looks at whether the work goes on


@click.command()
@click.option("--host", default=None, help="Address to listen on; 0.0.0.0 is the whole LAN.")
@click.option("--port", default=None, type=PORT, help="Port to listen on.")
@command
async def serve(out: Output, host: str | None, port: int | None) -> int:
    """Run the engine, the pages and the worker, and start one again that dies. Ctrl-C ends all.

    The process that reaches hosts outside runs only while one is allowed.
    """
    from appliance.network import Policy
    from appliance.supervisor import check_port, supervise

    settings = _with(out.settings, host, port)
    check_port(settings.host, settings.port)
    with _only_one(settings, "serve"):
        appliance = await asyncio.to_thread(_whole, settings)
        await asyncio.to_thread(appliance.ensure_starter)
        code = await asyncio.to_thread(appliance.accounts.ensure_setup_code)
        champion = appliance.champion()
        await appliance.close()
        base = [sys.executable, "-m", "appliance", "--home", str(settings.home)]
        commands = {
            "engine": [*base, "engine", "--with-parent"],
            "web": [*base, "web", "--with-parent", "--host", settings.host, "--port", str(settings.port)],
            "worker": [*base, "worker", "--with-parent"],
            "egress": [*base, "egress", "--with-parent"],
        }
        out.say(f"Open {' or '.join(_addresses(settings))} in a browser.")
        _say_code(out, code)
        title = champion.title if champion else "quotes from the documents, until a model is promoted"
        if settings.backend == "fake":
            title = "nobody. This is a load test: the setting backend is fake, and questions come back in capitals"
        out.say(f"Answers come from: {title}. Ctrl-C stops everything.")
        await supervise(commands, _noting(out, "serve"), {"egress": Policy(settings.network).open})
    return 0


@click.command()
@click.option("--host", default=None, help="Address to listen on; 0.0.0.0 is the whole LAN.")
@click.option("--port", default=None, type=PORT, help="Port to listen on.")
@click.option("--with-parent", is_flag=True, hidden=True, help="End when the process that started this one does.")
@command
async def web(out: Output, host: str | None, port: int | None, with_parent: bool) -> int:
    """The web process: pages, JSON and /v1. It holds no model.

    Where systemd hands over a listening Unix socket, it serves there, and believes what the proxy in front says of who asks.
    """
    import uvicorn

    from appliance.app import Appliance
    from appliance.supervisor import check_port, end_with_parent

    settings = _with(out.settings, host, port)
    unit = notify.Unit("web", settings.run)
    if await told_to_stop_before(unit):
        return 0
    inherited = _inherited()
    if inherited is None:
        check_port(settings.host, settings.port)
        guard.listen_at(settings.host)
    appliance = Appliance.open(settings) if with_parent else await asyncio.to_thread(_whole, settings)
    if with_parent:
        end_with_parent()
    else:  # started by itself, as on an installed box: nobody else has made these ready
        await asyncio.to_thread(appliance.ensure_starter)
        code = await asyncio.to_thread(appliance.accounts.ensure_setup_code)
        if inherited is None:  # else what is said goes to a log, and the installer tells the code
            _say_code(out, code)
    # By name: the two doors never import each other.
    application = importlib.import_module("appliance.web.server").create_app(appliance)
    where: dict[str, Any] = {"host": settings.host, "port": settings.port}
    if inherited is not None:
        where = {"fd": inherited, "forwarded_allow_ips": "*"}  # only the proxy can open the socket
    config = uvicorn.Config(
        _logged(application, settings, "web"), **where, server_header=False,
        **_logging(settings), timeout_graceful_shutdown=5, timeout_keep_alive=15,
        h11_max_incomplete_event_size=64 * 1024, loop="asyncio", http=_patient(), ws="none", backlog=_backlog(),
    )  # fmt: skip
    await _until_told_to_stop(uvicorn.Server(config), unit)
    await appliance.close()
    return 0


@click.command()
@click.option("--with-parent", is_flag=True, hidden=True, help="End when the process that started this one does.")
@command
async def engine(out: Output, with_parent: bool) -> int:
    """The engine process: language model and embedder on a Unix socket, no network."""
    import uvicorn

    from appliance.app import Appliance, serving_choice
    from appliance.engine.embedder import Embedder
    from appliance.engine.reranker import Reranker
    from appliance.engine.service import create_engine
    from appliance.supervisor import end_with_parent

    settings = out.settings
    unit = notify.Unit("engine", settings.run)
    if await told_to_stop_before(unit):
        return 0
    socket = settings.engine_socket
    if len(os.fsencode(socket)) > 100:
        raise BadInput(f"The path of the engine's socket is too long: {socket}.", "Choose a home folder with a shorter path.")

    def tuning() -> bool:
        return _locked(settings.run / "tune.lock")

    if with_parent:
        end_with_parent()
    # The decode loop comes back from llama.cpp many times a second, and waits this long for a thread that is busy.
    sys.setswitchinterval(0.0005)
    appliance = Appliance.open(settings)
    make = serving_choice(settings, fitting=lambda memory: _fitting(settings, memory), tuning=tuning)
    with _only_one(settings, "engine"):
        socket.unlink(missing_ok=True)  # left by a killed engine: the lock says that none is alive
        application = create_engine(
            appliance.resolve, make, Embedder(settings.threads), tuning=tuning,
            known=lambda: [model.id for model in appliance.registry.list()],
            reranker=None if settings.reranker is None else Reranker(settings.reranker),
        )  # fmt: skip
        with _private_listener(socket) as listener:
            config = uvicorn.Config(
                _logged(application, settings, "engine"), fd=listener.fileno(), **_logging(settings),
                timeout_graceful_shutdown=5, loop="asyncio", http=_patient(), ws="none", backlog=_backlog(),
            )  # fmt: skip
            await _until_told_to_stop(uvicorn.Server(config), unit, lambda: _advances(application))
        socket.unlink(missing_ok=True)
    await appliance.close()
    return 0


@click.command()
@click.option("--with-parent", is_flag=True, hidden=True, help="End when the process that started this one does.")
@command
async def egress(out: Output, with_parent: bool) -> int:
    """The one process with a network: forwards to the allowed hosts, and ends where there is none."""
    from appliance.egress import Egress
    from appliance.network import Policy
    from appliance.supervisor import end_with_parent

    settings, policy = out.settings, Policy(out.settings.network)
    unit = notify.Unit("egress", settings.run)
    if await told_to_stop_before(unit):
        return 0
    shut = Forbidden(
        "The box is air-gapped: no host is allowed, so nothing is forwarded.", "Allow one: `appliance network allow HOST:PORT`."
    )
    if not policy.allowed():
        unit.beat()  # it is there, and has nothing to do: systemd takes one that ends before it was ready for a failure
        unit.end("No host is allowed.")
        raise shut
    if with_parent:
        end_with_parent()
    note = _noting(out, "egress")
    with _only_one(settings, "egress"):
        path = settings.egress_socket
        path.unlink(missing_ok=True)  # left by a killed process: the lock says that none is alive
        try:
            with _private_listener(path) as listener:
                note(f"Forwarding to {', '.join(str(host) for host in sorted(policy.allowed()))}.")
                stopped = await _unless_told_to_stop(
                    Egress(policy, note).serve(listener, lambda: unit.beat("It forwards to the hosts that are allowed."))
                )
        finally:
            path.unlink(missing_ok=True)
    unit.end()
    if not stopped:
        raise shut
    return 0


def _whole(settings: Settings) -> Appliance:
    """The parts of this box, and its database looked through. Raises Damaged with the way back."""
    from appliance.app import Appliance
    from appliance.backup import last_good
    from appliance.db import Damaged

    try:
        appliance = Appliance.open(settings)
        appliance.database.check(seconds=LOOKED_THROUGH)
    except Damaged as error:
        raise Damaged(f"{error.message} Nothing is started.", last_good(settings)) from None
    return appliance


def _inherited() -> int | None:
    """The descriptor of the one Unix socket that systemd listens on for this process, where it does; see sd_listen_fds(3)."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS") != "1":
        return None
    with socketlib.socket(fileno=os.dup(3)) as given:
        if given.family != socketlib.AF_UNIX:
            raise BadInput("The socket that was handed over is no Unix socket.", "Use the unit appliance-web.socket as it is.")
    return 3


async def told_to_stop_before(unit: notify.Unit) -> bool:
    """Wait where this unit came back too often lately; whether it was told to stop meanwhile."""
    delay = unit.delay()
    if not delay:
        return False

    async def wait() -> None:
        unit.say(f"It ended several times without being told to; it begins in {delay:.0f} s.")
        await asyncio.sleep(delay)

    stopped = await _unless_told_to_stop(wait())  # it listens before it is said that it waits
    if stopped:
        unit.end()
    return stopped


async def _unless_told_to_stop(work: Coroutine[Any, Any, None]) -> bool:
    """Run something until it ends, or until SIGTERM or SIGINT: then whether it was those."""
    task, stop = asyncio.create_task(work), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    told = asyncio.create_task(stop.wait())
    await asyncio.wait({task, told}, return_when=asyncio.FIRST_COMPLETED)
    told.cancel()
    if task.done():
        await task
        return False
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return True


def _fitting(settings: Settings, memory: int) -> str:
    """The largest model of the catalogue that serves a class in so many bytes; "" where there is none."""
    from appliance.tuning import catalog

    try:
        return next((model.name for model in reversed(catalog.load(settings.catalog)) if model.serving_bytes <= memory), "")
    except ApplianceError:
        return ""  # the catalogue cannot be read: the refusal stands without it


def _locked(path: Path) -> bool:
    """Whether a process holds the lock on a file, from the system's list: trying it could make its owner-to-be fail."""
    try:
        number = path.stat().st_ino
        held = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    except OSError:
        return False
    return any(len(one) > 5 and one[1] == "FLOCK" and one[5].endswith(f":{number}") for one in held)


def _logged(application: Any, settings: Settings, process: str) -> Any:
    """The application, with a line for each request where the setting asks for it."""
    logs.begin(process, settings.log_format)
    return logs.Requests(application, believed=process == "engine") if settings.log_format == "json" else application


def _logging(settings: Settings) -> dict[str, Any]:
    """What uvicorn is told of logs. Its own line for a request holds the whole address: ours stands in its place."""
    own = {"log_config": None} if settings.log_format == "json" else {}
    return {"access_log": False, "log_level": "warning", **own}


def _noting(out: Output, process: str) -> Callable[[str], None]:
    """Where a service says what it does: a line on stderr, in the form that the setting asks for."""
    logs.begin(process, out.settings.log_format)
    return logging.getLogger(f"appliance.{process}").info if out.settings.log_format == "json" else out.note


def _patient() -> Any:
    """uvicorn's HTTP, with an end to waiting for slow clients. By name, as the application: the two doors never import."""
    return importlib.import_module("appliance.web.patience").protocol()


def _backlog() -> int:
    return int(importlib.import_module("appliance.web.patience").backlog())


async def _until_told_to_stop(server: Any, unit: notify.Unit, advances: Callable[[], str] = lambda: "It answers.") -> None:
    """Serve until SIGTERM or SIGINT, and come back: uvicorn raises the signal again afterwards, and that would end us.

    advances: what the unit says of itself; "" where its work is where it was when that was asked last.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    living = asyncio.create_task(_live(server, unit, advances))
    try:
        await server.serve()
    finally:
        living.cancel()
        await asyncio.gather(living, return_exceptions=True)
    if server.started:  # else it could not begin, which uvicorn has said
        unit.end()


async def _live(server: Any, unit: notify.Unit, advances: Callable[[], str]) -> None:
    """Tell systemd that the server answers, from its own event loop: one that hangs tells nothing."""
    while unit.watched and not server.should_exit:
        if server.started and (status := advances()):
            unit.beat(status)
        await asyncio.sleep(min(LOOK_SECONDS, unit.every or LOOK_SECONDS) if server.started else 0.05)


def _advances(application: Any) -> str:
    """That the engine's decode loops come round, and what they serve. A model that is being loaded holds nobody up."""
    loaded = application.state.loaded
    if not loaded.advances():
        return ""
    return f"It serves {', '.join(loaded.ids())}." if loaded.ids() else "It answers; no model is loaded."


def _say_code(out: Output, code: str | None) -> None:
    if code:
        out.say(f"One-time code to make the first administrator: {code}")


def _addresses(settings: Settings) -> list[str]:
    """What to type into a browser: this machine's own names for the address it listens on."""
    hosts = [settings.host]
    if settings.host in ("127.0.0.1", "0.0.0.0", "::1", "::"):
        hosts = ["localhost"]
    if settings.host in ("0.0.0.0", "::"):
        from appliance.network import lan_addresses

        hosts += lan_addresses()
    return [f"http://{f'[{host}]' if ':' in host else host}:{settings.port}/" for host in hosts]


def _with(settings: Settings, host: str | None, port: int | None) -> Settings:
    return settings.model_copy(update={k: v for k, v in {"host": host, "port": port}.items() if v is not None})


def _private_listener(path: Path) -> socketlib.socket:
    """A listening Unix socket for this user alone, from its first moment; uvicorn would open one to everybody."""
    listener = socketlib.socket(socketlib.AF_UNIX, socketlib.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    listener.listen(128)
    return listener


@contextlib.contextmanager
def _only_one(settings: Settings, name: str) -> Iterator[None]:
    """One process of a kind per home. Raises Conflict while another holds the lock."""
    settings.run.mkdir(parents=True, exist_ok=True, mode=0o700)
    path: Path = settings.run / f"{name}.lock"
    with open(path, "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(
                f"`appliance {name}` is running already for {settings.home}.", "Use that one, or choose another --home."
            ) from None
        yield
