"""Who answers: the promoted model, quotes where it cannot, and never a silence while documents can speak."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from appliance.engine.fake import Fake
from appliance.engine.handler import Chunk, Handler, Health, Message, Request
from appliance.engine.pool import Active, Pool
from appliance.errors import (
    ApplianceError,
    BadInput,
    Busy,
    Forbidden,
    ModelUnavailable,
    NotFound,
    TooLarge,
    Unreachable,
    Unsupported,
    UsedUp,
)

ACTIVE = Active("tuned", "Tuned", starter=True, context=1024)


class Engine(Fake):
    """A fake engine that can be down, or die in mid-answer."""

    name = "llama"

    def __init__(self, *, down: bool = False, dies: bool = False) -> None:
        super().__init__()
        self.down, self.dies = down, dies
        self.asked: list[str] = []
        self.counted: list[str] = []
        self.facts: dict[str, object] = {}

    async def count(self, messages: Sequence[Message], model: str = "default") -> int:
        if self.down:
            raise ModelUnavailable("down", "wait")
        self.counted.append(model)
        return 7 * await super().count(messages)

    async def generate(self, request: Request) -> AsyncGenerator[Chunk, None]:
        self.asked.append(request.model)
        if self.down:
            raise ModelUnavailable("down", "wait")
        if self.dies:
            yield Chunk("half", handler="llama")
            raise ModelUnavailable("died", "ask again")
        async for chunk in super().generate(request):
            yield chunk

    async def health(self) -> Health:
        return Health(not self.down, "", facts=self.facts)

    async def embed(self, texts):  # type: ignore[no-untyped-def]
        raise ModelUnavailable(f"{len(texts)}")


class Quoting(Fake):
    name = "quotes"


def pool(engine: Engine, active: Active | None = ACTIVE) -> Pool:
    return Pool(engine, Quoting(), lambda _task: active)


async def handlers(pool: Pool, model: str = "default") -> set[str]:
    request = Request([Message("user", "why green")], model=model)
    return {chunk.handler for chunk in [chunk async for chunk in pool.generate(request)]}


async def test_the_promoted_model_answers_under_its_own_id() -> None:
    engine = Engine()
    assert await handlers(pool(engine)) == {"llama"}
    assert engine.asked == ["tuned"], "one answer is one model, whatever is promoted meanwhile"


async def test_quotes_answer_where_nothing_is_promoted_or_when_asked_for() -> None:
    engine = Engine()
    assert await handlers(pool(engine, None)) == {"quotes"}
    assert await handlers(pool(engine), "quotes") == {"quotes"}
    assert engine.asked == []


async def test_quotes_stand_in_for_an_engine_that_is_down_but_not_for_a_model_asked_by_name() -> None:
    assert await handlers(pool(Engine(down=True))) == {"quotes"}
    serving = await pool(Engine(down=True)).serving()
    assert (serving.handler, serving.ok) == ("quotes", False) and serving.detail
    with pytest.raises(ModelUnavailable):
        await handlers(pool(Engine(down=True)), "tuned")


async def test_an_engine_that_dies_in_mid_answer_is_an_error_not_a_mixture() -> None:
    with pytest.raises(ModelUnavailable, match="died"):
        await handlers(pool(Engine(dies=True)))


@pytest.mark.parametrize(
    "fault", [ModelUnavailable("active.json is damaged"), BadInput("manifest"), NotFound("gone"), OSError()]
)
async def test_an_unreadable_registry_means_quotes(fault: Exception) -> None:
    def damaged(_task: str) -> Active | None:
        raise fault

    assert await handlers(Pool(Engine(), Quoting(), damaged)) == {"quotes"}


# --- the model of a task --------------------------------------------------------------------------------------------------
async def test_what_fits_is_counted_in_the_terms_of_the_model_that_answers() -> None:
    engine = Engine()
    models = {"history": Active("clio", "Clio", starter=False, context=4096), "": ACTIVE}
    made = Pool(engine, Quoting(), lambda task: models.get(task, ACTIVE))
    words = [Message("user", "why green")]
    assert await made.count(words, "history") == await made.count(words) == 14
    await made.count(words, "history", "plato")
    assert engine.counted == ["clio", "tuned", "plato"]
    assert await made.count(words, "history", "quotes") == 2 and len(engine.counted) == 3
    assert ((await made.serving("history")).context, (await made.serving()).context) == (4096, 1024)
    engine.down = True
    assert await made.count(words, "history") == 2, "quotes answer, and words they count"
    assert await pool(engine, None).count(words) == 2
    assert (await pool(engine, None).serving()).context == Quoting().context


@pytest.mark.parametrize(
    ("facts", "handler", "words"),
    [
        ({}, "llama", "The promoted model answers."),
        ({"tuned": {"backend": "transformers", "gpu": True, "why": "a GPU is free"}}, "transformers", "on a GPU, because"),
        ({"base": {"backend": "llama", "adapters": ["other", "tuned@0123"], "why": "no GPU is here"}}, "llama", "by llama.cpp"),
        ({"base": {"backend": "transformers", "adapters": ["other"]}}, "llama", "The promoted model answers."),
    ],
)
async def test_status_says_which_back_end_serves_and_why(facts: dict[str, object], handler: str, words: str) -> None:
    engine = Engine()
    engine.facts = {"models": facts}
    serving = await pool(engine).serving()
    assert serving.handler == handler and words in serving.detail


# --- a model of another machine ------------------------------------------------------------------------------------------
HERE = Active("here", "The local one", starter=False, context=1024)
FAR = Active("far", "The district's", starter=False, context=8192, hosted={"plugin": "remote", "model": "big"}, local=HERE)


class Outside(Fake):
    """What a plugin makes. fault: before its first word; breaks: after it."""

    name = "remote"

    def __init__(self) -> None:
        super().__init__()
        self.fault: Exception | None = None
        self.breaks = False
        self.shut: ApplianceError | None = None
        self.asked: list[Request] = []
        self.uses = 0

    @asynccontextmanager
    async def use(self, hosted: Mapping[str, Any]) -> AsyncIterator[Handler]:
        assert hosted["model"] == "big"
        if self.shut is not None:
            raise self.shut
        self.uses += 1
        try:
            yield self
        finally:
            self.uses -= 1

    async def generate(self, request: Request) -> AsyncGenerator[Chunk, None]:
        self.asked.append(request)
        if self.fault is not None:
            raise self.fault
        yield Chunk("WHY", model="/srv/weights")
        if self.breaks:
            raise ModelUnavailable("broke off", "ask again")
        yield Chunk(finish="stop", model="/srv/weights")

    async def count(self, messages: Sequence[Message]) -> int:
        raise Unsupported(f"no counting of {len(messages)}", "count here")

    async def health(self) -> Health:
        return Health(self.fault is None, "The line is down." if self.fault else "")


def beyond(outside: Outside, engine: Engine, active: Active = FAR) -> Pool:
    return Pool(engine, Quoting(), lambda _task: active, {"far": FAR}.get, outside.use)


async def who(pool: Pool, **options: Any) -> list[tuple[str, str]]:
    asked = Request([Message("user", "why green")], question="why green", user="u1", group="7B", **options)
    return sorted({(chunk.handler, chunk.model) async for chunk in pool.generate(asked)})


async def test_a_hosted_model_answers_those_whose_words_may_leave_and_is_told_nothing_of_them() -> None:
    outside, engine = Outside(), Engine()
    made = beyond(outside, engine)
    assert await who(made, inside=False) == [("remote", "far")]
    asked = outside.asked[0]
    assert (asked.user, asked.group, asked.question, asked.task, asked.passages) == ("", "", "", "", ())
    assert outside.uses == 0 and engine.asked == []
    assert (await made.serving()).handler == "remote" and "outside this building" in (await made.serving()).detail
    assert ((await made.serving()).context, (await made.serving(inside=True)).context) == (8192, 1024)


async def test_who_does_not_say_otherwise_stays_in_the_building() -> None:
    outside, engine = Outside(), Engine()
    made = beyond(outside, engine)
    assert await who(made) == [("llama", "llama")] and engine.asked == ["here"] and outside.asked == []
    assert (await made.serving(inside=True)).model == "here"
    with pytest.raises(Forbidden, match="stays inside"):
        await who(made, model="far")
    assert await who(made, model="far", inside=False) == [("remote", "far")]
    engine.down = True
    assert await who(made) == [("quotes", "quotes")] and len(outside.asked) == 1


@pytest.mark.parametrize(
    "fault",
    [
        ModelUnavailable("down"), Unreachable("cut"), Forbidden("closed"), UsedUp("budget"), Busy("full"), BadInput("odd"),
        Unsupported("no package"), NotFound("no plugin"), KeyError("a stranger's fault"),
    ],
)  # fmt: skip
async def test_whatever_stops_it_before_its_first_word_the_local_model_answers(fault: Exception) -> None:
    outside, engine = Outside(), Engine()
    outside.fault = fault
    made = beyond(outside, engine)
    await who(made, inside=False)
    assert engine.asked == ["here"] and outside.uses == 0
    serving = await made.serving()
    assert (serving.model, serving.ok) == ("here", False) and "The line is down." in serving.detail
    with pytest.raises(ApplianceError):  # one that was asked for by name does not become another
        await who(made, model="far", inside=False)
    if isinstance(fault, ApplianceError):
        outside.shut = fault
        await who(made, inside=False)
        assert engine.asked == ["here", "here"] and fault.message in (await made.serving()).detail


async def test_the_health_of_another_machine_is_not_asked_for_every_question(monkeypatch: pytest.MonkeyPatch) -> None:
    outside = Outside()
    made = beyond(outside, Engine())
    assert (await made.serving()).model == "far"
    outside.fault = ModelUnavailable("down")
    assert (await made.serving()).model == "far", "as it was a moment ago"
    monkeypatch.setattr("appliance.engine.pool.LOOK_SECONDS", 0.0)
    assert (await made.serving()).model == "here"


async def test_in_mid_answer_nobody_takes_over() -> None:
    outside, engine = Outside(), Engine()
    outside.breaks = True
    with pytest.raises(ModelUnavailable, match="broke off"):
        await who(beyond(outside, engine), inside=False)
    assert engine.asked == [] and outside.uses == 0


async def test_quotes_answer_where_the_local_model_cannot_or_is_only_a_starter() -> None:
    outside, engine = Outside(), Engine(down=True)
    outside.fault = ModelUnavailable("down")
    assert {handler for handler, _ in await who(beyond(outside, engine), inside=False)} == {"quotes"}
    engine.down = False
    starter = replace(FAR, local=replace(HERE, starter=True))
    engine.asked.clear()
    await who(beyond(outside, engine, starter), inside=False)
    assert engine.asked == [], "who was promised a model's answer gets no starter's"
    await who(beyond(outside, engine, starter))
    assert engine.asked == ["here"]
    await who(beyond(outside, engine, replace(FAR, local=None)), inside=False)
    serving = await beyond(outside, engine, replace(FAR, local=None)).serving()
    assert (serving.handler, serving.ok) == ("quotes", False)


async def test_a_prompt_for_a_large_model_that_the_local_one_cannot_hold_is_answered_by_quotes() -> None:
    class Small(Engine):
        async def generate(self, request: Request) -> AsyncGenerator[Chunk, None]:
            self.asked.append(request.model)
            raise TooLarge("too long", "ask in parts")
            yield Chunk()

    outside, engine = Outside(), Small()
    outside.fault = ModelUnavailable("down")
    assert await who(beyond(outside, engine), inside=False) == [("quotes", "quotes")] and engine.asked == ["here"]


async def test_time_that_is_used_up_outside_is_not_given_again_here() -> None:
    outside, engine = Outside(), Engine()
    outside.fault = Busy("too late")
    with pytest.raises(Busy):
        await who(beyond(outside, engine), inside=False, deadline=1.0)
    assert engine.asked == []


async def test_a_model_that_does_not_count_is_counted_for_here_with_a_fifth_to_spare() -> None:
    outside, engine = Outside(), Engine()
    made = beyond(outside, engine)
    words = [Message("user", "why green")]
    here = await made.count(words)
    assert await made.count(words, inside=False) == -(-here * 6 // 5) and engine.counted == ["here", "here"]
    assert await made.count(words, model="far", inside=False) == -(-here * 6 // 5)
