"""Every address of the web process, asked by everybody, compared with one table of who gets in.

The addresses are read from the application itself. One that has no row in TABLE fails, and so does a row without an address: a
new page is not done before somebody has written down who may enter it. To add one, write a line

    ("POST", "/classes/{id}/close"): Row(TEACH, at={"id": "class"}),

with the method, the path as the route spells it, and the actors who get in. `at` says which thing stands in the path (see
THINGS: of Ann, a pupil of 7B, of 7B itself and its teacher, or the box's own), `form` and `json` what is sent, `status` what is
answered where that is not a success. Whoever is not named has to be refused with 401, 403 or 404, or sent to the first page,
and nobody may read a CANARY that is not theirs, on any page.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from starlette.routing import Mount

from appliance.accounts import KEY_PREFIX
from appliance.accounts.credentials import digest
from appliance.engine.handler import Message
from appliance.knowledge.library import Library
from appliance.knowledge.shelves import EVERYTHING, Filter, Reader
from appliance.settings import Settings
from appliance.tables import keys, metadata
from appliance.tuning.store import ExampleStore
from appliance.web.server import create_app
from tests.knowledge.helpers import embed
from tests.tuning.test_report_page import report
from tests.web.box import make_box
from tests.web.conftest import BASE, PASSWORD

# --- who asks ---------------------------------------------------------------------------------------------------------
ROLES = {
    "ann": "pupil",  # whose things are asked for
    "ben": "pupil",  # of another class
    "brown": "teacher",  # of Ann's class
    "white": "teacher",  # of Ben's
    "lead": "safeguarding",
    "head": "administrator",
    "gone": "teacher",  # of Ann's class as well, with cookie and keys of before being suspended
}
ACTORS = ("nobody", *ROLES)
EVERYBODY = frozenset(ACTORS)
INSIDE = EVERYBODY - {"nobody", "gone"}  # who is signed in
STAFF = INSIDE - {"ann", "ben"}
MAKERS = frozenset({"brown", "white", "head"})  # who may make classes
TEACH = frozenset({"brown", "head"})  # whose class it is, and who may change any
READERS = frozenset({"ann", "brown"})  # to whom the books of 7B are open
ANN, BROWN, HEAD, NOBODY = frozenset({"ann"}), frozenset({"brown"}), frozenset({"head"}), frozenset[str]()
LEAD = frozenset({"lead"})

# What is Ann's or her class's, and who may read it anywhere.
CANARIES = {
    "CANARY-TALK": ANN,
    "CANARY-BOOK": READERS,
    "CANARY-LESSON": READERS | {"head"},
    "CANARY-PUPIL": TEACH | ANN,
    "CANARY-KEY": BROWN,
    "CANARY-FLAG": ANN | LEAD,
    "CANARY-REHEARSED": BROWN | LEAD,
}


# --- who gets in ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Row:
    who: frozenset[str]
    at: Mapping[str, str] = field(default_factory=dict)
    form: Mapping[str, Any] = field(default_factory=dict)
    json: Any = None
    scope: str = ""  # of the key that is sent, in place of a cookie
    status: int = 0


SPEAK = {"model": "default", "messages": [{"role": "user", "content": "Why are leaves green?"}]}
TABLE: dict[tuple[str, str], Row] = {
    ("GET", "/health"): Row(EVERYBODY),
    ("GET", "/ready"): Row(EVERYBODY),
    ("GET", "/"): Row(EVERYBODY),
    ("GET", "/about"): Row(EVERYBODY),
    ("POST", "/setup"): Row(EVERYBODY, form={"code": "x", "name": "Eve", "password": PASSWORD}, status=409),
    ("POST", "/sign-in"): Row(EVERYBODY, form={"name": "ben", "password": PASSWORD}),
    ("POST", "/sign-out"): Row(EVERYBODY),
    # other ways in; what is sent here is no code of anybody's
    ("GET", "/sign-in/code"): Row(NOBODY),
    ("POST", "/sign-in/code"): Row(NOBODY, form={"code": "123456"}),
    ("GET", "/sign-in/oidc"): Row(NOBODY),  # where no such service is set
    ("GET", "/sign-in/oidc/again"): Row(NOBODY),
    ("GET", "/sign-in/oidc/callback"): Row(NOBODY),
    ("GET", "/class"): Row(EVERYBODY),
    ("POST", "/class"): Row(NOBODY, form={"code": "XXXX-XXXX"}),
    ("POST", "/classes/{id}/code"): Row(TEACH, at={"id": "class"}, form={"hours": "2"}),
    ("POST", "/classes/{id}/code/end"): Row(TEACH, at={"id": "class"}),
    ("POST", "/classes/{id}/code/{person}/free"): Row(TEACH, at={"id": "class", "person": "pupil"}),
    # oneself
    ("GET", "/me"): Row(INSIDE),
    ("POST", "/me"): Row(INSIDE, form={"chosen": "fr"}),
    ("GET", "/me/password"): Row(INSIDE),
    ("POST", "/me/password"): Row(INSIDE, form={"old": PASSWORD, "new": "another long word", "again": "another long word"}),
    ("POST", "/me/sessions/end"): Row(INSIDE),
    ("GET", "/me/second-step"): Row(STAFF),
    ("POST", "/me/second-step"): Row(STAFF, form={"password": PASSWORD, "secret": "A" * 32, "code": "x"}, status=400),
    ("POST", "/me/second-step/codes"): Row(STAFF, form={"password": PASSWORD}),
    ("POST", "/me/second-step/off"): Row(STAFF, form={"password": PASSWORD}),
    # chat
    ("GET", "/chat"): Row(INSIDE),
    ("GET", "/chat/{id}"): Row(ANN, at={"id": "talk"}),
    ("POST", "/chat/ask"): Row(INSIDE, form={"question": "Why are leaves green?"}),
    ("GET", "/chat/stream/{turn}"): Row(ANN, at={"turn": "turn"}),
    ("POST", "/chat/stop/{turn}"): Row(ANN, at={"turn": "turn"}),
    ("POST", "/chat/{id}/rename"): Row(ANN, at={"id": "talk"}, form={"title": "Leaves"}),
    ("POST", "/chat/{id}/delete"): Row(ANN, at={"id": "talk"}),
    ("POST", "/chat/{id}/restore"): Row(ANN, at={"id": "deleted"}),
    ("POST", "/chat/{id}/move"): Row(ANN, at={"id": "talk"}, form={"folder": "Plants"}),
    ("POST", "/chat/{id}/show"): Row(ANN, at={"id": "talk"}, form={"turn": "{turn}"}),
    ("POST", "/chat/again/{turn}"): Row(ANN, at={"turn": "turn"}),
    ("POST", "/chat/rate/{turn}"): Row(ANN, at={"turn": "turn"}, form={"rating": "up"}),
    ("GET", "/chat/{id}/export.{kind}"): Row(ANN, at={"id": "talk", "kind": "kind"}),
    ("GET", "/chats"): Row(INSIDE),
    # documents
    ("GET", "/library"): Row(INSIDE),
    ("GET", "/library/checks"): Row(STAFF),
    ("GET", "/document/{id}"): Row(READERS, at={"id": "document"}),
    ("GET", "/document/{id}/file"): Row(READERS, at={"id": "document"}),
    ("GET", "/passage/{id}"): Row(READERS, at={"id": "passage"}),
    # classes
    ("GET", "/classes"): Row(MAKERS),
    ("POST", "/classes"): Row(MAKERS, form={"name": "9 D"}),
    ("GET", "/classes/archive"): Row(MAKERS),
    ("GET", "/classes/{id}"): Row(TEACH, at={"id": "class"}),
    ("GET", "/classes/{id}/here"): Row(TEACH, at={"id": "class"}),
    ("POST", "/classes/{id}"): Row(
        TEACH, at={"id": "class"}, form={"name": "7B", "lesson": "Roots", "help_level": "full", "version": "1"}
    ),
    ("POST", "/classes/{id}/open"): Row(TEACH, at={"id": "class"}),
    ("POST", "/classes/{id}/close"): Row(TEACH, at={"id": "class"}),
    ("POST", "/classes/{id}/exam"): Row(TEACH, at={"id": "class"}, form={"on": "1"}),
    ("POST", "/classes/{id}/archive"): Row(TEACH, at={"id": "class"}),
    ("POST", "/classes/{id}/people"): Row(TEACH, at={"id": "class"}, form={"people": "ben", "part": "pupil"}),
    ("POST", "/classes/{id}/people/{person}/remove"): Row(TEACH, at={"id": "class", "person": "pupil"}),
    ("GET", "/quotas"): Row(HEAD),
    ("POST", "/quotas"): Row(HEAD, form={"who": "role:pupil", "window": "day", "most": "20"}),
    ("POST", "/quotas/remove"): Row(HEAD, form={"who": "role:teacher", "window": "week"}),
    # filling the library
    ("GET", "/library/add"): Row(STAFF),
    ("POST", "/library/add"): Row(STAFF, form={"new": "Mine"}, status=400),
    ("GET", "/library/job/{id}"): Row(TEACH, at={"id": "job"}),
    ("POST", "/library/job/{id}/again"): Row(TEACH, at={"id": "job"}),
    ("POST", "/document/{id}/move"): Row(HEAD, at={"id": "document"}, form={"collection": "{collection}"}),
    ("POST", "/document/{id}/remove"): Row(HEAD, at={"id": "document"}),
    # what the assistant learns
    ("GET", "/review"): Row(MAKERS),
    ("POST", "/review/{id}"): Row(MAKERS, at={"id": "example"}, form={"choice": "skip"}),
    ("GET", "/admin/models"): Row(MAKERS),
    ("GET", "/admin/models/{id}/report"): Row(MAKERS, at={"id": "model"}),
    ("POST", "/admin/models/{id}/promote"): Row(HEAD, at={"id": "model"}, status=409),
    ("POST", "/admin/models/rollback"): Row(HEAD, status=409),
    ("GET", "/admin/retrain"): Row(HEAD),
    ("POST", "/admin/retrain"): Row(HEAD),
    ("GET", "/admin/compare"): Row(MAKERS),
    ("POST", "/admin/compare"): Row(MAKERS, form={"a": "green-1", "b": "green-2", "choice": "t"}, status=400),
    # safeguarding
    ("GET", "/safeguarding"): Row(LEAD),
    ("GET", "/safeguarding/alarm"): Row(INSIDE),
    ("GET", "/safeguarding/{id}"): Row(LEAD, at={"id": "flag"}),
    ("POST", "/safeguarding/{id}"): Row(LEAD, at={"id": "flag"}, form={"state": "seen"}),
    ("GET", "/counts"): Row(MAKERS | LEAD),
    # practice: scenes are all staff's, a lesson is Mr Brown's and, by his consent, the lead's
    ("GET", "/practice"): Row(STAFF),
    ("GET", "/practice/scenes/{id}"): Row(STAFF, at={"id": "scene"}),
    ("POST", "/practice/scenes/{id}/begin"): Row(STAFF, at={"id": "scene"}),
    ("GET", "/practice/scenes/{id}/edit"): Row(MAKERS, at={"id": "draft"}),
    ("POST", "/practice/scenes/{id}/edit"): Row(TEACH, at={"id": "draft"}, form={"scene": "{scene text}", "seen": "1"}),
    ("GET", "/practice/scenes/{id}/file"): Row(STAFF, at={"id": "scene"}),
    ("POST", "/practice/scenes/{id}/approve"): Row(MAKERS - BROWN, at={"id": "draft"}, form={"version": "1"}),
    ("POST", "/practice/scenes/{id}/archive"): Row(TEACH, at={"id": "draft"}, form={"version": "1"}),
    ("GET", "/practice/write"): Row(STAFF),
    ("POST", "/practice/write"): Row(STAFF, form={"scene": "title = 3"}, status=400),
    ("POST", "/practice/generate"): Row(STAFF, form={"challenge": ""}, status=400),
    ("GET", "/practice/lessons/{id}"): Row(BROWN, at={"id": "running"}),
    ("POST", "/practice/lessons/{id}/say"): Row(BROWN, at={"id": "running"}, form={"words": "Why?", "shown": "{said}"}),
    ("POST", "/practice/lessons/{id}/rewind"): Row(BROWN, at={"id": "running"}, form={"turn": "{said}"}),
    ("POST", "/practice/lessons/{id}/show"): Row(BROWN, at={"id": "running"}, form={"turn": "{said}"}),
    ("POST", "/practice/lessons/{id}/finish"): Row(BROWN, at={"id": "running"}),
    ("POST", "/practice/lessons/{id}/delete"): Row(BROWN, at={"id": "running"}),
    ("GET", "/practice/lessons/{id}/feedback"): Row(BROWN | LEAD, at={"id": "lesson"}),
    ("GET", "/practice/lessons/{id}/compare/{other}"): Row(BROWN | LEAD, at={"id": "lesson", "other": "lesson"}),
    ("POST", "/practice/notes/{turn}"): Row(LEAD, at={"turn": "rehearsed"}, form={"note": "Well done"}),
    ("GET", "/practice/progress"): Row(STAFF),
    ("GET", "/practice/export.{kind}"): Row(STAFF, at={"kind": "kind"}),
    ("GET", "/practice/mentors"): Row(STAFF),
    ("POST", "/practice/mentors"): Row(STAFF, form={"name": ""}, status=400),
    ("POST", "/practice/mentors/end"): Row(BROWN | LEAD, form={"owner": "{brown id}", "mentor": "{lead id}"}),
    ("GET", "/practice/shared/{owner}"): Row(LEAD, at={"owner": "brown id"}),
    # curriculum standards
    ("GET", "/standards"): Row(STAFF),
    ("POST", "/standards"): Row(HEAD, status=400),
    ("GET", "/standards/file"): Row(STAFF),
    ("POST", "/standards/tag"): Row(TEACH, form={"kind": "class", "thing": "{class}", "code": "S.7", "undo": "1"}),
    # the box
    ("GET", "/metrics"): Row(HEAD, scope="admin"),
    ("GET", "/admin"): Row(HEAD),
    ("GET", "/admin/health"): Row(HEAD),
    ("GET", "/admin/people"): Row(HEAD),
    ("POST", "/admin/people"): Row(HEAD, form={"name": "zoe", "role": "pupil"}),
    ("POST", "/admin/people/sheet"): Row(HEAD, status=400),
    ("GET", "/admin/people/export"): Row(HEAD),
    ("GET", "/admin/people/import"): Row(HEAD),
    ("POST", "/admin/people/import"): Row(HEAD, status=400),
    ("POST", "/admin/people/import/{id}"): Row(HEAD, at={"id": "import"}, status=409),
    ("GET", "/admin/people/{id}"): Row(HEAD, at={"id": "pupil"}),
    ("POST", "/admin/people/{id}"): Row(HEAD, at={"id": "pupil"}, form={"name": "ann", "role": "pupil"}),
    ("POST", "/admin/people/{id}/{act}"): Row(HEAD, at={"id": "pupil", "act": "act"}),
    ("GET", "/admin/settings"): Row(HEAD),
    ("GET", "/admin/audit"): Row(HEAD),
    ("GET", "/admin/jobs"): Row(HEAD),
    ("GET", "/admin/jobs/{id}"): Row(HEAD, at={"id": "job"}),
    ("POST", "/admin/jobs/{id}/cancel"): Row(HEAD, at={"id": "job"}),
    ("POST", "/admin/jobs/{id}/again"): Row(HEAD, at={"id": "job"}),
    # keys, and what they open
    ("GET", "/keys"): Row(STAFF),
    ("POST", "/keys"): Row(STAFF, form={"name": "mine", "scope": "chat"}),
    ("POST", "/keys/{id}/revoke"): Row(BROWN, at={"id": "key"}),
    ("GET", "/v1/models"): Row(STAFF, scope="chat"),
    ("POST", "/v1/chat/completions"): Row(INSIDE, scope="chat", json=SPEAK),
    ("POST", "/v1/embeddings"): Row(STAFF, scope="embed", json={"model": "default", "input": "leaves"}),
}
THINGS = (
    "talk", "turn", "document", "passage", "class", "pupil", "key", "job", "example", "model", "import", "act", "kind",
    "deleted", "flag", "scene", "draft", "running", "said", "lesson", "rehearsed", "brown id", "lead id",
)  # fmt: skip


# --- the addresses ----------------------------------------------------------------------------------------------------
def addresses(app: FastAPI) -> set[tuple[str, str]]:
    """(method, path) of every route, in routers within routers as well; static files have no owner."""
    found: set[tuple[str, str]] = set()

    def walk(routes: Any, prefix: str) -> None:
        for route in routes:
            inner = getattr(route, "original_router", None)
            if inner is not None:
                walk(inner.routes, prefix + getattr(route.include_context, "prefix", ""))
            elif isinstance(route, Mount):
                assert route.path == "/static", f"{route.path}: this walk does not know what is mounted there"
            else:
                found.update((method, prefix + route.path) for method in route.methods - {"HEAD", "OPTIONS"})

    walk(app.routes, "")
    return found


@pytest.fixture(scope="module")
def school(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A home with all of them and their things in it, to be copied for whoever asks; and what is known of it."""
    return asyncio.run(_school(tmp_path_factory.mktemp("school") / "home"))


