"""The review queue in a browser: decided one by one, blind for a share, never the same row for two people at once."""

from __future__ import annotations

import html
import json
import re
from typing import Any

import httpx
import pytest

from appliance.tuning.store import ExampleStore
from appliance.web.review import blind
from tests.web.staff import signed_in


@pytest.fixture
def store(box: Any) -> ExampleStore:
    rows = [
        {
            "id": f"row{number}",
            "messages": [
                {"role": "user", "content": f"Why is question {number} hard? Mail me at pupil{number}@example.org"},
                {"role": "assistant", "content": f"Because of {number}."},
            ],
            "user_role": "pupil",
            "class": "7B",
            "rating": "down",
            "consent": True,
            "subject": "science",
        }
        for number in range(6)
    ]
    file = box.settings.home / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    store = ExampleStore(box.database)
    store.import_rows(file, licence="CC BY 4.0", author="Ms Green", reviewer="test")
    return store


def shown(page: httpx.Response) -> str:
    found = re.search(r'action="/review/([^"]+)"', page.text)
    assert found, page.text
    return found[1]


async def test_each_row_is_approved_corrected_rejected_or_left_for_later(
    box: Any, person: httpx.AsyncClient, store: ExampleStore
) -> None:
    page = await person.get("/review")
    assert "6 left, about 3 minutes" in re.sub(r"\s+", " ", page.text)
    assert "Used as:" in page.text, "what training would see of an address is shown"
    first = shown(page)
    assert shown(await person.get("/review")) == first, "a reload shows the same row"
    await person.post(f"/review/{first}", data={"choice": "skip", "better": "Half of a better ans"})
    second = shown(await person.get("/review"))
    assert second != first
    await person.post(f"/review/{second}", data={"choice": "approve", "better": store.get(second).messages[-1].content})
    third = shown(await person.get("/review"))
    await person.post(f"/review/{third}", data={"choice": "approve", "better": "What have you tried?\r\nTell me."})
    fourth = shown(await person.get("/review"))
    await person.post(f"/review/{fourth}", data={"choice": "reject", "better": ""})
    assert store.get(second).reviewed == "approved" and store.get(second).correction is None
    assert store.get(third).correction == "What have you tried?\nTell me." and store.get(third).reviewed == "approved"
    assert store.get(fourth).reviewed == "rejected" and store.get(fourth).reviewer == box.accounts.named("Ms Green").id
    for _ in range(2):
        page = await person.get("/review")
        await person.post(f"/review/{shown(page)}", data={"choice": "reject"})
    page = await person.get("/review")
    assert shown(page) == first and "Half of a better ans" in page.text, "what was left comes last, with what was typed"
    await person.post(f"/review/{first}", data={"choice": "reject"})
    assert "Nothing waits for review" in (await person.get("/review")).text


async def test_a_fault_keeps_what_was_typed(person: httpx.AsyncClient, store: ExampleStore) -> None:
    id = shown(await person.get("/review"))
    assert store.get(id).reviewed == "pending"
    reply = await person.post(f"/review/{id}", data={"choice": "?", "better": "A much better answer"})
    assert reply.status_code == 400 and "A much better answer" in reply.text and shown(reply) == id
    assert (await person.post("/review/nothing", data={"choice": "approve"})).status_code == 404


async def test_two_reviewers_get_different_rows(box: Any, app: Any, person: httpx.AsyncClient, store: ExampleStore) -> None:
    async with signed_in(app, box, "Mr Blue", "teacher") as other, signed_in(app, box, "tim", "pupil") as pupil:
        assert shown(await person.get("/review")) != shown(await other.get("/review"))
        assert (await pupil.get("/review")).status_code == 403
        assert (await pupil.post("/review/row0", data={"choice": "approve"})).status_code == 403
    assert len(store.pending()) == 6


async def test_a_share_is_shown_without_its_class(person: httpx.AsyncClient, store: ExampleStore) -> None:
    share = sum(blind(f"row{number}") for number in range(2000)) / 2000
    assert 0.15 < share < 0.25
    for row in store.pending():
        page = html.unescape((await person.get(f"/review?row={row.id}")).text)
        assert ("7B" not in page) == blind(row.id) and ("judge the words alone" in page) == blind(row.id)
        await person.post(f"/review/{row.id}", data={"choice": "reject"})
