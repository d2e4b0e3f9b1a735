"""Conversations in a real browser: a cut wire, a killed server, two tabs, versions, feedback, print, and no script at all."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from appliance.db import Database
from appliance.tables import turns
from tests.web.box import ANSWER
from tests.web.conftest import NAME, PASSWORD
from tests.web.test_browser import ARGUMENTS as ARGUMENTS
from tests.web.test_browser import QUESTION, ask, browser, done  # noqa: F401 - a fixture
from tests.web.test_server import serving
from tests.web.wire import Wire

pytestmark = pytest.mark.browser

SAID = ANSWER.replace(" [9]", "").replace("[1]", "1").replace("[2]", "2").replace("**", "")


class Box:
    """A served box behind a wire; it can be killed and started again, and the browser finds it where it was."""

    def __init__(self, home: Path, stack: ExitStack) -> None:
        self._home, self._stack = home, stack
        self.code = ""
        self.wire = Wire(self._serve())
        stack.callback(self.wire.close)

    def _serve(self) -> int:
        address, code, self._process = self._stack.enter_context(serving(self._home, "0.08"))
        self.code = self.code or code
        return int(address.rpartition(":")[2])

    def on_disk(self) -> str:
        """What is stored of the answer that is being written."""
        database = Database(self._home / "appliance.sqlite3")
        with database.read() as connection:
            text = connection.scalar(sa.select(turns.c.text).where(turns.c.state == "streaming"))
        database.close()
        return text or ""

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def start(self) -> None:
        self.wire.mend(self._serve())


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory, browser: Any) -> Iterator[Box]:  # noqa: F811
    with ExitStack() as stack:
        box = Box(tmp_path_factory.mktemp("talks") / "home", stack)
        page = browser.new_page()
        page.goto(box.wire.address)
        for field, words in (("code", box.code), ("name", NAME), ("password", PASSWORD)):
            page.fill(f"#{field}", words)
        page.click("button.main")
        page.wait_for_url("**/chat")
        page.context.close()
        yield box


@pytest.fixture
def context(browser: Any, box: Box) -> Iterator[Any]:  # noqa: F811
    context = browser.new_context(viewport={"width": 390, "height": 844})
    sign_in(context.new_page(), box)
    yield context
    context.close()


@pytest.fixture
def page(context: Any) -> Any:
    return context.pages[0]


def sign_in(page: Any, box: Box) -> None:
    page.goto(box.wire.address)
    page.fill("#name", NAME)
    page.fill("#password", PASSWORD)
    page.click("button.main")
    page.wait_for_url("**/chat")


def until(page: Any, true: Callable[[], bool]) -> None:
    """The content policy forbids Playwright's own waiting for an expression."""
    for _ in range(1500):
        if true():
            return
        page.wait_for_timeout(20)
    raise AssertionError("it did not come to that")


def answers(page: Any) -> list[str]:
    return [" ".join(text.split()) for text in page.locator(".answer .prose").all_inner_texts()]


# --- what goes wrong in mid-answer -----------------------------------------------------------------------------------
def test_a_cut_wire_in_mid_answer_costs_no_word_and_says_none_twice(page: Any, box: Box) -> None:
    page.evaluate(RECORD)
    ask(page)
    until(page, lambda: page.locator(".writing").inner_text().count(" ") > 4)
    box.wire.cut()
    page.wait_for_selector("text=The connection was lost. Trying again.")
    box.wire.mend()
    done(page)
    assert answers(page) == [SAID]
    seen = page.evaluate("window.seen")
    assert "You are number 2 in line. About 1 second." in seen and "Found 2 passages. Writing." in seen
    grown = page.evaluate("window.grown")
    assert all(after.startswith(text) for text, after in itertools.pairwise(grown)), "nothing was written twice"