async def _school(home: Path) -> tuple[Path, dict[str, Any]]:
    box = open_box(home)
    mine, other = box.classes.add("7B", lesson="CANARY-LESSON"), box.classes.add("8C")
    known: dict[str, Any] = {"class": mine.id, "other class": other.id}
    for name, role in ROLES.items():
        person, _ = box.people.add(name, role, password=PASSWORD, full_name="CANARY-PUPIL" if name == "ann" else "")
        if name in ("ann", "brown", "gone"):
            box.people.join(person.id, mine.id, teaches=role == "teacher")
        if name in ("ben", "white"):
            box.people.join(person.id, other.id, teaches=role == "teacher")
        known[name] = {"cookie": box.accounts.sign_in(name, PASSWORD, "")[0]}
        known[name]["csrf"] = box.accounts.session(known[name]["cookie"]).csrf
        for scope in ("chat", "embed", "admin"):
            known[name][scope] = f"{KEY_PREFIX}{name}-{scope}"
            id = f"{name}-{scope}"
            row = {"id": id, "user": person.id, "name": "CANARY-KEY" if name == "brown" else "key", "scope": scope}
            with box.database.begin() as connection:
                connection.execute(sa.insert(keys).values(hash=digest(known[name][scope]), created=time.time(), **row))
    box.chat.quotas.set("role", "teacher", "week", 1000)
    box.library.shelves.create("7B books", readers=[Reader("class", "7B")])
    file = home.parent / "leaves.md"
    file.write_text("# CANARY-BOOK\n\nLeaves are green because chlorophyll, the CANARY-BOOK, reflects green light.\n")
    (added,) = await box.library.add([file], "7B books")
    ann = box.accounts.named("ann")
    (asked,) = [one async for one in box.chat.answer(ann, "CANARY-TALK, why are leaves green?") if one.kind == "turn"]
    (other,) = [one async for one in box.chat.answer(ann, "CANARY-TALK, and why not blue?") if one.kind == "turn"]
    async for _ in box.chat.answer(ann, "CANARY-FLAG, I want to kill myself"):
        pass
    known["flag"] = box.safeguarding.list()[0].id
    await box.chat.delete(ann, other.data["conversation"])
    known["deleted"] = other.data["conversation"]
    _, passages = await box.library.document(added.document, box_within(box, ann))
    known |= _staffs_things(box, home.parent)
    known |= await _rehearsed(box)
    box.people.change(box.accounts.named("gone").id, disabled=True)
    await shut(box)
    known |= {
        "talk": asked.data["conversation"], "turn": asked.data["turn"], "pupil": ann.id, "key": "brown-chat",
        "document": added.document, "passage": passages[0].id,
    }  # fmt: skip
    return home, known


