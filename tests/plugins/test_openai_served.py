"""A model tuned at OpenAI, from its judging to going back: it answers staff; pupils are answered here."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from appliance.app import Appliance
from appliance.cli import main
from appliance.engine import pool
from appliance.engine.fake import Fake
from appliance.engine.handler import Chunk, Message, Request
from appliance.errors import ModelUnavailable, UsedUp
from appliance.network import Policy
from appliance.plugins.openai import OpenAIFineTuner
from appliance.plugins.openai_money import Budget, prices
from appliance.settings import Settings
from appliance.tuning import evaluate as evaluating
from appliance.tuning import judging
from appliance.tuning.huggingface import HuggingFaceTuner
from appliance.web.server import create_app
from tests.cli.test_models import small
from tests.plugins.openai_server import TUNED, Service, connected, file_of, rows, service
from tests.plugins.test_hosted_models import careful
from tests.test_egress import egress
from tests.web.conftest import BASE, csrf
from tests.web.test_pages import ask

pytest.importorskip("openai", reason="the package openai is not installed")
CHAT = "POST /v1/chat/completions"
SECRET = "correct horse battery"
ITEMS = 6


class Local(Fake):
    """In place of the engine's client: answers in capitals, and loads nothing."""

    async def count(self, messages: Sequence[Message], model: str = "default") -> int:
        del model
        return await super().count(messages)

    async def embed(self, texts: Sequence[str]) -> Any:
        raise ModelUnavailable(f"no embedder for {len(texts)} texts", "Words find them.")

    async def load(self, _name: str) -> None: ...


class Dull(Fake):
    """The local model while it is judged: it says the same to everything."""

    async def generate(self, request: Request) -> AsyncGenerator[Chunk, None]:
        async for chunk in super().generate(replace(request, messages=[Message("user", "well, perhaps")])):
            yield chunk


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with service(tmp_path_factory.mktemp("far")) as made:
        yield made


@pytest.fixture
def far(server: Service) -> Service:
    server.reset()
    server.says = careful
    return server


@pytest.fixture
def settings(tmp_path: Path, far: Service, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A box that may reach the service, as every command in this process finds it."""
    made = connected(tmp_path / "home", far)
    for name in ("openai_url", "openai_key_file", "openai_poll_seconds"):
        monkeypatch.setenv(f"APPLIANCE_{name.upper()}", str(getattr(made, name)))
    monkeypatch.setattr(evaluating, "ASKED", dict.fromkeys(evaluating.ASKED, ITEMS))
    monkeypatch.setattr(HuggingFaceTuner, "create_handler", lambda _self, _id: Dull())
    monkeypatch.setattr(pool, "LOOK_SECONDS", 0.0)
    return made


@pytest.fixture
async def box(settings: Settings) -> AsyncIterator[Appliance]:
    made = Appliance.open(settings)
    made.engine = made.pool.engine = Local()  # type: ignore[assignment]
    small(made, "here")
    made.registry.promote("here")
    yield made
    await made.chat.close()
    await made.close()


async def tuned(box: Appliance, folder: Path) -> str:
    """Sent, followed, registered: its id."""
    tuner = OpenAIFineTuner(box.settings, box.database)
    prepared = tuner.prepare_data(file_of(folder / "rows.jsonl", rows(13)))
    tuner.confirm(prepared, "Thandi Mokoena")
    return str((await tuner.follow(prepared.id))["id"])


async def client(box: Appliance, name: str = "") -> httpx.AsyncClient:
    """Somebody at the pages: the first administrator, or a pupil by name."""
    made = httpx.AsyncClient(
        transport=httpx.ASGITransport(create_app(box)), base_url=BASE, headers={"accept": "text/html"}
    )  # fmt: skip
    form = {"csrf": await csrf(made), "name": name or "Ms Green", "password": SECRET}
    door = "/sign-in" if name else "/setup"
    reply = await made.post(door, data=form if name else form | {"code": box.accounts.ensure_setup_code()})
    assert reply.status_code == 303, reply.text
    made.headers["x-csrf-token"] = await csrf(made, "/chat")
    return made


async def answer(person: httpx.AsyncClient, question: str) -> str:
    """The words of the last event: the whole answer as the page shows it."""
    return str((await ask(person, question))["events"][-1][1])


async def by_program(box: Appliance, staff: httpx.AsyncClient) -> dict[str, Any]:
    """What /v1 says to a key of the administrator's."""
    key = box.accounts.create_key(box.accounts.local_administrator(), "tests")[1]
    body = {"model": "default", "messages": [{"role": "user", "content": "Why is the sky blue?"}]}
    reply = await staff.post("/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"})
    return dict(reply.json())


