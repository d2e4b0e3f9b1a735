"""The week of a school, in a real browser on real parts: a roster, a lesson, thirty pupils, a better answer, the next model.

Everything is done through the pages, as people do it; only the thirty pupils at once are plain connections. The model that
serves, the tuning, the judging and the worker are the real ones.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from appliance.settings import PACKAGE
from appliance.tuning.examples import read_examples
from tests.web.test_browser import ARGUMENTS, CHROMIUM

pytestmark = [pytest.mark.llama, pytest.mark.browser, pytest.mark.slow]

APPLIANCE = str(Path(sys.executable).parent / "appliance")
OWN = "correct horse battery"
PUPILS = 30
QUESTION = "How do I change a percentage into a fraction?"
BETTER = "What does per cent mean? Try to write 25 % as a number over 100 first, then tell me what you see."
PATIENCE = 600_000  # milliseconds for what may take long on a busy machine


def feedback(path: Path) -> Path:
    """Examples that the school has reviewed in earlier weeks."""
    rows = [example.row() | {"reviewed": "approved"} for example in read_examples(PACKAGE / "content" / "examples")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:130]), "utf-8")
    return path


@pytest.fixture
def box(tmp_path: Path, starter_gguf: Path) -> Iterator[tuple[str, str]]:
    """(address, one-time code) of `appliance serve` with a week's earlier examples in it."""
    del starter_gguf
    home = tmp_path / "home"
    add = [APPLIANCE, "examples", "import", str(feedback(tmp_path / "earlier.jsonl")), "--home", str(home)]
    add += ["--licence", "CC BY 4.0", "--author", "A. Teacher", "--trust-review"]
    subprocess.run(add, check=True, capture_output=True, timeout=300)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [APPLIANCE, "serve", "--home", str(home), "--port", str(port)]
    given = {"APPLIANCE_SCHOOL": "Hill School", "APPLIANCE_ANSWER_TOKENS": "32"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | given
    ) as process:
        assert process.stdout is not None
        said = ""
        while "Ctrl-C" not in said:
            line = process.stdout.readline()
            assert line, said
            said += line
        code = re.search(r"administrator: ([A-Z0-9-]+)", said)
        assert code, said
        url = f"http://127.0.0.1:{port}"
        while not answers(url):
            assert process.poll() is None, said
            time.sleep(0.2)
        yield url, code[1]
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def answers(url: str) -> bool:
    try:
        return bool(httpx.get(f"{url}/health", timeout=5).status_code == 200)
    except httpx.TransportError:
        return False


@pytest.fixture
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


def enter(browser: Any, url: str) -> Any:
    """A person's own browser, on the first page; anything that a script stumbles over fails the test."""
    page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
    page.set_default_timeout(60_000)
    page.on("pageerror", lambda error: pytest.fail(f"a script failed: {error}"))
    page.goto(url)
    return page


def chapter(tmp_path: Path) -> Path:
    """A chapter of a real book where there is one, else a lesson that comes with the box."""
    book = Path(__file__).resolve().parents[3] / "shared" / "data" / "books" / "prealgebra-ch06.pdf"
    lesson = PACKAGE / "content" / "documents" / "mathematics-percentages.md"
    chosen = book if book.is_file() else lesson
    return Path(shutil.copy(chosen, tmp_path / chosen.name))


def test_the_week_of_a_school(box: tuple[str, str], browser: Any, tmp_path: Path) -> None:
    url, code = box
    head = enter(browser, url)
    for field, words in (("code", code), ("name", "Ms Head"), ("password", OWN)):
        head.fill(f"#{field}", words)
    head.click("button.main")
    head.wait_for_url("**/chat")
    password = imported(head, url, tmp_path)

    teacher = enter(browser, url)
    teacher.fill("#name", "brown")
    teacher.fill("#password", password)
    teacher.click("button.main")
    teacher.wait_for_url("**/me/password")
    for field in ("new", "again"):
        teacher.fill(f"[name={field}]", OWN)
    teacher.click("main button.main")
    teacher.wait_for_url("**/chat")
    lesson = prepared(teacher, url, chapter(tmp_path))

    pupil = enter(browser, f"{url}/class")
    pupil.fill("#code", lesson)
    pupil.click("button.main")
    pupil.click("text=Pupil 01")
    pupil.wait_for_url("**/chat")
    assert "Percentages" in pupil.inner_text("main")
    asked(pupil, QUESTION)
    with ThreadPoolExecutor(1) as apart:  # the browser's own loop runs in this thread
        apart.submit(asyncio.run, thirty(url, lesson)).result()

    corrected(teacher, url)
    new = retrained(head, url)

    # The pupil's page was open all the while: nothing is loaded again.
    asked(pupil, "And what is a percentage of a number?")
    assert new in pupil.locator(".answer .byline").last.inner_text()
    for page in (head, teacher, pupil):
        page.context.close()