def _staffs_things(box: Any, folder: Path) -> dict[str, Any]:
    """A job of Mr Brown's that waits, an example to review, and two models of which one was judged."""
    asked = {"paths": [], "collection": "7B books", "collection_id": "", "by": "", "subject": "", "grade": ""}
    job = box.jobs.enqueue("ingest", asked, lane="light", owner=box.accounts.named("brown").id)
    rows = folder / "rows.jsonl"
    rows.write_text('{"id": "row", "messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]}')
    ExampleStore(box.database).import_rows(rows, licence="CC BY 4.0", author="A. Author", reviewer="test")
    for id in ("green-1", "green-2"):
        weights = folder / id
        weights.mkdir()
        (weights / "model.gguf").write_bytes(b"GGUF" + id.encode())
        box.registry.add(weights, id=id, kind="base", title=id, licence="MIT", context=1024, report=report().to_json())
    collection = box.library.shelves.one("7B books", EVERYTHING).id
    head, imported = box.accounts.named("head").id, "0123456789abcdef"
    (box.settings.run / "imports").mkdir(parents=True)
    (box.settings.run / "imports" / f"{head}-{imported}").write_text("people.csv\nname,role\nzoe,pupil\n")
    return {
        "job": job.id, "example": "row", "model": "green-1", "collection": collection, "import": imported, "act": "disable",
        "kind": "md",
    }  # fmt: skip


