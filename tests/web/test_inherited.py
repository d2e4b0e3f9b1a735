"""Behind the box's proxy: the web process serves on a socket that it was handed, and has no other."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest


def handed_over(listener: socket.socket, home: Path) -> list[str]:
    """The web process with a listening socket as its descriptor 3, as systemd would start it."""
    script = f'export LISTEN_PID=$$ LISTEN_FDS=1; exec "$@" 3<&{listener.fileno()}'
    return ["bash", "-c", script, "web", sys.executable, "-m", "appliance", "--home", str(home), "web"]


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client in the place of the proxy."""
    folder = tmp_path_factory.mktemp("inherited")
    path = folder / "web.sock"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen(64)
    with open(folder / "log", "wb") as log:
        words = handed_over(listener, folder / "home")
        child = subprocess.Popen(words, stdout=log, stderr=log, pass_fds=(listener.fileno(),))
    listener.close()  # requests wait in it until the child takes them
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://box", timeout=60) as client:
        yield client
    child.terminate()
    assert child.wait(30) == 0
    assert b"One-time code" not in (folder / "log").read_bytes(), "a code that makes an administrator stands in no log"


def told(host: str, proto: str = "https") -> dict[str, str]:
    return {"host": host, "x-forwarded-proto": proto, "x-forwarded-for": "192.168.7.9"}


def test_a_request_waits_for_the_process_and_is_answered(behind: httpx.Client) -> None:
    assert behind.get("/health", headers=told("localhost")).status_code == 200


def test_what_the_proxy_says_of_the_scheme_is_believed(behind: httpx.Client) -> None:
    cookies = behind.get("/", headers=told("localhost"), follow_redirects=True).headers.get_list("set-cookie")
    assert cookies and all("secure" in one.lower() for one in cookies)


@pytest.mark.parametrize(
    ("host", "code"), [("192.168.7.2", 200), ("10.0.0.4:443", 200), ("[fd00::2]", 200), ("evil.example", 400)]
)
def test_any_address_of_the_box_will_do_and_no_foreign_name(behind: httpx.Client, host: str, code: int) -> None:
    answer = behind.get("/health", headers=told(host))
    assert answer.status_code == code or (code == 400 and 400 <= answer.status_code < 500)


def test_a_socket_that_is_no_unix_socket_is_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        words = handed_over(listener, tmp_path / "home")
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False, pass_fds=(listener.fileno(),))
    assert done.returncode == 1 and "no Unix socket" in done.stderr
