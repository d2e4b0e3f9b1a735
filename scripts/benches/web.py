"""The pages, measured: first paint, thirty people who chat, idle pages, sign-ins. Prints a table and writes web.md beside it.

The box is `appliance web` and `appliance engine` as a school runs them, on a home folder of its own that is thrown away. Only
the model is pretended (`backend = "fake"`): it says one word each twentieth of a second, and in each word the time at which it
was said, so that the delay of a word is what the box added. The people are made in the database; they ask like anybody.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from main import APPLIANCE, appliance, machine, ready_handler, resident_mb

PASSWORD = "three old green bicycles"
LESSON = "Why are leaves green? "
WORDS = 200  # of an answer: ten seconds
THINKS = 2.0  # seconds between an answer and the next question
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--no-first-run"]
Row = tuple[str, str, str, str]


# --- the box ---------------------------------------------------------------------------------------------------------
@dataclass
class Box:
    port: int
    web: int
    engine: int


@contextmanager
def serving(home: Path, port: int) -> Iterator[Box]:
    environment = {**os.environ, "APPLIANCE_BACKEND": "fake", "APPLIANCE_ANSWER_TOKENS": "1000"}
    common = [APPLIANCE, "--home", str(home)]
    log = (home / "bench.log").open("wb")
    processes = [
        subprocess.Popen([*common, name, *more], env=environment, stdout=log, stderr=log)
        for name, more in (("engine", []), ("web", ["--port", str(port)]))
    ]
    try:
        ends = time.monotonic() + 180
        while ready_handler(port) != "fake":
            if time.monotonic() > ends or any(process.poll() is not None for process in processes):
                raise SystemExit(f"the box did not become ready:\n{(home / 'bench.log').read_text()[-2000:]}")
            time.sleep(0.2)
        yield Box(port, processes[1].pid, processes[0].pid)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
        log.close()


def make_people(home: Path, count: int) -> list[str]:
    """Pupils with one password, as an import of the school's list leaves them."""
    from appliance.accounts import People
    from appliance.app import Appliance
    from appliance.settings import Settings

    box = Appliance.open(Settings(home=home))
    people = People(box.database)
    names = [f"pupil{number:03}" for number in range(count)]
    for name in names:
        people.add(name, "pupil", password=PASSWORD)
    people.add("head", "administrator", password=PASSWORD)
    box.database.close()
    return names