async def command(settings: Settings, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """A command in a thread of this process: its code and what it printed."""

    def run() -> int:
        with pytest.raises(SystemExit) as ended:
            main(["--home", str(settings.home), *words])
        return int(str(ended.value.code or 0))

    capsys.readouterr()
    code = await asyncio.to_thread(run)
    return code, *capsys.readouterr()


async def test_judged_promoted_answering_cut_off_and_gone_back_from(
    box: Appliance, far: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = box.settings
    async with egress(settings):
        id = await tuned(box, tmp_path)
        code, _, told = await command(settings, capsys, "tune", "openai", "promote", id)
        assert code == 4 and "never judged" in told
        code, told, wrong = await command(settings, capsys, "tune", "openai", "evaluate", id, "--json")
        assert code == 0, wrong
        report = json.loads(told)["report"]
        assert report["baseline"] == "here" and report["passed"] and report["unmeasured"]
        assert far.count(CHAT) > 4 * ITEMS and Budget(settings, prices(settings)).spent() > 0
        code, told, wrong = await command(settings, capsys, "tune", "openai", "promote", id)
        assert code == 0 and f"{id} serves now." in told and "Pupils' stay in the building: here answers them." in told, wrong
        code, told, _ = await command(settings, capsys, "models", "list")
        assert "openai supervised" in told and "fallback" in told and "0.02 USD" in told and "passed" in told

        staff = await client(box)
        box.people.add("Thabo", "pupil", password=SECRET)
        pupil = await client(box, "Thabo")
        asked = far.count(CHAT)
        assert "Certainly, what do you think" in await answer(staff, "Why is the sky blue above staff?")
        assert far.count(CHAT) == asked + 1 and b"above staff" in far.bodies[-1] and TUNED.encode() in far.bodies[-1]
        assert "ABOVE PUPILS" in await answer(pupil, "Why is the sky blue above pupils?")
        assert far.count(CHAT) == asked + 1 and not any(b"above pupils" in body for body in far.bodies)
        assert "another machine outside this building" in (await staff.get("/admin/models")).text
        said = await by_program(box, staff)
        assert (said["handler"], said["model"]) == ("openai", id)
        asked = far.count(CHAT)
        budget = Budget(settings, prices(settings))
        rest = settings.openai_budget - budget.spent() - 1e-6
        month = budget.take(rest)
        assert "NO MONEY" in await answer(staff, "Why is the sky blue with no money?"), "an answer is owed all the same"
        assert "money for OpenAI is used up" in (await box.pool.serving()).detail and far.count(CHAT) == asked
        budget.settle(month, rest, 0.0)
    assert "WITHOUT A LINE" in await answer(staff, "Why is the sky blue without a line?")
    page = (await staff.get("/admin/models")).text
    assert re.search(r"<b[^>]*>here</b>", page) and "in this building, answers until that is mended" in page
    Policy(settings.network).deny("127.0.0.1")
    assert "AIR GAPPED" in await answer(staff, "Why is the sky blue while air gapped?")
    assert "air-gapped" in (await box.pool.serving()).detail and far.count(CHAT) == asked
    assert (await by_program(box, staff))["handler"] == "fake", "what answers in the building"
    assert (await box.rollback()).id == "here"
    assert "GONE BACK" in await answer(staff, "Why is the sky blue when gone back?")
    assert "The promoted model answers" in (await staff.get("/admin/models")).text
    for one in (staff, pupil):
        await one.aclose()


async def test_money_that_is_used_up_ends_a_judging_in_a_sentence_and_what_was_answered_is_kept(
    box: Appliance, far: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with egress(box.settings):
        id = await tuned(box, tmp_path)
        monkeypatch.setenv("APPLIANCE_OPENAI_BUDGET", "0.004")
        code, told, wrong = await command(box.settings, capsys, "tune", "openai", "evaluate", id)
        lines = [line for line in wrong.splitlines() if line.startswith(("Error: ", "Try: "))]
        assert code == UsedUp.exit_code and told == "" and len(lines) == 2 and "Traceback" not in wrong
        assert lines[0].startswith("Error: This month's money for OpenAI is used up: ") and "openai_budget" in lines[1]
        asked = far.count(CHAT)
        assert asked > 0 and (box.registry.get(id).report or {}) == {}
        monkeypatch.delenv("APPLIANCE_OPENAI_BUDGET")
        found = await judging.judge(box.settings, id, outside=box.hosting.use)
        questions = [body for call, body in zip(far.calls, far.bodies, strict=True) if call == CHAT]
        assert found.report.passed and len(questions) > asked
        again = len(questions) - len(set(questions))
        assert again <= len(found.report.samples), "but for the samples of the report nothing is asked, and paid, twice"
