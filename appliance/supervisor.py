"""Keeps a desk's or a demo's processes running: the engine and the web process, each restarted when it dies.

On an installed box systemd does this. Hides restart delays and an orderly end. It knows commands, not what they do.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence

from appliance.errors import ApplianceError, BadInput, Conflict

# A process that ran this long was healthy: its next death is news, not part of a crash loop.
HEALTHY_SECONDS = 30.0
LONGEST_DELAY = 30.0
LOOK_SECONDS = 0.5


async def supervise(
    commands: Mapping[str, Sequence[str]],
    say: Callable[[str], None],
    only_while: Mapping[str, Callable[[], bool]] | None = None,
) -> None:
    """Run all commands until SIGINT or SIGTERM; one that ends is started again, sooner at first, at most every 30 s.

    only_while: for a command that is not always wanted, whether it is; asked before each start.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    wanted = only_while or {}
    keepers = [asyncio.create_task(_keep(name, one, say, wanted.get(name))) for name, one in commands.items()]
    await stop.wait()
    say("Stopping.")
    for keeper in keepers:
        keeper.cancel()
    await asyncio.gather(*keepers, return_exceptions=True)


async def _keep(name: str, command: Sequence[str], say: Callable[[str], None], wanted: Callable[[], bool] | None) -> None:
    delay = 0.5
    while True:
        while wanted is not None and not wanted():
            await asyncio.sleep(LOOK_SECONDS)
        began = time.monotonic()
        try:
            # A session of its own: Ctrl-C reaches us alone, and we end the children in order.
            child = await asyncio.create_subprocess_exec(*command, start_new_session=True)
        except OSError as error:
            say(f"The {name} process could not be started ({error.strerror}); trying again in {delay:g} s.")
            await asyncio.sleep(delay)
            delay = min(delay * 2, LONGEST_DELAY)
            continue
        try:
            code = await child.wait()
        finally:
            await end(child)
        if time.monotonic() - began > HEALTHY_SECONDS:
            delay = 0.5
        if wanted is not None and not wanted():
            continue  # it ended because it was no longer wanted, and has said so
        say(f"The {name} process ended ({_why(code)}); starting it again in {delay:g} s.")
        await asyncio.sleep(delay)
        delay = min(delay * 2, LONGEST_DELAY)


async def end(child: asyncio.subprocess.Process) -> None:
    """Ask a child to stop, and stop it where it does not within ten seconds. Does nothing to one that has ended."""
    if child.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        child.terminate()
    try:
        await asyncio.wait_for(child.wait(), 10)
    except TimeoutError:
        child.kill()
        await child.wait()


def end_with_parent() -> None:
    """Ask the kernel to end this process when the one that started it is gone, however that died."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
    if os.getppid() == 1:  # it was gone before we asked
        raise SystemExit(0)


def _why(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def check_port(host: str, port: int) -> None:
    """Raise Conflict where nothing can listen on this address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except PermissionError:
            raise ApplianceError(f"Port {port} is reserved for the system.", "Choose one above 1023 with --port.") from None
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise Conflict(f"Port {port} on {host} is in use.", f"Choose another one: --port {port + 1}.") from None
            raise BadInput(
                f"This machine cannot listen on {host}: {error.strerror or error}.",
                "Give one of its own addresses, or 0.0.0.0 for all of them.",
            ) from None
