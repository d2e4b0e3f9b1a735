"""Files given through a page: kept under the box's own names, read by a job, reported one by one; too much is refused."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from appliance.db import Database
from appliance.jobs import work_one
from appliance.knowledge import ingest as bulk
from appliance.knowledge.library import EVERYTHING, Library
from appliance.knowledge.uploads import Uploads
from appliance.settings import Settings
from appliance.tables import documents
from tests.knowledge.helpers import embed
from tests.web.box import make_box
from tests.web.staff import signed_in

LEAVES = b"# Leaves\n\nLeaves look green because of chlorophyll, which takes in red and blue light."


@pytest.fixture
async def box(settings: Settings) -> AsyncIterator[Any]:
    box = make_box(settings, library=lambda database: Library(settings, database, embed))
    yield box
    await box.chat.close()
    box.library.close()
    box.database.close()


async def worked(box: Any, job: str) -> Any:
    """What the worker does with such a job."""

    async def ingest(job: Any, tell: Any) -> Any:
        record = bulk.Record(box.database, job.id)
        result = await bulk.ingest(box.library, record, job.payload, tell=tell)
        Uploads(box.settings).forget(Path(report.path) for report in record.reports() if not report.error)
        return result

    return await work_one(box.jobs, job, {bulk.LATER: ingest})


async def test_files_are_kept_read_and_reported_one_by_one(box: Any, person: httpx.AsyncClient) -> None:
    assert "Add documents" in (await person.get("/library")).text
    files = [
        ("files", ("leaves.md", LEAVES)),
        ("files", ("broken.pdf", b"%PDF-1.4 nothing")),
        ("files", ("leaves.md", b"Other.")),
    ]
    reply = await person.post("/library/add", files=files, data={"new": "Biology", "readers": "everyone"})
    assert reply.status_code == 303, reply.text
    page = (await person.get(reply.headers["location"])).text
    assert "leaves.md" in page and "Waiting" in page and "worker is not running" in page and 'http-equiv="refresh"' in page
    id = reply.headers["location"].rsplit("/", 1)[1]
    done = await worked(box, id)
    assert done.state == "done" and done.result["added"] == 2 and done.result["failed"] == 1
    page = (await person.get(f"/library/job/{id}")).text
    assert "2 documents are in the library." in page and "leaves (2).md" in page and "cut off" in page and "refresh" not in page
    left = [path.name for path in box.settings.uploads.rglob("*") if path.is_file()]
    assert left == ["broken.pdf"], "what could not be read can be tried again; what was read is in the library"
    again = await person.post(f"/library/job/{id}/again")
    assert again.headers["location"] != f"/library/job/{id}"
    assert [entry.verb for entry in box.audit.entries()][-1] == "add documents"


async def test_a_newer_file_of_the_same_name_takes_the_old_ones_place(box: Any, person: httpx.AsyncClient) -> None:
    for text, more in ((LEAVES, {"new": "Biology", "readers": "me"}), (LEAVES + b"\n\nIn autumn it goes.", {})):
        if not more:
            (shelf,) = box.library.shelves.list(EVERYTHING)
            more = {"collection": shelf.id}
        reply = await person.post("/library/add", files=[("files", ("leaves.md", text))], data=more)
        await worked(box, reply.headers["location"].rsplit("/", 1)[1])
    (document,) = await box.library.documents(EVERYTHING)
    assert document.version == 2


@pytest.mark.parametrize(
    "name",
    ["../../escape.md", "/etc/passwd.md", "C:\\Windows\\x.md", "a\x00b.md", "x" * 300 + ".md", "\u202etxt.md", "..", "."],
)
async def test_no_name_leads_anywhere_else(box: Any, person: httpx.AsyncClient, name: str) -> None:
    reply = await person.post("/library/add", files=[("files", (name, LEAVES))], data={"new": "Odd", "readers": "me"})
    assert reply.status_code in (303, 400), reply.text
    (shelf,) = box.library.shelves.list(EVERYTHING) or [None]
    folder = box.settings.uploads / shelf.id if shelf else box.settings.uploads
    for path in box.settings.home.rglob("*.md"):
        assert path.parent == folder and len(path.name) <= 200 and path.name.isprintable(), path


async def test_what_is_too_large_is_refused_before_it_is_read_and_leaves_nothing(
    box: Any, person: httpx.AsyncClient, settings: Settings
) -> None:
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        head = b'--x\r\ncontent-disposition: form-data; name="files"; filename="big.md"\r\n\r\n'
        yield head
        while read < 2 * 2**30:
            read += 2**20
            yield b"a" * 2**20

    said = {"content-type": "multipart/form-data; boundary=x"}
    reply = await person.post("/library/add", content=b"", headers=said | {"content-length": str(2 * 2**30)})
    assert reply.status_code == 413 and "512 MB" in reply.text
    small = box.settings.model_copy(update={"document_mb": 1})
    box.settings = small
    files = [("files", ("big.md", b"a" * (2**20 + 1)))]
    reply = await person.post("/library/add", files=files, data={"new": "Big", "readers": "me", "subject": "Physics"})
    assert reply.status_code == 413 and "big.md has 1 MB" in reply.text and 'value="Physics"' in reply.text, (
        "what was typed is kept"
    )
    assert not [path for path in settings.uploads.rglob("*") if path.is_file()]
    reply = await person.post("/library/add", content=endless(), headers=said)
    assert reply.status_code == 400 and "how much would be sent" in reply.text
    assert read <= 2**20, "refused as it began to come: nothing of it was on any disk"
    assert not [path for path in settings.uploads.rglob("*") if path.is_file()]


async def test_many_parts_and_odd_forms_are_refused(person: httpx.AsyncClient) -> None:
    many = [("files", (f"{number}.md", b"x")) for number in range(60)]
    assert (await person.post("/library/add", files=many, data={"new": "x"})).status_code == 400
    fields = {f"field{number}": "x" for number in range(100)}
    assert (await person.post("/library/add", files=many[:1], data=fields)).status_code == 400
    reply = await person.post("/library/add", content=b"junk", headers={"content-type": "multipart/form-data"})
    assert reply.status_code == 400
    reply = await person.post("/library/add", data={"new": "Empty"})
    assert reply.status_code == 400 and "No file was chosen" in reply.text


async def test_a_teacher_adds_to_own_collections_and_no_pupil_adds(box: Any, app: Any, person: httpx.AsyncClient) -> None:
    made = await person.post("/library/add", files=[("files", ("a.md", LEAVES))], data={"new": "Heads", "readers": "everyone"})
    (heads,) = box.library.shelves.list(EVERYTHING)
    async with signed_in(app, box, "Mr Blue", "teacher") as teacher, signed_in(app, box, "tim", "pupil") as pupil:
        await _only_own(box, heads, made.headers["location"], teacher, pupil)


async def _only_own(box: Any, heads: Any, job: str, teacher: httpx.AsyncClient, pupil: httpx.AsyncClient) -> None:
    reply = await teacher.post("/library/add", files=[("files", ("b.md", LEAVES))], data={"collection": heads.id})
    assert reply.status_code == 404, "another's collection"
    reply = await teacher.post("/library/add", files=[("files", ("b.md", LEAVES))], data={"new": "Blue", "readers": "staff"})
    assert reply.status_code == 303
    assert (await teacher.get(job)).status_code == 404, "another's job"
    for reply in (
        await pupil.get("/library/add"),
        await pupil.post("/library/add", files=[("files", ("c.md", LEAVES))], data={"new": "Mine"}),
        await pupil.get(job),
    ):
        assert reply.status_code == 403
    assert "Add documents" not in (await pupil.get("/library")).text
    assert {one.name for one in box.library.shelves.list(EVERYTHING)} == {"Heads", "Blue"}


async def test_a_document_is_moved_and_taken_out_by_whoever_owns_it(box: Any, app: Any, person: httpx.AsyncClient) -> None:
    async with signed_in(app, box, "Mr Blue", "teacher") as teacher:
        await _moved_and_taken_out(box, teacher, person)


async def _moved_and_taken_out(box: Any, teacher: httpx.AsyncClient, person: httpx.AsyncClient) -> None:
    for name in ("One", "Two"):
        reply = await teacher.post(
            "/library/add", files=[("files", (f"{name}.md", LEAVES + name.encode()))], data={"new": name}
        )
        await worked(box, reply.headers["location"].rsplit("/", 1)[1])
    document = next(one for one in await box.library.documents(EVERYTHING) if one.collection == "One")
    two = box.library.shelves.one("Two", EVERYTHING)
    page = (await teacher.get(f"/document/{document.id}")).text
    assert "Take it out for good" in page
    assert (await person.post(f"/document/{document.id}/remove")).status_code == 404, "not the administrator's own"
    assert (await teacher.post(f"/document/{document.id}/move", data={"collection": two.id})).status_code == 303
    assert {one.collection for one in await box.library.documents(EVERYTHING)} == {"Two"}
    kept = box.settings.backups / "state-before-20260101-120000"  # as a restore leaves one, for an undo
    kept.mkdir(parents=True)
    box.database.fold_log()
    shutil.copy(box.settings.database, kept)
    assert b"chlorophyll" in (kept / "appliance.sqlite3").read_bytes()
    assert (await teacher.post(f"/document/{document.id}/remove")).status_code == 303
    state = Database(kept / "appliance.sqlite3")
    with state.read() as connection:
        assert document.id not in list(connection.scalars(sa.select(documents.c.id))), "it left the kept state at once"
    state.close()
    gone = await teacher.get(f"/document/{document.id}")
    assert gone.status_code == 410 and re.search("taken out|removed", gone.text)


@pytest.mark.parametrize("when", ["before", "while"])
async def test_a_full_disk_refuses_files_says_so_and_gets_over_it(
    box: Any, person: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def given() -> Any:
        return person.post("/library/add", files=[("files", ("leaves.md", LEAVES))], data={"new": "Plants", "readers": "me"})

    before = box.settings
    if when == "before":
        box.settings = before.model_copy(update={"disk_reserve_mb": 10**9})
    else:
        monkeypatch.setattr(shutil, "copyfileobj", full)
    reply = await given()
    told = "There is not enough free space on the box" if when == "before" else "The disk is full"
    assert reply.status_code == 507 and told in reply.text and "<form" in reply.text
    assert not [path for path in before.uploads.rglob("*") if path.is_file()] and not box.jobs.list()
    assert not box.library.shelves.list(EVERYTHING), "or the next try would find the name taken"
    box.settings = before
    monkeypatch.undo()
    assert (await given()).status_code == 303