def test_a_killed_server_leaves_what_was_written_and_one_click_asks_again(page: Any, box: Box) -> None:
    ask(page)
    until(page, lambda: len(page.locator(".writing").inner_text()) > 12)
    until(page, lambda: "Leaves look" in box.on_disk())
    box.kill()
    page.wait_for_selector("text=The connection was lost. Trying again.")
    box.start()
    page.wait_for_selector(".answer[data-state=failed]")
    assert page.locator(".ended strong").inner_text() == "The box stopped while it wrote this answer."
    assert answers(page)[0].startswith("Leaves look")
    page.get_by_role("button", name="Ask again").click()
    done(page)
    assert answers(page) == [SAID] and "Answer 2 of 2" in page.locator(".versions").inner_text()
    page.reload()
    assert answers(page) == [SAID]


def test_two_tabs_see_one_talk(context: Any, page: Any) -> None:
    ask(page)
    done(page)
    other = context.new_page()
    other.goto(page.url)
    ask(other, "And in autumn, the leaves?")
    other.wait_for_selector(".answer[data-state=streaming]")
    page.fill("#question", "From the first tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=The last answer in this chat is not finished.")
    assert page.locator("#question").input_value() == "From the first tab", "it is kept until it can be asked"
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.wait_for_selector("text=And in autumn, the leaves?")
    done(page, 2)
    done(other, 2)
    page.click("#send")
    done(page, 3)
    ask(other, "From the second tab, which has not seen the first one's")
    done(other, 4)
    assert other.locator(".said").all_inner_texts() == [
        QUESTION, "And in autumn, the leaves?", "From the first tab", "From the second tab, which has not seen the first one's",
    ]  # fmt: skip


def test_a_megabyte_is_refused_and_stays_in_the_box(page: Any) -> None:
    for letter, length in (("x", 1_000_000), ("é", 700_000)):
        page.evaluate(
            "([letter, length]) => { document.getElementById('question').value = letter.repeat(length) }", [letter, length]
        )
        page.evaluate("document.getElementById('ask').requestSubmit()")
        page.wait_for_selector("#fault .fault")
        assert "sent at once" in page.locator("#fault").inner_text()
        assert page.evaluate("document.getElementById('question').value.length") == length
        page.evaluate("document.getElementById('fault').replaceChildren()")


# --- versions, feedback ----------------------------------------------------------------------------------------------
def test_versions_by_keyboard_alone(page: Any) -> None:
    ask(page)
    done(page)
    press(page, "Another answer")
    page.wait_for_selector("text=Answer 2 of 2")
    done(page)
    press(page, "Previous answer")
    page.wait_for_selector("text=Answer 1 of 2")
    page.locator(".edit summary").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Control+A")
    page.keyboard.type("Why do leaves fall?")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Question 2 of 2")
    done(page)
    assert page.locator(".said").all_inner_texts() == ["Why do leaves fall?"]
    press(page, "Previous question")
    page.wait_for_selector("text=Answer 2 of 2")
    assert page.locator(".said").all_inner_texts() == [QUESTION]


def press(page: Any, name: str, **how: Any) -> None:
    page.get_by_role("button", name=name, **how).focus()
    page.keyboard.press("Enter")


def test_feedback_keeps_the_page_and_the_focus(page: Any) -> None:
    ask(page)
    done(page)
    here = page.url
    press(page, "No", exact=True)
    page.wait_for_selector(".thumbs [aria-pressed=true]")
    assert page.evaluate("document.activeElement.textContent") == "No" and page.url == here
    assert page.locator("#spoken").inner_text() == "Saved."
    page.get_by_label("It is wrong").check()
    page.get_by_label("A better answer").fill("Which light does a leaf take in?")
    page.get_by_label("May be used for training").check()
    press(page, "Save")
    page.wait_for_selector(".feedback details:not([open])")
    assert page.evaluate("document.activeElement.matches('summary')")
    page.reload()
    page.locator(".feedback summary").click()
    assert page.get_by_label("It is wrong").is_checked() and page.get_by_label("May be used for training").is_checked()
    assert page.get_by_label("A better answer").input_value() == "Which light does a leaf take in?"
    page.get_by_label("In your own words").fill("w" * 501)
    press(page, "Save")
    page.wait_for_selector("text=That is 501 characters")
    assert page.get_by_label("In your own words").input_value() == "w" * 501