def imported(head: Any, url: str, folder: Path) -> str:
    """The administrator takes in the roster; the teacher's first password."""
    roster = folder / "roster.csv"
    pupils = "".join(f"pupil{number:02};Pupil {number:02};pupil;7B\n" for number in range(1, PUPILS + 1))
    roster.write_bytes(("name;full_name;role;classes\nbrown;Mr Brøwn;teacher;7B\n" + pupils).encode("cp1252"))
    head.goto(f"{url}/admin/people/import")
    head.set_input_files("#file", roster)
    head.click("main button.main")
    assert f"{PUPILS + 1} people are new." in head.inner_text("main")
    head.click("text=Make these changes")
    head.wait_for_url("**/admin/people?done=*")
    head.goto(f"{url}/admin/people?role=teacher")
    head.click("text=Make passwords to print")
    found = re.search(r"Password:\s*(\S+)", head.inner_text("main"))
    assert found
    return found[1]


def prepared(teacher: Any, url: str, path: Path) -> str:
    """The teacher says what the lesson is about, gives a chapter, and makes a code for the pupils: the code."""
    teacher.click(".rooms >> text=Classes")
    teacher.click("text=7B")
    teacher.fill("#lesson", "Percentages")
    teacher.click("text=Save the lesson")
    assert "Saved. It holds from the next question on." in teacher.inner_text("main")
    assert teacher.locator("[role=switch]").get_attribute("aria-checked") == "true", "the assistant is open"
    at = teacher.url
    teacher.goto(f"{url}/library/add")
    teacher.set_input_files("#files", path)
    teacher.select_option("#collection", "")
    teacher.fill("#new", "Mathematics 7")
    teacher.select_option("#readers", "class:7B")
    teacher.click("main button.main")
    teacher.wait_for_selector("text=1 document is in the library.", timeout=PATIENCE)  # the page loads itself again
    teacher.goto(at.split("?")[0])
    teacher.click("text=Make a code")
    return str(teacher.inner_text(".board"))


def asked(page: Any, question: str) -> None:
    before = page.locator(".answer").count()
    page.fill("#question", question)
    page.click("#send")
    page.wait_for_function(
        "before => document.querySelectorAll('.answer').length > before"
        " && [...document.querySelectorAll('.answer')].at(-1).dataset.state !== 'streaming'",
        arg=before, timeout=PATIENCE,
    )  # fmt: skip
    answer = page.locator(".answer").last
    assert answer.get_attribute("data-state") == "done", answer.inner_text()


async def thirty(url: str, code: str) -> None:
    """All the others of the class sign in and ask at once, as plain forms; each gets an answer."""

    async def one(number: int) -> str:
        async with httpx.AsyncClient(base_url=url, timeout=120, headers={"accept": "text/html"}, follow_redirects=True) as me:
            page = (await me.get("/class")).text
            page = (await me.post("/class", data={"csrf": token(page), "code": code})).text
            id = re.search(rf'name="pupil" value="(\w+)"><span dir="auto">Pupil {number:02}<', page)
            assert id, page
            page = (await me.post("/class", data={"csrf": token(page), "code": code, "pupil": id[1]})).text
            reply = await me.post("/chat/ask", data={"csrf": token(page), "question": f"{QUESTION} ({number})"})
            while 'data-state="streaming"' in reply.text:
                await asyncio.sleep(0.5)
                reply = await me.get(reply.url)
            assert 'data-state="done"' in reply.text, reply.text
            return str(reply.url)

    addresses = await asyncio.gather(*(one(number) for number in range(2, PUPILS + 1)))
    assert len(set(addresses)) == PUPILS - 1


def token(page: str) -> str:
    found = re.search(r'name="csrf" value="([^"]+)"', page)
    assert found, page
    return found[1]


def corrected(teacher: Any, url: str) -> None:
    """The teacher writes a better answer, allows it for training, and approves it in the review."""
    teacher.goto(f"{url}/chat")
    asked(teacher, QUESTION)
    teacher.click("text=Say why, or write a better answer")
    teacher.fill("textarea[name=better]", BETTER)
    teacher.check("[name=consent]")
    teacher.click("button[name=save]")
    teacher.wait_for_selector("text=Saved.")
    teacher.goto(f"{url}/review")
    assert BETTER in teacher.input_value("#better")
    teacher.click("text=Approve")
    assert "Nothing waits for review" in teacher.inner_text("main")


def retrained(head: Any, url: str) -> str:
    """The administrator looks at the plan and has the next model made: the id of the one that serves then."""
    head.goto(f"{url}/admin/retrain")
    head.click("main button.main")
    head.wait_for_url("**/admin/jobs/*")
    head.wait_for_selector("text=/^(Done|Failed|Stopped)\\./", timeout=PATIENCE)  # the page loads itself again
    assert "Done." in head.inner_text(".facts"), head.inner_text("main")
    head.goto(f"{url}/admin/models")
    serving = head.locator(".models li", has_text="answers now")
    assert "tuned here" in serving.inner_text(), head.inner_text("main")
    return str(serving.locator("code").first.inner_text())
