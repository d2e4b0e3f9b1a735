"""Who answers: the promoted model, quotes where it cannot, and never a silence while documents can speak."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

import pytest

from appliance.engine.fake import Fake
from appliance.engine.handler import Chunk, Health, Message, Request
from appliance.engine.pool import Active, Pool
from appliance.errors import BadInput, ModelUnavailable, NotFound

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
