"""Answers by a model at OpenAI: retries, limits, the month's budget, and who answers while the line is down."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from appliance.db import Database
from appliance.engine.fake import Fake
from appliance.engine.handler import Chunk, Handler, Message, Request, Usage
from appliance.errors import ApplianceError, BadInput, Busy, Forbidden, ModelUnavailable, NotFound, Unreachable, UsedUp
from appliance.network import Policy
from appliance.plugins import openai_money
from appliance.plugins.openai import PLUGIN, OpenAIFineTuner, OpenAIHandler
from appliance.plugins.openai_line import CREDENTIAL, Refused, key
from appliance.plugins.openai_money import Budget, epochs_of, prices, tokens
from appliance.settings import Settings
from tests.plugins.openai_server import BASE, KEY, TUNED, Cut, Service, connected, refusal, service, slowly
from tests.test_egress import egress

CHAT = "POST /v1/chat/completions"
ASKED = Request([Message("user", "why are leaves green in spring")], max_tokens=50)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with service(tmp_path_factory.mktemp("far")) as made:
        yield made


@pytest.fixture
def far(server: Service) -> Service:
    server.reset()
    return server


@pytest.fixture
async def settings(tmp_path: Path, far: Service) -> AsyncIterator[Settings]:
    made = connected(tmp_path / "home", far)
    async with egress(made):
        yield made


def handler(settings: Settings, *, fallback: Handler | None = None, model: str = TUNED) -> OpenAIHandler:
    return OpenAIHandler(settings, model, fallback=fallback, first_wait=0.01)


async def heard(made: Handler, request: Request = ASKED) -> list[Chunk]:
    try:
        return [chunk async for chunk in made.generate(request)]
    finally:
        await made.close()


def text(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


async def test_it_streams_says_who_answered_and_sends_nothing_of_who_asks(settings: Settings, far: Service) -> None:
    made = OpenAIFineTuner(settings).create_fine_tuned_handler(TUNED)
    await made.start()
    request = Request(
        ASKED.messages, user="pupil-17", group="class-6B", task="teacher_responder", model="default", max_tokens=50
    )
    chunks = await heard(made, request)
    assert text(chunks) == "WHY ARE LEAVES GREEN IN SPRING" and len(chunks) > 4
    assert {chunk.handler for chunk in chunks} == {"openai"} and chunks[-1].model == TUNED
    assert chunks[-1].usage == Usage(6, 0, 6) and chunks[-1].finish == "stop"
    assert b"pupil-17" not in far.bodies[-1] and b"6B" not in far.bodies[-1]
    with pytest.raises(BadInput, match="no tuned model"):
        OpenAIFineTuner(settings).create_fine_tuned_handler("gpt-4.1-mini")


async def test_the_hook_makes_one_of_a_registered_model_s_facts(settings: Settings) -> None:
    assert PLUGIN.handler is not None and [str(host) for host in PLUGIN.hosts(settings)] == [settings.openai_url[7:-3]]
    assert text(await heard(PLUGIN.handler(settings, {"plugin": "openai", "model": TUNED}))).startswith("WHY")


@pytest.mark.parametrize(
    "trouble",
    [refusal(500, "x"), refusal(503, "x"), Cut(), refusal(429, "x", "rate_limit_exceeded", **{"retry-after": "0.1"})],
)
async def test_before_the_first_word_it_is_tried_again(settings: Settings, far: Service, trouble: Any) -> None:
    far.trouble[CHAT] = [trouble, trouble]
    assert text(await heard(handler(settings))).startswith("WHY")
    assert far.count(CHAT) == 3


async def test_three_times_and_no_more(settings: Settings, far: Service) -> None:
    far.trouble[CHAT] = [refusal(500, "x") for _ in range(9)]
    with pytest.raises(ModelUnavailable, match="cannot answer now") as caught:
        await heard(handler(settings))
    assert far.count(CHAT) == 3 and caught.value.hint


async def test_after_the_first_word_it_is_never_asked_again(settings: Settings, far: Service) -> None:
    far.break_after = 2
    said = []
    made = handler(settings, fallback=Fake())
    with pytest.raises(Unreachable, match="broke off") as caught:
        async for chunk in made.generate(ASKED):
            said.append(chunk.text)
    await made.close()
    assert "".join(said) == "WHY ARE" and far.count(CHAT) == 1 and caught.value.hint


@pytest.mark.parametrize("deadline", [0.4, None])
async def test_a_time_limit_ends_a_slow_answer(settings: Settings, far: Service, deadline: float | None) -> None:
    """Both where nothing comes and where words come too slowly."""
    made = settings.model_copy(update={"openai_seconds": 10.0 if deadline else 0.4})
    for far.trouble, far.pace in (({CHAT: [slowly]}, 0.0), ({}, 0.3)):
        began = time.monotonic()
        with pytest.raises(Busy, match="time limit") as caught:
            await heard(handler(made), Request(ASKED.messages, max_tokens=50, deadline=deadline))
        assert time.monotonic() - began < 5 and caught.value.hint


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (refusal(401, f"Incorrect API key: {KEY}", "invalid_api_key"), Refused, "does not accept the key"),
        (refusal(429, "Quota.", "insufficient_quota", "insufficient_quota"), Refused, "out of money"),
        (refusal(404, "The model does not exist", "model_not_found"), NotFound, "does not have that"),
        (refusal(400, "No."), BadInput, "refuses this: No."),
    ],
)
async def test_what_does_not_pass_is_not_tried_again(
    settings: Settings, far: Service, answer: Any, kind: type[ApplianceError], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    far.trouble[CHAT] = [answer]
    with pytest.raises(kind, match=words) as caught:
        await heard(handler(settings))
    assert far.count(CHAT) == 1 and caught.value.hint and KEY not in f"{caught.value.message}{caught.value.hint}"
    assert KEY not in caplog.text and "leaves green" not in caplog.text


# --- who answers while the line is down ------------------------------------------------------------------------------
@pytest.mark.parametrize("what", ["closed", "down", "refused", "500", "hangs"])
async def test_the_local_model_answers_while_the_line_is_down(settings: Settings, far: Service, what: str) -> None:
    if what == "closed":
        Policy(settings.network).deny(far.host.name)
    elif what == "down":
        settings.egress_socket.unlink()
    elif what == "hangs":
        settings = settings.model_copy(update={"openai_seconds": 0.3})
    planned = {"refused": refusal(401, "x"), "500": refusal(500, "x"), "hangs": slowly}.get(what)
    far.trouble[CHAT] = [planned] * 9 if planned else []
    made = handler(settings, fallback=Fake())
    await made.start()
    chunks = await heard(made)
    assert text(chunks) == "WHY ARE LEAVES GREEN IN SPRING" and {chunk.handler for chunk in chunks} == {"fake"}
    assert far.count(CHAT) == {"closed": 0, "down": 0, "refused": 1, "500": 3, "hangs": 1}[what]
    with pytest.raises(ApplianceError):
        await heard(handler(settings))


async def test_while_air_gapped_nothing_is_sent(settings: Settings, far: Service) -> None:
    Policy(settings.network).deny(far.host.name)
    made = handler(settings)
    with pytest.raises(Forbidden, match="air-gapped"):
        await made.start()
    assert not (await made.health()).ok
    with pytest.raises(Forbidden, match="air-gapped") as caught:
        await heard(made)
    assert caught.value.exit_code == 3 and far.calls == [] and Budget(settings, prices(settings)).spent() == 0


# --- the month's money -----------------------------------------------------------------------------------------------
async def test_answers_are_paid_for_until_the_month_s_money_is_used_up(settings: Settings, far: Service) -> None:
    price = prices(settings).of(TUNED)
    one = price.answer(Usage(6, 0, 6))
    budget = Budget(settings, prices(settings))
    await heard(handler(settings))
    assert budget.spent() == pytest.approx(one)
    far.trouble[CHAT] = [refusal(400, "No.")]
    with pytest.raises(BadInput):
        await heard(handler(settings))
    assert budget.spent() == pytest.approx(one), "what was refused costs nothing"
    small = settings.model_copy(update={"openai_budget": one * 1.5})
    with pytest.raises(UsedUp, match="money for OpenAI is used up") as caught:
        await heard(handler(small, fallback=Fake()))
    assert caught.value.hint and caught.value.retry_after > 0 and far.count(CHAT) == 2, "nothing was asked"


async def test_who_leaves_early_or_is_cut_off_has_paid_for_what_was_said(settings: Settings, far: Service) -> None:
    far.pace = 0.05
    made = handler(settings)
    stream = made.generate(ASKED)
    while not (await anext(stream)).text:
        pass
    await stream.aclose()
    await made.close()
    spent = Budget(settings, prices(settings)).spent()
    price = prices(settings).of(TUNED)
    assert 0 < spent < price.answer(Usage(0, 0, ASKED.max_tokens)), "the prompt and a word, not all that was put down"


def test_the_cap_holds_over_processes_restarts_and_months(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(home=tmp_path, openai_budget=1.0)
    listed = prices(settings)

    def take(_number: int) -> bool:
        try:
            return bool(Budget(settings, listed).take(0.0999))
        except UsedUp:
            return False

    with ThreadPoolExecutor(8) as pool:  # each opens the lock's file for itself, as another process would
        assert sum(pool.map(take, range(32))) == 10, "ten dimes are a dollar, whoever takes them"
    budget = Budget(settings, prices(settings))
    assert budget.spent() == pytest.approx(0.999)
    budget.settle(openai_money._month(), 0.0999, 0.02)
    assert budget.spent() == pytest.approx(0.9191)
    monkeypatch.setattr(openai_money, "_month", lambda: "2031-01")
    assert budget.spent() == 0 and budget.take(1.0) == "2031-01"


@pytest.mark.parametrize("damage", ["{", "[]", '{"2026-01": "x"}', '{"2026-01": -5}'])
def test_a_damaged_account_of_the_money_spends_none(tmp_path: Path, damage: str) -> None:
    settings = Settings(home=tmp_path)
    settings.openai.mkdir()
    (settings.openai / "spending.json").write_text(damage)
    with pytest.raises(BadInput, match="is damaged") as caught:
        Budget(settings, prices(settings)).take(0.01)
    assert caught.value.hint


# --- prices, estimates, the key ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["gpt-4.1-mini", BASE, TUNED, f"ft:{BASE}:o::x:ckpt-1"])
def test_a_price_is_found_by_each_of_a_model_s_names(tmp_path: Path, name: str) -> None:
    assert prices(Settings(home=tmp_path)).of(name).name == BASE


@pytest.mark.parametrize(
    "text",
    ["", "dated = 1", 'dated = "x"\ncurrency = "EUR"\n[models.x]\ntraining = -1\n', "models = 5\ndated = 1\ncurrency = 1"],
)
def test_prices_that_cannot_be_read_are_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "prices.toml"
    file.write_text(text)
    with pytest.raises(BadInput, match="prices") as caught:
        prices(Settings(home=tmp_path, openai_prices=file))
    assert caught.value.hint


def test_a_school_s_own_prices_hold(tmp_path: Path) -> None:
    file = tmp_path / "prices.toml"
    file.write_text((Settings().content / "openai.toml").read_text().replace("training = 5.00", "training = 7.00"))
    assert prices(Settings(home=tmp_path, openai_prices=file)).of(BASE).training == 7.0


@pytest.mark.parametrize(("days", "said"), [(0, ""), (100, ""), (400, "That list of prices is 13 months old."), (-3, "")])
def test_a_list_that_nobody_has_looked_at_for_long_says_so(tmp_path: Path, days: int, said: str) -> None:
    file = tmp_path / "prices.toml"
    dated = (datetime.now(UTC) - timedelta(days=days)).date().isoformat()
    file.write_text((Settings().content / "openai.toml").read_text().replace("2025-10-01", dated))
    assert prices(Settings(home=tmp_path, openai_prices=file)).old == said
    file.write_text(file.read_text().replace(f'"{dated}"', '"last spring"'))
    with pytest.raises(BadInput, match="cannot be read: Invalid isoformat"):
        prices(Settings(home=tmp_path, openai_prices=file))


def test_the_estimate_is_never_below_the_service_s_own_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the encoding of these models, where another package has brought its file; nothing is fetched."""
    other = importlib.util.find_spec("litellm")
    if other is None or other.origin is None:
        pytest.skip("no package brings the encoding's file")
    tiktoken = pytest.importorskip("tiktoken", reason="the package tiktoken is not installed")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(Path(other.origin).parent / "litellm_core_utils" / "tokenizers"))
    encoding = tiktoken.get_encoding("o200k_base")
    from appliance.tuning.sets import Sets

    texts = [message.content for example in Sets.load(Settings().content).tutoring for message in example.messages]
    counts = [
        (tokens(" ".join(texts[at : at + 4])), len(encoding.encode(" ".join(texts[at : at + 4]))))
        for at in range(0, len(texts), 4)
    ]
    assert len(counts) > 20 and all(ours >= theirs for ours, theirs in counts)
    assert sum(ours for ours, _ in counts) < 1.5 * sum(theirs for _, theirs in counts)


