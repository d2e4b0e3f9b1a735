"""Fine-tuning by OpenAI against a local server that speaks its API: the official client, the real egress, the real registry."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.audit import Audit
from appliance.cli.worker import handlers
from appliance.db import Database
from appliance.errors import ApplianceError, BadInput, Busy, Conflict, Forbidden, NotFound, Unreachable
from appliance.jobs import Job, Jobs, work_one
from appliance.network import Policy
from appliance.plugins import openai_work
from appliance.plugins.openai import OpenAIFineTuner, Prepared
from appliance.plugins.openai_line import Refused
from appliance.plugins.openai_work import KIND, LANE
from appliance.registry import Registry
from appliance.settings import Settings
from appliance.tuning.store import ExampleStore
from tests.plugins.openai_server import BASE, KEY, TUNED, Cut, Service, connected, file_of, refusal, rows, service, slowly
from tests.test_egress import egress

pytest.importorskip("openai", reason="the package openai is not installed")
UPLOAD, CREATE = "POST /v1/files", "POST /v1/fine_tuning/jobs"
WHO = "Thandi Mokoena"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with service(tmp_path_factory.mktemp("far")) as made:
        yield made


@pytest.fixture
def far(server: Service) -> Service:
    server.reset()
    return server


@pytest.fixture(scope="module")
def template(server: Service, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A home in which a run is prepared, and its id."""
    home = tmp_path_factory.mktemp("template") / "home"
    made = OpenAIFineTuner(connected(home, server)).prepare_data(file_of(home / "rows.jsonl", rows(14)))
    return home, made.id


