"""The pages in a real browser: first start, a streamed answer, an opened source, on a laptop and on a phone."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.web.conftest import NAME, PASSWORD
from tests.web.test_server import serving

pytestmark = pytest.mark.browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run",
]  # fmt: skip
SIZES = {"laptop": (1280, 800), "phone": (360, 740)}
ABORTED = "net::ERR_FAILED"  # what a test cut off itself
QUESTION = "Why are leaves green?"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        if "browser" in os.environ.get("APPLIANCE_REQUIRE", ""):
            pytest.fail("Chromium is required here and is not installed: apt-get install chromium")
        pytest.skip("Chromium is not installed: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, browser: Any) -> Iterator[str]:
    """A box whose first administrator was made in the browser."""
    with serving(tmp_path_factory.mktemp("box") / "home", "0.03", "starter") as (address, code, _):
        page = browser.new_page()
        page.goto(address)
        for field, words in (("code", code), ("name", NAME), ("password", PASSWORD)):
            page.wait_for_function(f"document.activeElement.id === '{field}'")  # the first field has the focus by itself
            page.keyboard.type(words)
            page.keyboard.press("Tab" if field != "password" else "Enter")
        page.wait_for_url("**/chat")
        page.close()
        yield address


@pytest.fixture(params=SIZES)
def page(request: pytest.FixtureRequest, browser: Any, address: str) -> Iterator[Any]:
    """Signed in. Fails on any script error, refused resource, or request to another origin."""
    width, height = SIZES[request.param]
    context = browser.new_context(viewport={"width": width, "height": height}, has_touch=width < 500)
    page = context.new_page()
    trouble: list[str] = []
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("console", lambda line: trouble.append(line.text) if line.type == "error" and ABORTED not in line.text else None)
    page.on("request", lambda sent: None if sent.url.startswith((address, "data:")) else trouble.append(sent.url))
    page.goto(address)
    page.fill("#name", NAME)
    page.fill("#password", PASSWORD)
    page.click("button.main")
    page.wait_for_url("**/chat")
    yield page
    context.close()
    assert trouble == []


def ask(page: Any, question: str = QUESTION) -> None:
    page.fill("#question", question)
    page.keyboard.press("Enter")


def done(page: Any, answers: int = 1) -> None:
    page.wait_for_selector(f".answer[data-state=done] >> nth={answers - 1}")


def test_ask_read_open_a_source(page: Any, tmp_path: Path) -> None:
    ask(page)
    page.wait_for_selector("#stop:not([hidden])")
    page.wait_for_selector(".lead .cite")
    assert page.locator(".own-title").is_visible() and page.locator("#question").input_value() == ""
    done(page)
    page.screenshot(path=tmp_path / "answer.png")
    assert page.locator(".sources b").first.is_visible() and page.locator(".sources b").first.bounding_box()["width"] > 80
    assert re.search(r"/chat/\w{16}$", page.url) and page.title().startswith(QUESTION)
    assert page.locator("#stop").is_hidden() and page.locator("#send").is_visible()
    cite = page.locator(".cite").first
    cite.click()
    page.wait_for_selector("#source[open] mark.here")
    assert "Chlorophyll" in page.locator("#source mark.here").inner_text()
    page.screenshot(path=tmp_path / "source.png")
    page.keyboard.press("Escape")
    page.wait_for_selector("#source:not([open])", state="attached")
    assert cite.evaluate("link => link === document.activeElement"), "the focus goes back to where it was"
    page.locator(".sources a").first.click()
    page.click("text=Open the whole document")
    page.wait_for_url("**/passage/12#here")
    assert page.locator("mark.here").is_visible()


def test_that_nothing_covers_it_is_said_first(page: Any) -> None:
    page.evaluate("""() => new MutationObserver(() => {
      const words = document.querySelector('[data-state=streaming] .preface')?.textContent;
      const own = document.querySelector('[data-state=streaming] .starter .writing')?.textContent;
      if (words && own) window.first = words;
    }).observe(document.body, { subtree: true, childList: true, characterData: true })""")
    ask(page, "What is the capital of Peru?")
    done(page)
    assert page.evaluate("window.first").startswith("The school's documents do not cover this."), "while it is written"
    assert page.locator(".preface").inner_text().endswith("Nearest in the library: The water cycle.")
    assert page.locator(".own-title").is_visible() and page.locator(".lead").count() == 0


def test_nothing_is_wider_than_the_page(page: Any) -> None:
    ask(page, "leaves " + "w" * 300)
    done(page)
    here = page.url
    page.set_viewport_size({"width": 320, "height": 600})
    for path in (here, "/chat", "/library", "/keys", "/about", "/passage/12"):
        page.goto(path if path.startswith("http") else here.split("/chat")[0] + path)
        assert page.evaluate("document.documentElement.scrollWidth") <= 320, path


def test_a_phones_header_says_where_one_is(page: Any) -> None:
    phone, where = page.viewport_size["width"] < 500, page.locator(".top .where")
    home, height = page.url.removesuffix("/chat"), page.locator(".top").evaluate("top => top.clientHeight")
    assert where.text_content() == "New chat"
    ask(page, "Why are leaves green, in all the words that a very curious pupil can think of?")
    done(page)
    title = page.locator("#title").inner_text()
    assert where.text_content() == title and title.startswith("Why are leaves green"), "without a reload"
    page.goto(f"{home}/library")
    assert where.text_content() == "Library"
    page.goto(f"{home}/chats")
    page.locator("main a", has_text="Why are leaves green, in all").first.click()
    page.wait_for_url("**/chat/*")
    assert where.text_content() == title and page.locator(".top").evaluate("top => top.clientHeight") == height, "on one line"
    assert where.is_visible() == phone and page.locator(".school").is_visible() != phone
    if phone:
        page.click(".menu summary")
        assert page.locator(".of-school").is_visible()


def test_a_reload_in_mid_answer(page: Any) -> None:
    ask(page)
    page.wait_for_selector(".lead .cite")
    page.reload()
    page.wait_for_selector("#stop:not([hidden]), .answer[data-state=done]")  # a slow reload may find it at its end
    done(page)
    assert "chlorophyll" in page.locator(".starter").inner_text()


def test_stop(page: Any) -> None:
    ask(page)
    page.wait_for_selector(".writing:not(:empty)")
    page.click("#stop button")
    page.wait_for_selector("text=Stopped. What was written until then is kept.")
    assert page.locator("#send").is_visible()


def test_what_is_typed_is_kept(page: Any) -> None:
    page.fill("#question", "A long thought")
    page.reload()
    assert page.locator("#question").input_value() == "A long thought"
    page.route("**/chat/ask", lambda route: route.abort())
    page.evaluate("document.getElementById('ask').requestSubmit()")
    page.wait_for_selector("text=The box cannot be reached.")
    assert page.locator("#question").input_value() == "A long thought"


def test_keyboard_alone(page: Any) -> None:
    assert page.evaluate("document.activeElement.id") == "question"
    page.keyboard.type(QUESTION)
    page.keyboard.press("Shift+Enter")
    page.keyboard.press("Backspace")
    page.keyboard.press("Enter")
    done(page)
    for _ in range(12):
        page.keyboard.press("Shift+Tab")
        if page.evaluate("document.activeElement.matches('.cite, .sources a')"):
            break
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid", "the focus can be seen"
    page.keyboard.press("Enter")
    page.wait_for_selector("#source[open]")
    assert page.evaluate("document.activeElement.id") == "close"


def test_dark_and_light_have_contrast(browser: Any, address: str) -> None:
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme=scheme)
        page.goto(address)
        ratios = page.evaluate(CONTRAST)
        page.close()
        assert min(ratios.values()) >= 4.5, (scheme, ratios)


CONTRAST = """() => {
  const of = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const light = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16) / 255)
    .map((part) => part <= .04045 ? part / 12.92 : ((part + .055) / 1.055) ** 2.4)
    .reduce((sum, part, index) => sum + part * [.2126, .7152, .0722][index], 0);
  const ratio = (a, b) => { const [x, y] = [light(of(a)), light(of(b))].sort().reverse(); return (x + .05) / (y + .05); };
  const pairs = [["ink", "paper"], ["ink", "raised"], ["quiet", "paper"], ["quiet", "raised"], ["quiet", "soft"],
    ["accent", "paper"], ["accent", "soft"], ["on-accent", "accent"], ["ink", "mark"],
    ["ink", "bad-soft"], ["bad", "paper"], ["ink", "good-soft"], ...[..."ksncft"].map((kind) => [`code-${kind}`, "raised"])];
  return Object.fromEntries(pairs.map(([a, b]) => [`${a} on ${b}`, ratio(a, b)]));
}"""
