"""The administrator's pages about people: who sees them, what is shown once, what is written down about it."""

from __future__ import annotations

import io
import os
import re
import time
import zipfile
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI

from appliance.accounts import ADMINISTRATOR, PUPIL, SAFEGUARDING, TEACHER
from appliance.tables import users
from tests.web.conftest import NAME, PASSWORD
from tests.web.test_me import browser, second_step_on, sign_in


@pytest.fixture
def ann(box: Any) -> Any:
    return box.people.add("Ann", TEACHER, password=PASSWORD, full_name="Anna <b>Lee</b>")[0]


@pytest.mark.parametrize("role", [PUPIL, TEACHER, SAFEGUARDING])
async def test_nobody_else_sees_or_changes_people(box: Any, app: FastAPI, ann: Any, role: str) -> None:
    box.people.add("Head", ADMINISTRATOR)
    box.people.add("Other", role, password=PASSWORD)
    async with browser(app) as other:
        await sign_in(other, "Other", PASSWORD)
        assert "/admin/people" not in (await other.get("/chat")).text
        for path in ("", f"/{ann.id}", "/import", "/export", "/nobody"):
            reply = await other.get(f"/admin/people{path}")
            assert reply.status_code == 403 and "Anna" not in reply.text, path
        for path in ("", "/sheet", f"/{ann.id}", f"/{ann.id}/disable", f"/{ann.id}/password", "/import", "/import/x"):
            form = {"name": "Eve", "role": ADMINISTRATOR}
            assert (await other.post(f"/admin/people{path}", data=form)).status_code == 403, path
    assert box.people.get(ann.id) == ann and len(box.people.list()) == 3 and box.audit.entries() == []


async def test_the_list(box: Any, person: httpx.AsyncClient, ann: Any) -> None:
    lesson = box.classes.add("7b & co")
    box.people.join(box.people.add("Ben", PUPIL)[0].id, lesson.id)
    page = (await person.get("/admin/people")).text
    assert "3 people." in page and "Anna &lt;b&gt;Lee&lt;/b&gt;" in page and "<b>Lee" not in page
    for query, shown in (
        ({"search": "LEE"}, {"Ann"}),
        ({"role": PUPIL}, {"Ben"}),
        ({"class": "7b & co"}, {"Ben"}),
        ({"search": "zzz"}, set()),
        ({"role": "king", "class": "none", "from": "-1"}, set()),
    ):
        page = (await person.get("/admin/people", params=query)).text
        assert set(re.findall(r'href="/admin/people/\w{16}"><bdi>(\w+)<', page)) == shown, query
    assert ann.name == "Ann"


async def test_two_thousand_people_are_paged(box: Any, person: httpx.AsyncClient) -> None:
    rows = [
        {"id": f"pupil{number:011}", "name": f"pupil {number:04}", "role": PUPIL, "password_hash": "", "created": 0.0,
         "preferences": {}}
        for number in range(2000)
    ]  # fmt: skip
    with box.database.begin() as connection:
        for row in rows:
            connection.execute(sa.insert(users).values(**row))
    page = (await person.get("/admin/people", params={"search": "pupil"})).text
    assert page.count('href="/admin/people/pupil') == 100 and "2000 people." in page
    later = re.findall(r'href="(/admin/people\?[^"]+from=100)"', page)[0].replace("&amp;", "&")
    assert "pupil 0199" in (await person.get(later)).text
    reply = await person.post("/admin/people/sheet", data={"search": "pupil"})
    assert reply.status_code == 413 and "appliance users sheet" in reply.text


async def test_adding_somebody(box: Any, app: FastAPI, person: httpx.AsyncClient) -> None:
    reply = await person.post("/admin/people", data={"name": "Mia", "full_name": "Mia Berg", "role": PUPIL})
    password = re.findall(r'<b class="code">([\w-]{14})</b>', reply.text)[0]
    async with browser(app) as mia:
        assert (await sign_in(mia, "mia", password)).headers["location"] == "/chat"
    assert password not in (await person.get("/admin/people")).text
    for wrong, status in (
        ({"name": "MIA", "role": PUPIL}, 409),
        ({"name": "x\u200by", "role": PUPIL}, 400),
        ({"name": "Ben", "role": "king"}, 400),
        ({"name": "", "role": PUPIL}, 400),
    ):
        reply = await person.post("/admin/people", data={"full_name": "What I typed", **wrong})
        assert reply.status_code == status and 'value="What I typed"' in reply.text, wrong
    entry = box.audit.entries()[0]
    assert (
        entry.verb == "add person"
        and entry.thing == box.accounts.named("Mia").id
        and entry.actor == box.accounts.named(NAME).id
    )
    assert len(box.audit.entries()) == 1 and "Mia" not in str(entry)