async def _rehearsed(box: Any) -> dict[str, Any]:
    """A draft of Mr Brown's, a lesson of his under way, and a finished one that the safeguarding lead may read."""
    brown, lead = box.accounts.named("brown"), box.accounts.named("lead")
    draft = box.scenes.save(brown, box.scenes.get(brown, "larger-denominator").as_facts())
    running, finished = (box.rehearsals.begin(brown, "larger-denominator") for _ in range(2))
    said = [await box.rehearsals.say(brown, id, "CANARY-REHEARSED, what do you think?") for id in (running, finished)]
    box.rehearsals.finish(brown, finished)
    box.rehearsals.mentors.give(brown, "lead")
    return {
        "scene": "larger-denominator", "scene text": box.scenes.export(brown, "larger-denominator"), "draft": draft.id,
        "running": running, "said": said[0].leaf, "lesson": finished,
        "rehearsed": said[1].leaf, "brown id": brown.id, "lead id": lead.id,
    }  # fmt: skip


def box_within(box: Any, user: Any) -> Filter:
    return Filter(box.accounts.visible(user, "collection"))


def open_box(home: Path) -> Any:
    settings = Settings(home=home)
    return make_box(settings, library=lambda database: Library(settings, database, embed))


async def shut(box: Any) -> None:
    await box.chat.close()
    box.library.close()
    box.database.close()


