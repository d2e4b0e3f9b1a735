"""`/metrics`: who may read it, that a strict reader of the format can, and that it knows nobody."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest

from appliance.web import metrics
from tests.web.conftest import BASE, NAME, csrf

SAMPLE = re.compile(r"([a-z_][a-z0-9_]*)(?:\{(.*)\})? (-?[0-9.e+-]+|\+Inf|NaN)")
LABEL = re.compile(r'([a-z_]+)="((?:[^"\\\n]|\\[\\"n])*)"(?:,|$)')

Family = dict[str, Any]


def parsed(text: str) -> dict[str, Family]:
    """The text format 0.0.4, read strictly: HELP, then TYPE, then this family's samples and no other's, each once; buckets of
    a histogram rise to the count."""
    assert text.endswith("\n") and "\n\n" not in text
    found: dict[str, Family] = {}
    name = ""
    for line in text.splitlines():
        if line.startswith("# HELP "):
            name, _, words = line[7:].partition(" ")
            assert name not in found and words, line
            found[name] = {"type": "", "samples": {}}
        elif line.startswith("# TYPE "):
            named, _, kind = line[7:].partition(" ")
            assert named == name and not found[name]["type"] and kind in ("counter", "gauge", "histogram"), line
            found[name]["type"] = kind
        else:
            sample = SAMPLE.fullmatch(line)
            assert sample, line
            family, endings = found[name], ("_bucket", "_sum", "_count")
            allowed = {name + end for end in endings} if family["type"] == "histogram" else {name}
            assert family["type"] and sample[1] in allowed, line
            labels = dict(LABEL.findall(sample[2] or ""))
            assert LABEL.sub("", sample[2] or "") == "", line
            key = (sample[1], *sorted(labels.items()))
            assert key not in family["samples"], line
            family["samples"][key] = float(sample[3])
    for name, family in found.items():
        assert family["samples"] or family["type"] == "counter", name
        if family["type"] == "histogram":
            buckets = [value for key, value in family["samples"].items() if key[0].endswith("_bucket")]
            assert buckets == sorted(buckets) and buckets[-1] == family["samples"][(f"{name}_count",)]
    return found


@pytest.fixture
def admin_key(box: Any) -> str:
    head, _ = box.people.add("head", "administrator")
    return str(box.accounts.create_key(box.accounts.named(head.name), "prometheus", "admin")[1])


async def read(app: Any, key: str) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BASE, headers=headers) as client:
        return await client.get("/metrics")


async def test_a_key_of_the_scope_admin_reads_them_and_nothing_else_does(
    box: Any, app: Any, person: httpx.AsyncClient, key: str, admin_key: str
) -> None:
    assert (await person.get("/metrics")).status_code == 303, "not even an administrator's cookie: a program asks"
    assert (await read(app, "")).status_code == 401 and (await read(app, key)).status_code == 403
    teacher, _ = box.people.add("tom", "teacher")
    theirs = box.accounts.create_key(box.accounts.named(teacher.name), "mine", "admin")[1]
    assert (await read(app, theirs)).status_code == 403
    reply = await read(app, admin_key)
    assert reply.status_code == 200 and reply.headers["content-type"].startswith("text/plain; version=0.0.4")


async def test_requests_waits_jobs_and_the_machine_are_counted(
    box: Any, app: Any, person: httpx.AsyncClient, admin_key: str
) -> None:
    asked = await person.post("/chat/ask", data={"question": "Why are leaves green?", "csrf": await csrf(person, "/chat")})
    talk = asked.headers["location"]
    turn = box.chat.conversations.load(box.accounts.named(NAME), talk.split("/")[-1].partition("#")[0])[1][-1].id
    assert "event: done" in (await person.get(f"/chat/stream/{turn}")).text
    await person.get("/chat/CANARY-ID")
    await person.get("/CANARY-ADDRESS?CANARY-QUERY")
    box.jobs.enqueue("retrain", {"base": None}, owner="CANARY-OWNER")
    text = (await read(app, admin_key)).text
    found = parsed(text)
    requests = found["appliance_requests_total"]["samples"]

    def count(method: str, route: str, status: str) -> float:
        key = ("appliance_requests_total", ("method", method), ("route", route), ("status", status))
        return float(requests.get(key, 0))

    assert count("POST", "/chat/ask", "303") == 1 and count("GET", "/chat/stream/{turn}", "200") == 1
    assert count("GET", "/chat/{id}", "404") == 1 and count("GET", "", "404") == 1
    for name in ("appliance_first_words_seconds", "appliance_answer_seconds"):
        assert found[name]["samples"][(f"{name}_count",)] == 1
    assert found["appliance_jobs"]["samples"][("appliance_jobs", ("state", "queued"))] == 1
    for name in ("memory_available_bytes", "memory_bytes", "disk_free_bytes", "disk_bytes"):
        assert found[f"appliance_{name}"]["samples"][(f"appliance_{name}",)] > 0
    assert found["appliance_engine_up"]["samples"][("appliance_engine_up",)] == 0, "there is none in this test"
    for words in ("CANARY", NAME, "leaves", turn):
        assert words not in text


async def test_the_engines_numbers_are_handed_on_and_nothing_else_of_it(box: Any, app: Any, admin_key: str) -> None:
    from appliance.engine.metrics import Metrics

    own = Metrics()
    own.first_token(0.3)
    own.ended("finished")

    class Engine:
        async def metrics(self) -> str:
            return own.text({"m": {"running": 2}}) + 'secret{pupil="CANARY"} 1\nengine_x{a="b\\"} 1\n'

    box.engine = Engine()
    text = (await read(app, admin_key)).text
    found = parsed(text)
    assert found["appliance_engine_up"]["samples"][("appliance_engine_up",)] == 1
    assert found["engine_running"]["samples"][("engine_running",)] == 2 and "CANARY" not in text
    assert found["engine_first_token_seconds"]["samples"][("engine_first_token_seconds_count",)] == 1


async def test_what_is_seen_becomes_the_figures_of_this_hour(box: Any) -> None:
    counted = metrics.Metrics()
    for seconds in (1.0, 2.0):
        counted.first_words(seconds)
    seen = [await metrics.look(box), {"waiting": 3.0, "memory": 0.5}]
    metrics.write(box, counted, seen)
    metrics.write(box, counted, [])
    today = {name: box.figures.days(name, 1)[0] for name in ("first_words", "waiting", "memory", "disk")}
    assert today["first_words"].count == 2 and today["first_words"].mean == 1.5
    assert today["waiting"].most == 3.0 and today["memory"].count == 2 and 0 < today["disk"].most < 1
