"""What Python loads first in each process of the box on trial: it may take the offline switches away, and tries to get out.

Copied as `sitecustomize.py` into the trial's folder, and used nowhere else. It changes nothing of the guard.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any


def _bare() -> None:
    """As if nobody had thought of any variable: neither is one set, nor will the box set it."""
    from appliance import network

    for name in [*network.OFFLINE, "CI"]:
        if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "TOKENIZERS_PARALLELISM"):
            network.OFFLINE.pop(name, None)
            os.environ.pop(name, None)


def _tried(work: Callable[..., object], *given: Any) -> dict[str, Any]:
    began = time.monotonic()
    try:
        work(*given)
        said = "it went through"
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what this is about
        said = f"{type(error).__name__}: {error}"
    return {"said": said, "seconds": time.monotonic() - began}


def _wait_and_try(name: str, folder: str) -> None:
    order = os.path.join(folder, "try.now")
    while not os.path.exists(order):
        time.sleep(0.1)
    with open(order) as file:
        targets = json.load(file)
    found = {}
    for what, (kind, *target) in targets.items():
        if kind == "tcp":
            found[what] = _tried(socket.create_connection, tuple(target), 3)
        elif kind == "udp":
            found[what] = _tried(socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto, b"x", tuple(target))
        elif kind == "unix":
            found[what] = _tried(socket.socket(socket.AF_UNIX).connect, target[0])
        else:
            found[what] = _tried(socket.getaddrinfo, *target)
    draft = os.path.join(folder, f"tried-{name}.draft")
    with open(draft, "w") as file:
        json.dump(found, file)
    os.rename(draft, os.path.join(folder, f"tried-{name}.json"))


if os.environ.get("PROOF_BARE"):
    _bare()
_words = sys.orig_argv
_name = next((one for one in ("web", "engine", "worker") if one in _words and "--with-parent" in _words), "")
if _name and os.environ.get("PROOF_FOLDER"):
    threading.Thread(target=_wait_and_try, args=(_name, os.environ["PROOF_FOLDER"]), daemon=True).start()
