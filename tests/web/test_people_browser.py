"""The pages about people in a real browser: nothing wider than a phone, nothing that axe finds, all of it in both schemes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyotp
import pytest

from appliance.accounts import Accounts
from appliance.classes import Classes
from appliance.db import Database
from appliance.settings import Settings
from tests.web.conftest import NAME, PASSWORD
from tests.web.test_browser import ARGUMENTS, CHROMIUM
from tests.web.test_server import serving

pytestmark = pytest.mark.browser

CSV = (
    "name,full_name,role,classes\nmia,Mia Berg,pupil,7b\nmo,محمد علي,pupil,7b;Year 7 Science and everything that is near it\n"
    "ms.brown,Bea Brown-Featherstonehaugh,teacher,7b\n"
)


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


def looked_at(page: Any, pictures: Path) -> None:
    """Fails where the page at hand is wider than a phone, or axe finds a fault, in light or dark."""
    from axe_playwright_python.sync_playwright import Axe

    name = re.sub(r"\W+", "-", page.url.split("/", 3)[3].split("?")[0]) or "front"
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        found = Axe().run(page).response["violations"]
        assert not found, (page.url, scheme, [(one["id"], [node["html"] for node in one["nodes"]]) for one in found])
        for width in (390, 1280):
            page.set_viewport_size({"width": width, "height": 844 if width == 390 else 800})
            page.screenshot(path=pictures / f"{name}-{width}-{scheme}.png", full_page=True)
    page.set_viewport_size({"width": 320, "height": 700})
    widest = page.evaluate("""() => [...document.querySelectorAll("body *")].filter((one) => one.checkVisibility()).map(
      (one) => [Math.max(one.getBoundingClientRect().right, one.getBoundingClientRect().left + one.scrollWidth),
        one.outerHTML.slice(0, 120)]).sort((a, b) => b[0] - a[0])[0]""")
    assert page.evaluate("document.documentElement.scrollWidth") <= 320, (page.url, widest)
    page.set_viewport_size({"width": 1280, "height": 800})


def sign_in(page: Any, address: str, name: str, password: str) -> None:
    page.goto(address)
    page.fill("#name", name)
    page.fill("#password", password)
    page.click("button.main")


def test_from_a_file_to_a_pupil_in_the_lesson(browser: Any, tmp_path: Path) -> None:
    home, source = tmp_path / "home", tmp_path / "people.csv"
    source.write_text(CSV)
    with serving(home, "0.01") as (address, code, _):
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        trouble: list[str] = []
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("console", lambda line: trouble.append(line.text) if line.type == "error" else None)
        page.goto(address)
        for field, words in (("code", code), ("name", NAME), ("password", PASSWORD)):
            page.fill(f"#{field}", words)
        page.keyboard.press("Enter")
        page.wait_for_url("**/chat")
        page.goto(f"{address}/admin/people/import")
        looked_at(page, tmp_path)
        page.set_input_files("#file", source)
        page.click("text=Look at it")
        page.wait_for_selector("text=Make these changes")
        looked_at(page, tmp_path)
        page.click("text=Make these changes")
        page.wait_for_selector("text=3 people were added")
        looked_at(page, tmp_path)
        page.click("text=Make passwords to print")
        page.wait_for_selector(".slips")
        looked_at(page, tmp_path)
        page.emulate_media(media="print")
        assert page.locator(".slips").is_visible() and not page.locator("h1").is_visible()
        page.emulate_media(media="screen")
        page.goto(f"{address}/admin/people?search=brown")
        page.click("text=ms.brown")
        page.wait_for_selector("text=Signing in")
        looked_at(page, tmp_path)
        page.goto(f"{address}/me/password")
        looked_at(page, tmp_path)
        _own_page(page, address, tmp_path)
        _second_step(browser, page, address, tmp_path)
        _lesson(browser, address, home, tmp_path)
        assert trouble == []


def _own_page(page: Any, address: str, pictures: Path) -> None:
    """Larger, wider text is larger and wider on every page, and still fits a phone."""
    page.goto(f"{address}/me")
    looked_at(page, pictures)
    size = "[getComputedStyle(document.body).fontSize, getComputedStyle(document.body).letterSpacing]"
    before = page.evaluate(size)
    page.check("[name=text][value=larger]")
    page.check("[name=spacing][value=wide]")
    page.click("text=Save")
    page.wait_for_selector("text=Saved.")
    looked_at(page, pictures)
    for path in ("/chat", "/admin/people", "/keys"):
        page.goto(address + path)
        assert before == ["16px", "normal"] and page.evaluate(size) == ["22px", "1.1px"], path


def _second_step(browser: Any, page: Any, address: str, pictures: Path) -> None:
    page.goto(f"{address}/me/second-step")
    assert page.locator(".qr-frame svg").bounding_box()["width"] > 150
    looked_at(page, pictures)
    secret = page.locator(".secret").inner_text()
    page.fill("#code", pyotp.TOTP(secret).now())
    page.fill("#password", PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_selector(".codes")
    looked_at(page, pictures)
    recovery = page.locator(".codes li").first.inner_text()
    other = browser.new_page()
    sign_in(other, address, NAME, PASSWORD)
    other.wait_for_url("**/sign-in/code")
    looked_at(other, pictures)
    other.fill("#code", recovery)
    other.keyboard.press("Enter")
    other.wait_for_url("**/chat")
    other.close()


def _lesson(browser: Any, address: str, home: Path, pictures: Path) -> None:
    settings = Settings(home=home)
    database = Database(settings.database)
    lesson = Classes(database).named("7b")
    assert lesson is not None
    code = Accounts(database, settings).class_codes.make(lesson.id)
    database.close()
    pupil = browser.new_page(viewport={"width": 390, "height": 844})
    pupil.goto(address)
    pupil.click("text=Sign in with your class's code")
    looked_at(pupil, pictures)
    pupil.fill("#code", code.lower().replace("-", " "))
    pupil.keyboard.press("Enter")
    pupil.wait_for_selector(".faces")
    looked_at(pupil, pictures)
    pupil.click("text=Mia Berg")
    pupil.wait_for_url("**/chat")
    pupil.goto(f"{address}/me")
    looked_at(pupil, pictures)
    assert pupil.locator("text=Change your password").count() == 0
    pupil.close()