async def test_changing_somebody(box: Any, app: FastAPI, person: httpx.AsyncClient, ann: Any) -> None:
    async with browser(app) as client:
        await sign_in(client, "Ann", PASSWORD)
        form = {"name": "Ann", "full_name": "Ann Lee", "role": TEACHER, "chosen": "fr"}
        assert (await person.post(f"/admin/people/{ann.id}", data=form)).status_code == 303
        assert (await client.get("/chat")).status_code == 200, "a new full name ends nothing"
        await person.post(f"/admin/people/{ann.id}", data={**form, "role": PUPIL})
        assert (await client.get("/chat")).headers["location"] == "/"
    changed = box.people.get(ann.id)
    assert (changed.full_name, changed.language, changed.role) == ("Ann Lee", "fr", PUPIL)
    assert [entry.facts for entry in box.audit.entries(thing=ann.id)] == [
        {"changed": ["full_name", "language"]}, {"changed": ["role"], "role": PUPIL, "before": TEACHER},
    ]  # fmt: skip
    for wrong, status in (({"name": NAME.upper()}, 409), ({"role": "king"}, 400), ({"chosen": "tlh"}, 400)):
        reply = await person.post(f"/admin/people/{ann.id}", data={**form, **wrong})
        assert reply.status_code == status and 'value="Ann Lee"' in reply.text
    assert (await person.post("/admin/people/nobody", data=form)).status_code == 404
    assert (await person.get("/admin/people/nobody")).status_code == 404


async def test_disabling_and_passwords(box: Any, app: FastAPI, person: httpx.AsyncClient, ann: Any) -> None:
    async with browser(app) as client:
        await sign_in(client, "Ann", PASSWORD)
        assert (await person.post(f"/admin/people/{ann.id}/disable")).headers["location"].endswith("done=disable")
        assert (await client.get("/chat")).headers["location"] == "/"
        client.headers.pop("x-csrf-token")
        assert (await sign_in(client, "Ann", PASSWORD)).status_code == 401
        await person.post(f"/admin/people/{ann.id}/enable")
        page = (await person.post(f"/admin/people/{ann.id}/password")).text
        password = re.findall(r'<b class="code">([\w-]{14})</b>', page)[0]
        assert (await sign_in(client, "Ann", password)).headers["location"] == "/chat"
        assert (await client.get("/chat")).headers["location"] == "/me/password"
    assert (await person.post(f"/admin/people/{ann.id}/explode")).status_code == 400
    verbs = [entry.verb for entry in box.audit.entries(thing=ann.id)]
    assert verbs == ["disable person", "enable person", "password of person"]


async def test_the_last_administrator_stays(box: Any, person: httpx.AsyncClient) -> None:
    me = box.accounts.named(NAME)
    reply = await person.post(f"/admin/people/{me.id}/disable")
    assert reply.status_code == 409 and "last administrator" in reply.text
    reply = await person.post(f"/admin/people/{me.id}", data={"name": NAME, "full_name": "", "role": PUPIL, "chosen": ""})
    assert reply.status_code == 409 and (await person.get("/chat")).status_code == 200


async def test_a_lost_phone(box: Any, app: FastAPI, person: httpx.AsyncClient, ann: Any) -> None:
    async with browser(app) as client:
        await sign_in(client, "Ann", PASSWORD)
        await second_step_on(box, client)
    assert "second step is on" in (await person.get(f"/admin/people/{ann.id}")).text
    await person.post(f"/admin/people/{ann.id}/second-step")
    async with browser(app) as client:
        assert (await sign_in(client, "Ann", PASSWORD)).headers["location"] == "/chat"


