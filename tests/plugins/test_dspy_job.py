"""From rows to what is served: a program that was optimised while connected answers pupils, also after the line is cut."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from appliance import prompts
from appliance.asking import ask_text
from appliance.cli import group
from appliance.cli.examples import erase_withdrawn
from appliance.cli.output import Output
from appliance.cli.worker import handlers
from appliance.engine.handler import Chunk, Message, Request
from appliance.errors import BadInput, Forbidden, GateNotPassed, ModelUnavailable, NotFound
from appliance.jobs import Jobs, work_one
from appliance.plugins import dspy_job
from appliance.plugins.dspy_job import Order
from appliance.redact import Pupil, Roster
from appliance.settings import Settings
from appliance.tuning.store import ExampleStore
from appliance.web.server import create_app
from tests.plugins.scripted import BAD, GOOD, ROWS, Connected, box_of, close_line, open_line, write
from tests.web.conftest import BASE, csrf
from tests.web.test_pages import ask

pytest.importorskip("dspy", reason="the extra [dspy] is not installed")
NAME = "teacher_responder"


@pytest.fixture
async def box(settings: Settings) -> AsyncIterator[Any]:
    open_line(settings)
    box = box_of(settings, Connected())
    yield box
    await box.chat.close()
    box.database.close()


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write(tmp_path / "rows.jsonl", ROWS)


def silent(*_: Any) -> None: ...


def order(rows: Path, **more: Any) -> Order:
    return Order(**{"examples": str(rows), "budget": 120} | more)


async def through_v1(box: Any, question: str) -> str:
    """What a program with a key is answered by the real web process."""
    key = box.accounts.create_key(box.accounts.local_administrator(), "tests")[1]
    headers = {"authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(box)), base_url=BASE, headers=headers) as http:
        body = {"model": "default", "messages": [{"role": "user", "content": question}]}
        told = await http.post("/v1/chat/completions", json=body)
    return str(told.json()["choices"][0]["message"]["content"])


# --- what is served ---------------------------------------------------------------------------------------------------
async def test_the_served_prompt_is_the_optimised_one_also_after_the_line_is_cut(box: Any, rows: Path) -> None:
    question = "How do I sort these?"
    assert BAD in await through_v1(box, question)
    done = await dspy_job.work(box, order(rows), silent)
    assert done["promoted"] and not done["reasons"] and done["report"]["difference"]["low"] == 1.0
    module = prompts.from_program(box.chat.programs.export(done["id"]))
    assert GOOD in await through_v1(box, question)
    served = box.pool.requests[-1]
    assert list(served.messages) == module.render(question) and module.demonstrations
    close_line(box.settings)
    async with aclosing(box.chat.complete(box.accounts.local_administrator(), [Message("user", question)])) as events:
        said = [event async for event in events][-1].data["text"]
    assert GOOD in said and box.pool.requests[-1].messages == served.messages, "it is only a prompt"
    kept = box.chat.programs.get(done["id"])
    assert (kept.state, kept.maker, kept.report["passed"]) == ("active", "dspy", True)
    assert kept.report["run"] == Path(done["run"]).name and kept.report["dataset"] and kept.report["seconds"] > 0
    with pytest.raises(Forbidden):
        await dspy_job.work(box, order(rows), silent)


async def test_the_page_answers_by_the_optimised_prompt(box: Any, rows: Path) -> None:
    """A person signed in at the pages asks before and after, and once the line is cut; nothing else was done."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(box)), base_url=BASE) as person:
        form = {"csrf": await csrf(person), "name": "Ms Green", "password": "correct horse battery"}
        assert (await person.post("/setup", data=form | {"code": box.accounts.ensure_setup_code()})).status_code == 303
        person.headers["x-csrf-token"] = await csrf(person, "/chat")
        assert BAD in (await ask(person, "How do I sort these?"))["events"][-1][1]
        done = await dspy_job.work(box, order(rows), silent)
        assert GOOD in (await ask(person, "How do I sort those?"))["events"][-1][1]
        served = prompts.from_program(box.chat.programs.export(done["id"]))
        assert list(box.pool.requests[-1].messages) == served.render("How do I sort those?")
        close_line(box.settings)
        assert GOOD in (await ask(person, "And how do I sort them all?"))["events"][-1][1]