@pytest.fixture
def settings(tmp_path: Path, far: Service, template: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(openai_work, "LONGEST_WAIT", 0.1)
    shutil.copytree(template[0], tmp_path / "home")
    return connected(tmp_path / "home", far)


@pytest.fixture
async def tuner(settings: Settings, database: Database) -> AsyncIterator[OpenAIFineTuner]:
    async with egress(settings):
        yield OpenAIFineTuner(settings, database)


@pytest.fixture
def prepared(settings: Settings, template: tuple[Path, str]) -> Prepared:
    return Prepared.load(settings.runs / template[1])


class Box:
    """What a job's handler needs of the appliance."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self.settings, self.database, self.registry = settings, database, Registry(settings.models)


def queued(settings: Settings, database: Database, prepared: Prepared) -> tuple[Jobs, Job]:
    queue = Jobs(database, settings)
    return queue, queue.enqueue(KIND, {"run": prepared.id}, lane=LANE)


async def work(settings: Settings, database: Database, prepared: Prepared) -> Job:
    queue, job = queued(settings, database, prepared)
    return await work_one(queue, job.id, handlers(Box(settings, database)))  # type: ignore[arg-type]


async def under_way(far: Service, doing: asyncio.Task[Job]) -> None:
    """Until the job there was looked at twice."""
    async with asyncio.timeout(30):
        while far.count("GET /v1/fine_tuning/jobs/ftjob-1") < 2:
            assert not doing.done(), doing.result().error
            await asyncio.sleep(0.02)


# --- the whole way ----------------------------------------------------------------------------------------------------
async def test_from_a_file_to_a_model_in_the_registry(
    tuner: OpenAIFineTuner, far: Service, database: Database, tmp_path: Path
) -> None:
    """Validation file, suffix and figures arrive; progress is told; the model says what it is made of and what it cost."""
    checked = file_of(tmp_path / "valid.jsonl", rows(20)[16:])
    prepared = tuner.prepare_data(
        file_of(tmp_path / "rows.jsonl", rows(16)), model="gpt-4.1-mini", suffix="school", epochs=2, batch=4, rate=0.5, seed=3,
        validation=checked,
    )  # fmt: skip
    tuner.confirm(prepared, WHO)
    told: list[dict[str, Any]] = []
    result = await tuner.follow(prepared.id, told.append)
    (job,) = far.jobs.values()
    assert job["asked"]["method"] == {
        "type": "supervised",
        "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 0.5}},
    }
    assert (job["asked"]["suffix"], job["asked"]["seed"], job["asked"]["model"]) == ("school", 3, BASE)
    train, valid = far.files[job["training_file"]], far.files[job["validation_file"]]
    assert train["content"] == (prepared.folder / "sent.jsonl").read_bytes() and valid["content"].count(b"\n") == 4
    assert train["filename"].startswith("examples-") and train["expires"] == str(30 * 24 * 3600)
    assert {"Sending to OpenAI", "OpenAI checks the files", "Tuning at OpenAI"} <= {one["stage"] for one in told}
    assert any(one["total"] == 100 and one["facts"].get("loss") for one in told)
    made = Registry(tuner.settings.models).get(result["id"])
    assert made.kind == "hosted" and made.dataset == prepared.digest and made.hosted is not None
    assert made.hosted["model"] == TUNED and made.hosted["plugin"] == "openai" and made.hosted["confirmed_by"] == WHO
    assert made.hosted["cost"] == pytest.approx(4000 * 5.0 / 1e6) and made.hosted["checkpoints"] == [f"{TUNED}:ckpt-step-50"]
    (entry,) = Audit(database).entries(thing=prepared.id)
    assert (
        entry.verb == "send to openai" and entry.facts["confirmed_by"] == WHO and entry.facts["sha256"] == prepared.train.sha256
    )
    assert (await tuner.list_jobs())[0]["run"] == prepared.id and TUNED in await tuner.list_models()
    before = len(far.calls)
    assert (await tuner.follow(prepared.id))["id"] == result["id"]
    assert not {UPLOAD, CREATE} & set(far.calls[before:]), "asked for again, nothing is sent again"


async def test_the_same_over_tls_with_an_authority_of_its_own(tmp_path: Path, database: Database) -> None:
    with service(tmp_path / "far", tls=True) as far:
        settings = connected(tmp_path / "home", far)
        async with egress(settings):
            assert TUNED in await OpenAIFineTuner(settings, database).list_models()
            stranger = settings.model_copy(update={"openai_ca_file": far.folder / "other.pem"})
            with pytest.raises(Unreachable):
                await OpenAIFineTuner(stranger, database).list_models()


async def test_preferences_are_sent_in_the_service_s_own_shape(tuner: OpenAIFineTuner, far: Service, tmp_path: Path) -> None:
    """Its own rows and corrected classroom rows; rows without a second reply stay here."""
    talks = [row["messages"] for row in rows(13)]
    own = [
        {"input": {"messages": talk[:1]}, "preferred_output": talk[1:], "non_preferred_output": [{**talk[1], "content": "42."}]}
        for talk in talks[:8]
    ]
    corrected = [{"messages": talk, "correction": f"Better: {talk[1]['content']}", "consent": True} for talk in talks[8:12]]
    file = file_of(tmp_path / "own.jsonl", own)
    file_of(tmp_path / "more.jsonl", [*corrected, {"messages": talks[12]}])
    prepared = tuner.prepare_data(file.parent, method="preference", beta=0.2)
    await tuner.start_fine_tuning(prepared, confirm=WHO)
    (job,), (sent,) = far.jobs.values(), far.files.values()
    assert job["asked"]["method"] == {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2}}}
    lines = [json.loads(line) for line in sent["content"].splitlines()]
    assert len(lines) >= 10 and all(set(line) == {"input", "preferred_output", "non_preferred_output"} for line in lines)
    assert {line["non_preferred_output"][0]["content"] for line in lines} >= {"42."}
    assert any(line["preferred_output"][0]["content"].startswith("Better: ") for line in lines)
    assert prepared.facts["left_out"]["no_pair"] == 1


# --- before anything is sent ------------------------------------------------------------------------------------------
async def test_nothing_leaves_before_somebody_answers_for_it_by_name(
    tuner: OpenAIFineTuner, far: Service, prepared: Prepared, database: Database
) -> None:
    for name in ("", "Thandi", "x" * 200):
        with pytest.raises(Forbidden, match=r"Nothing was sent: 1[0-4] conversations") as caught:
            await tuner.start_fine_tuning(prepared, confirm=name)
        assert "--confirm" in caught.value.hint and caught.value.exit_code == 3
    assert far.calls == [] and Audit(database).entries() == []


def test_what_would_leave_can_be_read_and_holds_nothing_else(
    settings: Settings, database: Database, far: Service, tmp_path: Path
) -> None:
    plain = rows(12, "Ask lerato@school.example or call +27 82 555 0134.")
    made = [row | {"id": f"row-{n}", "author": "Ms Naidoo", "licence": "CC BY 4.0", "class": ""} for n, row in enumerate(plain)]
    made[3] |= {"class": "6B", "user_role": "pupil"}  # said in a lesson, and nobody was asked
    made[4] |= {"licence": "All rights reserved"}
    prepared = OpenAIFineTuner(settings, database).prepare_data(file_of(tmp_path / "rows.jsonl", made))
    text = (prepared.folder / "sent.jsonl").read_text()
    assert "lerato" not in text and "0134" not in text and "[email]" in text and "[phone]" in text
    assert "Naidoo" not in text and "row-" not in text and "CC BY" not in text
    assert all(json.loads(line).keys() == {"messages"} for line in text.splitlines())
    told = prepared.leaving.read_text()
    assert f"127.0.0.1:{far.port}" in told and "10 rows" in told and prepared.train.sha256 in told and "USD" in told
    assert "by prices as of 2025-10-01. That list of prices is " in told and "months old. Check them before" in told
    assert "openai_prices" in told and f"`appliance tune openai delete {prepared.id} --with-model`" in told
    assert "1 without consent, 1 licence does not allow it" in told and "10 email, 10 phone" in told
    assert far.calls == [] and prepared.cost > 0 and prepared.held_out == 0


def test_nine_examples_are_too_few_and_ten_are_enough(settings: Settings, database: Database, tmp_path: Path) -> None:
    tuner = OpenAIFineTuner(settings, database)
    with pytest.raises(BadInput, match="9 examples can be sent, and OpenAI takes no fewer than 10") as caught:
        tuner.prepare_data(file_of(tmp_path / "nine.jsonl", rows(9)))
    assert caught.value.hint
    prepared = tuner.prepare_data(file_of(tmp_path / "ten.jsonl", rows(10)))
    assert (prepared.train.rows, prepared.held_out, prepared.epochs) == (10, 0, 10)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"content": "word " * 80_000}, "line 5: this row has about [0-9]+ tokens, and gpt-4.1-mini-2025-04-14 takes 65536"),
        ({"role": "user"}, "line 5: it does not end with the tutor's turn"),
        ({"role": "robot"}, "line 5: message 2 has the unknown role"),
        ({"content": ""}, "line 5"),
    ],
)
def test_a_row_against_the_rules_is_named_with_its_line(
    settings: Settings, database: Database, tmp_path: Path, change: dict[str, str], words: str
) -> None:
    made = rows(12)
    made[4]["messages"][1] |= change
    with pytest.raises(BadInput, match=words) as caught:
        OpenAIFineTuner(settings, database).prepare_data(file_of(tmp_path / "rows.jsonl", made))
    assert caught.value.hint


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"model": "gpt-9"}, "does not have the model 'gpt-9'"),
        ({"model": "gpt-4o-mini", "method": "preference"}, "cannot be tuned by the method preference"),
        ({"suffix": "a b"}, "suffix"),
        ({"beta": 0.1}, "beta is a figure of the method preference"),
        ({"epochs": 0}, "n_epochs is 0"),
    ],
)
def test_a_wish_that_cannot_be_is_refused_before_anything_is_sent(
    settings: Settings, database: Database, far: Service, tmp_path: Path, wish: dict[str, Any], words: str
) -> None:
    with pytest.raises(BadInput, match=words) as caught:
        OpenAIFineTuner(settings, database).prepare_data(file_of(tmp_path / "rows.jsonl", rows(12)), **wish)
    assert caught.value.hint and far.calls == []


async def test_what_was_changed_after_it_was_read_is_not_sent(
    tuner: OpenAIFineTuner, far: Service, prepared: Prepared, settings: Settings, database: Database
) -> None:
    tuner.confirm(prepared, WHO)
    with open(prepared.train.file, "a") as file:
        file.write("{}\n")
    job = await work(settings, database, prepared)
    assert job.state == "failed" and job.error is not None and "was changed" in job.error["message"] and far.calls == []
    with pytest.raises(BadInput, match="was changed"):  # by a program that read it before
        await tuner.start_fine_tuning(prepared, confirm=WHO)
    assert far.files == {} and far.count(UPLOAD) == 0


# --- the far side refuses, fails, breaks off --------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (None, Refused, "does not accept the key"),
        (refusal(401, f"Your key {KEY} has expired.", "invalid_api_key"), Refused, "has expired"),
        (refusal(429, "You exceeded your current quota.", "insufficient_quota", "insufficient_quota"), Refused, "out of money"),
        (refusal(429, "Rate limit reached.", "rate_limit_exceeded", **{"retry-after": "0.2"}), Busy, "too much to do"),
        (refusal(500, "The server had an error.", None, "server_error"), ApplianceError, "cannot answer now"),
        (refusal(400, f"Bad row: 'Lerato asked about fractions and then told me all of it' {KEY}"), BadInput, "refuses"),
        (Cut(), Unreachable, "line to OpenAI is down"),
    ],
)  # fmt: skip
async def test_each_refusal_is_one_sentence_and_one_step_without_key_or_rows(
    tuner: OpenAIFineTuner, far: Service, prepared: Prepared, answer: Any, kind: type[ApplianceError], words: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level(logging.DEBUG)
    if answer is None:
        far.key = "sk-another"
    far.trouble["GET /v1/files"] = [answer] if answer is not None else []
    with pytest.raises(kind, match=words) as caught:
        await tuner.start_fine_tuning(prepared, confirm=WHO)
    said = f"{caught.value.message} {caught.value.hint}"
    assert caught.value.hint and KEY not in said and "sk-" not in said and "Lerato" not in said and "\n" not in said
    logged = caplog.text
    row = json.loads(prepared.train.file.read_text().splitlines()[0])["messages"][0]["content"]
    assert KEY not in logged and row not in logged
    assert far.count(UPLOAD) == 0


async def test_a_model_that_is_not_there_is_said_so_and_the_file_is_not_sent_again(
    tuner: OpenAIFineTuner, far: Service, prepared: Prepared
) -> None:
    far.models.remove(BASE)
    with pytest.raises(NotFound, match=f"does not have that: The model `{BASE}` does not exist"):
        await tuner.start_fine_tuning(prepared, confirm=WHO)
    far.models.append(BASE)
    assert (await tuner.start_fine_tuning(prepared, confirm=WHO)).job == "ftjob-1"
    assert far.count(UPLOAD) == 1


async def test_a_line_that_breaks_anywhere_sends_nothing_twice(
    tuner: OpenAIFineTuner, far: Service, prepared: Prepared, settings: Settings, database: Database
) -> None:
    """The file arrives and nobody hears of it; so does the job; then polling breaks off, is refused and is too slow."""
    far.trouble = {
        UPLOAD: [Cut()],
        CREATE: [Cut()],
        "GET /v1/fine_tuning/jobs/ftjob-1": [Cut(), refusal(503, "Overloaded"), refusal(429, "Slow down", "rate_limit_exceeded",
            **{"retry-after": "0.1"})],
    }  # fmt: skip
    tuner.confirm(prepared, WHO)
    job = await work(settings, database, prepared)
    assert job.state == "done", job.error
    assert len(far.files) == len(far.jobs) == far.count(UPLOAD) == far.count(CREATE) == 1
    log = Jobs(database, settings).log(job.id).read_text()
    assert "line to OpenAI is down" in log and "Step 30/100" in log and KEY not in log
    assert log.count("Step 30/100") == 1, "each event once"


async def test_a_line_that_stays_down_ends_the_command_and_loses_nothing(
    tuner: OpenAIFineTuner, far: Service, prepared: Prepared, settings: Settings, database: Database
) -> None:
    far.trouble[UPLOAD] = [refusal(500, "x") for _ in range(3)]
    tuner.confirm(prepared, WHO)
    job = await work(settings, database, prepared)
    assert job.state == "failed" and job.error is not None and job.error["code"] == "unreachable"
    assert "The same command goes on from there" in job.error["hint"] and far.files == {}
    assert (await work(settings, database, prepared)).state == "done" and len(far.files) == 1


async def test_an_answer_that_does_not_come_has_a_limit(far: Service, settings: Settings, database: Database) -> None:
    far.trouble["GET /v1/models"] = [slowly]
    async with egress(settings):
        quick = OpenAIFineTuner(settings.model_copy(update={"openai_seconds": 0.3}), database)
        with pytest.raises(Unreachable, match="took too long"):
            await quick.list_models()


async def test_a_job_that_fails_there_says_why_and_is_begun_anew_when_asked(
    tuner: OpenAIFineTuner, far: Service, prepared: Prepared, settings: Settings, database: Database
) -> None:
    far.script = ("validating_files", "failed")
    far.error = {"code": "invalid_training_file", "message": "The training file was blocked.", "param": "training_file"}
    tuner.confirm(prepared, WHO)
    job = await work(settings, database, prepared)
    assert job.error is not None and "OpenAI could not tune the model: The training file was blocked." in job.error["message"]
    assert Registry(settings.models).list() == []
    far.script = ("running", "succeeded")
    tuner.confirm(prepared, WHO)
    assert (await work(settings, database, prepared)).state == "done"
    assert len(far.jobs) == 2 and far.count(UPLOAD) == 1, "the file is there already"


async def test_a_process_that_dies_is_taken_up_where_it_was(
    tuner: OpenAIFineTuner, far: Service, prepared: Prepared, settings: Settings, database: Database
) -> None:
    """Told to stop, the job goes back into the queue; nobody there is told, and the next process goes on."""
    far.script = ("running",) * 50
    tuner.confirm(prepared, WHO)
    queue, job = queued(settings, database, prepared)
    doing = asyncio.create_task(work_one(queue, job.id, handlers(Box(settings, database))))  # type: ignore[arg-type]
    await under_way(far, doing)
    doing.cancel()
    await asyncio.gather(doing, return_exceptions=True)
    assert queue.get(job.id).state == "queued" and far.jobs["ftjob-1"]["status"] == "running"
    far.script = ("succeeded",)
    assert (await work(settings, database, prepared)).state == "done"
    assert len(far.jobs) == len(far.files) == 1


async def test_cancelling_the_job_here_ends_it_there(
    tuner: OpenAIFineTuner, far: Service, prepared: Prepared, settings: Settings, database: Database
) -> None:
    far.script = ("running",) * 500
    tuner.confirm(prepared, WHO)
    queue, job = queued(settings, database, prepared)
    doing = asyncio.create_task(work_one(queue, job.id, handlers(Box(settings, database))))  # type: ignore[arg-type]
    await under_way(far, doing)
    await asyncio.to_thread(queue.cancel, job.id)
    assert (await doing).state == "cancelled"
    assert far.jobs["ftjob-1"]["status"] == "cancelled" and tuner.kept.get(prepared.id).status == "cancelled"


async def test_closing_the_policy_marks_the_job_and_nothing_hangs(
    tuner: OpenAIFineTuner, far: Service, prepared: Prepared, settings: Settings, database: Database
) -> None:
    far.script = ("running",) * 500
    tuner.confirm(prepared, WHO)
    queue, job = queued(settings, database, prepared)
    doing = asyncio.create_task(work_one(queue, job.id, handlers(Box(settings, database))))  # type: ignore[arg-type]
    await under_way(far, doing)
    Policy(settings.network).deny(far.host.name, far.host.port)
    async with asyncio.timeout(10):
        ended = await doing
    assert ended.state == "failed" and ended.error is not None and ended.error["exit_code"] == 3
    assert "air-gapped" in ended.error["message"] and "ftjob-1 at OpenAI goes on" in ended.error["message"]
    assert "policy was closed" in tuner.kept.get(prepared.id).trouble
    calls = len(far.calls)
    for ask in (tuner.list_jobs, tuner.list_models, lambda: tuner.check_status(prepared.id), lambda: tuner.cancel(prepared.id)):
        with pytest.raises(Forbidden, match="air-gapped"):
            await ask()
    assert len(far.calls) == calls
    Policy(settings.network).allow(far.host)
    far.script = ("succeeded",)
    async with egress_again(settings):
        assert (await work(settings, database, prepared)).state == "done" and len(far.jobs) == 1


def egress_again(settings: Settings) -> Any:
    """The way out ends with the last host that was allowed; a service starts it again."""
    settings.egress_socket.unlink()
    return egress(settings)


def authored(folder: Path, count: int = 12) -> Path:
    """Rows of as many writers, in a file that is in no store."""
    made = [row | {"author": f"Writer {number}", "licence": "CC BY 4.0"} for number, row in enumerate(rows(count))]
    return file_of(folder / "rows.jsonl", made)


@pytest.mark.parametrize("stored", [True, False])
async def test_withdrawn_rows_are_not_sent(
    tuner: OpenAIFineTuner, far: Service, settings: Settings, database: Database, tmp_path: Path, stored: bool
) -> None:
    """Whether the school's store has them, or only the file that was named."""
    file, store = authored(tmp_path), ExampleStore(database)
    if stored:
        store.import_rows(file, licence="", author="", trust_review=False, reviewer="x", pupils=None)
    prepared = tuner.prepare_data(file)
    tuner.confirm(prepared, WHO)
    store.withdraw("Writer 3", by="x")
    job = await work(settings, database, prepared)
    assert job.error is not None and "1 rows of" in job.error["message"] and "nothing was sent" in job.error["message"]
    assert far.calls == []
    again = tuner.prepare_data(file)
    assert again.id != prepared.id and again.facts["left_out"] == {"withdrawn": 1}


@pytest.mark.parametrize(("broken_off", "ended"), [(False, "cancelled"), (True, "cancelled"), (True, "succeeded")])
async def test_rows_that_are_withdrawn_while_they_are_there_are_taken_back(
    tuner: OpenAIFineTuner, far: Service, settings: Settings, database: Database, tmp_path: Path, broken_off: bool, ended: str
) -> None:
    """Job, files and model go there; also by the next process, once what was prepared here has been erased."""
    prepared = tuner.prepare_data(authored(tmp_path))
    far.script = ("running",) * 500
    tuner.confirm(prepared, WHO)
    queue, job = queued(settings, database, prepared)
    doing = asyncio.create_task(work_one(queue, job.id, handlers(Box(settings, database))))  # type: ignore[arg-type]
    await under_way(far, doing)
    if broken_off:
        doing.cancel()
        await asyncio.gather(doing, return_exceptions=True)
        shutil.rmtree(prepared.folder)
    if ended == "succeeded":
        far.script = (ended,)
        far.models.append(f"{TUNED}:ckpt-step-50")
        await far._look("ftjob-1")
    ExampleStore(database).withdraw("Writer 3", by="x")
    told = await work_one(queue, job.id, handlers(Box(settings, database))) if broken_off else await doing  # type: ignore[arg-type]
    assert told.error is not None and "withdrawn while OpenAI had them: its job was ended" in told.error["message"]
    assert far.jobs["ftjob-1"]["status"] == ended and far.files == {}
    assert ended == "cancelled" or not [name for name in far.models if name.startswith("ft:")]
    assert Registry(settings.models).list() == [] and not tuner.kept.get(prepared.id).lies_there


async def test_what_cannot_be_taken_back_now_is_said_and_marked(
    tuner: OpenAIFineTuner, far: Service, database: Database, tmp_path: Path
) -> None:
    prepared = tuner.prepare_data(authored(tmp_path))
    far.script = ("running",) * 500
    await tuner.start_fine_tuning(prepared, confirm=WHO)
    ExampleStore(database).withdraw("Writer 3", by="x")
    far.trouble["DELETE /v1/files/file-1"] = [refusal(500, "x")]
    with pytest.raises(Conflict, match="could not be taken back: OpenAI cannot answer now") as caught:
        await tuner.follow(prepared.id)
    assert f"delete {prepared.id} --with-model" in caught.value.hint
    kept = tuner.kept.get(prepared.id)
    assert kept.lies_there and "are still there" in kept.trouble and len(far.files) == 1
    assert await tuner.delete(prepared.id) == ["file-1"] and far.files == {} and not tuner.kept.get(prepared.id).lies_there


async def test_what_was_sent_can_be_deleted_there_and_made_anew(
    tuner: OpenAIFineTuner, far: Service, prepared: Prepared, settings: Settings, database: Database
) -> None:
    far.script = ("running",) * 500
    await tuner.start_fine_tuning(prepared, confirm=WHO)
    with pytest.raises(Conflict, match="is under way at OpenAI"):
        await tuner.delete(prepared.id)
    assert len(far.files) == 1
    far.script = ("succeeded",)
    assert (await work(settings, database, prepared)).state == "done"
    assert await tuner.delete(prepared.id) == ["file-1"] and far.files == {} and TUNED in far.models
    far.models.append(f"{TUNED}:ckpt-step-50")
    assert await tuner.delete(prepared.id, models=True) == [TUNED, f"{TUNED}:ckpt-step-50"]
    assert far.models == [BASE, "gpt-4o-mini-2024-07-18"] and await tuner.delete(prepared.id, models=True) == []
    entries = [entry.facts["gone"] for entry in Audit(database).entries(thing=prepared.id) if entry.verb == "delete at openai"]
    assert sorted(map(len, entries)) == [0, 1, 2]
    assert (await tuner.check_status(prepared.id)).status == "deleted"
    with pytest.raises(BadInput, match="was deleted at OpenAI"):
        await tuner.follow(prepared.id)
    tuner.confirm(prepared, WHO)
    assert (await work(settings, database, prepared)).state == "done", "asked for again it is sent again"
    assert len(far.files) == 1 and len(far.jobs) == 2


async def test_a_model_that_serves_is_not_deleted(
    tuner: OpenAIFineTuner, far: Service, prepared: Prepared, settings: Settings
) -> None:
    tuner.confirm(prepared, WHO)
    made = await tuner.follow(prepared.id)
    Registry(settings.models).promote(made["id"])
    with pytest.raises(Conflict, match="serves now") as caught:
        await tuner.delete(prepared.id, models=True)
    assert "rollback" in caught.value.hint and TUNED in far.models and len(far.files) == 1
