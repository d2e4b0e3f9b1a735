"""The curriculum's standards on pages: a list from a file, tags on classes, scenes and examples, and what is told for each."""

from __future__ import annotations

import html
import json
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest

from appliance.tuning.store import ExampleStore
from tests.tuning.test_report_page import report
from tests.web.staff import signed_in

LIST = (
    "code,subject,grade,text\n"
    'M.4.1,Mathematics,4,"Compare two fractions, also with unlike denominators"\n'
    "S.7.2,Science,7,Explain how plants make <sugar>\n"
    "H.9,History,,Tell a source from what is said about it\n"
)
SCENE = "/practice/scenes/larger-denominator"


@pytest.fixture
async def people(app: Any, box: Any) -> AsyncIterator[dict[str, httpx.AsyncClient]]:
    async with AsyncExitStack() as stack:
        roles = {"head": "administrator", "brown": "teacher", "ann": "pupil"}
        yield {name: await stack.enter_async_context(signed_in(app, box, name, role)) for name, role in roles.items()}


@pytest.fixture
def listed(box: Any) -> None:
    assert not box.standards.take(box.accounts.local_administrator(), LIST.encode(), "list.csv").faults


def plain(page: httpx.Response) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page.text)).split())


async def give(client: httpx.AsyncClient, text: str, **form: str) -> httpx.Response:
    return await client.post("/standards", data=form, files={"file": ("the list.csv", text.encode(), "text/csv")})


async def tag(client: httpx.AsyncClient, kind: str, thing: str, code: str, **form: str) -> httpx.Response:
    return await client.post("/standards/tag", data={"kind": kind, "thing": thing, "code": code, **form})


# --- the list --------------------------------------------------------------------------------------------------------------
async def test_a_list_is_taken_in_searched_and_kept_as_a_file(people: dict[str, httpx.AsyncClient]) -> None:
    head, brown = people["head"], people["brown"]
    assert "There is no list yet." in plain(await head.get("/standards"))
    assert "The administrator can take one in." in plain(await brown.get("/standards"))
    done = await give(head, LIST)
    assert done.status_code == 200 and "Done: 3 new, 0 changed." in plain(done)
    page = await brown.get("/standards")
    assert "M.4.1 Compare two fractions" in plain(page) and "<sugar>" not in page.text and 'type="file"' not in page.text
    found = plain(await brown.get("/standards", params={"q": "PLANTS science"}))
    assert "S.7.2" in found and "M.4.1" not in found
    assert "Nothing in the list has these words." in plain(await brown.get("/standards", params={"q": "<b>nothing"}))
    file = await brown.get("/standards/file")
    assert file.headers["content-disposition"].startswith("attachment") and "S.7.2,Science,7" in file.text
    newer = await give(head, "code,text\nH.9,Tell a source from a tale\n", replace="1")
    assert "Done: 0 new, 1 changed." in plain(newer) and "What is not in the file: M.4.1, S.7.2" in plain(newer)
    assert "S.7.2" not in plain(await brown.get("/standards"))


@pytest.mark.usefixtures("listed")
async def test_each_faulty_line_is_told_and_nothing_is_changed(people: dict[str, httpx.AsyncClient]) -> None:
    head = people["head"]
    wrong = await give(head, "code,text\nA,fine\n,<nothing>\nB,\n", replace="1")
    assert wrong.status_code == 400 and "2 lines cannot be taken. Nothing was changed." in plain(wrong)
    assert "3 code The code is empty." in plain(wrong) and "4 text The text is empty." in plain(wrong)
    assert "the list.csv" in plain(wrong) and "M.4.1" in plain(wrong), "what there was is still there"
    no_list = await give(head, "name\nA\n")
    assert no_list.status_code == 400 and "there is no column called code" in plain(no_list)
    none = await head.post("/standards", data={"replace": "1"})
    assert none.status_code == 400 and "No file was chosen." in plain(none)