@pytest.mark.parametrize("name", ["scenario_generator", "student_reaction", "assessment"])
async def test_the_other_modules_are_served_as_optimised_too(box: Any, name: str) -> None:
    """What words a rehearsal, writes a scene and marks one asks with the program that was promoted."""
    me, file = box.accounts.local_administrator(), prompts.load(name)
    inputs = dict(file.demonstrations[0].inputs)
    program = file.as_program() | {"instructions": f"{file.instructions} Be brief.", "demonstrations": []}
    made = box.chat.programs.add(me, program, report={"passed": True}, maker=dspy_job.MAKER)

    async def asked() -> list[Message]:
        await ask_text(box.chat, me, name, inputs)
        return list(box.pool.requests[-1].messages)

    assert await asked() == file.render(file.asked(inputs))
    box.chat.programs.promote(me, made.id)
    close_line(box.settings)
    served = prompts.from_program(program)
    assert await asked() == served.render(served.asked(inputs)) != file.render(file.asked(inputs))


async def test_the_same_order_is_the_same_run_and_asks_nothing_twice(box: Any, rows: Path) -> None:
    first = await dspy_job.work(box, order(rows, promote=False), silent)
    asked = len(box.pool.requests)
    assert not first["promoted"] and box.chat.programs.get(first["id"]).state == "candidate"
    again = await dspy_job.work(box, order(rows), silent)
    assert again["id"] == first["id"] and again["promoted"] and len(box.pool.requests) == asked
    verdict = await dspy_job.judge(box, first["id"], None, silent)
    assert verdict["passed"] and verdict["n"] == 12, "on the rows that the run held out"
    with pytest.raises(BadInput, match="nothing to judge"):
        shown = [row for row in ROWS if row["id"] in first["report"]["rows"]]
        await dspy_job.judge(box, first["id"], write(rows.with_name("shown.jsonl"), shown), silent)
    with pytest.raises(NotFound):
        await dspy_job.judge(box, "nothing", None, silent)


async def test_what_is_not_surely_better_is_kept_and_serves_nobody(box: Any, tmp_path: Path) -> None:
    few = write(tmp_path / "few.jsonl", ROWS[:9])
    done = await dspy_job.work(box, order(few), silent)
    assert not done["promoted"] and "Only 4 examples" in done["reasons"][0]
    with pytest.raises(GateNotPassed, match="did not pass its gate"):
        box.chat.programs.promote(box.accounts.local_administrator(), done["id"])
    assert box.chat.programs.module(NAME) == prompts.load(NAME)


# --- whose words they are ---------------------------------------------------------------------------------------------
async def test_names_go_and_whoever_withdraws_takes_the_program_with_them(box: Any, tmp_path: Path) -> None:
    Roster(box.database).replace([Pupil("p7", "Thabo", "Mokwenela", "6A")])
    told = [{**row, "author": f"Author {n % 3}"} for n, row in enumerate(ROWS)]
    told[0] = {**told[0], "consent": False}
    for row in told[1:]:
        row["messages"] = [
            {**row["messages"][0], "content": f"I am Thabo Mokwenela. {row['messages'][0]['content']}"},
            row["messages"][1],
        ]
    rows = write(tmp_path / "rows.jsonl", told)
    store = ExampleStore(box.database)
    store.import_rows(rows, licence="CC0", reviewer="test")
    done = await dspy_job.work(box, order(rows), silent)
    assert done["promoted"] and sum(done["report"]["parts"].values()) == 29
    words = json.dumps(box.chat.programs.export(done["id"])) + "".join(
        path.read_text() for path in Path(done["run"]).rglob("*.json*")
    )
    assert "Thabo" not in words and "[name]" in words and "Author" not in words
    quoted = next(iter(done["report"]["rows"]))
    person = told[int(quoted[1:])]["author"]
    ids = store.withdraw(person, by="test")
    out = Output(json=True, settings=box.settings)
    erase_withdrawn(out, box, store)
    gone = box.chat.programs.forget(ids, "test")
    assert [one.id for one in gone] == [done["id"]] and not box.chat.programs.forget(ids, "test")
    assert box.chat.programs.module(NAME) == prompts.load(NAME), "the file serves in its place"
    left = box.chat.programs.get(done["id"])
    assert left.state == "retired" and box.chat.programs.export(done["id"]) == prompts.load(NAME).as_program()
    with pytest.raises(GateNotPassed):
        box.chat.programs.promote(box.accounts.local_administrator(), done["id"])
    assert not [*Path(done["run"]).rglob("calls.jsonl")] and not [*Path(done["run"]).rglob("data")]
    again = await dspy_job.work(box, order(rows, budget=90), silent)
    assert not set(again["report"]["rows"]) & set(ids)


