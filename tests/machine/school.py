"""A school around a booted box: the stick with its bundle, the disk for backups, and a device of the LAN with a browser."""

from __future__ import annotations

import json
import re
import ssl
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass
from http.cookiejar import CookieJar
from pathlib import Path

from tests.machine.booted import Box


@dataclass
class School:
    """What the tests of this file share, in their order: one box, and what became of it."""

    box: Box
    stick: Path
    bundle: Path
    key: Path
    paper: str = ""  # the recovery key of its backups

    def install(self, bundle: Path | None = None, options: str = "--yes --selftest 5") -> tuple[int, str]:
        name = (bundle or self.bundle).name
        return self.box.code(f"/mnt/stick/{name}/install {options}")


class Browser:
    """A device of the LAN that trusts the box's authority (or another: its certificate, `root`) and nothing else."""

    def __init__(self, box: Box, root: str = "") -> None:
        own = "/var/lib/caddy/.local/share/caddy/pki/authorities/local/root.crt"
        self._context = ssl.create_default_context(cadata=root or box.run(f"cat {own}"))
        self._jar, self._host = CookieJar(), box.address

    def ask(self, path: str, form: dict[str, str] | None = None) -> tuple[int, str]:
        handlers = (
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=self._context),
            urllib.request.HTTPCookieProcessor(self._jar),
        )  # fmt: skip
        data = None if form is None else urllib.parse.urlencode(form).encode()
        request = urllib.request.Request(f"https://{self._host}{path}", data)
        if form is not None:
            request.add_header("Origin", f"https://{self._host}")
        try:
            with urllib.request.build_opener(*handlers).open(request, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def answer(self, key: str, question: str) -> tuple[str, float]:
        """What a program of the LAN is answered, and the seconds that took."""
        body = json.dumps({"model": "default", "messages": [{"role": "user", "content": question}]}).encode()
        about = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"https://{self._host}/v1/chat/completions", body, about)
        handlers = (urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=self._context))
        began = time.monotonic()
        with urllib.request.build_opener(*handlers).open(request, timeout=60) as answer:
            said = json.loads(answer.read())
        return str(said["choices"][0]["message"]["content"]), time.monotonic() - began


def ready(box: Box, seconds: float = 90, root: str = "") -> float:
    """Seconds until the pages can answer."""
    began = time.monotonic()
    browser = None
    while True:
        try:
            browser = browser or Browser(box, root)
            if browser.ask("/ready")[0] == 200:
                return time.monotonic() - began
        except (OSError, AssertionError):
            pass
        assert time.monotonic() - began < seconds, box.run("journalctl -n 60 --no-pager", check=False)
        time.sleep(0.3)


def token(page: str) -> str:
    found = re.search(r'name="csrf" value="([^"]+)"', page)
    return found[1] if found else ""
