"""A child process that works on bytes which may be hostile: started with nothing of ours, ended with all that it started.

Hides how such a process is begun and ended. What it may use is for the child to give up itself, in its first lines: see
`extract_child` and `ocr_child`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

from appliance.errors import from_os_error
from appliance.settings import CLONE


@contextlib.contextmanager
def child(module: str, *arguments: str, seconds: float, what: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Python module of ours as a process with pipes, killed after `seconds` and when this ends.

    `what` is being done, for the sentence where none can be started ("reading a.pdf").
    """
    # Nothing of this process's environment goes along: no secrets, no switches. -P: its folder is not searched for modules.
    environment = {"PATH": os.defpath, "LANG": "C.UTF-8", "PYTHONPATH": str(CLONE), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-P", "-X", "utf8", "-m", f"appliance.knowledge.{module}", *arguments]
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        raise from_os_error(error, what) from error

    def end() -> None:
        if process.returncode is None:  # else its number may be another's by now
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(seconds, end)
    timer.start()
    try:
        yield process
    finally:
        timer.cancel()
        end()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
