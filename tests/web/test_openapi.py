"""Schemathesis over the OpenAPI document of a served box, as nobody, with keys, and signed in: nothing breaks it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

from appliance.accounts import Accounts
from appliance.db import Database
from appliance.settings import Settings
from appliance.web.server import create_app
from appliance.web.show import HERE
from tests.web.test_server import enter, serving

EXAMPLES = 12  # of each operation, for each of four people, of each kind
FORM = {"application/x-www-form-urlencoded", "multipart/form-data"}
CONTROL = "a\r\nSet-Cookie: x=y\x1b[31m\x00\u2028\u202e\ud7ff"  # what a log or a header must never hold as it is


def document() -> dict[str, Any]:
    """What the application says of itself; forms get the names of the fields in our templates."""
    app = create_app(SimpleNamespace(settings=Settings(), chat=SimpleNamespace()))  # type: ignore[arg-type]
    made = app.openapi()
    fields = {name for path in HERE.glob("templates/*.html") for name in re.findall(r' name="(\w+)"', path.read_text())}
    fields -= {"viewport", "csrf"}
    shape = {"type": "object", "properties": {name: {"type": "string"} for name in sorted(fields)}}
    for operations in made["paths"].values():
        if "post" in operations:
            operations["post"].setdefault("requestBody", {"content": {kind: {"schema": shape} for kind in sorted(FORM)}})
    return made


DOCUMENT = document()
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
OPERATIONS = [result.ok() for result in SCHEMA.get_all_operations()]


@dataclass
class Served:
    address: str
    log: Path
    people: dict[str, httpx.Client]
    known: dict[str, list[str]]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("openapi")
    made = Settings(home=folder / "home")
    with serving(made.home, "0", log=folder / "log") as (address, code, process):
        database = Database(made.database)
        accounts = Accounts(database, made)
        local = accounts.local_administrator()
        people = {"nobody": httpx.Client(base_url=address), "session": httpx.Client(base_url=address)}
        for scope in ("chat", "admin"):
            key = accounts.create_key(local, scope, scope)[1]
            people[scope] = httpx.Client(base_url=address, headers={"authorization": f"Bearer {key}"})
        enter(people["session"], code)
        asked = people["session"].post("/chat/ask", data={"question": "Why are leaves green?"}).json()
        known = {"id": [asked["url"].rpartition("/")[2], "plants", "12", "31"], "turn": [asked["turn"]]}
        yield Served(address, folder / "log", people, known)
        assert process.poll() is None, "it is still alive"
        for client in people.values():
            client.close()
        database.close()


def test_the_document_describes_every_door() -> None:
    paths = DOCUMENT["paths"]
    assert len(OPERATIONS) >= 20 and {"/v1/chat/completions", "/v1/embeddings", "/chat/ask", "/sign-in"} <= set(paths)
    chat = paths["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"messages", "collections", "temperature"} <= set(chat["properties"]) and chat["additionalProperties"] is False


@pytest.mark.parametrize("who", ["nobody", "chat", "admin", "session"])
@pytest.mark.parametrize("operation", OPERATIONS, ids=[one.label for one in OPERATIONS])
def test_no_request_breaks_it(served: Served, operation: Any, who: str) -> None:
    if (who, operation.path) == ("session", "/sign-out"):
        pytest.skip("it would sign the others out")
    client = served.people[who]

    @seed(6)
    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(
        case=st.one_of(
            *(operation.as_strategy(generation_mode=mode) for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE))
        ),
        real=st.booleans(),
        page=st.booleans(),
        dirty=st.booleans(),
    )
    def ask(case: Any, real: bool, page: bool, dirty: bool) -> None:
        for name in case.path_parameters or {}:
            if real and name in served.known:
                case.path_parameters[name] = served.known[name][len(str(case.body)) % len(served.known[name])]
        if dirty and isinstance(case.body, dict) and case.body:
            case.body[sorted(map(str, case.body))[0]] = CONTROL
        headers = {"accept": "text/html" if page else "application/json", **client.headers}
        if dirty:
            headers["x-odd"] = "\x1b[31mred"
        case.headers = {name: value for name, value in (case.headers or {}).items() if name.lower() not in ("host", "cookie")}
        reply = case.call(base_url=served.address, headers=headers, cookies=dict(client.cookies), allow_redirects=False)
        assert reply.status_code < 500 or (reply.status_code == 503 and "retry-after" in reply.headers), reply.text[:500]
        assert "content-security-policy" in reply.headers and "traceback" not in reply.text[:5000].lower()

    ask()


def test_afterwards_all_is_well_and_the_log_holds_one_clean_line_for_each_record(served: Served) -> None:
    """The last one in this file: it looks back at all the others."""
    assert served.people["nobody"].get("/health").json() == {"status": "ok"}
    assert served.people["session"].get("/chat", headers={"accept": "text/html"}).status_code == 200
    log = served.log.read_bytes()
    assert not re.search(rb"[\x00-\x09\x0b-\x1f\x7f]|Traceback|Set-Cookie", log), log[-2000:]
    assert log.isascii() and b"leaves" not in log and all(len(line) < 300 for line in log.splitlines()), log[-2000:]