async def test_rows_withdrawn_meanwhile_make_no_program(box: Any, tmp_path: Path) -> None:
    told = write(tmp_path / "told.jsonl", [{**row, "author": "Ann Other"} for row in ROWS])
    store = ExampleStore(box.database)
    ask = box.engine.say

    def say(request: Request) -> str:
        if len(box.engine.requests) == 20:
            store.withdraw("Ann Other", by="test")
        return str(ask(request))

    box.engine.say = say
    with pytest.raises(GateNotPassed, match="30 rows were withdrawn"):
        await dspy_job.work(box, order(told), silent)
    assert not box.chat.programs.list()


async def test_what_the_school_has_reviewed_teaches_where_no_file_is_named(box: Any, rows: Path) -> None:
    with pytest.raises(BadInput, match="no reviewed example yet"):
        await dspy_job.work(box, Order(), silent)
    store = ExampleStore(box.database)
    store.import_rows(rows, licence="CC0", reviewer="test")
    with pytest.raises(BadInput, match="no reviewed example yet"):
        await dspy_job.work(box, Order(), silent)
    store.approve([row["id"] for row in ROWS[:20]], "test")
    done = await dspy_job.work(box, Order(), silent)
    assert 2 <= sum(done["report"]["parts"].values()) <= 20
    with pytest.raises(BadInput, match="needs inputs and outputs"):
        await dspy_job.work(box, Order("assessment"), silent)


async def test_files_of_inputs_and_outputs_pass_the_same_rules(box: Any, tmp_path: Path) -> None:
    Roster(box.database).replace([Pupil("p7", "Thabo", "Mokwenela", "6A")])
    pairs: list[dict[str, Any]] = [
        {"id": f"a{n}", "inputs": {"criterion": "Asks why", "talk": f"Thabo Mokwenela: {n}."},
         "outputs": {"level": 2, "quote": "", "try_this": "Ask why."}}
        for n in range(20)
    ]  # fmt: skip
    pairs[0]["consent"] = False
    path = write(tmp_path / "pairs.jsonl", pairs)
    done = await dspy_job.work(box, order(path, module="assessment", metric=("exact",), subject="History"), silent)
    assert sum(done["report"]["parts"].values()) == 19 and box.chat.programs.get(done["id"]).subject == "history"
    asked = " ".join(one.content for request in box.engine.requests for one in request.messages)
    assert "Thabo" not in asked and "[name]" in asked and "Subject: History." in asked
    path.write_text(path.read_text() + "{broken\n" + '{"inputs": {}}\n')
    with pytest.raises(BadInput, match="line 21 is not valid JSON; line 22 needs inputs and outputs"):
        await dspy_job.work(box, order(path, module="assessment"), silent)