# --- asking -----------------------------------------------------------------------------------------------------------
async def ask(app: FastAPI, known: dict[str, Any], actor: str, method: str, path: str, row: Row) -> httpx.Response:
    url = re.sub(r"{(\w+)(?::\w+)?}", lambda name: str(known[row.at[name[1]]]), path)
    headers, cookies = {"accept": "text/html", "x-csrf-token": "visitor's own"}, {"visitor": "visitor's own"}
    if actor != "nobody" and row.scope:
        headers["authorization"] = f"Bearer {known[actor][row.scope]}"
    elif actor != "nobody" and not path.startswith("/v1/"):
        cookies["session"] = known[actor]["cookie"]
        if actor != "gone":
            headers["x-csrf-token"] = known[actor]["csrf"]
    transport = httpx.ASGITransport(app, raise_app_exceptions=True)
    async with httpx.AsyncClient(transport=transport, base_url=BASE, headers=headers, cookies=cookies) as client:
        form = {name: str(value).format(**known) for name, value in row.form.items()}
        more = {"json": row.json} if row.json is not None else {"data": form} if method == "POST" else {}
        return await client.request(method, url, **more)


def refused(reply: httpx.Response, path: str) -> bool:
    first_page = reply.status_code == 303 and reply.headers["location"] == "/" and path != "/sign-out"
    return reply.status_code in (401, 403, 404) or first_page


