"""A lesson rehearsed in a real browser, from the scene to a second attempt, on a laptop, on a phone, without a script."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe

from tests.web.conftest import NAME, PASSWORD
from tests.web.test_browser import ABORTED, SIZES, browser
from tests.web.test_server import serving
from tests.web.test_talks_browser import until

__all__ = ["browser"]
pytestmark = pytest.mark.browser

ASKS = "What do you think is more, an eighth or a third? How do you know?"
TELLS = "The answer is a third. That is the rule."


@pytest.fixture(scope="module")
def signed_in(tmp_path_factory: pytest.TempPathFactory, browser: Any) -> Iterator[tuple[str, Any]]:
    """A box, and what a browser keeps of a sign-in there."""
    with serving(tmp_path_factory.mktemp("box") / "home") as (address, code, _):
        page = browser.new_page()
        page.goto(address)
        for field, words in (("code", code), ("name", NAME), ("password", PASSWORD)):
            page.fill(f"#{field}", words)
        page.click("button.main")
        page.wait_for_url("**/chat")
        state = page.context.storage_state()
        page.context.close()
        yield address, state


@pytest.fixture(params=SIZES)
def page(request: pytest.FixtureRequest, browser: Any, signed_in: tuple[str, Any]) -> Iterator[Any]:
    """Fails on any script error, refused resource, or request to another origin."""
    width, height = SIZES[request.param]
    address, state = signed_in
    context = browser.new_context(
        viewport={"width": width, "height": height}, has_touch=width < 500, storage_state=state, base_url=address
    )
    page, trouble = context.new_page(), []
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("console", lambda line: trouble.append(line.text) if line.type == "error" else None)
    page.on("request", lambda sent: None if sent.url.startswith((address, "data:")) else trouble.append(sent.url))
    yield page
    context.close()
    assert [one for one in trouble if ABORTED not in one and "409 (Conflict)" not in one] == []


def begin(page: Any) -> str:
    page.goto("/practice")
    page.click("a[href='/practice/scenes/larger-denominator']")
    page.get_by_role("button", name="Begin").click()
    page.wait_for_url("**/practice/lessons/*")
    return str(page.url)


def say(page: Any, words: str) -> None:
    turns = page.locator(".exchange").count()
    page.fill("#words", words)
    page.keyboard.press("Control+Enter")
    page.locator(".exchange").nth(turns).wait_for()


def shown_whole(page: Any, line: Any) -> bool:
    """Whether a line is on the screen and not behind the form, once the page has scrolled there."""
    box, form = line.bounding_box(), page.locator(".speaking").bounding_box()
    return bool(box["y"] > 0 and box["y"] + box["height"] <= form["y"] + 1)


def looked_at(page: Any) -> None:
    """Nothing that axe finds, and nothing out of the screen."""
    found = [(one["id"], [node["html"][:200] for node in one["nodes"]]) for one in Axe().run(page).response["violations"]]
    assert not found, (page.url, found)
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0, page.url


def test_a_lesson_from_scene_to_feedback_to_a_second_attempt(page: Any) -> None:
    first = begin(page)
    looked_at(page)
    assert page.locator(".band").inner_text().startswith("Practice")
    say(page, ASKS)
    assert page.locator("#words").input_value() == "" and page.url.startswith(first), "without loading the page again"
    assert page.evaluate("document.activeElement.id") == "words"
    lines = page.locator("[data-last] .beat")
    assert " ".join(lines.first.inner_text().split()) in page.locator("#spoken").text_content(), "who listens hears it"
    until(page, lambda: shown_whole(page, lines.first))
    say(page, TELLS)
    looked_at(page)
    page.reload()
    assert page.locator(".exchange").count() == 2
    page.get_by_role("button", name="Finish, read the feedback").click()
    page.wait_for_url("**/feedback")
    looked_at(page)
    assert page.get_by_text("Never a grade of a real pupil, never an employment rating.").is_visible()
    quotes = page.locator("blockquote").all_inner_texts()
    assert any("What do you think is more" in one for one in quotes) and any("That is the rule" in one for one in quotes)
    page.get_by_role("button", name="Try again from here").nth(1).click()
    page.wait_for_url("**/practice/lessons/*#now")
    assert page.url != first and page.locator(".exchange").count() == 1
    say(page, "Amara, show me with the strip. What do you see, and why is that so?")
    page.get_by_role("button", name="Finish, read the feedback").click()
    page.wait_for_url("**/feedback")
    page.get_by_role("link", name="Compare it with this one").first.click()
    page.wait_for_url("**/compare/*")
    looked_at(page)
    assert page.get_by_text("You did more of this than before.").first.is_visible()
    page.goto("/practice/progress")
    looked_at(page)
    assert page.locator("meter").count()


def test_what_is_typed_is_kept_without_a_wire_and_through_a_reload(page: Any) -> None:
    begin(page)
    page.fill("#words", ASKS)
    page.route("**/say", lambda route: route.abort())
    page.click("text=Say it")
    page.get_by_text("The box cannot be reached. Your words are kept; try again.").wait_for()
    assert page.locator("#words").input_value() == ASKS
    page.unroute("**/say")
    page.reload()
    assert page.locator("#words").input_value() == ASKS
    page.click("text=Say it")
    page.locator(".exchange").wait_for()
    page.reload()
    assert page.locator("#words").input_value() == "", "what was said is not said again"


def test_of_two_tabs_the_second_keeps_its_words_and_can_say_them(page: Any) -> None:
    address = begin(page)
    other = page.context.new_page()
    other.goto(address)
    say(page, ASKS)
    other.fill("#words", "From the other tab")
    other.click("text=Say it")
    other.get_by_text("This lesson went on in another tab.").wait_for()
    assert other.locator("#words").input_value() == "From the other tab"
    other.click("text=Say it")
    other.locator(".exchange").nth(1).wait_for()
    assert other.locator(".mine").all_inner_texts() == [ASKS, "From the other tab"]


def test_silence_before_the_first_key_is_measured_less_the_time_to_read(page: Any) -> None:
    begin(page)
    sent: list[str] = []
    page.on("request", lambda one: sent.append(one.post_data or "") if one.url.endswith("/say") else None)
    page.evaluate("performance.now = ((then) => () => then() + (window.later ?? 0))(performance.now.bind(performance))")
    page.evaluate("window.later = 60000")
    page.fill("#words", ASKS)
    page.evaluate("window.later = 600000")
    page.click("text=Say it")
    page.locator(".exchange").wait_for()
    waited = float(sent[0].partition("waited=")[2].partition("&")[0])
    words = len(page.locator(".opening").inner_text().split())
    assert 60 - words / 4 - 1 < waited < 60 - words / 4 + 30, "typing is no silence"


def test_who_is_signed_out_in_mid_lesson_finds_their_words_on_the_page_that_says_so(
    browser: Any, signed_in: tuple[str, Any]
) -> None:
    address, state = signed_in
    context = browser.new_context(storage_state=state, base_url=address)
    page = context.new_page()
    begin(page)
    context.clear_cookies()
    page.fill("#words", ASKS)
    page.click("text=Say it")
    page.get_by_role("heading", name="What you typed is here").wait_for()
    assert page.locator("#kept textarea").input_value() == ASKS
    context.close()


def test_without_a_script_a_lesson_is_rehearsed_all_the_same(browser: Any, signed_in: tuple[str, Any]) -> None:
    address, state = signed_in
    context = browser.new_context(java_script_enabled=False, storage_state=state, base_url=address)
    page = context.new_page()
    begin(page)
    for words in (ASKS, TELLS):
        page.fill("#words", words)
        page.click("text=Say it")
    assert page.locator(".mine").all_inner_texts() == [ASKS, TELLS]
    page.get_by_role("button", name="Go back, say something else here").nth(1).click()
    page.click("text=You went back: 1 other try")
    assert page.locator(".said-here > .exchange").count() == 1
    assert page.get_by_text(TELLS).is_visible()
    page.get_by_role("button", name="Finish, read the feedback").click()
    assert page.get_by_role("heading", name="One thing to try").is_visible()
    context.close()


@pytest.mark.parametrize("look", [{"color_scheme": "dark"}, {"locale": "ar"}], ids=["dark", "Arabic"])
def test_the_room_and_the_feedback_in_the_dark_and_from_the_right(
    browser: Any, signed_in: tuple[str, Any], look: dict[str, Any]
) -> None:
    address, state = signed_in
    context = browser.new_context(**look, storage_state=state, base_url=address, viewport={"width": 390, "height": 844})
    page = context.new_page()
    page.goto("/practice/scenes/larger-denominator")
    looked_at(page)
    page.click(".beginning button")
    page.wait_for_url("**/practice/lessons/*")
    say(page, ASKS)
    looked_at(page)
    page.click(".end-lesson")
    page.wait_for_url("**/feedback")
    looked_at(page)
    context.close()
