"""Formulas, code and tables in a real browser: everyone can read them, by keyboard too, and on the smallest screen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.web.conftest import NAME, PASSWORD
from tests.web.test_browser import browser  # noqa: F401 - a fixture
from tests.web.test_server import serving

pytestmark = pytest.mark.browser

ANSWER = r"""## Solving a quadratic

An equation $ax^2 + bx + c = 0$ with $a \ne 0$ has at most two solutions [1]. On $[0, 1]$ it is short.

\[
x = \frac{-b \pm \sqrt{b^2 - 4ac}}{2a}
\]

A long one, $a_1x_1 + a_2x_2 + a_3x_3 + a_4x_4 + a_5x_5 + a_6x_6 + a_7x_7 + a_8x_8 = b$, scrolls. A shirt costs $5, shoes $12.

```python
# Solve it
def solve(a: float, b: float, c: float) -> list[float]:
    return [(-b + sign * (b ** 2 - 4 * a * c) ** 0.5) / (2 * a) for sign in (1, -1)]  # a line that is long "enough"
```

| Discriminant | Number of solutions | Example | Where the graph touches the horizontal axis |
|:-------------|--------------------:|:-------:|---------------------------------------------|
| $\Delta > 0$ | 2 | $x^2 - 1$ | at two different places |
| $\Delta < 0$ | 0 | $x^2 + 1$ | never |

See [the site](https://example.org/maths?lang=en) and ![a parabola](https://example.org/p.png).
"""


@pytest.fixture(scope="module")
def answered(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Any]]:  # noqa: F811
    """(address of an answer, state of the browser that asked for it)."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "answer.md").write_text(ANSWER, "utf-8")
    with serving(folder / "home", "0", f"answer={folder / 'answer.md'}") as (address, code, _):
        page = browser.new_page()
        page.goto(address)
        for field, words in (("#code", code), ("#name", NAME), ("#password", PASSWORD)):
            page.fill(field, words)
        page.click("button.main")
        page.wait_for_url("**/chat")
        page.fill("#question", "Why are leaves green?")
        page.click("#send")
        page.wait_for_selector(".answer[data-state=done]")
        url, state = page.url, page.context.storage_state()
        page.close()
        yield url, state


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 320])
def test_everyone_can_read_an_answer(browser: Any, answered: tuple[str, Any], scheme: str, width: int) -> None:  # noqa: F811
    from axe_playwright_python.sync_playwright import Axe

    url, state = answered
    context = browser.new_context(
        storage_state=state, color_scheme=scheme, viewport={"width": width, "height": 800}, reduced_motion="reduce"
    )
    page = context.new_page()
    page.goto(url)
    found = Axe().run(page).response["violations"]
    assert [(one["id"], [node["html"][:120] for node in one["nodes"]]) for one in found] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    heights = page.evaluate("[...document.querySelectorAll('.prose math')].map((one) => one.getBoundingClientRect().height)")
    assert len(heights) == 9 and min(heights) > 8, "they are drawn, not written out"
    context.close()


def test_what_is_wider_than_the_screen_scrolls_by_keyboard(browser: Any, answered: tuple[str, Any]) -> None:  # noqa: F811
    url, state = answered
    context = browser.new_context(storage_state=state, viewport={"width": 320, "height": 800}, reduced_motion="reduce")
    page = context.new_page()
    page.goto(url)
    for part in ("pre.scrolls", "div.scrolls:has(table)", "span.scrolls:has(math)"):
        box = page.locator(part).last
        box.focus()
        assert box.evaluate("(one) => one.scrollWidth > one.clientWidth"), part
        page.keyboard.press("ArrowRight")
        page.wait_for_function("(part) => [...document.querySelectorAll(part)].at(-1).scrollLeft > 0", arg=part)
    assert page.locator(".prose a:not(.cite)").count() == 0
    assert "the site (https://example.org/maths?lang=en) and a parabola." in page.locator(".prose").inner_text()
    context.close()