def test_every_address_has_a_row_and_every_row_an_address(tmp_path: Path) -> None:
    box = open_box(tmp_path / "home")
    found = addresses(create_app(box))
    asyncio.run(shut(box))
    undeclared, vanished = sorted(found - TABLE.keys()), sorted(TABLE.keys() - found)
    lines = "\n".join(f'    ("{method}", "{path}"): Row(WHO),' for method, path in undeclared)
    assert not undeclared, f"Nobody has said who gets in. Add to TABLE in {__file__}, with WHO filled in:\n{lines}"
    assert not vanished, f"There are no such addresses any more. Take out of TABLE in {__file__}: {vanished}"
    assert len(found) > 30, "the walk must have found the routes"


@pytest.mark.parametrize(("method", "path"), TABLE, ids=lambda one: str(one))
async def test_who_gets_in(school: tuple[Path, dict[str, Any]], tmp_path: Path, method: str, path: str) -> None:
    """All who are refused ask one box, which they must not have changed; each who is let in finds it new."""
    row, (home, known) = TABLE[method, path], school
    names = set(re.findall(r"{(\w+)", path))
    assert names == row.at.keys(), f"The row of {method} {path} needs `at` for {names}, each one of {THINGS}."
    wrong = []
    outside = [actor for actor in ACTORS if actor not in row.who]
    for group in [outside, *[[actor] for actor in sorted(row.who)]]:
        copy = tmp_path / ("outside" if group is outside else group[0])
        shutil.copytree(home, copy)
        box = open_box(copy)
        app = create_app(box)
        for actor in group:
            reply = await ask(app, known, actor, method, path, row)
            out, says = refused(reply, path), f"{reply.status_code} {reply.headers.get('location', '')}"
            if out != (actor not in row.who):
                wrong.append(f"{actor} {'is refused' if out else 'gets in'} ({says})")
            elif not out and not (reply.status_code == row.status if row.status else reply.status_code < 400):
                wrong.append(f"{actor} gets in, and something is amiss ({says}): is what the row sends right?")
            seen = {name for name, who in CANARIES.items() if name in reply.text and (out or actor not in who)}
            if seen:
                wrong.append(f"{actor} reads {', '.join(sorted(seen))} ({says})")
        await shut(box)
    assert not wrong, f'("{method}", "{path}"): ' + "; ".join(wrong)


