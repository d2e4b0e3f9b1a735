"""The administrator's pages: how the box is, its jobs, its settings, its record, its models; and nobody else's."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from appliance import doctor, prompts, selftest
from appliance.checkup import upgraded
from appliance.errors import GateNotPassed
from appliance.registry import Manifest, Registry
from appliance.selftest import Measured
from appliance.settings import Settings
from tests.web.staff import signed_in

PAGES = ("/admin", "/admin/health", "/admin/settings", "/admin/audit", "/admin/jobs", "/admin/models", "/admin/retrain")


@pytest.fixture
def models(box: Any, tmp_path: Path) -> Registry:
    registry = Registry(box.settings.models)
    for id in ("green-1", "green-2"):
        folder = tmp_path / id
        folder.mkdir()
        (folder / "model.gguf").write_bytes(b"GGUF" + id.encode())
        registry.add(folder, id=id, kind="base", title=f"{id} <b>title</b>", licence="MIT", context=1024)
    registry.promote("green-1")
    asked: list[tuple[str, str, str]] = []

    async def promote(id: str, *, accept: str = "", actor: str = "") -> Any:
        asked.append((id, accept, actor))
        if not accept:
            raise GateNotPassed("It was never judged.", "Say why it is to be served all the same.")
        return registry.promote(id)

    async def rollback(*, actor: str = "") -> Any:
        asked.append(("previous", "", actor))
        return registry.rollback()

    box.registry, box.promote, box.rollback, box.asked = registry, promote, rollback, asked
    box.retraining_plan = lambda: ["3 rows would be used.", "1 row waits for <review>."]
    return registry


async def test_the_pages_are_for_the_administrator(box: Any, app: Any, person: httpx.AsyncClient, models: Registry) -> None:
    for page in PAGES:
        assert (await person.get(page)).status_code == 200, page
    for role in ("pupil", "teacher", "safeguarding"):
        async with signed_in(app, box, f"a {role}", role) as other:
            for page in PAGES:
                allowed = role == "teacher" and page == "/admin/models"
                assert (await other.get(page)).status_code == (200 if allowed else 403), (role, page)
            for address in (
                "/admin/models/green-2/promote",
                "/admin/models/rollback",
                "/admin/retrain",
                "/admin/jobs/x/cancel",
            ):
                assert (await other.post(address)).status_code == 403, (role, address)
    assert box.asked == [] and models.champion().id == "green-1"  # type: ignore[union-attr]


async def test_health_says_what_is_wrong_and_what_to_do(
    box: Any, person: httpx.AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (await person.get("/admin/health")).text
    assert "appliance worker" in page and "safeguarding lead" in page and "3 things need you." in page
    box.people.add("Ms Lead", "safeguarding", password="correct horse battery")
    last = {"id": "1", "at": time.time(), "where": "/mnt/usb", "own_disk": False, "bytes": 2e9}
    box.settings.backups.mkdir()
    (box.settings.backups / "known.json").write_text(json.dumps({"last": last, "proven": last}))
    with box.jobs.lock(box.jobs.worker()):
        assert "Everything is fine." in (await person.get("/admin")).text
    box.pool.down = True
    page = (await person.get("/admin")).text
    assert "2 things need you." in page and 'href="/admin/health"' in page
    spanish = (await person.get("/admin/health", headers={"accept-language": "es"})).text
    # All but the certificate, where the school has put in none of its own, and an upgrade, where none was undone.
    heads = re.findall(r'<th scope="row">([^<]+)</th><td class="told">.*?<bdi( lang="en")?>', spanish)
    assert [lang for _, lang in heads] == [' lang="en"'] * (len(doctor.NAMES) - 2), "which words are no Spanish is marked"
    assert "Copias de seguridad" in dict(heads) and not {*doctor.NAMES} - {"GPU"} & {*dict(heads)}
    monkeypatch.setattr(upgraded, "OUTCOME", tmp_path / "changed.json")
    undone = {"before": "1.0", "to": "1.1", "runs": "1.0", "why": "appliance-web ended again and again", "at": time.time()}
    upgraded.OUTCOME.write_text(json.dumps(undone))
    page = (await person.get("/admin/health")).text
    assert "The upgrade from 1.0 to 1.1 was undone on" in page and "appliance-web ended again" in page and "journalctl" in page
    upgraded.OUTCOME.write_text(json.dumps(undone | {"runs": "1.1"}))
    assert "was undone" not in (await person.get("/admin/health")).text


async def test_settings_show_what_differs(box: Any, person: httpx.AsyncClient) -> None:
    box.settings = Settings(home=box.settings.home, school="Hill School", port=8123)
    page = (await person.get("/admin/settings")).text
    assert "8123" in page and len(re.findall(r'class="state fine"', page)) == 3, page
    assert "/etc/appliance/appliance.toml" in page


async def test_jobs_are_shown_stopped_and_begun_again(box: Any, person: httpx.AsyncClient) -> None:
    job = box.jobs.enqueue("retrain", {"base": None}, owner="somebody")
    box.jobs.note(job.id, "a line of its record")
    listed = (await person.get("/admin/jobs")).text
    assert (
        f'/admin/jobs/{job.id}">Making the next model</a>' in listed
        and "waiting" in listed
        and "worker is not running" in listed
    )
    assert "a line of its record" in (await person.get(f"/admin/jobs/{job.id}")).text
    assert (await person.post(f"/admin/jobs/{job.id}/cancel")).status_code == 303
    assert box.jobs.get(job.id).state == "cancelled"
    again = await person.post(f"/admin/jobs/{job.id}/again")
    assert again.status_code == 303 and again.headers["location"] != f"/admin/jobs/{job.id}"
    assert [one.state for one in box.jobs.list()].count("queued") == 1
    assert (await person.get("/admin/jobs/nothing")).status_code == 404
    assert [one.verb for one in box.audit.entries()][-2:] == ["cancel job", "repeat job"]


async def test_the_record_is_shown_with_names_and_checked(box: Any, person: httpx.AsyncClient) -> None:
    me = box.accounts.named("Ms Green")
    box.audit.note("close class", "c1", {}, actor=me.id)
    box.audit.note("promote", "m1", {})
    page = (await person.get("/admin/audit")).text
    assert "Ms Green" in page and "close class" in page and "m1" in page
    assert "m1" not in (await person.get("/admin/audit?verb=close+class")).text
    assert "The record is whole: 2 rows." in (await person.get("/admin/audit?verify=1")).text
    with box.database.begin() as connection:
        connection.exec_driver_sql("UPDATE audit SET thing = 'm2' WHERE verb = 'promote'")
    assert "The audit record was changed" in (await person.get("/admin/audit?verify=1")).text


@pytest.mark.usefixtures("models")
async def test_the_record_names_people_classes_and_models_beside_their_ids(box: Any, person: httpx.AsyncClient) -> None:
    lesson = box.classes.add("7 B <i>")
    ann, _ = box.people.add("ann <b>", "teacher", full_name="Ann Lee")
    me = box.accounts.named("Ms Green").id
    for verb, thing, actor in (
        ("open class", lesson.id, ann.id),
        ("admit", f"person {ann.id}", ann.id),
        ("promote", "green-1", me),
        ("make passwords", "people", "root"),
    ):
        box.audit.note(verb, thing, {}, actor=actor)
    box.classes.archive(lesson.id)
    told = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", (await person.get("/admin/audit")).text))
    for row in (
        f"ann &lt;b&gt; {ann.id} open class 7 B &lt;i&gt; {lesson.id} ",
        f"ann &lt;b&gt; {ann.id} admit ann &lt;b&gt; person {ann.id} ",
        f"Ms Green {me} promote green-1 &lt;b&gt;title&lt;/b&gt; green-1 ",
        " root make passwords people ",
    ):
        assert row in told, row
    box.people.remove(ann.id)
    told = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", (await person.get("/admin/audit")).text))
    assert "ann &lt;b&gt;" not in told and f" {ann.id} admit person {ann.id} " in told, "who is erased is an id"
    assert box.audit.verify() == 4


async def test_a_model_is_served_with_a_reason_and_gone_back_from(
    box: Any, person: httpx.AsyncClient, models: Registry
) -> None:
    page = (await person.get("/admin/models")).text
    assert "&lt;b&gt;title" in page and "<b>title" not in page and "answers now" in page
    refused = await person.post("/admin/models/green-2/promote")
    assert refused.status_code == 409 and "Serve it all the same, because" in refused.text and models.champion().id == "green-1"  # type: ignore[union-attr]
    done = await person.post("/admin/models/green-2/promote", data={"reason": "tried by two teachers"})
    assert done.status_code == 303 and models.champion().id == "green-2"  # type: ignore[union-attr]
    me = box.accounts.named("Ms Green").id
    assert box.asked[-1] == ("green-2", "tried by two teachers", me)
    assert (await person.post("/admin/models/rollback")).status_code == 303
    assert models.champion().id == "green-1"  # type: ignore[union-attr]
    assert (await person.get("/admin/models/green-1/report")).status_code == 404
    plan = (await person.get("/admin/retrain")).text
    assert "3 rows would be used." in plan and "&lt;review&gt;" in plan
    started = await person.post("/admin/retrain")
    assert started.headers["location"].startswith("/admin/jobs/") and box.jobs.list()[0].kind == "retrain"


async def test_everything_that_was_tuned_stands_in_one_table_and_plugins_say_what_they_need(
    box: Any, person: httpx.AsyncClient, models: Registry
) -> None:
    about = {"plugin": "openai", "model": "ft:x", "base": "gpt-<i>", "method": "supervised", "cost": 1.5, "currency": "USD"}
    far = Manifest("far-1", "hosted", "Far <b>model", "terms", 4096, {}, hosted=about, dataset="d" * 64)
    models.add_hosted(far)
    me = box.accounts.local_administrator()
    word = prompts.load("teacher_responder").as_program()
    made = box.chat.programs.add(me, word, report={"passed": True, "method": "bootstrap"}, maker="dspy")
    plain = box.chat.programs.add(me, word, subject="history", maker="import")
    page = (await person.get("/admin/models")).text
    for words in (
        "openai supervised",
        "gpt-&lt;i&gt;",
        "1.5 USD",
        "dddddddd",
        "dspy bootstrap",
        "imported",
        "on another machine",
    ):
        assert words in page, words
    assert "Far <b>" not in page and "Another model server is off while the box is air-gapped." in page
    assert (await person.post(f"/admin/models/{plain.id}/promote")).status_code == 409
    done = await person.post(f"/admin/models/{made.id}/promote")
    assert done.status_code == 303 and box.chat.programs.get(made.id).state == "active"
    assert box.audit.entries(thing=made.id)[-1].actor == box.accounts.named("Ms Green").id


async def test_a_report_is_shown_and_may_do_nothing(person: httpx.AsyncClient, models: Registry) -> None:
    from tests.tuning.test_report_page import report

    with pytest.MonkeyPatch.context() as patch:
        judged = SimpleNamespace(report=report().to_json())
        patch.setattr(models, "get", lambda _id: judged)
        reply = await person.get("/admin/models/green-2/report")
    assert reply.status_code == 200 and "default-src 'none'" in reply.headers["content-security-policy"]
    assert "script" not in reply.headers["content-security-policy"] and "<script" not in reply.text


async def test_two_models_are_compared_without_names(box: Any, person: httpx.AsyncClient, models: Registry) -> None:
    from appliance.tuning import blind

    nothing = await person.get("/admin/compare?a=green-1&b=green-2")
    assert nothing.status_code == 404 and "models compare green-1 green-2 --blind" in nothing.text
    comparison = blind.Comparison(box.settings, models.get("green-1"), models.get("green-2"))
    for number in range(3):
        question = blind.Question(f"q{number}", f"Question {number}?", "", "")
        row = {
            "key": comparison.key(question),
            "id": question.id,
            "question": question.text,
            "answers": ["one says", "two says"],
        }
        comparison._append(row)
    for left in (3, 2, 1):
        page = (await person.get("/admin/compare?a=green-1&b=green-2")).text
        assert f"{left} left" in page and "one says" in page and "two says" in page
        key = re.search(r'name="key" value="([^"]+)"', page)
        assert key
        form = {"a": "green-1", "b": "green-2", "key": key[1], "choice": "t"}
        assert (await person.post("/admin/compare", data=form)).status_code == 303
    assert "Compared blind" in (await person.get("/admin/compare?a=green-1&b=green-2")).text
    assert (await person.post("/admin/compare", data=form | {"choice": "x"})).status_code == 400


async def test_health_draws_the_last_weeks_and_says_what_the_machine_can_do(box: Any, person: httpx.AsyncClient) -> None:
    page = (await person.get("/admin/health")).text
    assert "<rect" not in page and "appliance selftest" in page, "nothing was seen or measured yet"
    box.figures.add({"first_words": [2.0, 4.0], "disk": [0.5]})
    selftest.judge(box.settings, "starter <b>", Measured(10**8, 3 * 10**8, 16, 4, 16 * 10**9, 0, 2e10, 2000.0, 60.0, 15.0))
    page = (await person.get("/admin/health")).text
    assert page.count("<rect") == 2 and 'y="36" width="8" height="36"' in page, "half of the disk is half of the height"
    assert "Today 3.0 s, highest 3.0 s." in page and "Today 50 %, highest 50 %." in page
    assert "This machine can serve" in page and "<b>" not in page and " style=" not in page
