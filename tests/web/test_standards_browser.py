"""A list of standards taken in, searched and put on a class and a scene, by hand in a browser, wide and narrow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.web.test_browser import browser
from tests.web.test_everyone import signed_in, violations

__all__ = ["browser", "signed_in"]
pytestmark = pytest.mark.browser

LONG = "Explain with a model of one's own how plants make sugar out of water and air, and what the light is needed for"


@pytest.fixture
def page(browser: Any, signed_in: tuple[str, Any]) -> Iterator[Any]:
    address, state = signed_in
    context = browser.new_context(storage_state=state, base_url=address, viewport={"width": 1280, "height": 800})
    yield context.new_page()
    context.close()


def looked_at(page: Any) -> None:
    assert not violations(page)
    page.set_viewport_size({"width": 320, "height": 640})
    assert page.evaluate("document.documentElement.scrollWidth") <= 320, page.url
    page.set_viewport_size({"width": 1280, "height": 800})


def test_a_list_is_taken_in_and_a_class_and_a_scene_are_tagged(page: Any, tmp_path: Path) -> None:
    file = tmp_path / "list.csv"
    file.write_text(f'code,subject,grade,text\n,x,1,y\nS.7.2,Science,7,"{LONG}"\n')
    page.goto("/classes")
    page.get_by_role("link", name="Standards of the curriculum").click()
    page.set_input_files("#file", file)
    page.get_by_role("button", name="Take it in").click()
    page.get_by_text("One line cannot be taken.").wait_for()
    looked_at(page)
    file.write_text("code,subject,grade,text\n" + "".join(f'S.7.{n},Science,7,"{LONG}"\n' for n in range(1, 9)))
    page.set_input_files("#file", file)
    page.get_by_role("button", name="Take it in").click()
    page.get_by_text("Done: 8 new, 0 changed.").wait_for()
    looked_at(page)
    page.fill("input[type=search]", "7.3 science")
    page.get_by_role("button", name="Show").click()
    assert page.locator("tbody tr").count() == 1
    page.goto("/classes")
    page.fill("#name", "7B")
    page.get_by_role("button", name="Make the class").click()
    for address in (page.url, "/practice/scenes/larger-denominator"):
        page.goto(address)
        page.get_by_label("Code of a standard").fill("S.7.3")
        page.get_by_role("button", name="Add it").click()
        page.get_by_role("button", name="Take S.7.3 off").wait_for()
        looked_at(page)
    page.get_by_role("button", name="Begin").click()
    page.fill("#words", "What do you think, Amara? How do you know?")
    page.click("text=Say it")
    page.locator(".exchange").wait_for()
    page.get_by_role("button", name="Finish, read the feedback").click()
    page.get_by_text("What you read here counts towards these.").wait_for()
    looked_at(page)
    page.get_by_role("link", name="Your progress for each").click()
    page.wait_for_url("**/practice/progress#standards")
    assert page.locator("#standards").is_visible()
    looked_at(page)