def contents(box: Any) -> dict[str, list[Any]]:
    with box.database.read() as connection:
        return {name: [tuple(row) for row in connection.execute(sa.select(table))] for name, table in metadata.tables.items()}


async def test_every_form_needs_the_token_of_the_session_that_sends_it(school: Any, tmp_path: Path) -> None:
    """Each is sent by somebody who gets in, all as it should be but for the token: without one, with the one of visitors, with
    another person's. A page of another site can do no more, whatever it makes a browser send."""
    home, known = school
    shutil.copytree(home, tmp_path / "home")
    box = open_box(tmp_path / "home")
    app, before, asked, wrong = create_app(box), contents(box), 0, []
    for (method, path), row in TABLE.items():
        inside = sorted(row.who - {"nobody", "gone"}) or ["ann"]
        if method != "POST" or row.scope:
            continue
        for token in ("", "visitor's own", known["ben" if inside[0] != "ben" else "ann"]["csrf"], "é"):
            sender = {**known[inside[0]], "csrf": token.encode()}
            reply = await ask(app, {**known, inside[0]: sender}, inside[0], method, path, row)
            asked += 1
            if reply.status_code != 403 or "This form is too old or did not come from this page." not in reply.text:
                wrong.append(f"POST {path} with {token[:20]!r}: {reply.status_code}")
    assert not wrong, "\n".join(wrong)
    assert asked > 200 and contents(box) == before, "nothing has changed"
    await shut(box)


