"""Who is here, in a real browser: the teacher's page follows its pupils by itself, and rests while nobody looks at it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from appliance.accounts import People
from appliance.classes import Classes
from appliance.db import Database
from tests.web.conftest import PASSWORD
from tests.web.test_browser import ABORTED, browser
from tests.web.test_people_browser import sign_in
from tests.web.test_server import serving, token
from tests.web.test_talks_browser import until
from tests.web.wire import Wire

__all__ = ["browser"]
pytestmark = pytest.mark.browser

EVERY = 20  # seconds, as the page says


class Lesson:
    """7B with its teacher, Ms Brown, and Ann and Ben, on a served box behind a wire."""

    def __init__(self, home: Path, stack: ExitStack) -> None:
        database = Database(home / "appliance.sqlite3")
        stack.callback(database.close)
        self.address, _, _ = stack.enter_context(serving(home))
        self.wire = Wire(int(self.address.rpartition(":")[2]))
        stack.callback(self.wire.close)
        people, self.classes = People(database), Classes(database)
        self.id = self.classes.add("7B").id
        for name, role in (("brown", "teacher"), ("ann", "pupil"), ("ben", "pupil")):
            person, _ = people.add(name, role, password=PASSWORD, full_name=f"{name.title()} O'Hara")
            people.join(person.id, self.id, teaches=role == "teacher")
        people.add("head", "administrator", password=PASSWORD)
        self._came: list[httpx.Client] = []

    def comes(self, name: str) -> httpx.Client:
        """A pupil who signs in on a machine of their own."""
        client = httpx.Client(base_url=self.address, headers={"accept": "text/html"})
        self._came.append(client)
        form = {"csrf": token(client), "name": name, "password": PASSWORD}
        assert client.post("/sign-in", data=form).status_code == 303
        client.headers["x-csrf-token"] = token(client, "/chat")
        return client

    def all_go(self) -> None:
        while self._came:
            client = self._came.pop()
            client.post("/sign-out")
            client.close()


@pytest.fixture(scope="module")
def lesson(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lesson]:
    with ExitStack() as stack:
        yield Lesson(tmp_path_factory.mktemp("here") / "home", stack)


@pytest.fixture
def page(browser: Any, lesson: Lesson) -> Iterator[Any]:
    """The class's page, whose clock the test moves; `asked` holds each time that it looked again."""
    page = browser.new_context().new_page()
    page.clock.install()
    trouble: list[str] = []
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.asked = []
    page.on("response", lambda sent: page.asked.append(sent.url) if sent.url.endswith("/here") else None)
    page.on("requestfailed", lambda sent: page.asked.append(sent.url) if sent.url.endswith("/here") else None)
    sign_in(page, lesson.wire.address, "brown", PASSWORD)
    page.wait_for_url("**/chat")
    page.goto(f"{lesson.wire.address}/classes/{lesson.id}")
    page.clock.pause_at(datetime.fromtimestamp(page.evaluate("Date.now()") / 1000 + 0.1, UTC))
    yield page
    page.context.close()
    lesson.all_go()
    assert [one for one in trouble if ABORTED not in one] == []


def look_again(page: Any, expect: bool = True) -> None:
    """Twenty seconds go by; `expect` False: without a look."""
    before = len(page.asked)
    page.clock.fast_forward(EVERY * 1000)
    if expect:
        until(page, lambda: len(page.asked) == before + 1)


def here(page: Any) -> list[str]:
    return list(page.locator("#here li").all_inner_texts())


def test_a_teachers_page_follows_who_comes_asks_and_goes(page: Any, lesson: Lesson) -> None:
    assert "0 of 2 pupils are signed in now." in page.locator("#here").inner_text() and here(page) == []
    ann = lesson.comes("ann")
    assert here(page) == [], "not before its time"
    look_again(page)
    page.wait_for_selector("#here li >> text=Ann O'Hara")
    ben = lesson.comes("ben")
    ben.post("/chat/ask", data={"question": "CANARY, why are leaves green?"})
    look_again(page)
    page.wait_for_selector("text=1 pupil has asked in this lesson, 1 question in all.")
    assert here(page) == ["Ann O'Hara", "Ben O'Hara"] and "CANARY" not in page.content()
    ann.post("/sign-out")
    look_again(page)
    until(page, lambda: here(page) == ["Ben O'Hara"])
    now = " ".join(page.locator("#here").inner_text().split())
    page.reload()
    assert " ".join(page.locator("#here").inner_text().split()) == now, "a reload shows the same"
    lesson.classes.close(lesson.id)
    look_again(page)
    until(page, lambda: page.locator("#here").text_content().strip() == "")
    lesson.classes.open(lesson.id)
    look_again(page)
    page.wait_for_selector("text=Who is here")


def test_nothing_is_moved_under_a_reader_while_nothing_changes(page: Any, lesson: Lesson) -> None:
    lesson.comes("ann")
    look_again(page)
    page.wait_for_selector("#here li >> text=Ann O'Hara")
    page.evaluate("document.querySelector('#here li').seen = true")
    page.fill("#lesson", "What I was about to type")
    look_again(page)
    look_again(page)
    assert page.evaluate("document.querySelector('#here li').seen") is True, "the same words are not written again"
    assert page.input_value("#lesson") == "What I was about to type"
    assert page.evaluate("document.activeElement.id") == "lesson"


def test_it_rests_while_nobody_looks_and_goes_on_after(page: Any, lesson: Lesson) -> None:
    hide = "hidden => Object.defineProperty(document, 'hidden', {value: hidden, configurable: true})"
    page.evaluate(hide, True)
    lesson.comes("ann")
    for _ in range(3):
        look_again(page, expect=False)
    page.evaluate(hide, False)
    assert here(page) == []
    look_again(page)
    page.wait_for_selector("#here li >> text=Ann O'Hara")
    assert len(page.asked) == 1, "a page that nobody looks at asks nothing"


def test_without_the_box_and_after_a_sign_out_what_is_shown_stays(page: Any, lesson: Lesson) -> None:
    lesson.comes("ann")
    look_again(page)
    page.wait_for_selector("#here li >> text=Ann O'Hara")
    lesson.wire.cut()
    look_again(page)
    assert here(page) == ["Ann O'Hara"]
    lesson.wire.mend()
    lesson.comes("ben")
    look_again(page)
    page.wait_for_selector("#here li >> text=Ben O'Hara")
    page.context.clear_cookies()
    look_again(page)
    assert here(page) == ["Ann O'Hara", "Ben O'Hara"] and page.url.endswith(lesson.id)