# --- a browser with as little in it as possible: its own work must not be measured ------------------------------------
class Visitor:
    """One person's connection and cookies."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.cookies: dict[str, str] = {}
        self.token = ""
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def send(self, method: str, path: str, form: dict[str, str] | None = None, accept: str = "text/html") -> None:
        if self._writer is None or self._writer.is_closing():
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20)
        body = urllib.parse.urlencode(form or {})
        head = [
            f"{method} {path} HTTP/1.1",
            f"Host: localhost:{self.port}",
            f"Accept: {accept}",
            f"Content-Length: {len(body)}",
        ]
        if self.cookies:
            head.append("Cookie: " + "; ".join(f"{name}={value}" for name, value in self.cookies.items()))
        if form is not None:
            head += ["Content-Type: application/x-www-form-urlencoded", f"X-CSRF-Token: {self.token}"]
        self._writer.write("\r\n".join([*head, "", body]).encode())
        await self._writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        assert self._reader is not None
        status = int((await self._reader.readline()).split()[1])
        headers: dict[str, str] = {}
        while (line := (await self._reader.readline()).decode("latin-1").strip()) != "":
            name, _, value = line.partition(": ")
            if name.lower() == "set-cookie":
                name, _, value = value.split(";")[0].partition("=")
                self.cookies[name] = value
            else:
                headers[name.lower()] = value
        return status, headers

    async def lines(self) -> Any:
        """The lines of a chunked body, each as soon as it is there."""
        assert self._reader is not None
        rest = b""
        while size := int((await self._reader.readline()) or b"0", 16):
            rest += await self._reader.readexactly(size)
            await self._reader.readline()
            *whole, rest = rest.split(b"\n")
            for line in whole:
                yield line
        await self._reader.readline()

    async def ask(
        self, method: str, path: str, form: dict[str, str] | None = None, accept: str = "text/html"
    ) -> tuple[int, bytes]:
        await self.send(method, path, form, accept)
        status, headers = await self.head()
        assert self._reader is not None
        if "content-length" in headers:
            return status, await self._reader.readexactly(int(headers["content-length"]))
        return status, b"\n".join([line async for line in self.lines()])

    async def sign_in(self, name: str) -> None:
        _, page = await self.ask("GET", "/")
        self.token = _token(page)
        status, _ = await self.ask("POST", "/sign-in", {"name": name, "password": PASSWORD, "csrf": self.token})
        if status != 303:
            raise SystemExit(f"{name} could not sign in: {status}")
        _, page = await self.ask("GET", "/chat")
        self.token = _token(page)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _token(page: bytes) -> str:
    found = re.search(rb'name="csrf" value="([^"]+)"', page)
    return found[1].decode() if found else ""


# --- thirty people chat ----------------------------------------------------------------------------------------------
@dataclass
class Told:
    answers: int = 0
    errors: list[str] = field(default_factory=list)
    delays: list[float] = field(default_factory=list)  # seconds, of each word
    firsts: list[float] = field(default_factory=list)  # from the question to the first word
    lags: list[float] = field(default_factory=list)  # what a mere timer of this bench was late: the machine's own share


async def chat(person: Visitor, ends: float, told: Told) -> None:
    while time.monotonic() < ends:
        try:
            await one_answer(person, told)
        except (OSError, ValueError, KeyError, asyncio.IncompleteReadError) as error:
            told.errors.append(type(error).__name__)
            person.close()
        await asyncio.sleep(THINKS)


async def watch(box: Box, told: Told, until: float) -> float:
    """The most memory of the web process, in MB; meanwhile how late a timer is that waits as long as a word takes."""
    most = 0.0
    while time.monotonic() < until:
        most = max(most, resident_mb(box.web))
        for _ in range(20):
            began = time.monotonic()
            await asyncio.sleep(0.05)
            told.lags.append(time.monotonic() - began - 0.05)
    return most


async def one_answer(person: Visitor, told: Told) -> None:
    asked = time.time()
    # Each word is a sentence of its own and says so itself: an answer is judged sentence by sentence, and how long a sentence
    # waits for its last word is the model's doing; "now." would wait for the next word's blank.
    question = LESSON + " ".join(["now。"] * WORDS)
    status, body = await person.ask("POST", "/chat/ask", {"question": question, "conversation": ""}, "application/json")
    if status != 200:
        told.errors.append(f"{status} {body[:120]!r}")
        return
    await person.send("GET", f"/chat/stream/{json.loads(body)['turn']}", None, "text/event-stream")
    status, _ = await person.head()
    kind, seen, state = b"", 0, ""
    async for line in person.lines():
        now = time.time()
        if line.startswith(b"event: "):
            kind = line[7:]
        elif line.startswith(b"data: ") and kind == b"text":
            stamps = [float(stamp) for stamp in re.findall(rb"\d{10}\.\d{4}", line)]
            told.delays += [now - stamp for stamp in stamps]
            if stamps and not seen:
                told.firsts.append(now - asked)
            seen += len(stamps)
        elif line.startswith(b"data: ") and kind == b"done":
            state = "done" if b'data-state=\\"done\\"' in line else line[:200].decode()
    if status != 200 or state != "done" or seen < WORDS * 0.9:
        told.errors.append(f"{status}, {seen} words, {state}")
    told.answers += 1


async def crowd(box: Box, names: list[str], minutes: float) -> tuple[Told, float]:
    """What thirty people were told, and the most memory of the web process meanwhile."""
    people = [Visitor(box.port) for _ in names]
    await asyncio.gather(*(person.sign_in(name) for person, name in zip(people, names, strict=True)))
    told = Told()
    ends = time.monotonic() + 60 * minutes
    most, *_ = await asyncio.gather(watch(box, told, ends), *(chat(person, ends, told) for person in people))
    for person in people:
        person.close()
    return told, most


async def crowd_rows(box: Box, names: list[str], minutes: float) -> list[Row]:
    told, most = await crowd(box, names, minutes)
    delays = sorted(told.delays)
    late = 1000 * delays[int(0.95 * len(delays))] if delays else float("nan")
    middle = 1000 * statistics.median(delays) if delays else float("nan")
    timer = sorted(told.lags)[int(0.95 * len(told.lags))]
    how = f"{told.answers} answers of {WORDS} words at 20 a second, {minutes:g} minutes"
    return [
        (f"{len(names)} people chat: errors", str(len(told.errors)), "0", "; ".join([how, *told.errors[:2]])),
        (
            "added delay of a sentence, p95",
            f"{late:.1f} ms",
            "under 30 ms",
            f"median {middle:.1f} ms, slowest {1000 * delays[-1]:.0f} ms; a mere timer was late by {1000 * timer:.1f} ms, p95",
        ),
        (
            "first word",
            f"{statistics.median(told.firsts):.2f} s",
            "",
            f"median; slowest {max(told.firsts):.2f} s, search included",
        ),
        (
            "web process while they chat",
            f"{most:.0f} MB",
            "under 250 MB",
            f"most; engine with its embedder {resident_mb(box.engine):.0f} MB",
        ),
    ]


# --- idle pages, sign-ins, first paint --------------------------------------------------------------------------------
async def idle_row(box: Box, names: list[str], count: int = 300) -> Row:
    """Open pages whose connections are kept, and what another person waits for meanwhile."""
    people = [Visitor(box.port) for _ in range(count)]
    first = [Visitor(box.port) for _ in names]
    await asyncio.gather(*(person.sign_in(name) for person, name in zip(first, names, strict=True)))
    for number, person in enumerate(people):
        person.cookies = dict(first[number % len(first)].cookies)
        status, _ = await person.ask("GET", "/chat")
        if status != 200:
            raise SystemExit(f"an idle page was answered {status}")
    most, waits = resident_mb(box.web), []
    for _ in range(20):
        began = time.perf_counter()
        await first[0].ask("GET", "/health")
        waits.append(time.perf_counter() - began)
        most = max(most, resident_mb(box.web))
        await asyncio.sleep(0.2)
    for person in [*people, *first]:
        person.close()
    how = f"/health answers in {1000 * statistics.median(waits):.1f} ms meanwhile"
    return f"{count} idle open pages", f"{most:.0f} MB", "under 250 MB", how


async def sign_in_row(box: Box, names: list[str], seconds: float = 10.0) -> Row:
    done, ends = 0, time.monotonic() + seconds

    async def again(name: str) -> None:
        nonlocal done
        visitor = Visitor(box.port)
        _, page = await visitor.ask("GET", "/")
        form = {"name": name, "password": PASSWORD, "csrf": _token(page)}
        before = dict(visitor.cookies)
        while time.monotonic() < ends:
            visitor.cookies, visitor.token = dict(before), form["csrf"]
            status, _ = await visitor.ask("POST", "/sign-in", form)
            if status != 303:
                raise SystemExit(f"a sign-in was answered {status}")
            done += 1
        visitor.close()

    began = time.monotonic()
    await asyncio.gather(*(again(name) for name in names[:16]))
    rate = done / (time.monotonic() - began)
    return (
        "sign-ins",
        f"{rate:.0f} a second",
        "20 a second",
        f"{done} in {seconds:.0f} s, 16 people at once, argon2 with 19 MiB",
    )


def paint_rows(box: Box, tries: int = 7) -> Iterator[Row]:
    """What a browser says of `/chat`, with nothing kept from before."""
    chromium = next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
    )
    if chromium is None:
        yield "first paint of /chat", "not measured", "under 300 ms", "Chromium is not installed"
        return
    from playwright.sync_api import sync_playwright

    paints, sizes = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        page = browser.new_page()
        page.goto(f"http://localhost:{box.port}/")
        page.fill("#name", "head")
        page.fill("#password", PASSWORD)
        page.click("button.main")
        page.wait_for_url("**/chat")
        state = page.context.storage_state()
        for _ in range(tries):
            context = browser.new_context(storage_state=state)
            page = context.new_page()
            wire = context.new_cdp_session(page)
            wire.send("Network.enable")
            taken: list[float] = []
            wire.on("Network.loadingFinished", lambda event, taken=taken: taken.append(event["encodedDataLength"]))
            page.goto(f"http://localhost:{box.port}/chat")
            page.wait_for_load_state("networkidle")
            paints.append(page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime"))
            sizes.append(sum(taken))
            context.close()
        browser.close()
    yield (
        "first paint of /chat",
        f"{statistics.median(paints):.0f} ms",
        "under 300 ms",
        f"Chromium, nothing kept, {tries} times; slowest {max(paints):.0f} ms",
    )
    yield (
        "carried over the wire for it",
        f"{max(sizes) / 1000:.1f} kB",
        "under 60 kB",
        "page, style and script, with their headers",
    )


async def rows(work: Path, port: int, minutes: float) -> list[Row]:
    home = work / "home"
    appliance(home, "docs", "add", str(Path(__file__).resolve().parents[2] / "appliance" / "content" / "guides"))
    names = make_people(home, 30)
    with serving(home, port) as box:
        await asyncio.sleep(8)  # the embedder warms up in the background
        found: list[Row] = [("web process before anybody comes", f"{resident_mb(box.web):.0f} MB", "", "")]
        found += await asyncio.to_thread(lambda: list(paint_rows(box)))
        found += await crowd_rows(box, names, minutes)
        found.append(await idle_row(box, names))
        found.append(await sign_in_row(box, names))
        log = (home / "bench.log").read_text("utf-8", "replace")
        faults = [line for line in log.splitlines() if re.search(r"ERROR|Traceback|WARNING", line)]
        found.append(("faults in the log", str(len(faults)), "0", "; ".join(faults[:2])[:200]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long the thirty people chat")
    parser.add_argument("--port", type=int, default=18090)
    parser.add_argument("--note", default="", help="a sentence for the table, such as what else the machine did")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench") as folder, suppress(KeyboardInterrupt):
        found = asyncio.run(rows(Path(folder), options.port, options.minutes))
    load = f"load average {os.getloadavg()[1]:.1f} over the last five minutes. {options.note}".strip()
    lines = ["| what | measured | to reach | how |", "|---|---|---|---|", *(f"| {' | '.join(row)} |" for row in found)]
    text = f"# scripts/bench web\n\n{date.today().isoformat()}, {machine()}, {load}\n\n" + "\n".join(lines) + "\n"
    Path(__file__).with_suffix(".md").write_text(text)
    if options.json:
        keys = ("what", "measured", "to_reach", "how")
        print(json.dumps({"machine": machine(), "load": load, "rows": [dict(zip(keys, row, strict=True)) for row in found]}))
    else:
        print(text)


if __name__ == "__main__":
    main()