async def test_a_sheet_of_passwords(box: Any, app: FastAPI, person: httpx.AsyncClient) -> None:
    lesson = box.classes.add("7b")
    for name in ("mia", "noah", "other"):
        made, _ = box.people.add(name, PUPIL)
        if name != "other":
            box.people.join(made.id, lesson.id)
    assert (await person.post("/admin/people/sheet", data={"class": "7b"})).status_code == 400, "they have some"
    with box.database.begin() as connection:
        connection.execute(sa.update(users).where(users.c.role == PUPIL).values(password_hash=""))
    assert "3 of them have no password yet." in (await person.get("/admin/people")).text
    page = (await person.post("/admin/people/sheet", data={"class": "7b"})).text
    made = dict(re.findall(r'<b><bdi>(\w+)</bdi></b></span>\s*<span>Password: <b class="code">([\w-]{14})</b>', page))
    assert sorted(made) == ["mia", "noah"]
    async with browser(app) as mia:
        assert (await sign_in(mia, "mia", made["mia"])).headers["location"] == "/chat"


# --- many at once ----------------------------------------------------------------------------------------------------
CSV = "name;full_name;role;classes\nélodie;Élodie <b>;pupil;7b\nAnn;Ann Lee;teacher;7b;\n".encode("cp1252")


async def test_importing_a_file(box: Any, person: httpx.AsyncClient, ann: Any) -> None:
    reply = await person.post("/admin/people/import", files={"file": ("people.csv", CSV)})
    assert reply.status_code == 200 and "One person is new." in reply.text and "One person changes." in reply.text
    assert "Windows-1252" in reply.text and "Élodie &lt;b&gt;" in reply.text and "Anna &lt;b&gt;Lee" in reply.text
    assert len(box.people.list()) == 2, "nothing is changed before it was agreed to"
    address = re.findall(r'action="(/admin/people/import/\w+)"', reply.text)[0]
    shown = re.findall(r'name="shown" value="(\w+)"', reply.text)[0]
    box.people.change(ann.id, full_name="Somebody was quicker")
    reply = await person.post(address, data={"shown": shown})
    assert reply.status_code == 409 and "Somebody was quicker" in reply.text
    shown = re.findall(r'name="shown" value="(\w+)"', reply.text)[0]
    reply = await person.post(address, data={"shown": shown})
    assert reply.status_code == 303
    assert "One person was added. One was changed." in (await person.get(reply.headers["location"])).text
    assert {one.name: one.full_name for one in box.people.list(class_name="7b")} == {"élodie": "Élodie <b>", "Ann": "Ann Lee"}
    assert (await person.post(address, data={"shown": shown})).status_code == 404, "it is taken in once, and gone"
    assert list((box.settings.run / "imports").iterdir()) == []
    verbs = [(entry.verb, entry.actor) for entry in box.audit.entries()]
    assert verbs == [("import people", box.accounts.named(NAME).id)] and "lodie" not in str(box.audit.entries())


async def test_a_file_with_faults(box: Any, person: httpx.AsyncClient) -> None:
    bad = b"name,role\nann,king\nANN,pupil\n<script>x</script>\xff,\n"
    reply = await person.post("/admin/people/import", files={"file": ("x.csv", bad)})
    assert reply.status_code == 400 and "lines cannot be taken" in reply.text and "<script>x" not in reply.text
    assert 'name="shown"' not in reply.text and len(box.people.list()) == 1
    for name, data in (("x.zip", b"PK\x03\x04"), ("x.csv", b""), ("x.xlsx", bytes(range(256))), ("", b"")):
        reply = await person.post("/admin/people/import", files={"file": (name, data)})
        assert reply.status_code == 400 and 'role="alert"' in reply.text, name
    reply = await person.post("/admin/people/import", data={"file": "no file"})
    assert reply.status_code == 400
    hostile = "../../../etc/\x1b[31m<b>passwd"
    reply = await person.post("/admin/people/import", files={"file": (hostile, b"name\nann\n")})
    assert reply.status_code == 200 and "/etc/" not in reply.text and "<b>passwd" not in reply.text
    assert (
        await person.post("/admin/people/import", files={"file": ("x.csv", b"name\n" + b"x" * 21_100_000)})
    ).status_code == 413
    assert next((box.settings.run / "imports").iterdir()).stat().st_size < 1000, "of what is too large nothing is kept"


PUPILS = 5000