@pytest.mark.parametrize(("rows", "epochs"), [(10, 10), (33, 3), (100, 3), (9000, 2), (30_000, 1), (4, 25)])
def test_the_passes_that_the_service_would_choose(rows: int, epochs: int) -> None:
    assert epochs_of(None, rows) == epochs and epochs_of(7, rows) == 7


def test_the_key_comes_from_a_private_file_or_the_system_s_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    file.chmod(0o644)
    settings = Settings(home=tmp_path, openai_key_file=file)
    with pytest.raises(BadInput, match="Others than the appliance may read"):
        key(settings)
    file.chmod(0o600)
    assert key(settings) == KEY and KEY not in repr(settings)
    file.write_text("two words\nand lines")
    with pytest.raises(BadInput, match="is no key") as caught:
        key(settings)
    assert "two words" not in caught.value.message
    bare = Settings(home=tmp_path)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(BadInput, match="no key for OpenAI") as caught:
        key(bare)
    assert "openai_key_file" in caught.value.hint
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / CREDENTIAL).write_text(KEY)
    assert key(bare) == KEY


@pytest.mark.parametrize(
    "url", ["http://api.openai.com/v1", "https://api.openai.com", "ftp://x/v1", "", "https://u:p@x.example/v1"]
)
def test_an_address_that_is_not_safe_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(ValueError, match="openai_url"):
        Settings(home=tmp_path, openai_url=url)


def test_importing_the_plugin_brings_in_no_package_of_openai(database: Database) -> None:
    import subprocess
    import sys

    heavy = "m.split('.')[0] in ('openai', 'httpx2', 'torch')"
    code = f"import sys, appliance.plugins.openai; print([m for m in sys.modules if {heavy}])"
    assert (
        database and subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    )


async def test_many_at_once(settings: Settings, far: Service) -> None:
    made = handler(settings)
    requests = [Request([Message("user", f"number {n}")], max_tokens=9) for n in range(12)]

    async def one(request: Request) -> str:
        return text([chunk async for chunk in made.generate(request)])

    answers = await asyncio.gather(*(one(request) for request in requests))
    await made.close()
    assert answers == [f"NUMBER {n}" for n in range(12)] and far.count(CHAT) == 12
