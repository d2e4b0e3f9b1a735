"""The reader's child process: limits first, then parsing, then one JSON object a line on standard output, or one page drawn.

Started only by `extract` and `ocr`, with one line of JSON on standard input. Hides the limits: address space, processor time,
files (it may write none), open files, core dumps, network, programs, pickles. Holds no parsing itself: that is `readers`.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import resource
import sys
from pathlib import Path
from typing import Any

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
REFUSED = (
    "socket.",
    "subprocess.",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "os.system",
    "pickle.find_class",
    "shutil.",
    "urllib.",
)


def limit(memory: int, seconds: int) -> None:
    """Take everything away that reading does not need. Cannot be undone in this process."""
    no_resources(memory, seconds)
    no_network()
    sys.addaudithook(_refuse)


def no_resources(memory: int, seconds: int) -> None:
    """No more memory (bytes) and processor time than that, and no files to write."""
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # a pipe is no file: answering still works
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))


def no_network() -> None:
    """An empty network namespace: nothing to connect to. Where the kernel refuses, the audit hook of `limit` still does."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        if libc.unshare(CLONE_NEWNET) != 0:
            libc.unshare(CLONE_NEWUSER | CLONE_NEWNET)


def _refuse(event: str, _arguments: tuple[Any, ...]) -> None:
    if event.startswith(REFUSED):
        raise PermissionError(f"a document's reader may not use {event}")


def main() -> int:
    job = json.loads(sys.stdin.readline())
    limit(job["memory"], job["seconds"])
    if "draw" in job:
        _draw(job)
        return 0
    from appliance.errors import ApplianceError

    try:
        _read(job)
    except ApplianceError as error:
        _say({"error": error.code, "message": error.message, "hint": error.hint})
    except (MemoryError, RecursionError):
        _say(
            {
                "error": "too_large",
                "message": f"{job['name']} needs more than {job['memory'] // 2**20} MB of memory to read.",
                "hint": "Split it into parts, or save it in another format, and add that.",
            }
        )
    return 0


def _read(job: dict[str, Any]) -> None:
    from appliance.knowledge.readers import read

    found = read(Path(job["path"]), job["name"], job["characters"], job["pages"])
    for text, place, page, heading in found.sections:
        _say({"text": text, "place": place, "page": page, "heading": heading})
    note = " ".join(found.notes)
    done = {"kind": found.kind, "title": found.title, "pages": found.pages, "note": note, "pictures": found.pictures}
    _say({"done": done})


def _draw(job: dict[str, Any]) -> None:
    """One page as a grey picture, and nothing else, on standard output."""
    from appliance.knowledge.readers.pdf import draw

    sys.stdout.buffer.write(draw(Path(job["path"]), job["draw"]))


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")


if __name__ == "__main__":
    sys.exit(main())