# --- another's ids where a body holds them ------------------------------------------------------------------------------
@pytest.fixture
async def copy(school: tuple[Path, dict[str, Any]], tmp_path: Path) -> AsyncIterator[Any]:
    shutil.copytree(school[0], tmp_path / "home")
    box = open_box(tmp_path / "home")
    yield box
    await shut(box)


def told_the_model(box: Any) -> str:
    messages: list[Message] = [message for request in box.pool.requests for message in request.messages]
    return "\n".join(message.content for message in messages)


@pytest.mark.parametrize("actor", ["ben", "white", "lead", "head"])
async def test_anothers_conversation_in_a_body(school: Any, copy: Any, actor: str) -> None:
    known = school[1]
    row = Row(NOBODY, form={"question": "And why?", "conversation": known["talk"]})
    reply = await ask(create_app(copy), known, actor, "POST", "/chat/ask", row)
    assert reply.status_code == 404 and "CANARY" not in reply.text and copy.pool.requests == []
    _, turns = copy.chat.conversations.load(copy.accounts.named("ann"), known["talk"])
    assert len(turns) == 2, "nothing was written into it"


async def test_anothers_class_in_a_body_is_no_lesson_of_ones_own(school: Any, copy: Any) -> None:
    known = school[1]
    row = Row(NOBODY, form={"question": "Why are leaves green?", "class_id": known["class"]})
    reply = await ask(create_app(copy), known, "ben", "POST", "/chat/ask", row)
    assert reply.status_code == 303
    ben = copy.accounts.named("ben")
    talk = copy.chat.conversations.list(ben)[0].id
    _, turns = copy.chat.conversations.load(ben, talk)
    async for _ in copy.chat.follow(ben, turns[-1].id):
        pass
    assert copy.pool.requests and "CANARY" not in told_the_model(copy)
    assert copy.chat.lessons.of(ben, talk).class_id == known["other class"]


@pytest.mark.parametrize("actor", ["ben", "white", "lead", "head"])
async def test_anothers_collection_in_a_body(school: Any, copy: Any, actor: str) -> None:
    body = {**SPEAK, "collections": ["7B books"]}
    reply = await ask(create_app(copy), school[1], actor, "POST", "/v1/chat/completions", Row(NOBODY, json=body, scope="chat"))
    assert reply.status_code == 404 and "CANARY" not in reply.text + told_the_model(copy)
    nothing = {**SPEAK, "collections": ["Nothing"]}
    other = await ask(
        create_app(copy), school[1], actor, "POST", "/v1/chat/completions", Row(NOBODY, json=nothing, scope="chat")
    )
    assert other.text.replace("Nothing", "7B books") == reply.text, "whether it is there is not told"


async def test_anothers_collection_is_no_source_of_a_class(school: Any, copy: Any) -> None:
    known, within = school[1], box_within(copy, copy.accounts.named("ann"))
    books = copy.library.shelves.one("7B books", within).id
    form = {"name": "8C", "help_level": "full", "version": "1", "collections": books}
    url = {**known, "class": known["other class"]}
    row = Row(NOBODY, at={"id": "class"}, form=form)
    assert (await ask(create_app(copy), url, "white", "POST", "/classes/{id}", row)).status_code == 303
    assert not copy.classes.collections(known["other class"])
