"""The process in which DSPy runs: `python -m appliance.plugins.dspy_child`, started by `dspy_run` and by nobody else.

It reads one order, then speaks lines of JSON: what a model is to be asked, how long a prompt is, at last the program that was
found. A process of its own, so that the optimiser's memory goes with it, nothing that it prints reaches anybody, and neither
pages nor engine ever load it. It opens no connection and reads no pickle: both are refused by the interpreter itself before
DSPy is imported, whatever DSPy or a library below it would do. It ends when nobody listens any more.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

from appliance import guard, network
from appliance.errors import where
from appliance.plugins.dspy_line import Broken, Line, Unfit

NICENESS = 10  # people who ask come first
# Audit events of CPython that end the run. A pickle is the way from a poisoned cache to code (CVE-2025-69872).
FORBIDDEN = frozenset(
    {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "pickle.find_class",
     "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"}
)  # fmt: skip


def shut_in() -> None:
    """No connection and no pickle from here on, in this process, for good."""

    def refuse(event: str, _arguments: tuple[Any, ...]) -> None:
        if event in FORBIDDEN:
            raise Broken(f"refused: {event}")

    sys.addaudithook(refuse)


def begin() -> Any:
    """DSPy, with nothing on the disk, nothing remembered, nothing printed."""
    os.environ["DSPY_CACHEDIR"] = os.devnull  # below it no folder can be made
    import dspy

    # Before the first call: DSPy makes its cache, of pickles, when it first looks for it.
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
    dspy.disable_logging()  # it writes examples and answers into its log
    return dspy


def main() -> int:
    network.stay_offline()
    guard.install()
    voice = os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "wb") as nowhere:
        for number in (1, 2):
            os.dup2(nowhere.fileno(), number)
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    line = Line(voice, sys.stdin.buffer)
    order = line.read()
    shut_in()
    try:
        begin()
        from appliance.plugins.dspy_methods import search

        line.say({"done": search(order, line)})
    except Unfit as error:
        line.say({"unfit": str(error)})
    except (Exception, Broken) as error:  # noqa: BLE001 - the process outside says it, without the words of a row
        cause = error.__cause__ or error
        line.say({"fault": f"{where(cause)}{f' ({error})' if isinstance(error, Broken) else ''}"})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