# --- as a job and on the command line ---------------------------------------------------------------------------------
async def test_a_job_tells_how_far_it_is_and_stops_when_it_is_told(box: Any, rows: Path) -> None:
    queue = Jobs(box.database, box.settings)
    payload = dataclasses.asdict(order(rows, method="random")) | {"metric": []}
    job = queue.enqueue("tune dspy", payload)
    told: list[dict[str, Any]] = []

    def tell(progress: dict[str, Any]) -> None:
        told.append(progress)
        if progress["stage"] == "evaluate":
            queue.cancel(job.id)

    class Hangs(Connected):
        """From the first judged row on it answers nothing more."""

        async def generate(self, request: Request) -> AsyncGenerator[Chunk, None]:
            if told and told[-1]["stage"] == "evaluate":
                await asyncio.Event().wait()
            async for chunk in super().generate(request):
                yield chunk

    box.engine = Hangs()
    ended = await work_one(queue, job.id, handlers(box), also=tell)
    assert ended.state == "cancelled" and not box.chat.programs.list()
    assert (told[0]["stage"], told[0]["done"], told[0]["total"]) == ("optimise", 1, 96)
    first = len(box.engine.requests)
    box.engine = Connected()
    ended = await work_one(queue, queue.enqueue("tune dspy", payload).id, handlers(box))
    assert ended.state == "done" and ended.result and ended.result["promoted"]
    report = ended.result["report"]
    assert report["asked"] == len(box.engine.requests) == report["calls"] - first, "nothing is asked twice"


async def test_no_model_is_a_sentence(box: Any, rows: Path) -> None:
    async def serving(_task: str = "", inside: bool = False) -> Any:
        assert inside, "no example leaves the building for a model that nobody named"
        return dataclasses.replace(await Connected.serving(box.pool), handler="quotes", ok=False)

    box.pool.serving = serving
    with pytest.raises(ModelUnavailable, match="No language model serves in the building"):
        await dspy_job.work(box, order(rows), silent)
    with pytest.raises(NotFound):
        await dspy_job.work(box, order(rows, model="nobody"), silent)


def line(settings: Settings, *words: str) -> Any:
    return CliRunner().invoke(group, ["--home", str(settings.home), "tune", "dspy", *words], standalone_mode=False)


def test_the_verbs_on_the_command_line(settings: Settings, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = line(settings, "start", "--examples", str(rows))
    assert isinstance(refused.exception, Forbidden) and refused.exception.exit_code == 3
    open_line(settings)

    @classmethod  # type: ignore[misc]
    def opened(_cls: Any, settings: Settings) -> Any:
        box = box_of(settings, Connected())

        async def close() -> None:
            await box.chat.close()
            box.database.close()

        box.close = close
        return box

    monkeypatch.setattr("appliance.app.Appliance.open", opened)
    done = line(settings, "start", NAME, "--examples", str(rows), "--method", "random", "--no-promote", "--json")
    assert done.return_value == 0, done.exception
    told = json.loads(done.stdout)
    assert told["promoted"] is False and told["report"]["passed"] is True and "Searching" in done.stderr
    assert "12 examples" in done.stderr and "+1.000 to +1.000" in done.stderr
    listed = json.loads(line(settings, "list", "--json").stdout)
    assert [one["id"] for one in listed["runs"]] == [told["id"]] and listed["jobs"][0]["kind"] == "tune dspy"
    assert not json.loads(
        CliRunner().invoke(group, ["--home", str(settings.home), "tune", "huggingface", "list", "--json"]).stdout
    )["runs"]
    assert "done" in line(settings, "status").stdout
    assert json.loads(line(settings, "evaluate", told["id"], "--json").stdout)["report"]["passed"] is True
    again = CliRunner().invoke(group, ["--home", str(settings.home), "models", "evaluate", told["id"], "--json"])
    assert json.loads(again.stdout)["report"]["n"] == 12 and "of 24 questions" in again.stderr, "by what made it"
    assert f"{told['id']} serves {NAME} now" in line(settings, "promote", told["id"]).stdout
    failed = line(settings, "start", "--examples", str(rows), "--budget", "60", "--json")
    assert failed.return_value == 4, "nothing better than what serves now"
    assert isinstance(line(settings, "start", "--examples", "none.jsonl").exception, NotFound)
    assert isinstance(line(settings, "cancel").exception, NotFound)
