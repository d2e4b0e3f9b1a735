"""What was typed is handed back by whatever page says that it could not be taken, to people without the script."""

from __future__ import annotations

import html
import logging
import re
from typing import Any

import httpx
import pytest

from tests.web.conftest import BASE, NAME, PASSWORD, csrf
from tests.web.staff import signed_in
from tests.web.test_browser import browser
from tests.web.test_server import serving

__all__ = ["browser"]
CANARY = '\nWhy do CANARY leaves <b>fall</b> & "turn"?\r\nTell me.'


def handed_back(page: str) -> dict[str, list[str]]:
    """The fields of the form that a page hands back, as a browser would send them; none where there is none."""
    found = re.search(r'<form method="post" action="([^"]*)"[^>]* id="kept">(.*?)</form>', page, re.S)
    if found is None:
        return {}
    fields: dict[str, list[str]] = {"to": [found[1]]}
    for name, value in re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)">', found[2]):
        fields.setdefault(name, []).append(html.unescape(value))
    for name, value in re.findall(r'<textarea [^>]*name="([^"]+)"[^>]*>\n?(.*?)</textarea>', found[2], re.S):
        fields.setdefault(name, []).append(html.unescape(value))
    if "<button" not in found[2]:
        del fields["to"]
    return fields


async def enter(client: httpx.AsyncClient) -> None:
    assert (await client.post("/sign-in", data={"name": NAME, "password": PASSWORD, "csrf": await csrf(client)})).is_redirect