async def test_a_school_of_five_thousand_comes_in_within_seconds(box: Any, person: httpx.AsyncClient) -> None:
    """OneRoster's files chosen together, of more than a megabyte each; nobody's password is made while somebody waits."""
    users_csv = "sourcedId,status,enabledUser,username,givenName,familyName,role,address\n" + "".join(
        f"u{number},active,true,pupil.{number},Given{number},Name,student,{'A Street ' * 20}\n" for number in range(PUPILS)
    )
    lessons = "sourcedId,status,title\n" + "".join(f"c{number},active,Class {number}\n" for number in range(200))
    belongs = "sourcedId,status,classSourcedId,userSourcedId,role\n" + "".join(
        f"e{number},active,c{number % 200},u{number % PUPILS},student\n" for number in range(6 * PUPILS)
    )
    files = [("file", (name, text.encode())) for name, text in (("Users.csv", users_csv), ("classes.csv", lessons),
             ("enrollments.csv", belongs))]  # fmt: skip
    assert len(users_csv) > 2**20
    began = time.monotonic()
    reply = await person.post("/admin/people/import", files=files)
    assert reply.status_code == 200 and f"{PUPILS} people are new." in reply.text
    address = re.findall(r'action="(/admin/people/import/\w+)"', reply.text)[0]
    shown = re.findall(r'name="shown" value="(\w+)"', reply.text)[0]
    reply = await person.post(address, data={"shown": shown})
    assert reply.status_code == 303 and f"{PUPILS} people were added." in (await person.get(reply.headers["location"])).text
    assert time.monotonic() - began < 30, "two seconds on two idle cores"
    assert box.people.list(class_name="Class 7")[0].waiting, "a password is made when it is printed"
    twice = await person.post("/admin/people/import", files=[*files, files[0]])
    assert twice.status_code == 400 and "users.csv twice" in twice.text


async def test_an_archive_that_grows_without_end_is_left_at_its_limit(person: httpx.AsyncClient) -> None:
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("users.csv", "w") as member:
        for _ in range(60):
            member.write(bytes(2**20))
    assert len(bomb.getvalue()) < 100_000
    reply = await person.post("/admin/people/import", files={"file": ("x.zip", bomb.getvalue())})
    assert reply.status_code == 413 and "users.csv is larger than 20 MB" in reply.text


async def test_a_kept_file_is_its_givers_for_an_hour(box: Any, app: FastAPI, person: httpx.AsyncClient) -> None:
    box.people.add("Deputy", ADMINISTRATOR, password=PASSWORD)
    reply = await person.post("/admin/people/import", files={"file": ("people.csv", b"name\nann\n")})
    address = re.findall(r'action="(/admin/people/import/\w+)"', reply.text)[0]
    shown = re.findall(r'name="shown" value="(\w+)"', reply.text)[0]
    kept = next((box.settings.run / "imports").iterdir())
    assert kept.stat().st_mode & 0o077 == 0 and kept.parent.stat().st_mode & 0o077 == 0
    async with browser(app) as deputy:
        await sign_in(deputy, "Deputy", PASSWORD)
        assert (await deputy.post(address, data={"shown": shown})).status_code == 404
    for path in ("/admin/people/import/..%2f..%2fx", "/admin/people/import/" + "a" * 16, "/admin/people/import/x"):
        assert (await person.post(path, data={"shown": shown})).status_code == 404
    for at in (1.0, time.time() + 365 * 86400):  # old, or kept before the clock was set back
        os.utime(kept, (at, at))
        assert (await person.post(address, data={"shown": shown})).status_code == 404
    await person.post("/admin/people/import", files={"file": ("people.csv", b"name\nann\n")})
    assert not kept.exists(), "what is too old is swept away"


async def test_exporting_and_importing_again(box: Any, person: httpx.AsyncClient, ann: Any) -> None:
    box.people.add("=cmd|' /C calc'!A0", PUPIL, full_name='=HYPERLINK("http://evil.example")')
    reply = await person.get("/admin/people/export")
    assert reply.headers["content-disposition"] == 'attachment; filename="people.csv"' and reply.content.startswith(
        b"\xef\xbb\xbf"
    )
    assert "\n'=cmd" in reply.text and "'=HYPERLINK" in reply.text and PASSWORD not in reply.text
    page = await person.post("/admin/people/import", files={"file": ("people.csv", reply.content)})
    assert page.status_code == 200 and "0 changes" in page.text and 'name="shown"' not in page.text
    assert box.people.get(ann.id) == ann
