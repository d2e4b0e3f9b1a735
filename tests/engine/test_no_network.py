"""The engine never reaches the network: not where there is one, not through native code, and it answers where there is none.

Every process of `appliance serve` runs with a recorder of its Python sockets, in a network namespace of its own where the
system allows one; the engine also under strace, which sees what native libraries do.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from appliance import network
from appliance.engine.handler import Message, Request
from appliance.engine.openai_compatible import OpenAICompatible
from tests.test_main_job import without_network
from tests.web.test_engine_killed import prepare

pytestmark = [pytest.mark.llama, pytest.mark.slow]

# Loaded by every Python process of the appliance before anything else: one line for each thing done with a socket.
RECORDER = """
import json, os, sys
_log = os.open(os.environ["SOCKET_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
def _record(event, given):
    if event.startswith("socket."):
        facts = [one.family.name if hasattr(one, "family") else repr(one) for one in given]
        os.write(_log, (json.dumps([sys.argv[1:], event, facts]) + "\\n").encode())
sys.addaudithook(_record)
"""
LOOPBACK_UP = """
import fcntl, socket, struct
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any:
    fcntl.ioctl(any, 0x8914, struct.pack("16sH14x", b"lo", 1))
"""
# A box with nobody around it but its own loopback: it serves, is asked for an answer and for vectors, and ends.
DRIVER = """
import fcntl, json, os, socket, struct, subprocess, sys, time, urllib.error, urllib.request
home, key, alone = sys.argv[1], sys.argv[2], sys.argv[3] == "alone"
if alone:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any:
        fcntl.ioctl(any, 0x8914, struct.pack("16sH14x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP
        try:
            any.connect(("192.0.2.1", 9))  # sends nothing: it asks for a way out
        except OSError:
            pass
        else:
            raise SystemExit("there is a network here")
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
url = f"http://127.0.0.1:{port}"
def ask(path, body=None):
    request = urllib.request.Request(url + path, json.dumps(body).encode() if body else None)
    request.add_header("Authorization", f"Bearer {key}")
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.load(reply)
served = subprocess.Popen(
    [sys.executable, "-m", "appliance", "--home", home, "serve", "--port", str(port)],
    stdout=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": os.environ["RECORDER"]},
)
try:
    ends, up = time.monotonic() + 120, False
    while not up and time.monotonic() < ends:
        time.sleep(0.2)
        try:
            up = ask("/ready")["handler"] == "llama"
        except OSError:
            pass
    question = [{"role": "user", "content": "What is a fraction?"}]
    answer = ask("/v1/chat/completions", {"model": "default", "messages": question, "collections": []})
    vector = ask("/v1/embeddings", {"model": "default", "input": "A fraction"})["data"][0]["embedding"]
    print(json.dumps({"port": port, "answer": answer, "dimensions": len(vector)}))
finally:
    served.terminate()
    served.wait(30)
"""


def recorder(folder: Path) -> dict[str, str]:
    """The environment in which a Python process writes down what it does with sockets."""
    (folder / "sitecustomize.py").write_text(RECORDER)
    own = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}  # a container's is not the box's
    return own | {"RECORDER": str(folder), "SOCKET_LOG": str(folder / "sockets.jsonl")}


def recorded(folder: Path) -> list[tuple[str, str, list[str]]]:
    """(command, event, facts) of everything that was done with a socket."""
    lines = [json.loads(line) for line in (folder / "sockets.jsonl").read_text().splitlines()]
    commands = ("engine", "web", "worker", "serve")
    return [(next((one for one in commands if one in words), ""), event, facts) for words, event, facts in lines]


def test_the_recorder_sees_who_reaches_out(tmp_path: Path) -> None:
    """Without this, silence in the next test would prove nothing."""
    environment = recorder(tmp_path)
    program = (
        "import socket, contextlib\n"
        "with contextlib.suppress(OSError): socket.create_connection(('192.0.2.1', 9), 0.01)\n"
        "with contextlib.suppress(OSError): socket.getaddrinfo('school.invalid', 443)\n"
    )
    subprocess.run([sys.executable, "-c", program], env=environment | {"PYTHONPATH": str(tmp_path)}, check=True)
    events = {event for _, event, _ in recorded(tmp_path)}
    assert {"socket.connect", "socket.getaddrinfo", "socket.__new__"} <= events
    assert "192.0.2.1" in (tmp_path / "sockets.jsonl").read_text()


def test_a_question_through_every_process_touches_nothing_but_this_box(tmp_path: Path, starter_gguf: Path) -> None:
    from contextlib import closing

    from appliance.accounts import Accounts
    from appliance.db import Database

    settings = prepare(tmp_path / "h", starter_gguf)
    with closing(Database(settings.database)) as database:
        accounts = Accounts(database, settings)
        key = accounts.create_key(accounts.local_administrator(), "test", "admin")[1]
    words = alone()
    command = [*words, sys.executable, "-c", DRIVER, str(settings.home), key, "alone" if words else "beside others"]
    done = subprocess.run(command, env=recorder(tmp_path), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert said["answer"]["handler"] == "llama" and said["answer"]["model"] == "class" and said["dimensions"] == 384

    seen = recorded(tmp_path)
    own = {name for name, _, _ in seen}
    assert {"engine", "web", "worker"} <= own, f"the recorder ran in {own} only"
    engine_socket = repr(str(settings.engine_socket))
    for name, event, facts in seen:
        told = (name, event, facts)
        if event in ("socket.__new__", "socket.gethostname"):
            continue  # judged by what is done with it
        if name == "web":
            near = facts[0] == "AF_UNIX" or "127.0.0.1" in facts[-1] or "127.0.0.1" in facts[0]
            assert (near and event != "socket.connect") or engine_socket in facts[-1], told
        elif name == "serve":
            assert event == "socket.bind" and f"('127.0.0.1', {said['port']})" in facts[-1], told
        else:
            assert facts[0] == "AF_UNIX" and event in ("socket.bind", "socket.connect"), told
    kinds = {facts[1] for name, event, facts in seen if name in ("engine", "worker") and event == "socket.__new__"}
    assert all(re.search(r"AF_UNIX|^-1$|^1$", kind) for kind in kinds), f"sockets of other families: {kinds}"
    assert any(name == "web" and event == "socket.connect" and engine_socket in facts[-1] for name, event, facts in seen)


def alone() -> list[str]:
    """The words before a command that take the network away but for its own loopback; none where the system forbids that."""
    words = without_network()
    tried = subprocess.run([*words, sys.executable, "-c", LOOPBACK_UP], capture_output=True, check=False) if words else None
    return words if tried is not None and tried.returncode == 0 else []


@pytest.mark.optional
async def test_the_engine_with_all_its_native_code_makes_unix_sockets_only(tmp_path: Path, starter_gguf: Path) -> None:
    strace = ["strace", "-f", "-qq", "--seccomp-bpf", "-e", "trace=network", "-o", str(tmp_path / "calls")]
    if not shutil.which("strace") or subprocess.run([*strace, "true"], capture_output=True, check=False).returncode:
        pytest.skip("strace is not installed, or may not trace here")
    settings = prepare(tmp_path / "h", starter_gguf)
    command = [*strace, sys.executable, "-m", "appliance", "--home", str(settings.home), "engine"]
    with subprocess.Popen([*alone(), *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        client = OpenAICompatible(partial(network.socket_client, settings.engine_socket))
        try:
            ends = time.monotonic() + 120
            while not (await client.health()).ok:
                assert process.poll() is None and time.monotonic() < ends
                await asyncio.sleep(0.2)
            answer = [
                chunk async for chunk in client.generate(Request([Message("user", "What is a fraction?")], max_tokens=20))
            ]
            assert answer[-1].finish and (await client.embed(["A fraction"])).shape == (1, 384)
            await client.load("class")
            await client.metrics()
        finally:
            await client.close()
            # Not strace itself: it would let its child run on.
            for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
                os.kill(int(child), signal.SIGTERM)
            assert process.stderr
            said = process.stderr.read()
    calls = (tmp_path / "calls").read_text()
    assert re.search(r"bind\(\d+, \{sa_family=AF_UNIX, sun_path=.*engine\.sock", calls), said
    families = set(re.findall(r"\bsocket(?:pair)?\((\w+)", calls))
    assert families == {"AF_UNIX"}, families
    reached = {line for line in calls.splitlines() if re.search(r"\b(connect|sendto|sendmsg)\(.*sa_family=(?!AF_UNIX)", line)}
    assert not reached, reached