async def test_a_question_comes_back_when_the_sign_in_has_ended_and_goes_on_after_a_new_one(
    box: Any, person: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    first = await person.post("/chat/ask", data={"question": "Why are leaves green?"})
    chat = first.headers["location"].split("#")[0]
    token, conversation = person.headers.pop("x-csrf-token"), chat.rsplit("/", 1)[1]
    user = box.accounts.named(NAME)
    await box.chat.leave(user)
    await person.post("/sign-out", data={"csrf": token})
    sent = {"question": CANARY, "conversation": conversation, "shown": "", "csrf": token}
    reply = await person.post("/chat/ask", data=sent)
    assert reply.status_code == 401 and reply.headers["cache-control"] == "no-store" and "location" not in reply.headers
    fields = handed_back(reply.text)
    assert fields.pop("to") == ["/chat/ask"] and fields["question"] == [CANARY] and fields["conversation"] == [conversation]
    assert fields["csrf"] == [""] and "Sign in" in reply.text and "<b>fall" not in reply.text
    await enter(person)
    shown = await person.post("/chat/ask", data=fields)
    assert shown.status_code == 403 and "You are signed in again." in shown.text, "it goes on by the press of a button only"
    fields = handed_back(shown.text)
    assert fields.pop("to") == ["/chat/ask"] and fields["question"] == [CANARY]
    assert len(box.chat.conversations.load(user, conversation)[1]) == 2
    last = await person.post("/chat/ask", data=fields)
    assert last.status_code == 303 and last.headers["location"].startswith(chat)
    assert "CANARY" in box.chat.conversations.load(user, conversation)[1][2].text
    await box.chat.leave(user)
    assert "CANARY" not in caplog.text and CANARY[:8] not in str([shown.url, last.url])


async def test_an_old_form_comes_back_with_a_new_token_and_whatever_else_it_said(person: httpx.AsyncClient, box: Any) -> None:
    made = box.classes.add("7B")
    sent = {
        "csrf": "an old one", "name": "7B", "lesson": "Roots, CANARY", "subject": "Biology", "help_level": "full",
        "version": str(made.version), "collections": ["a", "b"], "strict": "1",
    }  # fmt: skip
    person.headers.pop("x-csrf-token")
    reply = await person.post(f"/classes/{made.id}", data=sent)
    assert reply.status_code == 403
    fields = handed_back(reply.text)
    assert fields.pop("to") == [f"/classes/{made.id}"] and fields["collections"] == ["a", "b"] and fields["strict"] == ["1"]
    assert (await person.post(f"/classes/{made.id}", data=fields)).status_code == 303
    found = box.classes.get(made.id)
    assert (found.lesson, found.subject, found.help_level, found.strict) == ("Roots, CANARY", "Biology", "full", True)


async def test_of_a_thing_that_is_gone_the_words_stay(person: httpx.AsyncClient) -> None:
    reply = await person.post("/chat/rate/gone", data={"better": "CANARY, since chlorophyll ...", "rating": "down"})
    assert reply.status_code == 404
    fields = handed_back(reply.text)
    assert "to" not in fields and fields["better"] == ["CANARY, since chlorophyll ..."], "to be copied"
    reply = await person.post("/chat/ask", data={"question": CANARY, "conversation": "gone", "shown": "x", "edits": "y"})
    fields = handed_back(reply.text)
    assert reply.status_code == 404 and fields.keys() == {"to", "csrf", "kept", "question"}
    fields["csrf"] = [await csrf(person, "/chat")]
    asked = await person.post(fields.pop("to")[0], data=fields)
    assert asked.status_code == 303 and "/chat/" in asked.headers["location"], "a question goes on in a new chat"


async def test_a_fault_of_the_box_gives_the_words_back(person: httpx.AsyncClient, box: Any) -> None:
    def broken(*_: Any, **_more: Any) -> None:
        raise ValueError(CANARY)

    box.chat.conversations.rename = broken
    reply = await person.post("/chat/any/rename", data={"title": "CANARY leaves"})
    assert reply.status_code == 500 and handed_back(reply.text)["title"] == ["CANARY leaves"]


SECRETS: list[tuple[str, dict[str, str]]] = [
    ("/sign-in", {"name": "CANARY", "password": "CANARY"}),
    ("/setup", {"code": "CANARY", "name": "CANARY", "password": "CANARY"}),
    ("/me/password", {"old": "CANARY", "new": "CANARY", "again": "CANARY"}),
    ("/me/second-step", {"password": "CANARY", "secret": "A" * 32, "code": "CANARY"}),
    ("/class", {"code": "CANARY", "pupil": "CANARY", "name": "CANARY"}),
]


@pytest.mark.parametrize(("path", "form"), SECRETS, ids=[path for path, _ in SECRETS])
@pytest.mark.parametrize("signed", [True, False])
async def test_no_secret_is_ever_handed_back(person: httpx.AsyncClient, path: str, form: dict[str, str], signed: bool) -> None:
    if not signed:
        await person.post("/sign-out")
    del person.headers["x-csrf-token"]
    reply = await person.post(path, data={**form, "question": "CANARY"})
    assert reply.status_code in (401, 403) and "CANARY" not in reply.text and not handed_back(reply.text)


async def test_what_another_site_sends_is_not_read(person: httpx.AsyncClient) -> None:
    for headers in ({"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}, {"host": "evil.example"}):
        reply = await person.post("/chat/ask", data={"question": "CANARY"}, headers=headers)
        assert reply.status_code in (400, 403) and "CANARY" not in reply.text


async def test_files_and_more_than_a_form_may_hold_are_refused_as_before(person: httpx.AsyncClient) -> None:
    del person.headers["x-csrf-token"]
    many = await person.post("/chat/ask", data={f"field{number}": "x" for number in range(600)} | {"question": "CANARY"})
    long = await person.post("/chat/ask", data={"question": "CANARY" * 200_000})
    parts = await person.post("/chat/ask", data={"question": "CANARY"}, files={"file": ("a.txt", b"x")})
    assert [one.status_code for one in (many, long, parts)] == [400, 413, 400]
    assert not any("CANARY" in one.text for one in (many, long, parts))


async def test_a_pupil_who_is_thrown_out_keeps_the_words_and_a_script_gets_json(app: Any, box: Any) -> None:
    async with signed_in(app, box, "tim", "pupil") as pupil:
        box.people.change(box.accounts.named("tim").id, disabled=True)
        assert handed_back((await pupil.post("/chat/ask", data={"question": CANARY})).text)["question"] == [CANARY]
        reply = await pupil.post("/chat/ask", data={"question": CANARY}, headers={"accept": "application/json"})
        assert reply.json()["error"]["code"] == "not_signed_in" and "CANARY" not in reply.text


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("path", ["/v1/models", "/v1/chat/completions", "/v1/nothing", "/v1"])
async def test_below_v1_everything_is_json(visitor: httpx.AsyncClient, method: str, path: str) -> None:
    for headers in ({}, {"authorization": "Bearer sk-school-wrong"}):
        reply = await visitor.request(method, path, headers=headers)
        assert reply.status_code in (401, 404, 405) and reply.json()["error"]["message"], (reply.status_code, BASE + path)


@pytest.mark.browser
def test_in_a_browser_with_and_without_the_script(browser: Any, tmp_path: Any) -> None:
    """Without: the page holds it, sign-in in another tab, then on. With: the draft is there after signing in again."""
    with serving(tmp_path / "home") as (address, code, _):
        page = browser.new_page()
        page.goto(address)
        for field, words in (("code", code), ("name", NAME), ("password", PASSWORD)):
            page.fill(f"#{field}", words)
        page.click("button.main")
        page.wait_for_url("**/chat")
        state = page.context.storage_state()

        def sign_in(tab: Any) -> None:
            tab.fill("#name", NAME)
            tab.fill("#password", PASSWORD)
            tab.click("button.main")
            tab.wait_for_url("**/chat")

        page.fill("#question", "A long thought of mine")
        page.context.clear_cookies()
        page.click("#send")
        page.wait_for_selector("#fault .fault")
        assert page.input_value("#question") == "A long thought of mine"
        page.click("#fault a")
        sign_in(page)
        assert page.input_value("#question") == "A long thought of mine", "with the script the draft is kept in this tab"
        page.context.close()

        plain = browser.new_context(java_script_enabled=False, storage_state=state)
        page = plain.new_page()
        page.goto(f"{address}/chat")
        page.fill("#question", "One line\nand a second")
        plain.clear_cookies()
        page.click("#send")
        assert page.input_value("#kept textarea") == "One line\nand a second"
        with plain.expect_page() as opened:
            page.click("ol.steps a")
        sign_in(opened.value)
        page.click("#kept button")
        assert page.input_value("#kept textarea") == "One line\nand a second"
        page.click("#kept button")
        page.wait_for_url("**/chat/*")
        assert "and a second" in page.locator(".asked .said").inner_text()
        plain.close()