# --- tags ------------------------------------------------------------------------------------------------------------------
@pytest.mark.usefixtures("listed")
async def test_a_class_says_which_standards_its_lesson_works_on(box: Any, people: dict[str, httpx.AsyncClient]) -> None:
    brown = people["brown"]
    made = box.classes.add("7B", grade="7", subject="Science")
    address = f"/classes/{made.id}"
    box.people.join(box.accounts.named("brown").id, made.id, teaches=True)
    page = await brown.get(address)
    assert re.findall(r'<option value="([^"]+)">', page.text[page.text.index('id="codes"') :])[0] == "S.7.2", (
        "the nearest first"
    )
    assert (await tag(brown, "class", made.id, " S.7.2 ")).headers["location"] == f"{address}#standards"
    page = await brown.get(address)
    assert "S.7.2 Explain how plants make <sugar>" in plain(page) and "make <sugar>" not in page.text
    assert re.search(r'S\.7\.2</bdi></th>.*?data-label="Classes">1<', (await brown.get("/standards")).text, re.S)
    unknown = await tag(brown, "class", made.id, "X.<9>")
    assert unknown.status_code == 404 and "There is no standard" in plain(unknown) and "X.&lt;9&gt;" in unknown.text
    await tag(brown, "class", made.id, "S.7.2", undo="1")
    assert "None yet." in plain(await brown.get(address))
    other = box.classes.add("8A")
    assert (await tag(brown, "class", other.id, "S.7.2")).status_code == 404
    assert (await tag(brown, "teacher", "x", "S.7.2")).status_code == 400
    assert (await tag(people["ann"], "class", made.id, "S.7.2")).status_code in (403, 404)


@pytest.mark.usefixtures("listed")
async def test_practice_is_told_standard_by_standard(people: dict[str, httpx.AsyncClient]) -> None:
    brown = people["brown"]
    assert "None yet." in plain(await brown.get(SCENE))
    assert (await tag(brown, "scenario", "larger-denominator", "M.4.1")).headers["location"] == f"{SCENE}#standards"
    assert "M.4.1 Compare two fractions" in plain(await brown.get(SCENE))
    of_it = plain(await brown.get("/practice", params={"standard": "M.4.1"}))
    assert (
        "Only scenes about the standard M.4.1." in of_it and "One eighth must be more" in of_it and "Two reports" not in of_it
    )
    assert "There is no such scene." in plain(await brown.get("/practice", params={"standard": "<b>"}))
    lesson = (await brown.post(f"{SCENE}/begin")).headers["location"]
    asks = "What do you think is more, an eighth or a quarter? How do you know?"
    assert (await brown.post(f"{lesson}/say", data={"words": asks, "shown": ""})).status_code == 303
    await brown.post(f"{lesson}/finish")
    told = plain(await brown.get(f"{lesson}/feedback"))
    assert "What you read here counts towards these." in told and "M.4.1 Compare two fractions" in told
    progress = await brown.get("/practice/progress")
    row = re.search(r'aria-labelledby="standards">.*?<tbody>(.*?)</tbody>', progress.text, re.S)
    assert row and re.search(r"<bdi>M\.4\.1</bdi>.*?data-label=\"Lessons\">1<", row[1], re.S) and "H.9" not in row[1]
    counts = [int(one) for one in re.findall(r"</meter> (\d+)", row[1])]
    assert len(counts) == 3 and sum(counts) == 3, "each line of the rubric once"


@pytest.mark.usefixtures("listed")
async def test_an_example_is_tagged_in_review_and_counted_in_the_report(box: Any, people: dict[str, httpx.AsyncClient]) -> None:
    brown, head = people["brown"], people["head"]
    said = [{"role": "user", "content": "What is 2/4?"}, {"role": "assistant", "content": "Cut a pizza."}]
    file = box.settings.home / "rows.jsonl"
    file.write_text(json.dumps({"id": "row1", "messages": said, "consent": True}) + "\n")
    ExampleStore(box.database).import_rows(file, licence="CC BY 4.0", author="Ms Green", reviewer="test")
    assert "Standards that this is about" in plain(await brown.get("/review"))
    assert (await tag(brown, "example", "row1", "M.4.1")).headers["location"] == "/review?row=row1"
    assert "M.4.1 Compare two fractions" in plain(await brown.get("/review?row=row1"))
    weights = box.settings.home / "weights"
    weights.mkdir()
    (weights / "model.gguf").write_bytes(b"GGUF")
    box.registry.add(weights, id="green-1", kind="base", title="Green", licence="MIT", context=1024, report=report().to_json())
    card = {"train": 2, "held_out": 1, "subject": {"mathematics": 3}, "rows": {"train": ["row1", "row2"], "held_out": ["row3"]}}
    (box.registry.folder("green-1") / "dataset.json").write_text(json.dumps(card))
    assert "Standards M.4.1 (1)" in plain(await head.get("/admin/models/green-1/report"))
    await tag(brown, "example", "row1", "M.4.1", undo="1")
    assert "Standards" not in plain(await head.get("/admin/models/green-1/report"))
