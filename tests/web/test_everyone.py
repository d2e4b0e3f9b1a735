"""Every page for everyone: axe finds nothing, nothing runs out of a narrow screen, and the other way round in Arabic."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe

from appliance.web.words import LANGUAGES
from tests.web.conftest import NAME, PASSWORD
from tests.web.test_browser import browser
from tests.web.test_server import serving

__all__ = ["browser"]
pytestmark = pytest.mark.browser

ADMINISTRATOR = (
    "/chat", "/chats", "/classes", "/classes/archive", "/library", "/library/add", "/library/checks", "/review", "/counts",
    "/quotas", "/admin", "/admin/health", "/admin/settings", "/admin/audit", "/admin/jobs", "/admin/models", "/admin/retrain",
    "/admin/people", "/admin/people/import", "/keys", "/me", "/me/password", "/me/second-step", "/about",
    "/practice", "/practice/write", "/practice/progress", "/practice/mentors", "/standards",
)  # fmt: skip
ANYBODY = ("/", "/class")
LOOKS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("light", {"color_scheme": "light"}),
    ("dark", {"color_scheme": "dark"}),
    ("Arabic", {"locale": "ar"}),
)


@pytest.fixture(scope="module")
def signed_in(tmp_path_factory: pytest.TempPathFactory, browser: Any) -> Iterator[tuple[str, Any]]:
    """A box, and what a browser keeps of its administrator's sign-in."""
    with serving(tmp_path_factory.mktemp("box") / "home") as (address, code, _):
        page = browser.new_page()
        page.goto(address)
        for field, words in (("code", code), ("name", NAME), ("password", PASSWORD)):
            page.fill(f"#{field}", words)
        page.click("button.main")
        page.wait_for_url("**/chat")
        page.fill("#question", "Why are leaves green?")
        page.click("#send")
        page.wait_for_selector(".answer[data-state=done]")
        state = page.context.storage_state()
        page.context.close()
        yield address, state


def violations(page: Any) -> list[Any]:
    found = Axe().run(page).response["violations"]
    return [(page.url, one["id"], [node["html"][:200] for node in one["nodes"]][:3]) for one in found]


@pytest.mark.parametrize(("name", "look"), LOOKS, ids=[name for name, _ in LOOKS])
def test_axe_finds_nothing_and_nothing_runs_out_of_the_screen(
    browser: Any, signed_in: tuple[str, Any], name: str, look: dict[str, Any]
) -> None:
    address, state = signed_in
    wrong: list[Any] = []
    for paths, stored in ((ADMINISTRATOR, state), (ANYBODY, None)):
        context = browser.new_context(**look, storage_state=stored, viewport={"width": 1280, "height": 800})
        page = context.new_page()
        for path in paths:
            reply = page.goto(address + path)
            assert reply.ok, (path, reply.status)
            assert page.get_attribute("html", "dir") == ("rtl" if name == "Arabic" else "ltr"), path
            wrong += violations(page)
            page.set_viewport_size({"width": 320, "height": 640})
            if page.evaluate("document.documentElement.scrollWidth") > 320:
                wrong.append((page.url, "wider than 320 px"))
            page.set_viewport_size({"width": 1280, "height": 800})
        context.close()
    assert not wrong, "\n".join(map(str, wrong))


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_names_of_the_rooms_are_not_broken_up(browser: Any, signed_in: tuple[str, Any], language: str) -> None:
    address, state = signed_in
    context = browser.new_context(locale=language, storage_state=state)
    page = context.new_page()
    for width in (1440, 1280, 1024):
        page.set_viewport_size({"width": width, "height": 800})
        page.goto(f"{address}/about")
        heights = page.eval_on_selector_all(".rooms a", "all => all.map(one => one.clientHeight)")
        assert heights and max(heights) < 44, (width, heights)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()


def test_pages_do_not_move_for_who_asked_for_rest(browser: Any, signed_in: tuple[str, Any]) -> None:
    address, state = signed_in
    context = browser.new_context(reduced_motion="reduce", storage_state=state)
    page = context.new_page()
    page.goto(f"{address}/chat")
    moving = page.evaluate(
        "[...document.querySelectorAll('*')].filter(one => { const style = getComputedStyle(one);"
        " return parseFloat(style.animationDuration) > 0 || parseFloat(style.transitionDuration) > 0; }).length"
    )
    assert moving == 0
    context.close()


def test_the_address_of_every_page_is_looked_at(signed_in: tuple[str, Any]) -> None:
    """Pages without a part in their address are all in the lists above."""
    from tests.web.test_every_route import TABLE

    assert signed_in
    plain = {path for method, path in TABLE if method == "GET" and "{" not in path and not path.startswith("/v1/")}
    no_pages = {"/health", "/ready", "/metrics", "/admin/people/export", "/safeguarding/alarm", "/sign-in/code",
                "/sign-in/oidc", "/sign-in/oidc/callback", "/sign-in/oidc/again", "/admin/compare", "/safeguarding",
                "/standards/file"}  # fmt: skip
    assert plain - no_pages == {*ADMINISTRATOR, *ANYBODY}