# --- looks -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_and_nothing_is_wider_than_the_page(page: Any, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page.emulate_media(color_scheme=scheme)
    ask(page, "leaves " + "w" * 200)
    done(page)
    press(page, "Another answer")
    page.wait_for_selector("text=Answer 2 of 2")
    done(page)
    here = page.url
    for width in (390, 320):
        page.set_viewport_size({"width": width, "height": 740})
        for path in (here, here.split("/chat")[0] + "/chats?q=leaves", here.split("/chat")[0] + "/chats"):
            page.goto(path)
            page.evaluate("document.querySelectorAll('main details').forEach((one) => { one.open = true })")
            assert page.evaluate("document.documentElement.scrollWidth") <= width, path
            found = Axe().run(
                page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
            )
            assert found.violations_count == 0, found.generate_report()


def test_a_printed_chat_holds_what_was_said_and_no_buttons(page: Any, tmp_path: Path) -> None:
    import pypdfium2

    page.emulate_media(color_scheme="dark")
    ask(page)
    done(page)
    page.pdf(path=tmp_path / "chat.pdf", format="A4")
    document = pypdfium2.PdfDocument(tmp_path / "chat.pdf")
    text = "\n".join(sheet.get_textpage().get_text_bounded() for sheet in document)
    corner = document[0].render().to_pil().convert("RGB").getpixel((5, 5))
    document.close()
    assert QUESTION in text and "Leaves look green" in text and "[1]" in text and "Photosynthesis" in text
    assert not any(word in text for word in ("Useful?", "Write a question", "New chat", "Edit", "Another answer", "Sign out"))
    assert corner == (255, 255, 255), "dark pages are printed on white paper"


def test_a_copy_comes_as_a_file_and_the_printer_is_asked(page: Any) -> None:
    ask(page)
    done(page)
    page.evaluate("window.print = () => { window.printed = true }")
    page.locator(".more summary").focus()
    page.keyboard.press("Enter")
    for name, ending, holds in (("As text", ".md", "Leaves look **green**"), ("As data", ".json", '"role": "assistant"')):
        with page.expect_download() as coming:
            page.get_by_role("link", name=name).click()
        assert coming.value.suggested_filename == f"Why are leaves green{ending}"
        assert holds in Path(coming.value.path()).read_text("utf-8")
    press(page, "Print, or save as PDF")
    assert page.evaluate("window.printed") is True


def test_all_of_it_without_script(browser: Any, box: Box) -> None:  # noqa: F811
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    sign_in(page, box)
    page.fill("#question", QUESTION)
    page.click("#send")
    page.wait_for_selector(".answer[data-state=done]")  # the page loads itself again until it is there
    page.click("text=Another answer")
    page.wait_for_selector("text=Answer 2 of 2")
    page.wait_for_selector(".answer[data-state=done]")
    page.click("[aria-label='Previous answer']")
    page.wait_for_selector("text=Answer 1 of 2")
    page.click(".thumbs >> text=Yes")
    page.wait_for_selector(".thumbs [aria-pressed=true]")
    page.click(".more summary")
    page.fill("#folder", "Science")
    page.click("text=Move")
    page.wait_for_selector(".side h2 >> text=Science")
    page.click(".more summary")
    page.click("text=Delete this chat")
    page.click("text=Undo")
    page.wait_for_selector("text=Answer 1 of 2")
    context.close()


# Every sentence of the status line, and what the answer looked like after each change of it.
RECORD = """() => {
  window.seen = []; window.grown = [];
  new MutationObserver(() => {
    const status = document.querySelector('.status')?.textContent, words = document.querySelector('.writing')?.textContent;
    if (status && window.seen.at(-1) !== status) window.seen.push(status);
    if (words && window.grown.at(-1) !== words) window.grown.push(words);
  }).observe(document.body, { subtree: true, childList: true, characterData: true });
}"""
